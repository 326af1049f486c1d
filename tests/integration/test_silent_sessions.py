"""
Goal: a session that has fallen silent holds up no recovery and no filling of the key filter.
Method: a proxy in front of the server swallows every answer from a moment on; the connection stays
        open, as it does when a machine in between is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from processor.flow.ports import StoreUnavailable
from processor.storage.shard_store import PostgresShardStore
from tests.support.databases import execute
from tests.support.tcp_proxy import TcpProxy

READER = b"miliano/shard-0/reader"
KEYS = b"miliano/shard-0/keys"
ONE_TRANSFER = """
    INSERT INTO transfers (transfer_id, shard_id, sequence, at, type, merchant_id, key, source,
                           destination, currency, amount)
    VALUES ('00000000-0000-0000-0000-000000000000', 0, 1, now(), 1, 'acme',
            '00000000-0000-0000-0000-000000000000', 'a', 'b', 'EUR', 1)
"""


@pytest.fixture
async def store(
    proxied: tuple[TcpProxy, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PostgresShardStore]:
    monkeypatch.setattr("processor.storage.recovery_view.PAGE_S_MAX", 0.2)
    monkeypatch.setattr("processor.storage.outcomes.PAGE_S_MAX", 0.2)
    opened = PostgresShardStore(proxied[1], 0)
    yield opened
    await opened.close()


async def test_a_silent_recovery_is_begun_again(
    store: PostgresShardStore, proxied: tuple[TcpProxy, str]
) -> None:
    """
    Each read of the view gives up by itself, and the next view works.
    """
    proxy, _ = proxied

    async def load_wallets() -> None:
        async with store.recovery_view() as view:
            proxy.link_of(READER).swallow()
            await view.load_wallets(["a"])

    async def read_records() -> None:
        async with store.recovery_view() as view:
            proxy.link_of(READER).swallow()
            async for _ in view.records():
                pass

    for read in (load_wallets, read_records):
        with pytest.raises(StoreUnavailable, match="recovery read failed"):
            await in_time(read())
    async with store.recovery_view() as view:
        assert await view.load_wallets(["a"]) == []


async def test_silent_pages_of_keys_are_read_again(
    store: PostgresShardStore,
    database: str,
    proxied: tuple[TcpProxy, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    A page that does not come ends the reading with an error that says so.
    """
    monkeypatch.setattr("processor.storage.outcomes.KEY_PAGE_ROWS", 1)
    await execute(database, ONE_TRANSFER)
    proxy, _ = proxied
    pages = []

    async def read_keys() -> None:
        async for keys in store.key_pages():
            pages.append(keys)
            proxy.link_of(KEYS).swallow()

    with pytest.raises(StoreUnavailable, match="reading keys failed"):
        await in_time(read_keys())
    assert pages == [[bytes(16)]]
    assert [keys async for keys in store.key_pages()] == pages


async def in_time(read: Coroutine[Any, Any, None]) -> None:
    """
    End a read that hangs, from outside of what it would make of that.
    """
    async with asyncio.timeout(10):
        await read
