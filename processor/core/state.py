"""
What a shard holds in memory: wallets, the outcomes remembered under their keys, and what is open.

Rule 1: only `apply` and the loader of rows at or below the watermark write here. What is not
        journaled (hints, what is about to leave, how far the tables are) decides no outcome.
Rule 2: a key is forgotten only when its record is in the tables (see `RememberedKeys.rotate`);
        forgetting earlier would pay twice.
Rule 3: a wallet is in memory only while its slot is this shard's. The tables lag: a row of a
        slot that was given may still be there, and is not taken in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import TypeVar

from processor.core.channel import Channels
from processor.core.commands import Leg
from processor.core.decisions import (
    CarriedOutcome,
    Decision,
    LinkedBegun,
    LinkedDecision,
    LinkedPosted,
    LinkedPrepared,
    TransferDecision,
    TransferReserved,
)
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.linked import parts_at
from processor.core.slots import SlotMap, slot_of
from processor.core.wallet import Wallet, home_of, is_system_wallet

Remembered = tuple[TransferDecision, int, int]  # The decision, its sequence, its time in µs.


class RememberedKeys:
    """
    Outcomes by key in two generations: exact, and bounded by turning them over.

    `young` takes what is new, `old` is the generation before it. `recorded` says for outcomes that
    may be of another journal which record of this one has them: 0 where only the tables have.
    `young_legs` counts the legs that are remembered with `young`, some twice: a linked transfer may
    be as large as a hundred others.
    """

    __slots__ = (
        "old",
        "old_sequence_max",
        "recorded",
        "young",
        "young_legs",
        "young_sequence_max",
    )

    def __init__(self) -> None:
        self.recorded: dict[bytes, int] = {}
        self.young: dict[bytes, Remembered] = {}
        self.old: dict[bytes, Remembered] = {}
        self.young_legs = 0
        self.young_sequence_max = 0
        self.old_sequence_max = 0

    def __len__(self) -> int:
        return len(self.young) + len(self.old)

    def find(self, key: bytes) -> Remembered | None:
        return self.young.get(key) or self.old.get(key)

    def remember(self, decision: TransferDecision, sequence: int, at_us: int) -> None:
        self.young[decision.key] = (decision, sequence, at_us)
        self.young_legs += _legs_of(decision)
        self.young_sequence_max = max(self.young_sequence_max, sequence)

    def carry(self, outcome: CarriedOutcome, sequence: int) -> None:
        """
        Remember an outcome of another shard that came in the record *sequence* of this one.

        It keeps its own sequence, which is of another journal and says nothing of these tables.
        """
        key = outcome.decision.key
        self.young[key] = (outcome.decision, outcome.sequence, outcome.at_us)
        self.recorded[key] = sequence
        self.young_legs += _legs_of(outcome.decision)
        self.young_sequence_max = max(self.young_sequence_max, sequence)

    def load(self, remembered: Remembered) -> None:
        """
        Take in an outcome from the tables, be they another shard's; what is here already stays.
        """
        key = remembered[0].key
        if self.find(key) is None:
            self.young[key] = remembered
            self.young_legs += _legs_of(remembered[0])
            self.recorded[key] = 0

    def forget(self, key: bytes) -> None:
        """
        Make *key* as new: what it stood for was called back and is decided anew.
        """
        for known in (self.young, self.old, self.recorded):
            known.pop(key, None)

    def rotate(self, watermark: int) -> dict[bytes, Remembered] | None:
        """
        Forget the old generation and return it, or None while it is above *watermark*.
        """
        if self.old_sequence_max > watermark:
            return None
        forgotten = self.old
        if self.recorded:
            for key in forgotten:
                self.recorded.pop(key, None)
        self.old, self.old_sequence_max = self.young, self.young_sequence_max
        self.young, self.young_legs, self.young_sequence_max = {}, 0, 0
        return forgotten


def _legs_of(decision: TransferDecision) -> int:
    return len(decision.legs) if isinstance(decision, LinkedDecision) else 0


class OpenLinked:
    """
    A linked transfer over several shards that this shard decides, until all have done it.

    `waiting` has the peers whose vote, or with `posted` whose done, has not come.
    """

    __slots__ = ("at_us", "begun", "posted", "sequence", "waiting")

    def __init__(self, begun: LinkedBegun, sequence: int, at_us: int) -> None:
        self.begun = begun
        self.posted: LinkedPosted | None = None
        self.waiting: set[int] = set()
        self.sequence = sequence
        self.at_us = at_us


Prepared = tuple[LinkedPrepared, int, int]  # With its sequence and its time in µs.


class ShardState:
    """
    The state of one shard; wallets that nothing has named yet are in the tables only.

    `has_granted` says that slots have come here once, so that the first ones are not granted
    again; `has_taken`, that one came from another shard, whose tables have the older outcomes.
    `given` has the slots that were here and went on, `newest` the wallets that were opened or
    taken above the watermark, with the sequence.

    `holds` has every open hold and some that have ended, `refunds` the totals that were asked for,
    `linked` the linked transfers that are decided here and `prepared` those of which peers decide.
    `alarms` is a heap of times in µs at which a hold may be over or a vote overdue, with its id.

    Not journaled: `tables_at`, the watermark that is durable; `hints`, where slots were that this
    shard's transfers did not find; `closing`, the slots of which nothing new is sent to other
    shards until a time in µs; `leaving`, the wallets of slots that are about to be given; `kept`,
    how many holds and totals could not be forgotten when that was last tried, so that it is not
    tried in vain with every record.
    """

    __slots__ = (
        "alarms",
        "channels",
        "closing",
        "given",
        "has_granted",
        "has_taken",
        "hints",
        "holds",
        "kept",
        "keys",
        "leaving",
        "linked",
        "newest",
        "prepared",
        "refunds",
        "shard_id",
        "slots",
        "tables_at",
        "wallets",
    )

    def __init__(self, shard_id: int, slots: SlotMap | None = None) -> None:
        self.shard_id = shard_id
        self.slots = slots or SlotMap.undivided(shard_id)
        self.has_granted = False
        self.has_taken = False
        self.given: set[int] = set()
        self.wallets: dict[str, Wallet] = {}
        self.newest: dict[str, int] = {}
        self.keys = RememberedKeys()
        self.channels = Channels()
        self.holds: dict[bytes, Hold] = {}
        self.refunds: dict[bytes, RefundTotal] = {}
        self.linked: dict[bytes, OpenLinked] = {}
        self.prepared: dict[bytes, Prepared] = {}
        self.alarms: list[tuple[int, bytes]] = []
        self.kept = {"holds": 0, "refunds": 0}
        self.tables_at = 0
        self.hints: dict[int, int] = {}
        self.closing: dict[int, int] = {}
        self.leaving: dict[int, list[str]] = {}

    def has_slot_of(self, wallet_id: str) -> bool:
        """
        Say whether *wallet_id*, be it open or not, is this shard's.
        """
        return self.owner_of(wallet_id) == self.shard_id

    def owner_of(self, wallet_id: str) -> int:
        """
        Return the shard at which *wallet_id* was last seen; the ledger's own never leave theirs.
        """
        if is_system_wallet(wallet_id):
            return home_of(wallet_id)
        return self.slots.shard_of(wallet_id)

    def peer_for(self, wallet_id: str) -> int:
        """
        Return the shard to which money for a wallet elsewhere is sent first.

        A hint steers only this shard's own transfers. What it tells others stays what its journal
        and the catalog say: a slot that was given is where it was given to, and by following that
        one always comes to the owner. With hints in between one could go round in a circle.
        """
        if is_system_wallet(wallet_id):
            return home_of(wallet_id)
        slot = slot_of(wallet_id)
        return self.hints.get(slot, self.slots.owner(slot))

    def wake_at(self, at_us: int, identifier: bytes) -> None:
        """
        Look at a hold or a linked transfer again at *at_us*.
        """
        heappush(self.alarms, (at_us, identifier))

    def take_alarms(self, at_us: int, count_max: int) -> list[bytes]:
        """
        Return what is to be looked at by *at_us*, and no more than *count_max*.
        """
        taken: list[bytes] = []
        while len(taken) < count_max and self.alarms and self.alarms[0][0] <= at_us:
            taken.append(heappop(self.alarms)[1])
        return taken

    def tables_reach(self, watermark: int) -> None:
        """
        Take in that the tables are durable up to *watermark*.
        """
        self.tables_at = max(self.tables_at, watermark)
        newest = self.newest  # In the order of sequences, so that this costs what it drops.
        while newest and newest[wallet_id := next(iter(newest))] <= self.tables_at:
            del newest[wallet_id]

    def newest_in(self, slot: int) -> list[str]:
        """
        List the wallets of *slot* that the tables may not have.

        Whoever reads the slot's rows asks before: while that lasts, the tables come nearer.
        """
        return [wallet_id for wallet_id in self.newest if slot_of(wallet_id) == slot]

    def may_evict(self, wallet: Wallet) -> bool:
        """
        Say whether *wallet* may leave memory: its row is as new, and nothing relies on it.
        """
        return (
            wallet.sequence <= self.tables_at
            and wallet.reserved == 0
            and wallet.incoming == 0
            and not is_system_wallet(wallet.wallet_id)
        )

    def forget_keys(self, watermark: int) -> dict[bytes, Remembered] | None:
        """
        Forget the old generation and return it, or None while it is above *watermark*.

        What is on its way to other shards is remembered until it is settled.
        """
        forgotten = self.keys.rotate(watermark)
        if not forgotten:
            return forgotten
        for channel in self.channels.outgoing.values():
            for pending in channel.outbox.values():
                if isinstance(pending, TransferReserved) and pending.key in forgotten:
                    self.keys.young[pending.key] = forgotten.pop(pending.key)
        for linked in self.linked.values():
            if linked.begun.key in forgotten:
                self.keys.young[linked.begun.key] = forgotten.pop(linked.begun.key)
        return forgotten

    def load(self, wallet: Wallet) -> None:
        """
        Take in a wallet from the tables; one that is already here is newer and stays.
        """
        wallet_id = wallet.wallet_id
        # The row of a wallet that went with its slot; its money is not here any more.
        if slot_of(wallet_id) in self.given and not is_system_wallet(wallet_id):
            return
        self.wallets.setdefault(wallet_id, wallet)

    def load_hold(self, hold: Hold) -> None:
        """
        Take in a hold from the tables that has ended.

        One that has not is in memory already, or it is the row of a shard that had it before.
        """
        if hold.status != HoldStatus.OPEN and hold.pending == 0:
            self.holds.setdefault(hold.hold_id, hold)

    def load_refund(self, total: RefundTotal) -> None:
        """
        Take in the total of what went back of a transfer; one that is here already is newer.
        """
        self.refunds.setdefault(total.transfer_id, total)

    def forget_counts(self, count_max: int) -> None:
        """
        Keep no more than *count_max* ended holds and as many totals, but for what is not in the
        tables for good, or may be counted again without being asked for.
        """
        self._forget_alarms(count_max)
        if _is_full(self.refunds, self.kept["refunds"] + count_max):
            kept = self._refunds_at_stake()
            self.kept["refunds"] = _forget(
                self.refunds,
                count_max,
                lambda one: one.sequence <= self.tables_at and one.transfer_id not in kept,
            )
        if _is_full(self.holds, self.kept["holds"] + count_max):
            self.kept["holds"] = _forget(
                self.holds,
                count_max,
                lambda hold: (
                    hold.status != HoldStatus.OPEN
                    and hold.pending == 0
                    and hold.sequence <= self.tables_at
                ),
            )

    def _forget_alarms(self, count_max: int) -> None:
        """
        Drop the alarms of what has ended before its time, when they are more than the others.
        """
        if len(self.alarms) <= 2 * (len(self.holds) + len(self.linked)) + count_max:
            return
        holds, undecided = self.holds.values(), self.linked.values()
        alarms = [
            (one.expires_at_us, one.hold_id) for one in holds if one.status == HoldStatus.OPEN
        ]
        alarms += [
            (one.begun.deadline_us, one.begun.transfer_id)
            for one in undecided
            if one.posted is None
        ]
        heapify(alarms)
        self.alarms = alarms

    def _refunds_at_stake(self) -> set[bytes]:
        outboxes = (channel.outbox.values() for channel in self.channels.outgoing.values())
        undecided: list[Decision] = [pending for outbox in outboxes for pending in outbox]
        undecided += [one.begun for one in self.linked.values() if one.posted is None]
        undecided += [prepared for prepared, _, _ in self.prepared.values()]
        return refunds_at_stake(undecided)


def refunds_at_stake(undecided: Iterable[Decision]) -> set[bytes]:
    """
    Name the transfers of which what is not decided yet takes something back: when it comes to
    nothing that is counted down again, so their totals have to be in memory.

    Of legs only those that are paid at this shard: of the others the tables may have an old total
    from when their wallet was here, and when it comes again nobody would look up the latest.
    """
    bound: list[TransferReserved | Leg] = []
    for decision in undecided:
        match decision:
            case TransferReserved():
                bound.append(decision)
            case LinkedBegun(legs=legs, homes=homes):
                decides = homes[0][0]
                bound += [part.asked for part in parts_at(decides, legs, homes) if part.is_debit]
            case LinkedPrepared(parts=parts):
                bound += [part.asked for part in parts if part.is_debit]
    named = (one.terms.refund_of for one in bound if one.terms is not None)
    return {refund_of for refund_of in named if refund_of is not None}


Counted = TypeVar("Counted")


def _is_full(known: dict[bytes, Counted], count_max: int) -> bool:
    """
    Say whether it is worth looking through *known*: a tenth above its bound.
    """
    return 10 * len(known) > 11 * count_max


def _forget(known: dict[bytes, Counted], count_max: int, may_go: Callable[[Counted], bool]) -> int:
    """
    Drop the oldest of *known* that may go, down to *count_max*; return how many may not.
    """
    going = [key for key, one in known.items() if may_go(one)]
    kept = len(known) - len(going)
    for identifier in going[: max(0, len(going) - count_max)]:
        del known[identifier]
    return kept
