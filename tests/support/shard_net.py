"""
Several shards in one process, with a wire between each two: no clock, no sockets, no threads.

A shard here is the ledger's own state, batch and channel link with a list for a journal. It
collects a batch while the one before is on its way to the disk, as the real one does; a crash
leaves it the journal alone, and the batch on its way is then durable or not, as the test says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from processor.core.apply import apply
from processor.core.commands import Command
from processor.core.decisions import DECISION_FORMAT, decode_decisions, encode_decisions
from processor.core.slots import SlotMap
from processor.core.state import ShardState
from processor.flow.batch import Batch
from processor.flow.channel_link import (
    Answers,
    Effect,
    Entries,
    Greeting,
    OutgoingLink,
    OutOfOrder,
    Welcome,
)
from processor.flow.frames import Answered, Reply, RequestFrame, Result
from tests.support.commands import AT_US


def names_on(shard_id: int, shard_count: int) -> list[str]:
    """
    Name four wallets of one shard.
    """
    slots = SlotMap.even(shard_count)
    numbered = (f"wallet-{number}" for number in range(1_000))
    return [name for name in numbered if slots.shard_of(name) == shard_id][:4]


class Wire:
    """
    One connection from a source to a destination: two queues that end with it.
    """

    def __init__(self) -> None:
        self.to_destination: deque[Effect] = deque()
        self.to_source: deque[Effect] = deque()


class NetShard:
    """
    One shard: what it has in memory, and its journal.
    """

    def __init__(self, shard_id: int, shard_count: int) -> None:
        self.shard_id = shard_id
        self.shard_count = shard_count
        self.journal: list[bytes] = []
        self.peers = [peer for peer in range(shard_count) if peer != shard_id]
        self.recover()

    def recover(self) -> None:
        """
        Begin again from the journal, as a new process does.
        """
        self.state = ShardState(self.shard_id, SlotMap.even(self.shard_count))
        for sequence, payload in enumerate(self.journal, 1):
            for decision in decode_decisions(payload, DECISION_FORMAT):
                apply(self.state, decision, sequence, AT_US + sequence)
        self.committing: Batch | None = None
        self._open_batch()
        self.links = {peer: OutgoingLink(self.state.channels.to(peer)) for peer in self.peers}

    def _open_batch(self) -> None:
        sequence = len(self.journal) + 1 + (self.committing is not None)
        self.batch = Batch(sequence)
        self.batch.at_us = AT_US + sequence

    def close_batch(self) -> None:
        """
        Send the batch to the disk, if none is on its way, and open the next.
        """
        if self.committing is None and self.batch:
            self.committing = self.batch
            self._open_batch()
            if not self.committing.decisions:
                # It needed no record: the next batch has its number.
                self.batch = Batch(self.committing.sequence)
                self.batch.at_us = self.committing.at_us

    def write(self) -> None:
        """
        Make the batch on its way durable; nothing leaves yet.
        """
        if self.committing is not None and self.committing.decisions:
            self.journal.append(encode_decisions(self.committing.decisions))

    def release(self) -> None:
        """
        Let go what waited for the durable batch.
        """
        batch, self.committing = self.committing, None
        assert batch is not None
        batch.release()
        for peer, (head, settled) in batch.ends.items():
            self.links[peer].made_durable(head, settled)


class ShardNet:
    """
    Shards and the wires between them. Every step is one that can happen by itself.
    """

    def __init__(self, shard_count: int) -> None:
        self.shards = [NetShard(shard_id, shard_count) for shard_id in range(shard_count)]
        self.wires: dict[tuple[int, int], Wire] = {}
        self.sent: list[tuple[int, int, Entries]] = []  # Whatever was ever sent.
        self.replies: list[tuple[Sequence[Command], list[Result]]] = []

    def ask(self, shard_id: int, commands: list[Command]) -> None:
        """
        Offer a frame; its reply comes into `replies` when it is durable, or never.
        """
        shard = self.shards[shard_id]

        def deliver(reply: Reply) -> None:
            assert isinstance(reply, Answered)
            self.replies.append((commands, reply.results))

        shard.batch.add(shard.state, RequestFrame(1, shard_id, 1, commands), deliver)

    def commit(self, shard_id: int) -> None:
        """
        Take the batch on its way and the open one to their end, and send what may be sent then.
        """
        for _ in range(2):
            self.shards[shard_id].close_batch()
            self.finish_commit(shard_id)

    def finish_commit(self, shard_id: int) -> None:
        """
        End the batch on its way, if any, while the next is open.
        """
        shard = self.shards[shard_id]
        if shard.committing is not None:
            shard.write()
            shard.release()
        self.send(shard_id)

    def crash(self, shard_id: int, *, written: bool) -> None:
        """
        Lose a shard's memory and connections, with the batch on its way durable or not.
        """
        shard = self.shards[shard_id]
        shard.close_batch()
        if written:
            shard.write()
        shard.recover()
        for pair in [pair for pair in self.wires if shard_id in pair]:
            self.cut(*pair)

    def connect(self, source: int, destination: int) -> None:
        if (source, destination) in self.wires:
            return
        wire = self.wires[source, destination] = Wire()
        shard = self.shards[source]
        shard.batch.add_greeting(shard.state, destination, wire.to_destination.append)

    def cut(self, source: int, destination: int) -> None:
        if self.wires.pop((source, destination), None) is not None:
            self.shards[source].links[destination].dropped()

    def send(self, source: int) -> None:
        for destination, link in self.shards[source].links.items():
            wire = self.wires.get((source, destination))
            if wire is not None and (entries := link.next_entries()) is not None:
                wire.to_destination.append(entries)
                self.sent.append((source, destination, entries))

    def arrive(self, source: int, destination: int) -> bool:
        """
        Take in the next message of each direction; say whether there was one.
        """
        wire = self.wires.get((source, destination))
        if wire is None or not (wire.to_destination or wire.to_source):
            return False
        try:
            if wire.to_destination:
                self.receive(source, destination, wire.to_destination.popleft())
            if wire.to_source:
                self._receive_answer(source, destination, wire.to_source.popleft())
        except OutOfOrder:
            self.cut(source, destination)
        return True

    def receive(self, source: int, destination: int, said: Effect) -> None:
        """
        Hand a source's message to its destination.
        """
        shard = self.shards[destination]
        wire = self.wires[source, destination]
        if isinstance(said, Greeting):
            shard.batch.add_welcome(shard.state, said, wire.to_source.append)
        else:
            assert isinstance(said, Entries)
            shard.batch.add_entries(shard.state, source, said, wire.to_source.append)

    def _receive_answer(self, source: int, destination: int, said: Effect) -> None:
        shard = self.shards[source]
        link = shard.links[destination]
        if isinstance(said, Welcome):
            answers = link.take_welcome(said)
        else:
            assert isinstance(said, Answers)
            answers = link.take_answers(said)
        shard.batch.add_answers(shard.state, destination, answers)

    def settle(self) -> None:
        """
        Let everything run without faults until nothing is left to do.
        """
        pairs = [(s.shard_id, peer) for s in self.shards for peer in s.peers]
        for pair in pairs:
            self.connect(*pair)
        quiet_rounds = 0
        while quiet_rounds < 3:
            moved = [self.arrive(*pair) for pair in pairs]
            for shard in self.shards:
                self.commit(shard.shard_id)
            for pair in pairs:
                self.connect(*pair)
            quiet_rounds = 0 if any(moved) else quiet_rounds + 1
