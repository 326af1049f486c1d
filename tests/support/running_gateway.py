"""
A gateway process in front of a running stack, and merchants with keys to it.
"""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from actors.child_process import ChildProcess
from processor.storage.api_keys import Scope, create_key, create_merchant
from processor.storage.connection import connect
from tests.support.stack import Stack

READY_S_MAX = 30.0
# Transfers between shards are answered when they are settled, however busy the machine is.
SETTLED = {"MILIANO_GATEWAY_SETTLEMENT_WAIT_MS": "5000"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class RunningGateway:
    """
    The address of a gateway, and keys to it.
    """

    def __init__(self, stack: Stack, port: int, process: ChildProcess) -> None:
        self.stack = stack
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.process = process

    def key(self, merchant_id: str, scopes: Iterable[Scope] = Scope) -> str:
        """
        Make a key for a merchant, and the merchant if need be.
        """
        return asyncio.run(make_key(self.stack.dsns[0], merchant_id, frozenset(scopes)))

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S_MAX
        while not self._is_ready():
            assert time.monotonic() < deadline, self.stack.logs()
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v1/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


async def make_key(dsn: str, merchant_id: str, scopes: frozenset[Scope]) -> str:
    conn = await connect(dsn, application_name="tests")
    try:
        await create_merchant(conn, merchant_id, merchant_id.title())
        _, text = await create_key(conn, merchant_id, scopes, "tests")
    finally:
        await conn.close()
    return text


@contextmanager
def running_gateway(stack: Stack, **environment: str) -> Iterator[RunningGateway]:
    """
    Start a gateway on a free port; *environment* is added to the stack's.
    """
    port = free_port()
    process = ChildProcess(
        "gateway",
        ["gateway"],
        log_path=stack.folder / f"gateway-{port}.log",
        environment=stack.environment | environment | {"MILIANO_GATEWAY_PORT": str(port)},
    )
    process.start()
    gateway = RunningGateway(stack, port, process)
    try:
        gateway.wait_until_ready()
        yield gateway
    finally:
        process.stop()
