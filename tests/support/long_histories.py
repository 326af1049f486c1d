"""
Tables with a long past, made without a journal: consistent, spread over two years, and always the
same ones.

Five wallets have an eighth of all transfers each, one has a hundredth (100,000 of ten million), and
the rest is between many that have few.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, TypeAlias

import asyncpg

from processor.core.commands import TransferType
from processor.core.slots import slot_of
from processor.core.wallet import WalletStatus

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
TIME = timedelta(days=730)
END = BEGIN + TIME
MERCHANT = "acme"
CURRENCY = "EUR"
BUSY = [f"busy-{number}" for number in range(5)]
STATEMENT = "statement"  # The wallet with a hundredth of the transfers.
SEED = 10

HISTORY_INDEXES = ("transfers_by_source", "transfers_by_destination")
COPY_ROWS = 50_000
RECORD_TRANSFERS = 10

_TRANSFER_COLUMNS = (
    *("transfer_id", "shard_id", "sequence", "at", "type", "merchant_id", "key"),
    *("source", "source_version", "source_balance"),
    *("destination", "destination_version", "destination_balance"),
    *("currency", "amount", "reference"),
)
_WALLET_COLUMNS = (
    *("wallet_id", "shard_id", "merchant_id", "currency", "status", "minimum"),
    *("posted", "version", "opened_at", "slot"),
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Advance = Callable[[int], None]


class LongHistories:
    """
    The wallets of *count* transfers, as they are after those that were made so far.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.versions: dict[str, int] = {}
        self.balances: dict[str, int] = {}
        self._random = random.Random(SEED)
        self._small_count = max(100, count // 10)

    async def load(self, conn: Connection, advance: Advance = lambda _done: None) -> None:
        """
        Write the tables, a piece at a time, and have them analysed. The indexes of versions are
        made anew in the end, as they were: that is many times faster.
        """
        indexes = [await _dropped(conn, name) for name in HISTORY_INDEXES]
        rows = self.transfers()
        done = 0
        while piece := list(islice(rows, COPY_ROWS)):
            await conn.copy_records_to_table("transfers", records=piece, columns=_TRANSFER_COLUMNS)
            done += len(piece)
            advance(done)
        for definition in indexes:
            await conn.execute(definition)
        await conn.copy_records_to_table("wallets", records=self.wallets(), columns=_WALLET_COLUMNS)
        await self._write_progress(conn)
        for table in ("transfers", "wallets"):
            await conn.execute(f"VACUUM ANALYZE {table}")

    def transfers(self) -> Iterator[tuple[Any, ...]]:
        """
        Make the transfers in order.
        """
        step = TIME / self.count
        for number in range(self.count):
            source, destination = self._pair(number)
            amount = self._random.randrange(1, 1_000)
            yield (
                (number + 1).to_bytes(16),
                0,
                1 + number // RECORD_TRANSFERS,
                BEGIN + step * (number - number % RECORD_TRANSFERS),
                TransferType.TRANSFER,
                MERCHANT,
                (number + 1).to_bytes(16),
                source,
                *self._moved(source, -amount),
                destination,
                *self._moved(destination, amount),
                CURRENCY,
                amount,
                f"order {number}",
            )

    def wallets(self) -> Iterator[tuple[Any, ...]]:
        for wallet_id, version in self.versions.items():
            kept = (wallet_id, 0, MERCHANT, CURRENCY, WalletStatus.OPEN, -(2**53))
            yield (*kept, self.balances[wallet_id], version, BEGIN, slot_of(wallet_id))

    def _pair(self, number: int) -> tuple[str, str]:
        """
        Choose who pays whom: one of eight is between two wallets that have few.
        """
        first, second = self._random.sample(range(self._small_count), 2)
        one, other = f"small-{first}", f"small-{second}"
        if number % 100 == 0:
            one = STATEMENT
        elif number % 8 < len(BUSY):
            one = BUSY[number % 8]
        return (one, other) if self._random.random() < 0.5 else (other, one)

    def _moved(self, wallet_id: str, amount: int) -> tuple[int, int]:
        version = self.versions.get(wallet_id, 0) + 1
        balance = self.balances.get(wallet_id, 0) + amount
        self.versions[wallet_id], self.balances[wallet_id] = version, balance
        return version, balance

    async def _write_progress(self, conn: Connection) -> None:
        """
        Write the last record, and that the tables have it.
        """
        sequence = 1 + (self.count - 1) // RECORD_TRANSFERS
        at_us = int(END.timestamp()) * 1_000_000
        if sequence >= 1_000_000:
            await conn.execute(
                "CREATE TABLE journal_last PARTITION OF journal"
                f" FOR VALUES FROM ({sequence}) TO ({sequence + 1})"
            )
        await conn.execute(
            "INSERT INTO journal VALUES (0, $1, 1, $2, 0, 1, '', '')", sequence, at_us
        )
        await conn.execute("INSERT INTO watermark VALUES (0, 'tables', $1, '')", sequence)


async def _dropped(conn: Connection, index: str) -> str:
    """
    Drop an index and return how it is made.
    """
    definition: str = await conn.fetchval("SELECT pg_get_indexdef($1::regclass)", index)
    await conn.execute(f"DROP INDEX {index}")
    return definition
