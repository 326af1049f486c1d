"""
The schema's history: plain SQL files, up and down, run by alembic.

`migrations/sql/NNNN_name.up.sql` and `.down.sql` are the whole of a migration; the numbers are
its order. A file's statements are separated by blank lines, so no statement contains one.

Rule 1: a run is one transaction: it happens as a whole or not at all.
Rule 2: one run at a time; a second waits for the first and then finds its work done.
Rule 3: a released file never changes; the schema changes by a new number.
These functions block and run an event loop of their own: call them from outside of any loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import asyncpg
import msgspec
import sqlalchemy
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep
from alembic.script import Script
from alembic.script.revision import RevisionMap
from sqlalchemy.ext.asyncio import create_async_engine

from processor.storage.connection import connect

SQL_DIR = Path(__file__).parent / "migrations" / "sql"
# A change of a table in use must not queue in front of its users for long.
LOCK_TIMEOUT_MS = 5_000
OTHER_RUN_TIMEOUT_MS = 120_000

ADVISORY_LOCK = 0x6D696C69616E6F  # "miliano"

Answer = TypeVar("Answer")


class SchemaUnknown(Exception):
    """
    The database is at a revision that this build does not have: start a newer build.
    """


class Revision(msgspec.Struct, frozen=True):
    """
    One migration, and whether the database has it.
    """

    revision: str
    name: str
    applied: bool


def ensure_database(dsn: str) -> None:
    """
    Create the database that *dsn* names if it is missing.
    """
    asyncio.run(_ensure_database(dsn))


def migrate(dsn: str, *, sql_dir: Path = SQL_DIR) -> list[Revision]:
    """
    Bring the schema up to date and return what was missing; nothing changes when it raises.
    """

    def run(connection: sqlalchemy.Connection) -> list[Revision]:
        scripts = _scripts(sql_dir)
        missing = scripts[_applied_count(connection, scripts) :]
        _run(connection, scripts, missing, MigrationStep.upgrade_from_script)
        return [_revision(script, applied=True) for script in missing]

    return asyncio.run(_in_locked_transaction(dsn, run))


def rollback(dsn: str, steps: int = 1, *, sql_dir: Path = SQL_DIR) -> list[Revision]:
    """
    Take back the newest *steps* migrations, data included, and return them.
    """
    assert steps >= 1, "nothing to take back"

    def run(connection: sqlalchemy.Connection) -> list[Revision]:
        scripts = _scripts(sql_dir)
        newest = scripts[: _applied_count(connection, scripts)][: -steps - 1 : -1]
        _run(connection, scripts, newest, MigrationStep.downgrade_from_script)
        return [_revision(script, applied=False) for script in newest]

    return asyncio.run(_in_locked_transaction(dsn, run))


def schema_status(dsn: str, *, sql_dir: Path = SQL_DIR) -> list[Revision]:
    """
    List every migration this build has, oldest first; changes nothing and waits for nobody.
    """

    def run(connection: sqlalchemy.Connection) -> list[Revision]:
        scripts = _scripts(sql_dir)
        applied_count = _applied_count(connection, scripts)
        return [
            _revision(script, applied=index < applied_count) for index, script in enumerate(scripts)
        ]

    return asyncio.run(_in_transaction(dsn, run))


async def _ensure_database(dsn: str) -> None:
    try:
        conn = await connect(dsn, application_name="miliano-migrate")
    except asyncpg.InvalidCatalogNameError:
        await _create_database(dsn)
    else:
        await conn.close()


async def _create_database(dsn: str) -> None:
    parts = urlsplit(dsn)
    name = unquote(parts.path.removeprefix("/")).replace('"', '""')
    maintenance = parts._replace(path="/postgres").geturl()
    conn = await connect(maintenance, application_name="miliano-migrate")
    try:
        await conn.execute(f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'UTF8'")
    except (asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
        pass  # Another process was faster.
    finally:
        await conn.close()


async def _in_locked_transaction(
    dsn: str, run: Callable[[sqlalchemy.Connection], Answer]
) -> Answer:
    def locked(connection: sqlalchemy.Connection) -> Answer:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {OTHER_RUN_TIMEOUT_MS}")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        return run(connection)

    return await _in_transaction(dsn, locked)


async def _in_transaction(dsn: str, run: Callable[[sqlalchemy.Connection], Answer]) -> Answer:
    async def open_connection() -> asyncpg.Connection[asyncpg.Record]:
        return await connect(dsn, application_name="miliano-migrate")

    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=open_connection, poolclass=sqlalchemy.NullPool
    )
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(run)
    finally:
        await engine.dispose()


def _run(
    connection: sqlalchemy.Connection,
    scripts: list[Script],
    chosen: list[Script],
    step_from: Callable[[RevisionMap, Script], RevisionStep],
) -> None:
    revision_map = RevisionMap(lambda: scripts)
    revision_map.get_revision("head")  # Links the scripts to one another.
    steps = [step_from(revision_map, script) for script in chosen]

    def steps_to_take(_heads: object, _context: object) -> Iterable[RevisionStep]:
        return steps

    context = MigrationContext.configure(connection, opts={"fn": steps_to_take})
    context.run_migrations(connection=connection)


def _scripts(sql_dir: Path) -> list[Script]:
    """
    Read the files into alembic's terms, each migration building on the one before it.
    """
    scripts: list[Script] = []
    for path in sorted(sql_dir.glob("*.up.sql")):
        revision, _, _ = path.name.partition("_")
        module = ModuleType(path.name.removesuffix(".up.sql"))
        module.__dict__.update(
            revision=revision,
            down_revision=scripts[-1].revision if scripts else None,
            upgrade=_runner_of(path),
            downgrade=_runner_of(path.with_name(path.name.replace(".up.sql", ".down.sql"))),
        )
        scripts.append(Script(module, revision, path))
    return scripts


def _runner_of(path: Path) -> Callable[[sqlalchemy.Connection], None]:
    def run(connection: sqlalchemy.Connection) -> None:
        for statement in _statements(path.read_text()):
            connection.exec_driver_sql(statement)

    return run


def _statements(sql: str) -> list[str]:
    paragraphs = [paragraph.strip() for paragraph in sql.split("\n\n")]
    return [
        paragraph
        for paragraph in paragraphs
        if any(not line.startswith("--") for line in paragraph.splitlines())
    ]


def _applied_count(connection: sqlalchemy.Connection, scripts: list[Script]) -> int:
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        return 0
    known = [script.revision for script in scripts]
    if current not in known:
        raise SchemaUnknown(f"the database is at {current}, which this build does not have")
    return known.index(current) + 1


def _revision(script: Script, *, applied: bool) -> Revision:
    _, _, name = script.module.__name__.partition("_")
    return Revision(script.revision, name, applied)
