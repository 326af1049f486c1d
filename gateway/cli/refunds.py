"""
`miliano transfers refund` and `refunds`: give money back, and see what has gone back.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer
from rich.console import Group

from gateway.cli.amounts import amount_text
from gateway.cli.commands import LEDGER, Outcome, Session, command
from gateway.cli.keyed import Key, post_once
from gateway.cli.ledger import open_ledger
from gateway.cli.money import Reference, moved_outcome, transfers
from gateway.cli.tables import facts, table
from gateway.refund_wire import Refunds
from gateway.wire import Transfer

TransferId = Annotated[str, typer.Argument(metavar="ID", help="The transfer's id.")]


def register() -> None:
    command(transfers, "refund", LEDGER)(refund)
    command(transfers, "refunds", LEDGER)(list_refunds)


def refund(
    session: Session,
    transfer_id: TransferId,
    amount: Annotated[
        int | None,
        typer.Option("--amount", help="In minor units (default: all that is left)."),
    ] = None,
    key: Key = None,
    reference: Reference = None,
) -> Outcome:
    """
    Give back what a transfer brought into your wallet: all that is left, or a part.
    """
    body = {"amount": amount, "reference": reference}
    return moved_outcome(post_once(session, _path(transfer_id), Transfer, body, key))


def list_refunds(session: Session, transfer_id: TransferId) -> Outcome:
    """
    Show what has gone back of a transfer.
    """
    with open_ledger(session) as ledger:
        answer = ledger.get(_path(transfer_id), Refunds)
    found = answer.body
    known = [
        ("transfer", found.transfer_id),
        ("amount", amount_text(found.amount, found.currency)),
        ("gone back, or on its way", amount_text(found.refunded, found.currency)),
        ("left", amount_text(found.left, found.currency)),
    ]
    rows = [
        (one.created_at[:19].replace("T", " "), amount_text(one.amount, one.currency), one.id)
        for one in found.refunds
    ]
    return Outcome(answer.raw, Group(facts(known), table(["at", "amount>", "refund"], rows)))


def _path(transfer_id: str) -> str:
    return f"/v1/transfers/{quote(transfer_id, safe='')}/refunds"
