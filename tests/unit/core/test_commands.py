"""
Goal: a command goes to the shard that decides it, and says what that shard has to have in memory.
Method: each kind of command, and what it is said to name.
"""

from __future__ import annotations

from typing import Any

import pytest

from processor.core.commands import (
    GiveSlot,
    ReadHold,
    SetWalletLimits,
    SetWalletStatus,
    hold_named,
    key_of,
    refunds_named,
    shard_asked,
    slot_asked,
    wallet_asked,
    wallets_named,
    weight_of,
)
from processor.core.slots import slot_of
from processor.core.wallet import WalletStatus
from tests.support.bound_commands import (
    capture,
    extend,
    fee,
    fee_leg,
    hold_id_of,
    leg,
    linked,
    place,
    refund,
    refund_leg,
    void,
)
from tests.support.commands import (
    deposit,
    identifier,
    open_wallet,
    read_wallet,
    transfer,
    withdrawal,
)

HOLD = hold_id_of("alice")
PAID = identifier("transfer of paid")
LINKED = linked(
    leg("alice", "bob", 1),
    fee_leg("bob", 2),
    refund_leg("paid", "bob", "carol", 3, refundable=3),
)
SWEEP = transfer("$fees:3:EUR:acme", "bob", 1)


@pytest.mark.parametrize(
    ("command", "wallet_id"),
    [
        (transfer("alice", "bob", 1), "alice"),
        (deposit("bob", 1), "bob"),
        (withdrawal("alice", 1), "alice"),
        (fee("alice", 1), "alice"),
        (refund("paid", "bob", "alice", 1, refundable=1), "bob"),
        (place("alice", 1), "alice"),
        (LINKED, "alice"),
        (open_wallet("alice"), "alice"),
        (read_wallet("alice"), "alice"),
        (SetWalletStatus("acme", "alice", WalletStatus.FROZEN), "alice"),
        (SetWalletLimits("acme", "alice", None), "alice"),
    ],
)
def test_a_command_goes_to_the_slot_of_the_wallet_that_pays(command: Any, wallet_id: str) -> None:
    """
    Of a deposit, to that of the wallet that is paid.
    """
    assert wallet_asked(command) == wallet_id
    assert slot_asked(command) == slot_of(wallet_id)
    assert shard_asked(command) is None


@pytest.mark.parametrize(
    "command", [capture(HOLD, 1, "bob"), void(HOLD), extend(HOLD, 9), ReadHold("acme", HOLD)]
)
def test_a_command_on_a_hold_goes_where_its_id_says(command: Any) -> None:
    """
    Whoever asks knows nothing else of it.
    """
    assert slot_asked(command) == slot_of("alice")
    assert shard_asked(command) is None
    assert hold_named(command) == HOLD


def test_the_ledgers_own_wallets_are_asked_for_at_their_shard() -> None:
    """
    They have no slot.
    """
    for command in (SWEEP, linked(leg("$fees:3:EUR:acme", "bob", 1))):
        assert (slot_asked(command), shard_asked(command)) == (None, 3)
    assert slot_asked(GiveSlot(7, 1)) is None


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (fee("alice", 1), ("alice", "$fees:3:EUR:acme")),
        (refund("paid", "bob", "alice", 1, refundable=1), ("bob", "alice")),
        (capture(HOLD, 1, "bob"), ("bob",)),
        (capture(HOLD, 1), ()),
        (place("alice", 1, destination="bob"), ("alice",)),
        (void(HOLD), ()),
        (LINKED, ("alice", "bob", "bob", "bob", "carol")),
    ],
)
def test_commands_name_the_wallets_that_they_need(command: Any, named: tuple[str, ...]) -> None:
    """
    A hold's own wallet is named by the hold.
    """
    assert wallets_named(command, 3) == named


def test_commands_name_the_refunds_that_they_need() -> None:
    """
    Each with the wallet that pays it back, of all legs.
    """
    assert refunds_named(refund("paid", "bob", "alice", 1, refundable=1)) == [(PAID, "bob")]
    assert refunds_named(LINKED) == [(PAID, "bob")]
    for command in (transfer("alice", "bob", 1), capture(HOLD, 1), place("alice", 1), void(HOLD)):
        assert refunds_named(command) == []
    assert hold_named(transfer("alice", "bob", 1)) is None
    assert hold_named(place("alice", 1)) is None


def test_what_is_done_once_has_a_key() -> None:
    """
    Everything that moves money or sets it aside.
    """
    keyed = (transfer("a", "b", 1), place("a", 1), void(HOLD), extend(HOLD, 1), LINKED)
    for command in keyed:
        assert key_of(command) == command.key
    for other in (open_wallet("a"), read_wallet("a"), ReadHold("acme", HOLD), GiveSlot(7, 1)):
        assert key_of(other) is None


def test_a_linked_transfer_weighs_as_much_as_its_legs() -> None:
    """
    Or one command could be as much work as a whole frame.
    """
    assert weight_of([LINKED]) == 3
    assert weight_of([transfer("alice", "bob", 1)]) == 1
