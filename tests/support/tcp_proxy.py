"""
A proxy that breaks connections on command: Unix sockets or TCP, in a thread of its own.

Each accepted connection is a `Link`. It forwards until a fault is asked for: a cut, or a black
hole that swallows everything and tells nobody; now, or after exactly so many bytes or messages
in one direction. The thread keeps the proxy going while the test's own loop works or is
blocked, and every command has taken effect when it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs, urlsplit

CHUNK_BYTES = 64 * 1024
COMMAND_S_MAX = 10.0

T = TypeVar("T")
# How long the message is that begins with these bytes; None while they are too few to tell.
# The second argument says whether it is the first message in its direction.
Measure = Callable[[bytes, bool], int | None]


class Direction(Enum):
    """
    Which way the bytes go.
    """

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


def postgres_message_bytes(head: bytes, is_opening: bool) -> int | None:
    """
    Measure a message of Postgres; the client's first one has no type in front.
    """
    skipped = 0 if is_opening and head[:1] == b"\0" else 1
    if len(head) < skipped + 4:
        return None
    return skipped + int(struct.unpack_from(">I", head, skipped)[0])


def frame_message_bytes(head: bytes, is_opening: bool) -> int | None:
    """
    Measure a message between a gateway and a shard: a length and as many bytes.
    """
    return 4 + int(struct.unpack_from(">I", head)[0]) if len(head) >= 4 else None


class MessageEnds:
    """
    Finds where messages end in a stream that comes in pieces.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._is_opening = True
        self._head = b""
        self._bytes_left = 0  # Of the message being passed, once its length is known.

    def feed(self, data: bytes) -> list[int]:
        """
        Return the offsets in *data* just after each message that ends in it.
        """
        ends = []
        at = 0
        while at < len(data):
            if not self._bytes_left:
                at = self._read_length(data, at)
                if not self._bytes_left:
                    break
            step = min(self._bytes_left, len(data) - at)
            at += step
            self._bytes_left -= step
            if not self._bytes_left:
                ends.append(at)
        return ends

    def _read_length(self, data: bytes, at: int) -> int:
        """
        Begin a message at *at*; return how far its head was read.
        """
        known = len(self._head)
        self._head += data[at : at + 8 - known]
        length = self._measure(self._head, self._is_opening)
        if length is None:
            return len(data)
        # What earlier pieces had of this message has been passed already.
        self._bytes_left = length - known
        self._head = b""
        self._is_opening = False
        return at


class Fault:
    """
    What is to happen after so many more bytes or messages.
    """

    def __init__(
        self, happen: Callable[[], None], *, byte_count: int | None, message_count: int | None
    ) -> None:
        assert (byte_count is None) != (message_count is None), "give one of the two"
        self.happen = happen
        self._bytes_left = byte_count
        self._messages_left = message_count

    def allowed(self, data: bytes, ends: list[int]) -> int | None:
        """
        Return how many bytes of *data* still pass, or None when it is not yet time.
        """
        if self._bytes_left is not None:
            if len(data) >= self._bytes_left:
                return self._bytes_left
            self._bytes_left -= len(data)
        if self._messages_left is not None:
            if len(ends) >= self._messages_left:
                return ends[self._messages_left - 1] if self._messages_left else 0
            self._messages_left -= len(ends)
        return None


