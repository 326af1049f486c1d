"""
Goal: a channel or a slot that is out of step with its journal stops; money is never made or lost
      by a decision that does not fit.
Method: a decision that fits is changed in one place, or the state is, before it is applied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from processor.core.amounts import BALANCE_MAX
from processor.core.apply import apply, wallets_touched
from processor.core.channel import Entry, SlotEntry, answer_elsewhere, entry_sent, shard_answered
from processor.core.commands import GiveSlot
from processor.core.decide import decide_move
from processor.core.decide_channel import (
    decide_anew,
    decide_entry,
    decide_forgotten,
    decide_settlement,
)
from processor.core.decide_slots import SlotStays, decide_give
from processor.core.decisions import (
    AnswersForgotten,
    Decision,
    EntryElsewhere,
    EntryRefused,
    SlotDelivered,
    SlotGiven,
    SlotsGranted,
    SlotTaken,
    TransferRecalled,
    TransferRejected,
    TransferReserved,
    TransferSettled,
)
from processor.core.reject_reason import RejectReason
from processor.core.slots import NOWHERE, SlotMap, slot_of
from processor.core.state import ShardState
from processor.core.wallet import Wallet
from tests.support.commands import AT_US, facts, identifier, transfer, wallet

SLOT = slot_of("alice")


def due(shard_id: int, peer: int, posted: int = 0) -> Wallet:
    name = f"$due:{shard_id}:{peer}:EUR"
    return wallet(name, posted, merchant_id="$system", minimum=-BALANCE_MAX)


def giver() -> ShardState:
    """
    Make shard 0 with alice, who has 70, and all slots but that of bob, which is shard 1's.
    """
    slots = SlotMap.undivided(0)
    slots.assign(slot_of("bob"), 1, 1)
    state = ShardState(0, slots)
    for one in (due(0, 1, 5), wallet("alice", 70, minimum=-5, status=2), wallet("carol", 9)):
        state.load(one)
    state.leaving[SLOT] = ["alice"]
    return state


def taker() -> ShardState:
    """
    Make shard 1, which has bob's slot only.
    """
    slots = SlotMap.undivided(0)
    slots.assign(slot_of("bob"), 1, 1)
    state = ShardState(1, slots)
    state.load(due(1, 0, -5))
    return state


def given() -> SlotGiven:
    decision = decide_give(giver(), GiveSlot(SLOT, 1))
    assert isinstance(decision, SlotGiven)
    return decision


def taken() -> SlotTaken:
    (decision,) = decide_entry(taker(), 0, entry_sent(given()), AT_US)
    assert isinstance(decision, SlotTaken)
    return decision


def reserving() -> tuple[ShardState, TransferReserved]:
    """
    Make shard 0 with 9 of carol's on their way to bob.
    """
    state = giver()
    decision = decide_move(state, transfer("carol", "bob", 9), AT_US)
    assert isinstance(decision, TransferReserved)
    apply(state, decision, 3, AT_US)
    return state, decision


def sent_anew(state: ShardState, pending: TransferReserved, answer: int) -> object:
    """
    Say what takes the place of *pending*: one decision, for nothing is counted with it.
    """
    anew = decide_anew(state, pending, answer, reserved_at_us=AT_US, at_us=AT_US)
    assert anew.decisions == [anew.outcome]
    return anew.outcome


def change(decision: Any, path: str, value: object) -> Any:
    """
    Change one field, be it of the first wallet or posting in a list.
    """
    name, _, inner = path.partition(".")
    if inner:
        first, *rest = getattr(decision, name)
        value = [msgspec.structs.replace(first, **{inner: value}), *rest]
    return msgspec.structs.replace(decision, **{name: value})


def test_giving_and_taking_is_zero_sum() -> None:
    """
    What leaves is due from there, what comes is due to there, to the last unit and version.
    """
    source, destination = giver(), taker()
    source.newest["alice"], source.closing[SLOT] = 2, AT_US
    destination.hints[SLOT] = 7
    apply(source, given(), 3, AT_US)
    apply(destination, taken(), 4, AT_US)
    assert "alice" not in source.wallets
    assert destination.wallets["alice"].facts() == giver().wallets["alice"].facts()
    assert source.wallets["$due:0:1:EUR"].posted == 75
    assert destination.wallets["$due:1:0:EUR"].posted == -75
    assert (source.slots.owner(SLOT), source.slots.generation(SLOT)) == (1, 2)
    assert (destination.slots.owner(SLOT), destination.slots.generation(SLOT)) == (1, 2)
    assert (source.given, source.newest, source.closing) == ({SLOT}, {}, {})
    assert (destination.has_taken, destination.newest, destination.hints) == (
        True,
        {"alice": 4},
        {},
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("number", 2),
        ("generation", 1),
        ("generation", 3),
        ("slot", slot_of("bob")),
        ("wallets.posted", 71),
        ("wallets.version", 2),
        ("wallets.status", 1),
        ("wallets.minimum", 0),
        ("wallets.currency", "USD"),
        ("wallets.merchant_id", "globex"),
        ("wallets", []),
        ("dues.amount", 71),
        ("dues.balance", 76),
        ("dues.version", 3),
        ("dues.version", 1),
        ("dues", []),
    ],
)
def test_giving_out_of_step_stops(path: str, value: object) -> None:
    """
    A wallet, a sum or a number that does not follow from the state stops, before anything moves.
    """
    state = giver()
    before = facts(state)
    with pytest.raises(AssertionError):
        apply(state, change(given(), path, value), 3, AT_US)
    assert facts(state) == before


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("number", 2),
        ("number", 0),
        ("slot", slot_of("bob")),
        ("slot", slot_of("carol")),
        ("wallets.posted", 71),
        ("wallets.wallet_id", "carol"),
        ("wallets", []),
        ("dues.amount", 71),
        ("dues.balance", -74),
        ("dues.version", 3),
        ("dues", []),
    ],
)
def test_taking_out_of_step_stops(path: str, value: object) -> None:
    """
    What comes has to fit as well.
    """
    state = taker()
    before = facts(state)
    with pytest.raises(AssertionError):
        apply(state, change(taken(), path, value), 3, AT_US)
    assert facts(state) == before


def test_a_slot_that_is_here_is_not_taken() -> None:
    """
    An empty one neither: its generations would be mixed up.
    """
    state = taker()
    empty = SlotTaken(0, 1, bytes(16), slot_of("bob"), 2, [], [], [])
    with pytest.raises(AssertionError, match="here already"):
        apply(state, empty, 3, AT_US)


def test_taking_more_than_a_balance_can_hold_stops() -> None:
    """
    The giver keeps far from there; a number that no table can hold is never written.
    """
    state = taker()
    state.wallets["$due:1:0:EUR"].posted = -BALANCE_MAX + 69
    (decision,) = decide_entry(state, 0, entry_sent(given()), AT_US)
    with pytest.raises(AssertionError, match="out of range"):
        apply(state, decision, 3, AT_US)


def test_a_wallet_is_not_taken_twice() -> None:
    """
    Two wallets of one name would each have the money.
    """
    state = taker()
    state.load(wallet("alice"))
    with pytest.raises(AssertionError, match="alice is here already"):
        apply(state, taken(), 3, AT_US)


def test_nothing_reserved_is_given() -> None:
    """
    Neither decided nor, should anyone decide it, applied.
    """
    state = giver()
    state.wallets["alice"].reserved = 1
    assert decide_give(state, GiveSlot(SLOT, 1)) == SlotStays("transfers_pending")
    with pytest.raises(AssertionError, match="is on its way"):
        apply(state, given(), 3, AT_US)


def test_an_outcome_from_the_tables_does_not_go_along() -> None:
    """
    Be its sequence ever so high: it may be of another shard's journal.
    """
    state = giver()
    outcome = decide_move(state, transfer("alice", "nobody", 1), AT_US)
    assert isinstance(outcome, TransferRejected)
    state.keys.load((outcome, 10**9, AT_US))
    decision = decide_give(state, GiveSlot(SLOT, 1))
    assert isinstance(decision, SlotGiven)
    assert decision.outcomes == []


def test_slots_that_were_not_read_are_not_given() -> None:
    """
    Wallets in the tables only would be left behind.
    """
    state = giver()
    state.leaving.clear()
    with pytest.raises(KeyError):
        decide_give(state, GiveSlot(SLOT, 1))


def test_first_slots_are_granted_once() -> None:
    """
    Granted again, slots that have gone since would have two owners.
    """
    state = ShardState(3, SlotMap.undivided(NOWHERE))
    apply(state, SlotsGranted(10, 12), 1, AT_US)
    assert state.slots.slots_of(3) == [10, 11, 12]
    with pytest.raises(AssertionError, match="granted once"):
        apply(state, SlotsGranted(10, 12), 2, AT_US)


def test_a_shard_that_took_a_slot_is_granted_none() -> None:
    """
    It began without slots; whoever gives it first slots later is mistaken.
    """
    state = taker()
    apply(state, taken(), 3, AT_US)
    assert state.has_granted


def test_recall_undoes_the_reserve() -> None:
    """
    The money is free, the key is as new, the number is used up.
    """
    state, pending = reserving()
    apply(state, TransferRecalled(1, 1, pending.transfer_id), 4, AT_US)
    channel = state.channels.to(1)
    assert state.wallets["carol"].reserved == 0
    assert state.keys.find(pending.key) is None
    assert (channel.settled, channel.settled_chain, channel.outbox) == (1, pending.chain, {})
    assert channel.reserved == {"EUR": 0}


@pytest.mark.parametrize(
    "decision",
    [
        TransferRecalled(1, 1, identifier("another")),
        TransferRecalled(1, 2, identifier("transfer of key")),
        SlotDelivered(1, 1),
    ],
)
def test_settling_something_else_stops(decision: Decision) -> None:
    """
    Another transfer, another number, or a slot where a transfer is on its way.
    """
    state, _ = reserving()
    with pytest.raises((AssertionError, KeyError)):
        apply(state, decision, 4, AT_US)


def test_settling_out_of_order_stops() -> None:
    """
    The second before the first would leave a hole that no answer can fill.
    """
    state, _ = reserving()
    state.wallets["alice"].status = 1
    second = decide_move(state, transfer("alice", "bob", 1, key="second"), AT_US)
    assert isinstance(second, TransferReserved)
    apply(state, second, 3, AT_US)
    with pytest.raises(AssertionError, match="out of order"):
        apply(state, TransferRecalled(1, 2, second.transfer_id), 4, AT_US)


def test_a_transfer_in_place_of_a_slot_stops() -> None:
    """
    What was a slot is not settled as money.
    """
    state = giver()
    apply(state, given(), 3, AT_US)
    with pytest.raises(AssertionError, match="no transfer"):
        apply(state, TransferSettled(1, 1, bytes(16), 2, 61, 2, 14), 4, AT_US)


def test_a_slot_that_was_delivered_is_not_on_its_way() -> None:
    """
    The peer has it, and nothing has to be posted for it any more.
    """
    state = giver()
    apply(state, given(), 3, AT_US)
    apply(state, SlotDelivered(1, 1), 4, AT_US)
    assert state.channels.to(1).outbox == {}


def test_money_for_a_slot_that_is_elsewhere_is_not_credited() -> None:
    """
    It is answered with where the slot is, and that answer is kept like a refusal.
    """
    _, pending = reserving()
    state = taker()
    state.slots.assign(slot_of("bob"), 2, 2)
    (decision,) = decide_entry(state, 0, entry_sent(pending), AT_US)
    assert decision == EntryElsewhere(0, 1, pending.chain, 2)
    apply(state, decision, 4, AT_US)
    assert state.channels.of(0).answers(1, 1) == [answer_elsewhere(2)]


def test_the_ledgers_own_wallets_take_no_money_from_peers() -> None:
    """
    Whatever a peer says, what is due and what is outside change by the ledger's own rules only.
    """
    state = taker()
    own = "$due:1:0:EUR"
    state.slots.assign(slot_of(own), 1, 1)
    entry = Entry(1, identifier("t"), "acme", "carol", own, "EUR", 5, None, None)
    (decision,) = decide_entry(state, 0, entry, AT_US)
    assert isinstance(decision, EntryRefused)
    assert decision.reason == RejectReason.DESTINATION_UNKNOWN


def test_money_for_a_slot_that_was_given_is_not_credited_even_if_decided() -> None:
    """
    The state stops it, should the wallet still be in memory.
    """
    _, pending = reserving()
    state = taker()
    state.load(wallet("bob"))
    (credited,) = decide_entry(state, 0, entry_sent(pending), AT_US)
    state.slots.assign(slot_of("bob"), 2, 2)
    with pytest.raises(AssertionError, match="elsewhere"):
        apply(state, credited, 4, AT_US)


@pytest.mark.parametrize("shard_id", [0, 1, 4_095])
def test_elsewhere_is_below_zero(shard_id: int) -> None:
    """
    Zero is "taken", above are reasons.
    """
    assert answer_elsewhere(shard_id) < 0
    assert shard_answered(answer_elsewhere(shard_id)) == shard_id


def test_nowhere_is_no_answer() -> None:
    """
    As a number it would be "taken", and money nobody has would be settled.
    """
    with pytest.raises(AssertionError, match="taken"):
        answer_elsewhere(NOWHERE)


def test_money_called_back_is_rejected_where_its_new_peer_is_due_too_much() -> None:
    """
    No other bound keeps it from going on, but this one would make settling fail.
    """
    state, pending = reserving()
    recalled = decide_settlement(state, 1, answer_elsewhere(2))
    apply(state, recalled, 4, AT_US)
    state.load(due(0, 2, BALANCE_MAX - 8))
    anew = sent_anew(state, pending, answer_elsewhere(2))
    assert type(anew).__name__ == "TransferRejected"
    state.wallets["$due:0:2:EUR"].posted -= 1
    anew = sent_anew(state, pending, answer_elsewhere(2))
    assert isinstance(anew, TransferReserved)
    assert (anew.peer, anew.number, anew.transfer_id, anew.key) == (
        2,
        1,
        pending.transfer_id,
        pending.key,
    )


@pytest.mark.parametrize(
    ("answered", "was_here", "owner", "peer"),
    [
        (2, False, 1, 2),
        (2, True, 3, 2),
        (1, False, 1, 1),
        (0, True, 3, 3),
        (0, False, NOWHERE, 1),
    ],
)
def test_money_called_back_goes_where_it_was_told(
    answered: int, was_here: bool, owner: int, peer: int
) -> None:
    """
    To the shard that was named; told that it is here, to where it went on from here, or else to
    the same peer again.
    """
    state, pending = reserving()
    slot = slot_of("bob")
    state.slots.assign(slot, owner, 2)
    if was_here:
        state.given.add(slot)
    anew = sent_anew(state, pending, answer_elsewhere(answered))
    assert isinstance(anew, TransferReserved)
    assert anew.peer == peer


def test_answers_are_forgotten_when_there_are_some() -> None:
    """
    Only up to what is settled; and without any to forget nothing is recorded.
    """
    state = taker()
    channel = state.channels.of(0)
    channel.cursor, channel.refused = 9, {3: 30, 5: 30, 7: 30}
    assert decide_forgotten(state, 0, 2) is None
    decision = decide_forgotten(state, 0, 5)
    assert decision == AnswersForgotten(0, 5)
    apply(state, decision, 4, AT_US)
    assert channel.refused == {7: 30}
    assert decide_forgotten(state, 0, 5) is None


def test_answers_that_were_not_given_are_not_forgotten() -> None:
    """
    A source cannot have settled what was not answered.
    """
    with pytest.raises(AssertionError, match="before it was answered"):
        apply(taker(), AnswersForgotten(0, 1), 4, AT_US)


@pytest.mark.parametrize(
    ("make", "decision", "touched"),
    [
        (giver, given(), ("$due:0:1:EUR", "alice")),
        (taker, taken(), ("$due:1:0:EUR",)),
        (
            lambda: reserving()[0],
            TransferRecalled(1, 1, identifier("transfer of key")),
            ("carol", "$due:0:1:EUR"),
        ),
    ],
)
def test_decision_names_the_wallets_it_changes(
    make: Callable[[], ShardState], decision: Decision, touched: tuple[str, ...]
) -> None:
    """
    With just these in memory a replay gets through.
    """
    state = make()
    assert wallets_touched(state, decision) == touched
    for name in [name for name in state.wallets if name not in touched]:
        del state.wallets[name]
    apply(state, decision, 4, AT_US)


def test_the_entry_of_a_slot_is_what_was_decided() -> None:
    """
    What is sent has the journaled chain, so that both ends agree on it.
    """
    decision = given()
    entry = entry_sent(decision)
    assert isinstance(entry, SlotEntry)
    assert decide_entry(taker(), 0, entry, AT_US)[0].chain == decision.chain
