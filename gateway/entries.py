"""
A wallet's entries, in pages by version, from either end.

Rule: a page looks through a bounded number of entries, whatever it is asked to leave out.
"""

from __future__ import annotations

from urllib.parse import urlencode

import msgspec

from gateway.endpoint import Call
from gateway.histories import Past, instant_us, read_past, span_between
from gateway.history_wire import EntriesQuery
from gateway.identifiers import timestamp_text, uuid_text
from gateway.reply import Reply, json_reply
from gateway.transfers import metadata_object, type_text
from gateway.wallets import link_next, page_limit, query_invalid
from gateway.wire import Entry, EntryPage
from processor.core.commands import TransferType
from processor.storage.entries import EntryFilter, EntryRow, Span

LOOKED_AT_MAX = 5_000  # Entries a page looks through for those that were asked for.

_TYPES: dict[str, TransferType] = {type_text(one): one for one in TransferType}


class Page(msgspec.Struct, frozen=True):
    """
    The rows of a page, and behind which version the next one goes on; None: there is none.
    """

    rows: list[EntryRow]
    cursor: int | None


async def list_entries(call: Call) -> Reply:
    """
    Show the entries after a version, oldest first, or else before one, newest first.
    """
    query: EntriesQuery = call.query
    limit = page_limit(call, query.limit)
    _check(query)

    async def read(past: Past) -> Page | None:
        bounds = await _bounds(call, past)
        return None if bounds is None else await _page(call, past, bounds, limit)

    page = await read_past(call, read)
    has_more = page.cursor is not None
    links = (link_next(_next_path(call, page.cursor, limit)),) if has_more else ()
    entries = [shown_entry(row) for row in page.rows]
    return json_reply(200, EntryPage(entries, has_more, page.cursor), *links)


def _check(query: EntriesQuery) -> None:
    if query.after is not None and query.before is not None:
        raise query_invalid("before", "not_allowed", "Give after or before, not both.")
    if query.reference is not None and "\0" in query.reference:
        raise query_invalid("reference", "bad_format", "No reference has a NUL in it.")
    instant_us(query.from_, "from")
    instant_us(query.to, "to")


async def _bounds(call: Call, past: Past) -> Span | None:
    """
    Find the versions that the query's instants and cursor leave; None when it is too early.
    """
    query: EntriesQuery = call.query
    span = await span_between(call, past, query)
    if span is None:
        return None
    first, last = span.first, min(past.known, span.last)
    if query.after is not None:
        return Span(max(first, query.after + 1), last)
    return Span(first, last if query.before is None else min(last, query.before - 1))


async def _page(call: Call, past: Past, bounds: Span, limit: int) -> Page | None:
    """
    Read a page of *bounds* from the end that the query begins at; None when it is not whole.
    """
    query: EntriesQuery = call.query
    newest_first = query.after is None
    only = EntryFilter(None if query.type is None else _TYPES[query.type], query.reference)
    history = call.gateway.history
    if only == EntryFilter():
        span = end_of(bounds, limit, newest_first=newest_first)
        found = await history.entries(past.wallet_id, span)
        rows = found[::-1] if found and newest_first else found
    else:
        span = end_of(bounds, LOOKED_AT_MAX, newest_first=newest_first)
        rows = await history.entries_chosen(
            past.wallet_id, span, only, limit=limit, newest_first=newest_first
        )
    if rows is None:
        return None
    return Page(rows, cursor_of(rows, span, bounds, limit, newest_first=newest_first))


def end_of(bounds: Span, size_max: int, *, newest_first: bool) -> Span:
    """
    Cut *bounds* down to the versions that a page looks at.
    """
    if newest_first:
        return Span(max(bounds.first, bounds.last - size_max + 1), bounds.last)
    return Span(bounds.first, min(bounds.last, bounds.first + size_max - 1))


def cursor_of(
    rows: list[EntryRow], span: Span, bounds: Span, limit: int, *, newest_first: bool
) -> int | None:
    """
    Say up to where a page has looked, if something is behind it: to its last row when it is
    full, otherwise through all of *span*.
    """
    if not span.size:
        return None
    end = span.first if newest_first else span.last
    if len(rows) == limit:
        end = rows[-1].version
    return None if end == (bounds.first if newest_first else bounds.last) else end


def _next_path(call: Call, cursor: int | None, limit: int) -> str:
    query: EntriesQuery = call.query
    wanted = {
        "before" if query.after is None else "after": cursor,
        "limit": limit,
        "type": query.type,
        "reference": query.reference,
        "from": query.from_,
        "to": query.to,
    }
    chosen = urlencode({name: value for name, value in wanted.items() if value is not None})
    return f"/v1/wallets/{call.parameters[0]}/entries?{chosen}"


def shown_entry(row: EntryRow) -> Entry:
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
