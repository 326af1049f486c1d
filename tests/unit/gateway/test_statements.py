"""
Goal: a statement reads the same as JSON and as CSV, and one that breaks off looks like it.
Method: parts made by hand, written, and read back with the parsers that clients have.
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator

import msgspec
import pytest

from gateway.history_wire import Statement, StatementClosing, StatementError, StatementOpening
from gateway.statements import STATEMENT_COLUMNS, csv_pieces, json_pieces
from processor.core.commands import TransferType
from processor.storage.entries import EntryRow, PastBalance
from processor.storage.statement import Closing, Flaw, Opening, Part, Side

OPENING = Opening("w", "EUR", PastBalance(4, -250, 1_000_000), 6)
CLOSING = Closing(PastBalance(6, 1_749, 3_000_000), Side(1, 1), Side(1, 2_000))
FLAW = Flaw(6, "contradiction", "The balance should be 1 and is 2.")


def entry(
    version: int, *, reference: str | None = None, counterparty: str | None = "x"
) -> EntryRow:
    return EntryRow(
        version,
        version == 6,
        1_750 if version == 5 else 1_749,
        counterparty,
        bytes(16),
        TransferType.TRANSFER,
        2_000 if version == 5 else 1,
        "EUR",
        *(reference, '{"k":1}', 0, 7, version * 500_000),
    )


async def given(*parts: Part) -> AsyncIterator[Part]:
    for part in parts:
        yield part


async def as_json(*parts: Part) -> Statement:
    return msgspec.json.decode(
        b"".join([p async for p in json_pieces(given(*parts))]), type=Statement
    )


async def as_csv(*parts: Part, exponent: int = 2) -> list[dict[str, str]]:
    pieces = [piece async for piece in csv_pieces(given(*parts), {"EUR": exponent})]
    return list(csv.DictReader(io.StringIO(b"".join(pieces).decode(), newline="")))


async def test_json_is_one_document() -> None:
    """
    However many pages there were.
    """
    for pages in ([[entry(5), entry(6)]], [[entry(5)], [entry(6)]]):
        told = await as_json(OPENING, *pages, CLOSING)
        assert told.opening == StatementOpening(-250, 4, "1970-01-01T00:00:01.000000Z")
        assert [row.version for row in told.entries] == [5, 6]
        assert told.entries[0].metadata == {"k": 1}
        at = "1970-01-01T00:00:03.000000Z"
        assert told.closing == StatementClosing(1_749, 6, at, 1, 1, 1, 2_000)
        assert told.error is None


async def test_json_that_breaks_off_says_so() -> None:
    """
    With rows before, and without any.
    """
    for pages in ([], [[entry(5)]]):
        told = await as_json(OPENING, *pages, FLAW)
        assert len(told.entries) == len(pages)
        assert told.closing is None
        assert told.error == StatementError("contradiction", 6, FLAW.detail)


async def test_csv_has_a_line_for_each_part() -> None:
    """
    Amounts are in major units, debits and credits apart; the closing has their sums and counts.
    """
    opening, credit, debit, closing = await as_csv(OPENING, [entry(5)], [entry(6)], CLOSING)
    assert tuple(opening) == STATEMENT_COLUMNS
    assert (opening["row"], opening["version"], opening["balance"]) == ("opening", "4", "-2.50")
    assert (credit["row"], credit["debit"], credit["credit"]) == ("entry", "", "20.00")
    assert (debit["debit"], debit["credit"], debit["balance"]) == ("0.01", "", "17.49")
    assert (closing["row"], closing["debit"], closing["credit"]) == ("closing", "0.01", "20.00")
    assert (closing["debit_count"], closing["credit_count"]) == ("1", "1")
    assert closing["balance"] == "17.49"


async def test_csv_that_breaks_off_says_so() -> None:
    """
    Its last line is an error and no closing.
    """
    *_, last = await as_csv(OPENING, [entry(5)], FLAW)
    assert (last["row"], last["version"], last["detail"]) == ("error", "6", FLAW.detail)


async def test_a_currency_has_its_own_decimals() -> None:
    """
    None for one, three for another.
    """
    for exponent, text in ((0, "-250"), (3, "-0.250")):
        opening, _ = await as_csv(OPENING, CLOSING, exponent=exponent)
        assert opening["balance"] == text


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t", "\r", "\n", *"\uff1d\uff0b\uff0d\uff20"]
)
async def test_no_text_becomes_a_formula(start: str) -> None:
    """
    What others wrote gets an apostrophe; amounts stay numbers.
    """
    text = f'{start}HYPERLINK("x"),\n2'
    _, line, _ = await as_csv(OPENING, [entry(5, reference=text)], CLOSING)
    assert line["reference"] == f"'{text}"
    _, line, _ = await as_csv(OPENING, [entry(5, counterparty=None)], CLOSING)
    assert line["counterparty"] == line["reference"] == ""
