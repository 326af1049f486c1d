"""
Goal: a gateway in front of several shards gives each key one outcome, whatever moves or is down
      meanwhile, and says pending only while it is.
Method: the gateway's clients and real shards at real sockets in one event loop; slots move by the
        operator's command, and the gateway is told of it by nobody but the shards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sized
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from configs.settings import GatewaySettings
from gateway.shard_clients import ShardClients
from processor.core.commands import Command, GiveSlot
from processor.core.reject_reason import RejectReason
from processor.core.slots import SlotMap, slot_of
from processor.flow.frames import Pending, Posted, Rejected, Result, SlotKept, SlotLeft, WalletFound
from processor.storage.directory import ShardEntry
from tests.support.commands import deposit, open_wallet, read_wallet, transfer
from tests.support.memory_peers import MemoryPeers, running_peers
from tests.support.memory_shard import SECRET
from tests.support.waiting import until

NO_DATABASE = "postgresql:///none?host=/nonexistent"
PATIENT_MS = 15_000
WORKERS = 8


def names_on(shard_id: int, count: int) -> list[str]:
    halves = SlotMap.even(2)
    names = (f"w{number}" for number in range(1_000))
    return [name for name in names if halves.shard_of(name) == shard_id][:count]


HERE, ALSO_HERE = names_on(0, 2)
(THERE,) = names_on(1, 1)


@pytest.fixture
def folder() -> Iterator[Path]:
    # A Unix socket's path is short.
    with TemporaryDirectory(prefix="mil-") as folder:
        yield Path(folder)


@asynccontextmanager
async def clients_of(peers: MemoryPeers, **settings: Any) -> AsyncIterator[ShardClients]:
    """
    Run a gateway's clients that know the first map and nothing of what moves later.
    """
    clients = ShardClients([NO_DATABASE], secret=SECRET, settings=GatewaySettings(**settings))
    await clients.start()
    clients.slots_changed(SlotMap.even(2))
    tell(clients, peers)
    try:
        yield clients
    finally:
        await clients.stop()


def tell(clients: ShardClients, peers: MemoryPeers) -> None:
    """
    Tell the clients where the shards are served, as the directory does.
    """
    clients.entries_changed(
        [
            ShardEntry(shard_id, shard.store.epoch, "active", shard.endpoint, 1, "test", None)
            for shard_id, shard in sorted(peers.shards.items())
        ]
    )


async def ask(clients: ShardClients, *commands: Command) -> list[Result]:
    results = []
    for command in commands:
        result, _ = await clients.submit(command, timeout_ms=PATIENT_MS)
        results.append(result)
    return results


async def fill(clients: ShardClients, *names: str, amount: int = 1_000) -> None:
    for name in names:
        await ask(clients, open_wallet(name), deposit(name, amount, key=f"fill {name}"))


async def balance(clients: ShardClients, name: str) -> int:
    (found,) = await ask(clients, read_wallet(name))
    assert isinstance(found, WalletFound)
    return found.posted


async def move_slot(peers: MemoryPeers, name: str, *, source: int, target: int) -> None:
    """
    Move the slot of a wallet, as soon as nothing of it is on its way.
    """

    async def given() -> bool:
        (result,) = await peers[source].ask(GiveSlot(slot_of(name), target))
        assert isinstance(result, SlotLeft | SlotKept), result
        return isinstance(result, SlotLeft)

    await until(given, f"the slot of {name} to leave shard {source}")


async def more(told: Sized) -> None:
    """
    Wait until fifty more have been answered.
    """
    count = len(told) + 50
    await until(lambda: len(told) >= count, "payments")


async def test_a_transfer_across_shards_is_posted_or_rejected(folder: Path):
    """
    Mostly its settlement comes while the gateway waits for it, and the answer is final; the same
    key gives the same answer again.
    """
    async with (
        running_peers(folder) as peers,
        clients_of(peers, settlement_wait_ms=PATIENT_MS) as clients,
    ):
        await fill(clients, HERE, THERE)
        paid, refused = transfer(HERE, THERE, 10, key="1"), transfer(THERE, "nobody-0", 10, key="2")
        assert SlotMap.even(2).shard_of(refused.destination) == 0
        posted, rejected = await ask(clients, paid, refused)
        assert isinstance(posted, Posted)
        assert (posted.transfer_id, posted.balance) == (paid.transfer_id, 990)
        assert isinstance(rejected, Rejected)
        assert rejected.reason == RejectReason.DESTINATION_UNKNOWN
        again = await ask(clients, paid, refused)
        assert [type(result) for result in again] == [Posted, Rejected]
        assert [result.repeated for result in again] == [True, True]
        assert [await balance(clients, name) for name in (HERE, THERE)] == [990, 1_010]


async def test_while_the_destination_is_down_it_is_pending(folder: Path):
    """
    It is told as it is, also to who asks again; when the destination is back the key tells.
    """
    async with running_peers(folder) as peers, clients_of(peers, settlement_wait_ms=20) as clients:
        await fill(clients, HERE, ALSO_HERE, THERE)
        await peers.crash(1)
        across = transfer(HERE, THERE, 10, key="1")
        first, second = await ask(clients, across, across)
        assert isinstance(first, Pending)
        assert isinstance(second, Pending)
        assert (first.repeated, second.repeated) == (False, True)
        (local,) = await ask(clients, transfer(HERE, ALSO_HERE, 5, key="2"))
        assert isinstance(local, Posted)

        await peers.start(1)
        tell(clients, peers)

        async def settled() -> Result | None:
            (result,) = await ask(clients, across)
            return None if isinstance(result, Pending) else result

        outcome = await until(settled, "the settlement")
        assert isinstance(outcome, Posted)
        assert (outcome.transfer_id, outcome.balance) == (across.transfer_id, 985)
        assert await balance(clients, THERE) == 1_010


async def test_a_batch_over_two_shards_is_answered_in_order(folder: Path):
    """
    Within and across shards, posted and rejected, each item has its own answer and shard.
    """
    async with (
        running_peers(folder) as peers,
        clients_of(peers, settlement_wait_ms=PATIENT_MS) as clients,
    ):
        await fill(clients, HERE, ALSO_HERE, THERE)
        pairs = [(HERE, THERE), (HERE, ALSO_HERE), (THERE, HERE), (HERE, HERE), (THERE, "nobody-0")]
        commands = [transfer(*pair, 1, key=f"{number}") for number, pair in enumerate(pairs * 20)]
        told = await clients.submit_many(commands, timeout_ms=PATIENT_MS)

        assert [type(result) for result, _ in told] == [
            Posted,
            Posted,
            Posted,
            Rejected,
            Rejected,
        ] * 20
        assert [shard_id for _, shard_id in told] == [0, 0, 1, 0, 1] * 20
        ids = [result.transfer_id for result, _ in told if isinstance(result, Posted | Rejected)]
        assert ids == [command.transfer_id for command in commands]


async def test_payments_follow_a_slot_that_moves(folder: Path):
    """
    A wallet moves to the other shard and back while many pay to it and from it: every key is
    answered once, and its money is what the answers say.
    """
    async with running_peers(folder) as peers, clients_of(peers) as clients:
        names = [HERE, ALSO_HERE, THERE]
        await fill(clients, *names)
        moved = asyncio.Event()
        told: dict[str, Result] = {}

        async def pay(worker: int) -> None:
            number = 0
            while not moved.is_set():
                number += 1
                key = f"{worker}-{number}"
                source, destination = names[number % 3], names[(number + 1 + worker % 2) % 3]
                command = transfer(source, destination, 1, key=key)
                (told[key],) = await ask(clients, command)

        workers = [asyncio.create_task(pay(worker)) for worker in range(WORKERS)]
        for source, target in ((0, 1), (1, 0), (0, 1)):
            await more(told)
            await move_slot(peers, HERE, source=source, target=target)
        await more(told)
        moved.set()
        await asyncio.gather(*workers)
        await until(lambda: peers.pending() == 0, "everything to settle")

        assert all(isinstance(result, Posted | Pending) for result in told.values())
        expected = dict.fromkeys(names, 1_000)
        for key in told:
            worker, number = map(int, key.split("-"))
            expected[names[number % 3]] -= 1
            expected[names[(number + 1 + worker % 2) % 3]] += 1
        assert {name: await balance(clients, name) for name in names} == expected
        (again,) = await ask(clients, transfer(names[1], names[2], 1, key="0-1"))
        assert isinstance(again, Posted)
        assert again.repeated
