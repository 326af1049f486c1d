"""
The ledger under load, asked and measured from outside; a fresh one is started and stopped too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

STOP_S_MAX = 120.0
CAUGHT_UP_S_MAX = 300.0
LOOK_S = 0.02
REST_S = 0.7  # Longer than the gateway remembers a look at its shards.
MILIANO = (sys.executable, "-m", "gateway.cli")
TICKS = os.sysconf("SC_CLK_TCK")


class ProcessUse(msgspec.Struct):
    """
    What the processes of one kind have used so far.
    """

    cpu_s: float = 0.0
    memory_mb: float = 0.0


class Ledger:
    """
    A ledger that runs. *options* lead a command of `miliano` to it; without the *pid* of its
    `miliano up`, what its processes use is not seen.
    """

    def __init__(self, url: str, key: str, options: list[str], pid: int | None = None) -> None:
        self.url = url
        self.key = key
        self._options = options
        self._pid = pid

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None, self.url
        return parts.hostname, parts.port or 80

    def wait_until_projected(self, sequences: dict[int, int]) -> None:
        """
        Wait until the tables have the journal of each shard up to its sequence.
        """
        started = time.perf_counter()
        while time.perf_counter() - started < CAUGHT_UP_S_MAX:
            projected = {s["shard"]: s["projected_sequence"] for s in self._health()}
            if all(projected[shard] >= sequence for shard, sequence in sequences.items()):
                return
            time.sleep(LOOK_S)
        raise SystemExit("the tables did not catch up with the journal")

    def wait_until_at_rest(self) -> None:
        """
        Wait until no journal grows any more and the tables have all of them.
        """
        started = time.perf_counter()
        before: list[int] = []
        while time.perf_counter() - started < CAUGHT_UP_S_MAX:
            shards = self._health()
            sequences = [shard["sequence"] for shard in shards]
            if sequences == before and not any(shard["lag_records"] for shard in shards):
                return
            before = sequences
            time.sleep(REST_S)
        raise SystemExit("the ledger did not come to rest")

    def _health(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/v1/health", timeout=10) as reply:
            shards: list[dict[str, Any]] = json.load(reply)["shards"]
        return shards

    def shard_slots(self) -> dict[int, set[int]]:
        """
        Ask which slots each shard has.
        """
        shards = self._miliano("shards", "list")["shards"]
        return {
            shard["shard"]: {
                slot for first, last in shard["slots"] for slot in range(first, last + 1)
            }
            for shard in shards
        }

    def verify(self) -> dict[str, Any]:
        """
        Run `miliano verify` and return its verdict.
        """
        return self._miliano("verify")

    def _miliano(self, *command: str) -> dict[str, Any]:
        done = subprocess.run(
            [*MILIANO, *command, "--json", *self._options],
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            document: dict[str, Any] = json.loads(done.stdout)
        except json.JSONDecodeError:
            words = " ".join(command)
            raise SystemExit(f"miliano {words} failed: {done.stdout}{done.stderr}") from None
        return document

    def use(self) -> dict[str, ProcessUse]:
        """
        Read CPU and memory of every process of the ledger, by kind.
        """
        found: dict[str, ProcessUse] = {}
        for pid in _descendants(self._pid) if self._pid is not None else []:
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


@contextmanager
def fresh_ledger(runtime: str, shard_count: int) -> Iterator[Ledger]:
    """
    Run `miliano up` in a folder of its own, which goes with it.
    """
    environment = {**os.environ, "MILIANO_CLUSTER_SHARDS": str(shard_count)}
    with tempfile.TemporaryDirectory(prefix="mil-load-") as folder:
        options = ["--data-dir", f"{folder}/data"]
        process = subprocess.Popen(
            [*MILIANO, "up", "--json", "--port", "0", "--runtime", runtime, *options],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            running = json.loads(process.stdout.readline() or "{}")
            if "url" not in running:
                raise SystemExit(f"the ledger did not come up: {running}")
            key = Path(running["key_file"]).read_text().strip()
            yield Ledger(running["url"], key, options, process.pid)
        finally:
            process.terminate()
            process.wait(STOP_S_MAX)


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
