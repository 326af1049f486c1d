"""
Goal: a linked transfer moves along all its legs or along none: at once on one shard; over several
      when all have said yes and not before, and nowhere after a no, a deadline, or a slot lost.
Method: one shard, and three by hand: shard 0 decides, bob's is shard 1, carol's shard 2.
"""

from __future__ import annotations

from typing import Any

import pytest

from processor.core import decide_linked as decide_linked_module
from processor.core.amounts import BALANCE_MAX
from processor.core.apply import apply
from processor.core.channel import (
    ENTRIES_PENDING_MAX,
    VerdictEntry,
    answer_elsewhere,
    refusal_answered,
)
from processor.core.commands import Leg, MoveLinked, TransferType
from processor.core.counts import Decided
from processor.core.counts_needed import refunds_of_commands
from processor.core.decide_channel import decide_entry
from processor.core.decide_linked import (
    DEADLINE_US,
    NotNow,
    decide_done,
    decide_linked,
    decide_linked_anew,
    decide_overdue,
    homes_anew,
    wallet_lost,
    wallets_to_open,
)
from processor.core.decisions import (
    Decision,
    LinkedBegun,
    LinkedDone,
    LinkedPosted,
    LinkedRecalled,
    LinkedRejected,
    PrepareSent,
    TransferReserved,
    UsageCounted,
    VerdictDelivered,
    VerdictSent,
    VoteTaken,
    WalletLimitsSet,
)
from processor.core.hold import RefundTotal
from processor.core.limits import Counter, Limits, Usage, Velocity
from processor.core.linked import Move
from processor.core.reject_reason import RejectReason as Reason
from processor.core.slots import NOWHERE, SlotMap, slot_of
from processor.core.state import ShardState
from processor.core.wallet import WalletStatus
from tests.support.bound_commands import fee_leg, leg, linked, refund_leg
from tests.support.commands import (
    AT_US,
    facts,
    identifier,
    state_of,
    transfer,
    wallet,
    world,
)
from tests.support.decided import apply_all, decided, deliver, do, open_named, settle
from tests.support.totals import know_totals

PAID = identifier("transfer of paid")


# --- On one shard ---------------------------------------------------------------------------------


def ledger() -> ShardState:
    return state_of(world(-105), wallet("alice", 100), wallet("bob", 5), wallet("carol"))


def balances(state: ShardState) -> dict[str, int]:
    return {name: one.posted for name, one in state.wallets.items() if one.posted}


def refused(state: ShardState, command: MoveLinked) -> tuple[int, Reason, int]:
    know_totals(state, refunds_of_commands(state, [command]))
    before, refunds = facts(state), dict(state.refunds)
    outcome = do(state, command)
    assert isinstance(outcome, LinkedRejected), outcome
    after = {name: one for name, one in facts(state).items() if name in before}
    assert (after, state.refunds) == (before, refunds)
    return outcome.leg, Reason(outcome.reason), outcome.short_by


def test_on_one_shard_all_legs_are_posted_at_once() -> None:
    """
    One after the other, each with both balances; the fee stays with the merchant.
    """
    state = ledger()
    command = linked(leg("alice", "bob", 90), leg("bob", "carol", 80), fee_leg("bob", 15))
    outcome = do(state, command)
    assert isinstance(outcome, LinkedPosted)
    assert not outcome.is_open
    assert balances(state) == {
        "$world:0:EUR": -105,
        "alice": 10,
        "carol": 80,
        "$fees:0:EUR:acme": 15,
    }
    assert [(one.source_balance, one.destination_balance) for one in outcome.postings] == [
        (10, 95),
        (15, 80),
        (0, 15),
    ]
    assert (state.wallets["bob"].version, state.wallets["carol"].version) == (4, 1)
    assert state.keys.find(command.key) == (outcome, 9, AT_US)
    assert state.linked == {}


