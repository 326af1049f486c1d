"""
Goal: between shards money arrives exactly once or not at all, whatever is lost, late, doubled or
      crashed, and everything on its way is settled when the faults stop.
Method: hypothesis draws commands and faults over three shards in one process (`shard_net`). At
        every step the books of each shard are at zero and the ends of each channel fit. At the
        end each key is asked again, and balances are counted anew from the outcomes alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import permutations
from random import Random

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from processor.core.commands import Command, MoveMoney, SetWalletStatus, TransferType
from processor.core.invariants import books, broken_wallets
from processor.core.reject_reason import RejectReason
from processor.core.slots import SlotMap
from processor.core.wallet import WalletStatus, is_system_wallet
from processor.flow.frames import Moved, Pending, Posted, Rejected
from tests.support.commands import MERCHANT, deposit, open_wallet, read_wallet, transfer
from tests.support.shard_net import ShardNet, names_on

SHARD_COUNT = 3
MAP = SlotMap.even(SHARD_COUNT)
STEPS = 3_000
MIXTURE = (40, 5, 1, 8, 25, 12, 90, 4, 8, 25, 3)  # Of the steps in `_step`.
WALLETS = [name for shard_id in range(SHARD_COUNT) for name in names_on(shard_id, SHARD_COUNT)[:3]]
NOBODY = [names_on(shard_id, SHARD_COUNT)[3] for shard_id in range(SHARD_COUNT)]

shards = st.integers(0, SHARD_COUNT - 1)
pairs = st.permutations(range(SHARD_COUNT)).map(lambda order: (order[0], order[1]))
wallet_ids = st.sampled_from(WALLETS)
payees = st.sampled_from([*WALLETS * 2, *NOBODY])
statuses = st.sampled_from([*[WalletStatus.OPEN] * 3, *WalletStatus])


class Channels(RuleBasedStateMachine):
    """
    Three shards, their clients, and everything that can go wrong between them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = ShardNet(SHARD_COUNT)
        self.moves: dict[bytes, MoveMoney] = {}
        self.told: dict[bytes, Posted | Rejected] = {}
        for wallet_id in WALLETS:
            self.ask(open_wallet(wallet_id))
            self.ask(deposit(wallet_id, 50, key=f"first {wallet_id}"))
        for shard_id in range(SHARD_COUNT):
            self.net.commit(shard_id)

    def ask(self, command: Command) -> None:
        if isinstance(command, MoveMoney):
            self.moves.setdefault(command.key, command)
            wallet_id = command.source or command.destination
        else:
            wallet_id = command.wallet_id
        self.net.ask(MAP.shard_of(wallet_id), [command])

    # --- What clients do ------------------------------------------------------------------

    @rule(source=wallet_ids, destination=payees, amount=st.integers(1, 40))
    def pay(self, source: str, destination: str, amount: int) -> None:
        self.ask(transfer(source, destination, amount, key=f"pay {len(self.moves)}"))

    @rule(place=st.integers(0, 1_000))
    def ask_again(self, place: int) -> None:
        keys = list(self.moves)
        self.ask(self.moves[keys[place % len(keys)]])

    @rule(wallet_id=wallet_ids, status=statuses)
    def set_status(self, wallet_id: str, status: WalletStatus) -> None:
        self.ask(SetWalletStatus(MERCHANT, wallet_id, status))

    @rule(wallet_id=wallet_ids)
    def ask_the_wrong_shard(self, wallet_id: str) -> None:
        owner = MAP.shard_of(wallet_id)
        wrong = (owner + 1) % SHARD_COUNT
        self.net.ask(wrong, [transfer(wallet_id, WALLETS[0], 1), read_wallet(wallet_id)])
        self.net.commit(wrong)
        assert self.net.replies[-1][1] == [Moved(owner)] * 2

    # --- What the machines do -------------------------------------------------------------

    @rule(shard_id=shards)
    def commit(self, shard_id: int) -> None:
        self.net.commit(shard_id)

    @rule(shard_id=shards)
    def begin_commit(self, shard_id: int) -> None:
        self.net.shards[shard_id].close_batch()

    @rule(shard_id=shards)
    def finish_commit(self, shard_id: int) -> None:
        self.net.finish_commit(shard_id)

    @rule(pair=pairs)
    def connect(self, pair: tuple[int, int]) -> None:
        self.net.connect(*pair)

    @rule(pair=pairs, count=st.integers(1, 4))
    def arrive(self, pair: tuple[int, int], count: int) -> None:
        for _ in range(count):
            self.net.arrive(*pair)

    @rule(pair=pairs)
    def cut(self, pair: tuple[int, int]) -> None:
        self.net.cut(*pair)

    @rule(shard_id=shards, written=st.booleans())
    def crash(self, shard_id: int, written: bool) -> None:
        self.net.crash(shard_id, written=written)

    @rule(place=st.integers(0, 1_000))
    def arrive_again(self, place: int) -> None:
        """
        Something that was sent before comes once more.
        """
        if self.net.sent:
            source, destination, entries = self.net.sent[place % len(self.net.sent)]
            if (source, destination) in self.net.wires:
                cursor = self.net.shards[destination].state.channels.of(source).cursor
                if entries.entries[0].number <= cursor + 1:
                    self.net.receive(source, destination, entries)

    # --- What holds all the time ----------------------------------------------------------

    @invariant()
    def books_are_at_zero(self) -> None:
        for shard in self.net.shards:
            wallets = shard.state.wallets.values()
            assert not any(books(wallets).values())
            assert broken_wallets(wallets) == []

    @invariant()
    def outbox_is_what_is_reserved(self) -> None:
        for shard in self.net.shards:
            reserved: Counter[str] = Counter()
            for channel in shard.state.channels.outgoing.values():
                assert list(channel.outbox) == list(range(channel.settled + 1, channel.head + 1))
                by_currency: Counter[str] = Counter()
                for pending in channel.outbox.values():
                    reserved[pending.source] += pending.amount
                    by_currency[pending.currency] += pending.amount
                assert by_currency == Counter(channel.reserved)
            for wallet_id, wallet in shard.state.wallets.items():
                assert wallet.reserved == reserved[wallet_id]

    @invariant()
    def ends_of_each_channel_fit(self) -> None:
        for source in self.net.shards:
            for peer in source.peers:
                ahead = source.state.channels.to(peer)
                behind = self.net.shards[peer].state.channels.of(source.shard_id)
                assert ahead.settled <= behind.cursor <= ahead.head
                assert ahead.chain_at(behind.cursor) == behind.chain

    @invariant()
    def no_outcome_changes(self) -> None:
        for asked, results in self.net.replies:
            for command, result in zip(asked, results, strict=True):
                if not isinstance(command, MoveMoney) or not isinstance(result, Posted | Rejected):
                    continue
                plain = msgspec.structs.replace(result, repeated=False)
                assert self.told.setdefault(command.key, plain) == plain
        self.net.replies.clear()

    # --- What holds when the faults stop --------------------------------------------------

    def teardown(self) -> None:
        self.net.settle()
        self.no_outcome_changes()
        for shard in self.net.shards:
            assert not any(channel.outbox for channel in shard.state.channels.outgoing.values())
        for _ in range(2):  # The first time some are new: their request was lost in a crash.
            for command in self.moves.values():
                self.ask(command)
            self.net.settle()
            self.no_outcome_changes()
        assert self.told.keys() == self.moves.keys()
        self.check_balances()
        self.check_the_journals()

    def check_balances(self) -> None:
        """
        Count the money again from nothing but what the clients were told.
        """
        expected: dict[str, int] = defaultdict(int)
        for key, outcome in self.told.items():
            command = self.moves[key]
            if isinstance(outcome, Posted):
                expected[command.source] -= command.amount
                expected[command.destination] += command.amount
            elif command.destination in NOBODY:
                assert outcome.reason in SOURCE_REASONS | {RejectReason.DESTINATION_UNKNOWN}
        for shard in self.net.shards:
            for wallet_id, wallet in shard.state.wallets.items():
                if not is_system_wallet(wallet_id):
                    assert wallet.posted == expected[wallet_id], wallet_id

    def check_the_journals(self) -> None:
        """
        A shard that begins again from its journal is the shard it was.
        """
        for shard in self.net.shards:
            before = {name: wallet.facts() for name, wallet in shard.state.wallets.items()}
            shard.recover()
            after = {name: wallet.facts() for name, wallet in shard.state.wallets.items()}
            assert after == before


