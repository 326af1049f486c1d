"""
Goal: between shards money arrives exactly once or not at all, along all legs or along none,
      whatever is lost, late, doubled or crashed, and wherever slots go meanwhile; everything on its
      way is settled when the faults stop, and what is counted beside balances agrees with them.
Method: hypothesis draws commands and faults over three shards in one process (`shard_net`), while
        time passes, slots move, tables lag, memory is dropped and shards begin again with and
        without tables. At every step the books of each shard are at zero, what is set aside is what
        is on its way, held or undecided, and the ends of each channel fit. At the end each key is
        asked again, and balances, holds, refunds and usage are counted anew from the outcomes alone
        (`model_outcomes`).
"""

from __future__ import annotations

from collections import Counter
from itertools import count, permutations
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from processor.core.commands import (
    Command,
    GiveSlot,
    MoveMoney,
    ReadHold,
    SetWalletLimits,
    SetWalletStatus,
    TransferType,
    key_of,
    shard_asked,
    slot_asked,
)
from processor.core.decide_slots import TRANSFERS_PENDING
from processor.core.decisions import (
    DECISION_FORMAT,
    LinkedBegun,
    LinkedPosted,
    VerdictTaken,
    decode_decisions,
)
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.invariants import books, broken_channels, broken_wallets, strangers
from processor.core.limits import Limits
from processor.core.reject_reason import RejectReason
from processor.core.slots import NOWHERE, SlotMap, slot_of, slot_of_hold
from processor.core.wallet import WalletStatus, is_system_wallet
from processor.flow.frames import (
    ChannelFull,
    HoldFound,
    KeyReused,
    LinkedMoved,
    LinkedRefused,
    Moved,
    Pending,
    Posted,
    Rejected,
    Result,
    SlotKept,
    WalletRefused,
)
from tests.properties.asked_at_random import Client
from tests.properties.model_outcomes import FEES, Books, check_refusal
from tests.support.bound_commands import capture, hold_id_of, leg, linked, place, void
from tests.support.commands import MERCHANT, deposit, open_wallet, read_wallet, transfer
from tests.support.shard_net import NetShard, ShardNet, names_on


def name_beside(wallet_id: str) -> str:
    """
    Name another wallet of the same slot.
    """
    slot = slot_of(wallet_id)
    return next(name for name in map("beside-{}".format, count()) if slot_of(name) == slot)


SHARD_COUNT = 3
MAP = SlotMap.even(SHARD_COUNT)
STEPS = 2_500
MIXTURE = (30, 5, 1, 8, 25, 12, 90, 4, 8, 25, 3, 16, 8, 6, 8, 6, 40, 1, 1)  # Of `_step`.
WALLETS = [name for shard_id in range(SHARD_COUNT) for name in names_on(shard_id, SHARD_COUNT)[:2]]
# Two wallets of one slot go together.
WALLETS += [name_beside(name) for name in WALLETS[::2]]
LIMITED = WALLETS[::2]
WIDE = Limits(balance_max=900)
AMOUNTS = (*range(1, 16), 30, 50)
PASSED_US_MAX = 1_000_000_000  # Records take time, too: all is within one hour.
NOBODY = [names_on(shard_id, SHARD_COUNT)[3] for shard_id in range(SHARD_COUNT)]

