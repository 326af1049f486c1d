"""
Holding a statement at a known point: after it wrote its row, before it commits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.support.databases import reading
from tests.support.waiting import until

_WAITING = """
    SELECT count(*) FROM pg_stat_activity
     WHERE application_name = $1 AND wait_event_type = 'Lock'
       AND datname = current_database()
"""


class Gate:
    """
    A trigger that waits as long as the gate is closed. It begins open.
    """

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record], number: int) -> None:
        self._connection = connection
        self._number = number

    async def close(self) -> None:
        await self._connection.execute("SELECT pg_advisory_lock($1)", self._number)

    async def open(self) -> None:
        await self._connection.execute("SELECT pg_advisory_unlock($1)", self._number)

    async def reached(self) -> None:
        """
        Wait until a statement stands before the closed gate.
        """
        waiting = "SELECT count(*) FROM pg_locks WHERE objid = $1 AND NOT granted"
        await until(lambda: self._connection.fetchval(waiting, self._number), "the gate")


@asynccontextmanager
async def gate_at(dsn: str, event: str, table: str) -> AsyncIterator[Gate]:
    """
    Put a gate behind each row that *event*, for example INSERT, writes to *table*.
    """
    async with reading(dsn) as connection:
        number = int(await connection.fetchval("SELECT hashtext($1) & 65535", table + event))
        name = f"gate_{table}_{event.lower()}"
        await connection.execute(f"""
            CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_advisory_xact_lock_shared({number}); RETURN NULL; END $$;
            CREATE TRIGGER {name} AFTER {event} ON {table}
               FOR EACH ROW EXECUTE FUNCTION {name}()
        """)
        yield Gate(connection, number)


async def locked_out(
    connection: asyncpg.Connection[asyncpg.Record], application: str, *, count: int = 1
) -> None:
    """
    Wait until *count* sessions of *application* wait for somebody's lock.
    """

    async def all_wait() -> bool:
        return bool(await connection.fetchval(_WAITING, application) == count)

    await until(all_wait, f"{count} of {application} waiting for a lock")
