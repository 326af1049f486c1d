"""
The public queries and bodies of a wallet's past; the rules are those of `gateway.wire`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

from gateway.wire import Entry, PageLimit, Timestamp, TransferTypeText, Version
from processor.core.amounts import AMOUNT_MAX

InstantText = Annotated[
    str,
    Meta(
        description="RFC 3339 with its offset; what is smaller than a microsecond is cut off.",
        examples=["2026-05-31T22:00:00Z"],
        extra_json_schema={"format": "date-time"},
    ),
]
RowVersion = Annotated[int, Meta(ge=1, le=AMOUNT_MAX)]


# --- Query parameters ---------------------------------------------------------------------


class HistoryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """
    `min_sequence` and `shard`, from one and the same reply, wait until the history has come that
    far. Without `shard` it is the one that has the wallet now; after a wallet has moved, that
    need not be the one of an older reply.
    """

    min_sequence: Annotated[
        Version, Meta(description="Wait until the history has this `sequence` of a reply.")
    ] = 0
    shard: (
        Annotated[int, Meta(ge=0, le=2**31 - 1, description="The `shard` of that same reply.")]
        | None
    ) = None


class EntriesQuery(HistoryQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """
    With `after` the entries above that version, oldest first; otherwise the newest first, with
    `before` those below that version.
    """

    after: Annotated[Version, Meta(description="Oldest first, above this version.")] | None = None
    before: Annotated[Version, Meta(description="Newest first, below this version.")] | None = None
    limit: PageLimit = 100
    type: TransferTypeText | None = None
    reference: Annotated[str, Meta(description="Only entries with exactly this one.")] | None = None
    from_: Annotated[InstantText, Meta(description="Not before this instant.")] | None = field(
        name="from", default=None
    )
    to: Annotated[InstantText, Meta(description="Before this instant.")] | None = None


class BalanceQuery(HistoryQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """
    One of `at` and `version`; without either, as the history is now.
    """

    at: Annotated[InstantText, Meta(description="Behind all entries up to then.")] | None = None
    version: Annotated[Version, Meta(description="Behind this entry; 0: before all.")] | None = None


class StatementQuery(HistoryQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """
    Instants or versions, not both; without either, everything up to now.
    """

    from_: Annotated[InstantText, Meta(description="Not before this instant.")] | None = field(
        name="from", default=None
    )
    to: Annotated[InstantText, Meta(description="Before this instant.")] | None = None
    from_version: Annotated[RowVersion, Meta(description="The first row.")] | None = None
    to_version: Annotated[RowVersion, Meta(description="The last row.")] | None = None


# --- Replies ------------------------------------------------------------------------------


class WalletBalance(msgspec.Struct, frozen=True):
    """
    What a wallet had behind its entry `version`, which is of the time `at`; before its first entry
    0 at version 0, and `at` is null. `as_of` is how far the history of the wallet's shard has
    come: what is later is not in it yet. It is null while a wallet is new or on its way to another
    shard.
    """

    wallet_id: str
    currency: str
    balance: int
    version: int
    at: Timestamp | None
    as_of: Timestamp | None


class StatementOpening(msgspec.Struct, frozen=True):
    """
    The balance before the first row, with the version and time of the entry it comes from.
    """

    balance: int
    version: int
    at: Timestamp | None


class StatementClosing(msgspec.Struct, frozen=True):
    """
    The balance behind the last row: the opening's, with `credit_amount`, without `debit_amount`.
    """

    balance: int
    version: int
    at: Timestamp | None
    debit_count: int
    debit_amount: int
    credit_count: int
    credit_amount: int


class StatementError(msgspec.Struct, frozen=True):
    """
    Where a statement breaks off: the entry `version` does not follow from the one before
    (`contradiction`), or was not there in time (`missing`: ask again).
    """

    code: Literal["contradiction", "missing"]
    version: int
    detail: str


class Statement(msgspec.Struct, frozen=True):
    """
    The rows are in the order of their versions, oldest first. Each was checked against the one
    before. When all follow from each other there is a `closing`; otherwise it is null, and
    `error` says where they do not.
    """

    wallet_id: str
    currency: str
    opening: StatementOpening
    entries: list[Entry]
    closing: StatementClosing | None
    error: StatementError | None
