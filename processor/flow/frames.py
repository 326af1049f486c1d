"""
The wire between a gateway and a shard.

A connection starts with a handshake that proves on both sides that the cluster secret is known;
after it, each message is a length (4 bytes, big-endian) and one msgpack value.

Rule 1: a frame carries many commands and is answered by one reply with as many results, in
        order; replies come in any order and are matched by `frame_id`.
Rule 2: every frame names the shard and the epoch it is meant for. On a mismatch nothing is
        applied and the reply says the present epoch.
Rule 3: a result leaves the shard only when what it tells is durable. A connection that ends
        without the reply means: unknown, send the same keys again.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

import msgspec

from processor.core.commands import Command
from processor.core.hold import Hold
from processor.core.limits import Limits, Usage

FRAME_BYTES_MAX = 32 * 1024 * 1024
FRAME_COMMANDS_MAX = 10_000
PROTOCOL = b"miliano/1"
NONCE_BYTES = 32
PROOF_BYTES = 32

_LENGTH = struct.Struct(">I")


class FrameTooLarge(Exception):
    """
    A peer announced a frame above the bound; the connection is dropped.
    """


class RequestFrame(msgspec.Struct, array_like=True, frozen=True, gc=False):
    frame_id: int
    shard_id: int
    epoch: int
    commands: list[Command]


class FilledIn(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    What the ledger has filled in of a movement that left something open.
    """

    source: str
    destination: str
    currency: str
    amount: int


