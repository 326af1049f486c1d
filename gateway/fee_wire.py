"""
The bodies of fees, version 1; the rules are those of `gateway.wire`.
"""

from __future__ import annotations

import msgspec

from gateway.strict_json import Strict
from gateway.wire import CurrencyCode, Transfer, WalletIdText


class SweepRequest(Strict, frozen=True):
    """
    Brings all fees of a currency into one of your wallets.
    """

    currency: CurrencyCode
    destination: WalletIdText


class FeesAtShard(msgspec.Struct, frozen=True):
    """
    What the fees of one shard come to; `version` is the number of entries so far.
    """

    shard: int
    balance: int
    version: int


class FeesInCurrency(msgspec.Struct, frozen=True):
    """
    Your fees in one currency, in all and at each shard.
    """

    currency: str
    balance: int
    shards: list[FeesAtShard]


class Fees(msgspec.Struct, frozen=True):
    fees: list[FeesInCurrency]


class Sweep(msgspec.Struct, frozen=True):
    """
    What a sweep has moved: `amount` is what was posted, `pending` what is on its way, and
    `transfers` has one of each shard that had something to move. They are transfers of their own:
    one can be rejected and another posted.
    """

    currency: str
    destination: str
    amount: int
    pending: int
    transfers: list[Transfer]
