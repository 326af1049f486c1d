"""
A statement: what a wallet had, what went out and in, and what it has then; checked row by row.

Rule 1: the last version is fixed at the beginning, so that the statement of a wallet that goes on
        being used ends.
Rule 2: a row is given only when its version and its balance follow from the row before it.
Rule 3: only a statement that adds up has a closing. Any other ends with a flaw in its place.
Rule 4: no more than a page of rows is held at a time.

The parts are an opening, pages of rows, and a closing or a flaw. What they are written as (JSON,
CSV, or another format) is not decided here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Literal, TypeAlias

import msgspec

from processor.storage.entries import EntryRow, PastBalance, Span

PAGE_ROWS = 500  # While a page is written, its process does nothing else.


class Opening(msgspec.Struct, frozen=True, gc=False):
    """
    Whose statement it is, what the wallet had before its first row, and its last row's version.
    """

    wallet_id: str
    currency: str
    before: PastBalance
    last_version: int


class Side(msgspec.Struct, frozen=True, gc=False):
    """
    All debits of a statement together, or all credits.
    """

    count: int
    amount: int


class Closing(msgspec.Struct, frozen=True, gc=False):
    """
    What the wallet had behind the last row: the opening with the credits and without the debits.
    """

    after: PastBalance
    debits: Side
    credits: Side


class Flaw(msgspec.Struct, frozen=True, gc=False):
    """
    Why there is no closing: the row *version* does not follow from those before it, or is missing.
    """

    version: int
    kind: Literal["contradiction", "missing"]
    detail: str


Part: TypeAlias = Opening | list[EntryRow] | Closing | Flaw
ReadPage: TypeAlias = Callable[[Span], Awaitable[list[EntryRow] | None]]


class Tally:
    """
    Adds up the rows of a statement and holds each against the one before.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._last = opening.before
        self._debits = self._credits = Side(0, 0)

    def take(self, row: EntryRow) -> Flaw | None:
        """
        Take in the next row, unless it does not follow: then say why.
        """
        last = self._last
        if row.version != last.version + 1:
            return _contradiction(row, f"The version after {last.version} is {row.version}.")
        if row.currency != self._opening.currency:
            return _contradiction(row, f"It is in {row.currency}.")
        balance = last.balance - row.amount if row.is_debit else last.balance + row.amount
        if row.balance != balance:
            return _contradiction(row, f"The balance should be {balance} and is {row.balance}.")
        if row.is_debit:
            self._debits = Side(self._debits.count + 1, self._debits.amount + row.amount)
        else:
            self._credits = Side(self._credits.count + 1, self._credits.amount + row.amount)
        self._last = PastBalance(row.version, row.balance, row.at_us)
        return None

    def closing(self) -> Closing:
        """
        Close after the last row.
        """
        before, after = self._opening.before, self._last
        out, into = self._debits, self._credits
        assert after.version == self._opening.last_version, "every row was taken"
        assert out.count + into.count == after.version - before.version, "a row is on one side"
        assert after.balance == before.balance + into.amount - out.amount, "it adds up"
        return Closing(after, debits=out, credits=into)


async def statement_parts(opening: Opening, read_page: ReadPage) -> AsyncIterator[Part]:
    """
    Give the parts of a statement in order; *read_page* answers None for a span that is not whole.
    """
    tally = Tally(opening)
    yield opening
    for span in _pages(opening):
        rows = await read_page(span)
        if rows is None:
            yield Flaw(span.first, "missing", "An entry of this version or soon after is missing.")
            return
        sound, flaw = _taken(tally, rows)
        if sound:
            yield sound
        if flaw is not None:
            yield flaw
            return
    yield tally.closing()


def _taken(tally: Tally, rows: Sequence[EntryRow]) -> tuple[list[EntryRow], Flaw | None]:
    """
    Part the rows that follow from each other from the first that does not.
    """
    for index, row in enumerate(rows):
        flaw = tally.take(row)
        if flaw is not None:
            return list(rows[:index]), flaw
    return list(rows), None


def _pages(opening: Opening) -> Iterator[Span]:
    for first in range(opening.before.version + 1, opening.last_version + 1, PAGE_ROWS):
        yield Span(first, min(first + PAGE_ROWS - 1, opening.last_version))


def _contradiction(row: EntryRow, detail: str) -> Flaw:
    return Flaw(row.version, "contradiction", detail)
