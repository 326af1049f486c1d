"""
Goal: what was paid goes back the same way, in parts or at once, and never more than came.
Method: merchants at the session's gateway, in front of two shards; refunds race for what is left.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.support.merchant import Merchant, code_of, fresh
from tests.support.waiting import eventually

each_pair = pytest.mark.parametrize("shards", [(0, 0), (0, 1), (1, 0)])


def pay(merchant: Merchant, source: str, destination: str, amount: int) -> dict[str, Any]:
    body = {"source": source, "destination": destination, "amount": amount, "currency": "EUR"}
    reply = merchant.post("/v1/transfers", body, key=fresh("pay"))
    assert reply.status_code == 201, reply.text
    paid: dict[str, Any] = reply.json()
    return paid


def refund(
    merchant: Merchant, transfer_id: str, *, key: str | None = None, **body: Any
) -> httpx2.Response:
    path = f"/v1/transfers/{transfer_id}/refunds"
    return merchant.post(path, body, key=key or fresh("refund"))


@each_pair
def test_refunds_add_up_to_what_was_paid(acme: Merchant, shards: tuple[int, int]) -> None:
    """
    A part, then all that is left, then nothing more: a refund is linked to its transfer, and what
    was refused says by how much.
    """
    buyer = acme.open_wallet("buyer", funds=1_000, shard_id=shards[0])
    seller = acme.open_wallet("seller", funds=500, shard_id=shards[1])
    paid = pay(acme, buyer, seller, 900)
    key = fresh("refund")

    part = refund(acme, paid["id"], key=key, amount=200, reference="a cup", metadata={"line": 2})

    assert part.status_code == 201, part.text
    told = part.json()
    assert (told["type"], told["status"], told["amount"]) == ("refund", "posted", 200)
    assert (told["source"], told["destination"]) == (seller, buyer)
    assert (told["linked_to"], told["balance"]) == (paid["id"], 1_200)
    again = refund(acme, paid["id"], key=key, amount=200, reference="a cup", metadata={"line": 2})
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (told["id"], "true")

    too_much = refund(acme, paid["id"], amount=701)
    assert code_of(too_much) == "refund_exceeds_paid"
    assert too_much.json()["transfer"]["short_by"] == 1
    rest = refund(acme, paid["id"])
    assert (rest.status_code, rest.json()["amount"]) == (201, 700)
    assert code_of(refund(acme, paid["id"])) == "refund_exceeds_paid"
    assert (acme.balance(buyer), acme.balance(seller)) == (1_000, 500)

    seen = acme.get(f"/v1/transfers/{told['id']}").json()
    assert (seen["type"], seen["linked_to"], seen["reference"]) == ("refund", paid["id"], "a cup")

    def listed() -> dict[str, Any] | None:
        found: dict[str, Any] = acme.get(f"/v1/transfers/{paid['id']}/refunds").json()
        return found if len(found["refunds"]) == 2 else None

    found = eventually(listed, "both refunds in the tables")
    assert (found["amount"], found["refunded"], found["left"]) == (900, 900, 0)
    assert [one["amount"] for one in found["refunds"]] == [200, 700]
    assert not found["has_more"]


@each_pair
def test_two_at_once_cannot_pay_back_more(acme: Merchant, shards: tuple[int, int]) -> None:
    """
    Of refunds that race, as many succeed as there is money for.
    """
    buyer = acme.open_wallet("buyer", funds=1_000, shard_id=shards[0])
    seller = acme.open_wallet("seller", funds=5_000, shard_id=shards[1])
    paid = pay(acme, buyer, seller, 1_000)
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: refund(acme, paid["id"], amount=300), range(8)))
    codes = sorted(reply.status_code for reply in replies)
    assert codes == [201] * 3 + [409] * 5
    refused = {code_of(reply) for reply in replies if reply.status_code == 409}
    assert refused == {"refund_exceeds_paid"}
    assert (acme.balance(buyer), acme.balance(seller)) == (900, 5_100)
    assert refund(acme, paid["id"]).json()["amount"] == 100


def test_only_who_was_paid_pays_back(acme: Merchant, globex: Merchant) -> None:
    """
    The payer sees that it cannot take its money back; for a third it is no transfer at all; both
    sides see what has gone back.
    """
    payer, payee = acme.open_wallet(funds=100), globex.open_wallet()
    paid = pay(acme, payer, payee, 60)

    # At once: the tables do not know yet whose wallet that is.
    assert globex.get(f"/v1/transfers/{paid['id']}/refunds").json()["left"] == 60
    assert code_of(refund(acme, paid["id"])) == "not_refundable"
    assert refund(globex, paid["id"], amount=10).status_code == 201
    assert (acme.balance(payer), globex.balance(payee)) == (50, 50)
    own = pay(acme, payer, acme.open_wallet(), 1)
    assert code_of(refund(globex, own["id"])) == "transfer_unknown"
    assert code_of(globex.get(f"/v1/transfers/{own['id']}/refunds")) == "transfer_unknown"

    def seen_by(merchant: Merchant) -> int | None:
        found = merchant.get(f"/v1/transfers/{paid['id']}/refunds").json()
        return found["refunds"][0]["balance"] if found["refunds"] else None

    assert eventually(lambda: seen_by(globex), "the refund in the payer's tables") == 50
    assert eventually(lambda: seen_by(acme), "the refund in the payee's tables") == 50


def test_what_cannot_be_refunded_says_what_to_do(acme: Merchant) -> None:
    """
    Money from or to outside, a refund, and what was rejected: nothing is recorded, and the words
    say what to do instead.
    """
    wallet, other = acme.open_wallet(funds=0), acme.open_wallet()
    money = {"amount": 100, "currency": "EUR"}
    into = acme.post("/v1/deposits", {"destination": wallet} | money, key=fresh("in")).json()
    paid = pay(acme, wallet, other, 50)
    back = refund(acme, paid["id"]).json()
    out = acme.post("/v1/withdrawals", {"source": wallet} | money, key=fresh("out")).json()
    body = {"source": wallet, "destination": other} | money
    rejected = acme.post("/v1/transfers", body, key=fresh("no")).json()["transfer"]

    for transfer, words in (
        (into, "withdrawal"),
        (out, "deposit"),
        (back, "pay again"),
        (rejected, "rejected"),
    ):
        refused = refund(acme, transfer["id"])
        assert code_of(refused) == "not_refundable"
        assert words in refused.json()["detail"]
        assert acme.get(f"/v1/transfers/{transfer['id']}/refunds").json()["left"] == 0
    assert code_of(refund(acme, "nothing")) == "transfer_unknown"


def test_a_refund_needs_money(acme: Merchant) -> None:
    """
    What was paid and spent does not go back; the refusal is recorded under the key.
    """
    buyer, seller = acme.open_wallet(funds=100), acme.open_wallet()
    paid = pay(acme, buyer, seller, 100)
    pay(acme, seller, buyer, 70)
    key = fresh("refund")
    refused = refund(acme, paid["id"], key=key)
    assert code_of(refused) == "insufficient_funds"
    assert refused.json()["transfer"]["short_by"] == 70
    pay(acme, buyer, seller, 70)
    assert code_of(refund(acme, paid["id"], key=key)) == "insufficient_funds"
    assert refund(acme, paid["id"], amount=100).status_code == 201


def test_wrong_bodies_are_pointed_at(acme: Merchant) -> None:
    """
    Nothing is looked up for them.
    """
    for body in ({"amount": 0}, {"amount": -1}, {"reference": ""}, {"metadata": {"a": "\0"}}):
        assert code_of(refund(acme, "nothing", **body)) == "validation_failed"


@each_pair
def test_a_capture_is_refunded(acme: Merchant, shards: tuple[int, int]) -> None:
    """
    What a hold paid goes back like any other payment.
    """
    buyer = acme.open_wallet("buyer", funds=1_000, shard_id=shards[0])
    hotel = acme.open_wallet("hotel", shard_id=shards[1])
    body = {"source": buyer, "destination": hotel, "amount": 800, "currency": "EUR"}
    hold = acme.post("/v1/holds", body, key=fresh("hold")).json()
    path = f"/v1/holds/{hold['id']}/captures"
    captured = acme.post(path, {"amount": 500, "final": True}, key=fresh("capture"))
    assert captured.status_code == 201, captured.text
    assert refund(acme, captured.json()["id"], amount=120).status_code == 201
    assert (acme.balance(buyer), acme.balance(hotel)) == (620, 380)
