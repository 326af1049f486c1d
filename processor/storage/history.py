"""
What the tables and the journal's tail tell: wallets, entries, transfers, how far they are.

Rule 1: a wallet's entries are its transfers in the order of its own versions, from both sides.
        Pages go by version, never by offset, so they are stable while entries are added.
Rule 2: a transfer that is durable is found, projected or not. A look into the tables after one
        into the tail closes the gap between them.
Rule 3: system wallets are the ledger's own; they do not leave this module by name.
Every method raises StoreUnavailable when Postgres did not answer in time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg
import msgspec

from processor.core.decisions import TransferPosted, TransferRejected, decode_decisions
from processor.core.wallet import is_system_wallet
from processor.flow.ports import StoreUnavailable
from processor.storage.connection import create_pool
from processor.storage.shard_store import PROJECTION, STORE_ERRORS

_ALL_VERSIONS = 2**63 - 1

_TRANSFER = """
    SELECT transfers.*, (extract(epoch FROM at) * 1000000)::bigint AS at_us,
           source.merchant_id AS source_merchant_id,
           destination.merchant_id AS destination_merchant_id
      FROM transfers
      LEFT JOIN wallets AS source ON source.wallet_id = transfers.source
      LEFT JOIN wallets AS destination ON destination.wallet_id = transfers.destination
     WHERE transfer_id = $1
"""

# An id stands in its record as 16 plain bytes, so the server finds the record by itself.
_TAIL = """
    SELECT record.shard_id, record.sequence, record.at_us, record.format, record.payload
      FROM shard
      LEFT JOIN watermark ON watermark.shard_id = shard.shard_id AND projection = $2
      JOIN journal AS record ON record.shard_id = shard.shard_id
           AND record.sequence > coalesce(watermark.sequence, 0)
     WHERE position($1::bytea IN record.payload) > 0
"""

_OWNERS = "SELECT wallet_id, merchant_id FROM wallets WHERE wallet_id = ANY($1)"

_ENTRY_COLUMNS = """
    transfer_id, type, amount, currency, reference, metadata, shard_id, sequence,
    (extract(epoch FROM at) * 1000000)::bigint AS at_us
"""

_ENTRIES = """
    SELECT * FROM (
        (SELECT source_version AS version, true AS is_debit, source_balance AS balance,
                destination AS counterparty, {columns}
           FROM transfers
          WHERE source = $1 AND source_version > $2 AND source_version < $3
          ORDER BY source_version {order} LIMIT $4)
        UNION ALL
        (SELECT destination_version, false, destination_balance, source, {columns}
           FROM transfers
          WHERE destination = $1 AND destination_version > $2 AND destination_version < $3
          ORDER BY destination_version {order} LIMIT $4)
    ) AS both_sides
    ORDER BY version {order} LIMIT $4
"""
_ENTRIES_OLDEST_FIRST = _ENTRIES.format(columns=_ENTRY_COLUMNS, order="ASC")
_ENTRIES_NEWEST_FIRST = _ENTRIES.format(columns=_ENTRY_COLUMNS, order="DESC")

_WALLETS = """
    SELECT wallets.wallet_id, wallets.merchant_id, wallets.currency, wallets.status,
           wallets.minimum, wallets.posted, wallets.version, wallets.shard_id,
           coalesce(watermark.sequence, 0) AS sequence
      FROM wallets
      LEFT JOIN watermark ON watermark.shard_id = wallets.shard_id AND projection = $1
"""
_WALLET = _WALLETS + " WHERE wallet_id = $2"
_WALLET_PAGE = _WALLETS + " WHERE merchant_id = $2 AND wallet_id > $3 ORDER BY wallet_id LIMIT $4"

_WATERMARKS = "SELECT shard_id, sequence FROM watermark WHERE projection = $1"

_SHARDS = """
    SELECT shard.shard_id, shard.state, shard.epoch, shard.halted_for,
           coalesce((SELECT max(sequence) FROM journal
                      WHERE journal.shard_id = shard.shard_id), 0) AS sequence,
           coalesce(watermark.sequence, 0) AS projected_sequence
      FROM shard
      LEFT JOIN watermark ON watermark.shard_id = shard.shard_id AND projection = $1
     ORDER BY shard.shard_id
