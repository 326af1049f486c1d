"""
What a repeated key says: the outcome from before, or that it belongs to another command.

Rule: a repeat is compared with what was asked for then, field by field, as the decision tells it.
      What the ledger chose itself (the world's side, what a hold filled in) is not compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from processor.core.commands import (
    ExtendHold,
    Leg,
    MoveLinked,
    MoveMoney,
    PlaceHold,
    Terms,
    TransferType,
    VoidHold,
)
from processor.core.decisions import (
    HoldExtended,
    HoldPlaced,
    HoldVoided,
    LinkedBegun,
    LinkedPosted,
    LinkedRejected,
    TransferDecision,
    TransferPosted,
    TransferRejected,
    TransferReserved,
)
from processor.core.state import Remembered

KeyedCommand = MoveMoney | PlaceHold | VoidHold | ExtendHold | MoveLinked

_NO_TERMS = Terms()


class Repeated(msgspec.Struct, frozen=True, gc=False):
    """
    The key was used before for this very command; here is what came of it.
    """

    decision: TransferDecision
    sequence: int
    at_us: int


class KeyReused(msgspec.Struct, frozen=True, gc=False):
    """
    The key was used before for another command; `field` is the first that differs.
    """

    field: str


def repeat(remembered: Remembered, command: KeyedCommand) -> Repeated | KeyReused:
    """
    Compare *command* with what its key stood for before.
    """
    decision, sequence, at_us = remembered
    field = next(_differences(decision, command), None)
    return Repeated(decision, sequence, at_us) if field is None else KeyReused(field)


def _differences(decision: TransferDecision, command: KeyedCommand) -> Iterator[str]:
    if _type_of(decision) != type_asked(command):
        yield "type"
        return
    match command:
        case MoveMoney():
            assert isinstance(decision, TransferPosted | TransferRejected | TransferReserved)
            yield from _movement(decision, command)
        case PlaceHold():
            assert isinstance(decision, HoldPlaced | TransferRejected)
            for field in ("source", "destination", "currency", "amount", "reference", "metadata"):
                if getattr(decision, field) != getattr(command, field):
                    yield field
            if _lifetime(decision) != command.lifetime_s:
                yield "expires_in_s"
            yield from _conditions(decision.terms or _NO_TERMS, command.terms or _NO_TERMS)
        case VoidHold() | ExtendHold():
            assert isinstance(decision, HoldVoided | HoldExtended | TransferRejected)
            if _hold_of(decision) != command.hold_id:
                yield "hold_id"
            if isinstance(command, ExtendHold) and _lifetime(decision) != command.lifetime_s:
                yield "expires_in_s"
        case MoveLinked():
            assert isinstance(decision, LinkedPosted | LinkedRejected | LinkedBegun)
            yield from _legs(decision.legs, command.legs)


def _movement(
    decision: TransferPosted | TransferRejected | TransferReserved, command: MoveMoney
) -> Iterator[str]:
    kind = command.transfer_type
    then, now = decision.terms or _NO_TERMS, command.terms or _NO_TERMS
    is_capture = kind == TransferType.CAPTURE
    # The world side is the ledger's own choice, so only the customer's sides are compared.
    has_payer = kind not in (TransferType.DEPOSIT, TransferType.CAPTURE)
    if has_payer and decision.source != command.source:
        yield "source"
    has_payee = kind not in (TransferType.WITHDRAWAL, TransferType.FEE)
    has_payee = has_payee and not (is_capture and not command.destination)
    if has_payee and decision.destination != command.destination:
        yield "destination"
    if decision.currency != command.currency and not (is_capture and not command.currency):
        yield "currency"
    if (then.amount_max or decision.amount) != (now.amount_max or command.amount):
        yield "amount"
    if (then.amount_max is None) != (now.amount_max is None):
        yield "amount"
    for field in ("reference", "metadata"):
        if getattr(decision, field) != getattr(command, field):
            yield field
    yield from _conditions(then, now)


def _conditions(then: Terms, now: Terms) -> Iterator[str]:
    for field, name in (
        ("hold_id", "hold_id"),
        ("is_final", "final"),
        ("refund_of", "transfer_id"),
        ("if_version", "if_version"),
        ("if_available_gte", "if_available_gte"),
    ):
        if getattr(then, field) != getattr(now, field):
            yield name


def _legs(then: list[Leg], now: list[Leg]) -> Iterator[str]:
    if len(then) != len(now):
        yield "legs"
    for place, (old, new) in enumerate(zip(then, now, strict=False)):
        for field in (
            "transfer_type",
            "source",
            "destination",
            "currency",
            "amount",
            "reference",
            "metadata",
            "terms",
        ):
            if getattr(old, field) != getattr(new, field):
                yield f"legs/{place}/{'type' if field == 'transfer_type' else field}"


def type_asked(command: KeyedCommand) -> TransferType | None:
    """
    Return the kind of movement a command asks for; None for a linked transfer.
    """
    match command:
        case MoveMoney(transfer_type=kind):
            return kind
        case PlaceHold():
            return TransferType.HOLD
        case VoidHold():
            return TransferType.VOID
        case ExtendHold():
            return TransferType.EXTEND
        case _:
            return None


def _type_of(decision: TransferDecision) -> TransferType | None:
    match decision:
        case HoldPlaced():
            return TransferType.HOLD
        case HoldVoided():
            return TransferType.VOID
        case HoldExtended():
            return TransferType.EXTEND
        case LinkedPosted() | LinkedRejected() | LinkedBegun():
            return None
        case _:
            return decision.transfer_type


def _lifetime(decision: HoldPlaced | HoldExtended | HoldVoided | TransferRejected) -> int:
    if isinstance(decision, HoldPlaced | HoldExtended):
        return decision.lifetime_s
    if isinstance(decision, TransferRejected) and decision.terms is not None:
        return decision.terms.lifetime_s
    return 0


def _hold_of(decision: HoldVoided | HoldExtended | TransferRejected) -> bytes | None:
    if isinstance(decision, TransferRejected):
        return decision.terms.hold_id if decision.terms is not None else None
    return decision.hold_id
