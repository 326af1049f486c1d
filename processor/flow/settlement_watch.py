"""
Who waits to hear what became of a transfer that was on its way when it was answered.

Rule: nobody is told anything before it is durable; this only remembers whom to tell. A crash
forgets it, and the same key asked again gives the outcome.
"""

from __future__ import annotations

from collections.abc import Callable

from processor.flow.frames import Reply

Deliver = Callable[[Reply], None]

WAITING_MAX = 16  # For one transfer; who comes later asks again.


class SettlementWatch:
    """
    The deliverers that wait, by the transfer they wait for.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[bytes, list[Deliver]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, transfer_id: bytes, deliver: Deliver) -> None:
        """
        Tell *deliver* once what becomes of the transfer.
        """
        waiting = self._waiting.setdefault(transfer_id, [])
        if deliver not in waiting and len(waiting) < WAITING_MAX:
            waiting.append(deliver)

    def take(self, transfer_id: bytes) -> list[Deliver]:
        """
        Return those who wait for the transfer, and wait no longer.
        """
        return self._waiting.pop(transfer_id, [])
