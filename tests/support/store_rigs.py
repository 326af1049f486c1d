"""
A shard's store with the means to break it: the same handles for Postgres and for its twin.

What stands between the store and its data is part of a rig, so that an append can be lost or
hidden on purpose and the store can be down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from configs.settings import WriteBehindSettings
from processor.core.record import Record
from processor.flow.ports import ShardCluster, ShardStore
from processor.storage.catalog import Placement, open_cluster, place_shards
from processor.storage.cluster import PostgresCluster
from processor.storage.directory import read_directory
from processor.storage.memory_store import (
    MemoryCatalog,
    MemoryCluster,
    MemoryDatabase,
    MemoryShardStore,
)
from processor.storage.projection import Projection
from processor.storage.shard_store import PostgresShardStore
from tests.support.books import read_journal
from tests.support.databases import reading
from tests.support.tcp_proxy import Direction, TcpProxy, proxied_postgres

WRITER = b"miliano/shard-0/writer"
PROJECTED = """
    SELECT table_name FROM information_schema.columns
     WHERE table_schema = 'public' AND column_name = 'shard_id' AND table_name NOT LIKE 'journal%'
       AND table_name NOT IN ('shard', 'placement', 'slot_map', 'witness')
"""
END_READERS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
     WHERE application_name LIKE 'miliano/%/keys' AND datname = current_database()
"""


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

    async def set_back(self, sequence: int) -> None:
        """
        Lose the journal above *sequence*, as a restore to an earlier point does.
        """
        ...

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

    async def set_back(self, sequence: int) -> None:
        del self._database.journal[sequence:]

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

    async def set_back(self, sequence: int) -> None:
        async with reading(self._dsn) as connection:
            await connection.execute("DELETE FROM journal WHERE sequence > $1", sequence)

    async def project(self, records_max: int = 1_000) -> None:
        await project_once(self._dsn, 0, records_max)

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


async def project_once(dsn: str, shard_id: int, records_max: int) -> None:
    projection = Projection(dsn, shard_id, WriteBehindSettings(records_max=records_max))
    await projection.open()
    try:
        await projection.step()
    finally:
        projection.close()


class ClusterRig(Protocol):
    """
    Three shards that know of each other; *has_witness* says that they live in several databases.
    """

    has_witness: bool

    def store(self, shard_id: int) -> ShardStore: ...

    def cluster(self, shard_id: int) -> ShardCluster: ...

    async def project(self, shard_id: int, records_max: int = 1_000) -> None: ...

    async def restore(self, shard_id: int, sequence: int) -> None:
        """
        Bring a shard's journal and tables back to *sequence*, which ends the connections of others
        to its database, as a restore to an earlier point does.
        """
        ...


class MemoryClusterRig:
    def __init__(self) -> None:
        self.has_witness = True
        self._databases = [MemoryDatabase(shard_id) for shard_id in range(3)]
        self._catalog = MemoryCatalog(self._databases)

    def store(self, shard_id: int) -> ShardStore:
        own = self._databases[shard_id]
        return MemoryShardStore(own, [one for one in self._databases if one is not own])

    def cluster(self, shard_id: int) -> ShardCluster:
        return MemoryCluster(self._catalog, shard_id)

    async def project(self, shard_id: int, records_max: int = 1_000) -> None:
        self._databases[shard_id].project(records_max)

    async def restore(self, shard_id: int, sequence: int) -> None:
        database = self._databases[shard_id]
        del database.journal[sequence:]
        database.crash()
        database.project()


class PostgresClusterRig:
    """
    *dsns* lead to databases that hold no shard yet.
    """

    def __init__(self, dsns: Sequence[str], placements: Sequence[Placement]) -> None:
        self.has_witness = len(dsns) > 1
        self._dsns = dsns
        self._homes = {placement.shard_id: placement.dsn for placement in placements}

    @classmethod
    async def open(cls, dsns: Sequence[str]) -> PostgresClusterRig:
        return cls(dsns, await place_shards(await open_cluster(dsns), 3))

    def store(self, shard_id: int) -> ShardStore:
        own = self._homes[shard_id]
        others = [dsn for dsn in self._dsns if dsn != own]
        return PostgresShardStore(own, shard_id, other_dsns=others)

    def cluster(self, shard_id: int) -> ShardCluster:
        return PostgresCluster(shard_id, self._homes[shard_id], self._dsns)

    async def project(self, shard_id: int, records_max: int = 1_000) -> None:
        await project_once(self._homes[shard_id], shard_id, records_max)

    async def restore(self, shard_id: int, sequence: int) -> None:
        async with reading(self._homes[shard_id]) as connection:
            await connection.execute(
                "DELETE FROM journal WHERE shard_id = $1 AND sequence > $2", shard_id, sequence
            )
            for (table,) in await connection.fetch(PROJECTED):
                await connection.execute(f"DELETE FROM {table} WHERE shard_id = $1", shard_id)
            await connection.execute(END_READERS)
        await self.project(shard_id)
