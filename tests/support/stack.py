"""
A running ledger without Ray: two shards or more, and a write-behind per database, each in a
process of its own.

The processes are the real ones (`python -m actors`), on real databases; a test kills and starts
them as it likes and talks through the gateway's own `ShardClients`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec

from actors.child_process import ChildProcess
from configs.settings import GatewaySettings, Settings, load_settings
from gateway.shard_clients import ShardClients
from processor.storage.catalog import open_cluster, place_shards
from processor.storage.directory import ShardEntry, read_directory
from tests.support.databases import reading

READY_S_MAX = 20.0

_BEHIND = """
    SELECT count(*) FROM (SELECT shard_id, max(sequence) AS head FROM journal GROUP BY 1) AS ends
      LEFT JOIN watermark USING (shard_id)
     WHERE head > coalesce(watermark.sequence, 0)
"""


class Stack:
    """
    The processes of one ledger, and how to reach it. *dsn* may hold several, with spaces between.
    """

    def __init__(
        self, dsn: str, folder: Path, environment: Mapping[str, str], shard_count: int = 2
    ) -> None:
        self.dsn = dsn
        self.dsns = dsn.split()
        self.folder = folder
        self.secret = secrets.token_hex(16)
        self.environment = {
            "MILIANO_POSTGRES_DSN": dsn,
            "MILIANO_CLUSTER_SECRET": self.secret,
            "MILIANO_CLUSTER_SOCKET_DIR": str(folder),
            "MILIANO_CLUSTER_DATA_DIR": str(folder),
            **environment,
        }
        self.shards = [self.process("shard", number) for number in range(shard_count)]
        self.write_behinds = [
            self.process("write-behind", number) for number in range(len(self.dsns))
        ]

    @property
    def shard(self) -> ChildProcess:
        """
        Shard 0, which has the first half of the slots when there are two.
        """
        return self.shards[0]

    @property
    def write_behind(self) -> ChildProcess:
        return self.write_behinds[0]

    @property
    def settings(self) -> Settings:
        return load_settings({**os.environ, **self.environment})

    def process(self, kind: str, number: int, name: str = "") -> ChildProcess:
        """
        Make a shard or a write-behind of this stack; it is not started yet.
        """
        return self.child(name or f"{kind}-{number}", ["actors", kind, str(number)])

    def child(self, name: str, arguments: list[str]) -> ChildProcess:
        """
        Make a process of any of our modules in this stack's environment.
        """
        return ChildProcess(
            name, arguments, log_path=self.folder / f"{name}.log", environment=self.environment
        )

    def place_shards(self) -> None:
        """
        Make the databases one cluster and place the shards, as the supervisor does.
        """

        async def place() -> None:
            await place_shards(await open_cluster(self.dsns), len(self.shards))

        asyncio.run(place())

    def start(self) -> None:
        self.place_shards()
        for child in (*self.shards, *self.write_behinds):
            child.start()

    def stop(self) -> None:
        for child in (*self.shards, *self.write_behinds):
            child.stop()

    def crash_shard(self, shard_id: int = 0) -> None:
        """
        Kill a shard with SIGKILL and start it again.
        """
        self.shards[shard_id].kill()
        self.shards[shard_id].start()

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log"))
        )

    @asynccontextmanager
    async def clients(self, settings: GatewaySettings | None = None) -> AsyncIterator[ShardClients]:
        """
        Connect as a gateway does.
        """
        clients = ShardClients(
            self.dsns,
            secret=self.secret.encode(),
            settings=settings or GatewaySettings(),
        )
        await clients.start()
        try:
            yield clients
        finally:
            await clients.stop()

    async def entries(self) -> dict[int, ShardEntry]:
        """
        Read the rows of all shards.
        """
        found = {}
        for dsn in self.dsns:
            async with reading(dsn) as connection:
                found.update({entry.shard_id: entry for entry in await read_directory(connection)})
        return found

    async def shard_entry(self, shard_id: int = 0) -> ShardEntry:
        """
        Read a shard's row once it is served.
        """
        deadline = time.monotonic() + READY_S_MAX
        while time.monotonic() < deadline:
            entry = (await self.entries()).get(shard_id)
            if entry is not None and entry.endpoint is not None:
                return entry
            await asyncio.sleep(0.02)
        raise TimeoutError(f"shard {shard_id} is not served\n{self.logs()}")

    async def projected(self) -> None:
        """
        Wait until the tables of every shard have caught up with its journal.
        """
        for dsn in self.dsns:
            async with reading(dsn) as connection:
                deadline = time.monotonic() + READY_S_MAX
                while await connection.fetchval(_BEHIND):
                    assert time.monotonic() < deadline, f"the tables stay behind\n{self.logs()}"
                    await asyncio.sleep(0.02)

    async def settled(self) -> None:
        """
        Wait until nothing is on its way between shards, and the tables show it.
        """
        deadline = time.monotonic() + READY_S_MAX
        while True:
            await self.projected()
            pending = 0
            for dsn in self.dsns:
                async with reading(dsn) as connection:
                    pending += await connection.fetchval("SELECT count(*) FROM pending_entries")
            if not pending:
                return
            assert time.monotonic() < deadline, f"{pending} stay pending\n{self.logs()}"
            await asyncio.sleep(0.02)


@contextmanager
def running_stack(dsn: str, *, shard_count: int = 2, **environment: str) -> Iterator[Stack]:
    """
    Start a stack on migrated databases and stop it at the end; *environment* is added to it.
    """
    folder = Path(tempfile.mkdtemp(prefix="mil-"))
    stack = Stack(dsn, folder, environment, shard_count)
    stack.start()
    try:
        yield stack
    finally:
        stack.stop()
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


def as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
