"""
`python -m tests.chaos --minutes 5`: real Ray, real Postgres, real HTTP, and faults all the while.

It ends with 0 only when every promise held and `miliano verify` is clean.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.chaos.checker import broken_promises, read_histories
from tests.chaos.clients import Clients
from tests.chaos.faults import Faults, during
from tests.chaos.money import broken_counts, broken_money, read_ends
from tests.chaos.operations import told, told_of_money
from tests.support.ledger import Ledger, running_ledger

SHARDS = 4
DATABASES = 2
WALLETS = 64
CLIENTS = 10
TOLD_EVERY_S = 10.0
TOLD_MAX = 20

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--runtime", choices=("ray", "process"), default="ray")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    chosen = parser.parse_args()
    report = run_chaos(seconds=60 * chosen.minutes, seed=chosen.seed, runtime=chosen.runtime)
    _show(report)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if report["clean"] else 1


def run_chaos(*, seconds: float, seed: int, runtime: str) -> dict[str, Any]:
    """
    Break a fresh ledger under load for so long, and report what the checker and the auditor say.
    """
    environment = {"MILIANO_POSTGRES_EMBEDDED_DATABASES": str(DATABASES)}
    with running_ledger(runtime, shard_count=SHARDS, environment=environment) as ledger:
        _tell(f"{SHARDS} shards, {DATABASES} databases, seed {seed}")
        return asyncio.run(_run(ledger, seconds, seed))


async def _run(ledger: Ledger, seconds: float, seed: int) -> dict[str, Any]:
    wallets = [f"chaos-{number}" for number in range(WALLETS)]
    clients = Clients(ledger.url, ledger.key, wallets, seed=seed)
    faults = Faults(ledger, seed=seed + 1, tell=_tell)
    begun = time.monotonic()
    try:
        await clients.open_wallets()
        clients.start(CLIENTS)
        split = _after(seconds / 4, faults.split(0))
        await during(_load(clients, seconds, split), faults.kill_for_ever())
        _tell("no more faults: every unknown is asked for until it is known")
        await clients.stop()
        await asyncio.to_thread(ledger.shard)
        await clients.settle()
    finally:
        await clients.close()
    lasted_s = time.monotonic() - begun
    return await asyncio.to_thread(_judged, ledger, clients, wallets, lasted_s) | {
        "seed": seed,
        "faults": dict(faults.counts),
    }


def _judged(
    ledger: Ledger, clients: Clients, wallets: list[str], lasted_s: float
) -> dict[str, Any]:
    """
    Compare what was heard with what the API and the auditor say in the end.
    """
    asked = clients.asked
    _tell("reading every hold and every refund, once nothing is on its way")
    ends = read_ends(ledger.url, ledger.key, wallets, asked)
    _tell("reading every history, and verifying the books")
    histories = read_histories(ledger.url, ledger.key, wallets)
    broken = broken_promises(asked, histories) + broken_money(asked, histories, ends)
    for words in broken[:TOLD_MAX]:
        _tell(f"BROKEN: {words}")  # Now: when the books differ too, this ends here.
    verdict = ledger.json("verify")
    broken += broken_counts(asked, ends, verdict["counted"])
    shards = ledger.json("shards", "list")
    return {
        "seconds": round(lasted_s),
        "requests": clients.request_count,
        "reads": clients.read_count,
        "operations": dict(told(asked)),
        "money": dict(told_of_money(asked)),
        "reasons": dict(Counter(one.reason for one in asked if one.reason)),
        "answers": dict(Counter(heard for one in asked for heard in one.heard)),
        "counted": verdict["counted"],
        "shards": {str(shard["shard"]): shard["slots"] for shard in shards["shards"]},
        "broken_promises": broken[:TOLD_MAX],
        "books_balanced": verdict["balanced"],
        "differences": verdict["differences"],
        "clean": not broken and verdict["balanced"] and not verdict.get("pending"),
    }


async def _load(clients: Clients, seconds: float, split: asyncio.Task[None]) -> None:
    """
    Watch the clients for so long, and for as long as the split takes.
    """
    deadline = time.monotonic() + seconds
    told_at = time.monotonic()
    while time.monotonic() < deadline or not split.done():
        await asyncio.sleep(0.2)
        clients.check()
        if split.done():
            split.result()
        if time.monotonic() > told_at + TOLD_EVERY_S:
            told_at = time.monotonic()
            counts = ", ".join(f"{n:,} {w}" for w, n in told(clients.asked).most_common())
            _tell(f"{max(0, deadline - told_at):.0f} s left: {counts}")


def _after(seconds: float, work: Any) -> asyncio.Task[None]:
    async def later() -> None:
        await asyncio.sleep(seconds)
        await work

    return asyncio.create_task(later())


def _tell(words: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/]  {escape(words)}")


def _show(report: dict[str, Any]) -> None:
    table = Table(title=f"chaos: {report['seconds']} s, seed {report['seed']}")
    table.add_column("what")
    table.add_column("count", justify="right")
    for part in ("operations", "money", "reasons", "answers", "faults"):
        for name, count in sorted(report[part].items()):
            table.add_row(f"{part}: {name}", f"{count:,}")
    table.add_row("requests", f"{report['requests']:,}")
    table.add_row("books", "balanced" if report["books_balanced"] else "NOT BALANCED")
    table.add_row("promises", "kept" if not report["broken_promises"] else "BROKEN")
    console.print(table)
    for words in [*report["broken_promises"], *report["differences"]]:
        console.print(words, markup=False)


if __name__ == "__main__":
    sys.exit(main())