SLOTS = sorted({slot_of(name) for name in [*WALLETS, *NOBODY]})

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
        self.asked: dict[bytes, Any] = {}  # What was asked first under each key.
        self.keys: dict[bytes, bytes] = {}  # By the id of what was asked.
        self.told: dict[bytes, Any] = {}
        self.reasons: set[RejectReason] = set()
        self.kept: list[GiveSlot] = []  # Not given yet; an operator asks again.
        self.slots = SlotMap.even(SHARD_COUNT)  # As a gateway knows them.
        self.client = Client(
            Random(0),
            [*WALLETS * 4, *NOBODY],
            amounts=AMOUNTS,
            strange=0.02,
            shard_count=SHARD_COUNT,
            keys_again=0,
        )
        for wallet_id in WALLETS:
            self.ask(open_wallet(wallet_id, -20 if wallet_id in WALLETS[-2:] else 0))
            if wallet_id in LIMITED:
                self.ask(SetWalletLimits(MERCHANT, wallet_id, None, WIDE))
            self.ask(deposit(wallet_id, 90, key=f"first {wallet_id}"))
        for shard_id in range(SHARD_COUNT):
            self.net.commit(shard_id)

    def ask(self, command: Command) -> None:
        key = key_of(command)
        if key is not None:
            self.asked.setdefault(key, command)
            self.keys[id_of(command)] = key
        self.net.ask(self.shard_of(command), [command])

    def shard_of(self, command: Command) -> int:
        """
        Return the shard that a gateway asks.
        """
        slot = command.slot if isinstance(command, GiveSlot) else slot_asked(command)
        shard_id = self.slots.owner(slot) if slot is not None else shard_asked(command)
        assert shard_id is not None, "nobody is asked"
        return shard_id

    # --- What clients do ------------------------------------------------------------------

    @rule(source=wallet_ids, destination=payees, amount=st.integers(1, 40))
    def pay(self, source: str, destination: str, amount: int) -> None:
        self.ask(transfer(source, destination, amount, key=f"pay {len(self.asked)}"))

    @rule(wallet_id=wallet_ids, amount=st.integers(1, 40))
    def pay_in(self, wallet_id: str, amount: int) -> None:
        self.ask(deposit(wallet_id, amount, key=f"pay in {len(self.asked)}"))

    @rule(chance=st.randoms(use_true_random=False))
    def money(self, chance: Random) -> None:
        self.client.chance = chance
        self.ask(self.client.money())

    @rule(place=st.integers(0, 1_000), is_new=st.booleans())
    def ask_again(self, place: int, is_new: bool) -> None:
        """
        A gateway makes a new id when it is asked again, or sends what it sent before.
        """
        keys = list(self.asked)
        command = self.asked[keys[place % len(keys)]]
        self.ask(self.client.under_another_id(command) if is_new else command)

    @rule(chance=st.randoms(use_true_random=False))
    def set_limits(self, chance: Random) -> None:
        """
        Never lifted: usage is counted from the first step to the last.
        """
        self.client.chance = chance
        command = self.client.set_limits(chance.choice(LIMITED))
        if command.limits is not None:
            limits = msgspec.structs.replace(command.limits, balance_max=chance.choice((90, 900)))
            command = msgspec.structs.replace(command, limits=limits)
        self.ask(command)

    @rule(wallet_id=wallet_ids, status=statuses)
    def set_status(self, wallet_id: str, status: WalletStatus) -> None:
        self.ask(SetWalletStatus(MERCHANT, wallet_id, status))

    @rule(wallet_id=wallet_ids)
    def ask_the_wrong_shard(self, wallet_id: str) -> None:
        slot = slot_of(wallet_id)
        hold_id = hold_id_of(wallet_id)
        for shard in self.net.shards:
            if slot not in shard.own_slots():
                commands = [
                    transfer(wallet_id, WALLETS[0], 1),
                    read_wallet(wallet_id),
                    place(wallet_id, 1),
                    void(hold_id),
                    capture(hold_id, 1, WALLETS[0]),
                    ReadHold(MERCHANT, hold_id),
                    linked(leg(wallet_id, WALLETS[0], 1)),
                ]
                self.net.ask(shard.shard_id, commands)
                self.net.commit(shard.shard_id)
                _, results, _ = self.net.replies.pop()
                assert results == [Moved(shard.state.slots.owner(slot))] * len(commands)

    @rule(wallet_id=payees, peer=shards)
    def give(self, wallet_id: str, peer: int) -> None:
        self.ask(GiveSlot(slot_of(wallet_id), peer))
        for command in self.kept:
            self.ask(command)
        self.kept.clear()

    @rule(shard_id=shards, seconds=st.sampled_from((1, 3, 11)))
    def wait(self, shard_id: int, seconds: int) -> None:
        """
        Time passes for all; one of the shards looks at the clock.
        """
        if self.net.passed_us < PASSED_US_MAX:
            self.net.passed_us += seconds * 1_000_000
        self.net.tick(shard_id)

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

    @rule(shard_id=shards, written=st.booleans(), with_tables=st.booleans())
    def crash(self, shard_id: int, written: bool, with_tables: bool) -> None:
        self.net.crash(shard_id, written=written, with_tables=with_tables)

    @rule(shard_id=shards, records=st.integers(1, 9), durably=st.booleans())
    def project(self, shard_id: int, records: int, durably: bool) -> None:
        self.net.shards[shard_id].project(records, durably=durably)

    @rule(shard_id=shards)
    def forget(self, shard_id: int) -> None:
        self.net.shards[shard_id].forget()

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
            wallets = shard.all_wallets()
            assert not any(books(wallets).values())
            assert broken_wallets(wallets) == []

    @invariant()
    def outbox_is_what_is_reserved(self) -> None:
        for shard in self.net.shards:
            assert broken_channels(shard.state) == []

    @invariant()
    def no_wallet_is_away_from_its_slot(self) -> None:
        for shard in self.net.shards:
            assert strangers(shard.state) == []

    @invariant()
    def no_slot_has_two_owners(self) -> None:
        for slot in SLOTS:
            holding = [s for s in self.net.shards if s.state.slots.owner(slot) == s.shard_id]
            assert len(holding) <= 1, slot

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
        for asked, results, shard_id in self.net.replies:
            for command, result in zip(asked, results, strict=True):
                self.hear(command, result, shard_id)
        self.net.replies.clear()
        for outcome in self.net.settled:
            self.take(self.keys[outcome.transfer_id], outcome)
        self.net.settled.clear()

    def hear(self, command: Command, result: Result, shard_id: int) -> None:
        assert not isinstance(result, KeyReused | ChannelFull)
        if isinstance(result, Moved) and result.shard_id not in (shard_id, NOWHERE):
            slot = command.slot if isinstance(command, GiveSlot) else slot_asked(command)
            assert slot is not None, "the ledger's own wallets never move"
            self.slots.assign(slot, result.shard_id, 1)
        if isinstance(result, SlotKept) and result.why == TRANSFERS_PENDING:
            assert isinstance(command, GiveSlot)
            self.kept.append(command)
        if isinstance(result, WalletRefused):
            self.reasons.add(RejectReason(result.reason))
        key = key_of(command)
        if key is not None and not isinstance(result, Moved | Pending):
            self.take(key, result)

    def take(self, key: bytes, result: Any) -> None:
        """
        An outcome, once told, is told for ever; a hold is told as it is now.
        """
        outcome = msgspec.structs.replace(result, repeated=False)
        if isinstance(outcome, HoldFound):
            assert outcome.hold.kept <= outcome.held
            outcome = msgspec.structs.replace(
                outcome, hold=None, posted=0, available=0, held=0, version=0
            )
        if key in self.told:
            assert self.told[key] == outcome
            return
        self.told[key] = outcome
        command = self.asked[key]
        if isinstance(outcome, Rejected | LinkedRefused):
            self.reasons.add(RejectReason(outcome.reason))
            check_refusal(command, outcome, set(NOBODY))
        if isinstance(outcome, Posted):
            filled = outcome.filled_in
            self.client.heard_of(command, filled.amount if filled else command.amount)

    # --- What holds when the faults stop --------------------------------------------------

    def teardown(self) -> None:
        self.net.settle()
        self.no_outcome_changes()
        assert all(len(owners) == 1 for owners in self.net.owners().values())
        for shard in self.net.shards:
            shard.state.closing.clear()  # Time passes here only with records.
        for _ in range(20):  # Some are new: their request was lost. Some have to be followed.
            for command in self.asked.values():
                self.ask(command)
            self.net.settle()
            self.no_outcome_changes()
            if self.told.keys() == self.asked.keys():
                break
        assert self.told.keys() == self.asked.keys()
        for command in self.asked.values():
            self.ask(self.client.under_another_id(command))
        self.net.settle()
        self.no_outcome_changes()
        self.all_is_settled()
        self.check_the_books()
        self.check_linked_transfers()
        self.check_the_journals()

    def all_is_settled(self) -> None:
        """
        Nothing is prepared, begun or on its way; what is set aside is held.
        """
        for shard in self.net.shards:
            state = shard.state
            assert not any(channel.outbox for channel in state.channels.outgoing.values())
            assert (state.linked, state.prepared) == ({}, {})
            assert not any(wallet.is_relied_on for wallet in shard.all_wallets())
            assert not any(hold.pending or hold.is_ending for hold in state.holds.values())

    def check_the_books(self) -> None:
        """
        Count everything again from nothing but what the clients were told.
        """
        told = Books()
        for key, outcome in self.told.items():
            told.take(self.asked[key], outcome)
        held = self.check_holds(told)
        found = [w for shard in self.net.shards for w in shard.all_wallets()]
        customers = [wallet for wallet in found if not is_system_wallet(wallet.wallet_id)]
        assert sorted(wallet.wallet_id for wallet in customers) == sorted(WALLETS)
        for wallet in customers:
            assert wallet.posted == told.balances[wallet.wallet_id], wallet.wallet_id
            assert wallet.held == wallet.reserved == held[wallet.wallet_id], wallet.wallet_id
            if wallet.limits is not None:
                assert wallet.usage is not None
                for side, counter in (("out", wallet.usage.debits), ("in", wallet.usage.credits)):
                    used = told.used[wallet.wallet_id, side]
                    assert [counter.hour_count, counter.hour_amount] == used, wallet.wallet_id
                    assert [counter.day_count, counter.day_amount] == used, wallet.wallet_id
        fees = [wallet for wallet in found if wallet.wallet_id.startswith(FEES)]
        assert sum(wallet.posted for wallet in fees) == told.balances[FEES]
        known = self.refunded()
        assert {paid: total for paid, total in known.items() if total} == told.refunded

    def check_holds(self, told: Books) -> Counter[str]:
        """
        Compare each hold with what was told, count it as used, and sum what is held by wallet.
        """
        held: Counter[str] = Counter()
        for hold_id, command in told.placed.items():
            hold = self.hold(hold_id)
            is_over = hold.status == HoldStatus.EXPIRED
            assert hold.captured == told.captured_of(hold_id)
            if told.status_of(hold_id, is_over=is_over) != HoldStatus(hold.status).code:
                # Its time was over while the last capture was on its way.
                assert (is_over, told.status_of(hold_id, is_over=True)) == (True, "captured")
            assert not is_over or hold.expires_at_us <= self.net.now_us()
            held[command.source] += hold.kept
            is_open = hold.status == HoldStatus.OPEN
            used = command.amount if is_open else hold.captured
            told.use(command.source, "out", used, 1 if used else 0)
        return held

    def hold(self, hold_id: bytes) -> Hold:
        """
        Find a hold at the owner of its slot, or where it ended.
        """
        owner = self.net.shards[self.net.catalog.owner(slot_of_hold(hold_id))]
        if hold_id in owner.state.holds:
            return owner.state.holds[hold_id]
        found = [hold for shard in self.net.shards for hold in shard.tables.load_holds([hold_id])]
        (ended,) = [hold for hold in found if hold.status != HoldStatus.OPEN]
        return ended

    def refunded(self) -> dict[bytes, int]:
        """
        Tell how much has gone back of each transfer: the latest that any shard knows.
        """
        latest: dict[bytes, RefundTotal] = {}
        for shard in self.net.shards:
            for total in (*shard.tables.refunds.values(), *shard.state.refunds.values()):
                known = latest.setdefault(total.transfer_id, total)
                if total.version > known.version:
                    latest[total.transfer_id] = total
        return {transfer_id: total.refunded for transfer_id, total in latest.items()}

    def check_linked_transfers(self) -> None:
        """
        All legs were posted, each side once, or none was.
        """
        posted: Counter[tuple[bytes, int, str]] = Counter()
        for decision in all_decisions(self):
            if isinstance(decision, LinkedPosted | VerdictTaken):
                linked_id = getattr(decision, "transfer_id", None) or decision.linked_id
                for one in decision.postings:
                    for name in (one.source, one.destination):
                        if not name.startswith("$due"):
                            posted[linked_id, one.leg, name.split(":")[0]] += 1
        expected: Counter[tuple[bytes, int, str]] = Counter()
        for key, outcome in self.told.items():
            if isinstance(outcome, LinkedMoved):
                for number, one in enumerate(self.asked[key].legs):
                    expected[outcome.transfer_id, number, one.source] += 1
                    expected[outcome.transfer_id, number, one.destination or FEES] += 1
        assert posted == expected

    def check_the_journals(self) -> None:
        """
        A shard that begins again, from its journal or from its tables, is the shard it was.
        """
        for shard in self.net.shards:
            before = facts_of(shard)
            for with_tables in (False, True):
                shard.recover(with_tables=with_tables)
                assert facts_of(shard) == before
            shard.project(len(shard.journal), durably=True)
            assert facts_of(shard) == before


