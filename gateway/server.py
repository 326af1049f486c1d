"""
The HTTP server of one gateway process: uvicorn on httptools and uvloop.

It closes what uvicorn leaves open: connections that were reset, heads without an end, requests
that do not arrive in time. And it refuses as the API does, not in plain text.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from configs.settings import Settings
from gateway.application import Application
from gateway.endpoints import ENDPOINTS
from gateway.opening import check_settings, open_gateway
from gateway.problems import Refusal

KEEP_ALIVE_S = 75
SHUTDOWN_MARGIN_S = 5
BACKLOG = 2_048
HEAD_BYTES_MAX = 64 * 1024
ARRIVAL_BYTES_A_SECOND_MIN = 64 * 1024  # A large body may take its time, a dripping one not.
TICKS_A_LOOK = 10  # uvicorn ticks ten times a second.


class JoiningTransport:
    """
    What uvicorn needs of a transport; what is written in one turn of the loop leaves together.

    uvicorn writes a reply's head and body apart: two system calls and two packets, for one.
    """

    __slots__ = ("_loop", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()


class Protocol(HttpToolsProtocol):
    """
    One connection. `waiting_since` is set while a request is expected or arriving, and
    `arrived_bytes` counts what has come of it after its first read.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.waiting_since: float | None = self.loop.time()
        self.arrived_bytes = 0
        self._in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast("asyncio.Transport", JoiningTransport(transport, self.loop))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # Otherwise the timer of a connection that was reset keeps it alive until it rings.
        self._unset_keepalive_if_required()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.waiting_since = self.loop.time()
        self.arrived_bytes = 0
        self._in_head = True

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head = False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.waiting_since = None

    def data_received(self, data: bytes) -> None:
        self.arrived_bytes += len(data)
        super().data_received(data)
        # Only now: the head may have ended in this very piece, with a large body behind it.
        if self._in_head and self.arrived_bytes > HEAD_BYTES_MAX:
            self.refuse("head_too_large")

    def send_400_response(self, msg: str) -> None:
        del msg
        self.refuse("malformed_request")

    def refuse(self, code: str) -> None:
        """
        Hang up on what is not a whole request; say why where that cannot be taken for the
        answer to another one.
        """
        if self.transport.is_closing():
            return
        if self._is_next_to_be_answered():
            refusal = Refusal(code)
            body = refusal.reply().body
            self.transport.write(
                b"HTTP/1.1 %d \r\ncontent-type: application/problem+json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b"
                % (refusal.kind.status, len(body), body)
            )
        self.transport.close()

    def _is_next_to_be_answered(self) -> bool:
        cycle = self.cycle
        if self._in_head or cycle is None:
            # `cycle` is the request before, if any.
            return cycle is None or cycle.response_complete
        return not (cycle.response_started or self.pipeline)


class Server(uvicorn.Server):
    """
    Serves, and looks once a second for requests that do not arrive.
    """

    def __init__(self, config: uvicorn.Config, arrival_s_max: float) -> None:
        super().__init__(config)
        self._arrival_s_max = arrival_s_max

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_A_LOOK == 0:
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Protocol), "the configuration says so"
                if self._is_too_slow(connection):
                    connection.refuse("request_too_slow")
        return await super().on_tick(counter)

    def _is_too_slow(self, connection: Protocol) -> bool:
        if connection.waiting_since is None:
            return False
        allowed_s = self._arrival_s_max + connection.arrived_bytes / ARRIVAL_BYTES_A_SECOND_MIN
        return connection.loop.time() - connection.waiting_since > allowed_s


def serve(settings: Settings) -> None:
    """
    Serve until SIGTERM or SIGINT, when requests under way are finished; raises SettingsError.
    """
    check_settings(settings)
    application = Application(settings, ENDPOINTS, open_gateway)
    # Modules and tables live as long as the process: keep the collector away from them.
    gc.collect()
    gc.freeze()
    config = server_config(application, settings)
    Server(config, settings.gateway.arrival_timeout_ms / 1000).run()


def server_config(application: Application, settings: Settings) -> uvicorn.Config:
    """
    Say how uvicorn serves *application*.
    """
    gateway = settings.gateway
    return uvicorn.Config(
        application,
        host=gateway.host,
        port=gateway.port,
        loop="uvloop",
        http=Protocol,
        ws="none",
        interface="asgi3",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        # Whoever waits for a shard is answered at the latest when its time is up.
        timeout_graceful_shutdown=gateway.request_timeout_ms // 1000 + SHUTDOWN_MARGIN_S,
    )
