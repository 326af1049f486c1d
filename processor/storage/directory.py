"""
Where the shards are served and which has which slot: the `shard` tables of all databases and the
catalog's map, watched.

What changes is notified; a slow poll covers what a notification can miss.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import asyncpg
import msgspec
import structlog

from processor.core.slots import SlotMap
from processor.storage.connection import connect
from processor.storage.session import STORE_ERRORS
from processor.storage.shard_store import ENDPOINT_CHANNEL
from processor.storage.slot_map import SLOTS_CHANNEL, SlotReading

POLL_S = 1.0
RETRY_S = 0.2
LOOK_S_MAX = 5.0  # A server that does not answer for so long is given up on.

log = structlog.get_logger("directory")

T = TypeVar("T")

_ENTRIES = """
    SELECT shard_id, epoch, state, endpoint, pid, build, halted_for FROM shard ORDER BY shard_id
"""

_RESUME = """
    UPDATE shard SET state = 'active', halted_for = NULL, changed_at = now()
     WHERE shard_id = $1 AND state = 'halted' RETURNING true
"""


class ShardEntry(msgspec.Struct, frozen=True):
    """
    One shard as the catalog knows it; `endpoint` is None while nobody serves it.
    """

    shard_id: int
    epoch: int
    state: str
    endpoint: str | None
    pid: int | None
    build: str | None
    halted_for: str | None


async def read_directory(connection: asyncpg.Connection[Any]) -> list[ShardEntry]:
    return [ShardEntry(*row) for row in await connection.fetch(_ENTRIES)]


async def resume_shard(connection: asyncpg.Connection[Any], shard_id: int) -> bool:
    """
    Let a halted shard recover at its next start; False when there is no such halted shard.
    """
    resumed = await connection.fetchval(_RESUME, shard_id)
    return resumed is not None


class Watch(Generic[T]):
    """
    Calls *changed* with what *read* gives, at first and whenever it is another, for ever.

    It reads when it is notified on *channel*, when `look` is set, and slowly anyway.
    """

    def __init__(
        self,
        dsn: str,
        application_name: str,
        channel: str,
        read: Callable[[asyncpg.Connection[Any]], Awaitable[T | None]],
        changed: Callable[[T], None],
    ) -> None:
        self.look = asyncio.Event()
        self._dsn = dsn
        self._application_name = application_name
        self._channel = channel
        self._read = read
        self._changed = changed
        self._seen: T | None = None

    async def run(self) -> None:
        while True:
            try:
                await self._watch()
            except STORE_ERRORS as error:
                log.warning(
                    "watch interrupted",
                    of=self._application_name,
                    error=f"{type(error).__name__}: {error}",
                )
                await asyncio.sleep(RETRY_S)

    async def _watch(self) -> None:
        connection = await connect(self._dsn, application_name=self._application_name)
        try:
            await connection.add_listener(self._channel, lambda *_: self.look.set())
            while True:
                self.look.clear()
                async with asyncio.timeout(LOOK_S_MAX):
                    seen = await self._read(connection)
                if seen is not None and seen != self._seen:
                    self._seen = seen
                    self._changed(seen)
                # Not `wait_for`: in Python 3.11 it can swallow the cancellation that ends this.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self.look.wait()
        finally:
            connection.terminate()


class Directory:
    """
    Calls *changed* with the entries of all databases, at first and after each change, for ever.

    *slots_changed* gets the map of slots in the same way, from the first of *dsns*, as soon as
    there is one. A database that is down keeps its last entries. Several DSNs may stand in one
    text, with spaces between them.
    """

    def __init__(
        self,
        dsns: str | Sequence[str],
        changed: Callable[[list[ShardEntry]], None],
        slots_changed: Callable[[SlotMap], None] | None = None,
    ) -> None:
        dsns = dsns.split() if isinstance(dsns, str) else dsns
        self._changed = changed
        self._entries: dict[str, list[ShardEntry]] = {}
        self._watches: list[Watch[Any]] = [self._watch_of_entries(dsn) for dsn in dsns]
        if slots_changed is not None:
            self._watches.append(
                Watch(dsns[0], "miliano/slots", SLOTS_CHANNEL, SlotReading().read, slots_changed)
            )

    def _watch_of_entries(self, dsn: str) -> Watch[list[ShardEntry]]:
        def entries_changed(entries: list[ShardEntry]) -> None:
            self._entries[dsn] = entries
            merged = [entry for some in self._entries.values() for entry in some]
            self._changed(sorted(merged, key=lambda entry: entry.shard_id))

        return Watch(dsn, "miliano/directory", ENDPOINT_CHANNEL, read_directory, entries_changed)

    def look_again(self) -> None:
        """
        Read the tables now: somebody has reason to think that they changed.
        """
        for watch in self._watches:
            watch.look.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as watching:
            for watch in self._watches:
                watching.create_task(watch.run())
