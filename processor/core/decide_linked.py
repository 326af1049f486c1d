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

from collections.abc import Iterable, Iterator

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
from processor.core.counts import Decided, refund_counted
from processor.core.decisions import (
    Decision,
    EntryElsewhere,
    EntryRefused,
    LegPart,
    LinkedBegun,
    LinkedDone,
    LinkedPosted,
    LinkedPrepared,
    LinkedRecalled,
    LinkedRejected,
    Posting,
    PrepareSent,
    UsageCounted,
    VerdictSent,
    VerdictTaken,
    VoteTaken,
    WalletOpened,
)
from processor.core.judge import (
    CREDITS_LIMITED,
    DEBITS_LIMITED,
    Refused,
    destination_status_reason,
    refusal_by_credit_limits,
    refusal_by_debit_limits,
    refusal_of_room,
    source_status_reason,
)
from processor.core.limits import Usage
from processor.core.linked import (
    Homes,
    Move,
    destination_of,
    moves_at_home,
    moves_begun,
    moves_of_parts,
    moves_prepared,
    nets_of,
    parts_at,
    peers_of,
)
from processor.core.reject_reason import RejectReason
from processor.core.repeats import KeyReused, Repeated, repeat
from processor.core.slots import NOWHERE, slot_of
from processor.core.state import OpenLinked, ShardState
from processor.core.wallet import (
    SYSTEM_MERCHANT,
    Wallet,
    WalletStatus,
    due_wallet_id,
    fees_wallet_id,
    home_of,
    is_system_wallet,
)

DEADLINE_US = 10_000_000  # How long the others' votes are waited for.

_OPEN, _FROZEN, _, _ = WalletStatus


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

RefusedLeg = tuple[int, RejectReason, int]  # The leg, why, and by how much.


def _refused_here(
    state: ShardState, command: MoveLinked, homes: Homes, at_us: int
) -> RefusedLeg | None:
    for place, leg in enumerate(command.legs):
        if leg.source == leg.destination:
            return place, RejectReason.WALLETS_IDENTICAL, 0
    parts = parts_at(state.shard_id, command.legs, homes)
    moves = moves_at_home(state.shard_id, command.merchant_id, command.legs, homes)
    return refused_leg(state, command.merchant_id, parts, moves, at_us)


def refused_leg(
    state: ShardState, merchant_id: str, parts: list[LegPart], moves: list[Move], at_us: int
) -> RefusedLeg | None:
    """
    Judge a shard's own parts as a whole; the reason with the smallest number is told.
    """
    found = [
        (reason, place, short_by)
        for place, (reason, short_by) in (
            *_refused_sides(state, merchant_id, parts),
            *_refused_refunds(state, parts),
        )
    ]
    if not found:
        found = [
            (reason, place, short_by)
            for place, (reason, short_by) in _refused_wallets(state, moves, at_us)
        ]
    if not found:
        return None
    reason, place, short_by = min(found)
    return place, reason, short_by


def _refused_sides(
    state: ShardState, merchant_id: str, parts: list[LegPart]
) -> Iterator[tuple[int, Refused]]:
    for part in parts:
        leg = part.asked
        if part.is_debit:
            source = state.wallets.get(leg.source)
            if source is None or source.merchant_id != merchant_id:
                yield part.leg, (RejectReason.SOURCE_UNKNOWN, 0)
            elif source.currency != leg.currency:
                yield part.leg, (RejectReason.CURRENCY_MISMATCH, 0)
            elif source.status != _OPEN:
                yield part.leg, (source_status_reason(source.status), 0)
        if part.is_credit:
            destination = state.wallets.get(destination_of(leg, state.shard_id, merchant_id))
            if destination is None or destination.merchant_id == SYSTEM_MERCHANT:
                yield part.leg, (RejectReason.DESTINATION_UNKNOWN, 0)
            elif destination.currency != leg.currency:
                yield part.leg, (RejectReason.CURRENCY_MISMATCH, 0)
            elif destination.status not in (_OPEN, _FROZEN):
                yield part.leg, (destination_status_reason(destination.status), 0)


