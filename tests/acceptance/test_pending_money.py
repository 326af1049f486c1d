"""
Goal: while another shard is down, what waits for it is pending and told so everywhere, and comes to
      one end when it is back; what was not voted on in time moves nothing.
Method: a ledger of the test's own with two shards, one of which is killed and started again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.merchant import Merchant, code_of, fresh
from tests.support.running_gateway import running_gateway
from tests.support.stack import Stack
from tests.support.waiting import eventually

HURRIED = {"MILIANO_GATEWAY_SETTLEMENT_WAIT_MS": "50"}


@pytest.fixture
def shop(own_stack: Stack) -> Iterator[Merchant]:
    """
    Give a merchant at a gateway that does not wait long.
    """
    with running_gateway(own_stack, **HURRIED) as gateway:
        merchant = Merchant(gateway.url, gateway.key("shop"))
        yield merchant
        merchant.close()


def available(merchant: Merchant, wallet: str) -> int:
    found: int = merchant.get(f"/v1/wallets/{wallet}").json()["available"]
    return found


def steps(merchant: Merchant, transfer_id: str) -> list[str]:
    found = merchant.get(f"/v1/transfers/{transfer_id}/explain").json()
    return [step["step"] for step in found["steps"]]


def is_posted(merchant: Merchant, transfer_id: str) -> bool:
    return bool(merchant.get(f"/v1/transfers/{transfer_id}").json()["status"] == "posted")


def linked(merchant: Merchant, source: str, there: str, here: str, key: str) -> dict[str, Any]:
    legs = [
        {"source": source, "destination": there, "amount": 40, "currency": "EUR"},
        {"source": source, "destination": here, "amount": 2, "currency": "EUR"},
    ]
    reply = merchant.post("/v1/linked-transfers", {"legs": legs}, key=key)
    told: dict[str, Any] = reply.json()
    return told


def test_a_shard_that_is_down(shop: Merchant, own_stack: Stack) -> None:
    """
    A refund and a linked transfer wait with their money set aside; neither can be taken back or
    refunded meanwhile. Back again, the refund arrives; the linked transfer was not voted on within
    its time, and its money is free.
    """
    source = shop.open_wallet("source", funds=100, shard_id=0)
    here = shop.open_wallet("here", shard_id=0)
    there = shop.open_wallet("there", funds=50, shard_id=1)
    body = {"source": there, "destination": source, "amount": 30, "currency": "EUR"}
    paid = shop.post("/v1/transfers", body, key="pay").json()
    eventually(lambda: is_posted(shop, paid["id"]), "the payment")
    own_stack.shards[1].kill()

    path = f"/v1/transfers/{paid['id']}/refunds"
    back = shop.post(path, {"amount": 10}, key=fresh("refund"))
    sale = linked(shop, source, there, here, key="linked")

    assert (back.status_code, sale["status"]) == (202, "pending")
    assert available(shop, source) == 130 - 10 - 42
    assert steps(shop, back.json()["id"]) == ["reserved"]
    assert steps(shop, sale["legs"][0]["id"]) == ["begun", "asked"]
    look = f"/v1/linked-transfers/{sale['id']}"
    assert shop.get(look).json()["status"] == "pending"
    assert shop.get(f"/v1/transfers/{sale['legs'][1]['id']}").json()["status"] == "pending"
    reversal = shop.post(f"{look}/reversal", {"fees": "kept"}, key=fresh("back"))
    assert code_of(reversal) == "not_refundable"
    pending = shop.post(f"/v1/transfers/{back.json()['id']}/refunds", {}, key=fresh("refund"))
    assert code_of(pending) == "not_refundable"

    eventually(lambda: shop.get(look).json()["status"] == "rejected", "the deadline")
    assert shop.get(look).json()["reason"] == "linked_deadline_passed"
    again = linked(shop, source, there, here, key="linked")
    assert again["code"] == "linked_deadline_passed"
    assert available(shop, source) == 130 - 10

    own_stack.shards[1].start()
    eventually(lambda: is_posted(shop, back.json()["id"]), "the refund")
    assert steps(shop, back.json()["id"]) == ["reserved", "credited", "settled"]
    assert (shop.balance(source), shop.balance(there), shop.balance(here)) == (120, 30, 0)
