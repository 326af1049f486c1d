"""
The source's side of a connection to a peer: the handshake, then what the channel says.

It uses the listener of the gateways, and proves that it wants to speak to this very shard: an
address may have got another owner.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Protocol, cast

import msgspec
import structlog

from actors.peer_intake import connection_numbers
from actors.tcp_watch import watch_tcp
from processor.flow import frames
from processor.flow.channel_link import Effect, decode_effect
from processor.flow.frames import FrameSplitter, FrameTooLarge

CONNECT_S_MAX = 5.0
UNSENT_BYTES_MAX = 16 * 1024 * 1024  # Above it nothing more is written until the peer has read.

log = structlog.get_logger("peer_connection")


class Listens(Protocol):
    """
    Who is told what happens on a connection.
    """

    def heard(self, connection: PeerConnection, said: Effect) -> None: ...

    def drained(self) -> None: ...

    def lost(self, connection: PeerConnection) -> None: ...


class PeerConnection(asyncio.Protocol):
    """
    One connection to shard *peer*. `trusted` ends when both sides have proved the secret.
    """

    def __init__(self, peer: int, secret: bytes, link: Listens) -> None:
        self.peer = peer
        self.number = next(connection_numbers)
        self.has_room = True
        self.trusted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._secret = secret
        self._link = link
        self._splitter = FrameSplitter(frames.NONCE_BYTES)
        self._take: Callable[[bytes], None] = self._take_nonce
        self._server_nonce = b""
        self._own_nonce = secrets.token_bytes(frames.NONCE_BYTES)
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        watch_tcp(transport)
        self._transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.trusted.done():
            self.trusted.set_exception(ConnectionError(f"shard {self.peer} hung up: {exc}"))
            self.trusted.exception()  # Whoever waited may be gone: nobody else is to be told.
        self._transport = None
        self._link.lost(self)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._splitter.feed(data):
                self._take(message)
        except (FrameTooLarge, msgspec.DecodeError, PermissionError) as error:
            self.drop(f"{type(error).__name__}: {error}")

    def _take_nonce(self, message: bytes) -> None:
        self._server_nonce = message
        proof = frames.peer_proof(self._secret, message, self._own_nonce, self.peer)
        self._write(self._own_nonce + proof)
        self._take = self._take_proof

    def _take_proof(self, message: bytes) -> None:
        expected = frames.server_proof(self._secret, self._server_nonce, self._own_nonce)
        if not frames.same_proof(message, expected):
            raise PermissionError("the cluster secret differs")
        self._splitter.widen(frames.FRAME_BYTES_MAX)
        self._take = self._take_said
        if not self.trusted.done():  # Else whoever wanted it has gone.
            self.trusted.set_result(None)

    def _take_said(self, message: bytes) -> None:
        self._link.heard(self, decode_effect(message))

    def pause_writing(self) -> None:
        self.has_room = False

    def resume_writing(self) -> None:
        self.has_room = True
        self._link.drained()

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def say(self, said: Effect) -> None:
        self._write(frames.encode(said))

    def _write(self, message: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frames.with_length(message))

    def drop(self, why: str) -> None:
        log.warning("peer dropped", peer=self.peer, why=why)
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """
        End it when all that was said has been sent.
        """
        if self._transport is not None:
            self._transport.close()


async def connect_peer(endpoint: str, peer: int, secret: bytes, link: Listens) -> PeerConnection:
    """
    Connect and shake hands; raises OSError or TimeoutError.
    """
    loop = asyncio.get_running_loop()
    connection = PeerConnection(peer, secret, link)
    kind, _, address = endpoint.partition(":")
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            if kind == "unix":
                await loop.create_unix_connection(lambda: connection, address)
            else:
                host, _, port = address.rpartition(":")
                await loop.create_connection(lambda: connection, host, int(port))
            await connection.trusted
    except BaseException:
        connection.abort()
        raise
    return connection
