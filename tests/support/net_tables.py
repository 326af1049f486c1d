"""
The tables of one shard in memory, as a write-behind would make them of its journal: an own reading
of the decisions that shares nothing with `apply`.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import astuple, replace

from processor.core.channel import FIRST_LINK, answer_elsewhere, answer_refused
from processor.core.commands import Leg
from processor.core.decisions import (
    AnswersForgotten,
    CarriedWallet,
    Decision,
    EntryCredited,
    EntryElsewhere,
    EntryRefused,
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
    PendingEntry,
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
)
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.limits import Usage
from processor.core.slots import slot_of
from processor.core.state import Remembered
from processor.core.wallet import Wallet
from processor.flow.ports import (
    InEnd,
    LinkedRow,
    OutEnd,
    PendingRow,
    PreparedRow,
    ShardSnapshot,
    SlotRow,
)
from processor.flow.recovery import refunds_relied_on


class NetTables:
    """
    What the first `watermark` records come to.
    """

    def __init__(self, shard_id: int) -> None:
        self.shard_id = shard_id
        self.watermark = 0
        self.wallets: dict[str, Wallet] = {}
        self.outcomes: dict[bytes, Remembered] = {}
        self.slots: dict[int, SlotRow] = {}
        self.pending: dict[tuple[int, int], PendingRow] = {}
        self.out_ends: dict[int, OutEnd] = {}
        self.in_ends: dict[int, InEnd] = {}
        self.holds: dict[bytes, Hold] = {}
        self.refunds: dict[bytes, RefundTotal] = {}
        self.linked: dict[bytes, LinkedRow] = {}
        self.prepared: dict[bytes, PreparedRow] = {}

    def project(self, decisions: list[Decision], at_us: int) -> None:
        """
        Take in the next record.
        """
        self.watermark += 1
        for decision in decisions:
            self._project(decision, at_us)

    def _project(self, decision: Decision, at_us: int) -> None:
        match decision:
            case WalletOpened(wallet_id, merchant_id, currency, minimum):
                self.wallets[wallet_id] = Wallet(wallet_id, merchant_id, currency, minimum=minimum)
            case WalletStatusSet(wallet_id, status):
                self.wallets[wallet_id].status = status
            case WalletLimitsSet(wallet_id, minimum, limits):
                wallet = self.wallets[wallet_id]
                wallet.minimum, wallet.limits = minimum, limits
                wallet.usage = None if limits is None else wallet.usage or Usage(since_us=at_us)
            case UsageCounted(wallet_id, debits, brought):
                usage = self.wallets[wallet_id].usage
                assert usage is not None, "counted without limits"
                self.wallets[wallet_id].usage = Usage(debits, brought, usage.since_us)
            case TransferPosted():
                self._post(decision.source, decision.source_version, decision.source_balance)
                self._post(
                    decision.destination,
                    decision.destination_version,
                    decision.destination_balance,
                )
                self.outcomes[decision.key] = (decision, self.watermark, at_us)
            case TransferRejected():
                self.outcomes[decision.key] = (decision, self.watermark, at_us)
            case TransferReserved() | PrepareSent() | VerdictSent():
                self._send(decision, at_us)
            case TransferSettled() | TransferReleased():
                self._settle(decision, at_us)
            case (
                TransferRecalled(peer, number)
                | SlotDelivered(peer, number)
                | VoteTaken(peer, number)
                | VerdictDelivered(peer, number)
            ):
                self._arrived(peer, number)
            case _:
                self._project_entry(decision, at_us)
                self._project_hold(decision, at_us)
                self._project_linked(decision, at_us)

    def _project_hold(self, decision: Decision, at_us: int) -> None:
        match decision:
            case HoldPlaced():
                self.holds[decision.transfer_id] = Hold(
                    *(decision.transfer_id, decision.merchant_id, decision.source),
                    *(decision.destination, decision.currency, decision.amount),
                    *(0, 0, HoldStatus.OPEN, False, at_us, decision.expires_at_us),
                    *(decision.reference, decision.metadata),
                )
                self.outcomes[decision.key] = (decision, self.watermark, at_us)
            case HoldVoided() | HoldExtended():
                self.outcomes[decision.key] = (decision, self.watermark, at_us)
            case HoldChanged(hold_id):
                _, captured, pending, status, is_ending, expires_at_us = astuple(decision)
                self.holds[hold_id] = replace(
                    self.holds[hold_id],
                    captured=captured,
                    pending=pending,
                    status=status,
                    is_ending=is_ending,
                    expires_at_us=expires_at_us,
                )
            case RefundCounted():
                self.refunds[decision.transfer_id] = RefundTotal(*astuple(decision))

    def _project_linked(self, decision: Decision, at_us: int) -> None:
        match decision:
            case LinkedBegun(transfer_id=linked_id):
                self.linked[linked_id] = LinkedRow(decision, None, self.watermark, at_us)
            case LinkedPosted(transfer_id=linked_id):
                self._post_legs(decision.postings)
                if decision.is_open:
                    begun = self.linked[linked_id].begun
                    self.linked[linked_id] = LinkedRow(begun, decision, self.watermark, at_us)
                else:
                    self.outcomes[decision.key] = (decision, self.watermark, at_us)
            case LinkedRejected(transfer_id=linked_id):
                self.linked.pop(linked_id, None)
                self.outcomes[decision.key] = (decision, self.watermark, at_us)
            case LinkedRecalled(linked_id):
                del self.linked[linked_id]
            case LinkedDone(linked_id):
                posted = self.linked.pop(linked_id).posted
                assert posted is not None, "done, but never posted"
                self.outcomes[posted.key] = (posted, self.watermark, at_us)
            case LinkedPrepared(peer, number, chain, linked_id):
                self._answer(peer, number, chain, 0)
                self.prepared[linked_id] = PreparedRow(decision, self.watermark, at_us)
            case VerdictTaken(peer, number, chain, linked_id):
                self._answer(peer, number, chain, 0)
                self._post_legs(decision.postings)
                prepared = self.prepared.pop(linked_id, None)
                assert prepared is not None or not decision.is_posted, "never prepared"

    def _post_legs(self, postings: list[Posting]) -> None:
        for one in postings:
            self._post(one.source, one.source_version, one.source_balance)
            self._post(one.destination, one.destination_version, one.destination_balance)

    def _project_entry(self, decision: Decision, at_us: int) -> None:
        match decision:
            case EntryCredited():
                self._post(self._due(decision.peer, decision.currency), *_due_after(decision))
                self._post(
                    decision.destination,
                    decision.destination_version,
                    decision.destination_balance,
                )
                self._answer(decision.peer, decision.number, decision.chain, 0)
            case EntryRefused(peer, number, chain, reason, short_by, leg):
                self._answer(peer, number, chain, answer_refused(reason, short_by, leg))
            case EntryElsewhere(peer, number, chain, shard_id, side):
                self._answer(peer, number, chain, answer_elsewhere(shard_id, side))
            case AnswersForgotten(peer, settled):
                refused = self.in_ends[peer].refused
                for number in [number for number in refused if number <= settled]:
                    del refused[number]
            case SlotsGranted(first, last):
                for slot in range(first, last + 1):
                    self.slots[slot] = SlotRow(slot, 1, None, None)
            case SlotGiven():
                self._give(decision, at_us)
            case SlotTaken():
                self._take(decision)

    def _post(self, wallet_id: str, version: int, balance: int) -> None:
        wallet = self.wallets[wallet_id]
        wallet.version, wallet.posted = version, balance

    def _due(self, peer: int, currency: str) -> str:
        return f"$due:{self.shard_id}:{peer}:{currency}"

    def _send(self, pending: PendingEntry, at_us: int) -> None:
        peer, number = pending.peer, pending.number
        self.pending[peer, number] = PendingRow(pending, self.watermark, at_us)
        end = self.out_ends.get(peer) or OutEnd(peer, 0, FIRST_LINK, 0, FIRST_LINK)
        self.out_ends[peer] = OutEnd(peer, number, pending.chain, end.settled, end.settled_chain)

    def _arrived(self, peer: int, number: int) -> PendingEntry:
        pending = self.pending.pop((peer, number)).decision
        end = self.out_ends[peer]
        self.out_ends[peer] = OutEnd(peer, end.head, end.chain, number, pending.chain)
        return pending

    def _settle(self, decision: TransferSettled | TransferReleased, at_us: int) -> None:
        pending = self._arrived(decision.peer, decision.number)
        assert isinstance(pending, TransferReserved)
        outcome: TransferPosted | TransferRejected
        if isinstance(decision, TransferReleased):
            outcome = TransferRejected(
                *asked_of(pending), decision.reason, decision.short_by, pending.terms
            )
        else:
            due = self._due(decision.peer, pending.currency)
            self._post(pending.source, decision.source_version, decision.source_balance)
            self._post(due, decision.due_version, decision.due_balance)
            outcome = TransferPosted(
                *asked_of(pending),
                decision.source_version,
                decision.source_balance,
                decision.due_version,
                decision.due_balance,
                pending.terms,
            )
        self.outcomes[pending.key] = (outcome, self.watermark, at_us)

    def _answer(self, peer: int, number: int, chain: bytes, answer: int) -> None:
        end = self.in_ends.get(peer)
        refused = end.refused if end is not None else {}
        if answer:
            refused[number] = answer
        self.in_ends[peer] = InEnd(peer, number, chain, refused)

    def _give(self, decision: SlotGiven, at_us: int) -> None:
        for carried in decision.wallets:
            del self.wallets[carried.wallet_id]
        for hold in decision.holds:
            del self.holds[hold.hold_id]
        for posting in decision.dues:
            due = self._due(decision.peer, posting.currency)
            self._post(due, posting.version, posting.balance)
        row = self.slots[decision.slot]
        self.slots[decision.slot] = SlotRow(row.slot, row.generation, row.taken_from, decision.peer)
        self._send(decision, at_us)

    def _take(self, decision: SlotTaken) -> None:
        for carried in decision.wallets:
            self.wallets[carried.wallet_id] = wallet_of(carried)
        for posting in decision.dues:
            due = self._due(decision.peer, posting.currency)
            self._post(due, posting.version, posting.balance)
        self.holds |= {hold.hold_id: hold for hold in decision.holds}
        self.refunds |= {total.transfer_id: total for total in decision.refunds}
        for outcome in decision.outcomes:
            remembered = (outcome.decision, outcome.sequence, outcome.at_us)
            self.outcomes[outcome.decision.key] = remembered
        slot, generation = decision.slot, decision.generation
        self.slots[slot] = SlotRow(slot, generation, decision.peer, None)
        self._answer(decision.peer, decision.number, decision.chain, 0)

    # --- What a shard reads ---------------------------------------------------------------

    def load_wallets(self, names: list[str]) -> list[Wallet]:
        return [copy_of(self.wallets[name]) for name in names if name in self.wallets]

    def load_slot(self, slot: int) -> list[Wallet]:
        return [
            copy_of(wallet)
            for name, wallet in self.wallets.items()
            if slot_of(name) == slot and not name.startswith("$")
        ]

    def load_holds(self, hold_ids: Iterable[bytes]) -> list[Hold]:
        return [self.holds[one] for one in hold_ids if one in self.holds]

    def load_refunds(self, transfer_ids: Iterable[bytes]) -> list[RefundTotal]:
        """
        Read the totals that have a row here.
        """
        return [self.refunds[one] for one in transfer_ids if one in self.refunds]

    def snapshot(self) -> ShardSnapshot:
        relied_on = self._wallets_relied_on()
        named = [name for name in self.wallets if name.startswith("$") or name in relied_on]
        return ShardSnapshot(
            slots=list(self.slots.values()),
            outgoing=list(self.out_ends.values()),
            incoming=[
                InEnd(end.peer, end.cursor, end.chain, dict(end.refused))
                for end in self.in_ends.values()
            ],
            pending=[self.pending[place] for place in sorted(self.pending)],
            wallets=self.load_wallets(named),
            holds=[one for one in self.holds.values() if is_unfinished(one)],
            linked=list(self.linked.values()),
            prepared=list(self.prepared.values()),
            refunds=self.load_refunds(
                sorted(
                    refunds_relied_on(
                        self.pending.values(), self.linked.values(), self.prepared.values()
                    )
                )
            ),
        )

    def _bound(self) -> list[TransferReserved | Leg]:
        """
        List what is not decided yet and may have terms.
        """
        rows = [row.decision for row in self.pending.values()]
        bound: list[TransferReserved | Leg] = [
            row for row in rows if isinstance(row, TransferReserved)
        ]
        for begun in self.linked.values():
            bound += begun.begun.legs
        for prepared in self.prepared.values():
            bound += [part.asked for part in prepared.prepared.parts]
        return bound

    def _wallets_relied_on(self) -> set[str]:
        names = {one.source for one in self._bound()}
        # More than are: all that legs name. What is loaded for nothing does no harm.
        names |= {one.destination for one in self._bound()}
        return names | {one.wallet_id for one in self.holds.values() if is_unfinished(one)}


def is_unfinished(hold: Hold) -> bool:
    """
    Say whether a hold keeps something, or has captures on their way.
    """
    return hold.status == HoldStatus.OPEN or hold.pending > 0


def _due_after(decision: EntryCredited) -> tuple[int, int]:
    return decision.due_version, decision.due_balance


def wallet_of(carried: CarriedWallet) -> Wallet:
    return Wallet(
        carried.wallet_id,
        carried.merchant_id,
        carried.currency,
        status=carried.status,
        minimum=carried.minimum,
        posted=carried.posted,
        version=carried.version,
        limits=carried.limits,
        usage=carried.usage,
    )


def copy_of(wallet: Wallet) -> Wallet:
    """
    Read a row: what is set aside does not stand in it, nor which record touched it.
    """
    return Wallet(
        wallet.wallet_id,
        wallet.merchant_id,
        wallet.currency,
        status=wallet.status,
        minimum=wallet.minimum,
        posted=wallet.posted,
        version=wallet.version,
        limits=wallet.limits,
        usage=wallet.usage,
    )
