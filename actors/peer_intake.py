"""
What peers said that is not decided yet, in the order it came.

Rule: it is bounded by those who fill it. A connection with `HELD_MAX` messages here is not read
until they are decided, and what a source has on its way at all is bounded by its window. So peers
are never refused for the load of clients.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Protocol

from processor.flow.channel_link import Effect

HELD_MAX = 8

connection_numbers = itertools.count(1)  # One series for the process, in the order of arrival.


class Speaker(Protocol):
    """
    One connection with a peer, from either side.
    """

    number: int  # Later connections have larger ones.

    @property
    def peer(self) -> int: ...

    @property
    def is_open(self) -> bool: ...

    def say(self, said: Effect) -> None:
        """
        Send it; on a connection that is gone it is lost, and the next greeting makes up for it.
        """
        ...

    def drop(self, why: str) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


# None stands for what the source has to do first on a new connection: to greet.
Said = Effect | None


class PeerIntake:
    """
    One queue for the messages of all peers; `arrived` is called for each.
    """

    def __init__(self, arrived: Callable[[], None]) -> None:
        self._arrived = arrived
        self._waiting: deque[tuple[Speaker, Said]] = deque()
        self._held: dict[Speaker, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, speaker: Speaker, said: Said) -> None:
        self._waiting.append((speaker, said))
        held = self._held[speaker] = self._held.get(speaker, 0) + 1
        if held == HELD_MAX:
            speaker.pause_reading()
        self._arrived()

    def first(self) -> tuple[Speaker, Said]:
        return self._waiting[0]

    def pop(self) -> None:
        speaker, _ = self._waiting.popleft()
        held = self._held.pop(speaker) - 1
        if held:
            self._held[speaker] = held
        if held == HELD_MAX - 1:
            speaker.resume_reading()

    def clear(self) -> None:
        """
        Drop everything: nothing is decided any more.
        """
        self._waiting.clear()
        self._held.clear()
