"""
One shard, from taking it over to letting it go.

Phases: RECOVERING takes the shard over, replays the journal's tail and writes an EPOCH record;
RUNNING decides and commits; DRAINING takes nothing more and finishes what it has; HALTED waits
for a person. A shard that is fenced, or that cannot explain its state, ends the process.

Rule 1: one task decides (frames in order, to the end), one task commits (one append in flight).
        Batch n+1 is collected and decided while batch n commits; it is closed when n is durable,
        so its size follows the load and needs no timer.
Rule 2: a frame is refused before anything of it is decided, or not at all.
Rule 3: what is not in memory is loaded before `decide` runs; what is evicted is in the tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from enum import Enum
from typing import Any

import msgspec
import structlog

from configs.settings import ShardSettings
from processor.core.apply import apply, wallets_touched
from processor.core.commands import Command, MoveMoney, TransferType, wallets_named
from processor.core.decisions import (
    DECISION_FORMAT,
    EpochStarted,
    decode_decisions,
    encode_decisions,
)
from processor.core.invariants import broken_wallets
from processor.core.record import GENESIS_CHAIN, BrokenChain, Record, check_link, seal
from processor.core.state import ShardState
from processor.flow.batch import Batch, Deliver
from processor.flow.frames import NotServing, Overloaded, RequestFrame, StaleEpoch
from processor.flow.key_filter import KeyFilter
from processor.flow.ports import (
    AppendInDoubt,
    Fenced,
    RecoveryView,
    ShardHalted,
    ShardStore,
    StoreUnavailable,
)

WATERMARK_POLL_S = 0.2
RETRY_S = 0.05
RETRY_S_MAX = 2.0
EVICTED_AT_ONCE_MAX = 10_000
EXIT_CODE = 70  # EX_SOFTWARE: Ray counts it as a crash and starts the actor again.

log = structlog.get_logger("shard")


class Phase(Enum):
    RECOVERING = "recovering"
    RUNNING = "running"
    DRAINING = "draining"
    HALTED = "halted"
    STOPPED = "stopped"


class ShardStatistics(msgspec.Struct, frozen=True):
    """
    A moment of a shard. Counts are since the start of this process.
    """

    shard_id: int
    phase: str
    epoch: int
    sequence: int  # Of the last durable record.
    watermark: int
    lag_records: int
    lag_commands: int
    queued_commands: int
    wallets_in_memory: int
    keys_in_memory: int
    key_filter_complete: bool
    command_count: int
    record_count: int
    recovery_ms: int
    halted_for: str | None
    pid: int


def end_process(reason: str) -> None:
    """
    End this process at once: nothing it still holds may leave it.
    """
    log.critical("shard process ends", reason=reason)
    os._exit(EXIT_CODE)


class WalletShard:
    """
    Owns one shard. `run` lives as long as the shard does; `offer` is its only way in.

    *clock_us* is the wall clock in µs; *fatal* ends the process (a test ends the object).
    """

    def __init__(
        self,
        shard_id: int,
        store: ShardStore,
        settings: ShardSettings,
        *,
        build: str,
        publish_endpoint: Callable[[], str],
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        fatal: Callable[[str], None] = end_process,
    ) -> None:
        self.shard_id = shard_id
        self.phase = Phase.RECOVERING
        self.halted_for: str | None = None
        self.running = asyncio.Event()
        self._store = store
        self._settings = settings
        self._build = build
        self._publish_endpoint = publish_endpoint
        self._clock_us = clock_us
        self._fatal = fatal
        self._state = ShardState(shard_id)
        self._filter = KeyFilter()
        self._sequence = 0  # Of the last durable record.
        self._chain = GENESIS_CHAIN
        self._at_us = 0
        self._watermark = 0  # As last seen.
        self._watermark_seen = (0, 0)  # An earlier one, and how many records were durable then.
        self._durable_watermark = 0  # What may be forgotten: see `_follow_watermark`.
        self._lagging: deque[tuple[int, int]] = deque()  # (sequence, commands) not projected.
        self._lag_commands = 0
        self._intake: deque[tuple[RequestFrame, Deliver]] = deque()
        self._queued_commands = 0
        self._batch = Batch(1)
        self._work = asyncio.Event()  # Something to decide, or room to decide it.
        self._decided = asyncio.Event()  # Something to commit.
        self._idle = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._command_count = 0
        self._record_count = 0
        self._recovery_ms = 0
        self._drain_rate = 10_000.0  # Commands a second, measured.

    # --- Phases ---------------------------------------------------------------------------

    async def run(self) -> None:
        """
        Recover, serve until `stop`, and return; ends the process when fenced or in doubt.
        """
        try:
            await self._recover()
            self._enter_running()
            await asyncio.gather(*self._tasks)
        except ShardHalted as halted:
            await self._enter_halted(str(halted))
        except Exception as error:
            log.exception("shard failed", shard_id=self.shard_id)
            self.phase = Phase.STOPPED
            self._fatal(f"{type(error).__name__}: {error}")
        finally:
            for task in self._tasks:
                task.cancel()

    def _enter_running(self) -> None:
        self.phase = Phase.RUNNING
        self._start(self._decide_frames())
        self._start(self._commit_batches())
        self._start(self._follow_watermark())
        self._start(self._fill_filter())
        self.running.set()
        log.info("shard runs", **msgspec.to_builtins(self.statistics()))

    async def _enter_halted(self, reason: str) -> None:
        self.phase = Phase.HALTED
        self.halted_for = reason
        log.critical("shard is halted", shard_id=self.shard_id, reason=reason)
        await asyncio.Event().wait()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def drain(self) -> None:
        """
        Refuse new frames and return when everything taken in is durable and answered.
        """
        if self.phase is Phase.RUNNING:
            self.phase = Phase.DRAINING
        while self.phase is Phase.DRAINING and (
            self._intake or self._batch or not self._idle.is_set()
        ):
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """
        Let go of everything at once, without draining.
        """
        self.phase = Phase.STOPPED
        for task in self._tasks:
            task.cancel()
        await self._store.close()

    # --- Recovery -------------------------------------------------------------------------

    async def _recover(self) -> None:
        started = time.monotonic()
        await self._until_available(lambda: self._store.take_over(build=self._build))
        await self._until_available(self._replay)
        await self._until_available(lambda: self._store.prepare_journal(self._sequence + 1))
        self._batch = Batch(self._sequence + 1)
        self._batch.at_us = self._next_at_us()
        self._batch.decisions.append(EpochStarted(self._build))
        # This also proves the write path before anybody is told where we are.
        await self._commit(self._batch)
        self._batch = Batch(self._sequence + 1)
        await self._publish()
        # Loaded objects live as long as the process: keep the collector away from them.
        gc.collect()
        gc.freeze()
        self._recovery_ms = int((time.monotonic() - started) * 1000)

    async def _until_available(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        pause = RETRY_S
        while True:
            try:
                await call()
            except StoreUnavailable as error:
                log.warning("store unavailable", shard_id=self.shard_id, error=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_S_MAX)
            else:
                return

    async def _replay(self) -> None:
        self._state = ShardState(self.shard_id)
        self._lagging.clear()
        self._lag_commands = 0
        try:
            async with self._store.recovery_view() as view:
                await self._replay_view(view)
        except (BrokenChain, AssertionError, KeyError, ValueError) as error:
            reason = f"recovery refused: {type(error).__name__}: {error}"
            await self._store.halt(reason)
            raise ShardHalted(reason) from error

    async def _replay_view(self, view: RecoveryView) -> None:
        sequence, chain = view.watermark, view.watermark_chain
        epoch, self._at_us = view.watermark_epoch, view.watermark_at_us
        async for record in view.records():
            check_link(record, after_sequence=sequence, after_chain=chain)
            if record.epoch > self._store.epoch:
                raise Fenced(f"sequence {record.sequence} is of epoch {record.epoch}")
            if record.epoch < epoch or record.epoch == self._store.epoch:
                raise BrokenChain(f"sequence {record.sequence} is of epoch {record.epoch}")
            await self._replay_record(view, record)
            sequence, chain, epoch = record.sequence, record.chain, record.epoch
            self._at_us = record.at_us
            self._lags(record.sequence, record.count)
        broken = broken_wallets(self._state.wallets.values())
        if broken:
            raise BrokenChain(f"the replayed state breaks a rule: {broken[0]}")
        self._watermark = self._durable_watermark = view.watermark
        self._watermark_seen = (view.watermark, 0)
        self._sequence, self._chain = sequence, chain

    async def _replay_record(self, view: RecoveryView, record: Record) -> None:
        state = self._state
        decisions = decode_decisions(record.payload, record.format)
        if len(decisions) != record.count:
            raise BrokenChain(f"sequence {record.sequence} has {len(decisions)} decisions")
        named = {name for decision in decisions for name in wallets_touched(state, decision)}
        missing = named.difference(state.wallets)
        if missing:
            for wallet in await view.load_wallets(missing):
                state.load(wallet)
        for decision in decisions:
            apply(state, decision, record.sequence, record.at_us)

    # --- Intake ---------------------------------------------------------------------------

    def offer(self, frame: RequestFrame, deliver: Deliver) -> None:
        """
        Take a frame in, or refuse it whole at once; the answer comes through *deliver*.
        """
        if self.phase is not Phase.RUNNING or frame.shard_id != self.shard_id:
            deliver(NotServing(frame.frame_id))
        elif frame.epoch != self._store.epoch:
            deliver(StaleEpoch(frame.frame_id, self._store.epoch))
        elif self._overloaded(len(frame.commands)):
            deliver(Overloaded(frame.frame_id, self._retry_after_ms()))
        else:
            self._intake.append((frame, deliver))
            self._queued_commands += len(frame.commands)
            self._idle.clear()
            self._work.set()

    def _overloaded(self, command_count: int) -> bool:
        settings = self._settings
        return (
            self._queued_commands + command_count > settings.intake_commands_max
            or self._sequence - self._watermark > settings.lag_records_max
            or self._lag_commands > settings.lag_commands_max
        )

    def _retry_after_ms(self) -> int:
        waiting = self._queued_commands + self._lag_commands
        return max(10, min(5_000, int(1000 * waiting / self._drain_rate)))

    # --- Decide ---------------------------------------------------------------------------

    async def _decide_frames(self) -> None:
        while True:
            while not self._intake or self._batch_is_full():
                self._work.clear()
                await self._work.wait()
            frame, deliver = self._intake[0]
            wallets, keys = self._missing(frame.commands)
            if wallets or keys:
                await self._until_available(functools.partial(self._load, wallets, keys))
            # No await from here to the end of the frame: the state is the loaded one.
            self._intake.popleft()
            self._queued_commands -= len(frame.commands)
            batch = self._batch
            if not batch.at_us:
                batch.at_us = self._next_at_us()
            batch.add(self._state, frame, deliver)
            self._command_count += len(frame.commands)
            self._decided.set()
            self._forget()
            await asyncio.sleep(0)

    def _batch_is_full(self) -> bool:
        return self._batch.command_count >= self._settings.batch_commands_max

    def _next_at_us(self) -> int:
        self._at_us = max(self._at_us + 1, self._clock_us())
        return self._at_us

    def _missing(self, commands: list[Command]) -> tuple[set[str], list[bytes]]:
        wallets = self._state.wallets
        young, old = self._state.keys.young, self._state.keys.old
        may_contain = self._filter.may_contain
        missing: set[str] = set()
        unsure: list[bytes] = []
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
            missing.update(
                name for name in wallets_named(command, self.shard_id) if name not in wallets
            )
        return missing, unsure

    async def _load(self, missing_wallets: set[str], unsure_keys: list[bytes]) -> None:
        if missing_wallets:
            for wallet in await self._store.load_wallets(missing_wallets):
                self._state.load(wallet)
        if unsure_keys:
            keys = self._state.keys
            for remembered in await self._store.load_keys(unsure_keys):
                decision, sequence, at_us = remembered
                if keys.find(decision.key) is None:
                    keys.remember(decision, sequence, at_us)

    def _forget(self) -> None:
        """
        Keep memory bounded: drop only what the tables have.
        """
        keys = self._state.keys
        if len(keys.young) * 2 > self._settings.keys_recent_max:
            forgotten = self._state.forget_keys(self._durable_watermark)
            if forgotten:
                self._filter.add(forgotten)
        wallets = self._state.wallets
        excess = len(wallets) - self._settings.wallets_max
        if excess > 0:
            self._evict(min(excess, EVICTED_AT_ONCE_MAX))

    def _evict(self, count: int) -> None:
        wallets = self._state.wallets
        oldest = [wallet_id for wallet_id, _ in zip(wallets, range(count), strict=False)]
        for wallet_id in oldest:
            wallet = wallets.pop(wallet_id)
            if wallet.sequence > self._durable_watermark:
                wallets[wallet_id] = wallet  # Newer than its row: stays, at the far end.

    # --- Commit ---------------------------------------------------------------------------

    async def _commit_batches(self) -> None:
        while True:
            while not self._batch:
                self._idle.set()
                self._decided.clear()
                await self._decided.wait()
            self._idle.clear()
            batch = self._batch
            self._batch = Batch(batch.sequence + 1 if batch.decisions else batch.sequence)
            self._work.set()
            if batch.decisions:
                await self._commit(batch)
            else:
                await self._check_fence()
            batch.release()

    async def _commit(self, batch: Batch) -> None:
        """
        Make the batch durable: append, and when in doubt settle, until it is certain.
        """
        started = time.monotonic()
        payload = encode_decisions(batch.decisions)
        pause = 0.0
        while True:
            record = self._seal(batch, payload)
            if await self._append(record):
                break
            # The first time at once; what stays, such as a full disk, is not hammered.
            await asyncio.sleep(pause)
            pause = min(max(pause * 2, RETRY_S), RETRY_S_MAX)
        assert record.sequence == self._sequence + 1, "the journal would have a gap"
        self._sequence, self._chain = record.sequence, record.chain
        self._record_count += 1
        self._lags(record.sequence, record.count)
        rate = record.count / (time.monotonic() - started)
        self._drain_rate += 0.1 * (rate - self._drain_rate)

    def _seal(self, batch: Batch, payload: bytes) -> Record:
        return seal(
            shard_id=self.shard_id,
            sequence=batch.sequence,
            epoch=self._store.epoch,
            at_us=batch.at_us,
            count=len(batch.decisions),
            decision_format=DECISION_FORMAT,
            payload=payload,
            previous_chain=self._chain,
        )

    async def _append(self, record: Record) -> bool:
        try:
            with self._stuck_is_abandoned():
                await self._store.append(record)
            return True
        except AppendInDoubt as doubt:
            log.warning("append in doubt", shard_id=self.shard_id, doubt=str(doubt))
        return await self._settle(record)

    @contextlib.contextmanager
    def _stuck_is_abandoned(self) -> Iterator[None]:
        """
        Drop the writer's socket when it is stuck; the server is never asked to cancel.
        """
        watch = asyncio.get_running_loop().call_later(
            self._settings.append_stuck_ms / 1000, self._store.abandon
        )
        try:
            yield
        finally:
            watch.cancel()

    async def _settle(self, record: Record) -> bool:
        durable = False

        async def settle() -> None:
            nonlocal durable
            durable = await self._store.settle(record)

        await self._until_available(settle)
        log.warning("append settled", shard_id=self.shard_id, durable=durable)
        if self.phase is not Phase.RECOVERING:
            await self._publish()
        return durable

    async def _check_fence(self) -> None:
        try:
            with self._stuck_is_abandoned():
                await self._store.check_fence()
            return
        except AppendInDoubt as doubt:
            log.warning("fence not checked", shard_id=self.shard_id, doubt=str(doubt))
        # The bump that restores the connection is itself a look that began after the reads.
        await self._until_available(self._store.restore_connection)
        await self._publish()

    async def _publish(self) -> None:
        await self._until_available(
            lambda: self._store.publish(endpoint=self._publish_endpoint(), pid=os.getpid())
        )

    # --- Behind the journal ---------------------------------------------------------------

    def _lags(self, sequence: int, command_count: int) -> None:
        self._lagging.append((sequence, command_count))
        self._lag_commands += command_count

    async def _follow_watermark(self) -> None:
        """
        Learn how far the tables are, and how far they are for good.

        The tables are committed without waiting for the disk, so a crash of the database may
        take them back a little. A watermark is durable once an append that began after it was
        seen is durable: its flush covers everything before it.
        """
        while True:
            try:
                self._watermark = await self._store.read_watermark()
                candidate, seen_at_record = self._watermark_seen
                # Two records on: an append in flight when it was seen does not count.
                if self._record_count >= seen_at_record + 2:
                    self._durable_watermark = candidate
                    self._watermark_seen = (self._watermark, self._record_count)
                while self._lagging and self._lagging[0][0] <= self._watermark:
                    self._lag_commands -= self._lagging.popleft()[1]
                await self._store.prepare_journal(self._sequence + 1)
            except StoreUnavailable as error:
                log.warning("watermark not read", shard_id=self.shard_id, error=str(error))
            await asyncio.sleep(WATERMARK_POLL_S)

    async def _fill_filter(self) -> None:
        """
        Read every key of the tables into the filter; until then each miss is looked up.
        """

        async def fill() -> None:
            async for keys in self._store.key_pages():
                self._filter.add(keys)
                await asyncio.sleep(0)

        await self._until_available(fill)
        self._filter.complete = True

    def statistics(self) -> ShardStatistics:
        return ShardStatistics(
            shard_id=self.shard_id,
            phase=self.phase.value,
            epoch=self._store.epoch,
            sequence=self._sequence,
            watermark=self._watermark,
            lag_records=self._sequence - self._watermark,
            lag_commands=self._lag_commands,
            queued_commands=self._queued_commands,
            wallets_in_memory=len(self._state.wallets),
            keys_in_memory=len(self._state.keys),
            key_filter_complete=self._filter.complete,
            command_count=self._command_count,
            record_count=self._record_count,
            recovery_ms=self._recovery_ms,
            halted_for=self.halted_for,
            pid=os.getpid(),
        )
