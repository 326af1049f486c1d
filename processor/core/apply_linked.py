"""
Where linked transfers change balances, and what is set aside for them.

The rules of `apply` hold here: what a decision says happens, and every step is checked.
"""

from __future__ import annotations

from collections.abc import Iterable

from processor.core.amounts import BALANCE_MAX
from processor.core.decisions import (
    Decision,
    LinkedBegun,
    LinkedDone,
    LinkedPosted,
    LinkedPrepared,
    LinkedRecalled,
    LinkedRejected,
    Posting,
    PrepareSent,
    VerdictDelivered,
    VerdictSent,
    VerdictTaken,
)
from processor.core.linked import Move, moves_begun, moves_prepared, nets_of, peers_of
from processor.core.state import OpenLinked, ShardState

LINKED_DECISIONS = (LinkedBegun, LinkedPosted, LinkedRejected, LinkedRecalled, LinkedDone)


def apply_linked(state: ShardState, decision: Decision, sequence: int, at_us: int) -> None:
    """
    Fold in a step of a linked transfer; its channel has moved already.
    """
    match decision:
        case LinkedBegun():
            begin(state, decision, sequence, at_us)
            set_aside(state, moves_begun(state.shard_id, decision), sequence)
            state.keys.remember(decision, sequence, at_us)
        case LinkedPosted():
            _apply_posted(state, decision, sequence, at_us)
        case LinkedRejected(transfer_id=linked_id):
            _give_up(state, linked_id, sequence)
            state.keys.remember(decision, sequence, at_us)
        case LinkedRecalled(linked_id):
            begun = state.linked[linked_id].begun
            _give_up(state, linked_id, sequence)
            state.keys.forget(begun.key)
        case LinkedDone(linked_id):
            linked = state.linked.pop(linked_id)
            assert linked.posted is not None, "it is not posted"
            assert not linked.waiting, "it is not done"
            state.keys.remember(linked.posted, sequence, at_us)
        case LinkedPrepared(linked_id=linked_id):
            assert linked_id not in state.prepared, "prepared twice"
            state.prepared[linked_id] = (decision, sequence, at_us)
            set_aside(state, moves_prepared(state.shard_id, decision), sequence)
        case VerdictTaken():
            _apply_verdict(state, decision, sequence)
        case VerdictDelivered(peer, _, linked_id):
            open_linked = state.linked.get(linked_id)
            if open_linked is not None and open_linked.posted is not None:
                open_linked.waiting.discard(peer)
        case PrepareSent() | VerdictSent():
            pass
        case _:
            raise AssertionError(f"{type(decision).__name__} is no step of a linked transfer")


def begin(state: ShardState, begun: LinkedBegun, sequence: int, at_us: int) -> OpenLinked:
    """
    Open a linked transfer; every peer that has a part is to vote.
    """
    linked = OpenLinked(begun, sequence, at_us)
    linked.waiting = set(peers_of(state.shard_id, begun.homes))
    assert linked.waiting, "nobody else has a part"
    assert begun.transfer_id not in state.linked, "begun twice"
    state.linked[begun.transfer_id] = linked
    state.wake_at(begun.deadline_us, begun.transfer_id)
    return linked


def set_aside(state: ShardState, moves: Iterable[Move], sequence: int, *, sign: int = 1) -> None:
    """
    Set aside what *moves* need and may bring, or (-1) let go of it.
    """
    for wallet_id, net in nets_of(moves).items():
        wallet = state.wallets[wallet_id]
        wallet.reserved += sign * net.reserved
        wallet.incoming += sign * net.brought
        wallet.sequence = max(wallet.sequence, sequence)
        assert wallet.reserved >= wallet.held, "let go of more than was set aside"
        assert wallet.incoming >= 0, "let go of more than may come"
        if sign > 0:
            assert not net.reserved or wallet.available >= wallet.minimum, "below minimum"
            assert wallet.posted + wallet.incoming <= BALANCE_MAX, "balance out of range"


def _apply_posted(state: ShardState, decision: LinkedPosted, sequence: int, at_us: int) -> None:
    linked = state.linked.get(decision.transfer_id)
    assert decision.is_open == (linked is not None), "posted to nobody, or at once"
    if linked is None:
        state.keys.remember(decision, sequence, at_us)
    else:
        assert linked.posted is None, "posted twice"
        assert not linked.waiting, "posted without a vote"
        set_aside(state, moves_begun(state.shard_id, linked.begun), sequence, sign=-1)
        linked.posted, linked.sequence, linked.at_us = decision, sequence, at_us
        linked.waiting = set(peers_of(state.shard_id, linked.begun.homes))
    amounts = [decision.legs[posting.leg].amount for posting in decision.postings]
    post(state, decision.postings, amounts, sequence)


def _apply_verdict(state: ShardState, decision: VerdictTaken, sequence: int) -> None:
    known = state.prepared.pop(decision.linked_id, None)
    assert known is not None or not decision.is_posted, "posted, but never prepared"
    if known is None:
        return
    prepared, _, _ = known
    set_aside(state, moves_prepared(state.shard_id, prepared), sequence, sign=-1)
    if decision.is_posted:
        assert len(decision.postings) == len(prepared.parts), "another set of parts"
        amounts = [part.asked.amount for part in prepared.parts]
        post(state, decision.postings, amounts, sequence)


def _give_up(state: ShardState, linked_id: bytes, sequence: int) -> None:
    linked = state.linked.pop(linked_id, None)
    if linked is not None:  # None where it was rejected before anything was set aside.
        assert linked.posted is None, "it is posted"
        set_aside(state, moves_begun(state.shard_id, linked.begun), sequence, sign=-1)


def post(state: ShardState, postings: list[Posting], amounts: list[int], sequence: int) -> None:
    """
    Move the money of *postings*, one after the other; only what all leave is held to the minimum.
    """
    for posting, amount in zip(postings, amounts, strict=True):
        source = state.wallets[posting.source]
        destination = state.wallets[posting.destination]
        assert source.version + 1 == posting.source_version, "source version is not dense"
        assert destination.version + 1 == posting.destination_version, "version is not dense"
        assert source.posted - amount == posting.source_balance, "source balance differs"
        assert destination.posted + amount == posting.destination_balance, "balance differs"
        assert source.currency == destination.currency, "currencies differ"
        source.posted, source.version = posting.source_balance, posting.source_version
        destination.posted = posting.destination_balance
        destination.version = posting.destination_version
        source.sequence = destination.sequence = sequence
    for posting in postings:
        source = state.wallets[posting.source]
        assert source.available >= source.minimum, "available below minimum"
        assert abs(state.wallets[posting.destination].posted) <= BALANCE_MAX, "out of range"
