"""
One connection for short statements, made when it is needed.

Rule 1: one call at a time; whoever comes second waits.
Rule 2: after any error the connection is dropped, and the next call makes another: cut off in the
        middle of an answer, it could give that answer to somebody else.
For reads, and for writes that may be done twice; an append is not one of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from processor.flow.ports import StoreUnavailable
from processor.storage.connection import Durability, UnsafeDatabase, connect

CALL_S_MAX = 30.0
# The last kind is told by a connection that is used between the server's farewell and its end,
# and by one that finds no primary among several hosts.
STORE_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
    asyncpg.InternalClientError,
)

T = TypeVar("T")


async def connected(
    dsn: str, application_name: str, durability: Durability | None = None
) -> asyncpg.Connection[asyncpg.Record]:
    """
    Open a connection as `connect` does; raises StoreUnavailable.
    """
    try:
        return await connect(dsn, application_name=application_name, durability=durability)
    except (*STORE_ERRORS, UnsafeDatabase) as error:
        raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


class Session:
    """
    Calls go to the database of *dsn*; every one raises StoreUnavailable.
    """

    def __init__(self, dsn: str, application_name: str) -> None:
        self.dsn = dsn
        self._application_name = application_name
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._connection_count = 0
        self._turn = asyncio.Lock()

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        return await self.call(lambda connection: connection.fetch(query, *arguments))

    async def reached(self) -> int:
        """
        Make sure that there is a connection, and return the number of the one that answered.
        """
        await self.fetch("SELECT 1")
        return self._connection_count

    @property
    def connection_number(self) -> int:
        """
        Tell one connection from the next: 1 for the first, 0 while there is none.
        """
        if self._connection is None or self._connection.is_closed():
            return 0
        return self._connection_count

    async def call(self, call: Callable[[asyncpg.Connection[asyncpg.Record]], Awaitable[T]]) -> T:
        """
        Do *call* with the connection; nothing of it may wait for long.
        """
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                self._connection = await connected(self.dsn, self._application_name)
                self._connection_count += 1
            try:
                async with asyncio.timeout(CALL_S_MAX):
                    return await call(self._connection)
            except BaseException as error:
                self.close()
                if isinstance(error, STORE_ERRORS):
                    raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
                raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
