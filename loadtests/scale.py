"""
What a transfer between two shards costs, beside one within a shard, in one run.

The two kinds take turns on one ledger, so that a noisy machine troubles both alike. Each turn's
CPU is counted until every journal rests and the tables have it all.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from loadtests.http_load import LoadResult, MakeRequest, offer_load
from loadtests.ledger import Ledger
from loadtests.report import (
    LEDGER,
    commit,
    cpu_between,
    cpu_us_a_transfer,
    machine,
    percentiles_ms,
    use_of,
)
from loadtests.scenarios import Maker, one_posted

CONNECTIONS = 64
TURNS = 3
WARM_UP_S = 1.0
KINDS = ("local", "across")


class Turns(msgspec.Struct):
    """
    What all turns of one kind have taken together.
    """

    result: LoadResult = msgspec.field(default_factory=LoadResult)
    cpu_s: Counter[str] = msgspec.field(default_factory=Counter)
    projected_s: float = 0.0

    def add(self, result: LoadResult, cpu_s: dict[str, float], projected_s: float) -> None:
        self.result.statuses.update(result.statuses)
        self.result.posted_count += result.posted_count
        self.result.latencies_s = self.result.latencies_s + result.latencies_s
        self.result.seconds += result.seconds
        self.cpu_s.update(cpu_s)
        self.projected_s += projected_s


async def measure_scale(
    ledger: Ledger, maker: Maker, seconds: float, console: Console
) -> dict[str, Any]:
    """
    Load *ledger* for *seconds* with each kind and report both and their ratio.
    """
    slots = ledger.shard_slots()
    makers = {kind: maker.pairs_of(slots, across=kind == "across") for kind in KINDS}
    for kind in KINDS:
        await _load(ledger, makers[kind], WARM_UP_S)
    ledger.wait_until_at_rest()
    before = ledger.verify()["transfers_posted"]
    turns = {kind: Turns() for kind in KINDS}
    for turn in range(TURNS):
        for kind in KINDS:
            console.print(f"turn {turn + 1} of {TURNS}: {kind}")
            await _turn(ledger, makers[kind], seconds / TURNS, turns[kind])
    console.print("verifying the books")
    verdict = ledger.verify()
    cpu = {
        kind: cpu_us_a_transfer(dict(turns[kind].cpu_s), turns[kind].result.posted_count)
        for kind in KINDS
    }
    offered = sum(kind.result.posted_count for kind in turns.values())
    return {
        "scenario": "scale",
        "shards": len(slots),
        "seconds": seconds,
        "wallets": len(maker.wallets),
        "connections": CONNECTIONS,
        "cross_shard_cost_ratio": round(cpu["across"][LEDGER] / cpu["local"][LEDGER], 2),
        "cpu_us_per_transfer": {kind: cpu[kind][LEDGER] for kind in KINDS},
        "cpu_us_by_process": cpu,
        "accepted_per_s": {kind: _rate(turns[kind], turns[kind].result.seconds) for kind in KINDS},
        "projected_per_s": {kind: _rate(turns[kind], turns[kind].projected_s) for kind in KINDS},
        "latency_ms": {kind: percentiles_ms(turns[kind].result) for kind in KINDS},
        "pending_replies": turns["across"].result.statuses[202],
        "all_posted": verdict["transfers_posted"] - before == offered,
        "errors": sum(kind.result.error_count for kind in turns.values()),
        "books_balanced": verdict["balanced"],
        "machine": machine(),
        "commit": commit(),
    }


async def _turn(ledger: Ledger, make_request: MakeRequest, seconds: float, turns: Turns) -> None:
    use_before = use_of(ledger)
    started = time.perf_counter()
    result = await _load(ledger, make_request, seconds)
    ledger.wait_until_at_rest()
    projected_s = time.perf_counter() - started
    turns.add(result, cpu_between(use_before, use_of(ledger)), projected_s)


async def _load(ledger: Ledger, make_request: MakeRequest, seconds: float) -> LoadResult:
    host, port = ledger.address
    return await offer_load(
        host,
        port,
        make_request=make_request,
        count_posted=one_posted,  # Also of pending ones: in the end each is posted.
        connections=CONNECTIONS,
        seconds=seconds,
    )


def _rate(turns: Turns, seconds: float) -> int:
    return round(turns.result.posted_count / seconds)


def show_scale(report: dict[str, Any], console: Console) -> None:
    """
    Print the report as a table, one column a kind.
    """
    title = f"scale: {report['shards']} shards, {report['machine']}, commit {report['commit']}"
    table = Table(title=title)
    table.add_column("measure")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    for name in ("accepted_per_s", "projected_per_s"):
        rates = [f"{report[name][kind]:,}" for kind in KINDS]
        table.add_row(name.replace("_per_s", "/s"), *rates)
    for name in ("p50", "p99"):
        times = [f"{report['latency_ms'][kind][name]:,.2f} ms" for kind in KINDS]
        table.add_row(f"time of service {name}", *times)
    for name in sorted(report["cpu_us_by_process"]["across"]):
        shares = [report["cpu_us_by_process"][kind].get(name, 0.0) for kind in KINDS]
        table.add_row(f"CPU a transfer, {name}", *(f"{share:,.1f} µs" for share in shares))
    table.add_row("cost ratio", "1", f"{report['cross_shard_cost_ratio']:.2f}")
    table.add_row("errors", "", f"{report['errors']:,}")
    table.add_row("books", "", "balanced" if report["books_balanced"] else "NOT BALANCED")
    console.print(table)