"""


class WalletRow(msgspec.Struct, frozen=True, gc=False):
    """
    A wallet as of the watermark, which is `sequence` of its shard.
    """

    wallet_id: str
    merchant_id: str
    currency: str
    status: int
    minimum: int
    posted: int
    version: int
    shard_id: int
    sequence: int


class EntryRow(msgspec.Struct, frozen=True, gc=False):
    """
    One entry of one wallet; `counterparty` is None for money from or to outside.
    """

    version: int
    is_debit: bool
    balance: int
    counterparty: str | None
    transfer_id: bytes
    transfer_type: int
    amount: int
    currency: str
    reference: str | None
    metadata: str | None
    shard_id: int
    sequence: int
    at_us: int


class TransferSide(msgspec.Struct, frozen=True, gc=False):
    """
    One wallet of a transfer, with its owner, and the balance and version after it.
    """

    wallet_id: str
    merchant_id: str | None
    balance: int | None
    version: int | None


class TransferFound(msgspec.Struct, frozen=True, gc=False):
    """
    A transfer from the tables or the tail. A side is None when it is outside; `reason` is None
    when it was posted. `merchant_id` asked for it.
    """

    transfer_id: bytes
    transfer_type: int
    reason: int | None
    merchant_id: str
    source: TransferSide | None
    destination: TransferSide | None
    currency: str
    amount: int
    reference: str | None
    metadata: str | None
    shard_id: int
    sequence: int
    at_us: int


class ShardProgress(msgspec.Struct, frozen=True, gc=False):
    """
    A shard's row, the end of its journal, and how far its tables have come.
    """

    shard_id: int
    state: str
    epoch: int
    halted_for: str | None
    sequence: int
    projected_sequence: int


class History:
    """
    Reads on a pool of its own, each of which ends within *timeout_ms*.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], timeout_ms: int) -> None:
        self._pool = pool
        self._timeout_s = timeout_ms / 1000

    @classmethod
    async def open(cls, dsn: str, *, connections_max: int, timeout_ms: int) -> History:
        """
        Open the pool; raises what `connect` raises.
        """
        pool = await create_pool(
            dsn,
            application_name="miliano/history",
            size_max=connections_max,
            # Only reads run here, so that cutting one short leaves nothing in doubt.
            server_settings={
                "statement_timeout": str(timeout_ms),
                "default_transaction_read_only": "on",
            },
        )
        return cls(pool, timeout_ms)

    def close(self) -> None:
        self._pool.terminate()

    async def wallet(self, wallet_id: str) -> WalletRow | None:
        """
        Read one wallet as of the watermark.
        """
        rows = await self._fetch(_WALLET, PROJECTION, wallet_id)
        return WalletRow(*rows[0]) if rows else None

    async def wallets_of(self, merchant_id: str, *, after: str, limit: int) -> list[WalletRow]:
        """
        Read a merchant's wallets in the order of their ids, from behind *after* on.
        """
        rows = await self._fetch(_WALLET_PAGE, PROJECTION, merchant_id, after, limit)
        return [WalletRow(*row) for row in rows]

    async def entries_after(self, wallet_id: str, version: int, limit: int) -> list[EntryRow]:
        """
        Read the entries above *version*, oldest first.
        """
        rows = await self._fetch(_ENTRIES_OLDEST_FIRST, wallet_id, version, _ALL_VERSIONS, limit)
        return [_entry(row) for row in rows]

    async def entries_before(
        self, wallet_id: str, version: int | None, limit: int
    ) -> list[EntryRow]:
        """
        Read the entries below *version*, or the last ones, newest first.
        """
        below = _ALL_VERSIONS if version is None else min(version, _ALL_VERSIONS)
        rows = await self._fetch(_ENTRIES_NEWEST_FIRST, wallet_id, 0, below, limit)
        return [_entry(row) for row in rows]

    async def transfer(self, transfer_id: bytes) -> TransferFound | None:
        """
        Find a transfer that is durable; None means only that it is not so far.
        """
        return (
            await self._projected_transfer(transfer_id)
            or await self._tail_transfer(transfer_id)
            # It may have been projected between the two looks.
            or await self._projected_transfer(transfer_id)
        )

    async def watermarks(self) -> dict[int, int]:
        """
        Read how far the tables of each shard have come.
        """
        return {row[0]: row[1] for row in await self._fetch(_WATERMARKS, PROJECTION)}

    async def shards(self) -> list[ShardProgress]:
        """
        Read every shard's row and progress.
        """
        return [ShardProgress(*row) for row in await self._fetch(_SHARDS, PROJECTION)]

    async def _projected_transfer(self, transfer_id: bytes) -> TransferFound | None:
        rows = await self._fetch(_TRANSFER, transfer_id)
        return _projected(rows[0]) if rows else None

    async def _tail_transfer(self, transfer_id: bytes) -> TransferFound | None:
        for row in await self._fetch(_TAIL, transfer_id, PROJECTION):
            for decision in decode_decisions(row["payload"], row["format"]):
                if (
                    isinstance(decision, TransferPosted | TransferRejected)
                    and decision.transfer_id == transfer_id
                ):
                    wallet_ids = [decision.source, decision.destination]
                    owners = await self._fetch(_OWNERS, wallet_ids)
                    return _not_projected(decision, row, {row[0]: row[1] for row in owners})
        return None

    async def _fetch(self, sql: str, *arguments: object) -> Sequence[asyncpg.Record]:
        try:
            async with self._pool.acquire(timeout=self._timeout_s) as connection:
                rows: Sequence[asyncpg.Record] = await connection.fetch(sql, *arguments)
                return rows
        except STORE_ERRORS as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


