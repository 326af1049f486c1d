"""
`miliano transfer`, `deposit`, `withdraw`, and `transfers show`.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.amounts import amount_text
from gateway.cli.commands import LEDGER, Outcome, Session, command
from gateway.cli.keyed import Key, post_once
from gateway.cli.ledger import Answer, open_ledger
from gateway.cli.tables import facts
from gateway.wire import Transfer

transfers = typer.Typer(help="Look at transfers, explain and refund them.", no_args_is_help=True)

Amount = Annotated[
    int, typer.Argument(metavar="AMOUNT", help="Minor units: 1099 is 10.99 EUR, or 1099 JPY.")
]
Currency = Annotated[str, typer.Argument(metavar="CURRENCY", help="For example EUR.")]
Reference = Annotated[str | None, typer.Option("--reference", help="Your own words.")]
IfVersion = Annotated[
    int | None,
    typer.Option("--if-version", min=0, help="Only if your wallet has so many entries."),
]
IfAvailable = Annotated[
    int | None,
    typer.Option("--if-available", help="Only if so much is available in your wallet."),
]
UpTo = Annotated[bool, typer.Option("--up-to", help="Move what is available, at most the amount.")]


def register(app: typer.Typer) -> None:
    command(app, "transfer", LEDGER)(transfer)
    command(app, "deposit", LEDGER)(deposit)
    command(app, "withdraw", LEDGER)(withdraw)


def transfer(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="FROM", help="Your wallet.")],
    destination: Annotated[str, typer.Argument(metavar="TO", help="Any wallet.")],
    amount: Amount,
    currency: Currency,
    key: Key = None,
    reference: Reference = None,
    if_version: IfVersion = None,
    if_available: IfAvailable = None,
    up_to: UpTo = False,
) -> Outcome:
    """
    Move money between two wallets. The amount is in minor units.
    """
    body = {
        "source": source,
        "destination": destination,
        "amount": amount,
        "currency": currency,
        "reference": reference,
        **_conditions(if_version, if_available, up_to=up_to),
    }
    return moved_outcome(post_once(session, "/v1/transfers", Transfer, body, key))


def deposit(
    session: Session,
    destination: Annotated[str, typer.Argument(metavar="TO", help="Your wallet.")],
    amount: Amount,
    currency: Currency,
    key: Key = None,
    reference: Reference = None,
    if_version: IfVersion = None,
    if_available: IfAvailable = None,
) -> Outcome:
    """
    Bring money from outside into a wallet. The amount is in minor units.
    """
    body = {
        "destination": destination,
        "amount": amount,
        "currency": currency,
        "reference": reference,
        **_conditions(if_version, if_available),
    }
    return moved_outcome(post_once(session, "/v1/deposits", Transfer, body, key))


def withdraw(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="FROM", help="Your wallet.")],
    amount: Amount,
    currency: Currency,
    key: Key = None,
    reference: Reference = None,
    if_version: IfVersion = None,
    if_available: IfAvailable = None,
    up_to: UpTo = False,
) -> Outcome:
    """
    Take money out of a wallet. The amount is in minor units.
    """
    body = {
        "source": source,
        "amount": amount,
        "currency": currency,
        "reference": reference,
        **_conditions(if_version, if_available, up_to=up_to),
    }
    return moved_outcome(post_once(session, "/v1/withdrawals", Transfer, body, key))


def _conditions(
    if_version: int | None, if_available_gte: int | None, *, up_to: bool = False
) -> dict[str, Any]:
    return {
        "if_version": if_version,
        "if_available_gte": if_available_gte,
        "up_to": up_to or None,
    }


@command(transfers, "show", LEDGER)
def show_transfer(
    session: Session,
    transfer_id: Annotated[str, typer.Argument(metavar="ID", help="The transfer's id.")],
) -> Outcome:
    """
    Show a transfer, or another movement of money.
    """
    with open_ledger(session) as ledger:
        answer = ledger.get(f"/v1/transfers/{quote(transfer_id, safe='')}", Transfer)
    return moved_outcome(answer)


def moved_outcome(answer: Answer[Transfer]) -> Outcome:
    """
    Show what became of a movement.
    """
    moved = answer.body
    status: str = moved.status
    if moved.status == "pending":
        status = (
            f"pending: set aside, and soon posted or rejected (miliano transfers show {moved.id})"
        )
    elif answer.replayed:
        status = f"{moved.status} (as before: the key was used already)"
    balance = None if moved.balance is None else amount_text(moved.balance, moved.currency)
    # Without a wallet it is the world only where money comes from it or goes to it.
    elsewhere = "outside" if moved.type in ("deposit", "withdrawal") else "(fees)"
    shown = facts(
        [
            ("status", status),
            ("reason", moved.reason),
            ("amount", amount_text(moved.amount, moved.currency)),
            ("from", moved.source or elsewhere),
            ("to", moved.destination or elsewhere),
            ("balance after it", balance),
            ("reference", moved.reference),
            ("linked to", moved.linked_to),
            ("short by", moved.short_by),
            (moved.type, moved.id),
        ]
    )
    return Outcome(answer.raw, shown)
