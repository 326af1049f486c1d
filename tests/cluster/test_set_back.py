"""
Goal: when one of two databases is restored to what it was earlier, nobody goes on as if nothing
      had happened: the shards on both sides of what was lost halt and say why.
Method: real processes on two databases; one of them is replaced by an older copy of itself while
        everything is down, with the witness rows of the other, and without them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from processor.storage.embedded_postgres import EmbeddedPostgres
from tests.support.commands import deposit, open_wallet, transfer
from tests.support.databases import Databases, execute, reading
from tests.support.shard_net import names_on
from tests.support.stack import Stack, running_stack
from tests.support.waiting import until

ALICE, BOB = names_on(0, 2)[0], names_on(1, 2)[0]
PATIENT_MS = 15_000


@pytest.fixture
def stack(databases: Databases) -> Iterator[Stack]:
    with (
        databases.migrated() as first,
        databases.migrated() as second,
        running_stack(f"{first} {second}", MILIANO_SHARD_WITNESS_MS="20") as stack,
    ):
        yield stack


async def pay(stack: Stack, *numbers: int) -> None:
    """
    Pay from the first shard to the second, and wait until all has settled.
    """
    async with stack.clients() as clients:
        commands = [open_wallet(ALICE), open_wallet(BOB), deposit(ALICE, 1_000, key="fill")]
        commands += [transfer(ALICE, BOB, 1, key=f"payment {number}") for number in numbers]
        results = await clients.submit_many(commands, timeout_ms=PATIENT_MS)
        assert not [result for result, _ in results if isinstance(result, Exception)]
    await stack.settled()


async def witnessed(stack: Stack, shard_id: int) -> None:
    """
    Wait until the other database has seen the whole journal of a shard.
    """

    async def seen_all() -> bool:
        async with reading(stack.dsns[shard_id]) as own:
            head = await own.fetchval(
                "SELECT max(sequence) FROM journal WHERE shard_id = $1", shard_id
            )
        async with reading(stack.dsns[1 - shard_id]) as other:
            seen = await other.fetchval(
                "SELECT sequence FROM witness WHERE shard_id = $1", shard_id
            )
        return bool(seen == head)

    await until(seen_all, "the witness")


def copy(server: EmbeddedPostgres, source: str, target: str) -> None:
    """
    Make database *target* a copy of *source*, which nobody uses.
    """

    async def run() -> None:
        await execute(server.dsn("postgres"), f"DROP DATABASE IF EXISTS {target} WITH (FORCE)")
        await execute(server.dsn("postgres"), f"CREATE DATABASE {target} TEMPLATE {source}")

    asyncio.run(run())


@pytest.mark.parametrize("has_witness", [True, False], ids=["witnessed", "unwitnessed"])
@pytest.mark.parametrize("shard_id", [0, 1], ids=["payer's", "payee's"])
def test_a_restored_database_halts_both_shards(
    stack: Stack, postgres_server: EmbeddedPostgres, shard_id: int, has_witness: bool
) -> None:
    """
    The shard in it and its peer halt, in the catalog and for whoever asks, and both say why.
    """
    asyncio.run(pay(stack, 1, 2, 3))
    stack.stop()
    name = urlsplit(stack.dsns[shard_id]).path.removeprefix("/")
    copy(postgres_server, name, f"{name}_earlier")
    stack.start()
    asyncio.run(pay(stack, 4, 5, 6))
    asyncio.run(witnessed(stack, shard_id))
    stack.stop()
    copy(postgres_server, f"{name}_earlier", name)
    if not has_witness:
        asyncio.run(execute(stack.dsns[1 - shard_id], "DELETE FROM witness"))
    stack.start()
    why = "set back" if has_witness else "channel broken"
    asyncio.run(halted(stack, why))


async def halted(stack: Stack, why: str) -> None:
    async def both() -> bool:
        entries = await stack.entries()
        return all(
            entries[each].state == "halted" and why in (entries[each].halted_for or "")
            for each in (0, 1)
        )

    await until(both, f"both shards to halt: {why}")
