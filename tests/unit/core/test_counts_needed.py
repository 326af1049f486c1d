"""
Goal: the holds and the totals of refunds that a decision needs are looked up, and no others: what
      was read while another shard may change it would be old when the slot comes here.
Method: a shard with some of everything in memory, whose neighbour's slots are elsewhere.
"""

from __future__ import annotations

from typing import Any

from processor.core.apply_counts import take_hold
from processor.core.channel import PrepareEntry, VerdictEntry, answer_elsewhere
from processor.core.commands import Leg
from processor.core.counts_needed import (
    holds_of_commands,
    refunds_of_answers,
    refunds_of_commands,
    refunds_of_entries,
    wallets_of_holds,
)
from processor.core.decisions import HoldExtended, HoldPlaced, HoldVoided, LegPart
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.slots import SlotMap, slot_of
from processor.core.state import ShardState
from processor.flow.batch import Batch
from processor.flow.frames import RequestFrame
from tests.support.bound_commands import (
    capture,
    extend,
    hold_id_of,
    leg,
    linked,
    place,
    read_hold,
    refund,
    refund_leg,
    void,
)
from tests.support.commands import AT_US, identifier, read_wallet, transfer, wallet

ALICES, BOBS = place("alice", 5), place("bob", 5)
KNOWN = identifier("transfer of known")
GONE = identifier("transfer of gone")


def shard() -> ShardState:
    """
    Make shard 0 with alice in memory; bob is at shard 1, carol is in the tables.
    """
    slots = SlotMap.undivided(0)
    slots.assign(slot_of("bob"), 1, 1)
    state = ShardState(0, slots)
    state.load(wallet("alice", 100))
    state.load_refund(RefundTotal(KNOWN, "alice", 5, 1))
    return state


def hold_of(wallet_id: str, name: str, **facts: Any) -> Hold:
    status = facts.pop("status", HoldStatus.VOIDED)
    destination = facts.pop("destination", "")
    return Hold(
        *(hold_id_of(wallet_id, name), "acme", wallet_id, destination, "EUR"),
        *(5, 0, 0, status, False, AT_US, AT_US + 9),
    )


def with_hold(state: ShardState, known: Hold) -> ShardState:
    take_hold(state, known, 0)
    return state


def takes_back(source: str, name: str) -> Leg:
    return refund_leg(name, source, "shop", 5, refundable=9)


# --- Holds ----------------------------------------------------------------------------------------


def test_a_hold_is_looked_up_for_all_that_names_it() -> None:
    """
    Captures, voiding, extending and reading; once, however often it is named.
    """
    asked = [
        capture(ALICES.hold_id, 1, key="1"),
        void(ALICES.hold_id),
        extend(ALICES.hold_id, 9),
        read_hold(ALICES.hold_id),
    ]
    for one in asked:
        assert holds_of_commands(shard(), [one]) == [ALICES.hold_id]
    assert holds_of_commands(shard(), asked) == [ALICES.hold_id]


def test_a_hold_that_is_known_or_elsewhere_is_not_looked_up() -> None:
    """
    What is in memory is newer than its row, and of a slot that is elsewhere any row may be old.
    """
    assert holds_of_commands(shard(), [read_hold(BOBS.hold_id), read_wallet("alice"), ALICES]) == []
    state = with_hold(shard(), hold_of("alice", "hold"))
    assert holds_of_commands(state, [read_hold(ALICES.hold_id)]) == []


def test_a_repeat_needs_the_hold_of_then() -> None:
    """
    The key says which: who asks again may have made another id.
    """
    state = shard()
    asked = [place("alice", 5, name="made anew"), void(ALICES.hold_id), extend(ALICES.hold_id, 9)]
    then = hold_id_of("alice", "then")
    placed = HoldPlaced(
        *(then, asked[0].key, "acme", "alice", "", "EUR", 5, None, None, 60, AT_US + 60)
    )
    before = (b"t" * 16, "acme", "alice", then, "EUR", 5)
    state.keys.remember(placed, 1, AT_US)
    assert holds_of_commands(state, [asked[0]]) == [then]
    for decision, command in (
        (HoldVoided(before[0], asked[1].key, *before[1:]), asked[1]),
        (HoldExtended(before[0], asked[2].key, *before[1:], 9, AT_US + 9), asked[2]),
    ):
        state.keys.remember(decision, 2, AT_US)
        assert set(holds_of_commands(state, [command])) == {command.hold_id, then}


