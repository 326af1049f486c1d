"""
Looking at payout batches, their items, and the file that tells what became of each row.

What a spreadsheet might take for a formula leaves as text.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta

from gateway.endpoint import Call
from gateway.identifiers import parse_uuid, timestamp_text, uuid_text
from gateway.payout_wire import (
    REFERENCE_PATTERN,
    PayoutAmounts,
    PayoutBatch,
    PayoutBatchesQuery,
    PayoutBatchPage,
    PayoutCounts,
    PayoutItem,
    PayoutItemPage,
    PayoutItemsQuery,
    PayoutProgress,
)
from gateway.problems import Refusal
from gateway.reply import Header, Reply, StreamedReply, json_reply
from gateway.wallets import link_next, page_limit, query_invalid
from processor.flow.payout_file import format_major
from processor.storage import payouts as storage
from processor.storage.payouts import PayoutStore

RESULT_PAGE_ROWS = 1_000
RESULT_COLUMNS = (
    "row_number",
    "reference",
    "destination",
    "amount",
    "state",
    "code",
    "transfer_id",
)

CSV: Header = (b"content-type", b"text/csv; charset=utf-8")
# Also in full width, as spreadsheets of some languages read them.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_is_reference = re.compile(REFERENCE_PATTERN).fullmatch


async def list_payout_batches(call: Call) -> Reply:
    query: PayoutBatchesQuery = call.query
    limit = page_limit(call, query.limit)
    before = None
    if query.after is not None:
        before = parse_uuid(query.after)
        if before is None:
            raise query_invalid("after", "bad_format", "Give the next_cursor of the page before.")
    found = await call.gateway.payouts.store.newest(
        call.caller.merchant_id, before=before, limit=limit + 1
    )
    now = datetime.now(UTC)
    page, has_more = [batch_of(batch, now) for batch in found[:limit]], len(found) > limit
    cursor = page[-1].id if has_more else None
    links = (link_next(f"/v1/payout-batches?after={cursor}&limit={limit}"),) if cursor else ()
    return json_reply(200, PayoutBatchPage(page, has_more, cursor), *links)


async def get_payout_batch(call: Call) -> Reply:
    batch = await _named_batch(call)
    return json_reply(200, batch_of(batch, datetime.now(UTC)))


async def list_payout_items(call: Call) -> Reply:
    query: PayoutItemsQuery = call.query
    limit = page_limit(call, query.limit)
    batch = await _named_batch(call)
    found = await call.gateway.payouts.store.items(
        batch.batch_id, after_row=query.after, limit=limit + 1, state=query.state
    )
    page, has_more = found[:limit], len(found) > limit
    cursor = page[-1].row_number if has_more else None
    links = []
    if cursor is not None:
        state = f"&state={query.state}" if query.state else ""
        path = f"/v1/payout-batches/{uuid_text(batch.batch_id)}/items"
        links.append(link_next(f"{path}?after={cursor}&limit={limit}{state}"))
    return json_reply(
        200, PayoutItemPage([_item_of(item) for item in page], has_more, cursor), *links
    )


async def get_payout_result(call: Call) -> Reply:
    batch = await _named_batch(call)
    exponent = call.gateway.settings.currency_exponents[batch.currency]
    name = (b"content-disposition", f'attachment; filename="{batch.reference}.csv"'.encode())
    rows = _result_pages(call.gateway.payouts.store, batch, exponent)
    return StreamedReply(200, rows, (CSV, name))


async def _named_batch(call: Call) -> storage.PayoutBatch:
    name = call.parameters[0]
    if _is_reference(name):  # Ids in every spelling, too.
        batch = await call.gateway.payouts.store.get(call.caller.merchant_id, name)
        if batch is not None:
            return batch
    raise Refusal("payout_batch_unknown")


def batch_of(batch: storage.PayoutBatch, now: datetime) -> PayoutBatch:
    """
    Show *batch* as it is *now*.
    """
    return PayoutBatch(
        id=uuid_text(batch.batch_id),
        reference=batch.reference,
        state=batch.state,
        source=batch.source,
        currency=batch.currency,
        on_invalid=batch.on_invalid,
        rows_per_second_max=batch.rows_per_second_max,
        content_hash=batch.content_hash.hex(),
        counts=PayoutCounts(
            batch.total_count,
            batch.pending_count,
            batch.paid_count,
            batch.failed_count,
            batch.invalid_count,
        ),
        amounts=PayoutAmounts(
            batch.total_amount, batch.pending_amount, batch.paid_amount, batch.failed_amount
        ),
        progress=progress_of(batch, now),
        created_at=_time_text(batch.created_at),
        finished_at=None if batch.finished_at is None else _time_text(batch.finished_at),
    )


def progress_of(batch: storage.PayoutBatch, now: datetime) -> PayoutProgress | None:
    """
    Say how fast *batch* has been since it was submitted, and how long the rest takes at that.
    """
    done = batch.paid_count + batch.failed_count - batch.invalid_count
    elapsed_s = (now - batch.created_at).total_seconds()
    if batch.state != "processing" or done == 0 or elapsed_s <= 0:
        return None
    rate = done / elapsed_s
    return PayoutProgress(round(rate, 1), round(batch.pending_count / rate))


def _item_of(item: storage.PayoutItem) -> PayoutItem:
    return PayoutItem(
        item.row_number,
        item.item_reference,
        item.destination,
        item.amount,
        item.note,
        item.state,
        item.code,
        None if item.transfer_id is None else uuid_text(item.transfer_id),
        item.sequence,
        item.attempts,
    )


def _time_text(at: datetime) -> str:
    return timestamp_text((at - _EPOCH) // _MICROSECOND)


# --- The result file ----------------------------------------------------------------------


async def _result_pages(
    store: PayoutStore, batch: storage.PayoutBatch, exponent: int
) -> AsyncIterator[bytes]:
    yield csv_lines([RESULT_COLUMNS])
    after_row = 0
    while items := await store.items(batch.batch_id, after_row=after_row, limit=RESULT_PAGE_ROWS):
        yield csv_lines(result_row(item, exponent) for item in items)
        after_row = items[-1].row_number


def result_row(item: storage.PayoutItem, exponent: int) -> tuple[str | int, ...]:
    """
    Write one row of the result file.
    """
    return (
        item.row_number,
        as_text(item.item_reference or ""),
        as_text(item.destination or ""),
        "" if item.amount is None else format_major(item.amount, exponent),
        item.state,
        item.code or "",
        "" if item.transfer_id is None else uuid_text(item.transfer_id),
    )


def as_text(cell: str) -> str:
    """
    Put an apostrophe before what a spreadsheet would calculate.
    """
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell


def csv_lines(rows: Iterable[Iterable[str | int]]) -> bytes:
    """
    Write rows as CSV.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
