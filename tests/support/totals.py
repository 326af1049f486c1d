"""
What the tables say of totals of refunds where nothing has gone back so far.
"""

from __future__ import annotations

from processor.core.counts_needed import RefundsNeeded
from processor.core.hold import RefundTotal
from processor.core.state import ShardState


def know_totals(state: ShardState, needed: RefundsNeeded) -> None:
    """
    Load what was looked up and never counted, as the shard does before it decides.
    """
    for transfer_id in (*needed.own, *needed.everywhere):
        state.load_refund(RefundTotal(transfer_id, "", 0, 0))
