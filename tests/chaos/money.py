"""
Judges holds, refunds and linked transfers by what the API shows in the end.

M1: a hold that was placed is there with its amount; `captured` is the sum of its captures that
    were posted, never more than the amount; while it is open it keeps the rest, afterwards nothing.
M2: a hold ended as it was told: by a void, its last capture, or its time, and in one way alone.
M3: what is held of a wallet is what its open holds keep; what is available, the balance without
    it, and never below zero.
M4: the refunds of a movement together are never more than it moved, and are listed as told.
M5: of a linked transfer all legs are in the histories, or none.
M6: nothing is on its way in the end.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx2

from tests.chaos.checker import Histories
from tests.chaos.operations import Asked, Capture, Heard, Linked, Placing, Refund, Voiding
from tests.chaos.stories import SHORT_LIFETIME_S

CALM_S_MAX = 30.0
LOOK_S = 0.2
READS_AT_ONCE = 8

Body = dict[str, Any]
Read = Callable[[str, Iterable[str]], dict[str, Body]]
Kind = TypeVar("Kind", bound=Asked)


@dataclass
class Ends:
    """
    Every wallet by its id, every hold that was placed and what went back, by the ids as told.
    """

    wallets: dict[str, Body] = field(default_factory=dict)
    holds: dict[str, Body] = field(default_factory=dict)
    refunds: dict[str, Body] = field(default_factory=dict)

    def on_their_way(self) -> list[str]:
        """
        Say, one sentence each, what has not come to its end.
        """
        now = datetime.now(UTC)
        moving = [
            f"{name}: of {wallet['balance']} are {wallet['available']} available, "
            f"{wallet['held']} held"
            for name, wallet in self.wallets.items()
            if wallet["available"] + wallet["held"] != wallet["balance"]
        ]
        for hold_id, hold in self.holds.items():
            if hold["pending"]:
                moving.append(f"hold {hold_id}: {hold['pending']} of it is on its way")
            if hold["status"] == "open" and datetime.fromisoformat(hold["expires_at"]) < now:
                moving.append(f"hold {hold_id}: is open behind its time")
        return moving


def read_ends(url: str, key: str, wallets: list[str], asked: list[Asked]) -> Ends:
    """
    Read wallets and holds once nothing is on its way, or as they are after a while, and refunds.
    """
    placed = [str(one.transfer_id) for one in _posted(asked, Placing)]
    headers = {"authorization": f"Bearer {key}"}
    deadline = time.monotonic() + CALM_S_MAX
    with (
        httpx2.Client(base_url=url, headers=headers, timeout=30) as http,
        ThreadPoolExecutor(READS_AT_ONCE) as threads,
    ):

        def read(path: str, ids: Iterable[str]) -> dict[str, Body]:
            wanted = list(ids)
            replies = threads.map(lambda one: http.get(path.format(one)), wanted)
            return {
                one: reply.raise_for_status().json()
                for one, reply in zip(wanted, replies, strict=True)
            }

        ends = _read_now(read, wallets, placed)
        while ends.on_their_way() and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            ends = _read_now(read, wallets, placed)
        originals = {str(one.original.transfer_id) for one in asked if isinstance(one, Refund)}
        ends.refunds = read("/v1/transfers/{}/refunds", originals)
    return ends


def _read_now(read: Read, wallets: list[str], placed: list[str]) -> Ends:
    # Holds first: one that expires in between is then seen as open behind its time, and read again.
    holds = read("/v1/holds/{}", placed)
    return Ends(read("/v1/wallets/{}", wallets), holds)


def _posted(asked: Iterable[Asked], kind: type[Kind]) -> list[Kind]:
    return [one for one in asked if isinstance(one, kind) and one.outcome is Heard.POSTED]


def broken_money(asked: list[Asked], histories: Histories, ends: Ends) -> list[str]:
    """
    Say, one sentence each, what does not hold.
    """
    broken = ends.on_their_way()
    captures, voidings = defaultdict(list), defaultdict(list)
    for capture in _posted(asked, Capture):
        captures[capture.hold.key].append(capture)
    for voiding in _posted(asked, Voiding):
        voidings[voiding.hold.key].append(voiding)
    for hold in _posted(asked, Placing):
        shown = ends.holds[str(hold.transfer_id)]
        broken += _broken_sums(hold, shown, captures[hold.key])
        broken += _broken_end(hold, shown, captures[hold.key], voidings[hold.key])
    broken += _broken_wallets(ends)
    broken += _broken_refunds(_posted(asked, Refund), ends)
    for one in asked:
        if isinstance(one, Linked):
            there = [leg.key in histories.found for leg in one.legs]
            if any(there) and not all(there):
                broken.append(f"{one.key}: of its legs these are in the histories: {there}")
    return broken


def _broken_sums(hold: Placing, shown: Body, captures: list[Capture]) -> list[str]:
    captured = sum(capture.amount for capture in captures)
    kept = hold.amount - captured if shown["status"] == "open" else 0
    told = (shown["amount"], shown["captured"], shown["remaining"], shown["source"])
    if told != (hold.amount, captured, kept, hold.source) or captured > hold.amount:
        return [f"{hold.key}: of {hold.amount}, {captured} was captured, shown as {shown}"]
    return []


def _broken_end(
    hold: Placing, shown: Body, captures: list[Capture], voidings: list[Voiding]
) -> list[str]:
    finals = [capture for capture in captures if capture.is_final]
    ways = {"voided"} if voidings else set()
    if finals or sum(capture.amount for capture in captures) == hold.amount:
        ways.add("captured")
    right = ways or {"open"}
    if hold.lifetime_s == SHORT_LIFETIME_S and not voidings:
        # A last capture that was on its way when the time was over still came to its end.
        right = ways | {"expired"}
    if shown["status"] not in right or len(finals) + len(voidings) > 1:
        told = f"{len(finals)} last captures and {len(voidings)} voids were posted"
        return [f"{hold.key}: {told}, and it is {shown['status']}"]
    return []


def _broken_wallets(ends: Ends) -> list[str]:
    held: Counter[str] = Counter()
    for hold in ends.holds.values():
        held[hold["source"]] += hold["remaining"]
    return [
        f"{name}: its open holds keep {held[name]}, shown as {wallet}"
        for name, wallet in ends.wallets.items()
        if wallet["held"] != held[name]
        or wallet["available"] != wallet["balance"] - held[name]
        or wallet["available"] < 0
    ]


def _broken_refunds(refunds: list[Refund], ends: Ends) -> list[str]:
    of_original = defaultdict(list)
    amounts = {}
    for refund in refunds:
        original_id = str(refund.original.transfer_id)
        of_original[original_id].append(refund)
        amounts[original_id] = refund.original.amount
    broken = []
    for original_id, shown in ends.refunds.items():
        given = of_original[original_id]
        back = sum(refund.amount for refund in given)
        listed = {refund["id"] for refund in shown["refunds"]}
        is_listed = shown["has_more"] or listed == {refund.transfer_id for refund in given}
        is_too_much = given and back > amounts[original_id]
        if shown["refunded"] != back or is_too_much or not is_listed:
            told = f"{original_id}: of {shown['amount']}, {back} went back"
            broken.append(f"{told} by {[refund.transfer_id for refund in given]}: {shown}")
    return broken


def broken_counts(asked: list[Asked], ends: Ends, counted: Body) -> list[str]:
    """
    Say how the auditor's counts differ from what was heard.
    """
    refunded = {refund.original.transfer_id for refund in _posted(asked, Refund)}
    heard = {
        "holds": len(_posted(asked, Placing)),
        "holds_open": sum(hold["status"] == "open" for hold in ends.holds.values()),
        "refunded": len(refunded),
        "linked": len(_posted(asked, Linked)),
    }
    return [
        f"verify counts {counted[name]} {name}, {number} were heard of"
        for name, number in heard.items()
        if counted[name] != number
    ]
