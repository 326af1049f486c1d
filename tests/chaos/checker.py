"""
Compares what clients heard with every wallet's whole history, as the API shows it in the end.

H1: what was posted is in the history of each of its wallets once; what was rejected, or surely not
    applied, nowhere; what is unknown, once or nowhere, and on both sides alike.
H2: nothing is in a history that nobody asked for.
H3: versions are dense, and each balance is the one before it and the amount.
H4: a wallet's balance is that of its last entry, and all together are what came from outside less
    what went there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx2

from tests.chaos.operations import Asked, Heard, Operation, movements

PAGE = 1_000


class Histories:
    """
    Every entry of every wallet.
    """

    def __init__(self, entries: dict[str, list[dict[str, Any]]], balances: dict[str, int]) -> None:
        self.entries = entries
        self.balances = balances
        self.found: dict[str, Counter[tuple[str, str, int, str]]] = {}
        for wallet, history in entries.items():
            for entry in history:
                side = (wallet, entry["direction"], entry["amount"], entry["transfer_id"])
                self.found.setdefault(entry["reference"], Counter())[side] += 1


def read_histories(url: str, key: str, wallets: list[str]) -> Histories:
    """
    Read every wallet and page through its history.
    """
    with httpx2.Client(
        base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30
    ) as http:
        balances, entries = {}, {}
        for wallet in wallets:
            body = http.get(f"/v1/wallets/{wallet}").raise_for_status().json()
            balances[wallet] = body["balance"]
            wanted = {"min_sequence": body["sequence"], "shard": body["shard"]}
            entries[wallet] = _entries(http, wallet, wanted)
    return Histories(entries, balances)


def _entries(http: httpx2.Client, wallet: str, wanted: dict[str, int]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = 0
    while True:
        query = wanted | {"after": after, "limit": PAGE}
        page = http.get(f"/v1/wallets/{wallet}/entries", params=query).raise_for_status().json()
        found += page["entries"]
        if not page["has_more"]:
            return found
        after = page["next_cursor"]


def broken_promises(asked: list[Asked], histories: Histories) -> list[str]:
    """
    Say, one sentence each, what does not hold.
    """
    operations = movements(asked)
    broken = [words for wallet in histories.entries for words in _broken_wallet(wallet, histories)]
    known = {operation.key for operation in operations}
    strangers = sorted(map(str, histories.found.keys() - known))
    broken += [f"{key}: nobody asked for this" for key in strangers]
    for operation in operations:
        broken += _broken_operation(operation, histories)
    outside = sum(
        operation.amount * (1 if operation.source is None else -1)
        for operation in operations
        if (operation.source is None or operation.destination is None)
        and operation.key in histories.found
    )
    inside = sum(histories.balances.values())
    if inside != outside:
        broken.append(f"{outside} came from outside, {inside} is in the wallets")
    return broken


def _broken_wallet(wallet: str, histories: Histories) -> list[str]:
    balance = 0
    for version, entry in enumerate(histories.entries[wallet], 1):
        balance += entry["amount"] if entry["direction"] == "credit" else -entry["amount"]
        if entry["version"] != version:
            return [f"{wallet}: version {version} would follow, {entry['version']} is there"]
        if entry["balance"] != balance:
            return [f"{wallet}, version {version}: {balance} would follow: {entry['balance']}"]
    if histories.balances[wallet] != balance:
        return [f"{wallet}: its history ends at {balance}: {histories.balances[wallet]}"]
    return []


def _broken_operation(operation: Operation, histories: Histories) -> list[str]:
    found = histories.found.get(operation.key, Counter())
    transfer_ids = {transfer_id for _, _, _, transfer_id in found}
    both_sides = Counter(
        (wallet, direction, operation.amount, transfer_id)
        for transfer_id in transfer_ids
        for wallet, direction in (
            (operation.source, "debit"),
            (operation.destination, "credit"),
        )
        if wallet is not None
    )
    words = f"{operation.key}: heard {[str(heard) for heard in operation.heard]}, "
    if len(transfer_ids) > 1 or found != both_sides:
        return [f"{words}in the histories as {dict(found)}"]
    if operation.outcome is Heard.POSTED and transfer_ids != {operation.transfer_id}:
        return [f"{words}posted as {operation.transfer_id}, in the histories as {transfer_ids}"]
    if found and operation.outcome is Heard.REJECTED:
        return [f"{words}and yet it is in the histories"]
    if found and operation.outcome is None and not operation.may_be_applied:
        return [f"{words}and yet it was applied"]
    return []
