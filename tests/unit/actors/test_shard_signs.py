"""
Goal: whoever looks after a shard is told what stands still there: linked transfers that do not end,
      with the shards they wait for, and records that are ahead of the clock.
Method: real shards on twins of their stores; each phase is reached by letting a shard write so many
        records and no more, and the test sets the clocks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from actors import shard_signs
from actors.wallet_shard import ShardStatistics
from processor.core.decide_linked import DEADLINE_US
from processor.core.record import Record
from tests.support.bound_commands import leg, linked, place, void
from tests.support.commands import deposit, open_wallet, transfer
from tests.support.memory_peers import MemoryPeers, running_peers
from tests.support.memory_shard import MemoryShard, owning
from tests.support.shard_net import names_on
from tests.support.waiting import until

SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US
MOMENT_US = 1_000  # While the clock stands, records are a microsecond apart.

ALICE = names_on(0, 2)[0]
BOB = names_on(1, 2)[0]

PAYMENT = linked(leg(ALICE, BOB, 100), leg(ALICE, BOB, 1))

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
async def peers(folder: Path) -> AsyncIterator[MemoryPeers]:
    """
    Two shards, each with a wallet that has 1,000.
    """
    async with running_peers(folder) as peers:
        for number, name in enumerate((ALICE, BOB)):
            await peers[number].ask(open_wallet(name), deposit(name, 1_000, key=f"fill {name}"))
        yield peers


def statistics(shard: MemoryShard) -> ShardStatistics:
    return shard.shard.statistics()


def open_at(shard: MemoryShard) -> tuple[int, int, int, list[int]]:
    now = statistics(shard)
    return now.linked_open, now.linked_prepared, now.oldest_open_s, now.oldest_waits_for


def stop_after(shard: MemoryShard, record_count: int) -> None:
    """
    Let so many more records be written; the next one stands still.
    """
    append = shard.store.append

    async def limited(record: Record) -> None:
        nonlocal record_count
        if record_count == 0:
            shard.store.writes.close()
        record_count -= 1
        await append(record)

    shard.store.append = limited  # type: ignore[method-assign]


async def several_polls(shard: MemoryShard) -> None:
    """
    Let the shard look for signs some times.
    """
    look, looks = shard.shard._signs.look, 0

    def counting(*seen: Any) -> None:
        nonlocal looks
        looks += 1
        look(*seen)

    shard.shard._signs.look = counting  # type: ignore[method-assign]
    await until(lambda: looks > 5, "some looks")


def warnings(logs: list[Any], event: str) -> list[Any]:
    return [entry for entry in logs if entry["event"] == event]


# --- Linked transfers and holds -------------------------------------------------------------------


async def test_begun_it_waits_for_the_votes(peers: MemoryPeers) -> None:
    """
    A shard that is down is named, and the age grows though nothing else happens.
    """
    assert open_at(peers[0]) == (0, 0, 0, [])
    await peers.crash(1)
    await peers[0].ask(PAYMENT)
    assert open_at(peers[0]) == (1, 0, 0, [1])
    peers[0].now_us += 7 * SECOND_US + MOMENT_US
    assert open_at(peers[0]) == (1, 0, 7, [1])

    peers[0].now_us += DEADLINE_US
    await until(lambda: not statistics(peers[0]).linked_open, "the deadline")
    assert open_at(peers[0]) == (0, 0, 0, [])


async def test_prepared_it_waits_for_who_decides(peers: MemoryPeers) -> None:
    """
    Who has voted names the shard that decides, as long as it does not tell what it has decided.
    """
    stop_after(peers[0], 1)
    peers[0].send(PAYMENT)
    await peers[0].store.writes.reached()
    peers[1].now_us += 100 * SECOND_US + MOMENT_US
    assert open_at(peers[1]) == (0, 1, 100, [0])

    peers[0].store.writes.open()
    await until(lambda: not statistics(peers[1]).linked_prepared, "the verdict")
    assert open_at(peers[1]) == (0, 0, 0, [])


async def test_posted_it_waits_until_all_have_done_it(peers: MemoryPeers) -> None:
    """
    It is open, however long after its deadline, until the last shard is back.
    """
    stop_after(peers[1], 1)
    peers[0].send(PAYMENT)
    await peers[1].store.writes.reached()
    await peers.crash(1)
    await until(lambda: peers[0].shard.is_idle, "the posted record")
    peers[0].now_us += DEADLINE_US + 20 * SECOND_US + MOMENT_US
    assert open_at(peers[0]) == (1, 0, 30, [1])

    await peers.start(1)
    await until(lambda: not statistics(peers[0]).linked_open, "the end")
    assert open_at(peers[0]) == (0, 0, 0, [])


async def test_the_oldest_is_told(peers: MemoryPeers) -> None:
    """
    The age is that of the first, not of what came since.
    """
    await peers.crash(1)
    await peers[0].ask(PAYMENT)
    peers[0].now_us += 3 * SECOND_US
    await peers[0].ask(linked(leg(ALICE, BOB, 5), leg(ALICE, BOB, 6), key="another"))
    peers[0].now_us += 2 * SECOND_US + MOMENT_US
    assert open_at(peers[0]) == (2, 0, 5, [1])


async def test_what_does_not_end_is_in_the_log(
    peers: MemoryPeers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    With the shard it waits for; not before it is old, and not again and again.
    """
    stop_after(peers[1], 1)
    peers[0].send(PAYMENT)
    await peers[1].store.writes.reached()
    await peers.crash(1)
    with capture_logs() as logs:
        monkeypatch.setattr(shard_signs, "AGAIN_S", 0.0)
        await several_polls(peers[0])
        assert not warnings(logs, "linked transfer does not end")
        peers[0].now_us += 31 * SECOND_US + MOMENT_US
        await until(lambda: warnings(logs, "linked transfer does not end"), "the warning")
        monkeypatch.setattr(shard_signs, "AGAIN_S", 60.0)
        told = warnings(logs, "linked transfer does not end")
        await several_polls(peers[0])
    assert warnings(logs, "linked transfer does not end") == told
    assert (told[0]["shard_id"], told[0]["oldest_waits_for"]) == (0, [1])
    assert told[0]["oldest_open_s"] == 31


