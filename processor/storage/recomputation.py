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
    3 wallet limits set  wallet, minimum, limits
    4 transfer posted    type, id, key, merchant, source, destination, currency, amount,
                         reference, metadata, then version and balance after it of the source
                         and of the destination, terms
    5 transfer rejected  as 4 up to metadata, then the reason, by how much, terms
    6 epoch started      build
   23 usage counted      wallet, counter of debits, counter of credits
   24 refund counted     transfer, wallet that pays it back, how much in all, version

The types are 1 transfer, 2 deposit, 3 withdrawal, 4 hold, 5 capture, 6 void, 7 extend, 8 refund and
9 fee. What stands in limits, terms and the like, and what was added later, is in
`recomputed_layouts`. What happens between shards is 7 to 18, see `recomputed_ends`; holds are 19 to
22, see `recomputed_holds`; linked transfers 25 to 35, see `recomputed_linked`; the ledger's own
wallets are in `recomputed_wallets`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import msgspec

from processor.storage.recomputed_between import (
    arrive,
    bind,
    come_to_nothing,
    count_movement,
    fold_between,
)
from processor.storage.recomputed_books import (
    DEPOSIT,
    EXTEND,
    FEE,
    HOLD,
    TRANSFER,
    VOID,
    WITHDRAWAL,
    Books,
    Stamp,
    TransferRow,
    linked_by,
)
from processor.storage.recomputed_counts import HOLD_AMOUNT, HOLD_WALLET, state_of
from processor.storage.recomputed_ends import BETWEEN
from processor.storage.recomputed_holds import fold_hold
from processor.storage.recomputed_layouts import (
    CREDITED,
    EPOCH_STARTED,
    FIELD_COUNTS,
    HOLD_EXTENDED,
    HOLD_PLACED,
    LIMITS_SET,
    LINKED_POSTED,
    OPENED,
    POSTED,
    REFUND_COUNTED,
    REJECTED,
    RELEASED,
    SETTLED,
    STATUS_SET,
    USAGE_COUNTED,
    filled_up,
)
from processor.storage.recomputed_layouts import GRANTED as SLOTS_GRANTED
from processor.storage.recomputed_layouts import VERDICT_TAKEN as LAST_TAG
from processor.storage.recomputed_legs import nets_of
from processor.storage.recomputed_limits import set_limits
from processor.storage.recomputed_moves import fold_linked, undecided_moves
from processor.storage.recomputed_wallets import (
    AMOUNT_MAX,
    BALANCE,
    BALANCE_MAX,
    CURRENCY,
    HELD,
    INCOMING,
    LIMITS,
    MERCHANT,
    MINIMUM,
    RESERVED,
    STATUS,
    VERSION,
    Contradiction,
    check_identifier,
    check_system_wallet,
    due_wallet_id,
    fees_wallet_id,
    slot_of,
)

FORMAT = 1
GENESIS = bytes(32)

CLOSED = 4

# Where a transfer's id stands in each decision that means a row of `transfers`.
_PLACE_OF_ID = {POSTED: 2, REJECTED: 2, SETTLED: 3, RELEASED: 3, CREDITED: 4}
_INTO_THE_LEDGER = (WITHDRAWAL, FEE)
_MAY_BE_NOTHING = (VOID, EXTEND)  # Of a hold that is not known the amount is not either.

_HEADER = struct.Struct(">IQQQIH")
_EPOCH_OF_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_decode = msgspec.msgpack.Decoder().decode


def transfer_ids(payload: bytes) -> set[bytes]:
    """
    Name the transfers that a payload which was folded before has rows for, and the linked transfers
    whose legs have.
    """
    found = set()
    for decision in _decode(payload):
        tag = decision[0]
        if tag in _PLACE_OF_ID:
            found.add(decision[_PLACE_OF_ID[tag]])
        elif tag in (LINKED_POSTED, LAST_TAG):
            found.add(decision[1 if tag == LINKED_POSTED else 4])
    return found


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


