"""
One shard, from taking it over to letting it go.

Phases: RECOVERING takes the shard over, replays the journal's tail and writes an EPOCH record;
RUNNING decides and commits; DRAINING takes nothing more and finishes what it has; HALTED waits
for a person. A shard that is fenced, or that cannot explain its state, ends the process.

Rule 1: one task decides (frames of clients and words of peers, each to the end), one task commits
        (one append in flight). Batch n+1 is collected and decided while batch n commits; it is
        closed when n is durable, so its size follows the load and needs no timer.
Rule 2: a frame is refused before anything of it is decided, or not at all.
Rule 3: peers come first, for what they wait for is on its way already; but never two of their
        messages in a row while a client waits.
Rule 4: a shard whose channels contradict those of a peer, or whose journal was set back, halts,
        and so does the peer. It tells the peer only after a look at the fence: one that was
        replaced has an old state and proves nothing.
Rule 5: a batch gets its time with the first that is decided in it, and what is over by then ends
        first. When nothing comes, alarms bring a batch about; they never come early.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog

from actors.cluster_notices import ClusterNotices
from actors.peer_intake import PeerIntake, Said, Speaker
from actors.peer_links import PeerLinks
from actors.shard_memory import Missing, ShardMemory
from actors.shard_recovery import UNEXPLAINED, Recovered, recover
from actors.shard_signs import ShardSigns, clock_ahead_ms, count_open_holds, oldest_open
from configs.settings import ShardSettings
from processor.core.apply import apply
from processor.core.channel import ChannelBroken
from processor.core.commands import weight_of
from processor.core.counts_needed import RefundsNeeded, refunds_of_answers, refunds_of_entries
from processor.core.decisions import DECISION_FORMAT, EpochStarted, SlotsGranted, encode_decisions
from processor.core.record import GENESIS_CHAIN, Record, seal
from processor.core.slots import SlotMap
from processor.core.state import ShardState
from processor.core.wallets_needed import wallets_of_answers, wallets_of_entries
from processor.flow.batch import Batch
from processor.flow.channel_link import Answers, Broken, Effect, Entries, OutOfOrder, Welcome
from processor.flow.frames import NotServing, Overloaded, RequestFrame, StaleEpoch
from processor.flow.ports import (
    AppendInDoubt,
    SetBack,
    ShardCluster,
    ShardHalted,
    ShardStore,
    StoreUnavailable,
)
from processor.flow.settlement_watch import Deliver, SettlementWatch

WATERMARK_POLL_S = 0.2
RETRY_S = 0.05
RETRY_S_MAX = 2.0
ELSEWHERE_RETRY_MS = 500
ALARM_LOOK_S_MAX = 1.0  # While something is to end: the wall clock may be set forward.
EXIT_CODE = 70  # EX_SOFTWARE: Ray counts it as a crash and starts the actor again.

T = TypeVar("T")

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
    slots: int
    pending_entries: int  # On their way to other shards.
    holds_open: int
    linked_open: int  # Linked transfers decided here, not done everywhere.
    linked_prepared: int  # Those that a peer decides, for which something is set aside here.
    oldest_open_s: int  # The oldest of these two, by the time of the next batch; 0: none.
    oldest_waits_for: list[int]  # The shards without which that one cannot end.
    clock_ahead_ms: int  # The newest record is so far ahead of the wall clock, which was set back.
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
    Owns one shard. `run` lives as long as the shard does; `offer` is the only way in for clients,
    `offer_said` for peers.

    *secret* is the cluster's, for connections to peers; *clock_us* is the wall clock in µs;
    *fatal* ends the process (a test ends the object).
    """

    def __init__(
        self,
        shard_id: int,
        store: ShardStore,
        cluster: ShardCluster,
        settings: ShardSettings,
        *,
        secret: bytes,
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
        self._cluster = cluster
        self._settings = settings
        self._build = build
        self._publish_endpoint = publish_endpoint
        self._clock_us = clock_us
        self._fatal = fatal
        self._memory = ShardMemory(ShardState(shard_id), store, settings)
        self._sequence = 0  # Of the last durable record.
        self._chain = GENESIS_CHAIN
        self._at_us = 0
        self._watermark = 0  # As last seen.
        self._watermark_seen = (0, 0)  # An earlier one, and how many records were durable then.
        self._lagging: deque[tuple[int, int]] = deque()  # (sequence, commands) not projected.
        self._lag_commands = 0
        self._intake: deque[tuple[RequestFrame, int, Deliver]] = deque()  # Each with its weight.
        self._queued_commands = 0
        self._peer_intake = PeerIntake(self._peers_said)
        self._peers = PeerLinks(secret, self._peer_intake, settings.entries_in_flight_max)
        self._signs = ShardSigns(shard_id)
        self._notices = ClusterNotices(cluster, self._journal_end, settings.witness_ms)
        self._is_peers_turn = True
        self._contradiction: tuple[Speaker, str] | None = None
        self._settlements = SettlementWatch()
        self._batch = Batch(1, self._settlements)
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
        self._start(self._peers.run())
        self._start(self._decide())
        self._start(self._commit_batches())
        self._start(self._follow_watermark())
        self._start(self._until_available(self._memory.keep_filled))
        self._start(self._notices.tell_slots())
        self._start(self._notices.bear_witness())
        self._peers.recovered(self._state)
        self.running.set()
        log.info("shard runs", **msgspec.to_builtins(self.statistics()))

    async def _enter_halted(self, reason: str) -> None:
        self.phase = Phase.HALTED
        self.halted_for = reason
        self._peers.close()
        for task in self._tasks:
            task.cancel()
        for frame, _, deliver in self._intake:
            deliver(NotServing(frame.frame_id))
        self._intake.clear()
        log.critical("shard is halted", shard_id=self.shard_id, reason=reason)
        await asyncio.Event().wait()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    @property
    def is_idle(self) -> bool:
        """
        Say whether everything that was taken in is durable and answered.
        """
        return not (self._intake or self._peer_intake or self._batch) and self._idle.is_set()

    async def drain(self) -> None:
        """
        Refuse new frames and return when everything taken in is durable and answered.
        """
        if self.phase is Phase.RUNNING:
            self.phase = Phase.DRAINING
            # What peers said and is not decided, they say again to the next owner.
            self._peers.close()
            self._peer_intake.clear()
        while self.phase is Phase.DRAINING and not self.is_idle:
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """
        Let go of everything at once, without draining.
        """
        self.phase = Phase.STOPPED
        self._peers.close()
        for task in self._tasks:
            task.cancel()
        await self._store.close()
        await self._cluster.close()

    # --- Recovery -------------------------------------------------------------------------

    @property
    def _state(self) -> ShardState:
        return self._memory.state

    async def _recover(self) -> None:
        started = time.monotonic()
        await self._until_available(lambda: self._store.take_over(build=self._build))
        slot_map = await self._until_available(self._cluster.slot_map)
        await self._until_available(lambda: self._read_state(slot_map))
        await self._until_available(self._check_witness)
        await self._until_available(lambda: self._store.prepare_journal(self._sequence + 1))
        await self._begin_epoch()
        await self._publish()
        self._notices.slots_came(self._unknown_slots(slot_map))
        # Loaded objects live as long as the process: keep the collector away from them.
        gc.collect()
        gc.freeze()
        self._recovery_ms = int((time.monotonic() - started) * 1000)

    async def _until_available(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        pause = RETRY_S
        while True:
            try:
                return await call()
            except StoreUnavailable as error:
                log.warning("store unavailable", shard_id=self.shard_id, error=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_S_MAX)

    async def _read_state(self, slot_map: SlotMap) -> None:
        try:
            recovered = await recover(self._store, self.shard_id, slot_map)
        except UNEXPLAINED as error:
            reason = f"recovery refused: {type(error).__name__}: {error}"
            await self._store.halt(reason)
            raise ShardHalted(reason) from error
        self._take_in(recovered)

    def _take_in(self, recovered: Recovered) -> None:
        self._memory.state = recovered.state
        self._sequence, self._chain = recovered.sequence, recovered.chain
        self._at_us = recovered.at_us
        self._watermark = recovered.watermark
        recovered.state.tables_reach(recovered.watermark)
        self._watermark_seen = (recovered.watermark, 0)
        self._lagging.clear()
        self._lag_commands = 0
        for sequence, command_count in recovered.lagging:
            self._lags(sequence, command_count)

    async def _check_witness(self) -> None:
        """
        Halt, with all peers, when others have seen more of this journal than there is.
        """
        try:
            await self._cluster.check_witness(self._sequence, self._store.chain_at)
        except SetBack as error:
            # A successor may have written more since this one has read; then it proves nothing.
            await self._store.check_fence()
            reason = f"set back: {error}"
            # The peers first: once this shard is halted, nobody comes by here again.
            await self._cluster.halt_peers(reason)
            await self._store.halt(reason)
            raise ShardHalted(reason) from error

    async def _begin_epoch(self) -> None:
        """
        Write the first record; this also proves the write path before anybody is told of us.
        """
        batch = Batch(self._sequence + 1)
        batch.at_us = self._next_at_us()
        batch.decisions.append(EpochStarted(self._build))
        if not self._state.has_granted:
            slots = await self._until_available(self._cluster.first_slots)
            if slots is not None:
                batch.decisions.append(SlotsGranted(*slots))
        for decision in batch.decisions:
            apply(self._state, decision, batch.sequence, batch.at_us)
        await self._commit(batch)
        self._batch = Batch(self._sequence + 1, self._settlements)

    def _unknown_slots(self, slot_map: SlotMap) -> list[tuple[int, int]]:
        """
        List the own slots of which the catalog does not know that they are here.
        """
        own = self._state.slots
        return [
            (slot, own.generation(slot))
            for slot in own.slots_of(self.shard_id)
            if slot_map.owner(slot) != self.shard_id
        ]

    # --- Intake ---------------------------------------------------------------------------

    def offer(self, frame: RequestFrame, deliver: Deliver) -> None:
        """
        Take a frame in, or refuse it whole at once; the answer comes through *deliver*.
        """
        if self.phase is not Phase.RUNNING or frame.shard_id != self.shard_id:
            deliver(NotServing(frame.frame_id))
        elif frame.epoch != self._store.epoch:
            deliver(StaleEpoch(frame.frame_id, self._store.epoch))
        elif self._overloaded(weight := weight_of(frame.commands)):
            deliver(Overloaded(frame.frame_id, self._retry_after_ms()))
        else:
            self._intake.append((frame, weight, deliver))
            self._queued_commands += weight
            self._idle.clear()
            self._work.set()

    def offer_said(self, speaker: Speaker, said: Effect) -> None:
        """
        Take in what a peer said, or hang up on it: it calls again.
        """
        if self.phase is Phase.RUNNING:
            self._peer_intake.put(speaker, said)
        else:
            speaker.drop(f"shard {self.shard_id} is {self.phase.value}")

    def endpoints_changed(self, endpoints: Mapping[int, str]) -> None:
        """
        Take in where other shards are served.
        """
        self._peers.endpoints_changed(endpoints)

    def _peers_said(self) -> None:
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

    async def _decide(self) -> None:
        while self._contradiction is None:
            await self._wait_for_work()
            if self._is_alarm_due():
                self._stamped_batch()
            elif self._next_is_said():
                await self._decide_said()
            else:
                await self._decide_frame()
            self._decided.set()
            self._memory.forget()
            await asyncio.sleep(0)

    async def _wait_for_work(self) -> None:
        """
        Return when there is something to decide, and room for it.
        """
        while not self._has_work():
            self._work.clear()
            watch = self._watch_alarms()
            try:
                await self._work.wait()
            finally:
                if watch is not None:
                    watch.cancel()

    def _has_work(self) -> bool:
        if self._batch_is_full():
            return False
        return bool(self._intake or self._peer_intake) or self._is_alarm_due()

    def _is_alarm_due(self) -> bool:
        """
        Say whether the next batch, if it began now, would end something.
        """
        alarms = self._state.alarms
        if not alarms or self._batch or self.phase is not Phase.RUNNING:
            return False  # Once a batch has begun, the next one is for what is due since.
        return alarms[0][0] <= max(self._at_us + 1, self._clock_us())

    def _watch_alarms(self) -> asyncio.TimerHandle | None:
        """
        Look at the clock again when the next alarm is due, or earlier.
        """
        alarms = self._state.alarms
        if not alarms or self._batch or self.phase is not Phase.RUNNING:
            return None  # What has begun is committed, and then somebody looks here again.
        due_in_s = (alarms[0][0] - self._clock_us()) / 1_000_000
        pause_s = min(max(due_in_s, 0.001), ALARM_LOOK_S_MAX)
        return asyncio.get_running_loop().call_later(pause_s, self._work.set)

    def _next_is_said(self) -> bool:
        self._is_peers_turn = bool(self._peer_intake) and (
            not self._intake or not self._is_peers_turn
        )
        return self._is_peers_turn

    async def _decide_frame(self) -> None:
        frame, weight, deliver = self._intake[0]
        missing = self._memory.missing(frame.commands)
        is_known = True
        if any(missing):
            is_known = await self._load(missing)
        # No await from here to the end of the frame: the state is the loaded one.
        self._intake.popleft()
        self._queued_commands -= weight
        if not is_known:
            deliver(Overloaded(frame.frame_id, ELSEWHERE_RETRY_MS))
            return
        self._stamped_batch().add(self._state, frame, deliver)
        self._command_count += len(frame.commands)

    async def _decide_said(self) -> None:
        speaker, said = self._peer_intake.first()
        await self._load_for(speaker, said)
        if not self._peer_intake:
            return  # Drained meanwhile.
        # No await from here to the end.
        self._peer_intake.pop()
        if not speaker.is_open:
            return  # The answer has nowhere to go, and the next connection starts anew.
        batch = self._stamped_batch()
        taken_count = len(batch.taken)
        try:
            self._peers.decide(self._state, batch, speaker, said)
        except OutOfOrder as error:
            speaker.drop(str(error))
        except ChannelBroken as error:
            self._contradiction = (speaker, str(error))
        if len(batch.taken) > taken_count:
            self._memory.slot_came()

    async def _load_for(self, speaker: Speaker, said: Said) -> None:
        """
        Load what is missing for a peer's words. What others' tables have and cannot be looked up
        now is left out: the core refuses what needs it, and no channel waits for a third database.
        """
        state, memory = self._state, self._memory
        wallets: list[str] = []
        refunded = RefundsNeeded([], [])
        if isinstance(said, Entries):
            wallets = wallets_of_entries(state, said.entries)
            refunded = refunds_of_entries(state, said.entries)
        elif isinstance(said, Answers | Welcome):
            answers = self._peers.unsettled(speaker, said)
            wallets = wallets_of_answers(state, speaker.peer, answers)
            refunded = refunds_of_answers(state, speaker.peer, answers)
        if wallets:
            await self._until_available(partial(memory.load_wallets, wallets))
        own, everywhere = refunded
        if own:
            needed = RefundsNeeded(own, [])
            await self._until_available(partial(memory.load_refunds, needed))
        if everywhere:
            needed = RefundsNeeded([], everywhere)
            await self._is_looked_up(partial(memory.load_refunds, needed))

    async def _load(self, missing: Missing) -> bool:
        """
        Load what is missing; False when some of it could not be looked up in the tables of others.
        """
        memory = self._memory
        if missing.wallets:
            await self._until_available(partial(memory.load_wallets, missing.wallets))
        if missing.keys and not await self._is_looked_up(partial(memory.load_keys, missing.keys)):
            return False
        if missing.bound and not await self._is_looked_up(
            partial(memory.load_bound, missing.bound)
        ):
            return False
        for slot in missing.slots:
            await self._until_available(partial(memory.load_slot, slot))
        return True

    async def _is_looked_up(self, load: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """
        Load, and wait for the own database; but another that is down must not hold up everybody
        here: then False.
        """
        if not self._state.has_taken:
            await self._until_available(load)
            return True
        try:
            await load()
        except StoreUnavailable as error:
            log.warning("not looked up", shard_id=self.shard_id, error=str(error))
            return False
        return True

    def _stamped_batch(self) -> Batch:
        """
        Return the batch that is collected; one that has nothing yet begins now.
        """
        batch = self._batch
        if not batch:
            batch.at_us = self._next_at_us()
            batch.tick(self._state)
        return batch

    def _batch_is_full(self) -> bool:
        return self._batch.command_count >= self._settings.batch_commands_max

    def _next_at_us(self) -> int:
        self._at_us = max(self._at_us + 1, self._clock_us())
        return self._at_us

    # --- Commit ---------------------------------------------------------------------------

    async def _commit_batches(self) -> None:
        while True:
            while not self._batch:
                if self._contradiction is not None:
                    await self._halt_for(*self._contradiction)
                self._idle.set()
                self._decided.clear()
                await self._decided.wait()
            self._idle.clear()
            batch = self._batch
            following = batch.sequence + 1 if batch.decisions else batch.sequence
            self._batch = Batch(following, self._settlements)
            self._work.set()
            if batch.decisions:
                await self._commit(batch)
            else:
                await self._check_fence()
            batch.release()
            self._peers.made_durable(self._state, batch.ends)
            self._notices.slots_came(batch.taken)

    async def _halt_for(self, speaker: Speaker, why: str) -> None:
        """
        Halt, and make the peer halt, because the ends of a channel contradict each other.
        """
        await self._check_fence()
        reason = f"channel broken: {why}"
        await self._until_available(lambda: self._store.halt(reason))
        speaker.say(Broken(reason))
        raise ShardHalted(reason)

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
            self._signs.look(self._state, self._at_us, self._clock_us())
            try:
                self._watermark = await self._store.read_watermark()
                candidate, seen_at_record = self._watermark_seen
                # Two records on: an append in flight when it was seen does not count.
                if self._record_count >= seen_at_record + 2:
                    self._state.tables_reach(candidate)
                    self._watermark_seen = (self._watermark, self._record_count)
                while self._lagging and self._lagging[0][0] <= self._watermark:
                    self._lag_commands -= self._lagging.popleft()[1]
                await self._store.prepare_journal(self._sequence + 1)
            except StoreUnavailable as error:
                log.warning("watermark not read", shard_id=self.shard_id, error=str(error))
            await asyncio.sleep(WATERMARK_POLL_S)

    def _journal_end(self) -> tuple[int, int, bytes]:
        return self._store.epoch, self._sequence, self._chain

    def statistics(self) -> ShardStatistics:
        state, at_us, now_us = self._state, self._at_us, self._clock_us()
        oldest_open_s, oldest_waits_for = oldest_open(state, max(at_us, now_us))
        return ShardStatistics(
            shard_id=self.shard_id,
            phase=self.phase.value,
            epoch=self._store.epoch,
            sequence=self._sequence,
            watermark=self._watermark,
            lag_records=self._sequence - self._watermark,
            lag_commands=self._lag_commands,
            queued_commands=self._queued_commands,
            slots=len(state.slots.slots_of(self.shard_id)),
            pending_entries=sum(len(c.outbox) for c in state.channels.outgoing.values()),
            holds_open=count_open_holds(state),
            linked_open=len(state.linked),
            linked_prepared=len(state.prepared),
            oldest_open_s=oldest_open_s,
            oldest_waits_for=oldest_waits_for,
            clock_ahead_ms=clock_ahead_ms(at_us, now_us),
            wallets_in_memory=len(state.wallets),
            keys_in_memory=len(state.keys),
            key_filter_complete=self._memory.filter.complete,
            command_count=self._command_count,
            record_count=self._record_count,
            recovery_ms=self._recovery_ms,
            halted_for=self.halted_for,
            pid=os.getpid(),
        )
