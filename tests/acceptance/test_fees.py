"""
Goal: fees stay with their merchant until they are swept up, once, from every shard.
Method: a merchant of its own at the session's gateway, in front of two shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.merchant import Merchant, code_of, fresh, pointers_of
from tests.support.running_gateway import RunningGateway
from tests.support.waiting import eventually


@pytest.fixture
def shop(gateway: RunningGateway) -> Iterator[Merchant]:
    """
    Give a merchant that has no fees yet.
    """
    merchant = Merchant(gateway.url, gateway.key(fresh("shop")))
    yield merchant
    merchant.close()


def sale(merchant: Merchant, buyer: str, seller: str, amount: int, fee: int) -> dict[str, Any]:
    legs = [
        {"source": buyer, "destination": seller, "amount": amount, "currency": "EUR"},
        {"type": "fee", "source": seller, "amount": fee, "currency": "EUR"},
    ]
    reply = merchant.post("/v1/linked-transfers", {"legs": legs}, key=fresh("sale"))
    assert reply.status_code == 201, reply.text
    sold: dict[str, Any] = reply.json()
    return sold


def sweep(merchant: Merchant, destination: str, *, key: str | None = None) -> httpx2.Response:
    body = {"currency": "EUR", "destination": destination}
    return merchant.post("/v1/fees/sweep", body, key=key or fresh("sweep"))


def fees(merchant: Merchant) -> dict[int, int]:
    found = merchant.get("/v1/fees").json()["fees"]
    return {shard["shard"]: shard["balance"] for one in found for shard in one["shards"]}


def wait_for_fees(merchant: Merchant, expected: dict[int, int]) -> None:
    eventually(lambda: fees(merchant) == expected, f"fees of {expected}")


def test_a_sweep_brings_both_shards_into_one_wallet(shop: Merchant) -> None:
    """
    What each shard took is one transfer into the wallet; the same key moves nothing more, though
    there are fees again; a new one takes what came since.
    """
    sellers = [shop.open_wallet("seller", shard_id=shard_id) for shard_id in (0, 1)]
    buyer = shop.open_wallet("buyer", funds=10_000)
    till = shop.open_wallet("till", shard_id=0)
    sale(shop, buyer, sellers[0], 1_000, 30)
    sale(shop, buyer, sellers[1], 2_000, 60)
    wait_for_fees(shop, {0: 30, 1: 60})
    key = fresh("sweep")

    swept = sweep(shop, till, key=key)

    assert swept.status_code == 201, swept.text
    told = swept.json()
    assert (told["amount"], told["pending"]) == (90, 0)
    assert sorted((one["shard"], one["amount"]) for one in told["transfers"]) == [(0, 30), (1, 60)]
    assert {one["source"] for one in told["transfers"]} == {None}
    assert shop.balance(till) == 90
    sale(shop, buyer, sellers[1], 1_000, 7)
    again = sweep(shop, till, key=key)
    assert (again.status_code, again.json()["amount"]) == (201, 90)
    assert again.headers["idempotent-replayed"] == "true"
    assert shop.balance(till) == 90
    assert sweep(shop, till).json()["amount"] == 7
    wait_for_fees(shop, {0: 0, 1: 0})
    seen = shop.get(f"/v1/transfers/{told['transfers'][0]['id']}").json()
    assert (seen["type"], seen["destination"], seen["source"]) == ("transfer", till, None)


def test_a_shard_without_fees_has_an_outcome_too(shop: Merchant) -> None:
    """
    A sweep that found nothing at a shard moves nothing there under the same key, also after fees
    have come.
    """
    sellers = [shop.open_wallet("seller", shard_id=shard_id) for shard_id in (0, 1)]
    buyer, till = shop.open_wallet("buyer", funds=10_000), shop.open_wallet("till")
    sale(shop, buyer, sellers[0], 1_000, 30)
    key = fresh("sweep")
    assert sweep(shop, till, key=key).json()["amount"] == 30
    sale(shop, buyer, sellers[1], 1_000, 40)
    assert sweep(shop, till, key=key).json()["amount"] == 30
    assert shop.balance(till) == 30
    nothing = sweep(shop, shop.open_wallet("other"), key=fresh("sweep"))
    assert nothing.json()["amount"] == 40


def test_nothing_to_sweep_is_no_error(shop: Merchant) -> None:
    """
    A nightly sweep may find nothing.
    """
    till = shop.open_wallet("till")
    swept = sweep(shop, till)
    assert (swept.status_code, swept.json()["transfers"]) == (200, [])
    assert shop.get("/v1/fees").json() == {"fees": []}


def test_a_sweep_that_cannot_arrive_is_refused(shop: Merchant, globex: Merchant) -> None:
    """
    The fees stay where they are; they do not go into the wallet of a stranger either.
    """
    seller = shop.open_wallet("seller")
    buyer = shop.open_wallet("buyer", funds=10_000)
    sale(shop, buyer, seller, 1_000, 30)
    assert code_of(sweep(shop, "nobody-has-this")) == "wallet_unknown"
    assert code_of(sweep(shop, globex.open_wallet())) == "wallet_unknown"
    wrong = sweep(shop, "$fees:0:EUR:acme")
    assert (code_of(wrong), pointers_of(wrong)) == ("validation_failed", ["/destination"])
    assert sweep(shop, shop.open_wallet("till")).json()["amount"] == 30


@pytest.mark.parametrize("shard_id", [0, 1])
def test_a_fee_is_refunded_to_who_paid_it(shop: Merchant, shard_id: int) -> None:
    """
    A part of it at a time, from the merchant's fees.
    """
    seller = shop.open_wallet("seller", shard_id=shard_id)
    buyer = shop.open_wallet("buyer", funds=10_000, shard_id=1)
    sold = sale(shop, buyer, seller, 1_000, 30)
    path = f"/v1/transfers/{sold['legs'][1]['id']}/refunds"
    back = shop.post(path, {"amount": 20}, key=fresh("refund"))
    assert back.status_code == 201, back.text
    assert (back.json()["source"], back.json()["destination"]) == (None, seller)
    assert shop.balance(seller) == 990
    assert code_of(shop.post(path, {"amount": 11}, key=fresh("refund"))) == "refund_exceeds_paid"
    wait_for_fees(shop, {shard_id: 10})


def test_fees_are_in_no_list_of_wallets(shop: Merchant) -> None:
    """
    They are the ledger's own wallets: none can be named, paid to or listed by its id.
    """
    seller, buyer = shop.open_wallet("seller", shard_id=0), shop.open_wallet("buyer", funds=100)
    sale(shop, buyer, seller, 50, 10)
    wait_for_fees(shop, {0: 10})
    wallets = shop.get("/v1/wallets").json()["wallets"]
    assert {wallet["wallet_id"] for wallet in wallets} == {seller, buyer}
