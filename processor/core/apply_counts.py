"""
Where what is counted besides balances changes: limits and their usage, holds, refunds.

The rules of `apply` hold here: what a decision says happens, and every step is checked.
"""

from __future__ import annotations

from msgspec.structs import replace

from processor.core.decisions import (
    HoldChanged,
    HoldPlaced,
    RefundCounted,
    UsageCounted,
    WalletLimitsSet,
    hold_placed,
)
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.limits import Usage
from processor.core.state import ShardState


def apply_limits_set(
    state: ShardState, decision: WalletLimitsSet, sequence: int, at_us: int
) -> None:
    wallet = state.wallets[decision.wallet_id]
    assert decision.minimum <= max(wallet.available, wallet.minimum), "minimum above available"
    wallet.minimum = decision.minimum
    wallet.limits = decision.limits
    # Counting begins with the first limits, and ends with the last.
    wallet.usage = None if decision.limits is None else wallet.usage or Usage(since_us=at_us)
    wallet.sequence = sequence


def apply_usage_counted(state: ShardState, decision: UsageCounted, sequence: int) -> None:
    wallet = state.wallets[decision.wallet_id]
    assert wallet.limits is not None, "usage of a wallet without limits"
    usage = wallet.usage or Usage()
    wallet.usage = replace(usage, debits=decision.debits, credits=decision.credits)
    wallet.sequence = sequence


def apply_refund_counted(state: ShardState, decision: RefundCounted, sequence: int) -> None:
    known = state.refunds.get(decision.transfer_id)
    # A replay may begin above the total that the tables have; what is known is never skipped.
    assert known is None or known.version + 1 == decision.version, "version is not dense"
    assert decision.refunded >= 0, "less than nothing went back"
    state.refunds[decision.transfer_id] = RefundTotal(
        decision.transfer_id, decision.wallet_id, decision.refunded, decision.version, sequence
    )


def apply_hold_placed(state: ShardState, decision: HoldPlaced, sequence: int, at_us: int) -> None:
    wallet = state.wallets[decision.source]
    assert decision.transfer_id not in state.holds, "a hold is placed twice"
    assert wallet.currency == decision.currency, "currencies differ"
    assert wallet.available - decision.amount >= wallet.minimum, "available below minimum"
    take_hold(state, hold_placed(decision, at_us), sequence)


def take_hold(state: ShardState, hold: Hold, sequence: int) -> None:
    """
    Put a hold into memory, and what it keeps aside in its wallet.
    """
    state.holds[hold.hold_id] = replace(hold, sequence=sequence)
    if hold.status == HoldStatus.OPEN:
        wallet = state.wallets[hold.wallet_id]
        wallet.held += hold.kept
        wallet.reserved += hold.kept
        wallet.holds_open += 1
        wallet.sequence = max(wallet.sequence, sequence)
        state.wake_at(hold.expires_at_us, hold.hold_id)


def apply_hold_changed(state: ShardState, decision: HoldChanged, sequence: int) -> None:
    hold = state.holds[decision.hold_id]
    after = replace(
        hold,
        captured=decision.captured,
        pending=decision.pending,
        status=decision.status,
        is_ending=decision.is_ending,
        expires_at_us=decision.expires_at_us,
        sequence=sequence,
    )
    assert after.captured >= hold.captured, "a capture is taken back"
    assert after.pending >= 0, "more came back than was on its way"
    assert after.captured + after.pending <= after.amount, "more captured than was held"
    assert hold.status in (HoldStatus.OPEN, after.status), "it had ended"
    assert after.expires_at_us >= hold.expires_at_us, "a hold got shorter"
    wallet = state.wallets[hold.wallet_id]
    wallet.held += after.kept - hold.kept
    wallet.reserved += after.kept - hold.kept
    if hold.status == HoldStatus.OPEN != after.status:
        wallet.holds_open -= 1
        assert wallet.holds_open >= 0, "more holds end than were open"
    wallet.sequence = sequence
    assert wallet.reserved >= wallet.held >= 0, "more released than was held"
    state.holds[decision.hold_id] = after
    if after.expires_at_us != hold.expires_at_us:
        state.wake_at(after.expires_at_us, after.hold_id)
