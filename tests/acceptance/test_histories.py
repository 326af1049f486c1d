"""
Goal: a client reads its own writes, and reads every entry of a wallet once.
Method: a wallet with a known past, read in pages from both ends while it grows.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from processor.core.commands import GiveSlot
from processor.core.slots import slot_of
from processor.flow.frames import Answered, SlotLeft
from tests.support.databases import Databases
from tests.support.merchant import Merchant, code_of, fresh
from tests.support.raw_peer import connected_peer
from tests.support.running_gateway import SETTLED, RunningGateway, running_gateway
from tests.support.stack import Stack, running_stack
from tests.support.waiting import until

AMOUNTS = (5, 3, 8, 1, 4, 2, 7)


def move(merchant: Merchant, source: str, destination: str, amount: int) -> dict[str, Any]:
    """
    Transfer, and return what was told.
    """
    body = {"source": source, "destination": destination, "amount": amount, "currency": "EUR"}
    reply = merchant.post("/v1/transfers", body | {"reference": f"r{amount}"}, key=fresh("key"))
    assert reply.status_code == 201, reply.text
    transfer: dict[str, Any] = reply.json()
    return transfer


def told_in(transfer: dict[str, Any]) -> str:
    """
    Say in a query that a history is wanted that shows what a reply told.
    """
    return f"min_sequence={transfer['sequence']}&shard={transfer['shard']}"


def page_of(merchant: Merchant, wallet: str, query: str = "") -> dict[str, Any]:
    reply = merchant.get(f"/v1/wallets/{wallet}/entries?{query}")
    assert reply.status_code == 200, reply.text
    page: dict[str, Any] = reply.json()
    assert page["has_more"] == (page["next_cursor"] is not None) == ("next" in reply.links)
    return page


@pytest.fixture(scope="module", params=[0, 1], ids=["one shard", "two shards"])
def past(acme: Merchant, request: pytest.FixtureRequest) -> tuple[str, str]:
    """
    Make a wallet that got 100, gave AMOUNTS to another and got 2 back.
    """
    wallet, other = (
        acme.open_wallet(funds=100, shard_id=0),
        acme.open_wallet(shard_id=request.param),
    )
    for amount in AMOUNTS:
        move(acme, wallet, other, amount)
    move(acme, other, wallet, 2)
    return wallet, other


@pytest.mark.parametrize("shard_id", [0, 1])
def test_reads_its_own_writes(acme: Merchant, shard_id: int) -> None:
    """
    With the sequence and shard of a reply, what it told is in the history at once; the shard may
    be left out while the wallet stays where it is.
    """
    wallet, other = acme.open_wallet(funds=100, shard_id=0), acme.open_wallet(shard_id=shard_id)
    for number in range(20):
        transfer = move(acme, wallet, other, 1)
        query = told_in(transfer) if number % 2 else f"min_sequence={transfer['sequence']}"
        page = page_of(acme, wallet, f"{query}&limit=1")
        assert page["entries"][0]["version"] == number + 2
        for name in ("shard", "sequence", "balance", "created_at"):
            assert page["entries"][0][name] == transfer[name]


def test_a_shard_that_is_not_there_is_not_waited_for(acme: Merchant) -> None:
    """
    Its history will never come.
    """
    wallet = acme.open_wallet()
    reply = acme.get(f"/v1/wallets/{wallet}/entries?min_sequence=1&shard=77")
    assert (reply.status_code, code_of(reply)) == (400, "query_invalid")
    assert reply.json()["errors"][0]["parameter"] == "shard"


def test_entries_tell_everything(acme: Merchant, past: tuple[str, str]) -> None:
    """
    Each entry has its direction, the balance after it, the other side, and its transfer.
    """
    wallet, other = past

    entries = page_of(acme, wallet, f"after=0&{acme.seen(wallet)}")["entries"]

    assert [entry["version"] for entry in entries] == list(range(1, 10))
    balance = 0
    for entry in entries:
        balance += entry["amount"] if entry["direction"] == "credit" else -entry["amount"]
        assert entry["balance"] == balance
    assert balance == acme.balance(wallet)
    assert (entries[0]["counterparty"], entries[0]["type"]) == (None, "deposit")
    last = entries[-1]
    assert (last["direction"], last["counterparty"], last["type"]) == ("credit", other, "transfer")
    transfer = acme.get(f"/v1/transfers/{entries[1]['transfer_id']}").json()
    for name in ("version", "balance", "amount", "reference", "sequence", "created_at"):
        assert entries[1][name] == transfer[name]


@pytest.mark.parametrize("limit", [1, 4, 9, 10, 1_000])
@pytest.mark.parametrize("start", ["after=0", ""])
def test_pages_meet(acme: Merchant, past: tuple[str, str], start: str, limit: int) -> None:
    """
    Following the links gives each version once, in order, from either end.
    """
    wallet, _ = past
    versions: list[int] = []
    path = f"/v1/wallets/{wallet}/entries?{start}&limit={limit}&{acme.seen(wallet)}"
    while path:
        reply = acme.get(path)
        entries = reply.json()["entries"]
        assert len(entries) <= limit
        versions += [entry["version"] for entry in entries]
        path = reply.links["next"]["url"] if reply.json()["has_more"] else ""

    assert versions == (list(range(1, 10)) if start else list(range(9, 0, -1)))


# --- Some of the entries ------------------------------------------------------------------


def followed(merchant: Merchant, wallet: str, query: str) -> tuple[list[int], int]:
    """
    Follow the links from a first page: the versions that were shown, in how many pages.
    """
    versions: list[int] = []
    pages = 0
    path = f"/v1/wallets/{wallet}/entries?{query}"
    while path:
        reply = merchant.get(path)
        assert reply.status_code == 200, reply.text
        versions += [entry["version"] for entry in reply.json()["entries"]]
        pages += 1
        path = reply.links["next"]["url"] if reply.json()["has_more"] else ""
    return versions, pages


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize(
    ("wanted", "versions"),
    [
        ("type=deposit", [1]),
        ("type=withdrawal", []),
        ("type=transfer", list(range(2, 10))),
        ("reference=r2", [7, 9]),
        ("reference=r2&type=transfer", [7, 9]),
        ("reference=r2&type=deposit", []),
        ("reference=r", []),
    ],
)
def test_entries_of_one_kind(
    acme: Merchant, past: tuple[str, str], wanted: str, versions: list[int], limit: int
) -> None:
    """
    Pages of what has a type, a reference, or both meet from either end.
    """
    wallet, _ = past
    query = f"{wanted}&limit={limit}&{acme.seen(wallet)}"
    assert followed(acme, wallet, query)[0] == versions[::-1]
    assert followed(acme, wallet, f"after=0&{query}")[0] == versions


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_entries_of_a_time(acme: Merchant, past: tuple[str, str], limit: int) -> None:
    """
    From an instant on, up to before another, in pages that meet; with a type, too.
    """
    wallet, _ = past
    entries = page_of(acme, wallet, f"after=0&{acme.seen(wallet)}")["entries"]
    at = [entry["created_at"] for entry in entries]
    for query, versions in (
        (f"from={at[3]}", range(4, 10)),
        (f"to={at[3]}", range(1, 4)),
        (f"from={at[2]}&to={at[5]}", range(3, 6)),
        (f"from={at[2]}&to={at[5]}&type=transfer", range(3, 6)),
        (f"from={at[5]}&to={at[2]}", []),
        ("from=2100-01-01T00:00:00%2B01:00", []),
        ("to=2100-01-01T00:00:00Z", range(1, 10)),
        ("to=1970-01-01T00:00:00Z", []),
        ("from=1970-01-01T00:00:00Z", range(1, 10)),
    ):
        asked = f"{query}&limit={limit}"
        assert followed(acme, wallet, asked)[0] == list(versions)[::-1], query
        assert followed(acme, wallet, f"after=0&{asked}")[0] == list(versions), query
    (inside,) = page_of(acme, wallet, f"from={at[1]}&after=4&limit=1")["entries"]
    assert inside["version"] == 5


def test_what_is_rare_is_found_far_away(acme: Merchant) -> None:
    """
    A page looks through a bounded number of entries; its cursor goes on where it stopped.
    """
    wallet, other = acme.open_wallet(funds=10_000, shard_id=0), acme.open_wallet(shard_id=0)
    item = {"source": wallet, "destination": other, "amount": 1, "currency": "EUR"}
    items = [
        item | {"idempotency_key": fresh("key"), "reference": "rare" if number == 7 else "often"}
        for number in range(6_000)
    ]
    batch = acme.post("/v1/transfers/batch", {"transfers": items})
    assert batch.json()["posted"] == len(items), batch.text[:500]
    query = f"reference=rare&{acme.seen(wallet)}"
    first = page_of(acme, wallet, query)
    assert first["entries"] == []
    assert first["has_more"]
    assert followed(acme, wallet, query) == ([9], 2)
    assert followed(acme, wallet, f"after=0&{query}") == ([9], 2)
    assert followed(acme, wallet, f"after=0&limit=1&{query}") == ([9], 3)


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("from=yesterday", "from"),
        ("to=2026-01-01", "to"),
        ("to=2026-01-01T00:00:00+01:00", "to"),
        ("type=gift", "type"),
        ("reference=a%00b", "reference"),
        ("after=1&before=2", "before"),
    ],
)
def test_a_wrong_question_is_named(acme: Merchant, query: str, parameter: str) -> None:
    """
    The parameter that is wrong stands in the refusal.
    """
    reply = acme.get(f"/v1/wallets/{acme.open_wallet()}/entries?{query}")
    assert (reply.status_code, code_of(reply)) == (400, "query_invalid")
    assert reply.json()["errors"][0]["parameter"] == parameter


# --- Balances of the past -----------------------------------------------------------------


def balance_of(merchant: Merchant, wallet: str, query: str = "") -> dict[str, Any]:
    reply = merchant.get(f"/v1/wallets/{wallet}/balance?{query}")
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_the_balance_behind_every_entry(acme: Merchant, past: tuple[str, str]) -> None:
    """
    By version or by instant, it is that of the entry; without either, that of the last one.
    """
    wallet, _ = past
    entries = page_of(acme, wallet, f"after=0&{acme.seen(wallet)}")["entries"]
    for entry in entries:
        by_version = balance_of(acme, wallet, f"version={entry['version']}")
        assert by_version | {"as_of": None} == {
            "wallet_id": wallet,
            "currency": "EUR",
            "balance": entry["balance"],
            "version": entry["version"],
            "at": entry["created_at"],
            "as_of": None,
        }
        by_instant = balance_of(acme, wallet, f"at={entry['created_at']}")
        assert by_instant | {"as_of": None} == by_version | {"as_of": None}
        assert by_instant["as_of"] >= entries[-1]["created_at"]
    now = balance_of(acme, wallet, acme.seen(wallet))
    assert (now["version"], now["balance"]) == (9, acme.balance(wallet))
    assert balance_of(acme, wallet, "at=2100-01-01T00:00:00Z")["version"] == 9


def test_before_the_first_entry_there_is_nothing(acme: Merchant, past: tuple[str, str]) -> None:
    """
    Of a wallet with a past, and of a new one.
    """
    wallet, _ = past
    for query in ("version=0", "at=1999-12-31T23:59:59Z"):
        found = balance_of(acme, wallet, query)
        assert (found["balance"], found["version"], found["at"]) == (0, 0, None)
    new = acme.open_wallet()
    for query in ("", "version=0", "at=2100-01-01T00:00:00Z"):
        found = balance_of(acme, new, query)
        assert (found["balance"], found["version"], found["at"]) == (0, 0, None)


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("at=2026-01-01T00:00:00Z&version=1", "version"),
        ("at=noon", "at"),
        ("version=10", "version"),
        ("version=-1", "version"),
    ],
)
def test_a_balance_that_cannot_be_asked_for(
    acme: Merchant, past: tuple[str, str], query: str, parameter: str
) -> None:
    """
    Two moments, no moment, and an entry that nobody made.
    """
    reply = acme.get(f"/v1/wallets/{past[0]}/balance?{query}")
    assert (reply.status_code, code_of(reply)) == (400, "query_invalid")
    assert reply.json()["errors"][0]["parameter"] == parameter


def test_a_balance_that_was_told_is_waited_for(acme: Merchant) -> None:
    """
    An entry of which a reply told is of the past as soon as that came, and is told with its
    sequence or its version alone.
    """
    wallet, other = acme.open_wallet(funds=100, shard_id=0), acme.open_wallet(shard_id=0)
    for _ in range(10):
        moved = move(acme, wallet, other, 1)
        found = balance_of(acme, wallet, f"version={moved['version']}")
        assert (found["balance"], found["at"]) == (moved["balance"], moved["created_at"])
        moved = move(acme, wallet, other, 1)
        found = balance_of(acme, wallet, f"at={moved['created_at']}&{told_in(moved)}")
        assert (found["balance"], found["version"]) == (moved["balance"], moved["version"])


def test_pages_do_not_shift(acme: Merchant) -> None:
    """
    What is added while somebody reads changes no page that is still to come.
    """
    wallet, other = acme.open_wallet(funds=100), acme.open_wallet()
    before = [move(acme, wallet, other, 1) for _ in range(5)][-1]
    first = page_of(acme, wallet, f"limit=3&{told_in(before)}")
    later = [move(acme, wallet, other, 1) for _ in range(5)][-1]

    rest = page_of(acme, wallet, f"before={first['next_cursor']}&{told_in(later)}")
    seen = [entry["version"] for entry in first["entries"] + rest["entries"]]
    assert seen == [6, 5, 4, 3, 2, 1]
    new = page_of(acme, wallet, "after=6")
    assert [entry["version"] for entry in new["entries"]] == [7, 8, 9, 10, 11]


def test_a_new_wallet_has_an_empty_history(acme: Merchant) -> None:
    """
    A wallet that was just opened is known, whether the tables have it or not.
    """
    assert page_of(acme, acme.open_wallet())["entries"] == []


def test_a_foreign_history_is_closed(acme: Merchant, globex: Merchant) -> None:
    """
    Another merchant's wallet is as unknown as none.
    """
    wallet = globex.open_wallet(funds=5)
    for what in ("", "/entries", "/balance", "/statement", "/statement.csv"):
        reply = acme.get(f"/v1/wallets/{wallet}{what}")
        assert (reply.status_code, code_of(reply)) == (404, "wallet_unknown")


def test_a_history_that_does_not_come(own_stack: Stack) -> None:
    """
    Whoever waits for tables that have stopped hears so in time, and how far they are; a
    transfer is found all the same.
    """
    hurried = {"MILIANO_GATEWAY_REQUEST_TIMEOUT_MS": "3000", **SETTLED}
    with running_gateway(own_stack, **hurried) as gateway:
        merchant = Merchant(gateway.url, gateway.key("acme"))
        wallet, other = merchant.open_wallet(funds=10), merchant.open_wallet()
        own_stack.write_behind.kill()
        moved = move(merchant, wallet, other, 1)

        reply = merchant.get(f"/v1/wallets/{wallet}/entries?{told_in(moved)}")
        assert (reply.status_code, code_of(reply)) == (503, "not_projected_yet")
        assert int(reply.headers["retry-after"]) >= 1

        body = {"source": wallet, "destination": other, "amount": 2, "currency": "EUR"}
        made = merchant.post("/v1/transfers", body, key=fresh("key")).json()
        assert merchant.get(f"/v1/transfers/{made['id']}").json() == made
        own_stack.write_behind.start()
        merchant.close()


def give_slot(stack: Stack, wallet: str, *, source: int, target: int) -> None:
    """
    Have a shard give a wallet's slot to another, as an operator does.
    """

    async def give() -> None:
        entry = await stack.shard_entry(source)
        assert entry.endpoint is not None
        async with connected_peer(entry.endpoint, stack.secret.encode()) as operator:
            command = GiveSlot(slot_of(wallet), target)
            operator.send(command, epoch=entry.epoch, shard_id=source)
            reply = await operator.reply()
            assert isinstance(reply, Answered)
            assert isinstance(reply.results[0], SlotLeft), reply

    asyncio.run(give())


def test_a_wallet_that_moves_keeps_its_history(own_stack: Stack) -> None:
    """
    What it did at either shard is one history in pages that meet, and every look shows all that
    a reply has told; its keys stay used, and its transfers are found.
    """
    with running_gateway(own_stack, **SETTLED) as gateway:
        acme = Merchant(gateway.url, gateway.key("acme"))
        wallet, other = acme.open_wallet(funds=100, shard_id=0), acme.open_wallet(shard_id=0)
        body = {"source": wallet, "destination": other, "amount": 1, "currency": "EUR"}
        key = fresh("key")
        before = acme.post("/v1/transfers", body, key=key).json()
        for source in (0, 1, 0):
            give_slot(own_stack, wallet, source=source, target=1 - source)
            for amount in (1, 2):
                moved = move(acme, wallet, other, amount)
                assert moved["shard"] == 1 - source
                rows = page_of(acme, wallet, f"limit=1000&{told_in(moved)}")["entries"]
                assert [row["version"] for row in rows] == list(range(moved["version"], 0, -1))
                rows = page_of(acme, wallet, f"after=1&{acme.seen(wallet)}")["entries"]
                assert [row["version"] for row in rows] == list(range(2, moved["version"] + 1))
                assert rows[-1]["balance"] == moved["balance"] == acme.balance(wallet)
        again = acme.post("/v1/transfers", body, key=key)
        assert (again.json(), again.headers["idempotent-replayed"]) == (
            before | {"shard": again.json()["shard"]},
            "true",
        )
        assert acme.get(f"/v1/transfers/{before['id']}").json() == before
        listed = acme.get("/v1/wallets").json()["wallets"]
        assert [one["wallet_id"] for one in listed] == sorted([wallet, other])
        assert acme.get(f"/v1/wallets/{wallet}").json()["shard"] == 1
        acme.close()


def test_a_history_with_a_gap_is_not_shown(databases: Databases) -> None:
    """
    The tables of a wallet's old shard, in another database, are behind those of its new one:
    nobody is shown what came later without what came before.
    """
    hurried = {"MILIANO_GATEWAY_REQUEST_TIMEOUT_MS": "1500", **SETTLED}
    with (
        databases.migrated() as first,
        databases.migrated() as second,
        running_stack(f"{first} {second}") as stack,
        running_gateway(stack, **hurried) as gateway,
    ):
        acme = Merchant(gateway.url, gateway.key("acme"))
        wallet, other = acme.open_wallet(funds=100, shard_id=0), acme.open_wallet(shard_id=1)
        page_of(acme, wallet, acme.seen(wallet))
        stack.write_behinds[0].kill()
        move(acme, wallet, other, 1)
        give_slot(stack, wallet, source=0, target=1)
        moved = move(acme, wallet, other, 2)
        assert (moved["shard"], moved["version"]) == (1, 3)
        for query in ("after=0&", ""):
            reply = acme.get(f"/v1/wallets/{wallet}/entries?{query}{told_in(moved)}")
            assert (reply.status_code, code_of(reply)) == (503, "not_projected_yet")
        for what in ("balance?version=2", "statement?", "statement.csv?", "entries?type=deposit"):
            reply = acme.get(f"/v1/wallets/{wallet}/{what}&{told_in(moved)}")
            assert (reply.status_code, code_of(reply)) == (503, "not_projected_yet"), what

        stack.write_behinds[0].start()

        def whole() -> list[int] | None:
            reply = acme.get(f"/v1/wallets/{wallet}/entries?{told_in(moved)}")
            if reply.status_code == 503:
                return None
            return [row["version"] for row in reply.json()["entries"]]

        assert asyncio.run(until(whole, "the history")) == [3, 2, 1]
        acme.close()


def test_health_tells_how_far_it_is(gateway: RunningGateway, acme: Merchant) -> None:
    """
    Each shard says where its journal and its tables are, and what a 2xx waited for.
    """
    nobody = Merchant(gateway.url, None)
    wallet = acme.open_wallet(funds=1, shard_id=1)
    sequence = acme.get(f"/v1/wallets/{wallet}").json()["sequence"]
    page_of(acme, wallet, f"min_sequence={sequence}")

    def shard() -> dict[str, Any] | None:
        health = nobody.get("/v1/health").json()
        assert (health["live"], health["ready"], health["durability"]) == (True, True, "local")
        first, second = health["shards"]
        assert (first["shard"], second["shard"]) == (0, 1)
        found: dict[str, Any] = second
        return found if found["projected_sequence"] >= sequence else None

    # What it says may be half a second old.
    seen = asyncio.run(until(shard, "the tables to be seen"))
    assert (seen["state"], seen["connected"], seen["halted_for"]) == ("active", True, None)
    assert seen["lag_records"] == seen["sequence"] - seen["projected_sequence"]
    assert seen["sequence"] >= sequence
    nobody.close()
