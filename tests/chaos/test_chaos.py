"""
Goal: whatever is killed, and while a shard is split, everything that was acknowledged is there
      once, everything refused is nowhere, and the books balance.
Method: a short run of `python -m tests.chaos` with real Ray, two databases and four shards; and
        the checker itself is shown histories that are wrong.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.chaos.__main__ import run_chaos
from tests.chaos.checker import Histories, broken_promises
from tests.chaos.operations import Contradiction, Heard, Operation

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


def operation(key: str, *heard: Heard, transfer_id: str | None = None) -> Operation:
    made = Operation(key, "a", "b", 5)
    for answer in heard:
        named = transfer_id if answer in (Heard.POSTED, Heard.REJECTED) else None
        made.hear(answer, named)
    return made


def entry(reference: str, version: int, balance: int, **more: Any) -> dict[str, Any]:
    plain = {"direction": "credit", "amount": 5, "transfer_id": f"id of {reference}"}
    return plain | {"reference": reference, "version": version, "balance": balance} | more


FUNDED = Operation("fund", None, "a", 100)
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
