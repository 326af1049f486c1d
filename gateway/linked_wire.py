"""
The bodies of linked transfers, version 1; the rules are those of `gateway.wire`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.strict_json import Strict
from gateway.wire import (
    AmountInteger,
    CurrencyCode,
    MetadataObject,
    ReferenceText,
    Timestamp,
    TransferIdText,
    TransferStatusText,
    TransferTypeText,
    WalletIdText,
)
from processor.core.commands import LEGS_MAX

LEGS_MIN = 2


class LegRequest(Strict, frozen=True):
    """
    One movement: from your wallet to any wallet of the same currency, or as a `fee`, which names no
    destination, into your own fees.
    """

    source: WalletIdText
    amount: AmountInteger
    currency: CurrencyCode
    destination: WalletIdText | None = None
    type: Literal["transfer", "fee"] = "transfer"
    reference: ReferenceText | None = None
    metadata: MetadataObject | None = None


class LinkedTransferRequest(Strict, frozen=True):
    """
    Moves money along all legs or along none. A wallet is judged by what all legs together make of
    it, so that one leg may spend what another brings.
    """

    legs: Annotated[
        list[LegRequest],
        Meta(extra_json_schema={"minItems": LEGS_MIN, "maxItems": LEGS_MAX}),
    ]


class ReversalRequest(Strict, frozen=True):
    """
    Takes back all legs of a linked transfer, or all but its fees.
    """

    fees: Literal["kept", "returned"]
    reference: ReferenceText | None = None
    metadata: MetadataObject | None = None


class LinkedLeg(msgspec.Struct, frozen=True, gc=False):
    """
    One leg, which is a transfer of its own id. `balance` and `version` are those of its source
    after it, where they are known; a side is null where it is your fees.
    """

    id: TransferIdText
    type: TransferTypeText
    source: str | None
    destination: str | None
    amount: int
    currency: str
    reference: str | None
    metadata: dict[str, str | int | bool]
    balance: int | None
    version: int | None


class LinkedTransfer(msgspec.Struct, frozen=True, gc=False):
    """
    Movements that happen whole or not at all. While it is `pending` the amounts are set aside, and
    it is certain to come to one of the other two. When it was rejected, `leg` is the number of the
    leg that failed, from 0, `reason` the check, and `short_by` by how much, where that is known.
    """

    id: TransferIdText
    status: TransferStatusText
    reason: str | None
    leg: int | None
    short_by: int | None
    legs: list[LinkedLeg]
    shard: int
    sequence: int
    created_at: Timestamp
