"""
What an endpoint is, and what its handler is given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from configs.settings import Settings
from gateway.asgi import Receive
from gateway.authentication import Caller, VerifiedKeys
from gateway.health_watch import HealthWatch
from gateway.payout_opening import Payouts
from gateway.reply import Reply
from gateway.shard_clients import ShardClients
from gateway.validation import Validation
from gateway.watermarks import Watermarks
from processor.storage.api_keys import Scope
from processor.storage.history import History
from processor.storage.key_store import KeyStore

JSON_BODY = ("application/json",)
JSON_OR_CSV_BODY = ("application/json", "text/csv")
JSON_OR_NDJSON_BODY = ("application/json", "application/x-ndjson")


@dataclass(frozen=True, slots=True)
class Gateway:
    """
    What one gateway process has; handlers reach the ledger through it.
    """

    settings: Settings
    validation: Validation
    shards: ShardClients
    history: History
    watermarks: Watermarks
    health: HealthWatch
    key_store: KeyStore
    keys: VerifiedKeys
    payouts: Payouts

    @property
    def timeout_ms(self) -> int:
        return self.settings.gateway.request_timeout_ms


class Call:
    """
    One request, checked as far as its endpoint's row says.

    `body` and `query` are structs of the endpoint's types; `body` is the bytes where the endpoint
    `decodes_itself`, and nothing where it `reads_itself`.
    """

    __slots__ = (
        "body",
        "caller",
        "gateway",
        "headers",
        "idempotency_key",
        "media_type",
        "parameters",
        "query",
        "receive",
    )

    def __init__(
        self,
        gateway: Gateway,
        caller: Caller,
        parameters: tuple[str, ...],
        headers: Mapping[bytes, bytes],
        receive: Receive,
    ) -> None:
        self.gateway = gateway
        self.caller = caller
        self.parameters = parameters
        self.headers = headers
        self.receive = receive
        self.body: Any = None
        self.query: Any = None
        self.idempotency_key = ""
        self.media_type = ""


Handler = Callable[[Call], Awaitable[Reply]]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    One row of the route table: what it takes, what it gives, who may, and how it can fail.

    `path` has its parameters in braces. `statuses` says what each good status means. Without
    `scope` it is open to everybody. `idempotent` means: the Idempotency-Key header is required.
    `commands` means: it asks a shard, so it can be overloaded or without an answer.
    `decodes_itself` means: the handler gets the body as bytes. `reads_itself` means: it
    reads the body through `receive`, with bounds of its own. `example` is a good body.
    """

    method: str
    path: str
    name: str
    summary: str
    handler: Handler
    response: Any
    statuses: Mapping[int, str]
    request: Any = None
    decodes_itself: bool = False
    reads_itself: bool = False
    query: Any = None
    media_types: tuple[str, ...] = ()
    scope: Scope | None = None
    idempotent: bool = False
    commands: bool = False
    errors: tuple[str, ...] = ()
    example: str = ""

    @property
    def parameter_names(self) -> list[str]:
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]

    @property
    def problem_codes(self) -> list[str]:
        """
        List every problem it can answer with.
        """
        codes = ["internal_error", *self.errors]
        if self.scope is not None:
            codes += ["api_key_missing", "api_key_invalid", "scope_missing", "unavailable"]
        if self.query is not None:
            codes += ["query_invalid"]
        if self.media_types:
            codes += ["media_type_unsupported", "body_too_large", "request_too_slow"]
        if self.request is not None:
            codes += ["malformed_json", "validation_failed", "overloaded"]
        if self.idempotent:
            codes += ["idempotency_key_missing", "idempotency_key_invalid"]
        if self.commands:
            codes += ["overloaded", "unavailable"]
        if self.method != "GET":
            codes += ["outcome_unknown"]
        return sorted(set(codes))
