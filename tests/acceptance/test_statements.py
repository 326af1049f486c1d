"""
Goal: a statement opens, tells every entry of its time once, closes, and adds up; one that does not
      says so.
Method: wallets with a known past over HTTP, as JSON and as CSV, whole and in parts that meet; a
        table that was tampered with.
"""

from __future__ import annotations

import asyncio
import csv
import io
from typing import Any

import pytest

from tests.support.databases import execute
from tests.support.merchant import Merchant, code_of, fresh
from tests.support.running_gateway import SETTLED, running_gateway
from tests.support.stack import Stack

AMOUNTS = (5, 3, 8, 1, 4, 2, 7)


@pytest.fixture(scope="module", params=[0, 1], ids=["one shard", "two shards"])
def wallet(acme: Merchant, request: pytest.FixtureRequest) -> str:
    """
    Make a wallet that got 100, gave AMOUNTS to another and got 2 back, all in the tables.
    """
    made = acme.open_wallet(funds=100, shard_id=0)
    other = acme.open_wallet(shard_id=request.param)
    for amount in AMOUNTS:
        move(acme, made, other, amount)
    move(acme, other, made, 2)
    acme.get(f"/v1/wallets/{made}/entries?{acme.seen(made)}")
    return made


def move(
    merchant: Merchant, source: str, destination: str, amount: int, reference: str = "rent"
) -> dict[str, Any]:
    body = {"source": source, "destination": destination, "amount": amount, "currency": "EUR"}
    reply = merchant.post("/v1/transfers", body | {"reference": reference}, key=fresh("key"))
    assert reply.status_code == 201, reply.text
    transfer: dict[str, Any] = reply.json()
    return transfer


def statement_of(merchant: Merchant, wallet: str, query: str = "") -> dict[str, Any]:
    reply = merchant.get(f"/v1/wallets/{wallet}/statement?{query}")
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    statement: dict[str, Any] = reply.json()
    return statement


def lines_of(merchant: Merchant, wallet: str, query: str = "") -> list[dict[str, str]]:
    reply = merchant.get(f"/v1/wallets/{wallet}/statement.csv?{query}")
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/csv")
    return list(csv.DictReader(io.StringIO(reply.text, newline="")))


def test_it_opens_tells_and_closes(acme: Merchant, wallet: str) -> None:
    """
    Everything from the first entry on: its rows are the entries, its closing is what they say.
    """
    told = statement_of(acme, wallet)
    assert (told["wallet_id"], told["currency"], told["error"]) == (wallet, "EUR", None)
    assert told["opening"] == {"balance": 0, "version": 0, "at": None}
    page = acme.get(f"/v1/wallets/{wallet}/entries?after=0").json()
    assert told["entries"] == page["entries"]
    assert told["closing"] == {
        "balance": 72,
        "version": 9,
        "at": told["entries"][-1]["created_at"],
        "debit_count": 7,
        "debit_amount": 30,
        "credit_count": 2,
        "credit_amount": 102,
    }


def test_statements_meet(acme: Merchant, wallet: str) -> None:
    """
    Wherever one ends by time or by version, the next one opens with what it closed with, and no
    entry is in both or in none.
    """
    whole = statement_of(acme, wallet)
    for version, entry in enumerate(whole["entries"][1:], 2):
        at = entry["created_at"]
        for ending, beginning in (
            (f"to={at}", f"from={at}"),
            (f"to_version={version - 1}", f"from_version={version}"),
        ):
            first = statement_of(acme, wallet, ending)
            second = statement_of(acme, wallet, beginning)
            assert first["entries"] + second["entries"] == whole["entries"]
            assert second["entries"][0]["version"] == version
            closing = {name: first["closing"][name] for name in ("balance", "version", "at")}
            assert closing == second["opening"]
            for name in ("debit_count", "debit_amount", "credit_count", "credit_amount"):
                both = first["closing"][name] + second["closing"][name]
                assert both == whole["closing"][name]
    one = statement_of(acme, wallet, "from_version=4&to_version=4")
    assert [row["version"] for row in one["entries"]] == [4]


@pytest.mark.parametrize(
    ("query", "balance", "version"),
    [
        ("to=1999-01-01T00:00:00Z", 0, 0),
        ("from=1998-01-01T00:00:00Z&to=1999-01-01T00:00:00Z", 0, 0),
        ("from=2100-01-01T00:00:00Z", 72, 9),
        ("from_version=10", 72, 9),
    ],
)
def test_of_a_time_without_entries(
    acme: Merchant, wallet: str, query: str, balance: int, version: int
) -> None:
    """
    It closes as it opened.
    """
    told = statement_of(acme, wallet, query)
    assert told["entries"] == []
    opening, closing = told["opening"], told["closing"]
    assert (opening["balance"], opening["version"]) == (balance, version)
    sums = ("debit_count", "debit_amount", "credit_count", "credit_amount")
    assert closing == opening | dict.fromkeys(sums, 0)


def test_of_a_new_wallet(acme: Merchant) -> None:
    """
    It is known, whether the tables have it or not.
    """
    told = statement_of(acme, acme.open_wallet())
    assert told["opening"]["balance"] == told["closing"]["balance"] == 0


