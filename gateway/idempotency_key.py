"""
The Idempotency-Key: how it is written in the header, and what it means to the ledger.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from gateway.problems import FieldError, Refusal
from gateway.validation import is_idempotency_key

HEADER = "Idempotency-Key"
_ESCAPED = re.compile(r'\\(["\\])')
_QUOTED = re.compile(r'"(?:[^"\\]|\\["\\])*"')


def parse_header(value: bytes | None) -> str:
    """
    Read the key; raises Refusal when it is missing or malformed.

    A quoted string (RFC 8941) is the same key as its content.
    """
    if value is None:
        raise Refusal("idempotency_key_missing", errors=[_error("required", "Send this header.")])
    key = value.decode("latin-1")
    if key.startswith('"') and _QUOTED.fullmatch(key):
        key = _ESCAPED.sub(r"\1", key[1:-1])
    if not is_idempotency_key(key):
        error = _error("bad_format", "A key is 1 to 255 visible ASCII characters.")
        raise Refusal("idempotency_key_invalid", errors=[error])
    return key


def command_key(merchant_id: str, wallet_id: str, idempotency_key: str) -> bytes:
    """
    Hash the key in its scope: 16 bytes, the same for ever.

    *wallet_id* is the caller's own wallet: the source, or for a deposit the destination. The
    lengths in front keep two scopes from running into each other.
    """
    text = f"{len(merchant_id)}:{merchant_id}{len(wallet_id)}:{wallet_id}{idempotency_key}"
    return blake2b(text.encode(), digest_size=16).digest()


def _error(code: str, detail: str) -> FieldError:
    return FieldError(code, detail, parameter=HEADER)