async def test_only_open_holds_are_counted() -> None:
    """
    One that has ended is in memory, and no more an open one.
    """
    async with owning() as shard:
        await shard.ask(open_wallet(ALICE), deposit(ALICE, 1_000))
        gone = place(ALICE, 100, key="gone")
        await shard.ask(gone, place(ALICE, 100, key="open"))
        assert statistics(shard).holds_open == 2
        await shard.ask(void(gone.hold_id))
        assert statistics(shard).holds_open == 1
        assert len(shard.state.holds) == 2


# --- A clock that jumped --------------------------------------------------------------------------


async def jump(shard: MemoryShard, by_us: int) -> None:
    """
    Set the clock forward, decide something by it, and set it back.
    """
    shard.now_us += by_us
    await shard.ask(transfer(ALICE, BOB, 1, key=f"jump by {by_us}"))
    shard.now_us -= by_us


async def test_time_that_is_ahead_is_told_until_the_clock_has_caught_up() -> None:
    """
    Also by who owns the shard next: the time is that of the journal.
    """
    async with owning() as shard:
        await shard.ask(open_wallet(ALICE), open_wallet(BOB), deposit(ALICE, 1_000))
        assert statistics(shard).clock_ahead_ms == 0
        await jump(shard, HOUR_US)
        assert statistics(shard).clock_ahead_ms == 3_600_000
        shard.now_us += HOUR_US - 10 * SECOND_US

    successor = MemoryShard(shard.database, now_us=shard.now_us)
    with capture_logs() as logs:
        await successor.start()
        assert statistics(successor).clock_ahead_ms == 10_000
        await until(lambda: warnings(logs, "record time is ahead of the clock"), "the warning")
    successor.now_us += 20 * SECOND_US
    assert statistics(successor).clock_ahead_ms == 0
    await successor.stop()


async def test_time_that_is_ahead_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Not for some seconds; once at first, again after a while, and never once it is over.
    """
    event = "record time is ahead of the clock"
    async with owning() as shard:
        await shard.ask(open_wallet(ALICE), open_wallet(BOB), deposit(ALICE, 1_000))
        with capture_logs() as logs:
            await jump(shard, 4 * SECOND_US)
            await several_polls(shard)
            assert not warnings(logs, event)
            await jump(shard, HOUR_US)
            await several_polls(shard)
            (told,) = warnings(logs, event)
            assert (told["shard_id"], told["clock_ahead_ms"]) == (0, 3_600_000)
            assert told["log_level"] == "warning"

            monkeypatch.setattr(shard_signs, "AGAIN_S", 0.0)
            await until(lambda: len(warnings(logs, event)) > 2, "it again")
            shard.now_us += HOUR_US
            logs.clear()
            await several_polls(shard)
            assert not warnings(logs, event)
