"""
What a shard has in memory of its tables.

Rule 1: what is not in memory is loaded before it is decided on: first wallets and keys, then the
        holds and the totals of refunds that these ask for, then the wallets of the holds.
Rule 2: what is forgotten is in the tables for good: at or below the durable watermark. The
        ledger's own wallets and those with money on its way stay, and so do open holds.
Rule 3: a key that is not in memory is new only if the filter of all other keys says so. A slot
        that comes brings keys of other tables, so the filter is then made anew from everywhere.
Rule 4: whoever looks a total of refunds up has one afterwards, be it of nothing. One that is not
        there could not be looked up, and nothing is paid on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from configs.settings import ShardSettings
from processor.core.commands import (
    Command,
    ExtendHold,
    GiveSlot,
    MoveLinked,
    MoveMoney,
    PlaceHold,
    ReadHold,
    TransferType,
    VoidHold,
    key_of,
    wallets_named,
)
from processor.core.counts_needed import (
    RefundsNeeded,
    holds_of_commands,
    refunds_of_commands,
    wallets_of_holds,
)
from processor.core.state import ShardState
from processor.core.wallets_needed import absent_wallets
from processor.flow.key_filter import KeyFilter
from processor.flow.ports import ShardStore

EVICTED_AT_ONCE_MAX = 10_000
REFILL_S = 0.2  # Slots come one after another: the filter waits for a few of them.

_BOUND = (PlaceHold, VoidHold, ExtendHold, ReadHold, MoveLinked)


class Missing(NamedTuple):
    """
    What is to be looked up before commands are decided: wallets, keys, and slots with all that is
    in them; `bound` are the commands that holds or totals of refunds may be missing for.
    """

    wallets: list[str]
    keys: list[bytes]
    slots: list[int]
    bound: list[Command]


class ShardMemory:
    """
    The state of a shard, and the tables behind it.
    """

    def __init__(self, state: ShardState, store: ShardStore, settings: ShardSettings) -> None:
        self.state = state
        self.filter = KeyFilter()
        self._store = store
        self._settings = settings
        self._is_stale = asyncio.Event()

    # --- Load -----------------------------------------------------------------------------

    def missing(self, commands: list[Command]) -> Missing:
        """
        List what to look up before *commands* are decided; a plain transfer costs the least.
        """
        state = self.state
        wallets, young, old = state.wallets, state.keys.young, state.keys.old
        may_contain = self.filter.may_contain
        missing: set[str] = set()
        unsure: list[bytes] = []
        leaving: list[int] = []
        bound: list[Command] = []
        for command in commands:
            key: bytes | None
            if type(command) is MoveMoney:
                key = command.key
                if command.terms is not None:
                    bound.append(command)
                elif command.transfer_type == TransferType.TRANSFER:
                    if key not in young and key not in old and may_contain(key):
                        unsure.append(key)
                    if command.source not in wallets:
                        missing.add(command.source)
                    if command.destination not in wallets:
                        missing.add(command.destination)
                    continue
            else:
                key = key_of(command)
                if isinstance(command, _BOUND):
                    bound.append(command)
            if key is not None and key not in young and key not in old and may_contain(key):
                unsure.append(key)
            if type(command) is GiveSlot and state.slots.owner(command.slot) == state.shard_id:
                leaving.append(command.slot)
            missing.update(wallets_named(command, state.shard_id))
        return Missing(absent_wallets(state, missing) if missing else [], unsure, leaving, bound)

    async def load_wallets(self, names: Iterable[str]) -> None:
        """
        Load wallets that are not in memory; raises StoreUnavailable.
        """
        for wallet in await self._store.load_wallets(names):
            self.state.load(wallet)

    async def load_keys(self, unsure: list[bytes]) -> None:
        """
        Remember what the tables know under these keys; raises StoreUnavailable.
        """
        everywhere = self.state.has_taken
        for remembered in await self._store.load_keys(unsure, everywhere=everywhere):
            self.state.keys.load(remembered)

    async def load_bound(self, commands: list[Command]) -> None:
        """
        Load the holds that *commands* name or are told again, with their wallets, and the totals of
        what they take back; raises StoreUnavailable. Needs their keys.
        """
        state, everywhere = self.state, self.state.has_taken
        if holds := holds_of_commands(state, commands):
            for hold in await self._store.load_holds(holds, everywhere=everywhere):
                state.load_hold(hold)
        await self.load_refunds(refunds_of_commands(state, commands))
        if wallets := wallets_of_holds(state, commands):
            await self.load_wallets(wallets)

    async def load_refunds(self, needed: RefundsNeeded) -> None:
        """
        Load how much has gone back of transfers: from the own tables, then from everybody's. Raises
        StoreUnavailable; what was there by then is loaded.
        """
        for transfer_ids, everywhere in ((needed.own, False), (needed.everywhere, True)):
            if not transfer_ids:
                continue
            for total in await self._store.load_refunds(transfer_ids, everywhere=everywhere):
                self.state.load_refund(total)

    async def load_slot(self, slot: int) -> None:
        """
        Load all wallets of a slot that is to be given, and note them as leaving.

        Those that are newer than the tables are in memory. Raises StoreUnavailable.
        """
        newest = self.state.newest_in(slot)  # Before: while this reads, the tables come nearer.
        loaded = await self._store.load_slot(slot)
        for wallet in loaded:
            self.state.load(wallet)
        self.state.leaving[slot] = [*newest, *[wallet.wallet_id for wallet in loaded]]

    # --- Forget ---------------------------------------------------------------------------

    def forget(self) -> None:
        """
        Keep memory bounded: drop only what the tables have for good.
        """
        state = self.state
        young = len(state.keys.young) + state.keys.young_legs
        if young * 2 > self._settings.keys_recent_max:
            forgotten = state.forget_keys(state.tables_at)
            if forgotten:
                self.filter.add(forgotten)
        excess = len(state.wallets) - self._settings.wallets_max
        if excess > 0:
            self._evict(min(excess, EVICTED_AT_ONCE_MAX))
        state.forget_counts(self._settings.counts_max)

    def _evict(self, count: int) -> None:
        wallets = self.state.wallets
        oldest = [wallet_id for wallet_id, _ in zip(wallets, range(count), strict=False)]
        for wallet_id in oldest:
            wallet = wallets.pop(wallet_id)
            if not self.state.may_evict(wallet):
                wallets[wallet_id] = wallet  # Stays, at the far end.

    # --- Keys of the tables -----------------------------------------------------------------

    def slot_came(self) -> None:
        """
        Take every key for a possible repeat until the filter has those of the slot, too.
        """
        self.filter = KeyFilter()
        self._is_stale.set()

    async def keep_filled(self) -> None:
        """
        Read every key of the tables into the filter, and again whenever a slot has come.

        Raises StoreUnavailable; call it again then.
        """
        while True:
            # Anew: one that is half full would grow with each attempt. What was forgotten
            # meanwhile is in the tables for good, and read again.
            self.filter = KeyFilter()
            await self._read_keys(self.filter)
            while self.filter.complete:
                self._is_stale.clear()
                await self._is_stale.wait()
            await asyncio.sleep(REFILL_S)

    async def _read_keys(self, filling: KeyFilter) -> None:
        async for keys in self._store.key_pages(everywhere=self.state.has_taken):
            filling.add(keys)
            await asyncio.sleep(0)
        filling.complete = True  # If a slot came meanwhile, another one has taken its place.
