"""
Goal: a hold keeps money for captures, in parts and to either shard, and gives back the rest; each
      thing is done once, and what comes too late or asks too much is refused for that reason.
Method: two merchants over HTTP on two shards; a shard that is killed between the steps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.merchant import Merchant, code_of, fresh, pointers_of
from tests.support.running_gateway import SETTLED, RunningGateway, running_gateway
from tests.support.stack import Stack
from tests.support.waiting import until

to_either_shard = pytest.mark.parametrize("shard_id", [0, 1], ids=["one shard", "two shards"])


def place(merchant: Merchant, source: str, amount: int, **more: Any) -> dict[str, Any]:
    """
    Place a hold and return it.
    """
    reply = asked(merchant, source, amount, **more)
    assert reply.status_code == 201, reply.text
    hold: dict[str, Any] = reply.json()
    return hold


def asked(merchant: Merchant, source: str, amount: int, **more: Any) -> httpx2.Response:
    body = {"source": source, "amount": amount, "currency": "EUR"} | more
    return merchant.post("/v1/holds", body, key=fresh("key"))


def act(
    merchant: Merchant, hold: dict[str, Any], what: str, key: str = "", **body: Any
) -> httpx2.Response:
    return merchant.post(f"/v1/holds/{hold['id']}/{what}", body, key=key or fresh("key"))


def look(merchant: Merchant, hold: dict[str, Any]) -> dict[str, Any]:
    reply = merchant.get(f"/v1/holds/{hold['id']}")
    assert reply.status_code == 200, reply.text
    seen: dict[str, Any] = reply.json()
    return seen


def money(merchant: Merchant, wallet_id: str) -> tuple[int, int, int]:
    """
    Return what is in a wallet, what of it is available, and what holds keep.
    """
    wallet = merchant.get(f"/v1/wallets/{wallet_id}").json()
    return wallet["balance"], wallet["available"], wallet["held"]


def is_over(merchant: Merchant, hold: dict[str, Any]) -> None:
    def is_expired() -> bool:
        return look(merchant, hold)["status"] == "expired"

    asyncio.run(until(is_expired, "the hold to expire"))


# --- Placing --------------------------------------------------------------------------------


def test_a_hold_sets_money_aside(acme: Merchant) -> None:
    """
    The balance stays and less of it is available; the reply and a look tell the same.
    """
    guest, hotel = acme.open_wallet(funds=100), acme.open_wallet()

    reply = asked(
        acme, guest, 60, destination=hotel, expires_in_s=60, reference="room", metadata={"n": 2}
    )

    hold = reply.json()
    told = {
        "status": "open",
        "source": guest,
        "destination": hotel,
        "amount": 60,
        "captured": 0,
        "pending": 0,
        "remaining": 60,
        "currency": "EUR",
        "reference": "room",
        "metadata": {"n": 2},
        "balance": 100,
        "available": 40,
        "held": 60,
        "version": 1,
    }
    assert told.items() <= hold.items()
    assert reply.headers["location"] == f"/v1/holds/{hold['id']}"
    assert look(acme, hold) == hold
    assert money(acme, guest) == (100, 40, 60)
    body = {"source": guest, "destination": hotel, "amount": 41, "currency": "EUR"}
    refused = acme.post("/v1/transfers", body, key=fresh("key"))
    assert (code_of(refused), refused.json()["transfer"]["short_by"]) == ("insufficient_funds", 1)


@pytest.mark.parametrize(
    ("changes", "code", "short_by"),
    [
        ({"amount": 101}, "insufficient_funds", 1),
        ({"currency": "USD"}, "currency_mismatch", None),
        ({"source": "nobody"}, "source_unknown", None),
        ({"if_version": 2}, "version_differs", 1),
        ({"if_available_gte": 107}, "available_below_condition", 7),
    ],
)
def test_holds_that_are_refused(
    acme: Merchant, changes: dict[str, Any], code: str, short_by: int | None
) -> None:
    """
    A refusal says why and by how much, and is found again by its id; nothing is set aside.
    """
    guest = acme.open_wallet(funds=100)
    body = {"source": guest, "amount": 1, "currency": "EUR"} | changes

    reply = acme.post("/v1/holds", body, key=fresh("key"))

    assert (reply.status_code, code_of(reply)) == (409, code)
    transfer = reply.json()["transfer"]
    assert (transfer["type"], transfer["status"], transfer["reason"]) == ("hold", "rejected", code)
    assert transfer["short_by"] == short_by
    assert acme.get(f"/v1/transfers/{transfer['id']}").json() == transfer
    assert acme.get(f"/v1/holds/{transfer['id']}").status_code == 404
    assert money(acme, guest) == (100, 100, 0)


def test_holds_that_are_wrong(acme: Merchant) -> None:
    """
    Every wrong field is named, and nothing is recorded.
    """
    reply = asked(acme, "!", 0, expires_in_s=31 * 86_400 + 1, destination="")

    assert (reply.status_code, code_of(reply)) == (422, "validation_failed")
    assert pointers_of(reply) == ["/source", "/destination", "/amount", "/expires_in_s"]


# --- Capturing ------------------------------------------------------------------------------


@to_either_shard
def test_all_is_captured(acme: Merchant, globex: Merchant, shard_id: int) -> None:
    """
    Without an amount everything goes to the hold's destination, and the hold has ended.
    """
    guest = acme.open_wallet(funds=100, shard_id=0)
    hotel = globex.open_wallet(shard_id=shard_id)
    hold = place(acme, guest, 60, destination=hotel)

    reply = act(acme, hold, "captures", reference="bill")

    transfer = reply.json()
    assert reply.status_code == 201, reply.text
    told = {
        "type": "capture",
        "status": "posted",
        "source": guest,
        "destination": hotel,
        "amount": 60,
        "currency": "EUR",
        "reference": "bill",
        "balance": 40,
        "version": 2,
        "linked_to": hold["id"],
        "short_by": None,
    }
    assert told.items() <= transfer.items()
    assert acme.get(f"/v1/transfers/{transfer['id']}").json() == transfer
    seen = globex.get(f"/v1/transfers/{transfer['id']}").json()
    assert (seen["type"], seen["balance"], seen["linked_to"]) == ("capture", 60, hold["id"])
    after = look(acme, hold)
    assert (after["status"], after["captured"], after["remaining"]) == ("captured", 60, 0)
    assert money(acme, guest) == (40, 40, 0)
    assert globex.balance(hotel) == 60
    assert code_of(act(acme, hold, "captures")) == "hold_captured"
    assert code_of(act(acme, hold, "void")) == "hold_captured"


@to_either_shard
def test_parts_are_captured(acme: Merchant, shard_id: int) -> None:
    """
    With an amount the hold stays open for the rest, until one is final: then the rest is free.
    """
    guest = acme.open_wallet(funds=100, shard_id=0)
    hotel, taxi = (acme.open_wallet(shard_id=shard_id) for _ in range(2))
    hold = place(acme, guest, 60, destination=hotel)

    first = act(acme, hold, "captures", amount=10)
    between = look(acme, hold)
    last = act(acme, hold, "captures", amount=20, destination=taxi, final=True)

    assert (first.status_code, last.status_code) == (201, 201), (first.text, last.text)
    assert (between["status"], between["captured"], between["remaining"]) == ("open", 10, 50)
    after = look(acme, hold)
    assert (after["status"], after["captured"], after["remaining"]) == ("captured", 30, 0)
    assert money(acme, guest) == (70, 70, 0)
    assert (acme.balance(hotel), acme.balance(taxi)) == (10, 20)


def test_the_last_part_ends_the_hold(acme: Merchant) -> None:
    """
    A hold of which nothing is left is over, without anybody saying so.
    """
    guest, hotel = acme.open_wallet(funds=100), acme.open_wallet()
    hold = place(acme, guest, 60, destination=hotel)

    for amount in (40, 20):
        assert act(acme, hold, "captures", amount=amount).status_code == 201

    assert look(acme, hold)["status"] == "captured"


@to_either_shard
def test_more_than_is_kept(acme: Merchant, shard_id: int) -> None:
    """
    A capture of too much says by how much, and takes nothing.
    """
    guest = acme.open_wallet(funds=100, shard_id=0)
    hotel = acme.open_wallet(shard_id=shard_id)
    hold = place(acme, guest, 60, destination=hotel)
    act(acme, hold, "captures", amount=10)

    reply = act(acme, hold, "captures", amount=53)

    assert (reply.status_code, code_of(reply)) == (409, "capture_exceeds_hold")
    transfer = reply.json()["transfer"]
    assert (transfer["short_by"], transfer["amount"], transfer["linked_to"]) == (3, 53, hold["id"])
    assert look(acme, hold)["remaining"] == 50
    assert money(acme, guest) == (90, 40, 50)


def test_a_capture_needs_a_destination(acme: Merchant) -> None:
    """
    The hold's or its own: without either it is told so, and the hold is as before.
    """
    guest, hotel = acme.open_wallet(funds=100), acme.open_wallet()
    hold = place(acme, guest, 60)

    reply = act(acme, hold, "captures")

    assert (reply.status_code, code_of(reply)) == (409, "destination_unknown")
    assert "without a destination" in reply.json()["detail"]
    assert act(acme, hold, "captures", destination=hotel).status_code == 201
    assert acme.balance(hotel) == 60


@to_either_shard
def test_a_destination_that_refuses(acme: Merchant, globex: Merchant, shard_id: int) -> None:
    """
    What the destination does not take, the hold keeps.
    """
    guest = acme.open_wallet(funds=100, shard_id=0)
    hotel = globex.open_wallet(shard_id=shard_id)
    globex.send("PATCH", f"/v1/wallets/{hotel}", {"status": "locked"})
    hold = place(acme, guest, 60, destination=hotel)

    reply = act(acme, hold, "captures")

    assert (reply.status_code, code_of(reply)) == (409, "destination_locked")
    after = look(acme, hold)
    assert (after["status"], after["remaining"], after["pending"]) == ("open", 60, 0)
    assert money(acme, guest) == (100, 40, 60)


def test_a_frozen_wallet_is_captured(acme: Merchant) -> None:
    """
    What was promised is kept: a freeze stops new holds, a lock captures too.
    """
    guest, hotel = acme.open_wallet(funds=100), acme.open_wallet()
    hold = place(acme, guest, 60, destination=hotel)
    path = f"/v1/wallets/{guest}"

    acme.send("PATCH", path, {"status": "frozen"})
    assert code_of(asked(acme, guest, 1)) == "source_frozen"
    assert act(acme, hold, "captures", amount=1).status_code == 201
    acme.send("PATCH", path, {"status": "locked"})
    assert code_of(act(acme, hold, "captures", amount=1)) == "source_locked"
    assert act(acme, hold, "void").status_code == 200


# --- Ending ---------------------------------------------------------------------------------


def test_a_hold_is_given_up(acme: Merchant) -> None:
    """
    What it kept is available at once; what was captured stays gone; a second void is refused.
    """
    guest, hotel = acme.open_wallet(funds=100), acme.open_wallet()
    hold = place(acme, guest, 60, destination=hotel)
    act(acme, hold, "captures", amount=10)

    reply = act(acme, hold, "void")

    assert reply.status_code == 200, reply.text
    told = {"status": "voided", "captured": 10, "remaining": 0, "available": 90, "held": 0}
    assert told.items() <= reply.json().items()
    for what in ("void", "captures", "extend"):
        body = {"expires_in_s": 60} if what == "extend" else {}
        again = act(acme, hold, what, **body)
        assert (again.status_code, code_of(again)) == (409, "hold_voided")
        assert again.json()["transfer"]["linked_to"] == hold["id"]


def test_a_hold_expires(acme: Merchant) -> None:
    """
    Its money is available again by itself; what comes later is refused for that.
    """
    guest, hotel = acme.open_wallet(funds=100), acme.open_wallet()
    hold = place(acme, guest, 60, destination=hotel, expires_in_s=1)
    act(acme, hold, "captures", amount=10)

    is_over(acme, hold)

    assert money(acme, guest) == (90, 90, 0)
    assert look(acme, hold)["captured"] == 10
    for what in ("captures", "void"):
        late = act(acme, hold, what)
        assert (late.status_code, code_of(late)) == (409, "hold_expired")
    assert code_of(act(acme, hold, "extend", expires_in_s=60)) == "hold_expired"


def test_a_hold_is_extended(acme: Merchant) -> None:
    """
    It outlives its first time, and never gets shorter.
    """
    guest, hotel = acme.open_wallet(funds=100), acme.open_wallet()
    begun = time.monotonic()
    hold = place(acme, guest, 60, destination=hotel, expires_in_s=2)

    longer = act(acme, hold, "extend", expires_in_s=600)
    assert time.monotonic() - begun < 2, "too slow a machine for this test"
    shorter = act(acme, hold, "extend", expires_in_s=1)

    assert (longer.status_code, shorter.status_code) == (200, 200)
    assert longer.json()["expires_at"] > hold["expires_at"]
    assert shorter.json()["expires_at"] == longer.json()["expires_at"]
    other = place(acme, guest, 1, expires_in_s=2)
    is_over(acme, other)
    assert act(acme, hold, "captures").status_code == 201


def test_a_wallet_with_holds_stays_open(acme: Merchant) -> None:
    """
    Whoever is owed something can still take it.
    """
    guest = acme.open_wallet(minimum=-100)
    hold = place(acme, guest, 60)
    path = f"/v1/wallets/{guest}"

    refused = acme.send("PATCH", path, {"status": "closed"})

    assert (refused.status_code, code_of(refused)) == (409, "holds_open")
    act(acme, hold, "void")
    assert acme.send("PATCH", path, {"status": "closed"}).status_code == 200


# --- Once -----------------------------------------------------------------------------------


def test_the_same_key_does_it_once(acme: Merchant) -> None:
    """
    Each of the four, sent again, tells what it told before, with the hold as it is by then.
    """
    guest, hotel = acme.open_wallet(funds=100), acme.open_wallet()
    body = {"source": guest, "destination": hotel, "amount": 60, "currency": "EUR"}
    key = fresh("key")
    placed = [acme.post("/v1/holds", body, key=key) for _ in range(2)]
    hold = placed[0].json()
    extended = [act(acme, hold, "extend", f"{key}-e", expires_in_s=900_000) for _ in range(2)]
    captured = [act(acme, hold, "captures", f"{key}-c", amount=10) for _ in range(2)]
    voided = [act(acme, hold, "void", f"{key}-v") for _ in range(2)]

    for first, again in (placed, extended, captured, voided):
        assert (first.status_code, first.json()) == (again.status_code, again.json())
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
    late = acme.post("/v1/holds", body, key=key)
    assert (late.status_code, late.json()["id"]) == (201, hold["id"])
    assert (late.json()["status"], late.json()["captured"]) == ("voided", 10)
    assert money(acme, guest) == (90, 90, 0)


def test_a_refusal_is_kept_under_its_key(acme: Merchant) -> None:
    """
    What was refused stays refused, also when it would be right by now.
    """
    guest, key = acme.open_wallet(funds=1), fresh("key")
    body = {"source": guest, "amount": 2, "currency": "EUR"}
    first = acme.post("/v1/holds", body, key=key)
    deposit = {"destination": guest, "amount": 5, "currency": "EUR"}
    acme.post("/v1/deposits", deposit, key=fresh("key"))

    again = acme.post("/v1/holds", body, key=key)

    assert (first.status_code, first.json()) == (409, again.json())
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"amount": 61}, "/amount"),
        ({"expires_in_s": 61}, "/expires_in_s"),
        ({"destination": "elsewhere"}, "/destination"),
        ({"reference": "other"}, "/reference"),
        ({"if_version": 1}, "/if_version"),
    ],
)
def test_a_key_belongs_to_its_hold(acme: Merchant, changes: dict[str, Any], pointer: str) -> None:
    """
    The same key for another hold points at the field that differs.
    """
    guest, key = acme.open_wallet(funds=100), fresh("key")
    body = {"source": guest, "amount": 60, "currency": "EUR", "expires_in_s": 60}
    assert acme.post("/v1/holds", body, key=key).status_code == 201

    reply = acme.post("/v1/holds", body | changes, key=key)

    assert (reply.status_code, code_of(reply)) == (422, "idempotency_key_reused")
    assert pointers_of(reply) == [pointer]
    assert money(acme, guest) == (100, 40, 60)


def test_a_capture_key_belongs_to_its_capture(acme: Merchant) -> None:
    """
    Another amount, another end or another thing under the key of a capture is refused; the
    same words at another hold are another key.
    """
    guest, hotel, key = acme.open_wallet(funds=100), acme.open_wallet(), fresh("key")
    hold, other = (place(acme, guest, 20, destination=hotel) for _ in range(2))
    assert act(acme, hold, "captures", key, amount=5).status_code == 201

    reused = [
        act(acme, hold, "captures", key, amount=6),
        act(acme, hold, "captures", key, amount=5, final=True),
        act(acme, hold, "captures", key),
        act(acme, hold, "void", key),
    ]

    assert {code_of(reply) for reply in reused} == {"idempotency_key_reused"}
    assert [pointers_of(reply) for reply in reused[:2]] == [["/amount"], ["/final"]]
    assert act(acme, other, "captures", key, amount=5).status_code == 201
    assert acme.balance(hotel) == 10


@to_either_shard
def test_captures_at_once_take_what_there_is(acme: Merchant, shard_id: int) -> None:
    """
    Of many captures at the same time as many succeed as the hold has money for.
    """
    guest = acme.open_wallet(funds=100, shard_id=0)
    hotel = acme.open_wallet(shard_id=shard_id)
    hold = place(acme, guest, 60, destination=hotel)
    headers = {
        "authorization": acme.http.headers["authorization"],
        "content-type": "application/json",
    }

    async def all_at_once() -> list[httpx2.Response]:
        base_url = str(acme.http.base_url)
        async with httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=60) as client:
            posts = (
                client.post(
                    f"/v1/holds/{hold['id']}/captures",
                    content=b'{"amount":25}',
                    headers={"idempotency-key": f"at-once-{number}"},
                )
                for number in range(8)
            )
            return list(await asyncio.gather(*posts))

    replies = asyncio.run(all_at_once())

    assert sorted(reply.status_code for reply in replies) == [201, 201, *[409] * 6]
    assert acme.balance(hotel) == 50
    assert look(acme, hold)["remaining"] == 10


# --- Whose it is, and lists -----------------------------------------------------------------


def test_a_foreign_hold_is_unknown(acme: Merchant, globex: Merchant) -> None:
    """
    To anybody else, the payee included, there is no such hold; nor is there one of a made-up id.
    """
    guest, hotel = acme.open_wallet(funds=100), globex.open_wallet()
    hold = place(acme, guest, 60, destination=hotel)

    for path in (f"/v1/holds/{hold['id']}", "/v1/holds/nothing", f"/v1/holds/{'0' * 36}"):
        assert code_of(globex.get(path)) == "hold_not_found"
    for what in ("captures", "void"):
        refused = act(globex, hold, what)
        assert (refused.status_code, code_of(refused)) == (409, "hold_unknown")
        assert "transfer" not in refused.json()
    assert code_of(act(globex, {"id": "nothing"}, "void")) == "hold_not_found"
    assert code_of(globex.get(f"/v1/wallets/{guest}/holds")) == "wallet_unknown"
    assert look(acme, hold)["remaining"] == 60


def test_lists_are_complete(acme: Merchant) -> None:
    """
    Pages of any size give each hold of the wallet once, the oldest first; a status chooses.
    """
    guest = acme.open_wallet(funds=100)
    assert acme.get(f"/v1/wallets/{guest}/holds").json()["holds"] == []
    holds = [place(acme, guest, 10 + number)["id"] for number in range(4)]
    act(acme, {"id": holds[1]}, "void")
    ends = ["open", "voided", "open", "open"]

    def listed(limit: int, status: str = "") -> list[tuple[str, str]]:
        found, path = [], f"/v1/wallets/{guest}/holds?limit={limit}{status}"
        while True:
            reply = acme.get(path)
            page = reply.json()
            found += [(hold["id"], hold["status"]) for hold in page["holds"]]
            assert page["has_more"] == (page["next_cursor"] is not None) == ("next" in reply.links)
            if not page["has_more"]:
                return found
            path = reply.links["next"]["url"]

    expected = list(zip(holds, ends, strict=True))
    asyncio.run(until(lambda: listed(100) == expected, "the tables to catch up"))
    assert listed(1) == listed(3) == expected
    assert listed(1, "&status=open") == [hold for hold in expected if hold[1] == "open"]
    assert listed(5, "&status=expired") == []
    first = acme.get(f"/v1/wallets/{guest}/holds?limit=1").json()["holds"][0]
    unlisted = dict.fromkeys(("sequence", "balance", "available", "held", "version"))
    assert first == look(acme, {"id": holds[0]}) | unlisted


# --- Across a crash -------------------------------------------------------------------------


@pytest.fixture
def breakable(own_stack: Stack) -> Iterator[tuple[Stack, RunningGateway]]:
    """
    Give a ledger to break, with a gateway in front.
    """
    with running_gateway(own_stack, **SETTLED) as running:
        yield own_stack, running


@to_either_shard
def test_holds_survive_a_crash(breakable: tuple[Stack, RunningGateway], shard_id: int) -> None:
    """
    A shard that is killed between placing and capturing knows the hold, what was captured, and
    each key; one that ran out meanwhile is over.
    """
    stack, gateway = breakable
    merchant = Merchant(gateway.url, gateway.key("acme"))
    guest = merchant.open_wallet(funds=100, shard_id=0)
    hotel = merchant.open_wallet(shard_id=shard_id)
    hold = place(merchant, guest, 60, destination=hotel)
    brief = place(merchant, guest, 5, expires_in_s=1)
    first = act(merchant, hold, "captures", "first", amount=10)

    stack.crash_shard(0)

    again = act(merchant, hold, "captures", "first", amount=10)
    assert (again.status_code, again.json()) == (201, first.json())
    is_over(merchant, brief)
    assert money(merchant, guest) == (90, 40, 50)
    assert act(merchant, hold, "captures", "rest").status_code == 201
    stack.crash_shard(shard_id)
    assert (merchant.balance(hotel), look(merchant, hold)["status"]) == (60, "captured")
    assert code_of(act(merchant, hold, "void")) == "hold_captured"
    merchant.close()


def test_a_capture_on_its_way(own_stack: Stack) -> None:
    """
    While the destination's shard is down, a capture is pending and the hold says so; the last
    one holds up all others, and comes to its end by itself when the shard is back.
    """
    with running_gateway(own_stack, MILIANO_GATEWAY_SETTLEMENT_WAIT_MS="50") as gateway:
        merchant = Merchant(gateway.url, gateway.key("acme"))
        guest = merchant.open_wallet(funds=100, shard_id=0)
        hotel = merchant.open_wallet(shard_id=1)
        hold = place(merchant, guest, 60, destination=hotel)
        own_stack.shards[1].kill()

        part = act(merchant, hold, "captures", amount=10)
        last = act(merchant, hold, "captures", amount=20, final=True)
        third = act(merchant, hold, "captures", amount=1)

        assert (part.status_code, last.status_code) == (202, 202), (part.text, last.text)
        told = {"status": "pending", "type": "capture", "source": guest, "amount": 10}
        assert told.items() <= part.json().items()
        assert part.headers["location"] == f"/v1/transfers/{part.json()['id']}"
        between = look(merchant, hold)
        assert (between["status"], between["captured"], between["pending"]) == ("open", 0, 30)
        assert money(merchant, guest) == (100, 40, 30)
        assert (third.status_code, code_of(third)) == (409, "hold_capture_pending")
        own_stack.shards[1].start()

        def is_captured() -> bool:
            after = look(merchant, hold)
            return (after["status"], after["pending"]) == ("captured", 0)

        asyncio.run(until(is_captured, "the captures to arrive"))
        assert money(merchant, guest) == (70, 70, 0)
        assert merchant.balance(hotel) == 30
        merchant.close()
