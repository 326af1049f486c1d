"""
Decisions on holds: placing one, giving it up, letting it last longer, its time being over.

A hold is a debit that is judged and counted when it is placed. Capturing is a movement of money,
see `decide_bound`.
"""

from __future__ import annotations

from msgspec.structs import replace

from processor.core.commands import ExtendHold, PlaceHold, Terms, TransferType, VoidHold
from processor.core.counts import Decided, changed, debit_counted, ending
from processor.core.decide_bound import refusal_of_hold
from processor.core.decide_channel import Elsewhere
from processor.core.decisions import (
    Decision,
    HoldExtended,
    HoldPlaced,
    HoldVoided,
    TransferRejected,
)
from processor.core.hold import HOLDS_OPEN_MAX, Hold, HoldStatus
from processor.core.judge import Refused, first_of, refusal_by_terms, refusal_of_debit
from processor.core.reject_reason import RejectReason
from processor.core.repeats import KeyReused, Repeated, repeat
from processor.core.slots import slot_of, slot_of_hold
from processor.core.state import ShardState
from processor.core.wallet import Wallet

SECOND_US = 1_000_000

HoldOutcome = Decided | Repeated | KeyReused | Elsewhere


def decide_place(state: ShardState, command: PlaceHold, at_us: int) -> HoldOutcome:
    """
    Say whether money is set aside under a new hold.
    """
    remembered = state.keys.find(command.key)
    if remembered is not None:
        return repeat(remembered, command)
    source = state.wallets.get(command.source)
    if source is None and not state.has_slot_of(command.source):
        return Elsewhere(state.owner_of(command.source))
    if slot_of_hold(command.hold_id) != slot_of(command.source):
        # Under this id nobody would find the hold again, and it would not go with its wallet.
        return _alone(_not_placed(command, (RejectReason.HOLD_UNKNOWN, 0)))
    debit = refusal_of_debit(
        source,
        command.merchant_id,
        command.currency,
        command.amount,
        transfer_type=TransferType.HOLD,
        at_us=at_us,
    )
    terms = command.terms or Terms()
    refused = debit
    if source is not None:
        refused = first_of(debit, refusal_by_terms(source, terms), _refusal_of_one_more(source))
    if refused is not None or source is None:
        assert refused is not None, "an unknown wallet is refused"
        return _alone(_not_placed(command, refused))
    placed = HoldPlaced(
        command.hold_id,
        command.key,
        command.merchant_id,
        command.source,
        command.destination,
        command.currency,
        command.amount,
        command.reference,
        command.metadata,
        command.lifetime_s,
        at_us + command.lifetime_s * SECOND_US,
        command.terms,
    )
    counted = debit_counted(source, TransferType.HOLD, at_us, command.amount)
    return Decided(placed, [placed, *counted])


def _refusal_of_one_more(source: Wallet) -> Refused | None:
    over = source.holds_open + 1 - HOLDS_OPEN_MAX
    return (RejectReason.HOLDS_TOO_MANY, over) if over > 0 else None


def _not_placed(command: PlaceHold, refused: Refused) -> TransferRejected:
    return TransferRejected(
        TransferType.HOLD,
        command.hold_id,
        command.key,
        command.merchant_id,
        command.source,
        command.destination,
        command.currency,
        command.amount,
        command.reference,
        command.metadata,
        *refused,
        replace(command.terms or Terms(), lifetime_s=command.lifetime_s),
    )


def decide_void(state: ShardState, command: VoidHold, at_us: int) -> HoldOutcome:
    """
    Say whether what a hold keeps is its wallet's again.
    """
    hold = _hold_asked(state, command, at_us)
    if not isinstance(hold, Hold):
        return hold
    voided = HoldVoided(
        command.transfer_id,
        command.key,
        command.merchant_id,
        hold.wallet_id,
        hold.hold_id,
        hold.currency,
        hold.kept,
    )
    return Decided(voided, [voided, *ending(state, hold, HoldStatus.VOIDED)])


def decide_extend(state: ShardState, command: ExtendHold, at_us: int) -> HoldOutcome:
    """
    Say whether a hold lasts longer; it never gets shorter.
    """
    hold = _hold_asked(state, command, at_us)
    if not isinstance(hold, Hold):
        return hold
    expires_at_us = max(hold.expires_at_us, at_us + command.lifetime_s * SECOND_US)
    extended = HoldExtended(
        command.transfer_id,
        command.key,
        command.merchant_id,
        hold.wallet_id,
        hold.hold_id,
        hold.currency,
        hold.kept,
        command.lifetime_s,
        expires_at_us,
    )
    return Decided(extended, [extended, changed(replace(hold, expires_at_us=expires_at_us))])


def _hold_asked(
    state: ShardState, command: VoidHold | ExtendHold, at_us: int
) -> Hold | HoldOutcome:
    remembered = state.keys.find(command.key)
    if remembered is not None:
        return repeat(remembered, command)
    slot = slot_of_hold(command.hold_id)
    hold = state.holds.get(command.hold_id)
    if hold is None and state.slots.owner(slot) != state.shard_id:
        return Elsewhere(state.slots.owner(slot))
    refused = refusal_of_hold(hold, command.merchant_id, at_us)
    if refused is not None or hold is None:
        assert refused is not None, "an unknown hold is refused"
        known = hold if hold is not None and hold.merchant_id == command.merchant_id else None
        return _alone(_not_done(command, known, refused))
    return hold


def _not_done(
    command: VoidHold | ExtendHold, hold: Hold | None, refused: Refused
) -> TransferRejected:
    is_void = isinstance(command, VoidHold)
    lifetime_s = 0 if isinstance(command, VoidHold) else command.lifetime_s
    return TransferRejected(
        TransferType.VOID if is_void else TransferType.EXTEND,
        command.transfer_id,
        command.key,
        command.merchant_id,
        hold.wallet_id if hold is not None else "",
        "",
        hold.currency if hold is not None else "",
        hold.kept if hold is not None else 0,
        None,
        None,
        *refused,
        Terms(hold_id=command.hold_id, lifetime_s=lifetime_s),
    )


def decide_expiry(state: ShardState, hold: Hold, at_us: int) -> list[Decision]:
    """
    Say whether a hold's time is over.
    """
    if hold.status != HoldStatus.OPEN or at_us < hold.expires_at_us:
        return []
    return ending(state, hold, HoldStatus.EXPIRED)


def _alone(decision: TransferRejected) -> Decided:
    return Decided(decision, [decision])
