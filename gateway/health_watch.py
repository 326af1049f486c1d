"""
Does money move? One look at the shards and their tables.
"""

from __future__ import annotations

import asyncio
from typing import Literal, cast

from configs.settings import Settings
from gateway.shard_client import ShardClients
from gateway.wire import Health, ShardHealth
from processor.flow.ports import StoreUnavailable
from processor.storage.history import History, ShardProgress

REMEMBERED_S = 0.5


class HealthWatch:
    """
    Looks when asked, but not oftener than every `REMEMBERED_S`: anybody may ask.
    """

    def __init__(self, settings: Settings, shards: ShardClients, history: History) -> None:
        self._durability = settings.postgres.durability
        self._shards = shards
        self._history = history
        self._look: asyncio.Task[Health] | None = None
        self._look_ends = 0.0

    async def look(self) -> Health:
        loop = asyncio.get_running_loop()
        if self._look is None or (self._look.done() and loop.time() > self._look_ends):
            self._look = asyncio.create_task(self._read())
            self._look_ends = loop.time() + REMEMBERED_S
        return await asyncio.shield(self._look)

    async def _read(self) -> Health:
        try:
            shards = [self._shard(progress) for progress in await self._history.shards()]
            is_reachable = True
        except StoreUnavailable:
            shards = []
            is_reachable = False
        return Health(
            live=True,
            ready=bool(shards) and all(s.state == "active" and s.connected for s in shards),
            durability=self._durability,
            database="reachable" if is_reachable else "unreachable",
            shards=shards,
        )

    def _shard(self, progress: ShardProgress) -> ShardHealth:
        connected = {client.shard_id: client.connected for client in self._shards.statistics()}
        return ShardHealth(
            shard=progress.shard_id,
            state=cast("Literal['active', 'halted']", progress.state),
            connected=connected.get(progress.shard_id, False),
            epoch=progress.epoch,
            sequence=progress.sequence,
            projected_sequence=progress.projected_sequence,
            lag_records=progress.sequence - progress.projected_sequence,
            halted_for=progress.halted_for,
        )
