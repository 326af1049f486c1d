"""
Finding one transfer: in the tables, among what is on its way, and in the journals' tails.

Rule 1: a transfer that is durable is found, projected or not: tables and tail are read in one
        snapshot of their database, so that nothing is between them.
Rule 2: a transfer between two shards is two views: its source's, which is pending until the
        source has settled it, and the credit at its destination. Each is told from the journal
        of its own shard alone, and never completed from the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import asyncpg
import msgspec

from processor.core.commands import TransferType
from processor.core.decisions import (
    EntryCredited,
    PendingEntry,
    TransferPosted,
    TransferRejected,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    decode_decisions,
)
from processor.core.wallet import is_system_wallet
from processor.storage.connection import Connection
from processor.storage.recovery_view import PROJECTION

_TRANSFERS = """
    SELECT *, (extract(epoch FROM at) * 1000000)::bigint AS at_us
      FROM transfers WHERE transfer_id = $1
"""

_PENDING = """
    SELECT shard_id, sequence, at_us, decision FROM pending_entries WHERE transfer_id = $1
"""

# An id stands in its record as 16 plain bytes, so the server finds the record by itself.
_TAIL = """
    SELECT record.shard_id, record.sequence, record.at_us, record.format, record.payload
      FROM shard
      LEFT JOIN watermark ON watermark.shard_id = shard.shard_id AND projection = $2
      JOIN journal AS record ON record.shard_id = shard.shard_id
           AND record.sequence > coalesce(watermark.sequence, 0)
     WHERE position($1::bytea IN record.payload) > 0
     ORDER BY record.shard_id, record.sequence
