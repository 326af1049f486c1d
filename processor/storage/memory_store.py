"""
The in-memory twin of the shard store, for tests that need no server.

It keeps the same promises as Postgres, and one suite holds both to them. What Postgres would
keep lives in `MemoryDatabase`; a `MemoryShardStore` is one owner's view of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from processor.core.apply import apply
from processor.core.decisions import decode_decisions
from processor.core.record import GENESIS_CHAIN, Record
from processor.core.state import Remembered, ShardState
from processor.core.wallet import Wallet
from processor.flow.ports import AppendInDoubt, Fenced, ShardHalted, StoreUnavailable


class MemoryDatabase:
    """
    One shard's rows: ownership, journal, and the tables as of the watermark.

    `fail_next_append` is None, "lost" (not written), "hidden" (written, answer lost) or "crash"
    (not written, and the tables fall back to the last flush).
    """

    def __init__(self, shard_id: int = 0) -> None:
        self.shard_id = shard_id
        self.epoch = 0
        self.halted_for: str | None = None
        self.endpoint: tuple[str, int] | None = None
        self.journal: list[Record] = []
        self.watermark = 0
        self.tables = ShardState(shard_id)
        self._flushed_watermark = 0
        self.available = True
        self.fail_next_append: str | None = None

    def project(self, records_max: int | None = None) -> int:
        """
        Move the tables behind the journal by up to *records_max* records.
        """
        behind = self.journal[self.watermark :][:records_max]
        for record in behind:
            for decision in decode_decisions(record.payload, record.format):
                apply(self.tables, decision, record.sequence, record.at_us)
            self.watermark = record.sequence
        return len(behind)

    def add(self, record: Record) -> None:
        """
        Write a record; its flush covers everything before it.
        """
        assert record.sequence == len(self.journal) + 1, "the journal has a gap"
        self.journal.append(record)
        self._flushed_watermark = self.watermark

    def crash(self) -> None:
        """
        Lose what was committed without waiting for the disk: the tables fall back.
        """
        flushed, self.watermark = self._flushed_watermark, 0
        self.tables = ShardState(self.shard_id)
        self.project(flushed)


class MemoryShardStore:
    """
    Keeps the promises of `ShardStore` in memory.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        self.epoch = 0
        self._database = database
        self._connected = False

    async def take_over(self, *, build: str) -> int:  # noqa: ARG002
        self._reach()
        if self._database.halted_for is not None:
            raise ShardHalted(self._database.halted_for)
        self._database.epoch += 1
        self._database.endpoint = None
        self.epoch = self._database.epoch
        self._connected = True
        return self.epoch

    @asynccontextmanager
    async def recovery_view(self) -> AsyncIterator[MemoryRecoveryView]:
        self._reach()
        yield MemoryRecoveryView(self._database)

    async def append(self, record: Record) -> None:
        database = self._database
        if not self._connected or not database.available:
            self._connected = False
            raise AppendInDoubt("no connection")
        assert record.epoch == self.epoch, "a record of another epoch"
        self._check_owner()
        failure, database.fail_next_append = database.fail_next_append, None
        if failure == "crash":
            database.crash()
        elif failure != "lost":
            database.add(record)
        if failure is not None:
            self._connected = False
            raise AppendInDoubt(failure)

    async def settle(self, record: Record) -> bool:
        await self.restore_connection()
        if len(self._database.journal) < record.sequence:
            return False
        if self._database.journal[record.sequence - 1].chain != record.chain:
            raise Fenced("written by somebody else")
        return True

    async def restore_connection(self) -> None:
        self._reach()
        self._check_owner()
        self._database.epoch += 1
        self._database.endpoint = None
        self.epoch = self._database.epoch
        self._connected = True

    async def check_fence(self) -> None:
        if not self._connected or not self._database.available:
            self._connected = False
            raise AppendInDoubt("no connection")
        self._check_owner()

    def abandon(self) -> None:
        self._connected = False

    async def load_wallets(self, wallet_ids: Iterable[str]) -> list[Wallet]:
        self._reach()
        return _copies(self._database.tables, wallet_ids)

    async def load_keys(self, keys: Iterable[bytes]) -> list[Remembered]:
        self._reach()
        found = (self._database.tables.keys.find(key) for key in keys)
        return [remembered for remembered in found if remembered is not None]

    async def key_pages(self) -> AsyncIterator[list[bytes]]:
        self._reach()
        yield list(self._database.tables.keys.young)

    async def read_watermark(self) -> int:
        self._reach()
        return self._database.watermark

    async def publish(self, *, endpoint: str, pid: int) -> None:
        self._reach()
        self._check_owner()
        self._database.endpoint = (endpoint, pid)

    async def halt(self, reason: str) -> None:
        self._reach()
        self._database.halted_for = reason
        self._database.endpoint = None

    async def prepare_journal(self, sequence: int) -> None:
        """
        A list has room.
        """

    async def close(self) -> None:
        self._connected = False

    def _reach(self) -> None:
        if not self._database.available:
            raise StoreUnavailable("the database is down")

    def _check_owner(self) -> None:
        if self._database.epoch != self.epoch or self._database.halted_for is not None:
            raise Fenced(f"epoch {self.epoch} is over")


class MemoryRecoveryView:
    """
    The tables and the journal behind them, as they were when the view was opened.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        self._tail = database.journal[database.watermark :]
        self._tables = ShardState(database.shard_id)
        for wallet in _copies(database.tables, database.tables.wallets):
            self._tables.load(wallet)
        self.watermark = database.watermark
        self.watermark_chain = GENESIS_CHAIN
        self.watermark_at_us = 0
        self.watermark_epoch = 0
        if self.watermark:
            last = database.journal[self.watermark - 1]
            self.watermark_chain = last.chain
            self.watermark_at_us = last.at_us
            self.watermark_epoch = last.epoch

    async def records(self) -> AsyncIterator[Record]:
        for record in self._tail:
            yield record

    async def load_wallets(self, wallet_ids: Iterable[str]) -> list[Wallet]:
        return _copies(self._tables, wallet_ids)


def _copies(tables: ShardState, wallet_ids: Iterable[str]) -> list[Wallet]:
    found = (tables.wallets.get(wallet_id) for wallet_id in wallet_ids)
    return [
        Wallet(
            wallet.wallet_id,
            wallet.merchant_id,
            wallet.currency,
            status=wallet.status,
            minimum=wallet.minimum,
            posted=wallet.posted,
            version=wallet.version,
        )
        for wallet in found
        if wallet is not None
    ]
