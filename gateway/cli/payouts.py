"""
`miliano payouts`: submit a file, watch it being paid, see what became of each row.
"""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.markup import escape

from gateway.cli.amounts import amount_text
from gateway.cli.commands import LEDGER, Failure, Outcome, Session, command, err
from gateway.cli.exit_codes import ExitCode
from gateway.cli.ledger import Answer, Ledger, open_ledger
from gateway.cli.progress import progress
from gateway.cli.tables import facts, table
from gateway.payout_wire import (
    PayoutBatch,
    PayoutBatchPage,
    PayoutItemPage,
    PayoutReport,
    PayoutSubmission,
)

WATCH_S = 0.3
UNREACHABLE_S_MAX = 120.0
ERRORS_SHOWN_MAX = 20

app = typer.Typer(help="Submit payout files and see what becomes of them.", no_args_is_help=True)

Batch = Annotated[str, typer.Argument(metavar="BATCH", help="Its id or your reference.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]
Watch = Annotated[bool, typer.Option("--watch", help="Wait until every row has its outcome.")]


class OnInvalid(StrEnum):
    """
    What an unacceptable row does.
    """

    REJECT_BATCH = "reject_batch"
    SKIP_ROWS = "skip_rows"


class ItemState(StrEnum):
    """
    How far a row is.
    """

    PENDING = "pending"
    PAID = "paid"
    FAILED = "failed"


@command(app, "submit", LEDGER)
def submit(
    session: Session,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A CSV file.")
    ],
    source: Annotated[str, typer.Option("--source", help="The wallet that pays.")],
    reference: Annotated[str, typer.Option("--reference", help="Your name for the batch.")],
    currency: Annotated[str, typer.Option("--currency", help="For example EUR.")],
    on_invalid: Annotated[
        OnInvalid, typer.Option("--on-invalid", help="What an unacceptable row does.")
    ] = OnInvalid.REJECT_BATCH,
    rows_per_second: Annotated[
        int | None, typer.Option("--rows-per-second", min=1, help="Pay no faster than this.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only report; pay nothing.")] = False,
    watch: Watch = False,
) -> Outcome:
    """
    Submit a payout file. The same file under the same reference is the same batch.

    With --watch the exit code is 1 when a row failed.
    """
    query: dict[str, str | int | None] = {
        "source": source,
        "reference": reference,
        "currency": currency,
        "on_invalid": on_invalid.value,
        "rows_per_second_max": rows_per_second,
        "validate_only": "true" if check else None,
    }
    with open_ledger(session) as ledger:
        answer = _send(ledger, file, query)
        submitted = answer.body
        if submitted.batch is None:
            return Outcome(answer.raw, _report(submitted.report))
        if not watch:
            shown = Group(_report(submitted.report), _batch(submitted.batch))
            return Outcome(answer.raw, shown)
        session.say(f"batch {submitted.batch.id}")
        _say_report(session, submitted.report)
        return _watched(session, ledger, submitted.batch.id)


@command(app, "show", LEDGER)
def show(session: Session, batch: Batch, watch: Watch = False) -> Outcome:
    """
    Show a batch as it is now. With --watch the exit code is 1 when a row failed.
    """
    with open_ledger(session) as ledger:
        if watch:
            return _watched(session, ledger, batch)
        answer = ledger.get(_path(batch), PayoutBatch)
    return Outcome(answer.raw, _batch(answer.body))


@command(app, "list", LEDGER)
def list_batches(
    session: Session,
    after: Annotated[str | None, typer.Option("--after", help="Go on behind this id.")] = None,
    limit: Limit = 20,
) -> Outcome:
    """
    List your batches, the newest first.
    """
    with open_ledger(session) as ledger:
        query = {"after": after, "limit": limit}
        answer = ledger.get("/v1/payout-batches", PayoutBatchPage, query)
    page = answer.body
    rows = [
        (
            batch.reference,
            batch.state,
            batch.counts.total,
            batch.counts.paid,
            batch.counts.failed,
            amount_text(batch.amounts.paid, batch.currency),
            batch.id,
        )
        for batch in page.payout_batches
    ]
    columns = ["reference", "state", "rows>", "paid>", "failed>", "amount paid>", "id"]
    return Outcome(answer.raw, _with_more(table(columns, rows), page.next_cursor))


@command(app, "items", LEDGER)
def list_items(
    session: Session,
    batch: Batch,
    state: Annotated[ItemState | None, typer.Option("--state", help="Only these.")] = None,
    after: Annotated[int | None, typer.Option("--after", help="Behind this row.")] = None,
    limit: Limit = 100,
) -> Outcome:
    """
    List the rows of a batch, and why each failed one did.
    """
    with open_ledger(session) as ledger:
        query = {"state": state, "after": after, "limit": limit}
        answer = ledger.get(f"{_path(batch)}/items", PayoutItemPage, query)
    page = answer.body
    rows = [
        (item.row_number, item.reference, item.destination, item.amount, item.state, item.code)
        for item in page.items
    ]
    columns = ["row>", "reference", "destination", "minor units>", "state", "why"]
    return Outcome(answer.raw, _with_more(table(columns, rows), page.next_cursor))


@command(app, "result", LEDGER)
def result(
    session: Session,
    batch: Batch,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file (default: standard output).")
    ] = None,
) -> Outcome:
    """
    Fetch the result file: what became of each row, as CSV.

    With --json the document names the file, so --output is needed.
    """
    if output is None and session.as_json:
        raise Failure(ExitCode.USAGE, "Name a file with --output; the result is CSV.")
    with open_ledger(session) as ledger:
        pieces = ledger.pieces(f"{_path(batch)}/result.csv")
        if output is None:
            sys.stdout.buffer.writelines(pieces)
            return Outcome(None, None)
        with output.open("wb") as file:
            file.writelines(pieces)
            size_bytes = file.tell()
    shown = f"written to {escape(str(output))}"
    return Outcome({"file": str(output), "bytes": size_bytes}, shown)


