"""
Goal: linked transfers move money along all legs or along none, on one shard and over two, once
      under a key, and are taken back whole.
Method: a merchant at the session's gateway, in front of two shards; every balance is read after it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.support.merchant import Merchant, code_of, fresh, fresh_on, pointers_of

# Where source, seller and the first wallet are; the shard of the first leg's source decides.
PLACES = [(0, 0, 0), (0, 1, 0), (1, 0, 1), (0, 1, 1)]
each_placing = pytest.mark.parametrize("shards", PLACES)


def leg(source: str, destination: str, amount: int, **fields: Any) -> dict[str, Any]:
    return {
        "source": source,
        "destination": destination,
        "amount": amount,
        "currency": "EUR",
    } | fields


def fee(source: str, amount: int, currency: str = "EUR") -> dict[str, Any]:
    return {"type": "fee", "source": source, "amount": amount, "currency": currency}


def linked(merchant: Merchant, *legs: dict[str, Any], key: str | None = None) -> httpx2.Response:
    return merchant.post("/v1/linked-transfers", {"legs": list(legs)}, key=key or fresh("linked"))


def reversal(
    merchant: Merchant, linked_id: str, fees: str, *, key: str | None = None
) -> httpx2.Response:
    path = f"/v1/linked-transfers/{linked_id}/reversal"
    return merchant.post(path, {"fees": fees}, key=key or fresh("reversal"))


def balances(merchant: Merchant, *wallets: str) -> list[int]:
    return [merchant.balance(wallet) for wallet in wallets]


def availables(merchant: Merchant, *wallets: str) -> list[int]:
    return [merchant.get(f"/v1/wallets/{wallet}").json()["available"] for wallet in wallets]


@each_placing
def test_a_split_payout_moves_all_or_none(acme: Merchant, shards: tuple[int, int, int]) -> None:
    """
    A buyer pays a seller, a courier and a fee in one, and each leg is a transfer that can be looked
    at; the whole is told by its key and by its id.
    """
    buyer = acme.open_wallet("buyer", funds=10_000, shard_id=shards[0])
    seller = acme.open_wallet("seller", shard_id=shards[1])
    courier = acme.open_wallet("courier", shard_id=shards[2])
    legs = [
        leg(buyer, seller, 9_000, reference="order 7", metadata={"item": 1}),
        leg(buyer, courier, 700),
        fee(seller, 450),
    ]
    key = fresh("linked")

    reply = linked(acme, *legs, key=key)

    assert reply.status_code == 201, reply.text
    told = reply.json()
    assert told["status"] == "posted"
    assert [one["type"] for one in told["legs"]] == ["transfer", "transfer", "fee"]
    assert told["legs"][2]["destination"] is None
    assert balances(acme, buyer, seller, courier) == [300, 8_550, 700]
    assert availables(acme, buyer, seller, courier) == [300, 8_550, 700]
    assert reply.headers["location"] == f"/v1/linked-transfers/{told['id']}"

    again = linked(acme, *legs, key=key)
    assert again.status_code == 201
    assert again.headers["idempotent-replayed"] == "true"
    assert [one["id"] for one in again.json()["legs"]] == [one["id"] for one in told["legs"]]
    assert balances(acme, buyer, seller, courier) == [300, 8_550, 700]

    seen = acme.get(f"/v1/linked-transfers/{told['id']}").json()
    assert (seen["status"], seen["legs"][0]["reference"]) == ("posted", "order 7")
    for asked, one in zip(legs, seen["legs"], strict=True):
        transfer = acme.get(f"/v1/transfers/{one['id']}").json()
        assert (transfer["status"], transfer["type"]) == ("posted", one["type"])
        assert (transfer["source"], transfer["amount"]) == (asked["source"], asked["amount"])
        assert transfer["linked_to"] == told["id"]
        assert transfer["balance"] is not None


@each_placing
def test_one_leg_that_fails_fails_all(acme: Merchant, shards: tuple[int, int, int]) -> None:
    """
    The refusal names the leg, says by how much it failed, and nothing has moved or stays set aside
    anywhere; the same key tells it again.
    """
    buyer = acme.open_wallet("buyer", funds=1_000, shard_id=shards[0])
    seller = acme.open_wallet("seller", shard_id=shards[1])
    poor = acme.open_wallet("poor", funds=5, shard_id=shards[2])
    legs = [leg(buyer, seller, 600), leg(poor, seller, 12)]
    key = fresh("linked")

    refused = linked(acme, *legs, key=key)

    assert (refused.status_code, code_of(refused)) == (409, "insufficient_funds")
    assert pointers_of(refused) == ["/legs/1"]
    told = refused.json()["linked_transfer"]
    assert (told["status"], told["leg"], told["short_by"]) == ("rejected", 1, 7)
    assert balances(acme, buyer, seller, poor) == [1_000, 0, 5]
    assert availables(acme, buyer, seller, poor) == [1_000, 0, 5]
    again = linked(acme, *legs, key=key)
    assert (again.status_code, again.json()["linked_transfer"]["id"]) == (409, told["id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert acme.get(f"/v1/linked-transfers/{told['id']}").json()["status"] == "rejected"
    first = acme.get(f"/v1/transfers/{told['legs'][0]['id']}").json()
    assert (first["status"], first["reason"]) == ("rejected", "insufficient_funds")


@pytest.mark.parametrize("shard_id", [0, 1])
def test_a_destination_that_is_unknown_fails_all(acme: Merchant, shard_id: int) -> None:
    """
    Also where it would be at the other shard.
    """
    buyer = acme.open_wallet("buyer", funds=1_000, shard_id=0)
    seller = acme.open_wallet("seller", shard_id=1)
    nobody = fresh_on(shard_id, "nobody")
    refused = linked(acme, leg(buyer, seller, 1), leg(buyer, nobody, 1))
    assert (code_of(refused), pointers_of(refused)) == ("destination_unknown", ["/legs/1"])
    assert balances(acme, buyer, seller) == [1_000, 0]


def test_those_that_race_for_the_same_money_move_whole_or_not(acme: Merchant) -> None:
    """
    From both shards at once: some are refused, for nobody waits; what was paid by the one side has
    come to the other.
    """
    left = acme.open_wallet("left", funds=300, shard_id=0)
    right = acme.open_wallet("right", funds=300, shard_id=1)
    here, there = acme.open_wallet("here", shard_id=0), acme.open_wallet("there", shard_id=1)

    def move(number: int) -> httpx2.Response:
        legs = [leg(left, there, 70), leg(right, here, 70)]
        return linked(acme, *(legs if number % 2 else legs[::-1]))

    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(move, range(16)))
    moved = [reply for reply in replies if reply.status_code == 201]
    refused = {code_of(reply) for reply in replies if reply.status_code != 201}
    assert 1 <= len(moved) <= 4
    assert refused == {"insufficient_funds"}
    paid = 70 * len(moved)
    assert balances(acme, left, right, here, there) == [300 - paid, 300 - paid, paid, paid]
    assert availables(acme, left, right) == [300 - paid, 300 - paid]


def test_a_key_belongs_to_its_legs(acme: Merchant) -> None:
    """
    Another amount under the same key is refused and says where it differs.
    """
    buyer, seller = acme.open_wallet(funds=100), acme.open_wallet()
    key = fresh("linked")
    assert linked(acme, leg(buyer, seller, 1), leg(buyer, seller, 2), key=key).status_code == 201

    other = linked(acme, leg(buyer, seller, 1), leg(buyer, seller, 3), key=key)

    assert (code_of(other), pointers_of(other)) == ("idempotency_key_reused", ["/legs/1/amount"])
    assert acme.balance(seller) == 3


@pytest.mark.parametrize("shards", [(0, 0), (0, 1)])
def test_a_hundred_legs(acme: Merchant, shards: tuple[int, int]) -> None:
    """
    The most there may be: fifty wallets are paid and pay on to one.
    """
    payer = acme.open_wallet("payer", funds=10_000, shard_id=shards[0])
    last = acme.open_wallet("last", shard_id=shards[0])
    between = [acme.open_wallet("between", shard_id=shards[n % 2]) for n in range(5)]
    legs = [leg(payer, between[n % 5], 10) for n in range(50)]
    legs += [leg(between[n % 5], last, 10) for n in range(50)]

    reply = linked(acme, *legs)

    assert reply.status_code == 201, reply.text
    assert balances(acme, payer, last, *between) == [9_500, 500, 0, 0, 0, 0, 0]
    one_more = linked(acme, *legs, leg(payer, last, 1))
    assert (code_of(one_more), pointers_of(one_more)) == ("validation_failed", ["/legs"])


@pytest.mark.parametrize("shards", [(0, 0), (0, 1)])
def test_an_exchange_of_currencies(acme: Merchant, shards: tuple[int, int]) -> None:
    """
    A pair of legs in two currencies happens whole or not at all; the rate stands in its metadata.
    """
    there, here = shards
    euros = acme.open_wallet("customer-eur", funds=10_000, shard_id=here)
    dollars = acme.open_wallet("customer-usd", currency="USD", shard_id=here)
    desk_euros = acme.open_wallet("desk-eur", shard_id=there)
    desk_dollars = acme.open_wallet("desk-usd", currency="USD", funds=5_000, shard_id=there)
    rate = {"rate": "1.0850", "quote": "Q-1"}

    def exchange(amount_eur: int, amount_usd: int) -> httpx2.Response:
        return linked(
            acme,
            leg(euros, desk_euros, amount_eur, metadata=rate),
            leg(desk_dollars, dollars, amount_usd, currency="USD", metadata=rate),
        )

    reply = exchange(4_000, 4_340)
    assert reply.status_code == 201, reply.text
    assert reply.json()["legs"][1]["metadata"] == rate
    wallets = [euros, desk_euros, dollars, desk_dollars]
    assert balances(acme, *wallets) == [6_000, 4_000, 4_340, 660]
    too_much = exchange(1_000, 1_085)
    assert (code_of(too_much), pointers_of(too_much)) == ("insufficient_funds", ["/legs/1"])
    assert balances(acme, *wallets) == [6_000, 4_000, 4_340, 660]


def test_only_own_wallets_pay(acme: Merchant, globex: Merchant) -> None:
    """
    Another merchant's wallet may be paid and never pays; the linked transfer is shown to nobody
    but who asked, and each side sees its own legs.
    """
    own, other = acme.open_wallet(funds=100), globex.open_wallet(funds=100)
    refused = linked(acme, leg(own, other, 10), leg(other, own, 5))
    assert (code_of(refused), pointers_of(refused)) == ("source_unknown", ["/legs/1"])

    paid = linked(acme, leg(own, other, 10), leg(own, other, 20))
    assert paid.status_code == 201
    assert (acme.balance(own), globex.balance(other)) == (70, 130)
    hidden = globex.get(f"/v1/linked-transfers/{paid.json()['id']}")
    assert code_of(hidden) == "linked_transfer_unknown"
    assert code_of(reversal(globex, paid.json()["id"], "kept")) == "linked_transfer_unknown"
    # Who was paid gives back, and nobody takes it.
    assert code_of(reversal(acme, paid.json()["id"], "kept")) == "source_unknown"
    seen = globex.get(f"/v1/transfers/{paid.json()['legs'][1]['id']}").json()
    assert (seen["amount"], seen["balance"]) == (20, 130)


@pytest.mark.parametrize(
    ("legs", "pointer"),
    [
        ([], "/legs"),
        ([leg("a", "b", 1)], "/legs"),
        ([leg("a", "b", 1), leg("a", "b", 0)], "/legs/1/amount"),
        ([leg("a", "b", 1), leg("a", "$b", 1)], "/legs/1/destination"),
        ([leg("a", "b", 1), fee("$a", 1)], "/legs/1/source"),
        (
            [leg("a", "b", 1), {"source": "a", "amount": 1, "currency": "EUR"}],
            "/legs/1/destination",
        ),
        ([leg("a", "b", 1), leg("a", "b", 1, type="fee")], "/legs/1/destination"),
        ([leg("a", "b", 1), leg("a", "b", 1, type="refund")], "/legs/1/type"),
        ([leg("a", "b", 1), leg("a", "b", 1, currency="XXX9")], "/legs/1/currency"),
    ],
)
def test_wrong_legs_are_pointed_at(
    acme: Merchant, legs: list[dict[str, Any]], pointer: str
) -> None:
    """
    Nothing is asked of the ledger, and the field is named.
    """
    refused = linked(acme, *legs)
    assert (code_of(refused), pointers_of(refused)) == ("validation_failed", [pointer])


@each_placing
@pytest.mark.parametrize("fees", ["kept", "returned"])
def test_a_reversal_takes_all_back(acme: Merchant, shards: tuple[int, int, int], fees: str) -> None:
    """
    All that moved goes back, the fee only when it is returned; a second reversal finds nothing left
    to go back, and the same key tells the first.
    """
    buyer = acme.open_wallet("buyer", funds=1_000, shard_id=shards[0])
    seller = acme.open_wallet("seller", funds=50, shard_id=shards[1])
    courier = acme.open_wallet("courier", shard_id=shards[2])
    sale = linked(acme, leg(buyer, seller, 600), leg(buyer, courier, 100), fee(seller, 30)).json()
    key = fresh("reversal")

    back = reversal(acme, sale["id"], fees, key=key)

    assert back.status_code == 201, back.text
    kinds = [(one["source"], one["destination"], one["amount"]) for one in back.json()["legs"]]
    expected = [(courier, buyer, 100), (seller, buyer, 600)]
    assert kinds == ([(None, seller, 30), *expected] if fees == "returned" else expected)
    left = 50 if fees == "returned" else 20
    assert balances(acme, buyer, seller, courier) == [1_000, left, 0]
    again = reversal(acme, sale["id"], fees, key=key)
    assert (again.status_code, again.json()["id"]) == (201, back.json()["id"])
    second = reversal(acme, sale["id"], fees)
    assert code_of(second) == "refund_exceeds_paid"
    assert balances(acme, buyer, seller, courier) == [1_000, left, 0]
    of_itself = reversal(acme, back.json()["id"], fees)
    assert code_of(of_itself) == "not_refundable"


def test_what_was_rejected_is_not_reversed(acme: Merchant) -> None:
    """
    Nothing moved, so nothing goes back; and what nobody knows is unknown.
    """
    own, other = acme.open_wallet(), acme.open_wallet()
    refused = linked(acme, leg(own, other, 10), leg(own, other, 5)).json()["linked_transfer"]
    assert code_of(reversal(acme, refused["id"], "kept")) == "not_refundable"
    assert code_of(reversal(acme, "nothing", "kept")) == "linked_transfer_unknown"
    unknown = acme.get("/v1/linked-transfers/00000000-0000-7000-8000-0000000000ff")
    assert code_of(unknown) == "linked_transfer_unknown"
