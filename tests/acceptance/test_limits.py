"""
Goal: a wallet's limits and a movement's conditions let through exactly what they say, and a
      refusal says which one it was and by how much.
Method: two merchants over HTTP on two shards; every kind of movement against every limit.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from tests.support.merchant import Merchant, code_of, fresh, pointers_of
from tests.support.running_gateway import RunningGateway
from tests.support.waiting import until

to_either_shard = pytest.mark.parametrize("shard_id", [0, 1], ids=["one shard", "two shards"])
WINDOWS = ("hour_count", "hour_amount", "day_count", "day_amount")


def limit(merchant: Merchant, wallet_id: str, **limits: Any) -> dict[str, Any]:
    reply = merchant.send("PATCH", f"/v1/wallets/{wallet_id}", {"limits": limits})
    assert reply.status_code == 200, reply.text
    wallet: dict[str, Any] = reply.json()
    return wallet


def move(merchant: Merchant, source: str, destination: str, amount: int, **more: Any) -> Any:
    body = {"source": source, "destination": destination, "amount": amount, "currency": "EUR"}
    return merchant.post("/v1/transfers", body | more, key=fresh("key"))


def deposit(merchant: Merchant, wallet_id: str, amount: int, **more: Any) -> Any:
    body = {"destination": wallet_id, "amount": amount, "currency": "EUR"} | more
    return merchant.post("/v1/deposits", body, key=fresh("key"))


def withdraw(merchant: Merchant, wallet_id: str, amount: int, **more: Any) -> Any:
    body = {"source": wallet_id, "amount": amount, "currency": "EUR"} | more
    return merchant.post("/v1/withdrawals", body, key=fresh("key"))


def used(merchant: Merchant, wallet_id: str) -> tuple[list[int], list[int]]:
    """
    Return what a wallet has used: counts and amounts of debits and of credits.
    """
    usage = merchant.get(f"/v1/wallets/{wallet_id}").json()["usage"]
    debits, brought = usage["debits"], usage["credits"]
    return [debits[window] for window in WINDOWS], [brought[window] for window in WINDOWS]


def refusal_of(reply: httpx2.Response) -> tuple[str, int | None]:
    assert reply.status_code == 409, reply.text
    return code_of(reply), reply.json()["transfer"]["short_by"]


# --- Limits of a wallet ---------------------------------------------------------------------


def test_limits_are_shown_and_lifted(acme: Merchant) -> None:
    """
    What was set is shown as it was set; setting replaces all, an empty object lifts all.
    """
    wallet = acme.open_wallet(funds=10)
    assert acme.get(f"/v1/wallets/{wallet}").json()["limits"] is None

    first = limit(acme, wallet, debits={"day_amount": 100}, balance_max=500)
    second = limit(acme, wallet, credits={"hour_count": 3, "hour_amount": 0})
    lifted = limit(acme, wallet)

    assert first["limits"] == {"debits": {"day_amount": 100}, "credits": {}, "balance_max": 500}
    assert second["limits"] == {"debits": {}, "credits": {"hour_count": 3, "hour_amount": 0}}
    assert second["usage"]["hour_ends_at"].endswith(":00:00.000000Z")
    assert (lifted["limits"], lifted["usage"]) == (None, None)


def test_a_list_shows_limits(gateway: RunningGateway) -> None:
    """
    As of a moment ago, with what is used; what is available only the wallet itself tells.
    """
    keeper = Merchant(gateway.url, gateway.key("limiters"))
    wallets = sorted(keeper.open_wallet(funds=10) for _ in range(2))
    limit(keeper, wallets[0], debits={"hour_count": 5})
    withdraw(keeper, wallets[0], 3)

    def listed() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = keeper.get("/v1/wallets").json()["wallets"]
        return found

    def shown() -> list[tuple[Any, Any]]:
        return [(wallet["limits"], wallet["usage"]) for wallet in listed()]

    now = [keeper.get(f"/v1/wallets/{wallet}").json() for wallet in wallets]
    expected = [(wallet["limits"], wallet["usage"]) for wallet in now]
    asyncio.run(until(lambda: shown() == expected, "the tables to catch up"))
    assert expected[0][1]["debits"]["hour_count"] == 1
    assert expected[1] == (None, None)
    assert {(wallet["available"], wallet["held"]) for wallet in listed()} == {(None, None)}
    keeper.close()


@to_either_shard
@pytest.mark.parametrize(
    ("window", "bound", "short_by"),
    [("hour_count", 2, 1), ("hour_amount", 25, 5), ("day_count", 2, 1), ("day_amount", 29, 1)],
)
def test_debits(acme: Merchant, shard_id: int, window: str, bound: int, short_by: int) -> None:
    """
    As much as the limit says goes out, to wherever; the next is refused for it, by how much.
    """
    source = acme.open_wallet(funds=100, shard_id=0)
    destination = acme.open_wallet(shard_id=shard_id)
    limit(acme, source, debits={window: bound})

    assert move(acme, source, destination, 10).status_code == 201
    assert withdraw(acme, source, 10).status_code == 201
    refused = move(acme, source, destination, 10)

    period, kind = window.split("_")
    assert refusal_of(refused) == (f"debit_{kind}_{period}_exceeded", short_by)
    assert used(acme, source)[0] == [2, 20, 2, 20]
    assert acme.balance(source) == 80


@to_either_shard
@pytest.mark.parametrize("window", WINDOWS)
def test_credits(acme: Merchant, globex: Merchant, shard_id: int, window: str) -> None:
    """
    The payer hears that it is too much for the destination, but not by how much; the owner does.
    """
    source = acme.open_wallet(funds=100, shard_id=0)
    destination = globex.open_wallet(shard_id=shard_id)
    bound, over = (2, 1) if window.endswith("count") else (25, 5)
    limit(globex, destination, credits={window: bound})

    assert move(acme, source, destination, 10).status_code == 201
    assert deposit(globex, destination, 10).status_code == 201

    period, kind = window.split("_")
    code = f"credit_{kind}_{period}_exceeded"
    assert refusal_of(move(acme, source, destination, 10)) == (code, None)
    assert refusal_of(deposit(globex, destination, 10)) == (code, over)
    assert used(globex, destination)[1] == [2, 20, 2, 20]
    assert (acme.balance(source), globex.balance(destination)) == (90, 20)


@to_either_shard
def test_a_full_wallet(acme: Merchant, shard_id: int) -> None:
    """
    Nothing comes in above the maximum; what is there already stays, and may leave.
    """
    source = acme.open_wallet(funds=100, shard_id=0)
    destination = acme.open_wallet(funds=50, shard_id=shard_id)
    limit(acme, destination, balance_max=40)

    assert refusal_of(move(acme, source, destination, 1))[0] == "balance_max_exceeded"
    assert refusal_of(deposit(acme, destination, 1)) == ("balance_max_exceeded", 11)
    assert withdraw(acme, destination, 30).status_code == 201
    assert move(acme, source, destination, 20).status_code == 201
    assert acme.balance(destination) == 40


@to_either_shard
def test_what_comes_to_nothing_does_not_count(acme: Merchant, shard_id: int) -> None:
    """
    Refused by its destination, or held and given up: the limit is as before.
    """
    source = acme.open_wallet(funds=100, shard_id=0)
    closed = acme.open_wallet(shard_id=shard_id)
    acme.send("PATCH", f"/v1/wallets/{closed}", {"status": "closed"})
    limit(acme, source, debits={"day_amount": 50, "hour_count": 1})

    assert refusal_of(move(acme, source, closed, 50))[0] == "destination_closed"
    body = {"source": source, "amount": 50, "currency": "EUR"}
    hold = acme.post("/v1/holds", body, key=fresh("key")).json()
    assert used(acme, source)[0] == [1, 50, 1, 50]
    assert refusal_of(withdraw(acme, source, 1)) == ("debit_count_hour_exceeded", 1)
    acme.post(f"/v1/holds/{hold['id']}/void", {}, key=fresh("key"))

    assert used(acme, source)[0] == [0, 0, 0, 0]
    assert withdraw(acme, source, 50).status_code == 201


@to_either_shard
def test_a_capture_counts_where_it_goes(acme: Merchant, shard_id: int) -> None:
    """
    A hold is a debit when it is placed; its captures are credits, within the destination's limits.
    """
    source = acme.open_wallet(funds=100, shard_id=0)
    destination = acme.open_wallet(shard_id=shard_id)
    limit(acme, source, debits={"hour_count": 1})
    limit(acme, destination, credits={"hour_amount": 50})
    body = {"source": source, "destination": destination, "amount": 60, "currency": "EUR"}
    hold = acme.post("/v1/holds", body, key=fresh("key")).json()
    captures = f"/v1/holds/{hold['id']}/captures"

    assert acme.post(captures, {"amount": 30}, key=fresh("key")).status_code == 201
    too_much = acme.post(captures, {"amount": 30}, key=fresh("key"))
    assert acme.post(captures, {"amount": 20}, key=fresh("key")).status_code == 201

    assert refusal_of(too_much) == ("credit_amount_hour_exceeded", None)
    assert used(acme, source)[0] == [1, 60, 1, 60]
    assert used(acme, destination)[1] == [2, 50, 2, 50]


@to_either_shard
def test_at_once_no_more_than_the_limit(acme: Merchant, shard_id: int) -> None:
    """
    Of many transfers at the same time as many succeed as the limit lets through.
    """
    source = acme.open_wallet(funds=1_000, shard_id=0)
    destination = acme.open_wallet(shard_id=shard_id)
    limit(acme, source, debits={"day_count": 7}, balance_max=1_000)
    body = {"source": source, "destination": destination, "amount": 1, "currency": "EUR"}

    replies = all_at_once(acme, [body] * 20)

    assert sorted(reply.status_code for reply in replies) == [*[201] * 7, *[409] * 13]
    refused = {code_of(reply) for reply in replies if reply.status_code == 409}
    assert refused == {"debit_count_day_exceeded"}
    assert acme.balance(destination) == 7


def all_at_once(merchant: Merchant, bodies: list[dict[str, Any]]) -> list[httpx2.Response]:
    headers = {
        "authorization": merchant.http.headers["authorization"],
        "content-type": "application/json",
    }

    async def send() -> list[httpx2.Response]:
        base_url = str(merchant.http.base_url)
        async with httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=60) as client:
            posts = (
                client.post(
                    "/v1/transfers",
                    content=json.dumps(body),
                    headers={"idempotency-key": fresh("at-once")},
                )
                for body in bodies
            )
            return list(await asyncio.gather(*posts))

    return asyncio.run(send())


@pytest.mark.parametrize(
    ("limits", "pointer"),
    [
        ({"debits": {"day_amount": -1}}, "/limits/debits/day_amount"),
        ({"credits": {"hour_count": 2**53}}, "/limits/credits/hour_count"),
        ({"balance_max": 1.5}, "/limits/balance_max"),
        ({"debits": {"week_count": 1}}, "/limits/debits/week_count"),
        ({"debits": None}, "/limits/debits"),
    ],
)
def test_limits_that_are_wrong(acme: Merchant, limits: dict[str, Any], pointer: str) -> None:
    """
    A wrong limit is named, and nothing is set.
    """
    wallet = acme.open_wallet()

    reply = acme.send("PATCH", f"/v1/wallets/{wallet}", {"limits": limits})

    assert (reply.status_code, pointers_of(reply)) == (422, [pointer])
    assert acme.get(f"/v1/wallets/{wallet}").json()["limits"] is None


# --- Conditions of a movement ---------------------------------------------------------------


def test_a_version_that_differs(acme: Merchant) -> None:
    """
    Of two movements that saw the same wallet only one happens.
    """
    source, destination = acme.open_wallet(funds=100), acme.open_wallet()

    first = move(acme, source, destination, 10, if_version=1)
    second = move(acme, source, destination, 10, if_version=1)

    assert (first.status_code, first.json()["version"]) == (201, 2)
    assert refusal_of(second) == ("version_differs", 1)
    assert refusal_of(withdraw(acme, source, 1, if_version=5)) == ("version_differs", 3)
    assert deposit(acme, destination, 1, if_version=1).status_code == 201
    assert refusal_of(deposit(acme, destination, 1, if_version=0)) == ("version_differs", 2)


@to_either_shard
def test_what_must_be_available(acme: Merchant, shard_id: int) -> None:
    """
    What is held is not available; the condition is of what is there before the movement.
    """
    source = acme.open_wallet(funds=100, shard_id=0)
    destination = acme.open_wallet(shard_id=shard_id)
    body = {"source": source, "amount": 40, "currency": "EUR"}
    acme.post("/v1/holds", body, key=fresh("key"))

    refused = move(acme, source, destination, 1, if_available_gte=61)
    done = move(acme, source, destination, 50, if_available_gte=60)

    assert refusal_of(refused) == ("available_below_condition", 1)
    assert done.status_code == 201


@to_either_shard
def test_up_to_an_amount(acme: Merchant, shard_id: int) -> None:
    """
    What is there is moved, and no more than was asked for; the reply, a repeat of it and a look
    say how much it was.
    """
    source = acme.open_wallet(funds=100, minimum=0, shard_id=0)
    destination = acme.open_wallet(shard_id=shard_id)
    acme.send("PATCH", f"/v1/wallets/{source}", {"minimum": 30})
    body = {"source": source, "destination": destination, "amount": 90, "currency": "EUR"}
    key = fresh("key")

    first = acme.post("/v1/transfers", body | {"up_to": True}, key=key)
    again = acme.post("/v1/transfers", body | {"up_to": True}, key=key)
    other = acme.post("/v1/transfers", body, key=key)

    assert (first.status_code, first.json()["amount"], first.json()["balance"]) == (201, 70, 30)
    assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")
    assert (code_of(other), pointers_of(other)) == ("idempotency_key_reused", ["/amount"])
    assert acme.get(f"/v1/transfers/{first.json()['id']}").json() == first.json()
    assert refusal_of(withdraw(acme, source, 5, up_to=True)) == ("insufficient_funds", 1)
    deposit(acme, source, 100)
    assert withdraw(acme, source, 5, up_to=True).json()["amount"] == 5
    assert acme.balance(source) == 125


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"if_version": -1}, "/if_version"),
        ({"if_available_gte": 2**53}, "/if_available_gte"),
        ({"up_to": 1}, "/up_to"),
    ],
)
def test_conditions_that_are_wrong(acme: Merchant, body: dict[str, Any], pointer: str) -> None:
    """
    A wrong condition is named; a deposit, which has all it needs, takes no `up_to`.
    """
    source, destination = acme.open_wallet(funds=1), acme.open_wallet()

    reply = move(acme, source, destination, 1, **body)

    assert (reply.status_code, pointers_of(reply)) == (422, [pointer])
    assert pointers_of(deposit(acme, source, 1, up_to=True)) == ["/up_to"]


def test_items_of_a_batch(acme: Merchant) -> None:
    """
    Each item has its own conditions; what it moved, or by how much it failed, is its result.
    """
    source = acme.open_wallet(funds=100)
    other, destination = acme.open_wallet(funds=5), acme.open_wallet()
    items = [
        {"source": source, "amount": 10, "if_version": 1},
        {"source": source, "amount": 500, "up_to": True},
        {"source": other, "amount": 1, "if_available_gte": 9},
        {"source": other, "amount": 9},
    ]
    sound = {"destination": destination, "currency": "EUR"}
    batch = [sound | {"idempotency_key": fresh("item")} | item for item in items]

    reply = acme.post("/v1/transfers/batch", {"transfers": batch})

    results = reply.json()["results"]
    told = [(one["status"], one.get("amount"), one.get("short_by")) for one in results]
    assert told == [
        ("posted", None, None),
        ("posted", 90, None),
        ("rejected", None, 4),
        ("rejected", None, 4),
    ]
    assert results[2]["code"] == "available_below_condition"
    assert acme.balance(destination) == 100