def id_of(command: Any) -> bytes:
    for field in ("transfer_id", "hold_id", "linked_id"):
        if hasattr(command, field):
            found: bytes = getattr(command, field)
            return found
    raise AssertionError("it has no id")


def facts_of(shard: NetShard) -> dict[Any, Any]:
    """
    Tell all that must survive: wallets, and what is open.
    """
    wallets = {wallet.wallet_id: wallet.facts() for wallet in shard.all_wallets()}
    holds = [one for one in shard.state.holds.values() if one.kept or one.pending]
    return {**wallets, **{one.hold_id: msgspec.structs.replace(one, sequence=0) for one in holds}}


def all_decisions(machine: Channels) -> list[Any]:
    payloads = [payload for shard in machine.net.shards for payload in shard.journal]
    return [one for payload in payloads for one in decode_decisions(payload, DECISION_FORMAT)]


def kinds_journaled(machine: Channels) -> Counter[str]:
    """
    Count the decisions in all journals by their kinds.
    """
    return Counter(type(one).__name__ for one in all_decisions(machine))


def outcome_name(command: Any, outcome: Any) -> str:
    if not isinstance(command, MoveMoney) or command.transfer_type != TransferType.TRANSFER:
        return type(outcome).__name__
    if command.source.startswith(FEES):
        return "sweep"
    is_local = MAP.shard_of(command.source) == MAP.shard_of(command.destination)
    code = "posted" if isinstance(outcome, Posted) else RejectReason(outcome.reason).code
    return f"{'local' if is_local else 'across'}: {code}"


