"""
Goal: only who knows the cluster secret is heard by a shard, and nobody who breaks the rules of
      its socket costs others anything.
Method: a shard process on a Unix socket and on TCP; raw peers with the wrong secret, garbage,
        lengths nobody would send, or nothing to say, while an honest client goes on paying.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from configs.settings import GatewaySettings
from gateway.shard_client import ShardUnavailable
from gateway.shard_clients import ShardClients
from processor.flow import frames
from processor.flow.frames import NotServing, Posted
from tests.support.commands import deposit, open_wallet, read_wallet, transfer
from tests.support.raw_peer import RawPeer, connected_peer
from tests.support.shard_net import names_on
from tests.support.stack import Stack, running_stack

PATIENT_MS = 15_000
A, B = names_on(0, 2)[:2]
NONCE_MESSAGE_BYTES = 4 + frames.NONCE_BYTES
HANDSHAKE_BYTES = NONCE_MESSAGE_BYTES + 4 + frames.PROOF_BYTES


@pytest.fixture(scope="module", params=["unix", "tcp"])
def stack(request, databases) -> Iterator[Stack]:
    """
    One stack for the module, on each kind of socket.
    """
    host = "127.0.0.1" if request.param == "tcp" else ""
    with (
        databases.migrated() as dsn,
        running_stack(dsn, MILIANO_CLUSTER_SHARD_HOST=host) as stack,
    ):
        endpoint = asyncio.run(stack.shard_entry()).endpoint
        assert endpoint is not None
        assert endpoint.startswith(request.param)
        yield stack


class Honest:
    """
    A client that keeps the rules and pays one at a time.
    """

    def __init__(self, clients: ShardClients) -> None:
        self._clients = clients

    async def pay(self) -> None:
        command = transfer(A, B, 1, key=secrets.token_hex(8))
        result, _ = await self._clients.submit(command, timeout_ms=PATIENT_MS)
        assert isinstance(result, Posted)
        assert not result.repeated


@asynccontextmanager
async def honest_client(stack: Stack) -> AsyncIterator[Honest]:
    async with stack.clients() as clients:
        commands = [open_wallet(A), open_wallet(B), deposit(A, 1_000, key="fill")]
        await clients.submit_many(commands, timeout_ms=PATIENT_MS)
        yield Honest(clients)


async def endpoint_of(stack: Stack) -> str:
    endpoint = (await stack.shard_entry()).endpoint
    assert endpoint is not None
    return endpoint


async def test_a_client_without_the_secret_is_refused(stack: Stack):
    """
    A gateway with another secret never gets a command through, and the shard's log says why.
    """
    clients = ShardClients(stack.dsns, secret=b"not the secret!!", settings=GatewaySettings())
    async with honest_client(stack) as honest:
        await clients.start()
        try:
            with pytest.raises(ShardUnavailable):
                await clients.submit(read_wallet(A), timeout_ms=300)
            assert not clients.statistics()[0].connected
            await honest.pay()
        finally:
            await clients.stop()
    assert "the cluster secret differs" in stack.logs()


def length(byte_count: int) -> bytes:
    return struct.pack(">I", byte_count)


BEFORE_TRUST = {
    "garbage": secrets.token_bytes(64),
    "a web request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a huge length": length(2**32 - 1),
    "one byte more than a proof": length(65),
    "nothing for a proof": length(0),
    "a short proof": length(40) + bytes(40),
    "a proof of zeros": length(64) + bytes(64),
}


@pytest.mark.parametrize("what", BEFORE_TRUST)
async def test_a_stranger_is_dropped(stack: Stack, what: str):
    """
    Before the handshake is done: hung up on at once, told no more than the nonce.
    """
    async with (
        honest_client(stack) as honest,
        connected_peer(await endpoint_of(stack)) as peer,
    ):
        peer.writer.write(BEFORE_TRUST[what])
        assert len(await peer.read_to_the_end()) <= NONCE_MESSAGE_BYTES
        await honest.pay()


async def test_a_proof_is_good_for_one_connection(stack: Stack):
    """
    What one handshake said does not open another connection, nor does the shard's own proof.
    """
    endpoint, secret = await endpoint_of(stack), stack.secret.encode()
    async with connected_peer(endpoint) as first, connected_peer(endpoint) as second:
        nonce, other_nonce = await first.read_message(), await second.read_message()
        own = secrets.token_bytes(frames.NONCE_BYTES)
        proof = frames.client_proof(secret, nonce, own)
        first.writer.write(frames.with_length(own + proof))
        server_proof = await first.read_message()
        assert server_proof == frames.server_proof(secret, nonce, own)
        assert nonce != other_nonce
        second.writer.write(frames.with_length(own + proof))
        assert await second.read_to_the_end() == b""
    async with connected_peer(endpoint) as third:
        nonce = await third.read_message()
        third.writer.write(frames.with_length(nonce + server_proof))
        assert await third.read_to_the_end() == b""


def framed(body: bytes) -> bytes:
    return frames.with_length(body)


AFTER_TRUST: dict[str, bytes] = {
    "garbage": framed(secrets.token_bytes(100)),
    "an empty message": framed(b""),
    "a huge length": length(2**32 - 1),
    "one byte more than a frame": length(frames.FRAME_BYTES_MAX + 1),
    "another type": framed(frames.encode({"frame_id": 1})),
    "an unknown command": framed(frames.encode([1, 0, 1, [[99, "a"]]])),
    "an amount of nothing": framed(
        frames.encode([1, 0, 1, [[4, 1, bytes(16), bytes(16), "acme", "a", "b", "EUR", 0]]])
    ),
    "a text that is no text": framed(frames.encode([1, 0, 1, [[5, "acme", "wxyz"]]])).replace(
        b"wxyz", b"\xff\xfe\xfd\xfc"
    ),
    "a number without end": framed(frames.encode([2**64 - 1, 0, 2**64 - 1, [[5, "acme", 7]]])),
    "arrays in arrays": framed(b"\x91" * 100_000 + b"\x90"),
    "arrays in arrays where nobody looks": framed(
        b"\x95\x01\x00\x01\x90" + b"\x91" * 100_000 + b"\x90"
    ),
    "half a frame": framed(frames.encode([1, 0, 1, []]))[:-1],
}


@pytest.mark.parametrize("what", AFTER_TRUST)
async def test_a_peer_that_breaks_the_rules_is_dropped(stack: Stack, what: str):
    """
    After the handshake too: hung up on without an answer, and nobody else notices.
    """
    async with (
        honest_client(stack) as honest,
        connected_peer(await endpoint_of(stack), stack.secret.encode()) as peer,
    ):
        peer.writer.write(AFTER_TRUST[what])
        if what == "half a frame":
            peer.writer.write_eof()
        assert await peer.read_to_the_end() == b""
        await honest.pay()
    assert stack.shard.is_running()


async def test_a_frame_for_another_shard_is_not_served(stack: Stack):
    """
    Nothing of it is applied, and the peer is told so.
    """
    entry = await stack.shard_entry()
    async with (
        honest_client(stack) as honest,
        connected_peer(await endpoint_of(stack), stack.secret.encode()) as peer,
    ):
        peer.send(read_wallet(A), epoch=entry.epoch, shard_id=1, frame_id=5)
        assert await peer.reply() == NotServing(5)
        await honest.pay()


@pytest.mark.parametrize("stack", ["unix"], indirect=True)
async def test_a_crowd_of_silent_strangers_is_dropped_in_time(stack: Stack):
    """
    Connections that say nothing, or half of something, are hung up on after a while; an honest
    client pays all the time.
    """
    endpoint = await endpoint_of(stack)
    says: list[Callable[[RawPeer], None]] = [
        lambda _: None,
        lambda peer: peer.writer.write(length(64)[:3]),
        lambda peer: peer.writer.write(length(64) + bytes(63)),
    ]

    async def loiter(number: int) -> None:
        async with connected_peer(endpoint) as peer:
            says[number % len(says)](peer)
            assert len(await peer.read_to_the_end()) == NONCE_MESSAGE_BYTES

    async with honest_client(stack) as honest:
        crowd = asyncio.gather(*(loiter(number) for number in range(30)))
        paid = 0
        while not crowd.done():
            await honest.pay()
            paid += 1
            await asyncio.sleep(0.05)
        await crowd
        assert paid > 10