def test_a_wallet_is_judged_by_what_all_legs_make_of_it() -> None:
    """
    The order of the legs is of no account, and by how much it fails is that of the whole.
    """
    state = ledger()
    do(state, linked(leg("bob", "carol", 80), leg("alice", "bob", 75)))
    assert balances(state) == {"$world:0:EUR": -105, "alice": 25, "carol": 80}
    told = refused(ledger(), linked(leg("bob", "carol", 80), leg("alice", "bob", 74)))
    assert told == (0, Reason.INSUFFICIENT_FUNDS, 1)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (leg("bob", "bob", 1), Reason.WALLETS_IDENTICAL),
        (leg("nobody", "bob", 1), Reason.SOURCE_UNKNOWN),
        (leg("dave", "bob", 1), Reason.SOURCE_UNKNOWN),
        (leg("bob", "nobody", 1), Reason.DESTINATION_UNKNOWN),
        (leg("bob", "carol", 1, currency="USD"), Reason.CURRENCY_MISMATCH),
        (leg("bob", "dollars", 1), Reason.CURRENCY_MISMATCH),
        (leg("bob", "dollars", 1, currency="USD"), Reason.CURRENCY_MISMATCH),
        (leg("bob", "$world:0:EUR", 1), Reason.DESTINATION_UNKNOWN),
        (leg("bob", "$world:0:USD", 1), Reason.DESTINATION_UNKNOWN),
        (leg("frozen", "bob", 1), Reason.SOURCE_FROZEN),
        (leg("locked", "bob", 1), Reason.SOURCE_LOCKED),
        (leg("closed", "bob", 1), Reason.SOURCE_CLOSED),
        (leg("bob", "locked", 1), Reason.DESTINATION_LOCKED),
        (leg("bob", "closed", 1), Reason.DESTINATION_CLOSED),
        (refund_leg("paid", "bob", "carol", 2, refundable=1), Reason.REFUND_EXCEEDS_PAID),
        (leg("carol", "bob", 1), Reason.INSUFFICIENT_FUNDS),
        (leg("alice", "rich", 1), Reason.BALANCE_OUT_OF_RANGE),
    ],
)
def test_the_leg_that_fails_is_named(bad: Leg, reason: Reason) -> None:
    """
    With its reason, and by how much where that is an amount.
    """
    state = ledger()
    for one in (
        wallet("dave", 9, merchant_id="globex"),
        wallet("dollars", currency="USD"),
        wallet("frozen", 9, status=WalletStatus.FROZEN),
        wallet("locked", 9, status=WalletStatus.LOCKED),
        wallet("closed", status=WalletStatus.CLOSED),
        wallet("rich", BALANCE_MAX),
    ):
        state.load(one)
    state.wallets["$world:0:EUR"].posted = -105 - 27 - BALANCE_MAX
    state.wallets["$world:0:EUR"].minimum -= BALANCE_MAX
    short_by = 1 if reason >= Reason.REFUND_EXCEEDS_PAID else 0
    assert refused(state, linked(leg("alice", "bob", 1), bad)) == (1, reason, short_by)


def test_smallest_number_is_told_and_then_the_first_leg() -> None:
    """
    As for a movement of its own.
    """
    command = linked(leg("alice", "bob", 500), leg("alice", "nobody", 1), leg("bob", "x", 1))
    assert refused(ledger(), command) == (1, Reason.DESTINATION_UNKNOWN, 0)


def test_frozen_wallets_take_money() -> None:
    """
    Frozen stops debits only.
    """
    state = ledger()
    state.wallets["carol"].status = WalletStatus.FROZEN
    assert isinstance(do(state, linked(leg("alice", "carol", 1))), LinkedPosted)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(debits=Velocity(hour_count=1)), Reason.DEBIT_COUNT_HOUR_EXCEEDED),
        (Limits(debits=Velocity(day_amount=29)), Reason.DEBIT_AMOUNT_DAY_EXCEEDED),
    ],
)
def test_each_leg_counts_in_the_limits_of_its_source(limits: Limits, reason: Reason) -> None:
    """
    Fees do not, and refunds do not.
    """
    legs = (leg("alice", "bob", 10), leg("alice", "carol", 20), fee_leg("alice", 3))
    state = ledger()
    state.wallets["alice"].limits = limits
    assert refused(state, linked(*legs)) == (0, reason, 1)
    state.wallets["alice"].limits = Limits(debits=Velocity(hour_count=2, day_amount=30))
    assert isinstance(do(state, linked(*legs, key="2")), LinkedPosted)
    usage = state.wallets["alice"].usage
    assert usage is not None
    assert (usage.debits.hour_count, usage.debits.day_amount, usage.credits.day_count) == (2, 30, 0)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(credits=Velocity(hour_count=1)), Reason.CREDIT_COUNT_HOUR_EXCEEDED),
        (Limits(credits=Velocity(hour_amount=29)), Reason.CREDIT_AMOUNT_HOUR_EXCEEDED),
        (Limits(balance_max=34), Reason.BALANCE_MAX_EXCEEDED),
    ],
)
def test_each_leg_counts_in_the_limits_of_its_destination(limits: Limits, reason: Reason) -> None:
    """
    And what they bring in all is held to the most that may be in it.
    """
    legs = (leg("alice", "bob", 10), leg("alice", "bob", 20, name="2"))
    state = ledger()
    state.wallets["bob"].limits = limits
    assert refused(state, linked(*legs)) == (0, reason, 1)
    state.wallets["bob"].limits = Limits(
        credits=Velocity(hour_count=2, hour_amount=30), balance_max=35
    )
    assert isinstance(do(state, linked(*legs, key="2")), LinkedPosted)
    usage = state.wallets["bob"].usage
    assert usage is not None
    assert (usage.credits.hour_count, usage.credits.hour_amount) == (2, 30)


