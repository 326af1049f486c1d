"""
The shard's socket: frames in, replies out.

A Unix socket for gateways on this host, TCP for others; both begin with the handshake of
`processor.flow.frames`, so that only who knows the cluster secret is heard. A connection that
breaks a rule is dropped without an answer.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path
from typing import Protocol, cast

import msgspec
import structlog

from processor.flow import frames
from processor.flow.frames import FrameSplitter, FrameTooLarge, Reply, RequestFrame

UNSENT_BYTES_MAX = 256 * 1024 * 1024  # A peer that reads nothing is cut off.
HANDSHAKE_S_MAX = 5.0

log = structlog.get_logger("shard_server")


class TakesFrames(Protocol):
    """
    What the server needs of a shard.
    """

    def offer(self, frame: RequestFrame, deliver: DeliverReply) -> None: ...


class DeliverReply(Protocol):
    def __call__(self, reply: Reply, /) -> None: ...


class ShardConnection(asyncio.Protocol):
    """
    One gateway's connection: the handshake, then frames.
    """

    def __init__(self, shard: TakesFrames, secret: bytes) -> None:
        self._shard = shard
        self._secret = secret
        self._nonce = secrets.token_bytes(frames.NONCE_BYTES)
        self._splitter = FrameSplitter(frames.NONCE_BYTES + frames.PROOF_BYTES)
        self._trusted = False
        self._transport: asyncio.WriteTransport | None = None
        self._handshake_watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
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
            log.warning("connection dropped", error=f"{type(error).__name__}: {error}")
            self._abort()

    def _take(self, message: bytes) -> None:
        if self._trusted:
            self._shard.offer(frames.decode_request(message), self.deliver)
        else:
            self._shake_hands(message)

    def _shake_hands(self, message: bytes) -> None:
        client_nonce = message[: frames.NONCE_BYTES]
        proof = message[frames.NONCE_BYTES :]
        expected = frames.client_proof(self._secret, self._nonce, client_nonce)
        if not frames.same_proof(proof, expected):
            raise PermissionError("the cluster secret differs")
        self._trusted = True
        self._splitter.widen(frames.FRAME_BYTES_MAX)
        if self._handshake_watch is not None:
            self._handshake_watch.cancel()
        assert self._transport is not None
        self._transport.write(
            frames.with_length(frames.server_proof(self._secret, self._nonce, client_nonce))
        )

    def deliver(self, reply: Reply) -> None:
        """
        Send a reply; to a peer that is gone it is lost, and the peer asks again.
        """
        transport = self._transport
        if transport is None:
            return
        transport.write(frames.with_length(frames.encode(reply)))
        if transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            log.warning("connection dropped", error="the peer does not read")
            self._abort()

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
