"""
The books of a shard, worked out a second time from its journal.

This is the auditor's own reading of the journal. It shares no code with the ledger: one mistake
in `processor.core` must not hide itself here. So nothing of it may be imported, and a change of
the journal's format is made in both places by hand.

A journal row is a header and a payload; the chain of a row is
`blake2b(chain of the row before + header + payload)`, 32 bytes, the header being big-endian
shard (4 bytes), sequence, epoch, time in µs (8 each), count (4) and format (2). Before the first
row the chain is 32 zero bytes. The payload of format 1 is a msgpack array of decisions, each an
array that starts with its tag:

    1 wallet opened      wallet, merchant, currency, minimum
    2 wallet status set  wallet, status (1 open, 2 frozen, 3 locked, 4 closed)
    3 wallet limits set  wallet, minimum
    4 transfer posted    type, id, key, merchant, source, destination, currency, amount,
                         reference, metadata, then version and balance after it of the source
                         and of the destination
    5 transfer rejected  as 4 up to metadata, then the reason
    6 epoch started      build

The types are 1 transfer, 2 deposit and 3 withdrawal. What happens between shards is 7 to 18, see
`recomputed_ends`; the ledger's own wallets are in `recomputed_wallets`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import msgspec

from processor.storage.recomputed_between import TransferRow, fold_between
from processor.storage.recomputed_ends import (
    CREDITED,
    FIELD_COUNTS,
    RELEASED,
    SETTLED,
    ShardEnds,
)
from processor.storage.recomputed_ends import GRANTED as SLOTS_GRANTED
from processor.storage.recomputed_wallets import (
    AMOUNT_MAX,
    BALANCE,
    BALANCE_MAX,
    CURRENCY,
    MERCHANT,
    MINIMUM,
    RESERVED,
    SLOT,
    STATUS,
    VERSION,
    Contradiction,
    check_system_wallet,
    due_wallet_id,
    slot_of,
)

FORMAT = 1
GENESIS = bytes(32)

OPENED, STATUS_SET, LIMITS_SET, POSTED, REJECTED, EPOCH_STARTED = range(1, 7)
TRANSFER, DEPOSIT, WITHDRAWAL = TYPES = (1, 2, 3)
CLOSED = 4

# Where a transfer's id stands in each decision that means a row of `transfers`.
_PLACE_OF_ID = {POSTED: 2, REJECTED: 2, SETTLED: 3, RELEASED: 3, CREDITED: 4}

_HEADER = struct.Struct(">IQQQIH")
_EPOCH_OF_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_decode = msgspec.msgpack.Decoder().decode


def transfer_ids(payload: bytes) -> set[bytes]:
    """
    Name the transfers that a payload which was folded before has rows for.
    """
    return {
        decision[_PLACE_OF_ID[decision[0]]]
        for decision in _decode(payload)
        if decision[0] in _PLACE_OF_ID
    }


class Unsound(Exception):
    """
    The journal contradicts itself: at *key*, *field* is *found* where *expected* would follow.
    """

    def __init__(self, key: str, field: str, expected: object, found: object) -> None:
        super().__init__(f"{key}: {field} is {found!r}, {expected!r} would follow")
        self.key = key
        self.field = field
        self.expected = expected
        self.found = found


class ShardBooks:
    """
    The books of one shard as the journal, up to `sequence`, makes them.

    `carried` has the outcomes that came with slots, under their keys: the sequence of the record
    that took them, and the outcome in msgpack. `claims` are outcomes that left with slots and are
    still to be compared with what the tables say of them; the reader takes them away.
    """

    def __init__(self, shard_id: int) -> None:
        self.shard_id = shard_id
        self.sequence = 0
        self.chain = GENESIS
        self.epoch = 0
        self.at_us = 0
        self.wallets: dict[str, list[Any]] = {}
        self.ends = ShardEnds(shard_id)
        self.carried: dict[bytes, tuple[int, bytes]] = {}
        self.claims: list[list[Any]] = []
        self.recalled: dict[bytes, list[Any]] = {}  # In this record, and not decided anew yet.
        self.posted_count = 0
        self.rejected_count = 0
        self._wallets_by_slot: dict[int, set[str]] | None = None  # Made for the first that leaves.

    def fold(self, row: Sequence[Any]) -> list[TransferRow]:
        """
        Take in the next journal row and return the rows of `transfers` it means.

        The row is (sequence, epoch, at_us, count, format, chain, payload). Raises Unsound; the
        books are then of no more use.
        """
        sequence, epoch, at_us, count, decision_format, chain, payload = row
        key = f"shard {self.shard_id}, sequence {sequence}"
        try:
            self._check_header(row)
            decisions = _decode(payload)
            if len(decisions) != count:
                raise Contradiction("count", len(decisions), count)
            transfers = self._fold_decisions(decisions, sequence, epoch, at_us)
        except Contradiction as error:
            raise Unsound(key, error.field, error.expected, error.found) from error
        except (ValueError, TypeError, LookupError, OverflowError, AttributeError) as error:
            raise Unsound(key, "payload", f"format {decision_format}", str(error)) from error
        self.sequence, self.epoch, self.at_us, self.chain = sequence, epoch, at_us, chain
        return transfers

    def sums(self) -> dict[str, tuple[int, int, int]]:
        """
        Sum the balances per currency: of the customers, of the world, of what others are due.
        """
        sums: dict[str, tuple[int, int, int]] = {}
        for wallet_id, wallet in self.wallets.items():
            customers, world, due = sums.get(wallet[CURRENCY], (0, 0, 0))
            if wallet_id[0] != "$":
                customers += wallet[BALANCE]
            elif wallet_id.startswith("$world:"):
                world += wallet[BALANCE]
            else:
                due += wallet[BALANCE]
            sums[wallet[CURRENCY]] = (customers, world, due)
        return sums

    def check_end(self) -> None:
        """
        Check what must hold of the books as a whole; raises Unsound.
        """
        for wallet_id, wallet in self.wallets.items():
            available = wallet[BALANCE] - wallet[RESERVED]
            is_world = wallet_id.startswith("$world:")
            if available < wallet[MINIMUM] and not is_world:
                raise Unsound(wallet_id, "balance", f"{wallet[MINIMUM]} or more", available)
            if wallet[STATUS] == CLOSED and (wallet[BALANCE] or wallet[RESERVED]):
                raise Unsound(wallet_id, "balance of a closed wallet", 0, wallet[BALANCE])
        for currency, sums in self.sums().items():
            if sum(sums) != 0:
                raise Unsound(f"shard {self.shard_id}", f"sum of {currency}", 0, sum(sums))
        self._check_reserved()
        self._check_dues()

    def add_wallet(
        self, wallet_id: str, merchant_id: str, currency: str, minimum: int, at: datetime
    ) -> list[Any]:
        """
        Put a new, empty wallet into the books.
        """
        slot = slot_of(wallet_id)
        wallet = [merchant_id, currency, 1, minimum, 0, 0, at, slot, 0]
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

    def check_asked(self, decision: list[Any]) -> None:
        """
        Check what every decision on a transfer begins with; raises Contradiction.
        """
        kind, transfer_id, key, amount = decision[1], decision[2], decision[3], decision[8]
        if kind not in TYPES:
            raise Contradiction("type", "1, 2 or 3", kind)
        # Not in functions of their own: this is once for every transfer there is.
        if type(transfer_id) is not bytes or len(transfer_id) != 16:
            raise Contradiction("transfer_id", "16 bytes", transfer_id)
        if type(key) is not bytes or len(key) != 16:
            raise Contradiction("key", "16 bytes", key)
        if type(amount) is not int or not 1 <= amount <= AMOUNT_MAX:
            raise Contradiction("amount", f"1 to {AMOUNT_MAX}", amount)

    def decide_anew(self, decision: list[Any]) -> None:
        """
        Note that a transfer is decided; one that was recalled must be as it was asked for.
        """
        asked = self.recalled.pop(decision[2], None)
        if asked is not None and asked[1:11] != decision[1:11]:
            raise Contradiction("recalled transfer", asked[1:11], decision[1:11])

    def row(
        self,
        decision: list[Any],
        sequence: int,
        at: datetime,
        *,
        reason: int | None = None,
        counterparty: str | None = None,
    ) -> TransferRow:
        """
        Make the row of `transfers` of a decision that is laid out as 4, or as 5 with a reason.
        """
        _, kind, transfer_id, key, merchant_id, source_id, destination_id = decision[:7]
        after = decision[11:15] if reason is None else [None] * 4
        return (
            *(transfer_id, self.shard_id, sequence, at, kind, reason, merchant_id, key),
            *(source_id, *after[:2], destination_id, *after[2:]),
            *(*decision[7:11], counterparty),
        )

    def _check_reserved(self) -> None:
        reserved: dict[str, int] = {}
        for decision in self.ends.pending_transfers():
            reserved[decision[5]] = reserved.get(decision[5], 0) + decision[8]
        for wallet_id, wallet in self.wallets.items():
            if wallet[RESERVED] != reserved.pop(wallet_id, 0):
                raise Unsound(wallet_id, "reserved", "what is on its way", wallet[RESERVED])
        if reserved:
            raise Unsound(min(reserved), "wallet with money on its way", "one that is here", None)

    def _check_dues(self) -> None:
        dues: dict[str, int] = {}
        for sign, ends in ((1, self.ends.outgoing), (-1, self.ends.incoming)):
            for peer, end in ends.items():
                for currency, amount in end.moved.items():
                    due_id = due_wallet_id(self.shard_id, peer, currency)
                    dues[due_id] = dues.get(due_id, 0) + sign * amount
        for wallet_id, wallet in self.wallets.items():
            if wallet_id.startswith("$due:") and wallet[BALANCE] != dues.get(wallet_id, 0):
                raise Unsound(wallet_id, "balance", dues.get(wallet_id, 0), wallet[BALANCE])

    def _check_header(self, row: Sequence[Any]) -> None:
        sequence, epoch, at_us, count, decision_format, chain, payload = row
        if sequence != self.sequence + 1:
            raise Contradiction("sequence", self.sequence + 1, sequence)
        if decision_format != FORMAT:
            raise Contradiction("format", FORMAT, decision_format)
        if epoch < max(self.epoch, 1):
            raise Contradiction("epoch", f"{max(self.epoch, 1)} or more", epoch)
        if at_us <= self.at_us:
            raise Contradiction("at_us", f"more than {self.at_us}", at_us)
        try:
            header = _HEADER.pack(self.shard_id, sequence, epoch, at_us, count, decision_format)
        except struct.error as error:
            raise Contradiction("header", "numbers in range", str(error)) from error
        expected = blake2b(self.chain + header + payload, digest_size=32).digest()
        if chain != expected:
            raise Contradiction("chain", expected, chain)

    def _fold_decisions(
        self, decisions: list[Any], sequence: int, epoch: int, at_us: int
    ) -> list[TransferRow]:
        at = _EPOCH_OF_TIME + timedelta(microseconds=at_us)
        transfers = []
        if sequence == 1 and decisions[0][0] != EPOCH_STARTED:
            raise Contradiction("first decision", EPOCH_STARTED, decisions[0][0])
        for position, decision in enumerate(decisions):
            tag = decision[0]
            if tag == POSTED:
                transfers.append(self._fold_posted(decision, sequence, at))
            elif tag == REJECTED:
                transfers.append(self._fold_rejected(decision, sequence, at))
            elif tag == EPOCH_STARTED:
                (_, _build) = decision
                if position != 0:
                    raise Contradiction("place of the epoch's start", 0, position)
                if epoch <= self.epoch:
                    raise Contradiction("epoch", f"more than {self.epoch}", epoch)
            elif tag in FIELD_COUNTS:
                if tag == SLOTS_GRANTED and decisions[0][0] != EPOCH_STARTED:
                    raise Contradiction("slots granted", "in the record of an epoch's start", tag)
                row = fold_between(self, decision, sequence, at, at_us)
                if row is not None:
                    transfers.append(row)
            else:
                self._fold_wallet(decision, at)
        if self.recalled:
            recalled = min(self.recalled)
            raise Contradiction("recalled transfer", "decided anew in its record", recalled)
        return transfers

    def _fold_posted(self, decision: list[Any], sequence: int, at: datetime) -> TransferRow:
        (
            _,
            kind,
            transfer_id,
            key,
            merchant_id,
            source_id,
            destination_id,
            currency,
            amount,
            reference,
            metadata,
            source_version,
            source_balance,
            destination_version,
            destination_balance,
        ) = decision
        self.check_asked(decision)
        source = self.wallets.get(source_id)
        destination = self.wallets.get(destination_id)
        if source is None:
            raise Contradiction("source", "a wallet opened before", source_id)
        if destination is None or destination is source:
            raise Contradiction("destination", "another open wallet", destination_id)
        if source[CURRENCY] != currency or destination[CURRENCY] != currency:
            raise Contradiction("currency", source[CURRENCY], currency)
        owner = destination if kind == DEPOSIT else source
        if owner[MERCHANT] != merchant_id:
            raise Contradiction("merchant", owner[MERCHANT], merchant_id)
        # Only a deposit takes from the world, only a withdrawal gives to it.
        if source_id[0] == "$" if kind != DEPOSIT else source_id[:7] != "$world:":
            raise Contradiction("source of this type", f"type {kind}", source_id)
        if destination_id[0] == "$" if kind != WITHDRAWAL else destination_id[:7] != "$world:":
            raise Contradiction("destination of this type", f"type {kind}", destination_id)

        balance = source[BALANCE] - amount
        if source_balance != balance:
            raise Contradiction("source_balance", balance, source_balance)
        if balance - source[RESERVED] < source[MINIMUM] and kind != DEPOSIT:
            minimum = f"{source[MINIMUM]} or more, and {source[RESERVED]} reserved"
            raise Contradiction("source_balance", minimum, balance)
        source[BALANCE] = balance
        balance = destination[BALANCE] + amount
        if destination_balance != balance:
            raise Contradiction("destination_balance", balance, destination_balance)
        if balance > BALANCE_MAX:
            raise Contradiction("destination_balance", f"<= {BALANCE_MAX}", balance)
        destination[BALANCE] = balance

        source[VERSION] += 1
        if source_version != source[VERSION]:
            raise Contradiction("source_version", source[VERSION], source_version)
        destination[VERSION] += 1
        if destination_version != destination[VERSION]:
            raise Contradiction("destination_version", destination[VERSION], destination_version)
        self.posted_count += 1
        if self.recalled:
            self.decide_anew(decision)
        return (
            transfer_id,
            self.shard_id,
            sequence,
            at,
            kind,
            None,
            merchant_id,
            key,
            source_id,
            source_version,
            source_balance,
            destination_id,
            destination_version,
            destination_balance,
            currency,
            amount,
            reference,
            metadata,
            None,
        )

    def _fold_rejected(self, decision: list[Any], sequence: int, at: datetime) -> TransferRow:
        (
            _,
            kind,
            transfer_id,
            key,
            merchant_id,
            source_id,
            destination_id,
            currency,
            amount,
            reference,
            metadata,
            reason,
        ) = decision
        self.check_asked(decision)
        if type(reason) is not int or reason < 1:
            raise Contradiction("reason", "a number", reason)
        self.rejected_count += 1
        if self.recalled:
            self.decide_anew(decision)
        return (
            transfer_id,
            self.shard_id,
            sequence,
            at,
            kind,
            reason,
            merchant_id,
            key,
            source_id,
            None,
            None,
            destination_id,
            None,
            None,
            currency,
            amount,
            reference,
            metadata,
            None,
        )

    def _fold_wallet(self, decision: list[Any], at: datetime) -> None:
        tag, wallet_id = decision[0], decision[1]
        if tag == OPENED:
            self._open(decision, at)
            return
        wallet = self.wallets.get(wallet_id)
        if wallet is None:
            raise Contradiction("wallet", "a wallet opened before", wallet_id)
        (_, _, value) = decision
        if tag == STATUS_SET:
            if value == CLOSED and wallet[BALANCE] != 0:
                raise Contradiction("balance of a closed wallet", 0, wallet[BALANCE])
            if value == CLOSED and wallet[RESERVED] != 0:
                raise Contradiction("reserved of a closed wallet", 0, wallet[RESERVED])
            wallet[STATUS] = value
        elif tag == LIMITS_SET:
            available = wallet[BALANCE] - wallet[RESERVED]
            if value > available:
                raise Contradiction("minimum", f"<= {available}", value)
            wallet[MINIMUM] = value
        else:
            raise Contradiction("tag", "1 to 18", tag)

    def _open(self, decision: list[Any], at: datetime) -> None:
        (_, wallet_id, merchant_id, currency, minimum) = decision
        if wallet_id in self.wallets:
            raise Contradiction("wallet opened", "a new wallet", wallet_id)
        if wallet_id[0] == "$":
            check_system_wallet(self.shard_id, decision)
        elif not self.ends.has_slot(slot_of(wallet_id)):
            raise Contradiction("wallet opened", "a wallet of a slot that is here", wallet_id)
        self.add_wallet(wallet_id, merchant_id, currency, minimum, at)
