"""
Goal: a page of a history that a version is missing from is known as such, from either end.
Method: every page of a short history, whole and with each of its versions taken away.
"""

from __future__ import annotations

import pytest

from processor.core.commands import TransferType
from processor.storage.history import EntryRow, is_whole

LAST = 6


def entries(versions: list[int]) -> list[EntryRow]:
    return [
        EntryRow(
            version, False, 1, None, b"", TransferType.DEPOSIT, 1, "EUR", *(None, None, 0, 1, 1)
        )
        for version in versions
    ]


def page(versions: list[int], *, after: int | None, before: int | None, limit: int) -> list[int]:
    """
    Choose the versions that a page would have.
    """
    if after is not None:
        return [version for version in versions if version > after][:limit]
    below = [version for version in versions if before is None or version < before]
    return below[::-1][:limit]


FORWARD = [(after, None) for after in range(LAST + 3)]
BACKWARD = [(None, before) for before in (None, *range(LAST + 3))]


@pytest.mark.parametrize("limit", [1, 3, LAST, LAST + 1])
@pytest.mark.parametrize(("after", "before"), [*FORWARD, *BACKWARD])
def test_only_a_page_that_lacks_nothing_is_whole(
    after: int | None, before: int | None, limit: int
) -> None:
    """
    Each page of the whole history is whole; none is from which a version was taken away.
    """
    history = list(range(1, LAST + 1))
    right = page(history, after=after, before=before, limit=limit)
    assert is_whole(entries(right), after=after, before=before, known=LAST, limit=limit)
    for missing in right:
        rest = [version for version in history if version != missing]
        wrong = page(rest, after=after, before=before, limit=limit)
        assert not is_whole(entries(wrong), after=after, before=before, known=LAST, limit=limit)


def test_what_was_added_since_is_welcome() -> None:
    """
    The version that is known may be older than the page.
    """
    newest = entries([6, 5, 4])
    assert is_whole(newest, after=None, before=None, known=2, limit=3)
    assert is_whole(entries([3, 4]), after=2, before=None, known=2, limit=3)


def test_a_new_wallet_has_a_whole_history() -> None:
    """
    Of nothing.
    """
    for after, before in [*FORWARD, *BACKWARD]:
        assert is_whole([], after=after, before=before, known=0, limit=5)
