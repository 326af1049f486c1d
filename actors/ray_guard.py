"""
Ends what Ray leaves behind: `python -m actors.ray_guard`, beside a Ray of our own.

Ray's servers end with the process that started them, even by `kill -9`. Its agents then look for
them for another minute. This process ends with that one too, and takes the agents with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from actors.child_process import end_with_parent

RAY_TITLE = b"ray::"  # What Ray calls its agents and workers.


def ray_processes(data_dir: str) -> list[int]:
    """
    Find the agents and workers of Ray that were started for *data_dir*.
    """
    mark = f"MILIANO_CLUSTER_DATA_DIR={data_dir}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_ray = (process / "cmdline").read_bytes().startswith(RAY_TITLE)
            if is_ray and mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    end_with_parent()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    for pid in ray_processes(os.environ["MILIANO_CLUSTER_DATA_DIR"]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
