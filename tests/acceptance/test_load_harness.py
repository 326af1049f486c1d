"""
Goal: the load harness measures what happened, and says so when something is wrong.
Method: short runs on small ledgers; the counts of the report are held against each other and
        against the ledger's own words.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.ledger import ROOT, Ledger

RUN_S_MAX = 110
KEYS = {
    "scenario",
    "accepted_per_s",
    "durable_per_s",
    "projected_per_s",
    "latency_ms",
    "cpu_us_per_transfer",
    "memory_mb",
    "books_balanced",
    "machine",
    "commit",
    "seconds",
    "errors",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtests", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S_MAX,
        cwd=ROOT,
    )


def report_of(folder: Path, *arguments: str) -> dict[str, Any]:
    """
    Run the harness, which has to succeed, and return its report.
    """
    path = folder / "report.json"
    ran = run(*arguments, "--json", str(path))
    assert ran.returncode == 0, ran
    assert "balanced" in ran.stdout
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize("scenario", ["single", "hot", "batch"])
def test_fresh_ledger(tmp_path: Path, scenario: str) -> None:
    """
    Each scenario starts a ledger, loads it, and reports rates that fit each other: every reply
    is in the journal, and the tables have it all in the end.
    """
    options = ["--seconds", "1", "--wallets", "200", "--runtime", "process"]
    report = report_of(tmp_path, scenario, *options)
    assert report.keys() >= KEYS
    assert report["scenario"] == scenario
    assert report["accepted_per_s"] == report["durable_per_s"] > 0
    assert 0 < report["projected_per_s"] <= report["durable_per_s"]
    assert (report["errors"], report["books_balanced"]) == (0, True)
    latency = report["latency_ms"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p999"] <= latency["max"]
    parts = {"gateway", "shard", "write_behind", "postgres"}
    assert parts <= report["cpu_us_per_transfer"].keys() & report["memory_mb"].keys()


def test_scale(tmp_path: Path) -> None:
    """
    Transfers within and across shards take turns on one ledger; all of them are posted in the end,
    and what they cost is compared.
    """
    options = ["--seconds", "1.5", "--wallets", "200", "--runtime", "process"]
    report = report_of(tmp_path, "scale", *options)
    assert (report["scenario"], report["shards"]) == ("scale", 2)
    assert (report["errors"], report["books_balanced"], report["all_posted"]) == (0, True, True)
    cost = report["cpu_us_per_transfer"]
    assert 0 < cost["local"] < cost["across"]
    assert report["cross_shard_cost_ratio"] == pytest.approx(cost["across"] / cost["local"], 0.05)
    for kind in ("local", "across"):
        assert 0 < report["projected_per_s"][kind] <= report["accepted_per_s"][kind]
        assert {"gateway", "shard", "postgres"} <= report["cpu_us_by_process"][kind].keys()


def test_given_ledger(tmp_path: Path, ledger: Ledger) -> None:
    """
    With --url it loads that ledger, leaves it running, and can do so again.
    """
    where = ["--url", ledger.url, "--key", ledger.key, "--dsn", ledger.dsn]
    for _ in range(2):
        report = report_of(tmp_path, "single", "--seconds", "0.5", "--wallets", "50", *where)
        assert report["accepted_per_s"] == report["durable_per_s"] > 0
    assert ledger.json("status")["ready"]


def test_errors_make_it_fail(ledger: Ledger) -> None:
    """
    A ledger that refuses what is offered is no result: it ends with 1 and shows the replies.
    """
    made = ledger.json("keys", "create", "--scope", "wallets:write")
    where = ["--url", ledger.url, "--key", made["key"], "--dsn", ledger.dsn]
    ran = run("single", "--seconds", "0.5", "--wallets", "5", *where)
    assert ran.returncode == 1
    assert "setting up failed: Counter({403: 5})" in ran.stderr
