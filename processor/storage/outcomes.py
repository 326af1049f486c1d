"""
The outcomes under keys that are in the tables: rows of transfers, and `outcomes`.

Rule: what stands in `outcomes` is the decision itself, and is preferred to a row that tells it.
A row without a key is the other end of a transfer across shards, a leg, or one of which `outcomes`
has the decision.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import msgspec

from processor.core.commands import TransferType
from processor.core.decisions import (
    CarriedOutcome,
    TransferDecision,
    TransferPosted,
    TransferRejected,
)
from processor.core.reject_reason import RejectReason
from processor.core.state import Remembered
from processor.flow.ports import StoreUnavailable
from processor.storage.connection import given_up_on
from processor.storage.session import STORE_ERRORS, Session

KEY_PAGE_ROWS = 5_000
PAGE_S_MAX = 60.0

# Of one shard, or of all when that is NULL.
_OUTCOMES = """
    SELECT type, transfer_id, key, merchant_id, source, destination, currency, amount,
           reference, metadata, source_version, source_balance, destination_version,
           destination_balance, reason, sequence, counterparty, short_by,
           (extract(epoch FROM at) * 1000000)::bigint AS at_us
      FROM transfers WHERE key = ANY($1) AND ($2::int IS NULL OR shard_id = $2)
"""

_DECIDED = """
    SELECT outcome FROM outcomes
     WHERE key = ANY($1) AND ($2::int IS NULL OR shard_id = $2)
"""

_KEYS = """
    SELECT key FROM transfers WHERE key IS NOT NULL AND ($1::int IS NULL OR shard_id = $1)
     UNION ALL
    SELECT key FROM outcomes WHERE $1::int IS NULL OR shard_id = $1
"""

_decode_outcome = msgspec.msgpack.Decoder(CarriedOutcome).decode


async def outcomes_under(
    session: Session, keys: list[bytes], shard_id: int | None
) -> list[Remembered]:
    """
    Read the outcomes in one database, of one shard or of all, each once; raises StoreUnavailable.
    """
    rows = await session.fetch(_OUTCOMES, keys, shard_id)
    by_key = {row["key"]: remembered_from_row(row) for row in rows}
    for (decided,) in await session.fetch(_DECIDED, keys, shard_id):
        outcome = _decode_outcome(decided)
        by_key[outcome.decision.key] = (outcome.decision, outcome.sequence, outcome.at_us)
    return list(by_key.values())


async def key_pages(
    connection: asyncpg.Connection[asyncpg.Record], shard_id: int | None
) -> AsyncIterator[list[bytes]]:
    """
    Yield the keys in one database, page by page; raises StoreUnavailable.
    """
    try:
        async with connection.transaction(readonly=True):
            cursor = await connection.cursor(_KEYS, shard_id)
            while True:
                with given_up_on(connection, PAGE_S_MAX):
                    rows = await cursor.fetch(KEY_PAGE_ROWS)
                if not rows:
                    return
                yield [row[0] for row in rows]
    except STORE_ERRORS as error:
        raise StoreUnavailable(f"reading keys failed: {error}") from error


def remembered_from_row(row: asyncpg.Record) -> Remembered:
    """
    Rebuild the decision that a row of `transfers` tells, as its shard remembers it.

    Across shards the destination is the wallet there, with what the peer is due after it.
    """
    asked = (
        TransferType(row["type"]),
        row["transfer_id"],
        row["key"],
        row["merchant_id"],
        row["source"],
        row["counterparty"] or row["destination"],
        row["currency"],
        row["amount"],
        row["reference"],
        row["metadata"],
    )
    decision: TransferDecision
    if row["reason"] is None:
        decision = TransferPosted(
            *asked,
            row["source_version"],
            row["source_balance"],
            row["destination_version"],
            row["destination_balance"],
        )
    else:
        decision = TransferRejected(*asked, RejectReason(row["reason"]), row["short_by"] or 0)
    return decision, row["sequence"], row["at_us"]