SOURCE_REASONS = {
    RejectReason.SOURCE_CLOSED,
    RejectReason.SOURCE_LOCKED,
    RejectReason.SOURCE_FROZEN,
    RejectReason.INSUFFICIENT_FUNDS,
}


def outcome_name(command: MoveMoney, outcome: Posted | Rejected) -> str:
    if command.transfer_type != TransferType.TRANSFER:
        return "deposit"
    is_local = MAP.shard_of(command.source) == MAP.shard_of(command.destination)
    code = "posted" if isinstance(outcome, Posted) else RejectReason(outcome.reason).code
    return f"{'local' if is_local else 'across'}: {code}"


TestChannels = Channels.TestCase
TestChannels.settings = settings(max_examples=200, stateful_step_count=80, deadline=None)


@pytest.mark.parametrize("seed", range(24))
def test_long_runs(seed: int) -> None:
    """
    The same steps and faults for much longer than hypothesis goes. Each seed has its own mixture:
    what seldom happens together in the average one is common in some.
    """
    chance = Random(seed)
    weights = [weight * chance.choice((0.3, 1, 4)) for weight in MIXTURE]
    machine = Channels()
    for _ in range(STEPS):
        _step(machine, chance, weights)
        machine.books_are_at_zero()
        machine.outbox_is_what_is_reserved()
        machine.ends_of_each_channel_fit()
        machine.no_outcome_changes()
    machine.teardown()
    names = Counter(outcome_name(machine.moves[key], said) for key, said in machine.told.items())
    assert names["across: posted"] > 10
    assert names["across: destination_unknown"] > 0


