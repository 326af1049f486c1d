"""
`miliano wallets`: open, look, change, list, history.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from gateway.cli import limits, statements
from gateway.cli.amounts import amount_text
from gateway.cli.commands import LEDGER, Outcome, Session, command
from gateway.cli.ledger import Answer, open_ledger
from gateway.cli.tables import facts, table, with_more
from gateway.wire import EntryPage, Wallet, WalletPage

app = typer.Typer(help="Open, look at and change wallets.", no_args_is_help=True)

WalletId = Annotated[str, typer.Argument(metavar="WALLET", help="The wallet's id.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]


@command(app, "open", LEDGER)
def open_wallet(
    session: Session,
    currency: Annotated[str, typer.Argument(metavar="CURRENCY", help="For example EUR.")],
    wallet_id: Annotated[
        str | None, typer.Option("--id", metavar="WALLET", help="Its id (default: one is made).")
    ] = None,
    minimum: Annotated[
        int, typer.Option("--minimum", help="In minor units; negative is an overdraft.")
    ] = 0,
) -> Outcome:
    """
    Open a wallet. Asking again for the same one changes nothing.
    """
    wanted = {"currency": currency, "wallet_id": wallet_id, "minimum": minimum or None}
    with open_ledger(session) as ledger:
        answer = ledger.send("POST", "/v1/wallets", Wallet, wanted)
    return _outcome(answer, "opened" if answer.status == 201 else "was open before")


@command(app, "show", LEDGER)
def show_wallet(session: Session, wallet_id: WalletId) -> Outcome:
    """
    Show a wallet as it is now.
    """
    with open_ledger(session) as ledger:
        return _outcome(ledger.get(_path(wallet_id), Wallet))


@command(app, "list", LEDGER)
def list_wallets(
    session: Session,
    after: Annotated[str | None, typer.Option("--after", help="Go on behind this id.")] = None,
    limit: Limit = 100,
) -> Outcome:
    """
    List your wallets by id, as of a moment ago.
    """
    with open_ledger(session) as ledger:
        answer = ledger.get("/v1/wallets", WalletPage, {"after": after, "limit": limit})
    page = answer.body
    rows = [
        (w.wallet_id, amount_text(w.balance, w.currency), w.status, w.minimum, w.version)
        for w in page.wallets
    ]
    shown = table(["wallet", "balance>", "status", "minimum>", "entries>"], rows)
    return Outcome(answer.raw, with_more(shown, page.next_cursor, "--after"))


@command(app, "freeze", LEDGER)
def freeze_wallet(session: Session, wallet_id: WalletId) -> Outcome:
    """
    Let nothing out of a wallet; money may still come in.
    """
    return _set_status(session, wallet_id, "frozen")


@command(app, "lock", LEDGER)
def lock_wallet(session: Session, wallet_id: WalletId) -> Outcome:
    """
    Let nothing into a wallet and nothing out.
    """
    return _set_status(session, wallet_id, "locked")


@command(app, "unlock", LEDGER)
def unlock_wallet(session: Session, wallet_id: WalletId) -> Outcome:
    """
    Open a frozen or locked wallet again.
    """
    return _set_status(session, wallet_id, "open")


@command(app, "close", LEDGER)
def close_wallet(session: Session, wallet_id: WalletId) -> Outcome:
    """
    Close an empty wallet for ever.
    """
    return _set_status(session, wallet_id, "closed")


@command(app, "set-minimum", LEDGER, context_settings={"ignore_unknown_options": True})
def set_minimum(
    session: Session,
    wallet_id: WalletId,
    minimum: Annotated[
        int, typer.Argument(metavar="MINIMUM", help="In minor units; negative is an overdraft.")
    ],
) -> Outcome:
    """
    Say how far a wallet's balance may fall.
    """
    with open_ledger(session) as ledger:
        answer = ledger.send("PATCH", _path(wallet_id), Wallet, {"minimum": minimum})
    return _outcome(answer)


@command(app, "entries", LEDGER)
def list_entries(
    session: Session,
    wallet_id: WalletId,
    after: Annotated[
        int | None, typer.Option("--after", help="Oldest first, behind this version.")
    ] = None,
    before: Annotated[
        int | None, typer.Option("--before", help="Newest first, before this version.")
    ] = None,
    limit: Limit = 20,
    kind: Annotated[
        str | None, typer.Option("--type", help="Only these: transfer, deposit, withdrawal, ...")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Only entries with exactly this one.")
    ] = None,
    since: statements.Since = None,
    until: statements.Until = None,
) -> Outcome:
    """
    Show what went in and out of a wallet, the newest first.
    """
    query = {"after": after, "before": before, "limit": limit, "type": kind}
    query |= {"reference": reference, "from": since, "to": until}
    with open_ledger(session) as ledger:
        answer = ledger.get(f"{_path(wallet_id)}/entries", EntryPage, query)
    page = answer.body
    rows = [
        (
            entry.version,
            entry.created_at[:19].replace("T", " "),
            amount_text(-entry.amount if entry.direction == "debit" else entry.amount, currency),
            amount_text(entry.balance, currency),
            entry.counterparty or f"({entry.type})",
            entry.reference,
        )
        for entry in page.entries
        for currency in [entry.currency]
    ]
    columns = ["version>", "at", "amount>", "balance>", "with", "reference"]
    option = "--before" if after is None else "--after"
    return Outcome(answer.raw, with_more(table(columns, rows), page.next_cursor, option))


statements.register(app)
limits.register(app)


def _path(wallet_id: str) -> str:
    return f"/v1/wallets/{quote(wallet_id, safe='')}"


def _set_status(session: Session, wallet_id: str, status: str) -> Outcome:
    with open_ledger(session) as ledger:
        answer = ledger.send("PATCH", _path(wallet_id), Wallet, {"status": status})
    return _outcome(answer)


def _outcome(answer: Answer[Wallet], note: str | None = None) -> Outcome:
    wallet = answer.body
    is_all_available = wallet.available in (None, wallet.balance)
    shown = facts(
        [
            ("wallet", f"{wallet.wallet_id} ({note})" if note else wallet.wallet_id),
            ("balance", amount_text(wallet.balance, wallet.currency)),
            ("available", None if is_all_available else _money(wallet, wallet.available)),
            ("held", _money(wallet, wallet.held) if wallet.held else None),
            ("minimum", amount_text(wallet.minimum, wallet.currency)),
            ("status", wallet.status),
            ("entries", wallet.version),
            ("limits", None if wallet.limits is None else "miliano wallets limits shows them"),
        ]
    )
    return Outcome(answer.raw, shown)


def _money(wallet: Wallet, amount: int | None) -> str | None:
    return None if amount is None else amount_text(amount, wallet.currency)
