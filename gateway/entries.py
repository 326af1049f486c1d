"""
A wallet's history: its entries, by version, from either end.

Rule: a page that a version is missing from is never shown: a client that went on behind it
      would never see that entry.
"""

from __future__ import annotations

import asyncio

from gateway.endpoint import Call
from gateway.identifiers import timestamp_text, uuid_text
from gateway.problems import Refusal
from gateway.reply import Reply, json_reply
from gateway.shard_client import ShardUnavailable
from gateway.transfers import metadata_object, type_text
from gateway.wallets import link_next, page_limit, query_invalid, read_wallet, wallet_id_of
from gateway.wire import EntriesQuery, Entry, EntryPage
from processor.core.slots import NOWHERE
from processor.storage.history import EntryRow, is_whole

LOOK_S = 0.02


async def list_entries(call: Call) -> Reply:
    """
    Show the entries after a version, oldest first, or else before one, newest first.
    """
    query: EntriesQuery = call.query
    gateway = call.gateway
    wallet_id = wallet_id_of(call)
    limit = page_limit(call, query.limit)
    if query.after is not None and query.before is not None:
        raise query_invalid("before", "not_allowed", "Give after or before, not both.")
    if query.min_sequence:
        shard_id = _shard_asked(call, query, wallet_id)
        await gateway.watermarks.reach(shard_id, query.min_sequence, timeout_ms=gateway.timeout_ms)
    rows = await _whole_page(call, wallet_id, query, limit + 1)
    page, has_more = rows[:limit], len(rows) > limit
    cursor = page[-1].version if has_more else None
    direction = "before" if query.after is None else "after"
    path = f"/v1/wallets/{wallet_id}/entries?{direction}={cursor}&limit={limit}"
    links = (link_next(path),) if has_more else ()
    entries = [_shown(row) for row in page]
    return json_reply(200, EntryPage(entries, has_more, cursor), *links)


def _shard_asked(call: Call, query: EntriesQuery, wallet_id: str) -> int:
    shards = call.gateway.shards
    if query.shard is None:
        shard_id = shards.shard_of(wallet_id)
        if shard_id == NOWHERE:
            raise ShardUnavailable("no slot map yet")
        return shard_id
    if not shards.has_shard(query.shard):
        raise query_invalid("shard", "out_of_range", "Give the `shard` of the reply.")
    return query.shard


async def _whole_page(
    call: Call, wallet_id: str, query: EntriesQuery, limit: int
) -> list[EntryRow]:
    """
    Read a page that lacks nothing. A wallet that has moved may have to be waited for: what it
    did at its shard before can be projected after what it did since.
    """
    history = call.gateway.history
    loop = asyncio.get_running_loop()
    deadline = loop.time() + call.gateway.timeout_ms / 1000
    while True:
        known = await _version_known(call, wallet_id)
        if query.after is not None:
            rows = await history.entries_after(wallet_id, query.after, limit)
        else:
            rows = await history.entries_before(wallet_id, query.before, limit)
        if is_whole(rows, after=query.after, before=query.before, known=known, limit=limit):
            return rows
        if loop.time() > deadline:
            detail = "The wallet has moved; what it did before is on its way into the history."
            raise Refusal("not_projected_yet", detail, headers=((b"retry-after", b"1"),))
        await asyncio.sleep(LOOK_S)


async def _version_known(call: Call, wallet_id: str) -> int:
    """
    Return the version that the tables have of the caller's wallet; raises Refusal for others'.
    """
    row = await call.gateway.history.wallet(wallet_id)
    if row is not None and row.merchant_id == call.caller.merchant_id:
        return row.version
    # A wallet that was just opened is not in the tables; a foreign one takes as long.
    await read_wallet(call, wallet_id)
    return 0


def _shown(row: EntryRow) -> Entry:
    return Entry(
        row.version,
        "debit" if row.is_debit else "credit",
        row.amount,
        row.currency,
        row.balance,
        row.counterparty,
        uuid_text(row.transfer_id),
        type_text(row.transfer_type),
        row.reference,
        metadata_object(row.metadata),
        row.shard_id,
        row.sequence,
        timestamp_text(row.at_us),
    )
