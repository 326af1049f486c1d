"""
A shard's store with the means to break it: the same handles for Postgres and for its twin.

What stands between the store and its data is part of a rig, so that an append can be lost or
hidden on purpose and the store can be down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from configs.settings import WriteBehindSettings
from processor.core.record import Record
from processor.flow.ports import ShardStore
from processor.storage.directory import read_directory
from processor.storage.memory_store import MemoryDatabase, MemoryShardStore
from processor.storage.projection import Projection
from processor.storage.shard_store import PostgresShardStore
from tests.support.books import read_journal
from tests.support.stack import reading
from tests.support.tcp_proxy import Direction, TcpProxy, proxied_postgres

WRITER = b"miliano/shard-0/writer"


class StoreRig(Protocol):
    """
    One database, and what a test does behind the stores' backs.
    """

    def store(self) -> ShardStore:
        """
        Make one more owner's view of shard 0; the test closes it.
        """
        ...

    def break_next_append(self, *, written: bool) -> None:
        """
        Let the owner's next append end in doubt: the record *written* or not.

        It has appended before: a first append begins by preparing, and would be cut there.
        """
        ...

    def go_down(self) -> None:
        """
        Break every connection and refuse new ones.
        """
        ...

    def come_up(self) -> None: ...

    async def project(self, records_max: int = 1_000) -> None:
        """
        Move the tables behind the journal by at most so many records.
        """
        ...

    async def journal(self) -> list[Record]: ...

    async def endpoint(self) -> tuple[str, int] | None:
        """
        Read what is published.
        """
        ...


class MemoryRig:
    def __init__(self) -> None:
        self._database = MemoryDatabase()

    def store(self) -> ShardStore:
        return MemoryShardStore(self._database)

    def break_next_append(self, *, written: bool) -> None:
        self._database.fail_next_append = "hidden" if written else "lost"

    def go_down(self) -> None:
        self._database.available = False

    def come_up(self) -> None:
        self._database.available = True

    async def project(self, records_max: int = 1_000) -> None:
        self._database.project(records_max)

    async def journal(self) -> list[Record]:
        return list(self._database.journal)

    async def endpoint(self) -> tuple[str, int] | None:
        return self._database.endpoint


class PostgresRig:
    """
    *dsn* leads to the server, *through* leads there by way of *proxy*.
    """

    def __init__(self, dsn: str, through: str, proxy: TcpProxy) -> None:
        self._dsn = dsn
        self._through = through
        self._proxy = proxy

    def store(self) -> ShardStore:
        return PostgresShardStore(self._through, 0)

    def break_next_append(self, *, written: bool) -> None:
        direction = Direction.TO_CLIENT if written else Direction.TO_SERVER
        self._proxy.link_of(WRITER).cut_after(direction, byte_count=0)

    def go_down(self) -> None:
        self._proxy.refuse()
        for link in self._proxy.links:
            if link.is_open:
                link.cut()

    def come_up(self) -> None:
        self._proxy.refuse(refused=False)

    async def project(self, records_max: int = 1_000) -> None:
        projection = Projection(self._dsn, 0, WriteBehindSettings(records_max=records_max))
        await projection.open()
        try:
            await projection.step()
        finally:
            projection.close()

    async def journal(self) -> list[Record]:
        return (await read_journal(self._dsn)).records

    async def endpoint(self) -> tuple[str, int] | None:
        async with reading(self._dsn) as connection:
            (entry,) = await read_directory(connection)
        if entry.endpoint is None or entry.pid is None:
            return None
        return entry.endpoint, entry.pid


@contextmanager
def postgres_rig(dsn: str) -> Iterator[PostgresRig]:
    with (
        TemporaryDirectory(prefix="mil-") as folder,
        proxied_postgres(dsn, Path(folder)) as (proxy, through),
    ):
        yield PostgresRig(dsn, through, proxy)
