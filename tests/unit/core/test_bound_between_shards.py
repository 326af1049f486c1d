"""
Goal: what is counted with money on its way is right while it is on its way, when it has arrived,
      when it comes back, and when it is sent anew: holds, refunds and limits.
Method: shard 0 with alice pays bob at shard 1, entry by entry, by hand.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from processor.core.channel import (
    ENTRIES_PENDING_MAX,
    BoundEntry,
    answer_elsewhere,
    entry_sent,
    refusal_answered,
)
from processor.core.commands import GiveSlot, TransferType
from processor.core.decide_channel import (
    ChannelFull,
    Elsewhere,
    decide_anew,
    decide_due,
    decide_entry,
)
from processor.core.decide_holds import decide_expiry
from processor.core.decide_slots import SlotStays, decide_give
from processor.core.decisions import (
    Decision,
    EntryCredited,
    SlotGiven,
    TransferPosted,
    TransferRejected,
    TransferReserved,
    UsageCounted,
    WalletLimitsSet,
)
from processor.core.hold import HoldStatus
from processor.core.limits import HOUR_US, Limits, Usage, Velocity
from processor.core.reject_reason import RejectReason as Reason
from processor.core.slots import SlotMap, slot_of
from processor.core.state import ShardState
from processor.core.wallet import WalletStatus
from tests.support.bound_commands import (
    capture,
    fee,
    hold_id_of,
    leg,
    linked,
    on_terms,
    place,
    refund,
    up_to,
    void,
)
from tests.support.commands import AT_US, identifier, transfer, wallet, world
from tests.support.decided import apply_all, deliver, do, settle

HOLD = hold_id_of("alice")
PAID = identifier("transfer of paid")
LATER = AT_US + HOUR_US


def shards() -> tuple[ShardState, ShardState]:
    """
    Make shard 0 with alice, who has 100 and limits, and shard 1 with bob, who has limits too.
    """
    made = []
    for shard_id in (0, 1):
        slots = SlotMap.undivided(0)
        slots.assign(slot_of("bob"), 1, 1)
        made.append(ShardState(shard_id, slots))
    home, peer = made
    limits = Limits(Velocity(90, 9_000, 900, 90_000), Velocity(90, 9_000, 900, 90_000))
    for one in (world(-100), wallet("alice", 100, limits=limits, usage=Usage()), wallet("anna")):
        home.load(one)
    for one in (world(shard_id=1), wallet("bob", limits=limits, usage=Usage())):
        peer.load(one)
    return home, peer


def counted(state: ShardState, name: str, side: str) -> tuple[int, int]:
    usage = state.wallets[name].usage
    assert usage is not None
    counter = getattr(usage, side)
    assert (counter.hour_count, counter.hour_amount) == (counter.day_count, counter.day_amount)
    return counter.day_count, counter.day_amount


def facts_of_hold(state: ShardState) -> tuple[int, int, int, bool]:
    hold = state.holds[HOLD]
    return hold.kept, hold.pending, hold.status, hold.is_ending


def set_aside(state: ShardState) -> tuple[int, int, int]:
    alice = state.wallets["alice"]
    return alice.posted, alice.held, alice.reserved


def sent(home: ShardState, command: Any) -> TransferReserved:
    outcome = do(home, command)
    assert isinstance(outcome, TransferReserved), outcome
    return outcome


# --- What the destination is told -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (on_terms(transfer("alice", "bob", 9), if_version=1), TransferType.TRANSFER),
        (up_to(transfer("alice", "bob", 9)), TransferType.TRANSFER),
        (refund("paid", "alice", "bob", 9, refundable=9), TransferType.REFUND),
        (capture(HOLD, 9, "bob", key="2"), TransferType.CAPTURE),
    ],
)
def test_a_bound_movement_is_told_with_its_kind_and_its_terms(
    command: Any, kind: TransferType
) -> None:
    """
    And credited as that; a plain one is told as before.
    """
    home, peer = shards()
    do(home, place("alice", 30))
    pending = sent(home, command)
    entry = entry_sent(pending)
    assert isinstance(entry, BoundEntry)
    assert (entry.transfer_type, entry.terms) == (kind, command.terms)
    assert deliver(home, peer) == 0
    settle(home, peer, 0)
    assert home.wallets["alice"].posted == 91
    assert peer.wallets["bob"].posted == 9
    posted, _, _ = home.keys.find(command.key) or (None, 0, 0)
    assert isinstance(posted, TransferPosted)
    assert (posted.transfer_type, posted.terms) == (kind, command.terms)


def test_as_much_as_is_there_goes_to_another_shard() -> None:
    """
    It is filled in before it leaves.
    """
    home, _ = shards()
    pending = sent(home, up_to(transfer("alice", "bob", 900)))
    assert (pending.amount, home.wallets["alice"].available) == (100, 0)


def test_a_sweep_goes_to_another_shard() -> None:
    """
    From the merchant's wallet of fees, which stays where it is.
    """
    home, peer = shards()
    do(home, fee("alice", 7))
    sent(home, up_to(transfer("$fees:0:EUR:acme", "bob", 900, key="2")))
    settle(home, peer, deliver(home, peer))
    assert (home.wallets["$fees:0:EUR:acme"].posted, peer.wallets["bob"].posted) == (0, 7)


def test_what_cannot_leave_now_changes_nothing() -> None:
    """
    The hold is as before, and nothing is counted.
    """
    home, _ = shards()
    do(home, place("alice", 40))
    before = home.wallets["alice"].facts()
    asked = capture(HOLD, 5, "bob", key="2")
    home.closing[slot_of("alice")] = AT_US + 1
    assert do(home, asked) == Elsewhere(0)
    home.closing.clear()
    home.channels.to(1).outbox = dict.fromkeys(range(ENTRIES_PENDING_MAX))
    assert do(home, asked) == ChannelFull(1)
    assert (home.wallets["alice"].facts(), home.holds[HOLD].pending) == (before, 0)


def test_the_ledgers_own_wallets_are_not_paid_by_name() -> None:
    """
    Not here, and not at another shard.
    """
    home, _ = shards()
    for key, name in enumerate(("$fees:0:EUR:acme", "$fees:1:EUR:acme", "$due:1:0:EUR")):
        outcome = do(home, on_terms(transfer("alice", name, 1, key=str(key))))
        assert isinstance(outcome, TransferRejected)
        assert outcome.reason == Reason.DESTINATION_UNKNOWN


# --- Captures -------------------------------------------------------------------------------------


def capturing(**options: Any) -> tuple[ShardState, ShardState]:
    """
    Let 15 of the 40 that are held be on their way.
    """
    home, peer = shards()
    do(home, place("alice", 40))
    sent(home, capture(HOLD, 15, "bob", key="2", **options))
    return home, peer


def test_what_is_captured_is_on_its_way_and_not_held() -> None:
    """
    But set aside it stays, all the time.
    """
    home, _ = capturing()
    assert facts_of_hold(home) == (25, 15, HoldStatus.OPEN, False)
    assert set_aside(home) == (100, 25, 40)


def test_a_capture_that_arrives_is_captured() -> None:
    """
    The destination counts it as a credit; the source has counted it when it was held.
    """
    home, peer = capturing()
    settle(home, peer, deliver(home, peer))
    assert facts_of_hold(home) == (25, 0, HoldStatus.OPEN, False)
    assert home.holds[HOLD].captured == 15
    assert set_aside(home) == (85, 25, 25)
    assert counted(home, "alice", "debits") == (1, 40)
    assert counted(peer, "bob", "credits") == (1, 15)


def test_a_capture_that_is_refused_is_held_again() -> None:
    """
    Nothing was captured, and nothing is counted anew.
    """
    home, peer = capturing()
    peer.wallets["bob"].status = WalletStatus.LOCKED
    settle(home, peer, deliver(home, peer))
    assert facts_of_hold(home) == (40, 0, HoldStatus.OPEN, False)
    assert set_aside(home) == (100, 40, 40)
    assert counted(home, "alice", "debits") == (1, 40)
    assert counted(peer, "bob", "credits") == (0, 0)


def test_a_last_capture_ends_the_hold_when_it_arrives() -> None:
    """
    Until then nothing else is done with it; then the rest is free, and free of the limits.
    """
    home, peer = capturing(is_final=True)
    assert facts_of_hold(home) == (25, 15, HoldStatus.OPEN, True)
    for command in (capture(HOLD, 1, "anna", key="3"), void(HOLD, key="4")):
        outcome = do(home, command)
        assert isinstance(outcome, TransferRejected)
        assert outcome.reason == Reason.HOLD_CAPTURE_PENDING
    settle(home, peer, deliver(home, peer))
    assert facts_of_hold(home) == (0, 0, HoldStatus.CAPTURED, False)
    assert set_aside(home) == (85, 0, 0)
    assert counted(home, "alice", "debits") == (1, 15)


def test_an_earlier_capture_that_comes_to_its_end_leaves_the_last_one_the_last() -> None:
    """
    Whatever became of it.
    """
    for status in (WalletStatus.OPEN, WalletStatus.LOCKED):
        home, peer = capturing()
        sent(home, capture(HOLD, 5, "bob", is_final=True, key="3"))
        peer.wallets["bob"].status = status
        settle(home, peer, deliver(home, peer))
        assert home.holds[HOLD].is_ending
        peer.wallets["bob"].status = WalletStatus.OPEN
        settle(home, peer, deliver(home, peer))
        assert facts_of_hold(home) == (0, 0, HoldStatus.CAPTURED, False)


def test_a_last_capture_that_is_refused_was_not_the_last() -> None:
    """
    The hold is as before.
    """
    home, peer = capturing(is_final=True)
    peer.wallets["bob"].status = WalletStatus.LOCKED
    settle(home, peer, deliver(home, peer))
    assert facts_of_hold(home) == (40, 0, HoldStatus.OPEN, False)
    assert isinstance(do(home, capture(HOLD, 40, "anna", key="3")), TransferPosted)


def test_the_rest_in_two_captures_ends_the_hold() -> None:
    """
    Whichever comes last, though neither said so.
    """
    home, peer = capturing()
    sent(home, capture(HOLD, None, "bob", is_final=False, key="3"))
    assert facts_of_hold(home) == (0, 40, HoldStatus.OPEN, False)
    outcome = do(home, capture(HOLD, 1, "bob", key="4"))
    assert isinstance(outcome, TransferRejected)
    assert (outcome.reason, outcome.short_by) == (Reason.CAPTURE_EXCEEDS_HOLD, 1)
    outcome = do(home, capture(HOLD, None, "bob", key="5"))
    assert isinstance(outcome, TransferRejected)
    assert (outcome.reason, outcome.short_by) == (Reason.CAPTURE_EXCEEDS_HOLD, 1)
    settle(home, peer, deliver(home, peer))
    assert home.holds[HOLD].status == HoldStatus.OPEN
    settle(home, peer, deliver(home, peer))
    assert facts_of_hold(home) == (0, 0, HoldStatus.CAPTURED, False)
    assert counted(home, "alice", "debits") == (1, 40)


@pytest.mark.parametrize("is_final", [False, True])
@pytest.mark.parametrize("is_refused", [False, True])
def test_a_hold_that_ends_meanwhile_stays_ended(is_final: bool, is_refused: bool) -> None:
    """
    What is on its way is captured all the same, or free when it comes back, also of the limits.
    """
    home, peer = capturing(is_final=is_final)
    hold = home.holds[HOLD]
    apply_all(home, decide_expiry(home, hold, hold.expires_at_us), hold.expires_at_us)
    assert facts_of_hold(home) == (0, 15, HoldStatus.EXPIRED, is_final)
    assert set_aside(home) == (100, 0, 15)
    assert counted(home, "alice", "debits") == (1, 15)
    assert home.wallets["alice"].is_relied_on
    if is_refused:
        peer.wallets["bob"].status = WalletStatus.LOCKED
    settle(home, peer, deliver(home, peer))
    assert facts_of_hold(home) == (0, 0, HoldStatus.EXPIRED, False)
    assert set_aside(home) == ((100, 0, 0) if is_refused else (85, 0, 0))
    assert counted(home, "alice", "debits") == ((0, 0) if is_refused else (1, 15))


def test_of_two_captures_that_come_back_the_last_takes_the_count_along() -> None:
    """
    A hold counts once, however many parts it came to.
    """
    home, peer = capturing()
    sent(home, capture(HOLD, 5, "bob", key="3"))
    do(home, void(HOLD, key="4"))
    assert counted(home, "alice", "debits") == (1, 20)
    peer.wallets["bob"].status = WalletStatus.LOCKED
    settle(home, peer, deliver(home, peer))
    assert counted(home, "alice", "debits") == (1, 5)
    settle(home, peer, deliver(home, peer))
    assert counted(home, "alice", "debits") == (0, 0)


# --- Refunds and limits ---------------------------------------------------------------------------


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_refund_counts_while_it_is_on_its_way(is_refused: bool) -> None:
    """
    So that no other goes beyond what was paid; one that comes back does not count.
    """
    home, peer = shards()
    sent(home, refund("paid", "alice", "bob", 30, refundable=50))
    assert (home.refunds[PAID].refunded, home.refunds[PAID].version) == (30, 1)
    outcome = do(home, refund("paid", "alice", "bob", 21, refundable=50, key="2"))
    assert isinstance(outcome, TransferRejected)
    assert outcome.reason == Reason.REFUND_EXCEEDS_PAID
    if is_refused:
        peer.wallets["bob"].status = WalletStatus.LOCKED
    settle(home, peer, deliver(home, peer))
    total = home.refunds[PAID]
    assert (total.refunded, total.version) == ((0, 2) if is_refused else (30, 1))
    assert counted(home, "alice", "debits") == (0, 0)
    assert counted(peer, "bob", "credits") == (0, 0)


@pytest.mark.parametrize("is_late", [False, True])
def test_what_comes_back_does_not_count(is_late: bool) -> None:
    """
    In the window in which it was set aside. The reason and by how much come along.
    """
    home, peer = shards()
    command = transfer("alice", "bob", 30)
    sent(home, command)
    assert counted(home, "alice", "debits") == (1, 30)
    peer.wallets["bob"].limits = Limits(credits=Velocity(hour_amount=28))
    answer = deliver(home, peer)
    assert refusal_answered(answer).short_by == 2
    at_us = LATER if is_late else AT_US
    do(home, transfer("alice", "anna", 5, key="2"), at_us)
    settle(home, peer, answer, at_us)
    usage = home.wallets["alice"].usage
    assert usage is not None
    assert (usage.debits.hour_amount, usage.debits.day_amount) == (5, 5)
    rejected, _, _ = home.keys.find(command.key) or (None, 0, 0)
    assert isinstance(rejected, TransferRejected)
    assert (rejected.reason, rejected.short_by) == (Reason.CREDIT_AMOUNT_HOUR_EXCEEDED, 2)


@pytest.mark.parametrize("later_us", [0, 1])
def test_what_was_sent_before_there_were_limits_gives_nothing_back(later_us: int) -> None:
    """
    Neither what is refused, nor a capture that comes back to a hold that has ended.
    """
    for command in (transfer("alice", "bob", 30), capture(HOLD, 30, "bob", key="1")):
        home, peer = shards()
        alice = home.wallets["alice"]
        alice.limits = alice.usage = None
        do(home, place("alice", 40))
        sent(home, command)
        peer.wallets["bob"].status = WalletStatus.LOCKED
        limits = Limits(debits=Velocity(hour_amount=10))
        at_us = AT_US + later_us
        apply_all(home, [WalletLimitsSet("alice", 0, limits)], at_us)
        do(home, transfer("alice", "anna", 10, key="2"), at_us + 1)
        do(home, void(HOLD), at_us + 2)
        settle(home, peer, deliver(home, peer), at_us + 3)
        assert counted(home, "alice", "debits") == (1, 10)
        assert set_aside(home) == (90, 0, 0)


def test_a_credit_is_counted_where_it_arrives() -> None:
    """
    With the time of the record there, next to the posting.
    """
    home, peer = shards()
    sent(home, transfer("alice", "bob", 30))
    deliver(home, peer, LATER)
    usage = peer.wallets["bob"].usage
    assert usage is not None
    assert (usage.credits.hour, usage.credits.hour_amount) == (LATER // HOUR_US, 30)


# --- Sent anew ------------------------------------------------------------------------------------


def anew(home: ShardState, pending: TransferReserved, at_us: int = AT_US) -> list[Decision]:
    """
    Call *pending* back because bob's slot is elsewhere, and say what takes its place.
    """
    peer = ShardState(pending.peer, SlotMap.undivided(2))
    settle(home, peer, answer_elsewhere(2))
    due = decide_due(home, 2, "EUR")
    apply_all(home, [] if due is None else [due])
    answer = answer_elsewhere(2)
    decided = decide_anew(home, pending, answer, reserved_at_us=AT_US, at_us=at_us)
    apply_all(home, decided.decisions, at_us)
    return decided.decisions


def arrives(home: ShardState) -> None:
    """
    Let bob's slot be at home by now.
    """
    home.slots.assign(slot_of("bob"), 0, 2)
    limits = Limits(Velocity(9, None, None, None), Velocity(9, None, None, None))
    home.load(wallet("bob", limits=limits, usage=Usage()))


def test_what_is_sent_anew_is_counted_as_before() -> None:
    """
    Once, and in the window in which it was set aside first.
    """
    home, _ = shards()
    pending = sent(home, transfer("alice", "bob", 30))
    (again,) = anew(home, pending, LATER)
    assert isinstance(again, TransferReserved)
    assert (again.peer, again.counted_at_us) == (2, AT_US)
    assert counted(home, "alice", "debits") == (1, 30)
    third = ShardState(2, SlotMap.undivided(2))
    third.load(wallet("bob", status=WalletStatus.LOCKED))
    settle(home, third, deliver(home, third), LATER)
    assert counted(home, "alice", "debits") == (0, 0)


def test_what_is_at_home_by_now_is_posted_at_once() -> None:
    """
    And counted as a credit; a capture is captured.
    """
    home, _ = capturing(is_final=True)
    pending = home.channels.to(1).outbox[1]
    assert isinstance(pending, TransferReserved)
    arrives(home)
    posted = anew(home, pending)[0]
    assert isinstance(posted, TransferPosted)
    assert posted.terms == pending.terms
    assert facts_of_hold(home) == (0, 0, HoldStatus.CAPTURED, False)
    assert set_aside(home) == (85, 0, 0)
    assert counted(home, "bob", "credits") == (1, 15)
    assert counted(home, "alice", "debits") == (1, 15)


@pytest.mark.parametrize("kind", ["capture", "refund", "transfer"])
@pytest.mark.parametrize("is_full", [False, True])
def test_what_is_at_home_by_now_may_be_refused(kind: str, is_full: bool) -> None:
    """
    There, or because too much is due already where it would go; then it does not count.
    """
    home, _ = shards()
    do(home, place("alice", 40))
    command = {
        "capture": capture(HOLD, 15, "bob", key="2"),
        "refund": refund("paid", "alice", "bob", 15, refundable=50, key="2"),
        "transfer": transfer("alice", "bob", 15, key="2"),
    }[kind]
    pending = sent(home, command)
    if is_full:
        assert decide_due(home, 2, "EUR") is not None
        home.load(
            wallet("$due:0:2:EUR", merchant_id="$system", minimum=-(2**63 - 1), posted=2**63 - 1)
        )
        home.wallets["$world:0:EUR"].posted -= 2**63 - 1
        home.wallets["$world:0:EUR"].minimum *= 2
    else:
        arrives(home)
        home.wallets["bob"].status = WalletStatus.LOCKED
    rejected = anew(home, pending)[0]
    assert isinstance(rejected, TransferRejected)
    assert rejected.terms == pending.terms
    told = Reason.BALANCE_OUT_OF_RANGE if is_full else Reason.DESTINATION_LOCKED
    assert (rejected.reason, rejected.short_by) == (told, 15 if is_full else 0)
    assert set_aside(home) == (100, 40, 40)
    assert counted(home, "alice", "debits") == (1, 40)
    if kind == "refund":
        assert home.refunds[PAID].refunded == 0


# --- Slots ----------------------------------------------------------------------------------------


def test_a_slot_takes_its_holds_limits_and_refunds_along() -> None:
    """
    And goes on as if it had always been there: the hold is captured, the limits and what went back
    count, and its time comes.
    """
    home, peer = shards()
    do(home, place("alice", 40))
    do(home, refund("paid", "alice", "anna", 30, refundable=50, key="2"))
    before = home.wallets["alice"].facts()
    home.leaving[slot_of("alice")] = ["alice"]
    given = decide_give(home, GiveSlot(slot_of("alice"), 1))
    assert isinstance(given, SlotGiven)
    assert [one.sequence for one in (*given.holds, *given.refunds)] == [0, 0]
    due = decide_due(home, 1, "EUR")
    apply_all(home, [given] if due is None else [due, given])
    assert (home.holds, home.refunds) == ({}, {})
    due = decide_due(peer, 0, "EUR")
    apply_all(peer, [] if due is None else [due])
    deliver(home, peer)
    assert peer.wallets["alice"].facts() == before
    assert peer.holds[HOLD].kept == 40
    assert (peer.holds[HOLD].expires_at_us, HOLD) in peer.alarms
    outcome = do(peer, refund("paid", "alice", "bob", 21, refundable=50, key="3"))
    assert isinstance(outcome, TransferRejected)
    assert (outcome.reason, outcome.short_by) == (Reason.REFUND_EXCEEDS_PAID, 1)
    assert isinstance(do(peer, capture(HOLD, None, "bob", key="4")), TransferPosted)


def test_what_ended_and_is_in_the_tables_stays_behind() -> None:
    """
    Open holds go along always.
    """
    home, _ = shards()
    do(home, place("alice", 40))
    do(home, place("alice", 10, key="voided"))
    do(home, void(hold_id_of("alice", "voided"), key="v"))
    do(home, refund("paid", "alice", "anna", 30, refundable=50, key="2"))
    home.leaving[slot_of("alice")] = ["alice"]
    given = decide_give(home, GiveSlot(slot_of("alice"), 1))
    assert isinstance(given, SlotGiven)
    assert (len(given.holds), len(given.refunds)) == (2, 1)
    home.tables_reach(9)
    given = decide_give(home, GiveSlot(slot_of("alice"), 1))
    assert isinstance(given, SlotGiven)
    assert ([one.hold_id for one in given.holds], given.refunds) == ([HOLD], [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda given: replace(given, holds=[]), "an open hold stays behind"),
        (
            lambda given: replace(given, holds=[replace(given.holds[0], captured=1)]),
            "a carried hold differs",
        ),
        (
            lambda given: replace(given, wallets=[replace(given.wallets[0], usage=None)]),
            "a carried wallet differs",
        ),
    ],
)
def test_a_slot_that_would_lose_a_hold_or_a_count_stops(change: Any, words: str) -> None:
    """
    Money without its hold would be set aside for ever.
    """
    home, _ = shards()
    do(home, place("alice", 40))
    home.leaving[slot_of("alice")] = ["alice"]
    given = decide_give(home, GiveSlot(slot_of("alice"), 1))
    apply_all(home, [decide_due(home, 1, "EUR")])  # type: ignore[list-item]
    with pytest.raises(AssertionError, match=words):
        apply_all(home, [change(given)])


def test_a_slot_stays_while_a_capture_is_on_its_way() -> None:
    """
    Even of a hold that has ended.
    """
    home, _ = capturing()
    home.leaving[slot_of("alice")] = ["alice"]
    asked = GiveSlot(slot_of("alice"), 1)
    assert decide_give(home, asked) == SlotStays("transfers_pending")
    do(home, void(HOLD, key="v"))
    assert decide_give(home, asked) == SlotStays("transfers_pending")


@pytest.mark.parametrize("is_posted", [False, True])
def test_a_slot_stays_while_a_linked_transfer_is_not_done(is_posted: bool) -> None:
    """
    At the shard that decides, until its key has its outcome; at the others, until they are told.
    """
    home, peer = shards()
    do(home, linked(leg("alice", "bob", 5), leg("alice", "anna", 5)))
    answer = deliver(home, peer)
    home.leaving[slot_of("alice")], peer.leaving[slot_of("bob")] = ["alice"], ["bob"]
    assert decide_give(peer, GiveSlot(slot_of("bob"), 0)) == SlotStays("transfers_pending")
    if is_posted:
        settle(home, peer, answer)
        assert not home.wallets["alice"].is_relied_on
    asked = GiveSlot(slot_of("alice"), 1)
    assert decide_give(home, asked) == SlotStays("transfers_pending")


def test_what_was_read_of_a_slot_that_was_elsewhere_is_dropped_when_it_comes() -> None:
    """
    Its owner may have changed it since; and when it leaves, what is known of it is dropped too.
    """
    home, peer = shards()
    do(home, refund("paid", "alice", "anna", 30, refundable=50, key="2"))
    home.leaving[slot_of("alice")] = ["alice"]
    given = decide_give(home, GiveSlot(slot_of("alice"), 1))
    home.load_refund(replace(home.refunds[PAID], transfer_id=bytes(16), wallet_id="", version=0))
    apply_all(home, [decide_due(home, 1, "EUR"), given])  # type: ignore[list-item]
    assert home.refunds == {}
    apply_all(peer, [decide_due(peer, 0, "EUR")])  # type: ignore[list-item]
    stale = replace(given.refunds[0], refunded=1)  # type: ignore[union-attr]
    other = replace(stale, transfer_id=bytes(16), wallet_id="bob", version=1)
    peer.refunds = {PAID: stale, identifier("unknown"): replace(stale, wallet_id="", version=0)}
    peer.load_refund(other)
    deliver(home, peer)
    assert peer.refunds[PAID].refunded == 30
    assert set(peer.refunds) == {PAID, bytes(16)}


def test_an_entry_of_a_capture_is_credited_as_one() -> None:
    """
    The journal of the destination says what came.
    """
    home, peer = capturing()
    entry = entry_sent(home.channels.to(1).outbox[1])
    assert isinstance(entry, BoundEntry)
    due = decide_due(peer, 0, "EUR")
    apply_all(peer, [] if due is None else [due])
    credited, usage = decide_entry(peer, 0, entry, AT_US)
    assert isinstance(credited, EntryCredited)
    assert (credited.transfer_type, credited.terms) == (TransferType.CAPTURE, entry.terms)
    assert isinstance(usage, UsageCounted)
