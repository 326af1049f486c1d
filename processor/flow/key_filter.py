"""
A filter over every key that memory has forgotten.

Rule: a false "new" is a double payment. So the filter answers "new" only when it is complete;
until then every key that is not remembered exactly is looked up in the tables.

It is built from the tables and fed with each key that is forgotten. "Maybe" costs one look-up.
"""

from __future__ import annotations

from collections.abc import Iterable

from rbloom import Bloom

FALSE_POSITIVE_RATE = 1e-6
CAPACITY_MIN = 1_000_000


def _key_number(key: bytes) -> int:
    # Keys are hashes already; the filter takes any signed 128-bit number.
    return int.from_bytes(key, "big", signed=True)


class KeyFilter:
    """
    Grows by adding filters of twice the size; members are 16-byte keys.
    """

    __slots__ = ("_capacity", "_filters", "_room", "complete")

    def __init__(self, capacity: int = CAPACITY_MIN) -> None:
        self.complete = False
        self._filters: list[Bloom] = []
        self._capacity = capacity
        self._room = 0

    def add(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            if self._room == 0:
                self._grow()
            self._filters[-1].add(key)
            self._room -= 1

    def may_contain(self, key: bytes) -> bool:
        """
        Say False only when *key* is certainly not in the tables.
        """
        if not self.complete:
            return True
        for part in self._filters:  # noqa: SIM110  A generator costs more than the look-up.
            if key in part:
                return True
        return False

    def _grow(self) -> None:
        if self._filters:
            self._capacity *= 2
        self._filters.append(Bloom(self._capacity, FALSE_POSITIVE_RATE, _key_number))
        self._room = self._capacity
