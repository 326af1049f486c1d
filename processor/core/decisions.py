"""
What was decided: the journal's vocabulary.

Rule 1: a decision says everything a replay needs, results included; nothing is decided twice.
Rule 2: a layout never changes, but that a field may be added at the end whose default means
        what it meant before. Anything else is a new tag or a new `DECISION_FORMAT`, and the old
        decoder stays.
Rule 3: what is counted besides balances (holds, refunds, limits) is told as it is afterwards, by
        a decision next to the one that made it so, in the same record.
Each posting carries both balances and versions after it, so that a reader of the journal needs
no state, and `apply` can check every step.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec

from processor.core.commands import Leg, MoveMoney, Terms, TransferType
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.limits import Counter, Limits, Usage
from processor.core.reject_reason import RejectReason
from processor.core.wallet import Wallet, WalletStatus

DECISION_FORMAT = 1


class WalletOpened(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    wallet_id: str
    merchant_id: str
    currency: str
    minimum: int


class WalletStatusSet(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    wallet_id: str
    status: WalletStatus


class WalletLimitsSet(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    wallet_id: str
    minimum: int
    limits: Limits | None = None


class TransferPosted(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """
    Money moved: both wallets with their version and balance after it.
    """

    transfer_type: TransferType
    transfer_id: bytes
    key: bytes
    merchant_id: str
    source: str
    destination: str
    currency: str
    amount: int
    reference: str | None
    metadata: str | None
    source_version: int
    source_balance: int
    destination_version: int
    destination_balance: int
    terms: Terms | None = None


class TransferRejected(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """
    Money did not move, and under this key it never will. `short_by` is by how much it failed the
    check that `reason` names, where that is an amount or a count.
    """

    transfer_type: TransferType
    transfer_id: bytes
    key: bytes
    merchant_id: str
    source: str
    destination: str
    currency: str
    amount: int
    reference: str | None
    metadata: str | None
    reason: RejectReason
    short_by: int = 0
    terms: Terms | None = None


class TransferReserved(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """
    Money set aside at its source and on its way to another shard, as entry `number` of the
    channel to `peer`; `chain` is the channel's up to it. No balance moves yet. Money that is sent
    anew was counted against the source's limits when it was set aside first, at `counted_at_us`.
    """

    transfer_type: TransferType
    transfer_id: bytes
    key: bytes
    merchant_id: str
    source: str
    destination: str
    currency: str
    amount: int
    reference: str | None
    metadata: str | None
    peer: int
    number: int
    chain: bytes
    terms: Terms | None = None
    counted_at_us: int = 0


class TransferSettled(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    """
    The destination has the money: what was reserved goes to what `peer` is due.
    """

    peer: int
    number: int
    transfer_id: bytes
    source_version: int
    source_balance: int
    due_version: int
    due_balance: int


class TransferReleased(msgspec.Struct, array_like=True, tag=9, frozen=True, gc=False):
    """
    The destination refused the money: what was reserved is the source's again.
    """

    peer: int
    number: int
    transfer_id: bytes
    reason: RejectReason
    short_by: int = 0


class EntryCredited(msgspec.Struct, array_like=True, tag=10, frozen=True, gc=False):
    """
    An entry from `peer` is in its destination wallet, taken from what `peer` is due.
    """

    peer: int
    number: int
    chain: bytes
    transfer_id: bytes
    merchant_id: str
    source: str
    destination: str
    currency: str
    amount: int
    reference: str | None
    metadata: str | None
    due_version: int
    due_balance: int
    destination_version: int
    destination_balance: int
    transfer_type: TransferType = TransferType.TRANSFER
    terms: Terms | None = None


class EntryRefused(msgspec.Struct, array_like=True, tag=11, frozen=True, gc=False):
    """
    An entry from `peer` was refused; nothing moved, and its number is used up. Of legs that were
    to be prepared, `leg` is the first that fails.
    """

    peer: int
    number: int
    chain: bytes
    reason: RejectReason
    short_by: int = 0
    leg: int = 0


class EntryElsewhere(msgspec.Struct, array_like=True, tag=12, frozen=True, gc=False):
    """
    An entry from `peer` is for a wallet whose slot is not here but was last seen at `shard_id`;
    nothing moved, its number is used up, and the source sends the money there anew. Of legs that
    were to be prepared, `side` is the first that is elsewhere: twice the leg's number for its
    source, and one more for its destination.
    """

    peer: int
    number: int
    chain: bytes
    shard_id: int
    side: int = 0


class TransferRecalled(msgspec.Struct, array_like=True, tag=13, frozen=True, gc=False):
    """
    The destination's slot was not at `peer` any more: what was reserved is free and its key is
    as new. The decision that takes its place is in the same record.
    """

    peer: int
    number: int
    transfer_id: bytes


class SlotsGranted(msgspec.Struct, array_like=True, tag=14, frozen=True, gc=False):
    """
    The slots from `first` to `last` are this shard's, in their first generation.
    """

    first: int
    last: int


class CarriedWallet(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    A wallet on its way to another shard, with all its facts. Nothing of it is reserved.
    """

    wallet_id: str
    merchant_id: str
    currency: str
    status: int
    minimum: int
    posted: int
    version: int
    limits: Limits | None = None
    usage: Usage | None = None


