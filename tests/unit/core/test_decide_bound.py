"""
Goal: what a movement is bound to besides wallets and amount is judged before anything moves, and
      told with by how much it failed: conditions, limits, holds, refunds, fees.
Method: one shard by hand, at each bound exactly and one unit past it.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from processor.core.amounts import AMOUNT_MAX, BALANCE_MAX
from processor.core.commands import MoveMoney, SetWalletLimits, Terms, TransferType
from processor.core.counts import refund_counted
from processor.core.counts_needed import refunds_of_commands
from processor.core.decide import decide_limits, decide_move
from processor.core.decide_channel import Elsewhere
from processor.core.decisions import TransferPosted, TransferRejected
from processor.core.hold import HoldStatus
from processor.core.limits import HOUR_US, Limits, Usage, Velocity
from processor.core.reject_reason import RejectReason as Reason
from processor.core.slots import SlotMap, slot_of, slot_of_hold
from processor.core.state import ShardState
from processor.core.wallet import WalletStatus
from tests.support.bound_commands import (
    capture,
    extend,
    fee,
    hold_id_of,
    on_terms,
    place,
    refund,
    up_to,
    void,
)
from tests.support.commands import (
    AT_US,
    deposit,
    facts,
    identifier,
    state_of,
    transfer,
    wallet,
    withdrawal,
    world,
)
from tests.support.decided import apply_all, decided, do
from tests.support.totals import know_totals

HOLD = hold_id_of("alice")
PAID = identifier("transfer of paid")
MINUTE_US = 60_000_000


def ledger(**options: Any) -> ShardState:
    return state_of(world(-105), wallet("alice", 100, **options), wallet("bob", 5), wallet("carol"))


def limited(limits: Limits, wallet_id: str = "alice", **options: Any) -> ShardState:
    """
    Make a ledger with a wallet that has had limits since the record before.
    """
    state = ledger(**options)
    set_limits(state, limits, wallet_id, at_us=AT_US - 1)
    return state


def set_limits(state: ShardState, limits: Limits, wallet_id: str = "alice", *, at_us: int) -> None:
    decision = decide_limits(state, SetWalletLimits("acme", wallet_id, None, limits))
    assert not isinstance(decision, Reason | None)
    apply_all(state, [decision], at_us)


def refused(state: ShardState, command: Any, at_us: int = AT_US) -> tuple[Reason, int]:
    """
    Say why *command* is refused and by how much; a refusal moves nothing.
    """
    know_totals(state, refunds_of_commands(state, [command]))
    before, counts = facts(state), (dict(state.holds), dict(state.refunds))
    outcome = do(state, command, at_us)
    assert isinstance(outcome, TransferRejected), outcome
    assert (facts(state), (state.holds, state.refunds)) == (before, counts)
    assert state.keys.find(command.key) is not None
    return Reason(outcome.reason), outcome.short_by


def posted(state: ShardState, command: MoveMoney, at_us: int = AT_US) -> TransferPosted:
    outcome = do(state, command, at_us)
    assert isinstance(outcome, TransferPosted), outcome
    return outcome


# --- By how much ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_bound", [False, True])
@pytest.mark.parametrize(
    ("command", "told"),
    [
        (transfer("alice", "bob", 103), (Reason.INSUFFICIENT_FUNDS, 3)),
        (withdrawal("alice", 103), (Reason.INSUFFICIENT_FUNDS, 3)),
        (transfer("alice", "rich", 7), (Reason.BALANCE_OUT_OF_RANGE, 2)),
        (deposit("rich", 7), (Reason.BALANCE_OUT_OF_RANGE, 2)),
        (transfer("alice", "nobody", 103), (Reason.DESTINATION_UNKNOWN, 0)),
        (transfer("alice", "alice", 103), (Reason.WALLETS_IDENTICAL, 0)),
        (deposit("nobody", 1), (Reason.DESTINATION_UNKNOWN, 0)),
        (deposit("bob", 1, currency="USD"), (Reason.CURRENCY_MISMATCH, 0)),
        (withdrawal("bob", 1, currency="USD"), (Reason.CURRENCY_MISMATCH, 0)),
        (withdrawal("bob", 1, merchant_id="globex"), (Reason.SOURCE_UNKNOWN, 0)),
        (deposit("bob", 1, merchant_id="globex"), (Reason.DESTINATION_UNKNOWN, 0)),
    ],
)
def test_a_refusal_says_by_how_much(
    command: MoveMoney, told: tuple[Reason, int], is_bound: bool
) -> None:
    """
    And says the same whether the movement takes the short way or the long one.
    """
    state = ledger()
    state.load(wallet("rich", BALANCE_MAX - 5))
    state.wallets["$world:0:EUR"].posted -= BALANCE_MAX - 5
    state.wallets["$world:0:EUR"].minimum -= BALANCE_MAX
    command = replace(command, terms=Terms() if is_bound else None)
    assert refused(state, command) == told


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"currency": "USD"}, Reason.CURRENCY_MISMATCH),
        ({"status": WalletStatus.CLOSED}, Reason.DESTINATION_CLOSED),
        ({"status": WalletStatus.LOCKED}, Reason.DESTINATION_LOCKED),
        ({"status": WalletStatus.FROZEN}, None),
    ],
)
def test_a_bound_movement_needs_a_wallet_that_takes_it(
    options: dict[str, Any], reason: Reason | None
) -> None:
    """
    As a plain one does.
    """
    state = ledger()
    state.load(wallet("dave", **options))
    asked = on_terms(transfer("alice", "dave", 1), if_version=1)
    if reason is None:
        posted(state, asked)
    else:
        assert refused(state, asked) == (reason, 0)


def test_a_bound_movement_may_fill_a_wallet_up_to_the_last_number() -> None:
    """
    As a plain one may.
    """
    state = ledger()
    state.load(wallet("rich", BALANCE_MAX - 5))
    outside = state.wallets["$world:0:EUR"]
    outside.posted, outside.minimum = outside.posted - BALANCE_MAX + 5, -2 * BALANCE_MAX
    posted(state, on_terms(transfer("alice", "rich", 5)))


def test_world_that_runs_out_of_numbers_is_out_of_range() -> None:
    """
    Also for a deposit that is bound: the customer is told nothing of the world's funds.
    """
    state = ledger()
    state.wallets["$world:0:EUR"].minimum = -105
    assert refused(state, on_terms(deposit("bob", 3))) == (Reason.BALANCE_OUT_OF_RANGE, 3)


# --- Conditions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [transfer, withdrawal, deposit])
def test_conditions_are_of_the_callers_own_wallet(make: Any) -> None:
    """
    That of the source, or of a deposit's destination: its version exactly, at least so much.
    """
    sides = {transfer: ("alice", "bob"), withdrawal: ("alice",), deposit: ("alice",)}[make]
    command = make(*sides, 1)
    for terms, told in (
        ({"if_version": 3}, (Reason.VERSION_DIFFERS, 2)),
        ({"if_version": 0}, (Reason.VERSION_DIFFERS, 1)),
        ({"if_available_gte": 101}, (Reason.AVAILABLE_BELOW_CONDITION, 1)),
        ({"if_version": 0, "if_available_gte": 101}, (Reason.VERSION_DIFFERS, 1)),
    ):
        assert refused(ledger(), on_terms(command, **terms)) == told
    posted(ledger(), on_terms(command, if_version=1, if_available_gte=100))


def test_by_how_much_stays_within_what_a_table_can_hold() -> None:
    """
    However far a wallet is overdrawn.
    """
    state = ledger(minimum=-BALANCE_MAX)
    state.wallets["alice"].posted = -BALANCE_MAX + 5
    state.wallets["$world:0:EUR"].posted = BALANCE_MAX - 10
    asked = on_terms(transfer("alice", "bob", 1), if_available_gte=AMOUNT_MAX)
    assert refused(state, asked) == (Reason.AVAILABLE_BELOW_CONDITION, BALANCE_MAX)


def test_what_is_set_aside_is_not_available() -> None:
    """
    Not to a condition, and not to a movement.
    """
    state = ledger()
    do(state, place("alice", 40))
    asked = on_terms(transfer("alice", "bob", 1), if_available_gte=61)
    assert refused(state, asked) == (Reason.AVAILABLE_BELOW_CONDITION, 1)
    assert refused(state, transfer("alice", "bob", 61, key="2")) == (Reason.INSUFFICIENT_FUNDS, 1)
    posted(state, transfer("alice", "bob", 60, key="3"))


# --- As much as is there --------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "moved"), [(1, 1), (99, 99), (100, 100), (101, 100), (500, 100)])
def test_as_much_as_is_available_is_moved(asked: int, moved: int) -> None:
    """
    And no more than was asked for.
    """
    for command in (transfer("alice", "bob", asked), withdrawal("alice", asked)):
        assert posted(ledger(), up_to(command)).amount == moved


def test_an_overdraft_is_available_and_a_reserve_is_not() -> None:
    """
    Down to the minimum, whatever it is.
    """
    assert posted(ledger(minimum=-20), up_to(transfer("alice", "bob", 500))).amount == 120
    assert posted(ledger(minimum=70), up_to(transfer("alice", "bob", 500))).amount == 30
    assert posted(ledger(minimum=99), up_to(transfer("alice", "bob", 500))).amount == 1


def test_nothing_is_not_moved() -> None:
    """
    It is refused as a whole, by the one unit that is missing.
    """
    asked = up_to(transfer("alice", "bob", 500))
    assert refused(ledger(minimum=100), asked) == (Reason.INSUFFICIENT_FUNDS, 1)


def test_a_refusal_does_not_tell_what_is_in_a_foreign_wallet() -> None:
    """
    To another merchant the wallet is unknown, with everything in it.
    """
    asked = up_to(transfer("alice", "bob", 500, merchant_id="globex"))
    outcome = do(ledger(), asked)
    assert isinstance(outcome, TransferRejected)
    assert (outcome.reason, outcome.amount) == (Reason.SOURCE_UNKNOWN, 500)


# --- Limits ---------------------------------------------------------------------------------------


def two_asked(side: str) -> tuple[Any, Any]:
    if side == "debits":
        return transfer("alice", "bob", 30), withdrawal("alice", 12, key="2")
    return transfer("bob", "alice", 5), deposit("alice", 37, key="2")


@pytest.mark.parametrize("side", ["debits", "credits"])
@pytest.mark.parametrize(
    ("name", "bound", "excess"),
    [("hour_count", 1, 1), ("hour_amount", 41, 1), ("day_count", 1, 1), ("day_amount", 40, 2)],
)
def test_limits_stop_the_movement_that_would_pass_them(
    side: str, name: str, bound: int, excess: int
) -> None:
    """
    The one before it passes, and so does it where the bound is as high as it needs.
    """
    first, second = two_asked(side)
    state = limited(Limits(**{side: Velocity(**{name: bound})}))
    posted(state, first)
    what, window = name.split("_")[1], name.split("_", maxsplit=1)[0]
    reason = Reason[f"{side[:-1]}_{what}_{window}_exceeded".upper()]
    assert refused(state, second) == (reason, excess)
    state = limited(Limits(**{side: Velocity(**{name: bound + excess})}))
    posted(state, first)
    posted(state, second)
    usage = state.wallets["alice"].usage
    assert usage is not None
    assert getattr(getattr(usage, side), name) == bound + excess
    other = usage.credits if side == "debits" else usage.debits
    assert other.day_count == 0


def test_a_new_hour_has_new_limits() -> None:
    """
    What was counted in the one before is gone, but not for the day.
    """
    state = limited(Limits(debits=Velocity(hour_amount=30, day_amount=50)))
    posted(state, transfer("alice", "bob", 30))
    later = AT_US + HOUR_US
    assert refused(state, transfer("alice", "bob", 31, key="2"), later) == (
        Reason.DEBIT_AMOUNT_HOUR_EXCEEDED,
        1,
    )
    assert refused(state, transfer("alice", "bob", 21, key="3"), later) == (
        Reason.DEBIT_AMOUNT_DAY_EXCEEDED,
        1,
    )
    posted(state, transfer("alice", "bob", 20, key="4"), later)


@pytest.mark.parametrize("make", [lambda: transfer("bob", "alice", 5), lambda: deposit("alice", 5)])
def test_no_more_than_the_most_is_in_a_wallet(make: Any) -> None:
    """
    Exactly the maximum may be in it.
    """
    assert refused(limited(Limits(balance_max=104)), make()) == (Reason.BALANCE_MAX_EXCEEDED, 1)
    both = Limits(credits=Velocity(hour_amount=2), balance_max=104)
    assert refused(limited(both), make()) == (Reason.CREDIT_AMOUNT_HOUR_EXCEEDED, 3)
    posted(limited(Limits(balance_max=105)), make())


def test_refunds_and_fees_are_neither_limited_nor_counted() -> None:
    """
    Limits are for customers' own movements.
    """
    state = limited(Limits(Velocity(0, 0, 0, 0), Velocity(0, 0, 0, 0), 100))
    posted(state, fee("alice", 5))
    posted(state, refund("paid", "alice", "bob", 5, refundable=5, key="2"))
    posted(state, refund("back", "bob", "alice", 5, refundable=5, key="3"))
    assert state.wallets["alice"].usage == Usage(since_us=AT_US - 1)


def test_limits_of_both_sides_count_at_once() -> None:
    """
    Each wallet has its own.
    """
    state = limited(Limits(debits=Velocity(hour_count=9)))
    set_limits(state, Limits(credits=Velocity(hour_count=9)), "bob", at_us=AT_US - 1)
    posted(state, transfer("alice", "bob", 30))
    alice, bob = state.wallets["alice"].usage, state.wallets["bob"].usage
    assert alice is not None
    assert bob is not None
    assert (alice.debits.hour_amount, alice.credits.hour_amount) == (30, 0)
    assert (bob.debits.hour_amount, bob.credits.hour_amount) == (0, 30)


def test_counting_begins_with_the_first_limits_and_ends_with_the_last() -> None:
    """
    Other limits go on with the count; lifting them all drops it.
    """
    state = limited(Limits(debits=Velocity(hour_count=9)))
    posted(state, transfer("alice", "bob", 30))
    before = state.wallets["alice"].usage
    for limits, usage in ((Limits(balance_max=900), before), (Limits(), None)):
        set_limits(state, limits, at_us=AT_US + 1)
        assert state.wallets["alice"].usage == usage
    assert state.wallets["alice"].limits is None
    assert decide_limits(state, SetWalletLimits("acme", "alice", None, Limits())) is None
    assert decide_limits(state, SetWalletLimits("acme", "alice", None, None)) is None


@pytest.mark.parametrize("is_lifted", [False, True])
@pytest.mark.parametrize("later_us", [0, 1])
def test_what_was_not_counted_is_not_given_back(is_lifted: bool, later_us: int) -> None:
    """
    A hold from before the limits, or of the same record, makes no room under them when it is
    voided in the same window; so it is when limits were lifted and set again meanwhile.
    """
    limits = Limits(debits=Velocity(hour_amount=50))
    state = holding(state=limited(limits) if is_lifted else ledger())
    at_us = AT_US + later_us
    for asked in (Limits(), limits) if is_lifted else (limits,):
        set_limits(state, asked, at_us=at_us)
    posted(state, transfer("alice", "bob", 50, key="1"), at_us + 1)
    do(state, void(HOLD), at_us + 2)
    told = refused(state, transfer("alice", "bob", 1, key="2"), at_us + 3)
    assert told == (Reason.DEBIT_AMOUNT_HOUR_EXCEEDED, 1)


# --- Captures -------------------------------------------------------------------------------------


def holding(amount: int = 40, state: ShardState | None = None, **options: Any) -> ShardState:
    state = state or ledger()
    do(state, place("alice", amount, **options))
    assert HOLD in state.holds
    return state


def kept(state: ShardState) -> tuple[int, int, int, int]:
    """
    Tell what the hold keeps and its status, and what alice has set aside and available.
    """
    hold, alice = state.holds[HOLD], state.wallets["alice"]
    assert alice.held == alice.reserved
    return hold.kept, hold.status, alice.held, alice.available


def test_part_after_part_is_captured() -> None:
    """
    The last unit ends the hold by itself.
    """
    state = holding()
    assert kept(state) == (40, HoldStatus.OPEN, 40, 60)
    posted(state, capture(HOLD, 15, "bob", key="1"))
    assert kept(state) == (25, HoldStatus.OPEN, 25, 60)
    posted(state, capture(HOLD, 25, "bob", key="2"))
    assert kept(state) == (0, HoldStatus.CAPTURED, 0, 60)
    assert state.wallets["bob"].posted == 45
    assert refused(state, capture(HOLD, 1, "bob", key="3")) == (Reason.HOLD_CAPTURED, 0)


def test_a_last_capture_frees_the_rest() -> None:
    """
    Nothing more can be captured then.
    """
    state = holding()
    posted(state, capture(HOLD, 15, "bob", is_final=True, key="1"))
    assert kept(state) == (0, HoldStatus.CAPTURED, 0, 85)
    assert refused(state, capture(HOLD, 1, "bob", key="2")) == (Reason.HOLD_CAPTURED, 0)


def test_all_that_is_left_is_captured() -> None:
    """
    Whatever that is.
    """
    state = holding()
    posted(state, capture(HOLD, 15, "bob", key="1"))
    assert posted(state, capture(HOLD, None, "bob", key="2")).amount == 25


def test_no_more_than_is_kept_is_captured() -> None:
    """
    Even if there is more in the wallet.
    """
    state = holding()
    told = refused(state, capture(HOLD, 43, "bob"))
    assert told == (Reason.CAPTURE_EXCEEDS_HOLD, 3)
    posted(state, capture(HOLD, 40, "bob", key="2"))


def test_a_capture_goes_where_the_hold_says() -> None:
    """
    Unless it says otherwise itself. Its source and its currency are the hold's.
    """
    state = holding(destination="bob")
    first = posted(state, capture(HOLD, 15, key="1"))
    assert (first.source, first.destination, first.currency) == ("alice", "bob", "EUR")
    assert posted(state, capture(HOLD, 15, "carol", key="2")).destination == "carol"
    told = refused(state, capture(HOLD, 1, "carol", currency="USD", key="3"))
    assert told == (Reason.CURRENCY_MISMATCH, 0)


def test_a_capture_that_says_no_destination_needs_the_holds() -> None:
    """
    Money is not captured into nowhere, wherever the slot of a wallet without a name is.
    """
    for owner in (0, 3):
        state = holding()
        state.slots.assign(slot_of(""), owner, 2)
        assert refused(state, capture(HOLD, 1)) == (Reason.DESTINATION_UNKNOWN, 0)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (WalletStatus.FROZEN, None),
        (WalletStatus.LOCKED, (Reason.SOURCE_LOCKED, 0)),
    ],
)
def test_a_lock_stops_captures_and_a_freeze_does_not(
    status: WalletStatus, told: tuple[Reason, int] | None
) -> None:
    """
    What a hold keeps was promised before the freeze.
    """
    state = holding()
    state.wallets["alice"].status = status
    if told is None:
        posted(state, capture(HOLD, 1, "bob"))
    else:
        assert refused(state, capture(HOLD, 1, "bob")) == told


def test_a_capture_needs_no_funds_but_the_holds() -> None:
    """
    The rest may be gone, and the minimum may be what is left.
    """
    state = holding()
    posted(state, transfer("alice", "bob", 60))
    posted(state, capture(HOLD, None, "bob", key="2"))
    assert state.wallets["alice"].posted == 0


def test_holds_of_others_are_unknown() -> None:
    """
    Like wallets of others; the refusal names nothing of them.
    """
    for state, hold_id in ((holding(), HOLD), (ledger(), HOLD), (holding(), bytes(16))):
        asked = capture(hold_id, 1, "bob", merchant_id="globex", key="2")
        outcome = do(state, asked)
        assert isinstance(outcome, TransferRejected)
        assert (outcome.reason, outcome.source) == (Reason.HOLD_UNKNOWN, "")


def test_a_capture_of_nothing_is_refused_where_the_hold_would_be() -> None:
    """
    Wherever the slot of a wallet without a name is.
    """
    state = ledger()
    state.slots.assign(slot_of(""), 3, 2)
    assert slot_of_hold(HOLD) != slot_of("")
    assert refused(state, capture(HOLD, 1, "bob")) == (Reason.HOLD_UNKNOWN, 0)


def test_what_ended_a_hold_is_told() -> None:
    """
    And that its time is over, be it before anybody has looked.
    """
    state = holding()
    do(state, void(HOLD))
    assert refused(state, capture(HOLD, 1, "bob")) == (Reason.HOLD_VOIDED, 0)
    outcome = do(state, capture(HOLD, None, "bob", key="all"))
    assert isinstance(outcome, TransferRejected)
    assert outcome.amount == 40  # All of what there is nothing left of.
    state = holding()
    late = AT_US + MINUTE_US
    assert refused(state, capture(HOLD, 1, "bob"), late) == (Reason.HOLD_EXPIRED, 0)
    posted(state, capture(HOLD, 1, "bob", key="2"), late - 1)


def test_a_capture_is_a_credit_and_was_a_debit_when_it_was_held() -> None:
    """
    It counts once on either side.
    """
    state = limited(Limits(credits=Velocity(hour_amount=15)), "bob")
    holding(state=state)
    told = refused(state, capture(HOLD, 16, "bob", key="1"))
    assert told == (Reason.CREDIT_AMOUNT_HOUR_EXCEEDED, 1)
    posted(state, capture(HOLD, 15, "bob", key="2"))
    state = limited(Limits(debits=Velocity(hour_count=1, hour_amount=40)))
    holding(state=state)
    posted(state, capture(HOLD, 40, "bob", key="2"))
    usage = state.wallets["alice"].usage
    assert usage is not None
    assert (usage.debits.hour_count, usage.debits.hour_amount) == (1, 40)


@pytest.mark.parametrize(
    ("command", "count", "amount"),
    [
        (capture(HOLD, 15, "bob", is_final=True, key="1"), 1, 15),
        (capture(HOLD, 15, "bob", key="1"), 1, 40),
        (void(HOLD), 0, 0),
        (extend(HOLD, 90), 1, 40),
    ],
)
def test_what_a_hold_did_not_need_is_given_back(command: Any, count: int, amount: int) -> None:
    """
    To the limits of the hour in which it was placed.
    """
    state = holding(state=limited(Limits(debits=Velocity(hour_amount=40))))
    do(state, command)
    usage = state.wallets["alice"].usage
    assert usage is not None
    assert (usage.debits.hour_count, usage.debits.hour_amount) == (count, amount)
    assert (usage.debits.day_count, usage.debits.day_amount) == (count, amount)


def test_nothing_is_counted_anew_when_all_was_captured() -> None:
    """
    There is nothing to give back.
    """
    state = holding(state=limited(Limits(debits=Velocity(hour_amount=40))))
    outcome = decided(state, capture(HOLD, 40, "bob", key="1"))
    assert [type(one).__name__ for one in outcome.decisions] == ["HoldChanged", "TransferPosted"]


# --- Refunds --------------------------------------------------------------------------------------


def test_no_more_goes_back_than_was_paid() -> None:
    """
    In all of a transfer's refunds together, to the unit.
    """
    state = ledger()
    posted(state, refund("paid", "alice", "bob", 20, refundable=50, key="1"))
    assert state.refunds[PAID].refunded == 20
    told = refused(state, refund("paid", "alice", "bob", 33, refundable=50, key="2"))
    assert told == (Reason.REFUND_EXCEEDS_PAID, 3)
    rest = posted(state, refund("paid", "alice", "bob", None, refundable=50, key="3"))
    assert (rest.amount, state.refunds[PAID].refunded, state.refunds[PAID].version) == (30, 50, 2)
    posted(state, refund("paid", "alice", "bob", None, refundable=51, key="one more"))
    told = refused(state, refund("paid", "alice", "bob", None, refundable=51, key="4"))
    assert told == (Reason.REFUND_EXCEEDS_PAID, 0)


@pytest.mark.parametrize("amount", [1, None, 51])
def test_nothing_goes_back_on_a_total_that_nobody_knows(amount: int | None) -> None:
    """
    What could not be looked up may be all that was paid: it is not taken for nothing.
    """
    command = refund("paid", "alice", "bob", amount, refundable=50)
    rejected = decide_move(ledger(), command, AT_US)
    assert isinstance(rejected, TransferRejected)
    assert (rejected.reason, rejected.short_by) == (Reason.REFUND_TOTAL_UNKNOWN, 0)
    with pytest.raises(AssertionError, match="total is not known"):
        refund_counted(ledger(), PAID, "alice", -1)


def test_each_transfer_has_its_own_total() -> None:
    """
    Whoever they are between.
    """
    state = ledger()
    posted(state, refund("paid", "alice", "bob", 20, refundable=20, key="1"))
    posted(state, refund("other", "alice", "bob", 20, refundable=20, key="2"))
    assert len(state.refunds) == 2


def test_a_refund_is_a_debit_like_others() -> None:
    """
    The wallet that was paid needs the money, and is its merchant's.
    """
    told = refused(ledger(), refund("paid", "alice", "bob", 101, refundable=200))
    assert told == (Reason.INSUFFICIENT_FUNDS, 1)
    foreign = refund("paid", "alice", "bob", 1, refundable=1, merchant_id="globex")
    assert refused(ledger(), foreign) == (Reason.SOURCE_UNKNOWN, 0)


# --- Fees -----------------------------------------------------------------------------------------


def test_a_fee_goes_to_its_merchants_wallet_at_this_shard() -> None:
    """
    Which is opened with the first one and takes all that follow; a sweep empties it.
    """
    state = ledger()
    for key in ("1", "2"):
        assert posted(state, fee("alice", 5, key=key)).destination == "$fees:0:EUR:acme"
    fees = state.wallets["$fees:0:EUR:acme"]
    assert (fees.merchant_id, fees.minimum, fees.posted) == ("acme", 0, 10)
    swept = posted(state, up_to(transfer(fees.wallet_id, "bob", 900, key="3")))
    assert (swept.amount, fees.posted) == (10, 0)


def test_fees_of_others_are_not_swept() -> None:
    """
    The wallet is the merchant's own.
    """
    state = ledger()
    posted(state, fee("alice", 5))
    asked = up_to(transfer("$fees:0:EUR:acme", "bob", 9, key="2", merchant_id="globex"))
    assert refused(state, asked) == (Reason.SOURCE_UNKNOWN, 0)


def test_a_fee_of_a_wallet_of_others_is_refused() -> None:
    """
    And in a currency that the wallet does not have.
    """
    assert refused(ledger(), fee("alice", 1, merchant_id="globex")) == (Reason.SOURCE_UNKNOWN, 0)
    outcome = do(ledger(), fee("alice", 1, currency="USD"))
    assert isinstance(outcome, TransferRejected)
    assert outcome.reason == Reason.CURRENCY_MISMATCH


# --- Elsewhere ------------------------------------------------------------------------------------


def test_what_is_elsewhere_is_asked_there() -> None:
    """
    Wallets by their slot, holds by that in their id, the ledger's own by their name.
    """
    slots = SlotMap.undivided(0)
    slots.assign(slot_of("zoe"), 3, 1)
    state = ShardState(0, slots)
    assert decided(state, on_terms(transfer("zoe", "alice", 1))) == Elsewhere(3)
    assert decided(state, on_terms(deposit("zoe", 1))) == Elsewhere(3)
    assert decided(state, fee("zoe", 1)) == Elsewhere(3)
    assert decided(state, refund("t", "zoe", "alice", 1, refundable=1)) == Elsewhere(3)
    assert decided(state, capture(hold_id_of("zoe"), 1, "alice")) == Elsewhere(3)
    assert decide_move(state, transfer("$fees:2:EUR:acme", "alice", 1), AT_US) == Elsewhere(2)
    assert decided(state, up_to(transfer("$fees:2:EUR:acme", "alice", 1))) == Elsewhere(2)


def test_kinds_of_movements_that_are_bound_are_covered_here() -> None:
    """
    All kinds of `MoveMoney`, that is: the rest are commands of their own.
    """
    kinds = {TransferType.HOLD, TransferType.VOID, TransferType.EXTEND}
    moved = {transfer("a", "b", 1), deposit("a", 1), withdrawal("a", 1), fee("a", 1)}
    moved |= {capture(HOLD), refund("t", "a", "b", 1, refundable=1)}
    assert {one.transfer_type for one in moved} == set(TransferType) - kinds
