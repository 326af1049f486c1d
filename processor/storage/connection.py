"""
Connections to Postgres, and the settings without which a reply would be a lie.

Rule 1: only connecting has a deadline. A statement is never timed out or cancelled from here: a
        cancelled COMMIT may report success for what no standby has.
Rule 2: whoever promises durability connects with `durability` set; such a connection exists only
        while the server's settings keep that promise.
Rule 3: transactions go through `committed`, which reads the server's answer to COMMIT.
A uuid is 16 raw bytes here, in both directions. OSError and asyncpg's errors stay as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qs, urlsplit

import asyncpg
import asyncpg.pool

CONNECT_TIMEOUT_S = 10
SERVER_VERSION_MIN = 150_000

Durability = Literal["local", "quorum"]
Connection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)


def _is_on(value: str) -> bool:
    return value == "on"


# Setting, whether its value is safe, and what to do when it is not.
Rule = tuple[str, Callable[[Any], bool], str]

_LOCAL_RULES: list[Rule] = [
    (
        "server_version_num",
        lambda value: value >= SERVER_VERSION_MIN,
        f"Postgres {SERVER_VERSION_MIN // 10_000} or newer is needed; upgrade the server.",
    ),
    (
        "in_recovery",
        lambda value: not value,
        (
            "this server is a standby; point the DSN at the primary "
            "(target_session_attrs=read-write with several hosts)."
        ),
    ),
    (
        "transaction_read_only",
        lambda value: value == "off",
        (
            "transactions would not write; remove default_transaction_read_only from the "
            "server, the database and the role."
        ),
    ),
    (
        "fsync",
        _is_on,
        (
            "a crash would lose or corrupt what was acknowledged; set fsync = on in "
            "postgresql.conf and reload."
        ),
    ),
    (
        "full_page_writes",
        _is_on,
        (
            "a crash could leave torn pages; set full_page_writes = on in postgresql.conf "
            "and reload."
        ),
    ),
    (
        "data_checksums",
        _is_on,
        (
            "a page gone bad on disk would be served as it is; stop the server and run "
            "`pg_checksums --enable`."
        ),
    ),
    (
        "synchronous_commit",
        lambda value: value in ("on", "remote_apply"),
        (
            "an acknowledged commit could be lost; connect with a durability level, which "
            "sets it to on, and not through a pooler that resets it."
        ),
    ),
]

_QUORUM_RULES: list[Rule] = [
    *_LOCAL_RULES,
    (
        "synchronous_standby_names",
        lambda value: value.strip() != "",
        (
            "durability is quorum and no standby is waited for; set for example "
            "synchronous_standby_names = 'ANY 1 (a, b)' and reload, or choose local."
        ),
    ),
]


class UnsafeDatabase(Exception):
    """
    The server would not keep what is promised; the message names the setting and the remedy.
    """


class SilentRollback(Exception):
    """
    The server answered COMMIT with something else: nothing of the transaction was written.
    """


async def connect(
    dsn: str,
    *,
    application_name: str,
    durability: Durability | None = None,
    server_settings: Mapping[str, str] | None = None,
) -> asyncpg.Connection[asyncpg.Record]:
    """
    Open a connection; with *durability*, only to a server that keeps it.

    Raises UnsafeDatabase, OSError (TimeoutError included) or an asyncpg error.
    """
    options = _options(dsn, application_name, durability, server_settings)
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        conn: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(**options)
        try:
            await _prepare(conn, durability)
        except BaseException:
            conn.terminate()
            raise
    return conn


async def create_pool(
    dsn: str,
    *,
    application_name: str,
    size_max: int,
    durability: Durability | None = None,
    server_settings: Mapping[str, str] | None = None,
) -> asyncpg.Pool[asyncpg.Record]:
    """
    Open a pool of connections like those of `connect`; raises what `connect` raises.
    """

    async def prepare(conn: Connection) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await _prepare(conn, durability)

    options = _options(dsn, application_name, durability, server_settings)
    return await asyncpg.create_pool(**options, init=prepare, min_size=1, max_size=size_max)


@asynccontextmanager
async def committed(conn: Connection) -> AsyncIterator[None]:
    """
    Run the block as one transaction; leaving it without an exception means it is committed.

    Raises SilentRollback when the block swallowed an error, so that COMMIT rolled back. After an
    error from COMMIT itself the transaction may be durable or not.
    """
    assert not conn.is_in_transaction(), "transactions do not nest"
    await conn.execute("BEGIN")
    try:
        yield
    except BaseException:
        await _roll_back(conn)
        raise
    tag = await conn.execute("COMMIT")
    if tag != "COMMIT":
        raise SilentRollback(f"COMMIT was answered with {tag}: an error inside was swallowed")


@contextmanager
def given_up_on(conn: Connection, seconds_max: float) -> Iterator[None]:
    """
    Drop *conn* when the block takes longer: its session has fallen silent. Whatever waits on it
    gets one of asyncpg's errors; nothing is asked to be cancelled.
    """
    watch = asyncio.get_running_loop().call_later(seconds_max, conn.terminate)
    try:
        yield
    finally:
        watch.cancel()


async def _roll_back(conn: Connection) -> None:
    if conn.is_closed():
        return
    try:
        await conn.execute("ROLLBACK")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        conn.terminate()  # The server rolls back by itself; the first error is the one to tell.


async def check_settings(conn: Connection, *, durability: Durability) -> None:
    """
    Raise UnsafeDatabase unless the server, as this session sees it, keeps *durability*.
    """
    row = await conn.fetchrow(
        """
        SELECT current_setting('server_version_num')::integer AS server_version_num,
               pg_is_in_recovery() AS in_recovery,
               current_setting('transaction_read_only') AS transaction_read_only,
               current_setting('fsync') AS fsync,
               current_setting('full_page_writes') AS full_page_writes,
               current_setting('data_checksums') AS data_checksums,
               current_setting('synchronous_commit') AS synchronous_commit,
               current_setting('synchronous_standby_names') AS synchronous_standby_names
        """
    )
    assert row is not None, "a SELECT without FROM gives one row"
    rules = _QUORUM_RULES if durability == "quorum" else _LOCAL_RULES
    for setting, is_safe, remedy in rules:
        value = row[setting]
        if not is_safe(value):
            raise UnsafeDatabase(f"{setting} is {value!r}: {remedy}")


async def _prepare(conn: Connection, durability: Durability | None) -> None:
    # bytes.__bytes__ returns the very object, and refuses what is not bytes.
    await conn.set_type_codec(
        "uuid", schema="pg_catalog", encoder=bytes.__bytes__, decoder=bytes, format="binary"
    )
    if durability is not None:
        await check_settings(conn, durability=durability)


def _options(
    dsn: str,
    application_name: str,
    durability: Durability | None,
    server_settings: Mapping[str, str] | None,
) -> dict[str, Any]:
    session = {"application_name": application_name, "statement_timeout": "0"}
    session.update(server_settings or {})
    if durability is not None:
        session["synchronous_commit"] = "on"
    options: dict[str, Any] = {
        "dsn": dsn,
        "timeout": CONNECT_TIMEOUT_S,
        "max_cached_statement_lifetime": 0,  # For ever: no statement is parsed again.
        "server_settings": session,
    }
    if _is_unix_socket(dsn):
        options["ssl"] = False  # Whatever the environment says: there is no wire to protect.
    return options


def _is_unix_socket(dsn: str) -> bool:
    parts = urlsplit(dsn)
    hosts = parse_qs(parts.query).get("host", [])
    return hosts[0].startswith("/") if hosts else not parts.netloc.rpartition("@")[2]
