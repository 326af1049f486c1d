"""
Goal: a statement has a closing only when every row follows from the one before it.
Method: a short history in pages, sound and with each kind of mistake in each of its rows.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from processor.core.commands import TransferType
from processor.storage import statement
from processor.storage.entries import NOTHING_YET, EntryRow, PastBalance, Span
from processor.storage.statement import Closing, Flaw, Opening, Part, Side, statement_parts

AMOUNTS = (100, -30, -20, 5, -1, 46, -100)
LAST = len(AMOUNTS)


def history() -> list[EntryRow]:
    """
    Make the entries of AMOUNTS, a debit where it is negative.
    """
    rows: list[EntryRow] = []
    balance = 0
    for version, amount in enumerate(AMOUNTS, 1):
        balance += amount
        facts = (version, amount < 0, balance, None, b"", TransferType.DEPOSIT, abs(amount), "EUR")
        rows.append(EntryRow(*facts, *(None, None, 0, version, version * 10)))
    return rows


def changed(at: int, **fields: Any) -> list[EntryRow]:
    return [
        msgspec.structs.replace(row, **fields) if row.version == at else row for row in history()
    ]


async def parts_of(
    rows: list[EntryRow], *, before: PastBalance = NOTHING_YET, last: int = LAST
) -> list[Part]:
    """
    Make the statement of *rows*; a page that one of them is missing from does not come.
    """

    async def read_page(span: Span) -> list[EntryRow] | None:
        page = rows[span.first - 1 : span.last]
        return page if len(page) == span.size else None

    opening = Opening("w", "EUR", before, last)
    return [part async for part in statement_parts(opening, read_page)]


@pytest.fixture(params=[1, 3, 100])
def page_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statement, "PAGE_ROWS", request.param)


@pytest.mark.usefixtures("page_rows")
async def test_it_opens_tells_and_closes() -> None:
    """
    The closing is the opening with the credits and without the debits, each of them counted.
    """
    first, *pages, closing = await parts_of(history())
    assert first == Opening("w", "EUR", NOTHING_YET, LAST)
    assert [row for page in pages for row in page] == history()
    assert closing == Closing(PastBalance(LAST, 0, LAST * 10), Side(4, 151), Side(3, 151))


@pytest.mark.usefixtures("page_rows")
async def test_it_may_begin_and_end_anywhere() -> None:
    """
    It goes from what was there before its first row up to its last one.
    """
    before = PastBalance(2, 70, 20)
    _, *pages, closing = await parts_of(history(), before=before, last=5)
    assert [row.version for page in pages for row in page] == [3, 4, 5]
    assert closing == Closing(PastBalance(5, 54, 50), Side(2, 21), Side(1, 5))


async def test_without_rows_it_closes_as_it_opened() -> None:
    """
    Of a time in which nothing happened, too.
    """
    before = PastBalance(3, 50, 30)
    opening, closing = await parts_of(history(), before=before, last=3)
    assert opening == Opening("w", "EUR", before, 3)
    assert closing == Closing(before, Side(0, 0), Side(0, 0))


@pytest.mark.usefixtures("page_rows")
@pytest.mark.parametrize("version", range(1, LAST + 1))
@pytest.mark.parametrize(
    "wrong",
    [{"balance": 1_000}, {"amount": 7}, {"version": 99}, {"currency": "USD"}, {"turned": True}],
    ids=str,
)
async def test_a_row_that_does_not_follow_ends_it(version: int, wrong: dict[str, Any]) -> None:
    """
    What is before it is told; it is not, and there is no closing.
    """
    if "turned" in wrong:
        wrong = {"is_debit": AMOUNTS[version - 1] > 0}
    _, *pages, flaw = await parts_of(changed(version, **wrong))
    assert isinstance(flaw, Flaw)
    assert flaw.kind == "contradiction"
    assert flaw.version == wrong.get("version", version)
    assert [row.version for page in pages for row in page] == list(range(1, version))


async def test_an_opening_that_is_wrong_is_found_out() -> None:
    """
    The first row is held against it as each row against the one before.
    """
    _, flaw = await parts_of(history(), before=PastBalance(2, 71, 20))
    assert isinstance(flaw, Flaw)
    assert (flaw.kind, flaw.version) == ("contradiction", 3)


@pytest.mark.usefixtures("page_rows")
async def test_a_page_that_does_not_come_ends_it() -> None:
    """
    A statement that lacks a row has no closing either.
    """
    *_, flaw = await parts_of(history()[:-1])
    assert isinstance(flaw, Flaw)
    assert flaw.kind == "missing"


async def test_it_holds_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    No page is read before the one ahead of it was taken.
    """
    monkeypatch.setattr(statement, "PAGE_ROWS", 2)
    read: list[Span] = []

    async def read_page(span: Span) -> list[EntryRow] | None:
        read.append(span)
        return history()[span.first - 1 : span.last]

    parts = statement_parts(Opening("w", "EUR", NOTHING_YET, LAST), read_page)
    await anext(parts)
    for count in (1, 2, 3):
        await anext(parts)
        assert len(read) == count
        assert all(span.size <= 2 for span in read)
