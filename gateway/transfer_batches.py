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
from collections.abc import Sequence

import msgspec

from gateway.endpoint import Call
from gateway.identifiers import timestamp_text, uuid_text
from gateway.problems import PROBLEMS, FieldError, Refusal
from gateway.reply import JSON, NDJSON, Header, Reply
from gateway.shard_client import SHARD_ID, OutcomeUnknown, ShardOverloaded, ShardUnavailable
from gateway.strict_json import Strict, StrictDecoder, has_plain_keys, malformed
from gateway.transfers import is_replay, move_command, reuse_error
from gateway.wire import BatchRequest, BatchResult, BatchTransfer
from processor.core.commands import Command, MoveMoney, TransferType
from processor.core.reject_reason import RejectReason
from processor.flow.frames import KeyReused, Posted, Rejected, Result

ITEMS_A_TURN = 1_000

# A document with one key, up to its value. Its parser has already found it well-formed.
_ONE_KEY = re.compile(rb'\s*\{\s*"[^"]*"\s*:\s*')

_encoder = msgspec.json.Encoder()
_plain_document = msgspec.json.Decoder(BatchRequest).decode
_plain_lines = msgspec.json.Decoder(BatchTransfer).decode_lines
_raw_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Document(Strict, frozen=True):
    transfers: msgspec.Raw


_document = msgspec.json.Decoder(_Document).decode
_item = StrictDecoder(BatchTransfer).decode

Item = BatchTransfer | Refusal


async def create_transfer_batch(call: Call) -> Reply:
    is_ndjson = call.media_type == "application/x-ndjson"
    items = await _read_items(call.body, is_ndjson=is_ndjson)
    _check_count(call, items)
    results: list[BatchResult | None] = []
    commands: list[MoveMoney] = []
    pointer = "" if is_ndjson else "/transfers/{index}"
    for start in range(0, len(items), ITEMS_A_TURN):
        _prepare(call, items[start : start + ITEMS_A_TURN], pointer, commands, results)
        await asyncio.sleep(0)
    outcomes: Sequence[Result | Exception] = []
    if commands:
        many: list[Command] = list(commands)
        outcomes = await call.gateway.shards.submit_many(many, timeout_ms=call.gateway.timeout_ms)
        _refuse_if_all_waited(outcomes)
    answered = iter(zip(commands, outcomes, strict=True))
    parts: list[bytes] = []
    counts: Counter[str] = Counter()
    for start in range(0, len(items), ITEMS_A_TURN):
        turn = [
            result or _result(start + offset, *next(answered), pointer)
            for offset, result in enumerate(results[start : start + ITEMS_A_TURN])
        ]
        counts.update(result.status for result in turn)
        parts.append(_encoder.encode_lines(turn) if is_ndjson else _encoder.encode(turn)[1:-1])
        await asyncio.sleep(0)
    return _ndjson_reply(parts, counts) if is_ndjson else _json_reply(parts, counts)


# --- Reading ------------------------------------------------------------------------------


async def _read_items(body: bytes, *, is_ndjson: bool) -> Sequence[Item]:
    """
    Decode everything at once; only if something is amiss, item by item.
    """
    try:
        items = _plain_lines(body) if is_ndjson else _plain_document(body).transfers
        if has_plain_keys(body, items if is_ndjson else BatchRequest(items)):
            return items
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    raws = _lines_of(body) if is_ndjson else _items_of(body)
    items_or_refusals: list[Item] = []
    for start in range(0, len(raws), ITEMS_A_TURN):
        items_or_refusals += [_read_item(raw) for raw in raws[start : start + ITEMS_A_TURN]]
        await asyncio.sleep(0)
    return items_or_refusals


def _lines_of(body: bytes) -> list[bytes]:
    return [line for line in body.split(b"\n") if line.strip()]


def _items_of(body: bytes) -> list[msgspec.Raw]:
    try:
        raw = _document(body).transfers
        items = _raw_items(raw)
    except msgspec.ValidationError:
        return StrictDecoder(BatchRequest).decode(body).transfers
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error) from None
    before = body.rstrip()[:-1].rstrip()[: -len(bytes(raw))]
    if not _ONE_KEY.fullmatch(before):
        error = FieldError("duplicate_key", "This key appears twice.", "/transfers")
        raise Refusal("malformed_json", "A key appears twice.", errors=[error])
    return items


def _read_item(raw: bytes | msgspec.Raw) -> Item:
    try:
        return _item(raw)
    except Refusal as refusal:
        return refusal


def _check_count(call: Call, items: Sequence[Item]) -> None:
    count_max = call.gateway.settings.gateway.batch_transfers_max
    if not 1 <= len(items) <= count_max:
        detail = f"A batch has 1 to {count_max} transfers; this one has {len(items)}."
        error = FieldError("out_of_range", detail, "/transfers")
        raise Refusal("validation_failed", errors=[error])


def _prepare(
    call: Call,
    items: Sequence[Item],
    pointer: str,
    commands: list[MoveMoney],
    results: list[BatchResult | None],
) -> None:
    """
    Add a command for each sound item, and for each other one its result.
    """
    check = call.gateway.validation.batch_transfer
    merchant_id = call.caller.merchant_id
    for item in items:
        if isinstance(item, Refusal):
            results.append(_failed(len(results), item, pointer))
            continue
        errors = check(item)
        if errors:
            refusal = Refusal("validation_failed", errors=errors)
            results.append(_failed(len(results), refusal, pointer, item.idempotency_key))
            continue
        results.append(None)
        commands.append(
            move_command(
                item,
                TransferType.TRANSFER,
                item.source,
                item.destination,
                merchant_id,
                item.idempotency_key,
            )
        )


# --- Writing ------------------------------------------------------------------------------