class Link:
    """
    One proxied connection. Its methods may be called from any thread.
    """

    def __init__(self, proxy: TcpProxy, client: asyncio.StreamWriter) -> None:
        self.opening = b""  # What the client said first: a startup packet tells who it is.
        self.passed = dict.fromkeys(Direction, 0)  # Bytes forwarded.
        self.messages = dict.fromkeys(Direction, 0)  # Messages forwarded to their ends.
        self.lost = dict.fromkeys(Direction, 0)  # Bytes swallowed.
        self.is_open = True
        self._proxy = proxy
        self._client = client
        self._server: asyncio.StreamWriter | None = None
        self._swallowed: set[Direction] = set()
        self._kept = {direction: bytearray() for direction in Direction}
        self._faults: dict[Direction, Fault] = {}
        self._ends = {direction: MessageEnds(proxy.measure) for direction in Direction}

    def cut(self, *, reset: bool = False) -> None:
        """
        End both sides now; with *reset* a TCP peer sees RST instead of FIN.
        """
        self._proxy.command(lambda: self._end(reset=reset))

    def cut_after(
        self,
        direction: Direction,
        *,
        byte_count: int | None = None,
        message_count: int | None = None,
        reset: bool = False,
    ) -> None:
        """
        Let so many more bytes or messages through in *direction*, then end both sides.

        A cut after 0 happens when the next byte arrives, which is not forwarded.
        """
        self._plan(direction, lambda: self._end(reset=reset), byte_count, message_count)

    def swallow_after(
        self,
        direction: Direction,
        *,
        byte_count: int | None = None,
        message_count: int | None = None,
    ) -> None:
        """
        Let so many more bytes or messages through in *direction*, then swallow both ways.
        """
        self._plan(direction, self.swallow, byte_count, message_count)

    def _plan(
        self,
        direction: Direction,
        happen: Callable[[], None],
        byte_count: int | None,
        message_count: int | None,
    ) -> None:
        fault = Fault(happen, byte_count=byte_count, message_count=message_count)
        self._proxy.command(lambda: self._faults.update({direction: fault}))

    def swallow(self, *directions: Direction) -> None:
        """
        Take everything and forward nothing, in *directions* or both: the half-open connection.

        The end of one side is not told to the other either.
        """
        self._proxy.command(lambda: self._swallowed.update(directions or Direction))

    def deliver_late(self) -> None:
        """
        Let the server have now what was swallowed on its way there; a client may be long gone.
        """
        self._proxy.command(self._deliver_kept)

    def _deliver_kept(self) -> None:
        assert self._server is not None, "not connected"
        self._swallowed.discard(Direction.TO_SERVER)
        self._server.write(bytes(self._kept[Direction.TO_SERVER]))
        self._kept[Direction.TO_SERVER].clear()

    async def carry(self, reader: asyncio.StreamReader) -> None:
        """
        Forward until one side ends.
        """
        client_reader = reader
        server_reader, self._server = await self._proxy.connect()
        both = [
            asyncio.create_task(self._pump(client_reader, self._server, Direction.TO_SERVER)),
            asyncio.create_task(self._pump(server_reader, self._client, Direction.TO_CLIENT)),
        ]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        # A link that swallowed keeps its other side in the dark until the proxy ends.
        if self._swallowed or any(self.lost.values()):
            await asyncio.wait(both)
            await self._proxy.stopping.wait()
        self._end(reset=False)
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        for writer in (self._client, self._server):
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        with contextlib.suppress(OSError):
            while self.is_open and (data := await reader.read(CHUNK_BYTES)):
                if direction is Direction.TO_SERVER and not self.passed[direction]:
                    self.opening = data
                    self._proxy.opened(self)
                if direction in self._swallowed:
                    self.lost[direction] += len(data)
                    self._kept[direction] += data
                else:
                    await self._forward(data, writer, direction)

    async def _forward(
        self, data: bytes, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        ends = self._ends[direction].feed(data)
        fault = self._faults.get(direction)
        allowed = fault.allowed(data, ends) if fault is not None else None
        if allowed is not None:
            ends = [end for end in ends if end <= allowed]
            data = data[:allowed]
        # Counted first: who has received something finds it counted.
        self.passed[direction] += len(data)
        self.messages[direction] += len(ends)
        writer.write(data)
        if fault is not None and allowed is not None:
            fault.happen()
        else:
            await writer.drain()

    def _end(self, *, reset: bool) -> None:
        self.is_open = False
        for writer in (self._client, self._server):
            if writer is None:
                continue
            if reset:
                _linger_for_reset(writer)
                writer.transport.abort()
            else:
                writer.close()


class TcpProxy:
    """
    Listens at *listen* and forwards to *target*; an address is a path or (host, port).
    """

    def __init__(
        self,
        target: Path | tuple[str, int],
        listen: Path | tuple[str, int] = ("127.0.0.1", 0),
        *,
        measure: Measure = frame_message_bytes,
    ) -> None:
        self.links: list[Link] = []
        self.measure = measure
        self._target = target
        self._listen = listen
        self._refused = False
        self._on_open: Callable[[Link], None] | None = None
        self._loop = asyncio.new_event_loop()
        self.stopping = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._carriers: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)

    @property
    def address(self) -> Path | tuple[str, int]:
        """
        Where to connect instead of the target.
        """
        if isinstance(self._listen, Path):
            return self._listen
        assert self._server is not None, "not started"
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(COMMAND_S_MAX)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(COMMAND_S_MAX)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(COMMAND_S_MAX)
        self._loop.close()

    def refuse(self, refused: bool = True) -> None:
        """
        Hang up on new connections at once; those that stand go on.
        """
        self.command(lambda: setattr(self, "_refused", refused))

    def on_open(self, call: Callable[[Link], None] | None) -> None:
        """
        Have *call* look at each new link once its client has spoken, before a byte is passed.

        It runs in the proxy's thread, where a link's commands are allowed too.
        """
        self.command(lambda: setattr(self, "_on_open", call))

    def link_of(self, who: bytes) -> Link:
        """
        Return the newest open link whose client's first words contain *who*.
        """
        links = [link for link in self.links if link.is_open and who in link.opening]
        assert links, f"no open link of {who!r}"
        return links[-1]

    def command(self, call: Callable[[], T]) -> T:
        """
        Run *call* in the proxy's thread and return when it has.
        """
        if threading.current_thread() is self._thread:
            return call()

        async def run() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(COMMAND_S_MAX)

    def opened(self, link: Link) -> None:
        if self._on_open is not None:
            self._on_open(link)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(str(self._target))
        return await asyncio.open_connection(*self._target)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _open(self) -> None:
        if isinstance(self._listen, Path):
            self._server = await asyncio.start_unix_server(self._accept, str(self._listen))
        else:
            self._server = await asyncio.start_server(self._accept, *self._listen)

    async def _close(self) -> None:
        assert self._server is not None, "not started"
        self._server.close()
        self.stopping.set()
        for link in self.links:
            link.cut(reset=True)
        await asyncio.gather(*self._carriers, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refused:
            writer.transport.abort()
            return
        link = Link(self, writer)
        self.links.append(link)
        task = asyncio.current_task()
        assert task is not None
        self._carriers.add(task)
        try:
            await link.carry(reader)
        except OSError:
            link.cut(reset=True)  # The target is not there.
        finally:
            self._carriers.discard(task)


@contextmanager
def proxied_postgres(dsn: str, folder: Path | None = None) -> Iterator[tuple[TcpProxy, str]]:
    """
    Put a proxy before the server of a Unix-socket *dsn*; yield it and the DSN through it.

    With *folder* clients use a Unix socket in it, else TCP.
    """
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    port = query.get("port", ["5432"])[0]
    target = Path(query["host"][0]) / f".s.PGSQL.{port}"
    listen = folder / ".s.PGSQL.5432" if folder is not None else ("127.0.0.1", 0)
    proxy = TcpProxy(target, listen, measure=postgres_message_bytes)
    proxy.start()
    try:
        if folder is not None:
            through = f"postgresql://postgres@{parts.path}?host={folder}&port=5432"
        else:
            address = proxy.address
            assert isinstance(address, tuple), "it listens on TCP"
            host, tcp_port = address
            through = f"postgresql://postgres@{host}:{tcp_port}{parts.path}?sslmode=disable"
        yield proxy, through
    finally:
        proxy.stop()


def _linger_for_reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
