"""
The ledger under load: started, asked, measured from outside, stopped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

import msgspec

UP_S_MAX = 120.0
CAUGHT_UP_S_MAX = 300.0
TICKS = os.sysconf("SC_CLK_TCK")


class ProcessUse(msgspec.Struct):
    """
    What the processes of one kind have used so far.
    """

    cpu_s: float = 0.0
    memory_mb: float = 0.0


class LedgerUnderLoad:
    """
    A fresh `miliano up` in a folder of its own.
    """

    def __init__(self, runtime: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mil-load-")
        self.data_dir = Path(self._folder.name) / "data"
        self._runtime = runtime
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.key = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command("up", "--json", "--port", "0", "--runtime", self._runtime),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(UP_S_MAX)
            raise SystemExit("the ledger did not come up; its words are above")
        self.url = json.loads(line)["url"]
        self.key = (self.data_dir / "api_key").read_text().strip()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(UP_S_MAX)
        self._folder.cleanup()

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def _command(self, *arguments: str) -> list[str]:
        return [
            *(sys.executable, "-m", "gateway.cli"),
            *arguments,
            *("--data-dir", str(self.data_dir)),
        ]

    def health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/v1/health", timeout=10) as reply:
            return dict(json.load(reply))

    def wait_until_projected(self) -> float:
        """
        Wait until the tables have caught up with the journal; return how long it took.
        """
        started = time.perf_counter()
        while time.perf_counter() - started < CAUGHT_UP_S_MAX:
            if all(shard["lag_records"] == 0 for shard in self.health()["shards"]):
                return time.perf_counter() - started
            time.sleep(0.05)
        raise SystemExit("the tables did not catch up with the journal")

    def verify(self) -> dict[str, Any]:
        """
        Run `miliano verify` and return its verdict.
        """
        done = subprocess.run(
            self._command("verify", "--json"), capture_output=True, text=True, check=False
        )
        if not done.stdout:
            raise SystemExit(f"miliano verify failed: {done.stderr}")
        return dict(json.loads(done.stdout))

    def use(self) -> dict[str, ProcessUse]:
        """
        Read CPU and memory of every process of the ledger, by kind.
        """
        assert self._process is not None
        found: dict[str, ProcessUse] = {}
        for pid in _descendants(self._process.pid):
            try:
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                memory = Path(f"/proc/{pid}/statm").read_text().split()
                name = _kind(Path(f"/proc/{pid}/cmdline").read_bytes())
            except (FileNotFoundError, ProcessLookupError):
                continue
            used = found.setdefault(name, ProcessUse())
            used.cpu_s += (int(stat[11]) + int(stat[12])) / TICKS
            # Without what is shared, or Postgres' buffers would count once per backend.
            used.memory_mb += (int(memory[1]) - int(memory[2])) * 4096 / 2**20
        return found


def _kind(command_line: bytes) -> str:
    words = command_line.replace(b"\0", b" ").decode(errors="replace")
    for mark, kind in (
        ("ShardActor", "shard"),
        ("actors shard", "shard"),
        ("WriteBehindActor", "write_behind"),
        ("actors write-behind", "write_behind"),
        ("-m gateway.cli", "supervisor"),
        ("-m gateway", "gateway"),
        ("postgres", "postgres"),
        ("ray", "ray"),
    ):
        if mark in words:
            return kind
    return "other"


def _descendants(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += parents.get(pid, [])
    return found