def _step(machine: Channels, chance: Random, weights: list[float]) -> None:
    some = chance.randrange(1_000)
    shard_id = chance.randrange(SHARD_COUNT)
    source, destination = chance.sample(range(SHARD_COUNT), 2)
    match chance.choices(range(len(weights)), weights)[0]:
        case 0:
            machine.pay(chance.choice(WALLETS), chance.choice(WALLETS + NOBODY), some % 9 + 1)
        case 1:
            machine.ask_again(some)
        case 2:
            # Open again soon, or little would be paid.
            status = chance.choice([*[WalletStatus.OPEN] * 6, *list(WalletStatus)[:3]])
            machine.set_status(chance.choice(WALLETS), status)
        case 3:
            machine.commit(shard_id)
        case 4:
            machine.begin_commit(shard_id)
        case 5:
            for pair in permutations(range(SHARD_COUNT), 2):
                machine.connect(pair)
        case 6:
            machine.arrive((source, destination), some % 4 + 1)
        case 7:
            machine.cut((source, destination))
            machine.connect((source, destination))
        case 8:
            machine.arrive_again(some)
        case 9:
            machine.finish_commit(shard_id)
        case _:
            machine.crash(shard_id, written=some % 2 == 0)


def test_pending_is_told_as_pending() -> None:
    """
    Before the peer has answered, a transfer is pending, its money is not available and its key
    says so again; with the answer it is posted.
    """
    net = ShardNet(SHARD_COUNT)
    payer, payee = names_on(0, SHARD_COUNT)[0], names_on(1, SHARD_COUNT)[0]
    net.ask(0, [open_wallet(payer), deposit(payer, 50, key="first")])
    net.ask(1, [open_wallet(payee)])
    net.ask(0, [transfer(payer, payee, 30, key="pay")])
    net.ask(0, [transfer(payer, payee, 30, key="too much")])
    net.ask(0, [transfer(payer, payee, 30, key="pay")])
    net.commit(0)
    assert [type(results[-1]) for _, results in net.replies[1:]] == [Pending, Rejected, Pending]
    wallet = net.shards[0].state.wallets[payer]
    assert (wallet.posted, wallet.reserved, wallet.available) == (50, 30, 20)
    net.settle()
    assert (wallet.posted, wallet.reserved, wallet.available) == (20, 0, 20)
    assert net.shards[1].state.wallets[payee].posted == 30
