"""
What a shard needs of its store, and what an exception from it means.

Two stores keep these promises, Postgres and an in-memory twin, and one suite holds both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from processor.core.record import Record
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

    async def load_keys(self, keys: Iterable[bytes]) -> list[Remembered]:
        """
        Read the outcomes under *keys* that are in the tables; raises StoreUnavailable.
        """
        ...

    def key_pages(self) -> AsyncIterator[list[bytes]]:
        """
        Yield every key in the tables, page by page; raises StoreUnavailable.
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
        Mark the shard as halted for *reason*; nobody serves it until a person has looked.
        """
        ...

    async def prepare_journal(self, sequence: int) -> None:
        """
        Make room in the journal for the million sequences after *sequence*.
        """
        ...

    async def close(self) -> None: ...
