"""
Goal: no more leaves a wallet, or comes in, in an hour or a day of UTC than its limits say, and the
      refusal says by how much; what came to nothing does not count.
Method: counters at the edges of their windows, each bound one unit below and at it.
"""

from __future__ import annotations

from typing import Any

import pytest

from processor.core.amounts import AMOUNT_MAX, BALANCE_MAX
from processor.core.limits import DAY_US, HOUR_US, Counter, Velocity, excess_of
from processor.core.reject_reason import RejectReason

NOON = 19_675 * DAY_US + 12 * HOUR_US
COUNTED = Counter().counted(NOON, 30).counted(NOON + 1, 12)
FIRST = RejectReason.DEBIT_COUNT_HOUR_EXCEEDED


def test_counting_adds_up_in_both_windows() -> None:
    """
    How many, and how much in all; several at once count as several.
    """
    assert Counter(NOON // HOUR_US, 2, 42, NOON // DAY_US, 2, 42) == COUNTED
    assert COUNTED.counted(NOON + 2, 10, count=3).hour_count == 5


@pytest.mark.parametrize(
    ("at_us", "hour_amount", "day_amount"),
    [
        (NOON + HOUR_US - 1, 42, 42),
        (NOON + HOUR_US, 0, 42),
        (NOON + 12 * HOUR_US - 1, 0, 42),
        (NOON + 12 * HOUR_US, 0, 0),
        (NOON - 1, 42, 42),
        (NOON - 2 * DAY_US, 42, 42),
    ],
)
def test_a_window_begins_at_zero(at_us: int, hour_amount: int, day_amount: int) -> None:
    """
    At its first microsecond. A time before the window, as of a slower clock, begins no new one.
    """
    now = COUNTED.at(at_us)
    assert (now.hour_amount, now.day_amount) == (hour_amount, day_amount)
    assert (now.hour_count, now.day_count) == (2 if hour_amount else 0, 2 if day_amount else 0)


@pytest.mark.parametrize(
    ("counted_at_us", "hour_amount", "day_amount"),
    [(NOON, 12, 12), (NOON - 1, 42, 12), (NOON - DAY_US, 42, 42), (NOON + HOUR_US, 42, 12)],
)
def test_only_the_same_window_gets_something_back(
    counted_at_us: int, hour_amount: int, day_amount: int
) -> None:
    """
    What was counted in an earlier hour is not in this one's count.
    """
    back = COUNTED.given_back(counted_at_us, 30, since_us=0)
    assert (back.hour_amount, back.day_amount) == (hour_amount, day_amount)
    assert back.hour_count == (1 if hour_amount == 12 else 2)
    assert back.day_count == (1 if day_amount == 12 else 2)


def test_a_count_is_never_below_zero() -> None:
    """
    A sum stops at the largest number: more may be given back than is in it.
    """
    back = COUNTED.given_back(NOON, 43, 3, since_us=0)
    assert back == Counter(COUNTED.hour, 0, 0, COUNTED.day, 0, 0)


@pytest.mark.parametrize(("since_us", "amount"), [(NOON - 1, 12), (NOON, 42), (NOON + 1, 42)])
def test_nothing_is_given_back_that_was_not_counted(since_us: int, amount: int) -> None:
    """
    In neither window. What is of the record that began to count may be from before it.
    """
    back = COUNTED.given_back(NOON, 30, since_us=since_us)
    assert (back.hour_amount, back.day_amount) == (amount, amount)


@pytest.mark.parametrize("place", range(4))
def test_each_bound_may_be_reached_and_not_passed(place: int) -> None:
    """
    With its own reason, and by how much.
    """
    names = ("hour_count", "hour_amount", "day_count", "day_amount")
    name = names[place]
    used = getattr(COUNTED, name)
    bound: dict[str, Any] = {name: used}
    assert excess_of(Velocity(**bound), COUNTED, FIRST) is None
    bound[name] = used - 1
    assert excess_of(Velocity(**bound), COUNTED, FIRST) == (RejectReason(FIRST + place), 1)
    assert excess_of(Velocity(), COUNTED, FIRST) is None


def test_a_count_stays_within_what_a_table_can_hold() -> None:
    """
    The same money may go round in a wallet as often as one likes.
    """
    full = COUNTED.counted(NOON, BALANCE_MAX).counted(NOON, AMOUNT_MAX)
    assert (full.hour_amount, full.day_amount) == (BALANCE_MAX, BALANCE_MAX)
    assert excess_of(Velocity(hour_amount=BALANCE_MAX), full, FIRST) is None


def test_first_bound_is_told() -> None:
    """
    In the order of the reasons' numbers.
    """
    assert excess_of(Velocity(0, 0, 0, 0), COUNTED, FIRST) == (FIRST, 2)
    assert excess_of(Velocity(None, 40, 0, 0), COUNTED, FIRST) == (RejectReason(FIRST + 1), 2)


def test_reasons_follow_one_another() -> None:
    """
    `excess_of` counts on their numbers.
    """
    for side in ("DEBIT", "CREDIT"):
        first = RejectReason[f"{side}_COUNT_HOUR_EXCEEDED"]
        names = ("COUNT_HOUR", "AMOUNT_HOUR", "COUNT_DAY", "AMOUNT_DAY")
        assert [RejectReason(first + place).name for place in range(4)] == [
            f"{side}_{name}_EXCEEDED" for name in names
        ]
