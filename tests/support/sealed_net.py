"""
Several shards whose every step is a sealed record, without tables, sockets or a clock.

The decisions are the ledger's own (`Batch`, `OutgoingLink`); the test says who does what when, so
that it knows what is on its way at each record. All wallets are in memory.
"""

from __future__ import annotations

from collections.abc import Callable

from processor.core.apply import apply
from processor.core.commands import Command, GiveSlot, SetWalletLimits, SetWalletStatus
from processor.core.counts_needed import (
    refunds_of_answers,
    refunds_of_commands,
    refunds_of_entries,
)
from processor.core.decisions import (
    DECISION_FORMAT,
    Decision,
    EpochStarted,
    SlotsGranted,
    encode_decisions,
)
from processor.core.record import GENESIS_CHAIN, Record, seal
from processor.core.slots import SlotMap, slot_of
from processor.core.state import ShardState
from processor.core.wallet import WalletStatus
from processor.flow.batch import Batch
from processor.flow.channel_link import Answers, Effect, Entries, OutgoingLink, Welcome
from processor.flow.frames import Answered, Reply, RequestFrame, Result
from tests.support.commands import AT_US, MERCHANT, deposit, open_wallet, transfer
from tests.support.totals import know_totals


class SealedShard:
    """
    One shard: its state, and its journal from the record on that grants its slots.
    """

    def __init__(self, shard_id: int, shard_count: int, *, epoch: int = 1) -> None:
        self.shard_id = shard_id
        self.state = ShardState(shard_id, SlotMap.even(shard_count))
        self.epoch = epoch
        self.records: list[Record] = []
        self.links: dict[int, OutgoingLink] = {}
        slots = self.state.slots.slots_of(shard_id)

        def begin(batch: Batch) -> None:
            self._decide(batch, EpochStarted("test"))
            if slots:
                self._decide(batch, SlotsGranted(slots[0], slots[-1]))

        self.record(begin)

    def _decide(self, batch: Batch, decision: Decision) -> None:
        apply(self.state, decision, batch.sequence, batch.at_us)
        batch.decisions.append(decision)

    def record(self, fill: Callable[[Batch], None]) -> None:
        """
        Seal what *fill* does to a batch, if it decides anything, and let its effects go.
        """
        batch = Batch(len(self.records) + 1)
        batch.at_us = AT_US + batch.sequence
        fill(batch)
        if batch.decisions:
            self.records.append(self._seal(batch))
        batch.release()
        for peer, end in batch.ends.items():
            self.link_to(peer).made_durable(*end)

    def _seal(self, batch: Batch) -> Record:
        return seal(
            shard_id=self.shard_id,
            sequence=batch.sequence,
            epoch=self.epoch,
            at_us=batch.at_us,
            count=len(batch.decisions),
            decision_format=DECISION_FORMAT,
            payload=encode_decisions(batch.decisions),
            previous_chain=self.records[-1].chain if self.records else GENESIS_CHAIN,
        )

    def link_to(self, peer: int) -> OutgoingLink:
        """
        Return the link to a peer; it begins with a peer that has heard nothing yet.
        """
        if peer not in self.links:
            channel = self.state.channels.to(peer)
            self.links[peer] = OutgoingLink(channel)
            self.links[peer].take_welcome(Welcome(channel.settled, channel.settled_chain, []))
        return self.links[peer]

    def ask(self, *commands: Command) -> list[Result]:
        """
        Execute *commands* in one record and return their results.
        """
        replies: list[Reply] = []
        for command in commands:
            if isinstance(command, GiveSlot):
                named = [name for name in self.state.wallets if slot_of(name) == command.slot]
                self.state.leaving[command.slot] = named
        know_totals(self.state, refunds_of_commands(self.state, commands))
        frame = RequestFrame(1, self.shard_id, self.epoch, list(commands))
        self.record(lambda batch: batch.add(self.state, frame, replies.append))
        answered = replies[0]
        assert isinstance(answered, Answered)
        return answered.results


