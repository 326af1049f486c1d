"""
One hold: money of a wallet that waits to be captured, voided, or for its time to be over.

Rule 1: captured + on its way + kept is the amount, while the hold is open; what a hold keeps is
        part of what its wallet has reserved.
Rule 2: a hold ends once. What is on its way to another shard then comes to its own end: it is
        captured, or free again.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

HOLDS_OPEN_MAX = 10_000  # Of one wallet: they are all in memory, and go with its slot at once.


class HoldStatus(IntEnum):
    """
    What became of a hold; the numbers are journaled.
    """

    OPEN = 1
    CAPTURED = 2  # All of it, or the last part; the rest is free.
    VOIDED = 3
    EXPIRED = 4

    @property
    def code(self) -> str:
        return self.name.lower()


class Hold(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    A hold as it is after a decision.

    `pending` is what captures have on its way to other shards; `is_ending` says that one of them
    is the last. `sequence` is that of the record that changed it last (0 when it was read from the
    tables and not changed since).
    """

    hold_id: bytes
    merchant_id: str
    wallet_id: str
    destination: str
    currency: str
    amount: int
    captured: int
    pending: int
    status: int
    is_ending: bool
    placed_at_us: int
    expires_at_us: int
    reference: str | None = None
    metadata: str | None = None
    sequence: int = 0

    @property
    def kept(self) -> int:
        """
        Return what is still set aside for captures to come.
        """
        if self.status != HoldStatus.OPEN:
            return 0
        return self.amount - self.captured - self.pending


class RefundTotal(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    How much of a transfer has gone back, at the shard of the wallet that pays it back.

    `version` counts the changes: of two totals that the tables of two shards have, the one with
    the higher version is the later one. It is 0 when nothing has gone back so far.
    """

    transfer_id: bytes
    wallet_id: str
    refunded: int
    version: int
    sequence: int = 0
