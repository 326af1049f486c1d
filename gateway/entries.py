"""
A wallet's history: its entries, by version, from either end.
"""

from __future__ import annotations

from gateway.endpoint import Call
from gateway.identifiers import timestamp_text, uuid_text
from gateway.reply import Reply, json_reply
from gateway.shard_client import SHARD_ID
from gateway.transfers import metadata_object, type_text
from gateway.wallets import link_next, page_limit, query_invalid, read_wallet, wallet_id_of
from gateway.wire import EntriesQuery, Entry, EntryPage
from processor.storage.history import EntryRow


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
        await gateway.watermarks.reach(SHARD_ID, query.min_sequence, timeout_ms=gateway.timeout_ms)
    await _check_owner(call, wallet_id)
    if query.after is not None:
        rows = await gateway.history.entries_after(wallet_id, query.after, limit + 1)
    else:
        rows = await gateway.history.entries_before(wallet_id, query.before, limit + 1)
    page, has_more = rows[:limit], len(rows) > limit
    cursor = page[-1].version if has_more else None
    direction = "before" if query.after is None else "after"
    path = f"/v1/wallets/{wallet_id}/entries?{direction}={cursor}&limit={limit}"
    links = (link_next(path),) if has_more else ()
    entries = [_shown(row) for row in page]
    return json_reply(200, EntryPage(entries, has_more, cursor), *links)


async def _check_owner(call: Call, wallet_id: str) -> None:
    row = await call.gateway.history.wallet(wallet_id)
    if row is None or row.merchant_id != call.caller.merchant_id:
        # A wallet that was just opened is not in the tables; a foreign one takes as long.
        await read_wallet(call, wallet_id)


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
