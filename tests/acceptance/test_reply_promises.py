"""
Goal: each line of the table "What a reply promises" holds, whatever breaks afterwards.
Method: real processes. The shard is killed, stopped or frozen between a reply and the next
        request; the same key then has to give the one true outcome, and the books to balance.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from processor.storage.connection import connect
from tests.support.merchant import Merchant, code_of, fresh
from tests.support.pausing import paused
from tests.support.running_gateway import SETTLED, RunningGateway, running_gateway
from tests.support.stack import Stack
from tests.support.waiting import until

PATIENT = {"MILIANO_GATEWAY_REQUEST_TIMEOUT_MS": "30000", **SETTLED}
HURRIED = {"MILIANO_GATEWAY_REQUEST_TIMEOUT_MS": "500"}
FUNDS = 1_000


@contextmanager
def merchant_of(stack: Stack, **environment: str) -> Iterator[Merchant]:
    """
    Give a merchant at a gateway of *stack*.
    """
    with running_gateway(stack, **environment) as gateway:
        merchant = Merchant(gateway.url, gateway.key("acme"))
        try:
            yield merchant
        finally:
            merchant.close()


@pytest.fixture
def shop(own_stack: Stack) -> Iterator[Merchant]:
    """
    Give a merchant in front of a ledger that may be broken; the gateway waits for it.
    """
    with merchant_of(own_stack, **PATIENT) as merchant:
        yield merchant


@pytest.fixture
def hurried_shop(own_stack: Stack) -> Iterator[Merchant]:
    """
    Give the same merchant at a gateway that soon gives up waiting.
    """
    with merchant_of(own_stack, **HURRIED) as merchant:
        yield merchant


def wallets(merchant: Merchant) -> dict[str, Any]:
    """
    Open two wallets at shard 0, the first with funds, and make a transfer's body between them.
    """
    source = merchant.open_wallet("source", funds=FUNDS, shard_id=0)
    destination = merchant.open_wallet("destination", shard_id=0)
    return {"source": source, "destination": destination, "amount": 100, "currency": "EUR"}


def is_replay(reply: httpx2.Response) -> bool:
    return reply.headers.get("idempotent-replayed") == "true"


async def rows(stack: Stack, query: str) -> list[tuple[Any, ...]]:
    conn = await connect(stack.dsn, application_name="tests")
    try:
        return [tuple(row) for row in await conn.fetch(query)]
    finally:
        await conn.close()


async def books_are_zero(stack: Stack) -> None:
    """
    When the tables have caught up, the balances of each currency add up to nothing.
    """
    await stack.projected()
    found = await rows(stack, "SELECT currency, sum(posted) FROM wallets GROUP BY currency")
    assert found == [("EUR", 0)]


def test_posted_stays_posted(own_stack: Stack, shop: Merchant) -> None:
    """
    2xx: the money is in both wallets and in the journal on disk, and still is after a crash;
    the same key gives the same answer.
    """
    body, key = wallets(shop), fresh("key")
    first = shop.post("/v1/transfers", body, key=key)
    assert (first.status_code, first.json()["balance"], is_replay(first)) == (201, 900, False)
    sequence = first.json()["sequence"]
    query = f"SELECT sequence FROM journal WHERE shard_id = 0 AND sequence = {sequence}"
    assert asyncio.run(rows(own_stack, query)) == [(sequence,)]

    own_stack.crash_shard()

    assert shop.balance(body["source"]) == FUNDS - 100
    assert shop.balance(body["destination"]) == 100
    again = shop.post("/v1/transfers", body, key=key)
    assert (again.status_code, again.json(), is_replay(again)) == (201, first.json(), True)
    asyncio.run(books_are_zero(own_stack))


@pytest.mark.parametrize("path", ["/v1/deposits", "/v1/withdrawals"])
def test_the_world_keeps_its_promises_too(own_stack: Stack, shop: Merchant, path: str) -> None:
    """
    Money from outside and to outside moves once, across a crash.
    """
    wallet = shop.open_wallet(funds=FUNDS, shard_id=0)
    side = "destination" if path == "/v1/deposits" else "source"
    body, key = {side: wallet, "amount": 100, "currency": "EUR"}, fresh("key")
    first = shop.post(path, body, key=key)
    own_stack.crash_shard()
    again = shop.post(path, body, key=key)

    assert (again.status_code, again.json(), is_replay(again)) == (201, first.json(), True)
    assert shop.balance(wallet) == FUNDS + (100 if side == "destination" else -100)
    asyncio.run(books_are_zero(own_stack))


def across(merchant: Merchant) -> dict[str, Any]:
    """
    Make a transfer's body from a wallet at shard 0 to one at shard 1.
    """
    return wallets(merchant) | {"destination": merchant.open_wallet("destination", shard_id=1)}


def test_pending_comes_to_posted(own_stack: Stack) -> None:
    """
    202: the money is set aside while the other shard is down; the same key and the transfer's own
    page tell so, across a crash, until it is posted, once.
    """
    with merchant_of(own_stack) as shop:
        body, key = across(shop), fresh("key")
        own_stack.shards[1].kill()
        first = shop.post("/v1/transfers", body, key=key)
        transfer = first.json()
        assert (first.status_code, transfer["status"], is_replay(first)) == (202, "pending", False)
        assert (transfer["balance"], transfer["version"], transfer["shard"]) == (None, None, 0)
        place = first.headers["location"]
        assert place == f"/v1/transfers/{transfer['id']}"
        assert shop.get(place).json() == transfer
        own_stack.crash_shard()

        again = shop.post("/v1/transfers", body, key=key)
        assert (again.status_code, again.json(), is_replay(again)) == (202, transfer, True)
        assert shop.get(place).json() == transfer
        rest = shop.post("/v1/transfers", body | {"amount": FUNDS - 99}, key=fresh("key"))
        assert (rest.status_code, code_of(rest)) == (409, "insufficient_funds")

        own_stack.shards[1].start()
        told = asyncio.run(until(lambda: no_more_pending(shop, body, key), "the settlement"))
        assert (told.status_code, told.json()["balance"], is_replay(told)) == (201, 900, True)
        assert shop.get(place).json() == told.json()
        assert shop.balance(body["destination"]) == 100
        asyncio.run(books_are_zero(own_stack))


def test_pending_comes_to_rejected(own_stack: Stack) -> None:
    """
    What the other shard refuses is set free again, and the refusal is recorded under the key.
    """
    with merchant_of(own_stack) as shop:
        body, key = across(shop), fresh("key")
        status = {"status": "closed"}
        assert shop.send("PATCH", f"/v1/wallets/{body['destination']}", status).status_code == 200
        own_stack.shards[1].kill()
        pending = shop.post("/v1/transfers", body, key=key)
        assert (pending.status_code, pending.json()["status"]) == (202, "pending")
        batch = shop.post("/v1/transfers/batch", {"transfers": [body | {"idempotency_key": key}]})
        assert batch.json()["pending"] == 1
        (item,) = batch.json()["results"]
        assert (item["status"], item["id"]) == ("pending", pending.json()["id"])
        assert item["replayed"]

        own_stack.shards[1].start()
        told = asyncio.run(until(lambda: no_more_pending(shop, body, key), "the settlement"))
        assert (told.status_code, code_of(told)) == (409, "destination_closed")
        assert shop.get(pending.headers["location"]).json() == told.json()["transfer"]
        assert shop.balance(body["source"]) == FUNDS


def no_more_pending(merchant: Merchant, body: dict[str, Any], key: str) -> httpx2.Response | None:
    reply = merchant.post("/v1/transfers", body, key=key)
    return None if reply.status_code == 202 else reply


def test_a_refusal_stays_a_refusal(own_stack: Stack, shop: Merchant) -> None:
    """
    4xx with a business reason: not moved, recorded under its key, and the same after a crash,
    even when it would be possible by then.
    """
    body, key = wallets(shop), fresh("key")
    body["amount"] = FUNDS + 1
    first = shop.post("/v1/transfers", body, key=key)
    assert (first.status_code, code_of(first)) == (409, "insufficient_funds")
    assert first.json()["transfer"]["status"] == "rejected"
    more = {"destination": body["source"], "amount": 5_000, "currency": "EUR"}
    assert shop.post("/v1/deposits", more, key=fresh("key")).status_code == 201

    own_stack.crash_shard()

    again = shop.post("/v1/transfers", body, key=key)
    assert (again.status_code, again.json(), is_replay(again)) == (409, first.json(), True)
    assert shop.balance(body["source"]) == FUNDS + 5_000
    assert shop.post("/v1/transfers", body, key=fresh("key")).status_code == 201


def test_before_admission_nothing_is_recorded(own_stack: Stack, shop: Merchant) -> None:
    """
    400 to 429: a retry is a first try, and the journal has not heard of it.
    """
    body, key = wallets(shop), fresh("key")
    count = "SELECT count(*) FROM journal"
    before = asyncio.run(rows(own_stack, count))
    nobody = Merchant(str(shop.http.base_url), None)
    refused = [
        nobody.post("/v1/transfers", body, key=key),
        shop.post("/v1/transfers", body),
        shop.post("/v1/transfers", body | {"amount": 0}, key=key),
        shop.post("/v1/transfers", b"{", key=key),
        shop.send("POST", "/v1/transfers", body, key=key, headers={"content-type": "a/b"}),
    ]
    nobody.close()
    assert [reply.status_code for reply in refused] == [401, 400, 422, 400, 415]
    assert {reply.json()["outcome"] for reply in refused} == {"not_applied"}
    assert asyncio.run(rows(own_stack, count)) == before

    first = shop.post("/v1/transfers", body, key=key)

    assert (first.status_code, is_replay(first)) == (201, False)


def test_a_reused_key_changes_nothing(shop: Merchant) -> None:
    """
    422: the key of one request with another body points at the difference, and both the key
    and the money stay as they were.
    """
    body, key = wallets(shop), fresh("key")
    first = shop.post("/v1/transfers", body, key=key)
    for field, value in (
        ("amount", 101),
        ("destination", shop.open_wallet()),
        ("currency", "USD"),
        ("reference", "other"),
        ("metadata", {"other": 1}),
    ):
        reply = shop.post("/v1/transfers", body | {field: value}, key=key)
        assert (reply.status_code, code_of(reply)) == (422, "idempotency_key_reused")
        assert [error["pointer"] for error in reply.json()["errors"]] == [f"/{field}"]
    withdrawal = {name: body[name] for name in ("source", "amount", "currency")}
    reply = shop.post("/v1/withdrawals", withdrawal, key=key)
    assert (reply.status_code, code_of(reply)) == (422, "idempotency_key_reused")

    assert shop.balance(body["source"]) == FUNDS - 100
    again = shop.post("/v1/transfers", body, key=f'"{key}"')
    assert (again.json(), is_replay(again)) == (first.json(), True)


def test_an_unknown_outcome_becomes_known(
    own_stack: Stack, shop: Merchant, hurried_shop: Merchant
) -> None:
    """
    504: nobody knows, and the reply says so; the same key then gives the one true outcome.
    """
    body, key = wallets(shop), fresh("key")
    with paused(own_stack.shard.pid):
        lost = hurried_shop.post("/v1/transfers", body, key=key)
    assert (lost.status_code, code_of(lost)) == (504, "outcome_unknown")
    assert lost.json()["outcome"] == "unknown"

    found = shop.post("/v1/transfers", body, key=key)

    assert (found.status_code, found.json()["balance"]) == (201, 900)
    assert shop.balance(body["source"]) == FUNDS - 100


def test_unavailable_means_not_applied(
    own_stack: Stack, shop: Merchant, hurried_shop: Merchant
) -> None:
    """
    503 before anything was sent: nothing happened, there is a time to try again, and the same
    key is a first try. A read that gets no answer is no more than that.
    """
    body, key = wallets(shop), fresh("key")
    own_stack.shard.kill()
    asyncio.run(until(lambda: not is_ready(hurried_shop), "the gateway to miss the shard"))

    refused = hurried_shop.post("/v1/transfers", body, key=key)
    assert (refused.status_code, code_of(refused)) == (503, "unavailable")
    assert refused.json()["outcome"] == "not_applied"
    assert int(refused.headers["retry-after"]) >= 1
    assert code_of(hurried_shop.get(f"/v1/wallets/{body['source']}")) == "unavailable"
    assert hurried_shop.get("/v1/health/live").status_code == 200

    own_stack.shard.start()
    reply = shop.post("/v1/transfers", body, key=key)
    assert (reply.status_code, is_replay(reply)) == (201, False)
    assert shop.balance(body["source"]) == FUNDS - 100


def is_ready(merchant: Merchant) -> bool:
    health = merchant.get("/v1/health")
    assert health.json()["ready"] == (health.status_code == 200)
    return health.status_code == 200


def test_a_crash_in_between_is_survived(own_stack: Stack, shop: Merchant) -> None:
    """
    The shard is killed in the middle of many payments: each is made once, and only those that
    the client itself sent again are replays.
    """
    body = wallets(shop) | {"amount": 1}
    headers = {
        "authorization": shop.http.headers["authorization"],
        "content-type": "application/json",
    }
    begun = 0

    async def pay(client: httpx2.AsyncClient, key: str) -> dict[str, Any]:
        nonlocal begun
        attempts = 0
        while True:
            attempts += 1
            begun += 1
            reply = await client.post(
                "/v1/transfers", content=json.dumps(body), headers={"idempotency-key": key}
            )
            if reply.status_code == 201:
                assert attempts > 1 or not is_replay(reply)
                transfer: dict[str, Any] = reply.json()
                return transfer
            assert reply.status_code in (503, 504), reply.text

    async def pay_in_turn(client: httpx2.AsyncClient, keys: list[str]) -> list[dict[str, Any]]:
        return [await pay(client, key) for key in keys]

    async def storm() -> list[dict[str, Any]]:
        base_url = str(shop.http.base_url)
        async with httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=60) as client:
            payers = [
                asyncio.create_task(pay_in_turn(client, [fresh("key") for _ in range(25)]))
                for _ in range(16)
            ]
            await until(lambda: begun >= 100, "the payments to be under way")
            # Not in another thread: a child ends with the thread that started it.
            own_stack.crash_shard()
            return [transfer for paid in await asyncio.gather(*payers) for transfer in paid]

    transfers = asyncio.run(storm())

    assert sorted(transfer["version"] for transfer in transfers) == list(range(2, 402))
    assert len({transfer["id"] for transfer in transfers}) == 400
    assert shop.balance(body["source"]) == FUNDS - 400
    asyncio.run(books_are_zero(own_stack))


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_cancels_nothing(
    own_stack: Stack, shop: Merchant, reset: bool
) -> None:
    """
    A lost connection: the payment goes on to its end, and the same key tells it.
    """
    body, key = wallets(shop), fresh("key")
    with paused(own_stack.shard.pid):
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/transfers HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"authorization: {shop.http.headers['authorization']}\r\nidempotency-key: {key}\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        address = (shop.http.base_url.host, shop.http.base_url.port)
        with socket.create_connection(address) as connection:
            connection.sendall(head.encode() + content)
            asyncio.run(until(lambda: in_flight(shop), "the request to be sent to the shard"))
            if reset:
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    asyncio.run(until(lambda: shop.balance(body["source"]) == FUNDS - 100, "the money to move"))
    told = shop.post("/v1/transfers", body, key=key)
    assert (told.status_code, is_replay(told)) == (201, True)
    assert shop.balance(body["source"]) == FUNDS - 100


def in_flight(merchant: Merchant) -> bool:
    """
    Say whether the gateway waits for an answer of the shard.
    """
    text = merchant.get("/metrics").text
    return 'miliano_shard_client_frames_in_flight{shard="0"} 1.0' in text


def test_too_much_is_refused_before_it_is_applied(own_stack: Stack) -> None:
    """
    503 for load: nothing of the request was applied, and there is a time to try again.
    """
    tight = PATIENT | {"MILIANO_GATEWAY_QUEUED_COMMANDS_MAX": "1"}
    with merchant_of(own_stack, **tight) as shop:
        body, key = wallets(shop), fresh("key")
        items = [body | {"amount": 1, "idempotency_key": fresh(key)} for _ in range(2)]

        refused = shop.post("/v1/transfers/batch", {"transfers": items})

        assert (refused.status_code, code_of(refused)) == (503, "overloaded")
        assert refused.json()["outcome"] == "not_applied"
        assert int(refused.headers["retry-after"]) >= 1
        assert shop.balance(body["source"]) == FUNDS
        alone = shop.post("/v1/transfers/batch", {"transfers": items[:1]})
        assert (alone.status_code, alone.json()["posted"]) == (200, 1)


def test_stopping_finishes_what_was_begun(own_stack: Stack) -> None:
    """
    A gateway that is told to stop answers what it has, and takes no more.
    """
    with running_gateway(own_stack, **PATIENT) as gateway:
        shop = Merchant(gateway.url, gateway.key("acme"))
        body, key = wallets(shop), fresh("key")

        async def stop_while_paying() -> httpx2.Response:
            with paused(own_stack.shard.pid):
                paying = asyncio.create_task(
                    asyncio.to_thread(shop.post, "/v1/transfers", body, key=key)
                )
                observer = Merchant(gateway.url, None)
                await until(lambda: in_flight(observer), "the request to be sent to the shard")
                observer.close()
                stopping = asyncio.create_task(asyncio.to_thread(gateway.process.stop))
                await until(lambda: takes_no_more(gateway), "the gateway to close its door")
            await stopping
            return await paying

        reply = asyncio.run(stop_while_paying())

        assert (reply.status_code, is_replay(reply)) == (201, False)
        shop.close()


def takes_no_more(gateway: RunningGateway) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", gateway.port)):
            return False
    except OSError:
        return True
