"""
The public API's bodies, version 1.

Rule 1: these structs are apart from the ledger's commands: the API may stay as it is while the
        ledger changes, and the other way round.
Rule 2: the types here say what kind of thing a field is; `validation` says which values are
        acceptable, so that every wrong field is named at once. The limits stand here too, as
        schema, for the reference.
Rule 3: money is an integer in the currency's minor unit; times are RFC 3339 in UTC with
        microseconds; what a wallet or transfer does not have is null.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.problems import FieldError, Outcome
from gateway.strict_json import Strict
from processor.core.amounts import AMOUNT_MAX

WALLET_ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}"
WALLET_STATUSES = ("open", "frozen", "locked", "closed")

WalletIdText = Annotated[
    str,
    Meta(
        description="1 to 64 of A-Z a-z 0-9 . _ : @ - and a letter or digit first.",
        examples=["shop-eu:till-7"],
        extra_json_schema={"pattern": f"^{WALLET_ID_PATTERN}$"},
    ),
]
AmountInteger = Annotated[
    int,
    Meta(
        description="Minor units of the currency: 1099 is 10.99 EUR, or 1099 JPY.",
        examples=[1099],
        extra_json_schema={"minimum": 1, "maximum": AMOUNT_MAX},
    ),
]
MinimumInteger = Annotated[
    int,
    Meta(
        description="How far the balance may fall, in minor units; negative is an overdraft.",
        extra_json_schema={"minimum": -AMOUNT_MAX, "maximum": AMOUNT_MAX},
    ),
]
CurrencyCode = Annotated[
    str,
    Meta(description="ISO 4217, or a currency of the configuration.", examples=["EUR"]),
]
ReferenceText = Annotated[
    str,
    Meta(
        description="Your own words, shown to both sides; 1 to 140 characters unless set "
        "otherwise, without NUL.",
        examples=["invoice 2026-0117"],
        extra_json_schema={"minLength": 1},
    ),
]
MetadataObject = Annotated[
    dict[str, str | int | bool],
    Meta(
        description="Up to 1,024 bytes of JSON unless set otherwise; integers within 2^53-1.",
        examples=[{"order": "A-1", "express": True}],
    ),
]
IdempotencyKeyText = Annotated[
    str,
    Meta(
        description="1 to 255 visible ASCII characters. Its scope is the merchant and the "
        "wallet that is debited (for a deposit: credited); for what is done to a hold or a "
        "transfer, the merchant and that. Kept for ever.",
        examples=["order-A-1-pay"],
        extra_json_schema={"pattern": "^[!-~]{1,255}$"},
    ),
]
IfVersion = Annotated[
    int,
    Meta(
        description="Only if your wallet's `version` is this one: it has not changed since.",
        extra_json_schema={"minimum": 0, "maximum": AMOUNT_MAX},
    ),
]
IfAvailable = Annotated[
    int,
    Meta(
        description="Only if at least this much is `available` in your wallet, in minor units.",
        extra_json_schema={"minimum": -AMOUNT_MAX, "maximum": AMOUNT_MAX},
    ),
]
UpTo = Annotated[
    bool,
    Meta(description="Move what is available above the minimum, at most `amount`."),
]
TransferIdText = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
WalletStatusText = Literal["open", "frozen", "locked", "closed"]
TransferTypeText = Literal[
    "transfer", "deposit", "withdrawal", "hold", "capture", "void", "extend", "refund", "fee"
]
TransferStatusText = Literal["posted", "rejected", "pending"]


LimitInteger = Annotated[
    int,
    Meta(extra_json_schema={"minimum": 0, "maximum": AMOUNT_MAX}),
]


class VelocityLimits(Strict, frozen=True):
    """
    How many movements in an hour and in a day of UTC, and how much in all; null is no limit.
    """

    hour_count: LimitInteger | None = None
    hour_amount: LimitInteger | None = None
    day_count: LimitInteger | None = None
    day_amount: LimitInteger | None = None


class WalletLimits(Strict, frozen=True):
    """
    What may leave a wallet, what may come in, and how much may be in it.
    """

    debits: VelocityLimits = VelocityLimits()
    credits: VelocityLimits = VelocityLimits()
    balance_max: LimitInteger | None = None


# --- Requests -----------------------------------------------------------------------------


class OpenWalletRequest(Strict, frozen=True):
    """
    Opens a wallet. Without `wallet_id` one is made.
    """

    currency: CurrencyCode
    wallet_id: WalletIdText | None = None
    minimum: MinimumInteger = 0


class ChangeWalletRequest(Strict, frozen=True):
    """
    Changes the status, the minimum, the limits, or several: the status is set last. `limits`
    takes the place of all that were there, so that an empty object lifts them.
    """

    status: WalletStatusText | None = None
    minimum: MinimumInteger | None = None
    limits: WalletLimits | None = None


class TransferRequest(Strict, frozen=True):
    """
    Moves money from your wallet to any wallet of the same currency.
    """

    source: WalletIdText
    destination: WalletIdText
    amount: AmountInteger
    currency: CurrencyCode
    reference: ReferenceText | None = None
    metadata: MetadataObject | None = None
    if_version: IfVersion | None = None
    if_available_gte: IfAvailable | None = None
    up_to: UpTo = False


class DepositRequest(Strict, frozen=True):
    """
    Brings money from outside into your wallet.
    """

    destination: WalletIdText
    amount: AmountInteger
    currency: CurrencyCode
    reference: ReferenceText | None = None
    metadata: MetadataObject | None = None
    if_version: IfVersion | None = None
    if_available_gte: IfAvailable | None = None


class WithdrawalRequest(Strict, frozen=True):
    """
    Takes money out of your wallet to outside.
    """

    source: WalletIdText
    amount: AmountInteger
    currency: CurrencyCode
    reference: ReferenceText | None = None
    metadata: MetadataObject | None = None
    if_version: IfVersion | None = None
    if_available_gte: IfAvailable | None = None
    up_to: UpTo = False


class BatchTransfer(Strict, frozen=True):
    """
    One transfer of a batch, with its own key.
    """

    idempotency_key: IdempotencyKeyText
    source: WalletIdText
    destination: WalletIdText
    amount: AmountInteger
    currency: CurrencyCode
    reference: ReferenceText | None = None
    metadata: MetadataObject | None = None
    if_version: IfVersion | None = None
    if_available_gte: IfAvailable | None = None
    up_to: UpTo = False


class BatchRequest(Strict, frozen=True):
    """
    Independent transfers in one request.
    """

    transfers: list[BatchTransfer]


class CreateApiKeyRequest(Strict, frozen=True):
    """
    Makes a key with some of the scopes of the key that asks.
    """

    scopes: Annotated[list[str], Meta(examples=[["transfers:read"]])]
    label: str = ""


# --- Query parameters ---------------------------------------------------------------------


PageLimit = Annotated[int, Meta(ge=1, description="Rows a page; 100 unless given.")]
Version = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]


class WalletsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: WalletIdText | None = None
    limit: PageLimit = 100


# --- Replies ------------------------------------------------------------------------------


class Transfer(msgspec.Struct, frozen=True, gc=False):
    """
    A movement of money. `balance` and `version` are those of your own wallet after it; for a
    transfer between two of your wallets, of the source. They are null when it was rejected, and
    while it is `pending`: then the amount is set aside in the source, and the transfer is certain
    to come to one of the other two. `sequence` is a record of the journal of `shard`.

    `linked_to` is the hold that was captured, the transfer that was refunded, or the linked
    transfer that this is a leg of. `short_by` is by how much a rejected one failed the check that
    `reason` names, where that is known of your own wallet.
    """

    id: TransferIdText
    type: TransferTypeText
    status: TransferStatusText
    reason: str | None
    source: str | None
    destination: str | None
    amount: int
    currency: str
    reference: str | None
    metadata: dict[str, str | int | bool]
    balance: int | None
    version: int | None
    shard: int
    sequence: int
    created_at: Timestamp
    linked_to: TransferIdText | None = None
    short_by: int | None = None


class BatchResult(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """
    What became of one item. `posted` has everything down to `created_at`; `rejected` the same
    without balance and version, and why; `pending` is certain to come to one of these two, and
    the same key or a look at its id tells to which; `failed` changed and recorded nothing, and
    says why; `unknown` is told by the same key, sent again. `amount` is told of an item with
    `up_to`, `short_by` as of a `Transfer`.
    """

    index: int
    status: Literal["posted", "rejected", "pending", "failed", "unknown"]
    idempotency_key: str | None = None
    id: TransferIdText | None = None
    balance: int | None = None
    version: int | None = None
    shard: int | None = None
    sequence: int | None = None
    created_at: Timestamp | None = None
    replayed: bool = False
    code: str | None = None
    detail: str | None = None
    errors: list[FieldError] = []
    outcome: Outcome | None = None
    amount: int | None = None
    short_by: int | None = None


class BatchReply(msgspec.Struct, frozen=True):
    """
    One result an item, in the order of the request.
    """

    posted: int
    rejected: int
    pending: int
    failed: int
    unknown: int
    results: list[BatchResult]


class VelocityUsage(msgspec.Struct, frozen=True):
    """
    What this hour and this day have seen so far.
    """

    hour_count: int
    hour_amount: int
    day_count: int
    day_amount: int


class WalletUsage(msgspec.Struct, frozen=True):
    """
    What a wallet has used of its limits; a new hour or day of UTC begins at zero.
    """

    debits: VelocityUsage
    credits: VelocityUsage
    hour_ends_at: Timestamp
    day_ends_at: Timestamp


class Wallet(msgspec.Struct, frozen=True):
    """
    A wallet. `version` is the number of its entries; as `min_sequence` and `shard`, `sequence`
    and `shard` make the history show at least what is told here.

    `available` is the balance without what is set aside: `held` by open holds, and what is on its
    way. A list does not know these two: they are null there. `usage` is null without limits.
    """

    wallet_id: str
    currency: str
    status: WalletStatusText
    minimum: int
    balance: int
    version: int
    shard: int
    sequence: int
    available: int | None = None
    held: int | None = None
    limits: WalletLimits | None = None
    usage: WalletUsage | None = None


class WalletPage(msgspec.Struct, frozen=True):
    wallets: list[Wallet]
    has_more: bool
    next_cursor: str | None


class Entry(msgspec.Struct, frozen=True):
    """
    One change of one wallet's balance. `counterparty` is null when money came from outside or went
    there, and when the other side is somebody's fees.
    """

    version: int
    direction: Literal["debit", "credit"]
    amount: int
    currency: str
    balance: int
    counterparty: str | None
    transfer_id: TransferIdText
    type: TransferTypeText
    reference: str | None
    metadata: dict[str, str | int | bool]
    shard: int
    sequence: int
    created_at: Timestamp


class EntryPage(msgspec.Struct, frozen=True):
    entries: list[Entry]
    has_more: bool
    next_cursor: int | None


class ApiKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    An API key; `key` is the secret and is shown once, when it is made.
    """

    key_id: str
    scopes: list[str]
    label: str
    created_at: Timestamp
    revoked_at: Timestamp | None = None
    key: str | None = None


class ApiKeyPage(msgspec.Struct, frozen=True):
    api_keys: list[ApiKey]


class ShardHealth(msgspec.Struct, frozen=True):
    """
    One shard: `lag_records` is how many journal records the tables are behind.
    """

    shard: int
    state: Literal["active", "halted"]
    connected: bool
    epoch: int
    sequence: int
    projected_sequence: int
    lag_records: int
    halted_for: str | None


class Health(msgspec.Struct, frozen=True):
    """
    `ready` means: money moves, at every shard. `database` is unreachable when one of them is, and
    then its shards are not listed. `durability` is what a 2xx reply waited for.
    """

    live: bool
    ready: bool
    durability: Literal["local", "quorum"]
    database: Literal["reachable", "unreachable"]
    shards: list[ShardHealth]


class Liveness(msgspec.Struct, frozen=True):
    live: bool
