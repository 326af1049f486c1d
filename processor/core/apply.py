"""
Where balances change: here, in `apply_counts` and in `apply_linked`, and nowhere else.

Rule 1: `apply` never refuses and never decides; what a decision says, happens.
Rule 2: every posting is checked against the balance and version the decision carries. A state
        that is out of step stops the process here, before anything leaves it.
Live traffic and recovery both come through this file, so a replayed shard equals the lost one.
"""

from __future__ import annotations

from msgspec.structs import replace

from processor.core.amounts import BALANCE_MAX
from processor.core.apply_counts import (
    apply_hold_changed,
    apply_hold_placed,
    apply_limits_set,
    apply_refund_counted,
    apply_usage_counted,
    take_hold,
)
from processor.core.apply_linked import LINKED_DECISIONS, apply_linked
from processor.core.channel import answer_elsewhere, answer_refused, weight_sent
from processor.core.decisions import (
    AnswersForgotten,
    CarriedWallet,
    Decision,
    DuePosting,
    EntryCredited,
    EntryElsewhere,
    EntryRefused,
    EpochStarted,
    HoldChanged,
    HoldExtended,
    HoldPlaced,
    HoldVoided,
    LinkedBegun,
    LinkedPosted,
    LinkedPrepared,
    PendingEntry,
    PrepareSent,
    RefundCounted,
    SlotDelivered,
    SlotGiven,
    SlotsGranted,
    SlotTaken,
    TransferPosted,
    TransferRecalled,
    TransferRejected,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    UsageCounted,
    VerdictDelivered,
    VerdictSent,
    VerdictTaken,
    VoteTaken,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
    as_carried,
    asked_of,
    sums_of,
)
from processor.core.linked import moves_begun, moves_prepared, nets_of
from processor.core.slots import slot_of, slot_of_hold
from processor.core.state import ShardState
from processor.core.wallet import Wallet, WalletStatus, due_wallet_id, is_system_wallet


def apply_posted(state: ShardState, decision: TransferPosted, sequence: int, at_us: int) -> None:
    """
    Move the money of one posted transfer.
    """
    source = state.wallets[decision.source]
    destination = state.wallets[decision.destination]
    amount = decision.amount

    # `decide` computed these from the wallets; recomputing them here from the other side makes
    # the posting zero-sum, the versions dense and the balances the ones that were answered.
    assert source.version + 1 == decision.source_version, "source version is not dense"
    assert destination.version + 1 == decision.destination_version, "version is not dense"
    assert source.posted - amount == decision.source_balance, "source balance differs"
    assert destination.posted + amount == decision.destination_balance, "balance differs"
    assert source.currency == decision.currency == destination.currency, "currencies differ"
    assert decision.source_balance - source.reserved >= source.minimum, "available below minimum"

    source.posted = decision.source_balance
    source.version = decision.source_version
    source.sequence = sequence
    destination.posted = decision.destination_balance
    destination.version = decision.destination_version
    destination.sequence = sequence

    keys = state.keys
    keys.young[decision.key] = (decision, sequence, at_us)
    keys.young_sequence_max = sequence


def apply(state: ShardState, decision: Decision, sequence: int, at_us: int) -> None:
    """
    Fold *decision* into *state*; *sequence* and *at_us* are its record's.
    """
    match decision:
        case TransferPosted():
            apply_posted(state, decision, sequence, at_us)
        case TransferRejected():
            state.keys.remember(decision, sequence, at_us)
        case WalletOpened(wallet_id, merchant_id, currency, minimum):
            assert wallet_id not in state.wallets, f"{wallet_id} is opened twice"
            state.wallets[wallet_id] = Wallet(
                wallet_id, merchant_id, currency, minimum=minimum, sequence=sequence
            )
            state.newest[wallet_id] = sequence
        case WalletStatusSet(wallet_id, status):
            wallet = state.wallets[wallet_id]
            assert status != WalletStatus.CLOSED or wallet.posted == 0, "closed with money"
            is_used = wallet.is_relied_on or wallet.held != 0
            assert status != WalletStatus.CLOSED or not is_used, "closed too early"
            wallet.status = status
            wallet.sequence = sequence
        case WalletLimitsSet():
            apply_limits_set(state, decision, sequence, at_us)
        case TransferReserved():
            _apply_reserved(state, decision, sequence, at_us)
        case TransferSettled():
            _apply_settled(state, decision, sequence, at_us)
        case TransferReleased():
            _apply_released(state, decision, sequence, at_us)
        case TransferRecalled():
            pending = _settle_transfer(state, decision)
            _reserve(state, pending, -pending.amount, sequence)
            state.keys.forget(pending.key)
        case EntryCredited():
            _apply_credited(state, decision, sequence)
        case HoldPlaced():
            apply_hold_placed(state, decision, sequence, at_us)
            state.keys.remember(decision, sequence, at_us)
        case HoldVoided() | HoldExtended():
            state.keys.remember(decision, sequence, at_us)
        case HoldChanged():
            apply_hold_changed(state, decision, sequence)
        case UsageCounted():
            apply_usage_counted(state, decision, sequence)
        case RefundCounted():
            apply_refund_counted(state, decision, sequence)
        case EpochStarted():
            pass
        case _:
            _apply_between(state, decision, sequence, at_us)


