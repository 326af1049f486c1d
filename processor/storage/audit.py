"""
One audit: the snapshots it reads, what there is in general, and what was found so far.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from itertools import zip_longest
from typing import Any

import asyncpg
import msgspec

from processor.storage.recomputation import ShardBooks

PROJECTION = "tables"
CHUNK_TRANSFERS = 5_000

_SHARDS_OF_CHANNELS = """
    SELECT shard_id FROM slots UNION SELECT shard_id FROM channels_out
    UNION SELECT shard_id FROM channels_in UNION SELECT shard_id FROM channel_answers
    UNION SELECT shard_id FROM pending_entries UNION SELECT shard_id FROM outcomes
    UNION SELECT shard_id FROM holds UNION SELECT shard_id FROM refunds
    UNION SELECT shard_id FROM linked_begun UNION SELECT shard_id FROM linked_prepared
"""

Fact = str | int | None


class Difference(msgspec.Struct, frozen=True):
    """
    Where a table and the recomputed journal part ways; for `journal` itself, what would follow,
    and for `channel`, what its source says first and what its destination says.
    """

    table: str
    key: str
    field: str
    journal_says: Fact
    table_says: Fact


class CurrencyBooks(msgspec.Struct, frozen=True):
    """
    All balances of a currency, in minor units: the customers', the world's, and what shards are
    due from each other for money that is on its way; together they are zero.
    """

    customers: int
    world: int
    due: int = 0


class Counted(msgspec.Struct, frozen=True):
    """
    What was recomputed besides balances: holds that were placed, and those that are open,
    transfers of which something went back, wallets with limits, linked transfers that are posted.
    """

    holds: int = 0
    holds_open: int = 0
    refunded: int = 0
    limited_wallets: int = 0
    linked: int = 0


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

    A transfer between shards counts where its source is: `pending` until it is settled there. The
    legs of a linked transfer count where it is decided.
    """

    balanced: bool
    shards: int
    records: int
    transfers_posted: int
    transfers_rejected: int
    pending: int
    wallets: int
    currencies: dict[str, CurrencyBooks]
    projected: list[ShardHead]
    differences: list[Difference]
    counted: Counted = Counted()


class Progress(msgspec.Struct, frozen=True):
    """
    How far the audit is: `sequence` of `head` records of a shard.
    """

    shard_id: int
    sequence: int
    head: int


class AuditedDatabase:
    """
    One database of the ledger: a snapshot of it, and what there is in general.
    """

    def __init__(self, number: int, dsn: str, conn: asyncpg.Connection[asyncpg.Record]) -> None:
        self.number = number
        self.dsn = dsn
        self.conn = conn
        self.cluster_ids: list[bytes] = []
        self.heads: dict[int, int] = {}
        self.epochs: dict[int, int] = {}
        self.wallet_counts: dict[int, int] = {}
        self.transfer_counts: dict[int, int] = {}
        self.watermarks: dict[int, dict[str, tuple[int, bytes]]] = {}
        self.shard_ids: list[int] = []

    async def look_around(self) -> None:
        """
        Read which shards there are, and how far and how large the tables are.
        """
        self.cluster_ids = [
            row[0] for row in await self.conn.fetch("SELECT cluster_id FROM cluster")
        ]
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
        shard_ids = {row[0] for row in await self.conn.fetch(_SHARDS_OF_CHANNELS)}
        shard_ids.update(self.epochs, self.heads, self.watermarks)
        self.shard_ids = sorted(shard_ids.union(self.wallet_counts, self.transfer_counts))

    async def _by_shard(self, query: str) -> dict[int, int]:
        return {row[0]: row[1] for row in await self.conn.fetch(query)}


class JournalEnd:
    """
    What is kept of a shard whose journal is sound: how far it was read, its ends there, and the
    totals of refunds that came from other shards or went to them.
    """

    def __init__(self, database: AuditedDatabase, books: ShardBooks) -> None:
        self.database = database
        self.sequence = books.sequence
        self.was_read_on = False  # Behind the snapshot, where only its ends were taken in.
        self.ends = books.ends
        self.refunds_left = books.refunds.left
        self.refunds_brought = books.refunds.brought
        self.has_customers = any(wallet_id[0] != "$" for wallet_id in books.wallets)

    def names_undecided(self) -> list[tuple[bytes, bytes]]:
        """
        List the ids and keys of what has no outcome yet.
        """
        sent = [(decision[2], decision[3]) for decision in self.ends.pending_transfers()]
        begun = [linked.begun for linked in self.ends.linked.open.values()]
        return sent + [(decision[1], decision[2]) for decision in begun]


class Audit:
    """
    One audit: its databases, the catalog first, and what was found so far.
    """

    def __init__(
        self, databases: list[AuditedDatabase], progress: Callable[[Progress], None] | None
    ) -> None:
        self.databases = databases
        self.progress = progress or (lambda _: None)
        self.differences: dict[str, Difference] = {}
        # Of transfers above the watermark, over all shards.
        self.tail_ids: set[bytes] = set()
        self.tail_keys: set[bytes] = set()
        self.journals: dict[int, JournalEnd] = {}  # Of shards that are sound.
        # What the verdict adds up.
        self.projected: list[ShardHead] = []
        self.posted_count = 0
        self.rejected_count = 0
        self.pending_count = 0
        self.wallet_count = 0
        self.counted = Counted()
        self.sums: dict[str, tuple[int, int, int]] = {}

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

    def name_field(
        self,
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
                self.differs(table, key, field, expected, found)
                return

    def add(self, books: ShardBooks, watermark: int) -> None:
        """
        Take the books of a shard into the verdict.
        """
        self.projected.append(
            ShardHead(books.shard_id, books.sequence, watermark, books.chain.hex())
        )
        self.posted_count += books.posted_count
        self.rejected_count += books.rejected_count
        self.pending_count += len(books.ends.pending_transfers())
        self.wallet_count += len(books.wallets)
        counted = self.counted
        self.counted = Counted(
            counted.holds + books.holds.placed_count,
            counted.holds_open + books.holds.open_count(),
            counted.refunded + len(books.refunds.rows),
            counted.limited_wallets + books.limited_count(),
            counted.linked + books.linked_count,
        )
        for currency, (customers, world, due) in books.sums().items():
            before = self.sums.get(currency, (0, 0, 0))
            self.sums[currency] = (before[0] + customers, before[1] + world, before[2] + due)

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
            pending=self.pending_count,
            wallets=self.wallet_count,
            currencies={code: CurrencyBooks(*sums) for code, sums in sorted(self.sums.items())},
            projected=sorted(self.projected, key=lambda shard: shard.shard_id),
            differences=list(self.differences.values()),
            counted=self.counted,
        )


def _fact(value: object) -> Fact:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, str | int) or value is None else repr(value)
