"""
Goal: whatever the ledger journals between shards, the auditor's second reading accepts it, and both
      ends of each channel and the slots fit at every moment.
Method: hypothesis draws payments, moves of slots, and what is carried how far between three shards;
        after all of it each journal is read by the auditor, and the wallets are compared.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from processor.core.commands import SetWalletLimits, SetWalletStatus
from processor.core.slots import SLOT_COUNT, slot_of
from processor.core.wallet import WalletStatus
from processor.storage.audit import Audit, AuditedDatabase, JournalEnd
from processor.storage.channel_audit import channels_of, compare_ends
from processor.storage.recomputation import ShardBooks
from processor.storage.recomputed_wallets import BALANCE, RESERVED, VERSION
from tests.support.commands import MERCHANT, deposit, open_wallet, withdrawal
from tests.support.net_builder import NetBuilder, name_on

SHARDS = range(3)
WALLETS = [name_on(shard_id, 3, number) for shard_id in SHARDS for number in range(2)]
NOBODY = name_on(1, 3, 7)

shards = st.sampled_from(SHARDS)
wallets = st.sampled_from(WALLETS)
amounts = st.integers(1, 40)
steps = st.one_of(
    st.tuples(st.just("pay"), wallets, st.sampled_from([*WALLETS, NOBODY]), amounts),
    st.tuples(st.just("pay"), wallets, wallets, amounts),
    st.tuples(st.just("deposit"), wallets, amounts),
    st.tuples(st.just("withdraw"), wallets, amounts),
    st.tuples(st.just("status"), wallets, st.sampled_from([1, 1, 2, 3, 4])),
    st.tuples(st.just("limit"), wallets, st.integers(-50, 20)),
    st.tuples(st.just("give"), wallets, shards),
    st.tuples(st.just("send"), shards, shards, st.integers(1, 3)),
    st.tuples(st.just("settle"), shards, shards, st.integers(1, 3)),
)


class Histories:
    """
    A net whose steps happen where they can, and are left out where they cannot.
    """

    def __init__(self) -> None:
        self.net = NetBuilder(3)
        self.number = 0
        self.answers: dict[tuple[int, int], list[int]] = {}
        for place, wallet_id in enumerate(WALLETS):
            self.net.ask(
                place // 2, open_wallet(wallet_id), deposit(wallet_id, 60, key=f"first {wallet_id}")
            )

    def owner_of(self, wallet_id: str) -> int | None:
        for shard in self.net.shards:
            if shard.state.has_slot_of(wallet_id):
                return shard.shard_id
        return None  # On its way.

    def take(self, name: str, *arguments: object) -> None:
        self.number += 1
        if name in {"send", "settle"}:
            getattr(self, name)(*arguments)
            return
        wallet_id, *more = arguments
        owner = self.owner_of(str(wallet_id))
        if owner is not None:
            getattr(self, name)(owner, wallet_id, *more)

    def pay(self, owner: int, source: str, destination: str, amount: int) -> None:
        self.net.pay(owner, source, destination, amount, f"pay {self.number}")

    def deposit(self, owner: int, wallet_id: str, amount: int) -> None:
        self.net.ask(owner, deposit(wallet_id, amount, key=f"in {self.number}"))

    def withdraw(self, owner: int, wallet_id: str, amount: int) -> None:
        self.net.ask(owner, withdrawal(wallet_id, amount, key=f"out {self.number}"))

    def status(self, owner: int, wallet_id: str, status: int) -> None:
        self.net.ask(owner, SetWalletStatus(MERCHANT, wallet_id, WalletStatus(status)))

    def limit(self, owner: int, wallet_id: str, minimum: int) -> None:
        self.net.ask(owner, SetWalletLimits(MERCHANT, wallet_id, minimum))

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
        assert {
            name: (wallet[BALANCE], wallet[RESERVED], wallet[VERSION])
            for name, wallet in books.wallets.items()
        } == {
            name: (wallet.posted, wallet.reserved, wallet.version)
            for name, wallet in shard.state.wallets.items()
        }
        audit.add(books, 0)
        audit.journals[shard.shard_id] = JournalEnd(database, books)
    slots = [slot for journal in audit.journals.values() for slot in journal.ends.own_slots()]
    for channel in channels_of(audit):
        compare_ends(audit, channel)
        slots += channel.in_flight_slots()
    assert audit.differences == {}
    assert sorted(slots) == list(range(SLOT_COUNT))
