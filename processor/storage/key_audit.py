"""
The audit of keys: no two transfers under one key, in whichever database they are.

Of projected transfers, the unique index of their database says so. Over several databases the
sorted keys of all are read side by side, a page of each at a time. Those that are not projected,
or on their way, are few enough to be kept and looked up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from uuid import UUID

import asyncpg

from processor.storage.audit import CHUNK_TRANSFERS, Audit, AuditedDatabase

_UNIQUE_KEY = """
    SELECT indisunique AND indisvalid FROM pg_index
     WHERE indexrelid = to_regclass('transfers_by_key')
"""

_USED_BEFORE = """
    SELECT transfer_id, key FROM transfers
     WHERE (transfer_id = ANY($1) AND key IS NOT NULL) OR key = ANY($2)
     ORDER BY transfer_id LIMIT 1
"""

_KEYS = "SELECT key FROM transfers WHERE key IS NOT NULL ORDER BY key"


# A transfer's id and key, and where the journal names it. Without a key it is one that came from
# another shard.
Named = tuple[bytes, bytes | None, str]


def note_once(audit: Audit, where: str, field: str, used: set[bytes], name: bytes) -> None:
    """
    Note that a name is used, and that it must not be again.
    """
    if name in used:
        audit.differs("journal", where, field, "used once", name)
    used.add(name)


async def check_unused(audit: Audit, named: Sequence[Named]) -> None:
    """
    Check that no database has a transfer under these names at its source.
    """
    for start in range(0, len(named), CHUNK_TRANSFERS):
        some = named[start : start + CHUNK_TRANSFERS]
        ids, keys = [each[0] for each in some], [each[1] for each in some]
        for database in audit.databases:
            name_used(audit, await database.conn.fetchrow(_USED_BEFORE, ids, keys), some)


def name_used(audit: Audit, used: asyncpg.Record | None, named: Sequence[Named]) -> None:
    """
    Note which of *named* the row *used* has, if there is one.
    """
    if used is None:
        return
    for transfer_id, key, where in named:
        if transfer_id == used["transfer_id"]:
            audit.differs("journal", where, "transfer_id", "used once", transfer_id)
        elif key is not None and key == used["key"]:
            audit.differs("journal", where, "key", "used once", key)


async def check_pending_keys(audit: Audit) -> None:
    """
    Check that nobody else has the names of what is on its way, which no table of transfers has.
    """
    ids, keys = set(audit.tail_ids), set(audit.tail_keys)
    named: list[Named] = []
    for shard_id, journal in sorted(audit.journals.items()):
        where = f"shard {shard_id}, on its way"
        for sent in journal.ends.pending_transfers():
            note_once(audit, where, "transfer_id", ids, sent[2])
            note_once(audit, where, "key", keys, sent[3])
            named.append((sent[2], sent[3], where))
    if "transfers" not in audit.differences:
        await check_unused(audit, named)


async def check_keys(audit: Audit) -> None:
    """
    Check that each database keeps its keys apart, and that no two share one.
    """
    for database in audit.databases:
        if not await database.conn.fetchval(_UNIQUE_KEY):
            audit.differs("transfers", "transfers_by_key", "index", "unique and valid", None)
            return
    if len(audit.databases) > 1:
        await _merge_keys(audit)


class KeyStream:
    """
    The keys of one database in their order, as far as they are read and not taken.
    """

    def __init__(self, database: AuditedDatabase) -> None:
        self._database = database
        self._cursor: asyncpg.cursor.Cursor[asyncpg.Record] | None = None
        self.keys: list[bytes] = []
        self.is_at_end = False

    async def read_on(self) -> None:
        """
        Read a page when there is nothing left of the one before.
        """
        if self.keys or self.is_at_end:
            return
        if self._cursor is None:
            self._cursor = await self._database.conn.cursor(_KEYS)
        self.keys = [row[0] for row in await self._cursor.fetch(CHUNK_TRANSFERS)]
        self.is_at_end = not self.keys

    def take(self, last: bytes) -> list[bytes]:
        """
        Take the keys up to *last*.
        """
        place = bisect_right(self.keys, last)
        taken, self.keys = self.keys[:place], self.keys[place:]
        return taken


async def _merge_keys(audit: Audit) -> None:
    streams = [KeyStream(database) for database in audit.databases]
    while True:
        for stream in streams:
            await stream.read_on()
        waiting = [stream.keys[-1] for stream in streams if stream.keys]
        if not waiting:
            return
        # Up to here every stream is read.
        last = min(waiting)
        keys = sorted(key for stream in streams for key in stream.take(last))
        if len(set(keys)) != len(keys):
            twice = next(key for key, after in pairwise(keys) if key == after)
            audit.differs("transfers", f"key {UUID(bytes=twice)}", "key", "used once", "used twice")
            return
