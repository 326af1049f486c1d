"""
Databases for tests, made and dropped on one server.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from processor.storage.connection import connect
from processor.storage.schema import migrate

TEMPLATE = "migrated_template"


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
            yield dsn

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
