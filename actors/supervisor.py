"""
Brings a whole ledger up, keeps it up, and takes it down.

Order up: databases, schema, placement of the shards, secret, shards and write-behinds, gateway.
Order down: the reverse. A shard that is placed later is started when it is seen. Every child ends
with this process, by Ctrl-C, SIGTERM or `kill -9`; the data stays in the data folder and is found
again. One supervisor per data folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import msgspec
import structlog

from actors.child_process import ChildProcess
from actors.process_runtime import ProcessRuntime
from actors.ray_runtime import RayRuntime
from actors.short_dir import make_short_dir, remove_short_dir
from configs.secret import make_secret
from configs.settings import Settings, load_settings
from processor.flow.ports import StoreUnavailable
from processor.storage import schema
from processor.storage.api_keys import Scope, create_key, create_merchant, find_key, parse_key
from processor.storage.catalog import (
    Database,
    ForeignDatabase,
    Placement,
    open_cluster,
    place_shards,
    read_placements,
)
from processor.storage.connection import connect
from processor.storage.directory import ShardEntry, read_directory
from processor.storage.embedded_postgres import EmbeddedPostgres

DATABASE = "miliano"
FIRST_MERCHANT = "first"
CORES_PER_SHARD = 4
WATCH_S = 0.5
LOOK_S = 0.05
RECOVERY_S_MAX = 300.0  # A shard with a long journal behind the tables.
GATEWAY_S_MAX = 60.0
WAITING_S = 5.0
PLACEMENTS_S_MAX = 2.0
CONNECT_S_MAX = 1.0

log = structlog.get_logger("supervisor")

Progress = Callable[[str], None]


class AlreadyRunning(Exception):
    """
    Another supervisor works in this data folder.
    """


class NotServing(Exception):
    """
    A part did not come up; the message says which, and where its log is or what to do.
    """


class Running(msgspec.Struct, frozen=True):
    """
    What a running ledger tells others, in `running.json` of its data folder.

    `dsn` has the DSNs of all databases, with spaces between them.
    """

    pid: int
    url: str
    dsn: str
    runtime: str
    key_file: str
    log_dir: str


class Runtime(Protocol):
    """
    Where shards and write-behind run.
    """

    name: str

    def start(self) -> None: ...
    def add_shard(self, shard_id: int) -> None: ...
    def keep_running(self) -> None: ...
    def stop(self) -> None: ...


def running_file(data_dir: Path) -> Path:
    return data_dir / "running.json"


class Supervisor:
    """
    One ledger on this machine, from nothing to serving.
    """

    def __init__(self, settings: Settings, *, progress: Progress = log.info) -> None:
        self.data_dir = Path(settings.cluster.data_dir).absolute()
        self.log_dir = self.data_dir / "log"
        self.running: Running | None = None
        self.new_key: str | None = None  # Set when this start made a first key.
        self.halted: dict[int, str] = {}  # Shards that refuse to serve, and why.
        self._settings = settings
        self._progress = progress
        self._lock: IO[str] | None = None
        self._postgres: EmbeddedPostgres | None = None
        self._runtime: Runtime | None = None
        self._databases: list[Database] = []
        self._shard_ids: list[int] = []
        self._gateway: ChildProcess | None = None
        self._url = ""

    def start(self) -> Running:
        """
        Bring everything up and return when the gateway answers.

        A halted shard is up: whoever repairs it needs the rest.

        Raises AlreadyRunning, NotServing, or a part's own error; then nothing stays behind.
        """
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._lock_data_dir()
        try:
            self._start_databases()
            self._place_shards()
            self._start_shards()
            self._start_gateway()
        except BaseException:
            self.stop()
            raise
        assert self.running is not None
        partial = self.data_dir / "running.json.new"
        _write_private(partial, msgspec.json.encode(self.running))
        partial.rename(running_file(self.data_dir))
        return self.running

    def watch(self, stop: threading.Event) -> None:
        """
        Keep everything running until *stop* is set.
        """
        while not stop.wait(WATCH_S):
            self.keep_running()

    def keep_running(self) -> None:
        """
        Start again whatever has ended.
        """
        if self._postgres is not None and not self._postgres.is_running():
            log.warning("database ended, starting it again")
            self._postgres.start()
        if self._runtime is not None:
            self._runtime.keep_running()
            self._add_new_shards(self._runtime)
        if self._gateway is not None:
            self._gateway.keep_running()

    def stop(self) -> None:
        """
        Take everything down in order; what was accepted is durable and found again.
        """
        if self._lock is None:
            return  # Nothing here is ours.
        running_file(self.data_dir).unlink(missing_ok=True)
        # The last that is pushed goes first, and each goes even if another fails.
        with contextlib.ExitStack() as parts:
            parts.callback(self._lock.close)
            parts.callback(remove_short_dir, self.data_dir / "run")
            for part in (self._postgres, self._runtime, self._gateway):
                if part is not None:
                    parts.callback(part.stop)

    def _lock_data_dir(self) -> None:
        lock = (self.data_dir / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise AlreadyRunning(
                f"another `miliano up` works in {self.data_dir}: stop it, or choose another "
                "folder with MILIANO_CLUSTER_DATA_DIR"
            ) from error
        self._lock = lock

    def _start_databases(self) -> None:
        postgres = self._settings.postgres
        dsns = postgres.dsns
        if not dsns:
            self._progress("starting the embedded Postgres")
            binary_dir = Path(postgres.binary_dir) if postgres.binary_dir else None
            self._postgres = EmbeddedPostgres(self.data_dir / "postgres", binary_dir=binary_dir)
            self._postgres.start()
            dsns = [self._postgres.dsn(name) for name in _names(postgres.embedded_databases)]
        self._progress("migrating the schema")
        for dsn in dsns:
            schema.ensure_database(dsn)
            schema.migrate(dsn)
        # The parts are processes of their own and read their settings from the environment.
        os.environ["MILIANO_POSTGRES_DSN"] = " ".join(dsns)

    def _place_shards(self) -> None:
        """
        Open the cluster of all databases; at the first start, say which shards there are.
        """
        dsns = os.environ["MILIANO_POSTGRES_DSN"].split()
        by_cores = max(1, (os.cpu_count() or 1) // CORES_PER_SHARD)
        shard_count = self._settings.cluster.shards or by_cores

        async def place() -> list[Placement]:
            self._databases = await open_cluster(dsns)
            return await place_shards(self._databases, shard_count)

        try:
            placements = asyncio.run(place())
        except (ForeignDatabase, StoreUnavailable) as error:
            raise NotServing(str(error)) from error
        self._shard_ids = [placement.shard_id for placement in placements]

    def _add_new_shards(self, runtime: Runtime) -> None:
        """
        Start the shards that were placed since.
        """
        try:
            placements = asyncio.run(
                asyncio.wait_for(read_placements(self._databases), PLACEMENTS_S_MAX)
            )
        except (TimeoutError, StoreUnavailable) as error:
            log.warning("placements not read", error=f"{type(error).__name__}: {error}")
            return
        for placement in placements:
            if placement.shard_id not in self._shard_ids:
                self._shard_ids.append(placement.shard_id)
                runtime.add_shard(placement.shard_id)

    def _start_shards(self) -> None:
        make_secret(self._settings.cluster)
        os.environ["MILIANO_CLUSTER_DATA_DIR"] = str(self.data_dir)
        os.environ["MILIANO_CLUSTER_SOCKET_DIR"] = str(self._make_socket_dir())
        self._settings = load_settings()
        if self._settings.cluster.runtime == "ray":
            self._progress("starting Ray")
            self._runtime = RayRuntime(self._settings, self._shard_ids, self.data_dir)
        else:
            database_count = len(self._settings.postgres.dsns)
            self._runtime = ProcessRuntime(self._shard_ids, database_count, self.log_dir)
        self._runtime.start()
        self._progress("waiting for the shards")
        self._until(self._shards_serve, "the shards", RECOVERY_S_MAX)

    def _make_socket_dir(self) -> Path:
        configured = self._settings.cluster.socket_dir
        return Path(configured) if configured else make_short_dir(self.data_dir / "run")

    def _start_gateway(self) -> None:
        host = self._settings.gateway.host
        port = _free_port(host, self._settings.gateway.port)
        self._url = _url(host, port)
        os.environ["MILIANO_GATEWAY_PORT"] = str(port)
        self._progress("starting the gateway")
        key_file = self.data_dir / "api_key"
        self.new_key = asyncio.run(_make_first_key(self._settings.postgres.catalog_dsn, key_file))
        self._gateway = ChildProcess(
            "gateway", ["gateway"], log_path=self.log_dir / "gateway.log", environment={}
        )
        self._gateway.start()
        self._until(self._gateway_answers, "the gateway", GATEWAY_S_MAX)
        self.running = Running(
            pid=os.getpid(),
            url=self._url,
            dsn=self._settings.postgres.dsn,
            runtime=self._settings.cluster.runtime,
            key_file=str(key_file),
            log_dir=str(self.log_dir),
        )

    def _until(self, serves: Callable[[], bool], part: str, seconds_max: float) -> None:
        begun = told = time.monotonic()
        while not serves():
            now = time.monotonic()
            if now - begun > seconds_max:
                raise NotServing(f"{part} did not come up in time: see {self.log_dir}")
            if now - told > WAITING_S:
                told = now
                self._progress(f"still waiting for {part}: see {self.log_dir}")
                self.keep_running()
            time.sleep(LOOK_S)

    def _shards_serve(self) -> bool:
        entries = asyncio.run(_read_entries(self._settings.postgres.dsns))
        self.halted = {
            entry.shard_id: entry.halted_for or "halted by hand"
            for entry in entries
            if entry.state == "halted"
        }
        serving = {
            entry.shard_id
            for entry in entries
            if entry.endpoint is not None and asyncio.run(_takes_connections(entry.endpoint))
        }
        return serving | self.halted.keys() >= set(self._shard_ids)

    def _gateway_answers(self) -> bool:
        assert self._gateway is not None
        if not self._gateway.is_running():
            raise NotServing(f"the gateway ended: see {self.log_dir / 'gateway.log'}")
        return self._gateway_ready()

    def _gateway_ready(self) -> bool:
        try:
            health = f"{self._url}/v1/health/live" if self.halted else f"{self._url}/v1/health"
            with urllib.request.urlopen(health, timeout=1) as answer:  # noqa: S310 - our own
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _names(database_count: int) -> list[str]:
    """
    Name the databases of the embedded server; the first has the catalog.
    """
    return [DATABASE, *(f"{DATABASE}_{number}" for number in range(1, database_count))]


async def _read_entries(dsns: list[str]) -> list[ShardEntry]:
    entries = []
    for dsn in dsns:
        connection = await connect(dsn, application_name="miliano/supervisor")
        try:
            entries += await read_directory(connection)
        finally:
            await connection.close()
    return entries


async def _takes_connections(endpoint: str) -> bool:
    """
    Say whether somebody listens there; a stale endpoint is one where nobody does.
    """
    kind, _, where = endpoint.partition(":")
    host, _, port = where.rpartition(":")
    try:
        # A machine that is off answers nothing at all, for minutes.
        async with asyncio.timeout(CONNECT_S_MAX):
            if kind == "unix":
                _, writer = await asyncio.open_unix_connection(where)
            else:
                _, writer = await asyncio.open_connection(host, int(port))
    except (TimeoutError, OSError):
        return False
    writer.close()
    return True


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _free_port(host: str, port: int) -> int:
    """
    Return *port*, or some free one for 0; raises NotServing when it is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise NotServing(f"cannot listen on {host}:{port}: {error.strerror}") from error
        return int(listener.getsockname()[1])


async def _make_first_key(dsn: str, path: Path) -> str | None:
    """
    Make a merchant with a key that may do everything, unless *path* holds one that is in force.
    """
    connection = await connect(dsn, application_name="miliano/supervisor")
    try:
        parsed = parse_key(path.read_text().strip()) if path.exists() else None
        if parsed is not None and await find_key(connection, parsed[0]) is not None:
            return None
        await create_merchant(connection, FIRST_MERCHANT, "First merchant")
        _, text = await create_key(connection, FIRST_MERCHANT, set(Scope), "miliano up")
    finally:
        await connection.close()
    _write_private(path, f"{text}\n".encode())
    return text


def _write_private(path: Path, content: bytes) -> None:
    """
    Write a file that only its owner reads.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
