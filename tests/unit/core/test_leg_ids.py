"""
Goal: the ids of a linked transfer and of its legs tell each other, and nothing else's.
Method: ids of every leg there may be, made and read back.
"""

from __future__ import annotations

import pytest

from processor.core.commands import LEGS_MAX
from processor.core.leg_ids import (
    is_leg_of,
    leg_id,
    leg_number,
    linked_id_in,
    shared_prefix,
)
from tests.support.commands import identifier

LINKED = linked_id_in(identifier("linked"))


def test_each_leg_has_an_id_of_its_own() -> None:
    """
    From which the whole and the leg's number are found again.
    """
    ids = [leg_id(LINKED, place) for place in range(LEGS_MAX)]
    assert len({LINKED, *ids}) == LEGS_MAX + 1
    assert {linked_id_in(one) for one in ids} == {LINKED}
    assert [leg_number(one) for one in ids] == list(range(LEGS_MAX))
    assert all(one.startswith(shared_prefix(LINKED)) for one in [LINKED, *ids])


def test_there_are_no_more_legs_than_may_be() -> None:
    """
    One more would have the id of the whole in the end.
    """
    for place in (LEGS_MAX, -1):
        with pytest.raises(AssertionError, match="no such leg"):
            leg_id(LINKED, place)


def test_what_something_is_linked_to_need_not_be_the_whole() -> None:
    """
    A refund is linked to a transfer, a capture to a hold, and most to nothing.
    """
    assert is_leg_of(leg_id(LINKED, 3), LINKED)
    assert not is_leg_of(leg_id(LINKED, 3), leg_id(LINKED, 2))
    assert not is_leg_of(leg_id(LINKED, 3), None)
    assert not is_leg_of(identifier("refund"), identifier("transfer"))
    assert not is_leg_of(LINKED, LINKED)
