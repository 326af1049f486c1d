"""
What linked moves leave in their wallets.
"""

from __future__ import annotations

from collections.abc import Iterable

from processor.core.decisions import Posting
from processor.core.linked import Move
from processor.core.state import ShardState


def postings_of(state: ShardState, moves: Iterable[Move]) -> list[Posting]:
    """
    Say what each move leaves in its two wallets, one after the other.
    """
    ends: dict[str, tuple[int, int]] = {}
    postings = []
    for move in moves:
        for name in (move.source, move.destination):
            if name not in ends:
                wallet = state.wallets[name]
                ends[name] = (wallet.version, wallet.posted)
        version, posted = ends[move.source]
        ends[move.source] = (version + 1, posted - move.amount)
        version, posted = ends[move.destination]
        ends[move.destination] = (version + 1, posted + move.amount)
        postings.append(
            Posting(
                move.leg,
                move.source,
                *ends[move.source],
                move.destination,
                *ends[move.destination],
            )
        )
    return postings
