"""
The ledger's decisions.

Rule 1: nothing here changes the state, reads a clock, draws a random number or awaits.
Rule 2: the same state and command give the same decision; the first reason that applies, in
        the order of `RejectReason`, is the one reported.
Rule 3: a key that is remembered is answered from memory, whatever the balances are now.

The caller has loaded every wallet that `wallets_named` lists and every key that the tables
know; what is not in the state then does not exist.
"""

from __future__ import annotations

import msgspec

from processor.core.amounts import BALANCE_MAX
from processor.core.channel import (
    ENTRIES_PENDING_MAX,
    Entry,
    entry_of,
    next_link,
)
from processor.core.commands import (
    MoveMoney,
    OpenWallet,
    SetWalletLimits,
    SetWalletStatus,
    TransferType,
)
from processor.core.decisions import (
    EntryCredited,
    EntryDecision,
    EntryRefused,
    SettlementDecision,
    TransferDecision,
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
from processor.core.reject_reason import RejectReason
from processor.core.state import Remembered, ShardState
from processor.core.wallet import (
    SYSTEM_MERCHANT,
    Wallet,
    WalletStatus,
    due_wallet_id,
    is_system_wallet,
    world_wallet_id,
)

# Plain names: an enum member costs an attribute look-up on every transfer.
_TRANSFER = TransferType.TRANSFER
_DEPOSIT = TransferType.DEPOSIT
_OPEN, _FROZEN, _LOCKED, _CLOSED = WalletStatus


class Repeated(msgspec.Struct, frozen=True, gc=False):
    """
    The key was used before for this very command; here is what came of it.
    """

    decision: TransferDecision
    sequence: int
    at_us: int


class KeyReused(msgspec.Struct, frozen=True, gc=False):
    """
    The key was used before for another command; `field` is the first that differs.
    """

    field: str


class Elsewhere(msgspec.Struct, frozen=True, gc=False):
    """
    The caller's own wallet is not this shard's; `shard_id` is where its slot was last seen.
    """

    shard_id: int


class ChannelFull(msgspec.Struct, frozen=True, gc=False):
    """
    Too much is on its way to `peer`; nothing was recorded.
    """

    peer: int


MoveOutcome = (
    TransferPosted
    | TransferRejected
    | TransferReserved
    | Repeated
    | KeyReused
    | Elsewhere
    | ChannelFull
)


def decide_move(state: ShardState, command: MoveMoney) -> MoveOutcome:
    """
    Say what *command* does: post it, reject it, or repeat what was said before.
    """
    keys = state.keys
    remembered = keys.young.get(command.key) or keys.old.get(command.key)
    if remembered is not None:
        return _repeat(remembered, command)

    wallets = state.wallets
    kind = command.transfer_type
    currency = command.currency
    source_id = command.source
    destination_id = command.destination
    if kind != _TRANSFER:
        world_id = world_wallet_id(state.shard_id, currency)
        if kind == _DEPOSIT:
            source_id = world_id
        else:
            destination_id = world_id
    source = wallets.get(source_id)
    destination = wallets.get(destination_id)
    amount = command.amount

    reason = 0
    if source_id == destination_id:
        reason = RejectReason.WALLETS_IDENTICAL
    elif kind != _DEPOSIT and (source is None or source.merchant_id != command.merchant_id):
        # A wallet of another merchant is as unknown as one that does not exist.
        reason = RejectReason.SOURCE_UNKNOWN
    elif (
        kind == _DEPOSIT and (destination is None or destination.merchant_id != command.merchant_id)
    ) or (kind == _TRANSFER and destination is None):
        reason = RejectReason.DESTINATION_UNKNOWN
    elif source is None or destination is None:
        # No world in this currency: then no wallet is in this currency either.
        reason = RejectReason.CURRENCY_MISMATCH
    elif source.currency != currency or destination.currency != currency:
        reason = RejectReason.CURRENCY_MISMATCH
    elif source.status != _OPEN:
        reason = _source_status_reason(source.status)
    elif destination.status not in (_OPEN, _FROZEN):
        reason = _destination_status_reason(destination.status)
    elif source.posted - source.reserved - amount < source.minimum:
        # The world is never short of money; it can only run out of numbers.
        reason = (
            RejectReason.BALANCE_OUT_OF_RANGE
            if kind == _DEPOSIT
            else RejectReason.INSUFFICIENT_FUNDS
        )
    elif destination.posted + amount > BALANCE_MAX:
        reason = RejectReason.BALANCE_OUT_OF_RANGE
    else:
        return TransferPosted(
            kind,
            command.transfer_id,
            command.key,
            command.merchant_id,
            source_id,
            destination_id,
            currency,
            amount,
            command.reference,
            command.metadata,
            source.version + 1,
            source.posted - amount,
            destination.version + 1,
            destination.posted + amount,
        )
    if source is None or destination is None:
        own_id = command.source or command.destination
        if not state.has_slot_of(own_id):
            return Elsewhere(state.slots.shard_of(own_id))
        if kind == _TRANSFER and not state.has_slot_of(destination_id):
            return _decide_reserve(state, command, source)
    return TransferRejected(
        kind,
        command.transfer_id,
        command.key,
        command.merchant_id,
        source_id,
        destination_id,
        currency,
        amount,
        command.reference,
        command.metadata,
        reason,
    )


def _decide_reserve(
    state: ShardState, command: MoveMoney, source: Wallet | None
) -> TransferReserved | TransferRejected | ChannelFull:
    """
    Judge the source's side of a transfer to another shard; the destination judges its own later.
    """
    peer = state.slots.shard_of(command.destination)
    channel = state.channels.to(peer)
    amount, currency = command.amount, command.currency
    asked = asked_of(command)
    if source is None or source.merchant_id != command.merchant_id:
        return TransferRejected(*asked, RejectReason.SOURCE_UNKNOWN)
    if source.currency != currency:
        return TransferRejected(*asked, RejectReason.CURRENCY_MISMATCH)
    if source.status != _OPEN:
        return TransferRejected(*asked, _source_status_reason(source.status))
    if source.available - amount < source.minimum:
        return TransferRejected(*asked, RejectReason.INSUFFICIENT_FUNDS)
    due = state.wallets.get(due_wallet_id(state.shard_id, peer, currency))
    # Settling must always be possible, so what is on its way counts as if it had arrived.
    on_its_way = channel.reserved.get(currency, 0) + (due.posted if due is not None else 0)
    if on_its_way + amount > BALANCE_MAX:
        return TransferRejected(*asked, RejectReason.BALANCE_OUT_OF_RANGE)
    if len(channel.outbox) >= ENTRIES_PENDING_MAX:
        return ChannelFull(peer)
    number = channel.head + 1
    chain = next_link(channel.chain, entry_of(command, number))
    return TransferReserved(*asked, peer, number, chain)


def decide_entry(state: ShardState, peer: int, entry: Entry) -> EntryDecision:
    """
    Answer the next entry from *peer*: always, and once. Needs the wallet that `peer` is due from.
    """
    channel = state.channels.of(peer)
    assert entry.number == channel.cursor + 1, "entries are decided in their order"
    chain = next_link(channel.chain, entry)
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
    if destination is None or is_system_wallet(entry.destination):
        return RejectReason.DESTINATION_UNKNOWN
    if destination.currency != entry.currency:
        return RejectReason.CURRENCY_MISMATCH
    if destination.status not in (_OPEN, _FROZEN):
        return _destination_status_reason(destination.status)
    if destination.posted + entry.amount > BALANCE_MAX or due.posted - entry.amount < due.minimum:
        return RejectReason.BALANCE_OUT_OF_RANGE
    return None


def decide_settlement(state: ShardState, peer: int, answer: int) -> SettlementDecision:
    """
    Settle the next entry to *peer*: *answer* is 0 for credited, or the reason of the refusal.
    """
    channel = state.channels.to(peer)
    number = channel.settled + 1
    pending = channel.outbox[number]
    if answer:
        return TransferReleased(peer, number, pending.transfer_id, RejectReason(answer))
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


def decide_due(state: ShardState, peer: int, currency: str) -> WalletOpened | None:
    """
    Say whether the wallet of what *peer* is due has to be opened first.
    """
    wallet_id = due_wallet_id(state.shard_id, peer, currency)
    if wallet_id in state.wallets:
        return None
    return WalletOpened(wallet_id, SYSTEM_MERCHANT, currency, -BALANCE_MAX)


def decide_open(state: ShardState, command: OpenWallet) -> WalletOpened | RejectReason | None:
    """
    Say what opening the wallet does; None when it is open already with the same facts.
    """
    wallet = state.wallets.get(command.wallet_id)
    if wallet is None:
        if is_system_wallet(command.wallet_id):
            return RejectReason.WALLET_EXISTS
        if command.minimum > 0:
            return RejectReason.MINIMUM_ABOVE_AVAILABLE
        return WalletOpened(
            command.wallet_id, command.merchant_id, command.currency, command.minimum
        )
    same = (
        wallet.merchant_id == command.merchant_id
        and wallet.currency == command.currency
        and wallet.minimum == command.minimum
        and wallet.status != _CLOSED
    )
    return None if same else RejectReason.WALLET_EXISTS


def decide_world(state: ShardState, currency: str) -> WalletOpened | None:
    """
    Say whether the wallet of outside money in *currency* has to be opened first.
    """
    wallet_id = world_wallet_id(state.shard_id, currency)
    if wallet_id in state.wallets:
        return None
    return WalletOpened(wallet_id, SYSTEM_MERCHANT, currency, -BALANCE_MAX)


def decide_status(
    state: ShardState, command: SetWalletStatus
) -> WalletStatusSet | RejectReason | None:
    """
    Say what setting the status does; None when it has that status already.
    """
    wallet = owned_wallet(state, command.merchant_id, command.wallet_id)
    if wallet is None:
        return RejectReason.WALLET_UNKNOWN
    if wallet.status == command.status:
        return None
    if wallet.status == _CLOSED:
        return RejectReason.WALLET_CLOSED
    if command.status == _CLOSED and wallet.posted != 0:
        return RejectReason.WALLET_NOT_EMPTY
    if command.status == _CLOSED and wallet.reserved != 0:
        return RejectReason.TRANSFERS_PENDING
    return WalletStatusSet(command.wallet_id, command.status)


def decide_limits(
    state: ShardState, command: SetWalletLimits
) -> WalletLimitsSet | RejectReason | None:
    """
    Say what setting the minimum balance does; None when it is that already.
    """
    wallet = owned_wallet(state, command.merchant_id, command.wallet_id)
    if wallet is None:
        return RejectReason.WALLET_UNKNOWN
    if wallet.status == _CLOSED:
        return RejectReason.WALLET_CLOSED
    if wallet.minimum == command.minimum:
        return None
    if command.minimum > wallet.available:
        return RejectReason.MINIMUM_ABOVE_AVAILABLE
    return WalletLimitsSet(command.wallet_id, command.minimum)


def owned_wallet(state: ShardState, merchant_id: str, wallet_id: str) -> Wallet | None:
    """
    Return the wallet if *merchant_id* owns it; a foreign one is as good as unknown.
    """
    wallet = state.wallets.get(wallet_id)
    return wallet if wallet is not None and wallet.merchant_id == merchant_id else None


def _repeat(remembered: Remembered, command: MoveMoney) -> Repeated | KeyReused:
    decision, sequence, at_us = remembered
    field = _differing_field(decision, command)
    return Repeated(decision, sequence, at_us) if field is None else KeyReused(field)


def _differing_field(decision: TransferDecision, command: MoveMoney) -> str | None:
    if decision.transfer_type != command.transfer_type:
        return "type"
    # The world side is the ledger's own choice, so only the customer's sides are compared.
    if command.transfer_type != _DEPOSIT and decision.source != command.source:
        return "source"
    if (
        command.transfer_type != TransferType.WITHDRAWAL
        and decision.destination != command.destination
    ):
        return "destination"
    for field in ("currency", "amount", "reference", "metadata"):
        if getattr(decision, field) != getattr(command, field):
            return field
    return None


def _source_status_reason(status: int) -> RejectReason:
    if status == _CLOSED:
        return RejectReason.SOURCE_CLOSED
    return RejectReason.SOURCE_LOCKED if status == _LOCKED else RejectReason.SOURCE_FROZEN


def _destination_status_reason(status: int) -> RejectReason:
    if status == _CLOSED:
        return RejectReason.DESTINATION_CLOSED
    return RejectReason.DESTINATION_LOCKED
