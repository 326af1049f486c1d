"""
Goal: a wallet's holds are listed once each and in order, wherever their rows are.
Method: rows in the tables of two databases, as they are while a slot goes from one to the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.identifiers import uuid_text
from processor.core.hold import HoldStatus
from processor.storage.history import History
from tests.support.databases import Databases, execute

OPEN, VOIDED = HoldStatus.OPEN, HoldStatus.VOIDED


@pytest.fixture(scope="module")
def dsns(databases: Databases) -> Iterator[list[str]]:
    with databases.migrated() as first, databases.migrated() as second:
        yield [first, second]


@pytest.fixture
async def history(dsns: list[str]) -> AsyncIterator[History]:
    for dsn in dsns:
        await execute(dsn, "TRUNCATE holds")
    opened = await History.open(dsns, connections_max=2, timeout_ms=10_000)
    yield opened
    opened.close()


def hold_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


async def add(
    dsn: str,
    number: int,
    *,
    shard_id: int,
    second: int,
    status: HoldStatus = OPEN,
    owner: str = "acme",
    wallet_id: str = "guest",
) -> None:
    """
    Write the row of a hold, changed last at a *second*.
    """
    await execute(
        dsn,
        f"""
        INSERT INTO holds VALUES
            ('{uuid_text(hold_id(number))}', {shard_id}, '{owner}', '{wallet_id}', '', 'EUR',
             60, 10, 0, {status.value}, false, 5, 9, NULL, NULL, to_timestamp({second}))
        """,
    )


async def listed(
    history: History, *, status: HoldStatus | None = None, after: int = 0, limit: int = 10
) -> list[tuple[int, HoldStatus, int]]:
    """
    List number, status and shard of the holds of acme's guest.
    """
    rows = await history.holds_of("acme", "guest", status=status, after=hold_id(after), limit=limit)
    return [
        (int.from_bytes(hold.hold_id, "big"), HoldStatus(hold.status), shard_id)
        for hold, shard_id in rows
    ]


async def test_a_hold_is_listed_once(dsns: list[str], history: History) -> None:
    """
    Of two rows the one that was changed last counts, be they in one database or in two.
    """
    await add(dsns[0], 1, shard_id=0, second=1)
    await add(dsns[1], 1, shard_id=2, second=2, status=VOIDED)
    await add(dsns[0], 2, shard_id=0, second=4, status=VOIDED)
    await add(dsns[0], 2, shard_id=1, second=3)

    assert await listed(history) == [(1, VOIDED, 2), (2, VOIDED, 0)]


async def test_pages_are_in_order(dsns: list[str], history: History) -> None:
    """
    The oldest first, from wherever they are, and no row behind the page's bounds.
    """
    for number in (1, 4, 5):
        await add(dsns[0], number, shard_id=0, second=1)
    for number in (2, 3, 6):
        await add(dsns[1], number, shard_id=2, second=1)

    first = [number for number, _, _ in await listed(history, limit=4)]
    second = [number for number, _, _ in await listed(history, after=4, limit=4)]
    assert (first, second) == ([1, 2, 3, 4], [5, 6])


async def test_only_what_is_asked_for(dsns: list[str], history: History) -> None:
    """
    Not another status, another wallet or another merchant's.
    """
    await add(dsns[0], 1, shard_id=0, second=1)
    await add(dsns[0], 2, shard_id=0, second=1, status=VOIDED)
    await add(dsns[0], 3, shard_id=0, second=1, owner="globex")
    await add(dsns[1], 4, shard_id=2, second=1, wallet_id="hotel")

    assert await listed(history) == [(1, OPEN, 0), (2, VOIDED, 0)]
    assert await listed(history, status=OPEN) == [(1, OPEN, 0)]
    found = await history.holds_of("acme", "guest", status=VOIDED, after=bytes(16), limit=1)
    ((hold, _),) = found
    assert (hold.amount, hold.captured, hold.placed_at_us, hold.expires_at_us) == (60, 10, 5, 9)
