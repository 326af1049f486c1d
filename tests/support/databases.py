"""
Databases for tests, made and dropped on one server.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import asyncpg

from processor.storage.connection import connect
from processor.storage.schema import migrate

TEMPLATE = "migrated_template"
# A copy would be taken for the database it was copied from.
NEW_IDENTITY = "UPDATE cluster SET cluster_id = gen_random_uuid(), database_id = gen_random_uuid()"


class Databases:
    """
    Makes databases on the server whose DSNs *dsn_of* gives.
    """

    def __init__(self, dsn_of: Callable[[str], str]) -> None:
        self._dsn_of = dsn_of
        self._numbers = itertools.count(1)
        self._has_template = False

    @contextmanager
    def migrated(self) -> Iterator[str]:
        """
        Yield the DSN of a copy of a migrated database.
        """
        if not self._has_template:
            self._execute(f"CREATE DATABASE {TEMPLATE}")
            migrate(self._dsn_of(TEMPLATE))
            self._has_template = True
        with self._created(f"TEMPLATE {TEMPLATE}") as dsn:
            asyncio.run(execute(dsn, NEW_IDENTITY))
            yield dsn

    @contextmanager
    def copy_of(self, dsn: str) -> Iterator[str]:
        """
        Yield the DSN of a copy of a database, as a backup is: of the same identity.
        """
        with self._created(f"TEMPLATE {urlsplit(dsn).path[1:]}") as copy:
            yield copy

    @contextmanager
    def empty(self) -> Iterator[str]:
        """
        Yield the DSN of a database without a schema.
        """
        with self._created("") as dsn:
            yield dsn

    @contextmanager
    def _created(self, options: str) -> Iterator[str]:
        name = f"test_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} {options}")
        try:
            yield self._dsn_of(name)
        finally:
            self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _execute(self, sql: str) -> None:
        asyncio.run(execute(self._dsn_of("postgres"), sql))


async def execute(dsn: str, sql: str) -> None:
    """
    Run *sql* on a connection of its own.
    """
    conn = await connect(dsn, application_name="tests")
    try:
        await conn.execute(sql)
    finally:
        await conn.close()


@asynccontextmanager
async def reading(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """
    Connect for the length of a block.
    """
    connection = await connect(dsn, application_name="miliano/test")
    try:
        yield connection
    finally:
        await connection.close()
