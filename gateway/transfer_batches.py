"""
Many independent transfers in one request.

Rule 1: each item stands for itself: it has its own key, its own result, and what is wrong with
        it stops no other. Only a document that cannot be read is refused as a whole.
Rule 2: results come in the order of the items.
Rule 3: long work is cut into turns, so that a large batch does not hold up small requests.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec

from gateway.endpoint import Call
from gateway.identifiers import timestamp_text, uuid_text
from gateway.problems import FieldError, Refusal
from gateway.reply import JSON, NDJSON, Reply
from gateway.shard_client import OutcomeUnknown, ShardOverloaded, ShardUnavailable
from gateway.shard_clients import Told
from gateway.strict_json import (
    Strict,
    StrictDecoder,
    field_error,
    has_plain_keys,
    malformed,
    repeated_key,
)
from gateway.transfers import is_replay, move_command, reuse_error, short_by_told
from gateway.wire import BatchRequest, BatchResult, BatchTransfer
from processor.core.commands import MoveMoney
from processor.core.reject_reason import RejectReason
from processor.flow.frames import KeyReused, Pending, Posted, Rejected

ITEMS_A_TURN = 1_000

# Well-formed JSON up to the value of its only key.
_ONE_KEY = re.compile(rb'\s*\{\s*"[^"]*"\s*:\s*')


class _Whole(Strict, frozen=True):
    transfers: msgspec.Raw


class _Items(Strict, frozen=True):
    transfers: list[msgspec.Raw]


_encoder = msgspec.json.Encoder()
_plain_document = msgspec.json.Decoder(BatchRequest).decode
_plain_lines = msgspec.json.Decoder(BatchTransfer).decode_lines
_raw_whole = msgspec.json.Decoder(_Whole).decode
_raw_items = msgspec.json.Decoder(_Items).decode
_strict_item = StrictDecoder(BatchTransfer).decode

Item = BatchTransfer | Refusal


async def create_transfer_batch(call: Call) -> Reply:
    is_ndjson = call.media_type == "application/x-ndjson"
    items = await read_items(call.body, is_ndjson=is_ndjson)
    count_max = call.gateway.settings.gateway.batch_transfers_max
    if not 1 <= len(items) <= count_max:
        detail = f"A batch has 1 to {count_max} transfers; this one has {len(items)}."
        error = FieldError("out_of_range", detail, "" if is_ndjson else "/transfers")
        raise Refusal("validation_failed", errors=[error])
    plans = await _plan(call, items)
    outcomes = await _submit(call, [plan for plan in plans if isinstance(plan, MoveMoney)])
    place = "" if is_ndjson else "/transfers/{index}"
    return await _write(_results(items, plans, outcomes, place), is_ndjson=is_ndjson)


# --- Reading ------------------------------------------------------------------------------


async def read_items(body: bytes, *, is_ndjson: bool) -> list[Item]:
    """
    Decode everything at once; only if something is amiss, item by item.
    """
    try:
        plain = _plain_lines(body) if is_ndjson else _plain_document(body).transfers
        if has_plain_keys(body, plain if is_ndjson else BatchRequest(plain)):
            return list(plain)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    raws = _lines(body) if is_ndjson else _array(body)
    items: list[Item] = []
    for start in range(0, len(raws), ITEMS_A_TURN):
        items += [_read_item(raw) for raw in raws[start : start + ITEMS_A_TURN]]
        await asyncio.sleep(0)
    return items


def _lines(body: bytes) -> list[bytes]:
    return [line for line in body.split(b"\n") if line.strip()]


def _array(body: bytes) -> Sequence[bytes]:
    try:
        items = _raw_items(body).transfers
        array = _raw_whole(body).transfers
    except msgspec.ValidationError as error:
        raise Refusal("validation_failed", errors=[field_error(str(error))]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error) from None
    before = body.rstrip()[:-1].rstrip()[: -len(bytes(array))]
    if not _ONE_KEY.fullmatch(before):
        raise repeated_key("/transfers")
    return items


def _read_item(raw: bytes) -> Item:
    try:
        return _strict_item(raw)
    except Refusal as refusal:
        return refusal


async def _plan(call: Call, items: Sequence[Item]) -> list[MoveMoney | Refusal]:
    """
    Make the command of each sound item, and a refusal of each other one.
    """
    check = call.gateway.validation.batch_transfer
    merchant_id = call.caller.merchant_id
    plans: list[MoveMoney | Refusal] = []
    for index, item in enumerate(items):
        if index % ITEMS_A_TURN == 0:
            await asyncio.sleep(0)
        if isinstance(item, Refusal):
            plans.append(item)
        elif errors := check(item):
            plans.append(Refusal("validation_failed", errors=errors))
        else:
            plans.append(move_command(item, merchant_id, item.idempotency_key))
    return plans


async def _submit(call: Call, commands: Sequence[MoveMoney]) -> Sequence[Told]:
    """
    Send the commands; when nothing at all was applied for load or silence, raise why.
    """
    if not commands:
        return []
    outcomes = await call.gateway.shards.submit_many(commands, timeout_ms=call.gateway.timeout_ms)
    if all(isinstance(outcome, ShardOverloaded | ShardUnavailable) for outcome, _ in outcomes):
        refused = outcomes[0][0]
        assert isinstance(refused, Exception), "the line above says so"
        raise refused
    return outcomes


# --- Writing ------------------------------------------------------------------------------


def _results(
    items: Sequence[Item],
    plans: Sequence[MoveMoney | Refusal],
    outcomes: Sequence[Told],
    place: str,
) -> Iterator[BatchResult]:
    """
    Yield the result of each item; *place* is where an item's fields are in the document.
    """
    answers = iter(outcomes)
    at_us, created_at = -1, ""  # Mostly the same for all: they were decided together.
    for index, (item, plan) in enumerate(zip(items, plans, strict=True)):
        key = None if isinstance(item, Refusal) else item.idempotency_key
        if isinstance(plan, Refusal):
            yield _failed(index, key, plan, place.format(index=index))
            continue
        answer, shard_id = next(answers)
        if type(answer) is Posted:
            if answer.at_us != at_us:
                at_us, created_at = answer.at_us, timestamp_text(answer.at_us)
            yield BatchResult(
                index,
                "posted",
                key,
                uuid_text(answer.transfer_id),
                answer.balance,
                answer.version,
                shard_id,
                answer.sequence,
                created_at,
                is_replay(plan, answer),
                amount=None if plan.terms is None else _amount_told(plan, answer),
            )
        elif type(answer) is Rejected:
            yield _rejected(index, key, plan, answer, shard_id)
        elif type(answer) is Pending:
            yield _pending(index, key, plan, answer, shard_id)
        else:
            yield _failed(index, key, _refusal(answer), place.format(index=index))


def _pending(
    index: int, key: str | None, command: MoveMoney, answer: Pending, shard_id: int
) -> BatchResult:
    return BatchResult(
        index,
        "pending",
        key,
        uuid_text(answer.transfer_id),
        shard=shard_id,
        sequence=answer.sequence,
        created_at=timestamp_text(answer.at_us),
        replayed=is_replay(command, answer),
        amount=_amount_told(command, answer),
    )


def _amount_told(command: MoveMoney, answer: Posted | Pending) -> int | None:
    """
    Say how much an item moved that did not name it exactly.
    """
    is_up_to = command.terms is not None and command.terms.amount_max is not None
    return answer.filled_in.amount if is_up_to and answer.filled_in is not None else None


def _rejected(
    index: int, key: str | None, command: MoveMoney, answer: Rejected, shard_id: int
) -> BatchResult:
    refusal = Refusal(RejectReason(answer.reason).code)
    return BatchResult(
        index,
        "rejected",
        key,
        uuid_text(answer.transfer_id),
        shard=shard_id,
        sequence=answer.sequence,
        created_at=timestamp_text(answer.at_us),
        replayed=is_replay(command, answer),
        code=refusal.kind.code,
        detail=refusal.detail,
        outcome=refusal.kind.outcome,
        short_by=short_by_told(command.transfer_type, answer.reason, answer.short_by),
    )


def _refusal(answer: object) -> Refusal:
    match answer:
        case KeyReused():
            return Refusal("idempotency_key_reused", errors=[reuse_error(answer)])
        case ShardOverloaded():
            return Refusal("overloaded")
        case ShardUnavailable():
            return Refusal("unavailable")
        case OutcomeUnknown():
            return Refusal("outcome_unknown")
    raise AssertionError(f"no answer to money: {answer!r}")


def _failed(index: int, key: str | None, refusal: Refusal, place: str) -> BatchResult:
    kind = refusal.kind
    errors = [
        msgspec.structs.replace(error, pointer=place + (error.pointer or ""))
        for error in refusal.errors
    ]
    return BatchResult(
        index,
        "unknown" if kind.outcome == "unknown" else "failed",
        key,
        code=kind.code,
        detail=refusal.detail,
        errors=errors,
        outcome=kind.outcome,
    )


async def _write(results: Iterator[BatchResult], *, is_ndjson: bool) -> Reply:
    parts: list[bytes] = []
    counts: Counter[str] = Counter(posted=0, rejected=0, pending=0, failed=0, unknown=0)
    while turn := list(islice(results, ITEMS_A_TURN)):
        counts.update(result.status for result in turn)
        parts.append(_encoder.encode_lines(turn) if is_ndjson else _encoder.encode(turn)[1:-1])
        await asyncio.sleep(0)
    if is_ndjson:
        text = ", ".join(f"{status}={count}" for status, count in counts.items())
        return Reply(200, b"".join(parts), (NDJSON, (b"batch-counts", text.encode())))
    head = _encoder.encode(counts)[:-1]
    return Reply(200, head + b',"results":[' + b",".join(parts) + b"]}", (JSON,))
