"""
Goal: whatever the ledger journals, the auditor's second reading accepts it, and both ends of each
      channel, the slots and what linked transfers have set aside fit at every moment.
Method: hypothesis draws payments, holds and captures, refunds, limits, fees, linked transfers,
        moves of slots, time that passes, and what is carried how far between three shards; after
        all of it each journal is read by the auditor, and wallets, holds and totals are compared.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple

from processor.core.commands import SetWalletLimits, SetWalletStatus
from processor.core.limits import Limits, Usage, Velocity
from processor.core.slots import SLOT_COUNT, slot_of, slot_of_hold
from processor.core.wallet import WalletStatus
from processor.storage.audit import Audit, AuditedDatabase, JournalEnd
from processor.storage.channel_audit import channels_of, compare_ends
from processor.storage.recomputation import ShardBooks
from processor.storage.recomputed_wallets import BALANCE, HELD, INCOMING, RESERVED, USAGE, VERSION
from tests.support.bound_commands import (
    capture,
    extend,
    fee,
    fee_leg,
    leg,
    linked,
    place,
    refund,
    refund_leg,
    void,
)
from tests.support.commands import MERCHANT, deposit, open_wallet, withdrawal
from tests.support.net_builder import NetBuilder, name_on

SHARDS = range(3)
WALLETS = [name_on(shard_id, 3, number) for shard_id in SHARDS for number in range(2)]
NOBODY = name_on(1, 3, 7)

shards = st.sampled_from(SHARDS)
wallets = st.sampled_from(WALLETS)
amounts = st.integers(1, 40)
others = st.sampled_from([*WALLETS, NOBODY, ""])
legs = st.tuples(wallets, others, st.integers(1, 15))
LIMITS = [
    Limits(),
    Limits(Velocity(3, 90, None, 200), Velocity(None, None, 6, None), 150),
    Limits(Velocity(None, None, 5, None), Velocity(4, 50, None, None)),
]
steps = st.one_of(
    st.tuples(st.just("pay"), wallets, st.sampled_from([*WALLETS, NOBODY]), amounts),
    st.tuples(st.just("pay"), wallets, wallets, amounts),
    st.tuples(st.just("deposit"), wallets, amounts),
    st.tuples(st.just("withdraw"), wallets, amounts),
    st.tuples(st.just("status"), wallets, st.sampled_from([1, 1, 2, 3, 4])),
    st.tuples(st.just("limit"), wallets, st.integers(-50, 20)),
    st.tuples(st.just("cap"), wallets, st.sampled_from(LIMITS)),
    st.tuples(st.just("hold"), wallets, amounts, st.sampled_from([1, 3_000]), wallets),
    st.tuples(st.just("capture"), st.integers(0, 9), st.one_of(st.none(), amounts), others),
    st.tuples(st.just("capture"), st.integers(0, 9), st.one_of(st.none(), amounts), others),
    st.tuples(st.just("void"), st.integers(0, 9)),
    st.tuples(st.just("extend"), st.integers(0, 9), st.sampled_from([1, 4_000])),
    st.tuples(st.just("give_back"), st.integers(0, 9), st.one_of(st.none(), amounts)),
    st.tuples(st.just("charge"), wallets, amounts),
    st.tuples(st.just("link"), st.lists(legs, min_size=1, max_size=5)),
    st.tuples(st.just("link"), st.lists(legs, min_size=2, max_size=5)),
    st.tuples(st.just("flow"), st.integers(1, 4)),
    st.tuples(st.just("flow"), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 2, 11, 3_600, 86_400])),
    st.tuples(st.just("give"), wallets, shards),
    st.tuples(st.just("send"), shards, shards, st.integers(1, 3)),
    st.tuples(st.just("settle"), shards, shards, st.integers(1, 3)),
)


# What says itself at which shard it is.
FREE = {"send", "settle", "flow", "wait", "capture", "void", "extend", "give_back", "link"}


class Histories:
    """
    A net whose steps happen where they can, and are left out where they cannot.
    """

    def __init__(self) -> None:
        self.net = NetBuilder(3)
        self.number = 0
        self.answers: dict[tuple[int, int], list[int]] = {}
        self.holds: list[bytes] = []
        self.payments: list[tuple[str, str, int, str]] = []  # Source, destination, amount, key.
        for number, wallet_id in enumerate(WALLETS):
            self.net.ask(
                number // 2,
                open_wallet(wallet_id),
                deposit(wallet_id, 60, key=f"first {wallet_id}"),
            )

    def owner_of(self, wallet_id: str) -> int | None:
        for shard in self.net.shards:
            if shard.state.has_slot_of(wallet_id):
                return shard.shard_id
        return None  # On its way.

    def take(self, name: str, *arguments: object) -> None:
        self.number += 1
        if name in FREE:
            getattr(self, name)(*arguments)
            return
        wallet_id, *more = arguments
        owner = self.owner_of(str(wallet_id))
        if owner is not None:
            getattr(self, name)(owner, wallet_id, *more)

    def pay(self, owner: int, source: str, destination: str, amount: int) -> None:
        self.net.pay(owner, source, destination, amount, f"pay {self.number}")
        self.payments.append((source, destination, amount, f"pay {self.number}"))

    def deposit(self, owner: int, wallet_id: str, amount: int) -> None:
        self.net.ask(owner, deposit(wallet_id, amount, key=f"in {self.number}"))

    def withdraw(self, owner: int, wallet_id: str, amount: int) -> None:
        self.net.ask(owner, withdrawal(wallet_id, amount, key=f"out {self.number}"))

    def status(self, owner: int, wallet_id: str, status: int) -> None:
        self.net.ask(owner, SetWalletStatus(MERCHANT, wallet_id, WalletStatus(status)))

    def limit(self, owner: int, wallet_id: str, minimum: int) -> None:
        self.net.ask(owner, SetWalletLimits(MERCHANT, wallet_id, minimum))

    def cap(self, owner: int, wallet_id: str, limits: Limits) -> None:
        self.net.ask(owner, SetWalletLimits(MERCHANT, wallet_id, None, limits))

    def hold(
        self, owner: int, wallet_id: str, amount: int, lifetime_s: int, destination: str
    ) -> None:
        key = f"hold {self.number}"
        placed = place(wallet_id, amount, key=key, destination=destination, lifetime_s=lifetime_s)
        self.holds.append(placed.hold_id)
        self.net.ask(owner, placed)

    def capture(self, back: int, amount: int | None, destination: str) -> None:
        key = f"capture {self.number}"
        for hold_id, owner in self._hold_at(back):
            self.net.ask(owner, capture(hold_id, amount, destination, key=key))

    def void(self, back: int) -> None:
        for hold_id, owner in self._hold_at(back):
            self.net.ask(owner, void(hold_id, key=f"void {self.number}"))

    def extend(self, back: int, lifetime_s: int) -> None:
        for hold_id, owner in self._hold_at(back):
            self.net.ask(owner, extend(hold_id, lifetime_s, key=f"extend {self.number}"))

    def _hold_at(self, back: int) -> list[tuple[bytes, int]]:
        """
        Choose one of the last holds, if there is one and its slot is somewhere.
        """
        for hold_id in self.holds[::-1][back : back + 1]:
            for shard in self.net.shards:
                if shard.state.slots.owner(slot_of_hold(hold_id)) == shard.shard_id:
                    return [(hold_id, shard.shard_id)]
        return []

    def give_back(self, back: int, amount: int | None) -> None:
        for source, destination, paid, key in self.payments[::-1][back : back + 1]:
            owner = self.owner_of(destination)
            if owner is not None:
                options = {"refundable": paid, "key": f"refund {self.number}"}
                self.net.ask(owner, refund(key, destination, source, amount, **options))

    def charge(self, owner: int, wallet_id: str, amount: int) -> None:
        self.net.ask(owner, fee(wallet_id, amount, key=f"fee {self.number}"))

    def link(self, drawn: list[tuple[str, str, int]]) -> None:
        named = []
        for number, (source, destination, amount) in enumerate(drawn):
            name = f"{self.number} {number}"
            if destination:
                named.append(leg(source, destination, amount, name=name))
            else:
                named.append(fee_leg(source, amount, name=name))
        for source, destination, paid, key in self.payments[-1:]:
            if destination != NOBODY and self.number % 3 == 0:
                named.append(refund_leg(key, destination, source, 1, refundable=paid))
        owner = self.owner_of(named[0].source)
        if owner is not None:
            self.net.ask(owner, linked(*named, key=f"linked {self.number}"))

    def wait(self, seconds: float) -> None:
        self.net.wait(seconds)

    def give(self, owner: int, wallet_id: str, peer: int) -> None:
        self.net.give(owner, slot_of(wallet_id), peer)
        self.net.shards[owner].state.closing.clear()

    def send(self, source: int, destination: int, count: int) -> None:
        head = self.net.shards[source].state.channels.to(destination).head
        if head > self.net.shards[destination].state.channels.of(source).cursor:
            answers = self.net.send(source, destination, count)
            self.answers.setdefault((source, destination), []).extend(answers)

    def settle(self, source: int, destination: int, count: int) -> None:
        waiting = self.answers.get((source, destination), [])
        if waiting:
            self.net.settle(source, destination, waiting[:count])
            del waiting[:count]

    def flow(self, rounds: int) -> None:
        """
        Bring everything to where it goes, and the answers back, as often.
        """
        pairs = [(one, other) for one in SHARDS for other in SHARDS if one != other]
        for one, other in pairs * rounds:
            self.send(one, other, 1_000)
            self.settle(one, other, 1_000)


def flat(usage: Usage | None) -> list[int] | None:
    if usage is None:
        return None
    return [*astuple(usage.debits), *astuple(usage.credits), usage.since_us]


def facts_of(books: ShardBooks) -> dict[str, tuple[Any, ...]]:
    return {
        name: tuple(wallet[place] for place in (BALANCE, VERSION, RESERVED, HELD, INCOMING, USAGE))
        for name, wallet in books.wallets.items()
    }


@settings(max_examples=60)
@given(st.lists(steps, min_size=20, max_size=120))
def test_the_auditor_accepts_what_the_ledger_does(drawn: list[tuple]) -> None:
    """
    Every journal is sound, its wallets are those of the ledger, and the ends fit.
    """
    histories = Histories()
    for step in drawn:
        histories.take(*step)
    audit = Audit([], None)
    database = AuditedDatabase(0, "", None)  # type: ignore[arg-type]
    for shard in histories.net.shards:
        books = ShardBooks(shard.shard_id)
        for record in shard.records:
            header = (record.sequence, record.epoch, record.at_us, record.count, record.format)
            books.fold((*header, record.chain, record.payload))
        books.check_end()
        assert facts_of(books) == {
            name: (
                *(wallet.posted, wallet.version, wallet.reserved, wallet.held, wallet.incoming),
                flat(wallet.usage),
            )
            for name, wallet in shard.state.wallets.items()
        }
        assert books.holds.open == {
            hold_id: [*astuple(hold)[1:-1], books.holds.open[hold_id][-1]]
            for hold_id, hold in shard.state.holds.items()
            if hold.status == 1 or hold.pending
        }
        assert {name: books.refunds.rows[name][1:] for name in books.refunds.here} == {
            total.transfer_id: (total.refunded, total.version)
            for total in shard.state.refunds.values()
            if total.transfer_id in books.refunds.here
        }
        audit.add(books, 0)
        audit.journals[shard.shard_id] = JournalEnd(database, books)
    slots = [slot for journal in audit.journals.values() for slot in journal.ends.own_slots()]
    for channel in channels_of(audit):
        compare_ends(audit, channel)
        slots += channel.in_flight_slots()
    assert audit.differences == {}
    assert sorted(slots) == list(range(SLOT_COUNT))
