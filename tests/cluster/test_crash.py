"""
Goal: a process may be killed or paused at any moment; every answer that was given stays true,
      every payment happens at most once, and a shard that was replaced answers nobody.
Method: the real processes of two shards, in one database or in two, under load from clients that
        pay within and across the shards and ask again with the same key; kill -9 and SIGSTOP at
        moments that the load itself decides. At the end the journals, the tables and the
        independent audit are compared with what the clients heard.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

import msgspec
import pytest

from gateway.shard_client import OutcomeUnknown, ShardOverloaded, ShardUnavailable
from gateway.shard_clients import ShardClients
from processor.core.commands import MoveMoney
from processor.core.decisions import TransferPosted, TransferRejected, TransferReserved
from processor.core.slots import SlotMap
from processor.flow.batch import moved
from processor.flow.frames import Pending, Posted, Rejected
from processor.storage.verification import verify
from tests.support.books import Journal, read_balanced_tables
from tests.support.commands import deposit, open_wallet, read_wallet, transfer
from tests.support.databases import Databases, reading
from tests.support.gates import gate_at
from tests.support.ledger import Ledger
from tests.support.pausing import paused
from tests.support.raw_peer import connected_peer
from tests.support.shard_net import names_on
from tests.support.stack import Stack, running_stack
from tests.support.waiting import until

SLOTS = SlotMap.even(2)
WALLETS = names_on(0, 2) + names_on(1, 2)
W0, W1 = WALLETS[:2]
PATIENT_MS = 20_000
HURRIED_MS = 200  # Shorter than any restart, so that answers get lost.
KILLS = 20


@pytest.fixture
def stack(database: str) -> Iterator[Stack]:
    with running_stack(database) as stack:
        yield stack


class Heard(msgspec.Struct):
    """
    What a client knows of one payment.
    """

    command: MoveMoney
    asked_at: float
    answered_at: float = 0.0
    answer: Posted | Rejected | None = None
    pending: bool = False  # Told that it is on its way, so it has to end somehow.
    sent: bool = False  # Perhaps applied, unless the client was told otherwise.


class Payers:
    """
    Clients that pay back and forth until told to stop.

    A client that hears nothing in time asks again under the same key, and sometimes gives up:
    that payment stays unknown.
    """

    def __init__(self, seed: int) -> None:
        self.heard: list[Heard] = []
        self.answer_count = 0
        self._random = random.Random(seed)
        self._stopping = False
        self._workers: list[asyncio.Task[None]] = []

    def start(self, gateways: list[ShardClients], worker_count: int) -> None:
        for number in range(worker_count):
            work = self._work(gateways[number % len(gateways)], number)
            self._workers.append(asyncio.create_task(work))

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._workers)

    async def answered(self, count: int) -> None:
        target = self.answer_count + count
        await until(
            lambda: self.answer_count >= target or self._failed(),
            f"{target} answers",
            timeout_s=60,
        )

    def _failed(self) -> bool:
        return any(worker.done() for worker in self._workers)

    async def _work(self, gateway: ShardClients, number: int) -> None:
        count = 0
        while not self._stopping:
            count += 1
            source, destination = self._random.sample(WALLETS, 2)
            amount = self._random.choice([1, 5, 20, 500_000])
            command = transfer(source, destination, amount, key=f"{number} {count}")
            heard = Heard(command, time.monotonic())
            self.heard.append(heard)
            # The first client never asks twice, so each kill leaves it with something unknown.
            patience = 0.0 if number == 0 else 0.8
            while heard.answer is None and not await self._gives_up(gateway, heard, patience):
                pass

    async def _gives_up(self, gateway: ShardClients, heard: Heard, patience: float) -> bool:
        """
        Ask once; return whether the client loses patience without an answer.
        """
        try:
            answer, _ = await gateway.submit(heard.command, timeout_ms=HURRIED_MS)
        except OutcomeUnknown:
            heard.sent = True
        except (ShardUnavailable, ShardOverloaded):
            pass
        else:
            if isinstance(answer, Pending):
                heard.pending = True
                return self._random.random() >= patience
            assert isinstance(answer, Posted | Rejected), answer
            heard.answer = answer
            heard.answered_at = time.monotonic()
            self.answer_count += 1
            return False
        return self._random.random() >= patience

    def check(self, journal: Journal) -> None:
        """
        Compare what was heard with what was journaled by the shard of the payers.
        """
        decided = Counter(
            decision.key
            for decision in journal.decisions
            if isinstance(decision, TransferPosted | TransferRejected | TransferReserved)
        )
        own = [h for h in self.heard if SLOTS.shard_of(h.command.source) == journal.shard_id]
        for heard in own:
            count = decided[heard.command.key]
            if heard.answer is not None:
                assert count == 1, heard
                told = moved(*journal.state.keys.young[heard.command.key], repeated=False)
                assert msgspec.structs.replace(heard.answer, repeated=False) == told
            elif heard.pending:
                assert count == 1, heard
            elif heard.sent:
                assert count <= 1, heard
            else:
                assert count == 0, f"told that it was not applied: {heard}"
        assert in_real_time_order([heard for heard in own if heard.answer is not None])


def in_real_time_order(answered: list[Heard]) -> bool:
    """
    Say whether nothing that was asked after another's answer is journaled before it.
    """
    answered.sort(key=lambda heard: heard.answer.sequence, reverse=True)
    earliest_answer = float("inf")
    for heard in answered:
        if heard.asked_at > earliest_answer:
            return False
        earliest_answer = min(earliest_answer, heard.answered_at)
    return True


@asynccontextmanager
async def gateways(stack: Stack, count: int):
    async with AsyncExitStack() as entered:
        yield [await entered.enter_async_context(stack.clients()) for _ in range(count)]


async def fill_wallets(gateway: ShardClients) -> None:
    commands = [open_wallet(name) for name in WALLETS]
    commands += [deposit(name, 1_000_000, key=f"fill {name}") for name in WALLETS]
    results = await gateway.submit_many(commands, timeout_ms=PATIENT_MS)
    assert not [result for result, _ in results if isinstance(result, Exception)]


async def check_everything(stack: Stack, payers: Payers) -> None:
    await stack.settled()
    total = 0
    for shard_id in range(2):
        dsn = stack.dsns[shard_id % len(stack.dsns)]
        journal = await read_balanced_tables(dsn, shard_id)
        payers.check(journal)
        total += sum(w.posted for name, w in journal.state.wallets.items() if name in WALLETS)
    assert total == 1_000_000 * len(WALLETS)
    verdict = await verify(stack.dsn)
    assert verdict.balanced, verdict


@pytest.fixture(params=[1, 2], ids=["one database", "two databases"])
def spread_stack(request: pytest.FixtureRequest, databases: Databases) -> Iterator[Stack]:
    with ExitStack() as leaving:
        dsns = [leaving.enter_context(databases.migrated()) for _ in range(request.param)]
        yield leaving.enter_context(running_stack(" ".join(dsns)))


async def test_killed_shards_keep_every_promise(spread_stack: Stack):
    """
    Either of two shards killed, twenty times under load: each acknowledged payment is there once,
    as it was told; each pending one ends; each unknown one is there once or never; each that was
    called not applied, never; and the books balance.
    """

    async def crash(shard_id: int) -> None:
        spread_stack.crash_shard(shard_id)

    await survive_kills(spread_stack, crash)


@pytest.mark.timeout(300)
async def test_a_shard_killed_under_ray_keeps_every_promise(ledger: Ledger):
    """
    The same when nobody but Ray starts the shard again.
    """
    # Its own processes are never started: it only tells how to reach those under Ray.
    stack = Stack(ledger.dsn, ledger.data_dir, environment={})
    stack.secret = (ledger.data_dir / "cluster_secret").read_text().strip()

    async def crash(shard_id: int) -> None:
        pid = (await stack.shard_entry(shard_id)).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    await survive_kills(stack, crash)


async def epochs(stack: Stack) -> int:
    return sum([(await stack.shard_entry(shard_id)).epoch for shard_id in range(2)])


async def survive_kills(stack: Stack, crash: Callable[[int], Awaitable[None]]) -> None:
    payers = Payers(seed=1)
    chance = random.Random(2)
    before = await epochs(stack)
    killed: dict[int, int] = {}
    async with gateways(stack, 2) as both:
        await fill_wallets(both[0])
        payers.start(both, worker_count=8)
        for _ in range(KILLS):
            await payers.answered(chance.randint(1, 150))
            shard_id = chance.randint(0, 1)
            # A process that has not taken the shard over yet would not be worth a kill.
            after = killed.get(shard_id, 0)
            await until(lambda: replaced(stack, after, shard_id), "the next owner")  # noqa: B023
            killed[shard_id] = (await stack.shard_entry(shard_id)).epoch
            await crash(shard_id)
        await payers.answered(50)
        await payers.stop()
    await check_everything(stack, payers)
    assert await epochs(stack) >= before + KILLS
    assert [heard for heard in payers.heard if heard.answer is None], "nothing stayed unknown"
    assert [heard for heard in payers.heard if heard.answer is not None and heard.answer.repeated]


async def test_a_killed_write_behind_repeats_and_loses_nothing(stack: Stack):
    """
    Killed in the middle of a round, held there by a gate, and at moments of chance: the tables
    catch up and every record is in them once.
    """
    payers = Payers(seed=3)
    async with gateways(stack, 1) as one:
        await fill_wallets(one[0])
        payers.start(one, worker_count=4)
        async with gate_at(stack.dsn, "UPDATE", "wallets") as gate:
            for _ in range(3):
                await gate.close()
                await gate.reached()
                stack.write_behind.kill()
                await gate.open()
                stack.write_behind.start()
                await advanced(stack)
        for _ in range(3):
            await advanced(stack)
            stack.write_behind.kill()
            stack.write_behind.start()
        await payers.stop()
    await check_everything(stack, payers)


async def advanced(stack: Stack) -> None:
    """
    Wait until the tables have moved on.
    """
    async with reading(stack.dsn) as connection:
        query = "SELECT coalesce(sum(sequence), 0) FROM watermark"
        before = await connection.fetchval(query)

        async def moved_on() -> bool:
            return bool(await connection.fetchval(query) > before)

        await until(moved_on, "the watermark")


FIRST = transfer(W0, W1, 5, key="first")
ZOMBIE_ASKED = {
    "a read": read_wallet(W0),
    "a repeat": FIRST,
    "a payment": transfer(W0, W1, 7, key="zombie"),
}


@pytest.mark.parametrize("asked", ZOMBIE_ASKED)
async def test_a_paused_shard_that_was_replaced_answers_nobody(stack: Stack, asked: str):
    """
    Stopped, replaced, and woken up with a frame waiting: it answers no read, no repeat and no
    payment, and its process ends by itself; the successor has the shard.
    """
    async with gateways(stack, 1) as one, AsyncExitStack() as leaving:
        await fill_wallets(one[0])
        await one[0].submit(FIRST, timeout_ms=PATIENT_MS)
        old = await stack.shard_entry()
        assert old.endpoint is not None
        peer = await leaving.enter_async_context(
            connected_peer(old.endpoint, stack.secret.encode())
        )
        successor = stack.process("shard", 0, "successor")
        leaving.callback(successor.stop)
        with paused(stack.shard.pid):
            peer.send(ZOMBIE_ASKED[asked], epoch=old.epoch)
            successor.start()
            await until(lambda: replaced(stack, old.epoch), "the successor")
        assert await peer.read_to_the_end() == b""
        await until(lambda: not stack.shard.is_running(), "the end of the old process")
        after, _ = await one[0].submit(transfer(W1, W0, 5, key="after"), timeout_ms=PATIENT_MS)
        assert isinstance(after, Posted)
        assert after.balance == 1_000_000
        await stack.settled()
        await read_balanced_tables(stack.dsn)


async def replaced(stack: Stack, epoch: int, shard_id: int = 0) -> bool:
    return (await stack.shard_entry(shard_id)).epoch > epoch
