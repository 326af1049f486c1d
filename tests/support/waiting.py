"""
Waiting for a condition, never for a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

WAIT_S_MAX = 20.0
LOOK_S = 0.005


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
