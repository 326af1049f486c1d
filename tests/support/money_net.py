"""
Three shards that have done all that money needs: holds, refunds, limits, fees and linked transfers,
at home and across, with slots that move meanwhile; at the end something of each kind is open.
"""

from __future__ import annotations

from collections.abc import Callable

from processor.core.commands import GiveSlot, SetWalletLimits, SetWalletStatus
from processor.core.limits import Limits, Velocity
from processor.core.slots import SlotMap, slot_of
from processor.core.wallet import WalletStatus
from processor.flow.batch import Batch
from tests.support.bound_commands import (
    capture,
    extend,
    fee,
    fee_leg,
    hold_id_of,
    leg,
    linked,
    on_terms,
    place,
    refund,
    refund_leg,
    up_to,
    void,
)
from tests.support.commands import MERCHANT, deposit, open_wallet, transfer
from tests.support.sealed_net import SealedNet, SealedShard, names_in

SHARD_COUNT = 3
LIMITS = Limits(Velocity(None, 5_000, 90, None), Velocity(50, None, None, 9_000), 20_000)
OTHER_LIMITS = Limits(Velocity(hour_amount=6_000))


class MoneyShard(SealedShard):
    """
    A shard of which time can pass.
    """

    later_us = 0

    def record(self, fill: Callable[[Batch], None]) -> None:
        def fill_later(batch: Batch) -> None:
            batch.at_us += self.later_us
            fill(batch)

        super().record(fill_later)

    def wait(self, seconds: int) -> None:
        """
        Let time pass, and end what is over by then.
        """
        self.later_us += seconds * 1_000_000
        self.record(lambda batch: batch.tick(self.state))


class MoneyNet(SealedNet):
    def __init__(self, *, epoch: int = 1) -> None:
        super().__init__(0)
        shards = [MoneyShard(shard_id, SHARD_COUNT, epoch=epoch) for shard_id in range(SHARD_COUNT)]
        self.zero, self.one, self.two = shards
        self.shards = [*shards]

    def go(self, source: int, destination: int) -> None:
        """
        Bring what is on its way to its destination, and the answers back: a record at each.
        """
        entries = self.send(source, destination)
        assert entries is not None, "nothing to send"
        self.settle(source, destination, self.decide(source, destination, entries))


def names_of(shard_id: int, count: int) -> list[str]:
    slots = SlotMap.even(SHARD_COUNT).slots_of(shard_id)
    found = names_in(range(slots[0], slots[-1] + 1), 50 * count)
    # Each in a slot of its own, as far as they are many.
    return list({slot_of(name): name for name in reversed(found)}.values())[-count:]


HERE, ALSO_HERE, MOVES, FROZEN = names_of(0, 4)
THERE, LEAVES, NOBODY = names_of(1, 3)
FAR = names_of(2, 1)[0]


def moneyed_net(*, epoch: int = 1) -> MoneyNet:
    net = MoneyNet(epoch=epoch)
    _open(net)
    _hold(net)
    _refund(net)
    _link_at_home(net)
    _link_across(net)
    _link_in_vain(net)
    _move_slots(net)
    _limit_late(net)
    _leave_open(net)
    return net


def _open(net: MoneyNet) -> None:
    zero, one, two = net.zero, net.one, net.two
    for name in (HERE, ALSO_HERE, MOVES, FROZEN):
        zero.ask(open_wallet(name, -5), deposit(name, 10_000, key=f"to {name}"))
    one.ask(open_wallet(THERE), deposit(THERE, 1_000, key="to there"))
    one.ask(open_wallet(LEAVES), deposit(LEAVES, 1_000, key="to leaves"))
    two.ask(open_wallet(FAR), deposit(FAR, 1_000, key="to far"))
    zero.ask(
        SetWalletLimits(MERCHANT, HERE, -7, LIMITS), SetWalletLimits(MERCHANT, MOVES, None, LIMITS)
    )
    # Counted, lifted, and counted anew from zero.
    zero.ask(SetWalletLimits(MERCHANT, ALSO_HERE, None, LIMITS))
    zero.ask(transfer(ALSO_HERE, HERE, 1, key="counted"))
    zero.ask(SetWalletLimits(MERCHANT, ALSO_HERE, None, Limits()))
    zero.ask(SetWalletLimits(MERCHANT, ALSO_HERE, None, LIMITS))
    zero.ask(transfer(ALSO_HERE, HERE, 2, key="counted anew"), fee(HERE, 3, key="fee"))
    zero.ask(
        on_terms(transfer(HERE, ALSO_HERE, 1, key="wrong version"), if_version=77),
        on_terms(transfer(HERE, ALSO_HERE, 1, key="enough"), if_available_gte=1),
        up_to(transfer(FROZEN, ALSO_HERE, 100, key="up to")),
        transfer(FROZEN, ALSO_HERE, 1_000_000, key="short"),
        SetWalletStatus(MERCHANT, FROZEN, WalletStatus.FROZEN),
    )


