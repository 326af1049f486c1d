"""
Goal: the command line says what is wrong, in words or JSON, with an exit code of the table, and
      without a ledger.
Method: typer's runner, and a TCP server that answers what is wanted in the place of a gateway.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.cli.amounts import amount_text
from gateway.cli.exit_codes import MEANINGS, ExitCode, exit_code_lines

COMMANDS = [
    *(command.name for command in app.registered_commands),
    *(
        f"{group.name} {command.name}"
        for group in app.registered_groups
        for command in group.typer_instance.registered_commands
    ),
]
MONEY = [
    ["transfer", "a", "b", "1099", "EUR"],
    ["deposit", "a", "1099", "EUR"],
    ["withdraw", "a", "1099", "EUR"],
]


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A folder without a ledger, and no setting of whoever runs the tests.
    """
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MILIANO_")]:
        monkeypatch.delenv(name)


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, arguments, env=environment)


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """
    Serve one connection: read a request, send *reply*, close. Gives the URL.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while b"\r\n\r\n" not in connection.recv(65_536):
                    pass
                connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)


def http(status: int, document: object) -> bytes:
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


def problem(status: int, code: str, outcome: str) -> bytes:
    return http(
        status,
        {
            "type": f"/docs#{code}",
            "title": f"The title of {code}.",
            "status": status,
            "code": code,
            "detail": "What to do.",
            "outcome": outcome,
            "errors": [{"code": "out_of_range", "detail": "Too much.", "pointer": "/amount"}],
        },
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str) -> None:
    """
    Each command explains itself and takes --json.
    """
    ran = run(*command.split(), "--help", COLUMNS="200")
    assert ran.exit_code == 0
    assert "--json" in ran.output


def test_help_is_quick_and_loads_no_machinery() -> None:
    """
    Help loads neither HTTP, nor database, nor Ray, and takes little more than typer itself.
    """
    libraries = "import typer, rich.table, rich.progress, msgspec, typer.rich_utils"
    script = (
        "import sys; from gateway.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'httpx2', 'asyncpg', 'sqlalchemy', 'ray', 'actors', 'uvicorn'}\n"
        "assert not heavy & set(sys.modules)"
    )
    rounds = [(cpu_s(script), cpu_s(libraries)) for _ in range(3)]
    assert min(help_s / libraries_s for help_s, libraries_s in rounds) < 2.5, rounds


def cpu_s(script: str) -> float:
    """
    Run *script* and return the CPU seconds of its process.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_lists_every_exit_code() -> None:
    """
    The exit codes are told in one place, the help, and each has a meaning.
    """
    assert set(MEANINGS) == set(ExitCode)
    assert exit_code_lines() in run("--help", COLUMNS="1000").output


def test_usage_errors_end_with_2() -> None:
    """
    A missing argument, an amount that is no integer, a wrong choice: 2, nothing is sent.
    """
    for arguments in (
        ["transfer", "a", "b"],
        ["transfer", "a", "b", "10.99", "EUR"],
        ["payouts", "submit", "missing.csv", "--source", "a", "--reference", "r"],
        ["up", "--runtime", "threads"],
        ["nothing"],
    ):
        assert run(*arguments).exit_code == ExitCode.USAGE, arguments


@pytest.mark.parametrize("arguments", [["status"], ["wallets", "list"], ["verify"], *MONEY])
def test_without_a_ledger(arguments: list[str]) -> None:
    """
    Where no ledger runs: 3, and the words say how to start one; in JSON it is one document.
    """
    ran = run(*arguments)
    assert ran.exit_code == ExitCode.NOT_REACHABLE
    assert "No ledger runs in .miliano. Start one with `miliano up`" in ran.stderr
    assert ran.stdout == ""
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["code"] == "not_reachable"


@pytest.mark.parametrize("arguments", [["wallets", "show", "a"], *MONEY])
def test_connection_refused(arguments: list[str]) -> None:
    """
    Where nothing listens, nothing was sent: 3.
    """
    ran = run(*arguments, MILIANO_URL="http://127.0.0.1:1", MILIANO_KEY="k")
    assert ran.exit_code == ExitCode.NOT_REACHABLE
    assert "Nothing answers at http://127.0.0.1:1" in ran.stderr


@pytest.mark.parametrize("arguments", MONEY)
def test_lost_connection_is_an_unknown_outcome(arguments: list[str]) -> None:
    """
    A connection that breaks after the request: 5, and the key to repeat it with was told before.
    """
    with answering(b"") as url:
        ran = run(*arguments, MILIANO_URL=url, MILIANO_KEY="k")
    assert ran.exit_code == ExitCode.OUTCOME_UNKNOWN
    told, _, words = ran.stderr.partition("\n")
    key = told.removeprefix("idempotency key: ")
    assert f"Send the same command again with --key {key}" in words


