"""
Goal: the embedded Postgres is a real, durable server that is found again and never left behind.

Method: real servers in temporary directories. One is shared; a test that stops or kills it leaves
the next test to start it again. Launchers that must die, or must not be root, are forked children.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from processor.storage import embedded_postgres
from processor.storage.embedded_postgres import (
    LOG_SIZE_BYTES_MAX,
    EmbeddedPostgres,
    EmbeddedPostgresError,
    find_binary_dir,
)

DEADLINE_S = 20.0
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another")


@pytest.fixture(scope="module")
def shared() -> Iterator[EmbeddedPostgres]:
    with (
        tempfile.TemporaryDirectory() as parent,
        EmbeddedPostgres(Path(parent) / "data") as server,
    ):
        yield server


@pytest.fixture
def server(shared: EmbeddedPostgres) -> EmbeddedPostgres:
    """
    The shared server, running, whatever the test before did to it.
    """
    if not shared.is_running():
        shared.start()
    return shared


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Refuse a running server soon: it is known to be healthy.
    """
    monkeypatch.setattr(embedded_postgres, "READY_GRACE_S", 0.2)


@pytest.fixture(scope="module")
def public_dir() -> Iterator[Path]:
    """
    A directory every user can enter.
    """
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def fetch(server: EmbeddedPostgres, sql: str, database: str = "postgres") -> list[Any]:
    """
    Return the first column of a query's rows, over a connection of its own.
    """

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(server.dsn(database))
        try:
            return [row[0] for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def commit_mark(server: EmbeddedPostgres) -> str:
    """
    Commit a new row and return its text.
    """
    mark = secrets.token_hex(8)
    fetch(server, "CREATE TABLE IF NOT EXISTS mark (text text)")
    fetch(server, f"INSERT INTO mark VALUES ('{mark}')")
    return mark


def poll(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not seen in {DEADLINE_S} s: {what}"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def socket_dir_of(server: EmbeddedPostgres) -> Path:
    return Path(parse_qs(urlsplit(server.dsn("postgres")).query)["host"][0])


def copied_binaries(directory: Path) -> Path:
    """
    Copy the programs below a directory, once, laid out as a wheel does.
    """
    prefix = find_binary_dir().parent
    copy = directory / prefix.parent.name / prefix.name
    if not copy.exists():
        shutil.copytree(prefix, copy)
        libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, directory / libraries.name)
    return copy / "bin"


def modes_above(path: Path) -> list[int]:
    return [stat.S_IMODE(parent.stat().st_mode) for parent in path.parents]


def real_uid(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("Uid:")[2].split()[0])


def fork(action: Callable[[], None]) -> int:
    """
    Run an action in a forked child, which then stays until it is killed; return its pid.
    """
    child = os.fork()
    if child == 0:
        try:
            action()
            signal.pause()
        finally:
            os._exit(1)
    return child


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@contextlib.contextmanager
def forked_launcher(server: EmbeddedPostgres, uid: int | None = None) -> Iterator[tuple[int, int]]:
    """
    Start the server in a forked child, as `uid` if given; yield the child's and the server's pid.
    """
    reader, writer = os.pipe()

    def launch() -> None:
        if uid is not None:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        try:
            server.start()
            os.write(writer, f"{server.pid}\n".encode())
        except Exception as error:
            os.write(writer, f"{error!r}\n".encode())

    child = fork(launch)
    os.close(writer)
    try:
        with os.fdopen(reader) as pipe:
            answer = pipe.readline().strip()
        assert answer.isdecimal(), answer
        yield child, int(answer)
    finally:
        kill(child)


def test_a_new_server_is_durable_and_private(server: EmbeddedPostgres) -> None:
    """
    The server syncs, checks its pages, orders text by code point and listens to no network.
    """
    names = ("fsync", "synchronous_commit", "full_page_writes", "data_checksums", "autovacuum")
    assert [fetch(server, f"SHOW {name}") for name in names] == [["on"]] * len(names)
    assert fetch(server, "SHOW listen_addresses") == [""]
    assert fetch(server, "SHOW shared_preload_libraries") == ["pg_stat_statements"]
    assert fetch(server, "SELECT datlocale FROM pg_database WHERE datname = 'postgres'") == [
        "C.UTF-8"
    ]
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    assert os.getpgid(server.pid) != os.getpgid(0)  # or Ctrl-C would stop it under our feet


def test_data_is_found_again_after_a_stop(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A clean stop and a start keep what was committed, whatever PG* variables say.
    """
    mark = commit_mark(server)
    pid = server.pid
    server.stop()
    server.stop()
    assert not is_alive(pid)
    assert not server.is_running()
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGOPTIONS", "-c nonexistent=1")
    server.start()
    server.create_database("postgres")
    monkeypatch.delenv("PGOPTIONS")
    assert mark in fetch(server, "SELECT text FROM mark")


def test_a_killed_postmaster_is_recovered(server: EmbeddedPostgres) -> None:
    """
    After SIGKILL of the postmaster, with a session still open, a start finds committed data.
    """
    mark = commit_mark(server)
    session = subprocess.Popen(
        [find_binary_dir() / "psql", server.dsn("postgres"), "-c", "SELECT pg_sleep(60)"],
        stderr=subprocess.DEVNULL,
    )
    sleeping = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
    poll(lambda: bool(fetch(server, sleeping)), "the open session")
    killed_pid = server.pid
    server.kill()
    assert not server.is_running()
    server.start()
    assert server.pid != killed_pid
    assert mark in fetch(server, "SELECT text FROM mark")
    assert session.wait(DEADLINE_S) != 0


def test_a_second_server_is_refused(server: EmbeddedPostgres, short_grace: None) -> None:
    """
    Starting a running directory again says who runs it, and leaves that server alone.
    """
    second = EmbeddedPostgres(server.data_dir)
    with pytest.raises(EmbeddedPostgresError, match=f"already running with pid {server.pid} "):
        second.start()
    with pytest.raises(EmbeddedPostgresError, match=f"already running with pid {server.pid} "):
        server.start()
    second.stop()
    assert fetch(server, "SELECT 1") == [1]


def test_a_server_started_by_hand_is_seen(server: EmbeddedPostgres, short_grace: None) -> None:
    """
    A live postmaster that does not hold our lock is still not mistaken for a stale pid file.
    """
    lock = server.data_dir.with_name("data.lock")
    lock.unlink()
    with pytest.raises(EmbeddedPostgresError, match=f"already running with pid {server.pid} "):
        EmbeddedPostgres(server.data_dir).start()
    assert fetch(server, "SELECT 1") == [1]
    server.stop()


def test_a_server_that_is_shutting_down_is_waited_for(server: EmbeddedPostgres) -> None:
    """
    A start while the earlier postmaster is on its way out waits for it instead of failing.
    """
    mark = commit_mark(server)
    session = subprocess.Popen(
        [find_binary_dir() / "psql", server.dsn("postgres"), "-c", "SELECT pg_sleep(1)"],
        stdout=subprocess.DEVNULL,
    )
    sleeping = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(1)'"
    poll(lambda: bool(fetch(server, sleeping)), "the open session")
    pid_file = server.data_dir / "postmaster.pid"
    os.kill(server.pid, signal.SIGTERM)  # a smart shutdown: it lets the session end
    poll(lambda: "stopping" in pid_file.read_text(), "the shutdown")
    assert server.is_running()
    with EmbeddedPostgres(server.data_dir) as following:
        assert not server.is_running()
        assert mark in fetch(following, "SELECT text FROM mark")
    assert session.wait(DEADLINE_S) == 0


def test_a_stale_pid_file_of_a_live_stranger_is_survived(server: EmbeddedPostgres) -> None:
    """
    After a crash, the number in postmaster.pid may belong to any process: it is left alone.
    """
    mark = commit_mark(server)
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        for pid in (stranger.pid, os.getpid()):
            server.kill()
            for path in (
                server.data_dir / "postmaster.pid",
                server.data_dir.with_name("data.socket") / ".s.PGSQL.5432.lock",
            ):
                lines = path.read_text().splitlines(keepends=True)
                path.write_text("".join([f"{pid}\n", *lines[1:]]))
            server.start()
            assert mark in fetch(server, "SELECT text FROM mark")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_an_unreadable_pid_file_is_survived(server: EmbeddedPostgres) -> None:
    """
    A postmaster.pid that a crash left empty does not keep the server from starting.
    """
    server.kill()
    (server.data_dir / "postmaster.pid").write_text("")
    server.start()
    assert fetch(server, "SELECT 1") == [1]


def test_databases_are_made_once(server: EmbeddedPostgres) -> None:
    """
    A database is made if missing, kept if present, and its name cannot carry SQL.
    """
    server.create_database("ledger_1")
    fetch(server, "CREATE TABLE kept (id int)", "ledger_1")
    server.create_database("ledger_1")
    assert fetch(server, "SELECT count(*) FROM kept", "ledger_1") == [0]
    for name in ("", "1a", "A", "a b", 'a"', "a'; --", "a" * 64, "a\n"):
        with pytest.raises(ValueError, match="not a database name"):
            server.create_database(name)


def test_a_tcp_port_asks_for_the_password(server: EmbeddedPostgres) -> None:
    """
    With a port the DSN is TCP with a password from a 0600 file, and no other password is let in.
    """
    mark = commit_mark(server)
    server.stop()
    with socket.socket() as reserved:  # bound, so nobody else gets it; Postgres may listen
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with EmbeddedPostgres(server.data_dir, port=port) as open_server:
            dsn = open_server.dsn("postgres")
            assert f"@127.0.0.1:{port}/" in dsn
            assert mark in fetch(open_server, "SELECT text FROM mark")
            password_file = server.data_dir.with_name("data.password")
            password = password_file.read_text()
            assert stat.S_IMODE(password_file.stat().st_mode) == 0o600
            password_file.write_text("wrong")
            with pytest.raises(asyncpg.InvalidPasswordError):
                fetch(open_server, "SELECT 1")
            password_file.write_text(password)
            fetch(open_server, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            statements = fetch(open_server, "SELECT query FROM pg_stat_statements")
            assert statements
            assert not [text for text in statements if password in text]


def test_a_failed_start_shows_the_log_and_leaves_nothing(server: EmbeddedPostgres) -> None:
    """
    When the port is taken, the error quotes the server's log, and the directory is free again.
    """
    server.stop()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        blocked = EmbeddedPostgres(server.data_dir, port=taken.getsockname()[1])
        with pytest.raises(EmbeddedPostgresError, match="could not create any TCP/IP sockets"):
            blocked.start()
    assert not blocked.is_running()
    server.start()
    assert fetch(server, "SELECT 1") == [1]


def test_the_start_is_bounded(server: EmbeddedPostgres) -> None:
    """
    A server that is not ready in time is an error, and is stopped.
    """
    server.stop()
    hasty = EmbeddedPostgres(server.data_dir, start_timeout_s=0.0)
    with pytest.raises(EmbeddedPostgresError, match="was not ready after 0 s"):
        hasty.start()
    assert not hasty.is_running()
    server.start()


def test_a_large_log_is_rotated_at_start(server: EmbeddedPostgres) -> None:
    """
    A log beyond its bound is put aside, and only one old log is kept.
    """
    server.stop()
    log = server.data_dir.with_name("data.log")
    os.truncate(log, LOG_SIZE_BYTES_MAX + 1)
    server.start()
    assert log.stat().st_size < LOG_SIZE_BYTES_MAX
    assert log.with_name("data.log.1").stat().st_size == LOG_SIZE_BYTES_MAX + 1


def test_a_start_off_the_main_thread_is_our_mistake(tmp_path: Path) -> None:
    """
    A server whose launcher is a passing thread would be stopped by the end of that thread.
    """
    raised: list[BaseException] = []

    def start() -> None:
        try:
            EmbeddedPostgres(tmp_path / "data").start()
        except AssertionError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert [str(error) for error in raised] == ["start from the main thread"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("user_namespace", [True, False])
def test_a_long_path_and_odd_names_are_fine(tmp_path: Path, *, user_namespace: bool) -> None:
    """
    A path too long for a socket, with commas and blanks, gets a short socket directory, removed
    at stop, and no directory above the data changes its mode.
    """
    data_dir = tmp_path / ("long" * 25) / "comma, quote' and \N{LATIN SMALL LETTER E WITH ACUTE}"
    data_dir.parent.mkdir(mode=0o700)
    modes = modes_above(data_dir)
    with EmbeddedPostgres(data_dir, user_namespace=user_namespace) as server:
        socket_dir = socket_dir_of(server)
        assert len(str(socket_dir)) < 80
        assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
        server.create_database("ledger")
        assert fetch(server, "SELECT 1", "ledger") == [1]
    assert not socket_dir.exists()
    assert modes_above(data_dir) == modes


@pytest.mark.parametrize(
    ("uid", "user_namespace"),
    [
        pytest.param(None, True, id="same user"),
        pytest.param(None, False, id="root without namespaces", marks=needs_root),
        pytest.param(NOBODY, True, id="not root", marks=needs_root),
    ],
)
def test_the_server_leaves_when_its_launcher_is_killed(
    public_dir: Path, uid: int | None, *, user_namespace: bool
) -> None:
    """
    After kill -9 of the launcher the server shuts down cleanly, whoever runs it.
    """
    with tempfile.TemporaryDirectory(dir=public_dir) as parent:
        if uid is not None:
            os.chown(parent, uid, uid)
        server = EmbeddedPostgres(
            Path(parent) / "data",
            binary_dir=copied_binaries(public_dir),
            user_namespace=user_namespace,
        )
        with forked_launcher(server, uid) as (launcher_pid, pid):
            assert is_alive(pid)
            os.kill(launcher_pid, signal.SIGKILL)
            poll(lambda: not is_alive(pid), "the end of the server")
        assert "database system is shut down" in (Path(parent) / "data.log").read_text()


def test_a_start_right_after_the_launcher_was_killed_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A postmaster that has not noticed yet that its launcher is gone is not a running server.
    """
    monkeypatch.setattr(embedded_postgres, "READY_GRACE_S", DEADLINE_S)
    server = EmbeddedPostgres(tmp_path / "data")
    with forked_launcher(server) as (launcher_pid, pid):
        mark = commit_mark(server)
        os.kill(pid, signal.SIGSTOP)
        os.kill(launcher_pid, signal.SIGKILL)
        waker = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -CONT {pid}"])
        with server:
            assert not is_alive(pid)
            assert mark in fetch(server, "SELECT text FROM mark")
        assert waker.wait(DEADLINE_S) == 0


def test_children_of_a_killed_postmaster_are_waited_for(server: EmbeddedPostgres) -> None:
    """
    No server starts while one process of an earlier one could still write to the data.
    """
    (writer,) = fetch(
        server, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'"
    )
    os.kill(writer, signal.SIGSTOP)
    try:
        server.kill()
        with pytest.raises(EmbeddedPostgresError, match="processes of an earlier server"):
            EmbeddedPostgres(server.data_dir, start_timeout_s=0.1).start()
    finally:
        os.kill(writer, signal.SIGCONT)
    server.start()
    assert fetch(server, "SELECT 1") == [1]


def test_of_two_launchers_at_once_one_makes_the_data(tmp_path: Path, short_grace: None) -> None:
    """
    A launcher that comes while another is making the data directory waits, and is refused.
    """
    server = EmbeddedPostgres(tmp_path / "data")
    child = fork(server.start)
    try:
        poll((tmp_path / "data.making").exists, "the first launcher at work")
        with pytest.raises(EmbeddedPostgresError, match="already running"):
            EmbeddedPostgres(tmp_path / "data").start()
        assert fetch(server, "SELECT 1") == [1]
    finally:
        kill(child)


@needs_root
def test_root_without_namespaces_runs_as_nobody(
    public_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Without user namespaces root's server is nobody's, even when nobody can reach the data or
    the programs; the data is kept when the way of running changes, and no mode above it does.
    """
    monkeypatch.setattr(embedded_postgres, "BINARY_COPY_ROOT", public_dir / "copies")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    binary_dir = copied_binaries(private)
    data_dir = private / "data"
    modes = modes_above(data_dir)
    with EmbeddedPostgres(data_dir, binary_dir=binary_dir, user_namespace=False) as as_nobody:
        assert real_uid(as_nobody.pid) == NOBODY
        assert Path(f"/proc/{as_nobody.pid}/exe").resolve().is_relative_to(public_dir / "copies")
        as_nobody.create_database("ledger")
        mark = commit_mark(as_nobody)
        as_nobody.kill()
    with EmbeddedPostgres(data_dir, binary_dir=binary_dir) as as_root:
        assert real_uid(as_root.pid) == 0
        assert mark in fetch(as_root, "SELECT text FROM mark")
    with EmbeddedPostgres(data_dir, binary_dir=binary_dir, user_namespace=False) as as_nobody:
        assert real_uid(as_nobody.pid) == NOBODY
        assert mark in fetch(as_nobody, "SELECT text FROM mark")
    assert modes_above(data_dir) == modes


def test_a_killed_initdb_is_never_taken_for_data(tmp_path: Path) -> None:
    """
    When initdb dies half-way the data directory does not exist, and the next start makes it anew.
    """
    server = EmbeddedPostgres(tmp_path / "data")
    child = fork(server.start)
    half_made = tmp_path / "data.making" / "PG_VERSION"
    poll(half_made.exists, "the first files of initdb")
    for pid in Path(f"/proc/{child}/task/{child}/children").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    os.waitpid(child, 0)
    assert half_made.exists()
    assert not server.data_dir.exists()
    with server:
        assert fetch(server, "SELECT 1") == [1]
    assert not half_made.exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"PG_VERSION": "18\n"}, "neither empty nor a whole Postgres data directory"),
        ({"notes.txt": "mine"}, "neither empty nor a whole Postgres data directory"),
        (
            {"PG_VERSION": "17\n", "global/pg_control": "?"},
            "was made by Postgres 17, the programs are Postgres 18",
        ),
    ],
    ids=["half made", "foreign", "other version"],
)
def test_a_directory_that_is_not_ours_is_left_alone(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    """
    A half-made, foreign or other version's directory is an error, and keeps its files.
    """
    for name, text in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.raises(EmbeddedPostgresError, match=message):
        EmbeddedPostgres(tmp_path / "data").start()
    kept = {path for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert kept == {tmp_path / "data" / name for name in files}


def test_missing_programs_are_named(tmp_path: Path) -> None:
    """
    A binary directory without the programs is an error that says what to do, not a reason to guess.
    """
    server = EmbeddedPostgres(tmp_path / "data", binary_dir=tmp_path)
    with pytest.raises(EmbeddedPostgresError, match="set MILIANO_PG_BIN"):
        server.start()
