"""
The bodies of holds, version 1; the rules are those of `gateway.wire`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.strict_json import Strict
from gateway.wire import (
    AmountInteger,
    CurrencyCode,
    IfAvailable,
    IfVersion,
    MetadataObject,
    PageLimit,
    ReferenceText,
    Timestamp,
    TransferIdText,
    WalletIdText,
)

LIFETIME_S_MAX = 31 * 86_400

HoldStatusText = Literal["open", "captured", "voided", "expired"]
LifetimeSeconds = Annotated[
    int,
    Meta(
        description="How long the hold lasts from now on, in seconds: 31 days at most.",
        examples=[604_800],
        extra_json_schema={"minimum": 1, "maximum": LIFETIME_S_MAX},
    ),
]


# --- Requests -----------------------------------------------------------------------------


class PlaceHoldRequest(Strict, frozen=True):
    """
    Sets money of your wallet aside. `destination` is where captures go that name no other.
    """

    source: WalletIdText
    amount: AmountInteger
    currency: CurrencyCode
    destination: WalletIdText | None = None
    expires_in_s: LifetimeSeconds = 604_800
    reference: ReferenceText | None = None
    metadata: MetadataObject | None = None
    if_version: IfVersion | None = None
    if_available_gte: IfAvailable | None = None


class CaptureHoldRequest(Strict, frozen=True):
    """
    Moves money that a hold keeps. Without `amount` it is all that is left, and the hold ends; with
    it the hold stays open for the rest, unless this capture is `final`: then the rest is free.
    """

    amount: AmountInteger | None = None
    destination: WalletIdText | None = None
    final: bool | None = None
    reference: ReferenceText | None = None
    metadata: MetadataObject | None = None


class VoidHoldRequest(Strict, frozen=True):
    """
    Gives up a hold; there is nothing to say about it.
    """


class ExtendHoldRequest(Strict, frozen=True):
    """
    Lets a hold last longer; it never gets shorter.
    """

    expires_in_s: LifetimeSeconds


class HoldsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    The oldest first, behind `after`; with `status` only those.
    """

    status: HoldStatusText | None = None
    after: TransferIdText | None = None
    limit: PageLimit = 100


# --- Replies ------------------------------------------------------------------------------


class Hold(msgspec.Struct, frozen=True):
    """
    Money set aside in `source`. Of its `amount`, `captured` has gone, `pending` is on its way to
    another shard, and `remaining` can still be captured; when the hold ends, what remains is free
    again. `balance`, `available`, `held` and `version` are those of the wallet, as it is now.
    `sequence` is a record of the journal of `shard`. A list does not know these five: they are
    null there.
    """

    id: TransferIdText
    status: HoldStatusText
    source: str
    destination: str | None
    amount: int
    captured: int
    pending: int
    remaining: int
    currency: str
    reference: str | None
    metadata: dict[str, str | int | bool]
    created_at: Timestamp
    expires_at: Timestamp
    shard: int
    sequence: int | None = None
    balance: int | None = None
    available: int | None = None
    held: int | None = None
    version: int | None = None


class HoldPage(msgspec.Struct, frozen=True):
    holds: list[Hold]
    has_more: bool
    next_cursor: str | None
