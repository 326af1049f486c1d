"""
Shards and write-behind as plain child processes: the same hosts without Ray.
"""

from __future__ import annotations

from pathlib import Path

from actors.child_process import ChildProcess


class ProcessRuntime:
    """
    One process per shard and one for the write-behind.
    """

    name = "process"

    def __init__(self, shard_ids: list[int], log_dir: Path) -> None:
        self._children = [
            ChildProcess(
                f"shard-{shard_id}",
                ["actors", "shard", str(shard_id)],
                log_path=log_dir / f"shard-{shard_id}.log",
                environment={},
            )
            for shard_id in shard_ids
        ]
        self._children.append(
            ChildProcess(
                "write-behind",
                ["actors", "write-behind"],
                log_path=log_dir / "write-behind.log",
                environment={},
            )
        )

    def start(self) -> None:
        for child in self._children:
            child.start()

    def keep_running(self) -> None:
        for child in self._children:
            child.keep_running()

    def stop(self) -> None:
        for child in self._children:
            child.stop()
