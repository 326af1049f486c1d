"""
The tables of one shard in memory, as a write-behind would make them of its journal: an own reading
of the decisions that shares nothing with `apply`.
"""

from __future__ import annotations

from processor.core.channel import FIRST_LINK, answer_elsewhere
from processor.core.decisions import (
    AnswersForgotten,
    CarriedWallet,
    Decision,
    EntryCredited,
    EntryElsewhere,
    EntryRefused,
    PendingEntry,
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
)
from processor.core.slots import slot_of
from processor.core.state import Remembered
from processor.core.wallet import Wallet
from processor.flow.ports import InEnd, OutEnd, PendingRow, ShardSnapshot, SlotRow


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
            case WalletLimitsSet(wallet_id, minimum):
                self.wallets[wallet_id].minimum = minimum
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
            case TransferReserved():
                self._send(decision, at_us)
            case TransferSettled() | TransferReleased():
                self._settle(decision, at_us)
            case TransferRecalled(peer, number) | SlotDelivered(peer, number):
                self._arrived(peer, number)
            case _:
                self._project_entry(decision, at_us)

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
            case EntryRefused(peer, number, chain, reason):
                self._answer(peer, number, chain, int(reason))
            case EntryElsewhere(peer, number, chain, shard_id):
                self._answer(peer, number, chain, answer_elsewhere(shard_id))
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
            outcome = TransferRejected(*asked_of(pending), decision.reason)
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

    def snapshot(self) -> ShardSnapshot:
        rows = [row.decision for row in self.pending.values()]
        sources = {row.source for row in rows if isinstance(row, TransferReserved)}
        named = [name for name in self.wallets if name.startswith("$") or name in sources]
        return ShardSnapshot(
            list(self.slots.values()),
            list(self.out_ends.values()),
            [InEnd(e.peer, e.cursor, e.chain, dict(e.refused)) for e in self.in_ends.values()],
            [self.pending[place] for place in sorted(self.pending)],
            self.load_wallets(named),
        )


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
    )


def copy_of(wallet: Wallet) -> Wallet:
    """
    Read a row: what is reserved does not stand in it, nor which record touched it.
    """
    return Wallet(
        wallet.wallet_id,
        wallet.merchant_id,
        wallet.currency,
        status=wallet.status,
        minimum=wallet.minimum,
        posted=wallet.posted,
        version=wallet.version,
    )
