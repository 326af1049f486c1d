"""
Goal: refunds, linked transfers, fees and the life of a transfer are done and seen on the command
      line as over HTTP.
Method: the commands as a user types them, on the session's ledger with two shards.
"""

from __future__ import annotations

import json
from pathlib import Path

from gateway.cli.exit_codes import ExitCode
from tests.support.ledger import Ledger
from tests.support.merchant import fresh, fresh_on


def opened(ledger: Ledger, funds: int = 0, *, shard_id: int | None = None) -> str:
    wallet_id = fresh("cash") if shard_id is None else fresh_on(shard_id, "cash")
    ledger.json("wallets", "open", "EUR", "--id", wallet_id)
    if funds:
        ledger.json("deposit", wallet_id, str(funds), "EUR")
    return wallet_id


def balance(ledger: Ledger, wallet_id: str) -> int:
    return int(ledger.json("wallets", "show", wallet_id)["balance"])


def test_refunds(ledger: Ledger) -> None:
    """
    A part and then the rest; what has gone back is listed; a key is made and told.
    """
    buyer, seller = opened(ledger, 1_000), opened(ledger)
    paid = ledger.json("transfer", buyer, seller, "900", "EUR")
    part = ledger.run("transfers", "refund", paid["id"], "--amount", "200", "--reference", "a cup")
    assert part.code == 0, part
    assert part.err.startswith("idempotency key: ")
    assert ledger.json("transfers", "refund", paid["id"])["amount"] == 700
    refused = ledger.run("transfers", "refund", paid["id"], "--amount", "300")
    assert (refused.code, "refund_exceeds_paid" in refused.err) == (ExitCode.REFUSED, True)
    assert "short_by: 300" in refused.err
    assert balance(ledger, buyer) == 1_000
    last = ledger.json("wallets", "show", buyer)
    ledger.wait_until_projected(last["sequence"], last["shard"])
    found = ledger.json("transfers", "refunds", paid["id"])
    assert (found["refunded"], found["left"], len(found["refunds"])) == (900, 0, 2)
    shown = ledger.run("transfers", "refunds", paid["id"]).out
    assert "9.00 EUR" in shown


def test_linked_transfers(ledger: Ledger, tmp_path: Path) -> None:
    """
    Legs and fees from options or from a file; looked at, and taken back.
    """
    buyer, seller = opened(ledger, 1_000, shard_id=0), opened(ledger, shard_id=1)
    legs = ["--leg", f"{buyer},{seller},600,EUR", "--fee", f"{seller},30,EUR"]
    sale = ledger.json("linked", "move", *legs)
    assert (sale["status"], balance(ledger, seller)) == ("posted", 570)
    assert ledger.json("linked", "show", sale["id"])["legs"][1]["type"] == "fee"
    shown = ledger.run("linked", "show", sale["id"]).out
    assert "(fees)" in shown
    assert "6.00 EUR" in shown
    fee = ledger.run("transfers", "show", sale["legs"][1]["id"]).out
    assert ("(fees)" in fee, "outside" in fee) == (True, False)
    back = ledger.json("linked", "reverse", sale["id"], "--fees", "returned")
    assert (back["status"], balance(ledger, buyer)) == ("posted", 1_000)

    file = tmp_path / "legs.json"
    leg = {"source": buyer, "destination": seller, "amount": 1, "currency": "EUR"}
    file.write_text(json.dumps({"legs": [leg, leg | {"metadata": {"rate": "1.08"}}]}))
    assert ledger.json("linked", "move", "--file", str(file))["status"] == "posted"
    too_much = ledger.run(
        "linked", "move", "--leg", f"{buyer},{seller},9999,EUR", "--leg", f"{buyer},{seller},1,EUR"
    )
    assert (too_much.code, "/legs/0" in too_much.err) == (ExitCode.REFUSED, True)


def test_legs_that_cannot_be_read(ledger: Ledger, tmp_path: Path) -> None:
    """
    It is said how they are written, and nothing is sent.
    """
    file = tmp_path / "legs.json"
    file.write_text("[]")
    for arguments, words in (
        (["--leg", "a,b,1"], "FROM,TO,AMOUNT,CURRENCY"),
        (["--fee", "a,b,1,EUR"], "is not FROM,AMOUNT,CURRENCY"),
        (["--leg", "a,b,1.50,EUR"], "minor units"),
        (["--file", str(file)], "not a JSON object"),
    ):
        ran = ledger.run("linked", "move", *arguments)
        assert (ran.code, words in ran.err) == (ExitCode.USAGE, True), ran


def test_fees(ledger: Ledger) -> None:
    """
    They are listed by currency and shard, and swept into one wallet.
    """
    seller, till = opened(ledger, 1_000), opened(ledger)
    other = opened(ledger)
    moved = ledger.json(
        "linked", "move", "--leg", f"{seller},{other},1,EUR", "--fee", f"{seller},70,EUR"
    )
    ledger.wait_until_projected(moved["sequence"], moved["shard"])
    total = sum(fees["balance"] for fees in ledger.json("fees", "list")["fees"])
    assert total >= 70
    assert "EUR" in ledger.run("fees", "list").out
    swept = ledger.json("fees", "sweep", "EUR", till)
    assert (swept["amount"], balance(ledger, till)) == (total, total)
    key = fresh("sweep")
    first = ledger.run("fees", "sweep", "EUR", till, "--key", key).out
    again = ledger.run("fees", "sweep", "EUR", till, "--key", key).out
    assert "0.00 EUR" in first
    assert ("as before" in first, "as before" in again) == (False, True)


def test_explain(ledger: Ledger) -> None:
    """
    Each record of a transfer in a row, and of one that was refused the check.
    """
    payer, payee = opened(ledger, 100, shard_id=0), opened(ledger, shard_id=1)
    paid = ledger.json("transfer", payer, payee, "30", "EUR")
    shown = ledger.run("transfers", "explain", paid["id"]).out
    for words in ("reserved", "credited", "settled", "0→1 #", "1.00 EUR → 0.70 EUR"):
        assert words in shown
    refused = json.loads(ledger.run("transfer", payer, payee, "500", "EUR", "--json").out)
    shown = ledger.run("transfers", "explain", refused["transfer"]["id"]).out
    for words in ("insufficient_funds", "430 missing", "checks before it", "source_unknown"):
        assert words in shown
