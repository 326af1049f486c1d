"""
Goal: a hold sets money aside once, keeps it as long as was asked for, and ends once: captured,
      voided, or because its time is over.
Method: one shard by hand; times one microsecond before and at each end.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from processor.core import decide_holds
from processor.core.commands import PlaceHold
from processor.core.decide_channel import Elsewhere
from processor.core.decide_holds import decide_expiry
from processor.core.decisions import HoldExtended, HoldPlaced, HoldVoided, TransferRejected
from processor.core.hold import Hold, HoldStatus
from processor.core.limits import Limits, Velocity
from processor.core.reject_reason import RejectReason as Reason
from processor.core.slots import SlotMap, slot_of, slot_of_hold
from processor.core.state import ShardState
from processor.core.wallet import WalletStatus
from tests.support.bound_commands import capture, extend, hold_id_of, on_terms, place, void
from tests.support.commands import AT_US, facts, identifier, state_of, transfer, wallet, world
from tests.support.decided import apply_all, decided, do

HOLD = hold_id_of("alice")
SECOND_US = 1_000_000


def ledger(**options: Any) -> ShardState:
    return state_of(world(-100), wallet("alice", 100, **options), wallet("bob"))


def refused(state: ShardState, command: Any, at_us: int = AT_US) -> tuple[Reason, int]:
    before = facts(state), dict(state.holds)
    outcome = do(state, command, at_us)
    assert isinstance(outcome, TransferRejected), outcome
    assert (facts(state), state.holds) == before
    return Reason(outcome.reason), outcome.short_by


def placed(state: ShardState, **options: Any) -> Hold:
    outcome = do(state, place("alice", 40, **options))
    assert isinstance(outcome, HoldPlaced)
    return state.holds[outcome.transfer_id]


def test_a_hold_sets_money_aside() -> None:
    """
    No balance moves, no version either; what is available is less.
    """
    state = ledger()
    hold = placed(state, destination="bob", lifetime_s=90)
    alice = state.wallets["alice"]
    assert (alice.posted, alice.version, alice.available, alice.held) == (100, 1, 60, 40)
    assert (hold.kept, hold.status, hold.destination) == (40, HoldStatus.OPEN, "bob")
    assert (hold.placed_at_us, hold.expires_at_us) == (AT_US, AT_US + 90 * SECOND_US)
    assert state.alarms == [(hold.expires_at_us, hold.hold_id)]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (place("alice", 103), (Reason.INSUFFICIENT_FUNDS, 3)),
        (place("nobody", 1), (Reason.SOURCE_UNKNOWN, 0)),
        (place("alice", 1, merchant_id="globex"), (Reason.SOURCE_UNKNOWN, 0)),
        (place("alice", 1, currency="USD"), (Reason.CURRENCY_MISMATCH, 0)),
        (on_terms(place("alice", 1), if_version=4), (Reason.VERSION_DIFFERS, 3)),
        (on_terms(place("alice", 1), if_available_gte=101), (Reason.AVAILABLE_BELOW_CONDITION, 1)),
        (replace(place("alice", 1), hold_id=hold_id_of("bob")), (Reason.HOLD_UNKNOWN, 0)),
    ],
)
def test_a_hold_is_judged_like_a_debit(command: PlaceHold, told: tuple[Reason, int]) -> None:
    """
    With its conditions; and its id has to lead to its wallet.
    """
    assert refused(ledger(), command) == told


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (WalletStatus.FROZEN, Reason.SOURCE_FROZEN),
        (WalletStatus.LOCKED, Reason.SOURCE_LOCKED),
        (WalletStatus.CLOSED, Reason.SOURCE_CLOSED),
    ],
)
def test_a_wallet_that_is_stopped_places_no_hold(status: WalletStatus, reason: Reason) -> None:
    """
    A frozen one neither.
    """
    posted = 0 if status == WalletStatus.CLOSED else 100
    state = state_of(world(-posted), wallet("alice", posted, status=status))
    assert refused(state, place("alice", 1)) == (reason, 0)


def test_a_hold_counts_as_a_debit_when_it_is_placed() -> None:
    """
    So that captures later cannot pass the limits.
    """
    state = ledger()
    state.wallets["alice"].limits = Limits(debits=Velocity(hour_amount=50, hour_count=9))
    placed(state)
    assert refused(state, place("alice", 11, key="2")) == (Reason.DEBIT_AMOUNT_HOUR_EXCEEDED, 1)
    told = refused(state, transfer("alice", "bob", 11))
    assert told == (Reason.DEBIT_AMOUNT_HOUR_EXCEEDED, 1)


@pytest.mark.parametrize("end", ["voided", "expired", "captured"])
def test_a_wallet_has_so_many_open_holds(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    One that ends makes room for another; those of other wallets do not count.
    """
    monkeypatch.setattr(decide_holds, "HOLDS_OPEN_MAX", 2)
    state = ledger()
    do(state, transfer("alice", "bob", 5))
    do(state, place("bob", 1, key="of bob"))
    for key in ("hold", "second"):
        assert isinstance(do(state, place("alice", 1, key=key)), HoldPlaced)
    assert refused(state, place("alice", 1, key="third")) == (Reason.HOLDS_TOO_MANY, 1)
    # Of somebody else's wallet nothing is told, and a lack of money comes first.
    foreign = place("alice", 1, key="foreign", merchant_id="globex")
    assert refused(state, foreign) == (Reason.SOURCE_UNKNOWN, 0)
    poor = place("alice", 94, key="poor")
    assert refused(state, poor) == (Reason.INSUFFICIENT_FUNDS, 1)
    if end == "voided":
        do(state, void(HOLD))
    elif end == "captured":
        do(state, capture(HOLD, 1, "bob", key="c"))
    else:
        apply_all(state, decide_expiry(state, state.holds[HOLD], state.holds[HOLD].expires_at_us))
    assert isinstance(do(state, place("alice", 1, key="fourth")), HoldPlaced)
    assert refused(state, place("alice", 1, key="fifth")) == (Reason.HOLDS_TOO_MANY, 1)