class _Refused(msgspec.Struct):
    """
    The part of a refusal that is about the rows.
    """

    report: PayoutReport | None = None


def _send(
    ledger: Ledger, file: Path, query: dict[str, str | int | None]
) -> Answer[PayoutSubmission]:
    """
    Send the file; a refusal shows the rows that are wrong.
    """
    try:
        return ledger.send_file("/v1/payout-batches", PayoutSubmission, file, "text/csv", query)
    except Failure as failure:
        if isinstance(failure.document, bytes):
            refused = msgspec.json.decode(failure.document, type=_Refused)
            if refused.report is not None:
                err.print(_report(refused.report))
        raise


def _path(batch: str) -> str:
    return f"/v1/payout-batches/{quote(batch, safe='')}"


def _watched(session: Session, ledger: Ledger, batch_id: str) -> Outcome:
    """
    Look at the batch until it is finished; an outage meanwhile is waited for.
    """
    with progress(session, "paying") as advance:
        answer = _look(ledger, batch_id)
        while answer.body.state == "processing":
            counts = answer.body.counts
            rate = answer.body.progress
            note = "" if rate is None else f"{rate.rows_per_second:,.0f} rows/s"
            advance(counts.paid + counts.failed, counts.total, note)
            time.sleep(WATCH_S)
            answer = _look(ledger, batch_id)
        advance(answer.body.counts.total, answer.body.counts.total, "")
    code = ExitCode.OK if answer.body.state == "completed" else ExitCode.DIFFERENCE
    return Outcome(answer.raw, _batch(answer.body), code)


def _look(ledger: Ledger, batch_id: str) -> Answer[PayoutBatch]:
    deadline = time.monotonic() + UNREACHABLE_S_MAX
    while True:
        try:
            return ledger.get(_path(batch_id), PayoutBatch)
        except Failure as failure:
            if failure.code is not ExitCode.NOT_REACHABLE or time.monotonic() > deadline:
                raise
            time.sleep(WATCH_S)


def _batch(batch: PayoutBatch) -> RenderableType:
    counts, amounts = batch.counts, batch.amounts
    rows = [
        ("batch", f"{batch.reference} ({batch.id})"),
        ("state", batch.state.replace("_", " ")),
        ("source", batch.source),
        ("submitted", batch.created_at),
        ("finished", batch.finished_at),
        ("left", None if batch.progress is None else f"{batch.progress.seconds_left} s"),
    ]
    lines = [
        ("total", counts.total, amount_text(amounts.total, batch.currency)),
        ("pending", counts.pending, amount_text(amounts.pending, batch.currency)),
        ("paid", counts.paid, amount_text(amounts.paid, batch.currency)),
        ("failed in the check", counts.invalid, None),
        (
            "failed in the ledger",
            counts.failed - counts.invalid,
            amount_text(amounts.failed, batch.currency),
        ),
    ]
    return Group(facts(rows), "", table(["", "rows>", "amount>"], lines))


def _report(report: PayoutReport) -> RenderableType:
    amount = amount_text(report.amount, report.currency)
    counts = f"{report.rows_valid:,} payable, {report.rows_invalid:,} not"
    parts: list[RenderableType] = [f"{report.rows:,} rows: {counts}; together {amount}"]
    parts += [f"[yellow]{escape(warning.message)}[/]" for warning in report.warnings]
    if report.errors:
        rows = [(e.row_number, e.field, e.message) for e in report.errors[:ERRORS_SHOWN_MAX]]
        parts.append(table(["row>", "field", "what is wrong"], rows))
    if report.errors_total > ERRORS_SHOWN_MAX:
        parts.append(f"and {report.errors_total - ERRORS_SHOWN_MAX:,} more")
    return Group(*parts)


def _say_report(session: Session, report: PayoutReport) -> None:
    session.say(f"{report.rows:,} rows, {report.rows_invalid:,} of them not payable")
    for warning in report.warnings:
        session.say(warning.message)


def _with_more(shown: RenderableType, cursor: object) -> RenderableType:
    return Group(shown, f"more: --after {cursor}") if cursor is not None else shown
