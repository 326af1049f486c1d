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

from processor.core.amounts import BALANCE_MAX
from processor.core.commands import (
    MoveMoney,
    OpenWallet,
    SetWalletLimits,
    SetWalletStatus,
    TransferType,
)
from processor.core.counts import Decided
from processor.core.decide_bound import decide_bound
from processor.core.decide_channel import ChannelFull, Elsewhere, decide_reserve
from processor.core.decisions import (
    TransferPosted,
    TransferRejected,
    TransferReserved,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
)
from processor.core.judge import (
    destination_status_reason,
    owned_wallet,
    source_status_reason,
)
from processor.core.limits import Limits
from processor.core.reject_reason import RejectReason
from processor.core.repeats import KeyReused, Repeated, repeat
from processor.core.state import ShardState
from processor.core.wallet import (
    SYSTEM_MERCHANT,
    WalletStatus,
    is_system_wallet,
    world_wallet_id,
)

# Plain names: an enum member costs an attribute look-up on every transfer.
_TRANSFER = TransferType.TRANSFER
_DEPOSIT = TransferType.DEPOSIT
_WITHDRAWAL = TransferType.WITHDRAWAL
_OPEN, _FROZEN, _, _CLOSED = WalletStatus


MoveOutcome = (
    TransferPosted
    | TransferRejected
    | TransferReserved
    | Repeated
    | KeyReused
    | Elsewhere
    | ChannelFull
    | Decided
)


def decide_move(state: ShardState, command: MoveMoney, at_us: int) -> MoveOutcome:
    """
    Say what *command* does: post it, reject it, or repeat what was said before.

    A plain movement between wallets without limits is decided right here, as most are.
    """
    keys = state.keys
    remembered = keys.young.get(command.key) or keys.old.get(command.key)
    if remembered is not None:
        return repeat(remembered, command)
    if command.terms is not None:
        return decide_bound(state, command, at_us)

    wallets = state.wallets
    kind = command.transfer_type
    currency = command.currency
    source_id = command.source
    destination_id = command.destination
    if kind != _TRANSFER:
        if kind > _WITHDRAWAL:
            return decide_bound(state, command, at_us)
        world_id = world_wallet_id(state.shard_id, currency)
        if kind == _DEPOSIT:
            source_id = world_id
        else:
            destination_id = world_id
    source = wallets.get(source_id)
    destination = wallets.get(destination_id)
    amount = command.amount

    reason, short_by = 0, 0
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
        reason = source_status_reason(source.status)
    elif destination.status not in (_OPEN, _FROZEN):
        reason = destination_status_reason(destination.status)
    elif source.posted - source.reserved - amount < source.minimum:
        # The world is never short of money; it can only run out of numbers.
        reason = (
            RejectReason.BALANCE_OUT_OF_RANGE
            if kind == _DEPOSIT
            else RejectReason.INSUFFICIENT_FUNDS
        )
        short_by = source.minimum - (source.available - amount)
    elif destination.posted + destination.incoming + amount > BALANCE_MAX:
        reason = RejectReason.BALANCE_OUT_OF_RANGE
        short_by = destination.posted + destination.incoming + amount - BALANCE_MAX
    elif source.limits is not None or destination.limits is not None:
        return decide_bound(state, command, at_us)
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
        own_id = command.destination if kind == _DEPOSIT else command.source
        if not state.has_slot_of(own_id):
            return Elsewhere(state.owner_of(own_id))
        if kind == _TRANSFER and not state.has_slot_of(destination_id):
            if source is not None and source.limits is not None:
                return decide_bound(state, command, at_us)
            return decide_reserve(state, command, source, at_us)
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
        short_by,
    )


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
    wallet = owned_wallet(state.wallets, command.merchant_id, command.wallet_id)
    if wallet is None:
        return RejectReason.WALLET_UNKNOWN
    if wallet.status == command.status:
        return None
    if wallet.status == _CLOSED:
        return RejectReason.WALLET_CLOSED
    if command.status == _CLOSED and wallet.posted != 0:
        return RejectReason.WALLET_NOT_EMPTY
    if command.status == _CLOSED and wallet.is_relied_on:
        return RejectReason.TRANSFERS_PENDING
    if command.status == _CLOSED and wallet.held != 0:
        return RejectReason.HOLDS_OPEN
    return WalletStatusSet(command.wallet_id, command.status)


def decide_limits(
    state: ShardState, command: SetWalletLimits
) -> WalletLimitsSet | RejectReason | None:
    """
    Say what setting the minimum balance and the limits does; None when they are that already.
    """
    wallet = owned_wallet(state.wallets, command.merchant_id, command.wallet_id)
    if wallet is None:
        return RejectReason.WALLET_UNKNOWN
    if wallet.status == _CLOSED:
        return RejectReason.WALLET_CLOSED
    minimum = wallet.minimum if command.minimum is None else command.minimum
    limits = wallet.limits if command.limits is None else command.limits
    if limits == Limits():
        limits = None
    if (minimum, limits) == (wallet.minimum, wallet.limits):
        return None
    if minimum > wallet.minimum and minimum > wallet.available:
        return RejectReason.MINIMUM_ABOVE_AVAILABLE
    return WalletLimitsSet(command.wallet_id, minimum, limits)
