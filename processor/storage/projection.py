"""
Write-behind: the journal, told again as tables.

Rule 1: one transaction moves the watermark by compare-and-set and writes the rows. Two
        projections of one shard exclude each other, and a crash repeats nothing.
Rule 2: balances are absolute, taken from the decisions; each touched wallet is written once a
        round. No state is kept here, so nothing can drift.
Rule 3: every record's link in the hash chain is checked: a second pair of eyes on each batch.
        A broken one halts the shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from configs.settings import WriteBehindSettings
from processor.core.decisions import (
    Decision,
    EpochStarted,
    TransferPosted,
    TransferRejected,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
    decode_decisions,
)
from processor.core.record import GENESIS_CHAIN, BrokenChain, Record, check_link
from processor.core.wallet import WalletStatus
from processor.storage.connection import committed, connect, given_up_on
from processor.storage.journal_rows import RECORD_COLUMNS, record_from_row
from processor.storage.shard_store import PROJECTION

STEP_S_MAX = 30.0  # Far more than the largest round takes: the session has fallen silent.

TRANSFER_COLUMNS = (
    "transfer_id",
    "shard_id",
    "sequence",
    "at",
    "type",
    "reason",
    "merchant_id",
    "key",
    "source",
    "source_version",
    "source_balance",
    "destination",
    "destination_version",
    "destination_balance",
    "currency",
    "amount",
    "reference",
    "metadata",
)

_OPEN_WALLETS = """
    INSERT INTO wallets (wallet_id, shard_id, merchant_id, currency, status, minimum, posted,
                         version, opened_at)
    SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::smallint[],
                         $6::bigint[], $7::bigint[], $8::bigint[], $9::timestamptz[])
"""

_MOVE_BALANCES = """
    UPDATE wallets SET posted = moved.posted, version = moved.version
      FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS moved (wallet_id, posted, version)
     WHERE wallets.wallet_id = moved.wallet_id
"""

_SET_STATUSES = """
    UPDATE wallets SET status = changed.status
      FROM unnest($1::text[], $2::smallint[]) AS changed (wallet_id, status)
     WHERE wallets.wallet_id = changed.wallet_id
"""

_SET_MINIMUMS = """
    UPDATE wallets SET minimum = changed.minimum
      FROM unnest($1::text[], $2::bigint[]) AS changed (wallet_id, minimum)
     WHERE wallets.wallet_id = changed.wallet_id
"""

_MOVE_WATERMARK = """
    UPDATE watermark SET sequence = $4, chain = $5
     WHERE shard_id = $1 AND projection = $2 AND sequence = $3
