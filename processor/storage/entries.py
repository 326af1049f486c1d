"""
A wallet's entries: its transfers from both sides and from every shard it has been at.

Rule 1: entries are asked for by a span of versions. Versions are dense, so what a span has to
        hold is known before it is read; where one is missing, the answer is no history.
Rule 2: a filter chooses among the rows of a span; whether the span is whole is told by all of
        its rows, so that what does not match is missed as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import asyncpg
import msgspec

from processor.core.wallet import is_system_wallet

Rows: TypeAlias = "Sequence[asyncpg.Record]"

_COLUMNS = """
    transfer_id, type, amount, currency, reference, metadata, shard_id, sequence,
    (extract(epoch FROM at) * 1000000)::bigint AS at_us
"""

_BOTH_SIDES = """
    (SELECT source_version AS version, true AS is_debit, source_balance AS balance,
            coalesce(counterparty, destination) AS counterparty, {columns}
       FROM transfers
      WHERE source = $1 AND source_version >= $2 AND source_version <= $3
      {cut_source})
    UNION ALL
    (SELECT destination_version, false, destination_balance,
            coalesce(counterparty, source), {columns}
       FROM transfers
      WHERE destination = $1 AND destination_version >= $2 AND destination_version <= $3
      {cut_destination})
"""
_ALL_OF_BOTH_SIDES = _BOTH_SIDES.format(columns=_COLUMNS, cut_source="", cut_destination="")

# The limit on each side says nothing new: it keeps the planner at reading the index in order.
ENTRIES = """
    SELECT * FROM ({both_sides}) AS both_sides ORDER BY version LIMIT $4
""".format(
    both_sides=_BOTH_SIDES.format(
        columns=_COLUMNS,
        cut_source="ORDER BY source_version LIMIT $4",
        cut_destination="ORDER BY destination_version LIMIT $4",
    )
)

_CHOSEN = """
    WITH looked_at AS MATERIALIZED ({both_sides})
    SELECT (SELECT count(*) FROM looked_at), (SELECT sum(version)::bigint FROM looked_at), chosen.*
      FROM (SELECT 1) AS always
      LEFT JOIN (SELECT * FROM looked_at
                  WHERE ($4::smallint IS NULL OR type = $4)
                    AND ($5::text IS NULL OR reference = $5)
                  ORDER BY version {order} LIMIT $6) AS chosen ON true
"""
CHOSEN_OLDEST_FIRST = _CHOSEN.format(both_sides=_ALL_OF_BOTH_SIDES, order="ASC")
CHOSEN_NEWEST_FIRST = _CHOSEN.format(both_sides=_ALL_OF_BOTH_SIDES, order="DESC")

LAST_VERSION = """
    SELECT greatest(
        (SELECT max(source_version) FROM transfers WHERE source = $1),
        (SELECT max(destination_version) FROM transfers WHERE destination = $1))
"""

VERSION_AT = "SELECT version_at($1, $2, $3)"


class EntryRow(msgspec.Struct, frozen=True, gc=False):
    """
    One entry of one wallet; `counterparty` is None for money from or to outside.
    """

    version: int
    is_debit: bool
    balance: int
    counterparty: str | None
    transfer_id: bytes
    transfer_type: int
    amount: int
    currency: str
    reference: str | None
    metadata: str | None
    shard_id: int
    sequence: int
    at_us: int


class Span(msgspec.Struct, frozen=True, gc=False):
    """
    The versions from *first* to *last*; none when *last* is below *first*.
    """

    first: int
    last: int

    @property
    def size(self) -> int:
        return max(0, self.last - self.first + 1)


class EntryFilter(msgspec.Struct, frozen=True, gc=False):
    """
    Which entries are wanted; None is every.
    """

    transfer_type: int | None = None
    reference: str | None = None


class PastBalance(msgspec.Struct, frozen=True, gc=False):
    """
    What a wallet had behind its entry *version*, and when that was; before the first entry 0,
    at no time.
    """

    version: int
    balance: int
    at_us: int | None


NOTHING_YET = PastBalance(0, 0, None)


def in_order(pages: Iterable[Rows]) -> list[EntryRow]:
    """
    Merge what the databases have of a span, oldest first.
    """
    entries = [_entry(tuple(row)) for rows in pages for row in rows]
    entries.sort(key=lambda entry: entry.version)
    return entries


def is_whole(entries: Sequence[EntryRow], span: Span) -> bool:
    """
    Say whether *entries*, oldest first, are the whole of *span*.

    Shards are projected independently, so that what a wallet did before it moved can come later
    than what it did after.
    """
    versions = [entry.version for entry in entries]
    return versions == list(range(span.first, span.last + 1))


def looked_at_whole(pages: Iterable[Rows], span: Span) -> bool:
    """
    Say whether the databases together have looked at every version of *span*, by their number
    and their sum.
    """
    firsts = [rows[0] for rows in pages]
    count = sum(first[0] for first in firsts)
    total = sum(first[1] or 0 for first in firsts)
    return count == span.size and total == (span.first + span.last) * span.size // 2


def chosen(pages: Iterable[Rows]) -> Iterator[EntryRow]:
    """
    Give the rows that matched, in no order.
    """
    for rows in pages:
        for row in rows:
            if row["version"] is not None:
                yield _entry(tuple(row)[2:])


def _entry(row: tuple[Any, ...]) -> EntryRow:
    entry = EntryRow(*row)
    if entry.counterparty is not None and is_system_wallet(entry.counterparty):
        return msgspec.structs.replace(entry, counterparty=None)
    return entry
