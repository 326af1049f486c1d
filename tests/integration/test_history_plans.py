"""
Goal: what histories are read with uses the two indexes of versions, and few pages of the tables,
      however long a history is.
Method: 20,000 transfers, analysed; the plans and the buffers that Postgres tells, both for a plan
        that knows the values and for one that is kept for all.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from processor.storage.connection import connect
from processor.storage.entries import (
    CHOSEN_NEWEST_FIRST,
    CHOSEN_OLDEST_FIRST,
    ENTRIES,
    LAST_VERSION,
    VERSION_AT,
)
from tests.support.databases import Databases
from tests.support.long_histories import BEGIN, BUSY, END, TIME, LongHistories

TRANSFERS = 20_000
INDEXES = {"transfers_by_source", "transfers_by_destination"}
# A row of each may lie on a page of its own; the rest is the way down both indexes.
PAGE_BUFFERS_MAX = 100 + 30
LOOK_BUFFERS_MAX = 1_000 + 60
# Each step of a bisection goes down both indexes and looks at one row of each side.
BISECTION_BUFFERS_MAX = 16 * 2 * 4

SCANS = "SELECT seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'transfers'"

Plan = dict[str, Any]


@pytest.fixture(scope="module")
def long_dsn(databases: Databases) -> Iterator[str]:
    with databases.migrated() as dsn:
        yield dsn


@pytest.fixture(scope="module")
def loaded() -> LongHistories:
    return LongHistories(TRANSFERS)


@pytest.fixture(params=["force_custom_plan", "force_generic_plan"])
async def conn(
    long_dsn: str, loaded: LongHistories, request: pytest.FixtureRequest
) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """
    Give a session on the loaded database, which plans as it is told.
    """
    connection = await connect(
        long_dsn, application_name="tests", server_settings={"plan_cache_mode": request.param}
    )
    if not loaded.versions:
        await loaded.load(connection)
    yield connection
    await connection.close()


async def plan_of(conn: asyncpg.Connection[asyncpg.Record], sql: str, *values: object) -> Plan:
    """
    Run a statement as a prepared one, and return what it did.
    """
    literals = ", ".join("NULL" if value is None else f"'{value}'" for value in values)
    await conn.execute(f"PREPARE asked AS {sql}")
    told = await conn.fetchval(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE asked ({literals})"
    )
    await conn.execute("DEALLOCATE asked")
    plan: Plan = json.loads(told)[0]["Plan"]
    return plan


def buffers(plan: Plan) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def check_indexes(plan: Plan) -> None:
    """
    Check that both sides were found by their index, and nothing was read from end to end.
    """
    assert "Seq Scan" not in {node["Node Type"] for node in nodes(plan)}
    assert {node["Index Name"] for node in nodes(plan) if "Index Name" in node} == INDEXES


async def test_the_last_and_the_middle_page(
    conn: asyncpg.Connection[asyncpg.Record], loaded: LongHistories
) -> None:
    """
    A page in the middle of a long history costs what the last one costs.
    """
    wallet = BUSY[0]
    last = loaded.versions[wallet]
    assert last > 2_000
    for end in (last, last // 2):
        plan = await plan_of(conn, ENTRIES, wallet, end - 99, end, 100)
        check_indexes(plan)
        assert plan["Actual Rows"] == 100
        assert buffers(plan) <= PAGE_BUFFERS_MAX, json.dumps(plan, indent=1)


async def test_looking_for_something_rare(
    conn: asyncpg.Connection[asyncpg.Record], loaded: LongHistories
) -> None:
    """
    A filtered page reads the entries that it looks through, and no others.
    """
    last = loaded.versions[BUSY[1]]
    for sql in (CHOSEN_OLDEST_FIRST, CHOSEN_NEWEST_FIRST):
        plan = await plan_of(conn, sql, BUSY[1], last - 999, last, None, "order 3", 100)
        check_indexes(plan)
        assert buffers(plan) <= LOOK_BUFFERS_MAX


async def test_the_last_version(conn: asyncpg.Connection[asyncpg.Record]) -> None:
    """
    The end of an index is looked at, and nothing before it.
    """
    plan = await plan_of(conn, LAST_VERSION, BUSY[2])
    check_indexes(plan)
    assert buffers(plan) <= 20


@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 0.99, 1.0])
async def test_a_balance_of_the_past(conn: asyncpg.Connection[asyncpg.Record], part: float) -> None:
    """
    A moment is found by bisection: in steps that grow with the logarithm of the history.
    """
    wallet, instant = BUSY[3], BEGIN + TIME * part
    await conn.fetchval(VERSION_AT, wallet, instant, 0)  # The catalogs are read once a session.
    plan = await plan_of(conn, VERSION_AT, wallet, instant, 0)
    assert buffers(plan) <= BISECTION_BUFFERS_MAX
    async with conn.transaction():
        # The view also counts what the session did before and has not reported yet.
        before = await conn.fetchrow(SCANS)
        version = await conn.fetchval(VERSION_AT, wallet, instant, 0)
        after = await conn.fetchrow(SCANS)
    assert before is not None
    assert after is not None
    assert after["seq_scan"] == before["seq_scan"]
    assert after["idx_scan"] > before["idx_scan"]
    right = await conn.fetchval(
        "SELECT count(*) FROM transfers WHERE $1 IN (source, destination) AND at <= $2",
        wallet,
        instant,
    )
    assert version == right


async def test_bisection_finds_every_moment(
    conn: asyncpg.Connection[asyncpg.Record], loaded: LongHistories
) -> None:
    """
    At each entry's time, a moment before it, and above any version that is known to be earlier.
    """
    wallet = "small-7"
    rows = await conn.fetch(
        "SELECT at, CASE WHEN source = $1 THEN source_version ELSE destination_version END"
        " FROM transfers WHERE $1 IN (source, destination) ORDER BY 2",
        wallet,
    )
    assert len(rows) == loaded.versions[wallet] > 5
    for index, (at, version) in enumerate(rows):
        later = [row for row in rows if row[0] <= at]
        assert await conn.fetchval(VERSION_AT, wallet, at, 0) == len(later)
        assert await conn.fetchval(VERSION_AT, wallet, at, index) == len(later)
        assert version == index + 1
    assert await conn.fetchval(VERSION_AT, wallet, BEGIN, 0) == 0
    assert await conn.fetchval(VERSION_AT, wallet, END, 99) == 99
    assert await conn.fetchval(VERSION_AT, "nobody", END, 0) == 0
