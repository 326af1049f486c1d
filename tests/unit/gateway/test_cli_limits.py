"""
Goal: limits are set one by one on the command line, and the others stay.
Method: settings as they are typed, on limits as they are shown.
"""

from __future__ import annotations

from typing import Any

import pytest

from gateway.cli.commands import Failure
from gateway.cli.exit_codes import ExitCode
from gateway.cli.limits import fields_of, set_limit
from gateway.wire import VelocityLimits, WalletLimits

LIMITS = WalletLimits(VelocityLimits(hour_count=5), VelocityLimits(day_amount=900), 1_000)


@pytest.mark.parametrize(
    ("setting", "side", "window", "bound"),
    [
        ("debits.hour_count=9", "debits", "hour_count", 9),
        ("debits.hour_count=none", "debits", "hour_count", None),
        ("credits.hour_amount=0", "credits", "hour_amount", 0),
    ],
)
def test_one_limit_is_set(setting: str, side: str, window: str, bound: int | None) -> None:
    """
    Only the one that is named changes.
    """
    wanted = fields_of(LIMITS)
    before = fields_of(LIMITS)

    set_limit(wanted, setting)

    assert wanted[side].pop(window) == bound
    before[side].pop(window)
    assert wanted == before


def test_the_first_limit_of_a_wallet() -> None:
    """
    Without limits there is nothing to keep.
    """
    wanted: dict[str, Any] = {}

    set_limit(wanted, "credits.day_count=3")
    set_limit(wanted, "balance_max=7")

    assert wanted == {"credits": {"day_count": 3}, "balance_max": 7}


@pytest.mark.parametrize(
    "setting",
    ["debits=5", "debits.week_count=5", "both.hour_count=5", "balance_max", "balance_max=-1", ""],
)
def test_what_is_no_limit(setting: str) -> None:
    """
    A wrong name or number is said, with the right names, and nothing is sent.
    """
    with pytest.raises(Failure, match=r"debits\.hour_count") as caught:
        set_limit({}, setting)

    assert caught.value.code == ExitCode.USAGE
