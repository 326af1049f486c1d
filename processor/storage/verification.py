"""
The independent auditor: does the journal hold together, and do the tables tell the same?

Rule 1: nothing of the ledger's own code is used (see `recomputation`).
Rule 2: everything is read in one read-only snapshot, while the ledger runs on.
Rule 3: the journal is judged first; a shard whose journal contradicts itself has no tables to
        compare. Per table the first difference is reported, so one verdict shows every kind.
Rule 4: memory grows with the wallets of one shard, and with the transfers that are not projected
        yet (about 250 bytes each), never with the transfers there are: that no key is used twice
        is known of projected ones by the unique index of `transfers`, whose every row is compared.

A check is an async function over an `Audit`, in CHECKS; another projection adds its own.
While an audit runs, its snapshot keeps Postgres from clearing away old row versions: audit a
large, busy database on a standby.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from itertools import zip_longest
from operator import itemgetter
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from processor.storage.connection import connect
from processor.storage.recomputation import BALANCE_MAX, GENESIS, ShardBooks, Unsound, transfer_ids

PROJECTION = "tables"
PAGE_BYTES = 8 * 1024 * 1024
PAGE_RECORDS_MAX = 1_000
CHUNK_TRANSFERS = 5_000

# The journaled numbers of refusals and their public names.
REASON_CODES = {
    10: "wallets_identical",
    20: "source_unknown",
    30: "destination_unknown",
    40: "currency_mismatch",
    50: "source_closed",
    60: "source_locked",
    70: "source_frozen",
    80: "destination_closed",
    90: "destination_locked",
    100: "insufficient_funds",
    110: "balance_out_of_range",
}

TRANSFER_COLUMNS = (
    "transfer_id",
    "shard_id",
    "sequence",
    "at",
    "type",
    "reason",
    "merchant_id",
    "key",
    "source",
    "source_version",
    "source_balance",
    "destination",
    "destination_version",
    "destination_balance",
    "currency",
    "amount",
    "reference",
    "metadata",
)
WALLET_COLUMNS = (
    "merchant_id",
    "currency",
    "status",
    "minimum",
    "posted",
    "version",
    "opened_at",
)
ITEM_FIELDS = (
    "state",
    "code",
    "sequence",
    "merchant_id",
    "item_reference",
    "destination",
    "amount",
    "merchant_id of the batch",
    "source of the batch",
    "currency of the batch",
    "type",
    "metadata",
)
BATCH_COUNTERS = (
    "total_count",
    "pending_count",
    "paid_count",
    "failed_count",
    "invalid_count",
    "pending_amount",
    "paid_amount",
    "failed_amount",
)

# A page ends after PAGE_BYTES of payload, but has one record at least.
_JOURNAL_PAGE = """
    SELECT sequence, epoch, at_us, count, format, chain, payload
      FROM (
        SELECT *, sum(octet_length(payload)) OVER (ORDER BY sequence) AS bytes
          FROM journal WHERE shard_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3
      ) AS page
     WHERE bytes - octet_length(payload) < $4
     ORDER BY sequence
"""

_PAYLOAD = "SELECT payload FROM journal WHERE shard_id = $1 AND sequence = $2"

_TRANSFERS_BY_ID = f"""
    SELECT {", ".join(TRANSFER_COLUMNS)} FROM transfers
     WHERE transfer_id = ANY($1) ORDER BY transfer_id
"""

_USED_BEFORE = """
    SELECT transfer_id, key FROM transfers WHERE transfer_id = ANY($1) OR key = ANY($2)
     ORDER BY transfer_id LIMIT 1
"""

_TRANSFERS_BY_SEQUENCE = """
    SELECT sequence, array_agg(transfer_id ORDER BY transfer_id) AS transfer_ids
      FROM transfers WHERE shard_id = $1 GROUP BY sequence ORDER BY sequence
