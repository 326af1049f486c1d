"""
The public bodies of payout batches; the rules are those of `gateway.wire`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.strict_json import Strict
from gateway.wire import (
    WALLET_ID_PATTERN,
    AmountInteger,
    CurrencyCode,
    Timestamp,
    TransferIdText,
    WalletIdText,
)

REFERENCE_PATTERN = WALLET_ID_PATTERN  # It stands in a path.
ROWS_PER_SECOND_MAX = 1_000_000

BatchReferenceText = Annotated[
    str,
    Meta(
        description="Your own name for the batch, unique for ever: 1 to 64 of A-Z a-z 0-9 . _ : "
        "@ - and a letter or digit first. The same reference with the same content is the same "
        "batch.",
        examples=["salaries-2026-05"],
        extra_json_schema={"pattern": f"^{REFERENCE_PATTERN}$"},
    ),
]
OnInvalidText = Annotated[
    Literal["reject_batch", "skip_rows"],
    Meta(description="What an unacceptable row does: refuse the whole file, or fail alone."),
]
RowsPerSecond = Annotated[
    int,
    Meta(
        description="Pay no faster than this.",
        extra_json_schema={"minimum": 1, "maximum": ROWS_PER_SECOND_MAX},
    ),
]
ValidateOnly = Annotated[bool, Meta(description="Only report; nothing is stored or paid.")]
BatchStateText = Literal["processing", "completed", "completed_with_failures", "failed"]
WarningCode = Literal["funding_shortfall", "already_submitted", "reference_taken"]
ItemStateText = Literal["pending", "paid", "failed"]


# --- Requests -----------------------------------------------------------------------------


class SubmitPayoutBatchQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    Of a `text/csv` body; for `application/json` everything is in the body.
    """

    reference: BatchReferenceText | None = None
    source: WalletIdText | None = None
    currency: CurrencyCode | None = None
    on_invalid: OnInvalidText = "reject_batch"
    rows_per_second_max: RowsPerSecond | None = None
    validate_only: ValidateOnly = False


class SubmitPayoutBatchRequest(Strict, frozen=True):
    """
    A batch as JSON. An item is `{"reference", "destination", "amount", "note"}`, the amount in
    minor units, the note optional.
    """

    reference: BatchReferenceText
    source: WalletIdText
    currency: CurrencyCode
    items: list[msgspec.Raw]
    on_invalid: OnInvalidText = "reject_batch"
    rows_per_second_max: RowsPerSecond | None = None
    validate_only: ValidateOnly = False


class PayoutBatchesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: Annotated[str, Meta(description="The next_cursor of the page before.")] | None = None
    limit: Annotated[int, Meta(ge=1)] = 100


class PayoutItemsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    state: ItemStateText | None = None
    after: Annotated[int, Meta(ge=0, le=2**31 - 1, description="From behind this row on.")] = 0
    limit: Annotated[int, Meta(ge=1)] = 100


# --- Replies ------------------------------------------------------------------------------


class PayoutCounts(msgspec.Struct, frozen=True):
    """
    `total = pending + paid + failed`. Of `failed`, `invalid` rows were never sent.
    """

    total: int
    pending: int
    paid: int
    failed: int
    invalid: int


class PayoutAmounts(msgspec.Struct, frozen=True):
    """
    Minor units; `total = pending + paid + failed`. Invalid rows count with zero.
    """

    total: int
    pending: int
    paid: int
    failed: int


class PayoutProgress(msgspec.Struct, frozen=True):
    """
    Since the submission, on average; null until the first rows are done.
    """

    rows_per_second: float
    seconds_left: int


class PayoutBatch(msgspec.Struct, frozen=True):
    """
    A batch as it is now. `completed` means that every row was paid.
    """

    id: Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
    reference: str
    state: BatchStateText
    source: str
    currency: str
    on_invalid: OnInvalidText
    rows_per_second_max: int | None
    content_hash: Annotated[str, Meta(description="SHA-256 of what the rows say, hex.")]
    counts: PayoutCounts
    amounts: PayoutAmounts
    progress: PayoutProgress | None
    created_at: Timestamp
    finished_at: Timestamp | None


class PayoutBatchPage(msgspec.Struct, frozen=True):
    """
    Newest first.
    """

    payout_batches: list[PayoutBatch]
    has_more: bool
    next_cursor: str | None


class PayoutRowError(msgspec.Struct, frozen=True):
    """
    One thing wrong. Rows are numbered as an editor shows them, the header being row 1; items of
    JSON from 1.
    """

    row_number: int
    item_reference: str | None
    field: str | None
    code: str
    message: str


class PayoutWarning(msgspec.Struct, frozen=True):
    code: WarningCode
    message: str


class PayoutReport(msgspec.Struct, frozen=True):
    """
    What the check found. `amount` is the sum of the payable rows, `available` what the source
    can pay now. `errors` are the first 1,000 of `errors_total`.
    """

    rows: int
    rows_valid: int
    rows_invalid: int
    amount: int
    available: int
    funding_shortfall: int
    currency: str
    content_hash: str
    warnings: list[PayoutWarning]
    errors_total: int
    errors: list[PayoutRowError]


class PayoutSubmission(msgspec.Struct, frozen=True):
    """
    The stored batch, null for `validate_only`, and the report of its check.
    """

    batch: PayoutBatch | None
    report: PayoutReport


class PayoutItem(msgspec.Struct, frozen=True):
    """
    A row. What was unreadable in an invalid one is null. `sequence` is the shard's record of its
    transfer, `attempts` how often it was sent.
    """

    row_number: int
    reference: str | None
    destination: str | None
    amount: AmountInteger | None
    note: str | None
    state: ItemStateText
    code: Annotated[str, Meta(description="Why it failed.")] | None
    transfer_id: TransferIdText | None
    sequence: int | None
    attempts: int


class PayoutItemPage(msgspec.Struct, frozen=True):
    items: list[PayoutItem]
    has_more: bool
    next_cursor: int | None