def _refused_refunds(state: ShardState, parts: list[LegPart]) -> Iterator[tuple[int, Refused]]:
    asked: dict[bytes, int] = {}
    for part in parts:
        terms = part.asked.terms
        if not part.is_debit or terms is None or terms.refund_of is None:
            continue
        total = state.refunds.get(terms.refund_of)
        if total is None:
            yield part.leg, (RejectReason.REFUND_TOTAL_UNKNOWN, 0)  # It may be anything.
            continue
        asked[terms.refund_of] = asked.get(terms.refund_of, 0) + part.asked.amount
        refunded = total.refunded + asked[terms.refund_of]
        if refunded > terms.refundable:
            yield part.leg, (RejectReason.REFUND_EXCEEDS_PAID, refunded - terms.refundable)


def _refused_wallets(
    state: ShardState, moves: list[Move], at_us: int
) -> Iterator[tuple[int, Refused]]:
    """
    Judge each wallet by what all moves together make of it.
    """
    for wallet_id, net in nets_of(moves).items():
        wallet = state.wallets.get(wallet_id)
        if wallet is None:
            continue  # What a peer is due, of which there is nothing so far.
        missing = wallet.minimum - (wallet.available - net.reserved)
        if net.reserved and missing > 0:
            place = next(move.leg for move in moves if move.source == wallet_id)
            yield place, (RejectReason.INSUFFICIENT_FUNDS, missing)
        brought = net.brought + _on_its_way_to(state, wallet)
        room = refusal_of_room(wallet, brought) if net.brought else None
        if room is not None:
            yield next(move.leg for move in moves if move.destination == wallet_id), room
        yield from _refused_by_limits(state, wallet_id, moves, at_us)


def _on_its_way_to(state: ShardState, wallet: Wallet) -> int:
    """
    Return what settling will bring into a wallet of what a peer is due: it must always be possible.
    """
    for peer, channel in state.channels.outgoing.items():
        if wallet.wallet_id == due_wallet_id(state.shard_id, peer, wallet.currency):
            return channel.reserved.get(wallet.currency, 0)
    return 0


def _refused_by_limits(
    state: ShardState, wallet_id: str, moves: list[Move], at_us: int
) -> Iterator[tuple[int, Refused]]:
    wallet = state.wallets[wallet_id]
    if wallet.limits is None:
        return
    judged = (
        (_limited_debits(wallet_id, moves), refusal_by_debit_limits),
        (_limited_credits(wallet_id, moves), refusal_by_credit_limits),
    )
    for limited, refusal_by in judged:
        if not limited:
            continue
        amount, kind = sum(move.amount for move in limited), limited[0].transfer_type
        refused = refusal_by(wallet, amount, transfer_type=kind, at_us=at_us, count=len(limited))
        if refused is not None:
            yield limited[0].leg, refused


def _limited_debits(wallet_id: str, moves: Iterable[Move]) -> list[Move]:
    return [m for m in moves if m.source == wallet_id and m.transfer_type in DEBITS_LIMITED]


def _limited_credits(wallet_id: str, moves: Iterable[Move]) -> list[Move]:
    return [m for m in moves if m.destination == wallet_id and m.transfer_type in CREDITS_LIMITED]


# --- What is counted with it --------------------------------------------------------------------


def _counts(
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
        out, into = _limited_debits(wallet_id, moves), _limited_credits(wallet_id, moves)
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


# --- The shard that decides ---------------------------------------------------------------------


def _post_at_once(state: ShardState, command: MoveLinked, homes: Homes, at_us: int) -> Decided:
    moves = moves_at_home(state.shard_id, command.merchant_id, command.legs, homes)
    parts = parts_at(state.shard_id, command.legs, homes)
    posted = LinkedPosted(*_asked(command), postings_of(state, moves), is_open=False)
    return Decided(posted, [posted, *_counts(state, moves, refunds_in(parts), at_us)])


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
    return Decided(begun, [begun, *_counts(state, moves, refunds_in(own), at_us), *sent])


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
    return [*_counts(state, moves, refunds, linked.at_us, is_given_back=True), *told]


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


# --- The other shards ---------------------------------------------------------------------------


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
    return [prepared, *_counts(state, moves, refunds_in(entry.parts), at_us)]


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
    return [taken, *_counts(state, moves, refunds, at_us, is_given_back=True)]


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
