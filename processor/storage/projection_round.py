"""
What a run of records means for the tables.

Rule 1: each row is written once a round, as it is at the end of it. What begins and ends within
        a round (a transfer on its way, a wallet that came and went) leaves no trace of its way.
Rule 2: what was on its way before the round is known only to its row: its settlement is kept
        until the row is read back, see `take_pending`. By then later entries of the same wallets
        are known, so the highest version of a wallet is the one that counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from processor.core.channel import FIRST_LINK, answer_elsewhere
from processor.core.commands import TransferType
from processor.core.decisions import (
    AnswersForgotten,
    Decision,
    EntryCredited,
    EntryElsewhere,
    EntryRefused,
    EpochStarted,
    PendingEntry,
    SettlementDecision,
    SlotDelivered,
    SlotGiven,
    SlotsGranted,
    SlotTaken,
    TransferPosted,
    TransferRecalled,
    TransferRejected,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
    asked_of,
    decode_decisions,
)
from processor.core.record import Record
from processor.core.slots import slot_of
from processor.core.wallet import WalletStatus, due_wallet_id

_encode = msgspec.msgpack.Encoder().encode
_decode_pending = msgspec.msgpack.Decoder(PendingEntry).decode

Place = tuple[int, int]  # A peer and a number of the channel to it or from it.


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
    at: datetime


class Round:
    """
    Collects records in order; then what came of them is in the attributes.
    """

    def __init__(self) -> None:
        self.transfers: list[tuple[Any, ...]] = []
        self.crossed: list[tuple[Any, ...]] = []  # Transfers with a counterparty at their end.
        self.opened: dict[str, NewWallet] = {}
        self.left: dict[str, None] = {}  # Wallets whose rows go: given with their slot.
        self.balances: dict[str, tuple[int, int]] = {}  # Wallet: posted, version.
        self.statuses: dict[str, int] = {}
        self.minimums: dict[str, int] = {}
        self.slots: dict[int, tuple[int, int | None, int | None]] = {}  # As in the table.
        self.given: dict[int, int] = {}  # Slots that had their rows before, and to whom.
        self.heads: dict[int, tuple[int, bytes]] = {}  # Peer: number, chain.
        self.settled: dict[int, tuple[int, bytes]] = {}
        self.cursors: dict[int, tuple[int, bytes]] = {}
        self.answers: dict[Place, int] = {}
        self.forgotten: dict[int, int] = {}
        self.carried: dict[bytes, tuple[int, bytes]] = {}  # Key: sequence, outcome.
        self.pending: dict[Place, tuple[PendingEntry, Record]] = {}
        self.settlements: dict[Place, tuple[SettlementDecision, Record]] = {}
        self.command_count = 0

    def add(self, record: Record) -> None:
        """
        Take in one record, in order.
        """
        at = _time_of(record)
        decisions = decode_decisions(record.payload, record.format)
        self.command_count += len(decisions)
        for decision in decisions:
            if isinstance(decision, TransferPosted):
                self._add_posted(decision, record, at)
            else:
                self._add_other(decision, record, at)

    def _add_posted(self, decision: TransferPosted, record: Record, at: datetime) -> None:
        self.balances[decision.source] = (decision.source_balance, decision.source_version)
        self.balances[decision.destination] = (
            decision.destination_balance,
            decision.destination_version,
        )
        self.transfers.append(
            (
                decision.transfer_id,
                record.shard_id,
                record.sequence,
                at,
                decision.transfer_type,
                None,
                decision.merchant_id,
                decision.key,
                decision.source,
                decision.source_version,
                decision.source_balance,
                decision.destination,
                decision.destination_version,
                decision.destination_balance,
                decision.currency,
                decision.amount,
                decision.reference,
                decision.metadata,
            )
        )

    def _add_other(self, decision: Decision, record: Record, at: datetime) -> None:
        match decision:
            case TransferRejected():
                self._add_rejected(decision, record, at)
            case WalletOpened(wallet_id, merchant_id, currency, minimum):
                self.opened[wallet_id] = NewWallet(
                    merchant_id, currency, WalletStatus.OPEN, minimum, 0, 0, at
                )
            case WalletStatusSet(wallet_id, status):
                self.statuses[wallet_id] = status
            case WalletLimitsSet(wallet_id, minimum):
                self.minimums[wallet_id] = minimum
            case TransferReserved():
                self._add_pending(decision, record)
            case TransferSettled() | TransferReleased() | TransferRecalled() | SlotDelivered():
                self._add_settlement(decision, record)
            case EntryCredited():
                self._add_credited(decision, record, at)
            case EntryRefused(peer, number, chain, reason):
                self.cursors[peer] = (number, chain)
                self.answers[peer, number] = reason
            case EntryElsewhere(peer, number, chain, shard_id):
                self.cursors[peer] = (number, chain)
                self.answers[peer, number] = answer_elsewhere(shard_id)
            case AnswersForgotten(peer, settled):
                self._forget_answers(peer, settled)
            case SlotsGranted(first, last):
                self.slots.update((slot, (1, None, None)) for slot in range(first, last + 1))
            case SlotGiven():
                self._add_given(decision, record)
            case SlotTaken():
                self._add_taken(decision, record, at)
            case EpochStarted():
                pass
            case _:
                raise ValueError(f"{type(decision).__name__} has no table")

    def _add_rejected(self, decision: TransferRejected, record: Record, at: datetime) -> None:
        self.transfers.append(
            (
                decision.transfer_id,
                record.shard_id,
                record.sequence,
                at,
                decision.transfer_type,
                decision.reason,
                decision.merchant_id,
                decision.key,
                decision.source,
                None,
                None,
                decision.destination,
                None,
                None,
                decision.currency,
                decision.amount,
                decision.reference,
                decision.metadata,
            )
        )

    # --- The source's end of a channel ------------------------------------------------------------

    def _add_pending(self, decision: PendingEntry, record: Record) -> None:
        self.heads[decision.peer] = (decision.number, decision.chain)
        self.pending[decision.peer, decision.number] = (decision, record)

    def _add_settlement(self, decision: SettlementDecision, record: Record) -> None:
        place = (decision.peer, decision.number)
        sent = self.pending.pop(place, None)
        if sent is None:
            self.settlements[place] = (decision, record)
        else:
            self._settle(sent[0], decision, record)

    def take_pending(self, rows: Iterable[bytes]) -> None:
        """
        Take in what `settlements` have ended, as the tables had it; raises ValueError when one
        of them is not there.
        """
        for row in rows:
            pending = _decode_pending(row)
            self._settle(pending, *self.settlements.pop((pending.peer, pending.number)))
        if self.settlements:
            raise ValueError(f"not on their way: {sorted(self.settlements)} (peer, number)")

    def _settle(self, sent: PendingEntry, decision: SettlementDecision, record: Record) -> None:
        if decision.number > self.settled.get(decision.peer, (0, b""))[0]:
            self.settled[decision.peer] = (decision.number, sent.chain)
        if isinstance(decision, SlotDelivered):
            is_same = isinstance(sent, SlotGiven)
        else:
            is_same = (
                isinstance(sent, TransferReserved) and sent.transfer_id == decision.transfer_id
            )
        if not is_same:
            raise ValueError(f"entry {sent.number} to shard {sent.peer} is another one")
        if isinstance(sent, TransferReserved):
            self._settle_transfer(sent, decision, record)

    def _settle_transfer(
        self, sent: TransferReserved, decision: SettlementDecision, record: Record
    ) -> None:
        if isinstance(decision, TransferReleased):
            rejected = TransferRejected(*asked_of(sent), decision.reason)
            self._add_rejected(rejected, record, _time_of(record))
        elif isinstance(decision, TransferSettled):
            self._add_settled(sent, decision, record)

    def _add_settled(
        self, sent: TransferReserved, decision: TransferSettled, record: Record
    ) -> None:
        due = due_wallet_id(record.shard_id, sent.peer, sent.currency)
        self._entry(sent.source, decision.source_balance, decision.source_version)
        self._entry(due, decision.due_balance, decision.due_version)
        self.crossed.append(
            (
                sent.transfer_id,
                record.shard_id,
                record.sequence,
                _time_of(record),
                sent.transfer_type,
                None,
                sent.merchant_id,
                sent.key,
                sent.source,
                decision.source_version,
                decision.source_balance,
                due,
                decision.due_version,
                decision.due_balance,
                sent.currency,
                sent.amount,
                sent.reference,
                sent.metadata,
                sent.destination,
            )
        )

    def _entry(self, wallet_id: str, posted: int, version: int) -> None:
        """
        Take in an entry that may be older than what is known of its wallet.
        """
        newest = self.balances.get(wallet_id)
        if wallet_id in self.opened:
            newest = newest or (0, self.opened[wallet_id].version)
        elif wallet_id in self.left:
            return
        if newest is None or version > newest[1]:
            self.balances[wallet_id] = (posted, version)

    # --- The destination's end --------------------------------------------------------------------

    def _add_credited(self, decision: EntryCredited, record: Record, at: datetime) -> None:
        due = due_wallet_id(record.shard_id, decision.peer, decision.currency)
        self.cursors[decision.peer] = (decision.number, decision.chain)
        self._entry(due, decision.due_balance, decision.due_version)
        self._entry(
            decision.destination, decision.destination_balance, decision.destination_version
        )
        self.crossed.append(
            (
                decision.transfer_id,
                record.shard_id,
                record.sequence,
                at,
                TransferType.TRANSFER,
                None,
                decision.merchant_id,
                None,
                due,
                decision.due_version,
                decision.due_balance,
                decision.destination,
                decision.destination_version,
                decision.destination_balance,
                decision.currency,
                decision.amount,
                decision.reference,
                decision.metadata,
                decision.source,
            )
        )

    def _forget_answers(self, peer: int, settled: int) -> None:
        self.forgotten[peer] = settled
        self.answers = {
            (of, number): answer
            for (of, number), answer in self.answers.items()
            if of != peer or number > settled
        }

    # --- Slots ------------------------------------------------------------------------------------

    def _add_given(self, decision: SlotGiven, record: Record) -> None:
        self._add_pending(decision, record)
        known = self.slots.get(decision.slot)
        if known is None:
            self.given[decision.slot] = decision.peer
        else:
            self.slots[decision.slot] = (*known[:2], decision.peer)
        for wallet in decision.wallets:
            if self.opened.pop(wallet.wallet_id, None) is None:
                self.left[wallet.wallet_id] = None
            for changes in (self.balances, self.statuses, self.minimums):
                changes.pop(wallet.wallet_id, None)
        self._add_dues(decision, record.shard_id)

    def _add_taken(self, decision: SlotTaken, record: Record, at: datetime) -> None:
        self.cursors[decision.peer] = (decision.number, decision.chain)
        self.given.pop(decision.slot, None)
        self.slots[decision.slot] = (decision.generation, decision.peer, None)
        for one in decision.wallets:
            self.opened[one.wallet_id] = NewWallet(
                *(one.merchant_id, one.currency, one.status, one.minimum),
                *(one.posted, one.version, at),
            )
        for outcome in decision.outcomes:
            self.carried[outcome.decision.key] = (record.sequence, _encode(outcome))
        self._add_dues(decision, record.shard_id)

    def _add_dues(self, decision: SlotGiven | SlotTaken, shard_id: int) -> None:
        for due in decision.dues:
            wallet_id = due_wallet_id(shard_id, decision.peer, due.currency)
            self._entry(wallet_id, due.balance, due.version)

    # --- Rows -------------------------------------------------------------------------------------

    def opened_rows(self) -> Iterator[tuple[Any, ...]]:
        """
        Yield a row for each new wallet, as it is at the end of the round.
        """
        for wallet_id, new in self.opened.items():
            posted, version = self.balances.pop(wallet_id, (new.posted, new.version))
            yield (
                wallet_id,
                new.merchant_id,
                new.currency,
                self.statuses.pop(wallet_id, new.status),
                self.minimums.pop(wallet_id, new.minimum),
                posted,
                version,
                new.at,
                slot_of(wallet_id),
            )

    def pending_rows(self) -> Iterator[tuple[Any, ...]]:
        """
        Yield a row for each entry that is still on its way at the end of the round.
        """
        for (peer, number), (sent, record) in self.pending.items():
            transfer_id = sent.transfer_id if isinstance(sent, TransferReserved) else None
            yield (peer, number, record.sequence, record.at_us, transfer_id, _encode(sent))

    def out_rows(self) -> Iterator[tuple[Any, ...]]:
        """
        Yield the new end of each channel that lead out; an end that did not move is at zero.
        """
        for peer in sorted(self.heads.keys() | self.settled.keys()):
            unmoved = (0, FIRST_LINK)
            yield (peer, *self.heads.get(peer, unmoved), *self.settled.get(peer, unmoved))


def _time_of(record: Record) -> datetime:
    return datetime.fromtimestamp(record.at_us // 1_000_000, UTC).replace(
        microsecond=record.at_us % 1_000_000
    )
