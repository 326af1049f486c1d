"""
What the journal says, read by the rules: every link of the chain checked, every decision applied.

The tables are compared with it, so a test needs no expectations of its own to find a lost or a
doubled row.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import asyncpg
import msgspec
from msgspec.structs import replace

from processor.core.apply import apply
from processor.core.decisions import (
    CarriedOutcome,
    Decision,
    HoldChanged,
    HoldPlaced,
    LinkedBegun,
    PrepareSent,
    SlotGiven,
    SlotsGranted,
    SlotTaken,
    TransferPosted,
    TransferRejected,
    TransferReserved,
    VerdictSent,
    decode_decisions,
)
from processor.core.invariants import books, broken_channels, broken_wallets
from processor.core.record import GENESIS_CHAIN, Record, check_link
from processor.core.slots import NOWHERE, SlotMap, slot_of
from processor.core.state import ShardState
from processor.core.wallet import Wallet, is_system_wallet
from processor.flow.ports import InEnd, OutEnd, PendingRow, ShardSnapshot, SlotRow
from processor.storage.count_rows import (
    HOLD_COLUMNS,
    REFUND_COLUMNS,
    hold_from_row,
    refund_from_row,
)
from processor.storage.journal_rows import RECORD_COLUMNS, record_from_row
from processor.storage.outcomes import remembered_from_row
from processor.storage.recovery_view import PostgresRecoveryView
from processor.storage.wallet_rows import wallet_from_row
from tests.support.databases import reading
from tests.support.net_tables import NetTables
from tests.support.transfer_rows import OUTCOMES, ROWS, TransferRows

_decode_outcome = msgspec.msgpack.Decoder(CarriedOutcome).decode

_TRANSFERS = """
    SELECT *, (extract(epoch FROM at) * 1000000)::bigint AS at_us FROM transfers
     WHERE shard_id = $1
