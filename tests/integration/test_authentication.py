"""
Goal: a valid key is recognised at once and a revoked one stops in time; nothing else passes.
Method: real keys in a real database, and a clock that the test moves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from gateway.authentication import KNOWN_S, UNKNOWN_S, VerifiedKeys
from gateway.problems import Refusal
from processor.storage import api_keys
from processor.storage.api_keys import (
    PREFIX,
    SECRET_DIGITS,
    ApiKey,
    Scope,
    create_merchant,
    parse_key,
)
from processor.storage.connection import connect
from processor.storage.key_store import KeyStore
from tests.support.databases import execute

SCOPES = frozenset({Scope.WALLETS_READ})


class Keys:
    """
    A key of acme, and what a gateway thinks of keys at `now_s`.
    """

    def __init__(self, store: KeyStore, key: ApiKey, text: str) -> None:
        self.store = store
        self.key = key
        self.header = f"Bearer {text}".encode()
        self.now_s = 1_000.0
        self.verified = VerifiedKeys(store, lambda: self.now_s)

    async def code(self, header: bytes | None) -> str | None:
        """
        Name the problem a header is answered with; None when it is taken.
        """
        try:
            caller = await self.verified.caller(header)
        except Refusal as refusal:
            return refusal.kind.code
        assert caller.merchant_id == "acme"
        assert caller.scopes == SCOPES
        return None


@pytest_asyncio.fixture
async def keys(database: str) -> AsyncIterator[Keys]:
    """
    Make a merchant with one key.
    """
    conn = await connect(database, application_name="tests")
    await create_merchant(conn, "acme", "Acme")
    await conn.close()
    store = await KeyStore.open(database, timeout_ms=10_000)
    try:
        yield Keys(store, *await store.create("acme", SCOPES, "test"))
    finally:
        store.close()


async def test_takes_a_valid_key(keys: Keys) -> None:
    """
    The header is taken in any case of its scheme, and then from memory.
    """
    assert await keys.code(keys.header) is None
    assert await keys.code(keys.header.replace(b"Bearer", b"bEARER ")) is None
    known = keys.verified.known(keys.header)
    assert known is not None
    assert known.key_id == keys.key.key_id


async def test_refuses_everything_else(keys: Keys) -> None:
    """
    No key, no scheme, garbage, another secret and a changed letter are 401.
    """
    text = keys.header.removeprefix(b"Bearer ")
    assert await keys.code(None) == "api_key_missing"
    for header in (
        b"",
        b"Bearer",
        b"Bearer ",
        text,
        b"Basic " + text,
        b"Bearer " + text + b" x",
        b"Bearer " + text[:-1],
        b"Bearer " + text.swapcase(),
        b"Bearer \xff\x00",
        b"Bearer mil_live_",
    ):
        assert await keys.code(header) == "api_key_invalid"
        assert keys.verified.known(header) is None


async def test_refuses_the_secret_of_another_key(keys: Keys) -> None:
    """
    The id of one key with the secret of another is nobody's key.
    """
    _, other = await keys.store.create("acme", SCOPES, "other")
    secret = other.rpartition("_")[2][:SECRET_DIGITS]
    signed = f"{PREFIX}{keys.key.key_id}_{secret}"
    mixed = signed + api_keys._checksum(signed)

    assert parse_key(mixed) is not None
    assert await keys.code(f"Bearer {mixed}".encode()) == "api_key_invalid"


async def test_a_revoked_key_stops_in_time(keys: Keys) -> None:
    """
    A key that is revoked elsewhere works no longer than it is remembered.
    """
    assert await keys.code(keys.header) is None
    assert await keys.store.revoke("acme", keys.key.key_id)

    keys.now_s += KNOWN_S - 1
    assert await keys.code(keys.header) is None
    keys.now_s += 1
    assert keys.verified.known(keys.header) is None
    assert await keys.code(keys.header) == "api_key_invalid"


async def test_a_key_revoked_here_stops_at_once(keys: Keys) -> None:
    """
    The process that revokes a key forgets it, even while it is being looked up.
    """
    assert await keys.code(keys.header) is None
    assert await keys.store.revoke("acme", keys.key.key_id)
    keys.verified.forget(keys.key.key_id)
    assert await keys.code(keys.header) == "api_key_invalid"


async def test_what_is_looked_up_while_forgotten_is_not_remembered(keys: Keys) -> None:
    """
    An answer that is older than the revocation is not kept.
    """
    looking = asyncio.create_task(keys.verified.caller(keys.header))
    await asyncio.sleep(0)
    keys.verified.forget(keys.key.key_id)
    await looking

    assert keys.verified.known(keys.header) is None


async def test_an_invalid_key_costs_one_look(keys: Keys, database: str) -> None:
    """
    What was not valid is not looked up again at once: a key that becomes valid waits so long.
    """
    revoke = f"SET revoked_at = now() WHERE key_id = '{keys.key.key_id}'"
    await execute(database, f"UPDATE api_keys {revoke}")
    assert await keys.code(keys.header) == "api_key_invalid"
    await execute(database, "UPDATE api_keys SET revoked_at = NULL")

    assert await keys.code(keys.header) == "api_key_invalid"
    keys.now_s += UNKNOWN_S
    assert await keys.code(keys.header) is None


async def test_many_at_once_share_a_look(keys: Keys) -> None:
    """
    A hundred requests with one key are all answered by few connections.
    """
    codes = await asyncio.gather(*(keys.code(keys.header) for _ in range(100)))

    assert codes == [None] * 100


async def test_without_a_database_nothing_is_decided(keys: Keys) -> None:
    """
    A key that cannot be looked up is neither valid nor invalid.
    """
    keys.store.close()

    assert await keys.code(keys.header) == "unavailable"