def test_refund_legs_count_together() -> None:
    """
    No more goes back of a transfer than was paid, in however many legs.
    """
    legs = (
        refund_leg("paid", "alice", "bob", 30, refundable=50),
        refund_leg("paid", "alice", "carol", 21, refundable=50),
    )
    assert refused(ledger(), linked(*legs)) == (1, Reason.REFUND_EXCEEDS_PAID, 1)
    state = ledger()
    do(state, linked(legs[0], refund_leg("paid", "alice", "carol", 19, refundable=50)))
    assert (state.refunds[PAID].refunded, state.refunds[PAID].wallet_id) == (49, "alice")
    more = linked(refund_leg("paid", "alice", "bob", 2, refundable=50), key="2")
    assert refused(state, more) == (0, Reason.REFUND_EXCEEDS_PAID, 1)


def test_nothing_goes_back_on_a_total_that_nobody_knows() -> None:
    """
    What could not be looked up may be all: it is not taken for nothing, whatever else is asked.
    """
    state = ledger()
    legs = (
        leg("alice", "bob", 1),
        refund_leg("other", "alice", "bob", 1, refundable=50),
        refund_leg("paid", "alice", "bob", 1, refundable=50),
    )
    state.load_refund(RefundTotal(identifier("transfer of other"), "alice", 50, 1))
    outcome = decide_linked(state, linked(*legs), AT_US)
    assert isinstance(outcome, Decided)
    assert isinstance(outcome.outcome, LinkedRejected)
    assert (outcome.outcome.leg, outcome.outcome.reason) == (2, Reason.REFUND_TOTAL_UNKNOWN)
    assert len(outcome.decisions) == 1


def test_legs_that_are_not_limited_change_no_usage() -> None:
    """
    Nothing is told of what stays as it is.
    """
    state = ledger()
    state.wallets["alice"].limits = Limits(debits=Velocity(hour_count=1))
    state.wallets["alice"].usage = Usage()
    outcome = decided(state, linked(fee_leg("alice", 1), leg("bob", "carol", 1)))
    assert [type(one).__name__ for one in outcome.decisions] == ["LinkedPosted"]


# --- Over three shards ----------------------------------------------------------------------------


class Shards:
    """
    Shard 0 with alice, who has 100, and anna; shard 1 with bob, who has 50; shard 2 with carol.
    """

    def __init__(self, **options: Any) -> None:
        self.all: list[ShardState] = []
        for shard_id, wallets in enumerate(
            (
                (wallet("alice", 100, **options), wallet("anna")),
                (wallet("bob", 50),),
                (wallet("carol"),),
            )
        ):
            slots = SlotMap.undivided(0)
            slots.assign(slot_of("bob"), 1, 1)
            slots.assign(slot_of("carol"), 2, 1)
            state = ShardState(shard_id, slots)
            for one in (world(-sum(w.posted for w in wallets), shard_id=shard_id), *wallets):
                state.load(one)
            self.all.append(state)

    def __getitem__(self, shard_id: int) -> ShardState:
        return self.all[shard_id]

    def balances(self) -> dict[str, int]:
        """
        Tell the customers' balances, and the merchant's fees.
        """
        found = [balances(state) for state in self.all]
        return {
            name: posted
            for one in found
            for name, posted in one.items()
            if not name.startswith(("$world", "$due"))
        }

    def set_aside(self) -> dict[str, tuple[int, int]]:
        return {
            name: (one.reserved, one.incoming)
            for state in self.all
            for name, one in state.wallets.items()
            if one.reserved or one.incoming
        }

    def vote(self, peer: int, at_us: int = AT_US) -> list[Decision]:
        """
        Let a peer answer what is next on the channel to it, and take in its answer.
        """
        return settle(self[0], self[peer], deliver(self[0], self[peer], at_us), at_us)

    def deliver_verdicts(self, linked_id: bytes) -> LinkedDone | None:
        """
        Deliver all that is left, and say whether it is done.
        """
        done = None
        for peer in (1, 2):
            while self[0].channels.to(peer).outbox:
                self.vote(peer)
                done = decide_done(self[0], linked_id)
        if done is not None:
            apply_all(self[0], [done])
        return done


THREE = linked(
    leg("alice", "bob", 30), leg("bob", "carol", 20), fee_leg("bob", 5), leg("alice", "anna", 1)
)


