"""
Goal: nothing that the ledger can say stays untried: the random runs, and a few steps more that
      seldom come by chance, meet each reason to refuse and make each kind of decision.
Method: runs with a seed, counted; what is missing is named.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import pytest

from processor.core import decide_holds
from processor.core.amounts import BALANCE_MAX
from processor.core.commands import SetWalletStatus
from processor.core.decide_linked import DEADLINE_US
from processor.core.decisions import Decision
from processor.core.reject_reason import RejectReason
from processor.core.slots import slot_of
from processor.core.wallet import WalletStatus
from tests.properties.test_channels import WALLETS, Channels, kinds_journaled, run_long
from tests.properties.test_model_agreement import BETWEEN_SHARDS, Ledgers, run
from tests.support.bound_commands import (
    capture,
    hold_id_of,
    leg,
    linked,
    place,
    refund_leg,
    up_to,
    void,
)
from tests.support.commands import MERCHANT, deposit, transfer, withdrawal


def close(wallet_id: str) -> SetWalletStatus:
    return SetWalletStatus(MERCHANT, wallet_id, WalletStatus.CLOSED)


def on_one_shard() -> Ledgers:
    """
    Close wallets, one with an open hold first, and fill one up to the last number.
    """
    ledgers = Ledgers()
    ledgers.ask([place("bob", 5), close("bob"), close("dave")])
    ledgers.ask([close("dave"), SetWalletStatus(MERCHANT, "dave", WalletStatus.OPEN)])
    ledgers.ask([deposit("alice", 9), transfer("alice", "dave", 1, key="1"), close("alice")])
    ledgers.ask([withdrawal("dave", 1, key="2"), place("dave", 1, key="3")])
    for name, amount in (("alice", BALANCE_MAX - 14), ("$world:0:EUR", 14 - BALANCE_MAX)):
        wallet = ledgers.state.wallets[name]
        wallet.posted, wallet.version = wallet.posted + amount, wallet.version + 1
        ledgers.model.accounts[name]["entries"].append(amount)
    ledgers.ask([deposit("alice", 6, key="4"), linked(leg("bob", "alice", 6))])
    return ledgers


def as_many_holds_as_may_be() -> Ledgers:
    """
    With a bound that is soon reached; a hold that ends makes room for another.
    """
    ledgers = Ledgers()
    ledgers.model.holds_max = 3
    names = [f"hold {number}" for number in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decide_holds, "HOLDS_OPEN_MAX", 3)
        ledgers.ask([deposit("alice", 9)])
        ledgers.ask([place("alice", 1, key=name) for name in names])
        ledgers.ask([void(hold_id_of("alice", names[0]), key="room")])
        ledgers.ask([place("alice", 1, key="hold again")])
        ledgers.ask([place("alice", 1, key="hold no more")])
    ledgers.check()
    ledgers.replay()
    return ledgers


def between_shards() -> Channels:
    """
    Let a last capture, a payment and a vote be on their way, and time pass.
    """
    machine = Channels()
    pay_back_what_nobody_can_look_up(machine)
    payer, payee, poor = WALLETS[0], WALLETS[2], WALLETS[-1]
    machine.ask(place(payer, 9))
    machine.ask(capture(hold_id_of(payer), None, payee, key="last"))
    machine.ask(capture(hold_id_of(payer), 1, payee, key="later"))
    machine.ask(up_to(withdrawal(poor, 90, key="all")))
    machine.ask(transfer(poor, payer, 5, key="owed"))
    machine.ask(close(poor))
    machine.ask(linked(leg(payer, payee, 1)))
    for shard_id in range(3):
        machine.net.commit(shard_id)
    machine.net.passed_us += DEADLINE_US
    machine.net.tick(0)
    machine.net.settle()
    machine.teardown()
    return machine


def pay_back_what_nobody_can_look_up(machine: Channels) -> None:
    """
    The wallet that pays back was elsewhere, and the database there is down when a peer asks.
    """
    payer, payee, far = WALLETS[0], WALLETS[2], WALLETS[-1]
    machine.ask(transfer(payer, payee, 5, key="once"))
    machine.net.settle()
    machine.give(payee, machine.slots.owner(slot_of(far)))
    machine.net.settle()
    machine.net.can_look_elsewhere = False
    back = refund_leg("once", payee, payer, 5, refundable=5)
    machine.ask(linked(leg(payer, payee, 1), back, key="in vain"))
    machine.net.settle()
    machine.net.can_look_elsewhere = True
    machine.ask(linked(leg(payer, payee, 1), back, key="then"))
    machine.net.settle()


@cache
def runs() -> tuple[list[Ledgers], list[Channels]]:
    alone = (on_one_shard(), as_many_holds_as_may_be())
    return [*alone, *(run(seed, 250) for seed in range(5))], [
        between_shards(),
        *(run_long(seed) for seed in (1, 4)),
    ]


def names(found: Iterable[RejectReason]) -> set[str]:
    return {reason.name for reason in found}


def test_each_reason_is_met() -> None:
    """
    By the runs in which a second ledger, or the outcomes, say whether it is right.
    """
    alone, together = runs()
    met_alone = names(reason for ledgers in alone for reason in ledgers.reasons)
    met_together = names(reason for machine in together for reason in machine.reasons)
    assert sorted(names(RejectReason) - met_alone - met_together) == []
    # Only these need a second shard; all others were predicted to the unit.
    assert sorted(names(RejectReason) - met_alone) == sorted(names(BETWEEN_SHARDS))


def test_each_kind_of_decision_is_made() -> None:
    """
    And journaled, and replayed.
    """
    alone, together = runs()
    made = {kind for machine in together for kind in kinds_journaled(machine)}
    made |= {type(one).__name__ for ledgers in alone for one in ledgers.decisions}
    kinds = {kind.__name__ for kind in Decision.__args__}
    assert sorted(kinds - made) == []
