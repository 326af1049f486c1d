"""
`miliano wallets balance` and `miliano wallets statement`: a wallet's past.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, BinaryIO
from urllib.parse import quote, urlencode

import typer
from rich.console import Group, RenderableType
from rich.markup import escape

from gateway.cli.amounts import amount_text
from gateway.cli.commands import LEDGER, Failure, Outcome, Session, command
from gateway.cli.exit_codes import ExitCode
from gateway.cli.ledger import Ledger, open_ledger
from gateway.cli.tables import facts, table
from gateway.history_wire import Statement, WalletBalance

WHOLE_ENDS_WITH = b"closing,"

Query = dict[str, str | int | None]

WalletId = Annotated[str, typer.Argument(metavar="WALLET", help="The wallet's id.")]
Since = Annotated[
    str | None, typer.Option("--from", metavar="INSTANT", help="Not before this instant.")
]
Until = Annotated[str | None, typer.Option("--to", metavar="INSTANT", help="Before this instant.")]
FirstVersion = Annotated[int | None, typer.Option("--from-version", min=1, help="The first row.")]
LastVersion = Annotated[int | None, typer.Option("--to-version", min=1, help="The last row.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print it as CSV, amounts in major units.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The file for --csv (default: standard output)."),
]


def register(app: typer.Typer) -> None:
    command(app, "balance", LEDGER)(show_balance)
    command(app, "statement", LEDGER)(show_statement)


def show_balance(
    session: Session,
    wallet_id: WalletId,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="INSTANT", help="For example 2026-05-31T22:00:00Z."),
    ] = None,
    version: Annotated[
        int | None, typer.Option("--version", min=0, help="Behind this entry; 0: before all.")
    ] = None,
) -> Outcome:
    """
    Show what a wallet had at an instant, or behind an entry.
    """
    with open_ledger(session) as ledger:
        query = {"at": at, "version": version}
        answer = ledger.get(f"{_path(wallet_id)}/balance", WalletBalance, query)
    found = answer.body
    shown = facts(
        [
            ("wallet", found.wallet_id),
            ("balance", amount_text(found.balance, found.currency)),
            ("entries", found.version),
            ("last entry at", found.at),
            ("history up to", found.as_of),
        ]
    )
    return Outcome(answer.raw, shown)


def show_statement(
    session: Session,
    wallet_id: WalletId,
    since: Since = None,
    until: Until = None,
    from_version: FirstVersion = None,
    to_version: LastVersion = None,
    as_csv: AsCsv = False,
    output: Output = None,
) -> Outcome:
    """
    Show what a wallet had, what went out and in, and what it has then.

    The exit code is 1 when the statement does not add up.
    """
    query: Query = {
        "from": since,
        "to": until,
        "from_version": from_version,
        "to_version": to_version,
    }
    with open_ledger(session) as ledger:
        if as_csv or output is not None:
            return _statement_file(session, ledger, wallet_id, query, output)
        answer = ledger.get(f"{_path(wallet_id)}/statement", Statement, query)
    code = ExitCode.DIFFERENCE if answer.body.closing is None else ExitCode.OK
    return Outcome(answer.raw, _statement(answer.body), code)


def _statement_file(
    session: Session, ledger: Ledger, wallet_id: str, query: Query, output: Path | None
) -> Outcome:
    if output is None and session.as_json:
        raise Failure(ExitCode.USAGE, "Name a file with --output; --csv prints CSV.")
    chosen = urlencode({name: value for name, value in query.items() if value is not None})
    pieces = ledger.pieces(f"{_path(wallet_id)}/statement.csv?{chosen}")
    if output is None:
        end = _written(pieces, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return Outcome(None, None, _code(end))
    with output.open("wb") as file:
        end = _written(pieces, file)
        size_bytes = file.tell()
    document = {"file": str(output), "bytes": size_bytes}
    return Outcome(document, f"written to {escape(str(output))}", _code(end))


def _written(pieces: Iterable[bytes], file: BinaryIO) -> bytes:
    """
    Write what comes, and return its last line.
    """
    end = b""
    for piece in pieces:
        file.write(piece)
        end += piece
        end = end[end.rstrip(b"\r\n").rfind(b"\n") + 1 :]
    return end


def _code(last_line: bytes) -> ExitCode:
    return ExitCode.OK if last_line.startswith(WHOLE_ENDS_WITH) else ExitCode.DIFFERENCE


def _statement(statement: Statement) -> RenderableType:
    currency = statement.currency
    opening, closing, error = statement.opening, statement.closing, statement.error
    rows: list[tuple[object, ...]] = [
        (opening.version, "opening", "", "", amount_text(opening.balance, currency), "", "")
    ]
    rows += [
        (
            entry.version,
            entry.created_at[:19].replace("T", " "),
            amount_text(entry.amount, currency) if entry.direction == "debit" else "",
            amount_text(entry.amount, currency) if entry.direction == "credit" else "",
            amount_text(entry.balance, currency),
            entry.counterparty or f"({entry.type})",
            entry.reference,
        )
        for entry in statement.entries
    ]
    if closing is not None:
        out = amount_text(closing.debit_amount, currency)
        into = amount_text(closing.credit_amount, currency)
        counts = f"{closing.debit_count:,} out, {closing.credit_count:,} in"
        balance = amount_text(closing.balance, currency)
        rows.append((closing.version, "closing", out, into, balance, counts, ""))
    columns = ["version>", "at", "out>", "in>", "balance>", "with", "reference"]
    shown = table(columns, rows)
    if error is None:
        return shown
    return Group(shown, f"[red]It breaks off at {error.version}: {escape(error.detail)}[/]")


def _path(wallet_id: str) -> str:
    return f"/v1/wallets/{quote(wallet_id, safe='')}"