def _apply_between(state: ShardState, decision: Decision, sequence: int, at_us: int) -> None:
    """
    Fold in what concerns channels and slots and no transfer of this shard's own.
    """
    match decision:
        case EntryRefused(peer, number, chain, reason, short_by, leg):
            _move_cursor(state, peer, number, chain)
            state.channels.of(peer).refused[number] = answer_refused(reason, short_by, leg)
        case EntryElsewhere(peer, number, chain, shard_id, side):
            _move_cursor(state, peer, number, chain)
            state.channels.of(peer).refused[number] = answer_elsewhere(shard_id, side)
        case AnswersForgotten(peer, settled):
            assert settled <= state.channels.of(peer).cursor, "settled before it was answered"
            state.channels.of(peer).forget_answers(settled)
        case SlotsGranted(first, last):
            _apply_granted(state, first, last)
        case SlotGiven():
            _apply_given(state, decision, sequence)
        case SlotTaken():
            _apply_taken(state, decision, sequence)
        case SlotDelivered(peer, number):
            assert isinstance(_settle_next(state, peer, number), SlotGiven), "it was no slot"
        case _:
            _apply_linked(state, decision, sequence, at_us)


def _apply_linked(state: ShardState, decision: Decision, sequence: int, at_us: int) -> None:
    """
    Fold in a step of a linked transfer: first what it means for its channel, if it is on one.
    """
    match decision:
        case PrepareSent() | VerdictSent():
            _put_out(state, decision)
        case VoteTaken(peer, number, linked_id):
            asked = _settle_next(state, peer, number)
            assert isinstance(asked, PrepareSent), "it was not asked to prepare"
            assert asked.linked_id == linked_id, "another linked transfer has this number"
            linked = state.linked.get(linked_id)
            if linked is not None and linked.begun.attempt == asked.attempt:
                linked.waiting.discard(peer)
            return
        case VerdictDelivered(peer, number, linked_id):
            told = _settle_next(state, peer, number)
            assert isinstance(told, VerdictSent), "it was told no verdict"
            assert told.linked_id == linked_id, "another linked transfer has this number"
        case LinkedPrepared(peer, number, chain) | VerdictTaken(peer, number, chain):
            _move_cursor(state, peer, number, chain)
        case _:
            assert isinstance(decision, LINKED_DECISIONS), (
                f"{type(decision).__name__} is not applied anywhere"
            )
    apply_linked(state, decision, sequence, at_us)


def _apply_reserved(
    state: ShardState, decision: TransferReserved, sequence: int, at_us: int
) -> None:
    assert decision.currency == state.wallets[decision.source].currency, "currencies differ"
    _put_out(state, decision)
    _reserve(state, decision, decision.amount, sequence)
    state.keys.remember(decision, sequence, at_us)


def _put_out(state: ShardState, pending: PendingEntry) -> None:
    channel = state.channels.to(pending.peer)
    assert pending.number == channel.head + 1, "a gap in the channel"
    channel.head, channel.chain = pending.number, pending.chain
    channel.outbox[pending.number] = pending
    channel.weight += weight_sent(pending)


def _reserve(state: ShardState, pending: TransferReserved, amount: int, sequence: int) -> None:
    """
    Change what is reserved for *pending*, in its wallet and in its channel, by *amount*.
    """
    reserved = state.channels.to(pending.peer).reserved
    reserved[pending.currency] = reserved.get(pending.currency, 0) + amount
    wallet = state.wallets[pending.source]
    wallet.reserved += amount
    wallet.sequence = sequence
    assert wallet.reserved >= 0, "more released than was reserved"
    # Only what takes from the wallet can break this; a release never does.
    assert amount < 0 or wallet.available >= wallet.minimum, "available below minimum"


def _settle_next(state: ShardState, peer: int, number: int) -> PendingEntry:
    channel = state.channels.to(peer)
    assert number == channel.settled + 1, "settled out of order"
    pending = channel.outbox.pop(number)
    channel.settled, channel.settled_chain = number, pending.chain
    channel.weight -= weight_sent(pending)
    return pending


