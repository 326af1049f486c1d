"""
`miliano linked`: move money along several legs, all or none; look, and take it back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
import typer
from rich.console import Group

from gateway.cli.amounts import amount_text
from gateway.cli.commands import LEDGER, Failure, Outcome, Session, command
from gateway.cli.exit_codes import ExitCode
from gateway.cli.keyed import Key, post_once
from gateway.cli.ledger import Answer, open_ledger
from gateway.cli.money import Reference
from gateway.cli.tables import facts, table
from gateway.linked_wire import LinkedTransfer

app = typer.Typer(help="Move money along several legs, all or none.", no_args_is_help=True)

LEG = "FROM,TO,AMOUNT,CURRENCY"
FEE = "FROM,AMOUNT,CURRENCY"

LinkedId = Annotated[str, typer.Argument(metavar="ID", help="The linked transfer's id.")]


@command(app, "move", LEDGER)
def move_linked(
    session: Session,
    legs: Annotated[
        list[str] | None,
        typer.Option("--leg", metavar=LEG, help="A leg; give several."),
    ] = None,
    fees: Annotated[
        list[str] | None,
        typer.Option("--fee", metavar=FEE, help="A leg into your fees."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", exists=True, dir_okay=False, help="The body as JSON instead."),
    ] = None,
    key: Key = None,
) -> Outcome:
    """
    Move money along all legs or along none. Amounts are in minor units; fees come after the legs.
    """
    body = _body(legs or [], fees or [], file)
    return _outcome(post_once(session, "/v1/linked-transfers", LinkedTransfer, body, key))


@command(app, "show", LEDGER)
def show_linked(session: Session, linked_id: LinkedId) -> Outcome:
    """
    Show a linked transfer with its legs.
    """
    with open_ledger(session) as ledger:
        return _outcome(ledger.get(_path(linked_id), LinkedTransfer))


@command(app, "reverse", LEDGER)
def reverse_linked(
    session: Session,
    linked_id: LinkedId,
    fees: Annotated[
        Literal["kept", "returned"],
        typer.Option("--fees", help="Whether its fees stay yours, or go back too."),
    ],
    key: Key = None,
    reference: Reference = None,
) -> Outcome:
    """
    Take back what all its legs moved, the last one first, or nothing.
    """
    body = {"fees": fees, "reference": reference}
    path = f"{_path(linked_id)}/reversal"
    return _outcome(post_once(session, path, LinkedTransfer, body, key))


def _path(linked_id: str) -> str:
    return f"/v1/linked-transfers/{quote(linked_id, safe='')}"


def _body(legs: list[str], fees: list[str], file: Path | None) -> dict[str, Any]:
    if file is not None:
        try:
            return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            raise Failure(ExitCode.USAGE, f"{file} is not a JSON object: {error}") from error
    moved = [_parts(text, LEG, "source", "destination", "amount", "currency") for text in legs]
    paid = [_parts(text, FEE, "source", "amount", "currency") | {"type": "fee"} for text in fees]
    return {"legs": [*moved, *paid]}


def _parts(text: str, wanted: str, *names: str) -> dict[str, Any]:
    """
    Read a leg; a wallet's id has no comma.
    """
    values = [part.strip() for part in text.split(",")]
    if len(values) != len(names):
        raise Failure(ExitCode.USAGE, f"{text!r} is not {wanted}.")
    fields: dict[str, Any] = dict(zip(names, values, strict=True))
    if not fields["amount"].isdecimal():
        raise Failure(ExitCode.USAGE, f"{text!r}: an amount is a number of minor units.")
    return fields | {"amount": int(fields["amount"])}


def _outcome(answer: Answer[LinkedTransfer]) -> Outcome:
    linked = answer.body
    status: str = linked.status
    if linked.status == "pending":
        status = f"pending: soon posted or rejected (miliano linked show {linked.id})"
    elif answer.replayed:
        status = f"{linked.status} (as before: the key was used already)"
    known = [
        ("linked transfer", linked.id),
        ("status", status),
        ("leg that failed", linked.leg),
        ("reason", linked.reason),
        ("short by", linked.short_by),
    ]
    rows = [
        (
            place,
            leg.type,
            leg.source or "(fees)",
            leg.destination or "(fees)",
            amount_text(leg.amount, leg.currency),
            None if leg.balance is None else amount_text(leg.balance, leg.currency),
            leg.id,
        )
        for place, leg in enumerate(linked.legs)
    ]
    columns = ["leg>", "type", "from", "to", "amount>", "balance after it>", "transfer"]
    return Outcome(answer.raw, Group(facts(known), table(columns, rows)))
