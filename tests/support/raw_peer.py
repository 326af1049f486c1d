"""
A peer of a shard's socket that says exactly what a test wants, rules or no rules.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from processor.core.commands import Command
from processor.flow import frames
from processor.flow.channel_link import Effect, decode_effect
from processor.flow.frames import Reply, RequestFrame

READ_S_MAX = 15.0


class RawPeer:
    """
    One connection to a shard.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def shake_hands(self, secret: bytes, as_peer_of: int | None = None) -> None:
        """
        Prove *secret* and check the shard's proof of it; as a client, or as a peer of a shard.
        """
        server_nonce = await self.read_message()
        client_nonce = secrets.token_bytes(frames.NONCE_BYTES)
        if as_peer_of is None:
            proof = frames.client_proof(secret, server_nonce, client_nonce)
        else:
            proof = frames.peer_proof(secret, server_nonce, client_nonce, as_peer_of)
        self.writer.write(frames.with_length(client_nonce + proof))
        expected = frames.server_proof(secret, server_nonce, client_nonce)
        assert await self.read_message() == expected

    def send(self, *commands: Command, epoch: int, shard_id: int = 0, frame_id: int = 1) -> None:
        frame = RequestFrame(frame_id, shard_id, epoch, list(commands))
        self.writer.write(frames.with_length(frames.encode(frame)))

    def say(self, said: Effect) -> None:
        self.writer.write(frames.with_length(frames.encode(said)))

    async def heard(self) -> Effect:
        """
        Read what the shard says to a peer.
        """
        said: Effect = decode_effect(await self.read_message())
        return said

    async def reply(self) -> Reply:
        reply: Reply = frames.decode_reply(await self.read_message())
        return reply

    async def read_message(self) -> bytes:
        async with asyncio.timeout(READ_S_MAX):
            (length,) = struct.unpack(">I", await self.reader.readexactly(4))
            return await self.reader.readexactly(length)

    async def read_to_the_end(self) -> bytes:
        """
        Read until the other side hangs up.
        """
        received = b""
        async with asyncio.timeout(READ_S_MAX):
            try:
                while data := await self.reader.read(65536):
                    received += data
            except ConnectionError:
                pass
        return received


@asynccontextmanager
async def connected_peer(
    endpoint: str, secret: bytes | None = None, *, as_peer_of: int | None = None
) -> AsyncIterator[RawPeer]:
    """
    Connect to *endpoint*; with *secret* shake hands as well.
    """
    kind, _, address = endpoint.partition(":")
    if kind == "unix":
        reader, writer = await asyncio.open_unix_connection(address)
    else:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    peer = RawPeer(reader, writer)
    try:
        if secret is not None:
            await peer.shake_hands(secret, as_peer_of)
        yield peer
    finally:
        writer.transport.abort()