def _settle_transfer(
    state: ShardState, decision: TransferSettled | TransferReleased | TransferRecalled
) -> TransferReserved:
    pending = _settle_next(state, decision.peer, decision.number)
    assert isinstance(pending, TransferReserved), "it was no transfer"
    assert pending.transfer_id == decision.transfer_id, "another transfer has this number"
    return pending


def _apply_settled(state: ShardState, decision: TransferSettled, sequence: int, at_us: int) -> None:
    pending = _settle_transfer(state, decision)
    amount = pending.amount
    source = state.wallets[pending.source]
    due = state.wallets[due_wallet_id(state.shard_id, pending.peer, pending.currency)]
    assert source.version + 1 == decision.source_version, "source version is not dense"
    assert due.version + 1 == decision.due_version, "version is not dense"
    assert source.posted - amount == decision.source_balance, "source balance differs"
    assert due.posted + amount == decision.due_balance <= BALANCE_MAX, "balance differs"
    _reserve(state, pending, -amount, sequence)
    source.posted, source.version = decision.source_balance, decision.source_version
    due.posted, due.version = decision.due_balance, decision.due_version
    due.sequence = sequence
    posted = TransferPosted(
        *asked_of(pending),
        decision.source_version,
        decision.source_balance,
        decision.due_version,
        decision.due_balance,
        pending.terms,
    )
    state.keys.remember(posted, sequence, at_us)


def _apply_released(
    state: ShardState, decision: TransferReleased, sequence: int, at_us: int
) -> None:
    pending = _settle_transfer(state, decision)
    _reserve(state, pending, -pending.amount, sequence)
    rejected = TransferRejected(
        *asked_of(pending), decision.reason, decision.short_by, pending.terms
    )
    state.keys.remember(rejected, sequence, at_us)


def _apply_credited(state: ShardState, decision: EntryCredited, sequence: int) -> None:
    due = state.wallets[due_wallet_id(state.shard_id, decision.peer, decision.currency)]
    destination = state.wallets[decision.destination]
    assert due.version + 1 == decision.due_version, "version is not dense"
    assert destination.version + 1 == decision.destination_version, "version is not dense"
    assert due.posted - decision.amount == decision.due_balance, "balance differs"
    assert destination.posted + decision.amount == decision.destination_balance, "balance differs"
    assert destination.currency == decision.currency, "currencies differ"
    assert state.has_slot_of(decision.destination), "money for a slot that is elsewhere"
    _move_cursor(state, decision.peer, decision.number, decision.chain)
    due.posted, due.version = decision.due_balance, decision.due_version
    destination.posted = decision.destination_balance
    destination.version = decision.destination_version
    due.sequence = destination.sequence = sequence


def _move_cursor(state: ShardState, peer: int, number: int, chain: bytes) -> None:
    channel = state.channels.of(peer)
    # This line alone keeps an entry that comes again from being paid again.
    assert number == channel.cursor + 1, "an entry twice, or a gap"
    channel.cursor, channel.chain = number, chain


def _apply_granted(state: ShardState, first: int, last: int) -> None:
    assert not state.has_granted, "the first slots are granted once"
    state.has_granted = True
    for slot in range(first, last + 1):
        state.slots.assign(slot, state.shard_id, 1)


def _apply_given(state: ShardState, decision: SlotGiven, sequence: int) -> None:
    slot = decision.slot
    assert state.slots.owner(slot) == state.shard_id, "a slot that is not here is given"
    assert decision.generation == state.slots.generation(slot) + 1, "generation is not dense"
    for carried in decision.wallets:
        wallet = state.wallets[carried.wallet_id]
        assert not wallet.is_relied_on, "money of a carried wallet is on its way"
        assert as_carried(wallet) == carried, "a carried wallet differs"
    for hold in decision.holds:
        # A replay may begin above the end of one. Of an open one the sum below would fall short.
        known = state.holds.get(hold.hold_id)
        assert known is None or replace(known, sequence=0) == hold, "a carried hold differs"
    held = sum(state.wallets[carried.wallet_id].held for carried in decision.wallets)
    assert held == sum(hold.kept for hold in decision.holds), "an open hold stays behind"
    _put_out(state, decision)
    _post_dues(state, decision, 1, sequence)
    for carried in decision.wallets:
        del state.wallets[carried.wallet_id]
        state.newest.pop(carried.wallet_id, None)
    _forget_counts(state, slot)
    state.slots.assign(slot, decision.peer, decision.generation)
    state.given.add(slot)
    state.closing.pop(slot, None)


