"""
Goal: nothing that was read of a slot's holds and refunds before it went or came is believed after.
Method: a slot is given and taken, on states that a test has filled.
"""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from processor.core.apply import apply
from processor.core.decisions import CarriedWallet, SlotGiven, SlotTaken
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.slots import hold_id_in, slot_of
from processor.core.state import ShardState
from tests.support.commands import AT_US, CURRENCY, MERCHANT, identifier, state_of, wallet

NAME = "moves"
SLOT = slot_of(NAME)
CHAIN = bytes(16)
HOLD = Hold(
    hold_id_in(SLOT, identifier("hold")),
    *(MERCHANT, NAME, "", CURRENCY, 9, 9, 0, HoldStatus.CAPTURED, False, AT_US, AT_US),
)
CARRIED = CarriedWallet(NAME, MERCHANT, CURRENCY, 1, 0, 0, 0)
KNOWN = RefundTotal(identifier("known"), NAME, 5, 1)
NOTHING = RefundTotal(identifier("nothing"), "", 0, 0)
OTHERS = RefundTotal(identifier("others"), "another", 5, 1)


def state_with_counts() -> ShardState:
    state = state_of(wallet(NAME))
    for total in (KNOWN, NOTHING, OTHERS):
        state.load_refund(total)
    return state


def give(state: ShardState, *holds: Hold) -> None:
    apply(state, SlotGiven(1, 1, CHAIN, SLOT, 2, [CARRIED], [], [], [*holds]), 1, AT_US)


def take(state: ShardState, *refunds: RefundTotal) -> None:
    taken = SlotTaken(1, 1, CHAIN, SLOT, 3, [CARRIED], [], [], [], [*refunds])
    apply(state, taken, 2, AT_US)


def test_totals_are_dropped_with_their_slot() -> None:
    """
    Also that nothing has gone back so far: of which wallet, nobody can say.
    """
    state = state_with_counts()
    give(state)
    assert list(state.refunds) == [OTHERS.transfer_id]


def test_totals_that_were_read_while_the_slot_was_elsewhere_are_dropped_when_it_comes() -> None:
    """
    Its owner may have counted on since: believing them would pay back more than was paid.
    """
    state = state_of(wallet(NAME))
    give(state)
    for total in (KNOWN, NOTHING, OTHERS):
        state.load_refund(total)
    carried = replace(KNOWN, refunded=7, version=2)
    take(state, carried)
    assert state.refunds == {
        OTHERS.transfer_id: OTHERS,
        KNOWN.transfer_id: replace(carried, sequence=2),
    }


def test_an_ended_hold_that_goes_need_not_be_known() -> None:
    """
    A replay may begin above its end: the tables have it, and memory does not.
    """
    state = state_of(wallet(NAME))
    give(state, HOLD)
    assert NAME not in state.wallets


@pytest.mark.parametrize("known", [True, False])
def test_an_open_hold_that_goes_is_known_as_it_is(known: bool) -> None:
    """
    What it keeps is of its wallet: a hold that differs, or is not there, stops the process.
    """
    state = state_of(wallet(NAME))
    if known:
        state.holds[HOLD.hold_id] = replace(HOLD, captured=8)
    is_open = replace(HOLD, captured=0, status=HoldStatus.OPEN)
    with pytest.raises(AssertionError, match="differs" if known else "stays behind"):
        give(state, is_open)