def _hold(net: MoneyNet) -> None:
    zero = net.zero
    one, two, three, four = (hold_id_of(HERE, f"hold {number}") for number in range(1, 5))
    zero.ask(place(HERE, 100, key="hold 1", destination=ALSO_HERE, lifetime_s=3_000))
    zero.ask(capture(one, 30, key="capture 1"), extend(one, 4_000, key="extend 1"))
    zero.ask(capture(one, 20, THERE, key="capture across", is_final=False))
    net.go(0, 1)
    zero.ask(capture(one, None, THERE, key="last capture"))
    zero.ask(void(one, key="void while it ends"))
    net.go(0, 1)
    zero.ask(capture(one, 1, key="capture too late"))
    # Voided while a capture is on its way, which then is refused.
    zero.ask(place(HERE, 50, key="hold 2"), capture(two, 10, NOBODY, key="to nobody"))
    zero.ask(void(two, key="void 2"))
    net.go(0, 1)
    zero.ask(place(HERE, 5, key="hold 3", lifetime_s=1), place(HERE, 5, key="hold 4"))
    zero.wait(1)
    zero.ask(capture(three, 1, ALSO_HERE, key="capture expired"), void(four, key="void 4"))
    zero.ask(
        place(HERE, 1_000_000, key="too much"),
        void(hold_id_of(HERE, "never placed"), key="void nothing"),
        extend(hold_id_of(HERE, "never placed"), 9, key="extend nothing"),
        capture(hold_id_of(HERE, "never placed"), 9, HERE, key="capture nothing"),
    )


def _refund(net: MoneyNet) -> None:
    zero, one = net.zero, net.one
    zero.ask(transfer(HERE, MOVES, 40, key="paid"), transfer(HERE, THERE, 60, key="paid across"))
    net.go(0, 1)
    zero.ask(refund("paid", MOVES, HERE, 10, refundable=40, key="refund 1"))
    zero.ask(refund("paid", MOVES, HERE, 31, refundable=40, key="refund too much"))
    one.ask(refund("paid across", THERE, HERE, 15, refundable=60, key="refund across"))
    net.go(1, 0)
    one.ask(refund("paid across", THERE, names_of(0, 5)[0], 5, refundable=60, key="refused back"))
    net.go(1, 0)
    one.ask(refund("paid across", THERE, HERE, None, refundable=60, key="refund the rest"))
    net.go(1, 0)


def _link_at_home(net: MoneyNet) -> None:
    net.zero.ask(
        linked(
            leg(HERE, ALSO_HERE, 5, name="home 1"),
            leg(ALSO_HERE, MOVES, 4, name="home 2"),
            fee_leg(MOVES, 1, name="home 3"),
            refund_leg("paid", MOVES, HERE, 2, refundable=40),
            key="at home",
        )
    )
    net.zero.ask(linked(leg(HERE, FROZEN, 10_000_000), leg(HERE, MOVES, 1), key="too much home"))


def _link_across(net: MoneyNet) -> None:
    zero, one = net.zero, net.one
    legs = [
        leg(HERE, THERE, 9, name="across 1"),
        leg(THERE, FAR, 8, name="across 2"),
        leg(FAR, HERE, 7, name="across 3"),
        leg(THERE, LEAVES, 2, name="across 4"),
        fee_leg(FAR, 1, name="across 5"),
    ]
    zero.ask(linked(*legs, key="across"))
    for _ in range(2):  # The question, then the verdict.
        net.go(0, 1)
        net.go(0, 2)
    # Here is one of those that are asked.
    one.ask(
        linked(
            leg(THERE, HERE, 3, name="asked 1"),
            leg(HERE, FAR, 2, name="asked 2"),
            leg(HERE, ALSO_HERE, 1, name="asked 3"),
            key="asked",
        )
    )
    for _ in range(2):
        net.go(1, 0)
        net.go(1, 2)
    assert not any(shard.state.linked or shard.state.prepared for shard in net.shards)


