"""
Linked transfers: along all legs or along none; making one, looking at it, taking it back.

Rule 1: the shard of the first leg's source decides, and the key belongs to that wallet; that of a
        reversal belongs to the linked transfer that it takes back.
Rule 2: the ids of the legs follow from the id of the whole, so that a repeated key tells those of
        the first answer.
Rule 3: a refusal names the leg that failed; no leg of it has moved anywhere. It points into the
        body, and that of a reversal has no legs: there only the words and the reply name it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec

from gateway.endpoint import Call
from gateway.idempotency_key import command_key
from gateway.identifiers import new_transfer_id, parse_uuid, timestamp_text, uuid_text
from gateway.linked_wire import (
    LEGS_MIN,
    LegRequest,
    LinkedLeg,
    LinkedTransfer,
    LinkedTransferRequest,
    ReversalRequest,
)
from gateway.problems import PROBLEMS, FieldError, Refusal
from gateway.reply import REPLAYED, Header, Reply, json_reply
from gateway.transfers import (
    metadata_object,
    reuse_error,
    short_by_told,
    type_text,
    wallet_named,
)
from gateway.validation import Validation, canonical_metadata
from gateway.wire import TransferRequest, TransferStatusText, WithdrawalRequest
from processor.core.commands import LEGS_MAX, Leg, MoveLinked, Terms, TransferType
from processor.core.decisions import LinkedPosted, LinkedRejected
from processor.core.leg_ids import leg_id, linked_id_in
from processor.core.reject_reason import RejectReason
from processor.core.wallet import fees_wallet_id
from processor.flow.frames import KeyReused, LegSource, LinkedMoved, LinkedRefused, Pending, Result
from processor.storage import linked_search
from processor.storage.linked_search import Debited, LinkedFound


async def create_linked_transfer(call: Call) -> Reply:
    """
    Do all movements that the body asks for, once, or none.
    """
    body: LinkedTransferRequest = call.body
    errors = linked_errors(call.gateway.validation, body)
    if errors:
        raise Refusal("validation_failed", errors=errors)
    command = linked_command(body, call.caller.merchant_id, call.idempotency_key)
    return await _submitted(call, command)


async def get_linked_transfer(call: Call) -> Reply:
    found = await _found(call)
    history = call.gateway.history
    pages, _ = await history.each(
        lambda conn: linked_search.debited(conn, found.decision.transfer_id)
    )
    return json_reply(200, shown_linked(found, [one for page in pages for one in page]))


async def reverse_linked_transfer(call: Call) -> Reply:
    """
    Take back what a linked transfer moved, the last leg first, once.
    """
    body: ReversalRequest = call.body
    errors = call.gateway.validation.words(body.reference, body.metadata)
    if errors:
        raise Refusal("validation_failed", errors=errors)
    original = (await _found(call)).decision
    legs = legs_to_reverse(original, fees=body.fees)
    homes = await _fees_homes(call, legs)
    scope = f"$reversal:{uuid_text(original.transfer_id)}"
    merchant_id = call.caller.merchant_id
    key = command_key(merchant_id, scope, call.idempotency_key)
    return await _submitted(call, reversal_command(body, legs, homes, merchant_id, key))


# --- What is asked for --------------------------------------------------------------------------


def linked_errors(validation: Validation, request: LinkedTransferRequest) -> list[FieldError]:
    """
    Check a linked transfer; each error points at its leg.
    """
    if not LEGS_MIN <= len(request.legs) <= LEGS_MAX:
        detail = f"A linked transfer has {LEGS_MIN} to {LEGS_MAX} legs."
        return [FieldError("out_of_range", detail, "/legs")]
    return [
        msgspec.structs.replace(error, pointer=f"/legs/{place}{error.pointer}")
        for place, leg in enumerate(request.legs)
        for error in _leg_errors(validation, leg)
    ]


def _leg_errors(validation: Validation, leg: LegRequest) -> list[FieldError]:
    asked = (leg.amount, leg.currency, leg.reference, leg.metadata)
    if leg.type == "fee":
        errors = validation.movement(WithdrawalRequest(leg.source, *asked))
        if leg.destination is not None:
            detail = "A fee goes into your own fees: leave the destination out."
            errors.append(FieldError("not_allowed", detail, "/destination"))
        return errors
    if leg.destination is None:
        missing = FieldError("required", "Name the wallet that is paid.", "/destination")
        return [*validation.movement(WithdrawalRequest(leg.source, *asked)), missing]
    return validation.movement(TransferRequest(leg.source, leg.destination, *asked))


def linked_command(
    request: LinkedTransferRequest, merchant_id: str, idempotency_key: str
) -> MoveLinked:
    """
    Make the command of a request that has passed validation.
    """
    linked_id = linked_id_in(new_transfer_id())
    legs = [
        Leg(
            TransferType.FEE if leg.type == "fee" else TransferType.TRANSFER,
            leg_id(linked_id, place),
            leg.source,
            leg.destination or "",
            leg.currency,
            leg.amount,
            leg.reference,
            canonical_metadata(leg.metadata),
        )
        for place, leg in enumerate(request.legs)
    ]
    key = command_key(merchant_id, legs[0].source, idempotency_key)
    return MoveLinked(linked_id, key, merchant_id, legs)


def legs_to_reverse(original: object, *, fees: str) -> list[Leg]:
    """
    List the legs that a reversal takes back, the last one first; raises Refusal when none can be.
    """
    if isinstance(original, LinkedRejected):
        raise Refusal(
            "not_refundable", "It was rejected: nothing moved, nothing can be taken back."
        )
    if not isinstance(original, LinkedPosted):
        raise Refusal("not_refundable", "It is still pending: look at it in a moment.")
    if any(leg.transfer_type == TransferType.REFUND for leg in original.legs):
        raise Refusal("not_refundable", "It is a reversal itself: pay again instead.")
    legs = [
        leg
        for leg in reversed(original.legs)
        if fees == "returned" or leg.transfer_type != TransferType.FEE
    ]
    if not legs:
        raise Refusal("not_refundable", "It has fees only: take it back with `returned`.")
    return legs


def reversal_command(
    request: ReversalRequest,
    legs: Sequence[Leg],
    homes: dict[bytes, int],
    merchant_id: str,
    key: bytes,
) -> MoveLinked:
    """
    Make the command that takes *legs* back; *homes* has the shards at which their fees are.
    """
    linked_id = linked_id_in(new_transfer_id())
    metadata = canonical_metadata(request.metadata)
    back = [
        Leg(
            TransferType.REFUND,
            leg_id(linked_id, place),
            leg.destination or fees_wallet_id(homes[leg.transfer_id], merchant_id, leg.currency),
            leg.source,
            leg.currency,
            leg.amount,
            leg.reference if request.reference is None else request.reference,
            metadata,
            Terms(refund_of=leg.transfer_id, refundable=leg.amount),
        )
        for place, leg in enumerate(legs)
    ]
    return MoveLinked(linked_id, key, merchant_id, back)


async def _fees_homes(call: Call, legs: Iterable[Leg]) -> dict[bytes, int]:
    """
    Find the shards that took the fees among *legs*: there they are, wherever the payer went since.
    """
    fees = [leg.transfer_id for leg in legs if leg.transfer_type == TransferType.FEE]
    searches = await asyncio.gather(*(call.gateway.history.transfer(one) for one in fees))
    homes = {}
    for transfer_id, search in zip(fees, searches, strict=True):
        posted = [view.shard_id for view in search.found if view.state == "posted"]
        if not posted:
            raise search.missing or Refusal("not_refundable", "It is still on its way.")
        homes[transfer_id] = posted[0]
    return homes


async def _found(call: Call) -> LinkedFound:
    """
    Find the caller's linked transfer of the path; raises Refusal for those of others.
    """
    linked_id = parse_uuid(call.parameters[0])
    if linked_id is None:
        raise Refusal("linked_transfer_unknown")
    found, missing = await call.gateway.history.each(
        lambda conn: linked_search.search(conn, linked_id)
    )
    for one in found:
        if one is not None and one.decision.merchant_id == call.caller.merchant_id:
            return one
    raise missing or Refusal("linked_transfer_unknown")


# --- What is told -------------------------------------------------------------------------------


async def _submitted(call: Call, command: MoveLinked) -> Reply:
    result, shard_id = await call.gateway.shards.submit(command, timeout_ms=call.gateway.timeout_ms)
    return linked_reply(command, result, shard_id)


def linked_reply(command: MoveLinked, result: Result, shard_id: int) -> Reply:
    """
    Tell what came of a linked transfer; raises the Refusal of one that did not happen.
    """
    if isinstance(result, KeyReused):
        differs = KeyReused(field_asked(command, result.field))
        raise Refusal("idempotency_key_reused", errors=[reuse_error(differs)])
    assert isinstance(result, LinkedMoved | LinkedRefused | Pending), "one of four answers it"
    headers: tuple[Header, ...] = ()
    if result.transfer_id != command.linked_id:
        headers = (REPLAYED,)
    told = told_linked(command, result, shard_id)
    if isinstance(result, LinkedRefused):
        raise linked_refusal(told, result, headers)
    location = (b"location", f"/v1/linked-transfers/{told.id}".encode())
    return json_reply(202 if isinstance(result, Pending) else 201, told, location, *headers)


def field_asked(command: MoveLinked, field: str) -> str:
    """
    Name the field of the body by which *command* differs: the legs of a reversal follow from `fees`
    and share its words.
    """
    if command.legs[0].transfer_type != TransferType.REFUND:
        return field
    return "fees" if field == "legs" else field.rpartition("/")[2]


def linked_refusal(
    told: LinkedTransfer, result: LinkedRefused, headers: tuple[Header, ...]
) -> Refusal:
    """
    Word the refusal of a linked transfer, with the legs that did not happen inside.
    """
    code = RejectReason(result.reason).code
    kind = PROBLEMS[code]
    is_reversal = told.legs[result.leg].type == "refund"
    failed = FieldError("refused", kind.title, f"/legs/{result.leg}")
    return Refusal(
        code,
        f"Leg {result.leg} fails, so that no leg has moved. {kind.detail}",
        errors=[] if is_reversal else [failed],
        headers=headers,
        linked_transfer=told,
    )


def told_linked(
    command: MoveLinked, result: LinkedMoved | LinkedRefused | Pending, shard_id: int
) -> LinkedTransfer:
    """
    Show what a command did; the ids are those of the first answer under its key.
    """
    status: TransferStatusText = "pending"
    reason, leg, short_by = None, None, None
    sources: list[LegSource] = []
    if isinstance(result, LinkedMoved):
        status, sources = "posted", result.sources
    elif isinstance(result, LinkedRefused):
        status, leg = "rejected", result.leg
        reason = RejectReason(result.reason).code
        kind = command.legs[leg].transfer_type
        short_by = short_by_told(kind, result.reason, result.short_by)
    ids = [leg_id(result.transfer_id, place) for place in range(len(command.legs))]
    after = {ids[one.leg]: (one.balance, one.version) for one in sources}
    legs = [
        msgspec.structs.replace(leg, transfer_id=transfer_id)
        for leg, transfer_id in zip(command.legs, ids, strict=True)
    ]
    return LinkedTransfer(
        uuid_text(result.transfer_id),
        status,
        reason,
        leg,
        short_by,
        _shown_legs(legs, after),
        shard_id,
        result.sequence,
        timestamp_text(result.at_us),
    )


def shown_linked(found: LinkedFound, debited: Iterable[Debited]) -> LinkedTransfer:
    """
    Show a linked transfer as it was found, with what the tables know of the wallets it debited.
    """
    decision = found.decision
    status: TransferStatusText = "pending"
    reason, leg, short_by = None, None, None
    after: dict[bytes, tuple[int, int]] = {}
    if isinstance(decision, LinkedRejected):
        status, leg = "rejected", decision.leg
        reason = RejectReason(decision.reason).code
        kind = decision.legs[leg].transfer_type
        short_by = short_by_told(kind, decision.reason, decision.short_by)
    elif found.is_done:
        assert isinstance(decision, LinkedPosted), "only what is posted is done"
        status = "posted"
        ids = [one.transfer_id for one in decision.legs]
        known = [*debited, *linked_search.debited_in(decision.postings, ids)]
        after = {one.transfer_id: (one.balance, one.version) for one in known}
    return LinkedTransfer(
        uuid_text(decision.transfer_id),
        status,
        reason,
        leg,
        short_by,
        _shown_legs(decision.legs, after),
        found.shard_id,
        found.sequence,
        timestamp_text(found.at_us),
    )


def _shown_legs(legs: Iterable[Leg], after: dict[bytes, tuple[int, int]]) -> list[LinkedLeg]:
    return [
        LinkedLeg(
            uuid_text(leg.transfer_id),
            type_text(leg.transfer_type),
            wallet_named(leg.source),
            wallet_named(leg.destination),
            leg.amount,
            leg.currency,
            leg.reference,
            metadata_object(leg.metadata),
            *after.get(leg.transfer_id, (None, None)),
        )
        for leg in legs
    ]