class HoldPlaced(msgspec.Struct, array_like=True, tag=19, frozen=True, gc=False):
    """
    Money of `source` is set aside under a hold until `expires_at_us`; `lifetime_s` was asked for.
    """

    transfer_id: bytes
    key: bytes
    merchant_id: str
    source: str
    destination: str
    currency: str
    amount: int
    reference: str | None
    metadata: str | None
    lifetime_s: int
    expires_at_us: int
    terms: Terms | None = None


def hold_placed(decision: HoldPlaced, at_us: int) -> Hold:
    """
    Return the hold that *decision* has placed at *at_us*.
    """
    return Hold(
        decision.transfer_id,
        decision.merchant_id,
        decision.source,
        decision.destination,
        decision.currency,
        decision.amount,
        captured=0,
        pending=0,
        status=HoldStatus.OPEN,
        is_ending=False,
        placed_at_us=at_us,
        expires_at_us=decision.expires_at_us,
        reference=decision.reference,
        metadata=decision.metadata,
    )


class HoldChanged(msgspec.Struct, array_like=True, tag=20, frozen=True, gc=False):
    """
    A hold as it is from here on: part of it captured or on its way, ended, or longer.
    """

    hold_id: bytes
    captured: int
    pending: int
    status: int
    is_ending: bool
    expires_at_us: int


class HoldVoided(msgspec.Struct, array_like=True, tag=21, frozen=True, gc=False):
    """
    A hold was given up by who placed it; `amount` of `source` is free again.
    """

    transfer_id: bytes
    key: bytes
    merchant_id: str
    source: str
    hold_id: bytes
    currency: str
    amount: int


class HoldExtended(msgspec.Struct, array_like=True, tag=22, frozen=True, gc=False):
    """
    A hold lasts until `expires_at_us`; `lifetime_s` was asked for.
    """

    transfer_id: bytes
    key: bytes
    merchant_id: str
    source: str
    hold_id: bytes
    currency: str
    amount: int
    lifetime_s: int
    expires_at_us: int


class UsageCounted(msgspec.Struct, array_like=True, tag=23, frozen=True, gc=False):
    """
    What a wallet has used of its limits, from here on; since when it is counted stays as it was.
    """

    wallet_id: str
    debits: Counter
    credits: Counter


class RefundCounted(msgspec.Struct, array_like=True, tag=24, frozen=True, gc=False):
    """
    How much of a transfer has gone back from `wallet_id`, from here on.
    """

    transfer_id: bytes
    wallet_id: str
    refunded: int
    version: int


