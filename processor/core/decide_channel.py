"""
Decisions between shards: reserve at the source, answer at the destination, settle at the source.

Rule 1: each side judges its own wallets only; the source judges its side once, when it reserves.
Rule 2: an entry is answered always, and once. What was answered is settled always: settling,
        releasing and calling back never fail.
Rule 3: money whose destination's slot has moved is called back and decided anew in one record,
        under the same transfer id and key, so no moment knows it twice or not at all.
"""

from __future__ import annotations

import msgspec

from processor.core.amounts import BALANCE_MAX
from processor.core.channel import (
    ENTRIES_PENDING_MAX,
    AnyEntry,
    BoundEntry,
    ChannelBroken,
    MoneyEntry,
    PrepareEntry,
    SlotEntry,
    VerdictEntry,
    entry_of,
    next_link,
    refusal_answered,
    shard_answered,
)
from processor.core.commands import MoveMoney, TransferType
from processor.core.counts import (
    Decided,
    counts_when_refused,
    counts_when_settled,
    credit_counted,
)
from processor.core.decide_prepared import decide_prepare, decide_verdict
from processor.core.decide_slots import decide_taken
from processor.core.decisions import (
    AnswersForgotten,
    Decision,
    EntryCredited,
    EntryElsewhere,
    EntryRefused,
    PrepareSent,
    SettlementDecision,
    SlotDelivered,
    SlotGiven,
    TransferPosted,
    TransferRecalled,
    TransferRejected,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    VerdictDelivered,
    VerdictSent,
    VoteTaken,
    WalletOpened,
    asked_of,
)
from processor.core.judge import Refused, refusal_of_credit, refusal_of_debit
from processor.core.reject_reason import RejectReason
from processor.core.slots import NOWHERE, slot_of
from processor.core.state import ShardState
from processor.core.wallet import SYSTEM_MERCHANT, Wallet, due_wallet_id, is_system_wallet


class Elsewhere(msgspec.Struct, frozen=True, gc=False):
    """
    Not to be decided here and now: `shard_id` is where the slot was last seen. When that is this
    shard or nowhere, a slot is about to move, and it may be asked again in a moment.
    """

    shard_id: int


class ChannelFull(msgspec.Struct, frozen=True, gc=False):
    """
    Too much is on its way to `peer`; nothing was recorded.
    """

    peer: int


def decide_reserve(
    state: ShardState, command: MoveMoney, source: Wallet | None, at_us: int
) -> TransferReserved | TransferRejected | Elsewhere | ChannelFull:
    """
    Judge the source's side of a transfer to another shard; the destination judges its own later.
    """
    refused = refusal_of_debit(
        source,
        command.merchant_id,
        command.currency,
        command.amount,
        transfer_type=command.transfer_type,
        at_us=at_us,
    )
    if refused is not None:
        return TransferRejected(*asked_of(command), *refused, command.terms)
    return reserve(state, command)


def reserve(
    state: ShardState, command: MoveMoney
) -> TransferReserved | TransferRejected | Elsewhere | ChannelFull:
    """
    Send money that may leave its wallet on its way, if there is one now.
    """
    peer = state.peer_for(command.destination)
    if peer == NOWHERE or slot_of(command.source) in state.closing:
        return Elsewhere(state.shard_id)
    if len(state.channels.to(peer).outbox) >= ENTRIES_PENDING_MAX:
        return ChannelFull(peer)
    return _reserve(state, command, peer, counted_at_us=0)


def _reserve(
    state: ShardState, asked: MoveMoney | TransferReserved, peer: int, *, counted_at_us: int
) -> TransferReserved | TransferRejected:
    channel = state.channels.to(peer)
    due = state.wallets.get(due_wallet_id(state.shard_id, peer, asked.currency))
    # Settling must always be possible, so what is on its way counts as if it had arrived.
    on_its_way = channel.reserved.get(asked.currency, 0)
    on_its_way += due.posted + due.incoming if due is not None else 0
    if on_its_way + asked.amount > BALANCE_MAX:
        short_by = on_its_way + asked.amount - BALANCE_MAX
        reason = RejectReason.BALANCE_OUT_OF_RANGE
        return TransferRejected(*asked_of(asked), reason, short_by, asked.terms)
    number = channel.head + 1
    chain = next_link(channel.chain, entry_of(asked, number))
    return TransferReserved(*asked_of(asked), peer, number, chain, asked.terms, counted_at_us)


