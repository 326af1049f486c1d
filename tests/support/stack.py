"""
A running ledger without Ray: a shard and a write-behind in processes of their own.

The processes are the real ones (`python -m actors`), on a real database; a test kills and
starts them as it likes and talks through the gateway's own `ShardClients`.
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

import asyncpg
import msgspec

from actors.child_process import ChildProcess
from configs.settings import GatewaySettings, Settings, load_settings
from gateway.shard_client import ShardClients
from processor.storage.connection import connect
from processor.storage.directory import ShardEntry, read_directory

READY_S_MAX = 20.0


class Stack:
    """
    The processes of one ledger, and how to reach it.
    """

    def __init__(self, dsn: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.dsn = dsn
        self.folder = folder
        self.secret = secrets.token_hex(16)
        self.environment = {
            "MILIANO_POSTGRES_DSN": dsn,
            "MILIANO_CLUSTER_SECRET": self.secret,
            "MILIANO_CLUSTER_SOCKET_DIR": str(folder),
            "MILIANO_CLUSTER_DATA_DIR": str(folder),
            **environment,
        }
        self.shard = self.process("shard", ["actors", "shard", "0"])
        self.write_behind = self.process("write-behind", ["actors", "write-behind"])

    @property
    def settings(self) -> Settings:
        return load_settings({**os.environ, **self.environment})

    def process(self, name: str, arguments: list[str]) -> ChildProcess:
        """
        Make a child of this stack's environment; it is not started yet.
        """
        return ChildProcess(
            name, arguments, log_path=self.folder / f"{name}.log", environment=self.environment
        )

    def start(self) -> None:
        self.shard.start()
        self.write_behind.start()

    def stop(self) -> None:
        self.shard.stop()
        self.write_behind.stop()

    def crash_shard(self) -> None:
        """
        Kill the shard with SIGKILL and start it again.
        """
        self.shard.kill()
        self.shard.start()

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
            dsn=self.dsn,
            secret=self.secret.encode(),
            settings=settings or GatewaySettings(),
        )
        await clients.start()
        try:
            yield clients
        finally:
            await clients.stop()

    async def shard_entry(self) -> ShardEntry:
        """
        Read the shard's row once it is served.
        """
        async with reading(self.dsn) as connection:
            deadline = time.monotonic() + READY_S_MAX
            while time.monotonic() < deadline:
                entries = await read_directory(connection)
                if entries and entries[0].endpoint is not None:
                    return entries[0]
                await asyncio.sleep(0.02)
        raise TimeoutError(f"the shard is not served\n{self.logs()}")

    async def projected(self) -> int:
        """
        Wait until the tables have caught up with the journal; return the sequence.
        """
        async with reading(self.dsn) as connection:
            deadline = time.monotonic() + READY_S_MAX
            while time.monotonic() < deadline:
                head = await connection.fetchval("SELECT max(sequence) FROM journal")
                mark = await connection.fetchval("SELECT min(sequence) FROM watermark")
                if head == mark:
                    return int(head or 0)
                await asyncio.sleep(0.02)
        raise TimeoutError(f"the tables stay behind the journal\n{self.logs()}")


@asynccontextmanager
async def reading(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await connect(dsn, application_name="miliano/test")
    try:
        yield connection
    finally:
        await connection.close()


@contextmanager
def running_stack(dsn: str, **environment: str) -> Iterator[Stack]:
    """
    Start a stack on a migrated database and stop it at the end; *environment* is added to it.
    """
    folder = Path(tempfile.mkdtemp(prefix="mil-"))
    stack = Stack(dsn, folder, environment)
    stack.start()
    try:
        yield stack
    finally:
        stack.stop()
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


def as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
