"""
Tells a scenario on a running ledger, step by step, and ends in statements that a person can check:

    python -m examples.run examples/scenarios/marketplace.toml

The ledger is the one of `miliano` (MILIANO_URL and MILIANO_KEY, or the data folder). A scenario
names its wallets and their currencies, its steps, and the statements it has to end in. In a text,
`{name}` stands for a wallet, for what an earlier step kept under that name, or for `{run}`, which
differs each time, so that a scenario can be told again. Each step sends a request and says what the
answer has to be; amounts are in minor units. It ends with 0 only if every answer and every row was
as it is written.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from rich.console import Console

from gateway.cli.amounts import amount_text
from gateway.cli.commands import Failure, Session
from gateway.cli.ledger import Ledger, open_ledger
from gateway.cli.tables import facts, table

WAIT_S_MAX = 30.0
LOOK_S = 0.05

console = Console(highlight=False, soft_wrap=True)


class Wrong(Exception):
    """
    An answer is not the one that the scenario says.
    """


class Step(msgspec.Struct, forbid_unknown_fields=True):
    """
    One request: `send` is its method and path. What `expect` says is compared field by field, a
    path into the answer with dots; `keep` keeps fields of the answer under names. With `wait` it is
    asked again until it is so.
    """

    say: str
    send: str
    body: dict[str, Any] | None = None
    expect: dict[str, Any] = {}
    keep: dict[str, str] = {}
    wait: bool = False


class StatementRow(msgspec.Struct, forbid_unknown_fields=True, array_like=True):
    """
    The kind of an entry, what it changed, and the balance behind it.
    """

    type: str
    change: int
    balance: int


class Statement(msgspec.Struct, forbid_unknown_fields=True):
    """
    What the statement of a wallet has to be, from its first entry to its last.
    """

    wallet: str
    opening: int
    rows: list[StatementRow]
    closing: int


class Scenario(msgspec.Struct, forbid_unknown_fields=True):
    title: str
    wallets: dict[str, str]
    steps: list[Step]
    statements: list[Statement]


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        console.print(__doc__, markup=False)
        return 2
    try:
        scenario = msgspec.convert(tomllib.loads(Path(arguments[0]).read_text()), Scenario)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        console.print(f"{arguments[0]} is no scenario: {error}", markup=False)
        return 2
    try:
        with open_ledger(session_of(os.environ)) as ledger:
            Telling(ledger).tell(scenario)
    except (Failure, Wrong) as wrong:
        console.print(f"[bold red]FAILED[/] {wrong}", soft_wrap=True)
        return 1
    return 0


def session_of(environment: Mapping[str, str]) -> Session:
    return Session(
        as_json=False, url=environment.get("MILIANO_URL"), api_key=environment.get("MILIANO_KEY")
    )


class Telling:
    """
    One run of a scenario: the ledger, and what the names stand for.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._names: dict[str, str] = {"run": secrets.token_hex(3)}

    def tell(self, scenario: Scenario) -> None:
        console.rule(f"[bold]{scenario.title}")
        for name, currency in scenario.wallets.items():
            wallet_id = self._names[name] = f"{name}-{self._names['run']}"
            self._send("POST", "/v1/wallets", {"wallet_id": wallet_id, "currency": currency})
        for number, step in enumerate(scenario.steps, 1):
            self._do(number, step)
        for statement in scenario.statements:
            self._check(statement)

    def _do(self, number: int, step: Step) -> None:
        console.print(f"[bold]{number}.[/] {self._filled(step.say)}")
        method, _, path = self._filled(step.send).partition(" ")
        body = self._filled(step.body)
        key = f"{self._names['run']}-{number}"
        deadline = time.monotonic() + WAIT_S_MAX
        while True:
            answer = self._send(method, path, body, key=key)
            differs = list(_differences(self._filled(step.expect), answer))
            if not differs or not step.wait or time.monotonic() > deadline:
                break
            time.sleep(LOOK_S)
        if differs:
            raise Wrong(f"step {number}, {method} {path}: {'; '.join(differs)}")
        for name, field in step.keep.items():
            self._names[name] = str(_at(answer, field))
        console.print(f"   [dim]{method} {path} → {_said(answer)}[/]")

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, key: str | None = None
    ) -> dict[str, Any]:
        """
        Send a request and return its answer, be it good or a refusal.
        """
        try:
            if method == "GET":
                return self._ledger.get(path, dict[str, Any]).body
            sent = {} if body is None else body
            return self._ledger.send(method, path, dict[str, Any], sent, idempotency_key=key).body
        except Failure as failure:
            if not isinstance(failure.document, bytes):
                raise
            refused: dict[str, Any] = msgspec.json.decode(failure.document)
            return refused

    def _check(self, statement: Statement) -> None:
        wallet_id = self._filled(statement.wallet)
        path = f"/v1/wallets/{quote(wallet_id)}"
        wallet = self._send("GET", path)
        seen = {"min_sequence": wallet["sequence"], "shard": wallet["shard"]}
        found = self._ledger.get(f"{path}/statement", dict[str, Any], seen).body
        _show(found)
        if found.get("closing") is None:
            raise Wrong(f"the statement of {wallet_id} is not whole: {found}")
        rows = [StatementRow(one["type"], _change(one), one["balance"]) for one in found["entries"]]
        ends = found["opening"]["balance"], found["closing"]["balance"]
        if rows != statement.rows or ends != (statement.opening, statement.closing):
            raise Wrong(f"the statement of {wallet_id} should be {statement}")

    def _filled(self, value: Any) -> Any:
        """
        Put in what the names stand for, in all texts of a value.
        """
        if isinstance(value, str):
            return value.format_map(self._names) if "{" in value else value
        if isinstance(value, Mapping):
            return {self._filled(name): self._filled(one) for name, one in value.items()}
        return [self._filled(one) for one in value] if isinstance(value, list) else value


def _differences(expected: Mapping[str, Any], answer: dict[str, Any]) -> Iterator[str]:
    for field, value in expected.items():
        found = _at(answer, field)
        if found != value:
            yield f"{field} is {found!r} and should be {value!r} ({answer.get('detail', '')})"


def _at(answer: Any, field: str) -> Any:
    """
    Follow a path with dots into an answer; None where it leads nowhere.
    """
    for part in field.split("."):
        if isinstance(answer, list):
            answer = answer[int(part)] if int(part) < len(answer) else None
        else:
            answer = answer.get(part) if isinstance(answer, dict) else None
    return answer


def _said(answer: dict[str, Any]) -> str:
    for field in ("code", "status", "state", "wallet_id"):
        if isinstance(answer.get(field), str):
            return str(answer[field])
    return "done"


def _change(entry: dict[str, Any]) -> int:
    amount: int = entry["amount"]
    return -amount if entry["direction"] == "debit" else amount


def _show(found: dict[str, Any]) -> None:
    currency, closing = found["currency"], found.get("closing")
    rows: list[tuple[object, ...]] = [
        (None, "opening", None, amount_text(found["opening"]["balance"], currency), None)
    ]
    rows += [
        (
            one["version"],
            one["type"],
            amount_text(_change(one), currency),
            amount_text(one["balance"], currency),
            one["reference"],
        )
        for one in found["entries"]
    ]
    if closing is not None:
        rows.append((None, "closing", None, amount_text(closing["balance"], currency), None))
    console.print()
    console.print(facts([("statement of", found["wallet_id"])]))
    console.print(table(["row>", "", "change>", "balance>", "reference"], rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
