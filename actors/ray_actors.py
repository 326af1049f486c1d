"""
The hosts as Ray actors: the only file that says what Ray shall do with them.

Rule 1: an actor's `__init__` starts a thread and returns. Recovery runs there with backoff, so
        a database that is down cannot make the actor permanently dead.
Rule 2: Ray's calls are never retried by Ray and never carry money.
Rule 3: settings and secrets come from the environment of the node, never in arguments: Ray
        stores those.
"""

from __future__ import annotations

import msgspec
import ray

from actors.hosting import ShardHost, WriteBehindHost
from configs.build import build_id
from configs.settings import load_settings

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
        self._host = ShardHost(shard_id, load_settings(), build=build_id())
        self._host.start()

    def status(self) -> dict[str, object]:
        return dict(msgspec.to_builtins(self._host.statistics()))

    def drain(self) -> dict[str, object]:
        return dict(msgspec.to_builtins(self._host.drain()))


@ray.remote(**ACTOR_OPTIONS)
class WriteBehindActor:
    """
    The write-behind of one database under Ray.
    """

    def __init__(self) -> None:
        self._host = WriteBehindHost(load_settings())
        self._host.start()

    def status(self) -> dict[str, object]:
        return dict(msgspec.to_builtins(self._host.statistics(), str_keys=True))
