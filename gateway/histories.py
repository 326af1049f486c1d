"""
What all reads of a wallet's past have in common: whose it is, from when, and waiting for it.

Rule 1: a history that a version is missing from is never shown: a client that went on behind it
        would never see that entry. A wallet that has moved may have to be waited for: what it did
        at its shard before can be projected after what it did since.
Rule 2: a foreign wallet's past is as unknown as that of none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from gateway.endpoint import Call
from gateway.history_wire import EntriesQuery, HistoryQuery, StatementQuery
from gateway.identifiers import parse_timestamp
from gateway.problems import Refusal
from gateway.shard_client import ShardUnavailable
from gateway.wallets import query_invalid, read_wallet, wallet_id_of
from processor.core.slots import NOWHERE
from processor.storage.entries import Span
from processor.storage.history import WalletRow

LOOK_S = 0.02

T = TypeVar("T")


class Past(msgspec.Struct, frozen=True):
    """
    The caller's wallet as the tables have it: *known* is its last version there, and *row* None
    while they do not have the wallet itself, being new or on its way to another shard.
    """

    wallet_id: str
    currency: str
    known: int
    row: WalletRow | None


async def read_past(call: Call, read: Callable[[Past], Awaitable[T | None]]) -> T:
    """
    Read something of the path's wallet, again and again until it is whole (not None); raises
    Refusal when time is up, and for wallets of others.
    """
    wallet_id = await _reached(call)

    async def read_anew() -> T | None:
        return await read(await _past(call, wallet_id))

    found = await until_whole(call, read_anew)
    if found is None:
        raise not_whole_yet()
    return found


async def until_whole(call: Call, read: Callable[[], Awaitable[T | None]]) -> T | None:
    """
    Read again and again until it is whole (not None), or time is up.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + call.gateway.timeout_ms / 1000
    while True:
        found = await read()
        if found is not None or loop.time() > deadline:
            return found
        await asyncio.sleep(LOOK_S)


async def require_version(call: Call, past: Past, version: int, parameter: str) -> bool:
    """
    Say whether the tables have *version*; raises Refusal when the wallet itself has not.
    """
    if version <= past.known:
        return True
    found, _ = await read_wallet(call, past.wallet_id)
    if version > found.version:
        detail = f"The wallet's last version is {found.version}."
        raise query_invalid(parameter, "out_of_range", detail)
    return False


def instant_us(text: str | None, parameter: str) -> int | None:
    """
    Read an instant of the query; raises Refusal.
    """
    if text is None:
        return None
    at_us = parse_timestamp(text)
    if at_us is None:
        detail = "Give an instant as in 2026-05-31T22:00:00Z; a + before an offset is %2B in a URL."
        raise query_invalid(parameter, "bad_format", detail)
    return at_us


async def version_before(call: Call, past: Past, at_us: int) -> int | None:
    """
    Find the last version before an instant; None when that cannot be told yet.
    """
    if at_us == 0:
        return 0
    found = await call.gateway.history.balance_at(past.wallet_id, at_us - 1, known=past.known)
    return None if found is None else found.version


async def span_between(call: Call, past: Past, query: EntriesQuery | StatementQuery) -> Span | None:
    """
    Find the versions between the instants of *query*; None when the history lacks some.
    """
    first, last = 1, past.known
    since_us, until_us = instant_us(query.from_, "from"), instant_us(query.to, "to")
    if since_us is not None:
        before = await version_before(call, past, since_us)
        if before is None:
            return None
        first = before + 1
    if until_us is not None:
        before = await version_before(call, past, until_us)
        if before is None:
            return None
        last = before
    return Span(first, last)


def not_whole_yet() -> Refusal:
    detail = "The wallet has moved; what it did before is on its way into the history."
    return Refusal("not_projected_yet", detail, headers=((b"retry-after", b"1"),))


async def _reached(call: Call) -> str:
    """
    Wait until the tables have what the query wants to see, and return the path's wallet.
    """
    query: HistoryQuery = call.query
    gateway = call.gateway
    wallet_id = wallet_id_of(call)
    if query.min_sequence:
        shard_id = _shard_asked(call, query, wallet_id)
        await gateway.watermarks.reach(shard_id, query.min_sequence, timeout_ms=gateway.timeout_ms)
    return wallet_id


def _shard_asked(call: Call, query: HistoryQuery, wallet_id: str) -> int:
    shards = call.gateway.shards
    if query.shard is None:
        shard_id = shards.shard_of(wallet_id)
        if shard_id == NOWHERE:
            raise ShardUnavailable("no slot map yet")
        return shard_id
    if not shards.has_shard(query.shard):
        raise query_invalid("shard", "out_of_range", "Give the `shard` of the reply.")
    return query.shard


async def _past(call: Call, wallet_id: str) -> Past:
    """
    Read the caller's wallet as the tables have it; raises Refusal for others'.
    """
    history = call.gateway.history
    row = await history.wallet(wallet_id)
    if row is not None and row.merchant_id == call.caller.merchant_id:
        return Past(wallet_id, row.currency, row.version, row)
    # A wallet that was just opened is not in the tables; a foreign one takes as long.
    found, _ = await read_wallet(call, wallet_id)
    return Past(wallet_id, found.currency, await history.last_version(wallet_id), None)