def begun(shards: Shards, command: MoveLinked = THREE) -> LinkedBegun:
    outcome = do(shards[0], command)
    assert isinstance(outcome, LinkedBegun), outcome
    return outcome


def types(decisions: list[Decision]) -> list[str]:
    return [type(one).__name__ for one in decisions]


def test_begun_is_set_aside_and_asked_for() -> None:
    """
    Each peer is asked for its own parts once; no balance moves.
    """
    shards = Shards()
    what = begun(shards)
    assert what.homes == [(0, 1), (1, 2), (1, 1), (0, 0)]
    assert (what.attempt, what.deadline_us) == (1, AT_US + DEADLINE_US)
    asked = [next(iter(shards[0].channels.to(peer).outbox.values())) for peer in (1, 2)]
    assert all(isinstance(one, PrepareSent) for one in asked)
    parts = [[(p.leg, p.is_debit, p.is_credit) for p in one.parts] for one in asked]
    assert parts == [
        [(0, False, True), (1, True, False), (2, True, True)],
        [(1, False, True)],
    ]
    assert shards.balances() == {"alice": 100, "bob": 50}
    assert shards.set_aside() == {
        "alice": (31, 0),
        "anna": (0, 1),
        "$due:0:1:EUR": (0, 30),
        "$due:0:2:EUR": (0, 20),
    }
    linked_ = shards[0].linked[what.transfer_id]
    assert linked_.waiting == {1, 2}
    assert (what.deadline_us, what.transfer_id) in shards[0].alarms


def test_posted_when_all_have_said_yes() -> None:
    """
    And not before; then everywhere, and what was set aside is nothing again.
    """
    shards = Shards()
    what = begun(shards)
    assert types(shards.vote(1)) == ["VoteTaken"]
    assert shards[1].wallets["bob"].incoming == 30
    assert shards.balances() == {"alice": 100, "bob": 50}
    follows = shards.vote(2)
    assert types(follows) == ["VoteTaken", "LinkedPosted", "VerdictSent", "VerdictSent"]
    posted = follows[1]
    assert isinstance(posted, LinkedPosted)
    assert posted.is_open
    assert shards.balances() == {"alice": 69, "anna": 1, "bob": 50}
    assert decide_done(shards[0], what.transfer_id) is None
    assert shards[0].keys.find(THREE.key) == (what, 9, AT_US)
    assert shards.deliver_verdicts(what.transfer_id) == LinkedDone(what.transfer_id)
    assert shards.balances() == {
        "alice": 69,
        "anna": 1,
        "bob": 55,
        "$fees:1:EUR:acme": 5,
        "carol": 20,
    }
    assert shards.set_aside() == {}
    assert shards[0].keys.find(THREE.key) == (posted, 9, AT_US)
    assert (shards[0].linked, shards[1].prepared, shards[2].prepared) == ({}, {}, {})
    due = [shards[0].wallets[f"$due:0:{peer}:EUR"].posted for peer in (1, 2)]
    assert due == [
        -shards[1].wallets["$due:1:0:EUR"].posted,
        -shards[2].wallets["$due:2:0:EUR"].posted,
    ]


def test_one_no_is_a_no_everywhere() -> None:
    """
    The others are told; who refused has nothing to let go of. The leg and the amount are told.
    """
    shards = Shards()
    what = begun(shards)
    shards[2].wallets["carol"].status = WalletStatus.LOCKED
    shards.vote(1)
    follows = shards.vote(2)
    rejected = follows[1]
    assert isinstance(rejected, LinkedRejected)
    assert (rejected.leg, rejected.reason) == (1, Reason.DESTINATION_LOCKED)
    assert [one.peer for one in follows if isinstance(one, VerdictSent)] == [1]
    assert shards[0].keys.find(THREE.key) == (rejected, 9, AT_US)
    assert shards.deliver_verdicts(what.transfer_id) is None
    assert shards.balances() == {"alice": 100, "bob": 50}
    assert shards.set_aside() == {}
    assert shards[1].prepared == {}


def test_a_no_says_by_how_much() -> None:
    """
    Through the answer on the channel.
    """
    shards = Shards()
    begun(shards, linked(leg("alice", "bob", 1), leg("bob", "carol", 54)))
    answer = deliver(shards[0], shards[1])
    refusal = refusal_answered(answer)
    assert (refusal.reason, refusal.leg, refusal.short_by) == (Reason.INSUFFICIENT_FUNDS, 1, 3)
    rejected = settle(shards[0], shards[1], answer)[1]
    assert isinstance(rejected, LinkedRejected)
    assert (rejected.leg, rejected.reason, rejected.short_by) == (1, Reason.INSUFFICIENT_FUNDS, 3)


