"""
What a shard needs of its store, and what an exception from it means.

Two stores keep these promises, Postgres and an in-memory twin, and one suite holds both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from processor.core.decisions import LinkedBegun, LinkedPosted, LinkedPrepared, PendingEntry
from processor.core.hold import Hold, RefundTotal
from processor.core.record import Record
from processor.core.slots import SlotMap
from processor.core.state import Remembered
from processor.core.wallet import Wallet


class Fenced(Exception):
    """
    Another owner has the shard. Stop the process, answer nobody, never take it back.
    """


class AppendInDoubt(Exception):
    """
    The append may be durable or not. Call `settle` before anything else.
    """


class StoreUnavailable(Exception):
    """
    The store cannot be reached or must not be used; nothing was written. `str` says why.
    """


class ShardHalted(Exception):
    """
    The shard was halted; nobody may own it until a person has looked. `str` says why.
    """


class SetBack(Exception):
    """
    The journal is an older one than others have seen; the shard and its peers must halt.
    """


# Returns the chain at a sequence of the own journal; None where there is no such record.
ChainAt = Callable[[int], Awaitable[bytes | None]]


class SlotRow(msgspec.Struct, frozen=True):
    """
    A slot that a shard has (`given_to` is None) or had, in the generation it then had.
    """

    slot: int
    generation: int
    taken_from: int | None
    given_to: int | None


class OutEnd(msgspec.Struct, frozen=True):
    """
    The source's end of a channel; what is between `settled` and `head` is pending.
    """

    peer: int
    head: int
    chain: bytes
    settled: int
    settled_chain: bytes


class InEnd(msgspec.Struct, frozen=True):
    """
    The destination's end of a channel; `refused` has the answers other than 0 by number.
    """

    peer: int
    cursor: int
    chain: bytes
    refused: dict[int, int]


class PendingRow(msgspec.Struct, frozen=True):
    """
    Something on its way, with the sequence and time of the record that sent it.
    """

    decision: PendingEntry
    sequence: int
    at_us: int


class LinkedRow(msgspec.Struct, frozen=True):
    """
    A linked transfer that this shard decides and that is not done everywhere, with the sequence
    and time of the record that began it, or posted it.
    """

    begun: LinkedBegun
    posted: LinkedPosted | None
    sequence: int
    at_us: int


class PreparedRow(msgspec.Struct, frozen=True):
    """
    Parts of a linked transfer that a peer decides, with the sequence and time of their record.
    """

    prepared: LinkedPrepared
    sequence: int
    at_us: int


class ShardSnapshot(msgspec.Struct, frozen=True):
    """
    What a shard knows at the watermark besides wallets and outcomes. `pending` is in the order of
    peers and numbers; `holds` are those that are open or have captures on their way; `refunds` are
    the totals that go down again if what is on its way comes to nothing; `wallets` are those of the
    ledger itself and all of which something is set aside or may come.
    """

    slots: list[SlotRow]
    outgoing: list[OutEnd]
    incoming: list[InEnd]
    pending: list[PendingRow]
    wallets: list[Wallet]
    holds: list[Hold] = []
    linked: list[LinkedRow] = []
    prepared: list[PreparedRow] = []
    refunds: list[RefundTotal] = []


class RecoveryView(Protocol):
    """
    One consistent view of the tables and of the journal behind them.

    The chain, the time and the epoch are those of the record at the watermark.
    """

    watermark: int
    watermark_chain: bytes
    watermark_at_us: int
    watermark_epoch: int

    def records(self) -> AsyncIterator[Record]:
        """
        Yield the records above the watermark, in order, unchecked.
        """
        ...

    async def load_wallets(self, wallet_ids: Iterable[str]) -> list[Wallet]: ...

    async def load_snapshot(self) -> ShardSnapshot: ...


class ShardStore(Protocol):
    """
    The durable side of one shard, seen by its owner.
    """

    epoch: int

    async def take_over(self, *, build: str) -> int:
        """
        Become the owner and return the new epoch; every older epoch can write no more.

        Raises StoreUnavailable (ownership may then have changed; take over again) or
        ShardHalted.
        """
        ...

    def recovery_view(self) -> AbstractAsyncContextManager[RecoveryView]:
        """
        Open the view that recovery reads; only after `take_over`.
        """
        ...

    async def append(self, record: Record) -> None:
        """
        Make *record* durable.

        Raises Fenced (nothing written, stop) or AppendInDoubt (settle). Never cancelled and
        never timed out by the caller; a stuck one ends by `abandon`.
        """
        ...

    async def settle(self, record: Record) -> bool:
        """
        Find out what became of a doubtful append: True durable, False never to be.

        Moves to a new epoch of its own (`epoch` changes), so a False is final and the batch
        may be sealed and appended again. Raises Fenced when another owner came between, or
        StoreUnavailable when nothing was found out: settle again.
        """
        ...

    async def check_fence(self) -> None:
        """
        Return when a look at the store that began after the call found the shard still ours.

        Raises Fenced, or AppendInDoubt when the store did not answer: `restore_connection`.
        """
        ...

    async def restore_connection(self) -> None:
        """
        Reach the store again when no append is in doubt; moves to a new epoch of its own.

        Raises Fenced or StoreUnavailable.
        """
        ...

    def abandon(self) -> None:
        """
        Drop the connection of a stuck append without asking the server to cancel it.
        """
        ...

    async def load_wallets(self, wallet_ids: Iterable[str]) -> list[Wallet]:
        """
        Read wallets as of the watermark or later; raises StoreUnavailable.
        """
        ...

    async def load_holds(
        self, hold_ids: Iterable[bytes], *, everywhere: bool = False
    ) -> list[Hold]:
        """
        Read holds that are in the tables, each once; of several rows of one the one that has
        ended. Raises StoreUnavailable. *everywhere* is as for keys.
        """
        ...

    async def load_refunds(
        self, transfer_ids: Iterable[bytes], *, everywhere: bool = False
    ) -> list[RefundTotal]:
        """
        Read how much has gone back of transfers, one total for each: that with the highest version,
        and nothing refunded (version 0) where there is none. Raises StoreUnavailable. *everywhere*
        is as for keys.
        """
        ...

    async def load_slot(self, slot: int) -> list[Wallet]:
        """
        Read the wallets of one slot as of the watermark or later, but for the ledger's own, which
        never leave; raises StoreUnavailable.
        """
        ...

    async def load_keys(
        self, keys: Iterable[bytes], *, everywhere: bool = False
    ) -> list[Remembered]:
        """
        Read the outcomes under *keys* that are in the tables; raises StoreUnavailable.

        *everywhere* looks into the tables of every database, carried outcomes included, as a
        shard must that has taken a slot from another; where one of them was set back, as far as
        witnesses and channels tell, that is StoreUnavailable.
        """
        ...

    def key_pages(self, *, everywhere: bool = False) -> AsyncIterator[list[bytes]]:
        """
        Yield every key in the tables, page by page; raises StoreUnavailable, also as `load_keys`
        does. Everywhere, a key may come twice: with its row, and with the slot that moved.
        """
        ...

    async def chain_at(self, sequence: int) -> bytes | None:
        """
        Read the chain at *sequence* of the journal; None where there is no such record. Raises
        StoreUnavailable.
        """
        ...

    async def read_watermark(self) -> int:
        """
        Read how far the tables have come; raises StoreUnavailable.
        """
        ...

    async def publish(self, *, endpoint: str, pid: int) -> None:
        """
        Tell the gateways where this epoch is served; raises Fenced or StoreUnavailable.
        """
        ...

    async def halt(self, reason: str) -> None:
        """
        Mark the shard as halted for *reason*; nobody serves it until a person has looked. An owner
        halts itself only, and raises Fenced when another one came; who took nothing over halts
        whoever has the shard. Raises StoreUnavailable.
        """
        ...

    async def prepare_journal(self, sequence: int) -> None:
        """
        Make room in the journal for the million sequences after *sequence*.
        """
        ...

    async def close(self) -> None: ...


class ShardCluster(Protocol):
    """
    What a shard knows of, and tells to, the rest of the cluster. Every method raises
    StoreUnavailable.
    """

    async def first_slots(self) -> tuple[int, int] | None:
        """
        Return the first and the last slot that this shard begins with, if any.
        """
        ...

    async def slot_map(self) -> SlotMap:
        """
        Read where each slot was last seen.
        """
        ...

    async def note_slots(self, taken: Iterable[tuple[int, int]]) -> None:
        """
        Tell the gateways that these slots are here now, each with its generation.
        """
        ...

    async def check_witness(self, sequence: int, chain_at: ChainAt) -> None:
        """
        Compare the journal, whose last record is *sequence*, with what other databases have seen
        of it; raises SetBack when it lacks some of that. A database that is down says nothing.
        """
        ...

    async def bear_witness(self, *, epoch: int, sequence: int, chain: bytes) -> bool:
        """
        Tell the other databases how far the durable journal is; False when one was down, which
        has to be told later.
        """
        ...

    async def halt_peers(self, reason: str) -> None:
        """
        Halt every shard that has a channel with this one: it is owed what was lost here.
        """
        ...

    async def close(self) -> None: ...
