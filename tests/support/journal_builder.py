"""
A journal and its tables, made step by step without a running shard.

The decisions are the ledger's own (`decide`, `apply`, `seal`); the rows are written with plain
SQL of this file, so that a test sees the tables without trusting the write-behind.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from processor.core.apply import apply
from processor.core.commands import MoveMoney, OpenWallet, TransferType
from processor.core.decide import decide_move, decide_open, decide_world
from processor.core.decisions import (
    DECISION_FORMAT,
    Decision,
    EpochStarted,
    TransferPosted,
    TransferRejected,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
    decode_decisions,
    encode_decisions,
)
from processor.core.record import GENESIS_CHAIN, Record, seal
from processor.core.slots import slot_of
from processor.core.state import ShardState
from processor.core.wallet import WalletStatus

START_US = 1_700_000_000_000_000
MERCHANT = "acme"
CURRENCY = "EUR"

_INSERT_TRANSFER = """
    INSERT INTO transfers (transfer_id, shard_id, sequence, at, type, reason, merchant_id, key,
        source, source_version, source_balance, destination, destination_version,
        destination_balance, currency, amount, reference, metadata, short_by)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
"""


class JournalBuilder:
    """
    Collects decisions into records, writes the records, and projects them.
    """

    def __init__(self, shard_id: int = 0) -> None:
        self.state = ShardState(shard_id)
        self.epoch = 0
        self.records: list[Record] = []
        self._open: list[Decision] = []
        self._moves = 0

    @property
    def shard_id(self) -> int:
        return self.state.shard_id

    @property
    def sequence(self) -> int:
        """
        The sequence of the last sealed record.
        """
        return len(self.records)

    def start_epoch(self) -> None:
        """
        Begin an epoch in a record of its own.
        """
        self.epoch += 1
        self.decided(EpochStarted("test"))
        self.seal()

    def open_wallet(self, wallet_id: str, *, minimum: int = 0, currency: str = CURRENCY) -> None:
        """
        Open a wallet, and the world's wallet in its currency before the first.
        """
        world = decide_world(self.state, currency)
        if world is not None:
            self.decided(world)
        opened = decide_open(self.state, OpenWallet(MERCHANT, wallet_id, currency, minimum))
        assert isinstance(opened, WalletOpened)
        self.decided(opened)

    def set_status(self, wallet_id: str, status: WalletStatus) -> None:
        self.decided(WalletStatusSet(wallet_id, status))

    def set_minimum(self, wallet_id: str, minimum: int) -> None:
        self.decided(WalletLimitsSet(wallet_id, minimum))

    def deposit(self, wallet_id: str, amount: int, **more: Any) -> TransferPosted:
        return self.posted(TransferType.DEPOSIT, "", wallet_id, amount, **more)

    def withdraw(self, wallet_id: str, amount: int, **more: Any) -> TransferPosted:
        return self.posted(TransferType.WITHDRAWAL, wallet_id, "", amount, **more)

    def transfer(self, source: str, destination: str, amount: int, **more: Any) -> TransferPosted:
        return self.posted(TransferType.TRANSFER, source, destination, amount, **more)

    def posted(
        self, kind: TransferType, source: str, destination: str, amount: int, **more: Any
    ) -> TransferPosted:
        """
        Move money; the test meant it to be possible.
        """
        outcome = self._move(kind, source, destination, amount, **more)
        assert isinstance(outcome, TransferPosted), outcome
        return outcome

    def rejected(self, source: str, destination: str, amount: int, **more: Any) -> TransferRejected:
        """
        Ask for a transfer that the test meant to be refused.
        """
        outcome = self._move(TransferType.TRANSFER, source, destination, amount, **more)
        assert isinstance(outcome, TransferRejected), outcome
        return outcome

    def decided(self, decision: Decision) -> None:
        """
        Apply a decision and put it into the record that is open.
        """
        apply(self.state, decision, self.sequence + 1, START_US + self.sequence)
        self.journal(decision)

    def journal(self, decision: Decision) -> None:
        """
        Put a decision into the record without applying it: for journals that are wrong.
        """
        self._open.append(decision)

    def seal(self, **header: Any) -> Record:
        """
        Close the open record; *header* overrides what it would rightly say.
        """
        values: dict[str, Any] = {
            "shard_id": self.shard_id,
            "sequence": self.sequence + 1,
            "epoch": self.epoch,
            "at_us": START_US + self.sequence,
            "count": len(self._open),
            "decision_format": DECISION_FORMAT,
            "payload": encode_decisions(self._open),
            "previous_chain": self.records[-1].chain if self.records else GENESIS_CHAIN,
        }
        record = seal(**(values | header))
        self.records.append(record)
        self._open = []
        return record

    def _move(
        self,
        kind: TransferType,
        source: str,
        destination: str,
        amount: int,
        *,
        currency: str = CURRENCY,
        reference: str | None = None,
        metadata: str | None = None,
    ) -> TransferPosted | TransferRejected:
        self._moves += 1
        number = self.shard_id << 64 | self._moves
        command = MoveMoney(
            kind,
            (1 << 120 | number).to_bytes(16),
            (2 << 120 | number).to_bytes(16),
            MERCHANT,
            source,
            destination,
            currency,
            amount,
            reference,
            metadata,
        )
        outcome = decide_move(self.state, command, START_US + self.sequence)
        assert isinstance(outcome, TransferPosted | TransferRejected)
        self.decided(outcome)
        return outcome


async def write_journal(conn: asyncpg.Connection[asyncpg.Record], builder: JournalBuilder) -> None:
    """
    Write every record and the shard's own row.
    """
    await conn.execute(
        "INSERT INTO shard (shard_id, epoch) VALUES ($1, $2)", builder.shard_id, builder.epoch
    )
    await conn.executemany(
        "INSERT INTO journal (shard_id, sequence, epoch, at_us, count, format, payload, chain)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        [
            (
                record.shard_id,
                record.sequence,
                record.epoch,
                record.at_us,
                record.count,
                record.format,
                record.payload,
                record.chain,
            )
            for record in builder.records
        ],
    )


async def project(
    conn: asyncpg.Connection[asyncpg.Record],
    builder: JournalBuilder,
    *,
    watermark: int | None = None,
) -> None:
    """
    Write the tables as of *watermark*, or of the last record; once.
    """
    watermark = builder.sequence if watermark is None else watermark
    wallets: dict[str, list[Any]] = {}
    transfers: list[tuple[Any, ...]] = []
    for record in builder.records[:watermark]:
        _project_record(record, wallets, transfers)
    await conn.executemany(_INSERT_TRANSFER, transfers)
    await conn.executemany(
        "INSERT INTO wallets VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        [(*row, slot_of(wallet_id)) for wallet_id, row in wallets.items()],
    )
    chain = builder.records[watermark - 1].chain if watermark else GENESIS_CHAIN
    await conn.execute(
        "INSERT INTO watermark VALUES ($1, 'tables', $2, $3)", builder.shard_id, watermark, chain
    )


def _project_record(
    record: Record, wallets: dict[str, list[Any]], transfers: list[tuple[Any, ...]]
) -> None:
    at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=record.at_us)
    for decision in decode_decisions(record.payload, record.format):
        match decision:
            case WalletOpened(wallet_id, merchant_id, currency, minimum):
                wallets[wallet_id] = [
                    *(wallet_id, record.shard_id, merchant_id, currency),
                    *(WalletStatus.OPEN, minimum, 0, 0, at),
                ]
            case WalletStatusSet(wallet_id, status):
                wallets[wallet_id][4] = status
            case WalletLimitsSet(wallet_id, minimum):
                wallets[wallet_id][5] = minimum
            case TransferPosted():
                transfers.append(_transfer_row(record, at, decision))
                wallets[decision.source][6:8] = (decision.source_balance, decision.source_version)
                wallets[decision.destination][6:8] = (
                    decision.destination_balance,
                    decision.destination_version,
                )
            case TransferRejected():
                transfers.append(_transfer_row(record, at, decision))


def _transfer_row(
    record: Record, at: datetime, decision: TransferPosted | TransferRejected
) -> tuple[Any, ...]:
    reason, short_by = None, None
    if isinstance(decision, TransferRejected):
        reason, short_by = decision.reason, decision.short_by or None
    source: tuple[int, int] | tuple[None, None] = (None, None)
    destination: tuple[int, int] | tuple[None, None] = (None, None)
    if isinstance(decision, TransferPosted):
        source = (decision.source_version, decision.source_balance)
        destination = (decision.destination_version, decision.destination_balance)
    return (
        *(decision.transfer_id, record.shard_id, record.sequence, at, decision.transfer_type),
        *(reason, decision.merchant_id, decision.key),
        *(decision.source, *source, decision.destination, *destination),
        *(decision.currency, decision.amount, decision.reference, decision.metadata, short_by),
    )
