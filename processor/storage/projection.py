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
from processor.storage.projection_round import Round
from processor.storage.recovery_view import PROJECTION

# A machine that stops in the middle of a round must not keep its successor from the rows. The round
# is never idle for so long by itself, and nothing of it is in doubt: the watermark tells.
_LETS_GO = {"idle_in_transaction_session_timeout": "5s"}
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

# A transfer across shards has one more: the wallet at the other shard.
CROSSED_COLUMNS = (*TRANSFER_COLUMNS, "counterparty")

_REMOVE_WALLETS = "DELETE FROM wallets WHERE shard_id = $1 AND wallet_id = ANY($2::text[])"

_OPEN_WALLETS = """
    INSERT INTO wallets (shard_id, wallet_id, merchant_id, currency, status, minimum, posted,
                         version, opened_at, slot)
    SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::smallint[], $6::bigint[],
                             $7::bigint[], $8::bigint[], $9::timestamptz[], $10::int[])
"""

# Each names the shard: a wallet on its way between two shards of one database has a row of each.
_MOVE_BALANCES = """
    UPDATE wallets SET posted = moved.posted, version = moved.version
      FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS moved (wallet_id, posted, version)
     WHERE wallets.wallet_id = moved.wallet_id AND wallets.shard_id = $1
"""

_SET_STATUSES = """
    UPDATE wallets SET status = changed.status
      FROM unnest($2::text[], $3::smallint[]) AS changed (wallet_id, status)
     WHERE wallets.wallet_id = changed.wallet_id AND wallets.shard_id = $1
"""

_SET_MINIMUMS = """
    UPDATE wallets SET minimum = changed.minimum
      FROM unnest($2::text[], $3::bigint[]) AS changed (wallet_id, minimum)
     WHERE wallets.wallet_id = changed.wallet_id AND wallets.shard_id = $1
"""

_TAKE_PENDING = """
    DELETE FROM pending_entries
     USING unnest($2::int[], $3::bigint[]) AS settled (peer, number)
     WHERE shard_id = $1 AND pending_entries.peer = settled.peer
       AND pending_entries.number = settled.number
    RETURNING decision
"""

_ADD_PENDING = """
    INSERT INTO pending_entries (shard_id, peer, number, sequence, at_us, transfer_id, decision)
    SELECT $1, * FROM unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::uuid[],
                             $7::bytea[])
"""

# Both ends of a channel only ever move forward, so an end that did not move comes as zero.
_MOVE_OUT = """
    INSERT INTO channels_out AS own (shard_id, peer, head, chain, settled, settled_chain)
    SELECT $1, * FROM unnest($2::int[], $3::bigint[], $4::bytea[], $5::bigint[], $6::bytea[])
    ON CONFLICT (shard_id, peer) DO UPDATE SET
        head = greatest(own.head, excluded.head),
        chain = CASE WHEN excluded.head > own.head THEN excluded.chain ELSE own.chain END,
        settled = greatest(own.settled, excluded.settled),
        settled_chain = CASE WHEN excluded.settled > own.settled
                             THEN excluded.settled_chain ELSE own.settled_chain END
"""

_MOVE_IN = """
    INSERT INTO channels_in (shard_id, peer, cursor, chain)
    SELECT $1, * FROM unnest($2::int[], $3::bigint[], $4::bytea[])
    ON CONFLICT (shard_id, peer) DO UPDATE SET cursor = excluded.cursor, chain = excluded.chain
"""

_FORGET_ANSWERS = """
    DELETE FROM channel_answers
     USING unnest($2::int[], $3::bigint[]) AS settled (peer, number)
     WHERE shard_id = $1 AND channel_answers.peer = settled.peer
       AND channel_answers.number <= settled.number
"""

_ADD_ANSWERS = """
    INSERT INTO channel_answers (shard_id, peer, number, answer)
    SELECT $1, * FROM unnest($2::int[], $3::bigint[], $4::int[])
"""

_GIVE_SLOTS = """
    UPDATE slots SET given_to = given.peer
      FROM unnest($2::int[], $3::int[]) AS given (slot, peer)
     WHERE shard_id = $1 AND slots.slot = given.slot
"""

_SET_SLOTS = """
    INSERT INTO slots (shard_id, slot, generation, taken_from, given_to)
    SELECT $1, * FROM unnest($2::int[], $3::int[], $4::int[], $5::int[])
    ON CONFLICT (shard_id, slot) DO UPDATE SET generation = excluded.generation,
        taken_from = excluded.taken_from, given_to = excluded.given_to
"""

_CARRY_OUTCOMES = """
    INSERT INTO carried_outcomes (shard_id, key, sequence, outcome)
    SELECT $1, * FROM unnest($2::uuid[], $3::bigint[], $4::bytea[])
    ON CONFLICT (shard_id, key) DO UPDATE SET sequence = excluded.sequence,
        outcome = excluded.outcome
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
            if round_.settlements:
                settled = await connection.fetch(
                    _TAKE_PENDING, self.shard_id, *_columns(sorted(round_.settlements))
                )
                round_.take_pending(row["decision"] for row in settled)
            if round_.transfers:
                await connection.copy_records_to_table(
                    "transfers", records=round_.transfers, columns=TRANSFER_COLUMNS
                )
            if round_.crossed:
                await connection.copy_records_to_table(
                    "transfers", records=round_.crossed, columns=CROSSED_COLUMNS
                )
            await self._write_wallets(round_)
            await self._write_slots(round_)
            await self._write_channels(round_)

    async def _write_wallets(self, round_: Round) -> None:
        # First: a wallet that left and came back has a new row.
        left = [(wallet_id,) for wallet_id in sorted(round_.left)]
        await self._change(_REMOVE_WALLETS, left, each=True)
        await self._change(_OPEN_WALLETS, list(round_.opened_rows()))
        # In key order, so that neighbours share pages and two rounds lock alike.
        moved = sorted((name, *balance) for name, balance in round_.balances.items())
        await self._change(_MOVE_BALANCES, moved, each=True)
        await self._change(_SET_STATUSES, sorted(round_.statuses.items()))
        await self._change(_SET_MINIMUMS, sorted(round_.minimums.items()))

    async def _write_slots(self, round_: Round) -> None:
        await self._change(_GIVE_SLOTS, sorted(round_.given.items()), each=True)
        await self._change(_SET_SLOTS, [(slot, *row) for slot, row in round_.slots.items()])
        carried = [(key, *outcome) for key, outcome in sorted(round_.carried.items())]
        await self._change(_CARRY_OUTCOMES, carried)

    async def _write_channels(self, round_: Round) -> None:
        await self._change(_ADD_PENDING, list(round_.pending_rows()))
        await self._change(_MOVE_OUT, list(round_.out_rows()))
        await self._change(_MOVE_IN, [(peer, *end) for peer, end in round_.cursors.items()])
        await self._change(_FORGET_ANSWERS, list(round_.forgotten.items()))
        answers = [(*place, answer) for place, answer in round_.answers.items()]
        await self._change(_ADD_ANSWERS, answers)

    async def _change(
        self, statement: str, rows: Sequence[tuple[Any, ...]], *, each: bool = False
    ) -> None:
        """
        Run *statement* over *rows*, if any; with *each* it has to find one row for each.
        """
        if not rows:
            return
        assert self._connection is not None, "open first"
        tag = await self._connection.execute(statement, self.shard_id, *_columns(rows))
        if each and tag.rpartition(" ")[2] != str(len(rows)):
            raise BrokenChain(f"shard {self.shard_id}: {tag} of {len(rows)} rows")


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
