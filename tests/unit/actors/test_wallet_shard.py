"""
Goal: nothing leaves a shard before it is durable, whatever happens to the store; a shard that is
      fenced or cannot explain its state answers nobody; what is refused was not applied.
Method: the real shard on the twin of its store, which is held, loses and hides appends, goes
        down, and gets other owners. A clock and the end of the process are the test's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from actors import wallet_shard
from actors.wallet_shard import Phase
from configs.settings import ShardSettings
from processor.core.commands import Command, MoveMoney, SetWalletLimits, SetWalletStatus
from processor.core.decide import decide_move
from processor.core.decisions import (
    EpochStarted,
    TransferPosted,
    decode_decisions,
    encode_decisions,
)
from processor.core.record import GENESIS_CHAIN, Record, seal
from processor.core.wallet import WalletStatus
from processor.flow.frames import (
    Answered,
    KeyReused,
    NotServing,
    Overloaded,
    Posted,
    Rejected,
    Reply,
    RequestFrame,
    Result,
    StaleEpoch,
    WalletFound,
)
from processor.storage.memory_store import MemoryDatabase, MemoryShardStore
from tests.support.bound_commands import leg, linked
from tests.support.commands import (
    AT_US,
    deposit,
    facts,
    open_wallet,
    read_wallet,
    state_of,
    transfer,
    wallet,
    withdrawal,
)
from tests.support.memory_shard import MemoryShard, owning
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Look and try again sooner than in production; nothing below depends on how soon.
    """
    monkeypatch.setattr(wallet_shard, "WATERMARK_POLL_S", 0.002)
    monkeypatch.setattr(wallet_shard, "RETRY_S", 0.002)


@pytest.fixture
async def shard() -> AsyncIterator[MemoryShard]:
    """
    A shard that serves, with 1,000 in each of two wallets.
    """
    async with owning() as shard:
        await fill(shard)
        yield shard


async def fill(shard: MemoryShard) -> None:
    await shard.ask(open_wallet("alice"), open_wallet("bob"))
    await shard.ask(deposit("alice", 1_000, key="alice"), deposit("bob", 1_000, key="bob"))


async def turns(count: int = 50) -> None:
    """
    Let every task that can go on go on, many times.
    """
    for _ in range(count):
        await asyncio.sleep(0)


def pay(number: int, amount: int = 1) -> MoveMoney:
    return transfer("alice", "bob", amount, key=f"payment {number}")


def posted_keys(records: list[Record]) -> list[bytes]:
    return [
        decision.key
        for record in records
        for decision in decode_decisions(record.payload, record.format)
        if isinstance(decision, TransferPosted)
    ]


async def balance(shard: MemoryShard, wallet_id: str) -> int:
    (found,) = await shard.ask(read_wallet(wallet_id))
    assert isinstance(found, WalletFound)
    return found.posted


def only(results: list[Result], kind: type[Any]) -> Any:
    (result,) = results
    assert isinstance(result, kind), result
    return result


# --- Nothing leaves before it is durable ----------------------------------------------------------

WAITING: dict[str, tuple[Command, type[Any]]] = {
    "original": (pay(1), Posted),
    "repeat": (pay(0), Posted),
    "repeat of a refusal": (transfer("alice", "bob", 10_000, key="too much"), Rejected),
    "rejection": (transfer("alice", "bob", 9_999, key="also too much"), Rejected),
    "reused key": (pay(0, amount=2), KeyReused),
    "read": (read_wallet("alice"), WalletFound),
    "no change": (open_wallet("alice"), WalletFound),
    "change": (SetWalletStatus("acme", "bob", WalletStatus.FROZEN), WalletFound),
}


@pytest.mark.parametrize(("command", "kind"), WAITING.values(), ids=WAITING)
async def test_answers_wait_for_the_append(
    shard: MemoryShard, command: Command, kind: type[Any]
) -> None:
    """
    While an append hangs, what depends on it waits: originals, repeats, refusals and reads.
    """
    shard.store.writes.close()
    first = shard.send(pay(0), transfer("alice", "bob", 10_000, key="too much"))
    await shard.store.writes.reached()
    second = shard.send(command)
    await shard.decided()
    await turns()
    assert shard.replies[first] == shard.replies[second] == []

    shard.store.writes.open()
    assert isinstance((await shard.results(second))[0], kind)
    assert len(await shard.results(first)) == 2
    assert [reply.frame_id for reply in shard.delivered[-2:]] == [first, second]


