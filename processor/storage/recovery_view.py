"""
What recovery reads: the tables, and the journal behind them, in one snapshot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import asyncpg
import msgspec

from processor.core.decisions import LinkedBegun, LinkedPosted, LinkedPrepared, PendingEntry
from processor.core.record import GENESIS_CHAIN, BrokenChain, Record
from processor.core.wallet import Wallet
from processor.flow.ports import (
    InEnd,
    LinkedRow,
    OutEnd,
    PendingRow,
    PreparedRow,
    ShardSnapshot,
    SlotRow,
)
from processor.flow.recovery import refunds_relied_on, wallets_relied_on
from processor.storage.connection import given_up_on
from processor.storage.count_rows import (
    HOLD_COLUMNS,
    REFUND_COLUMNS,
    hold_from_row,
    refund_from_row,
)
from processor.storage.journal_rows import RECORD_COLUMNS, record_from_row
from processor.storage.wallet_rows import SYSTEM_WALLETS, WALLETS, wallet_from_row

PROJECTION = "tables"
TAIL_PAGE_RECORDS = 200
PAGE_S_MAX = 60.0

_SLOTS = """
    SELECT slot, generation, taken_from, given_to FROM slots WHERE shard_id = $1 ORDER BY slot
"""

_OUTGOING = """
    SELECT peer, head, chain, settled, settled_chain FROM channels_out
     WHERE shard_id = $1 ORDER BY peer
"""

_INCOMING = "SELECT peer, cursor, chain FROM channels_in WHERE shard_id = $1 ORDER BY peer"

_ANSWERS = """
    SELECT peer, number, answer FROM channel_answers WHERE shard_id = $1 ORDER BY peer, number
"""

_PENDING = """
    SELECT decision, sequence, at_us FROM pending_entries
     WHERE shard_id = $1 ORDER BY peer, number
"""

_HOLDS = f"""
    SELECT {HOLD_COLUMNS} FROM holds
     WHERE shard_id = $1 AND (status = 1 OR pending > 0) ORDER BY hold_id
"""

_LINKED = """
    SELECT begun, posted, sequence, at_us FROM linked_begun WHERE shard_id = $1 ORDER BY linked_id
"""

_PREPARED = """
    SELECT prepared, sequence, at_us FROM linked_prepared WHERE shard_id = $1 ORDER BY linked_id
"""

_REFUNDS = f"""
    SELECT {REFUND_COLUMNS} FROM refunds
     WHERE shard_id = $1 AND transfer_id = ANY($2) ORDER BY transfer_id
"""

_decode_begun = msgspec.msgpack.Decoder(LinkedBegun).decode
_decode_posted = msgspec.msgpack.Decoder(LinkedPosted).decode
_decode_prepared = msgspec.msgpack.Decoder(LinkedPrepared).decode
_decode_pending = msgspec.msgpack.Decoder(PendingEntry).decode


class PostgresRecoveryView:
    """
    One transaction's view of one shard; *connection* is in it already.
    """

    def __init__(self, connection: asyncpg.Connection, shard_id: int) -> None:
        self._connection = connection
        self._shard_id = shard_id
        self.watermark = 0
        self.watermark_chain = GENESIS_CHAIN
        self.watermark_at_us = 0
        self.watermark_epoch = 0

    @classmethod
    async def open(cls, connection: asyncpg.Connection, shard_id: int) -> PostgresRecoveryView:
        """
        Read the watermark; raises BrokenChain when the journal does not reach it.
        """
        view = cls(connection, shard_id)
        row = await connection.fetchrow(
            "SELECT sequence, chain FROM watermark WHERE shard_id = $1 AND projection = $2",
            shard_id,
            PROJECTION,
        )
        if row is None or row["sequence"] == 0:
            return view
        view.watermark, view.watermark_chain = row["sequence"], row["chain"]
        journaled = await connection.fetchrow(
            "SELECT chain, at_us, epoch FROM journal WHERE shard_id = $1 AND sequence = $2",
            shard_id,
            view.watermark,
        )
        if journaled is None or journaled["chain"] != view.watermark_chain:
            raise BrokenChain(
                f"shard {shard_id}: the tables are at sequence {view.watermark}, "
                "which the journal does not have like that"
            )
        view.watermark_at_us, view.watermark_epoch = journaled["at_us"], journaled["epoch"]
        return view

    async def records(self) -> AsyncIterator[Record]:
        after = self.watermark
        while True:
            with given_up_on(self._connection, PAGE_S_MAX):
                rows = await self._connection.fetch(
                    f"SELECT {RECORD_COLUMNS} FROM journal"
                    " WHERE shard_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3",
                    self._shard_id,
                    after,
                    TAIL_PAGE_RECORDS,
                )
            for row in rows:
                yield record_from_row(row)
            if len(rows) < TAIL_PAGE_RECORDS:
                return
            after = rows[-1]["sequence"]

    async def load_wallets(self, wallet_ids: Iterable[str]) -> list[Wallet]:
        rows = await self._fetch(WALLETS, list(wallet_ids))
        return [wallet_from_row(row) for row in rows]

    async def load_snapshot(self) -> ShardSnapshot:
        pending = [
            PendingRow(_decode_pending(row["decision"]), row["sequence"], row["at_us"])
            for row in await self._fetch(_PENDING)
        ]
        holds = [hold_from_row(row) for row in await self._fetch(_HOLDS)]
        linked = await self._linked()
        prepared = [
            PreparedRow(_decode_prepared(row["prepared"]), row["sequence"], row["at_us"])
            for row in await self._fetch(_PREPARED)
        ]
        named = wallets_relied_on(self._shard_id, pending, holds, linked, prepared)
        totals = sorted(refunds_relied_on(pending, linked, prepared))
        system = [wallet_from_row(row) for row in await self._fetch(SYSTEM_WALLETS)]
        return ShardSnapshot(
            slots=[SlotRow(*row) for row in await self._fetch(_SLOTS)],
            outgoing=[OutEnd(*row) for row in await self._fetch(_OUTGOING)],
            incoming=await self._incoming(),
            pending=pending,
            wallets=system + await self.load_wallets(sorted(named)),
            holds=holds,
            linked=linked,
            prepared=prepared,
            refunds=[refund_from_row(row) for row in await self._fetch(_REFUNDS, totals)],
        )

    async def _linked(self) -> list[LinkedRow]:
        return [
            LinkedRow(
                _decode_begun(row["begun"]),
                None if row["posted"] is None else _decode_posted(row["posted"]),
                row["sequence"],
                row["at_us"],
            )
            for row in await self._fetch(_LINKED)
        ]

    async def _incoming(self) -> list[InEnd]:
        ends = {
            row["peer"]: InEnd(row["peer"], row["cursor"], row["chain"], {})
            for row in await self._fetch(_INCOMING)
        }
        for peer, number, answer in await self._fetch(_ANSWERS):
            ends[peer].refused[number] = answer
        return list(ends.values())

    async def _fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        with given_up_on(self._connection, PAGE_S_MAX):
            return await self._connection.fetch(query, self._shard_id, *arguments)
