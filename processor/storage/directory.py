"""
Where the shards are served: the `shard` table, watched.

Publishing an endpoint notifies; a slow poll covers what a notification can miss.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import asyncpg
import msgspec
import structlog

from processor.storage.connection import connect
from processor.storage.shard_store import ENDPOINT_CHANNEL, STORE_ERRORS

POLL_S = 1.0
RETRY_S = 0.2
LOOK_S_MAX = 5.0  # A server that does not answer for so long is given up on.

log = structlog.get_logger("directory")

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


class Directory:
    """
    Calls *changed* with all entries at first and after each change, for ever.
    """

    def __init__(self, dsn: str, changed: Callable[[list[ShardEntry]], None]) -> None:
        self._dsn = dsn
        self._changed = changed
        self._look = asyncio.Event()
        self._entries: list[ShardEntry] | None = None

    def look_again(self) -> None:
        """
        Read the table now: somebody has reason to think that it changed.
        """
        self._look.set()

    async def run(self) -> None:
        while True:
            try:
                await self._watch()
            except STORE_ERRORS as error:
                log.warning("directory unavailable", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_S)

    async def _watch(self) -> None:
        connection = await connect(self._dsn, application_name="miliano/directory")
        try:
            await connection.add_listener(ENDPOINT_CHANNEL, lambda *_: self._look.set())
            while True:
                self._look.clear()
                async with asyncio.timeout(LOOK_S_MAX):
                    entries = await read_directory(connection)
                if entries != self._entries:
                    self._entries = entries
                    self._changed(entries)
                # Not `wait_for`: in Python 3.11 it can swallow the cancellation that ends this.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._look.wait()
        finally:
            connection.terminate()
