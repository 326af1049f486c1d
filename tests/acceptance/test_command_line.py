"""
Goal: the commands of `miliano` do on a running ledger what their help says.
Method: the commands as processes, on the session's ledger with Ray; each test has wallets of its
        own, so their order does not matter.
"""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.exit_codes import ExitCode
from tests.support.databases import execute
from tests.support.ledger import Ledger

numbers = itertools.count(1)


def open_wallet(ledger: Ledger, funds: int = 0) -> str:
    """
    Open a wallet that no other test knows, with money in it.
    """
    wallet_id = f"cli-{next(numbers)}"
    ledger.json("wallets", "open", "EUR", "--id", wallet_id)
    if funds:
        ledger.json("deposit", wallet_id, str(funds), "EUR")
    return wallet_id


def balance(ledger: Ledger, wallet_id: str) -> int:
    return int(ledger.json("wallets", "show", wallet_id)["balance"])


def payout_file(folder: Path, rows: list[tuple[str, str, str]]) -> str:
    """
    Write a payout file of references, destinations and amounts.
    """
    path = folder / "payouts.csv"
    with path.open("w") as file:
        lines = csv.writer(file)
        lines.writerow(["reference", "destination", "amount", "currency", "note"])
        lines.writerows([*row, "EUR", ""] for row in rows)
    return str(path)


def test_money_moves(ledger: Ledger) -> None:
    """
    Deposit, transfer and withdrawal change the balances, and the entries tell of them.
    """
    shop, customer = open_wallet(ledger, 10_000), open_wallet(ledger)
    moved = ledger.json("transfer", shop, customer, "1099", "EUR", "--reference", "order 7")
    assert (moved["status"], moved["balance"]) == ("posted", 8_901)
    taken = ledger.json("withdraw", customer, "99", "EUR")
    assert taken["balance"] == 1_000
    ledger.wait_until_projected(taken["sequence"], taken["shard"])
    assert ledger.json("transfers", "show", moved["id"])["reference"] == "order 7"
    entries = ledger.json("wallets", "entries", customer)["entries"]
    assert [(e["direction"], e["amount"]) for e in entries] == [("debit", 99), ("credit", 1_099)]
    shown = ledger.run("wallets", "show", customer)
    assert "10.00 EUR" in shown.out


def test_a_wallet_has_a_past(ledger: Ledger, tmp_path: Path) -> None:
    """
    Its balance is told of any moment, its entries of one kind alone, and its statement as a
    table, as JSON and as CSV.
    """
    shop, customer = open_wallet(ledger, 10_000), open_wallet(ledger)
    for number in range(3):
        moved = ledger.json("transfer", shop, customer, "100", "EUR", "--reference", f"no {number}")
    ledger.wait_until_projected(moved["sequence"], moved["shard"])

    assert ledger.json("wallets", "balance", shop, "--version", "2")["balance"] == 9_900
    assert ledger.json("wallets", "balance", shop, "--at", moved["created_at"])["version"] == 4
    assert "97.00 EUR" in ledger.run("wallets", "balance", shop).out
    found = ledger.json("wallets", "entries", shop, "--reference", "no 1", "--type", "transfer")
    assert [entry["version"] for entry in found["entries"]] == [3]
    found = ledger.json("wallets", "entries", shop, "--to", moved["created_at"])
    assert [entry["version"] for entry in found["entries"]] == [3, 2, 1]

    told = ledger.json("wallets", "statement", shop, "--from", moved["created_at"])
    assert [entry["version"] for entry in told["entries"]] == [4]
    shown = ledger.run("wallets", "statement", shop)
    assert (shown.code, "3 out, 1 in" in shown.out) == (0, True)
    asked = ("wallets", "statement", shop, "--from-version", "2", "--to-version", "3", "--csv")
    lines = list(csv.DictReader(io.StringIO(ledger.run(*asked).out)))
    assert [line["row"] for line in lines] == ["opening", "entry", "entry", "closing"]
    written = ledger.json(*asked, "--output", str(tmp_path / "statement.csv"))
    assert (tmp_path / "statement.csv").stat().st_size == written["bytes"]

    assert ledger.run(*asked, "--json").code == ExitCode.USAGE
    refused = ledger.run("wallets", "balance", shop, "--at", "noon")
    assert (refused.code, "bad_format" in refused.err) == (ExitCode.REFUSED, True)


