"""
A payout runner alone in its process, to be killed: `python -m tests.support.payout_process 7`.

The argument is the number of rows in a chunk; the rest is in the environment of a `Stack`.
"""

from __future__ import annotations

import asyncio
import sys
from random import Random

from configs.settings import PayoutSettings, load_settings
from gateway.payout_runner import PayoutRunner
from gateway.shard_clients import ShardClients
from processor.storage.payouts import BatchLocks, PayoutStore


async def run(chunk_rows: int) -> None:
    settings = load_settings()
    dsn = settings.postgres.catalog_dsn
    clients = ShardClients(
        settings.postgres.dsns,
        secret=settings.cluster.secret.encode(),
        settings=settings.gateway,
    )
    await clients.start()
    runner = PayoutRunner(
        store=await PayoutStore.open(dsn, durability="local"),
        locks=BatchLocks(dsn),
        clients=clients,
        settings=PayoutSettings(chunk_rows=chunk_rows, poll_ms=20, retry_ms=5),
        timeout_ms=5_000,
        random=Random(),
    )
    runner.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1])))
