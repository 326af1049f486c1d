"""
Payout batches and their items in Postgres: submitted whole, then moved on chunk by chunk.

Rule 1: a batch and its items appear in one transaction, or nothing of them does.
Rule 2: items and counters change in one transaction, so at every moment they add up; the
        table's own checks hold that.
Rule 3: an item leaves `pending` once, with its outcome from the ledger. Recording an outcome
        again changes nothing.
Rule 4: a merchant's submissions happen one after the other, so that two at once see each other.

Nothing here pays. StoreUnavailable from a writing method means: written or not, do the same
again; every one of them gives the same end when it is repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from hashlib import blake2b
from typing import Literal, get_args
from uuid import UUID

import asyncpg
import msgspec

from processor.flow.payout_file import OnInvalid, RowCode, decode_page
from processor.flow.ports import StoreUnavailable
from processor.storage.connection import Connection, Durability, committed, connect, create_pool
from processor.storage.session import STORE_ERRORS

UNFINISHED_MAX = 1_000
CONNECTIONS_MAX = 6
ACQUIRE_TIMEOUT_S = 10
LOCK_TIMEOUT_S = 10
APPLICATION = "miliano/payouts"

ItemState = Literal["pending", "paid", "failed"]
BatchState = Literal["processing", "completed", "completed_with_failures", "failed"]


class PayoutBatch(msgspec.Struct, frozen=True):
    """
    A batch as it is now. Of `failed_count`, `invalid_count` rows were never sent to the ledger.
    """

    batch_id: bytes
    merchant_id: str
    reference: str
    content_hash: bytes
    source: str
    currency: str
    on_invalid: OnInvalid
    rows_per_second_max: int | None
    state: BatchState
    total_count: int
    pending_count: int
    paid_count: int
    failed_count: int
    invalid_count: int
    total_amount: int
    pending_amount: int
    paid_amount: int
    failed_amount: int
    created_at: datetime
    finished_at: datetime | None


class PayoutItem(msgspec.Struct, frozen=True):
    """
    A row of a batch. `code` says why it failed; without `transfer_id` it was never sent.
    """

    row_number: int
    item_reference: str | None
    destination: str | None
    amount: int | None
    note: str | None
    state: ItemState
    code: str | None
    transfer_id: bytes | None
    sequence: int | None
    attempts: int


class PendingItem(msgspec.Struct, frozen=True, gc=False):
    """
    A row that is still to be paid.
    """

    row_number: int
    item_reference: str
    destination: str
    amount: int


class ItemOutcome(msgspec.Struct, frozen=True, gc=False):
    """
    What came of sending an item once; `pending` when that is not known or nothing was applied.
    """

    row_number: int
    state: ItemState
    code: str | None = None
    transfer_id: bytes | None = None
    sequence: int | None = None


class NewBatch(msgspec.Struct, frozen=True, kw_only=True):
    """
    A checked file, ready to be submitted; `pages` are of `encode_page`.
    """

    batch_id: bytes
    merchant_id: str
    reference: str
    content_hash: bytes
    source: str
    currency: str
    on_invalid: OnInvalid
    rows_per_second_max: int | None
    pages: Sequence[bytes]


class Duplicate(msgspec.Struct, frozen=True):
    """
    A row whose reference is pending or paid in an earlier batch of the merchant.
    """

    row_number: int
    item_reference: str
    amount: int
    batch_id: bytes
    batch_reference: str


class Submitted(msgspec.Struct, frozen=True):
    """
    The batch is stored; `repeated` when it was before, with the same content.

    `duplicates` were stored as failed.
    """

    batch: PayoutBatch
    repeated: bool
    duplicates: list[Duplicate] = []


class ReferenceTaken(msgspec.Struct, frozen=True):
    """
    The reference belongs to `batch`, which has other content. Nothing was stored.
    """

    batch: PayoutBatch


class DuplicatesFound(msgspec.Struct, frozen=True):
    """
    Items are pending or paid in earlier batches. Nothing was stored.
    """

    duplicates: list[Duplicate]


Submission = Submitted | ReferenceTaken | DuplicatesFound

# Every statement here finds its rows by key. The tables grow by a million rows at once, and until
# statistics follow, the planner would rather read all of them for each chunk.
_BY_KEY = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

_BATCH_COLUMNS = ", ".join(PayoutBatch.__struct_fields__)
_ITEM_COLUMNS = ", ".join(PayoutItem.__struct_fields__)
_COPY_COLUMNS = (
    "batch_id",
    "row_number",
    "merchant_id",
    "item_reference",
    "destination",
    "amount",
    "note",
    "state",
    "code",
)

_INSERT_BATCH = f"""
    INSERT INTO payout_batches (batch_id, merchant_id, reference, content_hash, source, currency,
           on_invalid, rows_per_second_max, state, total_count, pending_count, paid_count,
           failed_count, invalid_count, total_amount, pending_amount, paid_amount, failed_amount,
           finished_at)
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, CASE WHEN $9 > 0 THEN 'processing' ELSE 'failed' END,
           $9 + $10, $9, 0, $10, $10, $11, $11, 0, 0,
           CASE WHEN $9 = 0 THEN clock_timestamp() END
    RETURNING {_BATCH_COLUMNS}
