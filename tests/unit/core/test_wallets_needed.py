"""
Goal: what a decision needs is loaded, and nothing else is: a row of a slot that left would be
      money that is somewhere else now.
Method: a shard with one wallet in memory, whose neighbours' slots are elsewhere.
"""

from __future__ import annotations

from processor.core.apply import apply
from processor.core.channel import Entry, PrepareEntry, SlotEntry, answer_elsewhere
from processor.core.commands import GiveSlot
from processor.core.decide import decide_move
from processor.core.decisions import LegPart, LinkedBegun, TransferReserved
from processor.core.slots import SlotMap, slot_of
from processor.core.state import ShardState
from processor.core.wallets_needed import (
    absent_wallets,
    wallets_of_answers,
    wallets_of_commands,
    wallets_of_entries,
)
from tests.support.bound_commands import fee_leg, leg, linked
from tests.support.commands import (
    AT_US,
    deposit,
    identifier,
    open_wallet,
    read_wallet,
    transfer,
    wallet,
)
from tests.support.decided import do


def shard() -> ShardState:
    """
    Make shard 0 with alice in memory; bob is at shard 1, carol and dave are in the tables.
    """
    slots = SlotMap.undivided(0)
    slots.assign(slot_of("bob"), 1, 1)
    state = ShardState(0, slots)
    state.load(wallet("alice", 100))
    return state


def test_absent_are_those_that_the_tables_may_have() -> None:
    """
    Not what is in memory, not the ledger's own, not what is elsewhere; each once.
    """
    names = ["carol", "alice", "bob", "$world:0:EUR", "carol", "dave"]
    assert absent_wallets(shard(), names) == ["carol", "dave"]


def test_commands_need_the_wallets_they_name() -> None:
    """
    Both sides of a transfer, as far as they are here.
    """
    commands = [
        transfer("alice", "bob", 1),
        transfer("carol", "alice", 1, key="2"),
        deposit("dave", 1),
        open_wallet("erin"),
        read_wallet("bob"),
        GiveSlot(7, 1),
    ]
    assert wallets_of_commands(shard(), commands) == ["carol", "dave", "erin"]


def test_entries_need_their_destinations() -> None:
    """
    A slot brings its own wallets.
    """
    entries = [
        Entry(number, identifier("t"), "acme", "x", name, "EUR", 1, None, None)
        for number, name in enumerate(("carol", "alice", "bob"), 1)
    ]
    assert wallets_of_entries(shard(), [*entries, SlotEntry(4, 7, 2, [], [])]) == ["carol"]


def test_answers_need_the_destinations_of_what_comes_home() -> None:
    """
    Only money that is called back, and only when its destination's slot is here by now.
    """
    state = shard()
    for name in ("bob", "bob"):
        decision = decide_move(state, transfer("alice", name, 1, key=str(len(state.keys))), AT_US)
        assert isinstance(decision, TransferReserved)
        apply(state, decision, 1, AT_US)
    assert wallets_of_answers(state, 1, [0, answer_elsewhere(0)]) == []
    state.slots.assign(slot_of("bob"), 0, 2)
    assert wallets_of_answers(state, 1, [0, answer_elsewhere(0)]) == ["bob"]
    assert wallets_of_answers(state, 1, [0, 30]) == []


def test_parts_of_linked_transfers_need_both_sides_as_far_as_they_are_here() -> None:
    """
    A fee has one side that a slot can have.
    """
    parts = [
        LegPart(0, True, True, leg("carol", "dave", 1)),
        LegPart(1, True, False, leg("alice", "bob", 1)),
        LegPart(2, True, True, fee_leg("erin", 1)),
    ]
    entry = PrepareEntry(1, identifier("l"), "acme", parts)
    assert wallets_of_entries(shard(), [entry]) == ["carol", "dave", "erin"]


def test_a_vote_that_a_slot_is_elsewhere_needs_all_legs() -> None:
    """
    They are decided anew; any other vote needs only what is in memory.
    """
    state = shard()
    command = linked(leg("alice", "bob", 1), leg("alice", "frank", 1))
    state.load(wallet("frank"))
    state.wallets["alice"].version = 0
    state.wallets["alice"].posted = 0
    state.wallets["alice"].minimum = -9
    assert isinstance(do(state, command), LinkedBegun)
    del state.wallets["frank"]
    state.slots.assign(slot_of("bob"), 0, 2)
    assert wallets_of_answers(state, 1, [answer_elsewhere(0)]) == ["bob", "frank"]
    assert wallets_of_answers(state, 1, [0]) == []
    state.linked.clear()
    assert wallets_of_answers(state, 1, [answer_elsewhere(0)]) == []
