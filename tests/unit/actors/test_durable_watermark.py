"""
Goal: nothing is forgotten that a crash of the database could take out of the tables again.
Method: a shard with room for almost no wallets and keys, on the twin whose tables fall back to
        the last flush when it crashes, as Postgres' do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from actors.wallet_shard import WalletShard
from configs.settings import ShardSettings
from processor.core.commands import Command, MoveMoney, OpenWallet, ReadWallet, TransferType
from processor.flow.frames import Answered, Posted, Reply, RequestFrame, Result, WalletFound
from processor.storage.memory_store import (
    MemoryCatalog,
    MemoryCluster,
    MemoryDatabase,
    MemoryShardStore,
)
from tests.support.memory_shard import SECRET

SETTINGS = ShardSettings(wallets_max=0, keys_recent_max=1)


class Ledger:
    """
    A running shard on a twin database.
    """

    def __init__(self) -> None:
        self.database = MemoryDatabase()
        self.store = MemoryShardStore(self.database)
        self.fatal: list[str] = []
        self.shard = WalletShard(
            0,
            self.store,
            MemoryCluster(MemoryCatalog([self.database]), 0),
            SETTINGS,
            secret=SECRET,
            build="test",
            publish_endpoint=lambda: "unix:/nowhere",
            fatal=self.fatal.append,
        )
        self._frame_id = 0

    async def ask(self, command: Command) -> Result:
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._frame_id += 1
        frame = RequestFrame(self._frame_id, 0, self.store.epoch, [command])
        self.shard.offer(frame, answer.set_result)
        reply = await asyncio.wait_for(answer, 5)
        assert isinstance(reply, Answered)
        return reply.results[0]

    async def watermark_seen(self, sequence: int) -> None:
        async with asyncio.timeout(5):
            while self.shard.statistics().watermark < sequence:
                await asyncio.sleep(0.01)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    ledger = Ledger()
    running = asyncio.create_task(ledger.shard.run())
    await asyncio.wait_for(ledger.shard.running.wait(), 5)
    yield ledger
    await ledger.shard.stop()
    await asyncio.gather(running, return_exceptions=True)


def deposit(number: int, wallet_id: str, amount: int) -> MoveMoney:
    name = number.to_bytes(16, "big")
    return MoveMoney(TransferType.DEPOSIT, name, name, "m", "", wallet_id, "EUR", amount)


async def test_a_wallet_survives_the_tables_falling_back(ledger: Ledger) -> None:
    """
    The tables showed the deposit, lost it again, and the shard still knows the balance.
    """
    await ledger.ask(OpenWallet("m", "w1", "EUR"))
    await ledger.ask(deposit(1, "w1", 500))
    ledger.database.project()
    await ledger.watermark_seen(len(ledger.database.journal))
    # A read makes the shard look for something to evict; the crash comes right after it.
    await ledger.ask(ReadWallet("m", "w1"))
    ledger.database.crash()

    found = await ledger.ask(ReadWallet("m", "w1"))

    assert isinstance(found, WalletFound)
    assert found.posted == 500
    assert not ledger.fatal


async def test_a_key_survives_the_tables_falling_back(ledger: Ledger) -> None:
    """
    A repeat after the fall-back is a repeat, not a second payment.
    """
    await ledger.ask(OpenWallet("m", "w1", "EUR"))
    first = await ledger.ask(deposit(1, "w1", 500))
    ledger.database.project()
    await ledger.watermark_seen(len(ledger.database.journal))
    # The second deposit pushes the first one's key out while the database goes down under it.
    ledger.database.fail_next_append = "crash"
    await ledger.ask(deposit(2, "w1", 7))

    again = await ledger.ask(deposit(1, "w1", 500))

    assert isinstance(first, Posted)
    assert isinstance(again, Posted)
    assert again.repeated
    assert again.balance == 500  # As it was then.


async def test_memory_is_given_back_once_the_tables_are_flushed(ledger: Ledger) -> None:
    """
    The bound is kept: after later appends the old wallets leave memory.
    """
    for number in range(5):
        await ledger.ask(OpenWallet("m", f"w{number}", "EUR"))
    ledger.database.project()
    await ledger.watermark_seen(len(ledger.database.journal))
    async with asyncio.timeout(5):
        number = 10
        while ledger.shard.statistics().wallets_in_memory > 2:
            await ledger.ask(deposit(number, "w0", 1))
            ledger.database.project()
            number += 1
            await asyncio.sleep(0.02)
