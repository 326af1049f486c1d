"""
`python -m loadtests SCENARIO`: start a ledger, load it, verify it, report.

It ends with 0 only when there was no error and the books balance.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from loadtests.http_load import LoadResult, offer_load, send_all
from loadtests.ledger import Ledger, fresh_ledger
from loadtests.report import (
    commit,
    cpu_between,
    cpu_us_a_transfer,
    machine,
    percentiles_ms,
    use_of,
)
from loadtests.scale import measure_scale, show_scale
from loadtests.scenarios import SCENARIOS, Maker, Scenario, last_sequences

WARM_UP_S = 1.0
SETUP_CONNECTIONS = 64
SCALE = "scale"
SHARDS_OF_SCALE = 2

console = Console()


def main() -> int:
    arguments = _parse_arguments()
    with _ledger(arguments) as ledger:
        report = uvloop.run(_run(ledger, arguments))
    if arguments.scenario == SCALE:
        show_scale(report, console)
    else:
        _show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if report["books_balanced"] and not report["errors"] else 1


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__)
    parser.add_argument("scenario", choices=sorted([*SCENARIOS, SCALE]))
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure")
    parser.add_argument("--wallets", type=int, default=10_000, help="how many wallets to use")
    parser.add_argument("--runtime", choices=("ray", "process"), default="ray")
    parser.add_argument("--shards", type=int, help="of a fresh ledger (default: as miliano up)")
    parser.add_argument("--url", help="load this ledger (default: start a fresh one)")
    parser.add_argument("--key", default=os.environ.get("MILIANO_KEY", ""), help="its API key")
    parser.add_argument("--dsn", help="its database, for verify (default: as `miliano verify`)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    return parser.parse_args()


@contextmanager
def _ledger(arguments: argparse.Namespace) -> Iterator[Ledger]:
    if arguments.url:
        options = ["--dsn", arguments.dsn] if arguments.dsn else []
        yield Ledger(arguments.url, arguments.key, options)
    else:
        console.print(f"starting a ledger for [bold]{arguments.scenario}[/bold]")
        shards = arguments.shards or (SHARDS_OF_SCALE if arguments.scenario == SCALE else 0)
        with fresh_ledger(arguments.runtime, shards) as ledger:
            yield ledger


async def _run(ledger: Ledger, arguments: argparse.Namespace) -> dict[str, Any]:
    host, port = ledger.address
    maker = Maker(host, ledger.key, arguments.wallets)
    console.print(f"opening and funding {arguments.wallets:,} wallets")
    for requests in (maker.opening(), maker.funding()):
        statuses = await send_all(host, port, requests, connections=SETUP_CONNECTIONS)
        if not set(statuses) <= {200, 201}:  # 200: open since an earlier run.
            raise SystemExit(f"setting up failed: {statuses}")
    if arguments.scenario == SCALE:
        return await measure_scale(ledger, maker, arguments.seconds, console)
    return await _measure(ledger, maker, SCENARIOS[arguments.scenario], arguments.seconds)


async def _measure(
    ledger: Ledger, maker: Maker, scenario: Scenario, seconds: float
) -> dict[str, Any]:
    host, port = ledger.address
    make_request = scenario.make(maker)

    async def load(duration_s: float) -> LoadResult:
        return await offer_load(
            host,
            port,
            make_request=make_request,
            count_posted=scenario.count_posted,
            connections=scenario.connections,
            seconds=duration_s,
        )

    warm = await load(WARM_UP_S)
    ledger.wait_until_projected(last_sequences(warm.last_replies))
    journaled_before = ledger.verify()["transfers_posted"]
    console.print(f"measuring for {seconds:g} s")
    use_before = use_of(ledger)
    started = time.perf_counter()
    result = await load(seconds)
    ledger.wait_until_projected(last_sequences(result.last_replies))
    projected_s = time.perf_counter() - started
    use_after = use_of(ledger)
    console.print("verifying the books")
    verdict = ledger.verify()
    durable_count = verdict["transfers_posted"] - journaled_before
    return {
        "scenario": scenario.name,
        "seconds": round(result.seconds, 3),
        "wallets": len(maker.wallets),
        "connections": scenario.connections,
        "transfers_per_request": scenario.transfers_per_request,
        "accepted_per_s": round(result.posted_count / result.seconds),
        "durable_per_s": round(durable_count / result.seconds),
        "projected_per_s": round(durable_count / projected_s),
        "latency_ms": percentiles_ms(result),
        "cpu_us_per_transfer": cpu_us_a_transfer(cpu_between(use_before, use_after), durable_count),
        "memory_mb": {name: round(use.memory_mb) for name, use in sorted(use_after.items())},
        "errors": result.error_count,
        "statuses": {str(status): count for status, count in sorted(result.statuses.items())},
        "books_balanced": verdict["balanced"],
        "machine": machine(),
        "commit": commit(),
    }


def _show(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['scenario']}: {report['machine']}, commit {report['commit']}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name in ("accepted_per_s", "durable_per_s", "projected_per_s"):
        table.add_row(name.replace("_per_s", "/s"), f"{report[name]:,}")
    for name, value in report["latency_ms"].items():
        table.add_row(f"time of service {name}", f"{value:,.2f} ms")
    for name, value in report["cpu_us_per_transfer"].items():
        table.add_row(f"CPU a transfer, {name}", f"{value:,.1f} µs")
    for name, value in report["memory_mb"].items():
        table.add_row(f"memory, {name}", f"{value:,} MB")
    table.add_row("errors", f"{report['errors']:,}")
    table.add_row("books", "balanced" if report["books_balanced"] else "NOT BALANCED")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
