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

import msgspec

from gateway.endpoint import Call
from gateway.identifiers import timestamp_text, uuid_text
from gateway.problems import FieldError, Refusal
from gateway.reply import JSON, NDJSON, Reply
from gateway.shard_client import SHARD_ID, OutcomeUnknown, ShardOverloaded, ShardUnavailable
from gateway.strict_json import Strict, StrictDecoder, has_plain_keys, malformed
from gateway.transfers import is_replay, move_command, reuse_error
from gateway.wire import BatchRequest, BatchResult, BatchTransfer
from processor.core.commands import MoveMoney, TransferType
from processor.core.reject_reason import RejectReason
from processor.flow.frames import KeyReused, Posted, Rejected, Result

ITEMS_A_TURN = 1_000

# Well-formed JSON up to the value of its only key.
_ONE_KEY = re.compile(rb'\s*\{\s*"[^"]*"\s*:\s*')


class _Document(Strict, frozen=True):
    transfers: msgspec.Raw


_encoder = msgspec.json.Encoder()
_plain_document = msgspec.json.Decoder(BatchRequest).decode
_plain_lines = msgspec.json.Decoder(BatchTransfer).decode_lines
_document = msgspec.json.Decoder(_Document).decode
_raw_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_strict_document = StrictDecoder(BatchRequest).decode
_strict_item = StrictDecoder(BatchTransfer).decode

Item = BatchTransfer | Refusal
Outcome = Result | Exception


async def create_transfer_batch(call: Call) -> Reply:
    is_ndjson = call.media_type == "application/x-ndjson"
    items = await _read(call.body, is_ndjson=is_ndjson)
    count_max = call.gateway.settings.gateway.batch_transfers_max
    if not 1 <= len(items) <= count_max:
        detail = f"A batch has 1 to {count_max} transfers; this one has {len(items)}."
        error = FieldError("out_of_range", detail, "" if is_ndjson else "/transfers")
        raise Refusal("validation_failed", errors=[error])
    commands = await _commands(call, items)
    outcomes = await _submit(call, [command for command in commands if command is not None])
    results = _results(items, commands, iter(outcomes), "" if is_ndjson else "/transfers/{index}")
    return await _write(results, is_ndjson=is_ndjson)


# --- Reading ------------------------------------------------------------------------------


async def _read(body: bytes, *, is_ndjson: bool) -> list[Item]:
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
        array = _document(body).transfers
        items = _raw_items(array)
    except msgspec.ValidationError:
        # It has another shape: the decoder of the whole says which field is wrong.
        return _strict_document(body) and []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error) from None
    before = body.rstrip()[:-1].rstrip()[: -len(bytes(array))]
    if not _ONE_KEY.fullmatch(before):
        error = FieldError("duplicate_key", "This key appears twice.", "/transfers")
        raise Refusal("malformed_json", "A key appears twice.", errors=[error])
    return items


def _read_item(raw: bytes) -> Item:
    try:
        return _strict_item(raw)
    except Refusal as refusal:
        return refusal


async def _commands(call: Call, items: list[Item]) -> list[MoveMoney | None]:
    """
    Make a command of each sound item; of the others, refusals in their place in *items*.
    """
    check = call.gateway.validation.batch_transfer
    merchant_id = call.caller.merchant_id
    commands: list[MoveMoney | None] = []
    for index, item in enumerate(items):
        command = None
        if isinstance(item, BatchTransfer):
            errors = check(item)
            if errors:
                items[index] = Refusal("validation_failed", errors=errors)
            else:
                command = move_command(
                    item,
                    TransferType.TRANSFER,
                    item.source,
                    item.destination,
                    merchant_id,
                    item.idempotency_key,
                )
        commands.append(command)
        if index % ITEMS_A_TURN == 0:
            await asyncio.sleep(0)
    return commands


async def _submit(call: Call, commands: Sequence[MoveMoney]) -> Sequence[Outcome]:
    """
    Send the commands; when nothing at all was applied for load or silence, raise why.
    """
    if not commands:
        return []
    outcomes = await call.gateway.shards.submit_many(commands, timeout_ms=call.gateway.timeout_ms)
    if all(isinstance(outcome, ShardOverloaded | ShardUnavailable) for outcome in outcomes):
        refused = outcomes[0]
        assert isinstance(refused, Exception), "the line above says so"
        raise refused
    return outcomes


# --- Writing ------------------------------------------------------------------------------


def _results(
    items: Sequence[Item],
    commands: Sequence[MoveMoney | None],
    outcomes: Iterator[Outcome],
    place: str,
) -> Iterator[BatchResult]:
    """
    Yield the result of each item; *place* is where an item's fields are in the document.
    """
    for index, (item, command) in enumerate(zip(items, commands, strict=True)):
        if isinstance(item, Refusal):
            yield _failed(index, None, item, place.format(index=index))
            continue
        assert command is not None, "a sound item has a command"
        outcome = next(outcomes)
        if type(outcome) is Posted:
            yield BatchResult(
                index,
                "posted",
                item.idempotency_key,
                uuid_text(outcome.transfer_id),
                outcome.balance,
                outcome.version,
                SHARD_ID,
                outcome.sequence,
                timestamp_text(outcome.at_us),
                is_replay(command, outcome),
            )
        elif type(outcome) is Rejected:
            yield _rejected(index, item, command, outcome)
        else:
            refusal = _refusal(outcome)
            yield _failed(index, item.idempotency_key, refusal, place.format(index=index))


def _rejected(
    index: int, item: BatchTransfer, command: MoveMoney, outcome: Rejected
) -> BatchResult:
    refusal = Refusal(RejectReason(outcome.reason).code)
    return BatchResult(
        index,
        "rejected",
        item.idempotency_key,
        uuid_text(outcome.transfer_id),
        shard=SHARD_ID,
        sequence=outcome.sequence,
        created_at=timestamp_text(outcome.at_us),
        replayed=is_replay(command, outcome),
        code=refusal.kind.code,
        detail=refusal.detail,
        outcome=refusal.kind.outcome,
    )


def _refusal(outcome: Outcome) -> Refusal:
    match outcome:
        case KeyReused():
            return Refusal("idempotency_key_reused", errors=[reuse_error(outcome)])
        case ShardOverloaded():
            return Refusal("overloaded")
        case ShardUnavailable():
            return Refusal("unavailable")
        case OutcomeUnknown():
            return Refusal("outcome_unknown")
    raise AssertionError(f"no answer to money: {outcome!r}")


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
    counts: Counter[str] = Counter(posted=0, rejected=0, failed=0, unknown=0)
    while turn := [result for _, result in zip(range(ITEMS_A_TURN), results, strict=False)]:
        counts.update(result.status for result in turn)
        parts.append(_encoder.encode_lines(turn) if is_ndjson else _encoder.encode(turn)[1:-1])
        await asyncio.sleep(0)
    if is_ndjson:
        text = ", ".join(f"{status}={count}" for status, count in counts.items())
        return Reply(200, b"".join(parts), (NDJSON, (b"batch-counts", text.encode())))
    head = _encoder.encode(counts)[:-1]
    return Reply(200, head + b',"results":[' + b",".join(parts) + b"]}", (JSON,))
