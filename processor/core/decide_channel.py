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
    ChannelBroken,
    Entry,
    SlotEntry,
    entry_of,
    next_link,
    shard_answered,
)
from processor.core.commands import MoveMoney
from processor.core.decide_slots import decide_taken
from processor.core.decisions import (
    AnswersForgotten,
    EntryCredited,
    EntryDecision,
    EntryElsewhere,
    EntryRefused,
    SettlementDecision,
    SlotDelivered,
    SlotGiven,
    TransferPosted,
    TransferRecalled,
    TransferRejected,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    WalletOpened,
    asked_of,
)
from processor.core.reject_reason import RejectReason
from processor.core.slots import NOWHERE, slot_of
from processor.core.state import ShardState
from processor.core.wallet import (
    SYSTEM_MERCHANT,
    Wallet,
    WalletStatus,
    due_wallet_id,
    is_system_wallet,
)

_OPEN, _FROZEN, _LOCKED, _CLOSED = WalletStatus


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
    state: ShardState, command: MoveMoney, source: Wallet | None
) -> TransferReserved | TransferRejected | Elsewhere | ChannelFull:
    """
    Judge the source's side of a transfer to another shard; the destination judges its own later.
    """
    asked = asked_of(command)
    if source is None or source.merchant_id != command.merchant_id:
        return TransferRejected(*asked, RejectReason.SOURCE_UNKNOWN)
    if source.currency != command.currency:
        return TransferRejected(*asked, RejectReason.CURRENCY_MISMATCH)
    if source.status != _OPEN:
        return TransferRejected(*asked, source_status_reason(source.status))
    if source.available - command.amount < source.minimum:
        return TransferRejected(*asked, RejectReason.INSUFFICIENT_FUNDS)
    peer = state.peer_for(command.destination)
    if peer == NOWHERE or slot_of(command.source) in state.closing:
        return Elsewhere(state.shard_id)
    if len(state.channels.to(peer).outbox) >= ENTRIES_PENDING_MAX:
        return ChannelFull(peer)
    return _reserve(state, command, peer)


def _reserve(
    state: ShardState, asked: MoveMoney | TransferReserved, peer: int
) -> TransferReserved | TransferRejected:
    channel = state.channels.to(peer)
    due = state.wallets.get(due_wallet_id(state.shard_id, peer, asked.currency))
    # Settling must always be possible, so what is on its way counts as if it had arrived.
    on_its_way = channel.reserved.get(asked.currency, 0) + (due.posted if due is not None else 0)
    if on_its_way + asked.amount > BALANCE_MAX:
        return TransferRejected(*asked_of(asked), RejectReason.BALANCE_OUT_OF_RANGE)
    number = channel.head + 1
    chain = next_link(channel.chain, entry_of(asked, number))
    return TransferReserved(*asked_of(asked), peer, number, chain)


def decide_entry(state: ShardState, peer: int, entry: AnyEntry) -> EntryDecision:
    """
    Answer the next entry from *peer*: always, and once.

    Needs the wallets of what *peer* is due: `currencies_due` says in which currencies.
    """
    channel = state.channels.of(peer)
    assert entry.number == channel.cursor + 1, "entries are decided in their order"
    chain = next_link(channel.chain, entry)
    if isinstance(entry, SlotEntry):
        return decide_taken(state, peer, entry, chain)
    owner = state.slots.shard_of(entry.destination)
    if owner != state.shard_id:
        # Where nobody has said where it is, the map gave it to this shard: ask here again.
        owner = state.shard_id if owner == NOWHERE else owner
        return EntryElsewhere(peer, entry.number, chain, owner)
    due = state.wallets[due_wallet_id(state.shard_id, peer, entry.currency)]
    destination = state.wallets.get(entry.destination)
    reason = _refusal_of_entry(entry, due, destination)
    if reason is not None or destination is None:
        reason = reason or RejectReason.DESTINATION_UNKNOWN
        return EntryRefused(peer, entry.number, chain, reason)
    return EntryCredited(
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
    )


def _refusal_of_entry(entry: Entry, due: Wallet, destination: Wallet | None) -> RejectReason | None:
    if is_system_wallet(entry.destination):
        return RejectReason.DESTINATION_UNKNOWN
    reason = _refusal_of_credit(entry, destination)
    if reason is None and due.posted - entry.amount < due.minimum:
        return RejectReason.BALANCE_OUT_OF_RANGE
    return reason


def _refusal_of_credit(
    asked: Entry | TransferReserved, destination: Wallet | None
) -> RejectReason | None:
    """
    Judge the destination's side alone.
    """
    if destination is None:
        return RejectReason.DESTINATION_UNKNOWN
    if destination.currency != asked.currency:
        return RejectReason.CURRENCY_MISMATCH
    if destination.status not in (_OPEN, _FROZEN):
        return destination_status_reason(destination.status)
    if destination.posted + asked.amount > BALANCE_MAX:
        return RejectReason.BALANCE_OUT_OF_RANGE
    return None


def decide_settlement(state: ShardState, peer: int, answer: int) -> SettlementDecision:
    """
    Settle the next entry to *peer* as it *answer*ed it; raises ChannelBroken.

    After TransferRecalled is applied, `decide_anew` says what takes its place.
    """
    channel = state.channels.to(peer)
    number = channel.settled + 1
    pending = channel.outbox[number]
    if isinstance(pending, SlotGiven):
        if answer:
            raise ChannelBroken(f"channel to shard {peer}: slot {pending.slot} was not taken")
        return SlotDelivered(peer, number)
    if answer < 0:
        return TransferRecalled(peer, number, pending.transfer_id)
    if answer:
        reason = _reason_answered(peer, answer)
        return TransferReleased(peer, number, pending.transfer_id, reason)
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


def _reason_answered(peer: int, answer: int) -> RejectReason:
    try:
        return RejectReason(answer)
    except ValueError:
        # Guessing would release or keep money that the peer may have taken.
        words = f"channel to shard {peer}: it answered {answer}, which this build does not know"
        raise ChannelBroken(words) from None


def decide_anew(
    state: ShardState, pending: TransferReserved, answer: int
) -> TransferPosted | TransferRejected | TransferReserved:
    """
    Say what becomes of *pending*, which was called back because of *answer*.

    Only the destination's side is judged here: the source's was when its money was set aside, and
    what happened to the wallet since does not touch that.
    """
    if not state.has_slot_of(pending.destination):
        return _reserve(state, pending, next_peer(state, pending, answer))
    destination = state.wallets.get(pending.destination)
    reason = _refusal_of_credit(pending, destination)
    if reason is not None or destination is None:
        reason = reason or RejectReason.DESTINATION_UNKNOWN
        return TransferRejected(*asked_of(pending), reason)
    source = state.wallets[pending.source]
    return TransferPosted(
        *asked_of(pending),
        source.version + 1,
        source.posted - pending.amount,
        destination.version + 1,
        destination.posted + pending.amount,
    )


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


def source_status_reason(status: int) -> RejectReason:
    if status == _CLOSED:
        return RejectReason.SOURCE_CLOSED
    return RejectReason.SOURCE_LOCKED if status == _LOCKED else RejectReason.SOURCE_FROZEN


def destination_status_reason(status: int) -> RejectReason:
    if status == _CLOSED:
        return RejectReason.DESTINATION_CLOSED
    return RejectReason.DESTINATION_LOCKED
