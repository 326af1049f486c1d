"""
Rows of `wallets` as wallets.

What is set aside is not in them: it is the sum of what is on its way, held or not decided, see
`ShardSnapshot`. Limits and usage are arrays in the order of their fields, debits first; usage ends
with since when it is counted.
"""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg
from msgspec.structs import astuple

from processor.core.limits import Counter, Limits, Usage, Velocity
from processor.core.wallet import Wallet

_COLUMNS = "wallet_id, merchant_id, currency, status, minimum, posted, version, limits, usage"

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

_VELOCITY_FIELDS = len(Velocity.__struct_fields__)
_COUNTER_FIELDS = len(Counter.__struct_fields__)
COUNTERS_SIZE = 2 * _COUNTER_FIELDS  # Of usage, in its array; behind them is since when.


def wallet_from_row(row: asyncpg.Record) -> Wallet:
    return Wallet(
        row["wallet_id"],
        row["merchant_id"],
        row["currency"],
        status=row["status"],
        minimum=row["minimum"],
        posted=row["posted"],
        version=row["version"],
        limits=limits_from_row(row["limits"]),
        usage=usage_from_row(row["usage"]),
    )


def limits_from_row(row: list[int | None] | None) -> Limits | None:
    if row is None:
        return None
    debits, rest = row[:_VELOCITY_FIELDS], row[_VELOCITY_FIELDS:]
    return Limits(Velocity(*debits), Velocity(*rest[:_VELOCITY_FIELDS]), rest[-1])


def usage_from_row(row: list[int] | None) -> Usage | None:
    if row is None:
        return None
    debits, rest = row[:_COUNTER_FIELDS], row[_COUNTER_FIELDS:]
    return Usage(Counter(*debits), Counter(*rest[:_COUNTER_FIELDS]), rest[-1])


def limits_text(limits: Limits | None) -> str | None:
    """
    Write limits as the text of an array: many of them then travel in one array of texts.
    """
    if limits is None:
        return None
    return _array_text((*astuple(limits.debits), *astuple(limits.credits), limits.balance_max))


def usage_text(usage: Usage) -> str:
    return counters_text(usage.debits, usage.credits, usage.since_us)


def counters_text(debits: Counter, brought: Counter, *since_us: int) -> str:
    """
    Write usage as the text of an array, with or without since when it is counted.
    """
    return _array_text((*astuple(debits), *astuple(brought), *since_us))


def _array_text(values: Iterable[int | None]) -> str:
    return "{" + ",".join("NULL" if value is None else str(value) for value in values) + "}"