class SealedNet:
    """
    Shards that know of each other, and what goes between them when the test says so.
    """

    def __init__(self, shard_count: int, *, epoch: int = 1) -> None:
        self.shards = [
            SealedShard(shard_id, shard_count, epoch=epoch) for shard_id in range(shard_count)
        ]

    def send(self, source: int, destination: int) -> Entries | None:
        """
        Take the next frame of entries off a source, if there is one.
        """
        return self.shards[source].link_to(destination).next_entries()

    def decide(self, source: int, destination: int, entries: Entries) -> Answers:
        """
        Decide a frame at its destination in one record, and return what it answers.
        """
        shard = self.shards[destination]
        said: list[Effect] = []
        know_totals(shard.state, refunds_of_entries(shard.state, entries.entries))
        shard.record(lambda batch: batch.add_entries(shard.state, source, entries, said.append))
        answers = said[0]
        assert isinstance(answers, Answers)
        return answers

    def settle(self, source: int, destination: int, said: Answers) -> None:
        """
        Settle what was answered, at its source and in one record.
        """
        shard = self.shards[source]
        answers = shard.link_to(destination).take_answers(said)
        know_totals(shard.state, refunds_of_answers(shard.state, destination, answers))
        shard.record(lambda batch: batch.add_answers(shard.state, destination, answers))

    def carry(self, source: int, destination: int) -> None:
        """
        Bring all that is on its way in one direction to its end; not what is sent anew meanwhile.
        """
        channel = self.shards[source].state.channels.to(destination)
        head = channel.head
        while channel.settled < head:
            entries = self.send(source, destination)
            assert entries is not None, "nothing to send"
            self.settle(source, destination, self.decide(source, destination, entries))

    def quiet(self) -> None:
        """
        Bring everything to its end, also what is sent anew on the way.
        """
        pairs = [(one, other) for one in self.shards for other in self.shards if one is not other]
        while any(one.state.channels.to(other.shard_id).outbox for one, other in pairs):
            for one, other in pairs:
                self.carry(one.shard_id, other.shard_id)


def names_in(slots: range, count: int) -> list[str]:
    """
    Name *count* wallets that are in *slots*.
    """
    names = (f"w-{number}" for number in range(1_000_000))
    found = (name for name in names if slot_of(name) in slots)
    return [next(found) for _ in range(count)]


def eventful_net(*, epoch: int = 1) -> SealedNet:
    """
    Let two shards do all that they can do with each other, in a few dozen records; at the end
    transfers and a slot are on their way.
    """
    net = SealedNet(2, epoch=epoch)
    one, two = net.shards
    here, also_here, leaves_last = names_in(range(2048), 3)
    slot = slot_of(names_in(range(2048, 4096), 1)[0])
    there, also_there, late = names_in(range(slot, slot + 1), 3)
    neighbour = names_in(range(slot + 1, 4096), 1)[0]
    one.ask(open_wallet(here), open_wallet(also_here), deposit(here, 1_000, key="to here"))
    two.ask(open_wallet(there), open_wallet(neighbour, -50), deposit(there, 500, key="to there"))
    # What the tables have by now does not come along when a slot leaves.
    two.state.tables_reach(len(two.records))

    # Credited, refused, and refused for want of money before anything is sent.
    one.ask(
        transfer(here, there, 10, key="credited", reference="é", metadata='{"a":1}'),
        transfer(here, names_in(range(4000, 4096), 1)[0], 5, key="unknown"),
        transfer(also_here, there, 5, key="too much"),
    )
    net.carry(0, 1)
    two.ask(transfer(there, here, 3, key="back"), transfer(there, neighbour, 1, key="local"))

    # On its way while its wallet has newer entries, before and after it is settled.
    one.ask(transfer(here, there, 20, key="late"))
    entries = net.send(0, 1)
    assert entries is not None
    one.ask(transfer(here, also_here, 30, key="meanwhile"))
    net.settle(0, 1, net.decide(0, 1, entries))
    one.ask(transfer(also_here, here, 1, key="afterwards"))
    net.carry(1, 0)

    # The slot goes while money for it is on its way; with it goes what the tables may not have.
    one.ask(transfer(here, there, 7, key="runs after"), transfer(here, late, 9, key="nobody there"))
    entries = net.send(0, 1)
    assert entries is not None
    two.ask(SetWalletLimits(MERCHANT, there, -25), open_wallet(also_there, currency="JPY"))
    two.ask(GiveSlot(slot, 0))
    net.settle(0, 1, net.decide(0, 1, entries))
    net.quiet()

    # At its new owner it is used, grows, and goes back and forth.
    one.ask(
        open_wallet(late),
        transfer(there, late, 2, key="at the new owner"),
        SetWalletStatus(MERCHANT, also_there, WalletStatus.FROZEN),
    )
    one.ask(transfer(late, neighbour, 1, key="to the old one"))
    net.quiet()
    for giver in (0, 1, 0, 1):
        net.shards[giver].ask(GiveSlot(slot, 1 - giver))
        net.quiet()
    one.ask(open_wallet(leaves_last), transfer(there, leaves_last, 1, key="again"))
    two.ask(transfer(neighbour, there, 4, key="from the neighbour"))
    net.quiet()
    one.ask(GiveSlot(slot, 1))
    net.carry(0, 1)

    # Left on their way: a transfer each way, one of them decided already, and a slot.
    two.ask(transfer(there, here, 6, key="decided"), transfer(there, "?", 6, key="not settled"))
    entries = net.send(1, 0)
    assert entries is not None
    net.decide(1, 0, entries)
    one.ask(transfer(here, there, 8, key="under way"), transfer(here, also_here, 1, key="last"))
    one.ask(GiveSlot(slot_of(leaves_last), 1))
    return net
