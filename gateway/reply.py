"""
What leaves the gateway: status, headers, body.
"""

from __future__ import annotations

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


def json_reply(status: int, value: Any, *headers: Header) -> Reply:
    """
    Encode *value* as the body.
    """
    return Reply(status, encode(value), (JSON, *headers))
