"""
What the journal says, read by the rules: every link of the chain checked, every decision applied.

The tables are compared with it, so a test needs no expectations of its own to find a lost or a
doubled row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import asyncpg
import msgspec
from msgspec.structs import replace

from processor.core.apply import apply
from processor.core.decisions import (
    CarriedOutcome,
    Decision,
    EntryCredited,
    SlotGiven,
    SlotsGranted,
    SlotTaken,
    TransferPosted,
    TransferRejected,
    TransferReserved,
    decode_decisions,
)
from processor.core.invariants import books, broken_channels, broken_wallets
from processor.core.record import GENESIS_CHAIN, Record, check_link
from processor.core.slots import NOWHERE, SlotMap, slot_of
from processor.core.state import ShardState
from processor.core.wallet import Wallet, due_wallet_id, is_system_wallet
from processor.flow.ports import InEnd, OutEnd, PendingRow, ShardSnapshot, SlotRow
from processor.storage.journal_rows import RECORD_COLUMNS, record_from_row
from processor.storage.outcomes import remembered_from_row
from processor.storage.recovery_view import PostgresRecoveryView
from processor.storage.wallet_rows import wallet_from_row
from tests.support.databases import reading

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
        transfers = await connection.fetch(_TRANSFERS, shard_id)
        carried = await connection.fetch(
            "SELECT outcome FROM carried_outcomes WHERE shard_id = $1", shard_id
        )
        view = await PostgresRecoveryView.open(connection, shard_id)
        assert_snapshot(journal, await view.load_snapshot())
    assert {row["wallet_id"]: row["slot"] for row in wallets} == {
        name: slot_of(name) for name in journal.state.wallets
    }
    assert {wallet.wallet_id: row_facts(wallet) for wallet in map(wallet_from_row, wallets)} == {
        name: row_facts(wallet) for name, wallet in journal.state.wallets.items()
    }
    assert_remembered(journal, transfers, [row["outcome"] for row in carried])
    return journal


def row_facts(wallet: Wallet) -> tuple[Any, ...]:
    """
    Tell of a wallet what its row has; what is reserved is in the rows of what is on its way.
    """
    *facts, _reserved, version = wallet.facts()
    return (*facts, version)


def assert_remembered(
    journal: Journal, rows: Iterable[asyncpg.Record], carried: Iterable[bytes] = ()
) -> None:
    """
    Check that *rows* of transfers and what was *carried* here are exactly the outcomes of the
    journal: each once, and those of entries from other shards without a key.
    """
    told = list(rows)
    own = [remembered_from_row(row) for row in told if row["key"] is not None]
    assert len({decision.key for decision, _, _ in own}) == len(own)
    remembered = {decision.key: (decision, *rest) for decision, *rest in own}
    for outcome in map(msgspec.msgpack.Decoder(CarriedOutcome).decode, carried):
        known = remembered.setdefault(
            outcome.decision.key, (outcome.decision, outcome.sequence, outcome.at_us)
        )
        assert known == (outcome.decision, outcome.sequence, outcome.at_us)
    assert remembered == {
        key: tuple(value)
        for key, value in journal.state.keys.young.items()
        if not isinstance(value[0], TransferReserved)
    }
    assert sorted(_credited_facts(row) for row in told if row["key"] is None) == sorted(
        (
            *(decision.transfer_id, decision.source, decision.destination, decision.amount),
            *(decision.due_version, decision.due_balance),
            *(decision.destination_version, decision.destination_balance),
            *(due_wallet_id(journal.shard_id, decision.peer, decision.currency), 1),
        )
        for decision in journal.decisions
        if isinstance(decision, EntryCredited)
    )


def _credited_facts(row: asyncpg.Record) -> tuple[Any, ...]:
    return (
        *(row["transfer_id"], row["counterparty"], row["destination"], row["amount"]),
        *(row["source_version"], row["source_balance"]),
        *(row["destination_version"], row["destination_balance"]),
        *(row["source"], row["type"]),
    )


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
    sources = {row.decision.source for row in pending if isinstance(row.decision, TransferReserved)}
    expected = {
        name: row_facts(wallet)
        for name, wallet in journal.state.wallets.items()
        if is_system_wallet(name) or name in sources
    }
    assert len(snapshot.wallets) == len(expected)
    assert {wallet.wallet_id: row_facts(wallet) for wallet in snapshot.wallets} == expected


def _pending_of(journal: Journal) -> list[PendingRow]:
    """
    List what is on its way, with the record that sent it, by peer and number.
    """
    sent = {
        (decision.peer, decision.number): PendingRow(decision, record.sequence, record.at_us)
        for record in journal.records
        for decision in decode_decisions(record.payload, record.format)
        if isinstance(decision, TransferReserved | SlotGiven)
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
