"""
A wallet's statement, as JSON and as CSV, sent while it is read.

Rule 1: the first page is read before the reply begins, so that a history which is not whole is
        refused as everywhere; later it ends the statement with an error.
Rule 2: what ends without a closing is not a whole statement, in either form.
What a spreadsheet might take for a formula leaves as text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from gateway.balances import time_text
from gateway.endpoint import Call
from gateway.entries import shown_entry
from gateway.histories import (
    Past,
    instant_us,
    not_whole_yet,
    read_past,
    require_version,
    span_between,
    until_whole,
)
from gateway.history_wire import (
    StatementClosing,
    StatementError,
    StatementOpening,
    StatementQuery,
)
from gateway.identifiers import timestamp_text, uuid_text
from gateway.payouts import CSV, as_text, csv_lines
from gateway.reply import JSON_HEADERS, Reply, StreamedReply, encode
from gateway.transfers import type_text
from gateway.wallets import query_invalid
from processor.flow.payout_file import format_major
from processor.storage.entries import EntryRow, Span
from processor.storage.statement import Closing, Flaw, Opening, Part, statement_parts

STATEMENT_COLUMNS = (
    "row",
    "version",
    "created_at",
    "type",
    "debit",
    "credit",
    "balance",
    "currency",
    "counterparty",
    "reference",
    "transfer_id",
    "debit_count",
    "credit_count",
    "detail",
)


async def get_statement(call: Call) -> Reply:
    """
    Send a statement as one JSON document.
    """
    return StreamedReply(200, json_pieces(await _begun(call)), JSON_HEADERS)


async def get_statement_csv(call: Call) -> Reply:
    """
    Send a statement as CSV, amounts in major units.
    """
    exponents = call.gateway.settings.currency_exponents
    pieces = csv_pieces(await _begun(call), exponents)
    name = f'attachment; filename="{call.parameters[0]}.csv"'
    return StreamedReply(200, pieces, (CSV, (b"content-disposition", name.encode())))


# --- Which statement ----------------------------------------------------------------------


async def _begun(call: Call) -> AsyncIterator[Part]:
    """
    Begin the statement that the query asks for; raises Refusal.
    """
    _check(call.query)
    opening = await read_past(call, lambda past: _opening(call, past))

    async def read_page(span: Span) -> list[EntryRow] | None:
        return await until_whole(
            call, lambda: call.gateway.history.entries(opening.wallet_id, span)
        )

    parts = statement_parts(opening, read_page)
    first, second = await anext(parts), await anext(parts)
    if isinstance(second, Flaw) and second.kind == "missing":
        raise not_whole_yet()
    return _with_first(first, second, parts)


async def _with_first(first: Part, second: Part, rest: AsyncIterator[Part]) -> AsyncIterator[Part]:
    yield first
    yield second
    async for part in rest:
        yield part


def _check(query: StatementQuery) -> None:
    first, last = query.from_version, query.to_version
    since_us, until_us = instant_us(query.from_, "from"), instant_us(query.to, "to")
    if (first or last) is not None and (query.from_ or query.to) is not None:
        raise query_invalid("from_version", "not_allowed", "Give instants or versions, not both.")
    if first is not None and last is not None and last < first:
        raise query_invalid("to_version", "out_of_range", "It is below from_version.")
    if since_us is not None and until_us is not None and until_us < since_us:
        raise query_invalid("to", "out_of_range", "It is before from.")


async def _opening(call: Call, past: Past) -> Opening | None:
    """
    Read where the statement begins and fix where it ends; None when it is too early.
    """
    query: StatementQuery = call.query
    if query.from_version is None and query.to_version is None:
        span = await span_between(call, past, call.query)
    else:
        span = await _span_of_versions(call, past)
    if span is None:
        return None
    before = await call.gateway.history.balance_of_version(past.wallet_id, span.first - 1)
    if before is None:
        return None
    return Opening(past.wallet_id, past.currency, before, max(before.version, span.last))


async def _span_of_versions(call: Call, past: Past) -> Span | None:
    query: StatementQuery = call.query
    first = query.from_version or 1
    last = past.known if query.to_version is None else query.to_version
    for version, parameter in ((first - 1, "from_version"), (last, "to_version")):
        if not await require_version(call, past, version, parameter):
            return None
    return Span(first, last)


# --- How it is written --------------------------------------------------------------------


async def json_pieces(parts: AsyncIterator[Part]) -> AsyncIterator[bytes]:
    """
    Write a statement as a JSON document.
    """
    separator = b""
    async for part in parts:
        match part:
            case Opening(wallet_id, currency, before):
                names = (encode(wallet_id), encode(currency))
                opening = StatementOpening(before.balance, before.version, time_text(before.at_us))
                yield b'{"wallet_id":%b,"currency":%b,' % names
                yield b'"opening":%b,"entries":[' % encode(opening)
            case Closing():
                yield b'],"closing":%b,"error":null}' % encode(_shown_closing(part))
            case Flaw(version, kind, detail):
                error = StatementError(kind, version, detail)
                yield b'],"closing":null,"error":%b}' % encode(error)
            case rows:
                yield separator + encode([shown_entry(row) for row in rows])[1:-1]
                separator = b","


async def csv_pieces(
    parts: AsyncIterator[Part], exponents: Mapping[str, int]
) -> AsyncIterator[bytes]:
    """
    Write a statement as CSV.
    """
    exponent = 0
    currency = ""
    yield csv_lines([STATEMENT_COLUMNS])
    async for part in parts:
        match part:
            case Opening(_, currency):
                exponent = exponents[currency]
                yield csv_lines([_opening_line(part, exponent)])
            case Closing():
                yield csv_lines([_closing_line(part, currency, exponent)])
            case Flaw(version, _, detail):
                yield csv_lines([("error", version, *[""] * 11, detail)])
            case rows:
                yield csv_lines(entry_line(row, exponent) for row in rows)


def _shown_closing(closing: Closing) -> StatementClosing:
    after = closing.after
    return StatementClosing(
        after.balance,
        after.version,
        time_text(after.at_us),
        closing.debits.count,
        closing.debits.amount,
        closing.credits.count,
        closing.credits.amount,
    )


def entry_line(row: EntryRow, exponent: int) -> tuple[str | int, ...]:
    """
    Write one row of a statement.
    """
    amount = format_major(row.amount, exponent)
    return (
        "entry",
        row.version,
        timestamp_text(row.at_us),
        type_text(row.transfer_type),
        amount if row.is_debit else "",
        "" if row.is_debit else amount,
        _major(row.balance, exponent),
        row.currency,
        as_text(row.counterparty or ""),
        as_text(row.reference or ""),
        uuid_text(row.transfer_id),
        *("", "", ""),
    )


def _opening_line(opening: Opening, exponent: int) -> tuple[str | int, ...]:
    before = opening.before
    return (
        "opening",
        before.version,
        time_text(before.at_us) or "",
        *("", "", ""),
        _major(before.balance, exponent),
        opening.currency,
        *("", "", "", "", "", ""),
    )


def _closing_line(closing: Closing, currency: str, exponent: int) -> tuple[str | int, ...]:
    after = closing.after
    return (
        "closing",
        after.version,
        time_text(after.at_us) or "",
        "",
        format_major(closing.debits.amount, exponent),
        format_major(closing.credits.amount, exponent),
        _major(after.balance, exponent),
        currency,
        *("", "", ""),
        closing.debits.count,
        closing.credits.count,
        "",
    )


def _major(amount: int, exponent: int) -> str:
    text = format_major(abs(amount), exponent)
    return f"-{text}" if amount < 0 else text