class Posting(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    What leg number `leg` moves at one shard: both wallets with their version and balance after it.

    Where a side of the leg is at another shard, what that one is due stands for it.
    """

    leg: int
    source: str
    source_version: int
    source_balance: int
    destination: str
    destination_version: int
    destination_balance: int


class LinkedPosted(msgspec.Struct, array_like=True, tag=25, frozen=True, gc=False):
    """
    A linked transfer moves along all its legs. When it `is_open`, other shards are still to be
    told, and it is posted everywhere with `LinkedDone`.
    """

    transfer_id: bytes
    key: bytes
    merchant_id: str
    legs: list[Leg]
    postings: list[Posting]
    is_open: bool


class LinkedRejected(msgspec.Struct, array_like=True, tag=26, frozen=True, gc=False):
    """
    A linked transfer moves nothing, and under this key never will: leg number `leg` fails.
    """

    transfer_id: bytes
    key: bytes
    merchant_id: str
    legs: list[Leg]
    leg: int
    reason: RejectReason
    short_by: int = 0


# What a key stands for in the end.
Outcome = (
    TransferPosted
    | TransferRejected
    | HoldPlaced
    | HoldVoided
    | HoldExtended
    | LinkedPosted
    | LinkedRejected
)


class CarriedOutcome(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    The outcome under a key of a carried wallet, with its record's sequence and time.
    """

    decision: Outcome
    sequence: int
    at_us: int


class DuePosting(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    What the money in carried wallets makes of what the peer is due, in one currency: `amount` is
    their sum (it may be below zero), `version` and `balance` are the due wallet's after it.
    """

    currency: str
    amount: int
    version: int
    balance: int


class SlotGiven(msgspec.Struct, array_like=True, tag=15, frozen=True, gc=False):
    """
    A slot leaves for `peer`, as entry `number` of the channel to it: its wallets are not here
    any more, and what was in them is due to `peer`. `generation` is that under its new owner.
    """

    peer: int
    number: int
    chain: bytes
    slot: int
    generation: int
    wallets: list[CarriedWallet]
    outcomes: list[CarriedOutcome]
    dues: list[DuePosting]
    holds: list[Hold] = []
    refunds: list[RefundTotal] = []


class SlotTaken(msgspec.Struct, array_like=True, tag=16, frozen=True, gc=False):
    """
    A slot came from `peer` as entry `number` of the channel from it: its wallets are here, and
    what is in them is due from `peer`.
    """

    peer: int
    number: int
    chain: bytes
    slot: int
    generation: int
    wallets: list[CarriedWallet]
    outcomes: list[CarriedOutcome]
    dues: list[DuePosting]
    holds: list[Hold] = []
    refunds: list[RefundTotal] = []


class SlotDelivered(msgspec.Struct, array_like=True, tag=17, frozen=True, gc=False):
    """
    The peer has the slot that went to it as entry `number`.
    """

    peer: int
    number: int


class AnswersForgotten(msgspec.Struct, array_like=True, tag=18, frozen=True, gc=False):
    """
    `peer` has settled all up to `settled`: it will not ask for those answers any more.
    """

    peer: int
    settled: int


class LinkedBegun(msgspec.Struct, array_like=True, tag=27, frozen=True, gc=False):
    """
    A linked transfer over several shards waits for the others' votes until `deadline_us`.

    `homes` has for each leg the shards of its source and of its destination, as they are known
    here; what is this shard's of it is set aside. An `attempt` ends, and the next begins, when a
    slot was not where it was thought to be.
    """

    transfer_id: bytes
    key: bytes
    merchant_id: str
    legs: list[Leg]
    homes: list[tuple[int, int]]
    attempt: int
    deadline_us: int


class LegPart(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    What of a leg is a participant's: its debit, its credit, or both.
    """

    leg: int
    is_debit: bool
    is_credit: bool
    asked: Leg


class PrepareSent(msgspec.Struct, array_like=True, tag=28, frozen=True, gc=False):
    """
    `peer` is asked, as entry `number` of the channel to it, whether its parts can be moved.
    """

    peer: int
    number: int
    chain: bytes
    linked_id: bytes
    merchant_id: str
    attempt: int
    parts: list[LegPart]


class VoteTaken(msgspec.Struct, array_like=True, tag=29, frozen=True, gc=False):
    """
    `peer` has answered whether it can move its parts; see `channel` for answers.
    """

    peer: int
    number: int
    linked_id: bytes
    answer: int


class LinkedRecalled(msgspec.Struct, array_like=True, tag=30, frozen=True, gc=False):
    """
    An attempt came to nothing because a slot is elsewhere: what was set aside is free, and its key
    is as new. The decision that takes its place is in the same record.
    """

    linked_id: bytes


class VerdictSent(msgspec.Struct, array_like=True, tag=31, frozen=True, gc=False):
    """
    `peer` is told, as entry `number` of the channel to it, what became of a linked transfer.
    """

    peer: int
    number: int
    chain: bytes
    linked_id: bytes
    is_posted: bool


class VerdictDelivered(msgspec.Struct, array_like=True, tag=32, frozen=True, gc=False):
    """
    `peer` has done what it was told of a linked transfer.
    """

    peer: int
    number: int
    linked_id: bytes


class LinkedDone(msgspec.Struct, array_like=True, tag=33, frozen=True, gc=False):
    """
    Every shard has moved what is its own of a linked transfer.
    """

    linked_id: bytes


class LinkedPrepared(msgspec.Struct, array_like=True, tag=34, frozen=True, gc=False):
    """
    The parts that `peer` asked for can be moved and will be, if it says so: what they need is set
    aside until it does.
    """

    peer: int
    number: int
    chain: bytes
    linked_id: bytes
    merchant_id: str
    parts: list[LegPart]


class VerdictTaken(msgspec.Struct, array_like=True, tag=35, frozen=True, gc=False):
    """
    `peer` has said what became of a linked transfer: its parts move, or what was set aside is free.
    """

    peer: int
    number: int
    chain: bytes
    linked_id: bytes
    is_posted: bool
    postings: list[Posting]


class EpochStarted(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """
    A new owner took the shard; its record's header has the epoch.
    """

    build: str


Asked = tuple[TransferType, bytes, bytes, str, str, str, str, int, str | None, str | None]


def asked_of(asked: MoveMoney | TransferReserved | TransferRejected) -> Asked:
    """
    Return what was asked for, with which every decision on a transfer begins.
    """
    return (
        asked.transfer_type,
        asked.transfer_id,
        asked.key,
        asked.merchant_id,
        asked.source,
        asked.destination,
        asked.currency,
        asked.amount,
        asked.reference,
        asked.metadata,
    )


def as_carried(wallet: Wallet) -> CarriedWallet:
    """
    Tell a wallet as it goes to another shard; its open holds are told besides.
    """
    return CarriedWallet(
        wallet.wallet_id,
        wallet.merchant_id,
        wallet.currency,
        wallet.status,
        wallet.minimum,
        wallet.posted,
        wallet.version,
        wallet.limits,
        wallet.usage,
    )


def sums_of(wallets: list[CarriedWallet]) -> dict[str, int]:
    """
    Sum what is in *wallets* by currency, in order, without the currencies that come to zero.
    """
    sums: dict[str, int] = defaultdict(int)
    for wallet in wallets:
        sums[wallet.currency] += wallet.posted
    return {currency: sums[currency] for currency in sorted(sums) if sums[currency]}


MoveDecision = TransferPosted | TransferRejected | TransferReserved
HoldDecision = HoldPlaced | HoldVoided | HoldExtended
LinkedDecision = LinkedPosted | LinkedRejected | LinkedBegun
TransferDecision = MoveDecision | HoldDecision | LinkedDecision  # What is remembered under a key.
SettlementDecision = (
    TransferSettled
    | TransferReleased
    | TransferRecalled
    | SlotDelivered
    | VoteTaken
    | VerdictDelivered
)
PendingEntry = TransferReserved | SlotGiven | PrepareSent | VerdictSent  # On its way to a peer.
Decision = (
    WalletOpened
    | WalletStatusSet
    | WalletLimitsSet
    | TransferPosted
    | TransferRejected
    | EpochStarted
    | TransferReserved
    | TransferSettled
    | TransferReleased
    | EntryCredited
    | EntryRefused
    | EntryElsewhere
    | TransferRecalled
    | SlotsGranted
    | SlotGiven
    | SlotTaken
    | SlotDelivered
    | AnswersForgotten
    | HoldPlaced
    | HoldChanged
    | HoldVoided
    | HoldExtended
    | UsageCounted
    | RefundCounted
    | LinkedPosted
    | LinkedRejected
    | LinkedBegun
    | PrepareSent
    | VoteTaken
    | LinkedRecalled
    | VerdictSent
    | VerdictDelivered
    | LinkedDone
    | LinkedPrepared
    | VerdictTaken
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Decision])


def encode_decisions(decisions: list[Decision]) -> bytes:
    return _encoder.encode(decisions)


def decode_decisions(payload: bytes, decision_format: int) -> list[Decision]:
    """
    Decode a journal payload; raises ValueError for a format newer than this build.
    """
    if decision_format != DECISION_FORMAT:
        raise ValueError(
            f"journal format {decision_format} is unknown to this build, which reads "
            f"{DECISION_FORMAT}: start a newer build"
        )
    return _decoder.decode(payload)