"""

_WALLETS = f"""
    SELECT wallet_id, {", ".join(WALLET_COLUMNS)} FROM wallets
     WHERE shard_id = $1 ORDER BY wallet_id
"""

_UNIQUE_KEY = """
    SELECT indisunique AND indisvalid FROM pg_index
     WHERE indexrelid = to_regclass('transfers_by_key')
"""

# What an item says next to what its transfer says, field by field as text. A missing transfer
# is one that the tables have not got yet, or one that never was.
_PAYOUT_ITEMS = """
    SELECT batch_id, row_number, transfer_id, is_missing, said, happened
      FROM (
        SELECT item.batch_id, item.row_number, item.transfer_id,
               transfer.transfer_id IS NULL AS is_missing,
               ARRAY[item.state, item.code, item.sequence::text, item.merchant_id,
                     item.item_reference, item.destination, item.amount::text,
                     batch.merchant_id, batch.source, batch.currency, '1',
                     format('{"payout_batch":"%s"}', item.batch_id)] AS said,
               ARRAY[CASE WHEN transfer.reason IS NULL THEN 'paid' ELSE 'failed' END,
                     reasons.code, transfer.sequence::text, transfer.merchant_id,
                     transfer.reference, transfer.destination, transfer.amount::text,
                     transfer.merchant_id, transfer.source, transfer.currency,
                     transfer.type::text, transfer.metadata] AS happened
          FROM payout_items AS item
          LEFT JOIN payout_batches AS batch USING (batch_id)
          LEFT JOIN transfers AS transfer USING (transfer_id)
          LEFT JOIN unnest($1::smallint[], $2::text[]) AS reasons (reason, code)
               ON reasons.reason = transfer.reason
         WHERE item.transfer_id IS NOT NULL
      ) AS compared
     WHERE said IS DISTINCT FROM happened
     ORDER BY batch_id, row_number
"""

_PAYOUT_BATCHES = """
    SELECT batch_id,
           ARRAY[batch.total_count, batch.pending_count, batch.paid_count, batch.failed_count,
                 batch.invalid_count, batch.pending_amount, batch.paid_amount,
                 batch.failed_amount]::bigint[] AS said,
           ARRAY[coalesce(counted.total_count, 0), coalesce(counted.pending_count, 0),
                 coalesce(counted.paid_count, 0), coalesce(counted.failed_count, 0),
                 coalesce(counted.invalid_count, 0), coalesce(counted.pending_amount, 0),
                 coalesce(counted.paid_amount, 0), coalesce(counted.failed_amount, 0)]::bigint[]
               AS counted
      FROM payout_batches AS batch
      FULL JOIN (
        SELECT batch_id, count(*) AS total_count,
               count(*) FILTER (WHERE state = 'pending') AS pending_count,
               count(*) FILTER (WHERE state = 'paid') AS paid_count,
               count(*) FILTER (WHERE state = 'failed') AS failed_count,
               count(*) FILTER (WHERE state = 'failed' AND transfer_id IS NULL) AS invalid_count,
               sum(amount) FILTER (WHERE state = 'pending') AS pending_amount,
               sum(amount) FILTER (WHERE state = 'paid') AS paid_amount,
               sum(amount) FILTER (WHERE state = 'failed' AND transfer_id IS NOT NULL)
                   AS failed_amount
          FROM payout_items GROUP BY batch_id
      ) AS counted USING (batch_id)
     ORDER BY batch_id
