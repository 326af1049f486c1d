"""
Goal: a key opens exactly what it was made for, until it is revoked, and its secret is nowhere.
Method: keys made in a real database; texts altered digit by digit.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.storage.api_keys import (
    MerchantIdUnfit,
    MerchantUnknown,
    Scope,
    create_key,
    create_merchant,
    find_key,
    list_keys,
    parse_key,
    revoke_key,
    same_secret,
)
from processor.storage.connection import connect

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KNOWN_KEY = "mil_live_0123456789ab_" + "A" * 43 + "3G8Olx"


@pytest.fixture
async def conn(database: str):
    conn = await connect(database, application_name="tests")
    await create_merchant(conn, "acme", "Acme Ltd")
    yield conn
    await conn.close()


async def test_a_key_is_found_again_by_its_text(conn):
    """
    The text leads to the stored key and proves its secret; everything given is kept.
    """
    key, text = await create_key(conn, "acme", {Scope.WALLETS_READ, Scope.KEYS_ADMIN}, "till 3")
    key_id, secret_hash = parse_key(text)
    assert key_id == key.key_id
    found = await find_key(conn, key_id)
    assert found == key
    assert same_secret(found, secret_hash)
    assert (found.merchant_id, found.label) == ("acme", "till 3")
    assert found.scopes == {Scope.WALLETS_READ, Scope.KEYS_ADMIN}
    assert found.created_at.utcoffset() == timedelta(0)
    assert found.revoked_at is None


async def test_the_text_has_its_published_form(conn):
    """
    Prefix, id, secret and checksum stand where a scanner looks for them.
    """
    _, text = await create_key(conn, "acme", set(), "")
    assert re.fullmatch(r"mil_live_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}", text)
    checksum = 0
    for digit in text[-6:]:
        checksum = checksum * 62 + ALPHABET.index(digit)
    assert checksum == zlib.crc32(text[:-6].encode())


async def test_the_secret_is_stored_nowhere(conn):
    """
    The row holds the SHA-256 of the secret digits and no part of the secret.
    """
    _, text = await create_key(conn, "acme", {Scope.PAYOUTS_WRITE}, "")
    secret = text.rpartition("_")[2][:43]
    row = await conn.fetchrow("SELECT api_keys::text AS everything, secret_hash FROM api_keys")
    assert secret not in row["everything"]
    assert row["secret_hash"] == hashlib.sha256(secret.encode()).digest()


async def test_no_two_keys_are_alike(conn):
    """
    Ids and secrets are drawn anew for each key.
    """
    made = [await create_key(conn, "acme", set(), "") for _ in range(50)]
    assert len({key.key_id for key, _ in made}) == 50
    assert len({key.secret_hash for key, _ in made}) == 50
    first, second = made[0][0], made[1][0]
    assert not same_secret(first, second.secret_hash)


async def test_a_revoked_key_is_not_found(conn):
    """
    Revoking works once, only for the key's own merchant, and only on that key.
    """
    await create_merchant(conn, "other", "Other")
    key, _ = await create_key(conn, "acme", set(), "first")
    kept, _ = await create_key(conn, "acme", set(), "second")
    assert not await revoke_key(conn, "other", key.key_id)
    assert await find_key(conn, key.key_id) == key

    assert await revoke_key(conn, "acme", key.key_id)
    assert await find_key(conn, key.key_id) is None
    assert not await revoke_key(conn, "acme", key.key_id)
    assert await find_key(conn, kept.key_id) == kept

    listed = await list_keys(conn, "acme")
    assert [(each.label, each.revoked_at is None) for each in listed] == [
        ("first", False),
        ("second", True),
    ]
    assert await list_keys(conn, "other") == []


async def test_a_merchant_is_made_once(conn):
    """
    A taken id is not given again and keeps its name; an unknown merchant gets no key.
    """
    assert not await create_merchant(conn, "acme", "Someone else")
    assert await conn.fetchval("SELECT name FROM merchants") == "Acme Ltd"
    with pytest.raises(MerchantUnknown, match="nobody"):
        await create_key(conn, "nobody", set(), "")


async def test_a_merchants_id_is_short_and_plain(conn):
    """
    Any other is refused with what one is; one from before there was a form stays as it is.
    """
    for merchant_id in ("a", "0", "Z9._-", "x" * 32):
        assert await create_merchant(conn, merchant_id, "")
    for merchant_id in ("", "$system", "-a", "a b", "a:b", "é", "a\n", "x" * 33):
        with pytest.raises(MerchantIdUnfit, match="1 to 32 of A-Z"):
            await create_merchant(conn, merchant_id, "")
    assert await conn.fetchval("SELECT count(*) FROM merchants") == 5
    await conn.execute("INSERT INTO merchants (merchant_id, name) VALUES ('Old & Sons', '')")
    assert not await create_merchant(conn, "Old & Sons", "")


async def test_a_scope_of_a_newer_build_grants_nothing(conn):
    """
    A scope in the table that this build does not know is left out, the others stay.
    """
    key, _ = await create_key(conn, "acme", {Scope.WALLETS_READ}, "")
    await conn.execute("UPDATE api_keys SET scopes = scopes || '{all:admin}'")
    found = await find_key(conn, key.key_id)
    assert found.scopes == {Scope.WALLETS_READ}


async def test_an_unknown_key_is_not_found(conn):
    """
    An id that nobody was given leads nowhere.
    """
    assert await find_key(conn, "0" * 12) is None


def test_the_form_never_changes():
    """
    A key written down once is read the same way by every later build.
    """
    assert parse_key(KNOWN_KEY) == ("0123456789ab", hashlib.sha256(b"A" * 43).digest())


@given(st.integers(0, len(KNOWN_KEY) - 1), st.sampled_from(ALPHABET + "_- \n\x00é٣"))
def test_one_wrong_character_is_noticed(position: int, character: str):
    """
    Any single changed character makes the text no key, without asking the database.
    """
    changed = KNOWN_KEY[:position] + character + KNOWN_KEY[position + 1 :]
    assert changed == KNOWN_KEY or parse_key(changed) is None


@given(st.text())
def test_no_text_upsets_the_parser(text: str):
    """
    Whatever is sent in place of a key, before or behind one, is simply no key.
    """
    for candidate in (text, KNOWN_KEY[:22] + text, text + KNOWN_KEY, KNOWN_KEY + text):
        assert candidate == KNOWN_KEY or parse_key(candidate) is None
