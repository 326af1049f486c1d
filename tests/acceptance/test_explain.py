"""
Goal: the life of any transfer can be told from the journals: where it was judged, what went between
      shards, what its wallets had, and which check it failed.
Method: transfers of every kind at the session's gateway, in front of two shards; what is told is
        held against the transfer itself and against what is known of the way.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.merchant import Merchant, code_of, fresh, fresh_on


def move(merchant: Merchant, path: str, **body: Any) -> dict[str, Any]:
    """
    Move money in euros, or not, and return the transfer.
    """
    reply = merchant.post(path, {"currency": "EUR"} | body, key=fresh("explain"))
    told: dict[str, Any] = reply.json()
    return told.get("transfer", told)


def explained(merchant: Merchant, transfer_id: str) -> dict[str, Any]:
    reply = merchant.get(f"/v1/transfers/{transfer_id}/explain")
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    assert found["is_whole"]
    times = [step["at"] for step in found["steps"]]
    assert times == sorted(times)
    return found


def steps(found: dict[str, Any]) -> list[tuple[str, int]]:
    return [(step["step"], step["shard"]) for step in found["steps"]]


def test_a_transfer_within_a_shard(acme: Merchant) -> None:
    """
    One record: decided and posted, with what both own wallets had and have.
    """
    payer = acme.open_wallet("payer", funds=100, shard_id=1)
    payee = acme.open_wallet("payee", shard_id=1)
    paid = move(acme, "/v1/transfers", source=payer, destination=payee, amount=30)

    found = explained(acme, paid["id"])

    assert found["transfer"] == acme.get(f"/v1/transfers/{paid['id']}").json()
    (step,) = found["steps"]
    assert (step["step"], step["shard"], step["sequence"]) == ("posted", 1, paid["sequence"])
    assert step["wallets"] == [
        {"wallet": payer, "had": 100, "has": 70, "version": 2},
        {"wallet": payee, "had": 0, "has": 30, "version": 1},
    ]
    assert found["refusal"] is None


def test_a_transfer_between_shards(acme: Merchant, globex: Merchant) -> None:
    """
    Who asked sees it set aside and sent, credited there, and settled here, each with the entry's
    number; who was paid sees its credit and its own balance.
    """
    payer = acme.open_wallet("payer", funds=100, shard_id=0)
    payee = globex.open_wallet("payee", funds=5, shard_id=1)
    paid = move(acme, "/v1/transfers", source=payer, destination=payee, amount=30)

    found = explained(acme, paid["id"])

    assert steps(found) == [("reserved", 0), ("credited", 1), ("settled", 0)]
    entries = [step["entry"] for step in found["steps"]]
    assert entries == [entries[0]] * 3
    assert (entries[0]["source"], entries[0]["destination"]) == (0, 1)
    assert found["steps"][1].get("wallets", []) == []
    assert found["steps"][2]["wallets"] == [{"wallet": payer, "had": 100, "has": 70, "version": 2}]
    seen = explained(globex, paid["id"])
    assert steps(seen) == [("credited", 1)]
    assert seen["steps"][0]["wallets"] == [{"wallet": payee, "had": 5, "has": 35, "version": 2}]


def test_a_refusal_names_its_check(acme: Merchant) -> None:
    """
    Which rule it broke, by how much, and which checks had come before it.
    """
    payer, payee = acme.open_wallet("payer", funds=100), acme.open_wallet("payee")
    refused = move(acme, "/v1/transfers", source=payer, destination=payee, amount=130)

    found = explained(acme, refused["id"])

    assert [step["step"] for step in found["steps"]] == ["rejected"]
    check = found["refusal"]
    assert (check["reason"], check["short_by"]) == ("insufficient_funds", 30)
    assert check["text"] == "130 was asked for and 100 could be spent: 30 missing."
    assert "source_unknown" in check["checks_before"]
    assert "debit_count_hour_exceeded" not in check["checks_before"]


def test_what_can_move_nothing_up_to_an_amount(acme: Merchant) -> None:
    """
    The smallest amount is what failed.
    """
    payer, payee = acme.open_wallet("payer"), acme.open_wallet("payee")
    refused = move(acme, "/v1/transfers", source=payer, destination=payee, amount=500, up_to=True)
    text = explained(acme, refused["id"])["refusal"]["text"]
    assert text == "1 was asked for and 0 could be spent: 1 missing."


def test_a_refusal_at_the_other_shard(acme: Merchant) -> None:
    """
    The answer names no transfer there; it is found by its entry.
    """
    payer = acme.open_wallet("payer", funds=100, shard_id=0)
    nobody = fresh_on(1, "nobody")
    refused = move(acme, "/v1/transfers", source=payer, destination=nobody, amount=30)

    found = explained(acme, refused["id"])

    assert steps(found) == [("reserved", 0), ("refused", 1), ("released", 0)]
    assert "destination_unknown" in found["steps"][1]["text"]
    assert found["refusal"]["reason"] == "destination_unknown"


@pytest.mark.parametrize("shard_id", [0, 1])
def test_captures_and_refunds(acme: Merchant, shard_id: int) -> None:
    """
    What a hold has let go of, and what has gone back so far, stand with the step that counted it.
    """
    buyer = acme.open_wallet("buyer", funds=1_000, shard_id=0)
    seller = acme.open_wallet("seller", shard_id=shard_id)
    hold = move(acme, "/v1/holds", source=buyer, destination=seller, amount=800)
    captured = acme.post(
        f"/v1/holds/{hold['id']}/captures", {"amount": 500}, key=fresh("capture")
    ).json()
    refunded = acme.post(
        f"/v1/transfers/{captured['id']}/refunds", {"amount": 120}, key=fresh("refund")
    ).json()

    capture, refund = explained(acme, captured["id"]), explained(acme, refunded["id"])

    kinds = ["posted"] if shard_id == 0 else ["reserved", "credited", "settled"]
    assert [step["step"] for step in capture["steps"]] == kinds
    assert f"Hold {hold['id']} is open: captured 500" in capture["steps"][-1]["text"]
    assert [step["step"] for step in refund["steps"]] == kinds
    assert "Gone back in all, or on its way: 120." in refund["steps"][0]["text"]


def linked(merchant: Merchant, *pairs: tuple[str, str, int]) -> dict[str, Any]:
    legs = [
        {"source": source, "destination": destination, "amount": amount, "currency": "EUR"}
        for source, destination, amount in pairs
    ]
    reply = merchant.post("/v1/linked-transfers", {"legs": legs}, key=fresh("linked"))
    told: dict[str, Any] = reply.json()
    return told.get("linked_transfer", told)


def test_a_leg_on_one_shard(acme: Merchant) -> None:
    """
    All legs are one record, and only this leg's balances are told.
    """
    a = acme.open_wallet("a", funds=100, shard_id=0)
    b = acme.open_wallet("b", shard_id=0)
    told = linked(acme, (a, b, 10), (a, b, 20))
    (step,) = explained(acme, told["legs"][1]["id"])["steps"]
    assert step["wallets"] == [
        {"wallet": a, "had": 90, "has": 70, "version": 3},
        {"wallet": b, "had": 10, "has": 30, "version": 2},
    ]


@pytest.mark.parametrize("shards", [(0, 1), (1, 0), (1, 1)])
def test_a_leg_over_two_shards(acme: Merchant, shards: tuple[int, int]) -> None:
    """
    Begun, asked, prepared and voted; posted, told, followed and done: wherever the leg itself is.
    """
    first = acme.open_wallet("first", funds=100, shard_id=0)
    source = acme.open_wallet("source", funds=100, shard_id=shards[0])
    destination = acme.open_wallet("destination", shard_id=shards[1])
    told = linked(acme, (first, fresh_wallet(acme), 1), (source, destination, 20))
    assert told["status"] == "posted"

    found = explained(acme, told["legs"][1]["id"])

    assert steps(found) == [
        ("begun", 0),
        ("asked", 0),
        ("prepared", 1),
        ("voted", 0),
        ("posted", 0),
        ("told", 0),
        ("followed", 1),
        ("confirmed", 0),
        ("done", 0),
    ]
    changes = {one["wallet"]: one for step in found["steps"] for one in step.get("wallets", [])}
    assert (changes[source]["had"], changes[source]["has"]) == (100, 80)
    assert (changes[destination]["had"], changes[destination]["has"]) == (0, 20)


def fresh_wallet(merchant: Merchant) -> str:
    return merchant.open_wallet("beside", shard_id=0)


def test_a_leg_that_another_leg_failed(acme: Merchant) -> None:
    """
    The vote says no and why; every leg tells which one failed.
    """
    rich = acme.open_wallet("rich", funds=100, shard_id=0)
    poor = acme.open_wallet("poor", funds=5, shard_id=1)
    told = linked(acme, (rich, poor, 1), (poor, rich, 50))
    assert (told["status"], told["leg"]) == ("rejected", 1)

    own, other = (explained(acme, leg["id"]) for leg in reversed(told["legs"]))

    assert [step["step"] for step in own["steps"]][:4] == ["begun", "asked", "refused", "voted"]
    assert (own["refusal"]["reason"], own["refusal"]["short_by"]) == ("insufficient_funds", 44)
    assert "This leg failed it" in own["refusal"]["text"]
    assert (other["refusal"]["text"], other["refusal"]["short_by"]) == (
        "Leg 1 failed it, and all legs with it.",
        None,
    )


def test_it_is_told_to_whom_it_is_shown(acme: Merchant, globex: Merchant) -> None:
    """
    For a third merchant there is no such transfer.
    """
    paid = move(acme, "/v1/deposits", destination=acme.open_wallet(), amount=1)
    assert code_of(globex.get(f"/v1/transfers/{paid['id']}/explain")) == "transfer_unknown"
    assert code_of(acme.get("/v1/transfers/nothing/explain")) == "transfer_unknown"
