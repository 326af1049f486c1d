"""
Rows of `holds` and `refunds` as what they stand for.

A row is of one shard. Of a hold that went with its slot the row went along; of a total the rows
stay where they are, and the one with the highest version is the latest.
"""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg

from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.storage.session import Session

HOLD_COLUMNS = (
    "hold_id, merchant_id, wallet_id, destination, currency, amount, captured, pending, status,"
    " is_ending, placed_at_us, expires_at_us, reference, metadata"
)
REFUND_COLUMNS = "transfer_id, wallet_id, refunded, version"

# Of one shard, or of all when that is NULL.
_HOLDS = f"""
    SELECT {HOLD_COLUMNS} FROM holds
     WHERE hold_id = ANY($1) AND ($2::int IS NULL OR shard_id = $2)
"""

_REFUNDS = f"""
    SELECT {REFUND_COLUMNS} FROM refunds
     WHERE transfer_id = ANY($1) AND ($2::int IS NULL OR shard_id = $2)
"""


def hold_from_row(row: asyncpg.Record) -> Hold:
    return Hold(*row)


def refund_from_row(row: asyncpg.Record) -> RefundTotal:
    return RefundTotal(*row)


async def holds_named(session: Session, hold_ids: list[bytes], shard_id: int | None) -> list[Hold]:
    """
    Read holds in one database, of one shard or of all; raises StoreUnavailable.
    """
    return [hold_from_row(row) for row in await session.fetch(_HOLDS, hold_ids, shard_id)]


async def refunds_named(
    session: Session, transfer_ids: list[bytes], shard_id: int | None
) -> list[RefundTotal]:
    """
    Read totals in one database, of one shard or of all; raises StoreUnavailable.
    """
    return [refund_from_row(row) for row in await session.fetch(_REFUNDS, transfer_ids, shard_id)]


def each_hold_once(holds: Iterable[Hold]) -> list[Hold]:
    """
    Choose of several rows of one hold the one that has ended: another is from before.
    """
    chosen: dict[bytes, Hold] = {}
    for hold in holds:
        if hold.hold_id not in chosen or hold.status != HoldStatus.OPEN:
            chosen[hold.hold_id] = hold
    return list(chosen.values())


def each_total_once(
    transfer_ids: Iterable[bytes], totals: Iterable[RefundTotal]
) -> list[RefundTotal]:
    """
    Choose the latest total of each transfer; where there is none, nothing went back so far.
    """
    chosen = {one: RefundTotal(one, "", 0, 0) for one in transfer_ids}
    for total in totals:
        if total.version > chosen[total.transfer_id].version:
            chosen[total.transfer_id] = total
    return list(chosen.values())
