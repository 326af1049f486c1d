"""
A shard in the test's own event loop, on the twin of its store: no socket, no server, no process.

The twin can be held: an append, a look at the fence or a read of the tables then stands still
until it is let go, as if the server took its time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from actors.wallet_shard import Phase, WalletShard
from configs.settings import ShardSettings
from processor.core.commands import Command
from processor.core.record import Record
from processor.core.state import Remembered, ShardState
from processor.core.wallet import Wallet
from processor.flow.frames import Answered, Reply, RequestFrame, Result
from processor.flow.ports import AppendInDoubt
from processor.storage.memory_store import MemoryDatabase, MemoryShardStore
from tests.support.waiting import until


class Hold:
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
    The twin with holds: `writes` for appends and looks at the fence, `settles`, `reads` for the
    tables and `pages` for the keys.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        super().__init__(database)
        self.writes, self.settles = Hold(), Hold()
        self.reads, self.pages = Hold(), Hold()
        self.abandoned = 0

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
        # A call on a dropped connection ends; later ones find the hold as it was.
        if self.writes.waiting:
            self.writes.open()

    async def load_wallets(self, wallet_ids: Iterable[str]) -> list[Wallet]:
        await self.reads.passed()
        return await super().load_wallets(wallet_ids)

    async def load_keys(self, keys: Iterable[bytes]) -> list[Remembered]:
        await self.reads.passed()
        return await super().load_keys(keys)

    async def key_pages(self) -> AsyncIterator[list[bytes]]:
        await self.pages.passed()
        async for page in super().key_pages():
            yield page


class MemoryShard:
    """
    One owner of shard 0. *ended* says why its process would have ended.
    """

    def __init__(
        self,
        database: MemoryDatabase | None = None,
        settings: ShardSettings | None = None,
        *,
        now_us: int | None = None,
    ) -> None:
        self.database = database or MemoryDatabase()
        self.store = HeldStore(self.database)
        self.ended: str | None = None
        self.replies: dict[int, list[Reply]] = {}
        self.delivered: list[Reply] = []  # All of them, as they came.
        self.now_us = now_us or 1_700_000_000_000_000
        self.shard = WalletShard(
            0,
            self.store,
            settings or ShardSettings(),
            build="test",
            publish_endpoint=lambda: "unix:/here",
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

    def send(self, *commands: Command, epoch: int | None = None, shard_id: int = 0) -> int:
        """
        Offer a frame, for the present epoch if not told else; replies will be in `replies`.
        """
        frame_id = next(self._frame_ids)
        replies = self.replies.setdefault(frame_id, [])

        def deliver(reply: Reply) -> None:
            replies.append(reply)
            self.delivered.append(reply)

        epoch = self.store.epoch if epoch is None else epoch
        self.shard.offer(RequestFrame(frame_id, shard_id, epoch, list(commands)), deliver)
        return frame_id

    async def reply(self, frame_id: int) -> Reply:
        """
        Wait for the one reply to a frame.
        """
        await until(lambda: self.replies[frame_id] or self.ended, f"reply {frame_id}")
        assert not self.ended, self.ended
        (reply,) = self.replies[frame_id]
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
