"""
What the tables of all databases tell together: wallets, entries, transfers, how far they are.

Rule 1: a wallet's past is read by spans of its versions (see `entries`), never by offset, so
        that pages are stable while entries are added. From a history that a version is missing
        from nothing is told: the answer is None.
Rule 2: a transfer that is durable is found, projected or not (see `transfer_search`).
Rule 3: system wallets are the ledger's own; they do not leave this floor by name.
Rule 4: a wallet that moves may have a row at both shards for a moment: the one with the higher
        version is the later one. Or none: then its shard knows.
Every method raises StoreUnavailable when a database it needs did not answer in time.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from typing import TypeAlias, TypeVar

import asyncpg
import msgspec

from processor.core.limits import Limits, Usage
from processor.flow.ports import StoreUnavailable
from processor.storage import entries, transfer_found, transfer_search
from processor.storage.connection import Connection, create_pool
from processor.storage.entries import NOTHING_YET, EntryFilter, EntryRow, PastBalance, Rows, Span
from processor.storage.hold_listing import HOLDS_OF_WALLET, ListedHold, each_once
from processor.storage.recovery_view import PROJECTION
from processor.storage.session import STORE_ERRORS
from processor.storage.transfer_found import TransferFound
from processor.storage.wallet_rows import limits_from_row, usage_from_row

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_OWNERS = "SELECT wallet_id, merchant_id FROM wallets WHERE wallet_id = ANY($1)"

_WALLETS = """
    SELECT DISTINCT ON (wallets.wallet_id)
           wallets.wallet_id, wallets.merchant_id, wallets.currency, wallets.status,
           wallets.minimum, wallets.posted, wallets.version, wallets.shard_id,
           coalesce(watermark.sequence, 0) AS sequence, wallets.limits, wallets.usage,
           wallets.opened_at
      FROM wallets
      LEFT JOIN watermark ON watermark.shard_id = wallets.shard_id AND projection = $1
     WHERE {which}
     ORDER BY wallets.wallet_id, wallets.version DESC, wallets.opened_at DESC LIMIT {limit}