"""

_BY_ID = f"SELECT {_BATCH_COLUMNS} FROM payout_batches WHERE batch_id = $1 AND merchant_id = $2"

_BY_REFERENCE = f"""
    SELECT {_BATCH_COLUMNS} FROM payout_batches WHERE merchant_id = $1 AND reference = $2
"""

_NEWEST = f"""
    SELECT {_BATCH_COLUMNS} FROM payout_batches
     WHERE merchant_id = $1 AND ($2::uuid IS NULL OR batch_id < $2)
     ORDER BY batch_id DESC LIMIT $3
"""

_UNFINISHED = f"""
    SELECT {_BATCH_COLUMNS} FROM payout_batches WHERE state = 'processing'
     ORDER BY batch_id LIMIT $1
"""

_ITEMS = f"""
    SELECT {_ITEM_COLUMNS} FROM payout_items WHERE batch_id = $1 AND row_number > $2
     ORDER BY row_number LIMIT $3
"""

# The state stands in the text: an index of the failed ones is of no use to a parameter.
_ITEMS_IN_STATE = {
    state: _ITEMS.replace("ORDER", f"AND state = '{state}' ORDER") for state in get_args(ItemState)
}

_PENDING = """
    SELECT row_number, item_reference, destination, amount FROM payout_items
     WHERE batch_id = $1 AND row_number > $2 AND state = 'pending'
     ORDER BY row_number LIMIT $3
"""

_DUPLICATES = """
    SELECT item.item_reference, batch.batch_id, batch.reference
      FROM payout_items AS item JOIN payout_batches AS batch USING (batch_id)
     WHERE item.merchant_id = $1 AND item.item_reference = ANY($2)
       AND item.state IN ('pending', 'paid')
"""

_LOCK_BATCH = "SELECT 1 FROM payout_batches WHERE batch_id = $1 FOR UPDATE"

# The batch's id stands in each row of the outcomes, so that the key is looked up as a whole: a
# constant would let the planner walk through the batch for every row.
_RECORD_ITEMS = """
    WITH changed AS (
        UPDATE payout_items AS item
           SET state = outcome.state, code = outcome.code, transfer_id = outcome.transfer_id,
               sequence = outcome.sequence, attempts = attempts + 1
          FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::uuid[], $6::bigint[])
               AS outcome (batch_id, row_number, state, code, transfer_id, sequence)
         WHERE item.batch_id = outcome.batch_id AND item.row_number = outcome.row_number
           AND item.state = 'pending'
        RETURNING item.state, item.amount
    )
    SELECT count(*) FILTER (WHERE state = 'paid')::integer AS paid_count,
           count(*) FILTER (WHERE state = 'failed')::integer AS failed_count,
           coalesce(sum(amount) FILTER (WHERE state = 'paid'), 0)::bigint AS paid_amount,
           coalesce(sum(amount) FILTER (WHERE state = 'failed'), 0)::bigint AS failed_amount
      FROM changed
"""

_COUNT = f"""
    UPDATE payout_batches
       SET pending_count = pending_count - $2 - $3,
           paid_count = paid_count + $2,
           failed_count = failed_count + $3,
           pending_amount = pending_amount - $4 - $5,
           paid_amount = paid_amount + $4,
           failed_amount = failed_amount + $5,
           state = CASE WHEN pending_count > $2 + $3 THEN 'processing'
                        WHEN failed_count + $3 = 0 THEN 'completed'
                        WHEN paid_count + $2 = 0 THEN 'failed'
                        ELSE 'completed_with_failures' END,
           finished_at = CASE WHEN pending_count > $2 + $3 THEN NULL
                              ELSE coalesce(finished_at, clock_timestamp()) END
     WHERE batch_id = $1
    RETURNING {_BATCH_COLUMNS}
