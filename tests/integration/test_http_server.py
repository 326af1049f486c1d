"""
Goal: a connection that is reset, drips, or speaks no HTTP costs nothing for long, and is never
      given an answer that belongs to another request.
Method: the real server on loopback, with an application that the test holds in its hand.
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from gateway.asgi import AsgiScope, Receive, Send
from gateway.server import HEAD_BYTES_MAX, KEEP_ALIVE_S, Protocol, Server
from tests.support.waiting import until

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nok"
LATE_S = 0.3


class Served:
    """
    A running server: what it was asked, and a gate before each answer.
    """

    def __init__(self, port: int, server: Server) -> None:
        self.port = port
        self.server = server
        self.bodies: list[bytes | None] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def application(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.bodies.append(None)
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(body)
        await self.gate.wait()
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"done"})

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def serving(*, arrival_s_max: float = 30.0) -> AsyncIterator[Served]:
    """
    Run a server on a free port.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        served: Served

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await served.application(scope, receive, send)

        config = uvicorn.Config(
            application,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        server = Server(config, arrival_s_max)
        served = Served(listener.getsockname()[1], server)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started, "the server")
        try:
            yield served
        finally:
            server.should_exit = True
            await task


def connections(served: Served) -> list[Any]:
    return list(served.server.server_state.connections)


async def problem_in(reader: asyncio.StreamReader) -> tuple[int, str]:
    """
    Read one refusal and the end of the connection; return its status and code.
    """
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    problem = json.loads(body)
    assert b"application/problem+json" in head
    assert int(head.split()[1]) == problem["status"]
    return problem["status"], problem["code"]


async def test_reset_connections_leave_nothing() -> None:
    """
    A client that resets its connection does not keep the server's side of it alive.
    """
    async with serving() as served:
        protocols: list[weakref.ref[Any]] = []
        for _ in range(20):
            reader, writer = await served.connect()
            writer.write(REQUEST)
            assert (await reader.readuntil(b"done")).endswith(b"done")
            protocols += [weakref.ref(found) for found in connections(served)]
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.close()
        assert len(protocols) >= 20

        def are_gone() -> bool:
            gc.collect()
            return all(found() is None for found in protocols)

        await until(are_gone, "the reset connections to be forgotten")


@pytest.mark.parametrize(
    "garbage", [b"HELLO\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"\x16\x03\x01\x00"]
)
async def test_garbage_is_a_problem(garbage: bytes) -> None:
    """
    What is not HTTP hears so as the API says things, and the connection ends.
    """
    async with serving() as served:
        reader, writer = await served.connect()
        writer.write(garbage)

        assert await problem_in(reader) == (400, "malformed_request")
        writer.close()


@pytest.mark.parametrize("line", [b"x", b"x: y\r\n"])
@pytest.mark.parametrize("excess", [0, 1])
async def test_a_head_has_an_end(line: bytes, excess: int) -> None:
    """
    Headers beyond the bound are refused, whether in one line or in many; up to it they are not.
    """
    async with serving(arrival_s_max=30.0 if excess else LATE_S) as served:
        reader, writer = await served.connect()
        writer.write(b"GET / HTTP/1.1\r\nx: ")
        await until(lambda: any(found._in_head for found in connections(served)), "the head")
        bytes_sent = HEAD_BYTES_MAX + excess
        writer.write((line * bytes_sent)[:bytes_sent])

        expected = (431, "head_too_large") if excess else (408, "request_too_slow")
        assert await problem_in(reader) == expected
        writer.close()


@pytest.mark.parametrize("first", [0, 10])
async def test_a_large_body_is_no_large_head(first: int) -> None:
    """
    The bound is the head's alone, even when the body comes in one piece with its end.
    """
    async with serving() as served:
        reader, writer = await served.connect()
        body = b"x" * (4 * HEAD_BYTES_MAX)
        request = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        if first:
            writer.write(request[:first])
            await until(lambda: any(found._in_head for found in connections(served)), "the head")
        writer.write(request[first:])

        assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200")
        assert served.bodies == [body]
        writer.close()


@pytest.mark.parametrize("start", [b"", b"POST / HT", REQUEST[:-1]])
async def test_what_does_not_arrive_is_ended(start: bytes) -> None:
    """
    A request that stops anywhere before its end is refused in time, and nobody acts on it.
    """
    async with serving(arrival_s_max=LATE_S) as served:
        reader, writer = await served.connect()
        writer.write(start)

        assert await problem_in(reader) == (408, "request_too_slow")
        assert served.bodies in ([], [None])
        writer.close()


async def test_a_slow_answer_is_not_a_slow_request() -> None:
    """
    Once a request is there, nothing hurries its answer.
    """
    async with serving(arrival_s_max=LATE_S) as served:
        served.gate.clear()
        reader, writer = await served.connect()
        writer.write(REQUEST)
        await until(lambda: served.bodies, "the request")
        # One that came later is ended first: then the look has passed over the other.
        late_reader, late_writer = await served.connect()
        late_writer.write(b"POST / HT")
        assert await problem_in(late_reader) == (408, "request_too_slow")
        served.gate.set()

        assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200")
        writer.close()
        late_writer.close()


@pytest.mark.parametrize("second", [b"GARBAGE\r\n\r\n", b"POST / HT", REQUEST[:-1]])
async def test_a_refusal_is_not_taken_for_an_answer(second: bytes) -> None:
    """
    While a request waits for its answer, what is wrong behind it is not said in its place.
    """
    async with serving(arrival_s_max=LATE_S) as served:
        served.gate.clear()
        reader, writer = await served.connect()
        writer.write(REQUEST + second)

        assert await asyncio.wait_for(reader.read(), 10) == b""
        assert served.bodies[0] == b"ok"
        served.gate.set()
        writer.close()
