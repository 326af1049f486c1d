"""
Goal: each item of a batch stands for itself, in its place, under its own key.
Method: batches of good and bad items as JSON and NDJSON; the books tell what happened.
"""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.support.merchant import Merchant, code_of, fresh, pointers_of
from tests.support.running_gateway import RunningGateway

Results = list[dict[str, Any]]

COUNTED = ("posted", "rejected", "pending", "failed", "unknown")


class Sender:
    """
    Sends items in one of the two forms, and reads the results in the same.
    """

    def __init__(self, merchant: Merchant, *, is_ndjson: bool) -> None:
        self.merchant = merchant
        self.is_ndjson = is_ndjson

    def send(self, items: list[Any]) -> httpx2.Response:
        if self.is_ndjson:
            body = "\n".join(json.dumps(item) for item in items).encode()
            headers = {"content-type": "application/x-ndjson"}
            return self.merchant.send("POST", "/v1/transfers/batch", body, headers=headers)
        return self.merchant.post("/v1/transfers/batch", {"transfers": items})

    def counts(self, reply: httpx2.Response) -> dict[str, int]:
        if self.is_ndjson:
            pairs = [pair.split("=") for pair in reply.headers["batch-counts"].split(", ")]
            return {name: int(count) for name, count in pairs}
        body = reply.json()
        return {name: body[name] for name in COUNTED}

    def results(self, reply: httpx2.Response) -> Results:
        assert reply.status_code == 200, reply.text
        if self.is_ndjson:
            assert reply.headers["content-type"] == "application/x-ndjson"
            results = [json.loads(line) for line in reply.text.splitlines()]
        else:
            results = reply.json()["results"]
        assert [result["index"] for result in results] == list(range(len(results)))
        statuses = [result["status"] for result in results]
        for status, count in self.counts(reply).items():
            assert statuses.count(status) == count
        return results

    def pointer(self, index: int, field: str) -> str:
        return f"/{field}" if self.is_ndjson else f"/transfers/{index}/{field}"


@pytest.fixture(params=["json", "ndjson"])
def sender(acme: Merchant, request: pytest.FixtureRequest) -> Sender:
    """
    Give a sender of either form.
    """
    return Sender(acme, is_ndjson=request.param == "ndjson")


def items_of(source: str, destination: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "idempotency_key": fresh("key"),
            "source": source,
            "destination": destination,
            "amount": 1,
            "currency": "EUR",
        }
        for _ in range(count)
    ]


def test_many_are_posted(acme: Merchant, sender: Sender) -> None:
    """
    More items than fit one turn come back in order, each a version further.
    """
    source, destination = acme.open_wallet(funds=5_000), acme.open_wallet()
    items = items_of(source, destination, 2_345)

    results = sender.results(sender.send(items))

    assert [result["status"] for result in results] == ["posted"] * len(items)
    assert [result["version"] for result in results] == list(range(2, 2_347))
    assert [result["balance"] for result in results] == list(range(4_999, 2_654, -1))
    keys = [item["idempotency_key"] for item in items]
    assert [result["idempotency_key"] for result in results] == keys
    assert not any("replayed" in result for result in results)
    assert acme.balance(destination) == 2_345
    last = acme.get(f"/v1/transfers/{results[-1]['id']}").json()
    assert (last["balance"], last["sequence"]) == (2_655, results[-1]["sequence"])


