"""
What is counted next to a movement: usage of limits, captures of a hold, refunds of a transfer.

Rule 1: each count is told as it is afterwards, so that a reader needs no state and nothing drifts.
Rule 2: a hold lets go of what a capture takes before the capture moves it, in the same record, so
        that money is never set aside twice nor free in between.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from processor.core.commands import TransferType
from processor.core.decisions import (
    Decision,
    HoldChanged,
    RefundCounted,
    SettlementDecision,
    TransferDecision,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    UsageCounted,
)
from processor.core.hold import Hold, HoldStatus
from processor.core.judge import CREDITS_LIMITED, DEBITS_LIMITED
from processor.core.limits import Usage
from processor.core.state import ShardState
from processor.core.wallet import Wallet


class Decided(msgspec.Struct, frozen=True, gc=False):
    """
    Decisions that belong together, in the order of the record; `outcome` is the one among them
    that the caller is told.
    """

    outcome: TransferDecision
    decisions: list[Decision]


def debit_counted(
    wallet: Wallet, transfer_type: TransferType, at_us: int, amount: int, count: int = 1
) -> list[Decision]:
    if wallet.limits is None or transfer_type not in DEBITS_LIMITED:
        return []
    usage = wallet.usage or Usage()
    debits = usage.debits.counted(at_us, amount, count)
    return [UsageCounted(wallet.wallet_id, debits, usage.credits)]


def credit_counted(
    wallet: Wallet, transfer_type: TransferType, at_us: int, amount: int, count: int = 1
) -> list[Decision]:
    if wallet.limits is None or transfer_type not in CREDITS_LIMITED:
        return []
    usage = wallet.usage or Usage()
    brought = usage.credits.counted(at_us, amount, count)
    return [UsageCounted(wallet.wallet_id, usage.debits, brought)]


def debit_given_back(
    wallet: Wallet, transfer_type: TransferType, counted_at_us: int, amount: int, count: int = 1
) -> list[Decision]:
    """
    Give back what was counted for a debit that came to nothing, or to less.
    """
    if wallet.limits is None or wallet.usage is None or transfer_type not in DEBITS_LIMITED:
        return []
    usage = wallet.usage
    debits = usage.debits.given_back(counted_at_us, amount, count, since_us=usage.since_us)
    return [UsageCounted(wallet.wallet_id, debits, usage.credits)]


# --- Refunds ----------------------------------------------------------------------------------


def refund_counted(state: ShardState, refund_of: bytes, wallet_id: str, amount: int) -> Decision:
    """
    Count *amount* more (or, below zero, less) as gone back from a transfer; its total is known.
    """
    known = state.refunds.get(refund_of)
    assert known is not None, "a refund is counted whose total is not known"
    return RefundCounted(refund_of, wallet_id, known.refunded + amount, known.version + 1)


# --- Holds ------------------------------------------------------------------------------------


def changed(hold: Hold) -> HoldChanged:
    """
    Tell a hold as it is to be from here on.
    """
    return HoldChanged(
        hold.hold_id, hold.captured, hold.pending, hold.status, hold.is_ending, hold.expires_at_us
    )


def captured_now(hold: Hold, amount: int, *, is_final: bool) -> Hold:
    """
    Return the hold after a capture that moved its money at once.
    """
    return _ended_if_used(replace(hold, captured=hold.captured + amount), is_final=is_final)


def capture_sent(hold: Hold, amount: int, *, is_final: bool) -> Hold:
    """
    Return the hold while a capture is on its way.
    """
    return replace(hold, pending=hold.pending + amount, is_ending=hold.is_ending or is_final)


def capture_settled(hold: Hold, amount: int, *, is_final: bool) -> Hold:
    """
    Return the hold after a capture has arrived.
    """
    arrived = replace(hold, pending=hold.pending - amount, captured=hold.captured + amount)
    if is_final:
        arrived = replace(arrived, is_ending=False)
    return _ended_if_used(arrived, is_final=is_final)


def capture_returned(hold: Hold, amount: int, *, is_final: bool) -> Hold:
    """
    Return the hold after a capture was refused: it keeps the money again, unless it has ended.
    """
    back = replace(hold, pending=hold.pending - amount)
    return replace(back, is_ending=False) if is_final else back


def _ended_if_used(hold: Hold, *, is_final: bool) -> Hold:
    is_used = is_final or hold.captured == hold.amount
    if hold.status == HoldStatus.OPEN and is_used:
        return replace(hold, status=HoldStatus.CAPTURED)
    return hold


def ending(state: ShardState, hold: Hold, status: HoldStatus) -> list[Decision]:
    """
    End an open hold; what it keeps is free, and is given back to the limits of its wallet.
    """
    ended = replace(hold, status=status)
    return [changed(ended), *freed_by_end(state, hold, ended)]


def freed_by_end(state: ShardState, before: Hold, after: Hold) -> list[Decision]:
    """
    Give back to the limits what *before* keeps and *after* has not captured: it came to nothing.
    """
    if before.status != HoldStatus.OPEN or after.status == HoldStatus.OPEN:
        return []
    unused = after.amount - after.captured - after.pending
    count = 0 if after.captured or after.pending else 1
    if unused == 0:
        return []
    wallet = state.wallets[after.wallet_id]
    return debit_given_back(wallet, TransferType.HOLD, after.placed_at_us, unused, count)


# --- Money that was on its way ------------------------------------------------------------------


def counts_when_settled(state: ShardState, pending: TransferReserved) -> list[Decision]:
    """
    Say what is counted when *pending* has arrived.
    """
    terms = pending.terms
    if terms is None or terms.hold_id is None:
        return []
    hold = state.holds[terms.hold_id]
    settled = capture_settled(hold, pending.amount, is_final=terms.is_final)
    return [changed(settled), *freed_by_end(state, hold, settled)]


def counts_when_refused(
    state: ShardState, pending: TransferReserved, reserved_at_us: int
) -> list[Decision]:
    """
    Say what is counted when *pending* was refused; it was set aside at *reserved_at_us*.
    """
    counted_at_us = pending.counted_at_us or reserved_at_us
    source = state.wallets[pending.source]
    kind, amount, terms = pending.transfer_type, pending.amount, pending.terms
    found = debit_given_back(source, kind, counted_at_us, amount)
    if terms is not None and terms.refund_of is not None:
        found.append(refund_counted(state, terms.refund_of, pending.source, -amount))
    if terms is not None and terms.hold_id is not None:
        hold = state.holds[terms.hold_id]
        found.append(changed(capture_returned(hold, amount, is_final=terms.is_final)))
        if hold.status != HoldStatus.OPEN:
            # The hold has ended meanwhile: what comes back to it was counted when it was placed.
            count = 0 if hold.captured or hold.pending > amount else 1
            found += debit_given_back(source, TransferType.HOLD, hold.placed_at_us, amount, count)
    return found


def counts_of_settlement(
    state: ShardState,
    pending: TransferReserved,
    decision: SettlementDecision,
    *,
    reserved_at_us: int,
) -> list[Decision]:
    """
    Say what is counted with the settlement of *pending*; when it was called back, nothing is.
    """
    if isinstance(decision, TransferSettled):
        return counts_when_settled(state, pending)
    if isinstance(decision, TransferReleased):
        return counts_when_refused(state, pending, reserved_at_us)
    return []
