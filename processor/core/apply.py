"""
The only place where balances change.

Rule 1: `apply` never refuses and never decides; what a decision says, happens.
Rule 2: every posting is checked against the balance and version the decision carries. A state
        that is out of step stops the process here, before anything leaves it.
Live traffic and recovery both come through this file, so a replayed shard equals the lost one.
"""

from __future__ import annotations

from processor.core.amounts import BALANCE_MAX
from processor.core.decisions import (
    Decision,
    EntryCredited,
    EntryRefused,
    EpochStarted,
    TransferPosted,
    TransferRejected,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
    asked_of,
)
from processor.core.state import ShardState
from processor.core.wallet import Wallet, WalletStatus, due_wallet_id


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
        case WalletStatusSet(wallet_id, status):
            wallet = state.wallets[wallet_id]
            assert status != WalletStatus.CLOSED or wallet.posted == 0, "closed with money"
            assert status != WalletStatus.CLOSED or wallet.reserved == 0, "closed too early"
            wallet.status = status
            wallet.sequence = sequence
        case WalletLimitsSet(wallet_id, minimum):
            wallet = state.wallets[wallet_id]
            assert minimum <= wallet.available, "minimum above available"
            wallet.minimum = minimum
            wallet.sequence = sequence
        case TransferReserved():
            _apply_reserved(state, decision, sequence, at_us)
        case TransferSettled():
            _apply_settled(state, decision, sequence, at_us)
        case TransferReleased():
            _apply_released(state, decision, sequence, at_us)
        case EntryCredited():
            _apply_credited(state, decision, sequence)
        case EntryRefused(peer, number, chain, reason):
            _move_cursor(state, peer, number, chain)
            state.channels.of(peer).refused[number] = reason
        case EpochStarted():
            pass


def _apply_reserved(
    state: ShardState, decision: TransferReserved, sequence: int, at_us: int
) -> None:
    channel = state.channels.to(decision.peer)
    assert decision.number == channel.head + 1, "a gap in the channel"
    assert decision.currency == state.wallets[decision.source].currency, "currencies differ"
    channel.head, channel.chain = decision.number, decision.chain
    channel.outbox[decision.number] = decision
    _reserve(state, decision, decision.amount, sequence)
    state.keys.remember(decision, sequence, at_us)


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


def _settle_next(
    state: ShardState, decision: TransferSettled | TransferReleased
) -> TransferReserved:
    channel = state.channels.to(decision.peer)
    assert decision.number == channel.settled + 1, "settled out of order"
    pending = channel.outbox.pop(decision.number)
    assert pending.transfer_id == decision.transfer_id, "another transfer has this number"
    channel.settled, channel.settled_chain = decision.number, pending.chain
    return pending


def _apply_settled(state: ShardState, decision: TransferSettled, sequence: int, at_us: int) -> None:
    pending = _settle_next(state, decision)
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
    )
    state.keys.remember(posted, sequence, at_us)


def _apply_released(
    state: ShardState, decision: TransferReleased, sequence: int, at_us: int
) -> None:
    pending = _settle_next(state, decision)
    _reserve(state, pending, -pending.amount, sequence)
    rejected = TransferRejected(*asked_of(pending), decision.reason)
    state.keys.remember(rejected, sequence, at_us)


def _apply_credited(state: ShardState, decision: EntryCredited, sequence: int) -> None:
    due = state.wallets[due_wallet_id(state.shard_id, decision.peer, decision.currency)]
    destination = state.wallets[decision.destination]
    assert due.version + 1 == decision.due_version, "version is not dense"
    assert destination.version + 1 == decision.destination_version, "version is not dense"
    assert due.posted - decision.amount == decision.due_balance, "balance differs"
    assert destination.posted + decision.amount == decision.destination_balance, "balance differs"
    assert destination.currency == decision.currency, "currencies differ"
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


def wallets_touched(state: ShardState, decision: Decision) -> tuple[str, ...]:
    """
    List the existing wallets that must be in memory before *decision* is applied to *state*.
    """
    match decision:
        case TransferPosted():
            return (decision.source, decision.destination)
        case WalletStatusSet() | WalletLimitsSet():
            return (decision.wallet_id,)
        case TransferReserved():
            return (decision.source,)
        case TransferSettled() | TransferReleased():
            pending = state.channels.to(decision.peer).outbox[decision.number]
            due = due_wallet_id(state.shard_id, pending.peer, pending.currency)
            return (pending.source, due)
        case EntryCredited():
            due = due_wallet_id(state.shard_id, decision.peer, decision.currency)
            return (decision.destination, due)
        case _:
            return ()
