"""
What a round means for the table of wallets.

Rule: a row is written once a kind of change, as it is at the end of the round. A wallet that came
      and went within it leaves no trace; one that left and came back has a new row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from processor.core.decisions import (
    CarriedWallet,
    UsageCounted,
    WalletLimitsSet,
    WalletOpened,
)
from processor.core.limits import Counter, Limits, Usage
from processor.core.slots import slot_of
from processor.core.wallet import WalletStatus
from processor.storage.projected_change import Change
from processor.storage.wallet_rows import COUNTERS_SIZE, counters_text, limits_text, usage_text

_NOTHING_COUNTED = counters_text(Counter(), Counter())

_REMOVE = "DELETE FROM wallets WHERE shard_id = $1 AND wallet_id = ANY($2::text[])"

_OPEN = """
    INSERT INTO wallets (shard_id, wallet_id, merchant_id, currency, status, minimum, posted,
                         version, opened_at, slot, limits, usage)
    SELECT $1, wallet_id, merchant_id, currency, status, minimum, posted, version, opened_at, slot,
           limits::bigint[], usage::bigint[]
      FROM unnest($2::text[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], $7::bigint[],
                  $8::bigint[], $9::timestamptz[], $10::int[], $11::text[], $12::text[])
        AS opened (wallet_id, merchant_id, currency, status, minimum, posted, version, opened_at,
                   slot, limits, usage)
"""

# Each names the shard: a wallet on its way between two shards of one database has a row of each.
_MOVE_BALANCES = """
    UPDATE wallets SET posted = moved.posted, version = moved.version
      FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS moved (wallet_id, posted, version)
     WHERE wallets.wallet_id = moved.wallet_id AND wallets.shard_id = $1
"""

_SET_STATUSES = """
    UPDATE wallets SET status = changed.status
      FROM unnest($2::text[], $3::smallint[]) AS changed (wallet_id, status)
     WHERE wallets.wallet_id = changed.wallet_id AND wallets.shard_id = $1
"""

# Counting begins with the first limits, and ends with the last.
_SET_LIMITS = f"""
    UPDATE wallets
       SET minimum = changed.minimum, limits = changed.limits::bigint[],
           usage = CASE WHEN changed.limits IS NULL THEN NULL
                        WHEN changed.is_anew OR wallets.usage IS NULL
                        THEN '{_NOTHING_COUNTED}'::bigint[] || changed.since_us
                        ELSE wallets.usage END
      FROM unnest($2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::boolean[])
        AS changed (wallet_id, minimum, limits, since_us, is_anew)
     WHERE wallets.wallet_id = changed.wallet_id AND wallets.shard_id = $1
"""

# Since when it is counted stays as it was.
_COUNT_USAGES = f"""
    UPDATE wallets SET usage = counted.counters::bigint[] || wallets.usage[{COUNTERS_SIZE + 1}]
      FROM unnest($2::text[], $3::text[]) AS counted (wallet_id, counters)
     WHERE wallets.wallet_id = counted.wallet_id AND wallets.shard_id = $1
