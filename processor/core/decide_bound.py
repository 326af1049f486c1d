"""
Movements that are bound to more than two wallets and an amount.

Captures, refunds, fees, conditions, all that is there up to an amount, and wallets with limits.
What is counted next to the movement is decided with it.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from processor.core.commands import MoveMoney, Terms, TransferType
from processor.core.counts import (
    Decided,
    capture_sent,
    captured_now,
    changed,
    credit_counted,
    debit_counted,
    freed_by_end,
    refund_counted,
)
from processor.core.decide_channel import ChannelFull, Elsewhere, reserve
from processor.core.decisions import (
    Decision,
    TransferPosted,
    TransferRejected,
    TransferReserved,
    asked_of,
)
from processor.core.hold import Hold, HoldStatus
from processor.core.judge import (
    Refused,
    first_of,
    is_reachable,
    owned_wallet,
    refusal_by_terms,
    refusal_of_credit,
    refusal_of_debit,
)
from processor.core.reject_reason import RejectReason
from processor.core.slots import slot_of_hold
from processor.core.state import ShardState
from processor.core.wallet import fees_wallet_id, world_wallet_id

_CAPTURE, _REFUND = TransferType.CAPTURE, TransferType.REFUND
_NO_TERMS = Terms()

BoundOutcome = Decided | TransferRejected | Elsewhere | ChannelFull


class _Asked(NamedTuple):
    """
    The command with its wallets and its amount filled in, and why it fails so far.
    """

    command: MoveMoney
    refused: Refused | None
    hold: Hold | None = None


def decide_bound(state: ShardState, command: MoveMoney, at_us: int) -> BoundOutcome:
    """
    Say what a movement with terms, or between wallets with limits, does; its key is new.
    """
    terms = command.terms or _NO_TERMS
    if terms.hold_id is not None and not _has_hold(state, terms.hold_id):
        return Elsewhere(state.slots.owner(slot_of_hold(terms.hold_id)))
    asked = _filled_in(state, command, terms, at_us)
    command = asked.command
    if command.transfer_type == _CAPTURE and asked.hold is None:
        assert asked.refused is not None, "no hold, and no word of it"
        return TransferRejected(*asked_of(command), *asked.refused, command.terms)
    own_id = _own_id(command)
    if own_id not in state.wallets and not state.has_slot_of(own_id):
        return Elsewhere(state.owner_of(own_id))
    is_local = command.destination in state.wallets or not _may_be_elsewhere(state, command)
    refused = first_of(asked.refused, _refused(state, command, terms, at_us, is_local=is_local))
    if refused is not None:
        return TransferRejected(*asked_of(command), *refused, command.terms)
    if is_local:
        return _posted(state, command, asked.hold, at_us)
    return _reserved(state, command, asked.hold, at_us)


def _has_hold(state: ShardState, hold_id: bytes) -> bool:
    return hold_id in state.holds or state.slots.owner(slot_of_hold(hold_id)) == state.shard_id


# --- What is asked for --------------------------------------------------------------------------


def _filled_in(state: ShardState, command: MoveMoney, terms: Terms, at_us: int) -> _Asked:
    match command.transfer_type:
        case TransferType.CAPTURE:
            return _capture(state, command, terms, at_us)
        case TransferType.REFUND:
            return _refund(state, command, terms)
        case TransferType.DEPOSIT:
            world = world_wallet_id(state.shard_id, command.currency)
            return _Asked(replace(command, source=world), None)
        case TransferType.WITHDRAWAL:
            world = world_wallet_id(state.shard_id, command.currency)
            return _up_to(state, replace(command, destination=world), terms)
        case TransferType.FEE:
            fees = fees_wallet_id(state.shard_id, command.merchant_id, command.currency)
            return _Asked(replace(command, destination=fees), None)
        case _:
            return _up_to(state, command, terms)


def _up_to(state: ShardState, command: MoveMoney, terms: Terms) -> _Asked:
    """
    Fill in as much as is available, where that was asked for.
    """
    source = owned_wallet(state.wallets, command.merchant_id, command.source)
    if terms.amount_max is None or source is None:
        return _Asked(command, None)  # What is in a foreign wallet, a refusal must not tell.
    there_is = min(terms.amount_max, source.available - source.minimum)
    if there_is < 1:
        return _Asked(command, (RejectReason.INSUFFICIENT_FUNDS, 1 - there_is))
    return _Asked(replace(command, amount=there_is), None)


def _capture(state: ShardState, command: MoveMoney, terms: Terms, at_us: int) -> _Asked:
    assert terms.hold_id is not None, "a capture names its hold"
    hold = state.holds.get(terms.hold_id)
    refused = refusal_of_hold(hold, command.merchant_id, at_us)
    if hold is None or hold.merchant_id != command.merchant_id:
        return _Asked(command, refused)
    amount = hold.kept if terms.amount_max is not None else command.amount
    if refused is None and (amount > hold.kept or amount < 1):
        refused = (RejectReason.CAPTURE_EXCEEDS_HOLD, max(1, amount - hold.kept))
    filled = replace(
        command,
        source=hold.wallet_id,
        destination=command.destination or hold.destination,
        currency=command.currency or hold.currency,
        amount=amount or hold.amount,  # All of what there is nothing left of.
    )
    return _Asked(filled, refused, hold)


def refusal_of_hold(hold: Hold | None, merchant_id: str, at_us: int) -> Refused | None:
    """
    Say why nothing can be done with a hold any more, or not now.
    """
    if hold is None or hold.merchant_id != merchant_id:
        return RejectReason.HOLD_UNKNOWN, 0
    if hold.status == HoldStatus.VOIDED:
        return RejectReason.HOLD_VOIDED, 0
    if hold.status == HoldStatus.CAPTURED:
        return RejectReason.HOLD_CAPTURED, 0
    if hold.status == HoldStatus.EXPIRED or at_us >= hold.expires_at_us:
        return RejectReason.HOLD_EXPIRED, 0
    return (RejectReason.HOLD_CAPTURE_PENDING, 0) if hold.is_ending else None


def _refund(state: ShardState, command: MoveMoney, terms: Terms) -> _Asked:
    assert terms.refund_of is not None, "a refund names what it takes back"
    total = state.refunds.get(terms.refund_of)
    if total is None:
        return _Asked(command, (RejectReason.REFUND_TOTAL_UNKNOWN, 0))  # It may be anything.
    left = terms.refundable - total.refunded
    amount = left if terms.amount_max is not None else command.amount
    if amount > left or amount < 1:
        return _Asked(command, (RejectReason.REFUND_EXCEEDS_PAID, max(0, amount - left)))
    return _Asked(replace(command, amount=amount), None)


# --- Whether it may be --------------------------------------------------------------------------


def _own_id(command: MoveMoney) -> str:
    is_deposit = command.transfer_type == TransferType.DEPOSIT
    return command.destination if is_deposit else command.source


def _may_be_elsewhere(state: ShardState, command: MoveMoney) -> bool:
    return (
        command.transfer_type in (TransferType.TRANSFER, _CAPTURE, _REFUND)
        and is_reachable(command.destination)
        and not state.has_slot_of(command.destination)
    )


def _refused(
    state: ShardState, command: MoveMoney, terms: Terms, at_us: int, *, is_local: bool
) -> Refused | None:
    kind, amount, currency = command.transfer_type, command.amount, command.currency
    if command.source == command.destination:
        return RejectReason.WALLETS_IDENTICAL, 0
    is_deposit = kind == TransferType.DEPOSIT
    source = state.wallets.get(command.source)
    owner = command.merchant_id
    if is_deposit and source is not None:
        owner = source.merchant_id
    destination = state.wallets.get(command.destination)
    debit = refusal_of_debit(source, owner, currency, amount, transfer_type=kind, at_us=at_us)
    credit = None
    if is_local:
        credit = refusal_of_credit(destination, currency, amount, transfer_type=kind, at_us=at_us)
    if is_deposit:
        debit = _deposit_reason(debit)
        if destination is not None and destination.merchant_id != command.merchant_id:
            credit = (RejectReason.DESTINATION_UNKNOWN, 0)
    elif kind == TransferType.WITHDRAWAL and destination is None:
        credit = (RejectReason.CURRENCY_MISMATCH, 0)
    own = destination if is_deposit else source
    by_terms = refusal_by_terms(own, terms) if own is not None else None
    return first_of(debit, credit, by_terms)


def _deposit_reason(refused: Refused | None) -> Refused | None:
    """
    Tell the customer what the world's side means: it is never short, it can only run out of
    numbers; and where there is none, no wallet is in this currency either.
    """
    if refused is None:
        return None
    reason, short_by = refused
    if reason == RejectReason.INSUFFICIENT_FUNDS:
        return RejectReason.BALANCE_OUT_OF_RANGE, short_by
    return RejectReason.CURRENCY_MISMATCH, 0


# --- What it does -------------------------------------------------------------------------------


def _posted(state: ShardState, command: MoveMoney, hold: Hold | None, at_us: int) -> Decided:
    source = state.wallets[command.source]
    destination = state.wallets[command.destination]
    kind, amount = command.transfer_type, command.amount
    posted = TransferPosted(
        *asked_of(command),
        source.version + 1,
        source.posted - amount,
        destination.version + 1,
        destination.posted + amount,
        command.terms,
    )
    terms = command.terms or _NO_TERMS
    before: list[Decision] = []
    if hold is not None:
        captured = captured_now(hold, amount, is_final=terms.is_final)
        before = [changed(captured), *freed_by_end(state, hold, captured)]
    return Decided(
        posted,
        [
            *before,
            posted,
            *debit_counted(source, kind, at_us, amount),
            *credit_counted(destination, kind, at_us, amount),
            *_refund_counted(state, command),
        ],
    )


def _reserved(state: ShardState, command: MoveMoney, hold: Hold | None, at_us: int) -> BoundOutcome:
    reserved = reserve(state, command)
    if not isinstance(reserved, TransferReserved):
        return reserved
    terms = command.terms or _NO_TERMS
    before: list[Decision] = []
    if hold is not None:
        before = [changed(capture_sent(hold, command.amount, is_final=terms.is_final))]
    counted = debit_counted(
        state.wallets[command.source], command.transfer_type, at_us, command.amount
    )
    return Decided(reserved, [*before, reserved, *counted, *_refund_counted(state, command)])


def _refund_counted(state: ShardState, command: MoveMoney) -> list[Decision]:
    if command.terms is None or command.terms.refund_of is None:
        return []
    return [refund_counted(state, command.terms.refund_of, command.source, command.amount)]