def test_what_comes_in_may_be_spent_and_is_not_set_aside() -> None:
    """
    Only what all legs together take is; nothing else may spend what is not there yet.
    """
    shards = Shards()
    what = begun(shards, linked(leg("alice", "bob", 30), leg("bob", "carol", 80)))
    shards.vote(1)
    bob = shards[1].wallets["bob"]
    assert (bob.reserved, bob.incoming, bob.available) == (50, 30, 0)
    shards.vote(2)
    shards.deliver_verdicts(what.transfer_id)
    assert shards.balances() == {"alice": 70, "carol": 80}


def test_votes_after_a_no_change_nothing() -> None:
    """
    The verdict that is on its way undoes what they set aside.
    """
    shards = Shards()
    what = begun(shards, linked(leg("alice", "carol", 1), leg("alice", "bob", 1)))
    shards[1].wallets["bob"].status = WalletStatus.LOCKED
    shards.vote(1)
    assert types(shards.vote(2)) == ["VoteTaken"]
    assert shards[2].wallets["carol"].incoming == 1
    assert shards.deliver_verdicts(what.transfer_id) is None
    assert shards.set_aside() == {}


def test_past_its_deadline_it_is_rejected() -> None:
    """
    At it, not a microsecond before; and not if it is posted.
    """
    shards = Shards()
    what = begun(shards)
    shards.vote(1)
    undecided = shards[0].linked[what.transfer_id]
    assert decide_overdue(shards[0], undecided, what.deadline_us - 1) == []
    follows = decide_overdue(shards[0], undecided, what.deadline_us)
    assert types(follows) == ["LinkedRejected", "VerdictSent", "VerdictSent"]
    rejected = follows[0]
    assert isinstance(rejected, LinkedRejected)
    assert (rejected.leg, rejected.reason) == (0, Reason.LINKED_DEADLINE_PASSED)
    apply_all(shards[0], follows)
    shards.deliver_verdicts(what.transfer_id)
    assert shards.set_aside() == {}
    assert shards.balances() == {"alice": 100, "bob": 50}

    shards = Shards()
    what = begun(shards)
    shards.vote(1)
    shards.vote(2)
    assert decide_overdue(shards[0], shards[0].linked[what.transfer_id], what.deadline_us) == []


def test_a_participant_never_decides_alone() -> None:
    """
    It has no deadline: what it said yes to stays set aside until it is told.
    """
    shards = Shards()
    begun(shards)
    shards.vote(1)
    assert shards[1].alarms == []


def test_limits_and_refunds_count_from_the_vote_on() -> None:
    """
    At each shard its own, and they are given back with a no.
    """
    command = linked(
        leg("alice", "bob", 30),
        leg("bob", "carol", 20),
        refund_leg("paid", "bob", "alice", 4, refundable=4),
        refund_leg("back", "alice", "bob", 3, refundable=3),
    )
    for is_refused in (False, True):
        shards = Shards()
        for state, name in ((shards[0], "alice"), (shards[1], "bob")):
            state.wallets[name].limits = Limits(debits=Velocity(day_count=9))
            state.wallets[name].usage = Usage()
        what = begun(shards, command)
        if is_refused:
            shards[2].wallets["carol"].status = WalletStatus.LOCKED
        shards.vote(1)
        alice, bob = shards[0].wallets["alice"], shards[1].wallets["bob"]
        back = identifier("transfer of back")
        assert alice.usage is not None
        assert bob.usage is not None
        assert (alice.usage.debits.day_amount, alice.usage.credits.day_amount) == (30, 0)
        assert (bob.usage.debits.day_amount, bob.usage.credits.day_amount) == (20, 30)
        assert shards[1].refunds[PAID].refunded == 4
        assert shards[0].refunds[back].refunded == 3
        assert PAID not in shards[0].refunds
        shards.vote(2)
        shards.deliver_verdicts(what.transfer_id)
        factor = 0 if is_refused else 1
        assert (alice.usage.debits.day_amount, alice.usage.debits.day_count) == (
            30 * factor,
            factor,
        )
        assert (bob.usage.debits.day_amount, bob.usage.credits.day_count) == (20 * factor, factor)
        assert shards[1].refunds[PAID].refunded == 4 * factor
        assert shards[0].refunds[back].refunded == 3 * factor


