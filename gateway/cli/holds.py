"""
`miliano holds`: set money aside, look, capture, give up, extend, list.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from gateway.cli.amounts import amount_text
from gateway.cli.commands import LEDGER, Outcome, Session, command
from gateway.cli.keyed import Key, post_once
from gateway.cli.ledger import Answer, open_ledger
from gateway.cli.money import Amount, Currency, IfAvailable, IfVersion, Reference, moved_outcome
from gateway.cli.tables import facts, table, with_more
from gateway.cli.wallets import Limit, WalletId
from gateway.hold_wire import Hold, HoldPage
from gateway.wire import Transfer

app = typer.Typer(help="Set money aside, and capture it later.", no_args_is_help=True)

HoldId = Annotated[str, typer.Argument(metavar="HOLD", help="The hold's id.")]
Lifetime = Annotated[
    int,
    typer.Option("--expires-in", min=1, help="For how many seconds from now on."),
]


@command(app, "place", LEDGER)
def place_hold(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="FROM", help="Your wallet.")],
    amount: Amount,
    currency: Currency,
    destination: Annotated[
        str | None, typer.Option("--to", help="Where captures go that name no other wallet.")
    ] = None,
    expires_in_s: Lifetime = 604_800,
    key: Key = None,
    reference: Reference = None,
    if_version: IfVersion = None,
    if_available: IfAvailable = None,
) -> Outcome:
    """
    Set money of a wallet aside. The amount is in minor units.
    """
    body = {
        "source": source,
        "amount": amount,
        "currency": currency,
        "destination": destination,
        "expires_in_s": expires_in_s,
        "reference": reference,
        "if_version": if_version,
        "if_available_gte": if_available,
    }
    return _outcome(post_once(session, "/v1/holds", Hold, body, key))


@command(app, "show", LEDGER)
def show_hold(session: Session, hold_id: HoldId) -> Outcome:
    """
    Show a hold as it is now.
    """
    with open_ledger(session) as ledger:
        return _outcome(ledger.get(_path(hold_id), Hold))


@command(app, "capture", LEDGER)
def capture_hold(
    session: Session,
    hold_id: HoldId,
    amount: Annotated[
        int | None,
        typer.Option("--amount", help="In minor units (default: all that is left)."),
    ] = None,
    destination: Annotated[
        str | None, typer.Option("--to", help="Another wallet than the hold names.")
    ] = None,
    final: Annotated[
        bool | None,
        typer.Option("--final/--not-final", help="Whether the hold ends and the rest is free."),
    ] = None,
    key: Key = None,
    reference: Reference = None,
) -> Outcome:
    """
    Move money that a hold keeps: all that is left, or a part.
    """
    body = {"amount": amount, "destination": destination, "final": final, "reference": reference}
    path = f"{_path(hold_id)}/captures"
    return moved_outcome(post_once(session, path, Transfer, body, key))


@command(app, "void", LEDGER)
def void_hold(session: Session, hold_id: HoldId, key: Key = None) -> Outcome:
    """
    Give up a hold: what it keeps is free again.
    """
    return _outcome(post_once(session, f"{_path(hold_id)}/void", Hold, {}, key))


@command(app, "extend", LEDGER)
def extend_hold(
    session: Session, hold_id: HoldId, expires_in_s: Lifetime = 604_800, key: Key = None
) -> Outcome:
    """
    Let a hold last longer; it never gets shorter.
    """
    body = {"expires_in_s": expires_in_s}
    return _outcome(post_once(session, f"{_path(hold_id)}/extend", Hold, body, key))


@command(app, "list", LEDGER)
def list_holds(
    session: Session,
    wallet_id: WalletId,
    status: Annotated[
        str | None, typer.Option("--status", help="open, captured, voided or expired.")
    ] = None,
    after: Annotated[str | None, typer.Option("--after", help="Go on behind this id.")] = None,
    limit: Limit = 100,
) -> Outcome:
    """
    List a wallet's holds, the oldest first, as of a moment ago.
    """
    query = {"status": status, "after": after, "limit": limit}
    with open_ledger(session) as ledger:
        answer = ledger.get(f"/v1/wallets/{quote(wallet_id, safe='')}/holds", HoldPage, query)
    page = answer.body
    rows = [
        (
            hold.id,
            hold.status,
            amount_text(hold.amount, hold.currency),
            amount_text(hold.captured, hold.currency),
            amount_text(hold.remaining, hold.currency),
            hold.expires_at[:19].replace("T", " "),
            hold.reference,
        )
        for hold in page.holds
    ]
    columns = ["hold", "status", "amount>", "captured>", "remaining>", "expires", "reference"]
    return Outcome(answer.raw, with_more(table(columns, rows), page.next_cursor, "--after"))


def _path(hold_id: str) -> str:
    return f"/v1/holds/{quote(hold_id, safe='')}"


def _outcome(answer: Answer[Hold]) -> Outcome:
    hold = answer.body
    note = " (as before: the key was used already)" if answer.replayed else ""
    on_its_way = amount_text(hold.pending, hold.currency) if hold.pending else None
    available = None if hold.available is None else amount_text(hold.available, hold.currency)
    shown = facts(
        [
            ("hold", hold.id),
            ("status", f"{hold.status}{note}"),
            ("from", hold.source),
            ("to", hold.destination),
            ("amount", amount_text(hold.amount, hold.currency)),
            ("captured", amount_text(hold.captured, hold.currency)),
            ("on its way", on_its_way),
            ("remaining", amount_text(hold.remaining, hold.currency)),
            ("expires", hold.expires_at[:19].replace("T", " ")),
            ("available in the wallet", available),
            ("reference", hold.reference),
        ]
    )
    return Outcome(answer.raw, shown)
