"""
Goal: whatever is asked, in whatever batches, the ledger answers as a naive second one does, its
      books stay at zero, and its journal alone gives it back. Every reason to refuse is met.
Method: every command is drawn over a few wallets, two currencies and two merchants, while time
        passes. Each result is compared with `model_ledger`; now and then the journal is replayed,
        the commands are cut into other batches, and what the tables have is forgotten. Hypothesis
        draws, and a long run with a seed, of which the reasons are counted.
"""

from __future__ import annotations

from itertools import groupby
from random import Random

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from processor.core.amounts import AMOUNT_MAX, BALANCE_MAX
from processor.core.apply import apply
from processor.core.commands import (
    Command,
    MoveMoney,
    OpenWallet,
    ReadWallet,
    SetWalletStatus,
    key_of,
)
from processor.core.counts_needed import holds_of_commands, refunds_of_commands
from processor.core.decisions import (
    DECISION_FORMAT,
    Decision,
    LinkedPosted,
    TransferPosted,
    decode_decisions,
    encode_decisions,
)
from processor.core.hold import Hold, RefundTotal
from processor.core.invariants import books, broken_channels, broken_wallets
from processor.core.limits import DAY_US, HOUR_US
from processor.core.record import GENESIS_CHAIN, Record, check_link, seal
from processor.core.reject_reason import RejectReason
from processor.core.state import Remembered, ShardState
from processor.core.wallet import WalletStatus
from processor.flow.batch import Batch
from processor.flow.frames import Answered, Posted, Reply, RequestFrame, Result
from tests.properties.asked_at_random import Client
from tests.properties.model_ledger import ModelLedger
from tests.support.commands import AT_US, facts
from tests.support.totals import know_totals

