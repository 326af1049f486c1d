"""
Does money move? One look at the shards and their tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, cast

from configs.settings import Settings
from gateway.shard_clients import ShardClients
from gateway.wire import Health, ShardHealth
from processor.storage.history import History, Progress, ShardProgress

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
        progress = await self._history.shards()
        shards = [self._shard(shard) for shard in progress.shards]
        return Health(
            live=True,
            ready=self._is_ready(progress, shards),
            durability=self._durability,
            database="unreachable" if progress.databases_down else "reachable",
            shards=shards,
        )

    def _is_ready(self, progress: Progress, shards: Sequence[ShardHealth]) -> bool:
        """
        Say whether every wallet can be reached: each shard that has slots, or had.
        """
        return (
            self._shards.knows_slots
            and not progress.databases_down
            and all(shard.state == "active" for shard in shards)
            and all(client.connected for client in self._shards.statistics())
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