class ShardBooks(Books):
    """
    The books of one shard as the journal, up to `sequence`, makes them.
    """

    def __init__(self, shard_id: int) -> None:
        super().__init__(shard_id)
        self.sequence = 0
        self.chain = GENESIS
        self.epoch = 0
        self.at_us = 0

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
            if wallet_id.startswith("$world:"):
                world += wallet[BALANCE]
            elif wallet_id.startswith("$due:"):
                due += wallet[BALANCE]
            else:
                customers += wallet[BALANCE]
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

    def _check_reserved(self) -> None:
        expected = self._set_aside()
        for wallet_id, wallet in self.wallets.items():
            reserved, held, incoming = expected.pop(wallet_id, (0, 0, 0))
            if wallet[RESERVED] != reserved:
                raise Unsound(wallet_id, "reserved", reserved, wallet[RESERVED])
            if wallet[HELD] != held:
                raise Unsound(wallet_id, "held", held, wallet[HELD])
            if wallet[INCOMING] != incoming:
                raise Unsound(wallet_id, "incoming", incoming, wallet[INCOMING])
        for wallet_id, amounts in sorted(expected.items()):
            if any(amounts):
                raise Unsound(wallet_id, "wallet with money on its way", "one that is here", None)

    def _set_aside(self) -> dict[str, tuple[int, int, int]]:
        """
        Sum by wallet what is reserved in all, what holds keep of it, and what may come.
        """
        sums: dict[str, tuple[int, int, int]] = {}
        for decision in self.ends.pending_transfers():
            _add(sums, decision[5], decision[8], 0, 0)
        for facts in self.holds.open.values():
            kept = state_of(facts).kept(facts[HOLD_AMOUNT])
            _add(sums, facts[HOLD_WALLET], kept, kept, 0)
        for moves in undecided_moves(self):
            for wallet_id, net in nets_of(moves).items():
                _add(sums, wallet_id, net.reserved, 0, net.brought)
        return sums

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
        stamp = Stamp(sequence, at_us, _EPOCH_OF_TIME + timedelta(microseconds=at_us))
        transfers: list[TransferRow] = []
        if sequence == 1 and decisions[0][0] != EPOCH_STARTED:
            raise Contradiction("first decision", EPOCH_STARTED, decisions[0][0])
        for position, decision in enumerate(decisions):
            tag = decision[0]
            if tag == POSTED:
                transfers.append(self._fold_posted(decision, stamp))
            elif tag == EPOCH_STARTED:
                (_, _build) = decision
                if position != 0:
                    raise Contradiction("place of the epoch's start", 0, position)
                if epoch <= self.epoch:
                    raise Contradiction("epoch", f"more than {self.epoch}", epoch)
            elif tag == SLOTS_GRANTED and decisions[0][0] != EPOCH_STARTED:
                raise Contradiction("slots granted", "in the record of an epoch's start", tag)
            else:
                transfers += self._fold_other(decision, stamp)
        self.check_record()
        return transfers

    def _fold_other(self, decision: list[Any], stamp: Stamp) -> Sequence[TransferRow]:
        tag = decision[0]
        if tag not in FIELD_COUNTS:
            raise Contradiction("tag", f"1 to {LAST_TAG}", tag)
        if tag == REJECTED:
            return [self._fold_rejected(filled_up(decision), stamp)]
        if tag in BETWEEN:
            if tag >= LINKED_POSTED:
                return fold_linked(self, filled_up(decision), stamp)
            row = fold_between(self, decision, stamp)
            return [] if row is None else [row]
        decision = filled_up(decision)
        if HOLD_PLACED <= tag <= HOLD_EXTENDED:
            fold_hold(self, decision, stamp)
        elif tag == USAGE_COUNTED:
            self.check_usage(decision)
        elif tag == REFUND_COUNTED:
            self.refunds.tell(decision)
        else:
            self._fold_wallet(decision, stamp)
        return []

    def _fold_posted(self, decision: list[Any], stamp: Stamp) -> TransferRow:
        if len(decision) != FIELD_COUNTS[POSTED]:
            decision = filled_up(decision)
        _, kind, transfer_id, key, merchant_id, source_id, destination_id, currency, amount = (
            decision[:9]
        )
        reference, metadata, source_version, source_balance, version, balance, terms = decision[9:]
        wallets = self.wallets
        source, destination = wallets.get(source_id), wallets.get(destination_id)
        # Most are between two wallets of customers and need no more than this.
        is_plain = (
            kind == TRANSFER
            and type(amount) is int
            and 1 <= amount <= AMOUNT_MAX
            and type(transfer_id) is type(key) is bytes
            and len(transfer_id) == len(key) == 16
            and source is not None
            and destination is not None
            and source is not destination
            and source[CURRENCY] == currency == destination[CURRENCY]
            and source[MERCHANT] == merchant_id
            and source_id[0] != "$" != destination_id[0]
        )
        if not is_plain or source is None or destination is None:
            self.check_asked(decision)
            source, destination = self._check_sides(decision)
        if (
            kind > WITHDRAWAL
            or terms is not None
            or self.recalled
            or source[LIMITS] is not None
            or destination[LIMITS] is not None
        ):
            self._fold_bound(decision, terms, stamp)

        expected = source[BALANCE] - amount
        if source_balance != expected:
            raise Contradiction("source_balance", expected, source_balance)
        if expected - source[RESERVED] < source[MINIMUM] and kind != DEPOSIT:
            minimum = f"{source[MINIMUM]} or more, and {source[RESERVED]} reserved"
            raise Contradiction("source_balance", minimum, expected)
        source[BALANCE] = expected
        expected = destination[BALANCE] + amount
        if balance != expected:
            raise Contradiction("destination_balance", expected, balance)
        if expected > BALANCE_MAX:
            raise Contradiction("destination_balance", f"<= {BALANCE_MAX}", balance)
        destination[BALANCE] = expected

        source[VERSION] += 1
        if source_version != source[VERSION]:
            raise Contradiction("source_version", source[VERSION], source_version)
        destination[VERSION] += 1
        if version != destination[VERSION]:
            raise Contradiction("destination_version", destination[VERSION], version)
        self.posted_count += 1
        sequence, _, at = stamp
        key, linked_to = (key, None) if terms is None else (None, linked_by(terms))
        head = (transfer_id, self.shard_id, sequence, at, kind, None, merchant_id, key)
        sides = (source_id, source_version, source_balance, destination_id, version, balance)
        return head + sides + (currency, amount, reference, metadata, None, linked_to, None)

    def _check_sides(self, decision: list[Any]) -> tuple[list[Any], list[Any]]:
        """
        Return the two wallets of a movement; raises Contradiction where it cannot be between them.
        """
        _, kind, _, _, merchant_id, source_id, destination_id, currency = decision[:8]
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
        if source_id[0] == "$" or kind == DEPOSIT:
            wanted = "$world:" if kind == DEPOSIT else "$fees:"
            if not source_id.startswith(wanted):
                raise Contradiction("source of this type", f"type {kind}", source_id)
        if destination_id[0] == "$" or kind in _INTO_THE_LEDGER:
            wanted = "$world:" if kind == WITHDRAWAL else "no wallet of the ledger"
            if kind == FEE:
                wanted = fees_wallet_id(self.shard_id, merchant_id, currency)
            if not destination_id.startswith(wanted):
                raise Contradiction("destination of this type", f"type {kind}", destination_id)
        return source, destination

    def _fold_bound(self, decision: list[Any], terms: list[Any] | None, stamp: Stamp) -> None:
        """
        Take in what a movement counts for and is bound to, before it moves.
        """
        if decision[1] in (HOLD, *_MAY_BE_NOTHING):
            raise Contradiction("type", "one that moves money", decision[1])
        recalled = self.decide_anew(decision)
        if recalled is not None:
            arrive(self, recalled[0])
        else:
            bind(self, decision, terms, stamp)
        count_movement(self, decision, stamp, debit=recalled is None, credit=True)
        if terms is not None:
            self.remember(decision, stamp)

    def _fold_rejected(self, decision: list[Any], stamp: Stamp) -> TransferRow:
        reason, short_by, terms = decision[11:14]
        if decision[1] in _MAY_BE_NOTHING and decision[8] == 0:
            check_identifier("transfer_id", decision[2])
            check_identifier("key", decision[3])
        else:
            self.check_asked(decision)
        if type(reason) is not int or reason < 1:
            raise Contradiction("reason", "a number", reason)
        if type(short_by) is not int or short_by < 0:
            raise Contradiction("short by", "0 or more", short_by)
        self.rejected_count += 1
        if self.recalled:
            recalled = self.decide_anew(decision)
            if recalled is not None:
                come_to_nothing(self, *recalled)
        if terms is not None:
            self.remember(decision, stamp)
        return self.row(decision, stamp, terms=terms, reason=reason, short_by=short_by)

    def _fold_wallet(self, decision: list[Any], stamp: Stamp) -> None:
        tag, wallet_id = decision[0], decision[1]
        if tag == OPENED:
            self._open(decision, stamp.at)
            return
        wallet = self.wallets.get(wallet_id)
        if wallet is None:
            raise Contradiction("wallet", "a wallet opened before", wallet_id)
        if tag == STATUS_SET:
            (_, _, status) = decision
            if status == CLOSED and wallet[BALANCE] != 0:
                raise Contradiction("balance of a closed wallet", 0, wallet[BALANCE])
            if status == CLOSED and (wallet[RESERVED] != 0 or wallet[INCOMING] != 0):
                raise Contradiction("reserved of a closed wallet", 0, wallet[RESERVED])
            wallet[STATUS] = status
        elif tag == LIMITS_SET:
            (_, _, minimum, limits) = decision
            available = max(wallet[BALANCE] - wallet[RESERVED], wallet[MINIMUM])
            if minimum > available:
                raise Contradiction("minimum", f"<= {available}", minimum)
            wallet[MINIMUM] = minimum
            set_limits(wallet, limits, stamp.at_us)

    def _open(self, decision: list[Any], at: datetime) -> None:
        (_, wallet_id, merchant_id, currency, minimum) = decision
        if wallet_id in self.wallets:
            raise Contradiction("wallet opened", "a new wallet", wallet_id)
        if wallet_id[0] == "$":
            check_system_wallet(self.shard_id, decision)
        elif not self.ends.has_slot(slot_of(wallet_id)):
            raise Contradiction("wallet opened", "a wallet of a slot that is here", wallet_id)
        self.add_wallet(wallet_id, merchant_id, currency, minimum, at)


def _add(
    sums: dict[str, tuple[int, int, int]], wallet_id: str, reserved: int, held: int, incoming: int
) -> None:
    before = sums.get(wallet_id, (0, 0, 0))
    sums[wallet_id] = (before[0] + reserved, before[1] + held, before[2] + incoming)
