"""
A command's own connection to one shard, on the socket that gateways use.

It is for what only an operator asks; whoever has the cluster secret of the data folder is one.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import Sequence

import msgspec

from processor.core.commands import Command
from processor.flow import frames
from processor.flow.frames import Reply, RequestFrame, Settled

ANSWER_S_MAX = 10.0

# What asking can end with when the shard is not there, or not any more.
SOCKET_ERRORS = (OSError, EOFError, TimeoutError, msgspec.DecodeError)


class ShardSocket:
    """
    One connection; one frame at a time.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frame_id = 0

    async def ask(self, shard_id: int, epoch: int, commands: Sequence[Command]) -> Reply:
        """
        Send a frame and return its reply; raises one of `SOCKET_ERRORS`.
        """
        self._frame_id += 1
        frame = RequestFrame(self._frame_id, shard_id, epoch, list(commands))
        self._writer.write(frames.with_length(frames.encode(frame)))
        while True:
            reply: Reply = frames.decode_reply(await self._read_message())
            if not isinstance(reply, Settled):
                return reply

    async def shake_hands(self, secret: bytes) -> None:
        """
        Prove the secret and see the shard's proof of it.
        """
        server_nonce = await self._read_message()
        own_nonce = secrets.token_bytes(frames.NONCE_BYTES)
        proof = frames.client_proof(secret, server_nonce, own_nonce)
        self._writer.write(frames.with_length(own_nonce + proof))
        expected = frames.server_proof(secret, server_nonce, own_nonce)
        if not frames.same_proof(await self._read_message(), expected):
            raise ConnectionError("the shard does not know the cluster secret")

    async def _read_message(self) -> bytes:
        async with asyncio.timeout(ANSWER_S_MAX):
            (length,) = struct.unpack(">I", await self._reader.readexactly(4))
            if length > frames.FRAME_BYTES_MAX:
                raise ConnectionError("a reply above the bound")
            return await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


async def connect_shard(endpoint: str, secret: bytes) -> ShardSocket:
    """
    Connect to a shard and shake hands; raises one of `SOCKET_ERRORS`.
    """
    kind, _, address = endpoint.partition(":")
    if kind == "unix":
        reader, writer = await asyncio.open_unix_connection(address)
    else:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    socket = ShardSocket(reader, writer)
    try:
        await socket.shake_hands(secret)
    except BaseException:
        socket.close()
        raise
    return socket