async def test_answers_leave_in_order(shard: MemoryShard) -> None:
    """
    Frames are answered in the order they came, over as many records as they need.
    """
    shard.store.writes.close()
    sent = []
    for number in range(20):
        sent.append(shard.send(pay(number)))
        await turns(number % 3)
    shard.store.writes.open()
    await shard.reply(sent[-1])
    assert [reply.frame_id for reply in shard.delivered[-20:]] == sent
    assert shard.sequence > 4


async def test_read_waits_for_a_look_at_the_fence(shard: MemoryShard) -> None:
    """
    A batch that changes nothing needs no record, but proof that the shard is still ours.
    """
    before = shard.sequence
    shard.store.writes.close()
    frame = shard.send(read_wallet("alice"))
    await shard.store.writes.reached()
    await turns()
    assert shard.replies[frame] == []

    shard.store.writes.open()
    assert only(await shard.results(frame), WalletFound).posted == 1_000
    assert shard.sequence == before


async def test_records_hold_what_was_answered(shard: MemoryShard) -> None:
    """
    Each answer names the record that has it, and the record has it once.
    """
    frames = [shard.send(pay(number), pay(number)) for number in range(10)]
    for number, frame in enumerate(frames):
        first, again = await shard.results(frame)
        assert isinstance(first, Posted)
        assert msgspec.structs.replace(first, repeated=True) == again
        record = shard.database.journal[first.sequence - 1]
        assert record.at_us == first.at_us
        assert posted_keys([record]).count(pay(number).key) == 1
    assert len(set(posted_keys(shard.database.journal))) == 12


async def test_time_goes_forward_when_the_clock_does_not(shard: MemoryShard) -> None:
    """
    A clock that stands or goes back gives records that still follow each other in time.
    """
    for number in range(4):
        shard.now_us -= 1_000_000
        await shard.ask(pay(number))
    times = [record.at_us for record in shard.database.journal]
    assert times == sorted(set(times))
    shard.now_us += 10_000_000
    assert only(await shard.ask(pay(9)), Posted).at_us == shard.now_us


# --- Doubt ----------------------------------------------------------------------------------------


async def test_lost_append_is_written_again(shard: MemoryShard) -> None:
    """
    A batch that was not written is written in the new epoch, and answered once.
    """
    before, epoch = shard.sequence, shard.store.epoch
    shard.database.fail_next_append = "lost"
    posted = only(await shard.ask(pay(1)), Posted)
    assert not posted.repeated

    record = shard.database.journal[-1]
    assert (record.sequence, record.epoch) == (before + 1, epoch + 1) == (posted.sequence, 2)
    assert shard.sequence == before + 1
    assert posted_keys(shard.database.journal).count(pay(1).key) == 1
    await turns()
    assert [reply.frame_id for reply in shard.delivered] == [1, 2, 3]


async def test_hidden_append_is_not_written_again(shard: MemoryShard) -> None:
    """
    A batch that was written without an answer is answered as it stands, and the next one follows.
    """
    before, epoch = shard.sequence, shard.store.epoch
    shard.database.fail_next_append = "hidden"
    posted = only(await shard.ask(pay(1)), Posted)

    assert not posted.repeated
    assert (posted.sequence, shard.sequence) == (before + 1, before + 1)
    assert shard.database.journal[-1].epoch == epoch
    assert shard.store.epoch == epoch + 1
    assert only(await shard.ask(pay(2)), Posted).sequence == before + 2
    assert len(set(posted_keys(shard.database.journal))) == 4


@pytest.mark.parametrize("failure", ["lost", "hidden"])
async def test_doubt_moves_to_a_published_epoch(shard: MemoryShard, failure: str) -> None:
    """
    After a doubt gateways find the shard again, and frames for the old epoch are turned away.
    """
    shard.database.fail_next_append = failure
    await shard.ask(pay(1))
    assert shard.database.endpoint is not None
    assert shard.database.endpoint[0] == "unix:/here"
    assert shard.send(read_wallet("alice"), epoch=1) in shard.replies
    assert shard.delivered[-1] == StaleEpoch(4, 2)


@pytest.mark.parametrize("failure", ["lost", "hidden"])
async def test_doubt_lasts_as_long_as_the_store_is_down(shard: MemoryShard, failure: str) -> None:
    """
    Nobody is answered until the store says what became of the batch.
    """
    shard.database.fail_next_append = failure
    shard.store.settles.close()
    frame = shard.send(pay(1))
    await shard.store.settles.reached()
    shard.database.available = False
    shard.store.settles.open()
    later = shard.send(read_wallet("alice"))
    await turns()
    assert shard.replies[frame] == shard.replies[later] == []

    shard.database.available = True
    assert only(await shard.results(frame), Posted).balance == 999
    assert only(await shard.results(later), WalletFound).posted == 999
    assert posted_keys(shard.database.journal).count(pay(1).key) == 1


