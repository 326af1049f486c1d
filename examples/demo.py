"""
Pays a file of 10,000 salaries, kills the shard with -9 half-way, and checks the books.

    python -m examples.demo

Everything is real: Ray, Postgres, HTTP, a process that gets SIGKILL. It works in the folder
`.miliano-demo`, which it makes anew, and ends with exit code 0 only if every row is accounted for,
`miliano verify` finds the books balanced, and no process of it is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from examples import make_payouts
from loadtests.http_load import post, send_all

ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = ROOT / ".miliano-demo"
FILE = ROOT / "examples" / "payouts.csv"
CURRENCY = "EUR"
FUNDS = 40_000_000_00  # Forty million euros, in cents.
ROWS_PER_SECOND = 4_000  # Slow enough to be interrupted half-way.
CONNECTIONS = 32
FINISH_S_MAX = 120.0
LOOK_S = 0.05

console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)


class DemoFailed(Exception):
    """
    Something that the demo shows did not hold.
    """


def main() -> int:
    shutil.rmtree(DATA_DIR, ignore_errors=True)
    started = time.monotonic()
    step("Starting Postgres, Ray, a shard, the write-behind and the gateway")
    up = subprocess.Popen(
        miliano("up", "--json", "--port", "0"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert up.stdout is not None
        line = up.stdout.readline()
        if not line:
            raise DemoFailed(f"the ledger did not start: run `miliano up --data-dir {DATA_DIR}`")
        running = json.loads(line)
        say(f"ready at {running['url']}")
        run_demo(running)
        processes = descendants(up.pid)
    except DemoFailed as failure:
        console.print(f"[bold red]failed:[/] {failure}")
        return 1
    finally:
        step("Stopping everything")
        up.send_signal(signal.SIGTERM)
        up.wait()
    left = [pid for pid in processes if is_alive(pid)]
    if left:
        console.print(f"[bold red]failed:[/] processes are left: {left}")
        return 1
    say(f"no process is left; {time.monotonic() - started:.0f} s in all")
    return 0


def run_demo(running: dict[str, Any]) -> None:
    key = Path(running["key_file"]).read_text().strip()
    with httpx2.Client(
        base_url=running["url"], headers={"Authorization": f"Bearer {key}"}, timeout=30
    ) as ledger:
        prepare_wallets(ledger, running["url"], key)
        shard_pid = shard_process()
        batch_id = submit(ledger)
        kill_half_way(ledger, batch_id, shard_pid)
        batch = finish(ledger, batch_id)
    report(batch)
    verify()


def prepare_wallets(ledger: httpx2.Client, url: str, key: str) -> None:
    wallets = [make_payouts.SOURCE, *make_payouts.wallets()]
    step(f"Opening {len(wallets):,} wallets")
    opened = time.monotonic()
    asyncio.run(open_wallets(url, key, wallets))
    say(f"{len(wallets) / (time.monotonic() - opened):,.0f} a second")
    for wallet_ids, status in ((make_payouts.CLOSED, "closed"), (make_payouts.LOCKED, "locked")):
        for wallet_id in wallet_ids:
            expect(ledger.patch(f"/v1/wallets/{wallet_id}", json={"status": status}))
    expect(
        ledger.post(
            "/v1/deposits",
            json={"destination": make_payouts.SOURCE, "amount": FUNDS, "currency": CURRENCY},
            headers={"Idempotency-Key": "demo-funds"},
        )
    )
    say(f"{make_payouts.SOURCE} holds {money(FUNDS)}")


async def open_wallets(url: str, key: str, wallets: list[str]) -> None:
    host, _, port = url.removeprefix("http://").rpartition(":")
    requests = [
        post(
            "/v1/wallets",
            host,
            key,
            json.dumps({"wallet_id": wallet_id, "currency": CURRENCY}).encode(),
        )
        for wallet_id in wallets
    ]
    statuses = await send_all(host, int(port), requests, connections=CONNECTIONS)
    if set(statuses) != {201}:
        raise DemoFailed(f"wallets were not opened: {dict(statuses)}")


def submit(ledger: httpx2.Client) -> str:
    step(f"Submitting {FILE.relative_to(ROOT)}")
    reply = expect(
        ledger.post(
            "/v1/payout-batches",
            params={
                "reference": "salaries-demo",
                "source": make_payouts.SOURCE,
                "currency": CURRENCY,
                "on_invalid": "skip_rows",
                "rows_per_second_max": ROWS_PER_SECOND,
            },
            content=FILE.read_bytes(),
            headers={"Content-Type": "text/csv"},
        )
    )
    found = reply["report"]
    say(f"{found['rows']:,} rows, {found['rows_invalid']} of them refused before anything is paid:")
    for error in found["errors"][:4]:
        say(f"  row {error['row_number']}: {error['message']}")
    say(f"  … and {found['errors_total'] - 4} more")
    return str(reply["batch"]["id"])


def kill_half_way(ledger: httpx2.Client, batch_id: str, shard_pid: int) -> None:
    step("Killing the shard's process with SIGKILL half-way")
    epoch = shard_health(ledger)["epoch"]
    while read(ledger, batch_id)["counts"]["paid"] < make_payouts.ROW_COUNT // 2:
        time.sleep(LOOK_S)
    os.kill(shard_pid, signal.SIGKILL)
    killed = time.monotonic()
    counts = read(ledger, batch_id)["counts"]
    say(
        f"killed process {shard_pid} with {counts['paid']:,} rows paid "
        f"and {counts['pending']:,} to go"
    )
    if not counts["pending"]:
        raise DemoFailed("the batch was finished before the shard was killed")
    while time.monotonic() - killed < FINISH_S_MAX:
        after = shard_health(ledger)
        if after["connected"] and after["epoch"] > epoch:
            say(
                f"a new process serves as epoch {after['epoch']} after "
                f"{time.monotonic() - killed:.1f} s; the batch goes on by itself"
            )
            return
        time.sleep(LOOK_S)
    raise DemoFailed("the shard did not come back")


def finish(ledger: httpx2.Client, batch_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + FINISH_S_MAX
    shown_at = 0.0
    while time.monotonic() < deadline:
        batch = read(ledger, batch_id)
        if batch["state"] != "processing":
            return batch
        if time.monotonic() - shown_at > 1:
            shown_at = time.monotonic()
            say(f"{batch['counts']['paid']:,} rows paid")
        time.sleep(LOOK_S)
    raise DemoFailed("the batch did not finish")


def report(batch: dict[str, Any]) -> None:
    step("The report")
    counts, amounts = batch["counts"], batch["amounts"]
    refused = counts["failed"] - counts["invalid"]
    table = Table(show_edge=False)
    table.add_column("rows")
    table.add_column("count", justify="right")
    table.add_column("amount", justify="right")
    table.add_row("paid, each once", f"{counts['paid']:,}", money(amounts["paid"]))
    table.add_row("failed: refused by the check", f"{counts['invalid']:,}", "")
    table.add_row("failed: refused by the ledger", f"{refused:,}", money(amounts["failed"]))
    table.add_row("pending", f"{counts['pending']:,}", money(amounts["pending"]))
    table.add_row("[bold]total", f"[bold]{counts['total']:,}", "")
    console.print(table)
    accounted = counts["paid"] + counts["failed"]
    if counts["pending"] or not accounted == counts["total"] == make_payouts.ROW_COUNT:
        raise DemoFailed("the rows do not add up")
    say(f"{accounted:,} rows accounted for; the batch is {batch['state'].replace('_', ' ')}")


def verify() -> None:
    step("miliano verify: the journal again, in other code")
    done = subprocess.run(miliano("verify"), cwd=ROOT, capture_output=True, text=True, check=False)
    sys.stdout.write(done.stdout)
    if done.returncode != 0:
        raise DemoFailed(f"the books do not balance\n{done.stderr}")


def shard_process() -> int:
    done = subprocess.run(
        miliano("status", "--json"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    return int(json.loads(done.stdout)["shards"][0]["pid"])


def shard_health(ledger: httpx2.Client) -> dict[str, Any]:
    return dict(ledger.get("/v1/health").json()["shards"][0])


def read(ledger: httpx2.Client, batch_id: str) -> dict[str, Any]:
    return expect(ledger.get(f"/v1/payout-batches/{batch_id}"))


def expect(reply: httpx2.Response) -> dict[str, Any]:
    if not reply.is_success:
        raise DemoFailed(f"{reply.request.url}: {reply.status_code} {reply.text}")
    return dict(reply.json())


def miliano(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway.cli", *arguments, "--data-dir", str(DATA_DIR)]


def money(minor: int) -> str:
    return f"{minor // 100:,}.{minor % 100:02d} {CURRENCY}"


def descendants(root: int) -> list[int]:
    """
    List the processes that *root* started, and theirs.
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (entry / "stat").exists():
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def step(text: str) -> None:
    console.print(f"\n[bold]{text}[/]")


def say(text: str) -> None:
    console.print(f"  {text}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
