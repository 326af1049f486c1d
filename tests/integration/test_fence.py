"""
Goal: at every moment one owner can write a shard's journal, and a new owner sees all that an
      older one wrote.
Method: real stores on one database, held at chosen points by a trigger that waits or by a
        transaction that is left open, so each order of events happens and not only may happen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from actors.wallet_shard import Phase
from processor.core.decisions import DECISION_FORMAT, EpochStarted, encode_decisions
from processor.core.record import GENESIS_CHAIN, Record, seal
from processor.flow.ports import AppendInDoubt, Fenced, ShardHalted, StoreUnavailable
from processor.storage import shard_store
from processor.storage.shard_store import APPEND, PostgresShardStore
from tests.support.books import read_journal
from tests.support.commands import open_wallet
from tests.support.databases import reading
from tests.support.gates import gate_at, locked_out
from tests.support.local_shard import LocalShard, owning
from tests.support.tcp_proxy import proxied_postgres
from tests.support.waiting import until

WRITER = "miliano/shard-0/writer"


@pytest.fixture
def through_proxy(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    folder = Path("/tmp") / tmp_path_factory.mktemp("p", numbered=True).name
    folder.mkdir(exist_ok=True)
    with proxied_postgres(database, folder) as both:
        yield both


class Owners:
    """
    Makes owners of shard 0 and lets all of them go at the end.
    """

    def __init__(self, dsn: str, stack: AsyncExitStack) -> None:
        self._dsn = dsn
        self._stack = stack

    def stranger(self) -> PostgresShardStore:
        """
        Make a store that owns nothing yet.
        """
        store = PostgresShardStore(self._dsn, 0)
        self._stack.push_async_callback(store.close)
        return store

    async def owner(self) -> PostgresShardStore:
        store = self.stranger()
        await store.take_over(build="test")
        return store


@asynccontextmanager
async def owners_of(dsn: str):
    async with AsyncExitStack() as stack:
        yield Owners(dsn, stack)


def record(epoch: int, *, after: Record | None = None, build: str = "test") -> Record:
    """
    Seal an epoch record that follows *after*.
    """
    return seal(
        shard_id=0,
        sequence=after.sequence + 1 if after else 1,
        epoch=epoch,
        at_us=1_000_000,
        count=1,
        decision_format=DECISION_FORMAT,
        payload=encode_decisions([EpochStarted(build)]),
        previous_chain=after.chain if after else GENESIS_CHAIN,
    )


async def tail(store: PostgresShardStore) -> list[Record]:
    """
    Read what a recovery by *store* would replay.
    """
    async with store.recovery_view() as view:
        return [found async for found in view.records()]


async def test_a_takeover_waits_for_an_append_and_sees_it(database: str):
    """
    An append that holds the row first: the bump waits for it, and the tail has the record.
    """
    async with (
        gate_at(database, "INSERT", "journal_0") as gate,
        owners_of(database) as owners,
        reading(database) as watcher,
    ):
        old = await owners.owner()
        await gate.close()
        written = record(old.epoch)
        append = asyncio.create_task(old.append(written))
        await gate.reached()

        new = owners.stranger()
        takeover = asyncio.create_task(new.take_over(build="test"))
        await locked_out(watcher, WRITER, count=2)
        assert not takeover.done()

        await gate.open()
        await append
        assert await takeover == old.epoch + 1
        assert await tail(new) == [written]


async def test_an_append_that_waits_for_a_takeover_inserts_nothing(database: str):
    """
    A bump that holds the row first: the append waits, finds another epoch and is fenced.
    """
    async with (
        gate_at(database, "UPDATE", "shard") as gate,
        owners_of(database) as owners,
        reading(database) as watcher,
    ):
        old = await owners.owner()
        await gate.close()
        new = owners.stranger()
        takeover = asyncio.create_task(new.take_over(build="test"))
        await gate.reached()

        append = asyncio.create_task(old.append(record(old.epoch)))
        await locked_out(watcher, WRITER, count=2)
        await gate.open()
        await takeover
        with pytest.raises(Fenced):
            await append
        assert await tail(new) == []


async def test_a_takeover_that_rolls_back_leaves_the_owner(database: str):
    """
    An append that waited for a takeover which then failed goes through: nobody was fenced.
    """
    async with (
        gate_at(database, "UPDATE", "shard") as gate,
        owners_of(database) as owners,
        reading(database) as watcher,
    ):
        old = await owners.owner()
        await gate.close()
        new = owners.stranger()
        takeover = asyncio.create_task(new.take_over(build="test"))
        await gate.reached()
        written = record(old.epoch)
        append = asyncio.create_task(old.append(written))
        await locked_out(watcher, WRITER, count=2)

        await watcher.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event = 'advisory' AND datname = current_database()"
        )
        with pytest.raises(StoreUnavailable):
            await takeover
        await append
        assert await tail(old) == [written]


async def test_an_append_between_bump_and_tail_read_inserts_nothing(database: str):
    """
    After the bump, before the new owner has read the tail: fenced, and the tail is what it was.
    """
    async with owners_of(database) as owners:
        old = await owners.owner()
        first = record(old.epoch)
        await old.append(first)
        new = await owners.owner()
        with pytest.raises(Fenced):
            await old.append(record(old.epoch, after=first))
        assert await tail(new) == [first]


@pytest.mark.parametrize("owner_count", [2, 5])
async def test_takeovers_at_once_leave_one_owner(database: str, owner_count: int):
    """
    All wait for the same row; each gets an epoch of its own, and only the highest one writes.
    """
    async with owners_of(database) as owners, reading(database) as watcher:
        await owners.owner()
        rivals = [owners.stranger() for _ in range(owner_count)]
        async with watcher.transaction():
            await watcher.execute("SELECT FROM shard FOR UPDATE")
            takeovers = [asyncio.create_task(rival.take_over(build="test")) for rival in rivals]
            async with reading(database) as other:
                await locked_out(other, WRITER, count=owner_count)
        epochs = await asyncio.gather(*takeovers)
        assert sorted(epochs) == list(range(2, owner_count + 2))

        *losers, winner = sorted(rivals, key=lambda rival: rival.epoch)
        for loser in losers:
            with pytest.raises(Fenced):
                await loser.append(record(loser.epoch, build="loser"))
        written = record(winner.epoch)
        await winner.append(written)
        assert await tail(winner) == [written]


async def test_owners_that_die_before_their_first_record_leave_no_trace(database: str):
    """
    A crash between the bump and the epoch record: the next takeover works, without a gap.
    """
    async with owning(database) as shard:
        await shard.ask(open_wallet("a"))
    async with owners_of(database) as owners:
        for _ in range(3):
            crashed = await owners.owner()
            crashed.abandon()
    async with owning(database) as shard:
        assert shard.store.epoch == 5
        await shard.ask(open_wallet("b"))
    journal = await read_journal(database)
    assert [(found.sequence, found.epoch) for found in journal.records] == [
        (1, 1),
        (2, 1),
        (3, 5),
        (4, 5),
    ]


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
async def test_the_append_locks_before_it_inserts(database: str, plan: str):
    """
    The plan has the row lock below the insert, so no row is written without the lock.
    """
    types = "integer, bigint, bigint, bigint, integer, smallint, bytea, bytea"
    async with owners_of(database) as owners, reading(database) as connection:
        await owners.owner()
        await connection.execute(f"SET plan_cache_mode = {plan}")
        await connection.execute(f"PREPARE append ({types}) AS {APPEND}")
        explained = await connection.fetchval(
            "EXPLAIN (FORMAT JSON) EXECUTE append (0, 1, 1, 1, 1, 1, '', '')"
        )
    insert = json.loads(explained)[0]["Plan"]
    assert (insert["Node Type"], insert["Operation"]) == ("ModifyTable", "Insert")
    assert "LockRows" in node_types_below(insert)


def node_types_below(plan: dict) -> list[str]:
    below = plan.get("Plans", [])
    return [each["Node Type"] for each in below] + [
        name for each in below for name in node_types_below(each)
    ]


async def test_a_takeover_ends_a_stuck_predecessor(database: str, monkeypatch: pytest.MonkeyPatch):
    """
    A backend that holds the row and never ends is ended by the takeover; its row is not there.
    """
    monkeypatch.setattr(shard_store, "LOCK_TIMEOUT_MS", 100)
    async with (
        gate_at(database, "INSERT", "journal_0") as gate,
        owners_of(database) as owners,
    ):
        old = await owners.owner()
        await gate.close()
        stuck = record(old.epoch)
        append = asyncio.create_task(old.append(stuck))
        await gate.reached()

        new = await owners.owner()
        with pytest.raises(AppendInDoubt):
            await append
        with pytest.raises(Fenced):
            await old.settle(stuck)
        assert await tail(new) == []
        await gate.open()
        await new.append(record(new.epoch))


async def test_a_takeover_leaves_other_shards_alone(database: str, monkeypatch: pytest.MonkeyPatch):
    """
    Ending the stuck owner of shard 1 does not touch the sessions of shard 10.
    """
    monkeypatch.setattr(shard_store, "LOCK_TIMEOUT_MS", 100)
    stuck, neighbour, new = (PostgresShardStore(database, number) for number in (1, 10, 1))
    async with gate_at(database, "INSERT", "journal_0") as gate, AsyncExitStack() as stack:
        for store in (stuck, neighbour, new):
            stack.push_async_callback(store.close)
        await stuck.take_over(build="test")
        await neighbour.take_over(build="test")
        await gate.close()
        append = asyncio.create_task(stuck.append(record_of(1, stuck.epoch)))
        await gate.reached()
        await new.take_over(build="test")
        with pytest.raises(AppendInDoubt):
            await append
        await gate.open()
        await neighbour.check_fence()
        await neighbour.append(record_of(10, neighbour.epoch))


def record_of(shard_id: int, epoch: int) -> Record:
    return seal(
        shard_id=shard_id,
        sequence=1,
        epoch=epoch,
        at_us=1_000_000,
        count=1,
        decision_format=DECISION_FORMAT,
        payload=encode_decisions([EpochStarted("test")]),
        previous_chain=GENESIS_CHAIN,
    )


@pytest.mark.parametrize("successor_lives", [True, False])
async def test_a_fenced_owner_never_gets_the_shard_back(database: str, successor_lives: bool):
    """
    Settle, a new connection, a fence check and publishing all say Fenced, again and again,
    whether the successor is alive or gone; the epoch stays the successor's.
    """
    async with owners_of(database) as owners, reading(database) as watcher:
        old = await owners.owner()
        new = await owners.owner()
        if not successor_lives:
            await new.close()
        for _ in range(2):
            with pytest.raises(Fenced):
                await old.settle(record(old.epoch))
            with pytest.raises(Fenced):
                await old.restore_connection()
            with pytest.raises(Fenced):
                await old.publish(endpoint="unix:/old", pid=1)
            with pytest.raises(AppendInDoubt):
                await old.append(record(old.epoch))  # It has no connection any more.
        assert tuple(await watcher.fetchrow("SELECT epoch, endpoint FROM shard")) == (2, None)
        assert await watcher.fetchval("SELECT count(*) FROM journal") == 0


async def test_a_fence_check_tells_an_owner_that_it_is_fenced(database: str):
    """
    An owner whose connection still stands learns from a look at the row that it is over.
    """
    async with owners_of(database) as owners:
        old = await owners.owner()
        await old.check_fence()
        await owners.owner()
        with pytest.raises(Fenced):
            await old.check_fence()


async def test_settle_does_not_take_a_successors_record_for_ones_own(database: str):
    """
    The successor wrote the doubtful sequence: that is Fenced, not durable.
    """
    async with owners_of(database) as owners:
        old = await owners.owner()
        new = await owners.owner()
        await new.append(record(new.epoch, build="successor"))
        with pytest.raises(Fenced):
            await old.settle(record(old.epoch, build="predecessor"))


async def test_nobody_owns_a_halted_shard(database: str):
    """
    Halting fences the owner, and a takeover says why it cannot be.
    """
    async with owners_of(database) as owners:
        old = await owners.owner()
        await old.halt("a person has to look")
        with pytest.raises(Fenced):
            await old.append(record(old.epoch))
        with pytest.raises(Fenced):
            await old.check_fence()
        with pytest.raises(Fenced):
            await old.restore_connection()
        with pytest.raises(ShardHalted, match="a person has to look"):
            await owners.owner()


async def test_two_records_never_share_a_sequence(database: str):
    """
    Even within one epoch a second record of a sequence is refused by the key.
    """
    async with owners_of(database) as owners, reading(database) as watcher:
        owner = await owners.owner()
        await owner.append(record(owner.epoch, build="first"))
        with pytest.raises(AppendInDoubt):
            await owner.append(record(owner.epoch, build="second"))
        assert await watcher.fetchval("SELECT count(*) FROM journal") == 1


async def test_an_owner_overtaken_in_recovery_ends_and_halts_nobody(
    database: str, through_proxy: tuple
):
    """
    An owner that lost the shard before it read the tail finds its successor's records there.

    They are no broken chain: the loser ends, the successor goes on.
    """
    proxy, dsn = through_proxy
    loser = LocalShard(dsn)
    proxy.on_open(lambda link: proxy.refuse() if b"/reader" in link.opening else None)
    loser.launch()
    await until(lambda: any(b"/reader" in link.opening for link in proxy.links), "recovery")
    for link in proxy.links:
        link.cut()
    async with owning(database) as winner:
        proxy.on_open(None)
        proxy.refuse(refused=False)
        await until(lambda: loser.ended or loser.shard.phase is Phase.HALTED, "the loser")
        try:
            assert loser.shard.phase is not Phase.HALTED, loser.shard.halted_for
            assert loser.ended is not None
            assert loser.ended.startswith("Fenced")
            await winner.ask(open_wallet("a"))
        finally:
            await loser.stop()
    async with reading(database) as watcher:
        assert await watcher.fetchval("SELECT state FROM shard") == "active"


async def test_a_bump_that_fails_is_not_ownership(database: str):
    """
    A takeover that is terminated raises StoreUnavailable, and trying again works.
    """
    async with (
        gate_at(database, "UPDATE", "shard") as gate,
        owners_of(database) as owners,
        reading(database) as watcher,
    ):
        await owners.owner()
        await gate.close()
        new = owners.stranger()
        takeover = asyncio.create_task(new.take_over(build="test"))
        await gate.reached()
        await watcher.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event = 'advisory' AND datname = current_database()"
        )
        with pytest.raises(StoreUnavailable):
            await takeover
        with pytest.raises(AppendInDoubt):
            await new.append(record(new.epoch))
        await gate.open()
        assert await new.take_over(build="test") == 2
        await new.append(record(new.epoch))
        with pytest.raises(asyncpg.UniqueViolationError):
            await watcher.execute(
                "INSERT INTO journal SELECT shard_id, sequence, 99, at_us, count, format, chain,"
                " payload FROM journal"
            )
