"""
Several shards in one event loop, each on the twin of its store and behind a socket of its own.

They find one another as in production, but the directory is the test: what it does not tell them
they do not know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from actors.shard_server import ShardServer
from configs.settings import ShardSettings
from processor.core.commands import Command
from processor.core.invariants import books
from processor.flow.frames import Moved, Result
from processor.storage.memory_store import MemoryCatalog, MemoryDatabase
from tests.support.memory_shard import SECRET, MemoryShard
from tests.support.waiting import until


class MemoryPeers:
    """
    The shards of one cluster, by number. One that is not in `shards` is down.
    """

    def __init__(self, shard_count: int, folder: Path, settings: ShardSettings) -> None:
        self.databases = [MemoryDatabase(shard_id) for shard_id in range(shard_count)]
        self.catalog = MemoryCatalog(self.databases)
        self.shards: dict[int, MemoryShard] = {}
        self._servers: dict[int, ShardServer] = {}
        self._folder = folder
        self._settings = settings
        self._start_count = 0

    def __getitem__(self, shard_id: int) -> MemoryShard:
        return self.shards[shard_id]

    def place(self) -> int:
        """
        Add a shard without slots, and return its number; it is not started.
        """
        database = MemoryDatabase(len(self.databases))
        self.databases.append(database)
        self.catalog.place(database)
        return database.shard_id

    async def start(self, shard_id: int, *, is_told: bool = True) -> MemoryShard:
        """
        Start a shard at a new address, and tell all; or only let it find the others.
        """
        shard = MemoryShard(self.databases[shard_id], self._settings, catalog=self.catalog)
        server = ShardServer(shard.shard, SECRET)
        self._start_count += 1
        await server.listen_unix(self._folder / f"{self._start_count}.sock")
        shard.endpoint = server.endpoint
        await shard.start()
        self.shards[shard_id], self._servers[shard_id] = shard, server
        for each in self.shards if is_told else [shard_id]:
            self.tell_endpoints(each)
        return shard

    def tell_endpoints(self, shard_id: int) -> None:
        """
        Tell a shard where the others are.
        """
        others = {other: shard.endpoint for other, shard in self.shards.items()}
        del others[shard_id]
        self.shards[shard_id].shard.endpoints_changed(others)

    async def crash(self, shard_id: int) -> None:
        """
        End a shard with all its connections; what was not durable is lost.
        """
        self._servers.pop(shard_id).close()
        await self.shards.pop(shard_id).stop()

    async def stop(self) -> None:
        for shard_id in list(self.shards):
            await self.crash(shard_id)

    async def ask(self, *commands: Command, first: int) -> list[Result]:
        """
        Ask shard *first*, and whoever it names, as a gateway does.
        """
        results = []
        for command in commands:
            shard_id = first

            async def answered(command: Command = command) -> Result | None:
                nonlocal shard_id
                (result,) = await self.shards[shard_id].ask(command)
                if not isinstance(result, Moved):
                    return result
                shard_id = result.shard_id if result.shard_id in self.shards else shard_id
                return None

            results.append(await until(answered, f"the owner of {command}"))
        return results

    def pending(self) -> int:
        """
        Count what is on its way between all shards.
        """
        return sum(shard.shard.statistics().pending_entries for shard in self.shards.values())

    async def settled(self) -> None:
        """
        Wait until nothing is on its way, and see that every shard's books are at zero.
        """
        await until(lambda: self.pending() == 0, "everything to settle")
        for shard_id, shard in self.shards.items():
            await until(lambda: shard.shard.is_idle, f"shard {shard_id} to write it")  # noqa: B023
            self.databases[shard_id].project()
            wallets = self.databases[shard_id].tables.wallets.values()
            assert set(books(wallets).values()) <= {0}

    def balances(self, names: Sequence[str]) -> dict[str, int]:
        """
        Read wallets in the tables.
        """
        wallets = {
            name: wallet.posted
            for database in self.databases
            for name, wallet in database.tables.wallets.items()
        }
        return {name: wallets[name] for name in names}


@asynccontextmanager
async def running_peers(
    folder: Path, shard_count: int = 2, settings: ShardSettings | None = None
) -> AsyncIterator[MemoryPeers]:
    """
    Run shards that know one another for the length of a block.
    """
    peers = MemoryPeers(shard_count, folder, settings or ShardSettings())
    for shard_id in range(shard_count):
        await peers.start(shard_id)
    try:
        yield peers
    finally:
        await peers.stop()