async def test_stuck_append_is_dropped_and_settled() -> None:
    """
    An append that says nothing for `append_stuck_ms` loses its connection, not its batch.
    """
    async with owning(settings=ShardSettings(append_stuck_ms=20)) as shard:
        await fill(shard)
        shard.store.writes.close()
        frame = shard.send(pay(1))
        assert only(await shard.results(frame), Posted).balance == 999
        assert shard.store.abandoned == 1
        assert posted_keys(shard.database.journal).count(pay(1).key) == 1


async def test_stuck_look_at_the_fence_is_dropped() -> None:
    """
    A read does not wait for ever either: a new epoch is as good a proof.
    """
    async with owning(settings=ShardSettings(append_stuck_ms=20)) as shard:
        await fill(shard)
        epoch = shard.store.epoch
        shard.store.writes.close()
        assert only(await shard.ask(read_wallet("alice")), WalletFound).posted == 1_000
        assert shard.store.epoch == epoch + 1
        assert shard.database.endpoint is not None


# --- Fenced ---------------------------------------------------------------------------------------


async def fenced(shard: MemoryShard) -> None:
    """
    Wait for the end, and see that nobody was answered after the wallets were filled.
    """
    await until(lambda: shard.ended, "the end")
    assert shard.ended
    assert shard.ended.startswith("Fenced: ")
    await turns()
    assert len(shard.delivered) == 2
    assert shard.shard.phase is Phase.STOPPED


async def test_fenced_append_answers_nobody(shard: MemoryShard) -> None:
    """
    A shard that was taken over while it appended ends, with everything it still holds.
    """
    before = list(shard.database.journal)
    shard.store.writes.close()
    shard.send(pay(1))
    await shard.store.writes.reached()
    shard.send(pay(1), read_wallet("alice"))
    await shard.decided()
    await MemoryShardStore(shard.database).take_over(build="successor")
    shard.store.writes.open()
    await fenced(shard)
    assert shard.database.journal == before


@pytest.mark.parametrize("failure", ["lost", "hidden"])
async def test_fenced_in_doubt_answers_nobody(shard: MemoryShard, failure: str) -> None:
    """
    Even a record that is there is not answered when a successor came before it was found.
    """
    shard.store.settles.close()
    shard.database.fail_next_append = failure
    shard.send(pay(1))
    await shard.store.settles.reached()
    await MemoryShardStore(shard.database).take_over(build="successor")
    shard.store.settles.open()
    await fenced(shard)


async def test_fenced_read_answers_nobody(shard: MemoryShard) -> None:
    """
    An owner of the past does not even tell a balance.
    """
    await MemoryShardStore(shard.database).take_over(build="successor")
    shard.send(read_wallet("alice"))
    await fenced(shard)


async def test_halted_while_running_answers_nobody(shard: MemoryShard) -> None:
    """
    A halt by the write-behind is a fence.
    """
    await MemoryShardStore(shard.database).halt("the chain is broken")
    shard.send(pay(1))
    await fenced(shard)


# --- Refused whole --------------------------------------------------------------------------------


async def test_frame_for_another_epoch_or_shard_is_refused_whole(shard: MemoryShard) -> None:
    """
    A frame that is not meant for this owner is answered at once, and nothing of it is applied.
    """
    before = facts(shard.state)
    for epoch in (0, 2):
        shard.send(pay(1), pay(2), epoch=epoch)
        assert shard.delivered[-1] == StaleEpoch(shard.delivered[-1].frame_id, 1)
    shard.send(pay(1), pay(2), shard_id=1)
    assert isinstance(shard.delivered[-1], NotServing)
    await turns()
    assert facts(shard.state) == before
    assert not shard.shard.statistics().queued_commands


async def test_frame_before_the_shard_serves_is_refused() -> None:
    """
    A shard that recovers tells everybody to come back.
    """
    shard = MemoryShard()
    shard.store.writes.close()
    shard.launch()
    try:
        await shard.store.writes.reached()
        shard.send(open_wallet("alice"))
        assert isinstance(shard.delivered[-1], NotServing)
        assert shard.database.endpoint is None
    finally:
        await shard.stop()