def test_each_item_has_its_own_fate(acme: Merchant, sender: Sender) -> None:
    """
    What is wrong with one item is told at its place and stops no other.
    """
    source, destination = acme.open_wallet(funds=10), acme.open_wallet()
    items: list[Any] = items_of(source, destination, 9)
    items[1]["amount"] = 0
    items[2]["destination"] = fresh("nobody")
    items[3]["amount"] = 1.5
    items[4]["amount"] = 100
    items[5]["idempotency_key"] = "a b"
    del items[6]["source"]
    items[7] = items[0] | {"amount": 2}

    results = sender.results(sender.send(items))

    assert [result["status"] for result in results] == [
        "posted",
        "failed",
        "rejected",
        "failed",
        "rejected",
        "failed",
        "failed",
        "failed",
        "posted",
    ]
    assert [result.get("code") for result in results] == [
        None,
        "validation_failed",
        "destination_unknown",
        "validation_failed",
        "insufficient_funds",
        "validation_failed",
        "validation_failed",
        "idempotency_key_reused",
        None,
    ]
    for index, field in ((1, "amount"), (3, "amount"), (5, "idempotency_key"), (6, "source")):
        found = [error["pointer"] for error in results[index]["errors"]]
        assert found == [sender.pointer(index, field)]
    assert results[7]["errors"][0]["pointer"] == sender.pointer(7, "amount")
    assert {result["outcome"] for result in results if "outcome" in result} == {
        "not_applied",
        "rejected",
    }
    assert acme.balance(source) == 8


def test_a_batch_sent_again_is_told_again(acme: Merchant, sender: Sender) -> None:
    """
    The same items give the same outcomes, marked as replays, refusals too.
    """
    source, destination = acme.open_wallet(funds=2), acme.open_wallet()
    items = items_of(source, destination, 3)

    first = sender.results(sender.send(items))
    again = sender.results(sender.send(items))

    assert [result["status"] for result in first] == ["posted", "posted", "rejected"]
    assert again == [result | {"replayed": True} for result in first]
    assert acme.balance(source) == 0


def test_a_key_twice_in_a_batch_is_one_payment(acme: Merchant, sender: Sender) -> None:
    """
    The second of two equal items joins the first.
    """
    source, destination = acme.open_wallet(funds=10), acme.open_wallet()
    items = items_of(source, destination, 1) * 2

    first, second = sender.results(sender.send(items))

    assert second == first | {"index": 1, "replayed": True}
    assert acme.balance(source) == 9


def test_a_batch_and_a_single_request_share_keys(acme: Merchant, sender: Sender) -> None:
    """
    A key means the same wherever it is sent.
    """
    source, destination = acme.open_wallet(funds=10), acme.open_wallet()
    (item,) = items_of(source, destination, 1)
    (result,) = sender.results(sender.send([item]))
    key = item.pop("idempotency_key")

    reply = acme.post("/v1/transfers", item, key=key)

    assert reply.headers["idempotent-replayed"] == "true"
    assert reply.json()["id"] == result["id"]


def test_the_size_is_bounded(gateway: RunningGateway, sender: Sender) -> None:
    """
    Nothing and one too many are refused as a whole.
    """
    count_max = gateway.stack.settings.gateway.batch_transfers_max
    (item,) = items_of("a", "b", 1)
    for count in (0, count_max + 1):
        reply = sender.send([item] * count)
        assert (reply.status_code, code_of(reply)) == (422, "validation_failed")
        assert pointers_of(reply) == ["" if sender.is_ndjson else "/transfers"]


def test_the_largest_batch_is_taken(
    gateway: RunningGateway, acme: Merchant, sender: Sender
) -> None:
    """
    As many items as are allowed are posted at once.
    """
    count = gateway.stack.settings.gateway.batch_transfers_max
    source, destination = acme.open_wallet(funds=count), acme.open_wallet()

    reply = sender.send(items_of(source, destination, count))

    assert sender.counts(reply) == dict.fromkeys(COUNTED, 0) | {"posted": count}
    assert (acme.balance(source), acme.balance(destination)) == (0, count)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 422),
        (b'{"transfers": 5}', 422),
        (b'{"transfers": [], "atomic": true}', 422),
        (b'{"transfers": [{}], "transfers": [{}]}', 400),
        (b'{"transfers": ' + b"[" * 100_000, 400),
    ],
)
def test_documents_that_cannot_be_read(acme: Merchant, body: bytes, status: int) -> None:
    """
    Without items there is nothing to answer one by one.
    """
    assert acme.post("/v1/transfers/batch", body).status_code == status


def test_all_items_may_fail(sender: Sender) -> None:
    """
    A batch of which nothing can be sent is answered all the same.
    """
    results = sender.results(sender.send([{}, 5, None]))

    assert [result["code"] for result in results] == ["validation_failed"] * 3