"""
_WALLET = _WALLETS.format(which="wallet_id = $2", limit="1")
_WALLET_PAGE = _WALLETS.format(which="merchant_id = $2 AND wallet_id > $3", limit="$4")

# A merchant's fees are in wallets of its own, but of the ledger's making: their ids begin with a $.
_BEHIND_SYSTEM_WALLETS = "%"

_AS_OF = "SELECT at_us FROM journal WHERE shard_id = $1 AND sequence = $2"

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
    limits: Limits | None = None
    usage: Usage | None = None


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
        after = max(after, _BEHIND_SYSTEM_WALLETS)
        pages = await self._fetch_all(_WALLET_PAGE, PROJECTION, merchant_id, after, limit)
        return list(islice(_latest(pages), limit))

    async def holds_of(
        self, merchant_id: str, wallet_id: str, *, status: int | None, after: bytes, limit: int
    ) -> list[ListedHold]:
        """
        Read a wallet's holds, of one status or all, from behind *after* on, the oldest first.
        """
        pages = await self._fetch_all(HOLDS_OF_WALLET, wallet_id, merchant_id, after, status, limit)
        return list(islice(each_once(pages), limit))

    async def last_version(self, wallet_id: str) -> int:
        """
        Read how many entries of a wallet the tables have, also while it has no row in them.
        """
        pages = await self._fetch_all(entries.LAST_VERSION, wallet_id)
        return max((rows[0][0] or 0 for rows in pages), default=0)

    async def entries(self, wallet_id: str, span: Span) -> list[EntryRow] | None:
        """
        Read the entries of *span*, oldest first; None when one of them is missing.
        """
        if not span.size:
            return []
        bounds = (span.first, span.last, span.size)
        rows = entries.in_order(await self._fetch_all(entries.ENTRIES, wallet_id, *bounds))
        return rows if entries.is_whole(rows, span) else None

    async def entries_chosen(
        self, wallet_id: str, span: Span, only: EntryFilter, *, limit: int, newest_first: bool
    ) -> list[EntryRow] | None:
        """
        Read the first entries of *span*, or its last, that *only* lets pass, up to *limit*; None
        when an entry of the span is missing, whether it would pass or not.
        """
        if not span.size:
            return []
        sql = entries.CHOSEN_NEWEST_FIRST if newest_first else entries.CHOSEN_OLDEST_FIRST
        wanted = (only.transfer_type, only.reference, limit)
        pages = await self._fetch_all(sql, wallet_id, span.first, span.last, *wanted)
        if not entries.looked_at_whole(pages, span):
            return None
        rows = sorted(entries.chosen(pages), key=lambda entry: entry.version, reverse=newest_first)
        return rows[:limit]

    async def balance_of_version(self, wallet_id: str, version: int) -> PastBalance | None:
        """
        Read what a wallet had behind the entry *version*; None when that is not in the tables.
        """
        if version == 0:
            return NOTHING_YET
        rows = await self.entries(wallet_id, Span(version, version))
        return None if rows is None else _behind(rows[0])

    async def balance_at(self, wallet_id: str, at_us: int, *, known: int) -> PastBalance | None:
        """
        Read what a wallet had at an instant: behind its last entry that is not later. *known* is
        its version as the tables have it; None when the entry that comes next is missing.

        Clocks of two shards may differ: an instant at which a wallet moved is as exact as they.
        """
        last = NOTHING_YET
        while True:
            version = await self._version_at(wallet_id, at_us, last.version)
            span = Span(max(1, version), max(version, min(version + 1, known)))
            rows = await self.entries(wallet_id, span)
            if rows is None:
                return None
            if version:
                last = _behind(rows[0])
            if not rows or rows[-1].version == version or rows[-1].at_us > at_us:
                return last
            # It came while this was looking, or from a shard whose clock is behind.
            last = _behind(rows[-1])

    async def as_of(self, wallet: WalletRow) -> int | None:
        """
        Read the time of the last record that the tables of a wallet's shard have.
        """
        pages = await self._fetch_all(_AS_OF, wallet.shard_id, wallet.sequence)
        return next((row[0] for rows in pages for row in rows), None)

    async def transfer(self, transfer_id: bytes) -> TransferSearch:
        """
        Find a transfer that is durable; nothing found means only that it is not so far.
        """
        found, missing = await self.each(lambda conn: transfer_search.search(conn, transfer_id))
        views = await self.owned([view for views in found for view in views])
        return TransferSearch(transfer_found.in_order(views), missing)

    async def owned(self, views: list[TransferFound]) -> list[TransferFound]:
        """
        Fill in whose wallets they are, as far as the tables know.
        """
        owners = await self._owners(transfer_found.wallets_of(views))
        return [transfer_found.with_owners(view, owners) for view in views]

    async def each(
        self, read: Callable[[Connection], Awaitable[T]]
    ) -> tuple[list[T], StoreUnavailable | None]:
        """
        Read something in every database that answers, and say why one did not, if so.
        """
        looks = await asyncio.gather(
            *(self._read(pool, read) for pool in self._pools), return_exceptions=True
        )
        found, missing = _answers(looks)
        return found, missing[0] if missing else None

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

    async def _version_at(self, wallet_id: str, at_us: int, above: int) -> int:
        """
        Find the last version above *above* that is not later than an instant, or else *above*.
        """
        instant = _EPOCH + timedelta(microseconds=at_us)
        pages = await self._fetch_all(entries.VERSION_AT, wallet_id, instant, above)
        return max((int(rows[0][0]) for rows in pages), default=above)

    async def _owners(self, wallet_ids: list[str]) -> dict[str, str]:
        if not wallet_ids:
            return {}
        looks = await asyncio.gather(
            *(self._fetch(pool, _OWNERS, wallet_ids) for pool in self._pools),
            return_exceptions=True,
        )
        pages, _ = _answers(looks)
        return {row[0]: row[1] for rows in pages for row in rows}

    async def _read(self, pool: Pool, read: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            async with pool.acquire(timeout=self._timeout_s) as connection:
                return await read(connection)
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


def _latest(pages: Iterable[Rows]) -> Iterator[WalletRow]:
    """
    Merge pages in the order of ids, and of each wallet's rows yield the latest.
    """
    merged = heapq.merge(*pages, key=lambda row: row["wallet_id"])
    for _, rows in groupby(merged, key=lambda row: row["wallet_id"]):
        latest = max(rows, key=lambda row: (row["version"], row["opened_at"]))
        yield msgspec.structs.replace(
            WalletRow(*latest[:-3]),
            limits=limits_from_row(latest["limits"]),
            usage=usage_from_row(latest["usage"]),
        )


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


def _behind(entry: EntryRow) -> PastBalance:
    return PastBalance(entry.version, entry.balance, entry.at_us)
