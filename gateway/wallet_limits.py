"""
Limits of a wallet and what it has used of them, as the API writes them.
"""

from __future__ import annotations

from gateway.identifiers import timestamp_text
from gateway.wire import VelocityLimits, VelocityUsage, WalletLimits, WalletUsage
from processor.core.limits import DAY_US, HOUR_US, Counter, Limits, Usage, Velocity


def set_limits(limits: WalletLimits) -> Limits:
    """
    Read the limits of a request; `Limits()` lifts them all.
    """

    def velocity(of: VelocityLimits) -> Velocity:
        return Velocity(of.hour_count, of.hour_amount, of.day_count, of.day_amount)

    return Limits(velocity(limits.debits), velocity(limits.credits), limits.balance_max)


def shown_limits(limits: Limits | None) -> WalletLimits | None:
    """
    Show limits as they are set with PATCH.
    """
    if limits is None:
        return None

    def velocity(of: Velocity) -> VelocityLimits:
        return VelocityLimits(of.hour_count, of.hour_amount, of.day_count, of.day_amount)

    return WalletLimits(velocity(limits.debits), velocity(limits.credits), limits.balance_max)


def shown_usage(usage: Usage | None, now_us: int) -> WalletUsage:
    """
    Show what was used in the hour and the day of *now_us*.
    """
    used = usage or Usage()
    debits, brought = used.debits.at(now_us), used.credits.at(now_us)
    # A shard's clock may be ahead: its window is then the one that counts.
    hour, day = max(debits.hour, brought.hour), max(debits.day, brought.day)
    return WalletUsage(
        _shown_counter(debits),
        _shown_counter(brought),
        timestamp_text((hour + 1) * HOUR_US),
        timestamp_text((day + 1) * DAY_US),
    )


def _shown_counter(counter: Counter) -> VelocityUsage:
    return VelocityUsage(
        counter.hour_count, counter.hour_amount, counter.day_count, counter.day_amount
    )
