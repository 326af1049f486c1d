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
from processor.core.commands import (
    MoveMoney,
    OpenWallet,
    SetWalletLimits,
    SetWalletStatus,
    TransferType,
)
from processor.core.decide_channel import (
    ChannelFull,
    Elsewhere,
    decide_reserve,
    destination_status_reason,
    source_status_reason,
)
from processor.core.decisions import (
    TransferDecision,
    TransferPosted,
    TransferRejected,
    TransferReserved,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
)
from processor.core.reject_reason import RejectReason
from processor.core.state import Remembered, ShardState
from processor.core.wallet import (
    SYSTEM_MERCHANT,
    Wallet,
    WalletStatus,
    is_system_wallet,
    world_wallet_id,
)

# Plain names: an enum member costs an attribute look-up on every transfer.
_TRANSFER = TransferType.TRANSFER
_DEPOSIT = TransferType.DEPOSIT
_OPEN, _FROZEN, _, _CLOSED = WalletStatus


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
        own_id = command.destination if kind == _DEPOSIT else command.source
        if not state.has_slot_of(own_id):
            return Elsewhere(state.slots.shard_of(own_id))
        if kind == _TRANSFER and not state.has_slot_of(destination_id):
            return decide_reserve(state, command, source)
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