@pytest.mark.parametrize("later_us", [0, 1])
def test_what_was_set_aside_before_there_were_limits_gives_nothing_back(later_us: int) -> None:
    """
    At the shard that decides and at one that was asked: what each has counted since stays.
    """
    shards = Shards()
    what = begun(shards, linked(leg("alice", "bob", 30), leg("bob", "carol", 20)))
    shards[2].wallets["carol"].status = WalletStatus.LOCKED
    shards.vote(1)
    credited = Counter().counted(AT_US, 7)
    for state, name in ((shards[0], "alice"), (shards[1], "bob")):
        limits = WalletLimitsSet(name, 0, Limits(balance_max=BALANCE_MAX))
        apply_all(state, [limits, UsageCounted(name, credited, credited)], AT_US + later_us)
    shards.vote(2)
    shards.deliver_verdicts(what.transfer_id)
    for state, name in ((shards[0], "alice"), (shards[1], "bob")):
        assert state.wallets[name].reserved == 0
        assert state.wallets[name].usage == Usage(credited, credited, AT_US + later_us)


# --- A slot that is elsewhere ---------------------------------------------------------------------


def lost(shards: Shards, name: str, peer: int, at: int) -> None:
    """
    Let *peer* know that the slot of *name* is at shard *at*.
    """
    gone = shards[peer].wallets.pop(name)
    shards[peer].wallets[f"$world:{peer}:EUR"].posted += gone.posted
    shards[peer].slots.assign(slot_of(name), at, 2)


@pytest.mark.parametrize(("name", "peer", "side"), [("bob", 1, 1), ("carol", 2, 3)])
def test_who_does_not_have_a_slot_says_where_it_is(name: str, peer: int, side: int) -> None:
    """
    And which side of which leg it is; the attempt is called back, its money free, its key as new.
    """
    shards = Shards()
    what = begun(shards)
    lost(shards, name, peer, 7)
    if peer == 2:
        shards.vote(1)
    follows = shards.vote(peer)
    assert follows[0] == VoteTaken(peer, 1, what.transfer_id, answer_elsewhere(7, side))
    assert follows[1] == LinkedRecalled(what.transfer_id)
    assert wallet_lost(what, answer_elsewhere(7, side)) == name
    assert wallet_lost(what, answer_elsewhere(7, 2)) == "bob"  # As the source of the second leg.
    assert shards[0].keys.find(THREE.key) is None
    assert (shards[0].wallets["alice"].reserved, shards[0].linked) == (0, {})
    told = [one.peer for one in follows if isinstance(one, VerdictSent)]
    assert told == [2 if peer == 1 else 1]


def test_where_nobody_knows_it_is_asked_for_again_there() -> None:
    """
    It is about to come.
    """
    shards = Shards()
    begun(shards)
    lost(shards, "bob", 1, NOWHERE)
    assert deliver(shards[0], shards[1]) == answer_elsewhere(1, 1)


def recalled(shards: Shards) -> LinkedBegun:
    what = begun(shards)
    lost(shards, "bob", 1, 2)
    shards.vote(1)
    return what


def test_it_is_begun_anew_where_the_slot_is_now() -> None:
    """
    Under the same key, with its deadline, and the next number of attempt.
    """
    shards = Shards()
    what = recalled(shards)
    shards[0].hints[slot_of("bob")] = 2
    homes = homes_anew(shards[0], what)
    assert homes == [(0, 2), (2, 2), (2, 2), (0, 0)]
    anew = decide_linked_anew(shards[0], what, homes, AT_US + 5)
    apply_all(shards[0], anew.decisions)
    again = anew.outcome
    assert isinstance(again, LinkedBegun)
    assert (again.attempt, again.deadline_us) == (2, what.deadline_us)
    assert (again.transfer_id, again.key) == (what.transfer_id, what.key)
    assert shards[0].keys.find(THREE.key) == (again, 9, AT_US)
    assert shards[0].linked[what.transfer_id].waiting == {2}


@pytest.mark.parametrize("is_no", [False, True])
def test_votes_of_an_earlier_attempt_do_not_count(is_no: bool) -> None:
    """
    Each shard votes anew on what it is asked now.
    """
    shards = Shards()
    what = begun(shards)
    carol = shards[2].wallets["carol"]
    carol.status = WalletStatus.LOCKED if is_no else WalletStatus.OPEN
    first = deliver(shards[0], shards[2])
    carol.status = WalletStatus.OPEN
    lost(shards, "bob", 1, 2)
    shards.vote(1)
    shards[2].load(wallet("bob", 50))
    shards[2].slots.assign(slot_of("bob"), 2, 2)
    outside = shards[2].wallets["$world:2:EUR"]
    outside.posted, outside.version = -50, 1
    shards[0].hints[slot_of("bob")] = 2
    anew = decide_linked_anew(shards[0], what, homes_anew(shards[0], what), AT_US)
    apply_all(shards[0], anew.decisions)
    assert types(settle(shards[0], shards[2], first)) == ["VoteTaken"]
    assert shards[0].linked[what.transfer_id].waiting == {2}
    assert types(shards.vote(2)) == ["VerdictDelivered"]
    assert shards[0].linked[what.transfer_id].waiting == {2}
    assert "LinkedPosted" in types(shards.vote(2))
    shards.deliver_verdicts(what.transfer_id)
    assert shards[2].wallets["bob"].posted == 55


