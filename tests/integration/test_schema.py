"""
Goal: the schema goes up, down and up again to the same place, as a whole or not at all.
Method: real databases; two schemas are the same when the catalogs describe them the same.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy.exc

from processor.core.slots import slot_of
from processor.storage import schema
from processor.storage.connection import connect
from processor.storage.schema import (
    SQL_DIR,
    SchemaUnknown,
    ensure_database,
    migrate,
    rollback,
    schema_status,
)
from tests.support.databases import execute

DESCRIBE = """
    SELECT 'column', table_name, column_name, data_type, is_nullable, column_default, collation_name
      FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL
    SELECT 'index', tablename, indexname, indexdef, '', '', ''
      FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', '', ''
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'relation', relname, relkind::text, reloptions::text,
           pg_get_expr(relpartbound, oid), pg_get_partkeydef(oid), relpersistence::text
      FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'storage', attrelid::regclass::text, attname, attstorage::text, '', '', ''
      FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
     WHERE relnamespace = 'public'::regnamespace AND attnum > 0
    UNION ALL
    SELECT 'routine', routine_name, routine_type, routine_definition, '', '', ''
      FROM information_schema.routines WHERE routine_schema = 'public'
    ORDER BY 1, 2, 3, 4
"""
REVISIONS = [path.name[:4] for path in sorted(SQL_DIR.glob("*.up.sql"))]


def describe(dsn: str) -> list[tuple[str | None, ...]]:
    async def read() -> list[tuple[str | None, ...]]:
        conn = await connect(dsn, application_name="tests")
        rows = await conn.fetch(DESCRIBE)
        await conn.close()
        return [tuple(row) for row in rows]

    return asyncio.run(read())


def applied(dsn: str) -> list[str]:
    return [revision.revision for revision in schema_status(dsn) if revision.applied]


def test_up_down_up_gives_the_same_schema(empty_database):
    """
    Taking every migration back leaves nothing but alembic's own table, and up again is the same.
    """
    assert [revision.revision for revision in migrate(empty_database)] == REVISIONS
    first = describe(empty_database)
    assert ("column", "journal", "payload") in [row[:3] for row in first]

    taken_back = rollback(empty_database, steps=len(REVISIONS))
    assert [revision.revision for revision in taken_back] == REVISIONS[::-1]
    assert {row[1] for row in describe(empty_database)} <= {
        "alembic_version",
        "alembic_version_pkc",
    }

    migrate(empty_database)
    assert describe(empty_database) == first


def test_every_single_step_down_undoes_its_step_up(empty_database):
    """
    One step down and one up leads back to the same schema, at every revision.
    """
    migrate(empty_database)
    top = describe(empty_database)
    for depth in range(1, len(REVISIONS) + 1):
        (taken_back,) = rollback(empty_database)
        assert (taken_back.revision, taken_back.applied) == (REVISIONS[-depth], False)
        assert applied(empty_database) == REVISIONS[:-depth]
    assert rollback(empty_database) == []
    migrate(empty_database)
    assert describe(empty_database) == top


def test_wallets_of_an_old_ledger_get_their_slots(empty_database, tmp_path: Path):
    """
    The migration counts slots as the ledger does, for every form of id that there can be.
    """
    for path in SQL_DIR.glob("000[123]_*.sql"):
        shutil.copy(path, tmp_path)
    migrate(empty_database, sql_dir=tmp_path)
    names = ["alice", "bob", "$world:0:EUR", "a" * 64, "wal_01", "X.y-z:1@b", "é💶"]
    names += [f"w-{number}" for number in range(200)]

    async def write() -> None:
        conn = await connect(empty_database, application_name="tests")
        await conn.executemany(
            "INSERT INTO wallets VALUES ($1, 0, 'acme', 'EUR', 1, 0, 7, 3, now())",
            [(name,) for name in names],
        )
        await conn.close()

    async def read() -> dict[str, int]:
        conn = await connect(empty_database, application_name="tests")
        rows = await conn.fetch("SELECT wallet_id, slot FROM wallets")
        await conn.close()
        return {row["wallet_id"]: row["slot"] for row in rows}

    asyncio.run(write())
    migrate(empty_database)
    assert asyncio.run(read()) == {name: slot_of(name) for name in names}


def test_every_up_has_a_down():
    """
    No migration can be shipped that cannot be taken back, and the numbers have no gap.
    """
    ups = {path.name.removesuffix(".up.sql") for path in SQL_DIR.glob("*.up.sql")}
    downs = {path.name.removesuffix(".down.sql") for path in SQL_DIR.glob("*.down.sql")}
    assert ups == downs
    assert [f"{number:04}" for number in range(1, len(ups) + 1)] == REVISIONS


def test_status_names_what_is_applied(empty_database):
    """
    The status lists every migration by name, first as missing, then as applied.
    """
    before = schema_status(empty_database)
    assert [revision.applied for revision in before] == [False] * len(REVISIONS)
    assert (before[0].revision, before[0].name) == ("0001", "ledger")
    assert describe(empty_database) == []

    migrate(empty_database)
    assert applied(empty_database) == REVISIONS
    assert migrate(empty_database) == []


def test_two_migrators_at_once_both_end_well(empty_database):
    """
    Of two runs at the same time one does all the work and the other finds it done.
    """
    results = []
    barrier = threading.Barrier(2, timeout=10)

    def run() -> None:
        barrier.wait()
        results.append([revision.revision for revision in migrate(empty_database)])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(results) == [[], REVISIONS]
    assert applied(empty_database) == REVISIONS


def test_a_second_run_waits_for_the_first(empty_database):
    """
    While somebody holds the migration lock, a run waits, and it goes on when the lock is free.
    """

    async def hold_while(thread: threading.Thread) -> None:
        conn = await connect(empty_database, application_name="tests")
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute(f"SELECT pg_advisory_xact_lock({schema.ADVISORY_LOCK})")
        thread.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        async with asyncio.timeout(10):
            while not await conn.fetchval(waiting):
                await asyncio.sleep(0.01)
        assert thread.is_alive()
        await transaction.rollback()
        await conn.close()

    thread = threading.Thread(target=migrate, args=(empty_database,))
    asyncio.run(hold_while(thread))
    thread.join(timeout=60)
    assert applied(empty_database) == REVISIONS


def test_a_table_in_use_is_not_queued_for(empty_database, monkeypatch: pytest.MonkeyPatch):
    """
    A migration that cannot get its table in time gives up, so that others need not queue behind.
    """
    monkeypatch.setattr(schema, "LOCK_TIMEOUT_MS", 50)
    migrate(empty_database)

    async def read_meanwhile(change: Callable[[], object]) -> None:
        conn = await connect(empty_database, application_name="tests")
        try:
            async with conn.transaction():
                await conn.execute("SELECT count(*) FROM api_keys")
                await asyncio.to_thread(change)
        finally:
            await conn.close()

    with pytest.raises(sqlalchemy.exc.DBAPIError, match="lock timeout"):
        asyncio.run(read_meanwhile(lambda: rollback(empty_database, steps=len(REVISIONS))))
    assert applied(empty_database) == REVISIONS


def test_a_failing_migration_leaves_nothing_half_done(empty_database, tmp_path: Path):
    """
    When the last statement of the newest file fails, nothing of the whole run remains.
    """
    shutil.copytree(SQL_DIR, tmp_path, dirs_exist_ok=True)
    broken = tmp_path / "9000_broken.up.sql"
    broken.write_text("-- A note.\n\nCREATE TABLE half (a integer);\n\nSELECT 1 / 0;\n")

    with pytest.raises(sqlalchemy.exc.DBAPIError, match="division by zero"):
        migrate(empty_database, sql_dir=tmp_path)
    assert describe(empty_database) == []

    migrate(empty_database)
    whole = describe(empty_database)
    with pytest.raises(sqlalchemy.exc.DBAPIError, match="division by zero"):
        migrate(empty_database, sql_dir=tmp_path)
    assert describe(empty_database) == whole
    assert applied(empty_database) == REVISIONS


def test_a_newer_database_is_refused(empty_database):
    """
    A build that does not know the database's revision changes nothing and says so.
    """
    migrate(empty_database)
    asyncio.run(execute(empty_database, "UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaUnknown, match="9999"):
        migrate(empty_database)
    with pytest.raises(SchemaUnknown, match="9999"):
        rollback(empty_database)


def test_the_database_itself_is_made_once(postgres_server):
    """
    A missing database is created in UTF-8, also by two processes at once; then it stays.
    """
    dsn = postgres_server.dsn("made_by_ensure")
    errors: list[BaseException] = []

    def run() -> None:
        try:
            ensure_database(dsn)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
    asyncio.run(execute(dsn, "CREATE TABLE kept (a integer)"))
    ensure_database(dsn)
    asyncio.run(execute(dsn, "SELECT a FROM kept"))
    asyncio.run(execute(postgres_server.dsn("postgres"), "DROP DATABASE made_by_ensure"))
