"""
Goal: what must hold of every state is told in words when it does not.
Method: wallets and channels that break one rule each.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from processor.core.apply import apply
from processor.core.channel import OutChannel
from processor.core.decide import decide_move
from processor.core.decisions import TransferReserved
from processor.core.invariants import books, broken_channels, broken_wallets, strangers
from processor.core.slots import SlotMap, slot_of
from processor.core.state import ShardState
from processor.core.wallet import Wallet, WalletStatus
from tests.support.bound_commands import leg, linked, place
from tests.support.commands import AT_US, transfer, wallet, world
from tests.support.decided import deliver, do


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (wallet("alice", -1), "alice: available is below the minimum"),
        (wallet("alice", 5, minimum=6), "alice: available is below the minimum"),
        (Wallet("alice", "acme", "EUR", posted=5), "alice: money without an entry"),
        (Wallet("alice", "acme", "EUR", version=-1), "alice: money without an entry"),
        (wallet("alice", 5, status=WalletStatus.CLOSED), "alice: closed with money in it"),
    ],
)
def test_broken_wallet_is_named(broken: Wallet, words: str) -> None:
    """
    One broken rule gives one sentence with the wallet's name.
    """
    assert broken_wallets([wallet("bob", 5), broken, world(-10)]) == [words]


def test_sound_wallets_are_not_named() -> None:
    """
    Wallets at their bounds are sound.
    """
    sound = [
        wallet("at the minimum", -5, minimum=-5),
        wallet("closed", status=WalletStatus.CLOSED),
        wallet("spent", 0, minimum=0),
        world(-(2**63 - 1)),
    ]
    assert broken_wallets(sound) == []


def test_books_are_kept_per_currency() -> None:
    """
    What is missing in one currency is not hidden by another.
    """
    wallets = [world(-5), wallet("a", 5), world(-7, "USD"), wallet("b", 6, currency="USD")]
    assert books(wallets) == {"EUR": 0, "USD": -1}


def sending() -> ShardState:
    """
    Make a shard with two transfers to shard 1 on their way.
    """
    slots = SlotMap.undivided(0)
    slots.assign(slot_of("bob"), 1, 1)
    state = ShardState(0, slots)
    state.load(wallet("alice", 100))
    for key in ("one", "two"):
        decision = decide_move(state, transfer("alice", "bob", 30, key=key), AT_US)
        assert isinstance(decision, TransferReserved)
        apply(state, decision, 1, AT_US)
    return state


def out_of(state: ShardState) -> OutChannel:
    return state.channels.outgoing[1]


def test_sound_channels_are_not_named() -> None:
    """
    What is on its way is what is reserved.
    """
    assert broken_channels(sending()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: setattr(state.wallets["alice"], "reserved", 59),
            "alice: something else is reserved than is on its way or held",
        ),
        (
            lambda state: state.wallets.pop("alice"),
            "alice: money of it is set aside, but it is not in memory",
        ),
        (
            lambda state: out_of(state).reserved.update(EUR=61),
            "channel to shard 1: its outbox has another sum than is reserved",
        ),
        (
            lambda state: setattr(out_of(state), "head", 3),
            "channel to shard 1: its outbox is not what is on its way",
        ),
        (
            lambda state: setattr(out_of(state), "settled", 1),
            "channel to shard 1: its outbox is not what is on its way",
        ),
        (
            lambda state: setattr(out_of(state), "chain", bytes(16)),
            "channel to shard 1: its outbox has another chain",
        ),
        (
            lambda state: setattr(out_of(state), "settled_chain", bytes([1] * 16)),
            "channel to shard 1: its outbox has another chain",
        ),
    ],
)
def test_broken_channel_is_named(change: Callable[[ShardState], object], words: str) -> None:
    """
    One broken rule gives one sentence.
    """
    state = sending()
    change(state)
    assert broken_channels(state) == [words]


def holding() -> ShardState:
    """
    Make a shard with a hold, and with a linked transfer that is not decided.
    """
    slots = SlotMap.undivided(0)
    slots.assign(slot_of("bob"), 1, 1)
    state = ShardState(0, slots)
    for one in (world(-100), wallet("alice", 100), wallet("anna")):
        state.load(one)
    do(state, place("alice", 30))
    do(state, linked(leg("alice", "bob", 5), leg("alice", "anna", 2)))
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: setattr(state.wallets["alice"], "held", 29),
            "alice: something else is held than its holds keep",
        ),
        (
            lambda state: setattr(state.wallets["alice"], "holds_open", 0),
            "alice: another number of holds is open than is counted",
        ),
        (
            lambda state: setattr(state.wallets["anna"], "holds_open", 1),
            "anna: another number of holds is open than is counted",
        ),
        (
            lambda state: setattr(out_of(state), "weight", 2),
            "channel to shard 1: its outbox has another weight",
        ),
        (
            lambda state: setattr(state.wallets["alice"], "reserved", 36),
            "alice: something else is reserved than is on its way or held",
        ),
        (
            lambda state: setattr(state.wallets["anna"], "incoming", 1),
            "anna: something else may come than linked transfers bring",
        ),
        (
            lambda state: state.wallets.pop("anna"),
            "anna: money of it is set aside, but it is not in memory",
        ),
    ],
)
def test_what_is_set_aside_is_named(change: Callable[[ShardState], object], words: str) -> None:
    """
    By holds and by what is not decided.
    """
    state = holding()
    assert broken_channels(state) == []
    change(state)
    assert broken_channels(state) == [words]


def test_what_was_prepared_for_others_is_set_aside() -> None:
    """
    Like what is decided here.
    """
    home, peer = holding(), ShardState(1, holding().slots)
    peer.load(wallet("bob"))
    deliver(home, peer)
    peer.wallets["bob"].incoming = 0
    words = "bob: something else may come than linked transfers bring"
    assert broken_channels(peer) == [words]


def test_a_wallet_away_from_its_slot_is_named() -> None:
    """
    The ledger's own wallets have no slot.
    """
    state = sending()
    state.load(world(-5))
    state.load(wallet("bob"))
    assert strangers(state) == ["bob"]