async def test_queue_is_bounded_by_commands() -> None:
    """
    A frame that fits the queue exactly is taken, one command more is refused whole.
    """
    settings = ShardSettings(intake_commands_max=5, batch_commands_max=1)
    async with owning(settings=settings) as shard:
        await fill(shard)
        shard.store.writes.close()
        shard.send(pay(0))
        await shard.store.writes.reached()
        shard.send(pay(1))  # Decided while the first is being written; then the batch is full.
        await shard.decided()
        await turns()
        shard.send(*map(pay, range(2, 5)))
        too_much = shard.send(*map(pay, range(5, 8)))
        fits = shard.send(*map(pay, range(8, 10)))
        full = shard.send(pay(10))
        refused = {reply.frame_id: reply for reply in shard.delivered[2:]}
        assert set(refused) == {too_much, full}
        assert all(isinstance(reply, Overloaded) for reply in refused.values())

        shard.store.writes.open()
        await shard.reply(fits)
        applied = posted_keys(shard.database.journal)[2:]
        assert applied == [pay(number).key for number in (0, 1, 2, 3, 4, 8, 9)]


async def test_flood_while_the_store_hangs_stays_bounded() -> None:
    """
    20,000 commands against a store that hangs: what was taken in is bounded and all of it is
    answered later, the rest is told to come back.
    """
    settings = ShardSettings(intake_commands_max=3_000, batch_commands_max=1_000)
    async with owning(settings=settings) as shard:
        await fill(shard)
        shard.store.writes.close()
        frames = []
        for start in range(0, 20_000, 100):
            frames.append(shard.send(*map(read_or_pay, range(start, start + 100))))
            await asyncio.sleep(0)
            assert shard.shard.statistics().queued_commands <= 3_000
        await turns()
        refused = [reply for reply in shard.delivered[2:] if isinstance(reply, Overloaded)]
        assert len(refused) == len(shard.delivered) - 2
        taken = (len(frames) - len(refused)) * 100
        assert 3_000 <= taken <= 3_000 + 2 * 1_000 + 100

        shard.store.writes.open()
        await until(lambda: len(shard.delivered) == len(frames) + 2, "every reply")
        answered = [reply for reply in shard.delivered[2:] if isinstance(reply, Answered)]
        assert sum(len(reply.results) for reply in answered) == taken


def read_or_pay(number: int) -> Command:
    return pay(number) if number % 2 else read_wallet("alice")


async def test_wait_is_told_in_bounds_and_grows() -> None:
    """
    `retry_after_ms` follows what is waiting, between 10 ms and 5 s.
    """
    settings = ShardSettings(intake_commands_max=0, batch_commands_max=1)
    async with owning(settings=settings) as shard:
        shard.send(read_wallet("alice"))
        assert isinstance(shard.delivered[-1], Overloaded)
        short = shard.delivered[-1].retry_after_ms
        shard.shard._lag_commands = 10**9
        shard.send(read_wallet("alice"))
        assert isinstance(shard.delivered[-1], Overloaded)
        assert (short, shard.delivered[-1].retry_after_ms) == (10, 5_000)


@pytest.mark.parametrize(
    "settings",
    [ShardSettings(lag_records_max=6), ShardSettings(lag_commands_max=10)],
    ids=["records", "commands"],
)
async def test_shard_waits_for_the_tables(settings: ShardSettings) -> None:
    """
    When the tables are too far behind nothing is taken in until they have come nearer.
    """
    async with owning(settings=settings) as shard:
        await fill(shard)
        number = 0
        while not isinstance(shard.delivered[-1], Overloaded):
            number += 1
            await shard.reply(shard.send(pay(number)))
        statistics = shard.shard.statistics()
        assert (statistics.lag_records, statistics.lag_commands) == (7, 11)
        assert pay(number).key not in posted_keys(shard.database.journal)

        await shard.projected(1)
        assert only(await shard.ask(pay(number)), Posted)
        await shard.projected()
        statistics = shard.shard.statistics()
        assert (statistics.lag_records, statistics.lag_commands) == (0, 0)


# --- Recovery -------------------------------------------------------------------------------------


async def busy(shard: MemoryShard) -> None:
    """
    Leave some of everything in the journal, a part of it in the tables.
    """
    await fill(shard)
    await shard.ask(pay(1), pay(2), transfer("alice", "bob", 9_999, key="too much"))
    shard.database.project()
    await shard.ask(withdrawal("bob", 5, key="out"), SetWalletLimits("acme", "bob", -50))
    await shard.ask(open_wallet("carol", -5), transfer("carol", "bob", 5, key="overdraft"))
    await shard.ask(SetWalletStatus("acme", "alice", WalletStatus.FROZEN))