def test_csv_tells_the_same(acme: Merchant, wallet: str) -> None:
    """
    Line by line, in major units.
    """
    for query in ("", "from_version=3&to_version=6"):
        told = statement_of(acme, wallet, query)
        opening, *entries, closing = lines_of(acme, wallet, query)
        assert (opening["row"], closing["row"]) == ("opening", "closing")
        assert opening["balance"] == f"{told['opening']['balance'] / 100:.2f}"
        assert closing["balance"] == f"{told['closing']['balance'] / 100:.2f}"
        assert closing["debit"] == f"{told['closing']['debit_amount'] / 100:.2f}"
        assert int(closing["credit_count"]) == told["closing"]["credit_count"]
        for line, entry in zip(entries, told["entries"], strict=True):
            assert (line["row"], int(line["version"])) == ("entry", entry["version"])
            assert line[entry["direction"]] == f"{entry['amount'] / 100:.2f}"
            assert line["balance"] == f"{entry['balance'] / 100:.2f}"
            assert line["created_at"] == entry["created_at"]
            assert line["counterparty"] == (entry["counterparty"] or "")
            assert line["transfer_id"] == entry["transfer_id"]


def test_csv_is_a_file_without_formulas(acme: Merchant, globex: Merchant) -> None:
    """
    What a stranger wrote as a reference is text in a spreadsheet.
    """
    stranger, mine = globex.open_wallet(funds=10), acme.open_wallet()
    moved = move(globex, stranger, mine, 1, '=HYPERLINK("http://x","y")')
    query = f"min_sequence={moved['sequence']}&shard={moved['shard']}"
    acme.get(f"/v1/wallets/{mine}/balance?version=1")
    reply = acme.get(f"/v1/wallets/{mine}/statement.csv")
    assert mine in reply.headers["content-disposition"]
    assert lines_of(acme, mine)[1]["reference"] == '\'=HYPERLINK("http://x","y")'
    assert lines_of(globex, stranger, query)[2]["reference"].startswith("'=")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("from=2026-01-01T00:00:00Z&to_version=3", "from_version"),
        ("from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "to"),
        ("from_version=4&to_version=3", "to_version"),
        ("from_version=11", "from_version"),
        ("to_version=10", "to_version"),
        ("from_version=0", "from_version"),
        ("to=tomorrow", "to"),
    ],
)
@pytest.mark.parametrize("form", ["statement", "statement.csv"])
def test_a_statement_that_cannot_be(
    acme: Merchant, wallet: str, form: str, query: str, parameter: str
) -> None:
    """
    What is wrong is said before anything is sent.
    """
    reply = acme.get(f"/v1/wallets/{wallet}/{form}?{query}")
    assert (reply.status_code, code_of(reply)) == (400, "query_invalid")
    assert reply.json()["errors"][0]["parameter"] == parameter


def test_it_has_what_a_reply_told(acme: Merchant) -> None:
    """
    With the sequence and shard of a reply, or with its version, what it told is in it.
    """
    mine, other = acme.open_wallet(funds=100, shard_id=0), acme.open_wallet(shard_id=0)
    for _ in range(10):
        moved = move(acme, mine, other, 1)
        query = f"min_sequence={moved['sequence']}&shard={moved['shard']}"
        assert statement_of(acme, mine, query)["closing"]["balance"] == moved["balance"]
        moved = move(acme, mine, other, 1)
        told = statement_of(acme, mine, f"to_version={moved['version']}")
        assert told["closing"]["balance"] == moved["balance"]


def test_a_long_one_is_whole(acme: Merchant) -> None:
    """
    Many pages of many rows follow from each other like the rows of one.
    """
    mine, other = acme.open_wallet(funds=10_000, shard_id=0), acme.open_wallet(shard_id=0)
    item = {"source": mine, "destination": other, "amount": 1, "currency": "EUR"}
    items = [item | {"idempotency_key": fresh("key")} for _ in range(5_000)]
    assert acme.post("/v1/transfers/batch", {"transfers": items}).json()["posted"] == len(items)
    told = statement_of(acme, mine, acme.seen(mine))
    assert [row["version"] for row in told["entries"]] == list(range(1, 5_002))
    assert (told["closing"]["debit_count"], told["closing"]["balance"]) == (5_000, 5_000)
    lines = lines_of(acme, mine)
    assert len(lines) == 5_003
    assert lines[-1]["balance"] == "50.00"


def test_tables_that_lie_are_found_out(own_stack: Stack) -> None:
    """
    A balance that does not follow ends a statement without a closing, in either form.
    """
    with running_gateway(own_stack, **SETTLED) as gateway:
        merchant = Merchant(gateway.url, gateway.key("acme"))
        mine, other = merchant.open_wallet(funds=100, shard_id=0), merchant.open_wallet(shard_id=0)
        for amount in AMOUNTS:
            move(merchant, mine, other, amount)
        merchant.get(f"/v1/wallets/{mine}/entries?{merchant.seen(mine)}")
        assert statement_of(merchant, mine)["closing"]["version"] == 8
        lie = f"UPDATE transfers SET source_balance = 1 WHERE source = '{mine}'"
        asyncio.run(execute(own_stack.dsns[0], f"{lie} AND source_version = 5"))

        told = statement_of(merchant, mine)
        assert [row["version"] for row in told["entries"]] == [1, 2, 3, 4]
        assert told["closing"] is None
        assert (told["error"]["code"], told["error"]["version"]) == ("contradiction", 5)
        assert "should be 83 and is 1" in told["error"]["detail"]
        *entries, last = lines_of(merchant, mine)
        assert [line["row"] for line in entries] == ["opening", *["entry"] * 4]
        assert (last["row"], last["version"]) == ("error", "5")
        # An opening that lies is held against the first row.
        told = statement_of(merchant, mine, "from_version=6")
        assert (told["entries"], told["error"]["version"]) == ([], 6)
        assert statement_of(merchant, mine, "to_version=4")["closing"]["balance"] == 84
        merchant.close()
