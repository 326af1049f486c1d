"""
What a shard tells the cluster in the background, without anybody waiting for it.

Rule: only what is durable is told, and telling it twice does no harm. A database that is down is
told later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from processor.flow.ports import ShardCluster, StoreUnavailable

RETRY_S = 0.2

log = structlog.get_logger("cluster_notices")

# The epoch, the sequence and the chain of the last durable record.
JournalEnd = tuple[int, int, bytes]


class ClusterNotices:
    """
    Tells the catalog which slots are here now, and the other databases how far the journal is.
    """

    def __init__(
        self, cluster: ShardCluster, journal_end: Callable[[], JournalEnd], witness_ms: int
    ) -> None:
        self._cluster = cluster
        self._journal_end = journal_end
        self._witness_s = witness_ms / 1000
        self._untold: dict[int, int] = {}  # Slot to generation.
        self._has_untold = asyncio.Event()

    def slots_came(self, taken: Iterable[tuple[int, int]]) -> None:
        """
        Tell of these slots, each with its generation; the record that took them is durable.
        """
        self._untold.update(taken)
        if self._untold:
            self._has_untold.set()

    async def tell_slots(self) -> None:
        while True:
            await self._has_untold.wait()
            told = dict(self._untold)
            try:
                await self._cluster.note_slots(told.items())
            except StoreUnavailable as error:
                log.warning("the catalog was not told of slots", error=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            for slot, generation in told.items():
                if self._untold[slot] == generation:
                    del self._untold[slot]
            if not self._untold:
                self._has_untold.clear()

    async def bear_witness(self) -> None:
        """
        Tell the other databases of the journal's end, now and then, when it has moved.
        """
        seen = 0
        while True:
            epoch, sequence, chain = self._journal_end()
            if sequence != seen:
                cluster = self._cluster
                if await cluster.bear_witness(epoch=epoch, sequence=sequence, chain=chain):
                    seen = sequence  # Else whoever was down is told of it the next time.
            await asyncio.sleep(self._witness_s)
