"""
Goal: the history is a wallet's own versions from both sides, in pages that do not shift, and a
      transfer is found from the moment it is durable.
Method: a journal is written by hand and projected as far as each test says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from processor.core.commands import TransferType
from processor.core.decisions import WalletOpened
from processor.core.reject_reason import RejectReason
from processor.core.wallet import WalletStatus
from processor.flow.ports import StoreUnavailable
from processor.storage.connection import connect
from processor.storage.entries import NOTHING_YET, EntryFilter, EntryRow, PastBalance, Span
from processor.storage.history import History, Progress, ShardProgress
from processor.storage.transfer_found import TransferFound, TransferSide
from tests.support.databases import execute
from tests.support.journal_builder import START_US, JournalBuilder, project, write_journal


@asynccontextmanager
async def history_of(
    dsn: str, builder: JournalBuilder, *, watermark: int | None = None
) -> AsyncIterator[History]:
    """
    Write a journal, project it, and read it.
    """
    conn = await connect(dsn, application_name="tests")
    await write_journal(conn, builder)
    await project(conn, builder, watermark=watermark)
    await conn.close()
    history = await History.open([dsn], connections_max=2, timeout_ms=10_000)
    try:
        yield history
    finally:
        history.close()


def busy_ledger() -> JournalBuilder:
    """
    Wallet `a` gets 100 and gives 1 to `b` nine times; every third time it gets one back.
    """
    builder = JournalBuilder()
    builder.start_epoch()
    builder.open_wallet("a")
    builder.open_wallet("b")
    builder.deposit("a", 100, reference="first", metadata='{"k":1}')
    builder.seal()
    for number in range(9):
        builder.transfer("a", "b", 1)
        if number % 3 == 2:
            builder.transfer("b", "a", 1)
        builder.seal()
    return builder


async def the_transfer(history: History, transfer_id: bytes) -> TransferFound | None:
    """
    Find the one view of a transfer within a shard.
    """
    search = await history.transfer(transfer_id)
    assert search.missing is None
    assert len(search.found) <= 1
    return search.found[0] if search.found else None


async def entries_of(history: History, wallet_id: str, span: Span) -> list[EntryRow]:
    rows = await history.entries(wallet_id, span)
    assert rows is not None, "the span is whole"
    return rows


def versions(rows: list[EntryRow]) -> list[int]:
    return [row.version for row in rows]


async def test_entries_are_the_versions(database: str) -> None:
    """
    Each version appears once, in order, with a balance that follows from the one before.
    """
    async with history_of(database, busy_ledger()) as history:
        rows = await entries_of(history, "a", Span(1, 13))

    assert versions(rows) == list(range(1, 14))
    balance = 0
    for row in rows:
        balance += -row.amount if row.is_debit else row.amount
        assert row.balance == balance
    assert {row.counterparty for row in rows[1:]} == {"b"}
    first = rows[0]
    assert (first.counterparty, first.transfer_type) == (None, TransferType.DEPOSIT)
    assert (first.reference, first.metadata, first.at_us) == ("first", '{"k":1}', START_US + 1)


@pytest.mark.parametrize("size", [1, 4, 5, 13])
async def test_spans_meet(database: str, size: int) -> None:
    """
    Spans give every entry once, whatever their size; one that ends behind the last is not whole.
    """
    async with history_of(database, busy_ledger()) as history:
        seen: list[int] = []
        for first in range(1, 14, size):
            seen += versions(await entries_of(history, "a", Span(first, min(13, first + size - 1))))
        assert await history.entries("a", Span(10, 14)) is None
        assert await history.entries("a", Span(14, 14)) is None
        assert await history.entries("a", Span(14, 13)) == []
        assert await history.last_version("a") == 13
        assert await history.last_version("nobody") == 0

    assert seen == list(range(1, 14))


# --- Some of the entries ------------------------------------------------------------------

DEPOSITS = EntryFilter(transfer_type=TransferType.DEPOSIT)
SEVENTH = EntryFilter(reference="r7")


def referenced_ledger() -> JournalBuilder:
    """
    Wallet `a` gets 10 and then gives 1 to `b`, with a reference, six times over.
    """
    builder = JournalBuilder()
    builder.start_epoch()
    builder.open_wallet("a")
    builder.open_wallet("b")
    for number in range(1, 13):
        if number % 2:
            builder.deposit("a", 10, reference=f"r{number}")
        else:
            builder.transfer("a", "b", 1, reference=f"r{number}")
        builder.seal()
    return builder


@pytest.mark.parametrize(
    ("only", "span", "limit", "found"),
    [
        (DEPOSITS, Span(1, 12), 100, [1, 3, 5, 7, 9, 11]),
        (DEPOSITS, Span(4, 8), 100, [5, 7]),
        (DEPOSITS, Span(1, 12), 2, [1, 3]),
        (SEVENTH, Span(1, 12), 100, [7]),
        (SEVENTH, Span(8, 12), 100, []),
        (EntryFilter(TransferType.TRANSFER, "r7"), Span(1, 12), 100, []),
        (EntryFilter(reference="r"), Span(1, 12), 100, []),
        (EntryFilter(), Span(2, 4), 100, [2, 3, 4]),
        (DEPOSITS, Span(3, 2), 100, []),
    ],
)
async def test_only_what_is_wanted(
    database: str, only: EntryFilter, span: Span, limit: int, found: list[int]
) -> None:
    """
    A filter lets pass what has exactly this type and this reference, from either end.
    """
    async with history_of(database, referenced_ledger()) as history:
        forward = await history.entries_chosen("a", span, only, limit=limit, newest_first=False)
        backward = await history.entries_chosen("a", span, only, limit=100, newest_first=True)

    assert forward is not None
    assert backward is not None
    assert versions(forward) == found
    assert versions(backward)[::-1][:limit] == found


@pytest.mark.parametrize("lost", [1, 6, 7, 12])
async def test_what_does_not_match_is_missed_too(database: str, lost: int) -> None:
    """
    Nobody can say of an entry that is not there yet whether it would have matched.
    """
    async with history_of(database, referenced_ledger()) as history:
        await execute(database, f"DELETE FROM transfers WHERE reference = 'r{lost}'")
        for newest_first in (False, True):
            assert (
                await history.entries_chosen(
                    "a", Span(1, 12), DEPOSITS, limit=1, newest_first=newest_first
                )
                is None
            )


# --- Balances of the past -----------------------------------------------------------------


async def test_balances_behind_each_entry(database: str) -> None:
    """
    By version and by the instant of its record; between two instants it is that of the earlier.
    """
    builder = referenced_ledger()
    async with history_of(database, builder) as history:
        assert await history.balance_of_version("a", 0) == NOTHING_YET
        assert await history.balance_of_version("a", 13) is None
        assert await history.balance_at("a", START_US, known=12) == NOTHING_YET
        balance = 0
        for version in range(1, 13):
            balance += 10 if version % 2 else -1
            at_us = START_US + version
            found = PastBalance(version, balance, at_us)
            assert await history.balance_of_version("a", version) == found
            assert await history.balance_at("a", at_us, known=12) == found
        assert await history.balance_at("a", START_US + 10**12, known=12) == found
        assert await history.balance_at("a", 0, known=12) == NOTHING_YET
        assert await history.balance_at("nobody", START_US, known=0) == NOTHING_YET


async def test_a_record_counts_as_a_whole(database: str) -> None:
    """
    Of several entries of one instant the last one is what the wallet had then.
    """
    builder = busy_ledger()
    builder.transfer("a", "b", 1)
    builder.transfer("a", "b", 1)
    builder.transfer("b", "a", 2)
    at_us = builder.seal().at_us
    async with history_of(database, builder) as history:
        found = await history.balance_at("a", at_us, known=16)
        before = await history.balance_at("a", at_us - 1, known=16)

    assert found == PastBalance(16, 94, at_us)
    assert before is not None
    assert before.version == 13


async def test_as_of_is_the_last_record_of_the_tables(database: str) -> None:
    """
    What the history of a wallet's shard has come to, which may be short of the journal.
    """
    builder = busy_ledger()
    async with history_of(database, builder, watermark=5) as history:
        wallet = await history.wallet("a")
        assert wallet is not None
        assert await history.as_of(wallet) == builder.records[4].at_us
        assert await history.as_of(msgspec.structs.replace(wallet, sequence=99)) is None


async def test_wallets_by_id(database: str) -> None:
    """
    A merchant's wallets come in the order of their ids, and nobody else's among them.
    """
    builder = JournalBuilder()
    builder.start_epoch()
    for wallet_id in ("b", "B", "a:2", "a"):
        builder.open_wallet(wallet_id)
    builder.decided(WalletOpened("aa", "globex", "EUR", 0))
    builder.deposit("a", 7)
    builder.set_status("b", WalletStatus.FROZEN)
    builder.seal()
    async with history_of(database, builder) as history:
        first = await history.wallets_of("acme", after="", limit=3)
        rest = await history.wallets_of("acme", after=first[-1].wallet_id, limit=3)
        row = await history.wallet("a")

    assert [row.wallet_id for row in first + rest] == ["B", "a", "a:2", "b"]
    assert row == first[1]
    assert (row.posted, row.version, row.sequence) == (7, 1, 2)
    assert rest[0].status == WalletStatus.FROZEN


async def test_finds_what_is_projected_and_what_is_not(database: str) -> None:
    """
    A transfer reads the same from the tables as from the journal's tail.
    """
    builder = busy_ledger()
    posted = builder.transfer("a", "b", 7, reference="é\u0001", metadata='{"z":"é"}')
    rejected = builder.rejected("b", "a", 1_000)
    builder.seal()
    async with history_of(database, builder, watermark=builder.sequence - 1) as history:
        from_tail = [await the_transfer(history, d.transfer_id) for d in (posted, rejected)]
        await execute(database, "DELETE FROM wallets; DELETE FROM transfers; DELETE FROM watermark")
        conn = await connect(database, application_name="tests")
        await project(conn, builder)
        await conn.close()
        from_tables = [await the_transfer(history, d.transfer_id) for d in (posted, rejected)]

    assert from_tail == from_tables
    first, second = from_tail
    assert first is not None
    assert (first.source, first.destination) == (
        TransferSide("a", "acme", posted.source_balance, posted.source_version),
        TransferSide("b", "acme", posted.destination_balance, posted.destination_version),
    )
    assert (first.state, first.reason) == ("posted", None)
    assert (first.reference, first.sequence) == ("é\u0001", builder.sequence)
    assert second is not None
    assert second.state == "rejected"
    assert second.reason == RejectReason.INSUFFICIENT_FUNDS
    assert second.source == TransferSide("b", "acme", None, None)


async def test_finds_it_before_anything_is_projected(database: str) -> None:
    """
    A shard whose tables have not begun has all its transfers in the tail.
    """
    builder = busy_ledger()
    deposit = builder.deposit("b", 5)
    builder.seal()
    async with history_of(database, builder, watermark=0) as history:
        await execute(database, "DELETE FROM watermark")
        found = await the_transfer(history, deposit.transfer_id)

    assert found is not None
    assert found.source is None
    assert found.destination == TransferSide(
        "b", None, deposit.destination_balance, deposit.destination_version
    )


async def test_unknown_is_unknown(database: str) -> None:
    """
    An id that nobody made is found nowhere.
    """
    async with history_of(database, busy_ledger(), watermark=1) as history:
        assert await the_transfer(history, bytes(16)) is None
        assert await history.wallet("z") is None
        assert await history.last_version("z") == 0


async def test_progress_of_shards(database: str) -> None:
    """
    A shard's row says how far its journal and its tables are.
    """
    builder = busy_ledger()
    async with history_of(database, builder, watermark=3) as history:
        assert await history.shards() == Progress(
            [ShardProgress(0, "active", 1, None, 11, 3)], databases_down=0
        )
        assert await history.watermarks() == {0: 3}


async def test_says_when_it_cannot_be_read(database: str) -> None:
    """
    Whatever goes wrong below is one exception here.
    """
    history = await History.open([database], connections_max=1, timeout_ms=10_000)
    await execute(database, "ALTER TABLE watermark RENAME TO elsewhere")
    with pytest.raises(StoreUnavailable, match="UndefinedTableError"):
        await history.watermarks()
    await execute(database, "ALTER TABLE elsewhere RENAME TO watermark")
    assert await history.watermarks() == {}
    history.close()


async def test_a_slow_read_ends(database: str) -> None:
    """
    A read that has to wait for too long is given up.
    """
    history = await History.open([database], connections_max=1, timeout_ms=100)
    conn = await connect(database, application_name="tests")
    try:
        await conn.execute("BEGIN; LOCK TABLE watermark")
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(history.watermarks(), 10)
    finally:
        await conn.close()
        history.close()
