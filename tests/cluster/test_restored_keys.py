"""
Goal: a key that was used before its wallet's slot moved is never taken for a new one because the
      database that remembers it was restored to an earlier point and nobody has noticed yet.
Method: real processes on two databases. A payment is made, the payer's slot moves to the other
        shard, and the database it came from is replaced by a copy from before the payment; only
        the shard that took the slot is started, with what it has seen of the other and without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from gateway.cli.slot_moves import SlotMover
from gateway.shard_client import ShardOverloaded
from processor.core.slots import slot_of
from processor.flow.frames import Posted, WalletFound
from processor.storage.embedded_postgres import EmbeddedPostgres
from tests.support.commands import deposit, open_wallet, read_wallet, transfer
from tests.support.databases import Databases, execute, reading
from tests.support.shard_net import names_on
from tests.support.stack import Stack, running_stack
from tests.support.waiting import until

ALICE = names_on(0, 2)[0]
BOB = names_on(1, 2)[0]  # His slot moves to the first shard, which lives with the catalog.
PAID = transfer(BOB, ALICE, 100, key="paid")
PATIENT_MS = 15_000


@pytest.fixture
def stack(databases: Databases) -> Iterator[Stack]:
    with (
        databases.migrated() as first,
        databases.migrated() as second,
        running_stack(f"{first} {second}", MILIANO_SHARD_WITNESS_MS="20") as stack,
    ):
        yield stack


async def fill(stack: Stack) -> None:
    async with stack.clients() as clients:
        commands = [open_wallet(ALICE), open_wallet(BOB), deposit(BOB, 1_000, key="fill")]
        results = await clients.submit_many(commands, timeout_ms=PATIENT_MS)
        assert not [result for result, _ in results if isinstance(result, Exception)]
    await stack.settled()


async def pay_and_move(stack: Stack) -> None:
    """
    Pay, and move the payer's slot when the outcome is in the tables for good: it is not carried.
    """
    async with stack.clients() as clients:
        await clients.submit(PAID, timeout_ms=PATIENT_MS)
        await stack.settled()
        # Two records after the watermark was seen it is durable.
        for number in range(3):
            await clients.submit(deposit(BOB, 1, key=f"later {number}"), timeout_ms=PATIENT_MS)
            await stack.projected()
            await asyncio.sleep(0.5)
    mover = SlotMover(stack.dsns, stack.secret.encode(), 0, lambda _done: None)
    await mover.move(1, [slot_of(BOB)])
    assert await mover.arrived()
    await stack.settled()
    await witnessed(stack)


async def witnessed(stack: Stack) -> None:
    async def seen_all() -> bool:
        async with reading(stack.dsns[1]) as own:
            head = await own.fetchval("SELECT max(sequence) FROM journal WHERE shard_id = 1")
        async with reading(stack.dsns[0]) as other:
            seen = await other.fetchval("SELECT sequence FROM witness WHERE shard_id = 1")
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


async def ask_again(stack: Stack) -> object:
    """
    Ask under the used key, of a cluster in which the second shard was not started yet.
    """
    stack.shards[0].start()
    stack.write_behinds[0].start()
    await stack.shard_entry(0)
    async with stack.clients() as clients:
        (asked,) = await clients.submit_many([PAID], timeout_ms=PATIENT_MS)
        (found,) = await clients.submit_many([read_wallet(BOB)], timeout_ms=PATIENT_MS)
    assert isinstance(found[0], WalletFound)
    assert found[0].posted == 903
    return asked[0]


@pytest.mark.parametrize("has_witness", [True, False], ids=["witnessed", "unwitnessed"])
def test_a_used_key_is_not_new_where_its_outcome_was_lost(
    stack: Stack, postgres_server: EmbeddedPostgres, has_witness: bool
) -> None:
    """
    It is refused with nothing decided, also when nobody bore witness, by the channel alone; with
    the whole database back it is the payment of then.
    """
    asyncio.run(fill(stack))
    stack.stop()
    name = urlsplit(stack.dsns[1]).path.removeprefix("/")
    copy(postgres_server, name, f"{name}_earlier")
    stack.start()
    asyncio.run(pay_and_move(stack))
    stack.stop()
    copy(postgres_server, name, f"{name}_whole")
    copy(postgres_server, f"{name}_earlier", name)
    if not has_witness:
        asyncio.run(execute(stack.dsns[0], "DELETE FROM witness"))
    assert isinstance(asyncio.run(ask_again(stack)), ShardOverloaded)
    stack.stop()
    copy(postgres_server, f"{name}_whole", name)
    again = asyncio.run(ask_again(stack))
    assert isinstance(again, Posted)
    assert again.repeated
