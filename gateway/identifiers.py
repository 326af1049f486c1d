"""
Identifiers the gateway makes, and how bytes and times are written.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import uuid_utils

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT_US_MAX = 253_402_300_799_999_999  # The last of the year 9999.
_INSTANT = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:[0-5]\d)", re.ASCII
)
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")


def new_transfer_id() -> bytes:
    """
    Make a UUIDv7: 16 bytes that sort by time.
    """
    return uuid_utils.uuid7().bytes


def new_wallet_id() -> str:
    """
    Make `wal_` and a UUIDv7 in 26 lowercase characters of Crockford's base 32.
    """
    number = uuid_utils.uuid7().int
    return "wal_" + "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def uuid_text(identifier: bytes) -> str:
    """
    Write 16 bytes as 8-4-4-4-12 lowercase hexadecimal digits.
    """
    digits = identifier.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def parse_uuid(text: str) -> bytes | None:
    """
    Read what `uuid_text` writes, in either case; None for anything else.
    """
    return bytes.fromhex(text.replace("-", "")) if _UUID.fullmatch(text) else None


def timestamp_text(at_us: int) -> str:
    """
    Write µs since 1970 as RFC 3339 in UTC, always with six digits after the second.
    """
    second, microsecond = divmod(at_us, 1_000_000)
    return f"{_second_text(second)}.{microsecond:06d}Z"


def parse_timestamp(text: str) -> int | None:
    """
    Read an instant of RFC 3339 as µs since 1970; None for anything else.

    What is smaller than a microsecond is cut off, and what was before 1970 is then.
    """
    match = _INSTANT.fullmatch(text)
    if match is None:
        return None
    second, fraction, offset = match.groups()
    try:
        at = datetime.fromisoformat(f"{second}{offset}".upper())
    except ValueError:  # The 31st of June.
        return None
    microsecond = int((fraction or ".")[1:7].ljust(6, "0"))
    at_us = (at - _EPOCH) // timedelta(microseconds=1) + microsecond
    return min(max(at_us, 0), _INSTANT_US_MAX)


@lru_cache(maxsize=1024)
def _second_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
