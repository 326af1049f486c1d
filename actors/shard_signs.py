"""
Signs that something at a shard stands still, for its statistics and its log.

Rule 1: nothing is counted for them with a transfer. They are looked up when somebody asks.
Rule 2: another thread may ask. What is looked through is copied before, in one step.
Rule 3: the log is told of each at most once in `AGAIN_S`.
"""

from __future__ import annotations

import time
from operator import itemgetter

import structlog

from processor.core.hold import HoldStatus
from processor.core.state import ShardState

CLOCK_AHEAD_MS_MAX = 5_000
OPEN_S_MAX = 30  # Three times as long as the votes on a linked transfer are waited for.
AGAIN_S = 60.0

log = structlog.get_logger("shard")


def count_open_holds(state: ShardState) -> int:
    return sum(hold.status == HoldStatus.OPEN for hold in list(state.holds.values()))


def oldest_open(state: ShardState, at_us: int) -> tuple[int, list[int]]:
    """
    Return for how many seconds the oldest linked transfer is open here, and the shards it waits
    for; 0 and nobody when there is none.

    One that is decided here counts from its last attempt on, once it is posted from then on.
    """
    found = [(linked.at_us, linked.waiting) for linked in list(state.linked.values())]
    found += [(since, {prepared.peer}) for prepared, _, since in list(state.prepared.values())]
    if not found:
        return 0, []
    since_us, waits_for = min(found, key=itemgetter(0))
    return max(0, at_us - since_us) // 1_000_000, sorted(waits_for)


def clock_ahead_ms(at_us: int, now_us: int) -> int:
    """
    Return how far *at_us*, the time of the newest record, is ahead of the wall clock.
    """
    return max(0, at_us - now_us) // 1000


class ShardSigns:
    """
    Warns in the log of what an operator should see to.
    """

    def __init__(self, shard_id: int) -> None:
        self._shard_id = shard_id
        self._clock_told_s = self._open_looked_s = float("-inf")

    def look(self, state: ShardState, at_us: int, now_us: int) -> None:
        """
        Warn of a clock that is behind *at_us*, and of a linked transfer that does not end.
        """
        monotonic_s = time.monotonic()
        ahead_ms = clock_ahead_ms(at_us, now_us)
        if ahead_ms > CLOCK_AHEAD_MS_MAX and monotonic_s - self._clock_told_s >= AGAIN_S:
            self._clock_told_s = monotonic_s
            log.warning(
                "record time is ahead of the clock",
                shard_id=self._shard_id,
                clock_ahead_ms=ahead_ms,
            )
        # Of these there may be many: they are not even looked through more often.
        if monotonic_s - self._open_looked_s >= AGAIN_S:
            self._open_looked_s = monotonic_s
            self._look_at_open(state, max(at_us, now_us))

    def _look_at_open(self, state: ShardState, at_us: int) -> None:
        open_s, waits_for = oldest_open(state, at_us)
        if open_s > OPEN_S_MAX:
            log.warning(
                "linked transfer does not end",
                shard_id=self._shard_id,
                oldest_open_s=open_s,
                oldest_waits_for=waits_for,
            )