"""


class NewWallet(msgspec.Struct, frozen=True):
    """
    A wallet that has no row yet, as it came: opened, or taken with its slot.
    """

    merchant_id: str
    currency: str
    status: int
    minimum: int
    posted: int
    version: int
    limits: Limits | None
    usage: Usage | None
    at: datetime


class LimitsChange(NamedTuple):
    """
    The limits at the end of the round of a wallet that has a row; `since_us` is when they began to
    count, if the row has no usage or (`is_anew`) that of limits which were lifted meanwhile.
    """

    minimum: int
    limits: str | None
    since_us: int
    is_anew: bool


class WalletRows:
    """
    Collects in order what becomes of wallets.
    """

    def __init__(self) -> None:
        self.balances: dict[str, tuple[int, int]] = {}  # Wallet: posted, version.
        self._opened: dict[str, NewWallet] = {}
        self._left: dict[str, None] = {}  # Those whose rows go: given with their slot.
        self._statuses: dict[str, int] = {}
        # Of those that have a row; what is opened is kept up to date itself.
        self._limits: dict[str, LimitsChange] = {}
        self._usages: dict[str, str] = {}  # The counters.

    def open(self, decision: WalletOpened, at: datetime) -> None:
        self._opened[decision.wallet_id] = NewWallet(
            decision.merchant_id,
            decision.currency,
            WalletStatus.OPEN,
            decision.minimum,
            posted=0,
            version=0,
            limits=None,
            usage=None,
            at=at,
        )

    def set_status(self, wallet_id: str, status: int) -> None:
        self._statuses[wallet_id] = status

    def set_limits(self, decision: WalletLimitsSet, at_us: int) -> None:
        wallet_id, minimum, limits = decision.wallet_id, decision.minimum, decision.limits
        new = self._opened.get(wallet_id)
        if new is not None:
            usage = None if limits is None else new.usage or Usage(since_us=at_us)
            self._opened[wallet_id] = replace(new, minimum=minimum, limits=limits, usage=usage)
            return
        before = self._limits.get(wallet_id)
        since_us = at_us if before is None or before.limits is None else before.since_us
        is_anew = limits is None or (before is not None and before.is_anew)
        self._limits[wallet_id] = LimitsChange(minimum, limits_text(limits), since_us, is_anew)
        if limits is None:
            self._usages.pop(wallet_id, None)

    def count_usage(self, decision: UsageCounted) -> None:
        wallet_id, debits, brought = decision.wallet_id, decision.debits, decision.credits
        new = self._opened.get(wallet_id)
        if new is None:
            self._usages[wallet_id] = counters_text(debits, brought)
        else:
            usage = replace(new.usage or Usage(), debits=debits, credits=brought)
            self._opened[wallet_id] = replace(new, usage=usage)

    def enter(self, wallet_id: str, posted: int, version: int) -> None:
        """
        Take in an entry that may be older than what is known of its wallet.
        """
        newest = self.balances.get(wallet_id)
        if wallet_id in self._opened:
            newest = newest or (0, self._opened[wallet_id].version)
        elif wallet_id in self._left:
            return
        if newest is None or version > newest[1]:
            self.balances[wallet_id] = (posted, version)

    def give(self, wallets: Iterable[CarriedWallet]) -> None:
        for wallet in wallets:
            if self._opened.pop(wallet.wallet_id, None) is None:
                self._left[wallet.wallet_id] = None
            changed: tuple[dict[str, Any], ...] = (self.balances, self._statuses)
            for changes in (*changed, self._limits, self._usages):
                changes.pop(wallet.wallet_id, None)

    def take(self, wallets: Iterable[CarriedWallet], at: datetime) -> None:
        for one in wallets:
            self._opened[one.wallet_id] = NewWallet(
                one.merchant_id,
                one.currency,
                one.status,
                one.minimum,
                one.posted,
                one.version,
                one.limits,
                one.usage,
                at,
            )

    def changes(self) -> Iterator[Change]:
        # First: a wallet that left and came back has a new row.
        left = [(wallet_id,) for wallet_id in sorted(self._left)]
        yield Change(_REMOVE, left, finds_each=True)
        yield Change(_OPEN, list(self._opened_rows()))
        # In key order, so that neighbours share pages and two rounds lock alike.
        moved = sorted((name, *balance) for name, balance in self.balances.items())
        yield Change(_MOVE_BALANCES, moved, finds_each=True)
        yield Change(_SET_STATUSES, sorted(self._statuses.items()))
        limits = [(name, *self._limits[name]) for name in sorted(self._limits)]
        yield Change(_SET_LIMITS, limits, finds_each=True)
        yield Change(_COUNT_USAGES, sorted(self._usages.items()), finds_each=True)

    def _opened_rows(self) -> Iterator[tuple[Any, ...]]:
        """
        Yield a row for each new wallet, as it is at the end of the round.
        """
        for wallet_id, new in self._opened.items():
            posted, version = self.balances.pop(wallet_id, (new.posted, new.version))
            yield (
                *(wallet_id, new.merchant_id, new.currency),
                self._statuses.pop(wallet_id, new.status),
                *(new.minimum, posted, version, new.at, slot_of(wallet_id)),
                limits_text(new.limits),
                None if new.usage is None else usage_text(new.usage),
            )
