"""
The shard's socket: frames in, replies out; and what other shards say on their channels to it.

A Unix socket for who is on this host, TCP for others; both begin with the handshake of
`processor.flow.frames`, so that only who knows the cluster secret is heard. The handshake also
tells a client from a peer. A connection that breaks a rule is dropped without an answer.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import msgspec
import structlog

from actors.peer_intake import Speaker, connection_numbers
from actors.tcp_watch import watch_tcp
from processor.flow import frames
from processor.flow.channel_link import Effect, Greeting, decode_effect
from processor.flow.frames import FrameSplitter, FrameTooLarge, Reply, RequestFrame

UNSENT_BYTES_MAX = 256 * 1024 * 1024  # A peer that reads nothing is cut off.
HANDSHAKE_S_MAX = 5.0

log = structlog.get_logger("shard_server")


class TakesFrames(Protocol):
    """
    What the server needs of a shard.
    """

    shard_id: int

    def offer(self, frame: RequestFrame, deliver: DeliverReply) -> None: ...

    def offer_said(self, speaker: Speaker, said: Effect) -> None: ...


class DeliverReply(Protocol):
    def __call__(self, reply: Reply, /) -> None: ...


class ShardConnection(asyncio.Protocol):
    """
    One connection of a gateway or of a peer: the handshake, then frames, or what the peer says.
    """

    def __init__(self, shard: TakesFrames, secret: bytes) -> None:
        self.number = next(connection_numbers)
        self._shard = shard
        self._secret = secret
        self._nonce = secrets.token_bytes(frames.NONCE_BYTES)
        self._splitter = FrameSplitter(frames.NONCE_BYTES + frames.PROOF_BYTES)
        self._take: Callable[[bytes], None] = self._shake_hands
        self._source: int | None = None  # The peer, once it has greeted.
        self._transport: asyncio.Transport | None = None
        self._handshake_watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        watch_tcp(transport)
        self._transport.write(frames.with_length(self._nonce))
        self._handshake_watch = asyncio.get_running_loop().call_later(HANDSHAKE_S_MAX, self._abort)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        if self._handshake_watch is not None:
            self._handshake_watch.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._splitter.feed(data):
                self._take(message)
        except (FrameTooLarge, msgspec.DecodeError, PermissionError) as error:
            self.drop(f"{type(error).__name__}: {error}")

    def _shake_hands(self, message: bytes) -> None:
        client_nonce = message[: frames.NONCE_BYTES]
        proof = message[frames.NONCE_BYTES :]
        nonces = (self._secret, self._nonce, client_nonce)
        if frames.same_proof(proof, frames.client_proof(*nonces)):
            self._take = self._take_frame
        elif frames.same_proof(proof, frames.peer_proof(*nonces, self._shard.shard_id)):
            self._take = self._take_said
        else:
            raise PermissionError("the cluster secret differs, or a peer wants another shard")
        self._splitter.widen(frames.FRAME_BYTES_MAX)
        if self._handshake_watch is not None:
            self._handshake_watch.cancel()
        self._write(frames.server_proof(*nonces))

    def _take_frame(self, message: bytes) -> None:
        self._shard.offer(frames.decode_request(message), self.deliver)

    def _take_said(self, message: bytes) -> None:
        said = decode_effect(message)
        if isinstance(said, Greeting) == (self._source is not None):
            raise PermissionError("a peer greets first, and once")
        if isinstance(said, Greeting):
            self._source = said.source
        self._shard.offer_said(self, said)

    @property
    def peer(self) -> int:
        assert self._source is not None, "the peer has not greeted yet"
        return self._source

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def deliver(self, reply: Reply) -> None:
        """
        Send a reply; to a client that is gone it is lost, and the client asks again.
        """
        self._write(frames.encode(reply))

    def say(self, said: Effect) -> None:
        """
        Send a peer its answers.
        """
        self._write(frames.encode(said))

    def _write(self, message: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        transport.write(frames.with_length(message))
        if transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self.drop("the peer does not read")

    def drop(self, why: str) -> None:
        log.warning("connection dropped", error=why)
        self._abort()

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class ShardServer:
    """
    Listens for one shard and says where.
    """

    def __init__(self, shard: TakesFrames, secret: bytes) -> None:
        self._shard = shard
        self._secret = secret
        self._server: asyncio.Server | None = None
        self._socket_path: Path | None = None
        self.endpoint = ""

    async def listen_unix(self, path: Path) -> None:
        """
        Serve on a Unix socket at *path*, which is replaced when it is a leftover.
        """
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._connection, str(path))
        path.chmod(0o600)
        self._socket_path = path
        self.endpoint = f"unix:{path}"

    async def listen_tcp(self, host: str) -> None:
        """
        Serve on a free TCP port of *host*.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, host, 0)
        port = self._server.sockets[0].getsockname()[1]
        self.endpoint = f"tcp:{host}:{port}"

    def _connection(self) -> ShardConnection:
        return ShardConnection(self._shard, self._secret)

    def close(self) -> None:
        """
        Stop listening; connections that are open end with their peers.
        """
        if self._server is not None:
            self._server.close()
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)


def socket_path(directory: Path, shard_id: int) -> Path:
    """
    Name a socket of this process: a successor never takes a predecessor's path.
    """
    return directory / f"shard-{shard_id}-{os.getpid()}.sock"
