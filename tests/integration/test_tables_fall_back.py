"""
Goal: the tables are committed without waiting for the disk, so a crash of the server takes
      their last moment back; the shard that lived through it has forgotten nothing it needs.
Method: a server that flushes nothing by itself is killed right after the tables were seen to
        have everything; the shard has room for no wallet and hardly a key.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from configs.settings import ShardSettings, WriteBehindSettings
from processor.flow.frames import Posted, WalletFound
from processor.storage import embedded_postgres
from processor.storage.embedded_postgres import EmbeddedPostgres
from processor.storage.projection import Projection
from tests.support.books import read_balanced_tables
from tests.support.commands import deposit, open_wallet, read_wallet
from tests.support.databases import Databases, reading
from tests.support.local_shard import owning
from tests.support.waiting import until

SETTINGS = ShardSettings(wallets_max=0, keys_recent_max=1)


def test_what_the_tables_lose_is_still_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    The watermark that was seen is gone after the crash; the balance is not, and a key that was
    used is still used.
    """
    monkeypatch.setitem(embedded_postgres.SETTINGS, "wal_writer_delay", "10s")
    with EmbeddedPostgres(tmp_path / "pg") as server, Databases(server.dsn).migrated() as dsn:
        asyncio.run(lose_the_last_moment(server, dsn))


async def lose_the_last_moment(server: EmbeddedPostgres, dsn: str) -> None:
    first = deposit("a", 500, key="first")
    async with owning(dsn, SETTINGS) as shard:
        await shard.ask(open_wallet("a"))
        await shard.ask(first)
        await shard.ask(deposit("a", 7, key="second"))
        projection = Projection(dsn, 0, WriteBehindSettings())
        await projection.open()
        while await projection.step():
            pass
        projection.close()
        seen = projection.watermark
        await until(lambda: shard.shard.statistics().watermark == seen, "the watermark")
        # A read makes the shard look for something to forget, and flushes nothing.
        await shard.ask(read_wallet("a"))
        server.kill()
        server.start()
        assert await watermark(dsn) < seen

        (found,) = await shard.ask(read_wallet("a"))
        assert isinstance(found, WalletFound)
        assert (found.posted, found.version) == (507, 2)
        (again,) = await shard.ask(first)
        assert isinstance(again, Posted)
        assert again.repeated

        await projection.open()
        while await projection.step():
            pass
        projection.close()
        await read_balanced_tables(dsn)


async def watermark(dsn: str) -> int:
    async with reading(dsn) as connection:
        return int(await connection.fetchval("SELECT coalesce(max(sequence), 0) FROM watermark"))
