"""
Finding one transfer: in the tables, among what is on its way, and in the journals' tails.

Rule 1: a transfer that is durable is found, projected or not: tables and tail are read in one
        snapshot of their database, so that nothing is between them.
Rule 2: a transfer between two shards is two views: its source's, which is pending until the
        source has settled it, and the credit at its destination. Each is told from the journal
        of its own shard alone, and never completed from the other.
Rule 3: holds are not transfers; what captures them is.
"""

from __future__ import annotations

import asyncpg
import msgspec

from processor.core.decisions import (
    Decision,
    EntryCredited,
    PendingEntry,
    TransferPosted,
    TransferRejected,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    decode_decisions,
)
from processor.core.leg_ids import is_leg_of, shared_prefix
from processor.storage import transfer_found
from processor.storage.connection import Connection
from processor.storage.leg_search import LegViews
from processor.storage.recovery_view import PROJECTION
from processor.storage.transfer_found import Place, TransferFound, is_due, place_of

_TRANSFERS = """
    SELECT *, (extract(epoch FROM at) * 1000000)::bigint AS at_us
      FROM transfers WHERE transfer_id = $1
"""

_PENDING = """
    SELECT shard_id, sequence, at_us, decision FROM pending_entries WHERE transfer_id = $1
"""

# An id stands in its record as plain bytes, so that the server finds the record by itself.
TAIL = """
    SELECT record.shard_id, record.sequence, record.at_us, record.format, record.payload
      FROM shard
      LEFT JOIN watermark ON watermark.shard_id = shard.shard_id AND projection = $2
      JOIN journal AS record ON record.shard_id = shard.shard_id
           AND record.sequence > coalesce(watermark.sequence, 0)
     WHERE position($1::bytea IN record.payload) > 0
     ORDER BY record.shard_id, record.sequence
"""

_decode_pending = msgspec.msgpack.Decoder(PendingEntry).decode


async def search(conn: Connection, transfer_id: bytes) -> list[TransferFound]:
    """
    Find every view of a transfer in one database; the owners of its wallets are left open.
    """
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        rows = await conn.fetch(_TRANSFERS, transfer_id)
        views, leg_views = _Views(transfer_id), LegViews(transfer_id)
        for row in rows:
            views.add_row(row)
        if any(_is_complete(row) for row in rows):
            return views.found
        for row in await conn.fetch(_PENDING, transfer_id):
            views.add_pending(row)
        if not rows or any(is_leg_of(transfer_id, row["linked_to"]) for row in rows):
            await leg_views.read(conn)
        for record in await conn.fetch(TAIL, shared_prefix(transfer_id), PROJECTION):
            for decision in decode_decisions(record["payload"], record["format"]):
                views.follow(place_of(record), decision)
                leg_views.follow(place_of(record), decision)
    # A row is what its record says, so that the one may stand for the other.
    found = {(view.shard_id, view.is_credit): view for view in leg_views.found}
    return list((found | {(view.shard_id, view.is_credit): view for view in views.found}).values())


def _is_complete(row: asyncpg.Record) -> bool:
    """
    Say whether a row has both sides, so that nothing comes after it or from elsewhere.
    """
    return not is_due(row["source"]) and not is_due(row["destination"])


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
        view = transfer_found.projected(row)
        if view is not None:
            self._set(view)

    def add_pending(self, row: asyncpg.Record) -> None:
        pending = _decode_pending(row["decision"])
        if isinstance(pending, TransferReserved):
            self._reserve(place_of(row), pending)

    def follow(self, place: Place, decision: Decision) -> None:
        """
        Take in a decision of the tail, if it is of this transfer; those of a shard come in order.

        What takes the place of a recalled transfer is in the same record, and overwrites it here.
        """
        if getattr(decision, "transfer_id", None) != self._transfer_id:
            return
        shard_id = place[0]
        match decision:
            case TransferPosted() | TransferRejected():
                self._set(transfer_found.decided(place, decision))
            case TransferReserved():
                self._reserve(place, decision)
            case TransferSettled():
                pending = self._reserved.pop(shard_id)
                self._set(transfer_found.settled(place, pending, decision))
            case TransferReleased():
                pending = self._reserved.pop(shard_id)
                self._set(transfer_found.released(place, pending, decision))
            case EntryCredited():
                self._set(transfer_found.credited(place, decision))

    def _reserve(self, place: Place, pending: TransferReserved) -> None:
        self._reserved[place[0]] = pending
        self._set(transfer_found.asked(place, pending, "pending"))

    def _set(self, view: TransferFound) -> None:
        self._views[view.shard_id, view.is_credit] = view
