"""
Waiting for a condition, never for a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

WAIT_S_MAX = 20.0
LOOK_S = 0.005

Found = TypeVar("Found")


def eventually(condition: Callable[[], Found | None], what: str) -> Found:
    """
    Look until *condition* gives something true, and return it; fails after the deadline.
    """
    deadline = time.monotonic() + WAIT_S_MAX
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {WAIT_S_MAX} s in vain for: {what}"
        time.sleep(LOOK_S)
    return found


async def until(
    condition: Callable[[], object], what: str, *, timeout_s: float = WAIT_S_MAX
) -> Any:
    """
    Look until *condition*, or what it gives to await, is true, and return it; fails after the
    deadline.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain for: {what}"
        await asyncio.sleep(LOOK_S)
