"""
The map of slots in the catalog: where each was last seen.

Rule: a row moves only to a later generation, so whoever comes late with old news changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import asyncpg

from processor.core.slots import NOWHERE, SLOT_COUNT, SlotMap

SLOTS_CHANNEL = "miliano_slots"  # Notified when the map changes.

_SLOTS = "SELECT slot, shard_id, generation FROM slot_map"

_VERSION = "SELECT coalesce(sum(generation), 0)::bigint FROM slot_map"

_NOTE = """
    WITH noted AS (
        INSERT INTO slot_map AS seen (slot, shard_id, generation)
        SELECT taken.slot, $1, taken.generation
          FROM unnest($2::int[], $3::int[]) AS taken (slot, generation)
        ON CONFLICT (slot) DO UPDATE
           SET shard_id = excluded.shard_id, generation = excluded.generation
         WHERE seen.generation < excluded.generation
        RETURNING slot
    )
    SELECT pg_notify($4, '') FROM noted LIMIT 1
"""


async def slots_on(connection: asyncpg.Connection[Any]) -> SlotMap:
    """
    Read the whole map; a slot that is not in it is nowhere, in generation 0.
    """
    seen = SlotMap([NOWHERE] * SLOT_COUNT, [0] * SLOT_COUNT)
    for slot, shard_id, generation in await connection.fetch(_SLOTS):
        seen.assign(slot, shard_id, generation)
    return seen


async def note_slots_on(
    connection: asyncpg.Connection[Any], shard_id: int, taken: Iterable[tuple[int, int]]
) -> None:
    """
    Write that these slots are at *shard_id*, each in its generation, and tell who listens.
    """
    # In order, so that two shards that note at once lock alike.
    slots = sorted(taken)
    await connection.execute(
        _NOTE,
        shard_id,
        [slot for slot, _ in slots],
        [generation for _, generation in slots],
        SLOTS_CHANNEL,
    )


class SlotReading:
    """
    Reads the map again when its version, the sum of its generations, is another than before.
    """

    def __init__(self) -> None:
        self._version = 0
        self._seen: SlotMap | None = None

    async def read(self, connection: asyncpg.Connection[Any]) -> SlotMap | None:
        """
        Return the same object as long as nothing changed; None while nothing is placed.
        """
        version = await connection.fetchval(_VERSION)
        if version != self._version:
            self._seen = await slots_on(connection)
            self._version = version
        return self._seen
