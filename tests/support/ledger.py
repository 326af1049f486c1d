"""
The whole product, as its users start it: `miliano up` in a folder of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from typer.testing import CliRunner

from actors.short_dir import remove_short_dir
from gateway.cli import app

STOP_S_MAX = 60.0
COMMAND_S_MAX = 60.0
SERVING_S_MAX = 30.0
GONE_S_MAX = 30.0
LOOK_S = 0.02
ROOT = Path(__file__).resolve().parent.parent.parent


class Ran(msgspec.Struct, frozen=True):
    """
    A command that ended.
    """

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """
        Read standard output, which is one JSON document.
        """
        return json.loads(self.out)


class Ledger:
    """
    One `miliano up`, and how to reach it.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        runtime: str = "ray",
        shard_count: int = 2,
        environment: Mapping[str, str] = {},
    ) -> None:
        self.data_dir = data_dir
        self.runtime = runtime
        self.shard_count = shard_count
        self.url = ""
        self.key = ""
        self.dsn = ""
        self.running: dict[str, Any] = {}
        self.process: subprocess.Popen[str] | None = None
        # Nothing of whoever runs the tests; the folder and the runtime stand in the command.
        kept = {n: value for n, value in os.environ.items() if not n.startswith("MILIANO_")}
        self.environment = kept | {
            "PYTHONPATH": str(ROOT),
            "MILIANO_CLUSTER_SHARDS": str(shard_count),
            **environment,
        }

    @property
    def pid(self) -> int:
        assert self.process is not None, "the ledger was not started"
        return self.process.pid

    def start(self) -> None:
        """
        Start it and wait until it is ready; a failure shows its words.
        """
        arguments = ["up", "--json", "--port", "0", "--runtime", self.runtime]
        with (self.data_dir.with_name(f"{self.data_dir.name}.err")).open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", *self.command(arguments)],
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env=self.environment,
                cwd=self.data_dir.parent,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"miliano up ended: {self.words()}"
        self.running = json.loads(line)
        assert "url" in self.running, line
        self.url = self.running["url"]
        self.dsn = json.loads((self.data_dir / "running.json").read_text())["dsn"]
        self.key = Path(self.running["key_file"]).read_text().strip()

    def processes(self) -> dict[int, str]:
        """
        Find every process of this ledger, by the folder in its environment: id and command.
        """
        mark = f"MILIANO_CLUSTER_DATA_DIR={self.data_dir}\0".encode()
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes() + b"\0":
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(process.name)] = command.decode(errors="replace")
        return found

    def wait_until_gone(self) -> float:
        """
        Wait until no process of this ledger is left, and return the seconds that took.
        """
        start = time.monotonic()
        while left := self.processes():
            assert time.monotonic() - start < GONE_S_MAX, f"still there: {left}\n{self.words()}"
            time.sleep(LOOK_S)
        return time.monotonic() - start

    def words(self) -> str:
        """
        Return what `miliano up` said to people, and the logs of its parts.
        """
        paths = [
            self.data_dir.with_name(f"{self.data_dir.name}.err"),
            *sorted((self.data_dir / "log").glob("*.log")),
        ]
        return "\n".join(f"--- {p.name}\n{p.read_text()}" for p in paths if p.exists())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """
        Ask it to end and return its exit code.
        """
        assert self.process is not None, "the ledger was not started"
        self.process.send_signal(number)
        try:
            self.process.communicate(timeout=STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise AssertionError(f"miliano up did not stop: {self.words()}") from None
        return self.process.returncode

    def command(self, arguments: Iterable[str]) -> list[str]:
        return [*arguments, "--data-dir", str(self.data_dir)]

    def run(self, *arguments: str, **environment: str) -> Ran:
        """
        Run a command of `miliano` on this ledger's folder, in a process as a user does.
        """
        ran = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *self.command(arguments)],
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
            env=self.environment | environment,
            cwd=self.data_dir.parent,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def json(self, *arguments: str) -> Any:
        """
        Do a command that has to succeed, and return its JSON document. It runs in this process,
        which takes a tenth of the time.
        """
        ran = self._in_this_process(*arguments, "--json")
        assert ran.code == 0, f"{arguments}: {ran}"
        return ran.json

    def _in_this_process(self, *arguments: str) -> Ran:
        inherited = {name: None for name in os.environ if name.startswith("MILIANO_")}
        ran = CliRunner().invoke(app, self.command(arguments), env=inherited)
        return Ran(ran.exit_code, ran.stdout, ran.stderr)

    def shard(self, number: int = 0) -> dict[str, Any]:
        """
        Say what `miliano status` says of a shard, once all are served.
        """
        deadline = time.monotonic() + SERVING_S_MAX
        while time.monotonic() < deadline:
            ran = self._in_this_process("status", "--json")
            if ran.code == 0:
                return dict(ran.json["shards"][number])
            time.sleep(LOOK_S)
        raise AssertionError(f"not all shards are served: {ran}\n{self.words()}")

    def wait_until_projected(self, sequence: int, shard: int = 0) -> None:
        """
        Wait until the tables show a shard's journal up to *sequence*.
        """
        deadline = time.monotonic() + SERVING_S_MAX
        while self.shard(shard)["projected_sequence"] < sequence:
            assert time.monotonic() < deadline, self.words()
            time.sleep(LOOK_S)

    def kill_shard(self, number: int = 0) -> dict[str, Any]:
        """
        Kill a shard's process with SIGKILL and return its status once a new one serves.
        """
        before = self.shard(number)
        os.kill(before["pid"], signal.SIGKILL)
        deadline = time.monotonic() + SERVING_S_MAX
        while (after := self.shard(number))["epoch"] == before["epoch"]:
            assert time.monotonic() < deadline, self.words()
            time.sleep(LOOK_S)
        return after


@contextmanager
def running_ledger(
    runtime: str = "ray",
    data_dir: Path | None = None,
    *,
    shard_count: int = 2,
    environment: Mapping[str, str] = {},
) -> Iterator[Ledger]:
    """
    Start a ledger, in a fresh folder that goes with it unless one is given, and stop it.

    *environment* is added to that of all its processes.
    """
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            data_dir = stack.enter_context(ledger_folder()) / "data"
        ledger = Ledger(data_dir, runtime=runtime, shard_count=shard_count, environment=environment)
        stack.callback(end, ledger)
        ledger.start()
        yield ledger
        assert ledger.stop() == 0, ledger.words()


@contextmanager
def ledger_folder() -> Iterator[Path]:
    """
    Make a folder for ledgers' data, removed at the end with what they keep elsewhere.
    """
    folder = Path(tempfile.mkdtemp(prefix="mil-"))
    try:
        yield folder
    finally:
        for link in [*folder.rglob("ray"), *folder.rglob("run")]:
            remove_short_dir(link)
        shutil.rmtree(folder)


def end(ledger: Ledger) -> None:
    """
    Kill a ledger that still runs; its children go with it.
    """
    process = ledger.process
    if process is not None and process.poll() is None:
        process.kill()
        process.communicate()
        ledger.wait_until_gone()
