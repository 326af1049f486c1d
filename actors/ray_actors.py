"""
The hosts as Ray actors: the only file that says what Ray shall do with them.

Rule 1: an actor's `__init__` starts a thread and returns. Recovery runs there with backoff, so
        a database that is down cannot make the actor permanently dead.
Rule 2: Ray's calls are never retried by Ray and never carry money.
Rule 3: settings and secrets come from the environment of the node, never in arguments: Ray
        stores those.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import ray

from actors.hosting import ShardHost, WriteBehindHost
from configs.build import build_id
from configs.logs import write_json_logs
from configs.settings import Settings, load_settings

NAMESPACE = "miliano"
ACTOR_OPTIONS = {
    "max_restarts": -1,  # A crash is normal; Postgres decides who owns a shard.
    "max_task_retries": 0,
    "num_cpus": 0.01,  # Counts for spreading over nodes, does not reserve a core.
    "max_concurrency": 4,  # A drain must not keep a status waiting.
    "enable_task_events": False,
}


@ray.remote(**ACTOR_OPTIONS)
class ShardActor:
    """
    One shard under Ray.
    """

    def __init__(self, shard_id: int) -> None:
        settings = _with_address(load_settings())
        _log_to_file(settings, f"shard-{shard_id}")
        self._host = ShardHost(shard_id, settings, build=build_id())
        self._host.start()

    def status(self) -> dict[str, object]:
        return dict(msgspec.to_builtins(self._host.statistics() or {}))

    def drain(self) -> dict[str, object]:
        return dict(msgspec.to_builtins(self._host.drain() or {}))


@ray.remote(**ACTOR_OPTIONS)
class WriteBehindActor:
    """
    The write-behind of one database under Ray.
    """

    def __init__(self, database_number: int) -> None:
        settings = load_settings()
        _log_to_file(settings, f"write-behind-{database_number}")
        self._host = WriteBehindHost(database_number, settings)
        self._host.start()

    def status(self) -> dict[str, object]:
        return dict(msgspec.to_builtins(self._host.statistics(), str_keys=True))


def _with_address(settings: Settings) -> Settings:
    """
    Serve where the other nodes reach this one, unless the settings say where: whoever starts a
    Ray of its own also makes a folder for sockets, a node that joins one has none.
    """
    cluster = settings.cluster
    if cluster.shard_host or cluster.socket_dir:
        return settings
    cluster = msgspec.structs.replace(cluster, shard_host=ray.util.get_node_ip_address())
    return msgspec.structs.replace(settings, cluster=cluster)


def _log_to_file(settings: Settings, name: str) -> None:
    """
    Write to where the same host writes without Ray, not among Ray's own files.
    """
    path = Path(settings.cluster.data_dir) / "log" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    write_json_logs()
