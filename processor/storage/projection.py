"""
Write-behind: the journal, told again as tables.

Rule 1: one transaction moves the watermark by compare-and-set and writes the rows. Two
        projections of one shard exclude each other, and a crash repeats nothing.
Rule 2: balances are absolute, taken from the decisions; each touched row is written once a
        round (see `projection_round.py`). No state is kept here, so nothing can drift.
Rule 3: every record's link in the hash chain is checked: a second pair of eyes on each batch.
        A broken one halts the shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from configs.settings import WriteBehindSettings
from processor.core.record import GENESIS_CHAIN, BrokenChain, check_link
from processor.storage.connection import committed, connect, given_up_on
from processor.storage.journal_rows import RECORD_COLUMNS, record_from_row
from processor.storage.projected_change import Change
from processor.storage.projected_channels import TAKE_PENDING
from processor.storage.projected_linked import END_BEGUN, END_PREPARED
from processor.storage.projected_transfers import RELATED_COLUMNS, TRANSFER_COLUMNS
from processor.storage.projection_round import Round
from processor.storage.recovery_view import PROJECTION

# A machine that stops in the middle of a round must not keep its successor from the rows. The round
# is never idle for so long by itself, and nothing of it is in doubt: the watermark tells.
_LETS_GO = {"idle_in_transaction_session_timeout": "5s"}
STEP_S_MAX = 30.0  # Far more than the largest round takes: the session has fallen silent.

_MOVE_WATERMARK = """
    UPDATE watermark SET sequence = $4, chain = $5
     WHERE shard_id = $1 AND projection = $2 AND sequence = $3
"""


# What cannot go away by trying again: rows that do not decode, or that the tables refuse.
_REFUSALS = (
    msgspec.DecodeError,
    ValueError,
    LookupError,
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
            server_settings={"synchronous_commit": "off", **_LETS_GO},
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
            await self._take_back(round_)
            await self._copy(round_.transfers.plain, TRANSFER_COLUMNS)
            await self._copy(round_.transfers.related, RELATED_COLUMNS)
            for change in round_.changes():
                await self._change(change)

    async def _take_back(self, round_: Round) -> None:
        """
        Take the rows of what ended in the round and began before it out of their tables.
        """
        settlements, linked = round_.channels.settlements, round_.linked
        if settlements:
            rows = await self._taken(TAKE_PENDING, *_columns(sorted(settlements)))
            round_.take_pending(row["decision"] for row in rows)
        if linked.ended:
            rows = await self._taken(END_BEGUN, list(linked.ended))
            linked.take_back_begun((row["linked_id"], row["posted"]) for row in rows)
        if linked.verdicts:
            rows = await self._taken(END_PREPARED, list(linked.verdicts))
            linked.take_back_prepared(row["prepared"] for row in rows)

    async def _taken(self, statement: str, *columns: list[Any]) -> list[asyncpg.Record]:
        assert self._connection is not None, "open first"
        return await self._connection.fetch(statement, self.shard_id, *columns)

    async def _copy(self, rows: list[tuple[Any, ...]], columns: tuple[str, ...]) -> None:
        if rows:
            assert self._connection is not None, "open first"
            await self._connection.copy_records_to_table("transfers", records=rows, columns=columns)

    async def _change(self, change: Change) -> None:
        statement, rows, finds_each = change
        if not rows:
            return
        assert self._connection is not None, "open first"
        tag = await self._connection.execute(statement, self.shard_id, *_columns(rows))
        if finds_each and tag.rpartition(" ")[2] != str(len(rows)):
            raise BrokenChain(f"shard {self.shard_id}: {tag} of {len(rows)} rows")


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
