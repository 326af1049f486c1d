"""
What several shards must have in the end, counted from nothing but what clients asked and were told.

Naive like `model_ledger`, and for when no exact prediction is possible: which of two commands came
first, nobody outside knows. Nothing here is shared with what is tested but the commands, the
results and the reasons.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from processor.core.commands import (
    ExtendHold,
    MoveLinked,
    MoveMoney,
    PlaceHold,
    TransferType,
    VoidHold,
)
from processor.core.reject_reason import RejectReason as Reason
from processor.flow.frames import HoldFound, LinkedMoved, LinkedRefused, Posted, Rejected

TRANSFER, DEPOSIT, WITHDRAWAL, HOLD, CAPTURE, VOID, EXTEND, REFUND, FEE = TransferType
FEES = "$fees"  # All of a merchant's wallets of fees, at whatever shards.

HOLD_REASONS = {
    Reason.HOLD_UNKNOWN,
    Reason.HOLD_EXPIRED,
    Reason.HOLD_VOIDED,
    Reason.HOLD_CAPTURED,
    Reason.HOLD_CAPTURE_PENDING,
}
SOURCE_STATUS = {Reason.SOURCE_CLOSED, Reason.SOURCE_LOCKED, Reason.SOURCE_FROZEN}
DESTINATION_STATUS = {Reason.DESTINATION_CLOSED, Reason.DESTINATION_LOCKED}
DEBIT_LIMITS = {one for one in Reason if one.name.startswith("DEBIT_")}
CREDIT_LIMITS = {one for one in Reason if one.name.startswith("CREDIT_")}
CREDIT_LIMITS |= {Reason.BALANCE_MAX_EXCEEDED}
CONDITIONS = {Reason.VERSION_DIFFERS, Reason.AVAILABLE_BELOW_CONDITION}
FUNDS = {Reason.INSUFFICIENT_FUNDS}
MEASURED = DEBIT_LIMITS | CREDIT_LIMITS | FUNDS
MEASURED |= {Reason.CAPTURE_EXCEEDS_HOLD, Reason.AVAILABLE_BELOW_CONDITION, Reason.VERSION_DIFFERS}

# For which reasons a kind may be refused at all, besides those that its own fields say.
ALLOWED = {
    TRANSFER: SOURCE_STATUS | DESTINATION_STATUS | FUNDS | DEBIT_LIMITS | CREDIT_LIMITS,
    DEPOSIT: DESTINATION_STATUS | CREDIT_LIMITS,
    WITHDRAWAL: SOURCE_STATUS | FUNDS | DEBIT_LIMITS,
    HOLD: SOURCE_STATUS | FUNDS | DEBIT_LIMITS,
    CAPTURE: HOLD_REASONS
    | {Reason.SOURCE_LOCKED, Reason.CAPTURE_EXCEEDS_HOLD, Reason.WALLETS_IDENTICAL}
    | DESTINATION_STATUS
    | CREDIT_LIMITS,
    VOID: HOLD_REASONS,
    EXTEND: HOLD_REASONS,
    REFUND: SOURCE_STATUS | DESTINATION_STATUS | FUNDS | {Reason.REFUND_EXCEEDS_PAID},
    FEE: SOURCE_STATUS | FUNDS,
}
LINKED_ALLOWED = ALLOWED[TRANSFER] | {Reason.REFUND_EXCEEDS_PAID, Reason.REFUND_TOTAL_UNKNOWN}
LINKED_ALLOWED |= {Reason.LINKED_DEADLINE_PASSED}


class Books:
    """
    What is in wallets and holds, has gone back and was used of limits.
    """

    def __init__(self) -> None:
        self.balances: Counter[str] = Counter()
        self.refunded: Counter[bytes] = Counter()
        self.placed: dict[bytes, PlaceHold] = {}
        self.captured: dict[bytes, list[int]] = defaultdict(list)
        self.ended: set[bytes] = set()  # Voided, or captured for the last time.
        self.voided: set[bytes] = set()
        # By wallet: how many and how much, out and in. All happens within one hour.
        self.used: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])

    def take(self, command: Any, told: Any) -> None:
        """
        Count what *command* has done, as its outcome was *told*.
        """
        match told:
            case Posted():
                self._posted(command, told)
            case LinkedMoved():
                for leg in command.legs:
                    payee = FEES if leg.transfer_type == FEE else leg.destination
                    self._move(leg.transfer_type, leg.source, payee, leg.amount)
                    self._refund(leg)
            case HoldFound() if isinstance(command, PlaceHold):
                self.placed[told.transfer_id] = command
            case HoldFound() if isinstance(command, VoidHold):
                self.voided.add(command.hold_id)

    def _posted(self, command: MoveMoney, told: Posted) -> None:
        source, destination, amount = command.source, command.destination, command.amount
        if told.filled_in is not None:
            filled = told.filled_in
            source, destination, amount = filled.source, filled.destination, filled.amount
        if command.transfer_type == FEE:
            destination = FEES
        self._move(command.transfer_type, source, destination, amount)
        self._refund(command, amount)
        if command.transfer_type == CAPTURE:
            assert command.terms is not None
            assert command.terms.hold_id is not None
            self.captured[command.terms.hold_id].append(amount)
            if command.terms.is_final:
                self.ended.add(command.terms.hold_id)

    def _move(self, kind: TransferType, source: str, destination: str, amount: int) -> None:
        source = FEES if source.startswith(FEES) else source
        self.balances[source] -= amount
        self.balances[destination] += amount
        for name, side, kinds in (
            (source, "out", (TRANSFER, WITHDRAWAL)),
            (destination, "in", (TRANSFER, DEPOSIT, CAPTURE)),
        ):
            if kind in kinds:
                self.use(name, side, amount)

    def use(self, name: str, side: str, amount: int, times: int = 1) -> None:
        used = self.used[name, side]
        used[0] += times
        used[1] += amount

    def _refund(self, bound: Any, amount: int | None = None) -> None:
        if bound.terms is not None and bound.terms.refund_of is not None:
            self.refunded[bound.terms.refund_of] += amount or bound.amount

    def captured_of(self, hold_id: bytes) -> int:
        return sum(self.captured[hold_id])

    def status_of(self, hold_id: bytes, *, is_over: bool) -> str:
        """
        Say what has become of a hold: *is_over* says that its time was over before the end.
        """
        if hold_id in self.voided:
            return "voided"
        if hold_id in self.ended or self.captured_of(hold_id) == self.placed[hold_id].amount:
            return "captured"
        return "expired" if is_over else "open"


def check_refusal(command: Any, told: Rejected | LinkedRefused, nobody: set[str]) -> None:
    """
    A refusal has to be one that the command can have met; *nobody* has the wallets that no one has.
    """
    reason = Reason(told.reason)
    if isinstance(command, MoveLinked):
        _check_leg(command, told, nobody)
    elif reason not in ALLOWED[_kind(command)]:
        _check_fields(command, reason, nobody)
    assert (told.short_by > 0) >= (reason in MEASURED), told


def _check_leg(command: MoveLinked, told: Any, nobody: set[str]) -> None:
    reason, leg = Reason(told.reason), command.legs[told.leg]
    if reason not in LINKED_ALLOWED:
        bad = {
            Reason.WALLETS_IDENTICAL: leg.source == leg.destination,
            Reason.SOURCE_UNKNOWN: leg.source in nobody or command.merchant_id != "acme",
            Reason.DESTINATION_UNKNOWN: leg.destination in nobody,
            Reason.CURRENCY_MISMATCH: leg.currency != "EUR",
        }
        assert bad.get(reason), (leg, told)


def _check_fields(command: Any, reason: Reason, nobody: set[str]) -> None:
    sides = {getattr(command, "source", ""), getattr(command, "destination", "")}
    terms = command.terms
    is_foreign = command.merchant_id != "acme"
    # A capture without a destination goes where its hold says, if that says one.
    is_open = _kind(command) == CAPTURE and not command.destination
    bad = {
        Reason.WALLETS_IDENTICAL: len(sides) == 1,
        Reason.SOURCE_UNKNOWN: is_foreign or command.source in nobody | {FEES},
        Reason.DESTINATION_UNKNOWN: bool(sides & nobody) or is_foreign or is_open,
        Reason.CURRENCY_MISMATCH: command.currency != "EUR",
        Reason.VERSION_DIFFERS: terms is not None and terms.if_version is not None,
        Reason.AVAILABLE_BELOW_CONDITION: terms is not None and terms.if_available_gte is not None,
    }
    bad[Reason.SOURCE_UNKNOWN] |= getattr(command, "source", "").startswith(FEES)
    assert bad.get(reason), (command, reason)


def _kind(command: Any) -> TransferType:
    kinds = {PlaceHold: HOLD, VoidHold: VOID, ExtendHold: EXTEND}
    kind: TransferType = kinds.get(type(command)) or command.transfer_type
    return kind
