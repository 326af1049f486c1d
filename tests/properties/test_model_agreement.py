"""
Goal: whatever is asked, in whatever batches, the ledger answers as a naive second one does, its
      books stay at zero, and its journal alone gives it back.
Method: hypothesis draws frames over a few wallets, two currencies and two merchants. Each result
        is compared with `model_ledger`; now and then the journal is replayed, the commands are
        cut into other batches, and keys are forgotten as far as the tables have come.
"""

from __future__ import annotations

import msgspec
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
    SetWalletLimits,
    SetWalletStatus,
    TransferType,
)
from processor.core.decisions import (
    DECISION_FORMAT,
    Decision,
    TransferPosted,
    decode_decisions,
    encode_decisions,
)
from processor.core.invariants import books, broken_wallets
from processor.core.record import GENESIS_CHAIN, Record, check_link, seal
from processor.core.state import Remembered, ShardState
from processor.core.wallet import WalletStatus
from processor.flow.batch import Batch
from processor.flow.frames import Answered, Reply, RequestFrame, Result
from tests.properties.model_ledger import ModelLedger
from tests.support.commands import AT_US, facts, identifier

# Most commands are sound, or little would ever post.
wallet_ids = st.sampled_from(("alice", "alice", "bob", "bob", "bob", "carol", "dave"))
merchants = st.sampled_from((*["acme"] * 9, "globex"))
currencies = st.sampled_from((*["EUR"] * 9, "USD"))
amounts = st.sampled_from((*range(1, 16), 1_000, 1_000, 100_000, AMOUNT_MAX))
minimums = st.sampled_from((0, 0, 0, -30, 5, -BALANCE_MAX, AMOUNT_MAX))
statuses = st.sampled_from((*[WalletStatus.OPEN] * 2, *WalletStatus))
texts = st.sampled_from((*[None] * 9, "another"))
kinds = st.sampled_from((*[TransferType.DEPOSIT] * 3, *TransferType))
fresh_keys = st.integers(10, 2**63)


@st.composite
def moves(draw: st.DrawFn) -> MoveMoney:
    """
    Draw a transfer, a deposit or a withdrawal; some keys come up again, most do not.
    """
    kind = draw(kinds)
    merchant_id = draw(merchants)
    key = draw(fresh_keys) if draw(st.integers(0, 9)) else draw(st.integers(0, 2))
    return MoveMoney(
        kind,
        identifier(f"transfer of {key}"),
        identifier(f"{merchant_id} {key}"),
        merchant_id,
        "" if kind == TransferType.DEPOSIT else draw(wallet_ids),
        "" if kind == TransferType.WITHDRAWAL else draw(wallet_ids),
        draw(currencies),
        draw(amounts),
        draw(texts),
        draw(texts),
    )


wallet_commands = st.one_of(
    st.builds(OpenWallet, merchants, wallet_ids, currencies, minimums),
    st.builds(SetWalletStatus, merchants, wallet_ids, statuses),
    st.builds(SetWalletLimits, merchants, wallet_ids, minimums),
    st.builds(ReadWallet, merchants, wallet_ids),
)
commands = st.one_of(moves(), moves(), moves(), wallet_commands)
OPENING: list[Command] = [
    OpenWallet("acme", "alice", "EUR"),
    OpenWallet("acme", "bob", "EUR", -30),
    OpenWallet("globex", "carol", "EUR"),
]


def execute(
    state: ShardState, sequence: int, at_us: int, asked: list[Command]
) -> tuple[Batch, list[Result]]:
    """
    Run one batch of one frame; its results are looked at only after the release.
    """
    batch = Batch(sequence)
    batch.at_us = at_us
    replies: list[Reply] = []
    batch.add(state, RequestFrame(sequence, 0, 1, asked), replies.append)
    assert replies == []
    batch.release()
    (reply,) = replies
    assert isinstance(reply, Answered)
    return batch, reply.results


