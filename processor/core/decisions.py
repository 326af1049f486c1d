"""
What was decided: the journal's vocabulary.

Rule 1: a decision says everything a replay needs, results included; nothing is decided twice.
Rule 2: a layout never changes. A new field is a new tag or a new `DECISION_FORMAT`, and the
        old decoder stays.
Each posting carries both balances and versions after it, so that a reader of the journal needs
no state, and `apply` can check every step.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec

from processor.core.commands import MoveMoney, TransferType
from processor.core.reject_reason import RejectReason
from processor.core.wallet import WalletStatus

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


class TransferRejected(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """
    Money did not move, and under this key it never will.
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


class TransferReserved(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """
    Money set aside at its source and on its way to another shard, as entry `number` of the
    channel to `peer`; `chain` is the channel's up to it. No balance moves yet.
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


class EntryRefused(msgspec.Struct, array_like=True, tag=11, frozen=True, gc=False):
    """
    An entry from `peer` was refused; nothing moved, and its number is used up.
    """

    peer: int
    number: int
    chain: bytes
    reason: RejectReason


class EntryElsewhere(msgspec.Struct, array_like=True, tag=12, frozen=True, gc=False):
    """
    An entry from `peer` is for a wallet whose slot is not here but was last seen at `shard_id`;
    nothing moved, its number is used up, and the source sends the money there anew.
    """

    peer: int
    number: int
    chain: bytes
    shard_id: int


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


class CarriedOutcome(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    The outcome under a key of a carried wallet, with its record's sequence and time.
    """

    decision: TransferPosted | TransferRejected
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


class EpochStarted(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """
    A new owner took the shard; its record's header has the epoch.
    """

    build: str


Asked = tuple[TransferType, bytes, bytes, str, str, str, str, int, str | None, str | None]


def asked_of(asked: MoveMoney | TransferReserved) -> Asked:
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


def sums_of(wallets: list[CarriedWallet]) -> dict[str, int]:
    """
    Sum what is in *wallets* by currency, in order, without the currencies that come to zero.
    """
    sums: dict[str, int] = defaultdict(int)
    for wallet in wallets:
        sums[wallet.currency] += wallet.posted
    return {currency: sums[currency] for currency in sorted(sums) if sums[currency]}


TransferDecision = TransferPosted | TransferRejected | TransferReserved
SettlementDecision = TransferSettled | TransferReleased | TransferRecalled | SlotDelivered
EntryDecision = EntryCredited | EntryRefused | EntryElsewhere | SlotTaken
PendingEntry = TransferReserved | SlotGiven  # On its way to a peer.
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
