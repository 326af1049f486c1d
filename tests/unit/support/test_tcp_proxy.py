"""
Goal: the proxy that other tests break connections with breaks them exactly where it says.
Method: an echo server behind it, over TCP and over Unix sockets; what arrives on each side is
        counted to the byte.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.tcp_proxy import (
    Direction,
    MessageEnds,
    TcpProxy,
    frame_message_bytes,
    postgres_message_bytes,
)
from tests.support.waiting import until


class EchoServer:
    """
    Sends everything back, and remembers what came and how each connection ended.
    """

    def __init__(self) -> None:
        self.received = b""
        self.ends: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
            self.ends.append("FIN")
        except OSError:
            self.ends.append("RST")
        finally:
            writer.close()


@asynccontextmanager
async def echoing(kind: str, folder: Path) -> AsyncIterator[tuple[EchoServer, TcpProxy]]:
    echo = EchoServer()
    if kind == "unix":
        server = await asyncio.start_unix_server(echo.serve, folder / "echo")
        proxy = TcpProxy(folder / "echo", folder / "proxy")
    else:
        server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        proxy = TcpProxy((host, port))
    proxy.start()
    try:
        yield echo, proxy
    finally:
        proxy.stop()
        server.close()


@pytest.fixture(params=["unix", "tcp"])
async def proxied(request, tmp_path) -> AsyncIterator[tuple[EchoServer, TcpProxy]]:
    async with echoing(request.param, tmp_path) as both:
        yield both


async def connect(proxy: TcpProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = proxy.address
    if isinstance(address, Path):
        return await asyncio.open_unix_connection(str(address))
    return await asyncio.open_connection(*address)


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


async def read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    received = b""
    try:
        while data := await reader.read(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


async def greet(proxy: TcpProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """
    Connect and see one message echoed, so that the link stands.
    """
    reader, writer = await connect(proxy)
    writer.write(framed(b"hello"))
    assert await reader.readexactly(9) == framed(b"hello")
    return reader, writer


async def test_everything_is_forwarded_both_ways(proxied):
    """
    A megabyte goes through and comes back unchanged, and the end of one side ends the other.
    """
    echo, proxy = proxied
    reader, writer = await greet(proxy)
    payload = bytes(range(256)) * 4096
    writer.write(payload)
    assert await reader.readexactly(len(payload)) == payload
    assert echo.received == framed(b"hello") + payload
    link = proxy.link_of(b"hello")
    assert link.passed == dict.fromkeys(Direction, 9 + len(payload))
    writer.close()
    await until(lambda: echo.ends, "the server sees the end")


@pytest.mark.parametrize("byte_count", [0, 1, 5, 12])
async def test_a_cut_after_bytes_to_the_server_is_exact(proxied, byte_count):
    """
    The server receives exactly the bytes before the cut; both sides end.
    """
    echo, proxy = proxied
    reader, writer = await greet(proxy)
    proxy.link_of(b"hello").cut_after(Direction.TO_SERVER, byte_count=byte_count)
    writer.write(framed(b"12345678"))
    await read_to_the_end(reader)
    await until(lambda: echo.ends, "the server sees the end")
    assert echo.received[9:] == framed(b"12345678")[:byte_count]
    writer.close()


@pytest.mark.parametrize("byte_count", [0, 1, 5, 12])
async def test_a_cut_after_bytes_to_the_client_is_exact(proxied, byte_count):
    """
    The server receives all, the client exactly the bytes before the cut.
    """
    echo, proxy = proxied
    reader, writer = await greet(proxy)
    proxy.link_of(b"hello").cut_after(Direction.TO_CLIENT, byte_count=byte_count)
    writer.write(framed(b"12345678"))
    assert await read_to_the_end(reader) == framed(b"12345678")[:byte_count]
    assert echo.received[9:] == framed(b"12345678")
    writer.close()


async def test_a_cut_after_messages_counts_whole_messages(proxied):
    """
    Two messages pass however they are sliced, the third does not begin.
    """
    echo, proxy = proxied
    reader, writer = await greet(proxy)
    proxy.link_of(b"hello").cut_after(Direction.TO_SERVER, message_count=2)
    messages = framed(b"one") + framed(b"twenty-two") + framed(b"three")
    writer.write(messages[:2])
    await until(lambda: len(echo.received) == 11, "the first slice arrives")
    writer.write(messages[2:])
    await read_to_the_end(reader)
    await until(lambda: echo.ends, "the server sees the end")
    assert echo.received[9:] == framed(b"one") + framed(b"twenty-two")
    writer.close()


async def test_a_cut_is_felt_on_both_sides(proxied):
    """
    A cut ends client and server; a new connection works.
    """
    echo, proxy = proxied
    reader, writer = await greet(proxy)
    proxy.link_of(b"hello").cut()
    assert await read_to_the_end(reader) == b""
    await until(lambda: echo.ends, "the server sees the end")
    writer.close()
    _, writer = await greet(proxy)
    writer.close()


async def test_a_reset_is_a_reset(tmp_path):
    """
    Over TCP a cut with reset is seen as RST by both peers, and without it as FIN.
    """
    async with echoing("tcp", tmp_path) as (echo, proxy):
        for reset, end in ((True, "RST"), (False, "FIN")):
            reader, writer = await greet(proxy)
            proxy.link_of(b"hello").cut(reset=reset)
            if reset:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            else:
                assert await reader.read() == b""
            await until(lambda: echo.ends, "the server sees the end")
            assert echo.ends.pop() == end
            writer.close()


async def test_a_black_hole_takes_everything_and_tells_nobody(proxied):
    """
    A swallowing link accepts bytes, forwards none, and hides even the client's end.
    """
    echo, proxy = proxied
    _, writer = await greet(proxy)
    link = proxy.link_of(b"hello")
    link.swallow()
    writer.write(framed(b"lost"))
    await until(lambda: link.lost[Direction.TO_SERVER] == 8, "all is swallowed")
    writer.close()
    _, second = await greet(proxy)
    assert echo.received == framed(b"hello") * 2
    assert not echo.ends
    second.close()


async def test_what_was_swallowed_can_be_delivered_late(proxied):
    """
    The client is gone; what it said arrives after all.
    """
    echo, proxy = proxied
    _, writer = await greet(proxy)
    link = proxy.link_of(b"hello")
    link.swallow(Direction.TO_SERVER)
    writer.write(framed(b"late"))
    await until(lambda: link.lost[Direction.TO_SERVER] == 8, "all is swallowed")
    writer.close()
    assert echo.received == framed(b"hello")
    link.deliver_late()
    await until(lambda: echo.received == framed(b"hello") + framed(b"late"), "it arrives late")


async def test_one_direction_can_be_swallowed(proxied):
    """
    A reply that is swallowed was caused by a request that arrived.
    """
    echo, proxy = proxied
    reader, writer = await greet(proxy)
    link = proxy.link_of(b"hello")
    link.swallow(Direction.TO_CLIENT)
    writer.write(framed(b"heard"))
    await until(lambda: link.lost[Direction.TO_CLIENT] == 9, "the echo is swallowed")
    assert echo.received == framed(b"hello") + framed(b"heard")
    link.cut()
    assert await read_to_the_end(reader) == b""
    writer.close()


async def test_a_black_hole_opens_after_a_message(proxied):
    """
    What was asked to pass passes; from then on neither direction does.
    """
    echo, proxy = proxied
    _, writer = await greet(proxy)
    link = proxy.link_of(b"hello")
    link.swallow_after(Direction.TO_SERVER, message_count=1)
    writer.write(framed(b"passes"))
    await until(lambda: link.lost[Direction.TO_CLIENT] == 10, "the echo is swallowed")
    writer.write(framed(b"does not"))
    await until(lambda: link.lost[Direction.TO_SERVER] == 12, "the second is swallowed")
    assert echo.received == framed(b"hello") + framed(b"passes")
    assert link.messages == {Direction.TO_SERVER: 2, Direction.TO_CLIENT: 1}
    writer.close()


async def test_refused_connections_end_at_once(proxied):
    """
    While connections are refused the standing one works; afterwards new ones do too.
    """
    _, proxy = proxied
    reader, writer = await greet(proxy)
    proxy.refuse()
    refused_reader, refused_writer = await connect(proxy)
    assert await read_to_the_end(refused_reader) == b""
    refused_writer.close()
    writer.write(framed(b"still here"))
    assert await reader.readexactly(14) == framed(b"still here")
    writer.close()
    proxy.refuse(refused=False)
    _, writer = await greet(proxy)
    writer.close()


async def test_a_fault_can_be_planned_for_a_connection_to_come(proxied):
    """
    A fault set when the client has spoken strikes before its first byte is passed.
    """
    echo, proxy = proxied
    proxy.on_open(lambda link: link.cut_after(Direction.TO_SERVER, byte_count=3))
    reader, writer = await connect(proxy)
    writer.write(framed(b"hello"))
    await read_to_the_end(reader)
    await until(lambda: echo.ends, "the server sees the end")
    assert echo.received == framed(b"hello")[:3]
    writer.close()


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7, 100])
def test_message_ends_are_found_in_pieces_of_any_size(piece_bytes):
    """
    A startup packet and typed messages are told apart however the stream is sliced.
    """
    startup = struct.pack(">II", 20, 196608) + b"user\0me\0\0..."[:12]
    query = b"Q" + struct.pack(">I", 13) + b"SELECT 1\0"
    sync = b"S" + struct.pack(">I", 4)
    stream = startup + query + sync
    ends = MessageEnds(postgres_message_bytes)
    found = []
    for start in range(0, len(stream), piece_bytes):
        piece = stream[start : start + piece_bytes]
        found += [start + end for end in ends.feed(piece)]
    assert found == [20, 34, 39]


def test_a_frame_of_no_bytes_is_a_message():
    """
    Only the length stands: four bytes end a message.
    """
    assert MessageEnds(frame_message_bytes).feed(bytes(8)) == [4, 8]