async def test_recovered_state_equals_the_lost_one() -> None:
    """
    Tables and tail together give every wallet and every key as they were.
    """
    database = MemoryDatabase()
    async with owning(database) as first:
        await busy(first)
        lost, sequence, at_us = first.state, first.sequence, database.journal[-1].at_us
    async with owning(database) as second:
        tail = {decision.key for decision, at, _ in lost.keys.young.values() if at > 4}
        assert set(second.state.keys.young) == tail
        assert second.sequence == sequence + 1
        assert decode_decisions(database.journal[-1].payload, 1) == [EpochStarted("test")]
        assert database.journal[-1].at_us > at_us

        everything = ["alice", "bob", "carol"]
        found = await second.ask(*map(read_wallet, everything), open_wallet("dave"))
        assert len(found) == 4
        recovered = facts(second.state)
        del recovered["dave"]
        assert recovered == facts(lost)


async def test_outcomes_survive_recovery() -> None:
    """
    After a restart each key gives its first answer, from the tail or from the tables.
    """
    database = MemoryDatabase()
    commands = [pay(1), transfer("alice", "bob", 9_999, key="too much"), withdrawal("bob", 5)]
    async with owning(database) as first:
        await fill(first)
        answers = await first.ask(*commands[:2])
        database.project()
        answers += await first.ask(commands[2])
    async with owning(database) as second:
        repeats = await second.ask(*commands)
        assert repeats == [msgspec.structs.replace(one, repeated=True) for one in answers]
        assert second.sequence == len(database.journal) == 6


async def test_recovery_waits_for_the_store() -> None:
    """
    A shard that starts before its database serves once the database is there.
    """
    database = MemoryDatabase()
    database.available = False
    shard = MemoryShard(database)
    shard.launch()
    try:
        await turns()
        assert shard.shard.phase is Phase.RECOVERING
        database.available = True
        await until(shard.shard.running.is_set, "the shard to serve")
        assert database.endpoint is not None
    finally:
        await shard.stop()


@pytest.mark.parametrize("failure", ["lost", "hidden"])
async def test_doubt_about_the_first_record_is_settled(failure: str) -> None:
    """
    The record that starts an epoch may be in doubt like any other.
    """
    database = MemoryDatabase()
    database.fail_next_append = failure
    async with owning(database) as shard:
        assert shard.ended is None
        assert len(database.journal) == shard.sequence == 1
        assert only(await shard.ask(open_wallet("alice")), WalletFound).sequence == 2


def resealed(database: MemoryDatabase, index: int, **changed: Any) -> None:
    """
    Change a record and seal it and all behind it anew, as whoever could forge a chain would.
    """
    chain = database.journal[index - 1].chain if index else GENESIS_CHAIN
    for number in range(index, len(database.journal)):
        record = database.journal[number]
        if number == index:
            record = msgspec.structs.replace(record, **changed)
        database.journal[number] = seal(
            shard_id=record.shard_id,
            sequence=record.sequence,
            epoch=record.epoch,
            at_us=record.at_us,
            count=record.count,
            decision_format=record.format,
            payload=record.payload,
            previous_chain=chain,
        )
        chain = database.journal[number].chain


def with_gap(database: MemoryDatabase) -> None:
    del database.journal[5]


def altered(database: MemoryDatabase) -> None:
    database.journal[5] = msgspec.structs.replace(database.journal[5], payload=b"\x90", count=0)


def altered_header(database: MemoryDatabase) -> None:
    database.journal[5] = msgspec.structs.replace(database.journal[5], count=-1)


def out_of_step(database: MemoryDatabase) -> None:
    record = database.journal[4]
    decisions = decode_decisions(record.payload, record.format)
    moved = decisions[0]
    assert isinstance(moved, TransferPosted)
    decisions[0] = msgspec.structs.replace(moved, source_balance=moved.source_balance + 1)
    resealed(database, 4, payload=encode_decisions(decisions))


def unheard_of(database: MemoryDatabase) -> None:
    elsewhere = state_of(wallet("nobody", 5), wallet("none"))
    decision = decide_move(elsewhere, transfer("nobody", "none", 5), AT_US)
    assert isinstance(decision, TransferPosted)
    resealed(database, 5, payload=encode_decisions([decision]), count=1)


