"""
A wallet's holds in the tables, page by page.

Rule: a hold that goes with its slot can have a row at both shards for a moment; the one that was
      changed last counts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import asyncpg

from processor.core.hold import Hold
from processor.storage.count_rows import HOLD_COLUMNS

# In the order of their ids, which is that of their times: they are UUIDs of version 7.
HOLDS_OF_WALLET = f"""
    SELECT DISTINCT ON (hold_id) {HOLD_COLUMNS}, shard_id, changed_at FROM holds
     WHERE wallet_id = $1 AND merchant_id = $2 AND hold_id > $3
       AND ($4::smallint IS NULL OR status = $4)
     ORDER BY hold_id, changed_at DESC LIMIT $5
"""

ListedHold = tuple[Hold, int]  # With the shard whose row it is.


def each_once(pages: Iterable[Sequence[asyncpg.Record]]) -> Iterator[ListedHold]:
    """
    Merge the pages of all databases, and of each hold's rows yield the latest.
    """
    merged = heapq.merge(*pages, key=lambda row: row["hold_id"])
    for _, rows in groupby(merged, key=lambda row: row["hold_id"]):
        latest = max(rows, key=lambda row: row["changed_at"])
        yield Hold(*tuple(latest)[:-2]), latest["shard_id"]
