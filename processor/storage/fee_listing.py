"""
What is in a merchant's wallets of fees: one a shard and currency, as of a moment ago.

They never leave their shard, so that each has one row.
"""

from __future__ import annotations

import msgspec

from processor.core.wallet import fees_wallet_id
from processor.storage.connection import Connection

# From the first id that begins so up to the first that does not: one run of the index.
_FEES = """
    SELECT wallet_id, currency, shard_id, posted, version FROM wallets
     WHERE merchant_id = $1 AND wallet_id >= '$fees:' AND wallet_id < '$fees;'
     ORDER BY wallet_id
"""


class FeesRow(msgspec.Struct, frozen=True, gc=False):
    """
    The fees of one currency at one shard.
    """

    currency: str
    shard_id: int
    balance: int
    version: int


async def fees_of(conn: Connection, merchant_id: str) -> list[FeesRow]:
    """
    List the wallets of a merchant's fees in one database.
    """
    rows = await conn.fetch(_FEES, merchant_id)
    return [
        FeesRow(row["currency"], row["shard_id"], row["posted"], row["version"])
        for row in rows
        if row["wallet_id"] == fees_wallet_id(row["shard_id"], merchant_id, row["currency"])
    ]
