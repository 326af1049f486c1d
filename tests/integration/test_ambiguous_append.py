"""
Goal: whatever happens to the connection, the backend or the server during an append, the batch
      is in the journal exactly once, it is answered once and truly, and the chain is whole.
Method: a real shard on a real Postgres behind a proxy that cuts or swallows at every stage of
        one append and of the settling after it; triggers that warn or fail at the commit.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from configs.settings import ShardSettings
from processor.core.commands import MoveMoney
from processor.core.decisions import (
    DECISION_FORMAT,
    EpochStarted,
    decode_decisions,
    encode_decisions,
)
from processor.core.record import GENESIS_CHAIN, Record, seal
from processor.flow.frames import Answered, Posted
from processor.flow.ports import AppendInDoubt, StoreUnavailable
from processor.storage import shard_store
from processor.storage.embedded_postgres import EmbeddedPostgres
from processor.storage.shard_store import PostgresShardStore
from tests.support.books import Journal, read_journal
from tests.support.commands import deposit, open_wallet, read_wallet, transfer
from tests.support.databases import Databases, execute, reading
from tests.support.gates import gate_at
from tests.support.local_shard import LocalShard
from tests.support.tcp_proxy import Direction, Link, TcpProxy, proxied_postgres
from tests.support.waiting import until

SETTINGS = ShardSettings(append_stuck_ms=200)
WRITER = b"miliano/shard-0/writer"
READER = b"miliano/shard-0/reader"
TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


class Till:
    """
    A shard with two filled wallets, and the transfers that went through it.
    """

    def __init__(self, dsn: str, direct_dsn: str) -> None:
        self.shard = LocalShard(dsn, SETTINGS)
        self.answers: dict[bytes, Posted] = {}
        self._dsn = dsn
        self._direct_dsn = direct_dsn
        self._numbers = itertools.count(1)

    async def open(self) -> None:
        await self.shard.start()
        await self.shard.ask(open_wallet("a"), open_wallet("b"))
        await self.shard.ask(deposit("a", 1_000_000, key="a"), deposit("b", 1_000_000, key="b"))

    def command(self) -> MoveMoney:
        return transfer("a", "b", 1, key=f"transfer {next(self._numbers)}")

    async def pay(self) -> Posted:
        """
        Pay once and remember the answer.
        """
        command = self.command()
        (result,) = await self.shard.ask(command)
        assert isinstance(result, Posted)
        assert not result.repeated
        self.answers[command.key] = result
        return result

    async def pay_in_doubt(self) -> int:
        """
        Pay through a fault that was planned; return the epoch of the payment's record, counted
        from the epoch at the start. The epoch has moved by exactly one.
        """
        epoch = self.shard.store.epoch
        posted = await self.pay()
        assert self.shard.store.epoch == epoch + 1
        async with reading(self._direct_dsn) as connection:
            journaled = await connection.fetchval(
                "SELECT epoch FROM journal WHERE sequence = $1", posted.sequence
            )
        return int(journaled) - epoch

    async def replace(self) -> None:
        """
        Start a successor of a shard whose process has ended.
        """
        await self.shard.stop()
        self.shard = LocalShard(self._dsn, SETTINGS)
        await self.shard.start()

    async def check(self) -> Journal:
        """
        Check that each payment is in the journal once, where it was said to be.
        """
        journal = await read_journal(self._direct_dsn)
        assert set(journal.key_counts().values()) == {1}
        keys_at = {
            decision.key: record.sequence
            for record in journal.records
            for decision in decode_decisions(record.payload, record.format)
            if hasattr(decision, "key")
        }
        for key, posted in self.answers.items():
            assert keys_at[key] == posted.sequence
        assert self.shard.answer_counts() == {1}
        return journal


@asynccontextmanager
async def till_at(dsn: str, direct_dsn: str) -> AsyncIterator[Till]:
    till = Till(dsn, direct_dsn)
    await till.open()
    try:
        yield till
        await till.check()
    finally:
        await till.shard.stop()


async def measure(till: Till, proxy: TcpProxy) -> tuple[dict, dict]:
    """
    Return the bytes and the messages of one healthy append, in each direction.
    """
    link = proxy.link_of(WRITER)
    passed, messages = dict(link.passed), dict(link.messages)
    await till.pay()
    return (
        {direction: link.passed[direction] - passed[direction] for direction in Direction},
        {direction: link.messages[direction] - messages[direction] for direction in Direction},
    )


async def test_a_cut_in_the_request_is_settled(database: str, proxied: tuple[TcpProxy, str]):
    """
    A request that arrived in part is never executed: the batch is written in the new epoch.
    """
    proxy, dsn = proxied
    async with till_at(dsn, database) as till:
        await till.pay()
        byte_counts, _ = await measure(till, proxy)
        whole = byte_counts[TO_SERVER] - 8  # Numbers in it can shrink by a few bytes.
        for byte_count in [0, 1, 4, 5, 6, whole // 4, whole // 2, whole - 1, whole]:
            await till.pay()
            proxy.link_of(WRITER).cut_after(TO_SERVER, byte_count=byte_count)
            assert await till.pay_in_doubt() == 1


async def test_a_cut_between_request_and_reply_is_settled(
    database: str, proxied: tuple[TcpProxy, str]
):
    """
    The whole request arrived and nobody was told: durable or written anew, never both.
    """
    proxy, dsn = proxied
    async with till_at(dsn, database) as till:
        await till.pay()
        _, message_counts = await measure(till, proxy)
        for _ in range(10):
            await till.pay()
            link = proxy.link_of(WRITER)
            link.cut_after(TO_SERVER, message_count=message_counts[TO_SERVER])
            assert await till.pay_in_doubt() in (0, 1)


async def test_a_cut_anywhere_in_the_reply_is_settled(database: str, proxied: tuple[TcpProxy, str]):
    """
    After each byte of the reply: the row was committed, so it stays and is not written again.
    """
    proxy, dsn = proxied
    async with till_at(dsn, database) as till:
        await till.pay()
        byte_counts, _ = await measure(till, proxy)
        assert byte_counts[TO_CLIENT] == 27  # BindComplete, "INSERT 0 1", ReadyForQuery.
        for byte_count in range(27):
            await till.pay()
            proxy.link_of(WRITER).cut_after(TO_CLIENT, byte_count=byte_count)
            assert await till.pay_in_doubt() == 0, byte_count


async def test_a_cut_right_after_the_reply_is_found_by_the_next(
    database: str, proxied: tuple[TcpProxy, str]
):
    """
    The append is answered in its own epoch; the next one is in doubt and written anew.
    """
    proxy, dsn = proxied
    async with till_at(dsn, database) as till:
        await till.pay()
        epoch = till.shard.store.epoch
        link = proxy.link_of(WRITER)
        link.cut_after(TO_CLIENT, byte_count=27)
        await till.pay()
        assert till.shard.store.epoch == epoch
        assert await till.pay_in_doubt() == 1


async def test_a_cut_while_the_statement_is_prepared_is_settled(
    database: str, proxied: tuple[TcpProxy, str]
):
    """
    On a new connection the append begins by preparing: a cut there has written nothing.
    """
    proxy, dsn = proxied
    async with till_at(dsn, database) as till:
        for byte_count in (0, 1, 5, 20, 40):
            # The first cut makes a new connection, on which nothing was appended yet.
            proxy.link_of(WRITER).cut_after(TO_SERVER, byte_count=0)
            await restored(till)
            proxy.link_of(WRITER).cut_after(TO_CLIENT, byte_count=byte_count)
            assert await till.pay_in_doubt() == 1


async def restored(till: Till) -> None:
    """
    Have the shard find its connection broken by a look at the fence, and take a new one.
    """
    epoch = till.shard.store.epoch
    await till.shard.ask(read_wallet("a"))
    assert till.shard.store.epoch == epoch + 1


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_cut_over_tcp_is_settled(database: str, reset: bool):
    """
    The same over TCP, ended politely or by a reset.
    """
    with proxied_postgres(database) as (proxy, dsn):
        async with till_at(dsn, database) as till:
            faults: list[Callable[[Link], None]] = [
                lambda link: link.cut(reset=reset),
                lambda link: link.cut_after(TO_SERVER, byte_count=100, reset=reset),
                lambda link: link.cut_after(TO_CLIENT, byte_count=0, reset=reset),
                lambda link: link.cut_after(TO_CLIENT, byte_count=13, reset=reset),
            ]
            for fault in faults:
                await till.pay()
                fault(proxy.link_of(WRITER))
                assert await till.pay_in_doubt() in (0, 1)


@pytest.mark.parametrize(
    ("direction", "epoch"), [(TO_SERVER, 1), (TO_CLIENT, 0)], ids=["request", "reply"]
)
async def test_a_stuck_append_is_abandoned_and_settled(
    database: str, proxied: tuple[TcpProxy, str], direction: Direction, epoch: int
):
    """
    A connection that stands and says nothing is dropped after `append_stuck_ms`.

    A swallowed request is written anew, a swallowed reply belonged to a durable row.
    """
    proxy, dsn = proxied
    async with till_at(dsn, database) as till:
        await till.pay()
        link = proxy.link_of(WRITER)
        link.swallow(direction)
        assert await till.pay_in_doubt() == epoch
        assert link.lost[direction] > 0
        assert proxy.link_of(WRITER) is not link


async def test_an_append_that_arrives_late_inserts_nothing(
    database: str, proxied: tuple[TcpProxy, str]
):
    """
    The request was under way so long that the batch was written anew; when it arrives after all,
    on the old connection and with the old epoch, nothing happens.
    """
    proxy, dsn = proxied
    async with till_at(dsn, database) as till:
        await till.pay()
        link = proxy.link_of(WRITER)
        link.swallow(TO_SERVER)
        assert await till.pay_in_doubt() == 1
        before = (await read_journal(database)).sequence
        passed = link.passed[TO_CLIENT]
        link.deliver_late()
        await until(lambda: link.passed[TO_CLIENT] == passed + 27, "the answer to the late one")
        assert (await read_journal(database)).sequence == before
        await till.pay()


async def test_settling_survives_cuts_of_its_own(database: str, proxied: tuple[TcpProxy, str]):
    """
    The connection that settles is cut too: while it is made, at the bump, at the looks.

    Either the shard gets through or its process ends; in both cases the payment can be asked
    for again and is found or made, once.
    """
    proxy, dsn = proxied
    async with till_at(dsn, database) as till:
        message_count = await count_settling_messages(till, proxy)
        ended = []
        for messages in [1, 9, 17, *range(message_count - 19, message_count + 1)]:
            await till.pay()
            first = proxy.link_of(WRITER)
            proxy.on_open(cut_once(WRITER, messages))
            first.cut_after(TO_CLIENT, byte_count=messages % 27)
            ended.append(await pay_or_replace(till, proxy))
        # Only a bump without an answer leaves ownership in doubt.
        assert ended == [False] * 4 + [True] * 7 + [False] * 12


async def count_settling_messages(till: Till, proxy: TcpProxy) -> int:
    """
    Count what the server says on a new connection until an append is settled on it.
    """
    await till.pay()
    proxy.link_of(WRITER).cut_after(TO_CLIENT, byte_count=0)
    assert await till.pay_in_doubt() == 0
    return proxy.link_of(WRITER).messages[TO_CLIENT]


def cut_once(who: bytes, message_count: int) -> Callable[[Link], None]:
    """
    Make a fault for the next connection of *who*, and for no other.
    """
    done = False

    def plan(link: Link) -> None:
        nonlocal done
        if who in link.opening and not done:
            done = True
            link.cut_after(TO_CLIENT, message_count=message_count)

    return plan


async def pay_or_replace(till: Till, proxy: TcpProxy) -> bool:
    """
    Pay; if the shard ended, ask its successor again. Return whether it ended.
    """
    command = till.command()
    frame = till.shard.send(command)
    await until(lambda: till.shard.replies[frame] or till.shard.ended, "an answer or the end")
    ended = till.shard.ended
    if ended:
        assert ended.startswith("Fenced: ownership is in doubt"), ended
        assert not till.shard.replies[frame], "an ended shard answers nobody"
        proxy.on_open(None)
        await till.replace()
    first = None if ended else (await till.shard.results(frame))[0]
    (again,) = await till.shard.ask(command)
    assert isinstance(again, Posted)
    assert first is None or (isinstance(first, Posted) and first.sequence == again.sequence)
    till.answers[command.key] = again
    return ended is not None


@pytest.mark.parametrize("stage", ["bump", "look"])
async def test_a_stuck_settling_is_given_up_on(
    database: str, proxied: tuple[TcpProxy, str], monkeypatch: pytest.MonkeyPatch, stage: str
):
    """
    When the connection that settles falls silent itself, the shard does not wait for ever.

    Silent at the bump, ownership is in doubt and the process ends; silent at the look into the
    journal, it settles again.
    """
    monkeypatch.setattr(shard_store, "BUMP_S_MAX", 0.2)
    proxy, dsn = proxied
    async with till_at(dsn, database) as till:
        message_count = await count_settling_messages(till, proxy)
        # A query is answered in seven messages, or in four when it was asked before: first the
        # bump, then the look into the past, then the same look for the record in doubt.
        passed = message_count - (11 if stage == "look" else 12)
        await till.pay()
        first = proxy.link_of(WRITER)

        def swallow(link: Link) -> None:
            if WRITER in link.opening:
                proxy.on_open(None)
                link.swallow_after(TO_CLIENT, message_count=passed)

        proxy.on_open(swallow)
        first.cut_after(TO_CLIENT, byte_count=0)
        assert await pay_or_replace(till, proxy) == (stage == "bump")


@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
async def test_a_backend_ended_in_mid_append_is_settled(database: str, function: str):
    """
    An administrator ends the session or cancels the statement after the row was inserted and
    before it is committed: it is written again.
    """
    async with (
        till_at(database, database) as till,
        gate_at(database, "INSERT", "journal_0") as gate,
    ):
        await till.pay()
        await gate.close()
        paying = asyncio.create_task(till.pay_in_doubt())
        await gate.reached()
        await execute(
            database,
            f"SELECT {function}(pid) FROM pg_stat_activity WHERE wait_event = 'advisory'"
            " AND datname = current_database()",
        )
        await gate.open()
        assert await paying == 1


async def test_a_connection_used_after_the_farewell_is_told_as_lost(
    database: str, proxied: tuple[TcpProxy, str]
):
    """
    The server said farewell and its end has not come yet: the client library fails in a way of
    its own then, which means doubt to an append and "not reached" to a read.
    """
    proxy, dsn = proxied
    store = PostgresShardStore(dsn, 0)
    try:
        await store.take_over(build="test")
        await store.read_watermark()
        for who in (WRITER, READER):
            await say_farewell(database, proxy.link_of(who), who)
        with pytest.raises(StoreUnavailable):
            await store.read_watermark()
        assert await store.read_watermark() == 0
        first = epoch_record(store.epoch)
        with pytest.raises(AppendInDoubt):
            await store.append(first)
        assert await store.settle(first) is False
        await store.append(epoch_record(store.epoch))
    finally:
        await store.close()


async def say_farewell(database: str, link: Link, who: bytes) -> None:
    """
    End a session so that its client hears the farewell and not the end.
    """
    messages = link.messages[TO_CLIENT]
    link.swallow_after(TO_CLIENT, message_count=1)
    await execute(
        database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE application_name = '{who.decode()}' AND datname = current_database()",
    )
    await until(lambda: link.messages[TO_CLIENT] == messages + 1, "the farewell")


def epoch_record(epoch: int) -> Record:
    return seal(
        shard_id=0,
        sequence=1,
        epoch=epoch,
        at_us=1_000_000,
        count=1,
        decision_format=DECISION_FORMAT,
        payload=encode_decisions([EpochStarted("test")]),
        previous_chain=GENESIS_CHAIN,
    )


WARNINGS = {
    "at the insert": "CREATE TRIGGER warn AFTER INSERT ON journal_0",
    # Like the warning of a replication wait that was cancelled, this one comes after the tag
    # of the statement and before its commit is reported.
    "at the commit": "CREATE CONSTRAINT TRIGGER warn AFTER INSERT ON journal_0 INITIALLY DEFERRED",
}


def warning_trigger(moment: str, action: str) -> str:
    return f"""
        CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN {action} RETURN NULL; END $$;
        {WARNINGS[moment]} FOR EACH ROW EXECUTE FUNCTION warn()
    """


@pytest.mark.parametrize("moment", WARNINGS)
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_warning_makes_an_append_doubtful(
    database: str, moment: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]
):
    """
    Success with a warning is not success: a new epoch is taken before anybody is answered, and
    the row that is found stays. So it is on the event loop of production as well.
    """

    async def pay_twice() -> None:
        async with till_at(database, database) as till:
            await execute(database, warning_trigger(moment, "RAISE WARNING 'not replicated';"))
            assert await till.pay_in_doubt() == 0
            assert await till.pay_in_doubt() == 0

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(pay_twice())


async def test_a_notice_is_no_doubt(database: str):
    """
    Only warnings count: a notice leaves the epoch as it is.
    """
    async with till_at(database, database) as till:
        await execute(database, warning_trigger("at the insert", "RAISE NOTICE 'by the way';"))
        epoch = till.shard.store.epoch
        await till.pay()
        assert till.shard.store.epoch == epoch


@pytest.mark.parametrize("moment", WARNINGS)
async def test_an_append_that_fails_at_its_commit_is_written_again(database: str, moment: str):
    """
    The server reports one inserted row and then fails the commit: nothing is there, and the
    batch is written in the new epoch.
    """
    async with till_at(database, database) as till:
        failing = f"IF NEW.epoch = {till.shard.store.epoch} THEN RAISE 'no room'; END IF;"
        await execute(database, warning_trigger(moment, failing))
        assert await till.pay_in_doubt() == 1


class Load:
    """
    Workers that pay until told to stop, each payment under its key until its answer is known.
    """

    def __init__(self, till: Till) -> None:
        self.till = till
        self._stopping = False
        self._workers: list[asyncio.Task[None]] = []
        self._succession = asyncio.Lock()

    def start(self, worker_count: int) -> None:
        self._workers = [asyncio.create_task(self._work()) for _ in range(worker_count)]

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._workers)

    async def answered(self, count: int) -> None:
        """
        Wait until so many payments more are answered.
        """
        target = len(self.till.answers) + count
        await until(lambda: len(self.till.answers) >= target, f"{target} answers")

    async def _work(self) -> None:
        while not self._stopping:
            command = self.till.command()
            while command.key not in self.till.answers:
                await self._try(command)

    async def _try(self, command: MoveMoney) -> None:
        shard = self.till.shard
        frame = shard.send(command)
        await until(lambda: shard.replies[frame] or shard.ended, "an answer or the end")
        if shard.replies[frame]:
            reply = shard.replies[frame][0]
            assert isinstance(reply, Answered), reply
            (result,) = reply.results
            assert isinstance(result, Posted)
            self.till.answers[command.key] = result
        else:
            async with self._succession:
                if shard is self.till.shard:
                    await self.till.replace()


def test_an_immediate_stop_of_postgres_loses_nothing(tmp_path: Path):
    """
    The server is killed three times under load; everything that was answered is there, once.
    """

    async def run(server: EmbeddedPostgres, dsn: str) -> None:
        async with till_at(dsn, dsn) as till:
            load = Load(till)
            load.start(worker_count=8)
            for _ in range(3):
                await load.answered(100)
                server.kill()
                server.start()
                await load.answered(1)
            await load.stop()

    with EmbeddedPostgres(tmp_path / "pg") as server, Databases(server.dsn).migrated() as dsn:
        asyncio.run(run(server, dsn))
