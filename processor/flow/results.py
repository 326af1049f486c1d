"""
How what was decided is told to who asked.
"""

from __future__ import annotations

from processor.core.commands import ReadHold, TransferType
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
from processor.core.hold import Hold
from processor.core.reject_reason import RejectReason
from processor.core.slots import slot_of_hold
from processor.core.state import Remembered, ShardState
from processor.flow import frames

_DEPOSIT = TransferType.DEPOSIT


def moved(
    decision: TransferDecision, sequence: int, at_us: int, *, repeated: bool
) -> frames.Outcome | frames.Pending:
    """
    Tell what *decision* did, with the balance of the wallet the caller owns.
    """
    match decision:
        case TransferPosted():
            return posted(decision, sequence, at_us, repeated=repeated)
        case TransferReserved():
            filled_in = _filled_in(decision)
            return frames.Pending(decision.transfer_id, sequence, at_us, repeated, filled_in)
        case TransferRejected():
            return _rejected(decision, sequence, at_us, repeated=repeated)
        case LinkedBegun():
            return frames.Pending(decision.transfer_id, sequence, at_us, repeated)
        case LinkedPosted():
            return _linked_moved(decision, sequence, at_us, repeated=repeated)
        case LinkedRejected(transfer_id, _, _, _, leg, reason, short_by):
            return frames.LinkedRefused(
                transfer_id, sequence, at_us, repeated, leg, reason, short_by
            )
        case _:
            raise AssertionError(f"{type(decision).__name__} is told as a hold")


def posted(decision: TransferPosted, sequence: int, at_us: int, *, repeated: bool) -> frames.Posted:
    """
    Tell of money that moved; most of all results are of this kind.
    """
    deposit = decision.transfer_type == _DEPOSIT
    return frames.Posted(
        decision.transfer_id,
        sequence,
        at_us,
        decision.destination_balance if deposit else decision.source_balance,
        decision.destination_version if deposit else decision.source_version,
        repeated,
        None if decision.terms is None else _filled_in(decision),
    )


def _rejected(
    decision: TransferRejected, sequence: int, at_us: int, *, repeated: bool
) -> frames.Rejected:
    return frames.Rejected(
        decision.transfer_id,
        sequence,
        at_us,
        decision.reason,
        repeated,
        decision.short_by,
        _filled_in(decision),
    )


def _filled_in(
    decision: TransferPosted | TransferRejected | TransferReserved,
) -> frames.FilledIn | None:
    if decision.terms is None:
        return None
    return frames.FilledIn(
        decision.source, decision.destination, decision.currency, decision.amount
    )


def _linked_moved(
    decision: LinkedPosted, sequence: int, at_us: int, *, repeated: bool
) -> frames.LinkedMoved:
    sources = [
        frames.LegSource(posting.leg, posting.source_balance, posting.source_version)
        for posting in decision.postings
        if posting.source == decision.legs[posting.leg].source
    ]
    return frames.LinkedMoved(decision.transfer_id, sequence, at_us, repeated, sources)


def hold_found(state: ShardState, command: ReadHold) -> frames.Result:
    """
    Tell a hold as it is.
    """
    hold = state.holds.get(command.hold_id)
    owner = state.slots.owner(slot_of_hold(command.hold_id))
    if hold is None and owner != state.shard_id:
        return frames.Moved(owner)
    if hold is None or hold.merchant_id != command.merchant_id:
        return frames.WalletRefused(RejectReason.HOLD_UNKNOWN)
    return _hold_told(state, hold, hold.hold_id, hold.sequence, hold.placed_at_us, repeated=False)


def told_hold(
    state: ShardState, remembered: Remembered, *, repeated: bool
) -> frames.HoldFound | frames.Rejected | frames.Moved:
    """
    Tell what came of a command on a hold: the hold as it is now, or why not.
    """
    decision, sequence, at_us = remembered
    if isinstance(decision, TransferRejected):
        return _rejected(decision, sequence, at_us, repeated=repeated)
    assert isinstance(decision, HoldPlaced | HoldVoided | HoldExtended), "it is of no hold"
    hold_id = decision.transfer_id if isinstance(decision, HoldPlaced) else decision.hold_id
    hold = state.holds.get(hold_id)
    if hold is None:
        # It went with its slot: whoever has it now knows the key, too.
        owner = state.slots.owner(slot_of_hold(hold_id))
        assert owner != state.shard_id, "a hold of this shard is not in memory"
        return frames.Moved(owner)
    return _hold_told(state, hold, decision.transfer_id, sequence, at_us, repeated=repeated)


def _hold_told(
    state: ShardState,
    hold: Hold,
    transfer_id: bytes,
    sequence: int,
    at_us: int,
    *,
    repeated: bool,
) -> frames.HoldFound:
    wallet = state.wallets[hold.wallet_id]
    return frames.HoldFound(
        hold,
        transfer_id,
        sequence,
        at_us,
        repeated,
        wallet.posted,
        wallet.available,
        wallet.held,
        wallet.version,
    )


def wallet_found(state: ShardState, wallet_id: str, *, changed: bool) -> frames.WalletFound:
    wallet = state.wallets[wallet_id]
    return frames.WalletFound(
        wallet_id,
        wallet.currency,
        wallet.status,
        wallet.minimum,
        wallet.posted,
        wallet.version,
        wallet.sequence,
        changed,
        wallet.available,
        wallet.held,
        wallet.limits,
        wallet.usage,
    )
