"""
Shards and write-behind under Ray: started, watched, drained.

Ray restarts an actor whose process died. An actor that Ray has given up on is made anew here.
Exclusivity is not Ray's business: two actors for one shard are possible, two owners are not.
"""

from __future__ import annotations

import importlib
import os
import secrets
import signal
import threading
import time
from pathlib import Path
from typing import Any

import structlog

from actors.child_process import ChildProcess
from actors.short_dir import make_short_dir, remove_short_dir
from configs.settings import Settings

STATUS_S_MAX = 5.0
DRAIN_S_MAX = 35.0
GUARD = "actors.ray_guard"
SERVERS = {"gcs_server", "raylet"}
OBJECT_STORE_BYTES = 80 * 1024 * 1024  # Nothing large goes through Ray.

# Read by Ray's own processes, so set before any of them starts. By default Ray runs actors at
# nice 15, first in line for the OOM killer, and keeps a record of every call.
RAY_ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_worker_oom_score_adjustment": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_enable_timeline": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_LOG_TO_DRIVER": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_num_server_call_thread": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

log = structlog.get_logger("ray_runtime")


class RayRuntime:
    """
    One actor per shard, and one write-behind per database.
    """

    name = "ray"

    def __init__(self, settings: Settings, shard_ids: list[int], data_dir: Path) -> None:
        self._settings = settings
        self._shard_ids = list(shard_ids)
        self._database_count = len(settings.postgres.dsns)
        self._data_dir = data_dir
        self._ray: Any = None
        self._guard: ChildProcess | None = None
        self._servers: list[Path] = []
        self._actors: dict[str, Any] = {}

    @property
    def _is_own(self) -> bool:
        return not self._settings.cluster.ray_address

    def start(self) -> None:
        """
        Start or join Ray and make the actors; the signal handlers of this process stay its own.
        """
        for name, value in RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if self._is_own:
            self._keep_token()  # Whoever joins another needs the token of that one.
        # Late: Ray reads the environment above when it is imported.
        ray: Any = importlib.import_module("ray")
        self._ray = ray
        if self._is_own:
            self._start_guard()
        handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        ray.init(**self._init_options())
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self._is_own:
            self._servers = _servers()
        for name in self._names():
            self._make(name)

    def _start_guard(self) -> None:
        log_path = self._data_dir / "log" / "ray-guard.log"
        self._guard = ChildProcess("ray-guard", [GUARD], log_path=log_path, environment={})
        self._guard.start()

    def _keep_token(self) -> None:
        path = self._data_dir / "ray_token"
        if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
            return
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path.absolute())

    def _init_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "namespace": "miliano",
            "log_to_driver": False,
            "configure_logging": False,
        }
        if not self._is_own:
            return {**options, "address": self._settings.cluster.ray_address}
        return {
            **options,
            "address": "local",  # Whatever RAY_ADDRESS says.
            "include_dashboard": False,
            "num_cpus": os.cpu_count() or 1,
            "object_store_memory": OBJECT_STORE_BYTES,
            # Loopback only. Ray would take 127.0.0.1 for the machine's own address.
            "_node_ip_address": "127.0.0.2",
            # Ray keeps sockets there.
            "_temp_dir": str(make_short_dir(self._data_dir / "ray")),
        }

    def _names(self) -> list[str]:
        shards = [f"shard-{shard_id}" for shard_id in self._shard_ids]
        return shards + [f"write-behind-{number}" for number in range(self._database_count)]

    def _make(self, name: str) -> None:
        actors: Any = importlib.import_module("actors.ray_actors")
        options = {"name": name, "namespace": actors.NAMESPACE, "get_if_exists": True}
        if not self._is_own:
            options |= {"lifetime": "detached", "scheduling_strategy": "SPREAD"}
        kind, _, number = name.rpartition("-")
        actor = actors.ShardActor if kind == "shard" else actors.WriteBehindActor
        self._actors[name] = actor.options(**options).remote(int(number))

    def add_shard(self, shard_id: int) -> None:
        """
        Start one more shard and keep it running.
        """
        self._shard_ids.append(shard_id)
        self._make(f"shard-{shard_id}")

    def keep_running(self) -> None:
        """
        Make anew every actor that Ray has declared dead for good, and Ray when a server of it is.
        """
        if self._guard is not None:
            self._guard.keep_running()
        if not all(_is_live_child(server) for server in self._servers):
            # Without them Ray ends this process within a minute.
            log.warning("a server of Ray is dead, starting Ray anew")
            self._end_ray()
            self.start()
        # All are asked before one is waited for: a frozen machine may have many.
        asked = {name: self._actors[name].status.remote() for name in self._names()}
        deadline = time.monotonic() + STATUS_S_MAX
        for name, status in asked.items():
            self._look_after(name, status, max(0.0, deadline - time.monotonic()))

    def _look_after(self, name: str, status: Any, timeout_s: float) -> None:
        exceptions = self._ray.exceptions
        try:
            self._ray.get(status, timeout=timeout_s)
        except exceptions.ActorUnavailableError:
            pass  # Ray is restarting it.
        except exceptions.GetTimeoutError:
            log.warning("actor does not answer", name=name)
        except exceptions.RayActorError as error:
            log.warning("actor is dead, making it anew", name=name, error=str(error))
            self._make(name)

    def stop(self) -> None:
        """
        Drain the shards, then end Ray if it is ours.
        """
        if self._ray is not None and self._ray.is_initialized():
            self._drain()
            for actor in self._actors.values():
                self._ray.kill(actor)
        self._end_ray()

    def _end_ray(self) -> None:
        if self._ray is not None:
            self._ray.shutdown()
        if self._guard is not None:
            self._guard.stop()
        remove_short_dir(self._data_dir / "ray")

    def _drain(self) -> None:
        names = [f"shard-{shard_id}" for shard_id in self._shard_ids]
        drains = [self._actors[name].drain.remote() for name in names if name in self._actors]
        deadline = time.monotonic() + DRAIN_S_MAX
        for drain in drains:
            try:
                self._ray.get(drain, timeout=max(0.0, deadline - time.monotonic()))
            except self._ray.exceptions.RayError as error:
                log.warning("drain failed, the journal has it all", error=str(error))


def _servers() -> list[Path]:
    """
    Find the servers of Ray that this process has started, as folders of /proc.
    """
    return [
        process
        for process in Path("/proc").glob("[0-9]*")
        if _is_live_child(process) and (process / "comm").read_text().strip() in SERVERS
    ]


def _is_live_child(process: Path) -> bool:
    try:
        state, parent, *_ = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return int(parent) == os.getpid() and state != "Z"
