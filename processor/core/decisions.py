"""
What was decided: the journal's vocabulary.

Rule 1: a decision says everything a replay needs, results included; nothing is decided twice.
Rule 2: a layout never changes. A new field is a new tag or a new `DECISION_FORMAT`, and the
        old decoder stays.
Each posting carries both balances and versions after it, so that a reader of the journal needs
no state, and `apply` can check every step.
"""

from __future__ import annotations

import msgspec

from processor.core.commands import TransferType
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


class EpochStarted(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """
    A new owner took the shard; its record's header has the epoch.
    """

    build: str


TransferDecision = TransferPosted | TransferRejected
Decision = (
    WalletOpened
    | WalletStatusSet
    | WalletLimitsSet
    | TransferPosted
    | TransferRejected
    | EpochStarted
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
