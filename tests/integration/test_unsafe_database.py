"""
Goal: a shard on a database that would not keep what is promised never starts to serve and says
      why; as soon as the database is safe, the shard serves by itself.
Method: real servers that are made unsafe in ways that the shard's own session settings cannot
        override, and made safe again while the shard waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from actors.wallet_shard import Phase
from processor.flow.frames import NotServing
from processor.storage import embedded_postgres
from processor.storage.embedded_postgres import EmbeddedPostgres
from tests.support.commands import open_wallet
from tests.support.databases import Databases, execute, reading
from tests.support.local_shard import LocalShard
from tests.support.waiting import until

FORCE = """
    CREATE FUNCTION weaken() RETURNS event_trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM set_config('synchronous_commit', 'off', false); END $$;
    CREATE EVENT TRIGGER weaken ON login EXECUTE FUNCTION weaken()
"""


async def serves_only_when_safe(
    shard: LocalShard, dsn: str, why: str, make_safe: Callable[[], Awaitable[object]]
) -> None:
    """
    Check that a shard says *why* it does not serve, again and again, until *make_safe* is done.
    """
    with capture_logs() as logs:
        shard.launch()
        try:
            await until(lambda: len(reasons(logs)) >= 2, "two refusals")
            assert all(why in reason for reason in reasons(logs)), reasons(logs)
            assert shard.shard.phase is Phase.RECOVERING
            frame = shard.send(open_wallet("a"))
            assert shard.replies[frame] == [NotServing(frame)]
            async with reading(dsn) as connection:
                assert await connection.fetchval("SELECT count(*) FROM shard") == 0
                assert await connection.fetchval("SELECT count(*) FROM journal") == 0

            await make_safe()
            await until(lambda: shard.shard.phase is Phase.RUNNING, "the shard to serve")
            await shard.ask(open_wallet("a"))
        finally:
            await shard.stop()


async def placed(dsn: str) -> LocalShard:
    """
    Make a shard that has its place in the catalog; the database is still safe.
    """
    shard = LocalShard(dsn)
    await shard.place()
    return shard


def reasons(logs: list) -> list[str]:
    return [entry["error"] for entry in logs if entry["event"] == "store unavailable"]


async def test_commits_that_do_not_wait_for_the_disk(database: str):
    """
    A trigger at login turns synchronous_commit off in every session, the shard's own included.
    """
    shard = await placed(database)
    await execute(database, FORCE)
    await serves_only_when_safe(
        shard,
        database,
        "UnsafeDatabase: synchronous_commit is 'off'",
        lambda: execute(database, "DROP EVENT TRIGGER weaken"),
    )


async def test_a_database_that_is_read_only(database: str):
    """
    The database's sessions are read-only by default.
    """
    name = database.partition("?")[0].rpartition("/")[2]
    shard = await placed(database)
    await execute(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await serves_only_when_safe(
        shard,
        database,
        "UnsafeDatabase: transaction_read_only is 'on'",
        lambda: execute(
            database,
            f"BEGIN READ WRITE; ALTER DATABASE {name} RESET default_transaction_read_only; COMMIT",
        ),
    )


def test_a_standby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    A real standby, without a primary to follow; it is promoted while the shard waits.
    """
    read_pid_file = embedded_postgres._read_pid_file

    def take_a_standby_for_ready(data_dir: Path) -> object:
        found = read_pid_file(data_dir)
        is_standby = found is not None and found.status == "standby"
        return found._replace(status="ready") if is_standby else found

    monkeypatch.setattr(embedded_postgres, "_read_pid_file", take_a_standby_for_ready)
    with EmbeddedPostgres(tmp_path / "pg") as server, Databases(server.dsn).migrated() as dsn:
        shard = asyncio.run(placed(dsn))
        server.stop()
        (tmp_path / "pg" / "standby.signal").touch()
        server.start()
        asyncio.run(
            serves_only_when_safe(
                shard,
                dsn,
                "UnsafeDatabase: in_recovery is True",
                lambda: execute(dsn, "SELECT pg_promote()"),
            )
        )