def test_a_hold_needs_its_wallet() -> None:
    """
    Also one that ended long ago; and a capture that names no destination needs the hold's.
    """
    state = with_hold(shard(), hold_of("carol", "hold", destination="shop"))
    named = place("carol", 5)
    assert wallets_of_holds(state, [read_hold(named.hold_id), void(named.hold_id)]) == ["carol"]
    assert wallets_of_holds(state, [capture(named.hold_id, 1, key="1")]) == ["carol", "shop"]
    to_another = capture(named.hold_id, 1, key="1", destination="dave")
    assert wallets_of_holds(state, [to_another]) == ["carol"]
    assert wallets_of_holds(state, [read_hold(ALICES.hold_id)]) == []


# --- Totals of refunds ----------------------------------------------------------------------------


def test_a_refund_needs_its_total() -> None:
    """
    Alone or as a leg, where the wallet that pays is here and the total is not known yet.
    """
    asked = [
        refund("gone", "carol", "dave", 1, refundable=5),
        refund("known", "alice", "dave", 1, refundable=5),
        refund("of another shard", "bob", "dave", 1, refundable=5),
        transfer("alice", "bob", 1),
        linked(takes_back("alice", "gone"), takes_back("bob", "too"), takes_back("alice", "known")),
    ]
    assert refunds_of_commands(shard(), asked) == ([GONE], [])


def test_totals_of_a_slot_that_was_elsewhere_are_everywhere() -> None:
    """
    Those of all other slots, and of the ledger's own wallets, are in the own tables alone.
    """
    state = shard()
    state.slots.assign(slot_of("carol"), 0, 3)
    asked = linked(
        *(takes_back("carol", "gone"), takes_back("alice", "own")),
        *(takes_back("carol", "gone"), takes_back("$fees:0:EUR:acme", "fee")),
    )
    own = [identifier("transfer of own"), identifier("transfer of fee")]
    assert refunds_of_commands(state, [asked]) == (own, [GONE])
    again = linked(takes_back("alice", "gone"), takes_back("carol", "gone"))
    assert refunds_of_commands(state, [again]) == ([], [GONE])


def test_parts_to_prepare_need_the_totals_of_what_they_pay() -> None:
    """
    Not of what another shard pays; and a verdict needs nothing, for what is prepared is known.
    """
    parts = [
        LegPart(0, is_debit=True, is_credit=False, asked=takes_back("alice", "gone")),
        LegPart(1, is_debit=False, is_credit=True, asked=takes_back("bob", "another's")),
        LegPart(2, is_debit=True, is_credit=True, asked=leg("alice", "carol", 1)),
    ]
    entries = [PrepareEntry(1, identifier("linked"), "acme", parts), VerdictEntry(2, GONE, False)]
    assert refunds_of_entries(shard(), entries) == ([GONE], [])


def test_what_is_decided_anew_needs_the_total_of_what_has_come() -> None:
    """
    The wallet that pays was at a peer, and its slot is here by now.
    """
    state = shard()
    state.load(wallet("shop"))
    command = linked(leg("alice", "bob", 1), takes_back("bob", "gone"))
    batch = Batch(1)
    batch.at_us = AT_US
    batch.add(state, RequestFrame(1, 0, 1, [command]), lambda _reply: None)
    elsewhere = answer_elsewhere(0, side=2)
    assert refunds_of_answers(state, 1, [elsewhere]) == ([], [])
    state.slots.assign(slot_of("bob"), 0, 2)
    assert refunds_of_answers(state, 1, [elsewhere]) == ([], [GONE])
    assert refunds_of_answers(state, 1, [0]) == ([], [])