"""


# What cannot go away by trying again: rows that do not decode, or that the tables refuse.
_REFUSALS = (
    msgspec.DecodeError,
    ValueError,
    OverflowError,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
)


class Unprojectable(Exception):
    """
    The journal cannot be told as tables; nothing of the round was written. Halt the shard.
    """


class WatermarkMoved(Exception):
    """
    Another projection moved the watermark; nothing was written. Read it again.
    """


class Round:
    """
    What a run of records means for the tables.
    """

    def __init__(self) -> None:
        self.transfers: list[tuple[Any, ...]] = []
        self.opened: dict[str, tuple[int, WalletOpened, datetime]] = {}
        self.balances: dict[str, tuple[int, int]] = {}  # Wallet: posted, version.
        self.statuses: dict[str, int] = {}
        self.minimums: dict[str, int] = {}
        self.command_count = 0

    def add(self, record: Record) -> None:
        """
        Take in one record, in order.
        """
        at = datetime.fromtimestamp(record.at_us // 1_000_000, UTC).replace(
            microsecond=record.at_us % 1_000_000
        )
        decisions = decode_decisions(record.payload, record.format)
        self.command_count += len(decisions)
        for decision in decisions:
            if isinstance(decision, TransferPosted):
                self._add_posted(decision, record, at)
            else:
                self._add_other(decision, record, at)

    def _add_posted(self, decision: TransferPosted, record: Record, at: datetime) -> None:
        self.balances[decision.source] = (decision.source_balance, decision.source_version)
        self.balances[decision.destination] = (
            decision.destination_balance,
            decision.destination_version,
        )
        self.transfers.append(
            (
                decision.transfer_id,
                record.shard_id,
                record.sequence,
                at,
                decision.transfer_type,
                None,
                decision.merchant_id,
                decision.key,
                decision.source,
                decision.source_version,
                decision.source_balance,
                decision.destination,
                decision.destination_version,
                decision.destination_balance,
                decision.currency,
                decision.amount,
                decision.reference,
                decision.metadata,
            )
        )

    def _add_other(self, decision: Decision, record: Record, at: datetime) -> None:
        match decision:
            case TransferRejected():
                self.transfers.append(
                    (
                        decision.transfer_id,
                        record.shard_id,
                        record.sequence,
                        at,
                        decision.transfer_type,
                        decision.reason,
                        decision.merchant_id,
                        decision.key,
                        decision.source,
                        None,
                        None,
                        decision.destination,
                        None,
                        None,
                        decision.currency,
                        decision.amount,
                        decision.reference,
                        decision.metadata,
                    )
                )
            case WalletOpened():
                self.opened[decision.wallet_id] = (record.shard_id, decision, at)
            case WalletStatusSet(wallet_id, status):
                self.statuses[wallet_id] = status
            case WalletLimitsSet(wallet_id, minimum):
                self.minimums[wallet_id] = minimum
            case EpochStarted():
                pass
            case _:
                raise ValueError(f"{type(decision).__name__} has no table yet")

    def opened_rows(self) -> Iterator[tuple[Any, ...]]:
        """
        Yield a row for each new wallet, as it is at the end of the round.
        """
        for wallet_id, (shard_id, opened, at) in self.opened.items():
            posted, version = self.balances.pop(wallet_id, (0, 0))
            yield (
                wallet_id,
                shard_id,
                opened.merchant_id,
                opened.currency,
                self.statuses.pop(wallet_id, WalletStatus.OPEN),
                self.minimums.pop(wallet_id, opened.minimum),
                posted,
                version,
                at,
            )


class Projection:
    """
    Moves the tables of one shard behind its journal; one connection.
    """

    def __init__(self, dsn: str, shard_id: int, settings: WriteBehindSettings) -> None:
        self.shard_id = shard_id
        self.watermark = 0
        self.cut_short = False  # The last step met a bound; more is waiting.
        self._dsn = dsn
        self._settings = settings
        self._chain = GENESIS_CHAIN
        self._connection: asyncpg.Connection[Any] | None = None

    async def open(self) -> None:
        """
        Connect and find the watermark; may be called again after any error.
        """
        self.close()
        connection = await connect(
            self._dsn,
            application_name=f"miliano/write-behind-{self.shard_id}",
            # Derived and atomic with its watermark, so losing the last moment costs nothing.
            server_settings={"synchronous_commit": "off"},
        )
        self._connection = connection
        with given_up_on(connection, STEP_S_MAX):
            await connection.execute(
                "INSERT INTO watermark (shard_id, projection, sequence, chain)"
                " VALUES ($1, $2, 0, $3) ON CONFLICT DO NOTHING",
                self.shard_id,
                PROJECTION,
                GENESIS_CHAIN,
            )
            row = await connection.fetchrow(
                "SELECT sequence, chain FROM watermark WHERE shard_id = $1 AND projection = $2",
                self.shard_id,
                PROJECTION,
            )
        assert row is not None, "inserted above"
        self.watermark, self._chain = row

    def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def step(self) -> int:
        """
        Project the next records, if any, and return how many.

        Raises BrokenChain or Unprojectable (halt the shard), WatermarkMoved or the store's errors
        (open again).
        """
        assert self._connection is not None, "open first"
        try:
            with given_up_on(self._connection, STEP_S_MAX):
                return await self._project()
        except _REFUSALS as error:
            where = f"shard {self.shard_id}, after sequence {self.watermark}"
            raise Unprojectable(f"{where}: {type(error).__name__}: {error}") from error

    async def _project(self) -> int:
        assert self._connection is not None, "open first"
        rows = await self._connection.fetch(
            f"SELECT {RECORD_COLUMNS} FROM journal"
            " WHERE shard_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3",
            self.shard_id,
            self.watermark,
            self._settings.records_max,
        )
        if not rows:
            return 0
        round_ = Round()
        sequence, chain = self.watermark, self._chain
        count = 0
        for row in rows:
            record = record_from_row(row)
            check_link(record, after_sequence=sequence, after_chain=chain)
            round_.add(record)
            sequence, chain = record.sequence, record.chain
            count += 1
            if round_.command_count >= self._settings.commands_max:
                break
        await self._write(round_, sequence, chain)
        self.watermark, self._chain = sequence, chain
        self.cut_short = count < len(rows) or count == self._settings.records_max
        return count

    async def _write(self, round_: Round, sequence: int, chain: bytes) -> None:
        connection = self._connection
        assert connection is not None
        async with committed(connection):
            tag = await connection.execute(
                _MOVE_WATERMARK, self.shard_id, PROJECTION, self.watermark, sequence, chain
            )
            if tag != "UPDATE 1":
                raise WatermarkMoved(f"not at {self.watermark} any more")
            if round_.transfers:
                await connection.copy_records_to_table(
                    "transfers", records=round_.transfers, columns=TRANSFER_COLUMNS
                )
            await self._write_wallets(connection, round_)

    async def _write_wallets(self, connection: asyncpg.Connection[Any], round_: Round) -> None:
        opened = list(round_.opened_rows())
        if opened:
            await connection.execute(_OPEN_WALLETS, *_columns(opened))
        if round_.balances:
            # In key order, so that neighbours share pages and two rounds lock alike.
            moved = sorted((name, *balance) for name, balance in round_.balances.items())
            tag = await connection.execute(_MOVE_BALANCES, *_columns(moved))
            if tag != f"UPDATE {len(moved)}":
                raise BrokenChain(f"shard {self.shard_id}: {tag} of {len(moved)} wallets")
        if round_.statuses:
            await connection.execute(_SET_STATUSES, *_columns(sorted(round_.statuses.items())))
        if round_.minimums:
            await connection.execute(_SET_MINIMUMS, *_columns(sorted(round_.minimums.items())))


def _columns(rows: list[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