def _forget_counts(state: ShardState, slot: int) -> None:
    """
    Drop what is known of a slot's holds and refunds: whoever has it next may change them.
    """
    for hold_id in [one for one in state.holds if slot_of_hold(one) == slot]:
        del state.holds[hold_id]
    for transfer_id, total in list(state.refunds.items()):
        # Of what nobody has taken back so far, nobody knows the wallet: it may be of this slot.
        is_here = slot_of(total.wallet_id) == slot and not is_system_wallet(total.wallet_id)
        if total.version == 0 or is_here:
            del state.refunds[transfer_id]


def _apply_taken(state: ShardState, decision: SlotTaken, sequence: int) -> None:
    slot = decision.slot
    assert state.slots.owner(slot) != state.shard_id, "a slot that is here already is taken"
    for carried in decision.wallets:
        assert slot_of(carried.wallet_id) == slot, "a wallet of another slot"
        assert carried.wallet_id not in state.wallets, f"{carried.wallet_id} is here already"
    _move_cursor(state, decision.peer, decision.number, decision.chain)
    _post_dues(state, decision, -1, sequence)
    for carried in decision.wallets:
        state.wallets[carried.wallet_id] = _wallet(carried, sequence)
        state.newest[carried.wallet_id] = sequence
    _forget_counts(state, slot)  # What was read before may have been changed by its owner since.
    for hold in decision.holds:
        take_hold(state, hold, sequence)
    for total in decision.refunds:
        state.refunds[total.transfer_id] = replace(total, sequence=sequence)
    for outcome in decision.outcomes:
        state.keys.carry(outcome, sequence)
    state.slots.assign(slot, state.shard_id, decision.generation)
    state.given.discard(slot)
    state.hints.pop(slot, None)
    state.has_granted = state.has_taken = True


def _post_dues(
    state: ShardState, decision: SlotGiven | SlotTaken, sign: int, sequence: int
) -> None:
    """
    Make what is in the carried wallets due to the peer (+1), or from it (-1).
    """
    amounts = {posting.currency: posting.amount for posting in decision.dues}
    assert amounts == sums_of(decision.wallets), "what is due is not what is carried"
    for posting in decision.dues:
        due = _due_of(state, decision.peer, posting)
        assert due.version + 1 == posting.version, "version is not dense"
        assert due.posted + sign * posting.amount == posting.balance, "balance differs"
        assert abs(posting.balance) <= BALANCE_MAX, "balance out of range"
    for posting in decision.dues:
        due = _due_of(state, decision.peer, posting)
        due.posted, due.version, due.sequence = posting.balance, posting.version, sequence


def _due_of(state: ShardState, peer: int, posting: DuePosting) -> Wallet:
    return state.wallets[due_wallet_id(state.shard_id, peer, posting.currency)]


def _wallet(carried: CarriedWallet, sequence: int) -> Wallet:
    return Wallet(
        carried.wallet_id,
        carried.merchant_id,
        carried.currency,
        status=carried.status,
        minimum=carried.minimum,
        posted=carried.posted,
        version=carried.version,
        sequence=sequence,
        limits=carried.limits,
        usage=carried.usage,
    )


def wallets_touched(state: ShardState, decision: Decision) -> tuple[str, ...]:
    """
    List the existing wallets that must be in memory before *decision* is applied to *state*.
    """
    match decision:
        case TransferPosted():
            return (decision.source, decision.destination)
        case WalletStatusSet() | WalletLimitsSet() | UsageCounted():
            return (decision.wallet_id,)
        case TransferReserved() | HoldPlaced():
            return (decision.source,)
        case LinkedPosted() | VerdictTaken():
            sides = ((one.source, one.destination) for one in decision.postings)
            return tuple(name for pair in sides for name in pair)
        case LinkedBegun():
            return tuple(nets_of(moves_begun(state.shard_id, decision)))
        case LinkedPrepared():
            return tuple(nets_of(moves_prepared(state.shard_id, decision)))
        case TransferSettled() | TransferReleased() | TransferRecalled():
            pending = state.channels.to(decision.peer).outbox[decision.number]
            assert isinstance(pending, TransferReserved), "it was no transfer"
            due = due_wallet_id(state.shard_id, pending.peer, pending.currency)
            return (pending.source, due)
        case EntryCredited():
            due = due_wallet_id(state.shard_id, decision.peer, decision.currency)
            return (decision.destination, due)
        case SlotGiven() | SlotTaken():
            peer, dues = decision.peer, decision.dues
            named = [due_wallet_id(state.shard_id, peer, posting.currency) for posting in dues]
            if isinstance(decision, SlotGiven):
                named += [carried.wallet_id for carried in decision.wallets]
            return tuple(named)
        case _:
            return ()