"""

Fact = str | int | None


class Difference(msgspec.Struct, frozen=True):
    """
    Where a table and the recomputed journal part ways; for `journal` itself, what would follow.
    """

    table: str
    key: str
    field: str
    journal_says: Fact
    table_says: Fact


class CurrencyBooks(msgspec.Struct, frozen=True):
    """
    All balances of a currency, in minor units: the customers', and the ledger's own.
    """

    customers: int
    world: int


class ShardHead(msgspec.Struct, frozen=True):
    """
    How far a shard's journal and its tables are. `chain` (hex) stands for all that is before it:
    written down outside, it shows any later change of the past.
    """

    shard_id: int
    head: int
    watermark: int
    chain: str


class Verdict(msgspec.Struct, frozen=True):
    """
    What the audit found; `balanced` when there is no difference at all.
    """

    balanced: bool
    shards: int
    records: int
    transfers_posted: int
    transfers_rejected: int
    wallets: int
    currencies: dict[str, CurrencyBooks]
    projected: list[ShardHead]
    differences: list[Difference]


class Progress(msgspec.Struct, frozen=True):
    """
    How far the audit is: `sequence` of `head` records of a shard.
    """

    shard_id: int
    sequence: int
    head: int


class Audit:
    """
    One audit: its snapshot, what there is in general, and what was found so far.
    """

    def __init__(
        self,
        conn: asyncpg.Connection[asyncpg.Record],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.conn = conn
        self.progress = progress or (lambda _: None)
        self.differences: dict[str, Difference] = {}
        self.heads: dict[int, int] = {}
        self.epochs: dict[int, int] = {}
        self.wallet_counts: dict[int, int] = {}
        self.transfer_counts: dict[int, int] = {}
        self.watermarks: dict[int, dict[str, tuple[int, bytes]]] = {}
        # Of transfers above the watermark, over all shards.
        self.tail_ids: set[bytes] = set()
        self.tail_keys: set[bytes] = set()
        # What the verdict adds up.
        self.projected: list[ShardHead] = []
        self.posted_count = 0
        self.rejected_count = 0
        self.wallet_count = 0
        self.sums: dict[str, tuple[int, int]] = {}

    def differs(
        self, table: str, key: str, field: str, journal_says: object, table_says: object
    ) -> None:
        """
        Note a difference, if it is the first of its table.
        """
        if table not in self.differences:
            self.differences[table] = Difference(
                table, key, field, _fact(journal_says), _fact(table_says)
            )

    async def look_around(self) -> None:
        """
        Read which shards there are, and how far and how large the tables are.
        """
        self.epochs = await self._by_shard("SELECT shard_id, epoch FROM shard")
        self.heads = await self._by_shard(
            "SELECT shard_id, max(sequence) FROM journal GROUP BY shard_id"
        )
        self.wallet_counts = await self._by_shard(
            "SELECT shard_id, count(*) FROM wallets GROUP BY shard_id"
        )
        self.transfer_counts = await self._by_shard(
            "SELECT shard_id, count(*) FROM transfers GROUP BY shard_id"
        )
        rows = await self.conn.fetch("SELECT shard_id, projection, sequence, chain FROM watermark")
        for shard_id, projection, sequence, chain in rows:
            self.watermarks.setdefault(shard_id, {})[projection] = (sequence, chain)

    async def _by_shard(self, query: str) -> dict[int, int]:
        return {row[0]: row[1] for row in await self.conn.fetch(query)}

    @property
    def shard_ids(self) -> list[int]:
        return sorted(
            self.epochs.keys()
            | self.heads.keys()
            | self.watermarks.keys()
            | self.wallet_counts.keys()
            | self.transfer_counts.keys()
        )

    def add(self, books: ShardBooks, watermark: int) -> None:
        """
        Take the books of a shard into the verdict.
        """
        self.projected.append(
            ShardHead(books.shard_id, books.sequence, watermark, books.chain.hex())
        )
        self.posted_count += books.posted_count
        self.rejected_count += books.rejected_count
        self.wallet_count += len(books.wallets)
        for currency, (customers, world) in books.sums().items():
            before = self.sums.get(currency, (0, 0))
            self.sums[currency] = (before[0] + customers, before[1] + world)

    def verdict(self) -> Verdict:
        """
        Sum up what was found.
        """
        return Verdict(
            balanced=not self.differences,
            shards=len(self.projected),
            records=sum(shard.head for shard in self.projected),
            transfers_posted=self.posted_count,
            transfers_rejected=self.rejected_count,
            wallets=self.wallet_count,
            currencies={code: CurrencyBooks(*sums) for code, sums in sorted(self.sums.items())},
            projected=self.projected,
            differences=list(self.differences.values()),
        )


class ShardAudit:
    """
    The audit of one shard: its journal from the first record, and the tables at the watermark.
    """

    def __init__(self, audit: Audit, shard_id: int) -> None:
        self.audit = audit
        self.books = ShardBooks(shard_id)
        self.head = audit.heads.get(shard_id, 0)
        self.marks = audit.watermarks.get(shard_id, {})
        self.watermark, _ = self.marks.get(PROJECTION, (0, GENESIS))
        self.tables_compared = False
        self.transfer_count = 0
        self.chunk: list[tuple[Any, ...]] = []

    async def run(self) -> None:
        """
        Read the whole journal and note what differs.
        """
        audit, books = self.audit, self.books
        self._check_marks()
        try:
            await self._stop_at_marks()
            await self._read_journal()
            books.check_end()
        except Unsound as unsound:
            audit.differs("journal", unsound.key, unsound.field, unsound.expected, unsound.found)
        else:
            self._check_owner()
        audit.add(books, self.watermark)

    async def _read_journal(self) -> None:
        audit, books = self.audit, self.books
        after = -BALANCE_MAX  # Below every sequence, so that none can hide in front.
        while rows := await audit.conn.fetch(
            _JOURNAL_PAGE, books.shard_id, after, PAGE_RECORDS_MAX, PAGE_BYTES
        ):
            for row in rows:
                self.chunk += books.fold(tuple(row))
                if len(self.chunk) >= CHUNK_TRANSFERS:
                    await self._compare_chunk()
                await self._stop_at_marks()
            after = books.sequence
            audit.progress(Progress(books.shard_id, books.sequence, self.head))
        await self._compare_chunk()

    async def _stop_at_marks(self) -> None:
        """
        Compare the chain, and at the tables' own watermark the tables, with the books as they are.
        """
        audit, books = self.audit, self.books
        for projection, (sequence, chain) in self.marks.items():
            if sequence == books.sequence and chain != books.chain:
                audit.differs("watermark", self._mark(projection), "chain", books.chain, chain)
        if books.sequence == self.watermark:
            await self._compare_chunk()
            await self._compare_tables()

    async def _compare_tables(self) -> None:
        audit, books = self.audit, self.books
        wallet_count = audit.wallet_counts.get(books.shard_id, 0)
        transfer_count = audit.transfer_counts.get(books.shard_id, 0)
        if PROJECTION not in self.marks and self.head > 0 and (wallet_count or transfer_count):
            audit.differs("watermark", self._mark(PROJECTION), "row", "present", None)
            return
        self.tables_compared = True
        await self._compare_wallets()
        if transfer_count != self.transfer_count and "transfers" not in audit.differences:
            await self._name_extra_transfer()
            where = f"shard {books.shard_id}"
            audit.differs("transfers", where, "rows", self.transfer_count, transfer_count)

    async def _compare_chunk(self) -> None:
        """
        Look for the transfers read so far in the table: equal up to the watermark, absent above.
        """
        chunk, self.chunk = self.chunk, []
        if not chunk:
            return
        if self.books.sequence > self.watermark:
            await self._check_tail(chunk)
            return
        self.transfer_count += len(chunk)
        chunk.sort(key=itemgetter(0))
        rows: list[Any] = await self.audit.conn.fetch(_TRANSFERS_BY_ID, [row[0] for row in chunk])
        if rows != chunk:
            self._name_transfer(chunk, {row[0]: row for row in rows})

    def _name_transfer(
        self, chunk: list[tuple[Any, ...]], rows: dict[bytes, asyncpg.Record]
    ) -> None:
        for expected in chunk:
            key = str(UUID(bytes=expected[0]))
            row = rows.pop(expected[0], None)
            if row is None:
                self.audit.differs("transfers", key, "row", "present once", None)
                return
            for column, journal_says, table_says in zip(
                TRANSFER_COLUMNS, expected, row, strict=True
            ):
                if journal_says != table_says:
                    self.audit.differs("transfers", key, column, journal_says, table_says)
                    return

    async def _check_tail(self, chunk: list[tuple[Any, ...]]) -> None:
        audit = self.audit
        for row in chunk:
            transfer_id, sequence, key = row[0], row[2], row[7]
            where = f"shard {self.books.shard_id}, sequence {sequence}"
            if transfer_id in audit.tail_ids:
                audit.differs("journal", where, "transfer_id", "used once", transfer_id)
            if key in audit.tail_keys:
                audit.differs("journal", where, "key", "used once", key)
            audit.tail_ids.add(transfer_id)
            audit.tail_keys.add(key)
        if self.tables_compared and "transfers" not in audit.differences:
            await self._check_used_before(chunk)

    async def _check_used_before(self, chunk: list[tuple[Any, ...]]) -> None:
        ids, keys = [row[0] for row in chunk], [row[7] for row in chunk]
        used = await self.audit.conn.fetchrow(_USED_BEFORE, ids, keys)
        if used is None:
            return
        for row in chunk:
            where = f"shard {self.books.shard_id}, sequence {row[2]}"
            if row[0] == used["transfer_id"]:
                self.audit.differs("journal", where, "transfer_id", "used once", row[0])
            elif row[7] == used["key"]:
                self.audit.differs("journal", where, "key", "used once", row[7])

    async def _name_extra_transfer(self) -> None:
        shard_id = self.books.shard_id
        cursor = await self.audit.conn.cursor(_TRANSFERS_BY_SEQUENCE, shard_id)
        while groups := await cursor.fetch(PAGE_RECORDS_MAX):
            for sequence, present in groups:
                journaled: set[bytes] = set()
                if sequence <= self.watermark:
                    payload = await self.audit.conn.fetchval(_PAYLOAD, shard_id, sequence)
                    journaled = set() if payload is None else transfer_ids(payload)
                for transfer_id in present:
                    if transfer_id not in journaled:
                        key = str(UUID(bytes=transfer_id))
                        self.audit.differs("transfers", key, "row", None, "present")
                        return

    async def _compare_wallets(self) -> None:
        audit, books = self.audit, self.books
        count = 0
        cursor = await audit.conn.cursor(_WALLETS, books.shard_id)
        while rows := await cursor.fetch(CHUNK_TRANSFERS):
            count += len(rows)
            for row in rows:
                expected = books.wallets.get(row[0])
                if expected is None:
                    audit.differs("wallets", row[0], "row", None, "present")
                    return
                if row[1:] != tuple(expected):
                    self._name_wallet(expected, row)
                    return
        if count != len(books.wallets):
            present = {row[0] for row in await audit.conn.fetch(_WALLETS, books.shard_id)}
            for missing in sorted(books.wallets.keys() - present):
                audit.differs("wallets", missing, "row", "present", None)
            where = f"shard {books.shard_id}"
            audit.differs("wallets", where, "rows", len(books.wallets), count)

    def _name_wallet(self, expected: list[Any], row: asyncpg.Record) -> None:
        for column, journal_says in zip(WALLET_COLUMNS, expected, strict=True):
            if journal_says != row[column]:
                self.audit.differs("wallets", row[0], column, journal_says, row[column])

    def _check_marks(self) -> None:
        for projection, (sequence, _) in self.marks.items():
            if not 0 <= sequence <= self.head:
                expected = f"at most {self.head}"
                self.audit.differs(
                    "watermark", self._mark(projection), "sequence", expected, sequence
                )

    def _check_owner(self) -> None:
        books = self.books
        epoch = self.audit.epochs.get(books.shard_id)
        if books.sequence > 0 and (epoch is None or epoch < books.epoch):
            expected = f"{books.epoch} or more"
            self.audit.differs("shard", f"shard {books.shard_id}", "epoch", expected, epoch)

    def _mark(self, projection: str) -> str:
        return f"shard {self.books.shard_id}, {projection}"


async def check_shards(audit: Audit) -> None:
    """
    Audit each shard's journal, and `wallets`, `transfers`, `watermark` and `shard` against it.
    """
    # Each chunk is found by its ids. Statistics that are behind must not make a plan of it that
    # reads the whole table again for every chunk.
    await audit.conn.execute("SET LOCAL enable_seqscan = off")
    for shard_id in audit.shard_ids:
        await ShardAudit(audit, shard_id).run()
    await audit.conn.execute("SET LOCAL enable_seqscan = on")


async def check_unique_key(audit: Audit) -> None:
    """
    Check that Postgres itself keeps keys apart, which rule 4 rests on.
    """
    if not await audit.conn.fetchval(_UNIQUE_KEY):
        audit.differs("transfers", "transfers_by_key", "index", "unique and valid", None)


async def check_payout_items(audit: Audit) -> None:
    """
    Compare what became of each payout item with its transfer.
    """
    if await audit.conn.fetchval("SELECT to_regclass('payout_items') IS NULL"):
        return
    reasons = [*REASON_CODES.keys()], [*REASON_CODES.values()]
    cursor = await audit.conn.cursor(_PAYOUT_ITEMS, *reasons)
    while rows := await cursor.fetch(CHUNK_TRANSFERS):
        for row in rows:
            key = f"{UUID(bytes=row['batch_id'])}, row {row['row_number']}"
            if not row["is_missing"]:
                _name_field(
                    audit,
                    "payout_items",
                    key,
                    fields=ITEM_FIELDS,
                    journal_says=row["happened"],
                    table_says=row["said"],
                )
            elif row["transfer_id"] not in audit.tail_ids and "journal" not in audit.differences:
                audit.differs("payout_items", key, "transfer_id", None, row["transfer_id"])


async def check_payout_batches(audit: Audit) -> None:
    """
    Compare the counters of each payout batch with its items.
    """
    if await audit.conn.fetchval("SELECT to_regclass('payout_batches') IS NULL"):
        return
    cursor = await audit.conn.cursor(_PAYOUT_BATCHES)
    while rows := await cursor.fetch(CHUNK_TRANSFERS):
        for batch_id, said, counted in rows:
            _name_field(
                audit,
                "payout_batches",
                str(UUID(bytes=batch_id)),
                fields=BATCH_COUNTERS,
                journal_says=counted,
                table_says=said,
            )


Check = Callable[[Audit], Awaitable[None]]
CHECKS: list[Check] = [check_shards, check_unique_key, check_payout_items, check_payout_batches]


async def verify(dsn: str, *, progress: Callable[[Progress], None] | None = None) -> Verdict:
    """
    Audit the whole database as it is at this moment; changes nothing.

    Calls *progress* about once per 8 MiB of journal. Raises what `connect` and asyncpg raise.
    """
    conn = await connect(dsn, application_name="miliano/verify")
    try:
        async with conn.transaction(isolation="repeatable_read", readonly=True):
            audit = Audit(conn, progress)
            await audit.look_around()
            for check in CHECKS:
                await check(audit)
    finally:
        await conn.close()
    return audit.verdict()


def _name_field(
    audit: Audit,
    table: str,
    key: str,
    *,
    fields: tuple[str, ...],
    journal_says: list[Any],
    table_says: list[Any],
) -> None:
    """
    Note the first of *fields* whose values differ.
    """
    for field, expected, found in zip_longest(fields, journal_says, table_says):
        if expected != found:
            audit.differs(table, key, field, expected, found)
            return


def _fact(value: object) -> Fact:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, str | int) or value is None else repr(value)
