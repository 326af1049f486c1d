"""
Answers that are pending, held back for a moment: mostly the settlement is right behind them.

Rule 1: what was pending and is settled while it waits is told as settled; what is not, as it was
        answered. Waiting changes no outcome, so giving up is always right.
Rule 2: settlements come on the connection that the answer came on; when that is lost, nothing
        more comes, and nobody waits on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from processor.flow.frames import Outcome, Pending, Result

Answer = asyncio.Future[list[Result]]


class Held:
    """
    The results of one group, and the places in it that are still pending, by transfer.
    """

    __slots__ = ("answer", "places", "results", "timer")

    def __init__(self, answer: Answer, results: list[Result]) -> None:
        self.answer = answer
        self.results = results
        self.places: dict[bytes, list[int]] = {}
        self.timer: asyncio.TimerHandle | None = None
        for place, result in enumerate(results):
            if type(result) is Pending:
                self.places.setdefault(result.transfer_id, []).append(place)


class SettlementWait:
    """
    What waits for settlements on one shard's connection. `told_pending_count` is since the start.
    """

    def __init__(self) -> None:
        self._held: dict[bytes, list[Held]] = {}
        self._loop = asyncio.get_running_loop()
        self.told_pending_count = 0

    def hold(self, answer: Answer, results: list[Result], wait_s: float) -> None:
        """
        Answer with *results* when all are settled, or after *wait_s*.
        """
        held = Held(answer, results)
        for transfer_id in held.places:
            self._held.setdefault(transfer_id, []).append(held)
        held.timer = self._loop.call_later(wait_s, self._give_up_on, held)

    def settle(self, settled: Iterable[Outcome]) -> None:
        """
        Take in what became of transfers, whether somebody waits for them or not.
        """
        for result in settled:
            for held in self._held.pop(result.transfer_id, ()):
                for place in held.places.pop(result.transfer_id):
                    held.results[place] = result
                if not held.places:
                    _tell(held)

    def give_up(self) -> None:
        """
        Tell everything as it is: no settlement can come any more.
        """
        # A group waits for many transfers; it is told once.
        waiting = {id(held): held for several in self._held.values() for held in several}
        for held in waiting.values():
            self._give_up_on(held)

    def _give_up_on(self, held: Held) -> None:
        for transfer_id, places in held.places.items():
            self.told_pending_count += len(places)
            others = self._held[transfer_id]
            others.remove(held)
            if not others:
                del self._held[transfer_id]
        _tell(held)


def _tell(held: Held) -> None:
    if held.timer is not None:
        held.timer.cancel()
    if not held.answer.done():
        held.answer.set_result(held.results)
