"""
What the auditor's books of a shard hold, whatever made them so.

A part of `recomputation`, and like it without any code of the ledger. Every part that folds
decisions into the books works on these.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from processor.storage.recomputed_counts import HoldBook, RefundBook
from processor.storage.recomputed_ends import ShardEnds
from processor.storage.recomputed_limits import flat_counters
from processor.storage.recomputed_wallets import (
    AMOUNT_MAX,
    BALANCE,
    LIMITS,
    RESERVED,
    SLOT,
    USAGE,
    VERSION,
    Contradiction,
    due_wallet_id,
    slot_of,
)

TransferRow = tuple[Any, ...]

TRANSFER, DEPOSIT, WITHDRAWAL, HOLD, CAPTURE, VOID, EXTEND, REFUND, FEE = TYPES = range(1, 10)

# Where terms have what.
TERMS_HOLD, TERMS_IS_FINAL, TERMS_REFUND_OF, TERMS_REFUNDABLE = range(4)
TERMS_VERSION, TERMS_AVAILABLE, TERMS_AMOUNT_MAX, TERMS_LIFETIME = range(4, 8)

_encode = msgspec.msgpack.Encoder().encode


class Stamp(NamedTuple):
    """
    Which record a decision is of, and its time in µs and as the tables have it.
    """

    sequence: int
    at_us: int
    at: datetime


class OutcomeRow(NamedTuple):
    """
    A row of `outcomes` that a decision of this shard means.
    """

    key: bytes
    sequence: int
    outcome: bytes
    transfer_id: bytes


class Books:
    """
    The books of one shard.

    `carried` has the outcomes that came with slots, under their keys. `claims` are outcomes that
    left with slots and are still to be compared with what the tables say of them, `outcomes` rows
    that are new; the reader takes both away, and what `holds` has for it. `uncounted` names the
    wallets whose usage has changed in this record and was not told yet.
    """

    def __init__(self, shard_id: int) -> None:
        self.shard_id = shard_id
        self.wallets: dict[str, list[Any]] = {}
        self.ends = ShardEnds(shard_id)
        self.holds = HoldBook()
        self.refunds = RefundBook()
        self.carried: dict[bytes, OutcomeRow] = {}
        self.claims: list[list[Any]] = []
        self.outcomes: list[OutcomeRow] = []
        self.recalled: dict[bytes, tuple[list[Any], int]] = {}  # And not decided anew yet.
        self.uncounted: dict[str, list[int]] = {}
        self.posted_count = 0
        self.rejected_count = 0
        self.linked_count = 0
        self._wallets_by_slot: dict[int, set[str]] | None = None  # Made for the first that leaves.

    def add_wallet(
        self, wallet_id: str, merchant_id: str, currency: str, minimum: int, at: datetime
    ) -> list[Any]:
        """
        Put a new, empty wallet into the books.
        """
        slot = slot_of(wallet_id)
        wallet = [merchant_id, currency, 1, minimum, 0, 0, at, slot, None, None, 0, 0, 0]
        self.wallets[wallet_id] = wallet
        if self._wallets_by_slot is not None and wallet_id[0] != "$":
            self._wallets_by_slot.setdefault(slot, set()).add(wallet_id)
        return wallet

    def wallets_of_slot(self, slot: int) -> set[str]:
        """
        Name the customers' wallets of a slot.
        """
        if self._wallets_by_slot is None:
            self._wallets_by_slot = {}
            for wallet_id, wallet in self.wallets.items():
                if wallet_id[0] != "$":
                    self._wallets_by_slot.setdefault(wallet[SLOT], set()).add(wallet_id)
        return self._wallets_by_slot.setdefault(slot, set())

    def limited_count(self) -> int:
        return sum(wallet[LIMITS] is not None for wallet in self.wallets.values())

    def due_of(self, peer: int, currency: str) -> tuple[str, list[Any]]:
        """
        Return the wallet of what *peer* is due, with its name; raises Contradiction.
        """
        due_id = due_wallet_id(self.shard_id, peer, currency)
        due = self.wallets.get(due_id)
        if due is None:
            raise Contradiction("due", "a wallet opened before", due_id)
        return due_id, due

    def check_asked(self, decision: list[Any]) -> None:
        """
        Check what every decision on a transfer begins with; raises Contradiction.
        """
        kind, transfer_id, key, amount = decision[1], decision[2], decision[3], decision[8]
        if kind not in TYPES:
            raise Contradiction("type", "1 to 9", kind)
        # Not in functions of their own: this is once for every transfer there is.
        if type(transfer_id) is not bytes or len(transfer_id) != 16:
            raise Contradiction("transfer_id", "16 bytes", transfer_id)
        if type(key) is not bytes or len(key) != 16:
            raise Contradiction("key", "16 bytes", key)
        if type(amount) is not int or not 1 <= amount <= AMOUNT_MAX:
            raise Contradiction("amount", f"1 to {AMOUNT_MAX}", amount)

    def check_terms(self, terms: list[Any] | None, own: list[Any], amount: int) -> None:
        """
        Check the conditions that a movement was asked for under, on the caller's *own* wallet as
        it is before; raises Contradiction.
        """
        if terms is None:
            return
        if len(terms) != TERMS_LIFETIME + 1:
            raise Contradiction("terms", f"{TERMS_LIFETIME + 1} fields", terms)
        version, least, most = terms[TERMS_VERSION:TERMS_LIFETIME]
        if version is not None and version != own[VERSION]:
            raise Contradiction("version asked for", own[VERSION], version)
        available = own[BALANCE] - own[RESERVED]
        if least is not None and available < least:
            raise Contradiction("available", f"{least} or more", available)
        if most is not None and amount > most:
            raise Contradiction("amount", f"at most {most}", amount)

    def decide_anew(self, decision: list[Any]) -> tuple[list[Any], int] | None:
        """
        Note that a transfer is decided; when it was recalled it must be as it was asked for, and
        is returned as it was reserved, with the time at which it was counted.
        """
        recalled = self.recalled.pop(decision[2], None)
        if recalled is None:
            return None
        asked, _ = recalled
        terms = decision[15 if decision[0] == 4 else 13 if decision[0] == 5 else 14]
        if asked[1:11] != decision[1:11] or asked[14] != terms:
            raise Contradiction("recalled transfer", asked[1:11], decision[1:11])
        return recalled

    def row(
        self,
        decision: list[Any],
        stamp: Stamp,
        *,
        terms: list[Any] | None,
        reason: int | None = None,
        short_by: int = 0,
        counterparty: str | None = None,
    ) -> TransferRow:
        """
        Make the row of `transfers` of a decision that is laid out as 4, or as 5 with a reason. One
        with terms has no key: its outcome has.
        """
        _, kind, transfer_id, key, merchant_id, source_id, destination_id = decision[:7]
        after = decision[11:15] if reason is None else [None] * 4
        return (
            *(transfer_id, self.shard_id, stamp.sequence, stamp.at, kind, reason, merchant_id),
            *(key if terms is None else None, source_id, *after[:2], destination_id, *after[2:]),
            *(*decision[7:11], counterparty, linked_by(terms), short_by or None),
        )

    def remember(self, decision: list[Any], stamp: Stamp) -> None:
        """
        Note the outcome that is in `outcomes`; raises Contradiction when its key came with a slot.
        """
        key, transfer_id = names_of(decision)
        if type(key) is not bytes or len(key) != 16:
            raise Contradiction("key", "16 bytes", key)
        if type(transfer_id) is not bytes or len(transfer_id) != 16:
            raise Contradiction("transfer_id", "16 bytes", transfer_id)
        if key in self.carried:
            raise Contradiction("key", "used once", key)
        encoded = _encode([decision, stamp.sequence, stamp.at_us])
        self.outcomes.append(OutcomeRow(key, stamp.sequence, encoded, transfer_id))

    def note_usage(self, wallet_id: str, before: list[int]) -> None:
        """
        Note that the usage of a wallet was *before* what it is, which has to be told.
        """
        told = self.uncounted.setdefault(wallet_id, before)
        if told == self.wallets[wallet_id][USAGE]:
            del self.uncounted[wallet_id]

    def check_usage(self, decision: list[Any]) -> None:
        """
        Compare the usage that is told with the one in the books; raises Contradiction.
        """
        _, wallet_id, debits, brought = decision
        wallet = self.wallets.get(wallet_id)
        if wallet is None or wallet[USAGE] is None:
            raise Contradiction("usage", "that of a wallet with limits", wallet_id)
        told, counted = flat_counters([debits, brought]), wallet[USAGE][:-1]
        if told != counted:
            raise Contradiction(f"usage of {wallet_id}", counted, told)
        self.uncounted.pop(wallet_id, None)

    def check_record(self) -> None:
        """
        Check that a record has told all that its decisions have to be followed by; raises
        Contradiction.
        """
        if self.recalled:
            recalled = min(self.recalled)
            raise Contradiction("recalled transfer", "decided anew in its record", recalled)
        self.holds.check_record()
        self.refunds.check_record()
        self.ends.linked.check_record()
        if self.uncounted:
            wallet_id = min(self.uncounted)
            usage = self.wallets[wallet_id][USAGE]
            raise Contradiction(f"usage of {wallet_id}", usage, self.uncounted[wallet_id])


def linked_by(terms: list[Any] | None) -> bytes | None:
    """
    Name the hold or the transfer that a movement is bound to.
    """
    return None if terms is None else terms[TERMS_HOLD] or terms[TERMS_REFUND_OF]


def names_of(decision: list[Any]) -> tuple[bytes, bytes]:
    """
    Return the key under which an outcome is, and what it is of.
    """
    return (decision[3], decision[2]) if decision[0] <= 7 else (decision[2], decision[1])
