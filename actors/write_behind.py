"""
The write-behind of one database: a projection a shard, each in its own task.

A failure of the database opens the projection again; a journal that cannot be told as tables halts
its shard and leaves the others alone.
"""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from configs.settings import WriteBehindSettings
from processor.core.record import BrokenChain
from processor.flow.ports import StoreUnavailable
from processor.storage.connection import SilentRollback
from processor.storage.directory import Directory, ShardEntry
from processor.storage.projection import Projection, Unprojectable, WatermarkMoved
from processor.storage.session import STORE_ERRORS
from processor.storage.shard_store import PostgresShardStore

RETRY_S = 0.2

log = structlog.get_logger("write_behind")


class WriteBehindStatistics(msgspec.Struct, frozen=True):
    """
    A moment of the write-behind: how far each shard's tables have come.
    """

    watermarks: dict[int, int]
    halted: dict[int, str]


class WriteBehind:
    """
    Projects every shard of one database, for ever.
    """

    def __init__(self, dsn: str, settings: WriteBehindSettings) -> None:
        self._dsn = dsn
        self._settings = settings
        self._projections: dict[int, Projection] = {}
        self._halted: dict[int, str] = {}
        self._tasks = asyncio.TaskGroup()  # An error that nobody expected ends all of them.
        self._directory = Directory(dsn, self._entries_changed)

    async def run(self) -> None:
        async with self._tasks:
            await self._directory.run()

    def _entries_changed(self, entries: list[ShardEntry]) -> None:
        for entry in entries:
            if entry.shard_id not in self._projections:
                projection = Projection(self._dsn, entry.shard_id, self._settings)
                self._projections[entry.shard_id] = projection
                self._tasks.create_task(self._follow(projection))

    async def _follow(self, projection: Projection) -> None:
        while True:
            try:
                await projection.open()
                await self._step_for_ever(projection)
            except (BrokenChain, Unprojectable) as refusal:
                await self._halt(projection.shard_id, str(refusal))
                return
            except (*STORE_ERRORS, WatermarkMoved, SilentRollback) as error:
                log.warning(
                    "projection opens again",
                    shard_id=projection.shard_id,
                    error=f"{type(error).__name__}: {error}",
                )
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("projection failed", shard_id=projection.shard_id)
                raise
            finally:
                projection.close()

    async def _step_for_ever(self, projection: Projection) -> None:
        # A pause between rounds makes them larger: each costs a transaction, whatever its size.
        pause_ms = self._settings.pause_ms
        while True:
            if await projection.step():
                pause_ms = self._settings.pause_ms
                if projection.cut_short:
                    continue
            else:
                pause_ms = min(pause_ms * 2, self._settings.pause_ms_max)
            await asyncio.sleep(pause_ms / 1000)

    async def _halt(self, shard_id: int, reason: str) -> None:
        log.critical("projection refused, shard halts", shard_id=shard_id, reason=reason)
        self._halted[shard_id] = reason
        store = PostgresShardStore(self._dsn, shard_id)
        while True:
            try:
                await store.halt(f"write-behind refused: {reason}")
            except StoreUnavailable:
                await asyncio.sleep(RETRY_S)
            else:
                await store.close()
                return

    def statistics(self) -> WriteBehindStatistics:
        return WriteBehindStatistics(
            watermarks={
                shard_id: projection.watermark for shard_id, projection in self._projections.items()
            },
            halted=dict(self._halted),
        )