@pytest.mark.parametrize("why", ["late", "poor", "here"])
def test_what_takes_the_place_of_an_attempt(why: str) -> None:
    """
    It may be too late, or not fit any more, or all be here.
    """
    shards = Shards()
    command = linked(leg("alice", "bob", 30), leg("alice", "anna", 1))
    what = begun(shards, command)
    lost(shards, "bob", 1, 2)
    shards.vote(1)
    homes, at_us = homes_anew(shards[0], what), AT_US
    if why == "late":
        at_us = what.deadline_us
    elif why == "poor":
        shards[0].wallets["alice"].minimum = 90
    else:
        shards[0].slots.assign(slot_of("bob"), 0, 2)
        shards[0].load(wallet("bob"))
        homes = homes_anew(shards[0], what)
    anew = decide_linked_anew(shards[0], what, homes, at_us)
    outcome = anew.outcome
    apply_all(shards[0], anew.decisions)
    if why == "here":
        assert isinstance(outcome, LinkedPosted)
        assert not outcome.is_open
        assert shards.balances()["bob"] == 30
        return
    assert isinstance(outcome, LinkedRejected)
    told = Reason.LINKED_DEADLINE_PASSED if why == "late" else Reason.INSUFFICIENT_FUNDS
    assert outcome.reason == told
    assert shards.set_aside() == {}


def test_what_is_nowhere_is_asked_for_where_it_was() -> None:
    """
    Nobody else could say more.
    """
    shards = Shards()
    what = begun(shards)
    shards[0].slots.assign(slot_of("bob"), NOWHERE, 1)
    assert homes_anew(shards[0], what) == what.homes


# --- Not now --------------------------------------------------------------------------------------


def test_it_is_asked_where_the_first_leg_starts() -> None:
    """
    That shard decides.
    """
    shards = Shards()
    assert decided(shards[0], linked(leg("bob", "alice", 1))) == NotNow(1)


def test_it_waits_for_a_slot_that_is_nowhere_or_closing() -> None:
    """
    Nothing is recorded, and it may be asked again in a moment.
    """
    shards = Shards()
    shards[0].closing[slot_of("anna")] = AT_US + 1
    assert decided(shards[0], THREE) == NotNow(0)
    shards = Shards()
    shards[0].slots.assign(slot_of("bob"), NOWHERE, 1)
    assert decided(shards[0], THREE) == NotNow(0)


def test_it_waits_for_a_channel_that_is_full() -> None:
    """
    It says for which.
    """
    shards = Shards()
    shards[0].channels.to(2).weight = ENTRIES_PENDING_MAX
    assert decided(shards[0], THREE) == NotNow(0, 2)


