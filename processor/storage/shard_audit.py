"""
The audit of one shard: its journal from the first record, and the tables at their watermark.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from processor.storage.audit import (
    CHUNK_TRANSFERS,
    PROJECTION,
    Audit,
    AuditedDatabase,
    JournalEnd,
    Progress,
)
from processor.storage.channel_audit import compare_channel_tables
from processor.storage.key_audit import check_unused, name_used, note_once
from processor.storage.recomputation import GENESIS, ShardBooks, Unsound, transfer_ids
from processor.storage.recomputed_books import names_of
from processor.storage.recomputed_layouts import POSTED, REJECTED, filled_up_outcome
from processor.storage.recomputed_wallets import BALANCE_MAX, COLUMN_COUNT
from processor.storage.row_audit import RowAudit

PAGE_BYTES = 8 * 1024 * 1024
PAGE_RECORDS_MAX = 1_000

_decode = msgspec.msgpack.Decoder().decode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

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
    "counterparty",
    "linked_to",
    "short_by",
)
WALLET_COLUMNS = (
    "merchant_id",
    "currency",
    "status",
    "minimum",
    "posted",
    "version",
    "opened_at",
    "slot",
    "limits",
    "usage",
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
     WHERE transfer_id = ANY($1) AND shard_id = $2 ORDER BY transfer_id
"""

_CREDITED_BEFORE = """
    SELECT transfer_id, key FROM transfers
     WHERE transfer_id = ANY($1) AND shard_id = $2 AND key IS NULL
     ORDER BY transfer_id LIMIT 1
"""

_TRANSFERS_BY_SEQUENCE = """
    SELECT sequence, array_agg(transfer_id ORDER BY transfer_id) AS transfer_ids,
           array_agg(linked_to ORDER BY transfer_id) AS linked_to
      FROM transfers WHERE shard_id = $1 GROUP BY sequence ORDER BY sequence
"""

_WALLETS = f"""
    SELECT wallet_id, {", ".join(WALLET_COLUMNS)} FROM wallets
     WHERE shard_id = $1 ORDER BY wallet_id
"""


