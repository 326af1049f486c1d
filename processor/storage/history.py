"""
What the tables of all databases tell together: wallets, entries, transfers, how far they are.

Rule 1: a wallet's entries are its transfers in the order of its own versions, from both sides
        and from every shard it has been at. Pages go by version, never by offset, so they are
        stable while entries are added. Versions are dense; a page that a version is missing
        from says so (`is_whole`), and is not to be shown.
Rule 2: a transfer that is durable is found, projected or not (see `transfer_search`).
Rule 3: system wallets are the ledger's own; they do not leave this floor by name.
Rule 4: a wallet that moves may have a row at both shards for a moment: the one with the higher
        version is the later one. Or none: then its shard knows.
Every method raises StoreUnavailable when a database it needs did not answer in time.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import TypeAlias, TypeVar

import asyncpg
import msgspec

from processor.core.wallet import is_system_wallet
from processor.flow.ports import StoreUnavailable
from processor.storage import transfer_search
from processor.storage.connection import create_pool
from processor.storage.recovery_view import PROJECTION
from processor.storage.session import STORE_ERRORS
from processor.storage.transfer_search import TransferFound

_ALL_VERSIONS = 2**63 - 1

_OWNERS = "SELECT wallet_id, merchant_id FROM wallets WHERE wallet_id = ANY($1)"

_ENTRY_COLUMNS = """
    transfer_id, type, amount, currency, reference, metadata, shard_id, sequence,
    (extract(epoch FROM at) * 1000000)::bigint AS at_us
"""

_ENTRIES = """
    SELECT * FROM (
        (SELECT source_version AS version, true AS is_debit, source_balance AS balance,
                coalesce(counterparty, destination) AS counterparty, {columns}
           FROM transfers
          WHERE source = $1 AND source_version > $2 AND source_version < $3
          ORDER BY source_version {order} LIMIT $4)
        UNION ALL
        (SELECT destination_version, false, destination_balance,
                coalesce(counterparty, source), {columns}
           FROM transfers
          WHERE destination = $1 AND destination_version > $2 AND destination_version < $3
          ORDER BY destination_version {order} LIMIT $4)
    ) AS both_sides
    ORDER BY version {order} LIMIT $4
"""
_ENTRIES_OLDEST_FIRST = _ENTRIES.format(columns=_ENTRY_COLUMNS, order="ASC")
_ENTRIES_NEWEST_FIRST = _ENTRIES.format(columns=_ENTRY_COLUMNS, order="DESC")

_WALLETS = """
    SELECT DISTINCT ON (wallets.wallet_id)
           wallets.wallet_id, wallets.merchant_id, wallets.currency, wallets.status,
           wallets.minimum, wallets.posted, wallets.version, wallets.shard_id,
           coalesce(watermark.sequence, 0) AS sequence, wallets.opened_at
      FROM wallets
      LEFT JOIN watermark ON watermark.shard_id = wallets.shard_id AND projection = $1
     WHERE {which}
     ORDER BY wallets.wallet_id, wallets.version DESC, wallets.opened_at DESC LIMIT {limit}
"""
_WALLET = _WALLETS.format(which="wallet_id = $2", limit="1")
_WALLET_PAGE = _WALLETS.format(which="merchant_id = $2 AND wallet_id > $3", limit="$4")

_WATERMARKS = "SELECT shard_id, sequence FROM watermark WHERE projection = $1"

_SHARDS = """
    SELECT shard.shard_id, shard.state, shard.epoch, shard.halted_for,
           coalesce((SELECT max(sequence) FROM journal
                      WHERE journal.shard_id = shard.shard_id), 0) AS sequence,
           coalesce(watermark.sequence, 0) AS projected_sequence
      FROM shard
      LEFT JOIN watermark ON watermark.shard_id = shard.shard_id AND projection = $1
     ORDER BY shard.shard_id
