"""
Commands with terms, on holds, and of several legs, for tests.
"""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec.structs import replace

from processor.core.amounts import AMOUNT_MAX
from processor.core.commands import (
    ExtendHold,
    Leg,
    MoveLinked,
    MoveMoney,
    PlaceHold,
    ReadHold,
    Terms,
    TransferType,
    VoidHold,
)
from processor.core.slots import hold_id_in, slot_of
from tests.support.commands import CURRENCY, MERCHANT, identifier, move

Bound = TypeVar("Bound", MoveMoney, PlaceHold)


def on_terms(command: Bound, **terms: Any) -> Bound:
    """
    Bind a command to *terms* besides those that it has.
    """
    return replace(command, terms=replace(command.terms or Terms(), **terms))


def up_to(command: MoveMoney) -> MoveMoney:
    """
    Ask for as much as is available, at most the amount of *command*.
    """
    return on_terms(command, amount_max=command.amount)


def fee(source: str, amount: int, **options: Any) -> MoveMoney:
    return move(TransferType.FEE, source, "", amount, **options)


def refund(
    transfer_key: str,
    source: str,
    destination: str,
    amount: int | None,
    *,
    refundable: int,
    **options: Any,
) -> MoveMoney:
    """
    Give back *amount* of the transfer under *transfer_key*, or all that is left of *refundable*.
    """
    asked = move(TransferType.REFUND, source, destination, amount or AMOUNT_MAX, **options)
    amount_max = None if amount is not None else AMOUNT_MAX
    refund_of = identifier(f"transfer of {transfer_key}")
    return on_terms(asked, refund_of=refund_of, refundable=refundable, amount_max=amount_max)


def hold_id_of(source: str, key: str = "hold") -> bytes:
    return hold_id_in(slot_of(source), identifier(f"hold of {key}"))


def place(
    source: str,
    amount: int,
    *,
    key: str = "hold",
    name: str = "",
    destination: str = "",
    lifetime_s: int = 60,
    merchant_id: str = MERCHANT,
    currency: str = CURRENCY,
    **options: Any,
) -> PlaceHold:
    """
    Place a hold, whose id is made of its *name* or else of its key.
    """
    return PlaceHold(
        hold_id_of(source, name or key),
        identifier(key),
        merchant_id,
        source,
        destination,
        currency,
        amount,
        lifetime_s,
        **options,
    )


def read_hold(hold_id: bytes, merchant_id: str = MERCHANT) -> ReadHold:
    return ReadHold(merchant_id, hold_id)


def capture(
    hold_id: bytes,
    amount: int | None = None,
    destination: str = "",
    *,
    is_final: bool | None = None,
    currency: str = "",
    **options: Any,
) -> MoveMoney:
    """
    Capture *amount* of a hold, or all that it keeps and for the last time.
    """
    asked = move(
        TransferType.CAPTURE, "", destination, amount or AMOUNT_MAX, currency=currency, **options
    )
    return on_terms(
        asked,
        hold_id=hold_id,
        is_final=amount is None if is_final is None else is_final,
        amount_max=None if amount is not None else AMOUNT_MAX,
    )


def void(hold_id: bytes, *, key: str = "void", merchant_id: str = MERCHANT) -> VoidHold:
    return VoidHold(identifier(f"transfer of {key}"), identifier(key), merchant_id, hold_id)


def extend(
    hold_id: bytes, lifetime_s: int, *, key: str = "extend", merchant_id: str = MERCHANT
) -> ExtendHold:
    transfer_id = identifier(f"transfer of {key}")
    return ExtendHold(transfer_id, identifier(key), merchant_id, hold_id, lifetime_s)


def leg(
    source: str,
    destination: str,
    amount: int,
    *,
    transfer_type: TransferType = TransferType.TRANSFER,
    name: str = "",
    currency: str = CURRENCY,
    terms: Terms | None = None,
) -> Leg:
    transfer_id = identifier(f"leg {name or (source, destination, amount)}")
    return Leg(transfer_type, transfer_id, source, destination, currency, amount, None, None, terms)


def fee_leg(source: str, amount: int, **options: Any) -> Leg:
    return leg(source, "", amount, transfer_type=TransferType.FEE, **options)


def refund_leg(
    transfer_key: str, source: str, destination: str, amount: int, *, refundable: int
) -> Leg:
    terms = Terms(refund_of=identifier(f"transfer of {transfer_key}"), refundable=refundable)
    return leg(source, destination, amount, transfer_type=TransferType.REFUND, terms=terms)


def linked(*legs: Leg, key: str = "linked", merchant_id: str = MERCHANT) -> MoveLinked:
    return MoveLinked(identifier(f"linked of {key}"), identifier(key), merchant_id, list(legs))
