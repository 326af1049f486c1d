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

import structlog
import uvloop

from actors.shard_server import ShardServer, socket_path
from actors.wallet_shard import ShardStatistics, WalletShard, end_process
from actors.write_behind import WriteBehind, WriteBehindStatistics
from configs.secret import read_secret
from configs.settings import Settings
from processor.flow.ports import StoreUnavailable
from processor.storage.catalog import dsn_of
from processor.storage.cluster import PostgresCluster
from processor.storage.directory import Directory, ShardEntry
from processor.storage.shard_store import PostgresShardStore

DRAIN_S_MAX = 30.0
RETRY_S = 0.5

log = structlog.get_logger("hosting")


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
    One shard with its socket, in the database where it was placed.
    """

    def __init__(self, shard_id: int, settings: Settings, *, build: str) -> None:
        self._shard_id = shard_id
        self._settings = settings
        self._build = build
        self._secret = read_secret(settings.cluster)
        self._thread = LoopThread(f"shard-{shard_id}")
        self._shard: WalletShard | None = None
        self._server: ShardServer | None = None

    def start(self) -> None:
        self._thread.start(self._serve())

    async def _serve(self) -> None:
        dsns = self._settings.postgres.dsns
        shard = self._make_shard(await self._own_dsn(dsns), dsns)
        server = ShardServer(shard, self._secret)
        self._shard, self._server = shard, server
        cluster = self._settings.cluster
        if cluster.shard_host:
            await server.listen_tcp(cluster.shard_host)
        else:
            await server.listen_unix(socket_path(Path(cluster.socket_dir), self._shard_id))
        directory = Directory(dsns, self._entries_changed)
        await asyncio.gather(shard.run(), directory.run())

    async def _own_dsn(self, dsns: list[str]) -> str:
        while True:
            try:
                return await dsn_of(dsns, self._shard_id)
            except StoreUnavailable as error:
                log.warning("catalog unavailable", shard_id=self._shard_id, error=str(error))
                await asyncio.sleep(RETRY_S)

    def _make_shard(self, dsn: str, dsns: list[str]) -> WalletShard:
        store = PostgresShardStore(
            dsn,
            self._shard_id,
            durability=self._settings.postgres.durability,
            other_dsns=[other for other in dsns if other != dsn],
        )
        return WalletShard(
            self._shard_id,
            store,
            PostgresCluster(self._shard_id, dsn, dsns),
            self._settings.shard,
            secret=self._secret,
            build=self._build,
            publish_endpoint=self._endpoint,
        )

    def _endpoint(self) -> str:
        assert self._server is not None, "a shard is served before it is published"
        return self._server.endpoint

    def _entries_changed(self, entries: list[ShardEntry]) -> None:
        assert self._shard is not None, "the shard is there before its peers"
        self._shard.endpoints_changed(
            {
                entry.shard_id: entry.endpoint
                for entry in entries
                if entry.endpoint is not None and entry.shard_id != self._shard_id
            }
        )

    def statistics(self) -> ShardStatistics | None:
        """
        Tell of the shard; None while it looks for its database.
        """
        return self._shard.statistics() if self._shard is not None else None

    def drain(self) -> ShardStatistics | None:
        """
        Finish what was taken in, then stop listening; the process may end after it.
        """
        if self._shard is not None and self._server is not None:
            self._thread.call(self._shard.drain(), DRAIN_S_MAX)
            self._server.close()
        return self.statistics()


class WriteBehindHost:
    """
    The write-behind of one of the configured databases.
    """

    def __init__(self, database_number: int, settings: Settings) -> None:
        self._dsn = settings.postgres.dsns[database_number]
        self._settings = settings
        self._thread = LoopThread(f"write-behind-{database_number}")
        self._write_behind: WriteBehind | None = None

    def start(self) -> None:
        self._thread.start(self._serve())

    async def _serve(self) -> None:
        self._write_behind = WriteBehind(self._dsn, self._settings.write_behind)
        await self._write_behind.run()

    def statistics(self) -> WriteBehindStatistics:
        if self._write_behind is None:
            return WriteBehindStatistics(watermarks={}, halted={})
        return self._write_behind.statistics()
