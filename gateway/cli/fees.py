"""
`miliano fees`: what your fees come to, and bringing them into one wallet.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Group

from gateway.cli.amounts import amount_text
from gateway.cli.commands import LEDGER, Outcome, Session, command
from gateway.cli.keyed import Key, post_once
from gateway.cli.ledger import open_ledger
from gateway.cli.money import Currency
from gateway.cli.tables import facts, table
from gateway.fee_wire import Fees, Sweep

app = typer.Typer(help="Look at your fees, and sweep them up.", no_args_is_help=True)


@command(app, "list", LEDGER)
def list_fees(session: Session) -> Outcome:
    """
    Show your fees by currency and shard, as of a moment ago.
    """
    with open_ledger(session) as ledger:
        answer = ledger.get("/v1/fees", Fees)
    rows = [
        (fees.currency, shard.shard, amount_text(shard.balance, fees.currency), shard.version)
        for fees in answer.body.fees
        for shard in fees.shards
    ]
    return Outcome(answer.raw, table(["currency", "shard>", "fees>", "entries>"], rows))


@command(app, "sweep", LEDGER)
def sweep_fees(
    session: Session,
    currency: Currency,
    destination: Annotated[str, typer.Argument(metavar="TO", help="Your wallet.")],
    key: Key = None,
) -> Outcome:
    """
    Bring all fees of a currency into one of your wallets; what one shard has is one transfer.
    """
    body = {"currency": currency, "destination": destination}
    answer = post_once(session, "/v1/fees/sweep", Sweep, body, key)
    swept = answer.body
    known = [
        ("status", "as before: the key was used already" if answer.replayed else None),
        ("into", swept.destination),
        ("moved", amount_text(swept.amount, swept.currency)),
        ("on its way", amount_text(swept.pending, swept.currency) if swept.pending else None),
    ]
    rows = [
        (one.shard, one.status, one.reason, amount_text(one.amount, one.currency), one.id)
        for one in swept.transfers
    ]
    shown = table(["shard>", "status", "reason", "amount>", "transfer"], rows)
    return Outcome(answer.raw, Group(facts(known), shown))
