"""
The in-memory twin of the shard store, for tests that need no server.

It keeps the same promises as Postgres, and one suite holds both to them. What Postgres would
keep lives in `MemoryDatabase`; a `MemoryShardStore` is one owner's view of it. `MemoryCatalog`
and `MemoryCluster` are the same for what shards know of one another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from msgspec.structs import replace

from processor.core.apply import apply
from processor.core.decisions import (
    Decision,
    HoldChanged,
    HoldPlaced,
    LinkedBegun,
    PrepareSent,
    RefundCounted,
    SlotDelivered,
    SlotGiven,
    SlotsGranted,
    SlotTaken,
    TransferRecalled,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    VerdictDelivered,
    VerdictSent,
    VoteTaken,
    decode_decisions,
)
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.record import GENESIS_CHAIN, Record
from processor.core.slots import NOWHERE, SLOT_COUNT, SlotMap, slot_of
from processor.core.state import Remembered, ShardState
from processor.core.wallet import Wallet, is_system_wallet
from processor.flow.known_past import ChannelEnds, Seen, check_past
from processor.flow.ports import (
    AppendInDoubt,
    ChainAt,
    Fenced,
    InEnd,
    LinkedRow,
    OutEnd,
    PendingRow,
    PreparedRow,
    SetBack,
    ShardHalted,
    ShardSnapshot,
    SlotRow,
    StoreUnavailable,
)
from processor.flow.recovery import refunds_relied_on, wallets_relied_on
from processor.storage.count_rows import each_hold_once, each_total_once


class MemoryDatabase:
    """
    One shard's rows: ownership, journal, and the tables as of the watermark.

    `fail_next_append` is None, "lost" (not written), "hidden" (written, answer lost) or "crash"
    (not written, and the tables fall back to the last flush).
    """

    def __init__(self, shard_id: int = 0) -> None:
        self.shard_id = shard_id
        self.epoch = 0
        self.halted_for: str | None = None
        self.endpoint: tuple[str, int] | None = None
        self.journal: list[Record] = []
        self.witness: dict[int, tuple[int, bytes]] = {}  # Of others: sequence, chain.
        self.available = True
        self.fail_next_append: str | None = None
        self._flushed_watermark = 0
        self._empty_tables()

    def _empty_tables(self) -> None:
        self.watermark = 0
        self.tables = ShardState(self.shard_id, SlotMap.undivided(NOWHERE))
        self.slots: dict[int, SlotRow] = {}
        self.pending: dict[tuple[int, int], PendingRow] = {}  # By peer and number.
        self.holds: dict[bytes, Hold] = {}
        self.refunds: dict[bytes, RefundTotal] = {}

    def project(self, records_max: int | None = None) -> int:
        """
        Move the tables behind the journal by up to *records_max* records.
        """
        behind = self.journal[self.watermark :][:records_max]
        for record in behind:
            for decision in decode_decisions(record.payload, record.format):
                apply(self.tables, decision, record.sequence, record.at_us)
                self._note(decision, record)
            self.watermark = record.sequence
        return len(behind)

    def _note(self, decision: Decision, record: Record) -> None:
        """
        Keep what a state of the core does not say in this way: rows of slots, of what is on its
        way, and of holds and refunds, which outlast their slot.
        """
        match decision:
            case SlotsGranted(first, last):
                for slot in range(first, last + 1):
                    self.slots[slot] = SlotRow(slot, 1, None, None)
            case SlotTaken():
                self.slots[decision.slot] = SlotRow(
                    decision.slot, decision.generation, decision.peer, None
                )
            case SlotGiven():
                had = self.slots[decision.slot]
                self.slots[decision.slot] = replace(had, given_to=decision.peer)
        match decision:
            case TransferReserved() | SlotGiven() | PrepareSent() | VerdictSent():
                row = PendingRow(decision, record.sequence, record.at_us)
                self.pending[decision.peer, decision.number] = row
            case (
                TransferSettled()
                | TransferReleased()
                | TransferRecalled()
                | SlotDelivered()
                | VoteTaken()
                | VerdictDelivered()
            ):
                del self.pending[decision.peer, decision.number]
        self._note_counts(decision)

    def _note_counts(self, decision: Decision) -> None:
        tables = self.tables
        match decision:
            case HoldPlaced(transfer_id=hold_id) | HoldChanged(hold_id=hold_id):
                self.holds[hold_id] = replace(tables.holds[hold_id], sequence=0)
            case RefundCounted(transfer_id):
                self.refunds[transfer_id] = replace(tables.refunds[transfer_id], sequence=0)
            case SlotGiven(holds=holds):
                for hold in holds:
                    del self.holds[hold.hold_id]
            case SlotTaken(holds=holds, refunds=refunds):
                self.holds |= {hold.hold_id: hold for hold in holds}
                self.refunds |= {total.transfer_id: total for total in refunds}

    def add(self, record: Record) -> None:
        """
        Write a record; its flush covers everything before it.
        """
        assert record.sequence == len(self.journal) + 1, "the journal has a gap"
        self.journal.append(record)
        self._flushed_watermark = self.watermark

    def crash(self) -> None:
        """
        Lose what was committed without waiting for the disk: the tables fall back.
        """
        flushed = self._flushed_watermark
        self._empty_tables()
        self.project(flushed)


class MemoryShardStore:
    """
    Keeps the promises of `ShardStore` in memory; *others* are the other shards' rows.
    """

    def __init__(self, database: MemoryDatabase, others: Sequence[MemoryDatabase] = ()) -> None:
        self.epoch = 0
        self._durable: Record | None = None  # The last own record.
        self._database = database
        self._others = others
        self._connected = False

    async def take_over(self, *, build: str) -> int:  # noqa: ARG002
        self._reach()
        if self._database.halted_for is not None:
            raise ShardHalted(self._database.halted_for)
        self._database.epoch += 1
        self._database.endpoint = None
        self.epoch = self._database.epoch
        self._connected = True
        return self.epoch

    @asynccontextmanager
    async def recovery_view(self) -> AsyncIterator[MemoryRecoveryView]:
        self._reach()
        yield MemoryRecoveryView(self._database)

    async def append(self, record: Record) -> None:
        database = self._database
        if not self._connected or not database.available:
            self._connected = False
            raise AppendInDoubt("no connection")
        assert record.epoch == self.epoch, "a record of another epoch"
        self._check_owner()
        failure, database.fail_next_append = database.fail_next_append, None
        if failure == "crash":
            database.crash()
        elif failure != "lost":
            database.add(record)
        if failure is not None:
            self._connected = False
            raise AppendInDoubt(failure)
        self._durable = record

    async def settle(self, record: Record) -> bool:
        await self.restore_connection()
        if len(self._database.journal) < record.sequence:
            return False
        if self._database.journal[record.sequence - 1].chain != record.chain:
            raise Fenced("written by somebody else")
        self._durable = record
        return True

    async def restore_connection(self) -> None:
        self._reach()
        self._check_owner()
        last = self._durable
        if last is not None and self._database.journal[last.sequence - 1 :][:1] != [last]:
            raise Fenced(f"the journal was set back: it lacks sequence {last.sequence} as it was")
        self._database.epoch += 1
        self._database.endpoint = None
        self.epoch = self._database.epoch
        self._connected = True

    async def check_fence(self) -> None:
        if not self._connected or not self._database.available:
            self._connected = False
            raise AppendInDoubt("no connection")
        self._check_owner()

    def abandon(self) -> None:
        self._connected = False

    async def load_wallets(self, wallet_ids: Iterable[str]) -> list[Wallet]:
        self._reach()
        return _copies(self._database.tables, wallet_ids)

    async def load_holds(
        self, hold_ids: Iterable[bytes], *, everywhere: bool = False
    ) -> list[Hold]:
        asked = set(hold_ids)
        return each_hold_once(
            hold
            for database in await self._databases_asked(everywhere=everywhere)
            for hold in database.holds.values()
            if hold.hold_id in asked
        )

    async def load_refunds(
        self, transfer_ids: Iterable[bytes], *, everywhere: bool = False
    ) -> list[RefundTotal]:
        asked = list(transfer_ids)
        databases = await self._databases_asked(everywhere=everywhere)
        rows = (database.refunds.get(one) for database in databases for one in asked)
        return each_total_once(asked, filter(None, rows))

    async def load_slot(self, slot: int) -> list[Wallet]:
        self._reach()
        names = [
            name
            for name in self._database.tables.wallets
            if slot_of(name) == slot and not is_system_wallet(name)
        ]
        return _copies(self._database.tables, names)

    async def load_keys(
        self, keys: Iterable[bytes], *, everywhere: bool = False
    ) -> list[Remembered]:
        found = {}
        asked = list(keys)
        for known in await self._known_keys(everywhere=everywhere):
            found.update({key: known[key] for key in asked if key in known})
        return list(found.values())

    async def key_pages(self, *, everywhere: bool = False) -> AsyncIterator[list[bytes]]:
        for known in await self._known_keys(everywhere=everywhere):
            yield list(known)

    async def _known_keys(self, *, everywhere: bool) -> list[dict[bytes, Remembered]]:
        """
        List the outcomes in the tables; what is still on its way has none.
        """
        return [
            {
                key: remembered
                for key, remembered in database.tables.keys.young.items()
                if not isinstance(remembered[0], TransferReserved | LinkedBegun)
            }
            for database in await self._databases_asked(everywhere=everywhere)
        ]

    async def _databases_asked(self, *, everywhere: bool) -> list[MemoryDatabase]:
        databases = [self._database, *self._others] if everywhere else [self._database]
        if not all(database.available for database in databases):
            raise StoreUnavailable("a database is down")
        if everywhere:
            await check_past(self._database.shard_id, MemoryPast(self._database, self._others))
        return databases

    async def chain_at(self, sequence: int) -> bytes | None:
        self._reach()
        found = self._database.journal[sequence - 1 : sequence] if sequence else []
        return found[0].chain if found else None

    async def read_watermark(self) -> int:
        self._reach()
        return self._database.watermark

    async def publish(self, *, endpoint: str, pid: int) -> None:
        self._reach()
        self._check_owner()
        self._database.endpoint = (endpoint, pid)

    async def halt(self, reason: str) -> None:
        self._reach()
        if self.epoch and self._database.epoch != self.epoch:
            raise Fenced(f"epoch {self.epoch} is over")
        self._database.halted_for = reason
        self._database.endpoint = None

    async def prepare_journal(self, sequence: int) -> None:
        """
        A list has room.
        """

    async def close(self) -> None:
        self._connected = False

    def _reach(self) -> None:
        if not self._database.available:
            raise StoreUnavailable("the database is down")

    def _check_owner(self) -> None:
        if self._database.epoch != self.epoch or self._database.halted_for is not None:
            raise Fenced(f"epoch {self.epoch} is over")


class MemoryPast:
    """
    Keeps the promises of `Past` in memory.
    """

    def __init__(self, own: MemoryDatabase, others: Sequence[MemoryDatabase]) -> None:
        self._own = own
        self._databases = {database.shard_id: database for database in (own, *others)}

    async def channel_ends(self) -> ChannelEnds:
        ends = ChannelEnds()
        for shard_id, database in self._databases.items():
            ends.watermarks[shard_id] = database.watermark
            channels = database.tables.channels
            for peer, outgoing in channels.outgoing.items():
                ends.sent(shard_id, peer, outgoing.head)
            for peer, incoming in channels.incoming.items():
                ends.taken(shard_id, peer, incoming.cursor)
        return ends

    async def records_above(self, shard_id: int, sequence: int) -> AsyncIterator[Record]:
        for record in self._databases[shard_id].journal[sequence:]:
            yield record

    async def seen(self) -> list[Seen]:
        return [Seen(shard_id, *witness) for shard_id, witness in self._own.witness.items()]

    async def chains_at(self, seen: list[Seen]) -> dict[int, bytes]:
        return {
            one.shard_id: record.chain
            for one in seen
            for record in self._databases[one.shard_id].journal[one.sequence - 1 : one.sequence]
        }


class MemoryRecoveryView:
    """
    The tables and the journal behind them, as they were when the view was opened.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        self._tail = database.journal[database.watermark :]
        self._wallets = {
            wallet.wallet_id: wallet for wallet in _copies(database.tables, database.tables.wallets)
        }
        self._snapshot = self._snapshot_of(database)
        self.watermark = database.watermark
        self.watermark_chain = GENESIS_CHAIN
        self.watermark_at_us = 0
        self.watermark_epoch = 0
        if self.watermark:
            last = database.journal[self.watermark - 1]
            self.watermark_chain = last.chain
            self.watermark_at_us = last.at_us
            self.watermark_epoch = last.epoch

    async def records(self) -> AsyncIterator[Record]:
        for record in self._tail:
            yield record

    async def load_wallets(self, wallet_ids: Iterable[str]) -> list[Wallet]:
        return [self._wallets[name] for name in wallet_ids if name in self._wallets]

    async def load_snapshot(self) -> ShardSnapshot:
        return self._snapshot

    def _snapshot_of(self, database: MemoryDatabase) -> ShardSnapshot:
        tables, channels = database.tables, database.tables.channels
        pending = [database.pending[place] for place in sorted(database.pending)]
        holds = [
            hold
            for _, hold in sorted(database.holds.items())
            if hold.status == HoldStatus.OPEN or hold.pending
        ]
        linked = [
            LinkedRow(one.begun, one.posted, one.sequence, one.at_us)
            for _, one in sorted(tables.linked.items())
        ]
        prepared = [
            PreparedRow(*tables.prepared[linked_id]) for linked_id in sorted(tables.prepared)
        ]
        relied_on = wallets_relied_on(database.shard_id, pending, holds, linked, prepared)
        totals = refunds_relied_on(pending, linked, prepared)
        return ShardSnapshot(
            slots=[database.slots[slot] for slot in sorted(database.slots)],
            outgoing=[
                OutEnd(peer, end.head, end.chain, end.settled, end.settled_chain)
                for peer, end in sorted(channels.outgoing.items())
                if end.head
            ],
            incoming=[
                InEnd(peer, end.cursor, end.chain, dict(end.refused))
                for peer, end in sorted(channels.incoming.items())
                if end.cursor
            ],
            pending=pending,
            wallets=[
                wallet
                for name, wallet in self._wallets.items()
                if is_system_wallet(name) or name in relied_on
            ],
            holds=holds,
            linked=linked,
            prepared=prepared,
            refunds=[database.refunds[one] for one in sorted(totals) if one in database.refunds],
        )