"""


class WalletRow(msgspec.Struct, frozen=True, gc=False):
    """
    A wallet as of the watermark, which is `sequence` of its shard.
    """

    wallet_id: str
    merchant_id: str
    currency: str
    status: int
    minimum: int
    posted: int
    version: int
    shard_id: int
    sequence: int


class EntryRow(msgspec.Struct, frozen=True, gc=False):
    """
    One entry of one wallet; `counterparty` is None for money from or to outside.
    """

    version: int
    is_debit: bool
    balance: int
    counterparty: str | None
    transfer_id: bytes
    transfer_type: int
    amount: int
    currency: str
    reference: str | None
    metadata: str | None
    shard_id: int
    sequence: int
    at_us: int


class ShardProgress(msgspec.Struct, frozen=True, gc=False):
    """
    A shard's row, the end of its journal, and how far its tables have come.
    """

    shard_id: int
    state: str
    epoch: int
    halted_for: str | None
    sequence: int
    projected_sequence: int


class Progress(msgspec.Struct, frozen=True):
    """
    The shards of the databases that answered, and how many others there are.
    """

    shards: list[ShardProgress]
    databases_down: int


class TransferSearch(msgspec.Struct, frozen=True):
    """
    The views of one transfer, the source's first. `missing` is why some databases were not
    asked: what is found is true all the same, but there may be more.
    """

    found: list[TransferFound]
    missing: StoreUnavailable | None


Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Rows: TypeAlias = "Sequence[asyncpg.Record]"
T = TypeVar("T")


class History:
    """
    Reads every database, on pools of its own; each read ends within *timeout_ms*.
    """

    def __init__(self, pools: Sequence[Pool], timeout_ms: int) -> None:
        self._pools = pools
        self._timeout_s = timeout_ms / 1000

    @classmethod
    async def open(cls, dsns: Sequence[str], *, connections_max: int, timeout_ms: int) -> History:
        """
        Open a pool for each database; raises what `connect` raises.
        """
        pools: list[Pool] = []
        try:
            for dsn in dsns:
                pool = await create_pool(
                    dsn,
                    application_name="miliano/history",
                    size_max=connections_max,
                    # Only reads run here, so that cutting one short leaves nothing in doubt.
                    server_settings={
                        "statement_timeout": str(timeout_ms),
                        "default_transaction_read_only": "on",
                    },
                )
                pools.append(pool)
        except BaseException:
            for pool in pools:
                pool.terminate()
            raise
        return cls(pools, timeout_ms)

    def close(self) -> None:
        for pool in self._pools:
            pool.terminate()

    async def wallet(self, wallet_id: str) -> WalletRow | None:
        """
        Read one wallet as of the watermark.
        """
        pages = await self._fetch_all(_WALLET, PROJECTION, wallet_id)
        return next(_latest(pages), None)

    async def wallets_of(self, merchant_id: str, *, after: str, limit: int) -> list[WalletRow]:
        """
        Read a merchant's wallets in the order of their ids, from behind *after* on.
        """
        pages = await self._fetch_all(_WALLET_PAGE, PROJECTION, merchant_id, after, limit)
        return list(islice(_latest(pages), limit))

    async def entries_after(self, wallet_id: str, version: int, limit: int) -> list[EntryRow]:
        """
        Read the entries above *version*, oldest first.
        """
        pages = await self._fetch_all(
            _ENTRIES_OLDEST_FIRST, wallet_id, version, _ALL_VERSIONS, limit
        )
        entries = [_entry(row) for rows in pages for row in rows]
        return sorted(entries, key=lambda entry: entry.version)[:limit]

    async def entries_before(
        self, wallet_id: str, version: int | None, limit: int
    ) -> list[EntryRow]:
        """
        Read the entries below *version*, or the last ones, newest first.
        """
        below = _ALL_VERSIONS if version is None else min(version, _ALL_VERSIONS)
        pages = await self._fetch_all(_ENTRIES_NEWEST_FIRST, wallet_id, 0, below, limit)
        entries = [_entry(row) for rows in pages for row in rows]
        return sorted(entries, key=lambda entry: -entry.version)[:limit]

    async def transfer(self, transfer_id: bytes) -> TransferSearch:
        """
        Find a transfer that is durable; nothing found means only that it is not so far.
        """
        looks = await asyncio.gather(
            *(self._search(pool, transfer_id) for pool in self._pools), return_exceptions=True
        )
        found, missing = _answers(looks)
        views = [view for views in found for view in views]
        owners = await self._owners(transfer_search.wallets_of(views))
        views = [transfer_search.with_owners(view, owners) for view in views]
        views.sort(key=lambda view: view.is_credit)
        return TransferSearch(views, missing[0] if missing else None)

    async def watermarks(self) -> dict[int, int]:
        """
        Read how far the tables of each shard have come.
        """
        pages = await self._fetch_all(_WATERMARKS, PROJECTION)
        return {row[0]: row[1] for rows in pages for row in rows}

    async def shards(self) -> Progress:
        """
        Read every shard's row and progress, as far as the databases answer.
        """
        looks = await asyncio.gather(
            *(self._fetch(pool, _SHARDS, PROJECTION) for pool in self._pools),
            return_exceptions=True,
        )
        pages, missing = _answers(looks)
        shards = [ShardProgress(*row) for rows in pages for row in rows]
        shards.sort(key=lambda shard: shard.shard_id)
        return Progress(shards, len(missing))

    async def _owners(self, wallet_ids: list[str]) -> dict[str, str]:
        if not wallet_ids:
            return {}
        looks = await asyncio.gather(
            *(self._fetch(pool, _OWNERS, wallet_ids) for pool in self._pools),
            return_exceptions=True,
        )
        pages, _ = _answers(looks)
        return {row[0]: row[1] for rows in pages for row in rows}

    async def _search(self, pool: Pool, transfer_id: bytes) -> list[TransferFound]:
        try:
            async with pool.acquire(timeout=self._timeout_s) as connection:
                return await transfer_search.search(connection, transfer_id)
        except STORE_ERRORS as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error

    async def _fetch_all(self, sql: str, *arguments: object) -> list[Rows]:
        """
        Ask every database at once; what one of them lacks would be missing without a trace.
        """
        if len(self._pools) == 1:
            return [await self._fetch(self._pools[0], sql, *arguments)]
        return await asyncio.gather(*(self._fetch(pool, sql, *arguments) for pool in self._pools))

    async def _fetch(self, pool: Pool, sql: str, *arguments: object) -> Rows:
        try:
            async with pool.acquire(timeout=self._timeout_s) as connection:
                rows: Rows = await connection.fetch(sql, *arguments)
                return rows
        except STORE_ERRORS as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


def is_whole(
    entries: Sequence[EntryRow], *, after: int | None, before: int | None, known: int, limit: int
) -> bool:
    """
    Say whether a page lacks no version: between its rows, before the first or behind the last.

    *known* is the wallet's version as the tables or its shard tell it. Shards are projected
    independently, so that what a wallet did before it moved can come later than what it did
    after.
    """
    versions = [entry.version for entry in entries]
    if after is not None:
        last = after + limit if len(versions) == limit else max(known, after, *versions)
        return versions == list(range(after + 1, last + 1))
    first = max(known, *versions, 0)
    if before is not None:
        first = min(before - 1, first)
    last = max(0, first - limit)
    return versions == list(range(first, last, -1))


def _latest(pages: Iterable[Rows]) -> Iterator[WalletRow]:
    """
    Merge pages in the order of ids, and of each wallet's rows yield the latest.
    """
    merged = heapq.merge(*pages, key=lambda row: row["wallet_id"])
    for _, rows in groupby(merged, key=lambda row: row["wallet_id"]):
        latest = max(rows, key=lambda row: (row["version"], row["opened_at"]))
        yield WalletRow(*latest[:-1])


def _answers(looks: Iterable[T | BaseException]) -> tuple[list[T], list[StoreUnavailable]]:
    """
    Part what was answered from what was not; raises the first other error.
    """
    answers, missing = [], []
    for look in looks:
        if isinstance(look, StoreUnavailable):
            missing.append(look)
        elif isinstance(look, BaseException):
            raise look
        else:
            answers.append(look)
    return answers, missing


def _entry(row: asyncpg.Record) -> EntryRow:
    entry = EntryRow(*row)
    if entry.counterparty is not None and is_system_wallet(entry.counterparty):
        return msgspec.structs.replace(entry, counterparty=None)
    return entry
