"""
A wallet's balance at a moment of its past.
"""

from __future__ import annotations

from gateway.endpoint import Call
from gateway.histories import Past, instant_us, read_past, require_version
from gateway.history_wire import BalanceQuery, WalletBalance
from gateway.identifiers import timestamp_text
from gateway.reply import Reply, json_reply
from gateway.wallets import query_invalid
from processor.storage.entries import PastBalance


async def get_balance(call: Call) -> Reply:
    """
    Show what a wallet had behind an entry, or at an instant.
    """
    query: BalanceQuery = call.query
    if query.at is not None and query.version is not None:
        raise query_invalid("version", "not_allowed", "Give at or version, not both.")
    at_us = instant_us(query.at, "at")

    async def read(past: Past) -> tuple[Past, PastBalance] | None:
        found = await _balance(call, past, at_us)
        return None if found is None else (past, found)

    past, found = await read_past(call, read)
    # Of the row that was read before the balance was: it has at least that much.
    as_of_us = None if past.row is None else await call.gateway.history.as_of(past.row)
    return json_reply(
        200,
        WalletBalance(
            past.wallet_id,
            past.currency,
            found.balance,
            found.version,
            time_text(found.at_us),
            time_text(as_of_us),
        ),
    )


async def _balance(call: Call, past: Past, at_us: int | None) -> PastBalance | None:
    query: BalanceQuery = call.query
    history = call.gateway.history
    if at_us is not None:
        return await history.balance_at(past.wallet_id, at_us, known=past.known)
    if query.version is None:
        return await history.balance_of_version(past.wallet_id, past.known)
    if not await require_version(call, past, query.version, "version"):
        return None
    return await history.balance_of_version(past.wallet_id, query.version)


def time_text(at_us: int | None) -> str | None:
    return None if at_us is None else timestamp_text(at_us)