"""


class PayoutStore:
    """
    The batches of all merchants, over a pool of its own.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, dsn: str, *, durability: Durability | None = None) -> PayoutStore:
        """
        Connect; raises what `connect` raises.
        """
        pool = await create_pool(
            dsn,
            application_name=APPLICATION,
            size_max=CONNECTIONS_MAX,
            durability=durability,
            server_settings=_BY_KEY,
        )
        return cls(pool)

    def close(self) -> None:
        self._pool.terminate()

    async def submit(self, new: NewBatch) -> Submission:
        """
        Store the batch, or say which earlier one stands in its way.

        With `skip_rows`, items that an earlier batch has are stored as failed.
        """
        async with self._connection() as conn, committed(conn):
            await conn.execute("SELECT pg_advisory_xact_lock($1)", _merchant_lock(new.merchant_id))
            row = await conn.fetchrow(_BY_REFERENCE, new.merchant_id, new.reference)
            if row is not None:
                first = PayoutBatch(*row)
                if first.content_hash == new.content_hash:
                    return Submitted(first, repeated=True)
                return ReferenceTaken(first)
            duplicates = await _find_duplicates(conn, new.merchant_id, new.pages)
            if duplicates and new.on_invalid == "reject_batch":
                return DuplicatesFound(duplicates)
            batch = await _insert(conn, new, {row.row_number for row in duplicates})
            return Submitted(batch, repeated=False, duplicates=duplicates)

    async def find_duplicates(self, merchant_id: str, pages: Sequence[bytes]) -> list[Duplicate]:
        """
        List the rows whose reference is pending or paid in a batch of the merchant.
        """
        async with self._connection() as conn:
            return await _find_duplicates(conn, merchant_id, pages)

    async def by_reference(self, merchant_id: str, reference: str) -> PayoutBatch | None:
        """
        Find a batch by the merchant's reference.
        """
        rows = await self._fetch(_BY_REFERENCE, merchant_id, reference)
        return PayoutBatch(*rows[0]) if rows else None

    async def get(self, merchant_id: str, name: str) -> PayoutBatch | None:
        """
        Find a batch by its id, as UUID text, or else by the merchant's reference.
        """
        batch_id = _uuid_bytes(name)
        rows = await self._fetch(_BY_ID, batch_id, merchant_id) if batch_id is not None else []
        return PayoutBatch(*rows[0]) if rows else await self.by_reference(merchant_id, name)

    async def newest(
        self, merchant_id: str, *, before: bytes | None, limit: int
    ) -> list[PayoutBatch]:
        """
        List batches, newest first, older than *before*.
        """
        rows = await self._fetch(_NEWEST, merchant_id, before, limit)
        return [PayoutBatch(*row) for row in rows]

    async def items(
        self, batch_id: bytes, *, after_row: int, limit: int, state: ItemState | None = None
    ) -> list[PayoutItem]:
        """
        List items by row number; the caller has found the batch under its merchant.
        """
        query = _ITEMS if state is None else _ITEMS_IN_STATE[state]
        rows = await self._fetch(query, batch_id, after_row, limit)
        return [PayoutItem(*row) for row in rows]

    async def pending_items(
        self, batch_id: bytes, *, after_row: int, limit: int
    ) -> list[PendingItem]:
        """
        List the next rows to pay.
        """
        rows = await self._fetch(_PENDING, batch_id, after_row, limit)
        return [PendingItem(*row) for row in rows]

    async def record_results(self, batch_id: bytes, outcomes: Sequence[ItemOutcome]) -> PayoutBatch:
        """
        Move items on and return the batch after it; with its last item, the batch is finished.
        """
        columns = [
            [getattr(outcome, field) for outcome in outcomes]
            for field in ItemOutcome.__struct_fields__
        ]
        async with self._connection() as conn, committed(conn):
            # The batch first: two runners at once then wait here and not across each other.
            await conn.execute(_LOCK_BATCH, batch_id)
            counts = await conn.fetchrow(_RECORD_ITEMS, [batch_id] * len(outcomes), *columns)
            assert counts is not None, "an aggregate gives one row"
            row = await conn.fetchrow(_COUNT, batch_id, *counts)
            assert row is not None, "a batch is never deleted"
        return PayoutBatch(*row)

    async def unfinished(self) -> list[PayoutBatch]:
        """
        List the batches that have items to pay, oldest first, at most UNFINISHED_MAX.
        """
        rows = await self._fetch(_UNFINISHED, UNFINISHED_MAX)
        return [PayoutBatch(*row) for row in rows]

    async def _fetch(self, sql: str, *arguments: object) -> Sequence[asyncpg.Record]:
        async with self._connection() as conn:
            rows: Sequence[asyncpg.Record] = await conn.fetch(sql, *arguments)
            return rows

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        try:
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
                yield conn
        except STORE_ERRORS as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


