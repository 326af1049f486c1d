"""
The gateway's side of all shards: each command goes to the shard that has its wallet, or its hold.

Rule 1: the slot map says where a slot was last seen, and a shard that does not have it says where
        it went. What a shard answered so was not applied there, and is asked again.
Rule 2: a map only replaces what is older: by its generations, and a shard's hint counts until the
        map tells of a newer owner.
Rule 3: each shard stands for itself: one that is down fails its own commands and no other.
Rule 4: a command that was in doubt stays in doubt wherever it is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from configs.settings import GatewaySettings
from gateway.shard_client import (
    OutcomeUnknown,
    ShardClient,
    ShardClientStatistics,
    ShardOverloaded,
    ShardUnavailable,
    deadline_error,
)
from processor.core.commands import (
    Command,
    GiveSlot,
    MoveMoney,
    shard_asked,
    slot_asked,
    wallet_asked,
)
from processor.core.slots import NOWHERE, SLOT_COUNT, SlotMap
from processor.flow.frames import FRAME_COMMANDS_MAX, ChannelFull, Moved, Result
from processor.storage.directory import Directory, ShardEntry

DEADLINE_LOOK_S = 0.05
ASK_AGAIN_S = 0.005  # A slot that moves is at its new shard after a few of these.
CHANNEL_FULL_RETRY_MS = 1_000

Failed = OutcomeUnknown | ShardUnavailable | ShardOverloaded
Told = tuple[Result | Failed, int]  # What came of a command, and which shard said so.


class ShardClients:
    """
    All shards, seen from one gateway process; the first of *dsns* has the slot map.
    """

    def __init__(self, dsns: Sequence[str], *, secret: bytes, settings: GatewaySettings) -> None:
        self._secret = secret
        self._settings = settings
        self._directory = Directory(dsns, self.entries_changed, self.slots_changed)
        self._slots = SlotMap([NOWHERE] * SLOT_COUNT, [0] * SLOT_COUNT)
        self.knows_slots = False
        self._clients: dict[int, ShardClient] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        self._tasks.add(asyncio.create_task(self._directory.run()))
        self._tasks.add(asyncio.create_task(self._watch_deadlines()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients.values():
            client.close()

    async def submit(self, command: Command, *, timeout_ms: int) -> tuple[Result, int]:
        """
        Send one command; return its result and the shard that gave it.

        Raises OutcomeUnknown, ShardUnavailable or ShardOverloaded.
        """
        deadline = self._loop.time() + timeout_ms / 1000
        shard_id = self._shard_of(command)
        ((result, shard_id),) = await self._ask_shard(shard_id, (command,), deadline)
        if isinstance(result, Failed):
            raise result
        return result, shard_id

    async def submit_many(self, commands: Sequence[Command], *, timeout_ms: int) -> list[Told]:
        """
        Send many commands; a result or an exception for each, in order, each with its shard.
        """
        return await self._ask(commands, self._loop.time() + timeout_ms / 1000)

    def shard_of(self, wallet_id: str) -> int:
        """
        Say at which shard a wallet was last seen; NOWHERE while nothing is known.
        """
        return self._slots.shard_of(wallet_id)

    def has_shard(self, shard_id: int) -> bool:
        """
        Say whether there is such a shard, as far as this gateway has heard.
        """
        return shard_id in self._clients

    def statistics(self) -> list[ShardClientStatistics]:
        return [client.statistics() for _, client in sorted(self._clients.items())]

    # --- Asking ---------------------------------------------------------------------------

    async def _ask(
        self, commands: Sequence[Command], deadline: float, *, in_doubt: bool = False
    ) -> list[Told]:
        """
        Ask each command's shard, all at once.
        """
        by_shard = self._by_shard(commands)
        if len(by_shard) == 1:
            (shard_id,) = by_shard
            return await self._ask_in_frames(shard_id, commands, deadline, in_doubt=in_doubt)
        parts = await asyncio.gather(
            *(
                self._ask_in_frames(
                    shard_id, [commands[place] for place in places], deadline, in_doubt=in_doubt
                )
                for shard_id, places in by_shard.items()
            )
        )
        told: dict[int, Told] = {}
        for places, part in zip(by_shard.values(), parts, strict=True):
            told.update(zip(places, part, strict=True))
        return [told[place] for place in range(len(commands))]

    def _by_shard(self, commands: Sequence[Command]) -> dict[int, list[int]]:
        """
        Group the places of *commands* by the shards that decide them.
        """
        by_shard: dict[int, list[int]] = {}
        for place, command in enumerate(commands):
            by_shard.setdefault(self._shard_of(command), []).append(place)
        return by_shard

    def _shard_of(self, command: Command) -> int:
        """
        Say which shard decides *command*, as far as is known; a plain transfer costs the least.
        """
        if type(command) is MoveMoney and command.terms is None:
            wallet_id = command.source or command.destination
            if not wallet_id.startswith("$"):
                return self._slots.shard_of(wallet_id)
        assert not isinstance(command, GiveSlot), "an operator's command goes to a shard by itself"
        slot, home = slot_asked(command), shard_asked(command)
        if slot is not None:
            return self._slots.owner(slot)
        return home if home is not None else self._slots.shard_of(wallet_asked(command))

    async def _ask_in_frames(
        self, shard_id: int, commands: Sequence[Command], deadline: float, *, in_doubt: bool
    ) -> list[Told]:
        if len(commands) <= FRAME_COMMANDS_MAX:
            return await self._ask_shard(shard_id, commands, deadline, in_doubt=in_doubt)
        parts = await asyncio.gather(
            *(
                self._ask_shard(
                    shard_id,
                    commands[start : start + FRAME_COMMANDS_MAX],
                    deadline,
                    in_doubt=in_doubt,
                )
                for start in range(0, len(commands), FRAME_COMMANDS_MAX)
            )
        )
        return [told for part in parts for told in part]

    async def _ask_shard(
        self,
        shard_id: int,
        commands: Sequence[Command],
        deadline: float,
        *,
        in_doubt: bool = False,
    ) -> list[Told]:
        """
        Ask one shard, and the others that it names, until all is answered or time is up.
        """
        if shard_id == NOWHERE:
            return await self._ask_again(commands, deadline, in_doubt=in_doubt)
        group = self._client(shard_id).submit(commands, deadline, in_doubt=in_doubt)
        try:
            results = await group.answer
        except (OutcomeUnknown, ShardUnavailable, ShardOverloaded) as error:
            return [(error, shard_id)] * len(commands)
        told: list[Told] = [(result, shard_id) for result in results]
        again = self._unanswered(commands, told, was_in_doubt=group.was_in_doubt)
        if again:
            later = await self._ask_again(
                [commands[place] for place in again], deadline, in_doubt=group.was_in_doubt
            )
            for place, answer in zip(again, later, strict=True):
                told[place] = answer
        return told

    def _unanswered(
        self, commands: Sequence[Command], told: list[Told], *, was_in_doubt: bool
    ) -> list[int]:
        """
        List the places that are to be asked again, and note where their slots are said to be.
        """
        again = []
        for place, (result, shard_id) in enumerate(told):
            if type(result) is Moved:
                self._note_hint(slot_asked(commands[place]), result.shard_id, told_by=shard_id)
                again.append(place)
            elif type(result) is ChannelFull:
                if was_in_doubt:
                    again.append(place)  # This sending was not applied; an earlier one may be.
                else:
                    told[place] = (ShardOverloaded(CHANNEL_FULL_RETRY_MS), shard_id)
        return again

    async def _ask_again(
        self, commands: Sequence[Command], deadline: float, *, in_doubt: bool
    ) -> list[Told]:
        """
        Ask in a moment, wherever the wallets are by then.
        """
        await asyncio.sleep(ASK_AGAIN_S)
        if self._loop.time() >= deadline:
            return [(deadline_error(in_doubt=in_doubt), NOWHERE)] * len(commands)
        return await self._ask(commands, deadline, in_doubt=in_doubt)

    # --- Where everything is --------------------------------------------------------------

    def _note_hint(self, slot: int | None, shard_id: int, *, told_by: int) -> None:
        """
        Take in where *told_by*, which does not have it, has last seen *slot*.
        """
        if slot is None or shard_id in (NOWHERE, told_by):
            return
        if self._slots.owner(slot) == told_by:
            # The generation stays: what the map tells later of a newer owner counts for more.
            self._slots.assign(slot, shard_id, self._slots.generation(slot))

    def slots_changed(self, slots: SlotMap) -> None:
        """
        Take in the map of the catalog, where it is newer than what is known.
        """
        for slot in range(SLOT_COUNT):
            generation = slots.generation(slot)
            if generation > self._slots.generation(slot):
                self._slots.assign(slot, slots.owner(slot), generation)
        self.knows_slots = True
        for shard_id in sorted({slots.owner(slot) for slot in range(SLOT_COUNT)} - {NOWHERE}):
            self._client(shard_id)

    def entries_changed(self, entries: list[ShardEntry]) -> None:
        """
        Take in where the shards are served.
        """
        for entry in entries:
            self._client(entry.shard_id).entry_changed(entry)

    def _client(self, shard_id: int) -> ShardClient:
        client = self._clients.get(shard_id)
        if client is None:
            client = ShardClient(shard_id, self._secret, self._settings)
            self._clients[shard_id] = client
            self._tasks.add(asyncio.create_task(client.stay_connected()))
        return client

    async def _watch_deadlines(self) -> None:
        while True:
            await asyncio.sleep(DEADLINE_LOOK_S)
            now = self._loop.time()
            for client in list(self._clients.values()):
                client.expire(now)