def test_a_statement_that_breaks_off_ends_with_1(ledger: Ledger, tmp_path: Path) -> None:
    """
    In each form, and its rows are shown as far as they are sound.
    """
    shop = open_wallet(ledger, 100)
    taken = ledger.json("withdraw", shop, "1", "EUR")
    ledger.wait_until_projected(taken["sequence"], taken["shard"])
    entry = f"source = '{shop}' AND source_version = 2"
    lie = f"UPDATE transfers SET source_balance = source_balance {{}} 1 WHERE {entry}"
    asyncio.run(execute(ledger.dsn, lie.format("+")))
    try:
        shown = ledger.run("wallets", "statement", shop)
        assert shown.code == ExitCode.DIFFERENCE
        assert "breaks off at 2" in shown.out
        printed = ledger.run("wallets", "statement", shop, "--csv")
        assert printed.code == ExitCode.DIFFERENCE
        assert printed.out.splitlines()[-1].startswith("error,2,")
        file = str(tmp_path / "statement.csv")
        written = ledger.run("wallets", "statement", shop, "--output", file)
        assert written.code == ExitCode.DIFFERENCE
    finally:
        asyncio.run(execute(ledger.dsn, lie.format("-")))


def test_same_key_moves_money_once(ledger: Ledger) -> None:
    """
    A key sent again gives the first outcome and says so; without --key one is made and told.
    """
    shop, customer = open_wallet(ledger, 10_000), open_wallet(ledger)
    first = ledger.run("transfer", shop, customer, "500", "EUR")
    key = first.err.splitlines()[0].removeprefix("idempotency key: ")
    again = ledger.run("transfer", shop, customer, "500", "EUR", "--key", key)
    assert (first.code, again.code) == (0, 0)
    assert "as before: the key was used already" in again.out
    assert balance(ledger, customer) == 500
    other = ledger.run("transfer", shop, customer, "501", "EUR", "--key", key)
    assert other.code == ExitCode.REFUSED
    assert "idempotency_key_reused" in other.err


def test_refusals_move_nothing(ledger: Ledger) -> None:
    """
    What the ledger refuses ends with 4 and its reason.
    """
    shop, customer = open_wallet(ledger, 100), open_wallet(ledger)
    for arguments, code in (
        (["transfer", shop, customer, "101", "EUR"], "insufficient_funds"),
        (["transfer", shop, "nobody", "1", "EUR"], "destination_unknown"),
        (["transfer", shop, shop, "1", "EUR"], "wallets_identical"),
        (["transfer", shop, customer, "1", "USD"], "currency_mismatch"),
        (["transfer", shop, customer, "0", "EUR"], "validation_failed"),
        (["wallets", "show", "nobody"], "wallet_unknown"),
        (["wallets", "open", "USD", "--id", shop], "wallet_exists"),
        (["wallets", "close", shop], "wallet_not_empty"),
        (["transfers", "show", "00000000-0000-0000-0000-000000000000"], "transfer_unknown"),
    ):
        ran = ledger.run(*arguments)
        assert ran.code == ExitCode.REFUSED, arguments
        assert f"({code})" in ran.err, arguments
    assert balance(ledger, shop) == 100


def test_wallet_statuses(ledger: Ledger) -> None:
    """
    A frozen wallet pays nothing, a locked one takes nothing either, and both can be opened again.
    """
    shop, customer = open_wallet(ledger, 100), open_wallet(ledger, 100)
    assert ledger.json("wallets", "freeze", shop)["status"] == "frozen"
    assert "source_frozen" in ledger.run("transfer", shop, customer, "1", "EUR").err
    assert ledger.json("transfer", customer, shop, "1", "EUR")["status"] == "posted"
    assert ledger.json("wallets", "lock", shop)["status"] == "locked"
    assert "destination_locked" in ledger.run("transfer", customer, shop, "1", "EUR").err
    assert ledger.json("wallets", "unlock", shop)["status"] == "open"
    assert ledger.json("wallets", "set-minimum", shop, "-50")["minimum"] == -50
    assert ledger.json("withdraw", shop, "151", "EUR")["balance"] == -50
    ledger.json("deposit", shop, "50", "EUR")
    assert ledger.json("wallets", "close", shop)["status"] == "closed"


