"""
`miliano verify`: the independent auditor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer
from rich.console import Group

from gateway.cli.amounts import amount_text
from gateway.cli.commands import DATABASE, Outcome, Session, command, database_errors
from gateway.cli.exit_codes import ExitCode
from gateway.cli.progress import Advance, progress
from gateway.cli.tables import facts, table

if TYPE_CHECKING:
    from rich.table import Table

    from processor.storage.audit import Progress, Verdict


def register(app: typer.Typer) -> None:
    command(app, "verify", DATABASE)(verify)


def verify(session: Session) -> Outcome:
    """
    Work the books out again from the journal and compare every table; 1 when something differs.
    """
    dsns = session.database().split()
    with database_errors(), progress(session, "verifying") as advance:
        # Late: it reads the database's driver.
        from processor.storage import verification

        verdict = asyncio.run(verification.verify(dsns, progress=_adding_up(advance)))
    code = ExitCode.OK if verdict.balanced else ExitCode.DIFFERENCE
    return Outcome(verdict, _shown(verdict), code)


def _adding_up(advance: Advance) -> Callable[[Progress], None]:
    sequences: dict[int, tuple[int, int]] = {}

    def tell(found: Progress) -> None:
        sequences[found.shard_id] = (found.sequence, found.head)
        done = sum(sequence for sequence, _ in sequences.values())
        advance(done, sum(head for _, head in sequences.values()), "records")

    return tell


def _shown(verdict: Verdict) -> Group:
    rows = [
        ("shards", verdict.shards),
        ("journal records", verdict.records),
        ("transfers posted", verdict.transfers_posted),
        ("transfers rejected", verdict.transfers_rejected),
        ("on their way", verdict.pending or None),
        ("wallets", verdict.wallets),
        ("wallets with limits", verdict.counted.limited_wallets or None),
        ("holds placed", verdict.counted.holds or None),
        ("holds open", verdict.counted.holds_open or None),
        ("transfers refunded", verdict.counted.refunded or None),
        ("linked transfers", verdict.counted.linked or None),
    ]
    parts = [facts(rows)]
    if verdict.currencies:
        parts.append(_books(verdict))
    if verdict.balanced:
        return Group(*parts, "[bold green]books balanced[/]")
    differences = [
        (d.table, d.key, d.field, d.journal_says, d.table_says) for d in verdict.differences
    ]
    columns = ["table", "key", "field", "the journal says", "the table says"]
    shown = table(columns, differences)
    return Group(*parts, "[bold red]the books differ; the first of each table:[/]", shown)


def _books(verdict: Verdict) -> Table:
    columns = ["currency", "in wallets>", "outside>"]
    if any(sums.due for sums in verdict.currencies.values()):
        columns.append("between shards>")
    rows = []
    for currency, sums in verdict.currencies.items():
        amounts = (sums.customers, sums.world, sums.due)[: len(columns) - 1]
        rows.append([currency, *(amount_text(amount, currency) for amount in amounts)])
    return table(columns, rows)