def test_lost_connection_of_a_read() -> None:
    """
    A read that breaks changed nothing: 3.
    """
    with answering(b"") as url:
        ran = run("wallets", "show", "a", MILIANO_URL=url, MILIANO_KEY="k")
    assert ran.exit_code == ExitCode.NOT_REACHABLE


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        (409, "rejected", ExitCode.REFUSED),
        (422, "not_applied", ExitCode.REFUSED),
        (503, "not_applied", ExitCode.NOT_REACHABLE),
        (504, "unknown", ExitCode.OUTCOME_UNKNOWN),
        (500, "unknown", ExitCode.OUTCOME_UNKNOWN),
    ],
)
def test_problems(status: int, outcome: str, code: ExitCode) -> None:
    """
    A refusal gives its title, code, remedy and fields, and the exit code says what became of the
    money; with --json the problem is the document.
    """
    reply = problem(status, "some_code", outcome)
    with answering(reply) as url:
        ran = run(*MONEY[0], "--key", "mine", MILIANO_URL=url, MILIANO_KEY="k")
    assert ran.exit_code == code
    for words in ("The title of some_code. (some_code)", "What to do.", "/amount: Too much."):
        assert words in ran.stderr
    with answering(reply) as url:
        ran = run(*MONEY[0], "--key", "mine", "--json", MILIANO_URL=url, MILIANO_KEY="k")
    assert json.loads(ran.stdout)["code"] == "some_code"
    assert ran.exit_code == code


def test_pending_is_no_failure() -> None:
    """
    The money is certain to arrive or to come back: the exit code is 0, and it says where to look.
    """
    transfer = {
        "id": "0198",
        "type": "transfer",
        "status": "pending",
        "reason": None,
        "source": "a",
        "destination": "b",
        "amount": 1099,
        "currency": "EUR",
        "reference": None,
        "metadata": {},
        "balance": None,
        "version": None,
        "shard": 0,
        "sequence": 7,
        "created_at": "2026-01-01T00:00:00.000000Z",
    }
    body = json.dumps(transfer).encode()
    head = f"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    with answering(f"{head}\r\n\r\n".encode() + body) as url:
        ran = run(*MONEY[0], "--url", url, "--api-key", "k")

    assert ran.exit_code == ExitCode.OK
    assert "pending" in ran.stdout
    assert "miliano transfers show 0198" in ran.stdout


def test_reply_of_something_else() -> None:
    """
    A reply that is not the ledger's is told as such; after a 5xx the outcome is unknown.
    """
    for status, code in ((404, ExitCode.REFUSED), (502, ExitCode.OUTCOME_UNKNOWN)):
        with answering(http(status, ["a proxy"])) as url:
            ran = run(*MONEY[0], "--key", "mine", MILIANO_URL=url, MILIANO_KEY="k")
        assert ran.exit_code == code
        assert f"The reply has status {status} and is not the ledger's." in ran.stderr


def test_key_is_needed() -> None:
    """
    Without an API key nothing is asked.
    """
    ran = run("wallets", "list", "--url", "http://127.0.0.1:1")
    assert ran.exit_code == ExitCode.USAGE
    assert "MILIANO_KEY" in ran.stderr


def test_key_of_this_folder_goes_nowhere_else(tmp_path: Path) -> None:
    """
    The key that a data folder keeps is sent to that folder's ledger only.
    """
    key_file = tmp_path / "api_key"
    key_file.write_text("secret\n")
    running = {"url": "http://127.0.0.1:2", "dsn": "", "key_file": str(key_file), "pid": 1}
    folder = tmp_path / ".miliano"
    folder.mkdir()
    (folder / "running.json").write_text(json.dumps(running))
    assert run("wallets", "list").exit_code == ExitCode.NOT_REACHABLE
    assert run("wallets", "list", "--url", "http://127.0.0.1:1").exit_code == ExitCode.USAGE


def test_folder_that_cannot_be_read(tmp_path: Path) -> None:
    """
    A data folder or key of somebody else gives words, not a traceback.
    """
    folder = tmp_path / ".miliano"
    (folder / "running.json").mkdir(parents=True)
    ran = run("wallets", "list")
    assert ran.exit_code == ExitCode.NOT_REACHABLE
    assert "Cannot read .miliano/running.json: Is a directory" in ran.stderr
    (folder / "running.json").rmdir()
    running = {"url": "http://127.0.0.1:2", "dsn": "", "key_file": "missing"}
    (folder / "running.json").write_text(json.dumps(running))
    ran = run("wallets", "list")
    assert ran.exit_code == ExitCode.NOT_REACHABLE
    assert "Cannot read missing: No such file" in ran.stderr


def test_wrong_settings() -> None:
    """
    A setting that does not fit is named, with 2.
    """
    ran = run("status", MILIANO_GATEWAY_PORT="many")
    assert ran.exit_code == ExitCode.USAGE
    assert "gateway.port" in ran.stderr


def test_rollback_wants_a_yes() -> None:
    """
    Data is not dropped by a slip.
    """
    ran = run("db", "rollback", "--dsn", "postgresql://nobody@127.0.0.1:1/none")
    assert ran.exit_code == ExitCode.USAGE
    assert "--yes" in ran.stderr


def test_unknown_scope() -> None:
    """
    A scope that does not exist is refused, with those that do.
    """
    ran = run("keys", "create", "--scope", "money:print", "--dsn", "postgresql://x@127.0.0.1:1/x")
    assert ran.exit_code == ExitCode.USAGE
    assert "money:print" in ran.stderr
    assert "transfers:write" in ran.stderr


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (123_456_789, "EUR", "1,234,567.89 EUR"),
        (5, "EUR", "0.05 EUR"),
        (-5, "EUR", "-0.05 EUR"),
        (-100, "EUR", "-1.00 EUR"),
        (0, "EUR", "0.00 EUR"),
        (1_500, "JPY", "1,500 JPY"),
        (1_500, "KWD", "1.500 KWD"),
        (1_500, "???", "1,500 minor units of ???"),
    ],
)
def test_amounts_for_people(amount: int, currency: str, text: str) -> None:
    """
    Minor units are written with the decimals of their currency, exactly.
    """
    assert amount_text(amount, currency) == text
