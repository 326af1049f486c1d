"""
Goal: a shard that begins again with its tables never takes an old total of refunds for the latest.
Method: three shards in one process (`shard_net`). A slot goes away and comes back; meanwhile its
        other owner has given back the rest of a transfer. Something undecided here names that
        transfer, too, when the shard begins again.
"""

from __future__ import annotations

from processor.core.commands import GiveSlot, MoveMoney
from processor.core.reject_reason import RejectReason
from processor.core.slots import slot_of
from processor.flow.frames import Rejected
from tests.support.bound_commands import leg, linked, refund, refund_leg
from tests.support.commands import deposit, open_wallet, transfer
from tests.support.shard_net import ShardNet, names_on

PAYER, PAID = names_on(0, 3)[:2]
THERE = names_on(1, 3)[0]
FAR = names_on(2, 3)[0]


def net_with_an_old_row() -> ShardNet:
    """
    Of `paid` all has gone back; the row of shard 0 says 40, that of shard 1 is the latest.
    """
    net = ShardNet(3)
    for shard_id, name in enumerate((PAYER, THERE, FAR)):
        net.ask(shard_id, [open_wallet(name), deposit(name, 500, key=f"to {name}")])
    net.ask(0, [open_wallet(PAID), deposit(PAID, 500, key="more")])
    net.ask(0, [transfer(PAYER, PAID, 100, key="paid"), taken_back(40, "first")])
    give(net, 0, 1)
    net.ask(1, [taken_back(60, "rest")])
    net.settle()
    project(net)
    return net


def taken_back(amount: int, key: str) -> MoveMoney:
    return refund("paid", PAID, PAYER, amount, refundable=100, key=key)


def give(net: ShardNet, giver: int, taker: int) -> None:
    """
    Give the slot when the tables have all that was decided on it: then it carries no totals.
    """
    net.settle()
    project(net)
    net.ask(giver, [GiveSlot(slot_of(PAID), taker)])
    net.settle()
    project(net)


def project(net: ShardNet) -> None:
    for shard in net.shards:
        shard.project(len(shard.journal), durably=True)


def bring(net: ShardNet, source: int, destination: int, times: int = 8) -> None:
    """
    Bring what is said on one wire, and nothing on the others.
    """
    net.connect(source, destination)
    for _ in range(times):
        net.commit(source)
        net.arrive(source, destination)
        net.commit(destination)


def assert_nothing_more_goes_back(net: ShardNet) -> None:
    net.crash(0, written=False, with_tables=True)
    net.ask(0, [taken_back(1, "too much")])
    net.commit(0)
    result = net.replies[-1][1][0]
    assert isinstance(result, Rejected)
    assert result.reason == RejectReason.REFUND_EXCEEDS_PAID


def test_a_leg_that_is_asked_of_a_peer_brings_no_total() -> None:
    """
    The peer that was asked to pay back has given the slot away; its answer is not here yet.
    """
    net = net_with_an_old_row()
    for pair in list(net.wires):
        net.cut(*pair)
    asked = refund_leg("paid", PAID, PAYER, 30, refundable=100)
    net.ask(0, [linked(leg(PAYER, FAR, 1), asked)])
    net.commit(0)
    net.ask(1, [GiveSlot(slot_of(PAID), 0)])
    bring(net, 1, 0)
    assert net.shards[0].state.linked
    project(net)
    assert_nothing_more_goes_back(net)


def test_a_leg_that_is_prepared_for_its_payee_brings_no_total() -> None:
    """
    The shard that pays back has heard that it does not, this one has not.
    """
    net = net_with_an_old_row()
    asked = refund_leg("paid", PAID, PAYER, 30, refundable=100)
    for pair in list(net.wires):
        net.cut(*pair)
    net.ask(2, [linked(leg(FAR, THERE, 1), asked)])
    bring(net, 2, 0)
    assert net.shards[0].state.prepared
    net.ask(1, [GiveSlot(slot_of(PAID), 0)])
    bring(net, 1, 0)
    project(net)
    assert_nothing_more_goes_back(net)


def test_what_is_posted_brings_no_total() -> None:
    """
    Nothing of it comes to nothing any more, and the slot has been elsewhere since.
    """
    net = ShardNet(3)
    for shard_id, name in enumerate((PAYER, THERE, FAR)):
        net.ask(shard_id, [open_wallet(name), deposit(name, 500, key=f"to {name}")])
    net.ask(0, [open_wallet(PAID), deposit(PAID, 500, key="more")])
    net.ask(0, [transfer(PAYER, PAID, 100, key="paid")])
    net.settle()
    asked = refund_leg("paid", PAID, PAYER, 40, refundable=100)
    for pair in list(net.wires):
        net.cut(*pair)
    net.ask(0, [linked(leg(PAYER, FAR, 1), asked)])
    bring(net, 0, 2, times=4)  # Its vote is back, what came of it is not there yet.
    net.cut(0, 2)
    assert [one.posted is not None for one in net.shards[0].state.linked.values()] == [True]
    project(net)
    net.ask(0, [GiveSlot(slot_of(PAID), 1)])
    bring(net, 0, 1)
    net.ask(1, [taken_back(60, "rest")])
    bring(net, 1, 0)
    project(net)
    net.ask(1, [GiveSlot(slot_of(PAID), 0)])
    bring(net, 1, 0)
    project(net)
    assert net.shards[0].state.linked
    assert_nothing_more_goes_back(net)
