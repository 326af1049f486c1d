"""
What is broken while clients work: processes are killed with -9, and a shard is split.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random

from tests.support.ledger import Ledger

SPLIT_TRIES_MAX = 20


class Faults:
    """
    Breaks one ledger at moments of chance, until cancelled; `counts` says what was done.
    """

    def __init__(self, ledger: Ledger, *, seed: int, tell: Callable[[str], None]) -> None:
        self.counts: Counter[str] = Counter()
        self.new_shard: int | None = None
        self._ledger = ledger
        self._random = Random(seed)
        self._tell = tell

    async def kill_for_ever(self) -> None:
        """
        Kill mostly shards, sometimes another part, two to six seconds apart.
        """
        while True:
            await asyncio.sleep(self._random.uniform(2, 6))
            match self._random.random():
                case chance if chance < 0.1:
                    await self._kill("write-behind", "WriteBehindActor", "actors write-behind")
                case chance if chance < 0.15:
                    await self._kill("gateway", "-m gateway ")
                case _:
                    await self._kill("shard", "ShardActor", "actors shard")

    async def _kill(self, part: str, *marks: str) -> None:
        processes = await asyncio.to_thread(self._ledger.processes)
        pids = [
            pid
            for pid, words in sorted(processes.items())
            if any(mark in words for mark in marks) and "gateway.cli" not in words
        ]
        if not pids:
            return
        pid = self._random.choice(pids)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.counts[f"{part} killed"] += 1
            self._tell(f"kill -9 of a {part} (pid {pid})")

    async def split(self, shard: int) -> None:
        """
        Split *shard* while it is killed: the command is run again until it has come to its end.
        """
        for number in range(SPLIT_TRIES_MAX):
            to = [] if self.new_shard is None else ["--to", str(self.new_shard)]
            self._tell(f"splitting shard {shard}{', again' if number else ''}")
            ran = await asyncio.to_thread(
                self._ledger.run, "shards", "split", str(shard), *to, "--json"
            )
            self.counts["split tried"] += 1
            if self.new_shard is None:
                self.new_shard = await self._find_new_shard()
            if ran.code == 0:
                self.counts["shard split"] += 1
                self._tell(f"shard {shard} is split: {ran.out.strip()[:200]}")
                return
            self._tell(f"the split did not come to its end: {ran.err.strip()[-300:]}")
            await asyncio.sleep(1)
        raise AssertionError(f"shard {shard} was not split in {SPLIT_TRIES_MAX} tries")

    async def _find_new_shard(self) -> int | None:
        ran = await asyncio.to_thread(self._ledger.run, "shards", "list", "--json")
        if ran.code != 0:
            return None
        shards = [shard["shard"] for shard in ran.json["shards"]]
        return max(shards) if len(shards) > self._ledger.shard_count else None


async def during(work: Awaitable[None], *faults: Awaitable[None]) -> None:
    """
    Run *faults* for as long as *work* takes; raises what any of them raises.
    """
    tasks = [asyncio.ensure_future(fault) for fault in faults]
    try:
        await work
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
