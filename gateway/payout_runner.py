"""
Pays the batches: reads what is pending, sends it to the ledger, records what came of it.

Rule 1: the key of an item is made from the batch and the item alone. After a crash at any point
        the item is sent again and the ledger answers with the one outcome there is.
Rule 2: only an answer of the ledger moves an item on. Whatever is unknown, refused for load or
        not reached stays pending and is tried again, for ever, with growing pauses.
Rule 3: an item that is on its way to another shard stays pending; its key is asked again soon.
Rule 4: batches take turns, chunk by chunk, so a million rows do not stop ten.

One runner lives in each gateway process; locks spare them each other's work, and two at once
would do no harm either.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from uuid import UUID

import msgspec
import structlog
import uuid_utils

from configs.settings import PayoutSettings
from gateway.shard_client import OutcomeUnknown, ShardOverloaded, ShardUnavailable
from gateway.shard_clients import ShardClients
from processor.core.commands import MoveMoney, TransferType
from processor.core.reject_reason import RejectReason
from processor.flow.frames import Pending, Posted, Rejected, Result
from processor.storage.payouts import (
    BatchLocks,
    ItemOutcome,
    PayoutBatch,
    PayoutStore,
    PendingItem,
)

CHUNKS_PER_SECOND = 10  # Of a batch with a pace.

log = structlog.get_logger("payout_runner")


class PayoutRunnerStatistics(msgspec.Struct, frozen=True):
    """
    A moment of the runner. Counts are since the start.
    """

    batches_running: int
    paid_count: int
    failed_count: int
    undecided_count: int
    under_way_count: int
    error_count: int


class ChunkResult(msgspec.Struct, frozen=True):
    """
    What came of one chunk. `undecided` rows have no answer, `under_way` ones are certain to be
    paid or refused by another shard. `retry_after_ms` is what an overloaded shard asked for.
    """

    rows: int
    undecided: int
    under_way: int
    last_row: int
    finished: bool
    retry_after_ms: int = 0


class PayoutRunner:
    """
    Pays every batch that is being processed; stopping it or killing it loses nothing.
    """

    def __init__(
        self,
        *,
        store: PayoutStore,
        locks: BatchLocks,
        clients: ShardClients,
        settings: PayoutSettings,
        timeout_ms: int,
        random: Random,
    ) -> None:
        self._store = store
        self._locks = locks
        self._clients = clients
        self._settings = settings
        self._timeout_ms = timeout_ms
        self._random = random
        self._running: dict[bytes, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(settings.chunks_in_flight_max)
        self._wake = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._paid_count = 0
        self._failed_count = 0
        self._undecided_count = 0
        self._under_way_count = 0
        self._error_count = 0

    def start(self) -> None:
        assert self._watcher is None, "a runner is started once"
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """
        Stop between any two steps; what was sent and not recorded is asked again later.
        """
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._drop_all()
        self._locks.close()

    def look(self) -> None:
        """
        Look for batches now: one was submitted.
        """
        self._wake.set()

    def statistics(self) -> PayoutRunnerStatistics:
        return PayoutRunnerStatistics(
            batches_running=sum(not task.done() for task in self._running.values()),
            paid_count=self._paid_count,
            failed_count=self._failed_count,
            undecided_count=self._undecided_count,
            under_way_count=self._under_way_count,
            error_count=self._error_count,
        )

    async def _watch(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._take_up()
            except Exception as error:
                self._error_count += 1
                log.warning("batches unavailable", error=f"{type(error).__name__}: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_ms / 1000):
                    await self._wake.wait()

    async def _take_up(self) -> None:
        if self._locks.lost:
            await self._drop_all()  # Another process may have them by now.
        for batch_id in [key for key, task in self._running.items() if task.done()]:
            del self._running[batch_id]
            await self._locks.release(batch_id)
        for batch in await self._store.unfinished():
            if batch.batch_id not in self._running and await self._locks.try_take(batch.batch_id):
                task = asyncio.create_task(self._run(batch))
                task.add_done_callback(lambda _: self._wake.set())
                self._running[batch.batch_id] = task

    async def _drop_all(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._running.clear()

    async def _run(self, batch: PayoutBatch) -> None:
        """
        Pay *batch* to its end.
        """
        clock = asyncio.get_running_loop().time
        pace = Pace(batch.rows_per_second_max, self._settings.chunk_rows)
        after_row = 0
        fruitless_count = 0
        while True:
            retry_after_ms = 0
            begun = clock()
            rows = 0
            waits_for_others = False
            try:
                async with self._turns:
                    begun = clock()
                    chunk = await self._pay_chunk(batch, after_row, pace.chunk_rows)
            except Exception as error:
                self._error_count += 1
                fruitless_count += 1
                log.warning(
                    "payout chunk failed",
                    batch_id=str(UUID(bytes=batch.batch_id)),
                    error=f"{type(error).__name__}: {error}",
                )
            else:
                if chunk.finished:
                    return
                after_row = chunk.last_row
                if chunk.rows == 0:
                    continue  # Past the last row: once more over what is still pending.
                rows = chunk.rows
                retry_after_ms = chunk.retry_after_ms
                fruitless_count = fruitless_count + 1 if chunk.undecided else 0
                waits_for_others = chunk.under_way == rows
            pause_s = pace.pause_s(rows, begun=begun, now=clock())
            if fruitless_count:
                pause_s = max(pause_s, self._backoff_s(fruitless_count, retry_after_ms))
            elif waits_for_others:
                pause_s = max(pause_s, self._settings.retry_ms / 1000)
            await asyncio.sleep(pause_s)

    def _backoff_s(self, fruitless_count: int, retry_after_ms: int) -> float:
        doubled = self._settings.retry_ms << min(fruitless_count - 1, 20)
        delay_ms = min(doubled, self._settings.retry_ms_max) * self._random.uniform(0.5, 1.0)
        return max(delay_ms, min(retry_after_ms, self._settings.retry_ms_max)) / 1000

    async def _pay_chunk(self, batch: PayoutBatch, after_row: int, rows_max: int) -> ChunkResult:
        items = await self._store.pending_items(batch.batch_id, after_row=after_row, limit=rows_max)
        if not items:
            return ChunkResult(
                rows=0, undecided=0, under_way=0, last_row=0, finished=after_row == 0
            )
        commands = [command_of(batch, item) for item in items]
        told = await self._clients.submit_many(commands, timeout_ms=self._timeout_ms)
        results = [result for result, _ in told]
        outcomes = [outcome_of(item, result) for item, result in zip(items, results, strict=True)]
        after = await self._store.record_results(batch.batch_id, outcomes)
        under_way = sum(isinstance(result, Pending) for result in results)
        undecided = self._count(outcomes, under_way)
        return ChunkResult(
            rows=len(items),
            undecided=undecided,
            under_way=under_way,
            last_row=items[-1].row_number,
            finished=after.state != "processing",
            retry_after_ms=max(
                (r.retry_after_ms for r in results if isinstance(r, ShardOverloaded)), default=0
            ),
        )

    def _count(self, outcomes: Sequence[ItemOutcome], under_way: int) -> int:
        states = [outcome.state for outcome in outcomes]
        self._paid_count += states.count("paid")
        self._failed_count += states.count("failed")
        undecided = states.count("pending") - under_way
        self._undecided_count += undecided
        self._under_way_count += under_way
        return undecided


class Pace:
    """
    How fast a batch may be sent; None is as fast as it goes. Times are in seconds.
    """

    def __init__(self, rows_per_second_max: int | None, chunk_rows_max: int) -> None:
        self._rate = rows_per_second_max
        self._due = 0.0
        self.chunk_rows = chunk_rows_max
        if rows_per_second_max is not None:
            smooth = max(1, rows_per_second_max // CHUNKS_PER_SECOND)
            self.chunk_rows = min(chunk_rows_max, smooth)

    def pause_s(self, rows: int, *, begun: float, now: float) -> float:
        """
        Say how long to wait after *rows* that were sent from *begun* on; nothing is caught up.
        """
        if self._rate is None:
            return 0.0
        self._due = max(begun, self._due) + rows / self._rate
        return max(0.0, self._due - now)


def item_key(batch: PayoutBatch, item_reference: str) -> bytes:
    """
    Make the key an item is paid under. It must never change: another key is another payment.
    """
    parts = ["payout", batch.merchant_id, batch.source, batch.batch_id, item_reference]
    return blake2b(msgspec.msgpack.encode(parts), digest_size=16, person=b"payout item").digest()


def command_of(batch: PayoutBatch, item: PendingItem) -> MoveMoney:
    """
    Make the command that pays *item*. All but the transfer's id must never change.
    """
    return MoveMoney(
        transfer_type=TransferType.TRANSFER,
        transfer_id=uuid_utils.uuid7().bytes,
        key=item_key(batch, item.item_reference),
        merchant_id=batch.merchant_id,
        source=batch.source,
        destination=item.destination,
        currency=batch.currency,
        amount=item.amount,
        reference=item.item_reference,
        metadata=f'{{"payout_batch":"{UUID(bytes=batch.batch_id)}"}}',
    )


def outcome_of(item: PendingItem, result: Result | Exception) -> ItemOutcome:
    """
    Say what *result* makes of *item*; whatever is not an answer leaves it pending.
    """
    match result:
        case Posted(transfer_id, sequence):
            return ItemOutcome(item.row_number, "paid", None, transfer_id, sequence)
        case Rejected(transfer_id, sequence, _, reason):
            code = RejectReason(reason).code
            return ItemOutcome(item.row_number, "failed", code, transfer_id, sequence)
        case Pending() | OutcomeUnknown() | ShardUnavailable() | ShardOverloaded():
            pass
        case _:
            # Another command under this item's key, or an answer that fits no payment.
            log.error("payout item cannot be decided", row=item.row_number, result=repr(result))
    return ItemOutcome(item.row_number, "pending")
