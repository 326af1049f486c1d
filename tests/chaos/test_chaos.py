"""
Goal: whatever is killed, and while a shard is split, everything that was acknowledged is there
      once, everything refused is nowhere, and the books balance; holds, refunds and linked
      transfers among it.
Method: a short run of `python -m tests.chaos` with real Ray, two databases and four shards; and
        the checker itself is shown histories that are wrong.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.chaos.__main__ import run_chaos
from tests.chaos.checker import Histories, broken_promises
from tests.chaos.money import Ends, broken_counts, broken_money
from tests.chaos.operations import (
    Asked,
    Capture,
    Contradiction,
    Heard,
    Linked,
    Operation,
    Placing,
    Refund,
    Voiding,
)
from tests.chaos.requests import hear_reply
from tests.chaos.stories import LIFETIME_S

SECONDS = 30.0


@pytest.mark.timeout(300)
def test_promises_hold_under_faults() -> None:
    """
    Shards are killed all the while and one is split: every promise holds.
    """
    report = run_chaos(seconds=SECONDS, seed=1, runtime="ray")
    assert report["clean"], report
    assert report["faults"]["shard killed"] >= 3
    assert report["faults"]["shard split"] == 1
    assert len(report["shards"]) == 5
    assert report["operations"]["posted"] > 100
    assert report["operations"]["rejected"] > 0
    for kind in ("placing", "capture", "voiding", "refund", "linked"):
        assert report["money"][f"{kind} posted"] > 0
        assert report["money"].get(f"{kind} unknown", 0) == 0


def operation(key: str, *heard: Heard, transfer_id: str | None = None) -> Operation:
    made = Operation(key=key, source="a", destination="b", amount=5)
    for answer in heard:
        named = transfer_id if answer in (Heard.POSTED, Heard.REJECTED) else None
        made.hear(answer, named)
    return made


def entry(reference: str, version: int, balance: int, **more: Any) -> dict[str, Any]:
    plain = {"direction": "credit", "amount": 5, "transfer_id": f"id of {reference}"}
    return plain | {"reference": reference, "version": version, "balance": balance} | more


def hold_shown(status: str, amount: int, **more: Any) -> dict[str, Any]:
    plain = {"source": "a", "pending": 0, "expires_at": "2100-01-01T00:00:00Z"}
    return plain | {"status": status, "amount": amount} | more


FUNDED = Operation(key="fund", source=None, destination="a", amount=100)
FUNDED.hear(Heard.POSTED, "id of fund")
OPERATIONS = [
    FUNDED,
    operation("paid", Heard.UNKNOWN, Heard.POSTED, transfer_id="id of paid"),
    operation("refused", Heard.REJECTED, transfer_id="id of refused"),
    operation("maybe", Heard.UNKNOWN),
    operation("never", Heard.NOT_APPLIED),
]
ENTRIES = {
    "a": [
        entry("fund", 1, 100, amount=100),
        entry("paid", 2, 95, direction="debit"),
        entry("maybe", 3, 90, direction="debit"),
    ],
    "b": [entry("paid", 1, 5), entry("maybe", 2, 10)],
}


def broken(entries: dict[str, list[dict[str, Any]]], balances: dict[str, int]) -> list[str]:
    return broken_promises(OPERATIONS, Histories(entries, balances))


def test_checker_accepts_what_is_right() -> None:
    """
    Each posting on both sides once, in an unbroken history.
    """
    assert broken(ENTRIES, {"a": 90, "b": 10}) == []


def without(wallet: str, index: int) -> dict[str, list[dict[str, Any]]]:
    entries = copy.deepcopy(ENTRIES)
    del entries[wallet][index]
    return entries


def with_more(wallet: str, more: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    entries = copy.deepcopy(ENTRIES)
    entries[wallet].append(more)
    return entries


@pytest.mark.parametrize(
    ("entries", "balances", "words"),
    [
        (without("b", 1), {"a": 90, "b": 5}, "maybe: heard"),
        (without("a", 2), {"a": 95, "b": 10}, "maybe: heard"),
        (with_more("b", entry("paid", 3, 15)), {"a": 90, "b": 15}, "paid: heard"),
        (with_more("b", entry("stranger", 3, 15)), {"a": 90, "b": 15}, "nobody asked"),
        (with_more("b", entry("refused", 3, 15)), {"a": 90, "b": 15}, "refused: heard"),
        (with_more("b", entry("never", 3, 15)), {"a": 90, "b": 15}, "never: heard"),
        (with_more("b", entry("x", 4, 15)), {"a": 90, "b": 15}, "version 3 would follow"),
        (with_more("b", entry("x", 3, 16)), {"a": 90, "b": 16}, "15 would follow"),
        (ENTRIES, {"a": 90, "b": 11}, "its history ends at 10"),
        (ENTRIES, {"a": 91, "b": 10}, "100 came from outside, 101"),
    ],
)
def test_checker_finds_what_is_wrong(
    entries: dict[str, list[dict[str, Any]]], balances: dict[str, int], words: str
) -> None:
    """
    Money lost, doubled, one-sided, unasked for or out of order is named.
    """
    assert any(words in found for found in broken(entries, balances)), broken(entries, balances)


def test_answers_that_contradict_are_found() -> None:
    """
    An outcome never changes, and neither does the transfer under a key.
    """
    paid = operation("paid", Heard.POSTED, transfer_id="1")
    paid.hear(Heard.UNKNOWN, None)
    paid.hear(Heard.POSTED, "1")
    with pytest.raises(Contradiction):
        paid.hear(Heard.REJECTED, "1", "insufficient_funds")
    with pytest.raises(Contradiction):
        paid.hear(Heard.POSTED, "2")
    with pytest.raises(Contradiction):
        paid.hear(Heard.PENDING, "1")


PAID = operation("paid", Heard.POSTED, transfer_id="t-paid")
HOLD = Placing(key="hold", source="a", amount=50, lifetime_s=LIFETIME_S)
KEPT = Placing(key="kept", source="a", amount=8, lifetime_s=LIFETIME_S)
CAPTURED = Capture(key="part", source="a", destination="b", amount=20, hold=HOLD, is_final=True)
BACK = Refund(key="back", source="b", destination="a", amount=3, original=PAID)
LEGS = [Operation(key=f"all/{place}", source="a", destination="b", amount=1) for place in range(2)]
LINKED = Linked(key="all", legs=LEGS)
MONEY: list[Asked] = [PAID, HOLD, KEPT, CAPTURED, BACK, LINKED]
for number, one in enumerate(MONEY[1:]):
    one.hear(Heard.POSTED, f"id-{number}")
ENDS = Ends(
    {
        "a": {"balance": 78, "available": 70, "held": 8},
        "b": {"balance": 22, "available": 22, "held": 0},
    },
    {
        "id-0": hold_shown("captured", 50, captured=20, remaining=0),
        "id-1": hold_shown("open", 8, captured=0, remaining=8),
    },
    {"t-paid": {"amount": 5, "refunded": 3, "refunds": [{"id": "id-3"}], "has_more": False}},
)
BOTH_LEGS = Histories({"a": [entry("all/0", 1, 0), entry("all/1", 2, 0)]}, {})
ONE_LEG = Histories({"a": [entry("all/0", 1, 0)]}, {})


def with_end(kind: str, name: str, **more: Any) -> Ends:
    ends = copy.deepcopy(ENDS)
    getattr(ends, kind)[name].update(more)
    return ends


def test_checker_accepts_money_that_is_right() -> None:
    """
    A hold captured in part and ended, one that keeps its amount, a refund, all legs.
    """
    assert broken_money(MONEY, BOTH_LEGS, ENDS) == []
    counted = {"holds": 2, "holds_open": 1, "refunded": 1, "linked": 1}
    assert broken_counts(MONEY, ENDS, counted) == []
    assert broken_counts(MONEY, ENDS, counted | {"linked": 2}) == [
        "verify counts 2 linked, 1 were heard of"
    ]


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (with_end("holds", "id-0", captured=21), "hold: of 50, 20 was captured"),
        (with_end("holds", "id-0", amount=51), "hold: of 50, 20 was captured"),
        (with_end("holds", "id-0", remaining=30), "hold: of 50, 20 was captured"),
        (with_end("holds", "id-0", status="voided"), "and it is voided"),
        (with_end("holds", "id-0", status="open", remaining=30), "and it is open"),
        (with_end("holds", "id-0", pending=1), "1 of it is on its way"),
        (with_end("holds", "id-1", status="expired", remaining=0), "and it is expired"),
        (with_end("holds", "id-1", expires_at="2020-01-01T00:00:00Z"), "behind its time"),
        (with_end("wallets", "a", available=69), "of 78 are 69 available"),
        (with_end("wallets", "a", available=69, held=9), "a: its open holds keep 8"),
        (with_end("wallets", "b", balance=-1, available=-1), "b: its open holds keep 0"),
        (with_end("refunds", "t-paid", refunded=4), "of 5, 3 went back"),
        (with_end("refunds", "t-paid", refunds=[]), "of 5, 3 went back"),
    ],
)
def test_checker_finds_money_that_is_wrong(ends: Ends, words: str) -> None:
    """
    A hold, a wallet or a refund that is shown otherwise than it was told is named.
    """
    found = broken_money(MONEY, BOTH_LEGS, ends)
    assert any(words in one for one in found), found


def test_checker_finds_what_was_too_much_or_half() -> None:
    """
    Refunds above what was paid, a hold captured above its amount or ended twice, and half of what
    was linked are named, even when the API shows them as they were told.
    """
    again = Refund(key="again", source="b", destination="a", amount=3, original=PAID)
    again.hear(Heard.POSTED, "id-9")
    shown = [{"id": "id-3"}, {"id": "id-9"}]
    ends = with_end("refunds", "t-paid", refunded=6, refunds=shown)
    assert any("6 went back" in one for one in broken_money([*MONEY, again], BOTH_LEGS, ends))
    more = Capture(key="more", source="a", destination="b", amount=31, hold=HOLD, is_final=False)
    more.hear(Heard.POSTED, "id-10")
    ends = with_end("holds", "id-0", captured=51)
    assert any("51 was captured" in one for one in broken_money([*MONEY, more], BOTH_LEGS, ends))
    void = Voiding(key="void", hold=HOLD)
    void.hear(Heard.POSTED, "id-0")
    assert any("1 voids" in one for one in broken_money([*MONEY, void], BOTH_LEGS, ENDS))
    assert any("of its legs" in one for one in broken_money(MONEY, ONE_LEG, ENDS))


def test_what_is_heard_of_the_whole_is_heard_of_each_leg() -> None:
    """
    The legs have the outcome of what they are linked in, and ids of their own that never change.
    """
    legs = [Operation(key=f"x/{place}", source="a", destination="b", amount=1) for place in (0, 1)]
    linked = Linked(key="x", legs=legs)
    body = {"id": "whole", "legs": [{"id": "leg-0"}, {"id": "leg-1"}]}
    hear_reply(linked, 202, json.dumps(body).encode())
    refused = {"outcome": "rejected", "code": "insufficient_funds", "linked_transfer": body}
    hear_reply(linked, 409, json.dumps(refused).encode())
    assert [leg.outcome for leg in legs] == [Heard.REJECTED, Heard.REJECTED]
    assert [leg.transfer_id for leg in legs] == ["leg-0", "leg-1"]
    other = body | {"legs": [{"id": "leg-0"}, {"id": "leg-2"}]}
    with pytest.raises(Contradiction):
        hear_reply(linked, 409, json.dumps(refused | {"linked_transfer": other}).encode())
