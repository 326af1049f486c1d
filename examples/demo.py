"""
Pays 10,000 salaries, kills the payer's shard half-way, and proves that nothing was lost or paid
twice.

Everything is done as a user does it: the command line and HTTP. It starts a ledger of its own in
`.miliano-demo`, with Ray, the embedded Postgres and two shards, so that half of the money goes from
one shard to another, and leaves no process behind. It ends with 0
only if every number came out as it had to.

    make demo
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
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from make_payouts import CLOSED, LOCKED, SOURCE
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
PAYOUTS = HERE / "payouts.csv"
DATA_DIR = HERE.parent / ".miliano-demo"
MILIANO = Path(sys.executable).with_name("miliano")

EMPLOYEES = [f"emp-{number:06d}" for number in range(1, 9_946)]
ROWS, PAID, INVALID, REFUSED = 10_000, 9_938, 47, 15  # What the file holds; see make_payouts.
REFERENCE = "salaries-2026-05"
ROWS_PER_SECOND = 4_000  # So slow that half-way can be seen.
CONNECTIONS = 64
SHARD_COUNT = 2
WAIT_S_MAX = 60.0

console = Console(highlight=False, soft_wrap=True)
started = time.monotonic()


class Wrong(Exception):
    """
    Something did not come out as it had to.
    """


def main() -> int:
    console.rule("[bold]Miliano: 10,000 salaries and a crash")
    shutil.rmtree(DATA_DIR, ignore_errors=True)
    try:
        with running_ledger() as ledger:
            tell_story(ledger)
        left = processes_left()
        require(not left, f"processes are left: {left}")
        tell("the ledger is stopped; no process of it is left")
    except Wrong as wrong:
        console.print(f"[bold red]FAILED[/] {wrong}; logs are in {DATA_DIR / 'log'}")
        return 1
    console.rule(f"[bold green]done in {time.monotonic() - started:.0f} s")
    return 0


def tell_story(ledger: Ledger) -> None:
    tell(f"opening the company's wallet and {len(EMPLOYEES):,} employees' wallets")
    begun = time.monotonic()
    ledger.open_wallets([SOURCE, *EMPLOYEES])
    tell(f"  {(len(EMPLOYEES) + 1) / (time.monotonic() - begun):,.0f} wallets/s")
    for wallets, status in ((CLOSED, "closed"), (LOCKED, "locked")):
        for wallet in wallets:
            ledger.call("PATCH", f"/v1/wallets/{wallet}", {"status": status})

    report = ledger.submit(validate_only=True)["report"]
    amount = report["amount"]
    tell(f"{PAYOUTS.name} checked: {report['rows_valid']:,} rows can be paid, together")
    tell(f"  {euros(amount)}; {report['rows_invalid']} cannot, among them:")
    for error in report["errors"][:3]:
        tell(f"  row {error['row_number']}: {error['message']}")
    deposit = {"destination": SOURCE, "amount": amount, "currency": "EUR"}
    funding = ledger.call("POST", "/v1/deposits", deposit, key="demo-funding")

    shard = ledger.shard(funding["shard"])
    batch_id = ledger.submit()["batch"]["id"]
    tell(f"batch submitted, at most {ROWS_PER_SECOND:,} rows/s")
    crash_half_way(ledger, batch_id, shard)
    batch = ledger.wait_until(batch_id, lambda found: found["state"] != "processing")
    show_batch(batch)
    check_batch(ledger, batch, amount)

    verdict = ledger.miliano("verify")
    require(verdict["balanced"], f"the books differ: {verdict['differences']}")
    console.print("           [bold green]books balanced[/]", end="")
    console.print(f" over {verdict['records']:,} journal records, worked out again from the first")


def crash_half_way(ledger: Ledger, batch_id: str, shard: dict[str, Any]) -> None:
    """
    Kill the process of the payer's shard, and measure how long its wallet cannot be reached.
    """
    batch = ledger.wait_until(batch_id, lambda found: done_count(found) >= ROWS // 2)
    os.kill(shard["pid"], signal.SIGKILL)
    killed_at = time.monotonic()
    victim = f"the payer's shard {shard['shard']} (pid {shard['pid']})"
    tell(f"[bold red]kill -9[/] of {victim} after {done_count(batch):,} rows")
    ledger.wait_until_reached(SOURCE)
    outage_s = time.monotonic() - killed_at
    batch = ledger.call("GET", f"/v1/payout-batches/{batch_id}")
    now = ledger.wait_until_epoch_after(shard["epoch"], shard["shard"])
    tell(f"[bold green]recovered[/] by itself, {outage_s:.1f} s without service:")
    tell(f"  epoch {shard['epoch']} -> {now['epoch']}, pid {shard['pid']} -> {now['pid']}")
    tell(f"  the batch goes on by itself from row {done_count(batch):,}")


def check_batch(ledger: Ledger, batch: dict[str, Any], funded: int) -> None:
    """
    Compare what happened with what the file holds, and submit it once more.
    """
    counts, amounts = batch["counts"], batch["amounts"]
    found = (counts["total"], counts["paid"], counts["invalid"], refused_count(counts))
    require(found == (ROWS, PAID, INVALID, REFUSED), f"rows: {counts}")
    balance = ledger.call("GET", f"/v1/wallets/{SOURCE}")["balance"]
    require(balance == funded - amounts["paid"], f"{SOURCE} has {euros(balance)}")
    again = ledger.submit()["batch"]
    require(again["id"] == batch["id"] and again["amounts"] == amounts, "a second batch was made")
    tell("the same file submitted again: the same batch, nothing is paid twice")


def show_batch(batch: dict[str, Any]) -> None:
    counts, amounts = batch["counts"], batch["amounts"]
    table = Table(box=SIMPLE_HEAD, show_edge=False, title=f"batch {batch['reference']}")
    table.add_column("")
    table.add_column("rows", justify="right")
    table.add_column("amount", justify="right")
    for name, count, amount in (
        ("paid", counts["paid"], euros(amounts["paid"])),
        ("failed in the check of the file", counts["invalid"], ""),
        ("failed in the ledger", refused_count(counts), euros(amounts["failed"])),
        ("total", counts["total"], euros(amounts["total"])),
    ):
        table.add_row(name, f"{count:,}", amount)
    console.print(table)
    begun, finished = (datetime.fromisoformat(batch[at]) for at in ("created_at", "finished_at"))
    seconds = (finished - begun).total_seconds()
    tell(f"{counts['total'] / seconds:,.0f} rows/s over {seconds:.1f} s, the crash included")


def done_count(batch: dict[str, Any]) -> int:
    counts = batch["counts"]
    return int(counts["paid"] + counts["failed"])


def refused_count(counts: dict[str, Any]) -> int:
    return int(counts["failed"] - counts["invalid"])


def euros(cents: int) -> str:
    return f"{cents // 100:,}.{cents % 100:02d} EUR"


def tell(text: str) -> None:
    """
    Print a line with the time since the start.
    """
    console.print(f"[dim]{time.monotonic() - started:6.1f} s[/]  {text}")


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


class Ledger:
    """
    The demo's ledger, over HTTP and the command line.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key

    def miliano(self, *arguments: str) -> Any:
        """
        Run a command and return its JSON document.
        """
        ran = subprocess.run(
            [MILIANO, *arguments, "--json", "--data-dir", DATA_DIR],
            capture_output=True,
            text=True,
            check=False,
        )
        require(bool(ran.stdout), f"miliano {' '.join(arguments)}: {ran.stderr}")
        return json.loads(ran.stdout)

    def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        key: str | None = None,
    ) -> Any:
        """
        Make one request and return the body of its reply.
        """
        content = None if body is None else json.dumps(body).encode()
        return self._send(method, path, content, "application/json", key)

    def submit(self, *, validate_only: bool = False) -> Any:
        """
        Submit the file; rows that are wrong fail alone.
        """
        query = {
            "reference": REFERENCE,
            "source": SOURCE,
            "currency": "EUR",
            "on_invalid": "skip_rows",
            "rows_per_second_max": ROWS_PER_SECOND,
        }
        if validate_only:
            query["validate_only"] = "true"
        path = f"/v1/payout-batches?{urlencode(query)}"
        return self._send("POST", path, PAYOUTS.read_bytes(), "text/csv", None)

    def wait_until(
        self, batch_id: str, is_there: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """
        Look at the batch until it is as wanted.
        """
        deadline = time.monotonic() + WAIT_S_MAX
        while time.monotonic() < deadline:
            batch: dict[str, Any] = self.call("GET", f"/v1/payout-batches/{batch_id}")
            if is_there(batch):
                return batch
            time.sleep(0.02)
        raise Wrong(f"the batch stays at {batch['counts']}")

    def wait_until_reached(self, wallet: str) -> None:
        """
        Read a wallet again and again until its shard answers.
        """
        deadline = time.monotonic() + WAIT_S_MAX
        while time.monotonic() < deadline:
            try:
                self.call("GET", f"/v1/wallets/{wallet}")
                return
            except Wrong:
                time.sleep(0.02)
        raise Wrong("the shard does not come back")

    def shard(self, number: int) -> dict[str, Any]:
        """
        Say what the status says of a shard.
        """
        return next(s for s in self.miliano("status")["shards"] if s["shard"] == number)

    def wait_until_epoch_after(self, epoch: int, number: int) -> dict[str, Any]:
        """
        Ask for the status until the shard has a later epoch: somebody has taken it over.
        """
        deadline = time.monotonic() + WAIT_S_MAX
        while time.monotonic() < deadline:
            shard = self.shard(number)
            if shard["epoch"] > epoch and shard["phase"] == "serving":
                return shard
        raise Wrong("the shard was not taken over")

    def open_wallets(self, wallets: list[str]) -> None:
        """
        Open wallets one by one, over many connections at once.
        """
        asyncio.run(self._open_wallets(iter(wallets)))

    async def _open_wallets(self, wallets: Iterator[str]) -> None:
        await asyncio.gather(*(self._open_from(wallets) for _ in range(CONNECTIONS)))

    async def _open_from(self, wallets: Iterator[str]) -> None:
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for wallet in wallets:
            body = json.dumps({"wallet_id": wallet, "currency": "EUR"}).encode()
            head = (
                f"POST /v1/wallets HTTP/1.1\r\nhost: {address.netloc}\r\n"
                f"authorization: Bearer {self.key}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            reply = await reader.readuntil(b"\r\n\r\n")
            length = reply.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            content = await reader.readexactly(int(length))
            require(reply.startswith(b"HTTP/1.1 201"), f"{wallet}: {content.decode()}")
        writer.close()

    def _send(
        self, method: str, path: str, content: bytes | None, media_type: str, key: str | None
    ) -> Any:
        request = urllib.request.Request(f"{self.url}{path}", data=content, method=method)
        request.add_header("authorization", f"Bearer {self.key}")
        request.add_header("content-type", media_type)
        if key is not None:
            request.add_header("idempotency-key", key)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S_MAX) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise Wrong(f"{method} {path}: {error.read().decode()}") from None


@contextmanager
def running_ledger() -> Iterator[Ledger]:
    """
    Run `miliano up` on a free port, and stop it at the end whatever happens.
    """
    tell(f"starting a fresh ledger: Postgres, Ray, {SHARD_COUNT} shards, a gateway")
    process = subprocess.Popen(
        [MILIANO, "up", "--json", "--port", "0", "--data-dir", DATA_DIR],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"MILIANO_CLUSTER_SHARDS": str(SHARD_COUNT)},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        require(bool(line), "miliano up did not come up")
        running = json.loads(line)
        require("url" in running, line)
        tell(f"ready at {running['url']}")
        yield Ledger(running["url"], Path(running["key_file"]).read_text().strip())
    finally:
        process.terminate()
        process.communicate()
    require(process.returncode == 0, f"miliano up ended with {process.returncode}")


def processes_left() -> list[int]:
    """
    Find processes of this ledger by the data folder in their environment.
    """
    mark = f"MILIANO_CLUSTER_DATA_DIR={DATA_DIR}".encode()

    def is_ours(process: Path) -> bool:
        try:
            return mark in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            return False

    return [int(found.name) for found in Path("/proc").glob("[0-9]*") if is_ours(found)]


if __name__ == "__main__":
    sys.exit(main())
