"""
What a run of records means for the tables.

Rule 1: each row is written once a round, as it is at the end of it. What begins and ends within
        a round (a transfer on its way, a wallet that came and went) leaves no trace of its way.
Rule 2: what was open before the round is known only to its row: what ends it is kept until the row
        is read back, see `take_pending`. By then later entries of the same wallets are known, so
        the highest version of a wallet is the one that counts.
The tables are told in parts, `projected_*.py`: each knows its statements.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from processor.core.channel import answer_elsewhere, answer_refused
from processor.core.decisions import (
    AnswersForgotten,
    Decision,
    EntryCredited,
    EntryElsewhere,
    EntryRefused,
    EpochStarted,
    HoldChanged,
    HoldExtended,
    HoldPlaced,
    HoldVoided,
    LinkedBegun,
    LinkedDone,
    LinkedPosted,
    LinkedPrepared,
    LinkedRecalled,
    LinkedRejected,
    Posting,
    PrepareSent,
    RefundCounted,
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
    UsageCounted,
    VerdictDelivered,
    VerdictSent,
    VerdictTaken,
    VoteTaken,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
    asked_of,
    decode_decisions,
)
from processor.core.record import Record
from processor.core.wallet import due_wallet_id
from processor.storage.projected_change import Change, Stamp
from processor.storage.projected_channels import ChannelRows, Settlement
from processor.storage.projected_counts import CountRows
from processor.storage.projected_linked import LinkedRows
from processor.storage.projected_transfers import TransferRows
from processor.storage.projected_wallets import WalletRows


class Round:
    """
    Collects records in order; then what came of them is in its parts.
    """

    def __init__(self) -> None:
        self.command_count = 0
        self.transfers = TransferRows()
        self.wallets = WalletRows()
        self.counts = CountRows()
        self.channels = ChannelRows()
        self.linked = LinkedRows(self.transfers)

    def add(self, record: Record) -> None:
        """
        Take in one record, in order.
        """
        stamp = Stamp.of(record)
        decisions = decode_decisions(record.payload, record.format)
        self.command_count += len(decisions)
        for decision in decisions:
            if type(decision) is TransferPosted:
                self._add_posted(decision, stamp)
            else:
                self._add_other(decision, stamp)

    def _add_posted(self, decision: TransferPosted, stamp: Stamp) -> None:
        balances = self.wallets.balances
        balances[decision.source] = (decision.source_balance, decision.source_version)
        balances[decision.destination] = (
            decision.destination_balance,
            decision.destination_version,
        )
        if decision.terms is None:
            self.transfers.add_plain(decision, stamp)
        else:
            self.transfers.add_bound(decision, stamp)

    def _add_other(self, decision: Decision, stamp: Stamp) -> None:
        match decision:
            case TransferRejected():
                self.transfers.add_rejected(decision, stamp)
            case WalletOpened():
                self.wallets.open(decision, stamp.at)
            case WalletStatusSet(wallet_id, status):
                self.wallets.set_status(wallet_id, status)
            case WalletLimitsSet():
                self.wallets.set_limits(decision, stamp.at_us)
            case UsageCounted():
                self.wallets.count_usage(decision)
            case HoldPlaced():
                self.counts.place(decision, stamp)
                self.transfers.remember(decision, stamp)
            case HoldVoided() | HoldExtended():
                self.transfers.remember(decision, stamp)
            case HoldChanged():
                self.counts.change(decision, stamp)
            case RefundCounted():
                self.counts.count(decision)
            case EpochStarted():
                pass
            case _:
                self._add_between(decision, stamp)

    def _add_between(self, decision: Decision, stamp: Stamp) -> None:
        """
        Take in what is said between shards.
        """
        match decision:
            case TransferReserved() | PrepareSent() | VerdictSent():
                self.channels.send(decision, stamp)
            case (
                TransferSettled()
                | TransferReleased()
                | TransferRecalled()
                | SlotDelivered()
                | VoteTaken()
                | VerdictDelivered()
            ):
                settlement = self.channels.settle(decision, stamp)
                if settlement is not None:
                    self._end(settlement)
            case EntryCredited():
                self._add_credited(decision, stamp)
            case EntryRefused(peer, number, chain, reason, short_by, leg):
                self.channels.take(peer, number, chain, answer_refused(reason, short_by, leg))
            case EntryElsewhere(peer, number, chain, shard_id, side):
                self.channels.take(peer, number, chain, answer_elsewhere(shard_id, side))
            case AnswersForgotten(peer, settled):
                self.channels.forget_answers(peer, settled)
            case SlotsGranted():
                self.channels.grant(decision)
            case SlotGiven():
                self._add_given(decision, stamp)
            case SlotTaken():
                self._add_taken(decision, stamp)
            case _:
                self._add_linked(decision, stamp)

    def _add_linked(self, decision: Decision, stamp: Stamp) -> None:
        match decision:
            case LinkedBegun():
                self.linked.begin(decision, stamp)
            case LinkedPosted():
                self._enter(decision.postings)
                self.linked.post(decision, stamp)
            case LinkedRejected():
                self.linked.reject(decision, stamp)
            case LinkedRecalled():
                self.linked.recall(decision)
            case LinkedDone():
                self.linked.finish(decision, stamp)
            case LinkedPrepared(peer, number, chain):
                self.channels.take(peer, number, chain)
                self.linked.prepare(decision, stamp)
            case VerdictTaken(peer, number, chain):
                self.channels.take(peer, number, chain)
                self._enter(decision.postings)
                self.linked.take_verdict(decision, stamp)
            case _:
                raise ValueError(f"{type(decision).__name__} has no table")

    def _enter(self, postings: Iterable[Posting]) -> None:
        for one in postings:
            self.wallets.enter(one.source, one.source_balance, one.source_version)
            self.wallets.enter(one.destination, one.destination_balance, one.destination_version)

    def _add_credited(self, decision: EntryCredited, stamp: Stamp) -> None:
        due = due_wallet_id(stamp.shard_id, decision.peer, decision.currency)
        self.channels.take(decision.peer, decision.number, decision.chain)
        self.wallets.enter(due, decision.due_balance, decision.due_version)
        self.wallets.enter(
            decision.destination, decision.destination_balance, decision.destination_version
        )
        self.transfers.add_credited(decision, stamp)

    def _add_given(self, decision: SlotGiven, stamp: Stamp) -> None:
        self.channels.send(decision, stamp)
        self.channels.give_slot(decision)
        self.wallets.give(decision.wallets)
        self.counts.give(decision)
        self._add_dues(decision, stamp)

    def _add_taken(self, decision: SlotTaken, stamp: Stamp) -> None:
        self.channels.take(decision.peer, decision.number, decision.chain)
        self.channels.take_slot(decision)
        self.wallets.take(decision.wallets, stamp.at)
        self.counts.take(decision, stamp)
        for outcome in decision.outcomes:
            self.transfers.carry(outcome, stamp)
        self._add_dues(decision, stamp)

    def _add_dues(self, decision: SlotGiven | SlotTaken, stamp: Stamp) -> None:
        for due in decision.dues:
            wallet_id = due_wallet_id(stamp.shard_id, decision.peer, due.currency)
            self.wallets.enter(wallet_id, due.balance, due.version)

    # --- What was on its way ----------------------------------------------------------------------

    def take_pending(self, rows: Iterable[bytes]) -> None:
        """
        Take in what the settlements have ended, as the tables had it; raises ValueError when one
        of them is not there.
        """
        for settlement in self.channels.take_back(rows):
            self._end(settlement)

    def _end(self, settlement: Settlement) -> None:
        sent, decision, stamp = settlement
        if not isinstance(sent, TransferReserved):
            return
        if isinstance(decision, TransferReleased):
            rejected = TransferRejected(
                *asked_of(sent), decision.reason, decision.short_by, sent.terms
            )
            self.transfers.add_rejected(rejected, stamp)
        elif isinstance(decision, TransferSettled):
            due = due_wallet_id(stamp.shard_id, sent.peer, sent.currency)
            self.wallets.enter(sent.source, decision.source_balance, decision.source_version)
            self.wallets.enter(due, decision.due_balance, decision.due_version)
            self.transfers.add_settled(sent, decision, due, stamp)

    # --- Rows -------------------------------------------------------------------------------------

    def changes(self) -> Iterator[Change]:
        """
        Yield what is to be written, in order, besides the rows of transfers.
        """
        yield from self.wallets.changes()
        yield from self.counts.changes()
        yield from self.transfers.changes()
        yield from self.linked.changes()
        yield from self.channels.changes()
