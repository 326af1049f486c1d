"""
Transfers, deposits and withdrawals, one a request, and the look at one afterwards.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from gateway.endpoint import Call
from gateway.idempotency_key import command_key
from gateway.identifiers import new_transfer_id, parse_uuid, timestamp_text, uuid_text
from gateway.problems import FieldError, Refusal
from gateway.reply import REPLAYED, Header, Reply, json_reply
from gateway.validation import Movement, canonical_metadata
from gateway.wallets import owns_wallet
from gateway.wire import (
    DepositRequest,
    Transfer,
    TransferStatusText,
    TransferTypeText,
    WithdrawalRequest,
)
from processor.core.commands import MoveMoney, Terms, TransferType
from processor.core.reject_reason import RejectReason
from processor.core.wallet import is_system_wallet
from processor.flow.frames import FilledIn, KeyReused, Pending, Posted, Rejected, Result
from processor.storage.transfer_found import TransferFound, TransferSide

_TYPE_TEXTS = {
    transfer_type.value: cast("TransferTypeText", transfer_type.code)
    for transfer_type in TransferType
}
# A plain name: an enum's member costs a look-up on every transfer.
_TRANSFER = TransferType.TRANSFER
_NO_METADATA = msgspec.Raw(b"{}")

# By how much these fail would tell a payer how much is in somebody else's wallet.
_OF_THE_DESTINATION = frozenset(
    {
        RejectReason.BALANCE_OUT_OF_RANGE,
        RejectReason.CREDIT_COUNT_HOUR_EXCEEDED,
        RejectReason.CREDIT_AMOUNT_HOUR_EXCEEDED,
        RejectReason.CREDIT_COUNT_DAY_EXCEEDED,
        RejectReason.CREDIT_AMOUNT_DAY_EXCEEDED,
        RejectReason.BALANCE_MAX_EXCEEDED,
    }
)


async def move_money(call: Call) -> Reply:
    """
    Do the transfer, deposit or withdrawal that the body asks for, once.
    """
    gateway = call.gateway
    errors = gateway.validation.movement(call.body)
    if errors:
        raise Refusal("validation_failed", errors=errors)
    command = move_command(call.body, call.caller.merchant_id, call.idempotency_key)
    result, shard_id = await gateway.shards.submit(command, timeout_ms=gateway.timeout_ms)
    return movement_reply(command, result, shard_id)


def movement_reply(command: MoveMoney, result: Result, shard_id: int) -> Reply:
    """
    Tell what came of a movement; raises the Refusal of one that did not happen.
    """
    if isinstance(result, Rejected):
        raise rejection(command, result, shard_id)
    if isinstance(result, KeyReused):
        raise Refusal("idempotency_key_reused", errors=[reuse_error(result)])
    assert isinstance(result, Posted | Pending), "a shard answers money with one of four"
    headers: tuple[Header, ...] = (REPLAYED,) if is_replay(command, result) else ()
    transfer = moved_transfer(command, result, shard_id)
    if isinstance(result, Posted):
        return json_reply(201, transfer, *headers)
    location = (b"location", f"/v1/transfers/{transfer.id}".encode())
    return json_reply(202, transfer, location, *headers)


async def get_transfer(call: Call) -> Reply:
    transfer_id = parse_uuid(call.parameters[0])
    if transfer_id is None:
        raise Refusal("transfer_unknown")
    search = await call.gateway.history.transfer(transfer_id)
    for found in search.found:
        transfer = visible_transfer(await with_payee(call, found), call.caller.merchant_id)
        if transfer is not None:
            return json_reply(200, transfer)
    if search.missing is not None:
        raise search.missing
    raise Refusal("transfer_unknown")


async def with_payee(call: Call, found: TransferFound) -> TransferFound:
    """
    Fill in that the destination is the caller's, where the tables do not know whose it is: just
    opened, or between two shards.
    """
    merchant_id, payee = call.caller.merchant_id, found.destination
    if payee is None or payee.version is None or found.merchant_id == merchant_id:
        return found
    if payee.merchant_id is not None or not await owns_wallet(call, payee.wallet_id):
        return found
    owned = msgspec.structs.replace(payee, merchant_id=merchant_id)
    return msgspec.structs.replace(found, destination=owned)


def move_command(request: Movement, merchant_id: str, idempotency_key: str) -> MoveMoney:
    """
    Make the command of a request that has passed validation.

    The key belongs to the caller's own wallet: the source, or for a deposit the destination.
    """
    kind, source, destination = _TRANSFER, "", ""
    if isinstance(request, DepositRequest):
        kind, destination = TransferType.DEPOSIT, request.destination
    elif isinstance(request, WithdrawalRequest):
        kind, source = TransferType.WITHDRAWAL, request.source
    else:
        source, destination = request.source, request.destination
    return MoveMoney(
        kind,
        new_transfer_id(),
        command_key(merchant_id, source or destination, idempotency_key),
        merchant_id,
        source,
        destination,
        request.currency,
        request.amount,
        request.reference,
        canonical_metadata(request.metadata),
        _terms_of(request),
    )


def _terms_of(request: Movement) -> Terms | None:
    """
    Return the conditions of a request; None for a plain one, which costs the ledger least.
    """
    is_up_to = not isinstance(request, DepositRequest) and request.up_to
    if request.if_version is None and request.if_available_gte is None and not is_up_to:
        return None
    return Terms(
        if_version=request.if_version,
        if_available_gte=request.if_available_gte,
        amount_max=request.amount if is_up_to else None,
    )


def is_replay(command: MoveMoney, result: Posted | Rejected | Pending) -> bool:
    """
    Say whether an earlier request did this; one that the gateway sent twice itself is none.

    The id alone tells: each request makes its own, and what was pending is settled in the words
    of a first answer, whoever waited for it.
    """
    return result.transfer_id != command.transfer_id


def rejection(command: MoveMoney, result: Rejected, shard_id: int) -> Refusal:
    """
    Word the refusal of a movement, with the transfer that did not happen inside.
    """
    headers: tuple[Header, ...] = (REPLAYED,) if is_replay(command, result) else ()
    reason = RejectReason(result.reason)
    if reason == RejectReason.HOLD_UNKNOWN:
        # Nobody knows what it would have moved, or from where.
        return Refusal(reason.code, headers=headers)
    transfer = moved_transfer(command, result, shard_id)
    detail = None
    if reason == RejectReason.DESTINATION_UNKNOWN and transfer.destination is None:
        detail = "The hold was placed without a destination: name one, under a new key."
    return Refusal(reason.code, detail, headers=headers, transfer=transfer)


def reuse_error(result: KeyReused) -> FieldError:
    """
    Point at the field by which the request differs from the first one under its key.
    """
    if result.field == "type":
        return FieldError("differs", "The key belongs to another kind of movement.", "")
    detail = f"The first request under this key has another {result.field}."
    return FieldError("differs", detail, f"/{result.field}")


def moved_transfer(
    command: MoveMoney, result: Posted | Rejected | Pending, shard_id: int
) -> Transfer:
    """
    Show what a command did, from its caller's side.
    """
    status: TransferStatusText = "pending"
    reason, balance, version, short_by = None, None, None, None
    if isinstance(result, Posted):
        status = "posted"
        balance, version = result.balance, result.version
    elif isinstance(result, Rejected):
        status = "rejected"
        reason = RejectReason(result.reason).code
        short_by = short_by_told(command.transfer_type, result.reason, result.short_by)
    moved: MoveMoney | FilledIn = result.filled_in or command
    return Transfer(
        uuid_text(result.transfer_id),
        _TYPE_TEXTS[command.transfer_type],
        status,
        reason,
        wallet_named(moved.source),
        wallet_named(moved.destination),
        moved.amount,
        moved.currency,
        command.reference,
        metadata_object(command.metadata),
        balance,
        version,
        shard_id,
        result.sequence,
        timestamp_text(result.at_us),
        _linked_to(command.terms),
        short_by,
    )


def wallet_named(wallet_id: str) -> str | None:
    """
    Name a side of a movement; the ledger's own wallets are nobody's business.
    """
    return None if not wallet_id or is_system_wallet(wallet_id) else wallet_id


def _linked_to(terms: Terms | None) -> str | None:
    linked_to = None if terms is None else terms.hold_id or terms.refund_of
    return None if linked_to is None else uuid_text(linked_to)


def short_by_told(transfer_type: int, reason: int, short_by: int) -> int | None:
    """
    Say by how much a check failed, as far as that is of the caller's own wallet.
    """
    is_foreign = reason in _OF_THE_DESTINATION and transfer_type != TransferType.DEPOSIT
    return None if is_foreign else short_by or None


def visible_transfer(found: TransferFound, merchant_id: str) -> Transfer | None:
    """
    Show *found* as *merchant_id* may see it, with the balance of its own side only; None for
    everybody else, and for everybody but the one who asked for it unless it was posted.
    """
    reason = None if found.reason is None else RejectReason(found.reason).code
    own = _own_side(found, merchant_id)
    if own is None:
        return None
    return Transfer(
        uuid_text(found.transfer_id),
        _TYPE_TEXTS[found.transfer_type],
        found.state,
        reason,
        found.source.wallet_id if found.source else None,
        found.destination.wallet_id if found.destination else None,
        found.amount,
        found.currency,
        found.reference,
        metadata_object(found.metadata),
        own.balance,
        own.version,
        found.shard_id,
        found.sequence,
        timestamp_text(found.at_us),
        None if found.linked_to is None else uuid_text(found.linked_to),
        short_by_told(found.transfer_type, found.reason or 0, found.short_by),
    )


def _own_side(found: TransferFound, merchant_id: str) -> TransferSide | None:
    if found.merchant_id == merchant_id:
        # Who asked sees what the source says of it, also of money to an own wallet.
        return None if found.is_credit else found.source or found.destination
    for side in (found.source, found.destination):
        if side is not None and side.version is not None and side.merchant_id == merchant_id:
            return side
    return None


def metadata_object(text: str | None) -> dict[str, Any]:
    """
    Pass stored metadata on as it is: it is JSON already.
    """
    return cast("dict[str, Any]", _NO_METADATA if text is None else msgspec.Raw(text.encode()))


def type_text(transfer_type: int) -> TransferTypeText:
    return _TYPE_TEXTS[transfer_type]
