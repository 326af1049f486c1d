"""
`python -m loadtests SCENARIO`: start a ledger, load it, verify it, report.

It ends with 0 only when there was no error and the books balance.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
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
from loadtests.ledger import Ledger, ProcessUse, fresh_ledger
from loadtests.scenarios import SCENARIOS, Maker, Scenario, last_sequence

WARM_UP_S = 1.0
SETUP_CONNECTIONS = 64
DRIVER = "load_driver"

console = Console()


def main() -> int:
    arguments = _parse_arguments()
    scenario = SCENARIOS[arguments.scenario]
    with _ledger(arguments) as ledger:
        report = uvloop.run(_measure(ledger, scenario, arguments.seconds, arguments.wallets))
    _show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if report["books_balanced"] and not report["errors"] else 1


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__)
    parser.add_argument("scenario", choices=sorted(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure")
    parser.add_argument("--wallets", type=int, default=10_000, help="how many wallets to use")
    parser.add_argument("--runtime", choices=("ray", "process"), default="ray")
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
        with fresh_ledger(arguments.runtime) as ledger:
            yield ledger


async def _measure(
    ledger: Ledger, scenario: Scenario, seconds: float, wallet_count: int
) -> dict[str, Any]:
    host, port = ledger.address
    maker = Maker(host, ledger.key, wallet_count)
    console.print(f"opening and funding {wallet_count:,} wallets")
    for requests in (maker.opening(), maker.funding()):
        statuses = await send_all(host, port, requests, connections=SETUP_CONNECTIONS)
        if not set(statuses) <= {200, 201}:  # 200: open since an earlier run.
            raise SystemExit(f"setting up failed: {statuses}")
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
    ledger.wait_until_projected(last_sequence(warm.last_replies))
    journaled_before = ledger.verify()["transfers_posted"]
    console.print(f"measuring for {seconds:g} s")
    use_before = _use(ledger)
    started = time.perf_counter()
    result = await load(seconds)
    ledger.wait_until_projected(last_sequence(result.last_replies))
    projected_s = time.perf_counter() - started
    use_after = _use(ledger)
    console.print("verifying the books")
    verdict = ledger.verify()
    durable_count = verdict["transfers_posted"] - journaled_before
    return {
        "scenario": scenario.name,
        "seconds": round(result.seconds, 3),
        "wallets": wallet_count,
        "connections": scenario.connections,
        "transfers_per_request": scenario.transfers_per_request,
        "accepted_per_s": round(result.posted_count / result.seconds),
        "durable_per_s": round(durable_count / result.seconds),
        "projected_per_s": round(durable_count / projected_s),
        "latency_ms": _percentiles(result),
        "cpu_us_per_transfer": _cpu(use_before, use_after, durable_count),
        "memory_mb": {name: round(use.memory_mb) for name, use in sorted(use_after.items())},
        "errors": result.error_count,
        "statuses": {str(status): count for status, count in sorted(result.statuses.items())},
        "books_balanced": verdict["balanced"],
        "machine": _machine(),
        "commit": _commit(),
    }


def _use(ledger: Ledger) -> dict[str, ProcessUse]:
    """
    Read what the ledger has used, and what this process has: it shares the machine.
    """
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {**ledger.use(), DRIVER: ProcessUse(own.ru_utime + own.ru_stime, own.ru_maxrss / 1024)}


def _percentiles(result: LoadResult) -> dict[str, float]:
    ordered = sorted(result.latencies_s)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1.0)}


def _cpu(
    before: dict[str, ProcessUse], after: dict[str, ProcessUse], transfers: int
) -> dict[str, float]:
    used = {name: use.cpu_s - before.get(name, ProcessUse()).cpu_s for name, use in after.items()}
    shares = {
        name: round(1e6 * cpu_s / max(transfers, 1), 1) for name, cpu_s in sorted(used.items())
    }
    ledger = sum(share for name, share in shares.items() if name != DRIVER)
    return {**shares, "total without driver": round(ledger, 1)}


def _machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    cores = len(list(Path("/sys/devices/system/cpu").glob("cpu[0-9]*")))
    return f"{cores} cores, {model}, Python {platform.python_version()}"


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


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