def decide_entry(state: ShardState, peer: int, entry: AnyEntry, at_us: int) -> list[Decision]:
    """
    Answer the next entry from *peer*: always, and once, with the first decision of those returned.

    Needs the wallets of what *peer* is due, in the currencies of the entry.
    """
    channel = state.channels.of(peer)
    assert entry.number == channel.cursor + 1, "entries are decided in their order"
    chain = next_link(channel.chain, entry)
    match entry:
        case SlotEntry():
            return [decide_taken(state, peer, entry, chain)]
        case PrepareEntry():
            return decide_prepare(state, peer, entry, chain, at_us)
        case VerdictEntry():
            return decide_verdict(state, peer, entry, chain)
        case _:
            return _decide_money(state, peer, entry, chain, at_us)


def _decide_money(
    state: ShardState, peer: int, entry: MoneyEntry, chain: bytes, at_us: int
) -> list[Decision]:
    owner = state.owner_of(entry.destination)
    if owner != state.shard_id:
        # Where nobody has said where it is, the map gave it to this shard: ask here again.
        owner = state.shard_id if owner == NOWHERE else owner
        return [EntryElsewhere(peer, entry.number, chain, owner)]
    due = state.wallets[due_wallet_id(state.shard_id, peer, entry.currency)]
    destination = state.wallets.get(entry.destination)
    kind, terms = TransferType.TRANSFER, None
    if isinstance(entry, BoundEntry):
        kind, terms = entry.transfer_type, entry.terms
    refused = _refusal_of_entry(entry, kind, due, destination, at_us)
    if refused is not None or destination is None:
        refused = refused or (RejectReason.DESTINATION_UNKNOWN, 0)
        return [EntryRefused(peer, entry.number, chain, *refused)]
    credited = EntryCredited(
        peer,
        entry.number,
        chain,
        entry.transfer_id,
        entry.merchant_id,
        entry.source,
        entry.destination,
        entry.currency,
        entry.amount,
        entry.reference,
        entry.metadata,
        due.version + 1,
        due.posted - entry.amount,
        destination.version + 1,
        destination.posted + entry.amount,
        kind,
        terms,
    )
    return [credited, *credit_counted(destination, kind, at_us, entry.amount)]


def _refusal_of_entry(
    entry: MoneyEntry,
    kind: TransferType,
    due: Wallet,
    destination: Wallet | None,
    at_us: int,
) -> Refused | None:
    if is_system_wallet(entry.destination):
        return RejectReason.DESTINATION_UNKNOWN, 0
    refused = refusal_of_credit(
        destination, entry.currency, entry.amount, transfer_type=kind, at_us=at_us
    )
    if refused is None and due.available - entry.amount < due.minimum:
        short_by = due.minimum - (due.available - entry.amount)
        return RejectReason.BALANCE_OUT_OF_RANGE, short_by
    return refused


def decide_settlement(state: ShardState, peer: int, answer: int) -> SettlementDecision:
    """
    Settle the next entry to *peer* as it *answer*ed it; raises ChannelBroken.

    After TransferRecalled is applied, `decide_anew` says what takes its place.
    """
    channel = state.channels.to(peer)
    number = channel.settled + 1
    pending = channel.outbox[number]
    if isinstance(pending, PrepareSent):
        if answer > 0:
            _reason_answered(peer, answer)
        return VoteTaken(peer, number, pending.linked_id, answer)
    if isinstance(pending, SlotGiven | VerdictSent):
        if answer:
            raise ChannelBroken(f"channel to shard {peer}: entry {number} cannot be refused")
        if isinstance(pending, SlotGiven):
            return SlotDelivered(peer, number)
        return VerdictDelivered(peer, number, pending.linked_id)
    if answer < 0:
        return TransferRecalled(peer, number, pending.transfer_id)
    if answer:
        reason, short_by = _reason_answered(peer, answer)
        return TransferReleased(peer, number, pending.transfer_id, reason, short_by)
    source = state.wallets[pending.source]
    due = state.wallets[due_wallet_id(state.shard_id, peer, pending.currency)]
    return TransferSettled(
        peer,
        number,
        pending.transfer_id,
        source.version + 1,
        source.posted - pending.amount,
        due.version + 1,
        due.posted + pending.amount,
    )


