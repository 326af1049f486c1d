"""
How far the tables have come, and waiting for it, so that a client reads its own writes.
"""

from __future__ import annotations

import asyncio
import contextlib

from gateway.problems import Refusal
from processor.storage.history import History

LOOK_S = 0.02


class Watermarks:
    """
    One look at a time serves everybody who waits.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._known: dict[int, int] = {}
        self._look: asyncio.Task[None] | None = None

    async def reach(self, shard_id: int, sequence: int, *, timeout_ms: int) -> None:
        """
        Return when the tables have *sequence*; raises Refusal when time is up, and
        StoreUnavailable.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                while self._known.get(shard_id, 0) < sequence:
                    await self._next_look()
                return
        known = self._known.get(shard_id, 0)
        detail = f"The history is at sequence {known}. Ask again after the time in Retry-After."
        raise Refusal("not_projected_yet", detail, headers=((b"retry-after", b"1"),))

    async def _next_look(self) -> None:
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._read())
        # Whoever gives up leaves the look to the others.
        await asyncio.shield(self._look)

    async def _read(self) -> None:
        self._known = await self._history.watermarks()
        await asyncio.sleep(LOOK_S)