class MemoryCatalog:
    """
    What shards know of one another: the first slots of each, and where each slot was last seen.
    """

    def __init__(self, databases: Sequence[MemoryDatabase]) -> None:
        self.databases = {database.shard_id: database for database in databases}
        self.available = True
        self.slots = SlotMap.undivided(NOWHERE)
        self.first_slots: dict[int, tuple[int, int]] = {}
        even = SlotMap.even(len(databases))
        for number, database in enumerate(databases):
            slots = even.slots_of(number)
            self.first_slots[database.shard_id] = (slots[0], slots[-1])
            for slot in slots:
                self.slots.assign(slot, database.shard_id, 1)

    def place(self, database: MemoryDatabase) -> None:
        """
        Add a shard that begins without slots.
        """
        self.databases[database.shard_id] = database


class MemoryCluster:
    """
    Keeps the promises of `ShardCluster` in memory; each shard has a database of its own.
    """

    def __init__(self, catalog: MemoryCatalog, shard_id: int) -> None:
        self._catalog = catalog
        self._shard_id = shard_id
        self._database = catalog.databases[shard_id]

    async def first_slots(self) -> tuple[int, int] | None:
        self._reach()
        return self._catalog.first_slots.get(self._shard_id)

    async def slot_map(self) -> SlotMap:
        self._reach()
        slots = self._catalog.slots
        return SlotMap(
            [slots.owner(slot) for slot in range(SLOT_COUNT)],
            [slots.generation(slot) for slot in range(SLOT_COUNT)],
        )

    async def note_slots(self, taken: Iterable[tuple[int, int]]) -> None:
        self._reach()
        for slot, generation in taken:
            if self._catalog.slots.generation(slot) < generation:
                self._catalog.slots.assign(slot, self._shard_id, generation)

    async def check_witness(self, sequence: int, chain_at: ChainAt) -> None:
        for database in self._others():
            seen, chain = database.witness.get(self._shard_id, (0, b""))
            if seen > sequence:
                raise SetBack(f"shard {self._shard_id}: seen at {seen}, it ends at {sequence}")
            if seen and await chain_at(seen) != chain:
                raise SetBack(f"shard {self._shard_id}: another record at {seen}")

    async def bear_witness(self, *, epoch: int, sequence: int, chain: bytes) -> bool:  # noqa: ARG002
        for database in self._others():
            if database.witness.get(self._shard_id, (0, b""))[0] < sequence:
                database.witness[self._shard_id] = (sequence, chain)
        return all(database.available for database in self._catalog.databases.values())

    async def halt_peers(self, reason: str) -> None:
        own = self._database.tables.channels
        peers = own.outgoing.keys() | own.incoming.keys()
        for database in self._others():
            channels = database.tables.channels
            has_channel = self._shard_id in channels.outgoing.keys() | channels.incoming.keys()
            if (database.shard_id in peers or has_channel) and database.halted_for is None:
                database.halted_for = reason
                database.endpoint = None

    async def close(self) -> None:
        """
        Nothing is held.
        """

    def _others(self) -> list[MemoryDatabase]:
        databases = self._catalog.databases.values()
        return [one for one in databases if one is not self._database and one.available]

    def _reach(self) -> None:
        if not self._catalog.available:
            raise StoreUnavailable("the catalog is down")


def _copies(tables: ShardState, wallet_ids: Iterable[str]) -> list[Wallet]:
    found = (tables.wallets.get(wallet_id) for wallet_id in wallet_ids)
    return [
        Wallet(
            wallet.wallet_id,
            wallet.merchant_id,
            wallet.currency,
            status=wallet.status,
            minimum=wallet.minimum,
            posted=wallet.posted,
            version=wallet.version,
            limits=wallet.limits,
            usage=wallet.usage,
        )
        for wallet in found
        if wallet is not None
    ]
