"""
Goal: the load driver counts what came back, however it came.
Method: a small server in the same loop that answers in pieces, refuses, or hangs up.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from loadtests.http_load import LoadResult, offer_load, post, send_all
from loadtests.scenarios import BATCH_SIZE, SCENARIOS, Maker, last_sequences

SECONDS = 0.05
HANG_UP = b""


@asynccontextmanager
async def serving(replies: Iterator[list[bytes]]) -> AsyncIterator[int]:
    """
    Answer each request with the next of *replies*, piece by piece; gives the port.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            for piece in next(replies):
                if piece == HANG_UP:
                    writer.close()
                    return
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def reply(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def for_ever(*pieces: bytes) -> Iterator[list[bytes]]:
    while True:
        yield list(pieces)


async def offer(port: int, connections: int = 2) -> LoadResult:
    request = post("/v1/transfers", "x", "key", b"{}")
    return await offer_load(
        "127.0.0.1",
        port,
        make_request=lambda: request,
        count_posted=lambda _: 1,
        connections=connections,
        seconds=SECONDS,
    )


@pytest.mark.parametrize("size", [1, 7, 1_000])
async def test_replies_in_pieces(size: int) -> None:
    """
    A reply counts once, with its time, in however many pieces it arrives.
    """
    whole = reply(201, b'{"shard":1,"sequence":7}')
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    async with serving(for_ever(*pieces)) as port:
        result = await offer(port)
    assert set(result.statuses) == {201}
    assert result.statuses[201] == result.posted_count == len(result.latencies_s) > 0
    assert result.last_replies == [whole, whole]
    assert last_sequences(result.last_replies) == {1: 7}
    assert result.seconds >= SECONDS
    assert result.error_count == 0


async def test_refusals_are_errors() -> None:
    """
    A refusal is counted by its status, is an error, and posts nothing.
    """
    async with serving(for_ever(reply(409, b"{}"))) as port:
        result = await offer(port)
    assert result.error_count == result.statuses[409] > 0
    assert result.posted_count == 0


async def test_lost_connection_is_an_error() -> None:
    """
    A connection that ends before its reply counts as status 0 and does not hold up the run.
    """
    async with serving(for_ever(HANG_UP)) as port:
        result = await asyncio.wait_for(offer(port), 10)
    assert result.statuses == {0: 2}
    assert result.error_count == 2


async def test_send_all_sends_each_request_once() -> None:
    """
    Every request is sent once, and every reply is counted.
    """
    requests = [post("/v1/wallets", "x", "key", b"{}")] * 25
    statuses = iter([201] * 20 + [200] * 5)
    async with serving([reply(status, b"{}")] for status in statuses) as port:
        found = await send_all("127.0.0.1", port, requests, connections=4)
    assert found == {201: 20, 200: 5}


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_nothing_is_offered_twice(name: str) -> None:
    """
    All idempotency keys of a scenario differ, within a request, between requests, and between
    runs.
    """
    scenario = SCENARIOS[name]
    keys: list[bytes] = []
    for _ in range(2):
        make_request = scenario.make(Maker("x", "key", 10))
        for _ in range(10):
            request = make_request()
            keys += re.findall(rb'Idempotency-Key: (\S+)|"idempotency_key":"([^"]+)"', request)
    assert len(keys) == len(set(keys)) == 20 * scenario.transfers_per_request


def test_wallets_of_a_transfer_differ() -> None:
    """
    A transfer never goes from a wallet to itself, not even where there are two only.
    """
    for name in ("single", "hot"):
        make_request = SCENARIOS[name].make(Maker("x", "key", 2))
        for _ in range(100):
            pair = re.search(rb'"source":"([^"]+)","destination":"([^"]+)"', make_request())
            assert pair is not None
            assert pair[1] != pair[2]


def test_batch_counts_what_is_posted() -> None:
    """
    Of a batch, only what its reply says is posted counts.
    """
    body = b'{"posted":9998,"rejected":2,"failed":0,"unknown":0,"results":[]}'
    batch = SCENARIOS["batch"]
    assert batch.count_posted(reply(200, body)) == 9_998
    assert batch.transfers_per_request == BATCH_SIZE