class ShardAudit:
    """
    The audit of one shard: its journal from the first record, and the tables at the watermark.
    """

    def __init__(self, audit: Audit, database: AuditedDatabase, shard_id: int) -> None:
        self.audit = audit
        self.database = database
        self.conn = database.conn
        self.books = ShardBooks(shard_id)
        self.head = database.heads.get(shard_id, 0)
        self.marks = database.watermarks.get(shard_id, {})
        self.watermark, _ = self.marks.get(PROJECTION, (0, GENESIS))
        self.tables_compared = False
        self.transfer_count = 0
        self.chunk: list[tuple[Any, ...]] = []
        self.rows = RowAudit(audit, database.conn, self.books)
        self.tail_credits: set[bytes] = set()

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
            audit.journals[books.shard_id] = JournalEnd(self.database, books)
        audit.add(books, self.watermark)

    async def _read_journal(self) -> None:
        audit, books = self.audit, self.books
        after = -BALANCE_MAX  # Below every sequence, so that none can hide in front.
        while rows := await self.conn.fetch(
            _JOURNAL_PAGE, books.shard_id, after, PAGE_RECORDS_MAX, PAGE_BYTES
        ):
            for row in rows:
                self.chunk += books.fold(tuple(row))
                if len(self.chunk) >= CHUNK_TRANSFERS:
                    await self._compare_chunk()
                await self.rows.take(self.watermark)
                if books.claims:
                    await self._compare_claims()
                await self._stop_at_marks()
            after = books.sequence
            audit.progress(Progress(books.shard_id, books.sequence, self.head))
        await self._compare_chunk()
        await self.rows.take(self.watermark, is_full=0)

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
        wallet_count = self.database.wallet_counts.get(books.shard_id, 0)
        transfer_count = self.database.transfer_counts.get(books.shard_id, 0)
        if PROJECTION not in self.marks and self.head > 0 and (wallet_count or transfer_count):
            audit.differs("watermark", self._mark(PROJECTION), "row", "present", None)
            return
        self.tables_compared = True
        await self._compare_wallets()
        await self.rows.compare_tables(self.watermark)
        await compare_channel_tables(audit, self.conn, books)
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
        rows: list[Any] = await self.conn.fetch(
            _TRANSFERS_BY_ID, [row[0] for row in chunk], self.books.shard_id
        )
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
        named, credited = [], []
        for row in chunk:
            transfer_id, sequence, key = row[0], row[2], row[7]
            where = f"shard {self.books.shard_id}, sequence {sequence}"
            if key is None:
                # Its name is its source's; here it has arrived once.
                note_once(audit, where, "transfer_id", self.tail_credits, transfer_id)
                credited.append((transfer_id, key, where))
            else:
                note_once(audit, where, "transfer_id", audit.tail_ids, transfer_id)
                note_once(audit, where, "key", audit.tail_keys, key)
                named.append((transfer_id, key, where))
        if self.tables_compared and "transfers" not in audit.differences:
            await check_unused(audit, named, decided_at=self.books.shard_id)
            ids = [transfer_id for transfer_id, _, _ in credited]
            used = await self.conn.fetchrow(_CREDITED_BEFORE, ids, self.books.shard_id)
            name_used(audit, used, credited)

    async def _compare_claims(self) -> None:
        """
        Compare outcomes that left with a slot with the rows of this shard, where it has them yet.
        """
        claims, self.books.claims = self.books.claims, []
        await self._compare_chunk()
        await self.rows.take(self.watermark, is_full=0)
        if not self.tables_compared and self.books.sequence > self.watermark:
            return
        if "transfers" in self.audit.differences:
            return
        claims = [filled_up_outcome(claim) for claim in claims if claim[1] <= self.watermark]
        for start in range(0, len(claims), CHUNK_TRANSFERS):
            some = claims[start : start + CHUNK_TRANSFERS]
            for claim, told in zip(some, await self._told_of(some), strict=True):
                if told != claim:
                    where = f"shard {self.books.shard_id}, outcome of {UUID(bytes=_id_of(claim))}"
                    self.audit.differs("journal", where, "carried", told, claim)

    async def _told_of(self, claims: list[list[Any]]) -> list[list[Any] | None]:
        """
        Return what the tables say of outcomes: those that are bound in one table, others in rows.
        """
        bound = [names_of(claim[0])[0] for claim in claims if _is_bound(claim)]
        outcomes = await self.rows.outcomes.rows(bound)
        plain = [_id_of(claim) for claim in claims if not _is_bound(claim)]
        found = await self.conn.fetch(_TRANSFERS_BY_ID, plain, self.books.shard_id)
        rows = {row[0]: outcome_of(row) for row in found}
        told: list[list[Any] | None] = []
        for claim in claims:
            outcome = outcomes.get(names_of(claim[0])[0]) if _is_bound(claim) else None
            decoded = None if outcome is None else filled_up_outcome(_decode(outcome[1]))
            told.append(decoded if _is_bound(claim) else rows.get(_id_of(claim)))
        return told

    async def _name_extra_transfer(self) -> None:
        shard_id = self.books.shard_id
        cursor = await self.conn.cursor(_TRANSFERS_BY_SEQUENCE, shard_id)
        while groups := await cursor.fetch(PAGE_RECORDS_MAX):
            for sequence, present, linked_to in groups:
                journaled: set[bytes] = set()
                if sequence <= self.watermark:
                    payload = await self.conn.fetchval(_PAYLOAD, shard_id, sequence)
                    journaled = set() if payload is None else transfer_ids(payload)
                for transfer_id, linked_id in zip(present, linked_to, strict=True):
                    if transfer_id not in journaled and linked_id not in journaled:
                        key = str(UUID(bytes=transfer_id))
                        self.audit.differs("transfers", key, "row", None, "present")
                        return

    async def _compare_wallets(self) -> None:
        audit, books = self.audit, self.books
        count = 0
        cursor = await self.conn.cursor(_WALLETS, books.shard_id)
        while rows := await cursor.fetch(CHUNK_TRANSFERS):
            count += len(rows)
            for row in rows:
                expected = books.wallets.get(row[0])
                if expected is None:
                    audit.differs("wallets", row[0], "row", None, "present")
                    return
                if row[1:] != tuple(expected[:COLUMN_COUNT]):
                    self._name_wallet(expected, row)
                    return
        if count != len(books.wallets):
            present = {row[0] for row in await self.conn.fetch(_WALLETS, books.shard_id)}
            for missing in sorted(books.wallets.keys() - present):
                audit.differs("wallets", missing, "row", "present", None)
            where = f"shard {books.shard_id}"
            audit.differs("wallets", where, "rows", len(books.wallets), count)

    def _name_wallet(self, expected: list[Any], row: asyncpg.Record) -> None:
        for column, journal_says in zip(WALLET_COLUMNS, expected[:COLUMN_COUNT], strict=True):
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
        epoch = self.database.epochs.get(books.shard_id)
        if books.sequence > 0 and (epoch is None or epoch < books.epoch):
            expected = f"{books.epoch} or more"
            self.audit.differs("shard", f"shard {books.shard_id}", "epoch", expected, epoch)

    def _mark(self, projection: str) -> str:
        return f"shard {self.books.shard_id}, {projection}"


def outcome_of(row: asyncpg.Record) -> list[Any]:
    """
    Tell a row of `transfers` as an outcome that is carried along with a slot.
    """
    reason, after = row["reason"], [row["source_version"], row["source_balance"]]
    after += [row["destination_version"], row["destination_balance"]]
    decision = [
        POSTED if reason is None else REJECTED,
        *(row["type"], row["transfer_id"], row["key"], row["merchant_id"], row["source"]),
        *(row["counterparty"] or row["destination"], row["currency"], row["amount"]),
        *(row["reference"], row["metadata"]),
        *(after if reason is None else [reason, row["short_by"] or 0]),
        None,
    ]
    return [decision, row["sequence"], (row["at"] - _EPOCH) // timedelta(microseconds=1)]


def _is_bound(outcome: list[Any]) -> bool:
    """
    Say whether an outcome is in a table of its own, and not in a row of `transfers`.
    """
    decision = outcome[0]
    return decision[0] not in (POSTED, REJECTED) or decision[-1] is not None


def _id_of(outcome: list[Any]) -> bytes:
    return names_of(outcome[0])[1]
