"""
All commands, gathered.
"""

from __future__ import annotations

import typer

from gateway.cli import (
    database,
    explanations,
    fees,
    holds,
    keys,
    linked,
    money,
    payouts,
    refunds,
    shards,
    status,
    up,
    verify,
    wallets,
)
from gateway.cli.exit_codes import exit_code_lines

app = typer.Typer(
    name="miliano",
    help="Moves money between wallets, exactly once.\n\n"
    "Amounts are whole numbers of the currency's minor unit: 1099 is 10.99 EUR.",
    epilog=f"Exit codes: {exit_code_lines()}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
up.register(app)
status.register(app)
money.register(app)
refunds.register()
explanations.register()
verify.register(app)
app.add_typer(wallets.app, name="wallets")
app.add_typer(money.transfers, name="transfers")
app.add_typer(holds.app, name="holds")
app.add_typer(linked.app, name="linked")
app.add_typer(fees.app, name="fees")
app.add_typer(payouts.app, name="payouts")
app.add_typer(shards.app, name="shards")
app.add_typer(database.app, name="db")
app.add_typer(keys.app, name="keys")
