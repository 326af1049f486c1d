"""
Is the gateway alive, and does money move?
"""

from __future__ import annotations

from gateway.endpoint import Call
from gateway.reply import Reply, json_reply
from gateway.wire import Liveness


async def get_liveness(call: Call) -> Reply:
    """
    Answer at all.
    """
    del call
    return json_reply(200, Liveness(live=True))


async def get_health(call: Call) -> Reply:
    health = await call.gateway.health.look()
    return json_reply(200 if health.ready else 503, health)
