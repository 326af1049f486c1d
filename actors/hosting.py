"""
A shard or a write-behind in an event loop of its own, in a thread of its own.

The same host runs in a Ray actor and in a plain process. The thread keeps Ray's control calls
and the money apart: only this loop touches the state. A loop that ends unexpectedly ends the
process; nothing goes on half alive.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from actors.shard_server import ShardServer, socket_path
from actors.wallet_shard import ShardStatistics, WalletShard, end_process
from actors.write_behind import WriteBehind, WriteBehindStatistics
from configs.secret import read_secret
from configs.settings import Settings
from processor.storage.shard_store import PostgresShardStore

DRAIN_S_MAX = 30.0
WRITE_BEHIND_EXIT_S = 5.0


class LoopThread:
    """
    Runs one coroutine for the life of the process, on uvloop, beside the main thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = uvloop.new_event_loop()
        self._thread: threading.Thread | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self._thread = threading.Thread(
            target=self._run, args=(work,), name=self._name, daemon=True
        )
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
        """
        Run *work* on the loop and wait for its result; raises TimeoutError.
        """
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(work)
        except BaseException as error:
            end_process(f"{self._name}: {type(error).__name__}: {error}")
        end_process(f"{self._name} ended")


class ShardHost:
    """
    One shard with its socket.
    """

    def __init__(self, shard_id: int, settings: Settings, *, build: str) -> None:
        self._settings = settings
        self._thread = LoopThread(f"shard-{shard_id}")
        store = PostgresShardStore(
            settings.postgres.dsn, shard_id, durability=settings.postgres.durability
        )
        self._server: ShardServer
        self.shard = WalletShard(
            shard_id,
            store,
            settings.shard,
            build=build,
            publish_endpoint=lambda: self._server.endpoint,
        )
        self._server = ShardServer(self.shard, read_secret(settings.cluster))

    def start(self) -> None:
        self._thread.start(self._serve())

    async def _serve(self) -> None:
        cluster = self._settings.cluster
        if cluster.shard_host:
            await self._server.listen_tcp(cluster.shard_host)
        else:
            directory = Path(cluster.socket_dir)
            await self._server.listen_unix(socket_path(directory, self.shard.shard_id))
        await self.shard.run()

    def statistics(self) -> ShardStatistics:
        return self.shard.statistics()

    def drain(self) -> ShardStatistics:
        """
        Finish what was taken in, then stop listening; the process may end after it.
        """
        self._thread.call(self.shard.drain(), DRAIN_S_MAX)
        self._server.close()
        return self.shard.statistics()


class WriteBehindHost:
    """
    The write-behind of the configured database.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = LoopThread("write-behind")
        self._write_behind: WriteBehind | None = None

    def start(self) -> None:
        self._thread.start(self._serve())

    async def _serve(self) -> None:
        self._write_behind = WriteBehind(self._settings.postgres.dsn, self._settings.write_behind)
        await self._write_behind.run()

    def statistics(self) -> WriteBehindStatistics:
        if self._write_behind is None:
            return WriteBehindStatistics(watermarks={}, halted={})
        return self._write_behind.statistics()
