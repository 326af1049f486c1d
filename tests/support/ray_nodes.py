"""
Several nodes of Ray on one machine, each on a loopback address of its own.

To the ledger they are machines: they share nothing but the databases, the network and the
environment they are started with. `python -m tests.support.ray_nodes ...` is `ray start ...` that
ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from actors.child_process import PARENT_VARIABLE, end_with_parent
from actors.ray_runtime import OBJECT_STORE_BYTES, RAY_ENVIRONMENT
from tests.support.ledger import ROOT
from tests.support.pausing import has_stopped

HEAD = "127.0.0.2"
START_S_MAX = 60.0
STOP_S_MAX = 30.0
LOOK_S = 0.02
RAISED = "Ray runtime started"

# A node is given up on after two seconds of silence, not after seventeen; and one that is told to
# end does not wait half a minute for actors that stay.
HURRIED = {
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


class RayNode:
    """
    One `ray start` with everything it starts; `folder` has its logs.
    """

    def __init__(self, host: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.host = host
        self.folder = folder
        self._environment = {
            **environment,
            "MILIANO_CLUSTER_DATA_DIR": str(folder),
            PARENT_VARIABLE: str(os.getpid()),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_head(self) -> bool:
        return self.host == HEAD

    def start(self, address: str, temp_dir: Path) -> None:
        """
        Start it and wait until it has joined; two that start at once get in each other's way.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "ray.log").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.support.ray_nodes",
                    *self._options(address, temp_dir),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                cwd=ROOT,
                start_new_session=True,
            )
        _until(self._has_joined, f"node {self.host}", START_S_MAX, self.logs)

    def _options(self, address: str, temp_dir: Path) -> list[str]:
        options = ["start", "--block", "--disable-usage-stats", "--include-log-monitor", "false"]
        options += ["--node-ip-address", self.host]
        options += ["--object-store-memory", str(OBJECT_STORE_BYTES)]
        if not self.is_head:
            return [*options, "--num-cpus", "1", "--address", address]
        # Actors ask for a part of a core, so a head without cores gets none.
        port = address.rpartition(":")[2]
        options += ["--num-cpus", "0", "--head", "--port", port, "--include-dashboard", "false"]
        return [*options, "--temp-dir", str(temp_dir)]

    def _has_joined(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.logs()
        return RAISED in (self.folder / "ray.log").read_text()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def processes(self) -> dict[int, str]:
        """
        Find every process of this node, by the folder in its environment: id and command.
        """
        mark = f"MILIANO_CLUSTER_DATA_DIR={self.folder}\0".encode()
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes() + b"\0":
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(process.name)] = command.decode(errors="replace")
        return found

    def kill(self) -> None:
        """
        End every process of it at once, as a machine does that loses its power.
        """
        _until(lambda: not self._signal(signal.SIGKILL), f"end of {self.host}", STOP_S_MAX)
        self._reap()

    def freeze(self) -> None:
        """
        Stop every process of it, and return when all their threads have stopped.
        """

        def is_frozen() -> bool:
            # Again each time: one may just have been born.
            return all(has_stopped(pid) for pid in self._signal(signal.SIGSTOP))

        _until(is_frozen, f"node {self.host} to stop", STOP_S_MAX)

    def thaw(self, pids: list[int] | None = None) -> None:
        """
        Let *pids* of it go on, or all.
        """
        for pid in list(self.processes()) if pids is None else pids:
            _send(pid, signal.SIGCONT)

    def stop(self) -> None:
        """
        Ask it to end in order, and kill what does not.
        """
        if self.is_running:
            assert self._process is not None
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S_MAX)
        self.kill()  # Its agents look for it for another minute.

    def _signal(self, number: signal.Signals) -> list[int]:
        return [pid for pid in self.processes() if _send(pid, number)]

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(STOP_S_MAX)

    def logs(self) -> str:
        paths = sorted(self.folder.rglob("*.log"))
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')}" for path in paths)


class RayNodes:
    """
    A head that runs no actors, and the nodes that have joined it.

    The address, and the environment that whoever joins needs, stand in `address` and
    `environment`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.address = f"{HEAD}:{_free_port(HEAD)}"
        token = folder / "ray_token"
        token.write_text(secrets.token_hex(32))
        # Nothing of whoever runs the tests.
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("MILIANO_", "RAY_"))}
        self.environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN_PATH": str(token),
            **RAY_ENVIRONMENT,
            **HURRIED,
            **settings,
        }
        self.nodes: list[RayNode] = []

    def start(self, host: str, settings: Mapping[str, str] | None = None) -> RayNode:
        """
        Start a node and return it when it has joined; the head is the first. *settings* is in its
        environment only.
        """
        environment = {**self.environment, **(settings or {})}
        node = RayNode(host, self.folder / f"node-{len(self.nodes)}", environment)
        self.nodes.append(node)
        node.start(self.address, self.folder / "ray")
        return node

    def at(self, host: str) -> RayNode:
        """
        Return the node that runs at *host*.
        """
        return next(node for node in self.nodes if node.is_running and node.host == host)

    def stop(self) -> None:
        """
        Stop all, the head last.
        """
        with contextlib.ExitStack() as each:
            for node in self.nodes:
                each.callback(node.stop)

    def logs(self) -> str:
        return "\n".join(node.logs() for node in self.nodes)


@contextmanager
def running_ray_nodes(settings: Mapping[str, str]) -> Iterator[RayNodes]:
    """
    Start a head and stop everything at the end; *settings* is in the environment of each node.
    """
    folder = Path(tempfile.mkdtemp(prefix="mil-"))
    nodes = RayNodes(folder, settings)
    try:
        nodes.start(HEAD)
        yield nodes
    finally:
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port(host: str) -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def _send(pid: int, number: signal.Signals) -> bool:
    """
    Say whether there was such a process.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _until(
    condition: Callable[[], bool],
    what: str,
    seconds_max: float,
    logs: Callable[[], str] = lambda: "",
) -> None:
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}\n{logs()}"
        time.sleep(LOOK_S)


def main() -> None:
    end_with_parent()
    # Late: only the process that becomes a node loads it.
    from ray.scripts.scripts import main as ray

    ray()


if __name__ == "__main__":
    main()
