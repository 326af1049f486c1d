"""
What leaves the gateway: status, headers, body.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

Header = tuple[bytes, bytes]

JSON: Header = (b"content-type", b"application/json")
NDJSON: Header = (b"content-type", b"application/x-ndjson")
REPLAYED: Header = (b"idempotent-replayed", b"true")

JSON_HEADERS = (JSON,)
JSON_REPLAYED_HEADERS = (JSON, REPLAYED)

encode = msgspec.json.Encoder().encode


class Reply:
    """
    A reply ready to be sent; the length is added on the way out.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self, status: int, body: bytes, headers: tuple[Header, ...] = JSON_HEADERS
    ) -> None:
        self.status = status
        self.body = body
        self.headers = headers


class StreamedReply(Reply):
    """
    A reply whose body is sent part by part, while it is made. An exception in between ends the
    connection, so that nobody takes half a body for a whole one.
    """

    __slots__ = ("parts",)

    def __init__(
        self, status: int, parts: AsyncIterator[bytes], headers: tuple[Header, ...]
    ) -> None:
        super().__init__(status, b"", headers)
        self.parts = parts


def json_reply(status: int, value: Any, *headers: Header) -> Reply:
    """
    Encode *value* as the body.
    """
    return Reply(status, encode(value), (JSON, *headers))
