"""
What is counted next to a linked transfer: usage of limits, and refunds; see `counts`.
"""

from __future__ import annotations

from collections.abc import Iterable

from processor.core.counts import refund_counted
from processor.core.decisions import Decision, LegPart, UsageCounted
from processor.core.judge_linked import limited_credits, limited_debits
from processor.core.limits import Usage
from processor.core.linked import Move, nets_of
from processor.core.state import ShardState


def counts_of_moves(
    state: ShardState,
    moves: list[Move],
    refunds: dict[bytes, tuple[str, int]],
    at_us: int,
    *,
    is_given_back: bool = False,
) -> list[Decision]:
    """
    Count what *moves* use of their wallets' limits, and what of it takes back something.
    """
    found: list[Decision] = []
    for wallet_id in nets_of(moves):
        wallet = state.wallets.get(wallet_id)
        if wallet is None or wallet.limits is None:
            continue
        usage = wallet.usage or Usage()
        taken, brought = usage.debits, usage.credits
        out, into = limited_debits(wallet_id, moves), limited_credits(wallet_id, moves)
        out_amount = sum(move.amount for move in out)
        in_amount = sum(move.amount for move in into)
        if is_given_back:
            since_us = usage.since_us
            taken = taken.given_back(at_us, out_amount, len(out), since_us=since_us)
            brought = brought.given_back(at_us, in_amount, len(into), since_us=since_us)
        else:
            taken = taken.counted(at_us, out_amount, len(out)) if out else taken
            brought = brought.counted(at_us, in_amount, len(into)) if into else brought
        if (taken, brought) != (usage.debits, usage.credits):
            found.append(UsageCounted(wallet_id, taken, brought))
    for refund_of, (wallet_id, amount) in refunds.items():
        signed = -amount if is_given_back else amount
        found.append(refund_counted(state, refund_of, wallet_id, signed))
    return found


def refunds_in(parts: Iterable[LegPart]) -> dict[bytes, tuple[str, int]]:
    """
    Sum what the parts' debits take back, by transfer, with the wallet that pays it.
    """
    refunds: dict[bytes, tuple[str, int]] = {}
    for part in parts:
        terms = part.asked.terms
        if part.is_debit and terms is not None and terms.refund_of is not None:
            _, before = refunds.get(terms.refund_of, ("", 0))
            refunds[terms.refund_of] = (part.asked.source, before + part.asked.amount)
    return refunds
