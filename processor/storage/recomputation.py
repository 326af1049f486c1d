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

The types are 1 transfer, 2 deposit and 3 withdrawal. Wallets that start with `$` are the
ledger's own; `$world:<shard>:<currency>` stands for all money outside and alone may be negative
without a limit.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import msgspec

FORMAT = 1
AMOUNT_MAX = 2**53 - 1
BALANCE_MAX = 2**63 - 1
GENESIS = bytes(32)

OPENED, STATUS_SET, LIMITS_SET, POSTED, REJECTED, EPOCH_STARTED = range(1, 7)
TRANSFER, DEPOSIT, WITHDRAWAL = TYPES = (1, 2, 3)
CLOSED = 4

# Where a wallet's facts stand, in the order of the columns of `wallets`.
MERCHANT, CURRENCY, STATUS, MINIMUM, BALANCE, VERSION, OPENED_AT = range(7)

_HEADER = struct.Struct(">IQQQIH")
_EPOCH_OF_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_decode = msgspec.msgpack.Decoder().decode


def transfer_ids(payload: bytes) -> set[bytes]:
    """
    Name the transfers of a payload that was folded before.
    """
    return {decision[2] for decision in _decode(payload) if decision[0] in {POSTED, REJECTED}}


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
    The wallets of one shard as the journal, up to `sequence`, makes them.
    """

    def __init__(self, shard_id: int) -> None:
        self.shard_id = shard_id
        self.sequence = 0
        self.chain = GENESIS
        self.epoch = 0
        self.at_us = 0
        self.wallets: dict[str, list[Any]] = {}
        self.posted_count = 0
        self.rejected_count = 0

    def fold(self, row: Sequence[Any]) -> list[tuple[Any, ...]]:
        """
        Take in the next journal row and return the rows of `transfers` it means.

        The row is (sequence, epoch, at_us, count, format, chain, payload). Raises Unsound; the
        books are then of no more use.
        """
        sequence, epoch, at_us, count, decision_format, chain, payload = row
        key = f"shard {self.shard_id}, sequence {sequence}"
        self._check_header(key, row)
        try:
            decisions = _decode(payload)
            if len(decisions) != count:
                raise Unsound(key, "count", len(decisions), count)
            transfers = self._fold_decisions(decisions, sequence, epoch, at_us)
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise Unsound(key, "payload", f"format {decision_format}", str(error)) from error
        self.sequence, self.epoch, self.at_us, self.chain = sequence, epoch, at_us, chain
        return transfers

    def sums(self) -> dict[str, tuple[int, int]]:
        """
        Sum the balances per currency: of the customers, and of the ledger's own wallets.
        """
        sums: dict[str, tuple[int, int]] = {}
        for wallet_id, wallet in self.wallets.items():
            customers, own = sums.get(wallet[CURRENCY], (0, 0))
            if wallet_id.startswith("$"):
                own += wallet[BALANCE]
            else:
                customers += wallet[BALANCE]
            sums[wallet[CURRENCY]] = (customers, own)
        return sums

    def check_end(self) -> None:
        """
        Check what must hold of the books as a whole; raises Unsound.
        """
        for wallet_id, wallet in self.wallets.items():
            is_world = wallet_id.startswith("$world:")
            if wallet[BALANCE] < wallet[MINIMUM] and not is_world:
                raise Unsound(wallet_id, "balance", f"{wallet[MINIMUM]} or more", wallet[BALANCE])
            if wallet[STATUS] == CLOSED and wallet[BALANCE] != 0:
                raise Unsound(wallet_id, "balance of a closed wallet", 0, wallet[BALANCE])
        for currency, (customers, own) in self.sums().items():
            if customers + own != 0:
                raise Unsound(f"shard {self.shard_id}", f"sum of {currency}", 0, customers + own)

    def _check_header(self, key: str, row: Sequence[Any]) -> None:
        sequence, epoch, at_us, count, decision_format, chain, payload = row
        if sequence != self.sequence + 1:
            raise Unsound(key, "sequence", self.sequence + 1, sequence)
        if decision_format != FORMAT:
            raise Unsound(key, "format", FORMAT, decision_format)
        if epoch < max(self.epoch, 1):
            raise Unsound(key, "epoch", f"{max(self.epoch, 1)} or more", epoch)
        if at_us <= self.at_us:
            raise Unsound(key, "at_us", f"more than {self.at_us}", at_us)
        try:
            header = _HEADER.pack(self.shard_id, sequence, epoch, at_us, count, decision_format)
        except struct.error as error:
            raise Unsound(key, "header", "numbers in range", str(error)) from error
        expected = blake2b(self.chain + header + payload, digest_size=32).digest()
        if chain != expected:
            raise Unsound(key, "chain", expected, chain)

    def _fold_decisions(
        self, decisions: list[Any], sequence: int, epoch: int, at_us: int
    ) -> list[tuple[Any, ...]]:
        at = _EPOCH_OF_TIME + timedelta(microseconds=at_us)
        transfers = []
        if sequence == 1 and decisions[0][0] != EPOCH_STARTED:
            raise self._unsound(sequence, "first decision", EPOCH_STARTED, decisions[0][0])
        for position, decision in enumerate(decisions):
            tag = decision[0]
            if tag == POSTED:
                transfers.append(self._fold_posted(decision, sequence, at))
            elif tag == REJECTED:
                transfers.append(self._fold_rejected(decision, sequence, at))
            elif tag == EPOCH_STARTED:
                (_, _build) = decision
                if position != 0:
                    raise self._unsound(sequence, "place of the epoch's start", 0, position)
                if epoch <= self.epoch:
                    raise self._unsound(sequence, "epoch", f"more than {self.epoch}", epoch)
            else:
                self._fold_wallet(decision, sequence, at)
        return transfers

    def _fold_posted(self, decision: list[Any], sequence: int, at: datetime) -> tuple[Any, ...]:
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
        self._check_asked(sequence, decision)
        source = self.wallets.get(source_id)
        destination = self.wallets.get(destination_id)
        if source is None:
            raise self._unsound(sequence, "source", "a wallet opened before", source_id)
        if destination is None or destination is source:
            raise self._unsound(sequence, "destination", "another open wallet", destination_id)
        if source[CURRENCY] != currency or destination[CURRENCY] != currency:
            raise self._unsound(sequence, "currency", source[CURRENCY], currency)
        owner = destination if kind == DEPOSIT else source
        if owner[MERCHANT] != merchant_id:
            raise self._unsound(sequence, "merchant", owner[MERCHANT], merchant_id)
        # Only a deposit takes from the world, only a withdrawal gives to it.
        if (source_id[0] == "$") != (kind == DEPOSIT):
            raise self._unsound(sequence, "source of this type", f"type {kind}", source_id)
        if (destination_id[0] == "$") != (kind == WITHDRAWAL):
            raise self._unsound(
                sequence, "destination of this type", f"type {kind}", destination_id
            )

        balance = source[BALANCE] - amount
        if source_balance != balance:
            raise self._unsound(sequence, "source_balance", balance, source_balance)
        if balance < source[MINIMUM] and kind != DEPOSIT:
            minimum = f"{source[MINIMUM]} or more"
            raise self._unsound(sequence, "source_balance", minimum, balance)
        source[BALANCE] = balance
        balance = destination[BALANCE] + amount
        if destination_balance != balance:
            raise self._unsound(sequence, "destination_balance", balance, destination_balance)
        if balance > BALANCE_MAX:
            raise self._unsound(sequence, "destination_balance", f"<= {BALANCE_MAX}", balance)
        destination[BALANCE] = balance

        source[VERSION] += 1
        if source_version != source[VERSION]:
            raise self._unsound(sequence, "source_version", source[VERSION], source_version)
        destination[VERSION] += 1
        if destination_version != destination[VERSION]:
            raise self._unsound(
                sequence, "destination_version", destination[VERSION], destination_version
            )
        self.posted_count += 1
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
        )

    def _fold_rejected(self, decision: list[Any], sequence: int, at: datetime) -> tuple[Any, ...]:
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
        self._check_asked(sequence, decision)
        if type(reason) is not int or reason < 1:
            raise self._unsound(sequence, "reason", "a number", reason)
        self.rejected_count += 1
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
        )

    def _check_asked(self, sequence: int, decision: list[Any]) -> None:
        kind, transfer_id, key, amount = decision[1], decision[2], decision[3], decision[8]
        if kind not in TYPES:
            raise self._unsound(sequence, "type", "1, 2 or 3", kind)
        if type(transfer_id) is not bytes or len(transfer_id) != 16:
            raise self._unsound(sequence, "transfer_id", "16 bytes", transfer_id)
        if type(key) is not bytes or len(key) != 16:
            raise self._unsound(sequence, "key", "16 bytes", key)
        if type(amount) is not int or not 1 <= amount <= AMOUNT_MAX:
            raise self._unsound(sequence, "amount", f"1 to {AMOUNT_MAX}", amount)

    def _fold_wallet(self, decision: list[Any], sequence: int, at: datetime) -> None:
        tag, wallet_id = decision[0], decision[1]
        wallet = self.wallets.get(wallet_id)
        if tag == OPENED:
            (_, _, merchant_id, currency, minimum) = decision
            if wallet is not None:
                raise self._unsound(sequence, "wallet opened", "a new wallet", wallet_id)
            self.wallets[wallet_id] = [merchant_id, currency, 1, minimum, 0, 0, at]
            return
        if wallet is None:
            raise self._unsound(sequence, "wallet", "a wallet opened before", wallet_id)
        (_, _, value) = decision
        if tag == STATUS_SET:
            if value == CLOSED and wallet[BALANCE] != 0:
                raise self._unsound(sequence, "balance of a closed wallet", 0, wallet[BALANCE])
            wallet[STATUS] = value
        elif tag == LIMITS_SET:
            if value > wallet[BALANCE]:
                raise self._unsound(sequence, "minimum", f"<= {wallet[BALANCE]}", value)
            wallet[MINIMUM] = value
        else:
            raise self._unsound(sequence, "tag", "1 to 6", tag)

    def _unsound(self, sequence: int, field: str, expected: object, found: object) -> Unsound:
        return Unsound(f"shard {self.shard_id}, sequence {sequence}", field, expected, found)
