"""
What a round means for the tables of holds and of refunds.

Rule: both are told as they are at the end of the round. The row of a hold goes with its slot; the
      row of a total stays, and the shard that has the slot next writes its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from msgspec.structs import astuple, replace

from processor.core.decisions import (
    HoldChanged,
    HoldPlaced,
    RefundCounted,
    SlotGiven,
    SlotTaken,
    hold_placed,
)
from processor.core.hold import Hold
from processor.storage.projected_change import Change, Stamp

_REMOVE_HOLDS = "DELETE FROM holds WHERE shard_id = $1 AND hold_id = ANY($2::uuid[])"

_ADD_HOLDS = """
    INSERT INTO holds (shard_id, hold_id, merchant_id, wallet_id, destination, currency, amount,
                       captured, pending, status, is_ending, placed_at_us, expires_at_us,
                       reference, metadata, changed_at)
    SELECT $1, * FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[],
                             $7::bigint[], $8::bigint[], $9::bigint[], $10::smallint[],
                             $11::boolean[], $12::bigint[], $13::bigint[], $14::text[],
                             $15::text[], $16::timestamptz[])
"""

_CHANGE_HOLDS = """
    UPDATE holds
       SET captured = changed.captured, pending = changed.pending, status = changed.status,
           is_ending = changed.is_ending, expires_at_us = changed.expires_at_us,
           changed_at = changed.at
      FROM unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::smallint[], $6::boolean[],
                  $7::bigint[], $8::timestamptz[])
        AS changed (hold_id, captured, pending, status, is_ending, expires_at_us, at)
     WHERE holds.hold_id = changed.hold_id AND holds.shard_id = $1
"""

_COUNT_REFUNDS = """
    INSERT INTO refunds (shard_id, transfer_id, wallet_id, refunded, version)
    SELECT $1, * FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::bigint[])
    ON CONFLICT (transfer_id, shard_id) DO UPDATE SET wallet_id = excluded.wallet_id,
        refunded = excluded.refunded, version = excluded.version
"""


class CountRows:
    """
    Collects in order what becomes of holds and of refunds.
    """

    def __init__(self) -> None:
        self._holds: dict[bytes, tuple[Hold, datetime]] = {}  # Those that have no row yet.
        self._changed: dict[bytes, tuple[Any, ...]] = {}
        self._left: dict[bytes, None] = {}
        self._refunds: dict[bytes, tuple[str, int, int]] = {}  # Wallet, refunded, version.

    def place(self, decision: HoldPlaced, stamp: Stamp) -> None:
        hold = hold_placed(decision, stamp.at_us)
        self._holds[hold.hold_id] = (hold, stamp.at)

    def change(self, decision: HoldChanged, stamp: Stamp) -> None:
        known = self._holds.get(decision.hold_id)
        if known is None:
            hold_id, *facts = astuple(decision)
            self._changed[hold_id] = (*facts, stamp.at)
            return
        hold = replace(
            known[0],
            captured=decision.captured,
            pending=decision.pending,
            status=decision.status,
            is_ending=decision.is_ending,
            expires_at_us=decision.expires_at_us,
        )
        self._holds[decision.hold_id] = (hold, stamp.at)

    def count(self, decision: RefundCounted) -> None:
        row = (decision.wallet_id, decision.refunded, decision.version)
        self._refunds[decision.transfer_id] = row

    def give(self, decision: SlotGiven) -> None:
        for hold in decision.holds:
            if self._holds.pop(hold.hold_id, None) is None:
                self._left[hold.hold_id] = None
            self._changed.pop(hold.hold_id, None)

    def take(self, decision: SlotTaken, stamp: Stamp) -> None:
        for hold in decision.holds:
            self._holds[hold.hold_id] = (hold, stamp.at)
        for total in decision.refunds:
            self._refunds[total.transfer_id] = (total.wallet_id, total.refunded, total.version)

    def changes(self) -> Iterator[Change]:
        # First: a hold that left and came back has a new row.
        left = [(hold_id,) for hold_id in sorted(self._left)]
        yield Change(_REMOVE_HOLDS, left, finds_each=True)
        yield Change(_ADD_HOLDS, list(self._new_rows()))
        changed = [(hold_id, *self._changed[hold_id]) for hold_id in sorted(self._changed)]
        yield Change(_CHANGE_HOLDS, changed, finds_each=True)
        refunds = [(one, *self._refunds[one]) for one in sorted(self._refunds)]
        yield Change(_COUNT_REFUNDS, refunds)

    def _new_rows(self) -> Iterator[tuple[Any, ...]]:
        for hold, at in self._holds.values():
            *facts, _sequence = astuple(hold)
            yield (*facts, at)
