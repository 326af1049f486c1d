"""
What two shards remember of each other: the journaled ends of the channels between them.

A channel leads from the shard of the payer to the shard of the payee. Its entries are numbered
from 1 without gaps and chained by hash. The source reserves the money and sends an entry; the
destination answers each entry once, `credited` or refused for a reason; the source settles.

Rule 1: at the source, settled <= head, and the outbox holds exactly the entries between them.
Rule 2: at the destination, the cursor moves by one with each entry, in the same record as what
        the entry did. An entry at or below it was decided before, and its answer stands.
Rule 3: settled <= cursor <= head, and the chain at the cursor is the same on both sides. Where
        that fails, one side has lost what it had promised, and both must halt.
Rule 4: an answer is 0 for an entry that was taken (and for legs that can be moved), above zero for
        one that was refused (`answer_refused`), below for one whose slot is elsewhere.
Only `apply` writes here.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated

import msgspec

from processor.core.commands import (
    LEGS_MAX,
    Amount,
    Identifier,
    MoveMoney,
    Terms,
    TransferType,
    WalletId,
)
from processor.core.decisions import (
    CarriedOutcome,
    CarriedWallet,
    LegPart,
    PendingEntry,
    PrepareSent,
    SlotGiven,
    TransferReserved,
    VerdictSent,
)
from processor.core.hold import Hold, RefundTotal
from processor.core.slots import SLOT_COUNT

ENTRY_CHAIN_BYTES = 16
FIRST_LINK = bytes(ENTRY_CHAIN_BYTES)
ENTRIES_PENDING_MAX = 65_536  # Of one channel; above it the source takes nothing new for it.
# Of linked transfers it takes nothing new above as many by weight, see `weight_sent`.

_encode = msgspec.msgpack.Encoder().encode


class ChannelBroken(Exception):
    """
    The two ends of a channel contradict each other; both shards must halt. `str` says how.
    """


class Entry(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """
    A transfer on its way, as the destination gets it.
    """

    number: Annotated[int, msgspec.Meta(ge=1)]
    transfer_id: Identifier
    merchant_id: str
    source: WalletId
    destination: WalletId
    currency: str
    amount: Amount
    reference: str | None
    metadata: str | None


class SlotEntry(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """
    A slot on its way, with its wallets and the outcomes that the tables may not have yet.
    """

    number: Annotated[int, msgspec.Meta(ge=1)]
    slot: Annotated[int, msgspec.Meta(ge=0, lt=SLOT_COUNT)]
    generation: int
    wallets: list[CarriedWallet]
    outcomes: list[CarriedOutcome]
    holds: list[Hold] = []
    refunds: list[RefundTotal] = []


class BoundEntry(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """
    A movement on its way that is no plain transfer, or has terms.
    """

    number: Annotated[int, msgspec.Meta(ge=1)]
    transfer_id: Identifier
    merchant_id: str
    source: WalletId
    destination: WalletId
    currency: str
    amount: Amount
    reference: str | None
    metadata: str | None
    transfer_type: TransferType
    terms: Terms | None


class PrepareEntry(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """
    The destination's parts of a linked transfer, which it is asked to set aside.
    """

    number: Annotated[int, msgspec.Meta(ge=1)]
    linked_id: Identifier
    merchant_id: str
    parts: Annotated[list[LegPart], msgspec.Meta(min_length=1, max_length=LEGS_MAX)]


class VerdictEntry(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """
    What became of a linked transfer that the destination was asked about.
    """

    number: Annotated[int, msgspec.Meta(ge=1)]
    linked_id: Identifier
    is_posted: bool


MoneyEntry = Entry | BoundEntry
AnyEntry = Entry | SlotEntry | BoundEntry | PrepareEntry | VerdictEntry


def next_link(chain: bytes, entry: AnyEntry) -> bytes:
    """
    Chain *entry* to those before it.
    """
    return blake2b(chain + _encode(entry), digest_size=ENTRY_CHAIN_BYTES).digest()


def entry_of(asked: MoveMoney | TransferReserved, number: int) -> MoneyEntry:
    """
    Say what the destination is told of a transfer.
    """
    told = (
        number,
        asked.transfer_id,
        asked.merchant_id,
        asked.source,
        asked.destination,
        asked.currency,
        asked.amount,
        asked.reference,
        asked.metadata,
    )
    if asked.transfer_type == TransferType.TRANSFER and asked.terms is None:
        return Entry(*told)
    return BoundEntry(*told, asked.transfer_type, asked.terms)


def entry_sent(pending: PendingEntry) -> AnyEntry:
    """
    Say what the destination is told of what is on its way to it.
    """
    match pending:
        case SlotGiven():
            return SlotEntry(
                pending.number,
                pending.slot,
                pending.generation,
                pending.wallets,
                pending.outcomes,
                pending.holds,
                pending.refunds,
            )
        case PrepareSent():
            return PrepareEntry(
                pending.number, pending.linked_id, pending.merchant_id, pending.parts
            )
        case VerdictSent():
            return VerdictEntry(pending.number, pending.linked_id, pending.is_posted)
        case _:
            return entry_of(pending, pending.number)


def weight_sent(pending: PendingEntry) -> int:
    """
    Count what an entry costs while it is on its way: a question one for each leg, any other one.
    """
    return len(pending.parts) if isinstance(pending, PrepareSent) else 1


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """
    Why an entry was refused: for which reason, by how much, and of legs which one.
    """

    reason: int
    short_by: int
    leg: int


_REASON_BITS, _LEG_BITS, _SHORT_BITS = 10, 7, 45


def answer_refused(reason: int, short_by: int = 0, leg: int = 0) -> int:
    """
    Put a refusal into one number above zero. What it is short by may be cut to 45 bits.
    """
    assert 0 < reason < 1 << _REASON_BITS, "no such reason"
    assert 0 <= leg < 1 << _LEG_BITS, "no such leg"
    short_by = min(short_by, (1 << _SHORT_BITS) - 1)
    return reason | leg << _REASON_BITS | short_by << _REASON_BITS + _LEG_BITS


def refusal_answered(answer: int) -> Refusal:
    """
    Read the refusal out of an answer above zero.
    """
    leg = answer >> _REASON_BITS & (1 << _LEG_BITS) - 1
    reason = answer & (1 << _REASON_BITS) - 1
    return Refusal(reason, answer >> _REASON_BITS + _LEG_BITS, leg)


_SHARD_BITS = 31


def answer_elsewhere(shard_id: int, side: int = 0) -> int:
    """
    Say in an answer at which shard the entry's slot was last seen; of legs, which side's.
    """
    assert 0 <= shard_id < 1 << _SHARD_BITS, "this would be the answer of an entry that was taken"
    return -1 - (shard_id | side << _SHARD_BITS)


def shard_answered(answer: int) -> int:
    """
    Read the shard out of an answer below zero.
    """
    return (-1 - answer) & (1 << _SHARD_BITS) - 1


def side_answered(answer: int) -> int:
    """
    Read out of an answer below zero which side of a leg was not found; see `EntryElsewhere`.
    """
    return (-1 - answer) >> _SHARD_BITS


class OutChannel:
    """
    The source's end towards one peer.

    `reserved` is the money on its way by currency: the sum of the transfers in the outbox, and
    `weight` what its entries weigh.
    """

    __slots__ = (
        "chain",
        "head",
        "outbox",
        "peer",
        "reserved",
        "settled",
        "settled_chain",
        "weight",
    )

    def __init__(self, peer: int) -> None:
        self.peer = peer
        self.head = 0
        self.chain = FIRST_LINK
        self.settled = 0
        self.settled_chain = FIRST_LINK
        self.outbox: dict[int, PendingEntry] = {}
        self.reserved: dict[str, int] = {}
        self.weight = 0

    def chain_at(self, number: int) -> bytes | None:
        """
        Return the chain up to *number*; None where it is not known any more, or not yet.
        """
        if number == self.settled:
            return self.settled_chain
        pending = self.outbox.get(number)
        return pending.chain if pending is not None else None


class InChannel:
    """
    The destination's end from one peer.

    `refused` has the answers other than 0 that the source may still ask for; any other entry up
    to the cursor was taken.
    """

    __slots__ = ("chain", "cursor", "peer", "refused")

    def __init__(self, peer: int) -> None:
        self.peer = peer
        self.cursor = 0
        self.chain = FIRST_LINK
        self.refused: dict[int, int] = {}

    def answers(self, first: int, last: int) -> list[int]:
        """
        List the answers to the entries from *first* to *last*.
        """
        assert last <= self.cursor, "not answered yet"
        return [self.refused.get(number, 0) for number in range(first, last + 1)]

    def has_answers_to(self, settled: int) -> bool:
        """
        Say whether answers up to *settled* are kept here.
        """
        return next(iter(self.refused), settled + 1) <= settled  # In the order of numbers.

    def forget_answers(self, settled: int) -> None:
        """
        Drop the answers that the source has settled.
        """
        while self.has_answers_to(settled):
            del self.refused[next(iter(self.refused))]


class Channels:
    """
    Both ends at one shard, by peer.
    """

    __slots__ = ("incoming", "outgoing")

    def __init__(self) -> None:
        self.outgoing: dict[int, OutChannel] = {}
        self.incoming: dict[int, InChannel] = {}

    def to(self, peer: int) -> OutChannel:
        channel = self.outgoing.get(peer)
        if channel is None:
            channel = self.outgoing[peer] = OutChannel(peer)
        return channel

    def of(self, peer: int) -> InChannel:
        channel = self.incoming.get(peer)
        if channel is None:
            channel = self.incoming[peer] = InChannel(peer)
        return channel
