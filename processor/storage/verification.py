"""
The independent auditor: does the journal hold together, and do the tables tell the same?

Rule 1: nothing of the ledger's own code is used (see `recomputation`).
Rule 2: each database is read in one read-only snapshot, while the ledger runs on; all snapshots
        are taken before anything is read, the catalog's first.
Rule 3: the journal is judged first; a shard whose journal contradicts itself has no tables to
        compare. Per table the first difference is reported, so one verdict shows every kind.
Rule 4: memory grows with the wallets of one shard, with the transfers that are not projected yet
        (about 250 bytes each), with what is on its way between shards, with open holds, with
        transfers of which something went back and with the outcomes that came with slots, never
        with the transfers there are: that no key is used twice is known of projected ones by the
        unique index of `transfers`, whose every row is compared, and over several databases by
        reading their sorted keys side by side.

A check is an async function over an `Audit`, in CHECKS; another projection adds its own.
While an audit runs, its snapshots keep Postgres from clearing away old row versions: audit a
large, busy database on a standby.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

from processor.storage.audit import Audit, AuditedDatabase, Progress, Verdict
from processor.storage.channel_audit import (
    check_channels,
    check_refunded,
    check_refunds,
    check_slots,
)
from processor.storage.connection import connect
from processor.storage.key_audit import check_keys, check_pending_keys
from processor.storage.payout_audit import check_payout_batches, check_payout_items
from processor.storage.shard_audit import ShardAudit


async def check_databases(audit: Audit) -> None:
    """
    Check that all databases are of one ledger, and that each shard lives in one of them.
    """
    first = audit.databases[0]
    homes: dict[int, int] = {}
    for database in audit.databases:
        if database.cluster_ids != first.cluster_ids:
            where = f"database {database.number}"
            audit.differs(
                "cluster", where, "cluster_id", first.cluster_ids[0], database.cluster_ids[0]
            )
        for shard_id in database.shard_ids:
            home = homes.setdefault(shard_id, database.number)
            if home != database.number:
                audit.differs("shard", f"shard {shard_id}", "database", home, database.number)


async def check_shards(audit: Audit) -> None:
    """
    Audit each shard's journal, and its tables against it.
    """
    for database in audit.databases:
        # Each chunk is found by its ids. Statistics that are behind must not make a plan of it
        # that reads the whole table again for every chunk.
        await database.conn.execute("SET LOCAL enable_seqscan = off")
    for database in audit.databases:
        for shard_id in database.shard_ids:
            await ShardAudit(audit, database, shard_id).run()
    for database in audit.databases:
        await database.conn.execute("SET LOCAL enable_seqscan = on")


Check = Callable[[Audit], Awaitable[None]]
CHECKS: list[Check] = [
    check_databases,
    check_shards,
    check_pending_keys,
    check_keys,
    check_channels,
    check_refunds,
    check_refunded,
    check_slots,
    check_payout_items,
    check_payout_batches,
]


async def verify(
    dsns: str | Sequence[str], *, progress: Callable[[Progress], None] | None = None
) -> Verdict:
    """
    Audit all databases of a ledger as they are at this moment; changes nothing.

    *dsns* names the catalog's database first; a text may hold several, with spaces between them.
    Calls *progress* about once per 8 MiB of journal. Raises what `connect` and asyncpg raise.
    """
    named = dsns.split() if isinstance(dsns, str) else dsns
    async with AsyncExitStack() as stack:
        databases = [await _snapshot(stack, number, dsn) for number, dsn in enumerate(named)]
        for database in databases:
            await database.look_around()
        audit = Audit(databases, progress)
        for check in CHECKS:
            await check(audit)
        return audit.verdict()


async def _snapshot(stack: AsyncExitStack, number: int, dsn: str) -> AuditedDatabase:
    conn = await connect(dsn, application_name="miliano/verify")
    stack.push_async_callback(conn.close)
    await stack.enter_async_context(conn.transaction(isolation="repeatable_read", readonly=True))
    await conn.execute("SELECT 1")  # The first statement takes the snapshot.
    return AuditedDatabase(number, dsn, conn)