def test_the_bound_of_open_holds() -> None:
    """
    Ten thousand, and a hold is refused for that reason before it is for a limit.
    """
    state = ledger(limits=Limits(debits=Velocity(hour_count=0)))
    alice = state.wallets["alice"]
    alice.holds_open = 9_999
    outcome = decided(state, place("alice", 1))
    assert outcome.outcome.reason == Reason.DEBIT_COUNT_HOUR_EXCEEDED  # type: ignore[union-attr]
    alice.holds_open = 10_000
    outcome = decided(state, place("alice", 1))
    assert outcome.outcome.reason == Reason.HOLDS_TOO_MANY  # type: ignore[union-attr]


def test_a_hold_that_is_voided_is_free() -> None:
    """
    Once: it cannot be voided, extended or captured after.
    """
    state = ledger()
    placed(state)
    outcome = do(state, void(HOLD))
    assert isinstance(outcome, HoldVoided)
    assert (outcome.amount, outcome.source, outcome.hold_id) == (40, "alice", HOLD)
    assert state.wallets["alice"].available == 100
    assert state.holds[HOLD].status == HoldStatus.VOIDED
    assert refused(state, void(HOLD, key="again")) == (Reason.HOLD_VOIDED, 0)
    assert refused(state, extend(HOLD, 90, key="longer")) == (Reason.HOLD_VOIDED, 0)


