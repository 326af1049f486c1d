"""
Journal rows as records.
"""

from __future__ import annotations

import asyncpg

from processor.core.record import Record

RECORD_COLUMNS = "shard_id, sequence, epoch, at_us, count, format, payload, chain"


def record_from_row(row: asyncpg.Record) -> Record:
    return Record(*row)
