"""
What a wallet has used of its limits, counted a second time from the movements.

A part of `recomputation`, and like it without any code of the ledger. Hours and days are of UTC
and counted from 1970; a window that is over counts as nothing. What is counted belongs to the
record in which the money is moved or set aside, and is given back when that comes to nothing in
the same window, unless it is of the record that set the first limits or of one before. Debits that
count are transfers, withdrawals and holds; credits are transfers, deposits and captures.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from processor.storage.recomputed_wallets import (
    BALANCE,
    BALANCE_MAX,
    INCOMING,
    LIMITS,
    USAGE,
    Contradiction,
)

DEBITS_COUNTED = frozenset({1, 3, 4})
CREDITS_COUNTED = frozenset({1, 2, 5})
NOTHING_COUNTED = [0] * 12  # Of usage the counters, debits first; then comes since when.

_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
# Where the counts of an hour and of a day, each behind its number, and the bounds on them stand.
_WINDOWS = ((0, _HOUR_US), (3, _DAY_US))
_DEBITS, _CREDITS, _SINCE = 0, 6, 12
_BOUNDS_OF = {_DEBITS: 0, _CREDITS: 4}
_BALANCE_MAX = 8


def flat_limits(limits: list[Any] | None) -> list[int | None] | None:
    """
    Tell limits as the column of `wallets` has them; raises Contradiction.
    """
    if limits is None:
        return None
    debits, brought, balance_max = limits
    flat = [*debits, *brought, balance_max]
    if len(flat) != 9 or not all(_is_bound(bound) for bound in flat):
        raise Contradiction("limits", "nine bounds", flat)
    if flat == [None] * 9:
        raise Contradiction("limits", "a bound, or no limits", flat)
    return flat


def _is_bound(bound: object) -> bool:
    return bound is None or (type(bound) is int and 0 <= bound <= BALANCE_MAX)


def flat_usage(usage: list[Any] | None) -> list[int] | None:
    """
    Tell usage as the column of `wallets` has it; raises Contradiction.
    """
    if usage is None:
        return None
    *counters, since_us = usage
    if type(since_us) is not int:
        raise Contradiction("usage", "two counters, and since when", usage)
    return [*flat_counters(counters), since_us]


def flat_counters(counters: list[list[int]]) -> list[int]:
    """
    Tell two counters one behind the other; raises Contradiction.
    """
    flat = [*chain.from_iterable(counters)]
    if len(counters) != 2 or len(flat) != 12 or any(type(count) is not int for count in flat):
        raise Contradiction("usage", "two counters", counters)
    return flat


def set_limits(wallet: list[Any], limits: list[Any] | None, at_us: int) -> None:
    """
    Set the limits of a wallet at a time; counting begins with the first and ends with the last.
    """
    wallet[LIMITS] = flat_limits(limits)
    if wallet[LIMITS] is None:
        wallet[USAGE] = None
    elif wallet[USAGE] is None:
        wallet[USAGE] = [*NOTHING_COUNTED, at_us]


def count_debits(wallet: list[Any], at_us: int, amount: int, count: int = 1) -> None:
    """
    Count what leaves a wallet with limits; raises Contradiction when a bound is passed.
    """
    _count(wallet, _DEBITS, at_us, amount, count)


def count_credits(wallet: list[Any], at_us: int, amount: int, count: int = 1) -> None:
    """
    Count what is about to come into a wallet with limits, as `count_debits`.
    """
    _count(wallet, _CREDITS, at_us, amount, count)
    balance_max = wallet[LIMITS][_BALANCE_MAX]
    would_be = wallet[BALANCE] + wallet[INCOMING] + amount
    if balance_max is not None and would_be > balance_max:
        raise Contradiction("balance under a limit", f"at most {balance_max}", would_be)


def _count(wallet: list[Any], side: int, at_us: int, amount: int, count: int) -> None:
    usage = list(wallet[USAGE])
    for place, window_us in _WINDOWS:
        at = side + place
        if at_us // window_us > usage[at]:
            usage[at : at + 3] = at_us // window_us, 0, 0
        usage[at + 1] += count
        usage[at + 2] += amount
    wallet[USAGE] = usage
    counted = (usage[side + 1], usage[side + 2], usage[side + 4], usage[side + 5])
    bounds = wallet[LIMITS][_BOUNDS_OF[side] : _BOUNDS_OF[side] + 4]
    for bound, used in zip(bounds, counted, strict=True):
        if bound is not None and used > bound:
            raise Contradiction("usage under a limit", f"at most {bound}", used)


def give_back_debits(wallet: list[Any], counted_at_us: int, amount: int, count: int = 1) -> None:
    """
    Give back what was counted at a time for a debit, where that window still lasts.

    What is of the record in which counting began may be from before it: that stays.
    """
    _give_back(wallet, _DEBITS, counted_at_us, amount, count)


def give_back_credits(wallet: list[Any], counted_at_us: int, amount: int, count: int = 1) -> None:
    _give_back(wallet, _CREDITS, counted_at_us, amount, count)


def _give_back(wallet: list[Any], side: int, counted_at_us: int, amount: int, count: int) -> None:
    if wallet[USAGE] is None or counted_at_us <= wallet[USAGE][_SINCE]:
        return
    usage = list(wallet[USAGE])
    for place, window_us in _WINDOWS:
        at = side + place
        if counted_at_us // window_us == usage[at]:
            usage[at + 1] = max(0, usage[at + 1] - count)
            usage[at + 2] = max(0, usage[at + 2] - amount)
    wallet[USAGE] = usage
