"""
Child processes that end with their parent and are started again when they end alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

PR_SET_PDEATHSIG = 1
PARENT_VARIABLE = "MILIANO_PARENT_PID"
BACKOFF_S = 0.2
BACKOFF_S_MAX = 5.0
STEADY_S = 10.0  # Who lived this long did not crash at start.
STOP_S_MAX = 35.0

log = structlog.get_logger("child_process")


def end_with_parent() -> None:
    """
    Make this process end when the one that started it does, even by `kill -9`.

    Called first thing by every child; one that was started by hand goes on alone.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the parent process is gone")


class ChildProcess:
    """
    One supervised process; its output goes to *log_path*.

    Start it from a thread that lives as long as the parent: the parent's death is the death of
    the thread that forked.
    """

    def __init__(
        self, name: str, arguments: list[str], *, log_path: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.restart_count = 0
        self._arguments = [sys.executable, "-m", *arguments]
        self._log_path = log_path
        self._environment = {**os.environ, **environment, PARENT_VARIABLE: str(os.getpid())}
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self._backoff_s = BACKOFF_S

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self._log_path.open("ab") as output:
            self._process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the parent, which ends us in order.
            )
        self._started_at = time.monotonic()

    def keep_running(self) -> None:
        """
        Start the process again if it has ended, not faster than the backoff allows.
        """
        now = time.monotonic()
        if self.is_running():
            if now - self._started_at > STEADY_S:
                self._backoff_s = BACKOFF_S
            return
        if self._start_at == 0.0:
            code = self._process.returncode if self._process is not None else None
            log.warning("process ended", name=self.name, code=code, again_in_s=self._backoff_s)
            self._start_at = now + self._backoff_s
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_S_MAX)
        elif now >= self._start_at:
            self._start_at = 0.0
            self.restart_count += 1
            self.start()

    def stop(self) -> None:
        """
        Ask the process to end, wait, and kill it when it does not.
        """
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """
        End the process as a crash would.
        """
        if self._process is not None:
            self._process.kill()
            self._process.wait()