class Posted(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """
    The money moved. `balance` and `version` are those of the caller's own wallet after it.
    """

    transfer_id: bytes
    sequence: int
    at_us: int
    balance: int
    version: int
    repeated: bool
    filled_in: FilledIn | None = None


class Rejected(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """
    The money did not move, and the refusal is recorded under the key.
    """

    transfer_id: bytes
    sequence: int
    at_us: int
    reason: int
    repeated: bool
    short_by: int = 0
    filled_in: FilledIn | None = None


class KeyReused(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """
    The key belongs to another command; `field` is the first that differs. Nothing recorded.
    """

    field: str


class WalletFound(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """
    A wallet as it is; `changed` says whether this command changed it.
    """

    wallet_id: str
    currency: str
    status: int
    minimum: int
    posted: int
    version: int
    sequence: int
    changed: bool
    available: int
    held: int
    limits: Limits | None = None
    usage: Usage | None = None


class WalletRefused(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """
    A command on a wallet, or a look at a hold, changed nothing; not recorded.
    """

    reason: int


class Pending(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """
    The money is set aside and on its way to another shard; the outcome is certain to come, and
    the same key gives it.
    """

    transfer_id: bytes
    sequence: int
    at_us: int
    repeated: bool
    filled_in: FilledIn | None = None


class Moved(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """
    Nothing was recorded: the wallet's slot was last seen at `shard_id`. Ask there; when that is
    the shard that answered, or -1, the slot is about to move: ask again in a moment.
    """

    shard_id: int


class ChannelFull(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    """
    Nothing was recorded: too much is on its way to `peer`. Try again later.
    """

    peer: int


class SlotLeft(msgspec.Struct, array_like=True, tag=9, frozen=True, gc=False):
    """
    The slot is on its way to `peer` with so many wallets; it is not this shard's any more.
    """

    slot: int
    peer: int
    wallet_count: int


class SlotKept(msgspec.Struct, array_like=True, tag=10, frozen=True, gc=False):
    """
    The slot stays for now, `why` says for what. Ask again soon: for a moment, nothing new of it
    is sent to other shards.
    """

    slot: int
    why: str


class HoldFound(msgspec.Struct, array_like=True, tag=11, frozen=True, gc=False):
    """
    A hold as it is now, with the balances of its wallet. `sequence` and `at_us` are those of the
    record that did what was asked, `transfer_id` what did it: for a look, the hold's own.
    """

    hold: Hold
    transfer_id: bytes
    sequence: int
    at_us: int
    repeated: bool
    posted: int
    available: int
    held: int
    version: int


class LegSource(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    The wallet that leg number `leg` has debited, after it.
    """

    leg: int
    balance: int
    version: int


class LinkedMoved(msgspec.Struct, array_like=True, tag=12, frozen=True, gc=False):
    """
    The money moved along all legs, everywhere. `sources` are those at the shard that decided.
    """

    transfer_id: bytes
    sequence: int
    at_us: int
    repeated: bool
    sources: list[LegSource]


class LinkedRefused(msgspec.Struct, array_like=True, tag=13, frozen=True, gc=False):
    """
    No leg moved, because leg number `leg` fails; the refusal is recorded under the key.
    """

    transfer_id: bytes
    sequence: int
    at_us: int
    repeated: bool
    leg: int
    reason: int
    short_by: int


Result = (
    Posted
    | Rejected
    | KeyReused
    | WalletFound
    | WalletRefused
    | Pending
    | Moved
    | ChannelFull
    | SlotLeft
    | SlotKept
    | HoldFound
    | LinkedMoved
    | LinkedRefused
)
Outcome = Posted | Rejected | LinkedMoved | LinkedRefused  # What was pending comes to one of these.


class Answered(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    frame_id: int
    results: list[Result]


class Overloaded(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """
    Nothing was applied: the queue is full. Try again after `retry_after_ms`.
    """

    frame_id: int
    retry_after_ms: int


class StaleEpoch(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """
    Nothing was applied: the frame was meant for another epoch than `epoch`.
    """

    frame_id: int
    epoch: int


class NotServing(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """
    Nothing was applied: the shard is draining or the frame is for another shard.
    """

    frame_id: int


class Settled(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """
    What became of transfers that were answered as pending on this connection; sent unasked.
    """

    results: list[Outcome]


Reply = Answered | Overloaded | StaleEpoch | NotServing | Settled

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(RequestFrame).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode


def with_length(body: bytes) -> bytes:
    """
    Put the length in front of an encoded message.
    """
    return _LENGTH.pack(len(body)) + body


class FrameSplitter:
    """
    Cuts a stream of bytes into messages.
    """

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    def widen(self, bytes_max: int) -> None:
        """
        Allow larger messages: the peer is known now.
        """
        self._bytes_max = bytes_max

    def feed(self, data: bytes) -> list[bytes]:
        """
        Return the messages completed by *data*; raises FrameTooLarge past the bound.
        """
        buffer = self._buffer
        buffer += data
        messages = []
        start = 0
        while len(buffer) - start >= 4:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > self._bytes_max:
                raise FrameTooLarge(f"{length} bytes announced, {self._bytes_max} allowed")
            end = start + 4 + length
            if len(buffer) < end:
                break
            messages.append(bytes(buffer[start + 4 : end]))
            start = end
        if start:
            del buffer[:start]
        return messages


# The handshake. Server: PROTOCOL + server nonce. Client: client nonce + proof over both as
# "client", or as "peer" with the number of the shard that it wants to speak to when it is a shard
# itself. Server: proof over both as "server". A proof never fits the other direction.


def server_proof(secret: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    return _proof(secret, b"server", server_nonce, client_nonce)


def client_proof(secret: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    return _proof(secret, b"client", server_nonce, client_nonce)


def peer_proof(secret: bytes, server_nonce: bytes, client_nonce: bytes, shard_id: int) -> bytes:
    """
    Prove that a shard wants to speak to shard *shard_id*, and to no other that is found there.
    """
    return _proof(secret, b"peer" + _LENGTH.pack(shard_id), server_nonce, client_nonce)


def same_proof(left: bytes, right: bytes) -> bool:
    return hmac.compare_digest(left, right)


def _proof(secret: bytes, side: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    return hmac.digest(secret, PROTOCOL + side + server_nonce + client_nonce, hashlib.sha256().name)