def test_a_hold_gets_longer_and_never_shorter() -> None:
    """
    From now on, if that is later than before; and it is looked at again then.
    """
    state = ledger()
    first = placed(state).expires_at_us
    outcome = do(state, extend(HOLD, 59, key="1"))
    assert isinstance(outcome, HoldExtended)
    assert outcome.expires_at_us == state.holds[HOLD].expires_at_us == first
    assert len(state.alarms) == 1
    outcome = do(state, extend(HOLD, 61, key="2"))
    assert isinstance(outcome, HoldExtended)
    assert (outcome.lifetime_s, outcome.amount) == (61, 40)
    assert state.holds[HOLD].expires_at_us == first + SECOND_US
    assert (first + SECOND_US, HOLD) in state.alarms
    assert state.wallets["alice"].held == 40


def test_a_hold_is_over_at_its_time() -> None:
    """
    Not a microsecond before, and once.
    """
    state = ledger()
    hold = placed(state)
    assert decide_expiry(state, hold, hold.expires_at_us - 1) == []
    apply_all(state, decide_expiry(state, hold, hold.expires_at_us))
    ended = state.holds[HOLD]
    assert (ended.status, state.wallets["alice"].available) == (HoldStatus.EXPIRED, 100)
    assert decide_expiry(state, ended, hold.expires_at_us) == []
    assert refused(state, void(HOLD)) == (Reason.HOLD_EXPIRED, 0)


def test_commands_on_a_hold_that_is_over_come_too_late() -> None:
    """
    Whether or not somebody has ended it by then.
    """
    for command in (void(HOLD), extend(HOLD, 60)):
        state = ledger()
        late = placed(state).expires_at_us
        assert refused(state, command, late) == (Reason.HOLD_EXPIRED, 0)
        assert not isinstance(do(ledger_with_hold(), command, late - 1), TransferRejected)


def test_a_refusal_tells_the_hold_that_it_is_of() -> None:
    """
    To its merchant, who sees whose money it keeps and how much.
    """
    state = ledger_with_hold()
    late = state.holds[HOLD].expires_at_us
    for command in (void(HOLD), extend(HOLD, 60)):
        outcome = do(state, command, late)
        assert isinstance(outcome, TransferRejected)
        assert (outcome.source, outcome.currency, outcome.amount) == ("alice", "EUR", 40)


def ledger_with_hold() -> ShardState:
    state = ledger()
    placed(state)
    return state


@pytest.mark.parametrize("command", [void(HOLD), extend(HOLD, 90)])
def test_a_last_capture_on_its_way_is_waited_for(command: Any) -> None:
    """
    It may come back, and the hold then keeps it again.
    """
    state = ledger_with_hold()
    state.holds[HOLD] = replace(state.holds[HOLD], is_ending=True)
    assert refused(state, command) == (Reason.HOLD_CAPTURE_PENDING, 0)


@pytest.mark.parametrize("make", [void, lambda hold_id, **o: extend(hold_id, 90, **o)])
def test_holds_of_others_are_unknown(make: Any) -> None:
    """
    The refusal names nothing of them.
    """
    state = ledger_with_hold()
    outcome = do(state, make(HOLD, merchant_id="globex"))
    assert isinstance(outcome, TransferRejected)
    assert (outcome.reason, outcome.source, outcome.currency, outcome.amount) == (
        Reason.HOLD_UNKNOWN,
        "",
        "",
        0,
    )
    assert refused(state, make(bytes(16), key="2")) == (Reason.HOLD_UNKNOWN, 0)


def test_what_is_elsewhere_is_asked_there() -> None:
    """
    By the wallet's slot, which is that of the hold's id.
    """
    slots = SlotMap.undivided(0)
    slots.assign(slot_of("zoe"), 3, 1)
    state, hold_id = ShardState(0, slots), hold_id_of("zoe")
    assert slot_of_hold(hold_id) == slot_of("zoe")
    for command in (place("zoe", 1), void(hold_id), extend(hold_id, 9)):
        assert decided(state, command) == Elsewhere(3)


def test_a_hold_is_placed_once() -> None:
    """
    The same id under another key would take the money twice and give it back once.
    """
    state = ledger_with_hold()
    again = replace(place("alice", 40), key=identifier("another"))
    with pytest.raises(AssertionError, match="placed twice"):
        do(state, again)
