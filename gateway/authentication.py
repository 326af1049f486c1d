"""
Who is asking: API keys, verified once and remembered for a short while.

Rule 1: a key is remembered by the hash of the whole header, never by the secret itself.
Rule 2: a revoked key stops within `KNOWN_S` everywhere, and at once in the process that revoked
        it. A key that is not valid is looked up once in `UNKNOWN_S`.
Rule 3: whatever is wrong with a key, the answer is the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from hashlib import sha256

import msgspec

from gateway.problems import Refusal
from processor.flow.ports import StoreUnavailable
from processor.storage.api_keys import Scope, parse_key, same_secret
from processor.storage.key_store import KeyStore

KNOWN_S = 30.0
UNKNOWN_S = 2.0
REMEMBERED_MAX = 20_000

_SOON = (b"retry-after", b"1")
_SCHEME = (b"www-authenticate", b'Bearer realm="miliano"')
_INVALID = (b"www-authenticate", b'Bearer realm="miliano", error="invalid_token"')


class Caller(msgspec.Struct, frozen=True):
    """
    The merchant behind a valid key, and what the key may do.
    """

    merchant_id: str
    key_id: str
    scopes: frozenset[Scope]


# A caller, or None for what is not a valid key, and until when that is believed.
Known = tuple[Caller | None, float]

ANYBODY = Caller("", "", frozenset())
_NEVER: Known = (None, 0.0)


class VerifiedKeys:
    """
    Answers from memory where it can; one look-up serves all who ask for the same key.
    """

    def __init__(self, store: KeyStore, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock_s = clock_s
        self._known: dict[bytes, Known] = {}
        self._under_way: dict[bytes, asyncio.Task[Caller | None]] = {}

    def known(self, header: bytes | None) -> Caller | None:
        """
        Say who sent this Authorization header if that is remembered; otherwise ask `caller`.
        """
        if header is None:
            return None
        caller, expires_s = self._known.get(sha256(header).digest(), _NEVER)
        return caller if self._clock_s() < expires_s else None

    async def caller(self, header: bytes | None) -> Caller:
        """
        Say who sent this Authorization header; raises Refusal.
        """
        if header is None:
            raise Refusal("api_key_missing", headers=(_SCHEME,))
        digest = sha256(header).digest()
        caller, expires_s = self._known.get(digest, _NEVER)
        if self._clock_s() >= expires_s:
            try:
                caller = await self._verified(digest, header)
            except StoreUnavailable:
                raise Refusal("unavailable", headers=(_SOON,)) from None
        if caller is None:
            raise Refusal("api_key_invalid", headers=(_INVALID,))
        return caller

    def forget(self, key_id: str) -> None:
        """
        Ask again for this key from now on: it was revoked.
        """
        self._under_way.clear()
        self._known = {
            digest: known
            for digest, known in self._known.items()
            if known[0] is None or known[0].key_id != key_id
        }

    async def _verified(self, digest: bytes, header: bytes) -> Caller | None:
        scheme, _, text = header.decode("latin-1").partition(" ")
        parsed = parse_key(text.strip()) if scheme.lower() == "bearer" else None
        if parsed is None:
            return None
        task = self._under_way.get(digest)
        if task is None:
            task = asyncio.create_task(self._look_up(digest, *parsed))
            self._under_way[digest] = task
        return await asyncio.shield(task)

    async def _look_up(self, digest: bytes, key_id: str, secret_hash: bytes) -> Caller | None:
        this = asyncio.current_task()
        try:
            key = await self._store.find(key_id)
            caller = None
            if key is not None and same_secret(key, secret_hash):
                caller = Caller(key.merchant_id, key.key_id, key.scopes)
            if self._under_way.get(digest) is this:
                self._remember(digest, caller)
            return caller
        finally:
            if self._under_way.get(digest) is this:
                del self._under_way[digest]

    def _remember(self, digest: bytes, caller: Caller | None) -> None:
        if len(self._known) >= REMEMBERED_MAX:
            self._known.clear()
        seconds = UNKNOWN_S if caller is None else KNOWN_S
        self._known[digest] = (caller, self._clock_s() + seconds)
