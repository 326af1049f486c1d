"""
Linked transfers at the shards that do not decide: voting on their parts, and doing what is decided.

Rule: a participant that has voted yes never decides alone and never times out.
"""

from __future__ import annotations

from processor.core.channel import PrepareEntry, VerdictEntry
from processor.core.counts_linked import counts_of_moves, refunds_in
from processor.core.decisions import (
    Decision,
    EntryElsewhere,
    EntryRefused,
    LinkedPrepared,
    VerdictTaken,
)
from processor.core.judge_linked import refused_leg
from processor.core.linked import moves_of_parts, moves_prepared
from processor.core.postings import postings_of
from processor.core.slots import NOWHERE
from processor.core.state import ShardState


def decide_prepare(
    state: ShardState, peer: int, entry: PrepareEntry, chain: bytes, at_us: int
) -> list[Decision]:
    """
    Vote on the parts that *peer* asks for: yes sets them aside.
    """
    for part in entry.parts:
        sides = ((part.is_debit, part.asked.source), (part.is_credit, part.asked.destination))
        for side, (is_here, name) in enumerate(sides):
            if is_here and name and name not in state.wallets and not state.has_slot_of(name):
                owner = state.owner_of(name)
                owner = state.shard_id if owner == NOWHERE else owner
                return [EntryElsewhere(peer, entry.number, chain, owner, 2 * part.leg + side)]
    moves = moves_of_parts(state.shard_id, peer, entry.merchant_id, entry.parts)
    refused = refused_leg(state, entry.merchant_id, entry.parts, moves, at_us)
    if refused is not None:
        leg, reason, short_by = refused
        return [EntryRefused(peer, entry.number, chain, reason, short_by, leg)]
    prepared = LinkedPrepared(
        peer, entry.number, chain, entry.linked_id, entry.merchant_id, entry.parts
    )
    return [prepared, *counts_of_moves(state, moves, refunds_in(entry.parts), at_us)]


def decide_verdict(
    state: ShardState, peer: int, entry: VerdictEntry, chain: bytes
) -> list[Decision]:
    """
    Do what *peer* has decided. That nothing moves may also be said of what was never prepared.
    """
    known = state.prepared.get(entry.linked_id)
    if entry.is_posted:
        assert known is not None, "what is posted was prepared"
        postings = postings_of(state, moves_prepared(state.shard_id, known[0]))
        return [VerdictTaken(peer, entry.number, chain, entry.linked_id, True, postings)]
    taken = VerdictTaken(peer, entry.number, chain, entry.linked_id, False, [])
    if known is None:
        return [taken]
    prepared, _, at_us = known
    moves, refunds = moves_prepared(state.shard_id, prepared), refunds_in(prepared.parts)
    return [taken, *counts_of_moves(state, moves, refunds, at_us, is_given_back=True)]
