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

from processor.core.apply import apply
from processor.core.decisions import (
    Decision,
    TransferPosted,
    TransferRejected,
    decode_decisions,
)
from processor.core.invariants import books, broken_wallets
from processor.core.record import GENESIS_CHAIN, Record, check_link
from processor.core.state import ShardState
from processor.storage.journal_rows import RECORD_COLUMNS, record_from_row
from processor.storage.shard_store import remembered_from_row, wallet_from_row
from tests.support.stack import reading

_TRANSFERS = """
    SELECT *, (extract(epoch FROM at) * 1000000)::bigint AS at_us FROM transfers
"""


class Journal:
    """
    The whole journal of shard 0, replayed.
    """

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.state = ShardState(0)
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


async def read_journal(dsn: str) -> Journal:
    """
    Read the journal; raises BrokenChain or AssertionError when it is not in order.
    """
    async with reading(dsn) as connection:
        return await journal_on(connection)


async def journal_on(connection: asyncpg.Connection[Any]) -> Journal:
    rows = await connection.fetch(f"SELECT {RECORD_COLUMNS} FROM journal ORDER BY sequence")
    return Journal([record_from_row(row) for row in rows])


async def read_balanced_tables(dsn: str) -> Journal:
    """
    Check that the tables say what the journal says, up to its end; return the journal.
    """
    async with (
        reading(dsn) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        journal = await journal_on(connection)
        marks = await connection.fetch("SELECT sequence, chain FROM watermark")
        assert [tuple(row) for row in marks] == [(journal.sequence, journal.records[-1].chain)]
        wallets = await connection.fetch("SELECT * FROM wallets")
        transfers = await connection.fetch(_TRANSFERS)
    told = {wallet.wallet_id: wallet.facts() for wallet in map(wallet_from_row, wallets)}
    assert told == {name: wallet.facts() for name, wallet in journal.state.wallets.items()}
    assert_remembered(journal, transfers)
    return journal


def assert_remembered(journal: Journal, rows: Iterable[asyncpg.Record]) -> None:
    """
    Check that *rows* of transfers are exactly the journal's, each once.
    """
    remembered = [remembered_from_row(row) for row in rows]
    assert len({decision.key for decision, _, _ in remembered}) == len(remembered)
    assert {decision.key: (decision, *rest) for decision, *rest in remembered} == {
        key: tuple(value) for key, value in journal.state.keys.young.items()
    }
