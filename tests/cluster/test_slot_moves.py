"""
Goal: slots move from shard to shard under load, while shards and the operator's command are killed:
      every payment happens once, nothing is left behind, and doing it again completes the move.
Method: real processes on two databases; payers that ask again with the same key; kill -9 of a shard
        while slots leave it or arrive at it, and a mover that is stopped half-way.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

import pytest

from gateway.cli.slot_moves import SlotMover
from gateway.shard_client import OutcomeUnknown, ShardOverloaded, ShardUnavailable
from gateway.shard_clients import ShardClients
from processor.core.slots import SlotMap, slot_of
from processor.flow.frames import Pending, Posted, Rejected, WalletFound
from processor.storage.catalog import open_cluster, place_shard, read_slot_map
from processor.storage.verification import verify
from tests.support.commands import deposit, open_wallet, read_wallet, transfer
from tests.support.databases import Databases
from tests.support.stack import Stack, running_stack
from tests.support.waiting import until

WALLETS = [f"w{number}" for number in range(40)]
PATIENT_MS = 20_000
HURRIED_MS = 500
MOVES = 20
PAUSE_S_MAX = 0.2


@pytest.fixture
def stack(databases: Databases) -> Iterator[Stack]:
    with (
        databases.migrated() as first,
        databases.migrated() as second,
        running_stack(f"{first} {second}") as stack,
    ):
        yield stack


class Payers:
    """
    Clients that pay back and forth, each payment until it has an outcome.
    """

    def __init__(self, gateway: ShardClients) -> None:
        self.outcomes: dict[str, Posted | Rejected] = {}
        self._gateway = gateway
        self._random = random.Random(5)
        self._is_stopping = False
        self._workers: list[asyncio.Task[None]] = []

    def start(self, worker_count: int) -> None:
        self._workers = [asyncio.create_task(self._work(n)) for n in range(worker_count)]

    async def stop(self) -> None:
        self._is_stopping = True
        await asyncio.gather(*self._workers)

    async def settled(self, count: int) -> None:
        """
        Wait for so many more outcomes.
        """
        target = len(self.outcomes) + count
        await until(lambda: len(self.outcomes) >= target, f"{target} outcomes", timeout_s=60)

    async def _work(self, number: int) -> None:
        count = 0
        while not self._is_stopping:
            count += 1
            source, destination = self._random.sample(WALLETS, 2)
            key = f"{number} {count}"
            command = transfer(source, destination, self._random.choice([1, 7, 5_000]), key=key)
            while key not in self.outcomes:
                try:
                    result, _ = await self._gateway.submit(command, timeout_ms=HURRIED_MS)
                except (OutcomeUnknown, ShardOverloaded, ShardUnavailable):
                    continue
                if isinstance(result, Posted | Rejected):
                    self.outcomes[key] = result
                else:
                    assert isinstance(result, Pending), result


async def fill_wallets(gateway: ShardClients) -> None:
    commands = [open_wallet(name) for name in WALLETS]
    commands += [deposit(name, 1_000, key=f"fill {name}") for name in WALLETS]
    results = await gateway.submit_many(commands, timeout_ms=PATIENT_MS)
    assert not [result for result, _ in results if isinstance(result, Exception)]


def mover(stack: Stack, target: int) -> SlotMover:
    return SlotMover(stack.dsns, stack.secret.encode(), target, lambda _done: None)


async def move_all(stack: Stack, slots: list[int], target: int) -> None:
    """
    Ask for slots wherever they are, again and again, until they are all at *target*.
    """
    for _ in range(10):
        slot_map = await read_slot_map(stack.dsns[0])
        left = [slot for slot in slots if slot_map.owner(slot) != target]
        if not left:
            return
        for source in sorted({slot_map.owner(slot) for slot in left}):
            moving = mover(stack, target)
            await moving.move(source, [s for s in left if slot_map.owner(s) == source])
            assert await moving.arrived()
    raise AssertionError(f"{len(left)} slots do not move")


async def check_everything(stack: Stack, gateway: ShardClients, payers: Payers) -> None:
    """
    Ask every key again, compare, and see that no money came or went.
    """
    await stack.settled()
    results = await gateway.submit_many([read_wallet(n) for n in WALLETS], timeout_ms=PATIENT_MS)
    balances = [result.posted for result, _ in results if isinstance(result, WalletFound)]
    assert len(balances) == len(WALLETS)
    assert sum(balances) == 1_000 * len(WALLETS)
    assert len({outcome.transfer_id for outcome in payers.outcomes.values()}) == len(
        payers.outcomes
    )
    verdict = await verify(stack.dsns)
    assert verdict.balanced, verdict


async def test_slots_move_back_and_forth_under_load_and_kills(stack: Stack) -> None:
    """
    All slots with wallets move to the other shard and back, with a shard killed each time.
    """
    even = SlotMap.even(2)
    slots = sorted({slot_of(name) for name in WALLETS})
    async with stack.clients() as gateway:
        await fill_wallets(gateway)
        payers = Payers(gateway)
        payers.start(6)
        for target, victim in ((1, 0), (0, 0), (1, 1)):
            moving = asyncio.create_task(move_all(stack, slots, target))
            await payers.settled(20)
            stack.crash_shard(victim)
            await moving
            await payers.settled(20)
        for shard_id in (0, 1):
            await move_all(stack, [s for s in slots if even.owner(s) == shard_id], shard_id)
        await payers.stop()
        await check_everything(stack, gateway, payers)


async def test_a_slot_is_away_for_a_moment_only(stack: Stack) -> None:
    """
    Whoever pays from a wallet whose slot moves waits for less than 200 ms: the median of twenty
    moves, each with the longest wait around it, while others pay too.
    """
    slot = slot_of(WALLETS[0])
    home = SlotMap.even(2).owner(slot)
    longest_s: list[float] = []
    async with stack.clients() as gateway:
        await fill_wallets(gateway)
        payers = Payers(gateway)
        payers.start(4)
        waits = Waits(gateway)
        asking = asyncio.create_task(waits.ask_for_ever())
        for number in range(MOVES):
            waits.longest_s = 0.0
            await move_all(stack, [slot], (home + 1 + number) % 2)
            await waits.asked(5)
            longest_s.append(waits.longest_s)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await payers.stop()
        await check_everything(stack, gateway, payers)
    assert sorted(longest_s)[MOVES // 2] < PAUSE_S_MAX, longest_s


class Waits:
    """
    One client that pays from the moving wallet without a pause, and remembers its longest wait.
    """

    def __init__(self, gateway: ShardClients) -> None:
        self.longest_s = 0.0
        self.count = 0
        self._gateway = gateway

    async def ask_for_ever(self) -> None:
        while True:
            self.count += 1
            begun = time.monotonic()
            command = transfer(WALLETS[0], WALLETS[1], 1, key=f"wait {self.count}")
            result, _ = await self._gateway.submit(command, timeout_ms=PATIENT_MS)
            assert isinstance(result, Posted | Rejected | Pending), result
            self.longest_s = max(self.longest_s, time.monotonic() - begun)

    async def asked(self, count: int) -> None:
        target = self.count + count
        await until(lambda: self.count >= target, f"{count} more askings")


async def test_a_stopped_split_is_completed_by_doing_it_again(stack: Stack) -> None:
    """
    A mover that is stopped half-way, to a shard that was placed meanwhile, leaves a valid ledger;
    the next one moves the rest.
    """
    slots = list(range(512))
    async with stack.clients() as gateway:
        await fill_wallets(gateway)
        payers = Payers(gateway)
        payers.start(4)
        placement = await place_shard(await open_cluster(stack.dsns))
        assert placement.shard_id == 2
        third = stack.process("shard", 2)
        third.start()
        try:
            await stack.shard_entry(2)
            first = mover(stack, 2)
            moving = asyncio.create_task(first.move(0, slots))
            await until(lambda: len(first.left) > 100, "the move to be under way")
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)
            assert len(first.left) < len(slots)
            await payers.settled(20)
            await move_all(stack, slots, 2)
            await payers.settled(20)
            await payers.stop()
            await check_everything(stack, gateway, payers)
            slot_map = await read_slot_map(stack.dsns[0])
            assert slot_map.slots_of(2) == slots
        finally:
            third.stop()