class BatchLocks:
    """
    Which batches this process works on: advisory locks, gone with the connection or the process.

    They spare two processes the same work. Correctness never rests on them. One task at a time;
    asyncpg's errors and OSError stay as they are.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    @property
    def lost(self) -> bool:
        """
        Say whether the locks are gone with their connection.
        """
        return self._connection is None or self._connection.is_closed()

    async def try_take(self, batch_id: bytes) -> bool:
        """
        Take the batch unless another process has it; raises what `connect` raises.
        """
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._dsn, application_name=APPLICATION)
        return await self._ask("SELECT pg_try_advisory_lock($1)", batch_id)

    async def release(self, batch_id: bytes) -> None:
        """
        Give the batch back; no matter if the connection is gone.
        """
        if not self.lost:
            await self._ask("SELECT pg_advisory_unlock($1)", batch_id)

    def close(self) -> None:
        """
        Give everything back by hanging up.
        """
        if self._connection is not None:
            self._connection.terminate()

    async def _ask(self, query: str, batch_id: bytes) -> bool:
        assert self._connection is not None
        try:
            # Locks promise nothing that is durable, so here a statement may be cut short.
            async with asyncio.timeout(LOCK_TIMEOUT_S):
                answer: bool = await self._connection.fetchval(query, _batch_lock(batch_id))
                return answer
        except TimeoutError:
            self._connection.terminate()
            raise


def _merchant_lock(merchant_id: str) -> int:
    return _lock_number(b"submit", merchant_id.encode())


def _batch_lock(batch_id: bytes) -> int:
    return _lock_number(b"run", batch_id)


def _lock_number(kind: bytes, name: bytes) -> int:
    digest = blake2b(name, digest_size=8, person=b"payout " + kind).digest()
    return int.from_bytes(digest, "big", signed=True)


def _uuid_bytes(text: str) -> bytes | None:
    try:
        return UUID(text).bytes
    except ValueError:
        return None


async def _find_duplicates(
    conn: Connection, merchant_id: str, pages: Sequence[bytes]
) -> list[Duplicate]:
    duplicates = []
    for encoded in pages:
        rows = {row.reference: row for row in decode_page(encoded) if row.code is None}
        for reference, batch_id, batch_reference in await conn.fetch(
            _DUPLICATES, merchant_id, list(rows)
        ):
            row = rows[reference]
            assert row.amount is not None, "a valid row has an amount"
            duplicates.append(
                Duplicate(row.row_number, reference, row.amount, batch_id, batch_reference)
            )
    return sorted(duplicates, key=lambda row: row.row_number)


async def _insert(conn: Connection, new: NewBatch, duplicates: set[int]) -> PayoutBatch:
    pending_count, invalid_count, amount = 0, 0, 0
    for encoded in new.pages:
        for row in decode_page(encoded):
            if row.code is not None or row.row_number in duplicates:
                invalid_count += 1
            else:
                assert row.amount is not None, "a valid row has an amount"
                pending_count += 1
                amount += row.amount
        await asyncio.sleep(0)
    inserted = await conn.fetchrow(
        _INSERT_BATCH,
        new.batch_id,
        new.merchant_id,
        new.reference,
        new.content_hash,
        new.source,
        new.currency,
        new.on_invalid,
        new.rows_per_second_max,
        pending_count,
        invalid_count,
        amount,
    )
    assert inserted is not None, "INSERT of one row returns it"
    tag = await conn.copy_records_to_table(
        "payout_items", records=_item_records(new, duplicates), columns=_COPY_COLUMNS
    )
    assert tag == f"COPY {pending_count + invalid_count}", f"{tag} is not every row"
    return PayoutBatch(*inserted)


async def _item_records(
    new: NewBatch, duplicates: set[int]
) -> AsyncIterator[tuple[bytes | str | int | None, ...]]:
    for encoded in new.pages:
        for row in decode_page(encoded):
            code = row.code
            if row.row_number in duplicates:
                code = RowCode.DUPLICATE_REFERENCE.value
            yield (
                new.batch_id,
                row.row_number,
                new.merchant_id,
                row.reference,
                row.destination,
                row.amount,
                row.note,
                "pending" if code is None else "failed",
                code,
            )
        await asyncio.sleep(0)  # Others take their turn.
