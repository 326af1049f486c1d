"""
Goal: the tables tell exactly what the journal tells, each record once, whatever ends the
      write-behind and whenever; and a journal that contradicts itself is never projected.
Method: a real shard writes the journal; the projection is held at each of its statements by
        locks of a second session and ended there, or cut off from the server by a proxy.
        Afterwards the tables are compared with a replay of the whole journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest

from actors.write_behind import WriteBehind
from configs.settings import WriteBehindSettings
from processor.core.commands import SetWalletLimits, SetWalletStatus
from processor.core.decisions import DECISION_FORMAT, EpochStarted, encode_decisions
from processor.core.limits import Limits, Velocity
from processor.core.record import BrokenChain, Record, seal
from processor.core.reject_reason import RejectReason
from processor.core.wallet import WalletStatus
from processor.flow.frames import Posted, Rejected
from processor.storage import directory
from processor.storage.directory import Directory, ShardEntry
from processor.storage.projection import Projection, WatermarkMoved
from processor.storage.shard_store import STORE_ERRORS, PostgresShardStore
from tests.support.books import read_balanced_tables, read_journal
from tests.support.bound_commands import (
    capture,
    fee_leg,
    hold_id_of,
    leg,
    linked,
    place,
    refund,
)
from tests.support.commands import MERCHANT, deposit, open_wallet, transfer
from tests.support.databases import execute, reading
from tests.support.gates import gate_at, locked_out
from tests.support.local_shard import LocalShard, owning
from tests.support.tcp_proxy import Direction, Link, TcpProxy
from tests.support.waiting import until

LIMITS = Limits(credits=Velocity(day_amount=1_000))
APPLICATION = "miliano/write-behind-0"
SETTINGS = WriteBehindSettings(pause_ms=5, pause_ms_max=10)
END_PROJECTION = f"""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
     WHERE application_name = '{APPLICATION}' AND datname = current_database()
