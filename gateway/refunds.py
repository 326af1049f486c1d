"""
Refunds: money that goes back the way of an earlier transfer, never more than came.

Rule 1: whoever owns the wallet that was paid may give back, and nobody else. What a transfer moved
        is read from its record, which never changes; how much of it has gone back is counted at
        the shard of the wallet that pays it back.
Rule 2: the key belongs to the merchant and the transfer that is refunded.
"""

from __future__ import annotations

from itertools import groupby

import msgspec

from gateway.endpoint import Call
from gateway.idempotency_key import command_key
from gateway.identifiers import new_transfer_id, parse_uuid, uuid_text
from gateway.problems import FieldError, Refusal
from gateway.refund_wire import RefundRequest, Refunds
from gateway.reply import Reply, json_reply
from gateway.transfers import movement_reply, visible_transfer, with_payee
from gateway.validation import Validation, amount_errors, canonical_metadata
from gateway.wallets import owns_wallet
from gateway.wire import Transfer
from processor.core.commands import MoveMoney, Terms, TransferType
from processor.core.wallet import fees_wallet_id
from processor.storage.history import TransferSearch
from processor.storage.refund_listing import refunds_of
from processor.storage.transfer_found import TransferFound, rank

_REFUNDABLE = (TransferType.TRANSFER, TransferType.CAPTURE, TransferType.FEE)

_WHAT_TO_DO = {
    TransferType.DEPOSIT: "A deposit came from outside: send it back there with a withdrawal.",
    TransferType.WITHDRAWAL: "A withdrawal went outside: bring it back with a deposit.",
    TransferType.REFUND: "A refund is not refunded: pay again with a transfer.",
}


class Original(msgspec.Struct, frozen=True):
    """
    The transfer that is to be refunded, as the caller may know it, and the wallet that pays it
    back: a merchant's fees are at the shard that took them.
    """

    view: TransferFound
    payer: str


async def refund_transfer(call: Call) -> Reply:
    """
    Give back what a transfer brought into the caller's wallet, once.
    """
    body: RefundRequest = call.body
    errors = refund_errors(call.gateway.validation, body)
    if errors:
        raise Refusal("validation_failed", errors=errors)
    original = await _original_of(call)
    command = refund_command(body, original, call.caller.merchant_id, call.idempotency_key)
    result, shard_id = await call.gateway.shards.submit(command, timeout_ms=call.gateway.timeout_ms)
    return movement_reply(command, result, shard_id)


async def list_refunds(call: Call) -> Reply:
    """
    Show what has gone back of a transfer, to both its sides.
    """
    search = await _search_for(call)
    merchant_id = call.caller.merchant_id
    views = [await with_payee(call, view) for view in search.found]
    original = next((view for view in views if visible_transfer(view, merchant_id)), None)
    if original is None:
        raise search.missing or Refusal("transfer_unknown")
    limit = call.gateway.settings.gateway.page_size_max
    history = call.gateway.history
    pages, missing = await history.each(
        lambda conn: refunds_of(conn, original.transfer_id, limit + 1)
    )
    if missing is not None:
        raise missing
    found = await history.owned([view for page in pages for view in page.views])
    refunds = shown_refunds(found, merchant_id)
    refunded = max(pages, key=lambda page: page.version).refunded
    return json_reply(
        200,
        Refunds(
            uuid_text(original.transfer_id),
            original.amount,
            refunded,
            0 if why_not_refundable(original) else original.amount - refunded,
            original.currency,
            refunds[:limit],
            len(refunds) > limit,
        ),
    )


def refund_errors(validation: Validation, request: RefundRequest) -> list[FieldError]:
    errors = [] if request.amount is None else amount_errors(request.amount)
    return errors + validation.words(request.reference, request.metadata)


def shown_refunds(found: list[TransferFound], merchant_id: str) -> list[Transfer]:
    """
    Show each refund once, as *merchant_id* may see it, in the order of their ids.
    """
    shown = []
    by_id = sorted(found, key=lambda view: (view.transfer_id, *rank(view)))
    for _, views in groupby(by_id, key=lambda view: view.transfer_id):
        visible = (visible_transfer(view, merchant_id) for view in views)
        shown += [transfer for transfer in visible if transfer is not None][:1]
    return shown


def refund_command(
    request: RefundRequest, original: Original, merchant_id: str, idempotency_key: str
) -> MoveMoney:
    """
    Make the command of a request that has passed validation.
    """
    view = original.view
    assert view.source is not None, "what is refundable came from a wallet"
    return MoveMoney(
        TransferType.REFUND,
        new_transfer_id(),
        refund_key(merchant_id, view.transfer_id, idempotency_key),
        merchant_id,
        original.payer,
        view.source.wallet_id,
        view.currency,
        view.amount if request.amount is None else request.amount,
        request.reference,
        canonical_metadata(request.metadata),
        Terms(
            refund_of=view.transfer_id,
            refundable=view.amount,
            amount_max=view.amount if request.amount is None else None,
        ),
    )


def refund_key(merchant_id: str, transfer_id: bytes, idempotency_key: str) -> bytes:
    """
    Hash the key of a refund; no wallet has an id that begins with a $.
    """
    return command_key(merchant_id, f"$refund:{uuid_text(transfer_id)}", idempotency_key)


def payer_of(view: TransferFound) -> str | None:
    """
    Name the wallet that was paid, and pays back; None where it is not known.
    """
    if view.transfer_type == TransferType.FEE:
        return fees_wallet_id(view.shard_id, view.merchant_id, view.currency)
    return None if view.destination is None else view.destination.wallet_id


def why_not_refundable(view: TransferFound) -> str | None:
    """
    Say what speaks against refunding a transfer, whoever asks.
    """
    if view.transfer_type not in _REFUNDABLE:
        return _WHAT_TO_DO.get(TransferType(view.transfer_type), "It moved no money.")
    if view.state == "rejected":
        return "It was rejected: no money moved, and there is nothing to give back."
    if view.state == "pending":
        return "It is still pending: look at it in a moment, and refund it when it is posted."
    # Of a fee that a sweep brought into a wallet there is nobody to give back to.
    return None if view.source is not None else "It came from your own fees: send it on."


async def _original_of(call: Call) -> Original:
    """
    Find what is to be refunded; raises Refusal where that cannot be, or not by the caller.
    """
    search = await _search_for(call)
    refused: str | None = None
    for view in search.found:
        payer = payer_of(view)
        owns = payer is not None and await _owns(call, view, payer)
        words = why_not_refundable(view)
        if owns and words is None and payer is not None:
            return Original(view, payer)
        if visible_transfer(view, call.caller.merchant_id) is not None:
            refused = refused or words or "Only who was paid can give it back."
    if refused is None:
        raise search.missing or Refusal("transfer_unknown")
    raise Refusal("not_refundable", refused)


async def _owns(call: Call, view: TransferFound, payer: str) -> bool:
    """
    Say whether the wallet that was paid is the caller's, as the tables or its shard know it.
    """
    merchant_id = call.caller.merchant_id
    if view.transfer_type == TransferType.FEE:
        return view.merchant_id == merchant_id
    known = None if view.destination is None else view.destination.merchant_id
    return known == merchant_id if known is not None else await owns_wallet(call, payer)


async def _search_for(call: Call) -> TransferSearch:
    transfer_id = parse_uuid(call.parameters[0])
    if transfer_id is None:
        raise Refusal("transfer_unknown")
    return await call.gateway.history.transfer(transfer_id)