"""


class Journal:
    """
    The whole journal of one shard, replayed.
    """

    def __init__(self, records: list[Record], shard_id: int = 0) -> None:
        self.records = records
        self.shard_id = shard_id
        self.state = ShardState(shard_id, SlotMap.undivided(NOWHERE))
        self.decisions: list[Decision] = []
        sequence, chain, epoch = 0, GENESIS_CHAIN, 0
        for record in records:
            check_link(record, after_sequence=sequence, after_chain=chain)
            assert record.epoch >= epoch, f"sequence {record.sequence}: the epoch goes back"
            sequence, chain, epoch = record.sequence, record.chain, record.epoch
            for decision in decode_decisions(record.payload, record.format):
                apply(self.state, decision, record.sequence, record.at_us)
                self.decisions.append(decision)
        assert not broken_wallets(self.state.wallets.values())
        assert not broken_channels(self.state)
        assert not any(books(self.state.wallets.values()).values()), "money came or went"

    @property
    def sequence(self) -> int:
        return len(self.records)

    def key_counts(self) -> Counter[bytes]:
        """
        Count how often each key was decided; more than once is a double payment.
        """
        return Counter(
            decision.key
            for decision in self.decisions
            if isinstance(decision, TransferPosted | TransferRejected)
        )

    def balance(self, wallet_id: str) -> int:
        return self.state.wallets[wallet_id].posted


async def read_journal(dsn: str, shard_id: int = 0) -> Journal:
    """
    Read a journal; raises BrokenChain or AssertionError when it is not in order.
    """
    async with reading(dsn) as connection:
        return await journal_on(connection, shard_id)


async def journal_on(connection: asyncpg.Connection[Any], shard_id: int = 0) -> Journal:
    rows = await connection.fetch(
        f"SELECT {RECORD_COLUMNS} FROM journal WHERE shard_id = $1 ORDER BY sequence", shard_id
    )
    return Journal([record_from_row(row) for row in rows], shard_id)


async def read_balanced_tables(dsn: str, shard_id: int = 0) -> Journal:
    """
    Check that the tables say what the journal of a shard says, up to its end; return the journal.
    """
    async with (
        reading(dsn) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        journal = await journal_on(connection, shard_id)
        marks = await connection.fetch(
            "SELECT sequence, chain FROM watermark WHERE shard_id = $1", shard_id
        )
        assert [tuple(row) for row in marks] == [(journal.sequence, journal.records[-1].chain)]
        wallets = await connection.fetch("SELECT * FROM wallets WHERE shard_id = $1", shard_id)
        await _check_transfers(connection, journal)
        await _check_counts(connection, journal)
        view = await PostgresRecoveryView.open(connection, shard_id)
        assert_snapshot(journal, await view.load_snapshot())
    assert {row["wallet_id"]: row["slot"] for row in wallets} == {
        name: slot_of(name) for name in journal.state.wallets
    }
    assert {wallet.wallet_id: row_facts(wallet) for wallet in map(wallet_from_row, wallets)} == {
        name: row_facts(wallet) for name, wallet in journal.state.wallets.items()
    }
    return journal


def row_facts(wallet: Wallet) -> tuple[Any, ...]:
    """
    Tell of a wallet what its row has; what is set aside is in the rows of what is not decided.
    """
    facts = list(wallet.facts())
    return (*facts[:6], facts[7], *facts[11:])


async def _check_transfers(connection: asyncpg.Connection[Any], journal: Journal) -> None:
    """
    Check that the rows of transfers and the outcomes are those of the journal, each once, and that
    together they say what is remembered under each key.
    """
    shard_id = journal.shard_id
    expected = TransferRows(shard_id, journal.records)
    rows = Counter(tuple(row) for row in await connection.fetch(ROWS, shard_id))
    assert rows == Counter(expected.rows)
    outcomes = {
        row["key"]: (row["sequence"], _decode_outcome(row["outcome"]), row["transfer_id"])
        for row in await connection.fetch(OUTCOMES, shard_id)
    }
    assert outcomes == expected.outcomes
    told = await connection.fetch(_TRANSFERS, shard_id)
    remembered = {row["key"]: remembered_from_row(row) for row in told if row["key"] is not None}
    for key, (_, outcome, _) in outcomes.items():
        decided = (outcome.decision, outcome.sequence, outcome.at_us)
        assert remembered.get(key, decided) == decided, "two tales of one key"
        remembered[key] = decided
    assert remembered == {
        key: tuple(value)
        for key, value in journal.state.keys.young.items()
        if not isinstance(value[0], TransferReserved | LinkedBegun)
    }


async def _check_counts(connection: asyncpg.Connection[Any], journal: Journal) -> None:
    """
    Check the rows of holds, with the time of their last change, and of refunds.
    """
    shard_id = journal.shard_id
    tables = tables_of(journal)
    holds = await connection.fetch(
        f"SELECT {HOLD_COLUMNS} FROM holds WHERE shard_id = $1", shard_id
    )
    assert {row["hold_id"]: hold_from_row(row) for row in holds} == tables.holds
    changed = await connection.fetch(
        "SELECT hold_id, (extract(epoch FROM changed_at) * 1000000)::bigint FROM holds"
        " WHERE shard_id = $1",
        shard_id,
    )
    assert dict(map(tuple, changed)) == {one: _changed_at(journal, one) for one in tables.holds}
    refunds = await connection.fetch(
        f"SELECT {REFUND_COLUMNS} FROM refunds WHERE shard_id = $1", shard_id
    )
    assert {row["transfer_id"]: refund_from_row(row) for row in refunds} == tables.refunds


def _changed_at(journal: Journal, hold_id: bytes) -> int:
    """
    Find the time of the last record that speaks of a hold.
    """
    return max(
        record.at_us
        for record in journal.records
        for decision in decode_decisions(record.payload, record.format)
        if (isinstance(decision, HoldPlaced) and decision.transfer_id == hold_id)
        or (isinstance(decision, HoldChanged) and decision.hold_id == hold_id)
        or (isinstance(decision, SlotTaken) and hold_id in [one.hold_id for one in decision.holds])
    )


def tables_of(journal: Journal) -> NetTables:
    """
    Read the journal into tables in memory.
    """
    tables = NetTables(journal.shard_id)
    for record in journal.records:
        tables.project(decode_decisions(record.payload, record.format), record.at_us)
    return tables


def assert_snapshot(journal: Journal, snapshot: ShardSnapshot) -> None:
    """
    Check that *snapshot* is what recovery has to find at the end of *journal*.
    """
    channels = journal.state.channels
    pending = _pending_of(journal)
    assert snapshot.pending == pending
    assert snapshot.slots == _slots_of(journal)
    assert snapshot.outgoing == [
        OutEnd(peer, end.head, end.chain, end.settled, end.settled_chain)
        for peer, end in sorted(channels.outgoing.items())
        if end.head
    ]
    assert snapshot.incoming == [
        InEnd(peer, end.cursor, end.chain, end.refused)
        for peer, end in sorted(channels.incoming.items())
        if end.cursor
    ]
    expected = tables_of(journal).snapshot()
    assert snapshot.holds == sorted(expected.holds, key=lambda one: one.hold_id)
    assert snapshot.linked == sorted(expected.linked, key=lambda one: one.begun.transfer_id)
    assert snapshot.prepared == sorted(expected.prepared, key=lambda one: one.prepared.linked_id)
    assert snapshot.refunds == expected.refunds
    wallets = {
        name: row_facts(wallet)
        for name, wallet in journal.state.wallets.items()
        if is_system_wallet(name) or wallet.is_relied_on or wallet.held
    }
    loaded = {wallet.wallet_id: row_facts(wallet) for wallet in snapshot.wallets}
    assert len(loaded) == len(snapshot.wallets)
    assert loaded == wallets


def _pending_of(journal: Journal) -> list[PendingRow]:
    """
    List what is on its way, with the record that sent it, by peer and number.
    """
    sent = {
        (decision.peer, decision.number): PendingRow(decision, record.sequence, record.at_us)
        for record in journal.records
        for decision in decode_decisions(record.payload, record.format)
        if isinstance(decision, TransferReserved | SlotGiven | PrepareSent | VerdictSent)
    }
    return [
        sent[peer, number]
        for peer, channel in sorted(journal.state.channels.outgoing.items())
        for number in channel.outbox
    ]


def _slots_of(journal: Journal) -> list[SlotRow]:
    """
    List the slots that are or were here, from the decisions alone.
    """
    rows: dict[int, SlotRow] = {}
    for decision in journal.decisions:
        match decision:
            case SlotsGranted(first, last):
                rows.update((slot, SlotRow(slot, 1, None, None)) for slot in range(first, last + 1))
            case SlotTaken(peer=peer, slot=slot, generation=generation):
                rows[slot] = SlotRow(slot, generation, peer, None)
            case SlotGiven(peer=peer, slot=slot):
                rows[slot] = replace(rows[slot], given_to=peer)
    return [rows[slot] for slot in sorted(rows)]
