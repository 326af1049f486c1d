"""
Goal: a connection that promises durability exists only on a server that keeps the promise, and
      a transaction that is said to be committed is.
Method: real servers, each made unsafe in one way: at run time where that can be done, else by
        starting one with the unsafe setting.
"""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from processor.storage import embedded_postgres
from processor.storage.connection import (
    SilentRollback,
    UnsafeDatabase,
    check_settings,
    committed,
    connect,
    create_pool,
)
from processor.storage.embedded_postgres import EmbeddedPostgres, find_binary_dir
from tests.support.databases import execute


@asynccontextmanager
async def connected(dsn: str, **settings):
    conn = await connect(dsn, application_name="tests", **settings)
    try:
        yield conn
    finally:
        await conn.close()


@pytest.fixture(scope="module")
def own_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A data folder whose server a test may start with any settings.
    """
    return tmp_path_factory.mktemp("own") / "pg"


@pytest.fixture
def role(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """
    A role with rights of its own; the DSN parameter that chooses it is "user".
    """
    dsn = postgres_server.dsn("postgres")
    asyncio.run(execute(dsn, "CREATE ROLE careless LOGIN SUPERUSER"))
    yield "careless"
    asyncio.run(execute(dsn, "DROP OWNED BY careless; DROP ROLE careless"))


async def test_a_safe_server_is_accepted(database: str):
    """
    With safe settings the connection opens, writes on commit and never times a statement out.
    """
    async with connected(database, durability="local") as conn:
        assert await conn.fetchval("SHOW synchronous_commit") == "on"
        assert await conn.fetchval("SHOW statement_timeout") == "0"
        assert await conn.fetchval("SHOW application_name") == "tests"


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_server_that_can_lose_pages_is_refused(
    own_data_dir: Path, monkeypatch: pytest.MonkeyPatch, setting: str
):
    """
    fsync=off or full_page_writes=off: no durable connection, a plain one works.
    """
    monkeypatch.setitem(embedded_postgres.SETTINGS, setting, "off")
    with EmbeddedPostgres(own_data_dir) as server:
        dsn = server.dsn("postgres")
        assert_refused(dsn, f"{setting} is 'off'")
        asyncio.run(execute(dsn, "SELECT 1"))


def test_a_server_without_checksums_is_refused(tmp_path: Path):
    """
    Without data checksums a page gone bad would be served as money.
    """
    with EmbeddedPostgres(tmp_path / "pg"):
        pass
    disable = [find_binary_dir() / "pg_checksums", "--disable", "-D", tmp_path / "pg"]
    subprocess.run(disable, check=True, capture_output=True)
    with EmbeddedPostgres(tmp_path / "pg") as server:
        assert_refused(server.dsn("postgres"), "data_checksums is 'off'")


def test_quorum_without_standbys_is_refused(own_data_dir: Path):
    """
    Quorum needs a standby to wait for; naming one at run time is enough to be accepted.
    """
    with EmbeddedPostgres(own_data_dir) as server:
        dsn = server.dsn("postgres")
        assert_refused(dsn, "synchronous_standby_names is ''", durability="quorum")

        asyncio.run(execute(dsn, "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (a, b)'"))
        asyncio.run(execute(dsn, "SELECT pg_reload_conf()"))
        asyncio.run(poll_until_accepted(dsn, durability="quorum"))

        asyncio.run(execute(dsn, "ALTER SYSTEM RESET synchronous_standby_names"))
        asyncio.run(execute(dsn, "SELECT pg_reload_conf()"))


@pytest.mark.parametrize("value", ["off", "local", "remote_write"])
async def test_weak_commit_is_refused_where_it_is_found(database: str, value: str):
    """
    A session whose commits do not wait for the disks is refused by the check.
    """
    async with connected(database, server_settings={"synchronous_commit": value}) as conn:
        with pytest.raises(UnsafeDatabase, match=f"synchronous_commit is '{value}'"):
            await check_settings(conn, durability="local")
        await conn.execute("SET synchronous_commit = remote_apply")
        await check_settings(conn, durability="local")


async def test_a_careless_role_is_overridden(database: str, role: str):
    """
    ALTER ROLE ... SET synchronous_commit = off does not reach a durable connection.
    """
    await execute(database, f"ALTER ROLE {role} SET synchronous_commit = off")
    dsn = database.replace("postgres@", f"{role}@")
    async with connected(dsn) as conn:
        assert await conn.fetchval("SHOW synchronous_commit") == "off"
    async with connected(dsn, durability="local") as conn:
        assert await conn.fetchval("SHOW synchronous_commit") == "on"


async def test_read_only_is_refused(database: str, role: str):
    """
    A role whose transactions are read-only by default owns nothing.
    """
    await execute(database, f"ALTER ROLE {role} SET default_transaction_read_only = on")
    with pytest.raises(UnsafeDatabase, match="transaction_read_only is 'on'"):
        await connect(
            database.replace("postgres@", f"{role}@"), application_name="t", durability="local"
        )


@pytest.mark.parametrize(
    ("function", "body", "message"),
    [
        ("pg_is_in_recovery()", "true", "in_recovery is True"),
        (
            "current_setting(name text)",
            """CASE name WHEN 'server_version_num' THEN '140011'
               ELSE pg_catalog.current_setting(name) END""",
            "server_version_num is 140011",
        ),
    ],
)
async def test_a_standby_and_an_old_server_are_refused(
    database: str, function: str, body: str, message: str
):
    """
    A server that says it is a standby, or older than 15, is refused.

    It is made to say so by functions that this session finds before the server's own.
    """
    returned = "boolean" if body == "true" else "text"
    async with connected(database) as conn:
        await conn.execute(f"CREATE FUNCTION {function} RETURNS {returned} RETURN {body}")
        await check_settings(conn, durability="local")
        await conn.execute("SET search_path = public, pg_catalog")
        await conn.execute("SET synchronous_commit = on")
        with pytest.raises(UnsafeDatabase, match=message):
            await check_settings(conn, durability="local")


async def test_a_refused_connection_is_closed(database: str):
    """
    No session stays behind on a server that was refused.
    """
    async with connected(database) as conn:
        with pytest.raises(UnsafeDatabase):
            await connect(database, application_name="refused", durability="quorum")
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'refused'"
        async with asyncio.timeout(10):
            while await conn.fetchval(sessions):
                await asyncio.sleep(0.01)


async def test_a_pool_checks_each_of_its_connections(database: str):
    """
    A pool with a durability level refuses as a single connection does, and serves when safe.
    """
    with pytest.raises(UnsafeDatabase):
        await create_pool(database, application_name="t", size_max=2, durability="quorum")
    pool = await create_pool(database, application_name="t", size_max=2, durability="local")
    async with pool.acquire() as first, pool.acquire() as second:
        assert await first.fetchval("SELECT pg_backend_pid()") != await second.fetchval(
            "SELECT pg_backend_pid()"
        )
    await pool.close()


async def test_nobody_listening_stays_an_os_error(tmp_path: Path):
    """
    A server that is not there is an OSError, told apart from one that is unsafe.
    """
    with pytest.raises(OSError):
        await connect(f"postgresql://postgres@/x?host={tmp_path}", application_name="tests")


async def test_a_uuid_is_sixteen_bytes(database: str):
    """
    A uuid goes in and comes out as raw bytes, by parameter, array and COPY; no other type does.
    """
    value = uuid.uuid4()
    async with connected(database) as conn:
        assert await conn.fetchval("SELECT $1::uuid", value.bytes) == value.bytes
        assert await conn.fetchval("SELECT ($1::uuid)::text", value.bytes) == str(value)
        assert await conn.fetchval("SELECT $1::uuid[]", [value.bytes]) == [value.bytes]
        await conn.execute("CREATE TEMPORARY TABLE copied (id uuid)")
        await conn.copy_records_to_table("copied", records=[(value.bytes,)])
        assert await conn.fetchval("SELECT id FROM copied") == value.bytes
        for wrong in (16, str(value), value, b"short"):
            with pytest.raises((asyncpg.DataError, asyncpg.PostgresError)):
                await conn.fetchval("SELECT $1::uuid", wrong)


async def test_a_committed_block_is_there(database: str):
    """
    What a block wrote is visible to others once the block is left, not before.
    """
    async with connected(database) as conn, connected(database) as other:
        await conn.execute("CREATE TABLE written (a integer)")
        async with committed(conn):
            await conn.execute("INSERT INTO written VALUES (1)")
            assert await other.fetchval("SELECT count(*) FROM written") == 0
        assert await other.fetchval("SELECT count(*) FROM written") == 1


async def test_commit_of_an_aborted_block_is_not_success(database: str):
    """
    A swallowed error makes COMMIT roll back; that is SilentRollback, and nothing was written.
    """
    async with connected(database) as conn:
        await conn.execute("CREATE TABLE written (a integer PRIMARY KEY)")

        async def write_twice() -> None:
            async with committed(conn):
                await conn.execute("INSERT INTO written VALUES (1)")
                with pytest.raises(asyncpg.UniqueViolationError):
                    await conn.execute("INSERT INTO written VALUES (1)")

        with pytest.raises(SilentRollback, match="ROLLBACK"):
            await write_twice()
        assert await conn.fetchval("SELECT count(*) FROM written") == 0
        assert not conn.is_in_transaction()


async def test_an_exception_rolls_back(database: str):
    """
    An exception leaves the block as it is, nothing is written, the connection stays usable.
    """
    async with connected(database) as conn:
        await conn.execute("CREATE TABLE written (a integer)")

        async def write_and_fail() -> None:
            async with committed(conn):
                await conn.execute("INSERT INTO written VALUES (1)")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await write_and_fail()
        async with committed(conn):
            assert await conn.fetchval("SELECT count(*) FROM written") == 0


async def test_a_lost_connection_is_told_as_itself(database: str):
    """
    When the server ends the session inside a block, that error comes out, not the rollback's.
    """
    async with connected(database) as conn:

        async def lose() -> None:
            async with committed(conn):
                await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        # asyncpg tells it in one of two ways, by whether the farewell came before the end.
        errors = (asyncpg.AdminShutdownError, asyncpg.ConnectionDoesNotExistError)
        with pytest.raises(errors, match="administrator command"):
            await lose()
        assert conn.is_closed()


def assert_refused(dsn: str, message: str, durability: str = "local") -> None:
    async def attempt() -> None:
        await connect(dsn, application_name="tests", durability=durability)

    with pytest.raises(UnsafeDatabase, match=message):
        asyncio.run(attempt())


async def poll_until_accepted(dsn: str, durability: str) -> None:
    """
    A reload reaches new sessions soon, not at once.
    """
    async with asyncio.timeout(10):
        while True:
            try:
                async with connected(dsn, durability=durability):
                    return
            except UnsafeDatabase:
                await asyncio.sleep(0.01)
