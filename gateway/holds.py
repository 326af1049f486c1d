"""
Holds: money set aside in a wallet, captured later in one part or several, or given back.

Rule 1: a hold is read and changed at the shard of its wallet, which its id names; a list comes
        from the tables, a moment behind.
Rule 2: the key of what is done to a hold belongs to the merchant and the hold; that of placing
        one to the merchant and the wallet, as with a transfer.
"""

from __future__ import annotations

from typing import cast

from msgspec.structs import replace

from gateway.endpoint import Call
from gateway.hold_wire import (
    CaptureHoldRequest,
    ExtendHoldRequest,
    Hold,
    HoldPage,
    HoldsQuery,
    HoldStatusText,
    PlaceHoldRequest,
)
from gateway.idempotency_key import command_key
from gateway.identifiers import new_transfer_id, parse_uuid, timestamp_text, uuid_text
from gateway.problems import Refusal
from gateway.reply import REPLAYED, Header, Reply, json_reply
from gateway.transfers import (
    metadata_object,
    movement_reply,
    reuse_error,
    short_by_told,
    type_text,
    wallet_named,
)
from gateway.validation import canonical_metadata, lifetime_errors
from gateway.wallets import link_next, page_limit, query_invalid, read_wallet, wallet_id_of
from gateway.wire import Transfer
from processor.core import hold as core
from processor.core.amounts import AMOUNT_MAX
from processor.core.commands import (
    ExtendHold,
    MoveMoney,
    PlaceHold,
    ReadHold,
    Terms,
    TransferType,
    VoidHold,
)
from processor.core.hold import HoldStatus
from processor.core.reject_reason import RejectReason
from processor.core.slots import hold_id_in, slot_of
from processor.flow.frames import HoldFound, KeyReused, Rejected, Result, WalletRefused

_STATUS_TEXTS = {status.value: cast("HoldStatusText", status.code) for status in HoldStatus}
_STATUSES = {text: HoldStatus(value) for value, text in _STATUS_TEXTS.items()}
_TYPES = {
    PlaceHold: TransferType.HOLD,
    VoidHold: TransferType.VOID,
    ExtendHold: TransferType.EXTEND,
}

HoldCommand = PlaceHold | VoidHold | ExtendHold


async def place_hold(call: Call) -> Reply:
    body: PlaceHoldRequest = call.body
    errors = call.gateway.validation.placing(body)
    if errors:
        raise Refusal("validation_failed", errors=errors)
    command = place_command(body, call.caller.merchant_id, call.idempotency_key)
    return await _done(call, command, status=201)


async def get_hold(call: Call) -> Reply:
    command = ReadHold(call.caller.merchant_id, _hold_id_of(call))
    result, shard_id = await call.gateway.shards.submit(command, timeout_ms=call.gateway.timeout_ms)
    if isinstance(result, WalletRefused):
        raise Refusal("hold_not_found")
    assert isinstance(result, HoldFound), "a shard answers a look at a hold with one of two"
    return json_reply(200, found_hold(result, shard_id))


async def capture_hold(call: Call) -> Reply:
    body: CaptureHoldRequest = call.body
    errors = call.gateway.validation.capture(body)
    if errors:
        raise Refusal("validation_failed", errors=errors)
    hold_id = _hold_id_of(call)
    command = capture_command(body, hold_id, call.caller.merchant_id, call.idempotency_key)
    result, shard_id = await call.gateway.shards.submit(command, timeout_ms=call.gateway.timeout_ms)
    return movement_reply(command, result, shard_id)


async def void_hold(call: Call) -> Reply:
    hold_id, merchant_id = _hold_id_of(call), call.caller.merchant_id
    key = hold_key(merchant_id, hold_id, call.idempotency_key)
    return await _done(call, VoidHold(new_transfer_id(), key, merchant_id, hold_id), status=200)


async def extend_hold(call: Call) -> Reply:
    body: ExtendHoldRequest = call.body
    errors = lifetime_errors(body.expires_in_s)
    if errors:
        raise Refusal("validation_failed", errors=errors)
    hold_id, merchant_id = _hold_id_of(call), call.caller.merchant_id
    key = hold_key(merchant_id, hold_id, call.idempotency_key)
    command = ExtendHold(new_transfer_id(), key, merchant_id, hold_id, body.expires_in_s)
    return await _done(call, command, status=200)


async def list_holds(call: Call) -> Reply:
    query: HoldsQuery = call.query
    wallet_id = wallet_id_of(call)
    limit = page_limit(call, query.limit)
    after = bytes(16) if query.after is None else parse_uuid(query.after)
    if after is None:
        raise query_invalid("after", "bad_format", "Give the next_cursor of the page before.")
    status = None if query.status is None else _STATUSES[query.status]
    rows = await call.gateway.history.holds_of(
        call.caller.merchant_id, wallet_id, status=status, after=after, limit=limit + 1
    )
    if not rows:
        await read_wallet(call, wallet_id)  # So that a foreign wallet is told from an idle one.
    holds = [shown_hold(hold, shard_id) for hold, shard_id in rows[:limit]]
    cursor = holds[-1].id if len(rows) > limit else None
    chosen = "" if query.status is None else f"&status={query.status}"
    path = f"/v1/wallets/{wallet_id}/holds?after={cursor}&limit={limit}{chosen}"
    links = (link_next(path),) if cursor else ()
    return json_reply(200, HoldPage(holds, cursor is not None, cursor), *links)


