"""
Rows of `wallets` as wallets.

What is reserved is not in them: it is the sum of what is on its way, see `PendingRow`.
"""

from __future__ import annotations

import asyncpg

from processor.core.wallet import Wallet

_COLUMNS = "wallet_id, merchant_id, currency, status, minimum, posted, version"

WALLETS = f"SELECT {_COLUMNS} FROM wallets WHERE shard_id = $1 AND wallet_id = ANY($2)"

# The ledger's own wallets have a slot as all have, and never leave.
WALLETS_OF_SLOT = f"""
    SELECT {_COLUMNS} FROM wallets
     WHERE shard_id = $1 AND slot = $2 AND wallet_id NOT LIKE '$%'
"""

# In the collation "C", '%' is what follows '$': the range is read from the index.
SYSTEM_WALLETS = f"""
    SELECT {_COLUMNS} FROM wallets
     WHERE shard_id = $1 AND wallet_id >= '$' AND wallet_id < '%'
"""


def wallet_from_row(row: asyncpg.Record) -> Wallet:
    return Wallet(
        row["wallet_id"],
        row["merchant_id"],
        row["currency"],
        status=row["status"],
        minimum=row["minimum"],
        posted=row["posted"],
        version=row["version"],
    )
