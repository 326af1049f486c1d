"""
What a run says: CPU by process, the machine and the commit, as a table and as JSON.
"""

from __future__ import annotations

import platform
import resource
import subprocess
from pathlib import Path

from loadtests.http_load import LoadResult
from loadtests.ledger import Ledger, ProcessUse

DRIVER = "load_driver"
LEDGER = "total without driver"


def use_of(ledger: Ledger) -> dict[str, ProcessUse]:
    """
    Read what the ledger has used, and what this process has: it shares the machine.
    """
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {**ledger.use(), DRIVER: ProcessUse(own.ru_utime + own.ru_stime, own.ru_maxrss / 1024)}


def cpu_between(before: dict[str, ProcessUse], after: dict[str, ProcessUse]) -> dict[str, float]:
    """
    Say how many seconds of CPU each kind of process has used meanwhile.
    """
    return {name: use.cpu_s - before.get(name, ProcessUse()).cpu_s for name, use in after.items()}


def cpu_us_a_transfer(cpu_s: dict[str, float], transfers: int) -> dict[str, float]:
    """
    Share CPU seconds out over *transfers*, in µs, with the ledger's own total.
    """
    shares = {name: 1e6 * cpu_s[name] / max(transfers, 1) for name in sorted(cpu_s)}
    total = sum(share for name, share in shares.items() if name != DRIVER)
    return {name: round(share, 1) for name, share in {**shares, LEDGER: total}.items()}


def percentiles_ms(result: LoadResult) -> dict[str, float]:
    ordered = sorted(result.latencies_s)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1.0)}


def machine() -> str:
    """
    Name the machine, so that results are compared with their like.
    """
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    cores = len(list(Path("/sys/devices/system/cpu").glob("cpu[0-9]*")))
    return f"{cores} cores, {model}, Python {platform.python_version()}"


def commit() -> str:
    """
    Name the commit that runs.
    """
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
