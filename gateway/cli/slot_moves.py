"""
Moving slots from shard to shard, as an operator asks for it.

Rule: it may be stopped at any moment and done again. A slot that has left its shard arrives by
itself; asking once more for one that has arrived changes nothing.
A slot whose wallets have money on its way to other shards stays for a moment. It is asked for
again while the shard holds new transfers of it back, then left alone, and at last given up on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from gateway.cli.shard_socket import SOCKET_ERRORS, ShardSocket, connect_shard
from processor.core.commands import GiveSlot
from processor.flow.frames import Answered, Moved, Overloaded, SlotKept, SlotLeft, StaleEpoch
from processor.storage.catalog import read_slot_map
from processor.storage.connection import connect
from processor.storage.directory import ShardEntry, read_directory

SLOTS_A_FRAME = 16
ASK_AGAIN_S = 0.01
CLOSING_S = 0.2  # So long a shard holds back what is new of a slot that was asked for.
PAUSE_S = 0.3
ROUNDS_MAX = 8
SERVED_S_MAX = 60.0
LOOK_S = 0.05
ARRIVAL_S_MAX = 30.0
PENDING = "transfers_pending"


class Kept(msgspec.Struct, frozen=True):
    """
    A slot that did not move, and why.
    """

    slot: int
    why: str


class NotServed(Exception):
    """
    A shard cannot be reached; `str` says which.
    """


class SlotMover:
    """
    Asks shards for slots on behalf of shard *target*; *advance* is told how many were moved.
    """

    def __init__(
        self, dsns: Sequence[str], secret: bytes, target: int, advance: Callable[[int], None]
    ) -> None:
        self.kept: list[Kept] = []
        self.left: list[int] = []  # Moved by now, or on their way.
        self._dsns = dsns
        self._secret = secret
        self._target = target
        self._advance = advance
        self._socket: ShardSocket | None = None
        self._epoch = 0

    async def move(self, source: int, slots: Sequence[int]) -> None:
        """
        Ask shard *source* for these slots; raises NotServed.
        """
        try:
            for start in range(0, len(slots), SLOTS_A_FRAME):
                await self._move_some(source, list(slots[start : start + SLOTS_A_FRAME]))
        finally:
            self._hang_up()

    async def _move_some(self, source: int, slots: list[int]) -> None:
        for _ in range(ROUNDS_MAX):
            closing_until = time.monotonic() + CLOSING_S
            while slots and time.monotonic() < closing_until:
                slots = await self._ask(source, slots)
                if slots:
                    await asyncio.sleep(ASK_AGAIN_S)
            if not slots:
                return
            await asyncio.sleep(PAUSE_S)
        self.kept += [Kept(slot, PENDING) for slot in slots]

    async def _ask(self, source: int, slots: list[int]) -> list[int]:
        """
        Ask once, and return the slots to ask for again.
        """
        commands = [GiveSlot(slot, self._target) for slot in slots]
        results = (await self._answered(source, commands)).results
        again = []
        for slot, result in zip(slots, results, strict=True):
            match result:
                case SlotLeft() | SlotKept(why="already_here"):
                    self.left.append(slot)
                case Moved(shard_id) if shard_id == self._target:
                    self.left.append(slot)
                case SlotKept(why=why) if why != PENDING:
                    self.kept.append(Kept(slot, why))
                case Moved(shard_id) if shard_id not in (source, -1):
                    self.kept.append(Kept(slot, f"is at shard {shard_id}"))
                case _:
                    again.append(slot)
        self._advance(len(self.left) + len(self.kept))
        return again

    async def _answered(self, source: int, commands: list[GiveSlot]) -> Answered:
        deadline = time.monotonic() + SERVED_S_MAX
        while time.monotonic() < deadline:
            try:
                if self._socket is None:
                    await self._connect(source)
                assert self._socket is not None
                reply = await self._socket.ask(source, self._epoch, commands)
            except SOCKET_ERRORS:
                self._hang_up()
                await asyncio.sleep(LOOK_S)
                continue
            match reply:
                case Answered():
                    return reply
                case StaleEpoch():
                    self._epoch = reply.epoch
                case Overloaded():
                    await asyncio.sleep(reply.retry_after_ms / 1000)
                case _:
                    self._hang_up()
                    await asyncio.sleep(LOOK_S)
        raise NotServed(f"shard {source} does not answer")

    async def _connect(self, source: int) -> None:
        entry = await served(self._dsns, source)
        assert entry.endpoint is not None
        self._socket = await connect_shard(entry.endpoint, self._secret)
        self._epoch = entry.epoch

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def arrived(self) -> bool:
        """
        Wait until the catalog shows all that left at the target; False when it takes too long.
        """
        deadline = time.monotonic() + ARRIVAL_S_MAX
        while time.monotonic() < deadline:
            slot_map = await read_slot_map(self._dsns[0])
            if all(slot_map.owner(slot) == self._target for slot in self.left):
                return True
            await asyncio.sleep(LOOK_S)
        return False


async def served(dsns: Sequence[str], shard_id: int) -> ShardEntry:
    """
    Wait until a shard is served; raises NotServed.
    """
    deadline = time.monotonic() + SERVED_S_MAX
    while time.monotonic() < deadline:
        for entry in await read_entries(dsns):
            if entry.shard_id == shard_id and entry.state == "halted":
                raise NotServed(f"shard {shard_id} is halted: {entry.halted_for}")
            if entry.shard_id == shard_id and entry.endpoint is not None:
                return entry
        await asyncio.sleep(LOOK_S)
    raise NotServed(f"shard {shard_id} is not served: does `miliano up` run?")


async def read_entries(dsns: Sequence[str]) -> list[ShardEntry]:
    """
    Read the directory of every database.
    """
    entries = []
    for dsn in dsns:
        connection = await connect(dsn, application_name="miliano/shards")
        try:
            entries += await read_directory(connection)
        finally:
            await connection.close()
    return entries
