"""
Goal: `miliano up` brings a ledger up, keeps it up, and ends without a trace but the data.
Method: the command in a process of its own, ended in each way there is; its processes are found
        by the data folder in their environment, so none can hide.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.databases import execute
from tests.support.ledger import SERVING_S_MAX, Ledger, end, ledger_folder, running_ledger

BALANCE = 123_456
RAY_ANEW_S_MAX = 120.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with ledger_folder() as path:
        yield path


@pytest.fixture
def stopped_ledger(folder: Path) -> Iterator[Ledger]:
    """
    A ledger in plain processes that a test starts and stops itself.
    """
    ledger = Ledger(folder / "data", runtime="process")
    yield ledger
    end(ledger)


def fund(ledger: Ledger) -> None:
    ledger.json("wallets", "open", "EUR", "--id", "shop")
    ledger.json("deposit", "shop", str(BALANCE), "EUR")


def balance(ledger: Ledger) -> int:
    return int(ledger.json("wallets", "show", "shop")["balance"])


def test_signals_stop_it_and_the_data_is_found_again(stopped_ledger: Ledger) -> None:
    """
    SIGTERM, and Ctrl-C for the whole process group, end it with 0; nothing runs on, nothing is
    lost, and the key stays the same.
    """
    ledger = stopped_ledger
    ledger.start()
    fund(ledger)
    key = ledger.key
    assert ledger.stop(signal.SIGTERM) == 0, ledger.words()
    assert ledger.processes() == {}
    assert not (ledger.data_dir / "running.json").exists()

    ledger.start()
    assert ledger.key == key
    assert balance(ledger) == BALANCE
    assert ledger.process is not None
    os.killpg(ledger.pid, signal.SIGINT)  # What a terminal does.
    ledger.process.communicate(timeout=60)
    assert ledger.process.returncode == 0, ledger.words()
    assert ledger.processes() == {}


@pytest.mark.parametrize("runtime", ["process", "ray"])
def test_kill_leaves_no_process_and_the_data_is_found_again(folder: Path, runtime: str) -> None:
    """
    After `kill -9` everything it started is gone soon, and the next one finds all there was.
    """
    ledger = Ledger(folder / "data", runtime=runtime)
    try:
        ledger.start()
        fund(ledger)
        assert len(ledger.processes()) >= 5
        end(ledger)
        ledger.wait_until_gone()
        assert (ledger.data_dir / "running.json").exists()  # A stale one is no harm.
        assert ledger.run("status").code == 3
        ledger.start()
        assert balance(ledger) == BALANCE
        assert "books balanced" in ledger.run("verify").out
        assert ledger.stop() == 0, ledger.words()
        assert ledger.processes() == {}
    finally:
        end(ledger)


def test_parts_that_die_are_started_again(stopped_ledger: Ledger) -> None:
    """
    Gateway, shards and database are each killed and come back, and money moves again.
    """
    ledger = stopped_ledger
    ledger.start()
    fund(ledger)
    parts = ("gateway", "actors shard 0", "actors shard 1", "postgres")
    for number, part in enumerate(parts, 1):
        (victim,) = [pid for pid, command in ledger.processes().items() if part in command[:200]]
        os.kill(victim, signal.SIGKILL)
        deposit_until_posted(ledger, f"after-{part.replace(' ', '-')}")
        assert balance(ledger) == BALANCE + number
    assert "books balanced" in ledger.run("verify").out
    assert ledger.stop() == 0, ledger.words()


def deposit_until_posted(ledger: Ledger, key: str) -> None:
    """
    Send the same deposit again until it is posted; its key makes it one deposit.
    """
    deadline = time.monotonic() + SERVING_S_MAX
    while (ran := ledger.run("deposit", "shop", "1", "EUR", "--key", key)).code != 0:
        assert ran.code in (3, 5), ran
        assert time.monotonic() < deadline, ran
        time.sleep(0.05)


@pytest.mark.timeout(240)
def test_ray_whose_server_dies_is_started_anew(folder: Path) -> None:
    """
    When Ray's own server is killed, Ray is replaced under the running ledger, and money moves.
    """
    with running_ledger("ray", folder / "data") as ledger:
        fund(ledger)
        epoch = ledger.shard()["epoch"]
        (server,) = [pid for pid, command in ledger.processes().items() if "gcs_server" in command]
        os.kill(server, signal.SIGKILL)
        deadline = time.monotonic() + RAY_ANEW_S_MAX
        while ledger.shard()["epoch"] == epoch:
            assert time.monotonic() < deadline, ledger.words()
            time.sleep(0.2)
        deposit_until_posted(ledger, "after-ray")
        assert balance(ledger) == BALANCE + 1


def test_second_one_is_refused(stopped_ledger: Ledger) -> None:
    """
    A second `up` in the same folder, or on a port that is taken, ends with 6 and says why; the
    first is not disturbed.
    """
    ledger = stopped_ledger
    ledger.start()
    ran = ledger.run("up", "--runtime", "process", "--port", "0")
    assert ran.code == 6
    assert "another `miliano up` works in" in ran.err
    assert ledger.run("status").code == 0
    assert ledger.stop() == 0

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ran = ledger.run("up", "--runtime", "process", "--port", port)
    assert ran.code == 6
    assert f"cannot listen on 127.0.0.1:{port}" in ran.err
    ledger.wait_until_gone()


def test_interrupted_start_leaves_nothing(stopped_ledger: Ledger) -> None:
    """
    Ctrl-C before it is ready ends it with 0, and what had been started is gone.
    """
    ledger = stopped_ledger
    arguments = ["up", "--runtime", "process", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", *ledger.command(arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=ledger.environment,
        cwd=ledger.data_dir.parent,
    )
    assert process.stderr is not None
    while "waiting for the shards" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 0, words
    ledger.wait_until_gone()


def test_ledger_with_a_long_path_starts() -> None:
    """
    A data folder whose path is too long for a socket works as any other.
    """
    with ledger_folder() as folder:
        deep = folder / ("long-" * 12) / ("path-" * 12)
        deep.mkdir(parents=True)
        ledger = Ledger(deep / "data", runtime="process")
        try:
            ledger.start()
            fund(ledger)
            assert balance(ledger) == BALANCE
            assert ledger.stop() == 0, ledger.words()
        finally:
            end(ledger)


def test_first_key_is_told_once(folder: Path) -> None:
    """
    The first start tells the new key; a later one tells only where it is kept, owner-readable.
    """
    told = []
    for _ in range(2):
        with running_ledger("process", folder / "data") as ledger:
            told.append(ledger.running["new_key"])
            key_file = Path(ledger.running["key_file"])
            assert key_file.stat().st_mode & 0o777 == 0o600
            assert key_file.read_text().strip() == ledger.key
    assert told == [ledger.key, None]


def test_several_databases_and_a_shard_that_is_placed_later(folder: Path) -> None:
    """
    Shards are spread over the databases; one that is placed while all runs is started, takes half
    of another's slots, and the books balance over all of it, also after the next start.
    """
    environment = {"MILIANO_POSTGRES_EMBEDDED_DATABASES": "2"}
    wallets = [f"shop-{number}" for number in range(20)]
    for attempt in range(2):
        with running_ledger("process", folder / "data", environment=environment) as ledger:
            if not attempt:
                for wallet in wallets:
                    ledger.json("wallets", "open", "EUR", "--id", wallet)
                    ledger.json("deposit", wallet, "100", "EUR")
                moved = ledger.json("shards", "split", "0")
                assert moved == {"to": 2, "moved": 1_024, "kept": []}
                again = ledger.json("shards", "split", "0", "--to", "2")
                assert again == {"to": 2, "moved": 0, "kept": []}
            shards = ledger.json("shards", "list")["shards"]
            slots = [(shard["shard"], shard["slots"]) for shard in shards]
            assert slots == [(0, [[0, 1_023]]), (1, [[2_048, 4_095]]), (2, [[1_024, 2_047]])]
            assert {shard["database"] for shard in shards} == {0, 1}
            assert sum(shard["wallets"] for shard in shards) == len(wallets)
            for wallet in wallets:
                assert ledger.json("wallets", "show", wallet)["balance"] == 100 + attempt
                ledger.json("deposit", wallet, "1", "EUR")
            assert "books balanced" in ledger.run("verify").out


def test_slots_move_where_they_are_wanted(stopped_ledger: Ledger) -> None:
    """
    `shards move` moves what is named, and asking again changes nothing; nonsense is refused.
    """
    ledger = stopped_ledger
    ledger.start()
    assert ledger.json("shards", "move", "0-9,30", "--to", "1")["moved"] == 11
    assert ledger.json("shards", "move", "0-9,30", "--to", "1")["moved"] == 11
    assert ledger.json("shards", "move", "9", "--to", "0")["moved"] == 1
    slots = [shard["slots"] for shard in ledger.json("shards", "list")["shards"]]
    assert slots == [[[9, 29], [31, 2_047]], [[0, 8], [30, 30], [2_048, 4_095]]]
    assert ledger.run("shards", "move", "4096", "--to", "1").code == 2
    assert ledger.run("shards", "move", "1", "--to", "7").code == 4
    assert ledger.run("shards", "split", "7").code == 4
    assert "books balanced" in ledger.run("verify").out
    assert ledger.stop() == 0, ledger.words()


def test_a_database_of_another_ledger_is_refused(folder: Path) -> None:
    """
    `up` with another ledger's database among its own ends with 6 and says which.
    """
    with (
        running_ledger("process", folder / "one") as one,
        running_ledger("process", folder / "two") as two,
    ):
        both = f"{one.dsn} {two.dsn}"
        third = Ledger(folder / "three", environment={"MILIANO_POSTGRES_DSN": both})
        ran = third.run("up", "--runtime", "process", "--port", "0")
    assert ran.code == 6
    assert "belongs to another cluster" in ran.err


def test_halted_shard_can_be_looked_at_and_resumed(stopped_ledger: Ledger) -> None:
    """
    A ledger with halted shards comes up, says why nothing moves, and moves again once they are
    resumed.
    """
    ledger = stopped_ledger
    ledger.start()
    fund(ledger)
    halt = "UPDATE shard SET state = 'halted', halted_for = 'the moon', endpoint = NULL"
    asyncio.run(execute(ledger.dsn, halt))
    assert ledger.stop() == 0, ledger.words()

    ledger.start()
    assert not ledger.running["ready"]
    status = ledger.run("status")
    assert status.code == 3
    assert "shard 0 is halted: the moon" in status.out
    assert ledger.run("deposit", "shop", "1", "EUR").code == 3
    assert "books balanced" in ledger.run("verify").out
    for shard in (0, 1):
        document = {"shard": shard, "state": "active"}
        assert ledger.json("db", "resume", str(shard)) == document
    assert ledger.run("db", "resume", "0").code == 4
    assert ledger.stop() == 0, ledger.words()

    ledger.start()
    assert ledger.running["ready"]
    assert balance(ledger) == BALANCE
    assert ledger.stop() == 0, ledger.words()
