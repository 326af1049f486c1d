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
