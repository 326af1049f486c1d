"""
How much and how often: limits of a wallet, and what of them is used up.

Rule 1: a window is an hour or a day of UTC, counted from 1970; when a new one begins, the count
        starts at zero. A record's time decides, and it never falls within a shard.
Rule 2: what is set aside is counted when that happens, and given back when it comes to nothing
        within the same window, if it was counted: not what is from before the limits. So no
        moment lets more through than the limit.
Rule 3: limits are for customers' own movements; a refund and a fee are neither limited nor counted.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from processor.core.amounts import BALANCE_MAX
from processor.core.reject_reason import RejectReason

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

Bound = Annotated[int, msgspec.Meta(ge=0, le=BALANCE_MAX)] | None


class Velocity(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    How many movements an hour and a day, and how much in all; None is no bound.
    """

    hour_count: Bound = None
    hour_amount: Bound = None
    day_count: Bound = None
    day_amount: Bound = None


class Limits(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    What may leave a wallet, what may come in, and how much may be in it.
    """

    debits: Velocity = Velocity()
    credits: Velocity = Velocity()
    balance_max: Bound = None


class Counter(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    What was counted in the hour and in the day that are named by their numbers since 1970.
    """

    hour: int = 0
    hour_count: int = 0
    hour_amount: int = 0
    day: int = 0
    day_count: int = 0
    day_amount: int = 0

    def at(self, at_us: int) -> Counter:
        """
        Return the counter as it is at a time: zero where a new window has begun.
        """
        counter, hour, day = self, at_us // HOUR_US, at_us // DAY_US
        # A slot may come from a shard whose clock is ahead: its window then simply lasts longer.
        if hour > counter.hour:
            counter = msgspec.structs.replace(counter, hour=hour, hour_count=0, hour_amount=0)
        if day > counter.day:
            counter = msgspec.structs.replace(counter, day=day, day_count=0, day_amount=0)
        return counter

    def counted(self, at_us: int, amount: int, count: int = 1) -> Counter:
        """
        Return the counter with *count* more movements of *amount* in all, up to the largest number
        that a table can hold: no bound is higher.
        """
        now = self.at(at_us)
        return Counter(
            now.hour,
            now.hour_count + count,
            min(BALANCE_MAX, now.hour_amount + amount),
            now.day,
            now.day_count + count,
            min(BALANCE_MAX, now.day_amount + amount),
        )

    def given_back(
        self, counted_at_us: int, amount: int, count: int = 1, *, since_us: int
    ) -> Counter:
        """
        Return the counter, which counts since a time, without what was counted at another, where
        that window still lasts.
        """
        # What is of the record that set the limits may be from before them: it stays counted.
        if counted_at_us <= since_us:
            return self
        counter = self
        if counted_at_us // HOUR_US == counter.hour:
            counter = msgspec.structs.replace(
                counter,
                hour_count=max(0, counter.hour_count - count),
                hour_amount=max(0, counter.hour_amount - amount),
            )
        if counted_at_us // DAY_US == counter.day:
            counter = msgspec.structs.replace(
                counter,
                day_count=max(0, counter.day_count - count),
                day_amount=max(0, counter.day_amount - amount),
            )
        return counter


class Usage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    What a wallet has used of its limits since the record that set the first of them.
    """

    debits: Counter = Counter()
    credits: Counter = Counter()
    since_us: int = 0


Excess = tuple[RejectReason, int]  # Which bound, and by how much it would be passed.


def excess_of(velocity: Velocity, would_be: Counter, first: RejectReason) -> Excess | None:
    """
    Say which bound is passed when so much is counted, the first one if several.

    *first* is the reason for the count an hour; those for amount an hour, count and amount a day
    follow it by number.
    """
    bounds = (
        (velocity.hour_count, would_be.hour_count),
        (velocity.hour_amount, would_be.hour_amount),
        (velocity.day_count, would_be.day_count),
        (velocity.day_amount, would_be.day_amount),
    )
    for place, (bound, counted) in enumerate(bounds):
        if bound is not None and counted > bound:
            return RejectReason(first + place), counted - bound
    return None
