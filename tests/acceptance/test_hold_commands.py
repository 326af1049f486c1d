"""
Goal: the commands of holds, limits and conditions do on a running ledger what their help says.
Method: the commands as processes, on the session's ledger with Ray; each test has wallets of its
        own.
"""

from __future__ import annotations

import asyncio

from gateway.cli.exit_codes import ExitCode
from tests.support.ledger import Ledger
from tests.support.merchant import fresh
from tests.support.waiting import until


def open_wallet(ledger: Ledger, funds: int = 0) -> str:
    """
    Open a wallet that no other test knows, with money in it.
    """
    wallet_id = fresh("held")
    ledger.json("wallets", "open", "EUR", "--id", wallet_id)
    if funds:
        ledger.json("deposit", wallet_id, str(funds), "EUR")
    return wallet_id


def test_a_hold_is_placed_captured_and_given_up(ledger: Ledger) -> None:
    """
    Each command tells the hold as it is by then, for people and as JSON.
    """
    guest, hotel = open_wallet(ledger, 10_000), open_wallet(ledger)
    place = ["holds", "place", guest, "6000", "EUR", "--to", hotel, "--reference", "room 12"]

    hold = ledger.json(*place, "--expires-in", "600")
    shown = ledger.run("holds", "show", hold["id"])
    assert (hold["status"], hold["available"]) == ("open", 4_000)
    assert all(text in shown.out for text in ("60.00 EUR", "40.00 EUR", "room 12", hotel))
    assert "held" in ledger.run("wallets", "show", guest).out
    longer = ledger.json("holds", "extend", hold["id"], "--expires-in", "900")
    assert longer["expires_at"] > hold["expires_at"]
    captured = ledger.json("holds", "capture", hold["id"], "--amount", "1000")
    assert (captured["type"], captured["balance"]) == ("capture", 9_000)
    refused = ledger.run("holds", "capture", hold["id"], "--amount", "5001")
    assert (refused.code, "(capture_exceeds_hold)" in refused.err) == (ExitCode.REFUSED, True)
    voided = ledger.run("holds", "void", hold["id"], "--key", "once")
    again = ledger.run("holds", "void", hold["id"], "--key", "once")
    assert (voided.code, again.code) == (0, 0)
    assert "as before: the key was used already" in again.out
    assert ledger.json("wallets", "show", guest)["available"] == 9_000


def test_holds_are_listed(ledger: Ledger) -> None:
    """
    Those of one status or all, page by page.
    """
    guest, hotel = open_wallet(ledger, 100), open_wallet(ledger)
    holds = [ledger.json("holds", "place", guest, "10", "EUR")["id"] for _ in range(3)]
    rest = ledger.json("holds", "capture", holds[0], "--amount", "4", "--to", hotel, "--final")
    ledger.wait_until_projected(rest["sequence"], rest["shard"])

    page = ledger.json("holds", "list", guest, "--limit", "2")
    ended = ledger.json("holds", "list", guest, "--status", "captured")
    assert [hold["id"] for hold in page["holds"]] == holds[:2]
    assert [hold["captured"] for hold in ended["holds"]] == [4]
    shown = ledger.run("holds", "list", guest, "--limit", "2")
    assert f"more: --after {holds[1]}" in shown.out
    assert ledger.run("holds", "show", "nothing").code == ExitCode.REFUSED


def test_limits_are_set_one_by_one(ledger: Ledger) -> None:
    """
    One that is set leaves the others; they are shown with what is used, and lifted.
    """
    wallet = open_wallet(ledger, 1_000)
    command = ["wallets", "limits", wallet]

    assert "has no limits" in ledger.run(*command).out
    ledger.json(*command, "--set", "debits.day_amount=500", "--set", "balance_max=9000")
    limits = ledger.json(*command, "--set", "debits.hour_count=2")["limits"]
    assert limits["debits"] == {"day_amount": 500, "hour_count": 2}
    assert limits["balance_max"] == 9_000
    ledger.json("withdraw", wallet, "100", "EUR")
    refused = ledger.run("withdraw", wallet, "401", "EUR")
    assert "(debit_amount_day_exceeded)" in refused.err
    shown = ledger.run(*command)
    assert all(text in shown.out for text in ("debits.day_amount", "5.00 EUR", "1.00 EUR"))
    fewer = ledger.json(*command, "--set", "debits.day_amount=none")["limits"]
    assert fewer["debits"] == {"hour_count": 2}
    assert ledger.json(*command, "--lift")["limits"] is None
    wrong = ledger.run(*command, "--set", "debits.week_count=1")
    assert (wrong.code, "debits.hour_count" in wrong.err) == (ExitCode.USAGE, True)


def test_movements_with_conditions(ledger: Ledger) -> None:
    """
    What is not as it was expected moves nothing; up to an amount moves what is there.
    """
    shop, customer = open_wallet(ledger, 100), open_wallet(ledger)
    transfer = ["transfer", shop, customer, "10", "EUR"]

    assert ledger.json(*transfer, "--if-version", "1")["version"] == 2
    assert "(version_differs)" in ledger.run(*transfer, "--if-version", "1").err
    short = ledger.run(*transfer, "--if-available", "91")
    assert "(available_below_condition)" in short.err
    assert ledger.json("transfer", shop, customer, "500", "EUR", "--up-to")["amount"] == 90
    assert ledger.json("withdraw", customer, "500", "EUR", "--up-to")["amount"] == 100


def test_a_hold_expires_by_itself(ledger: Ledger) -> None:
    """
    With Ray as without: its money is available again in a moment.
    """
    guest = open_wallet(ledger, 100)
    hold = ledger.json("holds", "place", guest, "60", "EUR", "--expires-in", "1")

    def is_expired() -> bool:
        status: str = ledger.json("holds", "show", hold["id"])["status"]
        return status == "expired"

    asyncio.run(until(is_expired, "the hold to expire"))
    assert ledger.json("wallets", "show", guest)["available"] == 100
