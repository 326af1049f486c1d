"""
Journals of several shards and their tables, made step by step without running shards.

The decisions are the ledger's own (`Batch`, which decides and applies); a test carries what is
said from shard to shard, as far as it wants. Each step is a record. The rows are written with plain
SQL of this file, so that a test sees the tables without trusting the write-behind.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import astuple

from processor.core.channel import answer_elsewhere, answer_refused, entry_sent
from processor.core.commands import Command, GiveSlot
from processor.core.counts_needed import (
    RefundsNeeded,
    refunds_of_answers,
    refunds_of_commands,
    refunds_of_entries,
)
from processor.core.decisions import (
    AnswersForgotten,
    Decision,
    EntryCredited,
    EntryElsewhere,
    EntryRefused,
    EpochStarted,
    RefundCounted,
    SlotDelivered,
    SlotGiven,
    SlotsGranted,
    SlotTaken,
    TransferPosted,
    TransferRecalled,
    TransferRejected,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
    asked_of,
    decode_decisions,
)
from processor.core.hold import RefundTotal
from processor.core.record import GENESIS_CHAIN
from processor.core.slots import SLOT_COUNT, SlotMap, slot_of
from processor.core.state import ShardState
from processor.core.wallet import due_wallet_id
from processor.flow.batch import Batch
from processor.flow.channel_link import Answers, Effect, Entries
from processor.flow.frames import Answered, Reply, RequestFrame, Result
from processor.storage.connection import Connection
from tests.support.commands import deposit, open_wallet, transfer
from tests.support.journal_builder import START_US, JournalBuilder, write_journal

_encode = msgspec.msgpack.Encoder().encode


def name_on(shard_id: int, shard_count: int, number: int = 0) -> str:
    """
    Name a wallet of one shard; *number* tells several apart, each in a slot of its own.
    """
    slots = SlotMap.even(shard_count)
    named: dict[int, str] = {}
    for tried in range(SLOT_COUNT):
        name = f"wallet-{tried}"
        if slots.shard_of(name) == shard_id:
            named.setdefault(slot_of(name), name)
    return list(named.values())[number]


class NetBuilder:
    """
    Shards with the first slots divided evenly, and the channels between them.
    """

    def __init__(self, shard_count: int) -> None:
        slots = SlotMap.even(shard_count)
        self.later_us = 0  # How much time has passed besides what each record takes.
        self.refunds: dict[bytes, RefundTotal] = {}  # What the tables of all shards know.
        self.shards = [JournalBuilder(shard_id) for shard_id in range(shard_count)]
        for shard in self.shards:
            shard.state = ShardState(shard.shard_id, SlotMap.even(shard_count))
            own = slots.slots_of(shard.shard_id)
            shard.epoch = 1
            shard.decided(EpochStarted("test"))
            shard.decided(SlotsGranted(own[0], own[-1]))
            shard.seal()

    def ask(self, shard_id: int, *commands: Command) -> list[Result]:
        """
        Let a shard execute commands in one record.
        """
        results: list[Result] = []

        def deliver(reply: Reply) -> None:
            if isinstance(reply, Answered):
                results.extend(reply.results)

        state = self.shards[shard_id].state
        self._look_up(state, refunds_of_commands(state, commands))
        batch = self._batch(shard_id)
        batch.add(
            self.shards[shard_id].state, RequestFrame(1, shard_id, 1, list(commands)), deliver
        )
        self._record(shard_id, batch)
        return results

    def _look_up(self, state: ShardState, needed: RefundsNeeded) -> None:
        for transfer_id in (*needed.own, *needed.everywhere):
            state.load_refund(self.refunds.get(transfer_id) or RefundTotal(transfer_id, "", 0, 0))

    def open_with(self, shard_id: int, wallet_id: str, amount: int) -> None:
        """
        Open a wallet with money in it.
        """
        self.ask(
            shard_id, open_wallet(wallet_id), deposit(wallet_id, amount, key=f"first {wallet_id}")
        )

    def pay(self, shard_id: int, source: str, destination: str, amount: int, key: str) -> Result:
        return self.ask(shard_id, transfer(source, destination, amount, key=key))[0]

    def give(self, shard_id: int, slot: int, peer: int) -> Result:
        """
        Give a slot to another shard.
        """
        state = self.shards[shard_id].state
        state.leaving[slot] = [name for name in state.wallets if slot_of(name) == slot]
        return self.ask(shard_id, GiveSlot(slot, peer))[0]

    def send(self, source: int, destination: int, count: int = 1_000) -> list[int]:
        """
        Bring the next entries to their destination; return the answers, which the source has not.
        """
        channel = self.shards[source].state.channels.to(destination)
        cursor = self.shards[destination].state.channels.of(source).cursor
        numbers = range(cursor + 1, min(channel.head, cursor + count) + 1)
        entries = [entry_sent(channel.outbox[number]) for number in numbers]
        said: list[Effect] = []
        state = self.shards[destination].state
        self._look_up(state, refunds_of_entries(state, entries))
        batch = self._batch(destination)
        frame = Entries(entries, channel.outbox[numbers[-1]].chain, channel.settled)
        batch.add_entries(self.shards[destination].state, source, frame, said.append)
        self._record(destination, batch)
        (answers,) = said
        assert isinstance(answers, Answers)
        return answers.answers

    def settle(self, source: int, destination: int, answers: list[int]) -> None:
        """
        Bring answers to the source.
        """
        state = self.shards[source].state
        self._look_up(state, refunds_of_answers(state, destination, answers))
        batch = self._batch(source)
        batch.add_answers(self.shards[source].state, destination, answers)
        self._record(source, batch)

    def carry(self, source: int, destination: int) -> None:
        """
        Bring everything to its destination, and the answers back.
        """
        self.settle(source, destination, self.send(source, destination))

    def wait(self, seconds: float) -> None:
        """
        Let time pass, and end what is over by then.
        """
        self.later_us += int(seconds * 1_000_000)
        for shard in self.shards:
            self._record(shard.shard_id, self._batch(shard.shard_id))

    def _batch(self, shard_id: int) -> Batch:
        shard = self.shards[shard_id]
        batch = Batch(shard.sequence + 1)
        batch.at_us = START_US + shard.sequence + self.later_us
        batch.tick(shard.state)
        return batch

    def _record(self, shard_id: int, batch: Batch) -> None:
        shard = self.shards[shard_id]
        for decision in batch.decisions:
            shard.journal(decision)
            if isinstance(decision, RefundCounted):
                total = RefundTotal(*astuple(decision))
                self.refunds[total.transfer_id] = total
        if batch.decisions:
            shard.seal(at_us=batch.at_us)
        batch.release()


class Tables:
    """
    What all tables of one shard hold at a watermark, of movements without terms.
    """

    def __init__(self, builder: JournalBuilder, watermark: int) -> None:
        self.builder = builder
        self.watermark = watermark
        self.wallets: dict[str, list[Any]] = {}
        self.transfers: list[tuple[Any, ...]] = []
        self.slots: dict[int, list[Any]] = {}
        self.heads: dict[int, tuple[int, bytes]] = {}
        self.settled: dict[int, tuple[int, bytes]] = {}
        self.cursors: dict[int, tuple[int, bytes]] = {}
        self.answers: dict[tuple[int, int], int] = {}
        self.pending: dict[tuple[int, int], tuple[Any, int, int]] = {}
        self.carried: dict[bytes, tuple[int, bytes, bytes]] = {}
        for record in builder.records[:watermark]:
            self._sequence, self._at_us = record.sequence, record.at_us
            self._at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=record.at_us)
            for decision in decode_decisions(record.payload, record.format):
                self._add(decision)

    def _add(self, decision: Decision) -> None:
        match decision:
            case WalletOpened(wallet_id, merchant_id, currency, minimum):
                self._open(wallet_id, merchant_id, currency, 1, minimum, 0, 0)
            case WalletStatusSet(wallet_id, status):
                self.wallets[wallet_id][4] = status
            case WalletLimitsSet(wallet_id, minimum):
                self.wallets[wallet_id][5] = minimum
            case TransferPosted():
                asked = asked_of(decision)  # type: ignore[arg-type]
                after = msgspec.structs.astuple(decision)[10:14]
                self._move(asked, decision.source, decision.destination, after, None)
            case TransferRejected():
                self._reject(asked_of(decision), decision.reason, decision.short_by)
            case TransferReserved() | SlotGiven():
                self._send(decision)
            case TransferSettled() | TransferReleased() | TransferRecalled() | SlotDelivered():
                self._settle(decision)
            case EntryCredited() | EntryRefused() | EntryElsewhere() | SlotTaken():
                self._take(decision)
            case SlotsGranted(first, last):
                self.slots = {slot: [1, None, None] for slot in range(first, last + 1)}
            case AnswersForgotten(peer, settled):
                for of, number in list(self.answers):
                    if of == peer and number <= settled:
                        del self.answers[of, number]

    def _open(self, wallet_id: str, *facts: Any) -> None:
        self.wallets[wallet_id] = [wallet_id, self.builder.shard_id, *facts, self._at]

    def _move(
        self, asked: tuple[Any, ...], source: str, destination: str, after: Any, other: str | None
    ) -> None:
        kind, transfer_id, key, merchant_id, _, _, *rest = asked
        source_version, source_balance, destination_version, destination_balance = after
        self.transfers.append(
            (
                *(transfer_id, self.builder.shard_id, self._sequence, self._at, kind, None),
                *(merchant_id, key, source, source_version, source_balance),
                *(destination, destination_version, destination_balance, *rest, other, None, None),
            )
        )
        self.wallets[source][6:8] = source_balance, source_version
        self.wallets[destination][6:8] = destination_balance, destination_version

    def _reject(self, asked: tuple[Any, ...], reason: int, short_by: int) -> None:
        kind, transfer_id, key, merchant_id, source, destination, *rest = asked
        self.transfers.append(
            (
                *(transfer_id, self.builder.shard_id, self._sequence, self._at, kind, reason),
                *(merchant_id, key, source, None, None, destination, None, None, *rest),
                *(None, None, short_by or None),
            )
        )

    def _send(self, decision: TransferReserved | SlotGiven) -> None:
        self.heads[decision.peer] = (decision.number, decision.chain)
        place = decision.peer, decision.number
        self.pending[place] = (decision, self._sequence, self._at_us)
        if isinstance(decision, SlotGiven):
            self.slots[decision.slot][2] = decision.peer
            for carried in decision.wallets:
                del self.wallets[carried.wallet_id]
            self._post_dues(decision)

    def _settle(
        self, decision: TransferSettled | TransferReleased | TransferRecalled | SlotDelivered
    ) -> None:
        sent, _, _ = self.pending.pop((decision.peer, decision.number))
        self.settled[decision.peer] = (decision.number, sent.chain)
        if isinstance(decision, TransferSettled):
            due = due_wallet_id(self.builder.shard_id, decision.peer, sent.currency)
            after = msgspec.structs.astuple(decision)[3:]
            self._move(asked_of(sent), sent.source, due, after, sent.destination)
        elif isinstance(decision, TransferReleased):
            self._reject(asked_of(sent), decision.reason, decision.short_by)

    def _take(self, decision: EntryCredited | EntryRefused | EntryElsewhere | SlotTaken) -> None:
        self.cursors[decision.peer] = (decision.number, decision.chain)
        place = decision.peer, decision.number
        match decision:
            case EntryRefused():
                self.answers[place] = answer_refused(
                    decision.reason, decision.short_by, decision.leg
                )
            case EntryElsewhere():
                self.answers[place] = answer_elsewhere(decision.shard_id)
            case EntryCredited():
                due = due_wallet_id(self.builder.shard_id, decision.peer, decision.currency)
                named = (1, decision.transfer_id, None, decision.merchant_id, "", "")
                asked = (*named, *msgspec.structs.astuple(decision)[7:11])
                after = msgspec.structs.astuple(decision)[11:15]
                self._move(asked, due, decision.destination, after, decision.source)
            case SlotTaken():
                self.slots[decision.slot] = [decision.generation, decision.peer, None]
                for carried in decision.wallets:
                    self._open(*msgspec.structs.astuple(carried)[:7])
                for outcome in decision.outcomes:
                    made = (self._sequence, _encode(outcome), outcome.decision.transfer_id)
                    self.carried[outcome.decision.key] = made
                self._post_dues(decision)

    def _post_dues(self, decision: SlotGiven | SlotTaken) -> None:
        for due in decision.dues:
            wallet_id = due_wallet_id(self.builder.shard_id, decision.peer, due.currency)
            self.wallets[wallet_id][6:8] = due.balance, due.version

    async def write(self, conn: Connection) -> None:
        """
        Write every row, and the watermark.
        """
        shard_id = self.builder.shard_id
        transfer_id: bytes | None
        await _insert(conn, "transfers", self.transfers)
        wallets = [(*wallet, slot_of(name), None, None) for name, wallet in self.wallets.items()]
        await _insert(conn, "wallets", wallets)
        slots = [(shard_id, slot, *facts) for slot, facts in self.slots.items()]
        await _insert(conn, "slots", slots)
        unmoved = (0, bytes(16))
        outgoing = [
            (shard_id, peer, *head, *self.settled.get(peer, unmoved))
            for peer, head in self.heads.items()
        ]
        await _insert(conn, "channels_out", outgoing)
        incoming = [(shard_id, peer, *cursor) for peer, cursor in self.cursors.items()]
        await _insert(conn, "channels_in", incoming)
        answers = [(shard_id, *place, answer) for place, answer in self.answers.items()]
        await _insert(conn, "channel_answers", answers)
        pending = []
        for place, (sent, sequence, at_us) in self.pending.items():
            transfer_id = sent.transfer_id if isinstance(sent, TransferReserved) else None
            pending.append((shard_id, *place, sequence, at_us, transfer_id, _encode(sent)))
        await _insert(conn, "pending_entries", pending)
        carried = [(shard_id, key, *outcome) for key, outcome in self.carried.items()]
        await _insert(conn, "outcomes", carried)
        records = self.builder.records
        chain = records[self.watermark - 1].chain if self.watermark else GENESIS_CHAIN
        await _insert(conn, "watermark", [(shard_id, "tables", self.watermark, chain)])


async def _insert(conn: Connection, table: str, rows: list[tuple[Any, ...]]) -> None:
    # In the order of the columns as they were made.
    await conn.copy_records_to_table(table, records=rows)


async def write_shard(conn: Connection, builder: JournalBuilder, watermark: int) -> None:
    """
    Write a shard's journal, and its tables as of *watermark*.
    """
    await write_journal(conn, builder)
    await Tables(builder, watermark).write(conn)


async def write_slot_map(conn: Connection, net: NetBuilder) -> None:
    """
    Write the catalog's map as the owners' journals have it.
    """
    rows = [
        (slot, shard.shard_id, shard.state.slots.generation(slot))
        for shard in net.shards
        for slot in shard.state.slots.slots_of(shard.shard_id)
    ]
    await _insert(conn, "slot_map", rows)