def _reason_answered(peer: int, answer: int) -> Refused:
    refusal = refusal_answered(answer)
    try:
        return RejectReason(refusal.reason), refusal.short_by
    except ValueError:
        # Guessing would release or keep money that the peer may have taken.
        words = f"channel to shard {peer}: it answered {answer}, which this build does not know"
        raise ChannelBroken(words) from None


def decide_anew(
    state: ShardState,
    pending: TransferReserved,
    answer: int,
    *,
    reserved_at_us: int,
    at_us: int,
) -> Decided:
    """
    Say what becomes of *pending*, which was called back because of *answer*.

    Only the destination's side is judged here: the source's was when its money was set aside, at
    *reserved_at_us*, and what happened to the wallet since does not touch that.
    """
    counted_at_us = pending.counted_at_us or reserved_at_us
    if not state.has_slot_of(pending.destination):
        peer = next_peer(state, pending, answer)
        anew = _reserve(state, pending, peer, counted_at_us=counted_at_us)
        if isinstance(anew, TransferReserved):
            return Decided(anew, [anew])
        return Decided(anew, [anew, *counts_when_refused(state, pending, reserved_at_us)])
    destination = state.wallets.get(pending.destination)
    refused = refusal_of_credit(
        destination,
        pending.currency,
        pending.amount,
        transfer_type=pending.transfer_type,
        at_us=at_us,
    )
    if refused is not None or destination is None:
        refused = refused or (RejectReason.DESTINATION_UNKNOWN, 0)
        rejected = TransferRejected(*asked_of(pending), *refused, pending.terms)
        counts = counts_when_refused(state, pending, reserved_at_us)
        return Decided(rejected, [rejected, *counts])
    return _arrived(state, pending, destination, at_us)


def _arrived(
    state: ShardState, pending: TransferReserved, destination: Wallet, at_us: int
) -> Decided:
    source = state.wallets[pending.source]
    posted = TransferPosted(
        *asked_of(pending),
        source.version + 1,
        source.posted - pending.amount,
        destination.version + 1,
        destination.posted + pending.amount,
        pending.terms,
    )
    counted = credit_counted(destination, pending.transfer_type, at_us, pending.amount)
    return Decided(posted, [posted, *counted, *counts_when_settled(state, pending)])


def next_peer(state: ShardState, pending: TransferReserved, answer: int) -> int:
    """
    Return the peer to which money is sent that did not find its destination at `pending.peer`.
    """
    answered = shard_answered(answer)
    if answered != state.shard_id:
        return answered
    # It was here since and went on, or it is on its way here and `pending.peer` will know.
    slot = slot_of(pending.destination)
    return state.slots.owner(slot) if slot in state.given else pending.peer


def decide_forgotten(state: ShardState, peer: int, settled: int) -> AnswersForgotten | None:
    """
    Say whether answers to *peer*, which has settled so far, can be dropped.
    """
    has_some = state.channels.of(peer).has_answers_to(settled)
    return AnswersForgotten(peer, settled) if has_some else None


def decide_due(state: ShardState, peer: int, currency: str) -> WalletOpened | None:
    """
    Say whether the wallet of what *peer* is due has to be opened first.
    """
    wallet_id = due_wallet_id(state.shard_id, peer, currency)
    if wallet_id in state.wallets:
        return None
    return WalletOpened(wallet_id, SYSTEM_MERCHANT, currency, -BALANCE_MAX)
