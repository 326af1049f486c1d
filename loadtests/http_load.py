"""
A closed loop of HTTP/1.1 connections, each with one request under way.

Small and fast on purpose: whatever the driver costs, the ledger on the same cores does not get.
Latencies of a closed loop are times of service, not what an independent client would see.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import cast

import msgspec

MakeRequest = Callable[[], bytes]
CountPosted = Callable[[bytes], int]


class LoadResult(msgspec.Struct):
    """
    What one run of the loop got: replies by status (0 is a lost connection), the transfers that
    they say are posted, times of service in seconds, and the last reply of each connection.
    """

    statuses: Counter[int] = msgspec.field(default_factory=Counter)
    posted_count: int = 0
    latencies_s: list[float] = []
    last_replies: list[bytes] = []
    seconds: float = 0.0

    @property
    def error_count(self) -> int:
        return sum(n for status, n in self.statuses.items() if not 200 <= status < 300)


def post(path: str, host: str, key: str, body: bytes, headers: str = "") -> bytes:
    """
    Write a POST request.
    """
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n{headers}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """
    Sends a request, waits for the whole reply, and sends the next one until the deadline.
    """

    def __init__(
        self,
        make_request: MakeRequest,
        count_posted: CountPosted,
        result: LoadResult,
        deadline: float,
    ) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._make_request = make_request
        self._count_posted = count_posted
        self._result = result
        self._deadline = deadline
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = b""
        self._reply_bytes = 0
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._buffer = b""
        self._reply_bytes = 0
        request = self._make_request()
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._reply_bytes:
            head_end = self._buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            self._reply_bytes = head_end + 4 + _content_length(self._buffer[:head_end])
        if len(self._buffer) < self._reply_bytes:
            return
        now = time.perf_counter()
        result = self._result
        status = int(self._buffer[9:12])
        result.statuses[status] += 1
        result.latencies_s.append(now - self._sent_at)
        if 200 <= status < 300:
            result.posted_count += self._count_posted(self._buffer)
        if now < self._deadline:
            self._send()
        else:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if not self.done.done():
            self._result.statuses[0] += 1
            self.done.set_result(None)

    def _end(self) -> None:
        assert self._transport is not None
        self._result.last_replies.append(self._buffer)
        self.done.set_result(None)
        self._transport.close()


def _content_length(head: bytes) -> int:
    lower = head.lower()
    start = lower.find(b"content-length:")
    if start < 0:
        raise ValueError(f"no content length in {head!r}")
    end = lower.find(b"\r\n", start)
    return int(lower[start + 15 : end if end > 0 else None])


async def offer_load(
    host: str,
    port: int,
    *,
    make_request: MakeRequest,
    count_posted: CountPosted,
    connections: int,
    seconds: float,
) -> LoadResult:
    """
    Keep *connections* busy for *seconds* and return what came back.
    """
    loop = asyncio.get_running_loop()
    result = LoadResult()
    started = time.perf_counter()
    deadline = started + seconds
    open_connections = []
    for _ in range(connections):
        connection = Connection(make_request, count_posted, result, deadline)
        await loop.create_connection(lambda c=connection: c, host, port)  # type: ignore[misc]
        open_connections.append(connection)
    await asyncio.gather(*(connection.done for connection in open_connections))
    result.seconds = time.perf_counter() - started
    return result


async def send_all(
    host: str, port: int, requests: Iterable[bytes], *, connections: int
) -> Counter[int]:
    """
    Send every request once, *connections* at a time, and count the replies by status.
    """
    waiting = iter(requests)
    statuses: Counter[int] = Counter()

    async def send_next() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for request in waiting:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_content_length(head))
            statuses[int(head[9:12])] += 1
        writer.close()

    await asyncio.gather(*(send_next() for _ in range(connections)))
    return statuses
