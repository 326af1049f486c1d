"""
Goal: each command is asked where its wallet is, wherever that may move to; results come in the
      order of the commands; and nothing is called "not applied" that may have been.
Method: scripted shards at real sockets. The directory has no database: the test says itself
        where shards and slots are.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest

from configs.settings import GatewaySettings
from gateway.shard_client import CONNECT_S_MAX, OutcomeUnknown, ShardOverloaded, ShardUnavailable
from gateway.shard_clients import ShardClients
from processor.core.commands import Command, MoveMoney, SetWalletLimits, SetWalletStatus
from processor.core.slots import NOWHERE, SLOT_COUNT, SlotMap, slot_of
from processor.core.wallet import WalletStatus, fees_wallet_id
from processor.flow.frames import (
    FRAME_COMMANDS_MAX,
    Answered,
    ChannelFull,
    Moved,
    Overloaded,
    Pending,
    Posted,
    Reply,
    RequestFrame,
    Result,
    Settled,
    WalletRefused,
)
from processor.storage.directory import ShardEntry
from tests.support.bound_commands import (
    capture,
    extend,
    hold_id_of,
    leg,
    linked,
    on_terms,
    place,
    read_hold,
    refund,
    void,
)
from tests.support.commands import deposit, open_wallet, read_wallet, transfer, withdrawal
from tests.support.scripted_shard import Answer, ScriptedShard, answering, listening
from tests.support.waiting import until

SECRET = b"sixteen bytes ok"
NO_DATABASE = "postgresql:///none?host=/nonexistent"
PATIENT_MS = 15_000
SOON_S = 15  # Much less than the minute that answers are held back for.
HALVES = SlotMap.even(2)
HERE, THERE = (
    next(name for name in map(str, range(99)) if HALVES.shard_of(name) == shard_id)
    for shard_id in (0, 1)
)


def posted(command: Command) -> Result:
    """
    Answer money with its own id, and anything else with a refusal.
    """
    if isinstance(command, MoveMoney):
        return Posted(command.transfer_id, 1, 1, 0, 1, False)
    return WalletRefused(command.minimum if isinstance(command, SetWalletLimits) else 0)


SOUND = answering(posted)


def moved_to(shard_id: int) -> Answer:
    return answering(lambda _: Moved(shard_id))


def overloaded(frame: RequestFrame) -> list[Reply]:
    return [Overloaded(frame.frame_id, 1)]


def silent(_: RequestFrame) -> list[Reply]:
    return []


def in_turn(*answers: Answer) -> Answer:
    """
    Answer each frame in the next way, and all others in the last.
    """
    ways = itertools.chain(answers, itertools.repeat(answers[-1]))

    def answer(frame: RequestFrame) -> list[Reply]:
        return next(ways)(frame)

    return answer


@pytest.fixture
def folder() -> Iterator[Path]:
    # A Unix socket's path is short.
    with TemporaryDirectory(prefix="mil-") as folder:
        yield Path(folder)


@asynccontextmanager
async def clients_of(
    *shards: ScriptedShard, slots: SlotMap | None = HALVES, **settings: Any
) -> AsyncIterator[ShardClients]:
    clients = ShardClients([NO_DATABASE], secret=SECRET, settings=GatewaySettings(**settings))
    await clients.start()
    clients.entries_changed([shard.entry for shard in shards])
    if slots is not None:
        clients.slots_changed(slots)
    try:
        yield clients
    finally:
        await clients.stop()


@asynccontextmanager
async def two_shards(
    folder: Path, zero: Answer = SOUND, one: Answer = SOUND, **settings: Any
) -> AsyncIterator[tuple[ShardClients, ScriptedShard, ScriptedShard]]:
    async with (
        listening(0, folder, SECRET, zero) as first,
        listening(1, folder, SECRET, one) as second,
        clients_of(first, second, **settings) as clients,
    ):
        yield clients, first, second


class TestRouting:
    @pytest.mark.parametrize(
        ("command", "shard_id"),
        [
            (transfer(HERE, THERE, 1), 0),
            (transfer(THERE, HERE, 1), 1),
            (withdrawal(THERE, 1), 1),
            (deposit(THERE, 1), 1),
            (deposit(HERE, 1), 0),
            (read_wallet(THERE), 1),
            (open_wallet(HERE), 0),
            (SetWalletStatus("acme", THERE, WalletStatus.FROZEN), 1),
            (place(THERE, 1, destination=HERE), 1),
            (capture(hold_id_of(THERE), 1, key="capture", destination=HERE), 1),
            (void(hold_id_of(THERE)), 1),
            (extend(hold_id_of(THERE), 60), 1),
            (read_hold(hold_id_of(THERE)), 1),
            (refund("earlier", THERE, HERE, 1, refundable=1), 1),
            (on_terms(deposit(THERE, 1), if_version=3), 1),
            (linked(leg(THERE, HERE, 1), leg(HERE, THERE, 1)), 1),
            (transfer(fees_wallet_id(1, "acme", "EUR"), HERE, 1), 1),
            (transfer(fees_wallet_id(0, "acme", "EUR"), THERE, 1), 0),
            (on_terms(transfer(fees_wallet_id(1, "acme", "EUR"), HERE, 1), amount_max=9), 1),
            (linked(leg(fees_wallet_id(1, "acme", "EUR"), HERE, 1), leg(HERE, THERE, 1)), 1),
        ],
    )
    async def test_the_callers_own_wallet_decides(
        self, folder: Path, command: Command, shard_id: int
    ):
        """
        The source of transfers and withdrawals, the destination of deposits, or the wallet; what a
        hold is of, which its id says; the first leg's source; and a wallet of fees by its name.
        """
        async with two_shards(folder) as (clients, *shards):
            _, told_by = await clients.submit(command, timeout_ms=PATIENT_MS)

        assert told_by == shard_id
        assert shards[shard_id].commands == [command]
        assert shards[1 - shard_id].commands == []

    async def test_results_are_in_the_order_of_the_commands(self, folder: Path):
        """
        Each result is its own command's, with the shard that gave it.
        """
        names = (HERE, THERE, THERE, HERE, THERE)
        commands = [SetWalletLimits("acme", name, number) for number, name in enumerate(names)]
        async with two_shards(folder) as (clients, *shards):
            told = await clients.submit_many(commands, timeout_ms=PATIENT_MS)

        assert told == [
            (WalletRefused(number), HALVES.shard_of(name)) for number, name in enumerate(names)
        ]
        assert [len(shard.frames) for shard in shards] == [1, 1]

    async def test_nothing_is_asked_for_nothing(self, folder: Path):
        """
        An empty list has an empty answer.
        """
        async with two_shards(folder) as (clients, *_):
            assert await clients.submit_many([], timeout_ms=PATIENT_MS) == []

    async def test_a_shard_that_is_down_fails_only_its_own(self, folder: Path):
        """
        At the deadline the others have their results.
        """
        async with (
            listening(0, folder, SECRET, SOUND) as up,
            clients_of(up) as clients,
        ):
            commands = [read_wallet(HERE), read_wallet(THERE), read_wallet(HERE)]
            told = await clients.submit_many(commands, timeout_ms=200)

        assert [type(result) for result, _ in told] == [
            WalletRefused,
            ShardUnavailable,
            WalletRefused,
        ]

    async def test_more_than_a_frame_holds_is_cut(self, folder: Path):
        """
        A shard takes no larger frame; the results are one list.
        """
        count = FRAME_COMMANDS_MAX + 1
        commands = [SetWalletLimits("acme", HERE, number) for number in range(count)]
        async with two_shards(folder) as (clients, shard, _):
            told = await clients.submit_many(commands, timeout_ms=PATIENT_MS)

        assert told == [(WalletRefused(number), 0) for number in range(count)]
        assert [len(frame.commands) for frame in shard.frames] == [FRAME_COMMANDS_MAX, 1]

    async def test_commands_wait_for_the_first_map(self, folder: Path):
        """
        Nothing is sent anywhere until it is known where; at the deadline nothing was applied.
        """
        async with (
            listening(0, folder, SECRET, SOUND) as shard,
            clients_of(shard, slots=None) as clients,
        ):
            with pytest.raises(ShardUnavailable):
                await clients.submit(read_wallet(HERE), timeout_ms=20)
            asked = asyncio.create_task(clients.submit(read_wallet(HERE), timeout_ms=PATIENT_MS))
            clients.slots_changed(SlotMap.undivided(0))
            assert await asked == (WalletRefused(0), 0)

    async def test_legs_count_against_the_frame(self, folder: Path):
        """
        Linked transfers that come at once leave in frames of no more legs than commands.
        """
        legs = [leg(HERE, THERE, number, name=f"{number}") for number in range(1, 101)]
        count = FRAME_COMMANDS_MAX // 100 + 1
        async with two_shards(folder) as (clients, shard, _):
            asked = [linked(*legs, key=f"{number}") for number in range(count)]
            async with asyncio.TaskGroup() as tasks:
                for command in asked:
                    tasks.create_task(clients.submit(command, timeout_ms=PATIENT_MS))

        assert shard.commands == asked
        assert [len(frame.commands) for frame in shard.frames] == [count - 1, 1]

    async def test_legs_count_against_the_queue(self, folder: Path):
        """
        What waits for a shard that is down is bounded by legs.
        """
        many = linked(*(leg(HERE, THERE, number) for number in range(1, 51)))
        async with (
            listening(1, folder, SECRET, SOUND) as shard,
            clients_of(shard, queued_commands_max=99) as clients,
        ):
            first = asyncio.create_task(clients.submit(many, timeout_ms=5_000))
            await until(lambda: clients.statistics()[0].queued_commands == 50, "the first to wait")
            with pytest.raises(ShardOverloaded):
                await clients.submit(many, timeout_ms=PATIENT_MS)
            first.cancel()


class TestConnecting:
    async def test_an_address_that_says_nothing_is_left_for_a_new_one(self, folder: Path):
        """
        The machine is gone and the shard serves elsewhere: nobody waits for the old address. It
        may change again while the attempt at it is being given up.
        """
        gate = asyncio.Event()

        async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reached.set()
            await gate.wait()
            writer.close()

        reached = asyncio.Event()
        silent = await asyncio.start_unix_server(say_nothing, folder / "silent")
        gone = ShardEntry(0, 1, "active", f"unix:{folder / 'silent'}", 1, "test", None)
        gone_too = msgspec.structs.replace(gone, endpoint=f"unix:{folder / 'nothing'}")
        async with listening(0, folder, SECRET, SOUND) as shard, clients_of(shard) as clients:
            clients.entries_changed([gone])
            await reached.wait()
            changed = asyncio.get_running_loop().create_future()

            def change_again() -> None:
                try:
                    clients.entries_changed([shard.entry])
                    changed.set_result(None)
                except Exception as error:
                    changed.set_exception(error)

            clients.entries_changed([gone_too])
            asyncio.get_running_loop().call_soon(change_again)
            await changed
            async with asyncio.timeout(CONNECT_S_MAX - 1):
                await clients.submit(read_wallet(HERE), timeout_ms=PATIENT_MS)
        gate.set()
        silent.close()


class TestMovedSlots:
    async def test_it_is_asked_where_the_slot_went(self, folder: Path):
        """
        The command follows, and the next one goes there at once.
        """
        async with two_shards(folder, zero=moved_to(1)) as (clients, old, new):
            first, second = transfer(HERE, THERE, 1, key="1"), transfer(HERE, THERE, 1, key="2")
            assert await clients.submit(first, timeout_ms=PATIENT_MS) == (posted(first), 1)
            assert await clients.submit(second, timeout_ms=PATIENT_MS) == (posted(second), 1)

        assert old.commands == [first]
        assert new.commands == [first, second]

    async def test_a_holds_slot_is_followed_like_its_wallets(self, folder: Path):
        """
        A shard that says where a hold went says where its wallet is.
        """
        placed = place(HERE, 1)
        async with two_shards(folder, zero=moved_to(1)) as (clients, old, new):
            _, told_by = await clients.submit(read_hold(placed.hold_id), timeout_ms=PATIENT_MS)
            assert told_by == 1
            assert clients.shard_of(HERE) == 1
            await clients.submit(read_wallet(HERE), timeout_ms=PATIENT_MS)

        assert old.commands == [read_hold(placed.hold_id)]
        assert new.commands == [read_hold(placed.hold_id), read_wallet(HERE)]

    async def test_what_fees_say_is_no_hint(self, folder: Path):
        """
        A wallet of fees is where its name says, and tells nothing of any slot.
        """
        sweep = transfer(fees_wallet_id(0, "acme", "EUR"), THERE, 1)
        before = [HALVES.owner(slot) for slot in range(SLOT_COUNT)]
        async with two_shards(folder, zero=in_turn(moved_to(1), SOUND)) as (clients, *_):
            assert (await clients.submit(sweep, timeout_ms=PATIENT_MS))[1] == 0
            assert [clients._slots.owner(slot) for slot in range(SLOT_COUNT)] == before

    async def test_only_what_moved_is_asked_again(self, folder: Path):
        """
        In a batch the others keep their results, and the order stays.
        """
        same_shard = next(
            name
            for name in map(str, range(100, 200))
            if HALVES.shard_of(name) == 0 and slot_of(name) != slot_of(HERE)
        )

        def answer(command: Command) -> Result:
            assert isinstance(command, SetWalletLimits)
            return Moved(1) if command.wallet_id == HERE else WalletRefused(command.minimum)

        names = (same_shard, HERE, THERE, HERE, same_shard)
        commands = [SetWalletLimits("acme", name, number) for number, name in enumerate(names)]
        async with two_shards(folder, zero=answering(answer)) as (clients, _, new):
            told = await clients.submit_many(commands, timeout_ms=PATIENT_MS)

        assert told == [
            (WalletRefused(0), 0),
            (WalletRefused(1), 1),
            (WalletRefused(2), 1),
            (WalletRefused(3), 1),
            (WalletRefused(4), 0),
        ]
        assert len(new.commands) == 3

    @pytest.mark.parametrize("hint", [0, NOWHERE])
    async def test_a_slot_on_its_way_is_asked_for_again(self, folder: Path, hint: int):
        """
        A shard that names itself or nobody is asked until it takes the command.
        """
        zero = in_turn(*[moved_to(hint)] * 3, SOUND)
        async with two_shards(folder, zero=zero) as (
            clients,
            *shards,
        ):
            command = transfer(HERE, THERE, 1)
            assert await clients.submit(command, timeout_ms=PATIENT_MS) == (posted(command), 0)

        assert shards[0].commands == [command] * 4
        assert shards[1].commands == []

    async def test_at_the_deadline_what_moved_was_not_applied(self, folder: Path):
        """
        Every answer said so.
        """
        async with two_shards(folder, zero=moved_to(0)) as (clients, *_):
            with pytest.raises(ShardUnavailable):
                await clients.submit(transfer(HERE, THERE, 1), timeout_ms=100)

    async def test_what_was_in_doubt_stays_in_doubt(self, folder: Path):
        """
        The first sending got no answer: that the second one moved on does not tell of it.
        """
        async with two_shards(folder, one=silent) as (clients, shard, _):
            shard.answer = hanging_up_once(shard, moved_to(0))
            with pytest.raises(OutcomeUnknown):
                await clients.submit(transfer(HERE, THERE, 1), timeout_ms=300)

    async def test_a_full_queue_does_not_settle_a_doubt(self, folder: Path):
        """
        Other commands wait for its new shard already: new ones are refused, and this one is not.
        """
        async with (
            listening(0, folder, SECRET, SOUND) as shard,
            clients_of(shard, queued_commands_max=1) as clients,
        ):
            waiting = asyncio.create_task(clients.submit(read_wallet(THERE), timeout_ms=5_000))
            await until(lambda: clients.statistics()[1].queued_commands, "a command in the queue")
            with pytest.raises(ShardOverloaded):
                await clients.submit(read_wallet(THERE), timeout_ms=PATIENT_MS)
            shard.answer = hanging_up_once(shard, moved_to(1))
            with pytest.raises(OutcomeUnknown):
                await clients.submit(transfer(HERE, THERE, 1), timeout_ms=500)
            waiting.cancel()

    async def test_doubt_is_asked_again_where_new_commands_are_refused(self, folder: Path):
        """
        At its new shard a command in doubt meets an overload, and is asked until it is answered.
        """
        one = in_turn(overloaded, overloaded, SOUND)
        async with two_shards(folder, one=one) as (clients, shard, _):
            shard.answer = hanging_up_once(shard, moved_to(1))
            command = transfer(HERE, THERE, 1)
            assert await clients.submit(command, timeout_ms=PATIENT_MS) == (posted(command), 1)

    async def test_a_newer_map_counts_for_more_than_a_hint(self, folder: Path):
        """
        And an older one for less.
        """
        async with two_shards(folder, zero=moved_to(1)) as (clients, old, _):
            await clients.submit(read_wallet(HERE), timeout_ms=PATIENT_MS)
            assert clients.shard_of(HERE) == 1
            clients.slots_changed(SlotMap.even(2))
            assert clients.shard_of(HERE) == 1

            newer = SlotMap.even(2)
            newer.assign(slot_of(HERE), 0, 3)
            old.answer = SOUND
            clients.slots_changed(newer)
            assert await clients.submit(read_wallet(HERE), timeout_ms=PATIENT_MS) == (
                WalletRefused(0),
                0,
            )
            clients.slots_changed(SlotMap([1] * SLOT_COUNT, [2] * SLOT_COUNT))
            assert clients.shard_of(HERE) == 0

    async def test_a_shard_that_just_appeared_is_found(self, folder: Path):
        """
        A hint may name a shard before the directory does.
        """
        async with (
            listening(7, folder, SECRET, SOUND) as new,
            two_shards(folder, zero=moved_to(7)) as (clients, old, _),
        ):
            asked = asyncio.create_task(clients.submit(read_wallet(HERE), timeout_ms=PATIENT_MS))
            await until(lambda: old.frames, "the first question")
            clients.entries_changed([old.entry, new.entry])
            assert await asked == (WalletRefused(0), 7)


def hanging_up_once(shard: ScriptedShard, then: Answer) -> Answer:
    """
    Hang up on the first frame, as if its answer was lost.
    """

    def hang_up(_: RequestFrame) -> list[Reply]:
        shard.answer = then
        shard.hang_up()
        return []

    return hang_up


class TestChannelFull:
    async def test_it_is_an_overload(self, folder: Path):
        """
        Nothing was recorded; the caller is told to come again.
        """
        async with two_shards(folder, zero=answering(lambda _: ChannelFull(1))) as (clients, *_):
            with pytest.raises(ShardOverloaded):
                await clients.submit(transfer(HERE, THERE, 1), timeout_ms=PATIENT_MS)

    async def test_what_was_in_doubt_is_asked_until_it_is_known(self, folder: Path):
        """
        Only this sending was refused; the one before may have been applied.
        """
        full = answering(lambda _: ChannelFull(1))
        async with two_shards(folder) as (clients, shard, _):
            shard.answer = hanging_up_once(shard, in_turn(full, full, SOUND))
            command = transfer(HERE, THERE, 1)
            assert await clients.submit(command, timeout_ms=PATIENT_MS) == (posted(command), 0)


def pending(command: Command) -> Result:
    assert isinstance(command, MoveMoney)
    return Pending(command.transfer_id, 1, 1, False)


def with_settlement(*, first: Callable[[Command], Result]) -> Answer:
    """
    Answer, and settle all that was pending right behind it.
    """

    def answer(frame: RequestFrame) -> list[Reply]:
        results = [first(command) for command in frame.commands]
        settled = [
            Posted(result.transfer_id, 2, 2, 90, 2, False)
            for result in results
            if isinstance(result, Pending)
        ]
        return [Answered(frame.frame_id, results), Settled(settled)]

    return answer


class TestPending:
    async def test_a_settlement_in_time_is_the_answer(self, folder: Path):
        """
        Also one that comes in the same piece as the answer.
        """
        async with two_shards(folder, zero=with_settlement(first=pending)) as (clients, *_):
            command = transfer(HERE, THERE, 1)
            result, shard_id = await clients.submit(command, timeout_ms=PATIENT_MS)

        assert (result, shard_id) == (Posted(command.transfer_id, 2, 2, 90, 2, False), 0)

    async def test_a_settlement_pushed_later_is_waited_for(self, folder: Path):
        """
        It is matched by the transfer, whatever else is answered in between.
        """
        settings = {"settlement_wait_ms": 60_000}
        async with two_shards(folder, zero=answering(pending), **settings) as (clients, shard, _):
            command = transfer(HERE, THERE, 1)
            asked = asyncio.create_task(clients.submit(command, timeout_ms=60_000))
            await until(lambda: shard.frames, "the question")
            shard.answer = SOUND
            await clients.submit(read_wallet(HERE), timeout_ms=PATIENT_MS)
            assert not asked.done()
            settled = Posted(command.transfer_id, 2, 2, 90, 2, False)
            shard.say(Settled([Posted(bytes(16), 2, 2, 90, 2, False), settled]))
            assert await asked == (settled, 0)

    async def test_without_one_it_is_told_as_it_is(self, folder: Path):
        """
        After the time of the settings, and counted.
        """
        settings = {"settlement_wait_ms": 1}
        async with two_shards(folder, zero=answering(pending), **settings) as (clients, *_):
            command = transfer(HERE, THERE, 1)
            assert await clients.submit(command, timeout_ms=PATIENT_MS) == (pending(command), 0)
            assert [one.pending_answer_count for one in clients.statistics()] == [1, 0]

    async def test_the_deadline_ends_the_waiting(self, folder: Path):
        """
        A caller in a hurry hears what is known.
        """
        settings = {"settlement_wait_ms": 60_000}
        async with two_shards(folder, zero=answering(pending), **settings) as (clients, *_):
            command = transfer(HERE, THERE, 1)
            async with asyncio.timeout(SOON_S):
                assert await clients.submit(command, timeout_ms=300) == (pending(command), 0)

    async def test_a_lost_connection_ends_the_waiting(self, folder: Path):
        """
        The reservation is durable; it is told at once and not sent again.
        """
        settings = {"settlement_wait_ms": 60_000}
        async with two_shards(folder, zero=answering(pending), **settings) as (clients, shard, _):
            command = transfer(HERE, THERE, 1)
            asked = asyncio.create_task(clients.submit(command, timeout_ms=60_000))
            await until(lambda: shard.frames, "the question")
            await clients.submit(transfer(THERE, HERE, 1), timeout_ms=PATIENT_MS)
            shard.answer = SOUND
            await clients.submit(read_wallet(HERE), timeout_ms=PATIENT_MS)
            shard.hang_up()
            async with asyncio.timeout(SOON_S):
                assert await asked == (pending(command), 0)
            assert shard.commands.count(command) == 1

    async def test_in_a_batch_the_others_wait_with_it(self, folder: Path):
        """
        One answer has all results, in order.
        """

        def mixed(command: Command) -> Result:
            assert isinstance(command, MoveMoney)
            return pending(command) if command.amount % 2 else posted(command)

        commands = [transfer(HERE, THERE, amount, key=f"{amount}") for amount in range(1, 6)]
        async with two_shards(folder, zero=with_settlement(first=mixed)) as (clients, *_):
            told = await clients.submit_many(commands, timeout_ms=PATIENT_MS)

        results = [result for result, _ in told]
        assert all(isinstance(result, Posted) for result in results)
        assert [result.transfer_id for result in results] == [c.transfer_id for c in commands]
        assert [result.sequence for result in results] == [2, 1, 2, 1, 2]
