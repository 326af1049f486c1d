"""
`python -m tests.benchmarks.history --transfers 10000000`: reading a long past.

Loads a throw-away database with consistent transfers over two years, and times what histories are
read with, through `History` and over HTTP: a busy wallet's last page, a page in the middle, its
balance of a year ago, and a statement of a hundredth of all transfers. It ends by itself and leaves
nothing behind.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import shutil
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from rich.console import Console
from rich.table import Table

from actors.child_process import ChildProcess
from gateway.cli.commands import Session
from gateway.cli.progress import progress
from processor.storage import entries
from processor.storage.connection import connect
from processor.storage.embedded_postgres import EmbeddedPostgres
from processor.storage.entries import Span
from processor.storage.history import History
from processor.storage.schema import migrate
from processor.storage.statement import Opening, statement_parts
from tests.support.long_histories import BUSY, END, MERCHANT, STATEMENT, LongHistories
from tests.support.running_gateway import free_port, make_key

PAGE = 100
BYTES_A_TRANSFER = 1_000  # The table, five indexes, and the write-ahead log beside it.
YEAR_US = 365 * 86_400 * 1_000_000
READY_S_MAX = 30.0
SEED = 7

console = Console(highlight=False, soft_wrap=True)

Read = Callable[[], Awaitable[Any]]


class Times(msgspec.Struct, frozen=True):
    """
    How long the calls of one series took, in ms.
    """

    median: float
    p99: float
    worst: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.history", description=__doc__)
    parser.add_argument("--transfers", type=int, default=10_000_000)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--series", type=int, default=5, help="so often that many calls")
    parser.add_argument("--folder", type=Path, help="where the data goes (default: that of temps)")
    chosen = parser.parse_args()
    with (
        folder_in(chosen.folder, chosen.transfers * BYTES_A_TRANSFER) as folder,
        EmbeddedPostgres(folder / "pg") as server,
    ):
        server.create_database("history")
        dsn = server.dsn("history")
        migrate(dsn)
        asyncio.run(measure(dsn, folder, chosen.transfers, (chosen.series, chosen.calls)))
    return 0


@contextmanager
def folder_in(parent: Path | None, bytes_needed: int) -> Iterator[Path]:
    """
    Make a folder for the data if there is room for it, and remove it in the end.
    """
    folder = Path(tempfile.mkdtemp(prefix="miliano-history-", dir=parent))
    try:
        free = shutil.disk_usage(folder).free
        if free < bytes_needed:
            sys.exit(f"{bytes_needed:,} bytes are needed, {free:,} are free: load fewer transfers")
        yield folder
    finally:
        shutil.rmtree(folder)


async def measure(dsn: str, folder: Path, count: int, calls: tuple[int, int]) -> None:
    """
    Load, then time everything and print what came of it; *calls* are how many series of how many.
    """
    made = LongHistories(count)
    await load(dsn, made)
    await show_size(dsn, made)
    history = await History.open([dsn], connections_max=2, timeout_ms=60_000)
    async with gateway_of(dsn, folder) as client:
        times = {}
        for what, read in reads(history, made).items():
            times[f"{what}, History"] = await timed(calls, read)
        for what, read in requests(client, made).items():
            times[f"{what}, HTTP"] = await timed(calls, read)
        show_times(times, calls)
        await statement_of(history, made)
        await statements_over_http(client, made)
    history.close()
    await show_plans(dsn, made)


async def load(dsn: str, made: LongHistories) -> None:
    started = time.monotonic()
    conn = await connect(dsn, application_name="benchmark")
    with progress(Session(as_json=False), "loading") as advance:
        await made.load(conn, lambda done: advance(done, made.count, ""))
    await conn.close()
    console.print(f"{made.count:,} transfers loaded in {time.monotonic() - started:.0f} s")


async def show_size(dsn: str, made: LongHistories) -> None:
    conn = await connect(dsn, application_name="benchmark")
    rows = await conn.fetch(
        "SELECT relname, pg_size_pretty(pg_relation_size(oid)) FROM pg_class"
        " WHERE relname LIKE 'transfers%' ORDER BY pg_relation_size(oid) DESC"
    )
    await conn.close()
    console.print(", ".join(f"{name} {size}" for name, size in rows))
    for wallet_id in (*BUSY, STATEMENT):
        console.print(f"{wallet_id}: {made.versions[wallet_id]:,} entries")


# --- Reading ------------------------------------------------------------------------------


def reads(history: History, made: LongHistories) -> dict[str, Read]:
    """
    The three reads, each time of another wallet and moment.
    """
    chance = random.Random(SEED)

    async def last_page() -> None:
        wallet = await history.wallet(chance.choice(BUSY))
        assert wallet is not None
        span = Span(wallet.version - PAGE + 1, wallet.version)
        rows = await history.entries(wallet.wallet_id, span)
        assert rows is not None

    async def middle_page() -> None:
        wallet_id = chance.choice(BUSY)
        first = chance.randrange(1, made.versions[wallet_id] - PAGE)
        assert await history.entries(wallet_id, Span(first, first + PAGE - 1)) is not None

    async def balance() -> None:
        wallet_id = chance.choice(BUSY)
        at_us = year_ago_us() + chance.randrange(30 * 86_400 * 1_000_000)
        known = made.versions[wallet_id]
        assert await history.balance_at(wallet_id, at_us, known=known) is not None

    return {"last page": last_page, "page anywhere": middle_page, "balance a year ago": balance}


def requests(client: httpx2.AsyncClient, made: LongHistories) -> dict[str, Read]:
    """
    The same as a client asks for it.
    """
    chance = random.Random(SEED)

    async def ask(path: str) -> None:
        reply = await client.get(path)
        assert reply.status_code == 200, reply.text

    async def last_page() -> None:
        await ask(f"/v1/wallets/{chance.choice(BUSY)}/entries?limit={PAGE}")

    async def middle_page() -> None:
        wallet_id = chance.choice(BUSY)
        before = chance.randrange(PAGE, made.versions[wallet_id])
        await ask(f"/v1/wallets/{wallet_id}/entries?limit={PAGE}&before={before}")

    async def balance() -> None:
        day = END - timedelta(days=365 - chance.randrange(30))
        at = day.strftime("%Y-%m-%dT%H:%M:%SZ")
        await ask(f"/v1/wallets/{chance.choice(BUSY)}/balance?at={at}")

    return {"last page": last_page, "page anywhere": middle_page, "balance a year ago": balance}


def year_ago_us() -> int:
    return int(END.timestamp()) * 1_000_000 - YEAR_US


async def timed(calls: tuple[int, int], read: Read) -> list[Times]:
    """
    Time some series of calls, the quietest first.
    """
    count, size = calls
    return sorted([await one_series(size, read) for _ in range(count)], key=lambda one: one.p99)


async def one_series(size: int, read: Read) -> Times:
    taken = []
    for _ in range(size):
        started = time.perf_counter()
        await read()
        taken.append((time.perf_counter() - started) * 1_000)
    taken.sort()
    return Times(statistics.median(taken), taken[int(0.99 * (size - 1))], taken[-1])


def show_times(times: dict[str, list[Times]], calls: tuple[int, int]) -> None:
    shown = Table(
        title=f"ms, the quietest and the busiest of {calls[0]} series of {calls[1]} calls"
    )
    for column in ("", *("median", "p99", "worst") * 2):
        shown.add_column(column, justify="right" if column else "left")
    for what, series in times.items():
        ends = (series[0], series[-1])
        numbers = (f"{ms:.2f}" for one in ends for ms in (one.median, one.p99, one.worst))
        shown.add_row(what, *numbers)
    console.print(shown)


# --- The statement ------------------------------------------------------------------------


async def statement_of(history: History, made: LongHistories) -> None:
    """
    Read the statement twice: for the time, and for the memory.
    """
    rows, seconds = await statement_rows(history, made)
    tracemalloc.start()
    await statement_rows(history, made)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    console.print(
        f"statement, History: {rows:,} rows, {rows / seconds:,.0f} rows/s,"
        f" at most {peak_bytes / 1e6:.1f} MB more"
    )


async def statement_rows(history: History, made: LongHistories) -> tuple[int, float]:
    opening = Opening(STATEMENT, "EUR", entries.NOTHING_YET, made.versions[STATEMENT])
    started = time.perf_counter()
    rows = 0
    parts = statement_parts(opening, lambda span: history.entries(STATEMENT, span))
    async for part in parts:
        if isinstance(part, list):
            rows += len(part)
    assert rows == made.versions[STATEMENT]
    return rows, time.perf_counter() - started


async def statements_over_http(client: httpx2.AsyncClient, made: LongHistories) -> None:
    """
    Read it in both forms while looking at how much the gateway holds at most.
    """
    for form in ("statement", "statement.csv"):
        before_kb = gateway_kb(client)
        started = time.perf_counter()
        size_bytes, peak_kb, end = 0, before_kb, b""
        async with client.stream("GET", f"/v1/wallets/{STATEMENT}/{form}") as reply:
            async for piece in reply.aiter_bytes():
                size_bytes += len(piece)
                peak_kb = max(peak_kb, gateway_kb(client))
                end = (end + piece)[-500:]
        seconds = time.perf_counter() - started
        assert b'"error":null' in end or b"\nclosing," in end, end
        console.print(
            f"{form}, HTTP: {made.versions[STATEMENT]:,} rows, {size_bytes / 1e6:.1f} MB,"
            f" {made.versions[STATEMENT] / seconds:,.0f} rows/s,"
            f" the gateway at most {(peak_kb - before_kb) / 1e3:.1f} MB more"
        )


# --- The gateway --------------------------------------------------------------------------


@asynccontextmanager
async def gateway_of(dsn: str, folder: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """
    Start a gateway without shards, which is enough for what is in the tables.
    """
    key = await make_key(dsn, MERCHANT, frozenset({"wallets:read"}))
    port = free_port()
    environment = {
        "MILIANO_POSTGRES_DSN": dsn,
        "MILIANO_CLUSTER_SECRET": secrets.token_hex(16),
        "MILIANO_CLUSTER_DATA_DIR": str(folder),
        "MILIANO_GATEWAY_PORT": str(port),
    }
    process = ChildProcess(
        "gateway", ["gateway"], log_path=folder / "gateway.log", environment=environment
    )
    process.start()
    headers = {"authorization": f"Bearer {key}", "x-process": str(process.pid)}
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=60.0) as client:
            await until_live(client, folder / "gateway.log")
            yield client
    finally:
        process.stop()


async def until_live(client: httpx2.AsyncClient, log: Path) -> None:
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline:
        try:
            await client.get("/v1/health/live")
        except httpx2.TransportError:
            await asyncio.sleep(0.05)
        else:
            return
    raise AssertionError(log.read_text())


def gateway_kb(client: httpx2.AsyncClient) -> int:
    """
    Say how much memory the gateway has now.
    """
    status = Path(f"/proc/{client.headers['x-process']}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


# --- The plans ----------------------------------------------------------------------------


async def show_plans(dsn: str, made: LongHistories) -> None:
    wallet_id = BUSY[0]
    last = made.versions[wallet_id]
    year_ago = END - timedelta(days=365)
    asked = {
        "last page": (entries.ENTRIES, wallet_id, last - PAGE + 1, last, PAGE),
        "page in the middle": (entries.ENTRIES, wallet_id, last // 2, last // 2 + PAGE - 1, PAGE),
        "balance a year ago": (entries.VERSION_AT, wallet_id, year_ago, 0),
    }
    conn = await connect(dsn, application_name="benchmark")
    for what, (sql, *values) in asked.items():
        literals = ", ".join(f"'{value}'" for value in values)
        await conn.execute(f"PREPARE asked AS {sql}")
        rows = await conn.fetch(f"EXPLAIN (ANALYZE, BUFFERS) EXECUTE asked ({literals})")
        await conn.execute("DEALLOCATE asked")
        console.print(f"\n{what}\n" + "\n".join(row[0] for row in rows), markup=False)
    await conn.close()


if __name__ == "__main__":
    sys.exit(main())