class LedgerMachine(RuleBasedStateMachine):
    """
    The ledger with its journal, beside the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = ModelLedger()
        self.state = ShardState(0)
        self.journal: list[Record] = []
        self.decisions: list[Decision] = []
        self.asked: list[Command] = []
        self.tables: dict[bytes, Remembered] = {}  # Keys that memory has forgotten.

    @initialize()
    def open_wallets(self) -> None:
        self.ask(OPENING)

    # Three rules for one thing: hypothesis leaves rules out at random, and asking never may be.
    @rule(asked=st.lists(moves(), min_size=1, max_size=8))
    def pay(self, asked: list[Command]) -> None:
        self.ask(asked)

    @rule(asked=st.lists(wallet_commands, min_size=1, max_size=3))
    def manage(self, asked: list[Command]) -> None:
        self.ask(asked)

    @rule(data=st.data(), count=st.integers(1, 4))
    def pay_again(self, data: st.DataObject, count: int) -> None:
        """
        Earlier commands come again, each under a new transfer id.
        """
        earlier = [command for command in self.asked if isinstance(command, MoveMoney)]
        if earlier:
            again = [data.draw(st.sampled_from(earlier)) for _ in range(count)]
            self.ask(
                [
                    msgspec.structs.replace(command, transfer_id=identifier(f"again {number}"))
                    for number, command in enumerate(again)
                ]
            )

    @rule(asked=st.lists(commands, min_size=1, max_size=8))
    def ask(self, asked: list[Command]) -> None:
        """
        Both ledgers give the same results, and the batch becomes a record.
        """
        sequence = len(self.journal) + 1
        at_us = AT_US + sequence
        self.load_forgotten_keys(asked)
        batch, results = execute(self.state, sequence, at_us, asked)
        assert results == [self.model.execute(command, sequence, at_us) for command in asked]
        self.asked += asked
        self.decisions += batch.decisions
        if batch.decisions:
            self.journal.append(self.seal(batch))
        for result in results:
            event(type(result).__name__)

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

    def load_forgotten_keys(self, asked: list[Command]) -> None:
        """
        Do what the shard does before it decides: keys that the tables know come back.
        """
        keys = self.state.keys
        for command in asked:
            if not isinstance(command, MoveMoney) or keys.find(command.key) is not None:
                continue
            if command.key in self.tables:
                keys.remember(*self.tables[command.key])

    @rule(behind=st.integers(0, 3))
    def forget(self, behind: int) -> None:
        """
        What is forgotten is in the tables, which are a few records behind.
        """
        watermark = max(0, len(self.journal) - behind)
        forgotten = self.state.keys.rotate(watermark)
        if forgotten is not None:
            assert all(sequence <= watermark for _, sequence, _ in forgotten.values())
            self.tables.update(forgotten)

    @rule()
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

    @rule(data=st.data())
    def cut_into_other_batches(self, data: st.DataObject) -> None:
        """
        The same commands in other batches are decided alike.
        """
        size = data.draw(st.integers(1, 40))
        state, decisions = ShardState(0), []
        for number, start in enumerate(range(0, len(self.asked), size), 1):
            batch, _ = execute(state, number, AT_US + number, self.asked[start : start + size])
            decisions += batch.decisions
        assert decisions == self.decisions
        assert facts(state) == facts(self.state)

    @invariant()
    def books_are_zero(self) -> None:
        wallets = self.state.wallets.values()
        assert all(total == 0 for total in books(wallets).values())
        assert broken_wallets(wallets) == []

    @invariant()
    def versions_are_dense(self) -> None:
        """
        A wallet's version is the number of postings that named it.
        """
        for name, wallet in self.state.wallets.items():
            assert wallet.version == sum(
                name in (decision.source, decision.destination)
                for decision in self.decisions
                if isinstance(decision, TransferPosted)
            )


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(stateful_step_count=50)