"""


@pytest.fixture
async def shard(database: str) -> AsyncIterator[LocalShard]:
    """
    A shard with four wallets, two of them filled.
    """
    async with owning(database) as shard:
        await shard.ask(*(open_wallet(name) for name in "abcd"))
        await shard.ask(deposit("a", 1_000, key="a"), deposit("b", 1_000, key="b"))
        yield shard


@asynccontextmanager
async def projecting(
    dsn: str, settings: WriteBehindSettings = SETTINGS
) -> AsyncIterator[Projection]:
    projection = Projection(dsn, 0, settings)
    await projection.open()
    try:
        yield projection
    finally:
        projection.close()


@asynccontextmanager
async def writing_behind(dsn: str) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(WriteBehind(dsn, SETTINGS).run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def project_all(projection: Projection) -> None:
    while await projection.step():
        pass


async def everything(shard: LocalShard) -> None:
    """
    Do, in a few records, everything that makes the projection write.
    """
    await shard.ask(open_wallet("e", minimum=-50), transfer("a", "b", 10, key="1"))
    await shard.ask(
        transfer("b", "e", 5, key="2"),
        transfer("c", "a", 1, key="refused"),
        SetWalletStatus(MERCHANT, "c", WalletStatus.FROZEN),
        SetWalletLimits(MERCHANT, "d", -100, LIMITS),
        transfer("b", "d", 1, key="limited"),
    )
    await shard.ask(place("a", 10, destination="b"), capture(hold_id_of("a"), 4))
    await shard.ask(refund("1", "b", "a", 3, refundable=10, key="refund"))
    await shard.ask(linked(leg("a", "d", 1), fee_leg("d", 1)))


LOCKS = {
    "the watermark": "SELECT FROM watermark FOR UPDATE",
    "the transfers": "LOCK transfers IN SHARE MODE",
    "the new wallets": "LOCK wallets IN SHARE MODE",
    "the balances": "SELECT FROM wallets WHERE wallet_id = 'a' FOR UPDATE",
    "the statuses": "SELECT FROM wallets WHERE wallet_id = 'c' FOR UPDATE",
    "the limits": "SELECT FROM wallets WHERE wallet_id = 'd' FOR UPDATE",
    "the holds": "LOCK holds IN SHARE MODE",
    "the refunds": "LOCK refunds IN SHARE MODE",
    "the outcomes": "LOCK outcomes IN SHARE MODE",
}


@pytest.mark.parametrize("statement", LOCKS)
async def test_ended_at_any_statement_it_repeats_and_loses_nothing(
    database: str, shard: LocalShard, statement: str
):
    """
    The session is ended while it waits at one of its statements: the round was not, and the
    next one is whole.
    """
    async with projecting(database) as projection, reading(database) as other:
        await project_all(projection)
        mark = projection.watermark
        await everything(shard)
        async with other.transaction():
            await other.execute(LOCKS[statement])
            step = asyncio.create_task(projection.step())
            async with reading(database) as watcher:
                await locked_out(watcher, APPLICATION)
                await watcher.execute(END_PROJECTION)
            with pytest.raises(STORE_ERRORS):
                await step
        await projection.open()
        assert projection.watermark == mark
        await project_all(projection)
        await read_balanced_tables(database)


async def test_ended_at_its_commit_it_repeats_and_loses_nothing(database: str, shard: LocalShard):
    """
    The same at the commit itself, held there by a deferred trigger.
    """
    async with projecting(database) as projection, reading(database) as other:
        await project_all(projection)
        await everything(shard)
        await other.execute("""
            CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON transfers INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION hold();
            SELECT pg_advisory_lock(7)
        """)
        step = asyncio.create_task(projection.step())
        await locked_out(other, APPLICATION)
        await other.execute(END_PROJECTION)
        with pytest.raises(STORE_ERRORS):
            await step
        await other.execute("SELECT pg_advisory_unlock(7)")
        await projection.open()
        await project_all(projection)
        await read_balanced_tables(database)


@pytest.mark.parametrize("direction", Direction)
async def test_cut_off_after_any_message_it_repeats_and_loses_nothing(
    database: str, shard: LocalShard, proxied: tuple[TcpProxy, str], direction: Direction
):
    """
    The connection is cut after each message of a round, the commit and its answer included.
    """
    proxy, dsn = proxied
    async with projecting(dsn) as projection:
        number = 0
        is_cut = True
        while is_cut:
            number += 1
            await projection.open()
            link = proxy.links[-1]
            await project_all(projection)
            name = f"w{number}"
            await shard.ask(open_wallet(name), transfer("a", name, 1, key=name))
            link.cut_after(direction, message_count=number)
            is_cut = await step_is_cut(projection, link)
            await projection.open()
            await project_all(projection)
            await read_balanced_tables(database)
        assert number >= 15


async def step_is_cut(projection: Projection, link: Link) -> bool:
    """
    Step once; say whether the connection was cut under it.
    """
    try:
        await projection.step()
    except STORE_ERRORS:
        return True
    return not link.is_open


async def test_two_projections_exclude_each_other(database: str, shard: LocalShard):
    """
    Both begin the same round: one writes it, the other writes nothing and is told.
    """
    async with (
        projecting(database) as first,
        projecting(database) as second,
        gate_at(database, "UPDATE", "watermark") as gate,
        reading(database) as watcher,
    ):
        await gate.close()
        steps = [asyncio.create_task(first.step())]
        await gate.reached()
        steps.append(asyncio.create_task(second.step()))
        await locked_out(watcher, APPLICATION, count=2)
        await gate.open()
        assert await steps[0] == shard.shard.statistics().sequence
        with pytest.raises(WatermarkMoved):
            await steps[1]
        await second.open()
        assert await second.step() == 0
        await read_balanced_tables(database)


async def test_many_projections_at_once_write_each_record_once(database: str, shard: LocalShard):
    """
    Three projections race over small rounds: together they write every record exactly once.
    """
    for number in range(40):
        await shard.ask(transfer("a", "b", 1, key=str(number)))
    counts = []

    async def project() -> None:
        settings = WriteBehindSettings(records_max=3)
        async with projecting(database, settings) as projection:
            while True:
                try:
                    count = await projection.step()
                except WatermarkMoved:
                    await projection.open()
                    continue
                if not count:
                    return
                counts.append(count)

    await asyncio.gather(project(), project(), project())
    assert sum(counts) == shard.shard.statistics().sequence
    await read_balanced_tables(database)


async def test_balances_are_absolute(database: str, shard: LocalShard):
    """
    A row that somebody spoiled is right again as soon as its wallet moves.
    """
    async with projecting(database) as projection:
        await project_all(projection)
        await execute(database, "UPDATE wallets SET posted = 77, version = 77")
        await shard.ask(*(transfer("a", name, 1, key=f"1 {name}") for name in "bcd"))
        await shard.ask(deposit("a", 1, key="2"))
        await project_all(projection)
        await read_balanced_tables(database)


async def test_each_wallet_is_written_once_a_round(database: str, shard: LocalShard):
    """
    Twenty transfers between two wallets over five records are two updates.
    """
    async with projecting(database) as projection, reading(database) as other:
        await project_all(projection)
        await other.execute("""
            CREATE TABLE written (wallet_id text);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO written VALUES (NEW.wallet_id); RETURN NULL; END $$;
            CREATE TRIGGER note AFTER INSERT OR UPDATE ON wallets
               FOR EACH ROW EXECUTE FUNCTION note()
        """)
        for record in range(5):
            await shard.ask(*(transfer("a", "b", 1, key=f"{record} {n}") for n in range(4)))
        assert await projection.step() == 5
        written = await other.fetch("SELECT wallet_id FROM written ORDER BY wallet_id")
        assert [row[0] for row in written] == ["a", "b"]
        await read_balanced_tables(database)


@pytest.mark.parametrize("records_max", [1, 256])
async def test_a_whole_life_in_one_round(database: str, shard: LocalShard, records_max: int):
    """
    Opened, filled, moved, limited, frozen and, another one, emptied and closed: one round or
    several, the row is what the wallet is at the end.
    """
    await shard.ask(open_wallet("x", minimum=-10), open_wallet("y"))
    await shard.ask(deposit("x", 100, key="1"), transfer("x", "y", 30, key="2"))
    await shard.ask(SetWalletLimits(MERCHANT, "x", 5))
    await shard.ask(transfer("y", "x", 30, key="3"))
    await shard.ask(
        SetWalletStatus(MERCHANT, "x", WalletStatus.FROZEN),
        SetWalletStatus(MERCHANT, "y", WalletStatus.LOCKED),
        SetWalletStatus(MERCHANT, "y", WalletStatus.CLOSED),
    )
    settings = WriteBehindSettings(records_max=records_max)
    async with projecting(database, settings) as projection, reading(database) as other:
        await project_all(projection)
        await read_balanced_tables(database)
        rows = await other.fetch(
            "SELECT wallet_id, status, minimum, posted, version FROM wallets"
            " WHERE wallet_id IN ('x', 'y') ORDER BY 1"
        )
        assert [tuple(row) for row in rows] == [
            ("x", WalletStatus.FROZEN, 5, 100, 3),
            ("y", WalletStatus.CLOSED, 0, 0, 2),
        ]


async def test_a_rejected_transfer_is_told_and_moves_nothing(database: str, shard: LocalShard):
    """
    The refusal has its row with its reason and no balances; the wallets stay as they were.
    """
    async with projecting(database) as projection, reading(database) as other:
        await project_all(projection)
        before = await other.fetch("SELECT * FROM wallets ORDER BY wallet_id")
        (result,) = await shard.ask(transfer("c", "a", 1, key="refused"))
        assert isinstance(result, Rejected)
        await project_all(projection)
        row = await other.fetchrow("SELECT * FROM transfers WHERE sequence = $1", result.sequence)
        assert (row["reason"], row["source_balance"], row["destination_version"]) == (
            RejectReason.INSUFFICIENT_FUNDS,
            None,
            None,
        )
        assert await other.fetch("SELECT * FROM wallets ORDER BY wallet_id") == before
        await read_balanced_tables(database)


SPOILED = {
    "a payload": "UPDATE journal SET payload = payload || '\\x00' WHERE sequence = 3",
    "a chain": "UPDATE journal SET chain = decode(repeat('00', 32), 'hex') WHERE sequence = 3",
    "an epoch": "UPDATE journal SET epoch = epoch + 1 WHERE sequence = 3",
    "a time": "UPDATE journal SET at_us = at_us + 1 WHERE sequence = 3",
    "a missing record": "DELETE FROM journal WHERE sequence = 3",
    "a record from elsewhere": "UPDATE journal SET payload = (SELECT payload FROM journal"
    " WHERE sequence = 2) WHERE sequence = 3",
}


@pytest.mark.parametrize("what", SPOILED)
async def test_a_broken_chain_is_not_projected_and_halts_the_shard(
    database: str, shard: LocalShard, what: str
):
    """
    Nothing of the spoiled record reaches the tables; the shard is marked and its owner ends.
    """
    await shard.ask(transfer("a", "b", 1, key="1"))
    await execute(database, SPOILED[what])
    async with reading(database) as other:
        async with writing_behind(database):
            await until(lambda: is_halted(other), "the halt")
        assert "write-behind refused" in await other.fetchval("SELECT halted_for FROM shard")
        assert await other.fetchval("SELECT max(sequence) FROM watermark") in (0, 2)
        assert await other.fetchval("SELECT count(*) FROM transfers") == 0
    frame = shard.send(transfer("a", "b", 1, key="2"))
    await until(lambda: shard.ended, "the end of the owner")
    assert not shard.replies[frame]
    async with owning(database) as successor:
        assert successor.shard.halted_for is not None
        assert "write-behind refused" in successor.shard.halted_for


async def is_halted(connection: asyncpg.Connection[asyncpg.Record]) -> bool:
    return bool(await connection.fetchval("SELECT state = 'halted' FROM shard WHERE shard_id = 0"))


async def test_a_missing_wallet_is_not_ignored(database: str, shard: LocalShard):
    """
    A balance that finds no row is refused with its whole round.
    """
    async with projecting(database) as projection:
        await project_all(projection)
        mark = projection.watermark
        await execute(database, "DELETE FROM wallets WHERE wallet_id = 'b'")
        await shard.ask(transfer("a", "b", 1, key="1"))
        with pytest.raises(BrokenChain):
            await projection.step()
        await projection.open()
        assert projection.watermark == mark


async def test_a_restart_goes_on_at_the_watermark(database: str, shard: LocalShard):
    """
    A new projection finds what the last one did, writes nothing again and goes on after it.
    """
    async with projecting(database) as projection:
        await project_all(projection)
        mark = projection.watermark
    async with projecting(database) as projection:
        assert projection.watermark == mark
        assert await projection.step() == 0
        await shard.ask(transfer("a", "b", 1, key="1"))
        assert await projection.step() == 1
    await read_balanced_tables(database)


async def test_the_write_behind_survives_the_loss_of_its_sessions(
    database: str,
    shard: LocalShard,
    proxied: tuple[TcpProxy, str],
    monkeypatch: pytest.MonkeyPatch,
):
    """
    Ended, cut off, told farewell without an end, or not told anything any more: it opens again
    and the tables follow.
    """
    monkeypatch.setattr("processor.storage.projection.STEP_S_MAX", 1.0)
    proxy, dsn = proxied
    async with writing_behind(dsn), reading(database) as other:

        async def caught_up() -> bool:
            query = "SELECT (SELECT max(sequence) FROM journal) = sequence FROM watermark"
            return bool(await other.fetchval(query))

        losses = [
            lambda _: execute(database, END_PROJECTION),
            cut,
            lambda link: say_farewell(database, link),
            swallow,
        ]
        await until(caught_up, "the tables")
        for number, lose in enumerate(losses):
            await lose(proxy.link_of(APPLICATION.encode()))
            await shard.ask(transfer("a", "b", 1, key=str(number)))
            await until(caught_up, f"the tables after loss {number}")
    await read_balanced_tables(database)


async def cut(link: Link) -> None:
    link.cut()


async def say_farewell(dsn: str, link: Link) -> None:
    """
    End the session so that its client hears the farewell and not the end.
    """
    link.swallow_after(Direction.TO_CLIENT, message_count=link.messages[Direction.TO_CLIENT])
    await execute(dsn, END_PROJECTION)


async def test_a_record_of_a_newer_build_halts_the_shard(database: str, shard: LocalShard):
    """
    A record of a format that this build does not know is neither skipped nor tried for ever: the
    shard is halted, and the reason says what to do.
    """
    await shard.shard.stop()
    journal = await read_journal(database)
    last = journal.records[-1]
    newer = seal(
        shard_id=0,
        sequence=last.sequence + 1,
        epoch=last.epoch,
        at_us=last.at_us + 1,
        count=1,
        decision_format=DECISION_FORMAT + 1,
        payload=encode_decisions([EpochStarted("newer")]),
        previous_chain=last.chain,
    )
    await insert(database, newer)
    async with writing_behind(database) as task, reading(database) as connection:

        async def halted_for() -> str | None:
            return await connection.fetchval("SELECT halted_for FROM shard")

        await until(halted_for, "the shard to be halted")
        assert "start a newer build" in (await halted_for() or "")
        assert not task.done()  # It goes on with other shards.


async def insert(dsn: str, record: Record) -> None:
    async with reading(dsn) as connection:
        await connection.execute(
            "INSERT INTO journal (shard_id, sequence, epoch, at_us, count, format, payload, chain)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            *(getattr(record, field) for field in record.__struct_fields__),
        )


async def test_the_journal_crosses_into_the_next_partition(database: str):
    """
    A shard whose journal has reached 999 997 goes on over the border: the partition is there
    before it is needed, and the tables and the next owner cross it as well.
    """
    border = seal(
        shard_id=0,
        sequence=999_997,
        epoch=1,
        at_us=1_000_000,
        count=1,
        decision_format=DECISION_FORMAT,
        payload=encode_decisions([EpochStarted("before")]),
        previous_chain=bytes(32),
    )
    await insert(database, border)
    async with reading(database) as other:
        await other.execute("INSERT INTO shard (shard_id, epoch) VALUES (0, 1)")
        await other.execute(
            "INSERT INTO watermark (shard_id, projection, sequence, chain)"
            " VALUES (0, 'tables', $1, $2)",
            border.sequence,
            border.chain,
        )
        async with owning(database) as shard, projecting(database) as projection:
            await shard.ask(open_wallet("a"), open_wallet("b"))
            results = [(await shard.ask(deposit("a", 1, key=str(n))))[0] for n in range(4)]
            assert all(isinstance(result, Posted) for result in results)
            assert [result.sequence for result in results] == [*range(1_000_000, 1_000_004)]
            await project_all(projection)
            assert projection.watermark == 1_000_003
        async with owning(database) as successor:
            (again,) = await successor.ask(deposit("a", 1, key="0"))
            assert isinstance(again, Posted)
            assert again.repeated
        counts = await other.fetch(
            "SELECT tableoid::regclass::text AS name, count(*) FROM journal GROUP BY 1 ORDER BY 1"
        )
        assert [tuple(row) for row in counts] == [("journal_0", 3), ("journal_1", 5)]


async def test_a_partition_is_made_while_an_append_is_in_flight(database: str, shard: LocalShard):
    """
    Neither waits for the other.
    """
    async with gate_at(database, "INSERT", "journal_0") as gate, AsyncExitStack() as stack:
        maker = PostgresShardStore(database, 0)
        stack.push_async_callback(maker.close)
        await gate.close()
        frame = shard.send(transfer("a", "b", 1, key="1"))
        await gate.reached()
        await asyncio.wait_for(maker.prepare_journal(5_000_000), 10)
        assert not shard.replies[frame]
        await gate.open()
        await shard.results(frame)


async def test_an_append_passes_a_partition_that_waits(database: str, shard: LocalShard):
    """
    While the making of a partition waits for somebody's lock, appends go on.
    """
    async with reading(database) as other, AsyncExitStack() as stack:
        maker = PostgresShardStore(database, 0)
        stack.push_async_callback(maker.close)
        async with other.transaction():
            await other.execute("LOCK journal IN SHARE UPDATE EXCLUSIVE MODE")
            preparing = asyncio.create_task(maker.prepare_journal(5_000_000))
            async with reading(database) as watcher:
                await locked_out(watcher, "miliano/shard-0/reader")
            await shard.ask(transfer("a", "b", 1, key="1"))
            assert not preparing.done()
        await preparing
        await shard.ask(transfer("a", "b", 1, key="2"))


async def test_the_directory_survives_the_loss_of_its_session(
    database: str, proxied: tuple[TcpProxy, str], monkeypatch: pytest.MonkeyPatch
):
    """
    Cut off, told farewell without an end, or not told anything any more: it looks again and
    reports what has changed.
    """
    monkeypatch.setattr(directory, "LOOK_S_MAX", 0.2)
    proxy, dsn = proxied
    seen: list[list[ShardEntry]] = []
    watching = asyncio.create_task(Directory(dsn, seen.append).run())
    try:
        await until(lambda: seen, "the first look")
        losses = [cut, lambda link: directory_farewell(database, link), swallow]
        for number, lose in enumerate(losses):
            await lose(proxy.link_of(b"miliano/directory"))
            await execute(database, f"INSERT INTO shard (shard_id) VALUES ({number})")
            await until(lambda: len(seen[-1]) > number, f"the change after loss {number}")  # noqa: B023
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def swallow(link: Link) -> None:
    link.swallow()


async def directory_farewell(dsn: str, link: Link) -> None:
    link.swallow_after(Direction.TO_CLIENT, message_count=1)
    await execute(
        dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'miliano/directory' AND datname = current_database()",
    )
