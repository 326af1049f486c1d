"""
Reading in the journals themselves what was recorded of one thing: its record is found by time and
by bytes that stand in it.

Rule 1: a record's time never falls with its sequence, so a moment is found by bisection.
Rule 2: what is read of one journal is bounded; where that left something out, it is said.
"""

from __future__ import annotations

import asyncpg
import msgspec

from processor.core.decisions import Decision, decode_decisions
from processor.storage.connection import Connection

READ_RECORDS_MAX = 10_000  # Of one journal at either end of what is asked for.

_ENDS = """
    SELECT shard_id, (SELECT max(sequence) FROM journal WHERE shard_id = shard.shard_id) AS last
      FROM shard WHERE shard_id = ANY($1)
"""

_AT = "SELECT at_us FROM journal WHERE shard_id = $1 AND sequence = $2"

_RECORDS = """
    SELECT shard_id, sequence, at_us, format, payload FROM journal
     WHERE shard_id = $1 AND sequence BETWEEN $2 AND $3
       AND EXISTS (SELECT FROM unnest($4::bytea[]) AS sought WHERE position(sought IN payload) > 0)
     ORDER BY sequence
"""


class Sought(msgspec.Struct, frozen=True):
    """
    Bytes that are looked for in one journal: from a time in µs on, up to a sequence or to a time,
    or to its end.
    """

    shard_id: int
    since_us: int
    pieces: list[bytes]
    last: int | None = None
    until_us: int | None = None


class Mention(msgspec.Struct, frozen=True):
    """
    A record in which they stand.
    """

    shard_id: int
    sequence: int
    at_us: int
    decisions: list[Decision]


class Looked(msgspec.Struct, frozen=True):
    """
    What was found; `is_whole` is False where records in between were not read.
    """

    mentions: list[Mention]
    is_whole: bool


async def look(conn: Connection, sought: list[Sought]) -> Looked:
    """
    Look through those journals that are in this database.
    """
    rows = await conn.fetch(_ENDS, [one.shard_id for one in sought])
    ends = {row["shard_id"]: row["last"] or 0 for row in rows}
    mentions, is_whole = [], True
    for one in sought:
        if one.shard_id not in ends:
            continue
        first, last = await _span(conn, one, ends[one.shard_id])
        for begin, end in _parts(first, last):
            records = await conn.fetch(_RECORDS, one.shard_id, begin, end, one.pieces)
            mentions += [_mention(record) for record in records]
        is_whole = is_whole and last - first < 2 * READ_RECORDS_MAX
    return Looked(mentions, is_whole)


async def _span(conn: Connection, sought: Sought, end: int) -> tuple[int, int]:
    first = await first_since(conn, sought.shard_id, sought.since_us, end)
    last = end if sought.last is None else min(end, sought.last)
    if sought.until_us is not None:
        behind = await first_since(conn, sought.shard_id, sought.until_us + 1, end)
        last = min(last, behind - 1)
    return first, last


async def first_since(conn: Connection, shard_id: int, at_us: int, end: int) -> int:
    """
    Return the first sequence whose record is not earlier than a time; *end* + 1 when none is.
    """
    low, high = 0, end + 1
    while high - low > 1:
        middle = (low + high) // 2
        found = await conn.fetchval(_AT, shard_id, middle)
        if found is None or found < at_us:
            low = middle
        else:
            high = middle
    return high


def _parts(first: int, last: int) -> list[tuple[int, int]]:
    """
    Cut what would be too much to read down to its two ends.
    """
    if last - first < 2 * READ_RECORDS_MAX:
        return [(first, last)]
    return [(first, first + READ_RECORDS_MAX - 1), (last - READ_RECORDS_MAX + 1, last)]


def _mention(record: asyncpg.Record) -> Mention:
    decisions = decode_decisions(record["payload"], record["format"])
    return Mention(record["shard_id"], record["sequence"], record["at_us"], decisions)
