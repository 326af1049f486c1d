"""
What has gone back of one transfer: the refunds that were posted, and their sum, as of a moment ago.
"""

from __future__ import annotations

import msgspec

from processor.core.commands import TransferType
from processor.storage import transfer_found
from processor.storage.connection import Connection
from processor.storage.transfer_found import TransferFound

# A leg that takes something back is linked to the linked transfer that it is a leg of.
_REFUNDS = """
    SELECT *, (extract(epoch FROM at) * 1000000)::bigint AS at_us
      FROM transfers WHERE linked_to = $1 AND type = $2 AND reason IS NULL
     ORDER BY transfer_id LIMIT $3
"""

_TOTALS = "SELECT refunded, version FROM refunds WHERE transfer_id = $1"


class RefundsFound(msgspec.Struct, frozen=True):
    """
    Refunds by id, with the views of each, and how much has gone back or is on its way: the total
    of the highest version is the last one.
    """

    views: list[TransferFound]
    refunded: int
    version: int


async def refunds_of(conn: Connection, transfer_id: bytes, limit: int) -> RefundsFound:
    """
    List the refunds of a transfer that the tables of one database have.
    """
    rows = await conn.fetch(_REFUNDS, transfer_id, TransferType.REFUND, limit)
    views = [transfer_found.projected(row) for row in rows]
    totals = await conn.fetch(_TOTALS, transfer_id)
    last = max(totals, key=lambda row: row["version"], default=None)
    return RefundsFound(
        [view for view in views if view is not None],
        0 if last is None else last["refunded"],
        0 if last is None else last["version"],
    )
