"""
What one gateway process has for payouts, put together and taken apart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from random import Random

from configs.settings import Settings
from gateway.payout_runner import PayoutRunner
from gateway.problems import Refusal
from gateway.reply import Header
from gateway.request_body import BodyReader
from gateway.shard_clients import ShardClients
from processor.storage.payouts import BatchLocks, PayoutStore

_BUSY: Header = (b"retry-after", b"5")


class Payouts:
    """
    What a gateway has for payouts: the batches, the runner that pays them, the uploads under way.
    """

    def __init__(self, settings: Settings, store: PayoutStore, runner: PayoutRunner) -> None:
        self.store = store
        self.runner = runner
        bounds = settings.payouts
        self.bodies = BodyReader(
            bytes_max=bounds.file_bytes_max,
            held_bytes_max=bounds.file_bytes_max * bounds.uploads_max,
        )
        self._uploads_max = bounds.uploads_max
        self._uploads = 0

    @contextmanager
    def upload(self) -> Iterator[None]:
        """
        Take a place for one file; raises Refusal when all are taken.
        """
        if self._uploads == self._uploads_max:
            detail = f"{self._uploads_max} payout files are being read. Send yours again soon."
            raise Refusal("overloaded", detail, headers=(_BUSY,))
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1


@asynccontextmanager
async def open_payouts(settings: Settings, shards: ShardClients) -> AsyncIterator[Payouts]:
    """
    Open the store and pay until the end of the block; raises what `connect` raises.
    """
    dsn = settings.postgres.catalog_dsn
    store = await PayoutStore.open(dsn, durability=settings.postgres.durability)
    runner = PayoutRunner(
        store=store,
        locks=BatchLocks(dsn),
        clients=shards,
        settings=settings.payouts,
        timeout_ms=settings.gateway.request_timeout_ms,
        random=Random(),
    )
    runner.start()
    try:
        yield Payouts(settings, store, runner)
    finally:
        await runner.stop()
        store.close()