UNEXPLAINED: dict[str, tuple[Callable[[MemoryDatabase], None], str]] = {
    "gap": (with_gap, "sequence 6 was expected"),
    "altered payload": (altered, "sequence 6: the hash chain is broken"),
    "altered header": (altered_header, "sequence 6: a header that nobody sealed"),
    "other count": (lambda database: resealed(database, 5, count=7), "sequence 6 has 2 decisions"),
    "older epoch": (lambda database: resealed(database, 6, epoch=0), "sequence 7 is of epoch 0"),
    "unknown format": (lambda database: resealed(database, 5, format=9), "format 9 is unknown"),
    "nonsense": (lambda database: resealed(database, 5, payload=b"\xc1"), "DecodeError"),
    "out of step": (out_of_step, "source balance differs"),
    "unknown wallet": (unheard_of, "KeyError: 'nobody'"),
    "own epoch": (lambda database: resealed(database, 6, epoch=2), "sequence 7 is of epoch 2"),
}


@pytest.mark.parametrize(("damage", "words"), UNEXPLAINED.values(), ids=UNEXPLAINED)
async def test_journal_that_does_not_add_up_halts(
    damage: Callable[[MemoryDatabase], None], words: str
) -> None:
    """
    A shard whose tail cannot be explained halts with the reason and serves nobody, then or later.
    """
    database = MemoryDatabase()
    async with owning(database) as first:
        await busy(first)
    damage(database)
    records = list(database.journal)

    for _ in range(2):
        async with owning(database) as shard:
            await until(lambda: shard.shard.phase is Phase.HALTED or shard.ended, "the halt")
            assert shard.ended is None
            assert words in (shard.shard.halted_for or "")
            assert words in (database.halted_for or "")
            shard.send(read_wallet("alice"))
            assert isinstance(shard.delivered[-1], NotServing)
            await turns()
            assert not shard.shard.running.is_set()
    assert database.journal == records
    assert database.endpoint is None


async def test_overtaken_in_recovery_ends_and_halts_nobody() -> None:
    """
    An owner that reads its successor's record ends; the successor goes on.
    """
    database = MemoryDatabase()
    late = MemoryShard(database)
    take_over = late.store.take_over

    async def overtaken(*, build: str) -> int:
        epoch = await take_over(build=build)
        async with owning(database) as successor:
            await fill(successor)
        return epoch

    late.store.take_over = overtaken  # type: ignore[method-assign]
    await late.start()
    await late.stop()
    assert late.ended
    assert late.ended.startswith("Fenced: ")
    assert database.halted_for is None


async def test_broken_chain_found_while_the_store_goes_down_still_halts() -> None:
    """
    A halt that could not be written is written when the store is back.
    """
    database = MemoryDatabase()
    async with owning(database) as first:
        await busy(first)
    altered(database)
    shard = MemoryShard(database)
    halt = shard.store.halt
    tries = 0

    async def halt_later(reason: str) -> None:
        nonlocal tries
        tries += 1
        database.available = tries > 1
        try:
            await halt(reason)
        finally:
            database.available = True

    shard.store.halt = halt_later  # type: ignore[method-assign]
    await shard.start()
    await shard.stop()
    assert tries == 2
    assert "the hash chain is broken" in (database.halted_for or "")


# --- What is not in memory ------------------------------------------------------------------------


async def test_cold_wallets_are_loaded_before_deciding() -> None:
    """
    A wallet that only the tables have is there when its command is decided.
    """
    database = MemoryDatabase()
    async with owning(database) as first:
        await fill(first)
        database.project()
    async with owning(database) as second:
        assert second.state.wallets.keys() == {"$world:0:EUR"}  # The ledger's own are always there.
        assert only(await second.ask(pay(1)), Posted).balance == 999
        assert only(await second.ask(deposit("bob", 1, key="x")), Posted).balance == 1_002


async def test_frame_waits_while_the_tables_cannot_be_read() -> None:
    """
    A look-up that fails is tried again; it never passes for a wallet that does not exist.
    """
    database = MemoryDatabase()
    async with owning(database) as first:
        await fill(first)
        database.project()
    async with owning(database) as second:
        second.store.reads.close()
        frame = second.send(pay(1))
        await second.store.reads.reached()
        database.available = False
        second.store.reads.open()
        await turns()
        assert second.replies[frame] == []
        database.available = True
        assert only(await second.results(frame), Posted).balance == 999