def _entry(row: asyncpg.Record) -> EntryRow:
    entry = EntryRow(*row)
    if entry.counterparty is not None and is_system_wallet(entry.counterparty):
        return msgspec.structs.replace(entry, counterparty=None)
    return entry


def _side(
    wallet_id: str, merchant_id: str | None, balance: int | None, version: int | None
) -> TransferSide | None:
    if is_system_wallet(wallet_id):
        return None
    return TransferSide(wallet_id, merchant_id, balance, version)


def _projected(row: asyncpg.Record) -> TransferFound:
    return TransferFound(
        row["transfer_id"],
        row["type"],
        row["reason"],
        row["merchant_id"],
        _side(
            row["source"], row["source_merchant_id"], row["source_balance"], row["source_version"]
        ),
        _side(
            row["destination"],
            row["destination_merchant_id"],
            row["destination_balance"],
            row["destination_version"],
        ),
        row["currency"],
        row["amount"],
        row["reference"],
        row["metadata"],
        row["shard_id"],
        row["sequence"],
        row["at_us"],
    )


def _not_projected(
    decision: TransferPosted | TransferRejected, row: asyncpg.Record, owners: Mapping[str, str]
) -> TransferFound:
    source = (decision.source, owners.get(decision.source))
    destination = (decision.destination, owners.get(decision.destination))
    if isinstance(decision, TransferPosted):
        reason = None
        source_side = _side(*source, decision.source_balance, decision.source_version)
        destination_side = _side(
            *destination, decision.destination_balance, decision.destination_version
        )
    else:
        reason = decision.reason
        source_side = _side(*source, None, None)
        destination_side = _side(*destination, None, None)
    return TransferFound(
        decision.transfer_id,
        decision.transfer_type,
        reason,
        decision.merchant_id,
        source_side,
        destination_side,
        decision.currency,
        decision.amount,
        decision.reference,
        decision.metadata,
        row["shard_id"],
        row["sequence"],
        row["at_us"],
    )
