"""
Goal: a wallet is opened once, shown as it is, changed as far as the ledger allows, and listed.
Method: one merchant over HTTP; each refusal also leaves the wallet as it was.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from processor.storage.api_keys import Scope
from tests.support.merchant import Merchant, code_of, fresh, fresh_on, pointers_of
from tests.support.running_gateway import RunningGateway
from tests.support.waiting import until


def patch(merchant: Merchant, wallet_id: str, **body: Any) -> Any:
    return merchant.send("PATCH", f"/v1/wallets/{wallet_id}", body)


def test_opening(acme: Merchant) -> None:
    """
    A new wallet is empty and open; asking again with the same facts changes nothing.
    """
    body = {"wallet_id": fresh_on(1, "w"), "currency": "JPY"}

    first, again = acme.post("/v1/wallets", body), acme.post("/v1/wallets", body)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json() == acme.get(first.headers["location"]).json()
    expected = body | {"status": "open", "minimum": 0, "balance": 0, "version": 0, "shard": 1}
    expected |= {"available": 0, "held": 0, "limits": None, "usage": None}
    assert first.json() == expected | {"sequence": first.json()["sequence"]}


def test_the_gateway_makes_ids(acme: Merchant) -> None:
    """
    Without an id each request opens another wallet, and the id can be used.
    """
    ids = {acme.post("/v1/wallets", {"currency": "EUR"}).json()["wallet_id"] for _ in range(3)}

    assert len(ids) == 3
    assert all(acme.balance(wallet_id) == 0 for wallet_id in ids)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"currency": "USD"}, "wallet_exists"),
        ({"minimum": -5}, "wallet_exists"),
        ({"wallet_id": "new", "minimum": 5}, "minimum_above_available"),
    ],
)
def test_openings_that_are_refused(acme: Merchant, fields: dict[str, Any], code: str) -> None:
    """
    An id belongs to its first facts, and a new wallet has nothing to keep.
    """
    wallet_id = acme.open_wallet()
    if "wallet_id" in fields:
        fields = fields | {"wallet_id": fresh("w")}

    reply = acme.post("/v1/wallets", {"wallet_id": wallet_id, "currency": "EUR"} | fields)

    assert (reply.status_code, code_of(reply)) == (409, code)
    assert acme.balance(wallet_id) == 0


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"wallet_id": "x"}, "/currency"),
        ({"wallet_id": "!", "currency": "EUR"}, "/wallet_id"),
        ({"currency": "EUR", "minimum": -(2**53)}, "/minimum"),
        ({"currency": "EUR", "minimum": 0.5}, "/minimum"),
        ({"currency": "EUR", "balance": 5}, "/balance"),
        ({"currency": "EUR", "merchant_id": "globex"}, "/merchant_id"),
    ],
)
def test_openings_that_are_wrong(acme: Merchant, body: dict[str, Any], pointer: str) -> None:
    """
    Wrong fields, and fields that are not the client's to set, are named.
    """
    reply = acme.post("/v1/wallets", body)

    assert (reply.status_code, pointers_of(reply)) == (422, [pointer])


@pytest.mark.parametrize(
    ("status", "debit", "credit"),
    [
        ("open", None, None),
        ("frozen", "source_frozen", None),
        ("locked", "source_locked", "destination_locked"),
        ("closed", "source_closed", "destination_closed"),
    ],
)
def test_statuses(acme: Merchant, status: str, debit: str | None, credit: str | None) -> None:
    """
    A frozen wallet pays nobody, a locked one moves nothing, a closed one never again.
    """
    wallet, other = acme.open_wallet(), acme.open_wallet(funds=10)
    reply = patch(acme, wallet, status=status)
    assert (reply.status_code, reply.json()["status"]) == (200, status)
    assert patch(acme, wallet, status=status).json() == reply.json()

    def tried(source: str, destination: str) -> str | None:
        body = {"source": source, "destination": destination, "amount": 1, "currency": "EUR"}
        reply = acme.post("/v1/transfers", body, key=fresh("key"))
        return None if reply.status_code == 201 else code_of(reply)

    assert tried(other, wallet) == credit
    assert tried(wallet, other) == debit
    assert patch(acme, wallet, status="open").status_code == (409 if status == "closed" else 200)


def test_a_wallet_with_money_stays_open(acme: Merchant) -> None:
    """
    Only an empty wallet can be closed.
    """
    wallet = acme.open_wallet(funds=1)

    assert code_of(patch(acme, wallet, status="closed")) == "wallet_not_empty"
    assert acme.get(f"/v1/wallets/{wallet}").json()["status"] == "open"


def test_minimums(acme: Merchant) -> None:
    """
    A negative minimum is an overdraft, a positive one a reserve, and neither can be above what
    is there.
    """
    wallet, other = acme.open_wallet(funds=10), acme.open_wallet()

    def pay(amount: int) -> int:
        body = {"source": wallet, "destination": other, "amount": amount, "currency": "EUR"}
        return acme.post("/v1/transfers", body, key=fresh("key")).status_code

    assert patch(acme, wallet, minimum=5).json()["minimum"] == 5
    assert (pay(6), pay(5)) == (409, 201)
    assert code_of(patch(acme, wallet, minimum=6)) == "minimum_above_available"
    assert patch(acme, wallet, minimum=-100).status_code == 200
    assert (pay(106), pay(105)) == (409, 201)
    assert acme.balance(wallet) == -100


def test_both_changes_at_once(acme: Merchant) -> None:
    """
    The minimum is set first; when the status is then refused, the reply says what holds.
    """
    wallet = acme.open_wallet(funds=10)

    both = patch(acme, wallet, minimum=-5, status="frozen").json()
    assert (both["minimum"], both["status"]) == (-5, "frozen")

    half = patch(acme, wallet, minimum=-6, status="closed")
    assert (half.status_code, code_of(half)) == (409, "wallet_not_empty")
    assert pointers_of(half) == ["/status"]
    assert "What else was asked for is set" in half.json()["detail"]
    assert half.json()["wallet"] == acme.get(f"/v1/wallets/{wallet}").json()
    assert half.json()["wallet"]["minimum"] == -6


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, ""),
        ({"status": "deleted"}, "/status"),
        ({"status": None}, ""),
        ({"minimum": 2**53}, "/minimum"),
        ({"currency": "USD"}, "/currency"),
    ],
)
def test_changes_that_are_wrong(acme: Merchant, body: dict[str, Any], pointer: str) -> None:
    """
    A change names a status of the list or a minimum within its bounds, and nothing else.
    """
    reply = patch(acme, acme.open_wallet(), **body)

    assert (reply.status_code, pointers_of(reply)) == (422, [pointer])


def test_limits_need_their_own_scope(gateway: RunningGateway) -> None:
    """
    A key without limits:write grants no overdraft, at opening or later.
    """
    clerk = Merchant(gateway.url, gateway.key("clerks", [Scope.WALLETS_WRITE, Scope.WALLETS_READ]))
    wallet = clerk.open_wallet()
    refused = [
        patch(clerk, wallet, minimum=-1),
        patch(clerk, wallet, minimum=0, status="frozen"),
        clerk.post("/v1/wallets", {"currency": "EUR", "minimum": -1}),
    ]

    assert [(reply.status_code, code_of(reply)) for reply in refused] == [
        (403, "scope_missing")
    ] * 3
    assert "limits:write" in refused[0].json()["detail"]
    assert clerk.get(f"/v1/wallets/{wallet}").json()["status"] == "open"
    assert patch(clerk, wallet, status="frozen").status_code == 200
    clerk.close()


def test_lists_are_complete(gateway: RunningGateway) -> None:
    """
    Pages of any size give every wallet of the merchant once, by id, with a link to the next.
    """
    keeper = Merchant(gateway.url, gateway.key("keepers"))
    opened = sorted(keeper.open_wallet(word) for word in ("b", "a", "B", "a:x", "c"))

    def listed(limit: int) -> list[str]:
        found, path = [], f"/v1/wallets?limit={limit}"
        while True:
            reply = keeper.get(path)
            page = reply.json()
            found += [wallet["wallet_id"] for wallet in page["wallets"]]
            assert len(page["wallets"]) <= limit
            assert page["has_more"] == (page["next_cursor"] is not None) == ("next" in reply.links)
            if not page["has_more"]:
                return found
            path = reply.links["next"]["url"]

    asyncio.run(until(lambda: listed(100) == opened, "the tables to catch up"))
    assert listed(1) == listed(2) == listed(5) == opened
    keeper.close()
