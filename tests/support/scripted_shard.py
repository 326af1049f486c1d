"""
A shard's end of the socket that says exactly what a test wants: the real handshake and wire, and
in the place of a ledger a function of the test.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from processor.core.commands import Command
from processor.flow import frames
from processor.flow.frames import Answered, FrameSplitter, Reply, RequestFrame, Result
from processor.storage.directory import ShardEntry

EPOCH = 1

Answer = Callable[[RequestFrame], list[Reply]]


def answering(result_of: Callable[[Command], Result]) -> Answer:
    """
    Answer each frame with a result for each command.
    """
    return lambda frame: [Answered(frame.frame_id, [result_of(one) for one in frame.commands])]


class ScriptedShard:
    """
    One shard at a socket: `frames` are all that it got, `answer` may be changed at any time.
    """

    def __init__(self, shard_id: int, path: Path, secret: bytes, answer: Answer) -> None:
        self.shard_id = shard_id
        self.answer = answer
        self.frames: list[RequestFrame] = []
        self._path = path
        self._secret = secret
        self._connections: list[_Connection] = []
        self._server: asyncio.Server | None = None

    @property
    def entry(self) -> ShardEntry:
        """
        Say what the directory would say of it.
        """
        return ShardEntry(self.shard_id, EPOCH, "active", f"unix:{self._path}", 1, "test", None)

    @property
    def commands(self) -> list[Command]:
        return [command for frame in self.frames for command in frame.commands]

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._connect, str(self._path))

    def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.hang_up()

    def say(self, reply: Reply) -> None:
        """
        Send *reply* unasked on the newest connection.
        """
        self._connections[-1].say(reply)

    def hang_up(self) -> None:
        for connection in self._connections:
            connection.abort()

    def take(self, frame: RequestFrame) -> list[Reply]:
        self.frames.append(frame)
        return self.answer(frame)

    def _connect(self) -> _Connection:
        connection = _Connection(self, self._secret)
        self._connections.append(connection)
        return connection


class _Connection(asyncio.Protocol):
    """
    The shard's side of the handshake, then the script; all replies to a frame leave together.
    """

    def __init__(self, shard: ScriptedShard, secret: bytes) -> None:
        self._shard = shard
        self._secret = secret
        self._nonce = secrets.token_bytes(frames.NONCE_BYTES)
        self._splitter = FrameSplitter()
        self._trusted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(frames.with_length(self._nonce))

    def data_received(self, data: bytes) -> None:
        for message in self._splitter.feed(data):
            if self._trusted:
                replies = self._shard.take(frames.decode_request(message))
                parts = [frames.with_length(frames.encode(reply)) for reply in replies]
                self._transport.write(b"".join(parts))
                continue
            client_nonce = message[: frames.NONCE_BYTES]
            proof = frames.server_proof(self._secret, self._nonce, client_nonce)
            self._trusted = True
            self._transport.write(frames.with_length(proof))

    def say(self, reply: Reply) -> None:
        self._transport.write(frames.with_length(frames.encode(reply)))

    def abort(self) -> None:
        self._transport.abort()


@asynccontextmanager
async def listening(
    shard_id: int, folder: Path, secret: bytes, answer: Answer
) -> AsyncIterator[ScriptedShard]:
    """
    Run a scripted shard for the length of a block.
    """
    shard = ScriptedShard(shard_id, folder / f"shard-{shard_id}", secret, answer)
    await shard.listen()
    try:
        yield shard
    finally:
        shard.close()
