"""
`miliano transfer`, `deposit`, `withdraw`, and `transfers show`.

A key that is made here is told before anything is sent: whatever happens then, the same command
with that key gives the one true outcome.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.amounts import amount_text
from gateway.cli.commands import LEDGER, Failure, Outcome, Session, command
from gateway.cli.exit_codes import ExitCode
from gateway.cli.ledger import Answer, open_ledger
from gateway.cli.tables import facts
from gateway.wire import Transfer

transfers = typer.Typer(help="Look at transfers.", no_args_is_help=True)

Amount = Annotated[
    int, typer.Argument(metavar="AMOUNT", help="Minor units: 1099 is 10.99 EUR, or 1099 JPY.")
]
Currency = Annotated[str, typer.Argument(metavar="CURRENCY", help="For example EUR.")]
Key = Annotated[
    str | None,
    typer.Option("--key", help="The idempotency key (default: one is made and told)."),
]
Reference = Annotated[str | None, typer.Option("--reference", help="Your own words.")]


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
) -> Outcome:
    """
    Move money between two wallets. The amount is in minor units.
    """
    wallets = {"source": source, "destination": destination}
    return _move(session, "/v1/transfers", wallets, amount, currency, key, reference)


def deposit(
    session: Session,
    destination: Annotated[str, typer.Argument(metavar="TO", help="Your wallet.")],
    amount: Amount,
    currency: Currency,
    key: Key = None,
    reference: Reference = None,
) -> Outcome:
    """
    Bring money from outside into a wallet. The amount is in minor units.
    """
    wallets = {"destination": destination}
    return _move(session, "/v1/deposits", wallets, amount, currency, key, reference)


def withdraw(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="FROM", help="Your wallet.")],
    amount: Amount,
    currency: Currency,
    key: Key = None,
    reference: Reference = None,
) -> Outcome:
    """
    Take money out of a wallet. The amount is in minor units.
    """
    wallets = {"source": source}
    return _move(session, "/v1/withdrawals", wallets, amount, currency, key, reference)


@command(transfers, "show", LEDGER)
def show_transfer(
    session: Session,
    transfer_id: Annotated[str, typer.Argument(metavar="ID", help="The transfer's id.")],
) -> Outcome:
    """
    Show a transfer, deposit or withdrawal.
    """
    with open_ledger(session) as ledger:
        answer = ledger.get(f"/v1/transfers/{quote(transfer_id, safe='')}", Transfer)
    return _outcome(answer)


def _move(
    session: Session,
    path: str,
    wallets: dict[str, Any],
    amount: int,
    currency: str,
    key: str | None,
    reference: str | None,
) -> Outcome:
    with open_ledger(session) as ledger:
        if key is None:
            key = f"cli-{uuid.uuid4()}"
            session.say(f"idempotency key: {key}")
        body = {**wallets, "amount": amount, "currency": currency, "reference": reference}
        try:
            answer = ledger.send("POST", path, Transfer, body, idempotency_key=key)
        except Failure as failure:
            if failure.code is not ExitCode.OUTCOME_UNKNOWN:
                raise
            words = f"{failure}\nSend the same command again with --key {key}"
            raise Failure(failure.code, words, failure.document) from failure
    return _outcome(answer)


def _outcome(answer: Answer[Transfer]) -> Outcome:
    moved = answer.body
    status: str = moved.status
    if moved.status == "pending":
        status = (
            f"pending: set aside, and soon posted or rejected (miliano transfers show {moved.id})"
        )
    elif answer.replayed:
        status = f"{moved.status} (as before: the key was used already)"
    balance = None if moved.balance is None else amount_text(moved.balance, moved.currency)
    shown = facts(
        [
            ("status", status),
            ("reason", moved.reason),
            ("amount", amount_text(moved.amount, moved.currency)),
            ("from", moved.source or "outside"),
            ("to", moved.destination or "outside"),
            ("balance after it", balance),
            ("reference", moved.reference),
            (moved.type, moved.id),
        ]
    )
    return Outcome(answer.raw, shown)
