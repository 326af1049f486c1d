"""
The ASGI application: checks what an endpoint's row asks for, calls it, sends what it says.

Rule 1: the order is fixed: path, method, key, scope, query, idempotency key, media type, body.
        Whatever is refused there has touched nothing.
Rule 2: once its body is read, a request runs to its end. Nobody listens for a client that goes
        away, so nothing is cancelled for it.
Rule 3: every refusal is a problem document; an exception that nobody expected is logged and
        says that the outcome is unknown.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from configs.settings import Settings
from gateway.asgi import AsgiScope, Receive, Send
from gateway.authentication import ANYBODY
from gateway.endpoint import Call, Endpoint, Gateway
from gateway.idempotency_key import parse_header
from gateway.metrics import GatewayCollector, RequestCounts
from gateway.pages import pages, refused
from gateway.problems import Refusal
from gateway.reply import Header, Reply, StreamedReply
from gateway.request_body import BodyReader, ClientGone, media_type
from gateway.routes import Route, Routes
from gateway.shard_client import OutcomeUnknown, ShardOverloaded, ShardUnavailable
from processor.flow.ports import StoreUnavailable

log = structlog.get_logger("gateway")

Opening = Callable[[Settings], AbstractAsyncContextManager[Gateway]]

_SOON: Header = (b"retry-after", b"1")
# A second one of these could say something else to somebody in front of us.
_SINGLE_HEADERS = (b"authorization", b"idempotency-key", b"content-type", b"content-encoding")


class Application:
    """
    Serves *endpoints*; *opening* makes and ends what their handlers work with.
    """

    def __init__(self, settings: Settings, endpoints: Iterable[Endpoint], opening: Opening) -> None:
        self._settings = settings
        self._opening = opening
        self._routes = Routes(endpoints)
        self._elsewhere = RequestCounts("other")
        self._bodies = BodyReader(
            bytes_max=settings.gateway.body_bytes_max,
            held_bytes_max=settings.gateway.held_bodies_bytes_max,
        )
        self._gateway: Gateway | None = None
        table = [route.endpoint for route in self._routes.all]
        self._shell = Starlette(
            routes=pages(table, self._collector),
            exception_handlers={HTTPException: refused},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _shell: Starlette) -> AsyncIterator[None]:
        where = self._settings.gateway
        async with self._opening(self._settings) as gateway:
            self._gateway = gateway
            log.info("gateway serves", host=where.host, port=where.port)
            yield
            log.info("gateway ends")

    def _collector(self) -> GatewayCollector:
        assert self._gateway is not None, "served only while open"
        counts = [self._elsewhere, *(route.counts for route in self._routes.all)]
        return GatewayCollector(counts, self._gateway.shards)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._shell(scope, receive, send)
            return
        started = time.perf_counter()
        counts = self._elsewhere
        try:
            found = self._routes.find(scope["path"], scope["method"])
            if found is None:
                await self._shell(scope, receive, send)
                return
            route, parameters = found
            counts = route.counts
            reply = await self._answer(route, parameters, scope, receive)
        except ClientGone:
            return
        except Refusal as refusal:
            reply = refusal.reply()
        except Exception as error:
            reply = _failure(scope, error).reply()
        await _send(send, reply)
        counts.count(reply.status, time.perf_counter() - started)

    async def _answer(
        self, route: Route, parameters: tuple[str, ...], scope: AsgiScope, receive: Receive
    ) -> Reply:
        endpoint = route.endpoint
        gateway = self._gateway
        assert gateway is not None, "the server waits for the lifespan"
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if len(headers) != len(scope["headers"]):
            _refuse_repeated(scope["headers"])
        caller = ANYBODY
        if endpoint.scope is not None:
            authorization = headers.get(b"authorization")
            caller = gateway.keys.known(authorization) or await gateway.keys.caller(authorization)
            if endpoint.scope not in caller.scopes:
                raise Refusal("scope_missing", route.missing_scope)
        call = Call(gateway, caller, parameters, headers, receive)
        if endpoint.query is not None:
            call.query = route.query(scope["query_string"])
        if endpoint.idempotent:
            call.idempotency_key = parse_header(headers.get(b"idempotency-key"))
        if endpoint.media_types:
            call.media_type = media_type(headers, endpoint.media_types)
        if endpoint.request is not None and not endpoint.reads_itself:
            body = await self._bodies.read(headers, receive)
            call.body = body if route.decode is None else route.decode(body)
        return await endpoint.handler(call)


async def _send(send: Send, reply: Reply) -> None:
    headers = list(reply.headers)
    if isinstance(reply, StreamedReply):
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        async for part in reply.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    if reply.status != 204:
        headers.append((b"content-length", b"%d" % len(reply.body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _refuse_repeated(headers: Iterable[Header]) -> None:
    names = [name for name, _ in headers]
    for name in _SINGLE_HEADERS:
        if names.count(name) > 1:
            raise Refusal("header_repeated", f"Send {name.decode()} once.")


def _failure(scope: AsgiScope, error: Exception) -> Refusal:
    """
    Word an exception; a read that got no answer has changed nothing.
    """
    is_read = scope["method"] in ("GET", "HEAD")
    match error:
        case ShardOverloaded():
            seconds = max(1, math.ceil(error.retry_after_ms / 1000))
            return Refusal("overloaded", headers=((b"retry-after", b"%d" % seconds),))
        case ShardUnavailable():
            return Refusal("unavailable", headers=(_SOON,))
        case OutcomeUnknown() | StoreUnavailable():
            if is_read:
                return Refusal("unavailable", headers=(_SOON,))
            return Refusal("outcome_unknown")
        case _:
            log.error("request failed", path=scope["path"], exc_info=error)
            return Refusal("internal_error")
