"""
Several shards in one process, with a wire between each two: no sockets, no threads, and a clock
that only the test moves on.

A shard here is the ledger's own state, batch and channel link with a list for a journal and
`NetTables` for its tables. It collects a batch while the one before is on its way to the disk, as
the real one does; a crash leaves it the journal and the tables alone, and the batch on its way is
then durable or not, as the test says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from processor.core.apply import apply, wallets_touched
from processor.core.commands import Command, GiveSlot, key_of
from processor.core.counts_needed import (
    RefundsNeeded,
    holds_of_commands,
    refunds_of_answers,
    refunds_of_commands,
    refunds_of_entries,
    wallets_of_holds,
)
from processor.core.decisions import (
    DECISION_FORMAT,
    EpochStarted,
    SlotsGranted,
    decode_decisions,
    encode_decisions,
)
from processor.core.hold import RefundTotal
from processor.core.invariants import broken_channels
from processor.core.slots import NOWHERE, SLOT_COUNT, SlotMap
from processor.core.wallet import Wallet
from processor.core.wallets_needed import (
    wallets_of_answers,
    wallets_of_commands,
    wallets_of_entries,
)
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
from processor.flow.frames import (
    Answered,
    Moved,
    Outcome,
    Reply,
    RequestFrame,
    Result,
    Settled,
)
from processor.flow.recovery import restore
from processor.flow.settlement_watch import SettlementWatch
from tests.support.commands import AT_US
from tests.support.net_tables import NetTables

RECORD_US = 10_000  # From one record to the next.
ENTRIES_IN_FLIGHT_MAX = 6


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
    One shard: what it has in memory, its journal and its tables.
    """

    def __init__(self, shard_id: int, net: ShardNet) -> None:
        self.shard_id = shard_id
        self.net = net
        self.peers = [peer for peer in range(net.shard_count) if peer != shard_id]
        own = SlotMap.even(net.shard_count).slots_of(shard_id)
        granted = [EpochStarted("net"), SlotsGranted(own[0], own[-1])]
        self.journal: list[bytes] = [encode_decisions([*granted])]
        self.times: list[int] = [time_of(1)]  # In µs, of each record.
        self.tables = NetTables(shard_id)
        self.recover()

    def recover(self, *, with_tables: bool = False) -> None:
        """
        Begin again as a new process does: with the tables and the journal behind them, or from
        the journal's first record.
        """
        tables = self.tables if with_tables else NetTables(self.shard_id)
        self.state = restore(self.shard_id, self.net.catalog, tables.snapshot())
        self.state.tables_reach(tables.watermark)
        for sequence in range(tables.watermark + 1, len(self.journal) + 1):
            self._replay(sequence, tables)
        assert broken_channels(self.state) == []
        self.state.tables_reach(self.tables.watermark)
        self.committing: Batch | None = None
        self.watch = SettlementWatch()
        self._open_batch()
        self.links = {
            peer: OutgoingLink(self.state.channels.to(peer), ENTRIES_IN_FLIGHT_MAX)
            for peer in self.peers
        }
        slots = self.state.slots
        self.net.note((slot, slots.generation(slot), self.shard_id) for slot in self.own_slots())

    def _replay(self, sequence: int, tables: NetTables) -> None:
        decisions = decode_decisions(self.journal[sequence - 1], DECISION_FORMAT)
        named = [name for one in decisions for name in wallets_touched(self.state, one)]
        for wallet in tables.load_wallets(named):
            self.state.load(wallet)
        for decision in decisions:
            apply(self.state, decision, sequence, self.times[sequence - 1])

    def own_slots(self) -> list[int]:
        return self.state.slots.slots_of(self.shard_id)

    def project(self, count: int, *, durably: bool) -> None:
        """
        Let the tables come *count* records nearer, and the shard know that they are durable.
        """
        for payload in self.journal[self.tables.watermark :][:count]:
            decisions = decode_decisions(payload, DECISION_FORMAT)
            self.tables.project(decisions, self.times[self.tables.watermark])
        if durably:
            self.state.tables_reach(self.tables.watermark)

    def forget(self) -> None:
        """
        Drop whatever may be dropped from memory.
        """
        state = self.state
        for wallet in list(state.wallets.values()):
            if state.may_evict(wallet):
                del state.wallets[wallet.wallet_id]
        for _ in range(2):
            state.forget_keys(state.tables_at)
        state.forget_counts(0)

    def load(self, names: list[str]) -> None:
        for wallet in self.tables.load_wallets(names):
            self.state.load(wallet)

    def load_holds(self, hold_ids: list[bytes]) -> None:
        for shard in self._readable():
            for hold in shard.tables.load_holds(hold_ids):
                self.state.load_hold(hold)

    def load_refunds(self, needed: RefundsNeeded) -> None:
        everybody = self.net.shards if self.net.can_look_elsewhere else []
        for transfer_ids, shards in ((needed.own, [self]), (needed.everywhere, everybody)):
            rows = [RefundTotal(one, "", 0, 0) for one in transfer_ids] if shards else []
            for shard in shards:
                rows += shard.tables.load_refunds(transfer_ids)
            for total in sorted(rows, key=lambda row: row.version, reverse=True):
                self.state.load_refund(total)

    def _readable(self) -> list[NetShard]:
        return self.net.shards if self.state.has_taken else [self]

    def prepare(self, commands: list[Command]) -> None:
        """
        Load what *commands* need, as the real shard does before it decides.
        """
        state = self.state
        self.load(wallets_of_commands(state, commands))
        for command in commands:
            key = key_of(command)
            for shard in self._readable():
                if key in shard.tables.outcomes and state.keys.find(key) is None:
                    state.keys.load(shard.tables.outcomes[key])
            if isinstance(command, GiveSlot):
                rows = self.tables.load_slot(command.slot)
                if state.slots.owner(command.slot) == self.shard_id:
                    for wallet in rows:
                        state.load(wallet)
                    state.leaving[command.slot] = [wallet.wallet_id for wallet in rows]
        self.load_holds(holds_of_commands(state, commands))
        self.load_refunds(refunds_of_commands(state, commands))
        self.load(wallets_of_holds(state, commands))

    def all_wallets(self) -> list[Wallet]:
        """
        List what the shard has in memory, and in the tables only.
        """
        state = self.state
        absent = [
            wallet
            for name, wallet in self.tables.wallets.items()
            if name not in state.wallets and state.has_slot_of(name) and not name.startswith("$")
        ]
        return [*state.wallets.values(), *absent]

    def _open_batch(self) -> None:
        sequence = len(self.journal) + 1 + (self.committing is not None)
        self.batch = Batch(sequence, self.watch)
        self.batch.at_us = self._next_at_us(sequence)

    def _next_at_us(self, sequence: int) -> int:
        last = self.committing.at_us if self.committing is not None else self.times[-1]
        return max(last + 1, time_of(sequence) + self.net.passed_us)

    def begun(self) -> Batch:
        """
        Return the batch that is collected; one that has nothing yet begins now, and what is over by
        then ends first.
        """
        if not self.batch:
            self.batch.at_us = self._next_at_us(self.batch.sequence)
            self.batch.tick(self.state)
        return self.batch

    def close_batch(self) -> None:
        """
        Send the batch to the disk, if none is on its way, and open the next.
        """
        if self.committing is None and self.batch:
            self.committing = self.batch
            self._open_batch()
            if not self.committing.decisions:
                # It needed no record: the next batch has its number.
                self.batch = Batch(self.committing.sequence, self.watch)
                self.batch.at_us = self.committing.at_us

    def write(self) -> None:
        """
        Make the batch on its way durable; nothing leaves yet.
        """
        if self.committing is not None and self.committing.decisions:
            self.journal.append(encode_decisions(self.committing.decisions))
            self.times.append(self.committing.at_us)

    def release(self) -> None:
        """
        Let go what waited for the durable batch.
        """
        batch, self.committing = self.committing, None
        assert batch is not None
        batch.release()
        for peer, (head, settled) in batch.ends.items():
            self.links[peer].made_durable(head, settled)
        self.net.note((slot, generation, self.shard_id) for slot, generation in batch.taken)


