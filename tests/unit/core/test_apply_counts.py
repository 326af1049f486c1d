"""
Goal: a count that is out of step with its journal stops, as money does.
Method: a decision that fits is changed in one place, or the state is, before it is applied.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from processor.core.apply import apply, wallets_touched
from processor.core.apply_counts import take_hold
from processor.core.decisions import (
    Decision,
    HoldChanged,
    HoldPlaced,
    RefundCounted,
    UsageCounted,
    WalletLimitsSet,
    WalletStatusSet,
)
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.limits import Counter, Limits, Usage
from processor.core.state import ShardState
from processor.core.wallet import WalletStatus
from tests.support.bound_commands import hold_id_of, place
from tests.support.commands import AT_US, facts, identifier, state_of, wallet, world
from tests.support.decided import do

HOLD = hold_id_of("alice")
EXPIRES_AT_US = AT_US + 60_000_000
PAID = identifier("paid")
PLACED = HoldPlaced(
    hold_id_of("alice", "2"),
    identifier("2"),
    "acme",
    "alice",
    "",
    "EUR",
    60,
    "r",
    "{}",
    60,
    EXPIRES_AT_US,
)


def ledger() -> ShardState:
    """
    Make alice with 100, of which a hold keeps 25: 10 of 40 are captured, 5 on their way.
    """
    state = state_of(world(-100), wallet("alice", 100), wallet("bob"))
    do(state, place("alice", 40))
    apply(state, changed(captured=10, pending=5), 9, AT_US)
    return state


def changed(**facts: Any) -> HoldChanged:
    return replace(HoldChanged(HOLD, 10, 5, HoldStatus.OPEN, False, EXPIRES_AT_US), **facts)


def test_a_hold_keeps_what_is_not_captured_and_not_on_its_way() -> None:
    """
    Its wallet has as much set aside.
    """
    state = ledger()
    alice = state.wallets["alice"]
    assert (state.holds[HOLD].kept, alice.held, alice.reserved) == (25, 25, 25)
    assert alice.sequence == state.holds[HOLD].sequence == 9
    apply(state, changed(status=HoldStatus.VOIDED), 10, AT_US)
    assert (state.holds[HOLD].kept, alice.held, alice.reserved) == (0, 0, 0)
    assert alice.sequence == state.holds[HOLD].sequence == 10


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        (changed(captured=9), "a capture is taken back"),
        (changed(pending=-1), "more came back than was on its way"),
        (changed(captured=36), "more captured than was held"),
        (changed(expires_at_us=EXPIRES_AT_US - 1), "a hold got shorter"),
        (replace(PLACED, transfer_id=HOLD), "a hold is placed twice"),
        (replace(PLACED, currency="USD"), "currencies differ"),
        (replace(PLACED, amount=76), "available below minimum"),
        (WalletLimitsSet("alice", 76), "minimum above available"),
        (WalletStatusSet("bob", WalletStatus.CLOSED), "closed too early"),
        (UsageCounted("alice", Counter(), Counter()), "usage of a wallet without limits"),
        (RefundCounted(PAID, "alice", 5, 5), "version is not dense"),
        (RefundCounted(PAID, "alice", 5, 3), "version is not dense"),
        (RefundCounted(PAID, "alice", -1, 4), "less than nothing went back"),
    ],
)
def test_a_count_out_of_step_stops(decision: Decision, words: str) -> None:
    """
    What a decider would never say is not applied either.
    """
    state = ledger()
    state.refunds[PAID] = RefundTotal(PAID, "alice", 5, 3)
    bob = state.wallets["bob"]
    bob.held = bob.reserved = 1
    before, holds, refunds = facts(state), dict(state.holds), dict(state.refunds)
    with pytest.raises(AssertionError, match=words):
        apply(state, decision, 10, AT_US)
    assert (facts(state), state.holds, state.refunds) == (before, holds, refunds)


@pytest.mark.parametrize("status", [HoldStatus.OPEN, HoldStatus.CAPTURED, HoldStatus.EXPIRED])
def test_a_hold_ends_once(status: HoldStatus) -> None:
    """
    What ended it stays; only what is on its way still comes to its end.
    """
    state = ledger()
    apply(state, changed(status=HoldStatus.VOIDED), 10, AT_US)
    with pytest.raises(AssertionError, match="it had ended"):
        apply(state, changed(status=status), 11, AT_US)
    apply(state, changed(status=HoldStatus.VOIDED, pending=0), 11, AT_US)


def test_no_more_holds_end_than_were_open() -> None:
    """
    A wallet that has lost count of its holds stops.
    """
    state = ledger()
    state.wallets["alice"].holds_open = 0
    with pytest.raises(AssertionError, match="more holds end than were open"):
        apply(state, changed(status=HoldStatus.VOIDED), 10, AT_US)


def test_more_is_not_let_go_than_was_held() -> None:
    """
    A wallet that is out of step with its holds stops.
    """
    for field in ("held", "reserved"):
        state = ledger()
        setattr(state.wallets["alice"], field, 24)
        with pytest.raises(AssertionError, match="more released than was held"):
            apply(state, changed(status=HoldStatus.VOIDED), 10, AT_US)


@pytest.mark.parametrize("decision", [PLACED, replace(PLACED, amount=75)])
def test_a_hold_may_take_all_that_is_available(decision: HoldPlaced) -> None:
    """
    And is remembered with all that was asked for, and under its key.
    """
    state = ledger()
    apply(state, decision, 10, AT_US)
    assert state.holds[decision.transfer_id] == Hold(
        decision.transfer_id,
        "acme",
        "alice",
        "",
        "EUR",
        decision.amount,
        0,
        0,
        HoldStatus.OPEN,
        False,
        AT_US,
        EXPIRES_AT_US,
        "r",
        "{}",
        10,
    )
    assert state.keys.find(decision.key) == (decision, 10, AT_US)
    assert state.wallets["alice"].sequence == 10
    assert wallets_touched(state, decision) == ("alice",)


def test_usage_is_told_as_it_is() -> None:
    """
    And belongs to a wallet's facts, like its limits.
    """
    state = ledger()
    before = facts(state)["alice"]
    apply(state, WalletLimitsSet("alice", 0, Limits(balance_max=900)), 10, AT_US)
    limited = facts(state)["alice"]
    alice = state.wallets["alice"]
    assert (alice.usage, alice.sequence) == (Usage(since_us=AT_US), 10)
    apply(state, UsageCounted("alice", Counter(1, 2, 3), Counter(4, 5, 6)), 11, AT_US)
    assert alice.usage == Usage(Counter(1, 2, 3), Counter(4, 5, 6), AT_US)
    assert alice.sequence == 11
    assert len({before, limited, facts(state)["alice"]}) == 3


def test_usage_knows_since_when_it_is_counted() -> None:
    """
    Other limits go on with it, counts leave it as it was; what is set again begins anew.
    """
    state = ledger()
    since = []
    for later_us, limits in enumerate([Limits(balance_max=9), Limits(balance_max=8), None] * 2):
        apply(state, WalletLimitsSet("alice", 0, limits), 10, AT_US + later_us)
        if limits is not None:
            apply(state, UsageCounted("alice", Counter(), Counter()), 10, AT_US + later_us)
        usage = state.wallets["alice"].usage
        since.append(None if usage is None else usage.since_us - AT_US)
    assert since == [0, 0, None, 3, 3, None]


def test_a_total_that_the_tables_have_is_not_needed_to_go_on() -> None:
    """
    A replay begins above it; what it tells is absolute.
    """
    state = ledger()
    apply(state, RefundCounted(PAID, "alice", 9, 4), 10, AT_US)
    apply(state, RefundCounted(PAID, "alice", 0, 5), 11, AT_US)
    assert state.refunds[PAID] == RefundTotal(PAID, "alice", 0, 5, 11)


def test_a_minimum_above_what_is_available_may_stay() -> None:
    """
    Limits are set without it being touched; it is not raised.
    """
    state = ledger()
    state.wallets["alice"].minimum = 90
    apply(state, WalletLimitsSet("alice", 90, Limits(balance_max=900)), 10, AT_US)
    with pytest.raises(AssertionError, match="minimum above available"):
        apply(state, WalletLimitsSet("alice", 91), 11, AT_US)


def test_a_hold_that_has_ended_is_taken_without_its_wallet() -> None:
    """
    It keeps nothing, and its time is of no account any more.
    """
    state, ended = ledger(), replace(ledger().holds[HOLD], status=HoldStatus.VOIDED)
    before = facts(state)
    take_hold(state, replace(ended, hold_id=bytes(16), wallet_id="gone"), 10)
    assert facts(state) == before
    assert state.holds[bytes(16)].sequence == 10
    assert bytes(16) not in [one for _, one in state.alarms]
