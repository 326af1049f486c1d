"""
What a shard has in memory of its tables.

Rule 1: what is not in memory is loaded before it is decided on.
Rule 2: what is forgotten is in the tables for good: at or below the durable watermark. The
        ledger's own wallets and those with money on its way stay.
Rule 3: a key that is not in memory is new only if the filter of all other keys says so. A slot
        that comes brings keys of other tables, so the filter is then made anew from everywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from configs.settings import ShardSettings
from processor.core.commands import (
    Command,
    GiveSlot,
    MoveMoney,
    TransferType,
    wallets_named,
)
from processor.core.state import ShardState
from processor.core.wallets_needed import absent_wallets
from processor.flow.key_filter import KeyFilter
from processor.flow.ports import ShardStore

EVICTED_AT_ONCE_MAX = 10_000
REFILL_S = 0.2  # Slots come one after another: the filter waits for a few of them.


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

    def missing(self, commands: list[Command]) -> tuple[list[str], list[bytes], list[int]]:
        """
        List the wallets, the keys and the slots to look up before *commands* are decided.
        """
        state = self.state
        wallets, young, old = state.wallets, state.keys.young, state.keys.old
        may_contain = self.filter.may_contain
        missing: set[str] = set()
        unsure: list[bytes] = []
        leaving: list[int] = []
        for command in commands:
            if type(command) is MoveMoney:
                key = command.key
                if key not in young and key not in old and may_contain(key):
                    unsure.append(key)
                if command.transfer_type == TransferType.TRANSFER:
                    if command.source not in wallets:
                        missing.add(command.source)
                    if command.destination not in wallets:
                        missing.add(command.destination)
                    continue
            elif type(command) is GiveSlot and state.slots.owner(command.slot) == state.shard_id:
                leaving.append(command.slot)
            missing.update(wallets_named(command, state.shard_id))
        return absent_wallets(state, missing) if missing else [], unsure, leaving

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
        if len(state.keys.young) * 2 > self._settings.keys_recent_max:
            forgotten = state.forget_keys(state.tables_at)
            if forgotten:
                self.filter.add(forgotten)
        excess = len(state.wallets) - self._settings.wallets_max
        if excess > 0:
            self._evict(min(excess, EVICTED_AT_ONCE_MAX))

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
