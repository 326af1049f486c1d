"""
The audit of keys: no two outcomes under one key, in whichever database they are.

A key stands in a row of `transfers`, or, with terms, of holds and of linked transfers, in one of
`outcomes`. What went with a slot has copies in `outcomes`, which have to be the same. Within
`transfers` the unique index of a database keeps keys apart. Over several databases the sorted keys
of all are read side by side, a page of each at a time. Those that are not projected, or on their
way, are few enough to be kept and looked up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from uuid import UUID

import asyncpg
import msgspec

from processor.storage.audit import CHUNK_TRANSFERS, Audit, AuditedDatabase
from processor.storage.recomputed_layouts import POSTED, REJECTED, filled_up
from processor.storage.recomputed_wallets import Contradiction

_decode = msgspec.msgpack.Decoder().decode

_UNIQUE_KEY = """
    SELECT indisunique AND indisvalid FROM pg_index
     WHERE indexrelid = to_regclass('transfers_by_key')
"""

_USED_BEFORE = """
    SELECT transfer_id, key FROM transfers
     WHERE (transfer_id = ANY($1) AND key IS NOT NULL) OR key = ANY($2)
     ORDER BY transfer_id LIMIT 1
"""

_OUTCOMES_NAMED = """
    SELECT transfer_id, key, shard_id FROM outcomes
     WHERE transfer_id = ANY($1) OR key = ANY($2)
     ORDER BY transfer_id
"""

# Keys of several outcomes within one database; those of movements that went with a slot have a row
# besides, and its shard has compared it with what went.
_OUTCOMES_TWICE = """
    SELECT key FROM outcomes GROUP BY key HAVING count(DISTINCT outcome) > 1 ORDER BY key LIMIT 1
"""
_OUTCOMES_AND_ROWS = """
    SELECT outcomes.key, outcomes.outcome, transfers.transfer_id
      FROM outcomes JOIN transfers ON transfers.key = outcomes.key
"""

_ONE_OUTCOME = "SELECT outcome FROM outcomes WHERE key = $1 LIMIT 1"

# A row of transfers stands for itself, an outcome for its content.
_KEYS = """
    SELECT key, '' AS content FROM transfers WHERE key IS NOT NULL
     UNION ALL
    SELECT key, md5(outcome) FROM outcomes
     ORDER BY key
"""


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


async def check_unused(
    audit: Audit, named: Sequence[Named], *, decided_at: int | None = None
) -> None:
    """
    Check that no database has an outcome under these names; copies at other shards than the one
    where they were decided have gone there with a slot.
    """
    for start in range(0, len(named), CHUNK_TRANSFERS):
        some = named[start : start + CHUNK_TRANSFERS]
        ids, keys = [each[0] for each in some], [each[1] for each in some]
        pairs = {(each[0], each[1]) for each in some}
        for database in audit.databases:
            name_used(audit, await database.conn.fetchrow(_USED_BEFORE, ids, keys), some)
            for row in await database.conn.fetch(_OUTCOMES_NAMED, ids, keys):
                is_pair = (row["transfer_id"], row["key"]) in pairs
                is_copy = decided_at is not None and row["shard_id"] != decided_at
                if not (is_pair and is_copy):
                    name_used(audit, row, some)


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
        for transfer_id, key in journal.names_undecided():
            note_once(audit, where, "transfer_id", ids, transfer_id)
            note_once(audit, where, "key", keys, key)
            named.append((transfer_id, key, where))
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
        return
    conn = audit.databases[0].conn
    twice = await conn.fetchval(_OUTCOMES_TWICE)
    if twice is not None:
        _used_twice(audit, twice)
    cursor = await conn.cursor(_OUTCOMES_AND_ROWS)
    while rows := await cursor.fetch(CHUNK_TRANSFERS):
        for key, outcome, transfer_id in rows:
            if not is_copy_of(outcome, transfer_id):
                _used_twice(audit, key)


def is_copy_of(outcome: bytes, transfer_id: bytes | None) -> bool:
    """
    Say whether an outcome may stand next to a row of `transfers` under the same key: it is of the
    same movement, and that one is not bound to anything, so that the row has the key.
    """
    try:
        decision = filled_up(_decode(outcome)[0])
    except (Contradiction, msgspec.DecodeError, LookupError, TypeError):
        return True  # The comparison with the journal names it.
    if decision[0] not in (POSTED, REJECTED) or decision[-1] is not None:
        return False
    return transfer_id is None or decision[2] == transfer_id


def _used_twice(audit: Audit, key: bytes) -> None:
    audit.differs("transfers", f"key {UUID(bytes=key)}", "key", "used once", "used twice")


Key = tuple[bytes, str]  # With what stands under it.


class KeyStream:
    """
    The keys of one database in their order, as far as they are read and not taken.
    """

    def __init__(self, database: AuditedDatabase) -> None:
        self._database = database
        self._cursor: asyncpg.cursor.Cursor[asyncpg.Record] | None = None
        self.keys: list[Key] = []
        self.is_at_end = False

    async def read_on(self) -> None:
        """
        Read a page when there is nothing left of the one before.
        """
        if self.keys or self.is_at_end:
            return
        if self._cursor is None:
            self._cursor = await self._database.conn.cursor(_KEYS)
        self.keys = [tuple(row) for row in await self._cursor.fetch(CHUNK_TRANSFERS)]
        self.is_at_end = not self.keys

    def take(self, last: bytes) -> list[Key]:
        """
        Take the keys before *last*, or up to it when that is all there is.
        """
        place = bisect_left(self.keys, last, key=itemgetter(0))
        taken, self.keys = self.keys[:place], self.keys[place:]
        return taken

    async def outcome_under(self, key: bytes) -> bytes | None:
        found: bytes | None = await self._database.conn.fetchval(_ONE_OUTCOME, key)
        return found


async def _merge_keys(audit: Audit) -> None:
    streams = [KeyStream(database) for database in audit.databases]
    while True:
        for stream in streams:
            await stream.read_on()
        waiting = [stream.keys[-1][0] for stream in streams if stream.keys]
        if not waiting:
            return
        # Before here every stream is read; the last key of a page may go on in the next one.
        last = min(waiting)
        keys = sorted(key for stream in streams for key in stream.take(last))
        keys += await _all_under(streams, last)
        for key in await _shared(streams, keys):
            _used_twice(audit, key)
            return


async def _all_under(streams: list[KeyStream], key: bytes) -> list[Key]:
    """
    Take whatever stands under *key* in any database, over the ends of pages.
    """
    found: list[Key] = []
    for stream in streams:
        while stream.keys and stream.keys[0][0] == key:
            found.append(stream.keys.pop(0))
            await stream.read_on()
    return sorted(found)


async def _shared(streams: list[KeyStream], keys: list[Key]) -> list[bytes]:
    """
    Name the keys under which there is more than one outcome, without its copies.
    """
    names = [key for key, _ in keys]
    if len(set(names)) == len(names):
        return []
    shared = []
    for key, group in groupby(keys, key=itemgetter(0)):
        contents = [content for _, content in group]
        rows, copies = contents.count(""), {content for content in contents if content}
        if rows > 1 or len(copies) > 1:
            shared.append(key)
        elif rows and copies:
            found = [await stream.outcome_under(key) for stream in streams]
            outcome = next(one for one in found if one is not None)
            if not is_copy_of(outcome, None):
                shared.append(key)
    return shared
