"""
Wallets: opening, reading, changing, listing.

One wallet is read from its shard, as it is now; a list comes from the tables, a moment behind.
"""

from __future__ import annotations

import time
from typing import Literal, cast

from gateway.endpoint import Call
from gateway.identifiers import new_wallet_id
from gateway.problems import FieldError, Refusal
from gateway.reply import Header, Reply, json_reply
from gateway.shard_client import OutcomeUnknown, ShardOverloaded, ShardUnavailable
from gateway.validation import is_wallet_id
from gateway.wallet_limits import set_limits, shown_limits, shown_usage
from gateway.wire import (
    ChangeWalletRequest,
    OpenWalletRequest,
    Wallet,
    WalletPage,
    WalletsQuery,
)
from processor.core.commands import (
    Command,
    OpenWallet,
    ReadWallet,
    SetWalletLimits,
    SetWalletStatus,
)
from processor.core.reject_reason import RejectReason
from processor.core.wallet import WalletStatus
from processor.flow.frames import WalletFound, WalletRefused
from processor.storage.api_keys import Scope
from processor.storage.history import WalletRow

StatusText = Literal["open", "frozen", "locked", "closed"]
FoundWallet = tuple[WalletFound, int]  # With the shard that has it.

_STATUS_TEXTS = {status.value: cast("StatusText", status.name.lower()) for status in WalletStatus}
_STATUSES = {text: WalletStatus(value) for value, text in _STATUS_TEXTS.items()}


async def open_wallet(call: Call) -> Reply:
    body: OpenWalletRequest = call.body
    errors = call.gateway.validation.opening(body)
    if errors:
        raise Refusal("validation_failed", errors=errors)
    if body.minimum != 0:
        _require_limits_scope(call)
    wallet_id = body.wallet_id or new_wallet_id()
    found, shard_id = await wallet_command(
        call, OpenWallet(call.caller.merchant_id, wallet_id, body.currency, body.minimum)
    )
    location = (b"location", f"/v1/wallets/{wallet_id}".encode())
    return json_reply(201 if found.changed else 200, found_wallet(found, shard_id), location)


async def get_wallet(call: Call) -> Reply:
    return json_reply(200, found_wallet(*await read_wallet(call, wallet_id_of(call))))


async def change_wallet(call: Call) -> Reply:
    """
    Set minimum and limits, then the status: a wallet that is closed takes no limits any more.
    """
    body: ChangeWalletRequest = call.body
    wallet_id = wallet_id_of(call)
    errors = call.gateway.validation.change(body)
    if errors:
        raise Refusal("validation_failed", errors=errors)
    merchant_id = call.caller.merchant_id
    found: FoundWallet | None = None
    if body.minimum is not None or body.limits is not None:
        _require_limits_scope(call)
        limits = None if body.limits is None else set_limits(body.limits)
        command = SetWalletLimits(merchant_id, wallet_id, body.minimum, limits)
        found = await wallet_command(call, command)
    if body.status is not None:
        status = SetWalletStatus(merchant_id, wallet_id, _STATUSES[body.status])
        found = await _set_status(call, status, before=found)
    assert found is not None, "validation wants one of the three"
    return json_reply(200, found_wallet(*found))


async def list_wallets(call: Call) -> Reply:
    query: WalletsQuery = call.query
    limit = page_limit(call, query.limit)
    after = query.after or ""
    if after and not is_wallet_id(after):
        raise query_invalid("after", "bad_format", "Give the next_cursor of the page before.")
    rows = await call.gateway.history.wallets_of(
        call.caller.merchant_id, after=after, limit=limit + 1
    )
    page, has_more = rows[:limit], len(rows) > limit
    cursor = page[-1].wallet_id if has_more else None
    now_us = time.time_ns() // 1000
    wallets = [_row_wallet(row, now_us) for row in page]
    links = (link_next(f"/v1/wallets?after={cursor}&limit={limit}"),) if cursor else ()
    return json_reply(200, WalletPage(wallets, has_more, cursor), *links)


async def read_wallet(call: Call, wallet_id: str) -> FoundWallet:
    """
    Read the caller's wallet from its shard; raises Refusal when there is none.
    """
    return await wallet_command(call, ReadWallet(call.caller.merchant_id, wallet_id))


async def owns_wallet(call: Call, wallet_id: str) -> bool:
    """
    Ask the wallet's shard whether it is the caller's.
    """
    try:
        await read_wallet(call, wallet_id)
    except Refusal:
        return False
    return True


async def wallet_command(call: Call, command: Command) -> FoundWallet:
    """
    Send a wallet's command; raises Refusal with the shard's reason.
    """
    result, shard_id = await call.gateway.shards.submit(command, timeout_ms=call.gateway.timeout_ms)
    if isinstance(result, WalletRefused):
        raise Refusal(RejectReason(result.reason).code)
    assert isinstance(result, WalletFound), "a shard answers a wallet with one of two"
    return result, shard_id


async def _set_status(
    call: Call, command: SetWalletStatus, *, before: FoundWallet | None
) -> FoundWallet:
    """
    Set the status; *before* is the wallet with the limits that the same request has set.
    """
    try:
        return await wallet_command(call, command)
    except (ShardOverloaded, ShardUnavailable) as error:
        if before is None:
            raise
        raise OutcomeUnknown("the limits are set, the status is not") from error
    except Refusal as refusal:
        if before is None:
            raise
        # The two halves are two commands; whoever asked must hear that one of them holds.
        raise Refusal(
            refusal.kind.code,
            f"What else was asked for is set, the status is not. {refusal.detail}",
            errors=[FieldError("refused", refusal.kind.title, "/status")],
            wallet=found_wallet(*before),
        ) from None


def wallet_id_of(call: Call) -> str:
    """
    Return the wallet of the path; what cannot be an id is the id of no wallet.
    """
    wallet_id = call.parameters[0]
    if not is_wallet_id(wallet_id):
        raise Refusal("wallet_unknown")
    return wallet_id


def page_limit(call: Call, limit: int) -> int:
    """
    Return the page size asked for; raises Refusal above the bound.
    """
    limit_max = call.gateway.settings.gateway.page_size_max
    if limit > limit_max:
        raise query_invalid("limit", "out_of_range", f"A page has at most {limit_max} rows.")
    return limit


def query_invalid(parameter: str, code: str, detail: str) -> Refusal:
    return Refusal("query_invalid", errors=[FieldError(code, detail, parameter=parameter)])


def link_next(path: str) -> Header:
    return (b"link", f'<{path}>; rel="next"'.encode())


def found_wallet(found: WalletFound, shard_id: int) -> Wallet:
    return Wallet(
        found.wallet_id,
        found.currency,
        _STATUS_TEXTS[found.status],
        found.minimum,
        found.posted,
        found.version,
        shard_id,
        found.sequence,
        found.available,
        found.held,
        shown_limits(found.limits),
        None if found.limits is None else shown_usage(found.usage, time.time_ns() // 1000),
    )


def _row_wallet(row: WalletRow, now_us: int) -> Wallet:
    return Wallet(
        row.wallet_id,
        row.currency,
        _STATUS_TEXTS[row.status],
        row.minimum,
        row.posted,
        row.version,
        row.shard_id,
        row.sequence,
        limits=shown_limits(row.limits),
        usage=None if row.limits is None else shown_usage(row.usage, now_us),
    )


def _require_limits_scope(call: Call) -> None:
    if Scope.LIMITS_WRITE not in call.caller.scopes:
        raise Refusal(
            "scope_missing",
            f"The key lacks the scope {Scope.LIMITS_WRITE}, which setting limits needs.",
        )