# Most commands are sound, or little would ever post.
WALLETS = ("alice", "alice", "bob", "bob", "bob", "carol", "dave")
AMOUNTS = (*range(1, 16), *range(1, 16), 40, 1_000, AMOUNT_MAX)
OPENING: list[Command] = [
    OpenWallet("acme", "alice", "EUR"),
    OpenWallet("acme", "bob", "EUR", -30),
    OpenWallet("globex", "carol", "EUR"),
    OpenWallet("acme", "dave", "EUR"),
]
PAUSES_US = (1, 999_999, 1_000_000, 5_000_000, HOUR_US // 2, HOUR_US, DAY_US)
# Without peers nothing is on its way, and no vote is waited for.
BETWEEN_SHARDS = {
    RejectReason.HOLD_CAPTURE_PENDING,
    RejectReason.REFUND_TOTAL_UNKNOWN,
    RejectReason.LINKED_DEADLINE_PASSED,
    RejectReason.TRANSFERS_PENDING,
}


def execute(
    state: ShardState, sequence: int, at_us: int, asked: list[Command]
) -> tuple[Batch, list[Result]]:
    """
    Run one batch of one frame; its results are looked at only after the release.
    """
    know_totals(state, refunds_of_commands(state, asked))
    batch = Batch(sequence)
    batch.at_us = at_us
    batch.tick(state)
    replies: list[Reply] = []
    batch.add(state, RequestFrame(sequence, 0, 1, asked), replies.append)
    assert replies == []
    batch.release()
    (reply,) = replies
    assert isinstance(reply, Answered)
    return batch, reply.results


class Ledgers:
    """
    The ledger with its journal, beside the model.
    """

    def __init__(self) -> None:
        self.model = ModelLedger()
        self.state = ShardState(0)
        self.passed_us = 0
        self.journal: list[Record] = []
        self.decisions: list[Decision] = []
        self.asked: list[tuple[int, Command]] = []
        self.reasons: set[RejectReason] = set()
        # What memory has forgotten.
        self.tables: dict[bytes, Remembered] = {}
        self.holds: dict[bytes, Hold] = {}
        self.refunds: dict[bytes, RefundTotal] = {}
        self.client = Client(Random(0), WALLETS, amounts=AMOUNTS, strange=0.04)
        self.ask(OPENING)

    def ask(self, asked: list[Command]) -> None:
        """
        Both ledgers give the same results, and the batch becomes a record.
        """
        sequence, at_us = len(self.journal) + 1, AT_US + self.passed_us
        self.load_forgotten(asked)
        batch, results = execute(self.state, sequence, at_us, asked)
        self.model.pass_time(sequence, at_us)
        for command, result in zip(asked, results, strict=True):
            expected = self.model.execute(command, sequence, at_us)
            assert result == expected, command
            self.hear(command, result)
        self.asked += [(at_us, command) for command in asked]
        self.decisions += batch.decisions
        if batch.decisions:
            self.journal.append(self.seal(batch))

    def hear(self, command: Command, result: Result) -> None:
        if isinstance(result, Posted) and not result.repeated:
            assert isinstance(command, MoveMoney)
            filled = result.filled_in
            self.client.heard_of(command, filled.amount if filled else command.amount)
        if hasattr(result, "reason"):
            self.reasons.add(RejectReason(result.reason))

    def seal(self, batch: Batch) -> Record:
        return seal(
            shard_id=0,
            sequence=batch.sequence,
            epoch=1,
            at_us=batch.at_us,
            count=len(batch.decisions),
            decision_format=DECISION_FORMAT,
            payload=encode_decisions(batch.decisions),
            previous_chain=self.journal[-1].chain if self.journal else GENESIS_CHAIN,
        )

    def load_forgotten(self, asked: list[Command]) -> None:
        """
        Do what the shard does before it decides: what the tables know comes back.
        """
        state = self.state
        for key in filter(None, map(key_of, asked)):
            if state.keys.find(key) is None and key in self.tables:
                state.keys.remember(*self.tables[key])
        for hold_id in holds_of_commands(state, asked):
            if hold_id in self.holds:
                state.load_hold(self.holds[hold_id])
        for transfer_id in refunds_of_commands(state, asked).own:
            if transfer_id in self.refunds:
                state.load_refund(self.refunds[transfer_id])

    def forget(self, behind: int) -> None:
        """
        What is forgotten is in the tables, which are a few records behind.
        """
        state, watermark = self.state, max(0, len(self.journal) - behind)
        state.tables_reach(watermark)
        forgotten = state.keys.rotate(watermark)
        if forgotten is not None:
            assert all(sequence <= watermark for _, sequence, _ in forgotten.values())
            self.tables.update(forgotten)
        self.holds |= state.holds
        self.refunds |= state.refunds
        state.forget_counts(0)

    def replay(self) -> None:
        """
        A fresh state that applies the journal equals the one that decided it.
        """
        state, sequence, chain = ShardState(0), 0, GENESIS_CHAIN
        for record in self.journal:
            check_link(record, after_sequence=sequence, after_chain=chain)
            for decision in decode_decisions(record.payload, record.format):
                apply(state, decision, record.sequence, record.at_us)
            sequence, chain = record.sequence, record.chain
        assert facts(state) == facts(self.state)
        for name, wallet in state.wallets.items():
            assert wallet.sequence == self.state.wallets[name].sequence
        keys = self.state.keys
        assert state.keys.young == {**self.tables, **keys.old, **keys.young}
        assert state.holds == self.holds | self.state.holds
        known = (self.refunds | self.state.refunds).values()
        assert state.refunds == {one.transfer_id: one for one in known if one.version}

    def cut_into_other_batches(self, size: int) -> None:
        """
        The same commands at the same times in other batches are decided alike.
        """
        state, decisions, number = ShardState(0), [], 0
        for at_us, group in groupby(self.asked, lambda one: one[0]):
            asked = [command for _, command in group]
            for start in range(0, len(asked), size):
                number += 1
                batch, _ = execute(state, number, at_us, asked[start : start + size])
                decisions += batch.decisions
        assert decisions == self.decisions
        assert facts(state) == facts(self.state)

    def check(self) -> None:
        """
        Books are at zero, a wallet's version is the number of postings that named it, and what is
        held is what the model's holds keep.
        """
        wallets = self.state.wallets.values()
        assert not any(books(wallets).values())
        assert broken_wallets(wallets) == []
        assert broken_channels(self.state) == []
        for name, wallet in self.state.wallets.items():
            account = self.model.accounts[name]
            assert wallet.posted == sum(account["entries"])
            assert wallet.version == len(account["entries"]) == self.entries_of(name)
            assert wallet.held == wallet.reserved == self.model._held(name)
            assert wallet.holds_open == account["holds"]
            assert wallet.incoming == 0

    def entries_of(self, name: str) -> int:
        entries = 0
        for decision in self.decisions:
            if isinstance(decision, TransferPosted):
                entries += name in (decision.source, decision.destination)
            elif isinstance(decision, LinkedPosted):
                entries += sum(name in (one.source, one.destination) for one in decision.postings)
        return entries

    # --- At random ------------------------------------------------------------------------

    def money(self, chance: Random) -> list[Command]:
        self.client.chance = chance
        return [self.client.money() for _ in range(chance.randrange(1, 9))]

    def money_again(self, chance: Random) -> list[Command]:
        self.client.chance = chance
        if not self.client.keyed:
            return []
        return [self.client.again() for _ in range(chance.randrange(1, 5))]

    def control(self, chance: Random) -> list[Command]:
        self.client.chance = chance
        return [self._control(chance) for _ in range(chance.randrange(1, 4))]

    def _control(self, chance: Random) -> Command:
        wallet_id, merchant_id = chance.choice(WALLETS), chance.choice((*["acme"] * 9, "globex"))
        match chance.randrange(6):
            case 0:
                minimum = chance.choice((0, 0, 0, -30, 5, -BALANCE_MAX, AMOUNT_MAX))
                return OpenWallet(
                    merchant_id, wallet_id, chance.choice((*["EUR"] * 9, "USD")), minimum
                )
            case 1:
                # Open again soon, and closed seldom, or little would be paid.
                status = chance.choice(
                    (*[WalletStatus.OPEN] * 12, *list(WalletStatus)[:3] * 2, *WalletStatus)
                )
                return SetWalletStatus(merchant_id, wallet_id, status)
            case 2 | 3:
                return self.client.set_limits(wallet_id)
            case 4:
                return ReadWallet(merchant_id, "$fees:0:EUR:acme")
            case _:
                return ReadWallet(merchant_id, wallet_id)


class LedgerMachine(RuleBasedStateMachine):
    """
    Hypothesis asks. Three rules for one thing: it leaves rules out at random, and asking never may
    be.
    """

    @initialize()
    def begin(self) -> None:
        self.ledgers = Ledgers()

    @rule(chance=st.randoms(use_true_random=False))
    def pay(self, chance: Random) -> None:
        self.ledgers.ask(self.ledgers.money(chance))

    @rule(chance=st.randoms(use_true_random=False))
    def manage(self, chance: Random) -> None:
        self.ledgers.ask(self.ledgers.control(chance))

    @rule(chance=st.randoms(use_true_random=False))
    def pay_and_manage(self, chance: Random) -> None:
        self.ledgers.ask([*self.ledgers.money(chance), *self.ledgers.control(chance)])

    @rule(chance=st.randoms(use_true_random=False))
    def pay_again(self, chance: Random) -> None:
        """
        Earlier commands come again, each under a new id.
        """
        self.ledgers.ask(self.ledgers.money_again(chance))

    @rule(pause_us=st.sampled_from(PAUSES_US))
    def wait(self, pause_us: int) -> None:
        self.ledgers.passed_us += pause_us

    @rule(behind=st.integers(0, 3))
    def forget(self, behind: int) -> None:
        self.ledgers.forget(behind)

    @rule()
    def replay(self) -> None:
        self.ledgers.replay()

    @rule(size=st.integers(1, 40))
    def cut_into_other_batches(self, size: int) -> None:
        self.ledgers.cut_into_other_batches(size)

    @invariant()
    def all_is_sound(self) -> None:
        if hasattr(self, "ledgers"):
            self.ledgers.check()

    def teardown(self) -> None:
        if hasattr(self, "ledgers"):
            for reason in self.ledgers.reasons:
                event(reason.name)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(stateful_step_count=50)


def run(seed: int, steps: int) -> Ledgers:
    """
    Do what hypothesis does, for much longer and with all of it in each run.
    """
    chance, ledgers = Random(seed), Ledgers()
    for _ in range(steps):
        match chance.choices(range(5), (40, 12, 8, 12, 4))[0]:
            case 0:
                ledgers.ask(ledgers.money(chance))
            case 1:
                ledgers.ask(ledgers.control(chance))
            case 2:
                ledgers.ask(ledgers.money_again(chance))
            case 3:
                ledgers.passed_us += chance.choice(PAUSES_US)
            case _:
                ledgers.forget(chance.randrange(4))
        ledgers.check()
    ledgers.replay()
    ledgers.cut_into_other_batches(7)
    return ledgers


@pytest.mark.parametrize("seed", range(10, 16))
def test_long_runs(seed: int) -> None:
    """
    What seldom comes in fifty steps comes in five hundred.
    """
    ledgers = run(seed, 500)
    kinds = {type(decision).__name__ for decision in ledgers.decisions}
    assert {"TransferPosted", "HoldChanged", "LinkedPosted", "RefundCounted"} <= kinds
    assert len(ledgers.reasons) > 15