"""

TransferState = Literal["posted", "rejected", "pending"]

_decode_pending = msgspec.msgpack.Decoder(PendingEntry).decode


class TransferSide(msgspec.Struct, frozen=True, gc=False):
    """
    One wallet of a transfer, with the balance and version after it; they are None where it was
    not posted, or not by the shard that tells. `merchant_id` is None where the tables have no
    such wallet, as while it moves.
    """

    wallet_id: str
    merchant_id: str | None
    balance: int | None
    version: int | None


class TransferFound(msgspec.Struct, frozen=True, gc=False):
    """
    A transfer as one shard tells it. A side is None when it is outside; `merchant_id` asked for
    it. `is_credit` marks the view of the destination's shard, which is not for who asked.
    """

    transfer_id: bytes
    transfer_type: int
    state: TransferState
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
    is_credit: bool = False

    def wallet_ids(self) -> list[str]:
        sides = (self.source, self.destination)
        return [side.wallet_id for side in sides if side is not None]


async def search(conn: Connection, transfer_id: bytes) -> list[TransferFound]:
    """
    Find every view of a transfer in one database; the owners of its wallets are left open.
    """
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        rows = await conn.fetch(_TRANSFERS, transfer_id)
        views = _Views(transfer_id)
        for row in rows:
            views.add_row(row)
        if any(row["counterparty"] is None for row in rows):
            return views.found  # Both sides are in it, and nothing comes after it.
        for row in await conn.fetch(_PENDING, transfer_id):
            views.add_pending(row)
        for record in await conn.fetch(_TAIL, transfer_id, PROJECTION):
            views.follow(record)
    return views.found


def with_owners(found: TransferFound, owners: Mapping[str, str]) -> TransferFound:
    """
    Fill in whose wallets they are.
    """

    def owned(side: TransferSide | None) -> TransferSide | None:
        if side is None:
            return None
        return msgspec.structs.replace(side, merchant_id=owners.get(side.wallet_id))

    return msgspec.structs.replace(
        found, source=owned(found.source), destination=owned(found.destination)
    )


class _Views:
    """
    What is known of one transfer, by shard, while its journal is followed.
    """

    def __init__(self, transfer_id: bytes) -> None:
        self._transfer_id = transfer_id
        self._views: dict[tuple[int, bool], TransferFound] = {}
        self._reserved: dict[int, TransferReserved] = {}

    @property
    def found(self) -> list[TransferFound]:
        return list(self._views.values())

    def add_row(self, row: asyncpg.Record) -> None:
        self._set(_projected(row))

    def add_pending(self, row: asyncpg.Record) -> None:
        pending = _decode_pending(row["decision"])
        assert isinstance(pending, TransferReserved), "only a transfer has a transfer's id"
        self._reserve(row, pending)

    def follow(self, record: asyncpg.Record) -> None:
        """
        Take in a record of the tail; those of a shard come in their order.

        What takes the place of a recalled transfer is in the same record, and overwrites it here.
        """
        for decision in decode_decisions(record["payload"], record["format"]):
            if getattr(decision, "transfer_id", None) != self._transfer_id:
                continue
            match decision:
                case TransferPosted() | TransferRejected():
                    self._set(_decided(record, decision))
                case TransferReserved():
                    self._reserve(record, decision)
                case TransferSettled():
                    self._set(_settled(record, self._reserved.pop(record["shard_id"]), decision))
                case TransferReleased():
                    self._set(_released(record, self._reserved.pop(record["shard_id"]), decision))
                case EntryCredited():
                    self._set(_credited(record, decision))

    def _reserve(self, record: asyncpg.Record, pending: TransferReserved) -> None:
        self._reserved[record["shard_id"]] = pending
        self._set(_asked(record, pending, "pending"))

    def _set(self, view: TransferFound) -> None:
        self._views[view.shard_id, view.is_credit] = view


def _side(
    wallet_id: str, balance: int | None = None, version: int | None = None
) -> TransferSide | None:
    if is_system_wallet(wallet_id):
        return None
    return TransferSide(wallet_id, None, balance, version)


def _projected(row: asyncpg.Record) -> TransferFound:
    source = _side(row["source"], row["source_balance"], row["source_version"])
    destination = _side(row["destination"], row["destination_balance"], row["destination_version"])
    counterparty = row["counterparty"]
    is_credit = False
    if counterparty is not None:
        is_credit = source is None
        if is_credit:
            source = _side(counterparty)
        else:
            destination = _side(counterparty)
    return TransferFound(
        row["transfer_id"],
        row["type"],
        "posted" if row["reason"] is None else "rejected",
        row["reason"],
        row["merchant_id"],
        source,
        destination,
        row["currency"],
        row["amount"],
        row["reference"],
        row["metadata"],
        row["shard_id"],
        row["sequence"],
        row["at_us"],
        is_credit,
    )


def _asked(
    record: asyncpg.Record,
    asked: TransferPosted | TransferRejected | TransferReserved,
    state: TransferState,
    reason: int | None = None,
) -> TransferFound:
    """
    Tell a transfer that has moved nothing, or not yet.
    """
    return TransferFound(
        asked.transfer_id,
        asked.transfer_type,
        state,
        reason,
        asked.merchant_id,
        _side(asked.source),
        _side(asked.destination),
        asked.currency,
        asked.amount,
        asked.reference,
        asked.metadata,
        record["shard_id"],
        record["sequence"],
        record["at_us"],
    )


def _decided(record: asyncpg.Record, decision: TransferPosted | TransferRejected) -> TransferFound:
    if isinstance(decision, TransferRejected):
        return _asked(record, decision, "rejected", decision.reason)
    return msgspec.structs.replace(
        _asked(record, decision, "posted"),
        source=_side(decision.source, decision.source_balance, decision.source_version),
        destination=_side(
            decision.destination, decision.destination_balance, decision.destination_version
        ),
    )


def _settled(
    record: asyncpg.Record, pending: TransferReserved, decision: TransferSettled
) -> TransferFound:
    source = _side(pending.source, decision.source_balance, decision.source_version)
    return msgspec.structs.replace(_asked(record, pending, "posted"), source=source)


def _released(
    record: asyncpg.Record, pending: TransferReserved, decision: TransferReleased
) -> TransferFound:
    return _asked(record, pending, "rejected", decision.reason)


def _credited(record: asyncpg.Record, decision: EntryCredited) -> TransferFound:
    destination = _side(
        decision.destination, decision.destination_balance, decision.destination_version
    )
    return TransferFound(
        decision.transfer_id,
        TransferType.TRANSFER,
        "posted",
        None,
        decision.merchant_id,
        _side(decision.source),
        destination,
        decision.currency,
        decision.amount,
        decision.reference,
        decision.metadata,
        record["shard_id"],
        record["sequence"],
        record["at_us"],
        is_credit=True,
    )


def wallets_of(found: Iterable[TransferFound]) -> list[str]:
    """
    List the wallets in *found*, each once.
    """
    return list(dict.fromkeys(wallet_id for one in found for wallet_id in one.wallet_ids()))
