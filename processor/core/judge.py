"""
The checks, one side of a movement at a time.

Rule 1: each side is judged by itself, so that two shards can judge one each; when both fail, the
        reason with the smallest number is told.
Rule 2: a refusal says by how much it failed, where that is an amount or a count; otherwise 0.
"""

from __future__ import annotations

from processor.core.amounts import BALANCE_MAX
from processor.core.commands import Terms, TransferType
from processor.core.limits import Usage, excess_of
from processor.core.reject_reason import RejectReason
from processor.core.wallet import Wallet, WalletStatus, is_system_wallet

_OPEN, _FROZEN, _LOCKED, _CLOSED = WalletStatus
_NOTHING_USED = Usage()

# A capture was counted as a debit when its hold was placed.
DEBITS_LIMITED = frozenset({TransferType.TRANSFER, TransferType.WITHDRAWAL, TransferType.HOLD})
CREDITS_LIMITED = frozenset({TransferType.TRANSFER, TransferType.DEPOSIT, TransferType.CAPTURE})

Refused = tuple[RejectReason, int]  # Why, and by how much.


def refusal_of_debit(
    source: Wallet | None,
    merchant_id: str,
    currency: str,
    amount: int,
    *,
    transfer_type: TransferType,
    at_us: int,
) -> Refused | None:
    """
    Judge taking *amount* out of *source*, or setting it aside there, on behalf of its owner.

    What a hold keeps was judged when it was placed: a capture is stopped by a lock only.
    """
    is_capture = transfer_type == TransferType.CAPTURE
    refused = refusal_of_source(source, merchant_id, currency, is_capture=is_capture)
    if refused is not None or source is None or is_capture:
        return refused
    return refusal_of_funds(source, amount) or refusal_by_debit_limits(
        source, amount, transfer_type=transfer_type, at_us=at_us
    )


def refusal_of_source(
    source: Wallet | None, merchant_id: str, currency: str, *, is_capture: bool = False
) -> Refused | None:
    """
    Judge whether anything in *currency* may leave *source*, on behalf of its owner.
    """
    if source is None or source.merchant_id != merchant_id:
        # A wallet of another merchant is as unknown as one that does not exist.
        return RejectReason.SOURCE_UNKNOWN, 0
    if source.currency != currency:
        return RejectReason.CURRENCY_MISMATCH, 0
    if source.status != _OPEN and not (is_capture and source.status == _FROZEN):
        return source_status_reason(source.status), 0
    return None


def refusal_of_funds(source: Wallet, amount: int) -> Refused | None:
    missing = source.minimum - (source.available - amount)
    return (RejectReason.INSUFFICIENT_FUNDS, missing) if missing > 0 else None


def refusal_by_debit_limits(
    source: Wallet, amount: int, *, transfer_type: TransferType, at_us: int, count: int = 1
) -> Refused | None:
    if source.limits is None or transfer_type not in DEBITS_LIMITED:
        return None
    would_be = (source.usage or _NOTHING_USED).debits.counted(at_us, amount, count)
    return excess_of(source.limits.debits, would_be, RejectReason.DEBIT_COUNT_HOUR_EXCEEDED)


def refusal_of_credit(
    destination: Wallet | None,
    currency: str,
    amount: int,
    *,
    transfer_type: TransferType,
    at_us: int,
) -> Refused | None:
    """
    Judge bringing *amount* into *destination*, whoever asks for it.
    """
    refused = refusal_of_destination(destination, currency)
    if refused is not None or destination is None:
        return refused
    return refusal_of_room(destination, amount) or refusal_by_credit_limits(
        destination, amount, transfer_type=transfer_type, at_us=at_us
    )


def refusal_of_destination(destination: Wallet | None, currency: str) -> Refused | None:
    """
    Judge whether anything in *currency* may come into *destination*, whoever asks for it.
    """
    if destination is None:
        return RejectReason.DESTINATION_UNKNOWN, 0
    if destination.currency != currency:
        return RejectReason.CURRENCY_MISMATCH, 0
    if destination.status not in (_OPEN, _FROZEN):
        return destination_status_reason(destination.status), 0
    return None


def refusal_of_room(destination: Wallet, amount: int) -> Refused | None:
    over = destination.posted + destination.incoming + amount - BALANCE_MAX
    return (RejectReason.BALANCE_OUT_OF_RANGE, over) if over > 0 else None


def refusal_by_credit_limits(
    destination: Wallet, amount: int, *, transfer_type: TransferType, at_us: int, count: int = 1
) -> Refused | None:
    limits = destination.limits
    if limits is None or transfer_type not in CREDITS_LIMITED:
        return None
    would_be = (destination.usage or _NOTHING_USED).credits.counted(at_us, amount, count)
    excess = excess_of(limits.credits, would_be, RejectReason.CREDIT_COUNT_HOUR_EXCEEDED)
    if excess is None and limits.balance_max is not None:
        over = destination.posted + destination.incoming + amount - limits.balance_max
        if over > 0:
            return RejectReason.BALANCE_MAX_EXCEEDED, over
    return excess


def refusal_by_terms(own: Wallet, terms: Terms) -> Refused | None:
    """
    Judge the conditions on the caller's own wallet.
    """
    if terms.if_version is not None and own.version != terms.if_version:
        return RejectReason.VERSION_DIFFERS, abs(own.version - terms.if_version)
    if terms.if_available_gte is not None and own.available < terms.if_available_gte:
        missing = terms.if_available_gte - own.available
        return RejectReason.AVAILABLE_BELOW_CONDITION, min(missing, BALANCE_MAX)
    return None


def first_of(*refused: Refused | None) -> Refused | None:
    """
    Return the refusal whose reason has the smallest number.
    """
    return min((one for one in refused if one is not None), default=None)


def source_status_reason(status: int) -> RejectReason:
    if status == _CLOSED:
        return RejectReason.SOURCE_CLOSED
    return RejectReason.SOURCE_LOCKED if status == _LOCKED else RejectReason.SOURCE_FROZEN


def destination_status_reason(status: int) -> RejectReason:
    if status == _CLOSED:
        return RejectReason.DESTINATION_CLOSED
    return RejectReason.DESTINATION_LOCKED


def owned_wallet(wallets: dict[str, Wallet], merchant_id: str, wallet_id: str) -> Wallet | None:
    """
    Return the wallet if *merchant_id* owns it; a foreign one is as good as unknown.
    """
    wallet = wallets.get(wallet_id)
    return wallet if wallet is not None and wallet.merchant_id == merchant_id else None


def is_reachable(wallet_id: str) -> bool:
    """
    Say whether a customer's money may be sent there by name.
    """
    return bool(wallet_id) and not is_system_wallet(wallet_id)
