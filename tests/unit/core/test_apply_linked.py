"""
Goal: a step of a linked transfer that does not fit stops; nothing is posted without every vote,
      twice, or in another amount than was set aside.
Method: shard 0 decides, shard 1 prepares; a decision that fits is changed in one place, or comes
        at the wrong time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from processor.core.amounts import BALANCE_MAX
from processor.core.apply import apply, wallets_touched
from processor.core.apply_linked import apply_linked, set_aside
from processor.core.channel import PrepareEntry, VerdictEntry, entry_sent
from processor.core.decide_channel import decide_entry
from processor.core.decisions import (
    Decision,
    LinkedBegun,
    LinkedDone,
    LinkedPosted,
    LinkedPrepared,
    LinkedRecalled,
    LinkedRejected,
    PrepareSent,
    SlotDelivered,
    TransferReleased,
    VerdictDelivered,
    VerdictSent,
    VerdictTaken,
    VoteTaken,
)
from processor.core.linked import Move, moves_begun
from processor.core.reject_reason import RejectReason
from processor.core.slots import SlotMap, slot_of
from processor.core.state import ShardState
from tests.support.bound_commands import leg, linked
from tests.support.commands import AT_US, facts, identifier, wallet, world
from tests.support.decided import decided, deliver, do, settle

COMMAND = linked(leg("alice", "bob", 30), leg("alice", "anna", 5))
LINKED = COMMAND.linked_id
OTHER = identifier("other")


def ledger(shard_id: int) -> ShardState:
    slots = SlotMap.undivided(0)
    slots.assign(slot_of("bob"), 1, 1)
    state = ShardState(shard_id, slots)
    own = [[wallet("alice", 40), wallet("anna")], [wallet("bob", 9)]][shard_id]
    for one in (world(-sum(w.posted for w in own), shard_id=shard_id), *own):
        state.load(one)
    return state


class Pair:
    """
    Both shards, and what was decided so far.
    """

    def __init__(self, steps: int) -> None:
        self.home, self.peer = ledger(0), ledger(1)
        self.decided: list[Decision] = []
        for step in (self._begin, self._vote, self._settle, self._tell, self._deliver)[:steps]:
            step()

    def _begin(self) -> None:
        do(self.home, COMMAND)

    def _vote(self) -> None:
        self.answer = deliver(self.home, self.peer)

    def _settle(self) -> None:
        self.decided = settle(self.home, self.peer, self.answer)

    def _tell(self) -> None:
        self.answer = deliver(self.home, self.peer)

    def _deliver(self) -> None:
        settle(self.home, self.peer, self.answer)


BEGUN, VOTED, POSTED, TOLD, DELIVERED = range(1, 6)


def begun() -> LinkedBegun:
    outcome: Any = decided(ledger(0), COMMAND)
    return outcome.outcome


def posted() -> LinkedPosted:
    decision = Pair(POSTED).decided[1]
    assert isinstance(decision, LinkedPosted)
    return decision


def change(decision: LinkedPosted, place: int, **changed: Any) -> LinkedPosted:
    """
    Change one of the postings.
    """
    postings = list(decision.postings)
    postings[place] = replace(postings[place], **changed)
    return replace(decision, postings=postings)


@pytest.mark.parametrize(
    ("place", "changed", "words"),
    [
        (0, {"source_version": 3}, "source version is not dense"),
        (0, {"destination_version": 2}, "version is not dense"),
        (0, {"source_balance": 11}, "source balance differs"),
        (0, {"destination_balance": 31}, "balance differs"),
        (1, {"source_balance": 6}, "source balance differs"),
        (1, {"destination_balance": 6}, "balance differs"),
        (1, {"leg": 0}, "source balance differs"),
    ],
)
def test_a_posting_out_of_step_stops(place: int, changed: dict[str, Any], words: str) -> None:
    """
    Each of them, like one of its own.
    """
    state = voted_state()
    with pytest.raises(AssertionError, match=words):
        apply(state, change(posted(), place, **changed), 10, AT_US)


def voted_state() -> ShardState:
    """
    Make the shard that decides with all votes taken in and nothing decided.
    """
    pair = Pair(VOTED)
    apply(pair.home, VoteTaken(1, 1, LINKED, 0), 9, AT_US)
    return pair.home


def test_currencies_are_not_mixed() -> None:
    """
    Even if the numbers fit.
    """
    state = voted_state()
    state.wallets["anna"].currency = "USD"
    with pytest.raises(AssertionError, match="currencies differ"):
        apply(state, posted(), 10, AT_US)


def test_only_what_all_leave_is_held_to_the_minimum() -> None:
    """
    But that is.
    """
    state = voted_state()
    apply(state, posted(), 10, AT_US)
    state = voted_state()
    state.wallets["alice"].minimum = 6
    with pytest.raises(AssertionError, match="available below minimum"):
        apply(state, posted(), 10, AT_US)


def test_each_source_is_held_to_its_minimum() -> None:
    """
    Not the last one only.
    """
    state = ledger(0)
    outcome: Any = decided(state, linked(leg("alice", "anna", 9), leg("anna", "alice", 1)))
    state.wallets["alice"].minimum = 33
    with pytest.raises(AssertionError, match="available below minimum"):
        apply(state, outcome.outcome, 10, AT_US)


def test_money_that_moves_and_what_is_set_aside_mark_their_wallets() -> None:
    """
    Each with the record that it was in.
    """
    state = ledger(0)
    set_aside(state, MOVES, 10)
    assert [state.wallets[name].sequence for name in ("alice", "anna")] == [10, 10]
    set_aside(state, MOVES, 12, sign=-1)
    assert [state.wallets[name].sequence for name in ("alice", "anna")] == [12, 12]
    state = voted_state()
    apply(state, posted(), 20, AT_US)
    names = ("alice", "anna", "$due:0:1:EUR")
    assert [state.wallets[name].sequence for name in names] == [20, 20, 20]


def test_a_balance_may_be_the_largest_number() -> None:
    """
    Exactly that, when it is set aside and when it is posted.
    """
    state = voted_state()
    anna = state.wallets["anna"]
    anna.posted = BALANCE_MAX - 5
    apply(state, change(posted(), 1, destination_balance=BALANCE_MAX), 10, AT_US)
    state = ledger(0)
    state.wallets["anna"].posted = BALANCE_MAX - 30
    set_aside(state, MOVES, 10)


def test_no_more_than_a_balance_can_hold_is_posted() -> None:
    """
    A number that no table can hold is never written.
    """
    state = voted_state()
    anna = state.wallets["anna"]
    anna.posted = BALANCE_MAX - 4
    decision = change(posted(), 1, destination_balance=BALANCE_MAX + 1)
    with pytest.raises(AssertionError, match="out of range"):
        apply(state, decision, 10, AT_US)


def test_postings_of_all_parts_are_needed() -> None:
    """
    One less would lose money on the way.
    """
    pair = Pair(POSTED)
    entry = entry_sent(pair.home.channels.to(1).outbox[2])
    assert isinstance(entry, VerdictEntry)
    (taken,) = decide_entry(pair.peer, 0, entry, AT_US)
    assert isinstance(taken, VerdictTaken)
    with pytest.raises(AssertionError, match="another set of parts"):
        apply(pair.peer, replace(taken, postings=[]), 10, AT_US)


@pytest.mark.parametrize(
    ("steps", "decision", "words"),
    [
        (BEGUN, lambda: replace(posted(), is_open=False), "posted to nobody, or at once"),
        (BEGUN - 1, posted, "posted to nobody, or at once"),
        (BEGUN, posted, "posted without a vote"),
        (POSTED, posted, "posted twice"),
        (POSTED, lambda: LinkedRecalled(LINKED), "it is posted"),
        (POSTED, lambda: rejected(LINKED), "it is posted"),
        (BEGUN, lambda: LinkedDone(LINKED), "it is not posted"),
        (POSTED, lambda: LinkedDone(LINKED), "it is not done"),
        (BEGUN, begun, "begun twice"),
        (0, lambda: replace(begun(), homes=[(0, 0), (0, 0)]), "nobody else has a part"),
        (BEGUN, lambda: VoteTaken(1, 1, OTHER, 0), "another linked transfer has this number"),
        (BEGUN, lambda: VoteTaken(1, 2, LINKED, 0), "settled out of order"),
        (BEGUN, lambda: VerdictDelivered(1, 1, LINKED), "it was told no verdict"),
        (BEGUN, lambda: SlotDelivered(1, 1), "it was no slot"),
        (
            BEGUN,
            lambda: TransferReleased(1, 1, LINKED, RejectReason.SOURCE_UNKNOWN),
            "it was no transfer",
        ),
        (POSTED, lambda: VoteTaken(1, 2, LINKED, 0), "it was not asked to prepare"),
        (POSTED, lambda: VerdictDelivered(1, 2, OTHER), "another linked transfer has this number"),
        (BEGUN, lambda: PrepareSent(1, 3, bytes(16), LINKED, "acme", 1, []), "a gap"),
        (BEGUN, lambda: VerdictSent(1, 1, bytes(16), LINKED, True), "a gap"),
    ],
)
def test_a_step_at_the_wrong_time_stops(
    steps: int, decision: Callable[[], Decision], words: str
) -> None:
    """
    At the shard that decides.
    """
    pair = Pair(steps)
    with pytest.raises(AssertionError, match=words):
        apply(pair.home, decision(), 10, AT_US)


def rejected(linked_id: bytes) -> LinkedRejected:
    reason = RejectReason.SOURCE_FROZEN
    return LinkedRejected(linked_id, identifier("k"), "acme", COMMAND.legs, 0, reason)


def prepared(number: int) -> LinkedPrepared:
    pair = Pair(BEGUN)
    entry = entry_sent(pair.home.channels.to(1).outbox[1])
    assert isinstance(entry, PrepareEntry)
    return LinkedPrepared(0, number, bytes(16), LINKED, "acme", entry.parts)


@pytest.mark.parametrize(
    ("steps", "decision", "words"),
    [
        (VOTED, lambda: prepared(2), "prepared twice"),
        (VOTED, lambda: prepared(1), "an entry twice, or a gap"),
        (BEGUN, lambda: VerdictTaken(0, 1, bytes(16), LINKED, True, []), "never prepared"),
        (VOTED, lambda: VerdictTaken(0, 3, bytes(16), LINKED, False, []), "an entry twice"),
    ],
)
def test_a_step_at_the_wrong_time_stops_at_the_peer(
    steps: int, decision: Callable[[], Decision], words: str
) -> None:
    """
    What it was told twice, too.
    """
    pair = Pair(steps)
    with pytest.raises(AssertionError, match=words):
        apply(pair.peer, decision(), 10, AT_US)


def test_what_was_never_prepared_is_let_go_of_without_a_word() -> None:
    """
    It is a no to something that this shard refused itself, or never saw.
    """
    state = ledger(1)
    before = facts(state)
    apply(state, VerdictTaken(0, 1, bytes(16), LINKED, False, []), 10, AT_US)
    assert facts(state) == before
    assert state.channels.of(0).cursor == 1


def test_a_rejection_of_what_was_not_begun_lets_go_of_nothing() -> None:
    """
    It is remembered all the same.
    """
    state = ledger(0)
    before = facts(state)
    apply(state, rejected(OTHER), 10, AT_US)
    assert facts(state) == before
    assert state.keys.find(identifier("k")) == (rejected(OTHER), 10, AT_US)


MOVES = [Move(0, 1, "alice", "anna", "EUR", 30)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sign", "change", "words"),
    [
        (1, {"alice": {"minimum": 11}}, "below minimum"),
        (1, {"anna": {"posted": BALANCE_MAX - 29}}, "balance out of range"),
        (-1, {"anna": {"incoming": 29}, "alice": {"reserved": 30}}, "may come"),
        (-1, {"anna": {"incoming": 30}, "alice": {"reserved": 29}}, "was set aside"),
        (-1, {"anna": {"incoming": 30}, "alice": {"reserved": 31, "held": 2}}, "was set aside"),
    ],
)
def test_what_is_set_aside_fits(sign: int, change: dict[str, dict[str, int]], words: str) -> None:
    """
    And no more is let go of than that.
    """
    state = ledger(0)
    for name, fields in change.items():
        for field, value in fields.items():
            setattr(state.wallets[name], field, value)
    with pytest.raises(AssertionError, match=words):
        set_aside(state, MOVES, 10, sign=sign)


def test_a_wallet_that_gets_more_than_it_gives_needs_nothing() -> None:
    """
    Even below its minimum, as one whose minimum was raised is.
    """
    state = ledger(0)
    state.wallets["anna"].minimum = 1
    set_aside(state, [*MOVES, Move(1, 1, "anna", "alice", "EUR", 30)], 10)  # type: ignore[arg-type]
    anna, alice = state.wallets["anna"], state.wallets["alice"]
    assert (anna.reserved, anna.incoming, alice.reserved, alice.incoming) == (0, 30, 0, 30)


def test_what_is_no_step_is_not_applied() -> None:
    """
    A kind that nobody applies stops, wherever it gets to.
    """
    with pytest.raises(AssertionError, match="no step of a linked transfer"):
        apply_linked(ledger(0), SlotDelivered(1, 1), 10, AT_US)
    with pytest.raises(AssertionError, match="not applied anywhere"):
        apply(ledger(0), object(), 10, AT_US)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "is_home", "make"),
    [
        (0, True, begun),
        (POSTED - 1, True, posted),
        (BEGUN, False, lambda: prepared(1)),
    ],
)
def test_a_step_names_the_wallets_it_changes(
    steps: int, is_home: bool, make: Callable[[], Decision]
) -> None:
    """
    With just these in memory a replay gets through.
    """
    pair = Pair(steps)
    state = pair.home if is_home else pair.peer
    decision = make()
    if isinstance(decision, LinkedPosted):
        apply(state, VoteTaken(1, 1, LINKED, 0), 9, AT_US)
    if steps == 0:
        state = Pair(BEGUN).home  # Dues were opened for it.
        state.linked.clear()
        set_aside(state, moves_begun(0, begun()), 9, sign=-1)
    if not is_home:
        state.load(wallet("$due:1:0:EUR", merchant_id="$system", minimum=-BALANCE_MAX))
    touched = wallets_touched(state, decision)
    assert len(set(touched)) == (3 if is_home else 2)
    for name in [name for name in state.wallets if name not in touched]:
        del state.wallets[name]
    apply(state, decision, 10, AT_US)


def test_a_verdict_names_the_wallets_it_changes() -> None:
    """
    Those of its postings; a no changes those that are in memory anyway.
    """
    pair = Pair(POSTED)
    entry = entry_sent(pair.home.channels.to(1).outbox[2])
    (taken,) = decide_entry(pair.peer, 0, entry, AT_US)
    assert set(wallets_touched(pair.peer, taken)) == {"bob", "$due:1:0:EUR"}


def test_the_key_is_kept_until_it_is_done() -> None:
    """
    However often keys are turned over.
    """
    pair = Pair(BEGUN)
    for _ in range(3):
        assert COMMAND.key not in (pair.home.forget_keys(99) or {})
    assert pair.home.keys.find(COMMAND.key) == (begun(), 9, AT_US)