TestChannels = Channels.TestCase
TestChannels.settings = settings(max_examples=60, stateful_step_count=80, deadline=None)


def run_long(seed: int, steps: int = STEPS) -> Channels:
    """
    Do what hypothesis does, for much longer. Each seed has its own mixture: what seldom happens
    together in the average one is common in some.
    """
    chance = Random(seed)
    weights = [weight * chance.choice((0.3, 1, 4)) for weight in MIXTURE]
    machine = Channels()
    for _ in range(steps):
        _step(machine, chance, weights)
        machine.books_are_at_zero()
        machine.outbox_is_what_is_reserved()
        machine.no_wallet_is_away_from_its_slot()
        machine.no_slot_has_two_owners()
        machine.ends_of_each_channel_fit()
        machine.no_outcome_changes()
    machine.teardown()
    return machine


@pytest.mark.parametrize("seed", range(16))
def test_long_runs(seed: int) -> None:
    """
    The same steps and faults for much longer than hypothesis goes.
    """
    machine = run_long(seed)
    names = Counter(outcome_name(machine.asked[key], said) for key, said in machine.told.items())
    kinds = kinds_journaled(machine)
    assert kinds["SlotTaken"] > 1
    assert kinds["TransferRecalled"] > 1
    assert kinds["HoldPlaced"] > 1
    assert kinds["LinkedBegun"] > 0
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
            machine.ask_again(some, some % 2 == 0)
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
        case 10:
            machine.crash(shard_id, written=some % 2 == 0, with_tables=some % 3 > 0)
        case 11:
            machine.give(chance.choice(WALLETS + NOBODY), shard_id)
        case 12:
            machine.project(shard_id, some % 9 + 1, durably=some % 2 == 0)
        case 13:
            machine.forget(shard_id)
        case 14:
            machine.net.turn()
        case 16:
            machine.money(chance)
        case 17:
            machine.set_limits(chance)
        case 18:
            machine.wait(shard_id, chance.choice((1, 1, 3, 11)))
        case _:
            machine.pay_in(chance.choice(WALLETS), some % 9 + 1)


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
    assert [type(results[-1]) for _, results, _ in net.replies[1:]] == [Pending, Rejected, Pending]
    wallet = net.shards[0].state.wallets[payer]
    assert (wallet.posted, wallet.reserved, wallet.available) == (50, 30, 20)
    net.settle()
    assert (wallet.posted, wallet.reserved, wallet.available) == (20, 0, 20)
    assert net.shards[1].state.wallets[payee].posted == 30


def test_a_linked_transfer_follows_a_slot_that_has_moved() -> None:
    """
    Whoever does not have it says where it is: the next attempt goes there.
    """
    net = ShardNet(SHARD_COUNT)
    (payer, other, *_), (payee, *_) = names_on(0, SHARD_COUNT), names_on(1, SHARD_COUNT)
    net.ask(0, [open_wallet(payer), open_wallet(other), deposit(payer, 50, key="first")])
    net.ask(1, [open_wallet(payee)])
    net.ask(1, [GiveSlot(slot_of(payee), 2)])
    net.settle()
    net.ask(0, [linked(leg(payer, payee, 30), leg(payer, other, 20))])
    net.settle()
    (moved,) = net.settled
    assert isinstance(moved, LinkedMoved)
    assert net.shards[2].state.wallets[payee].posted == 30
    payloads = [decode_decisions(one, DECISION_FORMAT) for one in net.shards[0].journal]
    begun = [one for decisions in payloads for one in decisions if isinstance(one, LinkedBegun)]
    assert [(one.attempt, one.homes[0]) for one in begun] == [(1, (0, 1)), (2, (0, 2))]
