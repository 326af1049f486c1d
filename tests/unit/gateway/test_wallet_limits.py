"""
Goal: limits are shown as they were set, and usage as of this hour and day.
Method: limits there and back; counters of this window and of older ones.
"""

from __future__ import annotations

from gateway.wallet_limits import set_limits, shown_limits, shown_usage
from gateway.wire import VelocityLimits, VelocityUsage, WalletLimits
from processor.core.limits import DAY_US, HOUR_US, Counter, Limits, Usage, Velocity

NOW_US = 20_000 * DAY_US + 5 * HOUR_US + 7
HOUR, DAY = NOW_US // HOUR_US, NOW_US // DAY_US


def test_limits_are_shown_as_they_are_set() -> None:
    """
    Each number stands in its own place, there and back; nothing set is nothing at all.
    """
    asked = WalletLimits(VelocityLimits(1, 2, 3, 4), VelocityLimits(5, 6, 7, 8), 9)

    assert set_limits(asked) == Limits(Velocity(1, 2, 3, 4), Velocity(5, 6, 7, 8), 9)
    assert shown_limits(set_limits(asked)) == asked
    assert set_limits(WalletLimits()) == Limits()
    assert shown_limits(None) is None


def test_usage_is_of_this_hour_and_day() -> None:
    """
    What an hour ago was counted is not of this hour, but may be of this day.
    """
    usage = Usage(Counter(HOUR - 1, 1, 10, DAY, 2, 20), Counter(HOUR, 3, 30, DAY, 4, 40))

    shown = shown_usage(usage, NOW_US)

    assert shown.debits == VelocityUsage(0, 0, 2, 20)
    assert shown.credits == VelocityUsage(3, 30, 4, 40)
    assert shown.hour_ends_at == "2024-10-04T06:00:00.000000Z"
    assert shown.day_ends_at == "2024-10-05T00:00:00.000000Z"


def test_nothing_was_used_yet() -> None:
    """
    A wallet whose limits are new starts at zero.
    """
    assert shown_usage(None, NOW_US).debits == VelocityUsage(0, 0, 0, 0)


def test_a_shard_whose_clock_is_ahead_is_believed() -> None:
    """
    Its window counts, and ends when it says.
    """
    usage = Usage(debits=Counter(HOUR + 1, 1, 10, DAY, 2, 20))

    shown = shown_usage(usage, NOW_US)

    assert shown.debits == VelocityUsage(1, 10, 2, 20)
    assert shown.hour_ends_at == "2024-10-04T07:00:00.000000Z"