def test_lists_go_on(ledger: Ledger) -> None:
    """
    A page says how the next one is asked for, and the next one begins where it ended.
    """
    prefix = f"page-{next(numbers)}"
    wallets = [f"{prefix}-{letter}" for letter in "abc"]
    opened = [ledger.json("wallets", "open", "EUR", "--id", wallet) for wallet in wallets]
    for wallet in opened:
        ledger.wait_until_projected(wallet["sequence"], wallet["shard"])
    page = ledger.json("wallets", "list", "--after", prefix, "--limit", "2")
    assert [wallet["wallet_id"] for wallet in page["wallets"]] == wallets[:2]
    assert page["next_cursor"] == wallets[1]
    shown = ledger.run("wallets", "list", "--after", prefix, "--limit", "2").out
    assert f"more: --after {wallets[1]}" in shown
    page = ledger.json("wallets", "list", "--after", page["next_cursor"], "--limit", "1")
    assert [wallet["wallet_id"] for wallet in page["wallets"]] == wallets[2:]


def test_payouts(ledger: Ledger, tmp_path: Path) -> None:
    """
    A file is checked, submitted, watched to its end, and its result tells of every row; sent
    again, it is the same batch.
    """
    payer, payee = open_wallet(ledger, 1_000), open_wallet(ledger)
    reference = f"salaries-{payer}"
    rows = [(f"{reference}-{n}", payee, "1.00") for n in range(9)]
    rows += [(f"{reference}-x", "nobody", "1.00"), (f"{reference}-y", payee, "1.001")]
    file = payout_file(tmp_path, rows)
    options = ["--source", payer, "--reference", reference, "--currency", "EUR"]

    refused = ledger.run("payouts", "submit", file, *options)
    assert refused.code == ExitCode.REFUSED
    assert "has 3 decimals" in refused.err
    report = ledger.json("payouts", "submit", file, *options, "--check")["report"]
    assert (report["rows_valid"], report["rows_invalid"]) == (10, 1)

    options += ["--on-invalid", "skip_rows"]
    watched = ledger.run("payouts", "submit", file, *options, "--watch")
    assert watched.code == ExitCode.DIFFERENCE, watched  # Two rows failed.
    assert balance(ledger, payee) == 900
    again = ledger.json("payouts", "submit", file, *options)["batch"]
    batch = ledger.json("payouts", "show", reference)
    assert again["id"] == batch["id"]
    assert (batch["state"], batch["counts"]["paid"]) == ("completed_with_failures", 9)
    assert balance(ledger, payee) == 900

    failed = ledger.json("payouts", "items", reference, "--state", "failed")["items"]
    codes = {"destination_unknown", "amount_too_precise"}
    assert {item["code"] for item in failed} == codes
    listed = ledger.json("payouts", "list", "--limit", "100")["payout_batches"]
    assert reference in {found["reference"] for found in listed}
    result = list(csv.DictReader(io.StringIO(ledger.run("payouts", "result", reference).out)))
    assert [row["state"] for row in result].count("paid") == 9
    assert len(result) == len(rows)
    written = ledger.json("payouts", "result", reference, "--output", str(tmp_path / "result.csv"))
    assert (tmp_path / "result.csv").stat().st_size == written["bytes"]


def test_watched_batch_that_is_paid_ends_with_0(ledger: Ledger, tmp_path: Path) -> None:
    """
    Watching a batch whose rows are all paid ends with 0, also when one looks later.
    """
    payer, payee = open_wallet(ledger, 1_000), open_wallet(ledger)
    file = payout_file(tmp_path, [(f"{payer}-1", payee, "10.00")])
    options = ["--source", payer, "--reference", payer, "--currency", "EUR", "--watch"]
    assert ledger.run("payouts", "submit", file, *options).code == 0
    assert ledger.run("payouts", "show", payer, "--watch").code == 0
    assert balance(ledger, payee) == 1_000


def test_status(ledger: Ledger) -> None:
    """
    The status tells where the ledger is, and of each shard the process, epoch and lag.
    """
    status = ledger.json("status")
    assert (status["ready"], status["url"], status["database"]) == (True, ledger.url, "reachable")
    shown = ledger.run("status").out
    assert "ready" in shown
    assert len(status["shards"]) == ledger.shard_count
    for shard in status["shards"]:
        assert shard["phase"] == "serving"
        assert Path(f"/proc/{shard['pid']}").exists()
        assert str(shard["pid"]) in shown


