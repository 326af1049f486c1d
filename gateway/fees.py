"""
Fees: what a merchant's fee legs have brought in, by currency and shard, and sweeping it up.

Rule 1: a fee stays at the shard of who pays it, in a wallet of its merchant that no client can
        name. So paying one never needs a second shard.
Rule 2: a sweep is one transfer a shard, of all that is there, under a key that is derived for that
        shard. Every shard is asked, also one that has nothing: then its key has that outcome, and
        the same sweep sent again moves nothing more.
Rule 3: it goes into a wallet of the same merchant: by a slip, all fees would be a stranger's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from gateway.endpoint import Call
from gateway.fee_wire import Fees, FeesAtShard, FeesInCurrency, Sweep, SweepRequest
from gateway.idempotency_key import command_key
from gateway.identifiers import new_transfer_id
from gateway.problems import FieldError, Refusal
from gateway.reply import REPLAYED, Reply, json_reply
from gateway.shard_client import OutcomeUnknown, ShardUnavailable
from gateway.shard_clients import Failed, Told
from gateway.transfers import is_replay, moved_transfer, reuse_error
from gateway.validation import Validation
from gateway.wallets import read_wallet
from gateway.wire import TransferRequest
from processor.core.amounts import AMOUNT_MAX
from processor.core.commands import MoveMoney, Terms, TransferType
from processor.core.reject_reason import RejectReason
from processor.core.wallet import fees_wallet_id
from processor.flow.frames import KeyReused, Pending, Posted, Rejected
from processor.storage.fee_listing import FeesRow, fees_of

_NOTHING_THERE = (RejectReason.SOURCE_UNKNOWN, RejectReason.INSUFFICIENT_FUNDS)


async def get_fees(call: Call) -> Reply:
    pages, missing = await call.gateway.history.each(
        lambda conn: fees_of(conn, call.caller.merchant_id)
    )
    if missing is not None:
        raise missing
    return json_reply(200, shown_fees([row for page in pages for row in page]))


async def sweep_fees(call: Call) -> Reply:
    """
    Bring the fees of all shards into one wallet, once.
    """
    body: SweepRequest = call.body
    errors = sweep_errors(call.gateway.validation, body)
    if errors:
        raise Refusal("validation_failed", errors=errors)
    await read_wallet(call, body.destination)  # Refused when it is not the caller's.
    shards = call.gateway.shards
    commands = [
        sweep_command(body, shard_id, call.caller.merchant_id, call.idempotency_key)
        for shard_id in [one.shard_id for one in shards.statistics()]
    ]
    if not commands:
        raise ShardUnavailable("no shard is known yet")
    told = await shards.submit_many(commands, timeout_ms=call.gateway.timeout_ms)
    return sweep_reply(body, commands, told)


def sweep_errors(validation: Validation, request: SweepRequest) -> list[FieldError]:
    asked = TransferRequest(request.destination, request.destination, 1, request.currency)
    return [error for error in validation.movement(asked) if error.pointer != "/source"]


def sweep_command(
    request: SweepRequest, shard_id: int, merchant_id: str, idempotency_key: str
) -> MoveMoney:
    """
    Make the command that moves what is there of one shard's fees.
    """
    source = fees_wallet_id(shard_id, merchant_id, request.currency)
    scope = f"{source}>{request.destination}"
    return MoveMoney(
        TransferType.TRANSFER,
        new_transfer_id(),
        command_key(merchant_id, scope, idempotency_key),
        merchant_id,
        source,
        request.destination,
        request.currency,
        AMOUNT_MAX,
        "fees",
        None,
        Terms(amount_max=AMOUNT_MAX),
    )


def sweep_reply(
    request: SweepRequest, commands: Sequence[MoveMoney], told: Sequence[Told]
) -> Reply:
    """
    Tell what came of a sweep; raises the Refusal of one that moved nothing for another reason
    than that nothing was there.
    """
    _raise_failed([result for result, _ in told])
    transfers, is_replayed = [], False
    for command, (result, shard_id) in zip(commands, told, strict=True):
        if isinstance(result, KeyReused):
            raise Refusal("idempotency_key_reused", errors=[reuse_error(result)])
        assert isinstance(result, Posted | Pending | Rejected), "a shard answers with one of four"
        is_replayed = is_replayed or is_replay(command, result)
        if isinstance(result, Rejected) and result.reason in _NOTHING_THERE:
            continue
        transfers.append(moved_transfer(command, result, shard_id))
    moved = [one for one in transfers if one.status != "rejected"]
    headers = (REPLAYED,) if is_replayed else ()
    if transfers and not moved:
        reason = transfers[0].reason
        assert reason is not None, "what was rejected has a reason"
        raise Refusal(reason, headers=headers, transfer=transfers[0])
    pending = sum(one.amount for one in moved if one.status == "pending")
    posted = sum(one.amount for one in moved if one.status == "posted")
    sweep = Sweep(request.currency, request.destination, posted, pending, transfers)
    if pending:
        first = next(one.id for one in moved if one.status == "pending")
        location = (b"location", f"/v1/transfers/{first}".encode())
        return json_reply(202, sweep, location, *headers)
    return json_reply(201 if posted else 200, sweep, *headers)


def _raise_failed(results: Sequence[object]) -> None:
    """
    Raise what kept shards from answering: unless none of them can have moved anything, the outcome
    of the whole is unknown, and the same key tells it.
    """
    failed = [result for result in results if isinstance(result, Failed)]
    if not failed:
        return
    if len(failed) < len(results) or any(isinstance(one, OutcomeUnknown) for one in failed):
        raise OutcomeUnknown("a part of the sweep was not answered")
    raise failed[0]


def shown_fees(rows: list[FeesRow]) -> Fees:
    """
    Show fees by currency, with those of each shard.
    """
    rows = sorted(rows, key=lambda row: (row.currency, row.shard_id))
    found = []
    for currency, group in groupby(rows, key=lambda row: row.currency):
        shards = [FeesAtShard(row.shard_id, row.balance, row.version) for row in group]
        total = sum(shard.balance for shard in shards)
        found.append(FeesInCurrency(currency, total, shards))
    return Fees(found)