# --- Commands -----------------------------------------------------------------------------


def place_command(request: PlaceHoldRequest, merchant_id: str, idempotency_key: str) -> PlaceHold:
    """
    Make the command of a request that has passed validation.
    """
    terms = None
    if request.if_version is not None or request.if_available_gte is not None:
        terms = Terms(if_version=request.if_version, if_available_gte=request.if_available_gte)
    return PlaceHold(
        hold_id_in(slot_of(request.source), new_transfer_id()),
        command_key(merchant_id, request.source, idempotency_key),
        merchant_id,
        request.source,
        request.destination or "",
        request.currency,
        request.amount,
        request.expires_in_s,
        request.reference,
        canonical_metadata(request.metadata),
        terms,
    )


def capture_command(
    request: CaptureHoldRequest, hold_id: bytes, merchant_id: str, idempotency_key: str
) -> MoveMoney:
    """
    Make the command of a request that has passed validation.

    What it leaves open is the ledger's to fill in: source and currency always, destination and
    amount where the request does not name them.
    """
    is_all = request.amount is None
    terms = Terms(
        hold_id=hold_id,
        is_final=is_all if request.final is None else request.final,
        amount_max=AMOUNT_MAX if is_all else None,
    )
    return MoveMoney(
        TransferType.CAPTURE,
        new_transfer_id(),
        hold_key(merchant_id, hold_id, idempotency_key),
        merchant_id,
        "",
        request.destination or "",
        "",
        request.amount or AMOUNT_MAX,
        request.reference,
        canonical_metadata(request.metadata),
        terms,
    )


def hold_key(merchant_id: str, hold_id: bytes, idempotency_key: str) -> bytes:
    """
    Hash the key of what is done to a hold; no wallet has an id that begins with a $.
    """
    return command_key(merchant_id, f"$hold:{uuid_text(hold_id)}", idempotency_key)


async def _done(call: Call, command: HoldCommand, *, status: int) -> Reply:
    result, shard_id = await call.gateway.shards.submit(command, timeout_ms=call.gateway.timeout_ms)
    return hold_reply(command, result, shard_id, status)


# --- What is told -------------------------------------------------------------------------


def hold_reply(command: HoldCommand, result: Result, shard_id: int, status: int) -> Reply:
    """
    Tell what came of a command on a hold; raises the Refusal of what was not done.
    """
    if isinstance(result, KeyReused):
        raise Refusal("idempotency_key_reused", errors=[reuse_error(result)])
    assert isinstance(result, HoldFound | Rejected), "a shard answers a hold with one of three"
    asked_id = command.hold_id if isinstance(command, PlaceHold) else command.transfer_id
    headers: tuple[Header, ...] = (REPLAYED,) if result.transfer_id != asked_id else ()
    if isinstance(result, Rejected):
        raise hold_rejection(command, result, shard_id, headers)
    hold = found_hold(result, shard_id)
    if status == 201:
        headers += ((b"location", f"/v1/holds/{hold.id}".encode()),)
    return json_reply(status, hold, *headers)


def hold_rejection(
    command: HoldCommand, result: Rejected, shard_id: int, headers: tuple[Header, ...]
) -> Refusal:
    """
    Word the refusal of a command on a hold, with what was not done inside.
    """
    code = RejectReason(result.reason).code
    filled_in = result.filled_in
    if filled_in is None or not filled_in.source:
        return Refusal(code, headers=headers)  # There is no such hold.
    is_placing = isinstance(command, PlaceHold)
    kind = _TYPES[type(command)]
    transfer = Transfer(
        uuid_text(result.transfer_id),
        type_text(kind),
        "rejected",
        code,
        filled_in.source,
        wallet_named(filled_in.destination),
        filled_in.amount,
        filled_in.currency,
        command.reference if isinstance(command, PlaceHold) else None,
        metadata_object(command.metadata if isinstance(command, PlaceHold) else None),
        None,
        None,
        shard_id,
        result.sequence,
        timestamp_text(result.at_us),
        None if is_placing else uuid_text(command.hold_id),
        short_by_told(kind, result.reason, result.short_by),
    )
    return Refusal(code, headers=headers, transfer=transfer)


def found_hold(found: HoldFound, shard_id: int) -> Hold:
    """
    Show a hold as its shard tells it, with the balances of its wallet.
    """
    hold = shown_hold(found.hold, shard_id)
    return replace(
        hold,
        sequence=found.sequence,
        balance=found.posted,
        available=found.available,
        held=found.held,
        version=found.version,
    )


def shown_hold(hold: core.Hold, shard_id: int) -> Hold:
    """
    Show what a hold is by itself.
    """
    return Hold(
        uuid_text(hold.hold_id),
        _STATUS_TEXTS[hold.status],
        hold.wallet_id,
        hold.destination or None,
        hold.amount,
        hold.captured,
        hold.pending,
        hold.kept,
        hold.currency,
        hold.reference,
        metadata_object(hold.metadata),
        timestamp_text(hold.placed_at_us),
        timestamp_text(hold.expires_at_us),
        shard_id,
    )


def _hold_id_of(call: Call) -> bytes:
    """
    Return the hold of the path; what cannot be an id is the id of no hold.
    """
    hold_id = parse_uuid(call.parameters[0])
    if hold_id is None:
        raise Refusal("hold_not_found")
    return hold_id