def test_verify(ledger: Ledger) -> None:
    """
    The audit of a running ledger finds the books balanced.
    """
    open_wallet(ledger, 77)
    ran = ledger.run("verify")
    assert ran.code == 0, ran
    assert "books balanced" in ran.out
    verdict = ledger.json("verify")
    assert verdict["balanced"]
    sums = verdict["currencies"]["EUR"]
    assert sums["customers"] == -sums["world"] > 0


def test_verify_on_another_database(ledger: Ledger, database: str) -> None:
    """
    With --dsn it audits that database; a table that lies makes it end with 1 and tells where.
    """
    assert ledger.json("verify", "--dsn", database)["transfers_posted"] == 0
    ghost = "INSERT INTO wallets VALUES ('ghost', 0, 'first', 'EUR', 1, 0, 5, 1, now(), 7)"
    asyncio.run(execute(database, ghost))
    ran = ledger.run("verify", "--dsn", database)
    assert ran.code == ExitCode.DIFFERENCE
    assert "the books differ" in ran.out
    assert not ledger.run("verify", "--dsn", database, "--json").json["balanced"]


def test_keys(ledger: Ledger) -> None:
    """
    A key that is made here may do what its scopes say, is listed without its secret, and after
    its revocation is found by no gateway.
    """
    made = ledger.json("keys", "create", "--scope", "wallets:read", "--label", "reports")
    wallet_id = open_wallet(ledger)
    shown = ledger.run("wallets", "show", wallet_id, MILIANO_KEY=made["key"])
    assert shown.code == 0
    refused = ledger.run("wallets", "freeze", wallet_id, MILIANO_KEY=made["key"])
    assert "scope_missing" in refused.err
    listed = ledger.run("keys", "list")
    assert made["key_id"] in listed.out
    assert made["key"] not in listed.out
    assert ledger.json("keys", "revoke", made["key_id"])["revoked"]
    assert ledger.run("keys", "revoke", made["key_id"]).code == ExitCode.REFUSED
    (key,) = [k for k in ledger.json("keys", "list")["api_keys"] if k["key_id"] == made["key_id"]]
    assert key["revoked_at"] is not None
    unfit = ledger.run("keys", "create", "--merchant", "Other Ltd")
    assert unfit.code == ExitCode.USAGE
    assert "1 to 32 of A-Z a-z 0-9" in unfit.err
    assert "'Other Ltd'" in unfit.err


def test_key_of_another_merchant_sees_nothing(ledger: Ledger) -> None:
    """
    Another merchant's key does not find this merchant's wallets.
    """
    wallet_id = open_wallet(ledger)
    other = ledger.json("keys", "create", "--merchant", "other", "--merchant-name", "Other Ltd")
    ran = ledger.run("wallets", "show", wallet_id, MILIANO_KEY=other["key"])
    assert ran.code == ExitCode.REFUSED
    assert "wallet_unknown" in ran.err


def test_schema(ledger: Ledger, empty_database: str) -> None:
    """
    Migrating brings an empty database up to date, twice is as once, and it can be taken back.
    """

    def states(*arguments: str) -> list[bool]:
        document: Any = ledger.json("db", *arguments, "--dsn", empty_database)
        return [migration["applied"] for migration in document["migrations"]]

    count = len(states("status"))
    assert states("status") == [False] * count
    assert states("migrate") == [True] * count
    assert states("migrate") == []
    assert states("rollback", "--yes", "--steps", "1") == [False]
    assert states("status") == [True] * (count - 1) + [False]


@pytest.mark.parametrize("command", ["verify", "keys list", "db status"])
def test_database_that_is_not_there(ledger: Ledger, command: str) -> None:
    """
    A database that cannot be reached ends with 3 and words, not with a traceback.
    """
    dsn = "postgresql://postgres@127.0.0.1:1/none"
    ran = ledger.run(*command.split(), "--dsn", dsn)
    assert ran.code == ExitCode.NOT_REACHABLE
    assert "The database cannot be used" in ran.err
    assert "Traceback" not in ran.err


def test_shard_that_is_killed_comes_back(ledger: Ledger) -> None:
    """
    After `kill -9` of the shard's process another one serves, in a later epoch, with every wallet.
    """
    shop = open_wallet(ledger, 4_242)
    before = ledger.shard()
    after = ledger.kill_shard()
    assert after["epoch"] > before["epoch"]
    assert after["pid"] != before["pid"]
    assert balance(ledger, shop) == 4_242
