"""
`miliano transfers explain`: the life of a transfer, record by record.
"""

from __future__ import annotations

from urllib.parse import quote

from rich.console import Group, RenderableType
from rich.markup import escape

from gateway.cli.amounts import amount_text
from gateway.cli.commands import LEDGER, Outcome, Session, command
from gateway.cli.ledger import open_ledger
from gateway.cli.money import transfers
from gateway.cli.refunds import TransferId
from gateway.cli.tables import facts, table
from gateway.explanation_wire import Check, Entry, Explanation, Step


def register() -> None:
    command(transfers, "explain", LEDGER)(explain)


def explain(session: Session, transfer_id: TransferId) -> Outcome:
    """
    Show what the journals say of a transfer, and why it was refused.
    """
    with open_ledger(session) as ledger:
        path = f"/v1/transfers/{quote(transfer_id, safe='')}/explain"
        answer = ledger.get(path, Explanation)
    return Outcome(answer.raw, _shown(answer.body))


def _shown(found: Explanation) -> RenderableType:
    moved = found.transfer
    known = [
        (moved.type, moved.id),
        ("status", moved.status),
        ("amount", amount_text(moved.amount, moved.currency)),
        ("from", moved.source),
        ("to", moved.destination),
        ("linked to", moved.linked_to),
    ]
    columns = ["at", "shard>", "record>", "entry", "step", "what it says"]
    steps = table(columns, [_row(step, moved.currency) for step in found.steps])
    parts: list[RenderableType] = [facts(known), steps]
    if not found.is_whole:
        parts.append("Not all records of that time were read.")
    return Group(*parts, *(_check(found.refusal) if found.refusal is not None else []))


def _row(step: Step, currency: str) -> tuple[object, ...]:
    changes = [
        f"{one.wallet}: {amount_text(one.had, currency)} → {amount_text(one.has, currency)}."
        for one in step.wallets
    ]
    text = " ".join([step.text, *changes])
    return (
        step.at[:26].replace("T", " "),
        step.shard,
        step.sequence,
        _entry(step.entry),
        step.step,
        text,
    )


def _entry(entry: Entry | None) -> str | None:
    return None if entry is None else f"{entry.source}→{entry.destination} #{entry.number}"


def _check(check: Check) -> list[RenderableType]:
    before = ", ".join(check.checks_before) or "none"
    known = [
        ("refused", check.reason),
        ("the rule", check.rule),
        ("measured", check.text),
        ("short by", check.short_by),
    ]
    return [facts(known), f"[dim]checks before it[/] {escape(before)}"]
