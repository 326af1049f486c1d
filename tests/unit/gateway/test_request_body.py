"""
Goal: a body is read whole within its bounds, and its media type is one that is taken.
Method: scripted ASGI messages; tables of header values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from gateway.asgi import Receive
from gateway.problems import Refusal
from gateway.request_body import BodyReader, ClientGone, media_type

NO_HEADERS: dict[bytes, bytes] = {}


def reader(*, bytes_max: int = 10, held_bytes_max: int = 20) -> BodyReader:
    return BodyReader(bytes_max=bytes_max, held_bytes_max=held_bytes_max)


def arriving(parts: Iterable[bytes], *, hang_up: bool = False) -> Receive:
    """
    Give *parts* one by one, and then the end of the body or of the connection.
    """
    waiting = list(parts)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        if not waiting:
            return {"type": "http.disconnect"}
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting) or hang_up}

    return receive


async def test_reads_to_the_bound() -> None:
    """
    A body of exactly the bound is taken, in one part or in many.
    """
    assert await reader().read(NO_HEADERS, arriving([b"x" * 10])) == b"x" * 10
    assert await reader().read(NO_HEADERS, arriving([b"x"] * 10)) == b"x" * 10
    assert await reader().read(NO_HEADERS, arriving([b""])) == b""


@pytest.mark.parametrize("parts", [[b"x" * 11], [b"x" * 6, b"x" * 5], [b"x" * 6, b"x" * 5, b"x"]])
async def test_stops_past_the_bound(parts: list[bytes]) -> None:
    """
    One byte more is refused, however it is cut.
    """
    with pytest.raises(Refusal) as caught:
        await reader().read(NO_HEADERS, arriving(parts))

    assert caught.value.kind.code == "body_too_large"


async def test_refuses_an_announced_length_unread() -> None:
    """
    What says that it is too large is not read at all.
    """

    async def receive() -> dict[str, Any]:
        raise AssertionError("nothing is to be read")

    with pytest.raises(Refusal) as caught:
        await reader().read({b"content-length": b"11"}, receive)

    assert caught.value.kind.code == "body_too_large"


@pytest.mark.parametrize("parts", [[], [b"x"]])
async def test_notices_a_client_that_left(parts: list[bytes]) -> None:
    """
    Half a body is no body.
    """
    with pytest.raises(ClientGone):
        await reader().read(NO_HEADERS, arriving(parts, hang_up=True))


async def test_bounds_all_bodies_together() -> None:
    """
    Bodies that arrive at once share a bound, and give their share back when they are done.
    """
    shared = reader(bytes_max=8, held_bytes_max=14)

    async def read() -> bytes | str:
        try:
            return await shared.read(NO_HEADERS, arriving([b"x"] * 8))
        except Refusal as refusal:
            return refusal.kind.code

    assert await asyncio.gather(read(), read()) == ["overloaded", b"x" * 8]
    assert await asyncio.gather(read(), read()) == ["overloaded", b"x" * 8]


@pytest.mark.parametrize(
    ("content_type", "name"),
    [
        (b"application/json", "application/json"),
        (b"application/json; charset=utf-8", "application/json"),
        (b'Application/JSON ;charset="UTF-8"', "application/json"),
        (b"application/x-ndjson", "application/x-ndjson"),
    ],
)
def test_takes_media_types(content_type: bytes, name: str) -> None:
    """
    Case, spaces and a parameter that says UTF-8 do not matter.
    """
    accepted = ("application/json", "application/x-ndjson")

    assert media_type({b"content-type": content_type}, accepted) == name


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"content-type": b""},
        {b"content-type": b"text/plain"},
        {b"content-type": b"application/x-www-form-urlencoded"},
        {b"content-type": b"application/json; charset=latin-1"},
        {b"content-type": b"application/jsonx"},
        {b"content-type": b"application/json", b"content-encoding": b"gzip"},
    ],
)
def test_refuses_other_media_types(headers: dict[bytes, bytes]) -> None:
    """
    Anything else is 415 and says what is taken.
    """
    with pytest.raises(Refusal) as caught:
        media_type(headers, ("application/json",))

    assert caught.value.kind.code == "media_type_unsupported"
    assert "application/json" in caught.value.detail
