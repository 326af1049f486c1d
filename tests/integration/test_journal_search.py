"""
Goal: what was recorded of one thing is found in its journal by time and by bytes, and when not all
      was read, that is said.
Method: a journal of small records on a real Postgres, of which little may be read at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from processor.core.decisions import DECISION_FORMAT, SlotDelivered, encode_decisions
from processor.storage import journal_search
from processor.storage.connection import Connection, connect
from processor.storage.journal_search import Sought, first_since, look

COUNT = 100
STEP_US = 1_000  # Two records each have the same time.


def time_of(sequence: int) -> int:
    return 1_700_000_000_000_000 + sequence // 2 * STEP_US


def payload(shard_id: int, sequence: int) -> bytes:
    return encode_decisions([SlotDelivered(shard_id, 1_000_000 + sequence)])


def piece(sequence: int) -> bytes:
    """
    Return bytes that stand in one record alone.
    """
    return (1_000_000 + sequence).to_bytes(4, "big")


@pytest_asyncio.fixture
async def conn(database: str) -> AsyncIterator[Connection]:
    connection = await connect(database, application_name="tests")
    for shard_id in (0, 1):
        await connection.execute("INSERT INTO shard (shard_id) VALUES ($1)", shard_id)
        await connection.executemany(
            "INSERT INTO journal (shard_id, sequence, epoch, at_us, count, format, payload, chain)"
            " VALUES ($1, $2, 1, $3, 1, $4, $5, '')",
            [
                (shard_id, n, time_of(n), DECISION_FORMAT, payload(shard_id, n))
                for n in range(1, COUNT + 1)
            ],
        )
    yield connection
    await connection.close()


async def found(conn: Connection, *sought: Sought) -> list[tuple[int, int]]:
    looked = await look(conn, [*sought])
    assert looked.is_whole
    return [(one.shard_id, one.sequence) for one in looked.mentions]


async def test_a_moment_is_found(conn: Connection) -> None:
    """
    The first record that is not earlier, of those at the same time too; behind the end when all
    are.
    """
    for sequence in range(1, COUNT + 1):
        first = min(n for n in range(1, COUNT + 1) if time_of(n) >= time_of(sequence))
        assert await first_since(conn, 0, time_of(sequence), COUNT) == first
    assert await first_since(conn, 0, 0, COUNT) == 1
    assert await first_since(conn, 0, time_of(COUNT) + 1, COUNT) == COUNT + 1


async def test_records_are_found_by_what_stands_in_them(conn: Connection) -> None:
    """
    In the journal that was named, each of several pieces, as decisions.
    """
    pieces = [piece(7), piece(40)]
    assert await found(conn, Sought(1, 0, pieces)) == [(1, 7), (1, 40)]
    looked = await look(conn, [Sought(1, 0, pieces)])
    assert looked.mentions[0].decisions == [SlotDelivered(1, 1_000_007)]
    assert looked.mentions[0].at_us == time_of(7)
    both = await found(conn, Sought(0, 0, [piece(3)]), Sought(1, 0, [piece(4)]))
    assert both == [(0, 3), (1, 4)]
    assert await found(conn, Sought(9, 0, [piece(3)])) == []
    assert await found(conn) == []


async def test_only_what_lies_between_is_read(conn: Connection) -> None:
    """
    From a time on, up to a sequence or a time, both included.
    """
    assert await found(conn, Sought(0, time_of(40), [piece(40)])) == [(0, 40)]
    assert await found(conn, Sought(0, time_of(42), [piece(40)])) == []
    assert await found(conn, Sought(0, 0, [piece(40)], last=40)) == [(0, 40)]
    assert await found(conn, Sought(0, 0, [piece(40)], last=39)) == []
    assert await found(conn, Sought(0, 0, [piece(40)], until_us=time_of(40))) == [(0, 40)]
    assert await found(conn, Sought(0, 0, [piece(40)], until_us=time_of(40) - 1)) == []


async def test_what_was_not_read_is_said(conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Of more than may be read the two ends are.
    """
    monkeypatch.setattr(journal_search, "READ_RECORDS_MAX", 10)
    pieces = [piece(n) for n in (1, 10, 11, 90, 91, 100)]
    looked = await look(conn, [Sought(0, 0, pieces)])
    assert not looked.is_whole
    assert [one.sequence for one in looked.mentions] == [1, 10, 91, 100]
    looked = await look(conn, [Sought(0, 0, pieces, last=20)])
    assert looked.is_whole
    assert [one.sequence for one in looked.mentions] == [1, 10, 11]
