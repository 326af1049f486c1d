"""
Merchants and their keys to the interface.

A key reads `mil_live_<id>_<secret><checksum>`: 12, 43 and 6 base62 digits. The prefix and the
checksum (crc32 of all before it) let a scanner recognise a leaked key without asking anybody;
the secret is 256 random bits.

Rule 1: the text is shown once, when the key is made. Only the SHA-256 of the secret is stored;
        a slow hash would guard nothing here, where secrets cannot be guessed.
Rule 2: `parse_key` needs no database, so garbage costs no query. The hashes are compared in
        constant time, by `same_secret`.
Rule 3: a merchant's id is short and plain: the ids of the merchant's wallets of fees contain it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Set as AbstractSet
from datetime import datetime
from enum import StrEnum

import asyncpg
import msgspec

from processor.storage.connection import Connection

PREFIX = "mil_live_"
KEY_ID_DIGITS = 12
SECRET_BYTES = 32
SECRET_DIGITS = 43
CHECKSUM_DIGITS = 6

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DIGIT = "[0-9A-Za-z]"
_MERCHANT_ID = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_KEY = re.compile(
    f"({PREFIX}({_DIGIT}{{{KEY_ID_DIGITS}}})_({_DIGIT}{{{SECRET_DIGITS}}}))"
    f"({_DIGIT}{{{CHECKSUM_DIGITS}}})"
)


class Scope(StrEnum):
    """
    What a key may do: one closed list.
    """

    WALLETS_READ = "wallets:read"
    WALLETS_WRITE = "wallets:write"
    LIMITS_WRITE = "limits:write"
    TRANSFERS_READ = "transfers:read"
    TRANSFERS_WRITE = "transfers:write"
    DEPOSITS_WRITE = "deposits:write"
    WITHDRAWALS_WRITE = "withdrawals:write"
    PAYOUTS_READ = "payouts:read"
    PAYOUTS_WRITE = "payouts:write"
    KEYS_ADMIN = "keys:admin"


class ApiKey(msgspec.Struct, frozen=True):
    """
    A key as it is stored: everything but the secret.
    """

    key_id: str
    merchant_id: str
    secret_hash: bytes
    scopes: frozenset[Scope]
    label: str
    created_at: datetime
    revoked_at: datetime | None


class MerchantIdUnfit(Exception):
    """
    A merchant cannot be called that; the text says what the id of one is.
    """

    def __init__(self, merchant_id: str) -> None:
        words = "1 to 32 of A-Z a-z 0-9 . _ - and begins with a letter or a digit"
        super().__init__(f"A merchant's id is {words}; {merchant_id!r} is not.")


class MerchantUnknown(Exception):
    """
    A key was wanted for a merchant that does not exist.
    """


def parse_key(text: str) -> tuple[str, bytes] | None:
    """
    Split a key into its id and the hash of its secret; None when it cannot be a key of ours.
    """
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    signed, key_id, secret, checksum = match.groups()
    return (key_id, _secret_hash(secret)) if checksum == _checksum(signed) else None


def same_secret(key: ApiKey, secret_hash: bytes) -> bool:
    """
    Say in constant time whether *secret_hash* is the key's.
    """
    return hmac.compare_digest(key.secret_hash, secret_hash)


async def create_merchant(conn: Connection, merchant_id: str, name: str) -> bool:
    """
    Create a merchant; False when the id is taken, and then nothing changes.

    Raises MerchantIdUnfit, but not for one that there is: ids had no bounds once.
    """
    if _MERCHANT_ID.fullmatch(merchant_id) is None:
        if await conn.fetchval("SELECT true FROM merchants WHERE merchant_id = $1", merchant_id):
            return False
        raise MerchantIdUnfit(merchant_id)
    created = await conn.fetchval(
        "INSERT INTO merchants (merchant_id, name) VALUES ($1, $2)"
        " ON CONFLICT DO NOTHING RETURNING true",
        merchant_id,
        name,
    )
    return created is not None


async def create_key(
    conn: Connection, merchant_id: str, scopes: AbstractSet[Scope], label: str
) -> tuple[ApiKey, str]:
    """
    Make a key and return it with its text, which is never seen again.

    Raises MerchantUnknown.
    """
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(KEY_ID_DIGITS))
    secret = _base62(int.from_bytes(secrets.token_bytes(SECRET_BYTES)), SECRET_DIGITS)
    signed = f"{PREFIX}{key_id}_{secret}"
    try:
        row = await conn.fetchrow(
            "INSERT INTO api_keys (key_id, merchant_id, secret_hash, scopes, label)"
            " VALUES ($1, $2, $3, $4, $5) RETURNING *",
            key_id,
            merchant_id,
            _secret_hash(secret),
            sorted(scopes),
            label,
        )
    except asyncpg.ForeignKeyViolationError as error:
        raise MerchantUnknown(merchant_id) from error
    assert row is not None, "INSERT ... RETURNING gives one row"
    return _key_from(row), signed + _checksum(signed)


async def find_key(conn: Connection, key_id: str) -> ApiKey | None:
    """
    Read a key that is in force; None when it is unknown or revoked.
    """
    row = await conn.fetchrow(
        "SELECT * FROM api_keys WHERE key_id = $1 AND revoked_at IS NULL", key_id
    )
    return None if row is None else _key_from(row)


async def list_keys(conn: Connection, merchant_id: str) -> list[ApiKey]:
    """
    List a merchant's keys, revoked ones too, oldest first.
    """
    rows = await conn.fetch(
        "SELECT * FROM api_keys WHERE merchant_id = $1 ORDER BY created_at, key_id", merchant_id
    )
    return [_key_from(row) for row in rows]


async def revoke_key(conn: Connection, merchant_id: str, key_id: str) -> bool:
    """
    End a merchant's key for ever; False when the merchant has no such key in force.
    """
    revoked = await conn.fetchval(
        "UPDATE api_keys SET revoked_at = now()"
        " WHERE key_id = $1 AND merchant_id = $2 AND revoked_at IS NULL RETURNING true",
        key_id,
        merchant_id,
    )
    return revoked is not None


def _key_from(row: asyncpg.Record) -> ApiKey:
    # A scope of a newer build grants nothing here.
    scopes = frozenset(scope for scope in Scope if scope.value in row["scopes"])
    return ApiKey(
        row["key_id"],
        row["merchant_id"],
        row["secret_hash"],
        scopes,
        row["label"],
        row["created_at"],
        row["revoked_at"],
    )


def _secret_hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _checksum(signed: str) -> str:
    return _base62(zlib.crc32(signed.encode()), CHECKSUM_DIGITS)


def _base62(number: int, digits: int) -> str:
    text = ""
    for _ in range(digits):
        number, digit = divmod(number, len(_ALPHABET))
        text = _ALPHABET[digit] + text
    assert number == 0, "the number does not fit"
    return text
