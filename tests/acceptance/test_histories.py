"""
Goal: a client reads its own writes, and reads every entry of a wallet once.
Method: a wallet with a known past, read in pages from both ends while it grows.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.merchant import Merchant, code_of, fresh
from tests.support.running_gateway import RunningGateway, running_gateway
from tests.support.stack import Stack
from tests.support.waiting import until

AMOUNTS = (5, 3, 8, 1, 4, 2, 7)


def move(merchant: Merchant, source: str, destination: str, amount: int) -> int:
    """
    Transfer, and return the sequence.
    """
    body = {"source": source, "destination": destination, "amount": amount, "currency": "EUR"}
    reply = merchant.post("/v1/transfers", body | {"reference": f"r{amount}"}, key=fresh("key"))
    assert reply.status_code == 201, reply.text
    sequence: int = reply.json()["sequence"]
    return sequence


def page_of(merchant: Merchant, wallet: str, query: str = "") -> dict[str, Any]:
    reply = merchant.get(f"/v1/wallets/{wallet}/entries?{query}")
    assert reply.status_code == 200, reply.text
    page: dict[str, Any] = reply.json()
    assert page["has_more"] == (page["next_cursor"] is not None) == ("next" in reply.links)
    return page


@pytest.fixture(scope="module")
def past(acme: Merchant) -> tuple[str, str, int]:
    """
    Make a wallet that got 100, gave AMOUNTS to another and got 2 back; and the last sequence.
    """
    wallet, other = acme.open_wallet(funds=100), acme.open_wallet()
    for amount in AMOUNTS:
        move(acme, wallet, other, amount)
    return wallet, other, move(acme, other, wallet, 2)


def test_reads_its_own_writes(acme: Merchant) -> None:
    """
    With the sequence of a reply as min_sequence, what it told is in the history at once.
    """
    wallet, other = acme.open_wallet(funds=100), acme.open_wallet()
    for number in range(20):
        sequence = move(acme, wallet, other, 1)
        page = page_of(acme, wallet, f"min_sequence={sequence}&limit=1")
        assert page["entries"][0]["version"] == number + 2
        assert page["entries"][0]["sequence"] == sequence


def test_entries_tell_everything(acme: Merchant, past: tuple[str, str, int]) -> None:
    """
    Each entry has its direction, the balance after it, the other side, and its transfer.
    """
    wallet, other, sequence = past

    entries = page_of(acme, wallet, f"after=0&min_sequence={sequence}")["entries"]

    assert [entry["version"] for entry in entries] == list(range(1, 10))
    balance = 0
    for entry in entries:
        balance += entry["amount"] if entry["direction"] == "credit" else -entry["amount"]
        assert entry["balance"] == balance
    assert balance == acme.balance(wallet)
    assert (entries[0]["counterparty"], entries[0]["type"]) == (None, "deposit")
    last = entries[-1]
    assert (last["direction"], last["counterparty"], last["type"]) == ("credit", other, "transfer")
    transfer = acme.get(f"/v1/transfers/{entries[1]['transfer_id']}").json()
    for name in ("version", "balance", "amount", "reference", "sequence", "created_at"):
        assert entries[1][name] == transfer[name]


@pytest.mark.parametrize("limit", [1, 4, 9, 10, 1_000])
@pytest.mark.parametrize("start", ["after=0", ""])
def test_pages_meet(acme: Merchant, past: tuple[str, str, int], start: str, limit: int) -> None:
    """
    Following the links gives each version once, in order, from either end.
    """
    wallet, _, sequence = past
    versions: list[int] = []
    path = f"/v1/wallets/{wallet}/entries?{start}&limit={limit}&min_sequence={sequence}"
    while path:
        reply = acme.get(path)
        entries = reply.json()["entries"]
        assert len(entries) <= limit
        versions += [entry["version"] for entry in entries]
        path = reply.links["next"]["url"] if reply.json()["has_more"] else ""

    assert versions == (list(range(1, 10)) if start else list(range(9, 0, -1)))


def test_pages_do_not_shift(acme: Merchant) -> None:
    """
    What is added while somebody reads changes no page that is still to come.
    """
    wallet, other = acme.open_wallet(funds=100), acme.open_wallet()
    sequence = [move(acme, wallet, other, 1) for _ in range(5)][-1]
    first = page_of(acme, wallet, f"limit=3&min_sequence={sequence}")
    later = [move(acme, wallet, other, 1) for _ in range(5)][-1]

    rest = page_of(acme, wallet, f"before={first['next_cursor']}&min_sequence={later}")
    seen = [entry["version"] for entry in first["entries"] + rest["entries"]]
    assert seen == [6, 5, 4, 3, 2, 1]
    new = page_of(acme, wallet, "after=6")
    assert [entry["version"] for entry in new["entries"]] == [7, 8, 9, 10, 11]


def test_a_new_wallet_has_an_empty_history(acme: Merchant) -> None:
    """
    A wallet that was just opened is known, whether the tables have it or not.
    """
    assert page_of(acme, acme.open_wallet())["entries"] == []


def test_a_foreign_history_is_closed(acme: Merchant, globex: Merchant) -> None:
    """
    Another merchant's wallet is as unknown as none.
    """
    wallet = globex.open_wallet(funds=5)
    for path in (f"/v1/wallets/{wallet}/entries", f"/v1/wallets/{wallet}"):
        reply = acme.get(path)
        assert (reply.status_code, code_of(reply)) == (404, "wallet_unknown")


def test_a_history_that_does_not_come(own_stack: Stack) -> None:
    """
    Whoever waits for tables that have stopped hears so in time, and how far they are; a
    transfer is found all the same.
    """
    hurried = {"MILIANO_GATEWAY_REQUEST_TIMEOUT_MS": "3000"}
    with running_gateway(own_stack, **hurried) as gateway:
        merchant = Merchant(gateway.url, gateway.key("acme"))
        wallet, other = merchant.open_wallet(funds=10), merchant.open_wallet()
        own_stack.write_behind.kill()
        sequence = move(merchant, wallet, other, 1)

        reply = merchant.get(f"/v1/wallets/{wallet}/entries?min_sequence={sequence}")
        assert (reply.status_code, code_of(reply)) == (503, "not_projected_yet")
        assert int(reply.headers["retry-after"]) >= 1

        body = {"source": wallet, "destination": other, "amount": 2, "currency": "EUR"}
        made = merchant.post("/v1/transfers", body, key=fresh("key")).json()
        assert merchant.get(f"/v1/transfers/{made['id']}").json() == made
        own_stack.write_behind.start()
        merchant.close()


def test_health_tells_how_far_it_is(gateway: RunningGateway, acme: Merchant) -> None:
    """
    Each shard says where its journal and its tables are, and what a 2xx waited for.
    """
    nobody = Merchant(gateway.url, None)
    wallet = acme.open_wallet(funds=1)
    sequence = acme.get(f"/v1/wallets/{wallet}").json()["sequence"]
    page_of(acme, wallet, f"min_sequence={sequence}")

    def shard() -> dict[str, Any] | None:
        health = nobody.get("/v1/health").json()
        assert (health["live"], health["ready"], health["durability"]) == (True, True, "local")
        (found,) = health["shards"]
        return found if found["projected_sequence"] >= sequence else None

    # What it says may be half a second old.
    seen = asyncio.run(until(shard, "the tables to be seen"))
    assert (seen["state"], seen["connected"], seen["halted_for"]) == ("active", True, None)
    assert seen["lag_records"] == seen["sequence"] - seen["projected_sequence"]
    assert seen["sequence"] >= sequence
    nobody.close()
