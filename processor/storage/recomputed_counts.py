"""
Holds and refunds of one shard, worked out a second time: what movements make of them, and what the
journal tells of them next to each.

A part of `recomputation`, and like it without any code of the ledger. A hold is told before the
capture that takes from it and after everything else; a refund's total is told after the refund.
At the end of a record, what is told is what was worked out.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from processor.storage.recomputed_wallets import SLOT_COUNT, Contradiction, slot_of

OPEN, CAPTURED, VOIDED, EXPIRED = range(1, 5)

# Where a hold's facts stand, in the order of the columns of `holds` behind its id.
HOLD_MERCHANT, HOLD_WALLET, HOLD_DESTINATION, HOLD_CURRENCY, HOLD_AMOUNT = range(5)
HOLD_CAPTURED, HOLD_PENDING, HOLD_STATUS, HOLD_IS_ENDING, HOLD_PLACED_AT = range(5, 10)
HOLD_EXPIRES_AT, HOLD_REFERENCE, HOLD_METADATA, HOLD_CHANGED_AT = range(10, 14)

_Id = bytes


class HoldState(NamedTuple):
    """
    What of a hold changes.
    """

    captured: int
    pending: int
    status: int
    is_ending: bool
    expires_at_us: int

    def kept(self, amount: int) -> int:
        """
        Return what a hold over *amount* keeps for captures to come.
        """
        return amount - self.captured - self.pending if self.status == OPEN else 0


def slot_of_hold(hold_id: bytes) -> int:
    """
    Read the slot of a hold's wallet: the low 12 bits of its id.
    """
    return int.from_bytes(hold_id[-2:], "big") & (SLOT_COUNT - 1)


def state_of(facts: list[Any]) -> HoldState:
    captured, pending, status, is_ending = facts[HOLD_CAPTURED:HOLD_PLACED_AT]
    return HoldState(captured, pending, status, is_ending, facts[HOLD_EXPIRES_AT])


def put_state(facts: list[Any], state: HoldState, at: datetime) -> None:
    """
    Write into a hold's facts how it is from *at* on.
    """
    facts[HOLD_CAPTURED:HOLD_PLACED_AT] = state[:4]
    facts[HOLD_EXPIRES_AT] = state.expires_at_us
    facts[HOLD_CHANGED_AT] = at


class HoldBook:
    """
    The holds of a shard that are not over: open, or with captures on their way.

    `ended` has those that are over, as they stay, and `left` those over that went with their slot;
    the reader takes both away.
    """

    def __init__(self) -> None:
        self.open: dict[_Id, list[Any]] = {}
        self.ended: list[tuple[_Id, list[Any]]] = []
        self.left: list[tuple[_Id, list[Any]]] = []
        self.placed_count = 0
        self._by_slot: dict[int, set[_Id]] = {}
        self._told_ahead: dict[_Id, HoldState] = {}  # As it was before what is told.
        self._moved_ahead: dict[_Id, HoldState] = {}  # As it is to be told.

    def open_count(self) -> int:
        return sum(facts[HOLD_STATUS] == OPEN for facts in self.open.values())

    def facts(self, hold_id: _Id) -> list[Any]:
        """
        Return a hold as it is told; raises Contradiction.
        """
        facts = self.open.get(hold_id)
        if facts is None:
            raise Contradiction("hold", "one that is not over", hold_id)
        return facts

    def place(self, hold_id: _Id, facts: list[Any]) -> None:
        self.add(hold_id, facts)
        self.placed_count += 1

    def add(self, hold_id: _Id, facts: list[Any]) -> None:
        if hold_id in self.open:
            raise Contradiction("hold", "a new one", hold_id)
        self.open[hold_id] = facts
        self._by_slot.setdefault(slot_of_hold(hold_id), set()).add(hold_id)

    def take_slot(self, slot: int) -> dict[_Id, list[Any]]:
        """
        Take the holds of a slot out of the book.
        """
        return {hold_id: self.open.pop(hold_id) for hold_id in self._by_slot.pop(slot, ())}

    def tell(self, hold_id: _Id, told: HoldState, at_us: int, at: datetime) -> HoldState:
        """
        Take in how a hold is told to be, and return how it was told before.
        """
        facts = self.facts(hold_id)
        before = state_of(facts)
        expected = self._moved_ahead.pop(hold_id, None)
        if expected is not None:
            _check_told(hold_id, expected, told)
        elif told != before:
            is_over = before.status == OPEN and at_us >= before.expires_at_us
            if not (is_over and told == before._replace(status=EXPIRED)):
                if hold_id in self._told_ahead:
                    raise Contradiction(f"hold {hold_id.hex()}", "told once a step", told)
                self._told_ahead[hold_id] = before
        put_state(facts, told, at)
        return before

    def close_if_over(self, hold_id: _Id) -> None:
        """
        Put a hold away that can change no more.
        """
        facts = self.open[hold_id]
        is_over = facts[HOLD_STATUS] != OPEN and facts[HOLD_PENDING] == 0
        # What is to come in this record may still have to explain what is told.
        if is_over and hold_id not in self._told_ahead:
            self.ended.append((hold_id, self.open.pop(hold_id)))
            self._by_slot[slot_of_hold(hold_id)].remove(hold_id)

    def usable(self, hold_id: _Id, at_us: int) -> tuple[list[Any], HoldState]:
        """
        Return a hold that a new step may change; raises Contradiction when its time is over.
        """
        facts = self.facts(hold_id)
        own = self._told_ahead.get(hold_id) or state_of(facts)
        if own.status != OPEN or own.is_ending:
            raise Contradiction(f"hold {hold_id.hex()}", "an open one", own)
        if at_us >= own.expires_at_us:
            found = f"at {at_us}"
            raise Contradiction(f"hold {hold_id.hex()}", f"over at {own.expires_at_us}", found)
        return facts, own

    def capture(self, hold_id: _Id, amount: int, at_us: int, *, is_final: bool) -> list[Any]:
        """
        Take in a capture that has moved its money at once, and return the hold.
        """
        facts, own = self._capturable(hold_id, amount, at_us)
        after = own._replace(captured=own.captured + amount)
        self._move(hold_id, _used(after, facts, is_final=is_final))
        return facts

    def send(self, hold_id: _Id, amount: int, at_us: int, *, is_final: bool) -> list[Any]:
        """
        Take in a capture that is on its way to another shard, and return the hold.
        """
        facts, own = self._capturable(hold_id, amount, at_us)
        after = own._replace(pending=own.pending + amount, is_ending=own.is_ending or is_final)
        self._move(hold_id, after)
        return facts

    def settle(self, hold_id: _Id, amount: int, *, is_final: bool) -> None:
        """
        Take in that a capture has arrived.
        """
        own = self._own(hold_id)
        after = own._replace(pending=own.pending - amount, captured=own.captured + amount)
        if is_final:
            after = after._replace(is_ending=False)
        self._move(hold_id, _used(after, self.facts(hold_id), is_final=is_final))

    def take_back(self, hold_id: _Id, amount: int, *, is_final: bool) -> None:
        """
        Take in that a capture was refused.
        """
        own = self._own(hold_id)
        after = own._replace(pending=own.pending - amount)
        self._move(hold_id, after._replace(is_ending=False) if is_final else after)

    def void(self, hold_id: _Id) -> None:
        self._move(hold_id, self._own(hold_id)._replace(status=VOIDED))

    def extend(self, hold_id: _Id, expires_at_us: int) -> None:
        self._move(hold_id, self._own(hold_id)._replace(expires_at_us=expires_at_us))

    def check_record(self) -> None:
        """
        Check that all steps of a record were told, and nothing else.
        """
        for hold_id, before in self._told_ahead.items():
            raise Contradiction(f"hold {hold_id.hex()}", before, state_of(self.facts(hold_id)))
        for hold_id, after in self._moved_ahead.items():
            raise Contradiction(f"hold {hold_id.hex()}", after, state_of(self.facts(hold_id)))

    def _capturable(self, hold_id: _Id, amount: int, at_us: int) -> tuple[list[Any], HoldState]:
        facts, own = self.usable(hold_id, at_us)
        kept = own.kept(facts[HOLD_AMOUNT])
        if amount > kept:
            raise Contradiction("captured amount", f"at most {kept}", amount)
        return facts, own

    def _own(self, hold_id: _Id) -> HoldState:
        if hold_id in self._moved_ahead:
            raise Contradiction(f"hold {hold_id.hex()}", self._moved_ahead[hold_id], "another step")
        return self._told_ahead.get(hold_id) or state_of(self.facts(hold_id))

    def _move(self, hold_id: _Id, after: HoldState) -> None:
        told = state_of(self.facts(hold_id))
        if self._told_ahead.pop(hold_id, None) is not None:
            _check_told(hold_id, after, told)
            self.close_if_over(hold_id)
        elif after != told:
            self._moved_ahead[hold_id] = after


def _check_told(hold_id: _Id, expected: HoldState, told: HoldState) -> None:
    if told != expected:
        raise Contradiction(f"hold {hold_id.hex()}", expected, told)


def _used(state: HoldState, facts: list[Any], *, is_final: bool) -> HoldState:
    is_used = is_final or state.captured == facts[HOLD_AMOUNT]
    return state._replace(status=CAPTURED) if is_used and state.status == OPEN else state


class Total(NamedTuple):
    """
    How much of a transfer has gone back from a wallet, told so often.
    """

    wallet_id: str
    refunded: int
    version: int


class RefundBook:
    """
    How much has gone back of transfers, at the shard of the wallet that pays it back.

    `rows` has the last that was told here of each, `here` the transfers whose wallet is at this
    shard. What has gone on with its slot is in `left` as it was then. `brought` has what was
    counted here on top of what another shard had told: see `check_refunds`.
    """

    def __init__(self) -> None:
        self.rows: dict[_Id, Total] = {}
        self.here: set[_Id] = set()
        self.left: dict[tuple[_Id, int], Total] = {}
        self.brought: list[tuple[_Id, Total]] = []
        self._by_slot: dict[int, set[_Id]] = {}
        self._untold: dict[_Id, tuple[str, int, int | None]] = {}

    def count(self, transfer_id: _Id, wallet_id: str, amount: int, refundable: int | None) -> None:
        """
        Take in that *amount* more (or, below zero, less) of what could go back has gone back.
        """
        _, sum_before, least = self._untold.get(transfer_id, ("", 0, None))
        if refundable is not None:
            least = refundable if least is None else min(least, refundable)
        self._untold[transfer_id] = (wallet_id, sum_before + amount, least)

    def tell(self, decision: list[Any]) -> None:
        """
        Compare the total that is told; raises Contradiction.
        """
        _, transfer_id, wallet_id, refunded, version = decision
        name = f"refunds of {_hex(transfer_id)}"
        if transfer_id not in self._untold:
            raise Contradiction(name, "told next to a refund", refunded)
        payer, amount, refundable = self._untold.pop(transfer_id)
        before = self._before(transfer_id, payer, refunded - amount, version - 1)
        expected = Total(payer, before.refunded + amount, before.version + 1)
        told = Total(wallet_id, refunded, version)
        if told != expected:
            raise Contradiction(name, expected, told)
        if refunded < 0 or (refundable is not None and refunded > refundable):
            raise Contradiction(name, f"0 to {refundable}", refunded)
        self._put(transfer_id, told)

    def _before(self, transfer_id: _Id, wallet_id: str, refunded: int, version: int) -> Total:
        if transfer_id in self.here:
            return self.rows[transfer_id]
        if version == 0:
            return Total(wallet_id, 0, 0)
        total = Total(wallet_id, refunded, version)
        self.brought.append((transfer_id, total))
        return total

    def take(self, carried: list[Any]) -> None:
        """
        Take in a total that came with its slot.
        """
        transfer_id, wallet_id, refunded, version, _ = carried
        if transfer_id in self.here or version < 1 or refunded < 0:
            raise Contradiction("carried refunds", "new ones", carried)
        total = Total(wallet_id, refunded, version)
        self.brought.append((transfer_id, total))
        self._put(transfer_id, total)

    def _put(self, transfer_id: _Id, total: Total) -> None:
        self.rows[transfer_id] = total
        if transfer_id not in self.here:
            self.here.add(transfer_id)
            if total.wallet_id[0] != "$":  # Those of the ledger itself never leave.
                self._by_slot.setdefault(slot_of(total.wallet_id), set()).add(transfer_id)

    def give(self, slot: int, carried: list[list[Any]]) -> None:
        """
        Let the totals of a slot go; raises Contradiction when one is told to be another.
        """
        for transfer_id, wallet_id, refunded, version, _ in carried:
            known = self.rows.get(transfer_id) if transfer_id in self.here else None
            if known != (wallet_id, refunded, version) or slot_of(wallet_id) != slot:
                raise Contradiction("carried refunds", known, (wallet_id, refunded, version))
        for transfer_id in self._by_slot.pop(slot, ()):
            total = self.rows[transfer_id]
            self.here.remove(transfer_id)
            self.left[transfer_id, total.version] = total

    def check_record(self) -> None:
        """
        Check that every total that changed in a record was told.
        """
        for transfer_id, (_, amount, _) in self._untold.items():
            raise Contradiction(f"refunds of {_hex(transfer_id)}", f"{amount} more", "not told")


def _hex(identifier: object) -> str:
    return identifier.hex() if isinstance(identifier, bytes) else repr(identifier)
