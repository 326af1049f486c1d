"""
Shards and write-behind as plain child processes: the same hosts without Ray.
"""

from __future__ import annotations

from pathlib import Path

from actors.child_process import ChildProcess


class ProcessRuntime:
    """
    One process per shard, and one write-behind per database.
    """

    name = "process"

    def __init__(self, shard_ids: list[int], database_count: int, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._children = [self._child("shard", shard_id) for shard_id in shard_ids]
        self._children += [self._child("write-behind", n) for n in range(database_count)]

    def _child(self, kind: str, number: int) -> ChildProcess:
        name = f"{kind}-{number}"
        return ChildProcess(
            name,
            ["actors", kind, str(number)],
            log_path=self._log_dir / f"{name}.log",
            environment={},
        )

    def start(self) -> None:
        for child in self._children:
            child.start()

    def add_shard(self, shard_id: int) -> None:
        """
        Start one more shard and keep it running.
        """
        child = self._child("shard", shard_id)
        self._children.insert(0, child)
        child.start()

    def keep_running(self) -> None:
        for child in self._children:
            child.keep_running()

    def stop(self) -> None:
        for child in self._children:
            child.stop()