async def test_eviction_spares_what_the_tables_do_not_have() -> None:
    """
    With room for no wallet at all, those above the watermark stay, and no balance is old.
    """
    async with owning(settings=ShardSettings(wallets_max=0)) as shard:
        await fill(shard)
        for number in range(5):
            await shard.ask(pay(number))
        assert set(shard.state.wallets) == {"alice", "bob", "$world:0:EUR"}
        assert await balance(shard, "alice") == 995


async def test_evicted_wallet_comes_back_as_it_is_now() -> None:
    """
    Wallets leave when the tables have them, and a later command finds the newest balance.
    """
    async with owning(settings=ShardSettings(wallets_max=0)) as shard:
        await fill(shard)
        for number in range(1, 4):
            assert only(await shard.ask(pay(number)), Posted).balance == 1_000 - number
            await other_work(shard, lambda: "alice" not in shard.state.wallets)
            assert await balance(shard, "alice") == 1_000 - number


async def other_work(shard: MemoryShard, done: Callable[[], bool]) -> None:
    """
    Pay bob, with the tables close behind, until *done*.
    """
    for _ in range(100):
        if done():
            return
        await shard.ask(deposit("bob", 1, key=f"other work {shard.sequence}"))
        await shard.projected()
    raise AssertionError("memory gave nothing back")


@pytest.mark.parametrize("complete", [True, False], ids=["filter complete", "filter incomplete"])
async def test_forgotten_key_is_found_again(complete: bool) -> None:
    """
    A repeat of what memory has forgotten pays once: the filter knows, or leaves it to the tables.
    """
    shard = MemoryShard(settings=ShardSettings(keys_recent_max=4))
    if not complete:
        shard.store.pages.close()
    await shard.start()
    try:
        await fill(shard)
        first = only(await shard.ask(pay(1)), Posted)
        await other_work(shard, lambda: shard.state.keys.find(pay(1).key) is None)
        assert shard.shard.statistics().key_filter_complete is complete

        again = only(await shard.ask(pay(1)), Posted)
        assert again == msgspec.structs.replace(first, repeated=True)
        assert posted_keys(shard.database.journal).count(pay(1).key) == 1
        assert await balance(shard, "alice") == 999
    finally:
        await shard.stop()


async def test_keys_of_the_tables_are_in_the_filter() -> None:
    """
    After a restart a key that only the tables have is found, once the filter is complete too.
    """
    database = MemoryDatabase()
    async with owning(database) as first:
        await fill(first)
        answer = only(await first.ask(pay(1)), Posted)
        database.project()
    async with owning(database) as second:
        await until(lambda: second.shard.statistics().key_filter_complete, "the filter")
        again = only(await second.ask(pay(1)), Posted)
        assert again == msgspec.structs.replace(answer, repeated=True)


async def test_new_key_needs_no_look_up() -> None:
    """
    Once the filter is complete a new payment between warm wallets reads nothing.
    """
    async with owning() as shard:
        await fill(shard)
        await until(lambda: shard.shard.statistics().key_filter_complete, "the filter")
        shard.store.reads.close()
        assert only(await shard.ask(pay(1)), Posted).balance == 999


async def test_keys_stay_bounded_when_the_tables_keep_up() -> None:
    """
    Memory holds about as many keys as `keys_recent_max` says.
    """
    async with owning(settings=ShardSettings(keys_recent_max=20)) as shard:
        await fill(shard)
        most = 0
        for number in range(100):
            await shard.ask(pay(number))
            await shard.projected()
            most = max(most, shard.shard.statistics().keys_in_memory)
        assert most <= 3 * 20


async def test_keys_of_many_legs_count_for_as_many() -> None:
    """
    A hundred legs take as much memory as a hundred transfers.
    """
    async with owning(settings=ShardSettings(keys_recent_max=20)) as shard:
        await fill(shard)
        for number in range(10):
            legs = [leg("alice", "bob", 1, name=f"{number} {place}") for place in range(11)]
            await shard.ask(linked(*legs, key=f"linked {number}"))
            await shard.projected()
            await shard.ask(pay(number))
            await shard.projected()
        assert shard.shard.statistics().keys_in_memory < 10


# --- The end --------------------------------------------------------------------------------------


async def test_error_in_committing_ends_the_process(shard: MemoryShard) -> None:
    """
    The task that commits cannot die silently: an exception in it is the end.
    """

    def fail(_reply: Reply) -> None:
        raise RuntimeError("no such socket")

    shard.shard.offer(RequestFrame(9, 0, 1, [pay(1)]), fail)
    await until(lambda: shard.ended, "the end")
    assert shard.ended == "RuntimeError: no such socket"


