"""
A shard in the test's own process and event loop, on a real database.

It is the shard that runs in production, without its socket: frames go in by `send`, every reply
is kept, and the end of its process is the end of the object.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.wallet_shard import Phase, WalletShard
from configs.settings import ShardSettings
from processor.core.commands import Command
from processor.flow.frames import Answered, Reply, RequestFrame, Result
from processor.flow.ports import StoreUnavailable
from processor.storage.catalog import open_cluster, place_shards
from processor.storage.cluster import PostgresCluster
from processor.storage.shard_store import PostgresShardStore
from tests.support.waiting import until

RETRY_S = 0.05
SECRET = b"the secret of the tests"


class LocalShard:
    """
    One owner of shard 0, alone in its cluster. *ended* says why it ended, if it did; *endpoint* is
    what it publishes.
    """

    def __init__(self, dsn: str, settings: ShardSettings | None = None) -> None:
        self.ended: str | None = None
        self.is_placed = False
        self.endpoint = "unix:/nowhere"
        self.replies: dict[int, list[Reply]] = {}
        self._dsn = dsn
        self.store = PostgresShardStore(dsn, 0)
        self.shard = WalletShard(
            0,
            self.store,
            PostgresCluster(0, dsn, [dsn]),
            settings or ShardSettings(),
            secret=SECRET,
            build="test",
            publish_endpoint=lambda: self.endpoint,
            fatal=self._end,
        )
        self._task: asyncio.Task[None] | None = None
        self._frame_id = 0

    def _end(self, reason: str) -> None:
        self.ended = reason

    def launch(self) -> None:
        """
        Begin, without waiting until the shard serves.
        """
        self._task = asyncio.create_task(self._run())

    async def place(self) -> None:
        """
        Give the shard its place in the catalog, as the supervisor does; `launch` does it, too.
        """
        await place_shards(await open_cluster([self._dsn]), 1)
        self.is_placed = True

    async def _run(self) -> None:
        while not self.is_placed:
            try:
                await self.place()
            except StoreUnavailable:
                await asyncio.sleep(RETRY_S)
        await self.shard.run()

    async def start(self) -> None:
        """
        Begin, and wait until the shard serves, halts or ends.
        """
        self.launch()
        await until(lambda: self.ended or self.shard.phase is not Phase.RECOVERING, "recovery")

    def send(self, *commands: Command) -> int:
        """
        Offer a frame for the present epoch; its replies will be in `replies`.
        """
        self._frame_id += 1
        replies: list[Reply] = []
        self.replies[self._frame_id] = replies
        frame = RequestFrame(self._frame_id, 0, self.store.epoch, list(commands))
        self.shard.offer(frame, replies.append)
        return self._frame_id

    async def results(self, frame_id: int) -> list[Result]:
        """
        Wait for the answer of a frame.
        """
        await until(lambda: self.replies[frame_id] or self.ended, f"reply {frame_id}")
        assert self.replies[frame_id], f"no answer: {self.ended}"
        reply = self.replies[frame_id][0]
        assert isinstance(reply, Answered), reply
        return reply.results

    async def ask(self, *commands: Command) -> list[Result]:
        return await self.results(self.send(*commands))

    def answer_counts(self) -> set[int]:
        """
        Return the different numbers of replies that frames got; {1} when each got one.
        """
        return {len(replies) for replies in self.replies.values()}

    async def stop(self) -> None:
        """
        Let go at once, as a process that ends does.
        """
        await self.shard.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def owning(dsn: str, settings: ShardSettings | None = None) -> AsyncIterator[LocalShard]:
    """
    Run a shard that serves for the length of a block.
    """
    shard = LocalShard(dsn, settings)
    await shard.start()
    try:
        yield shard
    finally:
        await shard.stop()
