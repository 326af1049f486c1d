"""
A shard in the test's own event loop, on the twin of its store: no socket, no server, no process.

The twin can be held: an append, a look at the fence or a read of the tables then stands still
until it is let go, as if the server took its time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from actors.wallet_shard import Phase, WalletShard
from configs.settings import ShardSettings
from processor.core.commands import Command
from processor.core.hold import Hold, RefundTotal
from processor.core.record import Record
from processor.core.state import Remembered, ShardState
from processor.core.wallet import Wallet
from processor.flow.frames import Answered, Reply, RequestFrame, Result, Settled
from processor.flow.ports import AppendInDoubt
from processor.storage.memory_store import (
    MemoryCatalog,
    MemoryCluster,
    MemoryDatabase,
    MemoryShardStore,
)
from tests.support.waiting import until

SECRET = b"the secret of the tests"


class Door:
    """
    A place where calls stand still while it is closed.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._open = asyncio.Event()
        self._open.set()

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def open_once(self) -> None:
        """
        Let go of who stands here, and close again.
        """
        self._open.set()
        self._open = asyncio.Event()

    async def passed(self) -> None:
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1

    async def reached(self) -> None:
        """
        Wait until somebody stands here.
        """
        await until(lambda: self.waiting, "a call that is held")


class HeldStore(MemoryShardStore):
    """
    The twin with doors: `writes` for appends and looks at the fence, `settles`, `reads` for the
    tables and `pages` for the keys.
    """

    def __init__(self, database: MemoryDatabase, others: Sequence[MemoryDatabase] = ()) -> None:
        super().__init__(database, others)
        self.writes, self.settles = Door(), Door()
        self.reads, self.pages = Door(), Door()
        self.abandoned = 0
        self.refunds_asked = 0

    async def append(self, record: Record) -> None:
        abandoned = self.abandoned
        await self.writes.passed()
        if abandoned != self.abandoned:
            raise AppendInDoubt("the connection was dropped")
        await super().append(record)

    async def settle(self, record: Record) -> bool:
        await self.settles.passed()
        return await super().settle(record)

    async def check_fence(self) -> None:
        await self.writes.passed()
        await super().check_fence()

    def abandon(self) -> None:
        super().abandon()
        self.abandoned += 1
        # A call on a dropped connection ends; later ones find the door as it was.
        if self.writes.waiting:
            self.writes.open()

    async def load_wallets(self, wallet_ids: Iterable[str]) -> list[Wallet]:
        await self.reads.passed()
        return await super().load_wallets(wallet_ids)

    async def load_holds(
        self, hold_ids: Iterable[bytes], *, everywhere: bool = False
    ) -> list[Hold]:
        await self.reads.passed()
        return await super().load_holds(hold_ids, everywhere=everywhere)

    async def load_refunds(
        self, transfer_ids: Iterable[bytes], *, everywhere: bool = False
    ) -> list[RefundTotal]:
        self.refunds_asked += 1
        await self.reads.passed()
        return await super().load_refunds(transfer_ids, everywhere=everywhere)

    async def load_keys(
        self, keys: Iterable[bytes], *, everywhere: bool = False
    ) -> list[Remembered]:
        await self.reads.passed()
        return await super().load_keys(keys, everywhere=everywhere)

    async def key_pages(self, *, everywhere: bool = False) -> AsyncIterator[list[bytes]]:
        await self.pages.passed()
        async for page in super().key_pages(everywhere=everywhere):
            yield page


class MemoryShard:
    """
    One owner of the shard of *database*, alone in its cluster unless *catalog* says else. *ended*
    says why its process would have ended; *endpoint* is what it publishes.
    """

    def __init__(
        self,
        database: MemoryDatabase | None = None,
        settings: ShardSettings | None = None,
        *,
        catalog: MemoryCatalog | None = None,
        now_us: int | None = None,
    ) -> None:
        self.database = database or MemoryDatabase()
        self.shard_id = self.database.shard_id
        self.endpoint = "unix:/here"
        catalog = catalog or MemoryCatalog([self.database])
        others = [one for one in catalog.databases.values() if one is not self.database]
        self.store = HeldStore(self.database, others)
        self.ended: str | None = None
        self.replies: dict[int, list[Reply]] = {}
        self.delivered: list[Reply] = []  # All of them, as they came.
        self.settled: list[Result] = []  # What was told unasked.
        self.now_us = now_us or 1_700_000_000_000_000
        self.shard = WalletShard(
            self.shard_id,
            self.store,
            MemoryCluster(catalog, self.shard_id),
            settings or ShardSettings(),
            secret=SECRET,
            build="test",
            publish_endpoint=lambda: self.endpoint,
            clock_us=lambda: self.now_us,
            fatal=self._end,
        )
        self._task: asyncio.Task[None] | None = None
        self._frame_ids = itertools.count(1)

    def _end(self, reason: str) -> None:
        self.ended = reason

    @property
    def state(self) -> ShardState:
        return self.shard._state

    @property
    def sequence(self) -> int:
        return self.shard.statistics().sequence

    def launch(self) -> None:
        """
        Begin, without waiting until the shard serves.
        """
        self._task = asyncio.create_task(self.shard.run())

    async def start(self) -> None:
        """
        Begin, and wait until the shard serves, halts or ends.
        """
        self.launch()
        await until(lambda: self.ended or self.shard.phase is not Phase.RECOVERING, "recovery")

    async def stop(self) -> None:
        """
        Let go at once, as a process that ends does.
        """
        await self.shard.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def send(
        self, *commands: Command, epoch: int | None = None, shard_id: int | None = None
    ) -> int:
        """
        Offer a frame, for the present epoch if not told else; replies will be in `replies`.
        """
        frame_id = next(self._frame_ids)
        replies = self.replies.setdefault(frame_id, [])

        def deliver(reply: Reply) -> None:
            self.delivered.append(reply)
            if isinstance(reply, Settled):
                self.settled.extend(reply.results)
            else:
                replies.append(reply)

        epoch = self.store.epoch if epoch is None else epoch
        shard_id = self.shard_id if shard_id is None else shard_id
        self.shard.offer(RequestFrame(frame_id, shard_id, epoch, list(commands)), deliver)
        return frame_id

    async def reply(self, frame_id: int) -> Reply:
        """
        Wait for the one reply to a frame.
        """
        await until(lambda: self.replies[frame_id] or self.ended, f"reply {frame_id}")
        assert not self.ended, self.ended
        (reply,) = self.replies[frame_id]
        assert not isinstance(reply, Settled)
        assert reply.frame_id == frame_id
        return reply

    async def results(self, frame_id: int) -> list[Result]:
        reply = await self.reply(frame_id)
        assert isinstance(reply, Answered), reply
        return reply.results

    async def ask(self, *commands: Command) -> list[Result]:
        return await self.results(self.send(*commands))

    async def decided(self) -> None:
        """
        Wait until nothing that was taken in is undecided.
        """
        await until(lambda: self.shard.statistics().queued_commands == 0, "the queue to empty")

    async def projected(self, records_max: int | None = None) -> None:
        """
        Move the tables behind the journal, and wait until the shard has seen it.
        """
        self.database.project(records_max)
        seen = self.database.watermark
        await until(lambda: self.shard.statistics().watermark == seen, "the watermark")


@asynccontextmanager
async def owning(
    database: MemoryDatabase | None = None, settings: ShardSettings | None = None
) -> AsyncIterator[MemoryShard]:
    """
    Run a shard that serves for the length of a block.
    """
    shard = MemoryShard(database, settings)
    await shard.start()
    try:
        yield shard
    finally:
        await shard.stop()
