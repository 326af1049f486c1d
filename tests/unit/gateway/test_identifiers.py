"""
Goal: identifiers and times are written one way and read back.
Method: fixed values at the edges, and hypothesis.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.identifiers import (
    new_transfer_id,
    new_wallet_id,
    parse_timestamp,
    parse_uuid,
    timestamp_text,
    uuid_text,
)
from gateway.validation import is_wallet_id


@given(st.binary(min_size=16, max_size=16))
def test_uuids_are_read_back(identifier: bytes) -> None:
    """
    The text is the canonical one, and either case is understood.
    """
    text = uuid_text(identifier)

    assert text == str(UUID(bytes=identifier))
    assert parse_uuid(text) == identifier
    assert parse_uuid(text.upper()) == identifier


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00000000-0000-0000-0000-00000000000",
        "000000000000-0000-0000-0000-00000000",
        "{00000000-0000-0000-0000-000000000000}",
        "00000000000000000000000000000000",
        "00000000-0000-0000-0000-00000000000g",
        "00000000-0000-0000-0000-000000000000\n",
        "\u0660" * 8 + "-0000-0000-0000-000000000000",
    ],
)
def test_other_texts_are_no_uuid(text: str) -> None:
    """
    Only the canonical form is an identifier.
    """
    assert parse_uuid(text) is None


def test_transfer_ids_are_version_7() -> None:
    """
    They are new each time, and say so in their version.
    """
    ids = {new_transfer_id() for _ in range(100)}

    assert len(ids) == 100
    assert {UUID(bytes=identifier).version for identifier in ids} == {7}


def test_wallet_ids_can_be_named() -> None:
    """
    What the gateway makes, a client may send back.
    """
    ids = {new_wallet_id() for _ in range(100)}

    assert len(ids) == 100
    assert all(
        is_wallet_id(wallet_id) and len(wallet_id) == 30 and wallet_id == wallet_id.lower()
        for wallet_id in ids
    )


@pytest.mark.parametrize(
    ("at_us", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_700_000_000_000_001, "2023-11-14T22:13:20.000001Z"),
        (1_700_000_000_999_999, "2023-11-14T22:13:20.999999Z"),
        (1_700_000_001_000_000, "2023-11-14T22:13:21.000000Z"),
    ],
)
def test_times_keep_their_microseconds(at_us: int, text: str) -> None:
    """
    Six digits always, and nothing is rounded.
    """
    assert timestamp_text(at_us) == text


@given(st.integers(0, 4_000_000_000_000_000))
def test_times_are_read_back(at_us: int) -> None:
    """
    A reader of RFC 3339 gets the very microsecond.
    """
    at = datetime.fromisoformat(timestamp_text(at_us))

    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    assert (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds == at_us


@given(st.integers(0, 4_000_000_000_000_000))
def test_what_was_told_can_be_asked_for(at_us: int) -> None:
    """
    A client sends back the time of a reply.
    """
    assert parse_timestamp(timestamp_text(at_us)) == at_us


@pytest.mark.parametrize(
    ("text", "at_us"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-01t00:00:01z", 1_000_000),
        ("1970-01-01T01:00:01.5+01:00", 1_500_000),
        ("1969-12-31T23:30:01.000001-00:30", 1_000_001),
        ("1970-01-01T00:00:00.0000019Z", 1),
        ("1969-07-20T20:17:40Z", 0),
        ("0001-01-01T00:00:00+23:59", 0),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
        ("9999-12-31T23:59:59-23:59", 253_402_300_799_999_999),
    ],
)
def test_instants_of_all_offsets(text: str, at_us: int) -> None:
    """
    Cut to the microsecond, and to the years that the tables can hold.
    """
    assert parse_timestamp(text) == at_us


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-05-31",
        "2026-05-31T22:00:00",
        "2026-05-31 22:00:00Z",
        "2026-05-31T22:00Z",
        "2026-05-31T22:00:00 01:00",
        "2026-05-31T22:00:00+0100",
        "2026-05-31T22:00:00+25:00",
        "2026-06-31T22:00:00Z",
        "2026-05-31T24:00:00Z",
        "2026-05-31T22:00:60Z",
        "2026-05-31T22:00:00.Z",
        "2026-05-31T22:00:00Z\n",
        "1748728800",
        "\u0662026-05-31T22:00:00Z",
    ],
)
def test_other_texts_are_no_instant(text: str) -> None:
    """
    A day without a time or a time without an offset could be many.
    """
    assert parse_timestamp(text) is None
