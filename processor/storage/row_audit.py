"""
The audit of rows that stay as they were written: outcomes under keys, and holds that are over.

Rule 1: they are compared in chunks, as the journal is read, and not kept: memory does not grow with
        the holds and outcomes there are. What does not match at once may still go with its slot, or
        be overwritten by a copy that comes with one; at the watermark it must match.
Rule 2: at the watermark the rows are counted, so one more than the journal has is found as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import asyncpg
import msgspec

from processor.storage.audit import CHUNK_TRANSFERS, Audit
from processor.storage.key_audit import check_unused, note_once
from processor.storage.recomputation import ShardBooks
from processor.storage.recomputed_books import OutcomeRow
from processor.storage.recomputed_counts import HOLD_CHANGED_AT
from processor.storage.recomputed_layouts import FIELD_COUNTS, filled_up_outcome
from processor.storage.recomputed_wallets import Contradiction

HOLD_COLUMNS = (
    "merchant_id",
    "wallet_id",
    "destination",
    "currency",
    "amount",
    "captured",
    "pending",
    "status",
    "is_ending",
    "placed_at_us",
    "expires_at_us",
    "reference",
    "metadata",
    "changed_at",
)
OUTCOME_COLUMNS = ("sequence", "outcome", "transfer_id")

_decode = msgspec.msgpack.Decoder().decode

Facts = tuple[Any, ...]
Conn: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class FinalRows:
    """
    Rows of one table of one shard. `unmatched` are those whose row is missing, or says something
    else than the journal.
    """

    def __init__(
        self, conn: Conn, shard_id: int, table: str, *, key: str, columns: Sequence[str]
    ) -> None:
        self.table = table
        self.columns = tuple(columns)
        self.unmatched: dict[bytes, Facts] = {}
        self.count = 0
        self._conn = conn
        self._shard_id = shard_id
        listed = f"SELECT {key}, {', '.join(columns)} FROM {table} WHERE shard_id = $1"
        self._by_key = f"{listed} AND {key} = ANY($2)"
        self.all = f"{listed} ORDER BY {key}"
        self._count = f"SELECT count(*) FROM {table} WHERE shard_id = $1"

    async def compare(self, expected: dict[bytes, Facts]) -> None:
        """
        Look for rows that are to be in the table.
        """
        self.count += len(expected)
        keys = list(expected)
        for start in range(0, len(keys), CHUNK_TRANSFERS):
            some = keys[start : start + CHUNK_TRANSFERS]
            found = await self.rows(some)
            for key in some:
                if found.get(key) != expected[key]:
                    self.unmatched[key] = expected[key]

    async def rows(self, keys: list[bytes]) -> dict[bytes, Facts]:
        found = await self._conn.fetch(self._by_key, self._shard_id, keys)
        return {row[0]: tuple(row[1:]) for row in found}

    async def row_count(self) -> int:
        count: int = await self._conn.fetchval(self._count, self._shard_id)
        return count

    async def name(self, audit: Audit, key: bytes, expected: Facts | None) -> None:
        """
        Note how a row differs from what it is to be.
        """
        where = f"shard {self._shard_id}, {key.hex()}"
        row = (await self.rows([key])).get(key)
        if row is None or expected is None:
            there, here = (None if one is None else "present" for one in (row, expected))
            if there != here:
                audit.differs(self.table, where, "row", here, there)
            return
        audit.name_field(
            self.table,
            where,
            fields=self.columns,
            journal_says=list(expected),
            table_says=list(row),
        )


class RowAudit:
    """
    The outcomes and the holds of one shard.
    """

    def __init__(self, audit: Audit, conn: Conn, books: ShardBooks) -> None:
        self.audit = audit
        self.books = books
        self.outcomes = FinalRows(
            conn, books.shard_id, "outcomes", key="key", columns=OUTCOME_COLUMNS
        )
        self.holds = FinalRows(conn, books.shard_id, "holds", key="hold_id", columns=HOLD_COLUMNS)
        self._tail_holds: dict[bytes, Facts] = {}

    async def take(self, watermark: int, *, is_full: int = CHUNK_TRANSFERS) -> None:
        """
        Take what the books have come to, when it is as much as *is_full*, and compare it with the
        tables as far as these are to have it.
        """
        books = self.books
        if len(books.outcomes) + len(books.holds.ended) < is_full and not books.holds.left:
            return
        outcomes, books.outcomes = books.outcomes, []
        ended, books.holds.ended = books.holds.ended, []
        left, books.holds.left = books.holds.left, []
        if books.sequence <= watermark:
            await self._compare_outcomes(outcomes)
            await self.holds.compare({hold_id: tuple(facts) for hold_id, facts in ended})
        else:
            await self._check_names(outcomes)
            self._tail_holds.update((hold_id, tuple(facts)) for hold_id, facts in ended)
        for hold_id, carried in left:
            await self._compare_left(hold_id, tuple(carried), watermark)

    async def _compare_outcomes(self, outcomes: list[OutcomeRow]) -> None:
        expected: dict[bytes, Facts] = {}
        for one in outcomes:
            if one.key in expected:
                where = f"shard {self.books.shard_id}, sequence {one.sequence}"
                self.audit.differs("journal", where, "key", "used once", one.key)
            expected[one.key] = (one.sequence, one.outcome, one.transfer_id)
        await self.outcomes.compare(expected)

    async def _check_names(self, outcomes: list[OutcomeRow]) -> None:
        audit, shard_id = self.audit, self.books.shard_id
        named = []
        for one in outcomes:
            where = f"shard {shard_id}, sequence {one.sequence}"
            note_once(audit, where, "transfer_id", audit.tail_ids, one.transfer_id)
            note_once(audit, where, "key", audit.tail_keys, one.key)
            named.append((one.transfer_id, one.key, where))
        if "outcomes" not in audit.differences and "transfers" not in audit.differences:
            await check_unused(audit, named, decided_at=shard_id)

    async def _compare_left(self, hold_id: bytes, carried: Facts, watermark: int) -> None:
        """
        Compare a hold that was over when it left with its slot; its row has to go then.
        """
        known = self.holds.unmatched.pop(hold_id, None)
        if known is not None:
            self.holds.count -= 1
        elif hold_id in self._tail_holds:
            known = self._tail_holds.pop(hold_id)
        elif self.books.sequence <= watermark:
            await self.holds.name(self.audit, hold_id, None)
            return
        else:
            known = (await self.holds.rows([hold_id])).get(hold_id)
        if known is None or known[:HOLD_CHANGED_AT] != carried:
            where = f"shard {self.books.shard_id}, hold {hold_id.hex()}"
            self.audit.differs("journal", where, "carried hold", known, carried)

    async def compare_tables(self, watermark: int) -> None:
        """
        Compare what is left at the watermark: copies, open holds, and how many rows there are.
        """
        await self.take(watermark, is_full=0)
        await self._compare_copies()
        for hold_id, facts in list(self.holds.unmatched.items()):
            await self.holds.name(self.audit, hold_id, facts)
        unfinished = {key: tuple(facts) for key, facts in self.books.holds.open.items()}
        await self.holds.compare(unfinished)
        for hold_id in sorted(self.holds.unmatched.keys() & unfinished.keys()):
            await self.holds.name(self.audit, hold_id, unfinished[hold_id])
        for table in (self.outcomes, self.holds):
            count = await table.row_count()
            if count != table.count and table.table not in self.audit.differences:
                where = f"shard {self.books.shard_id}"
                self.audit.differs(table.table, where, "rows", table.count, count)
        self.holds.count -= len(unfinished)

    async def _compare_copies(self) -> None:
        """
        Compare outcomes that came with slots. One that was decided here has only one row.
        """
        own = self.outcomes
        copies = {
            key: (one.sequence, one.outcome, one.transfer_id)
            for key, one in self.books.carried.items()
        }
        for key, facts in list(own.unmatched.items()):
            copy = copies.get(key)
            if copy is None or copy[1] != facts[1]:
                await self._name_outcome(key, facts)
            else:
                own.count -= 1
        own.unmatched.clear()
        await own.compare(copies)
        for key in sorted(own.unmatched):
            await self._name_outcome(key, own.unmatched[key])

    async def _name_outcome(self, key: bytes, expected: Facts) -> None:
        """
        Name an outcome that differs, unless an older build has written the same in fewer fields.
        """
        row = (await self.outcomes.rows([key])).get(key)
        if row is None or row[0] != expected[0] or not _is_same_but_older(row, expected):
            await self.outcomes.name(self.audit, key, expected)


def _is_same_but_older(row: Facts, expected: Facts) -> bool:
    """
    Say whether a row has the outcome that is expected with fewer fields, or, when it was journaled
    so, without what it is of: older builds did not write that.
    """
    decision = _decode(expected[1])[0]
    is_old = len(decision) < FIELD_COUNTS[decision[0]]
    if row[2] != expected[2] and not (is_old and row[2] is None):
        return False
    try:
        said, there = (filled_up_outcome(_decode(one)) for one in (expected[1], row[1]))
    except (Contradiction, msgspec.DecodeError, ValueError, LookupError, TypeError):
        return False
    return said == there
