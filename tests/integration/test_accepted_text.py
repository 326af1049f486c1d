"""
Goal: whatever the gateway accepts, the wire to the shard, the journal and Postgres accept too.
Method: hypothesis writes JSON bodies with the worst of Unicode, escaped at will. Each one that
        passes decoding and validation goes through a frame, a decision and a real COPY, and is
        read back unchanged.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from configs.settings import Settings
from gateway.problems import Refusal
from gateway.strict_json import StrictDecoder
from gateway.transfers import move_command
from gateway.validation import Validation
from gateway.wire import BatchTransfer
from processor.core.amounts import AMOUNT_MAX
from processor.core.commands import MoveMoney
from processor.core.decisions import (
    DECISION_FORMAT,
    TransferPosted,
    decode_decisions,
    encode_decisions,
)
from processor.flow import frames
from processor.storage.connection import connect
from processor.storage.projection import TRANSFER_COLUMNS

decode = StrictDecoder(BatchTransfer).decode
validation = Validation(Settings())

ODD = st.sampled_from(["\x01", "\x7f", "\x85", "\u2028", "\ufeff", "\uffff", *'"\\\b\f\n\r\t'])
SOUND = st.one_of(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), ODD)
BAD = st.one_of(st.just("\x00"), st.characters(categories=["Cs"]))
SOUND_TEXT = st.text(SOUND, min_size=1, max_size=12)
ANY_TEXT = st.text(st.one_of(SOUND, BAD), max_size=8)


def mostly(sound: st.SearchStrategy[Any], other: st.SearchStrategy[Any]) -> Any:
    """
    Draw something else one time in ten, so that most bodies are accepted.
    """
    return st.integers(0, 9).flatmap(lambda number: other if number == 9 else sound)


TEXT = mostly(SOUND_TEXT, ANY_TEXT)
VALUE = st.one_of(TEXT, st.integers(-(2**53) + 1, 2**53 - 1), st.booleans())


def body_of(item: dict[str, Any], *, escaped: bool) -> bytes:
    """
    Write JSON; a lone surrogate comes out as its escape, or as the bytes that UTF-8 forbids.
    """
    return json.dumps(item, ensure_ascii=escaped).encode("utf-8", "surrogatepass")


BODIES = st.builds(
    body_of,
    st.fixed_dictionaries(
        {
            "idempotency_key": mostly(st.just("k"), ANY_TEXT),
            "source": mostly(st.from_regex(r"\A[A-Za-z0-9][\w.:@-]{0,63}\Z"), ANY_TEXT),
            "destination": mostly(st.just("b"), ANY_TEXT),
            "amount": mostly(st.integers(1, AMOUNT_MAX), st.integers()),
            "currency": mostly(st.just("EUR"), ANY_TEXT),
        },
        optional={
            "reference": TEXT,
            "metadata": st.dictionaries(TEXT, VALUE, max_size=3),
        },
    ),
    escaped=st.booleans(),
)


class Table:
    """
    The real table `transfers`, of which nothing is kept.
    """

    def __init__(self, dsn: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._dsn = dsn
        self._conn: asyncpg.Connection[asyncpg.Record] | None = None

    def round_trip(self, posted: TransferPosted) -> asyncpg.Record:
        return self._loop.run_until_complete(self._round_trip(posted))

    async def _round_trip(self, posted: TransferPosted) -> asyncpg.Record:
        if self._conn is None:
            self._conn = await connect(self._dsn, application_name="tests")
        row = await self._copy(self._conn, posted)
        await self._conn.execute("TRUNCATE transfers")
        return row

    async def _copy(
        self, conn: asyncpg.Connection[asyncpg.Record], posted: TransferPosted
    ) -> asyncpg.Record:
        record = (
            *(posted.transfer_id, 0, 1, datetime.now(UTC), posted.transfer_type, None),
            *(posted.merchant_id, posted.key),
            *(posted.source, posted.source_version, posted.source_balance),
            *(posted.destination, posted.destination_version, posted.destination_balance),
            *(posted.currency, posted.amount, posted.reference, posted.metadata),
        )
        await conn.copy_records_to_table("transfers", records=[record], columns=TRANSFER_COLUMNS)
        row = await conn.fetchrow("SELECT *, metadata::jsonb AS parsed FROM transfers")
        assert row is not None
        return row

    def close(self) -> None:
        if self._conn is not None:
            self._loop.run_until_complete(self._conn.close())
        self._loop.close()


@pytest.fixture
def table(database: str) -> Iterator[Table]:
    """
    Give the table on a connection that lasts for all examples.
    """
    table = Table(database)
    yield table
    table.close()


def accepted(body: bytes) -> MoveMoney | None:
    """
    Make the command of *body* as the gateway does, or None where it refuses.
    """
    try:
        item = decode(body)
    except Refusal:
        return None
    if validation.batch_transfer(item):
        return None
    return move_command(item, "acme", item.idempotency_key)


def posted_by(command: MoveMoney) -> TransferPosted:
    """
    Take *command* over the wire and into the journal and back.
    """
    frame = frames.RequestFrame(1, 0, 1, [command])
    arrived = frames.decode_request(frames.encode(frame)).commands[0]
    assert arrived == command
    decision = TransferPosted(
        command.transfer_type,
        command.transfer_id,
        command.key,
        command.merchant_id,
        command.source,
        command.destination,
        command.currency,
        command.amount,
        command.reference,
        command.metadata,
        1,
        -command.amount,
        1,
        command.amount,
    )
    journaled = decode_decisions(encode_decisions([decision]), DECISION_FORMAT)[0]
    assert journaled == decision
    assert isinstance(journaled, TransferPosted)
    return journaled


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(body=BODIES)
def test_what_is_accepted_is_stored(table: Table, body: bytes) -> None:
    """
    An accepted body comes out of the table as it went in.
    """
    command = accepted(body)
    event("accepted" if command else "refused")
    if command is None:
        return

    row = table.round_trip(posted_by(command))

    for column in ("source", "destination", "currency", "amount", "reference", "metadata"):
        assert row[column] == getattr(command, column)
    sent = json.loads(body).get("metadata") or None
    assert (row["parsed"] and json.loads(row["parsed"])) == sent


@pytest.mark.parametrize("bad", ["\x00", "\ud800", "\udc00\ud800"])
@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("field", ["source", "idempotency_key", "currency", "reference"])
def test_what_postgres_cannot_hold_is_refused(bad: str, escaped: bool, field: str) -> None:
    """
    NUL and lone surrogates stop at the gateway, in every text.
    """
    item = {
        "idempotency_key": "k",
        "source": "a",
        "destination": "b",
        "amount": 1,
        "currency": "EUR",
        "reference": "r",
    }
    assert accepted(body_of(item, escaped=escaped)) is not None

    assert accepted(body_of(item | {field: f"x{bad}"}, escaped=escaped)) is None
    assert accepted(body_of(item | {"metadata": {f"x{bad}": 1}}, escaped=escaped)) is None
    assert accepted(body_of(item | {"metadata": {"x": f"{bad}x"}}, escaped=escaped)) is None