def _link_in_vain(net: MoneyNet) -> None:
    zero, one = net.zero, net.one
    # Refused by the second, when the first has set its part aside.
    one.ask(
        linked(
            leg(THERE, HERE, 3, name="vain 1"),
            leg(FAR, LEAVES, 999_999, name="vain 2"),
            refund_leg("to there", THERE, HERE, 1, refundable=1_000),
            key="vain",
        )
    )
    net.go(1, 0)
    net.go(1, 2)
    net.go(1, 0)
    # Not decided in time; the question arrives with the verdict behind it.
    zero.ask(
        linked(
            leg(HERE, THERE, 3, name="late 1"),
            leg(MOVES, FAR, 3, name="late 2"),
            refund_leg("paid", MOVES, HERE, 1, refundable=40),
            key="late",
        )
    )
    net.go(0, 1)
    zero.wait(11)
    net.go(0, 2)
    net.go(0, 1)
    # A slot is elsewhere: called back, and begun anew at once.
    one.ask(GiveSlot(slot_of(LEAVES), 2))
    net.go(1, 2)
    zero.ask(
        linked(
            leg(HERE, LEAVES, 3, name="moved 1"),
            leg(HERE, THERE, 3, name="moved 2"),
            key="moved",
        )
    )
    net.go(0, 1)
    # A capture follows, too, and is refused there.
    one.ask(GiveSlot(slot_of(NOBODY), 2))
    net.go(1, 2)
    zero.ask(place(HERE, 6, key="hold 0", lifetime_s=9_000))
    zero.ask(capture(hold_id_of(HERE, "hold 0"), 2, NOBODY, key="capture that follows"))
    net.quiet()


def _move_slots(net: MoneyNet) -> None:
    """
    A slot goes with a wallet that has limits, open and ended holds and refunds, and comes back.
    """
    zero, one = net.zero, net.one
    held = [hold_id_of(MOVES, f"hold {number}") for number in range(5, 9)]
    zero.ask(*(place(MOVES, 10, key=f"hold {number}", lifetime_s=900) for number in range(5, 8)))
    zero.ask(void(held[0], key="void 5"))
    zero.state.tables_reach(len(zero.records))
    zero.ask(void(held[1], key="void 6"), refund("paid", MOVES, HERE, 1, refundable=40, key="r 2"))
    zero.ask(GiveSlot(slot_of(MOVES), 1))
    net.go(0, 1)
    net.two.ask(transfer(FAR, MOVES, 1, key="follows"))
    one.ask(capture(held[2], 4, THERE, key="capture 7"), place(MOVES, 7, key="hold 8"))
    one.ask(refund("paid", MOVES, THERE, 1, refundable=40, key="r 3"))
    net.quiet()
    one.ask(GiveSlot(slot_of(MOVES), 0))
    net.go(1, 0)
    zero.ask(void(held[3], key="void 8"), refund("paid", MOVES, HERE, 1, refundable=40, key="r 4"))


def _limit_late(net: MoneyNet) -> None:
    """
    What was set aside before there were limits comes to nothing after, in the same window.
    """
    one = net.one
    one.ask(place(THERE, 20, key="hold 10"), transfer(THERE, names_of(0, 5)[0], 9, key="late vain"))
    first, then = (SetWalletLimits(MERCHANT, THERE, None, one) for one in (LIMITS, OTHER_LIMITS))
    one.ask(first, transfer(THERE, LEAVES, 30, key="counted late"))
    one.ask(then, void(hold_id_of(THERE, "hold 10"), key="void 10"))
    net.quiet()


def _leave_open(net: MoneyNet) -> None:
    zero, one, two = net.zero, net.one, net.two
    # Posted, and one has not heard it: the other has.
    zero.ask(
        linked(leg(HERE, THERE, 2, name="open 1"), leg(THERE, FAR, 1, name="open 2"), key="posted")
    )
    net.go(0, 1)
    net.go(0, 2)
    net.go(0, 1)
    # One has voted, the other was not asked.
    zero.ask(
        linked(
            leg(HERE, THERE, 2, name="undecided 1"),
            leg(MOVES, FAR, 1, name="undecided 2"),
            refund_leg("paid", MOVES, HERE, 1, refundable=40),
            key="undecided",
        )
    )
    net.go(0, 1)
    # Prepared here for another, which has not heard of it.
    two.ask(linked(leg(FAR, HERE, 2, name="here 1"), leg(HERE, FAR, 1, name="here 2"), key="p"))
    entries = net.send(2, 0)
    assert entries is not None
    net.decide(2, 0, entries)
    zero.ask(place(HERE, 100, key="hold 9", lifetime_s=9_000))
    held = hold_id_of(HERE, "hold 9")
    zero.ask(capture(held, 40, FAR, key="capture on its way", is_final=True))
    # A refund on its way, with a plain transfer before it.
    zero.ask(
        transfer(HERE, FAR, 1, key="on its way"),
        refund("paid", MOVES, FAR, 1, refundable=40, key="refund on its way"),
    )
    one.ask(transfer(THERE, HERE, 1, key="last"))
    # Lifted and set again in one record: what was counted before is not any more.
    again = [SetWalletLimits(MERCHANT, MOVES, None, limits) for limits in (Limits(), LIMITS)]
    zero.ask(*again)
