"""
Is the gateway alive, and does money move?
"""

from __future__ import annotations

from typing import Literal, cast

from gateway.endpoint import Call, Gateway
from gateway.reply import Reply, json_reply
from gateway.wire import Health, Liveness, ShardHealth
from processor.flow.ports import StoreUnavailable

REMEMBERED_S = 0.5


class HealthLook:
    """
    Looks at the shards at most every `REMEMBERED_S`: anybody may ask, without a key.
    """


async def get_liveness(call: Call) -> Reply:
    """
    Answer at all.
    """
    del call
    return json_reply(200, Liveness(live=True))


async def get_health(call: Call) -> Reply:
    health = await look(call.gateway)
    return json_reply(200 if health.ready else 503, health)