async def test_error_in_deciding_ends_the_process(shard: MemoryShard) -> None:
    """
    A state that cannot be right is the end, and nothing of the frame leaves.
    """
    shard.state.wallets["bob"].version = None  # type: ignore[assignment]
    frame = shard.send(read_wallet("alice"), withdrawal("alice", 1), pay(1))
    await until(lambda: shard.ended, "the end")
    await turns()
    assert (shard.ended or "").startswith("TypeError")
    assert shard.replies[frame] == []
    assert len(shard.database.journal) == 3


@pytest.mark.parametrize("name", ["read_watermark", "prepare_journal"])
async def test_error_behind_the_journal_ends_the_process(shard: MemoryShard, name: str) -> None:
    """
    The task that follows the tables cannot die silently either.
    """

    async def fail(*_arguments: object) -> int:
        raise RuntimeError(name)

    setattr(shard.store, name, fail)
    await until(lambda: shard.ended, "the end")
    assert shard.ended == f"RuntimeError: {name}"


async def test_drain_answers_everything(shard: MemoryShard) -> None:
    """
    Draining takes nothing more, and ends when all that was taken in is durable and answered.
    """
    shard.store.writes.close()
    frames = [shard.send(pay(number)) for number in range(5)]
    await shard.store.writes.reached()
    frames += [shard.send(pay(number)) for number in range(5, 10)]
    draining = asyncio.create_task(shard.shard.drain())
    await turns()
    late = shard.send(pay(10))
    assert isinstance(shard.delivered[-1], NotServing)
    assert not draining.done()

    shard.store.writes.open()
    await draining
    assert all(isinstance(shard.replies[frame][0], Answered) for frame in frames)
    assert len(shard.replies[late]) == 1
    assert shard.sequence == len(shard.database.journal)
    assert len(posted_keys(shard.database.journal)) == 12


async def test_drain_waits_for_a_frame_that_was_still_loading() -> None:
    """
    A frame that waited for the tables while another one was committed is drained as well: while
    it loads, and while it is being written.
    """
    database = MemoryDatabase()
    async with owning(database) as first:
        await fill(first)
        database.project()
    async with owning(database) as shard:
        await shard.ask(read_wallet("alice"))
        shard.store.reads.close()
        warm = shard.send(SetWalletLimits("acme", "alice", -1))
        cold = shard.send(SetWalletLimits("acme", "bob", -1))
        await shard.reply(warm)
        loading = asyncio.create_task(shard.shard.drain())
        await turns()
        assert not loading.done()

        shard.store.writes.close()
        shard.store.reads.open()
        await shard.store.writes.reached()
        writing = asyncio.create_task(shard.shard.drain())
        await turns()
        assert not writing.done()

        shard.store.writes.open()
        await loading
        await writing
        assert len(shard.replies[cold]) == 1


async def test_idle_shard_drains_at_once(shard: MemoryShard) -> None:
    """
    With nothing taken in there is nothing to wait for.
    """
    await asyncio.wait_for(shard.shard.drain(), 5)
    assert shard.shard.phase is Phase.DRAINING


async def test_records_are_as_large_as_the_bound_allows() -> None:
    """
    What piles up behind a slow append goes into few records, each within the bound and a frame.
    """
    settings = ShardSettings(intake_commands_max=1_000, batch_commands_max=20)
    async with owning(settings=settings) as shard:
        await fill(shard)
        shard.store.writes.close()
        frames = [shard.send(*map(pay, range(start, start + 7))) for start in range(0, 140, 7)]
        await shard.store.writes.reached()
        await turns()
        shard.store.writes.open()
        for frame in frames:
            await shard.reply(frame)
        counts = [record.count for record in shard.database.journal[3:]]
        assert sum(counts) == 140
        assert max(counts) <= 20 + 6
        assert len(counts) < len(frames)


async def test_statistics_tell_of_the_moment(shard: MemoryShard) -> None:
    """
    The numbers an operator sees are those of the shard.
    """
    await shard.projected(2)
    statistics = shard.shard.statistics()
    assert (statistics.phase, statistics.epoch, statistics.sequence) == ("running", 1, 3)
    assert (statistics.watermark, statistics.lag_records, statistics.lag_commands) == (2, 1, 2)
    assert (statistics.wallets_in_memory, statistics.keys_in_memory) == (3, 2)
    assert (statistics.command_count, statistics.record_count) == (4, 3)
    assert msgspec.json.decode(msgspec.json.encode(statistics))["halted_for"] is None
