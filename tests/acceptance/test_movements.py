"""
Goal: a movement happens once, says what it did, and can be looked up by those it concerns.
Method: two merchants over HTTP, alone and many at once.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from tests.support.merchant import Merchant, code_of, fresh
from tests.support.running_gateway import RunningGateway

to_either_shard = pytest.mark.parametrize("shard_id", [0, 1], ids=["one shard", "two shards"])


def body_of(source: str, destination: str, amount: int = 1, **more: Any) -> dict[str, Any]:
    moved = {"source": source, "destination": destination, "amount": amount, "currency": "EUR"}
    return moved | more


@to_either_shard
def test_a_transfer_tells_everything(acme: Merchant, shard_id: int) -> None:
    """
    The reply has the request, the outcome, and the payer's balance and version.
    """
    source = acme.open_wallet(funds=100, shard_id=0)
    destination = acme.open_wallet(shard_id=shard_id)
    metadata = {"z": 'é "', "a": 1, "m": False}
    body = body_of(source, destination, 30, reference="café \u2028", metadata=metadata)

    reply = acme.post("/v1/transfers", body, key=fresh("key"))

    transfer = reply.json()
    assert reply.status_code == 201
    told = {"type": "transfer", "status": "posted", "reason": None, "balance": 70, "version": 2}
    told |= {"linked_to": None, "short_by": None}
    made = {name: transfer[name] for name in ("id", "shard", "sequence", "created_at")}
    assert transfer == body | told | made
    assert transfer["shard"] == 0
    assert acme.get(f"/v1/transfers/{transfer['id']}").json() == transfer
    assert acme.get(f"/v1/transfers/{transfer['id'].upper()}").json() == transfer


@pytest.mark.parametrize(
    ("path", "side", "balance"), [("deposits", "destination", 60), ("withdrawals", "source", 40)]
)
def test_the_world_outside(acme: Merchant, path: str, side: str, balance: int) -> None:
    """
    Deposits and withdrawals have one wallet; the other side is nobody's.
    """
    wallet = acme.open_wallet(funds=50)

    reply = acme.post(
        f"/v1/{path}", {side: wallet, "amount": 10, "currency": "EUR"}, key=fresh("key")
    )

    transfer = reply.json()
    assert (reply.status_code, transfer["balance"]) == (201, balance)
    sides = {"source": None, "destination": None} | {side: wallet}
    assert {name: transfer[name] for name in sides} == sides
    assert acme.get(f"/v1/transfers/{transfer['id']}").json() == transfer


@to_either_shard
def test_a_transfer_to_another_merchant(
    gateway: RunningGateway, acme: Merchant, globex: Merchant, shard_id: int
) -> None:
    """
    Both sides look the transfer up at once, each with its own balance, as its own shard recorded
    it; a third party finds nothing.
    """
    source = acme.open_wallet(funds=100, shard_id=0)
    destination = globex.open_wallet(funds=5, shard_id=shard_id)
    made = acme.post("/v1/transfers", body_of(source, destination, 30), key=fresh("key")).json()

    seen = globex.get(f"/v1/transfers/{made['id']}").json()

    assert (made["balance"], made["version"]) == (70, 2)
    recorded = {name: seen[name] for name in ("shard", "sequence", "created_at")}
    assert seen == made | {"balance": 35, "version": 2} | recorded
    assert seen["shard"] == shard_id
    assert shard_id or recorded == {name: made[name] for name in recorded}
    initech = Merchant(gateway.url, gateway.key("initech"))
    assert initech.get(f"/v1/transfers/{made['id']}").status_code == 404
    initech.close()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"destination": "source"}, "wallets_identical"),
        ({"source": "nobody"}, "source_unknown"),
        ({"destination": "nobody"}, "destination_unknown"),
        ({"currency": "USD"}, "currency_mismatch"),
        ({"destination": "yen"}, "currency_mismatch"),
        ({"amount": 101}, "insufficient_funds"),
        ({"source": "foreign"}, "source_unknown"),
    ],
)
def test_business_refusals(
    acme: Merchant, globex: Merchant, changes: dict[str, Any], code: str
) -> None:
    """
    A refusal names its reason, shows the transfer that was not, and moves nothing.
    """
    names = {
        "source": acme.open_wallet(funds=100),
        "destination": acme.open_wallet(),
        "yen": acme.open_wallet(currency="JPY"),
        "foreign": globex.open_wallet(funds=100),
        "nobody": fresh("nobody"),
    }
    drawn = {field: names.get(value, value) for field, value in changes.items()}
    body = body_of(names["source"], names["destination"]) | drawn

    reply = acme.post("/v1/transfers", body, key=fresh("key"))

    assert (reply.status_code, code_of(reply)) == (409, code)
    transfer = reply.json()["transfer"]
    assert (transfer["status"], transfer["reason"], transfer["balance"]) == ("rejected", code, None)
    assert acme.get(f"/v1/transfers/{transfer['id']}").json() == transfer
    assert globex.get(f"/v1/transfers/{transfer['id']}").status_code == 404
    assert acme.balance(names["source"]) == 100


@to_either_shard
def test_equal_requests_at_once_are_one(acme: Merchant, shard_id: int) -> None:
    """
    Twenty requests with one key move the money once; all hear the same, and one is no replay.
    """
    source, key = acme.open_wallet(funds=100, shard_id=0), fresh("key")
    destination = acme.open_wallet(shard_id=shard_id)
    headers = {
        "authorization": acme.http.headers["authorization"],
        "content-type": "application/json",
        "idempotency-key": key,
    }

    async def all_at_once() -> list[httpx2.Response]:
        base_url = str(acme.http.base_url)
        async with httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=60) as client:
            content = json.dumps(body_of(source, destination, 10))
            posts = (client.post("/v1/transfers", content=content) for _ in range(20))
            return list(await asyncio.gather(*posts))

    replies = asyncio.run(all_at_once())

    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.text for reply in replies}) == 1
    assert sum("idempotent-replayed" not in reply.headers for reply in replies) == 1
    assert acme.balance(source) == 90


def test_a_key_is_of_its_wallet_and_merchant(acme: Merchant, globex: Merchant) -> None:
    """
    The same key for another wallet, or of another merchant, is another key.
    """
    key, replies = fresh("key"), []
    for merchant in (acme, acme, globex):
        source, destination = merchant.open_wallet(funds=10), merchant.open_wallet()
        replies.append(merchant.post("/v1/transfers", body_of(source, destination), key=key))

    assert [reply.status_code for reply in replies] == [201] * 3
    assert all("idempotent-replayed" not in reply.headers for reply in replies)
    assert len({reply.json()["id"] for reply in replies}) == 3


def test_the_order_of_metadata_does_not_matter(acme: Merchant) -> None:
    """
    The same request in other words is the same request.
    """
    source, destination, key = acme.open_wallet(funds=10), acme.open_wallet(), fresh("key")
    first = body_of(source, destination, metadata={"a": 1, "b": "é"})
    again = json.dumps(body_of(source, destination, metadata={"b": "é", "a": 1}), indent=2)

    one = acme.post("/v1/transfers", first, key=key)
    two = acme.post("/v1/transfers", again.encode(), key=key)

    assert (one.status_code, two.status_code) == (201, 201)
    assert (one.json(), two.headers["idempotent-replayed"]) == (two.json(), "true")


def test_nothing_said_is_nothing(acme: Merchant) -> None:
    """
    Leaving a field out, null and an empty object are the same.
    """
    source, destination, key = acme.open_wallet(funds=10), acme.open_wallet(), fresh("key")
    bodies = [
        body_of(source, destination),
        body_of(source, destination, reference=None, metadata=None),
        body_of(source, destination, metadata={}),
    ]

    replies = [acme.post("/v1/transfers", body, key=key) for body in bodies]

    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.text for reply in replies}) == 1
    assert (replies[0].json()["reference"], replies[0].json()["metadata"]) == (None, {})
