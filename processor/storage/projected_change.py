"""
One change of the tables, and where it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from processor.core.record import Record


class Stamp(NamedTuple):
    """
    The record that something was decided in.
    """

    shard_id: int
    sequence: int
    at_us: int
    at: datetime

    @classmethod
    def of(cls, record: Record) -> Stamp:
        at = datetime.fromtimestamp(record.at_us // 1_000_000, UTC).replace(
            microsecond=record.at_us % 1_000_000
        )
        return cls(record.shard_id, record.sequence, record.at_us, at)


class Change(NamedTuple):
    """
    A statement to run with the shard's id and the columns of *rows*; when it *finds_each*, it has
    to find one row of the table for each.
    """

    statement: str
    rows: Sequence[tuple[Any, ...]]
    finds_each: bool = False
