"""
Linked transfers: along all legs or along none, on one shard or over several.

On one shard it is one decision. Over several, the shard of the first leg's source begins: it sets
its own part aside and asks the others to prepare theirs; when all have voted yes it posts, at the
first no or past the deadline it rejects; then it tells the others. (Two-phase commit over durable
journals: a participant is blocked only as long as the shard that decides needs to recover.)

Rule 1: a participant that has voted yes never decides alone and never times out.
Rule 2: posted or rejected is one decision in one journal; nothing moves anywhere before it, and
        after it everything does.
Rule 3: nobody waits for a lock. What another has set aside is not available: that is a no.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from processor.core.amounts import BALANCE_MAX
from processor.core.channel import (
    ENTRIES_PENDING_MAX,
    PrepareEntry,
    VerdictEntry,
    next_link,
    refusal_answered,
    side_answered,
)
from processor.core.commands import WALLET_ID_CHARS_MAX, Leg, MoveLinked, TransferType
from processor.core.counts import Decided
from processor.core.counts_linked import counts_of_moves, refunds_in
from processor.core.decisions import (
    Decision,
    LinkedBegun,
    LinkedDone,
    LinkedPosted,
    LinkedRecalled,
    LinkedRejected,
    PrepareSent,
    VerdictSent,
    VoteTaken,
    WalletOpened,
)
from processor.core.judge_linked import RefusedLeg, refused_leg
from processor.core.linked import Homes, Move, moves_at_home, moves_begun, parts_at, peers_of
from processor.core.postings import postings_of
from processor.core.reject_reason import RejectReason
from processor.core.repeats import KeyReused, Repeated, repeat
from processor.core.slots import NOWHERE, slot_of
from processor.core.state import OpenLinked, ShardState
from processor.core.wallet import (
    SYSTEM_MERCHANT,
    fees_wallet_id,
    home_of,
    is_system_wallet,
)

DEADLINE_US = 10_000_000  # How long the others' votes are waited for.


class NotNow(msgspec.Struct, frozen=True, gc=False):
    """
    Nothing was recorded: it is to be asked at `shard_id`, or here again when that is this shard
    or nowhere; or, with `peer`, too much is on its way to that one.
    """

    shard_id: int
    peer: int | None = None


LinkedOutcome = Decided | Repeated | KeyReused | NotNow


def decide_linked(state: ShardState, command: MoveLinked, at_us: int) -> LinkedOutcome:
    """
    Say what a linked transfer does: post it, reject it, begin it, or repeat what was said before.

    Needs the wallets of fees and dues that `wallets_to_open` names.
    """
    remembered = state.keys.find(command.key)
    if remembered is not None:
        return repeat(remembered, command)
    first = command.legs[0].source
    if first not in state.wallets and not state.has_slot_of(first):
        return NotNow(state.owner_of(first))
    homes = homes_of(state, command.legs)
    peers = peers_of(state.shard_id, homes)
    if NOWHERE in peers:
        return NotNow(state.shard_id)
    refused = _refused_here(state, command, homes, at_us)
    if refused is not None:
        rejected = LinkedRejected(*_asked(command), *refused)
        return Decided(rejected, [rejected])
    if not peers:
        return _post_at_once(state, command, homes, at_us)
    if any(slot_of(wallet_id) in state.closing for wallet_id in _own_wallets(state, command)):
        return NotNow(state.shard_id)
    for peer in peers:
        if state.channels.to(peer).weight >= ENTRIES_PENDING_MAX:
            return NotNow(state.shard_id, peer)
    return _begin(state, command, homes, at_us, attempt=1, deadline_us=at_us + DEADLINE_US)


def homes_of(state: ShardState, legs: Iterable[Leg]) -> Homes:
    """
    Say where the two sides of each leg are, as far as is known; a fee stays with its source.
    """
    homes = []
    for leg in legs:
        source = _home_of(state, leg.source)
        is_fee = leg.transfer_type == TransferType.FEE
        homes.append((source, source if is_fee else _home_of(state, leg.destination)))
    return homes


def _home_of(state: ShardState, wallet_id: str) -> int:
    if wallet_id in state.wallets or state.has_slot_of(wallet_id):
        return state.shard_id
    return state.peer_for(wallet_id)


def _asked(asked: MoveLinked | LinkedBegun) -> tuple[bytes, bytes, str, list[Leg]]:
    linked_id = asked.linked_id if isinstance(asked, MoveLinked) else asked.transfer_id
    return linked_id, asked.key, asked.merchant_id, asked.legs


def _own_wallets(state: ShardState, command: MoveLinked) -> list[str]:
    named = (name for leg in command.legs for name in (leg.source, leg.destination))
    return [name for name in named if name in state.wallets and not is_system_wallet(name)]


# --- Whether it may be --------------------------------------------------------------------------


def _refused_here(
    state: ShardState, command: MoveLinked, homes: Homes, at_us: int
) -> RefusedLeg | None:
    for place, leg in enumerate(command.legs):
        if leg.source == leg.destination:
            return place, RejectReason.WALLETS_IDENTICAL, 0
    parts = parts_at(state.shard_id, command.legs, homes)
    moves = moves_at_home(state.shard_id, command.merchant_id, command.legs, homes)
    return refused_leg(state, command.merchant_id, parts, moves, at_us)


# --- The shard that decides ---------------------------------------------------------------------


def _post_at_once(state: ShardState, command: MoveLinked, homes: Homes, at_us: int) -> Decided:
    moves = moves_at_home(state.shard_id, command.merchant_id, command.legs, homes)
    parts = parts_at(state.shard_id, command.legs, homes)
    posted = LinkedPosted(*_asked(command), postings_of(state, moves), is_open=False)
    return Decided(posted, [posted, *counts_of_moves(state, moves, refunds_in(parts), at_us)])


def _begin(
    state: ShardState,
    asked: MoveLinked | LinkedBegun,
    homes: Homes,
    at_us: int,
    *,
    attempt: int,
    deadline_us: int,
) -> Decided:
    begun = LinkedBegun(*_asked(asked), homes, attempt, deadline_us)
    moves = moves_begun(state.shard_id, begun)
    own = parts_at(state.shard_id, begun.legs, homes)
    sent: list[Decision] = []
    for peer in peers_of(state.shard_id, homes):
        channel = state.channels.to(peer)
        number = channel.head + 1
        parts = parts_at(peer, begun.legs, homes)
        entry = PrepareEntry(number, begun.transfer_id, begun.merchant_id, parts)
        chain = next_link(channel.chain, entry)
        sent.append(
            PrepareSent(peer, number, chain, begun.transfer_id, begun.merchant_id, attempt, parts)
        )
    return Decided(begun, [begun, *counts_of_moves(state, moves, refunds_in(own), at_us), *sent])


def decide_after_vote(state: ShardState, asked: PrepareSent, vote: VoteTaken) -> list[Decision]:
    """
    Say what follows from a vote that was just taken in: nothing yet, posted, rejected, or, when a
    slot is elsewhere, called back; then `decide_linked_anew` says what takes its place.
    """
    linked = state.linked.get(vote.linked_id)
    if linked is None or linked.posted is not None or linked.begun.attempt != asked.attempt:
        return []
    begun = linked.begun
    others = [peer for peer in peers_of(state.shard_id, begun.homes) if peer != vote.peer]
    if vote.answer > 0:
        refusal = refusal_answered(vote.answer)
        reason = RejectReason(refusal.reason)
        rejected = LinkedRejected(*_asked(begun), refusal.leg, reason, refusal.short_by)
        return [rejected, *_given_up(state, linked, others)]
    if vote.answer < 0:
        return [LinkedRecalled(vote.linked_id), *_given_up(state, linked, others)]
    if linked.waiting:
        return []
    postings = postings_of(state, moves_begun(state.shard_id, begun))
    posted = LinkedPosted(*_asked(begun), postings, is_open=True)
    told = [
        _verdict(state, peer, vote.linked_id, is_posted=True)
        for peer in sorted((*others, vote.peer))
    ]
    return [posted, *told]


def decide_overdue(state: ShardState, linked: OpenLinked, at_us: int) -> list[Decision]:
    """
    Reject a linked transfer of which the deadline is over, if it is not posted.
    """
    begun = linked.begun
    if linked.posted is not None or at_us < begun.deadline_us:
        return []
    rejected = LinkedRejected(*_asked(begun), 0, RejectReason.LINKED_DEADLINE_PASSED)
    return [rejected, *_given_up(state, linked, peers_of(state.shard_id, begun.homes))]


def decide_linked_anew(state: ShardState, begun: LinkedBegun, homes: Homes, at_us: int) -> Decided:
    """
    Say what takes the place of an attempt that was called back; its legs are at *homes* now.
    """
    if at_us >= begun.deadline_us:
        rejected = LinkedRejected(*_asked(begun), 0, RejectReason.LINKED_DEADLINE_PASSED)
        return Decided(rejected, [rejected])
    command = MoveLinked(*_asked(begun))
    refused = _refused_here(state, command, homes, at_us)
    if refused is not None:
        rejected = LinkedRejected(*_asked(begun), *refused)
        return Decided(rejected, [rejected])
    if not peers_of(state.shard_id, homes):
        return _post_at_once(state, command, homes, at_us)
    attempt, deadline_us = begun.attempt + 1, begun.deadline_us
    return _begin(state, begun, homes, at_us, attempt=attempt, deadline_us=deadline_us)


def homes_anew(state: ShardState, begun: LinkedBegun) -> Homes:
    """
    Say where the legs are as far as is known now; what is nowhere is asked for where it was before.
    """
    return [
        (then[0] if now[0] == NOWHERE else now[0], then[1] if now[1] == NOWHERE else now[1])
        for now, then in zip(homes_of(state, begun.legs), begun.homes, strict=True)
    ]


def wallet_lost(begun: LinkedBegun, answer: int) -> str:
    """
    Name the wallet that was not where it was asked for, as *answer* says.
    """
    leg, side = divmod(side_answered(answer), 2)
    return begun.legs[leg].destination if side else begun.legs[leg].source


def _given_up(state: ShardState, linked: OpenLinked, peers: Iterable[int]) -> list[Decision]:
    """
    Give back what was counted, and tell *peers* that nothing moves.
    """
    begun = linked.begun
    moves = moves_begun(state.shard_id, begun)
    refunds = refunds_in(parts_at(state.shard_id, begun.legs, begun.homes))
    told = [_verdict(state, peer, begun.transfer_id, is_posted=False) for peer in peers]
    return [*counts_of_moves(state, moves, refunds, linked.at_us, is_given_back=True), *told]


def _verdict(state: ShardState, peer: int, linked_id: bytes, *, is_posted: bool) -> VerdictSent:
    channel = state.channels.to(peer)
    number = channel.head + 1
    chain = next_link(channel.chain, VerdictEntry(number, linked_id, is_posted))
    return VerdictSent(peer, number, chain, linked_id, is_posted)


def decide_done(state: ShardState, linked_id: bytes) -> LinkedDone | None:
    """
    Say whether every shard has moved what is its own.
    """
    linked = state.linked.get(linked_id)
    if linked is None or linked.posted is None or linked.waiting:
        return None
    return LinkedDone(linked_id)


def wallets_to_open(
    state: ShardState, merchant_id: str, moves: Iterable[Move]
) -> list[WalletOpened]:
    """
    List the ledger's own wallets, of fees and dues, that *moves* name and that are not there yet.

    None that no command could name: fees would go in and never out again.
    """
    named: dict[str, str] = {}
    for move in moves:
        named |= dict.fromkeys((move.source, move.destination), move.currency)
    opened = []
    for wallet_id, currency in named.items():
        if wallet_id in state.wallets or not is_system_wallet(wallet_id):
            continue
        if len(wallet_id) > WALLET_ID_CHARS_MAX:
            continue
        is_fees = wallet_id == fees_wallet_id(state.shard_id, merchant_id, currency)
        if is_fees:
            opened.append(WalletOpened(wallet_id, merchant_id, currency, 0))
        elif home_of(wallet_id) == state.shard_id and wallet_id.startswith("$due:"):
            opened.append(WalletOpened(wallet_id, SYSTEM_MERCHANT, currency, -BALANCE_MAX))
    return opened
