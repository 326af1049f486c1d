"""
Goal: pages of a history meet, whatever their size and whatever is left out of them.
Method: every page of a short history, followed by its cursors from either end; what the tables
        would give is computed here.
"""

from __future__ import annotations

import pytest

from gateway.entries import cursor_of, end_of
from processor.core.commands import TransferType
from processor.storage.entries import EntryRow, Span

LAST = 12


def entry(version: int) -> EntryRow:
    return EntryRow(
        version, False, 1, None, b"", TransferType.DEPOSIT, 1, "EUR", *(None, None, 0, 1, 1)
    )


def followed(
    matching: set[int], bounds: Span, *, limit: int, looked_at_max: int, newest_first: bool
) -> tuple[list[int], int]:
    """
    Follow the cursors from one end of *bounds* to the other: what was shown, in how many pages.
    """
    shown: list[int] = []
    left = bounds
    for pages in range(1, 4 * LAST):
        span = end_of(left, looked_at_max, newest_first=newest_first)
        assert span.size <= looked_at_max
        inside = [version for version in range(span.first, span.last + 1) if version in matching]
        page = sorted(inside, reverse=newest_first)[:limit]
        shown += page
        rows = [entry(version) for version in page]
        cursor = cursor_of(rows, span, left, limit, newest_first=newest_first)
        if cursor is None:
            return shown, pages
        left = Span(bounds.first, cursor - 1) if newest_first else Span(cursor + 1, bounds.last)
    raise AssertionError("the pages never end")


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [1, 3, LAST, LAST + 1])
@pytest.mark.parametrize("looked_at_max", [1, 2, 5, LAST, 100])
@pytest.mark.parametrize("matching", [set(), {1}, {LAST}, {2, 3, 4, 9}, set(range(1, LAST + 1))])
@pytest.mark.parametrize("bounds", [Span(1, LAST), Span(3, 9), Span(5, 5)])
def test_cursors_lead_through_everything(
    matching: set[int], bounds: Span, looked_at_max: int, limit: int, newest_first: bool
) -> None:
    """
    Each version that matches is shown once, in order, however few a page looks through.
    """
    wanted = sorted(
        (version for version in matching if bounds.first <= version <= bounds.last),
        reverse=newest_first,
    )
    shown, _ = followed(
        matching, bounds, limit=limit, looked_at_max=looked_at_max, newest_first=newest_first
    )
    assert shown == wanted


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 4, LAST, LAST + 1])
def test_without_a_filter_no_page_is_in_vain(limit: int, newest_first: bool) -> None:
    """
    There are as many pages as are needed, and the last one says that it is.
    """
    every = set(range(1, LAST + 1))
    _, pages = followed(
        every, Span(1, LAST), limit=limit, looked_at_max=limit, newest_first=newest_first
    )
    assert pages == -(-LAST // limit)


@pytest.mark.parametrize("newest_first", [False, True])
def test_of_nothing_there_is_no_next_page(newest_first: bool) -> None:
    """
    A new wallet's history ends at once, and so does one behind its last entry.
    """
    for nothing in (Span(1, 0), Span(LAST + 5, LAST)):
        span = end_of(nothing, 5, newest_first=newest_first)
        assert cursor_of([], span, nothing, 5, newest_first=newest_first) is None