def test_a_question_weighs_its_legs(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    So what waits for a peer that is down is bounded by legs, not by linked transfers; what is
    answered weighs nothing any more.
    """
    shards = Shards()
    what = begun(shards)
    to_one, to_two = shards[0].channels.to(1), shards[0].channels.to(2)
    assert (to_one.weight, to_two.weight) == (3, 1)
    monkeypatch.setattr(decide_linked_module, "ENTRIES_PENDING_MAX", 4)
    begun(shards, linked(leg("alice", "bob", 1), leg("alice", "bob", 1), key="the last"))
    assert (len(to_one.outbox), to_one.weight) == (2, 5)
    again = linked(leg("alice", "bob", 1), leg("alice", "anna", 1), key="one more")
    assert decided(shards[0], again) == NotNow(0, 1)
    shards.vote(1)
    shards.vote(2)
    shards.vote(1)
    shards.deliver_verdicts(what.transfer_id)
    assert (to_one.weight, to_two.weight) == (0, 0)


# --- Bounds of what peers are due -----------------------------------------------------------------


def test_what_a_peer_is_due_stays_within_a_balance() -> None:
    """
    With what is on its way to it: settling that must always be possible.
    """
    shards = Shards()
    state = shards[0]
    moved = do(state, transfer("alice", "bob", 10, key="before"))
    assert isinstance(moved, TransferReserved)
    due, outside = state.wallets["$due:0:1:EUR"], state.wallets["$world:0:EUR"]
    due.posted, due.version = BALANCE_MAX - 15, 1
    outside.posted -= due.posted
    outside.minimum = -2 * BALANCE_MAX
    asked = linked(leg("alice", "bob", 6), leg("alice", "anna", 1))
    outcome = do(state, asked)
    assert isinstance(outcome, LinkedRejected)
    assert (outcome.reason, outcome.short_by) == (Reason.BALANCE_OUT_OF_RANGE, 1)
    begun(shards, linked(leg("alice", "bob", 5), leg("alice", "anna", 1), key="2"))
    # What is on its way to one peer is of no account to another.
    begun(shards, linked(leg("alice", "carol", 9), key="3"))


def test_what_may_come_counts_as_if_it_had() -> None:
    """
    Elsewhere and here: a balance has an end, and what was prepared must fit.
    """
    shards = Shards()
    begun(shards)
    shards.vote(1)
    bob, outside = shards[1].wallets["bob"], shards[1].wallets["$world:1:EUR"]
    bob.posted = BALANCE_MAX - 35
    outside.posted, outside.minimum = -bob.posted - 9, -2 * BALANCE_MAX
    shards[1].load(wallet("ben", 9))
    shards[1].slots.assign(slot_of("ben"), 1, 1)
    outcome = do(shards[1], transfer("ben", "bob", 6))
    assert (outcome.reason, outcome.short_by) == (Reason.BALANCE_OUT_OF_RANGE, 1)


def test_a_refund_is_judged_where_it_is_paid() -> None:
    """
    The shard of the wallet that it comes back to knows nothing of others.
    """
    shards = Shards()
    shards[1].refunds[PAID] = RefundTotal(PAID, "somebody", 50, 1)
    what = begun(shards, linked(refund_leg("paid", "alice", "bob", 5, refundable=50)))
    assert "LinkedPosted" in types(shards.vote(1))
    assert shards[0].refunds[PAID].refunded == 5
    assert shards.deliver_verdicts(what.transfer_id) is not None
    assert shards[1].refunds[PAID].refunded == 50


def test_what_is_posted_was_prepared() -> None:
    """
    A peer that says otherwise has lost something, or this shard has.
    """
    entry = VerdictEntry(1, bytes(16), True)
    with pytest.raises(AssertionError, match="was prepared"):
        decide_entry(Shards()[1], 0, entry, AT_US)


def test_nothing_is_counted_that_has_no_limits() -> None:
    """
    No decision tells of it.
    """
    outcome = decided(Shards()[0], THREE)
    assert not any(isinstance(one, UsageCounted) for one in outcome.decisions)


def test_verdicts_of_what_was_never_prepared_are_taken() -> None:
    """
    A no is told to whoever was asked, also before it has answered.
    """
    shards = Shards()
    what = begun(shards)
    shards[2].wallets["carol"].status = WalletStatus.LOCKED
    shards.vote(2)
    lost(shards, "bob", 1, 2)
    assert types(shards.vote(1)) == ["VoteTaken"]
    assert shards.vote(1) == [VerdictDelivered(1, 2, what.transfer_id)]


def test_no_wallet_of_fees_is_opened_that_no_command_could_name() -> None:
    """
    The fee is refused then; at the longest id it is paid.
    """
    for length, is_paid in ((64 - len("$fees:0:EUR:"), True), (65 - len("$fees:0:EUR:"), False)):
        merchant_id = "m" * length
        state = state_of(world(-9), wallet("alice", 9, merchant_id=merchant_id))
        leg_of_fee = Move(0, TransferType.FEE, "alice", f"$fees:0:EUR:{merchant_id}", "EUR", 1)
        opened = wallets_to_open(state, merchant_id, [leg_of_fee])
        assert bool(opened) == is_paid
        apply_all(state, opened)
        outcome = decide_linked(state, linked(fee_leg("alice", 1), merchant_id=merchant_id), AT_US)
        assert isinstance(outcome, Decided)
        if is_paid:
            assert isinstance(outcome.outcome, LinkedPosted)
        else:
            assert isinstance(outcome.outcome, LinkedRejected)
            assert outcome.outcome.reason == Reason.DESTINATION_UNKNOWN


def test_apply_needs_the_wallets_that_are_opened_for_it() -> None:
    """
    Fees and dues are opened before, in the same record, and once.
    """
    state = ledger()
    command = linked(fee_leg("alice", 1), fee_leg("bob", 1))
    do(state, command)
    count = len(state.wallets)
    open_named(state, [])
    do(state, linked(fee_leg("alice", 1), fee_leg("bob", 1), key="2"))
    assert len(state.wallets) == count
    with pytest.raises(KeyError):
        apply(state_of(wallet("alice", 5)), decided(ledger(), command).outcome, 1, AT_US)