def time_of(sequence: int) -> int:
    return AT_US + sequence * RECORD_US


class ShardNet:
    """
    Shards and the wires between them. Every step is one that can happen by itself.
    """

    def __init__(self, shard_count: int) -> None:
        self.shard_count = shard_count
        self.catalog = SlotMap.even(shard_count)
        self.wires: dict[tuple[int, int], Wire] = {}
        self.sent: list[tuple[int, int, Entries]] = []  # Whatever was ever sent.
        self.replies: list[tuple[Sequence[Command], list[Result], int]] = []
        self.settled: list[Outcome] = []  # Told unasked.
        self.passed_us = 0  # Besides the time that records take.
        self.can_look_elsewhere = True  # For totals of refunds, in the tables of others.
        self.shards: list[NetShard] = []
        for shard_id in range(shard_count):
            self.shards.append(NetShard(shard_id, self))

    def note(self, taken: Iterable[tuple[int, int, int]]) -> None:
        """
        Tell the catalog where slots are, each with its generation and shard.
        """
        for slot, generation, shard_id in taken:
            if generation > self.catalog.generation(slot):
                self.catalog.assign(slot, shard_id, generation)

    def ask(self, shard_id: int, commands: list[Command]) -> None:
        """
        Offer a frame; its reply comes into `replies` when it is durable, or never.
        """
        shard = self.shards[shard_id]

        def deliver(reply: Reply) -> None:
            if isinstance(reply, Settled):
                self.settled += reply.results
                return
            assert isinstance(reply, Answered)
            self.replies.append((commands, reply.results, shard_id))

        shard.prepare(commands)
        shard.begun().add(shard.state, RequestFrame(1, shard_id, 1, commands), deliver)

    def tick(self, shard_id: int) -> None:
        """
        Let a shard look at the clock: what is over ends.
        """
        self.shards[shard_id].begun()

    def now_us(self) -> int:
        """
        Return the time of the last record of all.
        """
        return max(shard.times[-1] for shard in self.shards)

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

    def ask_owner(self, command: Command, wallet_id: str) -> Result:
        """
        Ask as a gateway does that knows nothing, and go where it is sent until there is an answer.
        """
        shard_id, result = 0, None
        for _ in range(20 * self.shard_count):
            self.ask(shard_id, [command])
            self.commit(shard_id)
            result = self.replies[-1][1][0]
            if not isinstance(result, Moved):
                return result
            shard_id = result.shard_id if result.shard_id != NOWHERE else shard_id
            self.turn()
        raise AssertionError(f"{wallet_id} is nowhere: {result}")

    def owners(self) -> dict[int, list[int]]:
        """
        Tell for each slot which shards say that it is theirs.
        """
        found: dict[int, list[int]] = {slot: [] for slot in range(SLOT_COUNT)}
        for shard in self.shards:
            for slot in shard.own_slots():
                found[slot].append(shard.shard_id)
        return found

    def crash(self, shard_id: int, *, written: bool, with_tables: bool = False) -> None:
        """
        Lose a shard's memory and connections, with the batch on its way durable or not.
        """
        shard = self.shards[shard_id]
        shard.close_batch()
        if written:
            shard.write()
        shard.recover(with_tables=with_tables)
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
            shard.begun().add_welcome(shard.state, said, wire.to_source.append)
        else:
            assert isinstance(said, Entries)
            shard.load(wallets_of_entries(shard.state, said.entries))
            shard.load_refunds(refunds_of_entries(shard.state, said.entries))
            shard.begun().add_entries(shard.state, source, said, wire.to_source.append)

    def _receive_answer(self, source: int, destination: int, said: Effect) -> None:
        shard = self.shards[source]
        link = shard.links[destination]
        if isinstance(said, Welcome):
            answers = link.take_welcome(said)
        else:
            assert isinstance(said, Answers)
            answers = link.take_answers(said)
        shard.load(wallets_of_answers(shard.state, destination, answers))
        shard.load_refunds(refunds_of_answers(shard.state, destination, answers))
        shard.begun().add_answers(shard.state, destination, answers)

    def settle(self) -> None:
        """
        Let everything run without faults until nothing is left to do.
        """
        quiet_rounds = 0
        while quiet_rounds < 3:
            quiet_rounds = 0 if self.turn() else quiet_rounds + 1

    def turn(self) -> bool:
        """
        Let a message arrive on each wire and commit everywhere; say whether there was any.
        """
        pairs = [(shard.shard_id, peer) for shard in self.shards for peer in shard.peers]
        for pair in pairs:
            self.connect(*pair)
        moved = [self.arrive(*pair) for pair in pairs]
        for shard in self.shards:
            self.commit(shard.shard_id)
        return any(moved)
