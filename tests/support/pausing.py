"""
A process that is stopped as by SIGSTOP, and really has stopped.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOP_S_MAX = 10.0
LOOK_S = 0.001


@contextmanager
def paused(pid: int | None) -> Iterator[None]:
    """
    Stop a process, and go on only when all its threads have stopped: the signal alone takes a
    moment, in which it would still answer.
    """
    assert pid is not None, "the process was not started"
    os.kill(pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + STOP_S_MAX
        while not has_stopped(pid):
            assert time.monotonic() < deadline, "the process does not stop"
            time.sleep(LOOK_S)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def has_stopped(pid: int) -> bool:
    """
    Say whether all threads of a process have stopped.
    """
    stats = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def has_ended(pid: int | None) -> bool:
    """
    Say whether a process has ended, also while nobody has asked for how.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"
