"""
All shards of a cluster at a glance, as its tables and its catalog tell it.

Nothing here is exact while money moves: each database is read by itself, and tables lag.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from processor.core.slots import SLOT_COUNT, SlotMap
from processor.storage.catalog import Placement, open_cluster, read_placements, read_slot_map
from processor.storage.session import Session

_SHARDS = """
    SELECT shard_id, epoch, state, endpoint, halted_for,
           (SELECT count(*) FROM wallets
             WHERE wallets.shard_id = shard.shard_id AND wallet_id NOT LIKE '$%') AS wallets,
           (SELECT coalesce(sum(head - settled), 0)::bigint FROM channels_out
             WHERE channels_out.shard_id = shard.shard_id) AS pending,
           (SELECT coalesce(max(sequence), 0) FROM journal
             WHERE journal.shard_id = shard.shard_id)
           - (SELECT coalesce(max(sequence), 0) FROM watermark
               WHERE watermark.shard_id = shard.shard_id) AS lag_records
      FROM shard
"""


class ListedShard(msgspec.Struct, frozen=True):
    """
    One shard: `slots` are ranges with both ends, `pending` is what is on its way to others, and
    `database` counts the DSNs from 0.
    """

    shard: int
    phase: str
    slots: list[tuple[int, int]]
    wallets: int
    pending: int
    lag_records: int
    epoch: int
    database: int
    endpoint: str | None
    halted_for: str | None

    @property
    def slot_count(self) -> int:
        return sum(last - first + 1 for first, last in self.slots)


async def list_shards(dsns: Sequence[str]) -> list[ListedShard]:
    """
    List every placed shard; raises StoreUnavailable or ForeignDatabase.
    """
    databases = await open_cluster(dsns)
    placements = await read_placements(databases)
    slot_map = await read_slot_map(dsns[0])
    rows = {}
    for dsn in dsns:
        session = Session(dsn, "miliano/shards")
        try:
            rows.update({row["shard_id"]: row for row in await session.fetch(_SHARDS)})
        finally:
            session.close()
    return [_listed(placed, slot_map, rows.get(placed.shard_id)) for placed in placements]


def _listed(placed: Placement, slot_map: SlotMap, row: object) -> ListedShard:
    found = dict(row) if row is not None else {}  # type: ignore[call-overload]
    phase = "recovering" if found.get("endpoint") is None else "serving"
    if not found:
        phase = "starting"
    return ListedShard(
        shard=placed.shard_id,
        phase="halted" if found.get("state") == "halted" else phase,
        slots=ranges(slot_map.slots_of(placed.shard_id)),
        wallets=found.get("wallets", 0),
        pending=found.get("pending", 0),
        lag_records=found.get("lag_records", 0),
        epoch=found.get("epoch", 0),
        database=placed.database_number,
        endpoint=found.get("endpoint"),
        halted_for=found.get("halted_for"),
    )


def ranges(slots: Sequence[int]) -> list[tuple[int, int]]:
    """
    Join ascending slots to ranges, both ends included.
    """
    found: list[tuple[int, int]] = []
    for slot in slots:
        assert 0 <= slot < SLOT_COUNT, "there is no such slot"
        if found and found[-1][1] == slot - 1:
            found[-1] = (found[-1][0], slot)
        else:
            found.append((slot, slot))
    return found
