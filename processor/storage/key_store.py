"""
API keys on a pool of connections: what a gateway needs of them.

Every method raises StoreUnavailable when Postgres did not answer; a change may then have
happened or not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager

import asyncpg

from processor.flow.ports import StoreUnavailable
from processor.storage import api_keys
from processor.storage.api_keys import ApiKey, Scope
from processor.storage.connection import Connection, create_pool
from processor.storage.session import STORE_ERRORS

CONNECTIONS_MAX = 4


class KeyStore:
    """
    Finds, makes, lists and revokes keys.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], timeout_ms: int) -> None:
        self._pool = pool
        self._timeout_s = timeout_ms / 1000

    @classmethod
    async def open(cls, dsn: str, *, timeout_ms: int) -> KeyStore:
        """
        Open the pool; raises what `connect` raises.
        """
        pool = await create_pool(dsn, application_name="miliano/api-keys", size_max=CONNECTIONS_MAX)
        return cls(pool, timeout_ms)

    def close(self) -> None:
        self._pool.terminate()

    async def find(self, key_id: str) -> ApiKey | None:
        async with self._connection() as conn:
            return await api_keys.find_key(conn, key_id)

    async def create(
        self, merchant_id: str, scopes: AbstractSet[Scope], label: str
    ) -> tuple[ApiKey, str]:
        async with self._connection() as conn:
            return await api_keys.create_key(conn, merchant_id, scopes, label)

    async def list(self, merchant_id: str) -> list[ApiKey]:
        async with self._connection() as conn:
            return await api_keys.list_keys(conn, merchant_id)

    async def revoke(self, merchant_id: str, key_id: str) -> bool:
        async with self._connection() as conn:
            return await api_keys.revoke_key(conn, merchant_id, key_id)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        try:
            async with self._pool.acquire(timeout=self._timeout_s) as conn:
                yield conn
        except STORE_ERRORS as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
