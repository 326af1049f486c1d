"""
Goal: a span of a history that a version is missing from is known as such.
Method: a short history, whole and with each of its versions taken away, as rows and as the
        counts that databases tell.
"""

from __future__ import annotations

import pytest

from processor.core.commands import TransferType
from processor.storage.entries import EntryRow, Span, is_whole, looked_at_whole

LAST = 6
SPANS = [Span(first, last) for first in range(1, LAST + 1) for last in range(first, LAST + 1)]


def entries(versions: list[int]) -> list[EntryRow]:
    return [
        EntryRow(
            version, False, 1, None, b"", TransferType.DEPOSIT, 1, "EUR", *(None, None, 0, 1, 1)
        )
        for version in versions
    ]


def counts(*databases: list[int]) -> list[list[tuple[int, int | None]]]:
    """
    Tell what databases with these versions tell: how many, and their sum.
    """
    return [[(len(versions), sum(versions) or None)] for versions in databases]


def of(span: Span) -> list[int]:
    return list(range(span.first, span.last + 1))


@pytest.mark.parametrize("span", SPANS)
def test_only_what_lacks_nothing_is_whole(span: Span) -> None:
    """
    Each span of the history is whole; none is from which a version was taken away.
    """
    versions = of(span)
    assert is_whole(entries(versions), span)
    assert looked_at_whole(counts(versions), span)
    for missing in versions:
        rest = [version for version in versions if version != missing]
        assert not is_whole(entries(rest), span)
        assert not looked_at_whole(counts(rest), span)


def test_databases_are_whole_together() -> None:
    """
    A wallet that has moved has its past in several databases; one that has nothing of it is none
    the less asked.
    """
    span = Span(2, 5)
    assert looked_at_whole(counts([2, 3], [], [4, 5]), span)
    assert not looked_at_whole(counts([2, 3], [], [5]), span)


def test_a_version_twice_is_not_another_one() -> None:
    """
    The number alone would be right.
    """
    span = Span(1, 3)
    assert not is_whole(entries([1, 2, 2]), span)
    assert not looked_at_whole(counts([1, 2], [2]), span)
