"""
Goal: a linked transfer over several shards ends everywhere as one of them has decided, whichever
      of them is killed, and whenever.
Method: three shards in one process (`shard_net`); the transfer runs in small steps, and for each
        step each shard is killed there, with the record on its way durable or lost, and begins
        again from its journal or from its tables and the journal behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import msgspec
import pytest

from processor.core.commands import (
    GiveSlot,
    Leg,
    MoveLinked,
    SetWalletLimits,
    Terms,
    TransferType,
)
from processor.core.decide_linked import DEADLINE_US
from processor.core.invariants import books, broken_channels, broken_wallets
from processor.core.limits import Limits, Velocity
from processor.core.reject_reason import RejectReason
from processor.core.slots import slot_of
from processor.flow.frames import LinkedMoved, LinkedRefused, Pending, Result
from tests.support.bound_commands import fee_leg, leg, linked
from tests.support.commands import MERCHANT, deposit, identifier, open_wallet
from tests.support.shard_net import ShardNet, names_on

SHARD_COUNT = 3
ALICE, ALAN = names_on(0, SHARD_COUNT)[:2]
BOB, BERT = names_on(1, SHARD_COUNT)[:2]
CAROL = names_on(2, SHARD_COUNT)[0]
NOBODY = names_on(2, SHARD_COUNT)[1]
NAMES = (ALICE, ALAN, BOB, BERT, CAROL)
START = dict.fromkeys(NAMES, 100)

EARLIER = identifier("an earlier transfer"), identifier("another one")  # From Bert, from Alice.
LIMITS = Limits(Velocity(day_count=9, day_amount=999), Velocity(day_count=9, day_amount=999))


def takes_back(source: str, destination: str, amount: int, refund_of: bytes) -> Leg:
    terms = Terms(refund_of=refund_of, refundable=amount)
    kind = TransferType.REFUND
    name = f"refund of {source}"
    return leg(source, destination, amount, name=name, transfer_type=kind, terms=terms)


# From one participant to another, within one, with a fee at two, one that spends what comes, and
# refunds at a participant and at the shard that decides.
LEGS = (
    leg(ALICE, BOB, 60),
    fee_leg(ALICE, 1),
    leg(BOB, CAROL, 150),
    fee_leg(BOB, 2),
    leg(BERT, BOB, 7),
    leg(CAROL, ALAN, 240),
    takes_back(BERT, ALICE, 5, EARLIER[0]),
    takes_back(ALICE, CAROL, 4, EARLIER[1]),
)
POSTED = linked(*LEGS)
REFUSED = linked(*LEGS, leg(CAROL, NOBODY, 1, name="to nobody"))
SHORT = linked(*LEGS, leg(CAROL, ALAN, 15, name="too much"))
# How many legs count against the limits of each: neither fees nor refunds do.
COUNTED = {ALICE: (1, 0), ALAN: (0, 1), BOB: (1, 2), BERT: (1, 0), CAROL: (1, 1)}
AFTER = {ALICE: 40, ALAN: 340, BOB: 15, BERT: 88, CAROL: 14}


def filled(*, moves_slot: bool = False) -> ShardNet:
    """
    Make three shards with 100 in each wallet; or with one wallet's slot at another shard, of which
    the one that decides has not heard.
    """
    net = ShardNet(SHARD_COUNT)
    for shard_id, names in ((0, (ALICE, ALAN)), (1, (BOB, BERT)), (2, (CAROL,))):
        for name in names:
            net.ask(shard_id, [open_wallet(name), deposit(name, 100, key=f"fill {name}")])
            net.ask(shard_id, [SetWalletLimits(MERCHANT, name, None, LIMITS)])
    net.settle()
    if moves_slot:
        net.ask(1, [GiveSlot(slot_of(BOB), 2)])
        net.settle()
    return net


def steps(net: ShardNet) -> Iterator[bool]:
    """
    Do one small step after another, each time the same ones; tell whether anything happened.
    """
    pairs = [(shard.shard_id, peer) for shard in net.shards for peer in shard.peers]
    while True:
        for shard in net.shards:
            yield bool(shard.batch)
            shard.close_batch()
            yield shard.committing is not None
            net.finish_commit(shard.shard_id)
        for pair in pairs:
            wire = net.wires.get(pair)
            yield wire is not None and bool(wire.to_destination or wire.to_source)
            net.connect(*pair)
            net.arrive(*pair)


def moments(make: Callable[[], ShardNet], command: MoveLinked) -> list[int]:
    """
    List the steps before which something was about to happen, until the transfer is done.
    """
    net, found, quiet = make(), [], 0
    net.ask(0, [command])
    for number, is_busy in enumerate(steps(net)):
        quiet = 0 if is_busy else quiet + 1
        if is_busy:
            found.append(number)
        if quiet > 40:
            return found
    raise AssertionError("it never ends")


def run(net: ShardNet, command: MoveLinked, step_count: int) -> None:
    net.ask(0, [command])
    for _, _ in zip(range(step_count + 1), steps(net), strict=False):
        pass


def outcome(net: ShardNet, command: MoveLinked) -> Result:
    """
    Ask under the same key until there is an outcome: the first question may have been lost.
    """
    for _ in range(4):
        net.settle()
        net.ask(0, [command])
        net.settle()
        result = net.replies[-1][1][0]
        if not isinstance(result, Pending):
            return msgspec.structs.replace(result, repeated=False)  # type: ignore[type-var]
    raise AssertionError("it never ends")


def balances(net: ShardNet) -> dict[str, int]:
    found = [wallet for shard in net.shards for wallet in shard.all_wallets()]
    return {one.wallet_id: one.posted for one in found if one.wallet_id in NAMES}


def check_counts(net: ShardNet, *, is_posted: bool) -> None:
    """
    See that what was set aside and came to nothing does not count, and what moved does, once.
    """
    refunded = set()
    for shard in net.shards:
        for total in {**shard.tables.refunds, **shard.state.refunds}.values():
            refunded |= {(total.transfer_id, total.refunded)} if total.refunded else set()
    assert refunded == ({(EARLIER[0], 5), (EARLIER[1], 4)} if is_posted else set())
    for shard in net.shards:
        for wallet in shard.all_wallets():
            if wallet.wallet_id in NAMES and wallet.usage is not None:
                taken, brought = COUNTED[wallet.wallet_id] if is_posted else (0, 0)
                assert wallet.usage.debits.day_count == taken, wallet.wallet_id
                assert wallet.usage.credits.day_count == brought, wallet.wallet_id


def check_all_is_over(net: ShardNet) -> None:
    """
    See that nothing is set aside, on its way or undecided anywhere, and all books are at zero.
    """
    for shard in net.shards:
        state, wallets = shard.state, shard.all_wallets()
        assert not state.linked
        assert not state.prepared
        assert not any(channel.outbox for channel in state.channels.outgoing.values())
        assert not any((one.reserved, one.incoming) != (0, 0) for one in wallets)
        assert not any(books(wallets).values())
        assert broken_wallets(wallets) == []
        assert broken_channels(state) == []


def killed(net: ShardNet, shard_id: int, number: int, *, written: bool) -> None:
    """
    Kill a shard; each second time it begins again from tables that are some records behind.
    """
    with_tables = (number + shard_id) % 2 == 0
    if with_tables:
        net.shards[shard_id].project(number % 7, durably=True)
    net.crash(shard_id, written=written, with_tables=with_tables)


CASES = {
    "posted": (POSTED, False, None),
    "a leg is refused": (REFUSED, False, (len(LEGS), RejectReason.DESTINATION_UNKNOWN)),
    "too little in a wallet": (SHORT, False, (5, RejectReason.INSUFFICIENT_FUNDS)),
    "a slot has moved": (POSTED, True, None),
}


@pytest.mark.parametrize(("command", "moves_slot", "refused"), CASES.values(), ids=CASES)
def test_whoever_is_killed_it_ends_the_same_way(
    command: MoveLinked, moves_slot: bool, refused: tuple[int, RejectReason] | None
) -> None:
    """
    All legs are moved at every shard, or none is; the key says which, before and after.
    """

    def make() -> ShardNet:
        return filled(moves_slot=moves_slot)

    found = moments(make, command)
    assert len(found) > 15
    for number, step in enumerate(found):
        for shard_id, written in product(range(SHARD_COUNT), (True, False)):
            net = make()
            run(net, command, step)
            killed(net, shard_id, number, written=written)
            result = outcome(net, command)
            if refused is None:
                assert isinstance(result, LinkedMoved)
            else:
                assert isinstance(result, LinkedRefused)
                assert (result.leg, result.reason) == refused
            assert balances(net) == (AFTER if refused is None else START)
            check_counts(net, is_posted=refused is None)
            check_all_is_over(net)


def test_past_its_deadline_it_ends_one_way_too() -> None:
    """
    When time is up at any step, the shard that decides rejects what it has not posted, and no other
    shard decides by itself, whoever is killed then.
    """
    reasons = set()
    for number, step in enumerate(moments(filled, POSTED)):
        for shard_id in range(SHARD_COUNT):
            net = filled()
            run(net, POSTED, step)
            net.passed_us += DEADLINE_US
            for each in range(SHARD_COUNT):
                net.tick(each)
            killed(net, shard_id, number, written=number % 4 < 2)
            result = outcome(net, POSTED)
            assert isinstance(result, LinkedMoved | LinkedRefused)
            is_posted = isinstance(result, LinkedMoved)
            assert balances(net) == (AFTER if is_posted else START)
            check_counts(net, is_posted=is_posted)
            check_all_is_over(net)
            reasons.add(None if isinstance(result, LinkedMoved) else result.reason)
    assert reasons == {None, RejectReason.LINKED_DEADLINE_PASSED}
