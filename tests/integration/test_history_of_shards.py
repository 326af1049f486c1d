"""
Goal: several databases read as one ledger: a wallet's history is whole wherever it has been, and
      a transfer between shards is shown to each side as its own shard tells it, projected or not.
Method: the journals of two shards in two databases, written decision by decision, and the real
        write-behind one record at a time; what is read must not depend on how far it has come.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from configs.settings import WriteBehindSettings
from processor.core.channel import FIRST_LINK
from processor.core.commands import TransferType
from processor.core.decisions import (
    CarriedWallet,
    Decision,
    DuePosting,
    EntryCredited,
    EntryElsewhere,
    EntryRefused,
    EpochStarted,
    SlotGiven,
    SlotsGranted,
    SlotTaken,
    TransferPosted,
    TransferRecalled,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    WalletOpened,
)
from processor.core.reject_reason import RejectReason
from processor.core.slots import slot_of
from processor.core.wallet import SYSTEM_MERCHANT, due_wallet_id, world_wallet_id
from processor.flow.ports import StoreUnavailable
from processor.storage.connection import connect
from processor.storage.entries import VERSION_AT, EntryFilter, EntryRow, PastBalance, Span
from processor.storage.history import History
from processor.storage.projection import Projection
from processor.storage.transfer_found import TransferFound, TransferSide, with_owners
from tests.support.commands import identifier
from tests.support.databases import Databases, execute
from tests.support.journal_builder import START_US, JournalBuilder, write_journal

MINIMUM = -(2**62)
PAID, REFUSED, RECALLED = identifier("paid"), identifier("refused"), identifier("recalled")


@pytest.fixture
def dsns(databases: Databases) -> Iterator[list[str]]:
    with databases.migrated() as first, databases.migrated() as second:
        yield [first, second]


@asynccontextmanager
async def history_of(dsns: list[str]) -> AsyncIterator[History]:
    history = await History.open(dsns, connections_max=2, timeout_ms=10_000)
    try:
        yield history
    finally:
        history.close()


class Shard:
    """
    One shard whose records come into its journal, and then into its tables, one by one.
    """

    def __init__(self, shard_id: int, dsn: str, records: list[list[Decision]]) -> None:
        self.dsn = dsn
        self.records = records
        self._builder = JournalBuilder(shard_id)
        self._projection = Projection(dsn, shard_id, WriteBehindSettings())
        self._written = 0

    async def write(self, count: int = 1) -> None:
        """
        Make the next records durable.
        """
        for decisions in self.records[self._written : self._written + count]:
            for decision in decisions:
                self._builder.journal(decision)
            self._builder.seal()
        conn = await connect(self.dsn, application_name="tests")
        await conn.execute("DELETE FROM shard WHERE shard_id = $1", self._builder.shard_id)
        kept = self._builder.records
        self._builder.records = kept[self._written :]
        await write_journal(conn, self._builder)
        self._builder.records = kept
        self._written += count
        await conn.close()

    async def project(self) -> None:
        """
        Bring the tables to the end of the journal.
        """
        await self._projection.open()
        while await self._projection.step():
            pass
        self._projection.close()


def system(wallet_id: str) -> WalletOpened:
    return WalletOpened(wallet_id, SYSTEM_MERCHANT, "EUR", MINIMUM)


def deposit(
    shard_id: int, wallet_id: str, amount: int, *, world_version: int = 1
) -> TransferPosted:
    key = identifier(f"deposit {wallet_id} {world_version}")
    world = world_wallet_id(shard_id, "EUR")
    return TransferPosted(
        TransferType.DEPOSIT,
        *(key, key, "acme", world, wallet_id, "EUR", amount, None, None),
        *(world_version, -amount * world_version, world_version, amount * world_version),
    )


def reserved(
    transfer_id: bytes, destination: str, amount: int, *, peer: int = 1, number: int
) -> TransferReserved:
    return TransferReserved(
        TransferType.TRANSFER,
        *(transfer_id, transfer_id, "acme", "a", destination, "EUR", amount, "ref", '{"k":1}'),
        *(peer, number, FIRST_LINK),
    )


def source(dsn: str) -> Shard:
    """
    Shard 0: `a` of acme pays 5 to `b`, tries 7, and a third transfer looks for its slot.
    """
    return Shard(
        0,
        dsn,
        [
            [EpochStarted("test"), system(world_wallet_id(0, "EUR"))],
            [WalletOpened("a", "acme", "EUR", 0), deposit(0, "a", 100)],
            [system(due_wallet_id(0, 1, "EUR")), reserved(PAID, "b", 5, number=1)],
            [reserved(REFUSED, "nobody", 7, number=2), reserved(RECALLED, "c", 9, number=3)],
            [
                TransferSettled(1, 1, PAID, 2, 95, 1, 5),
                TransferReleased(1, 2, REFUSED, RejectReason.DESTINATION_UNKNOWN),
            ],
            [
                TransferRecalled(1, 3, RECALLED),
                system(due_wallet_id(0, 2, "EUR")),
                reserved(RECALLED, "c", 9, peer=2, number=1),
            ],
            [TransferSettled(2, 1, RECALLED, 3, 86, 1, 9)],
        ],
    )


def destination(dsn: str) -> Shard:
    """
    Shard 1: `b` of globex is paid.
    """
    entry = ("acme", "a", "b", "EUR", 5, "ref", '{"k":1}')
    return Shard(
        1,
        dsn,
        [
            [EpochStarted("test"), system(due_wallet_id(1, 0, "EUR"))],
            [WalletOpened("b", "globex", "EUR", 0)],
            [
                EntryCredited(0, 1, FIRST_LINK, PAID, *entry, 1, -5, 1, 5),
                EntryRefused(0, 2, FIRST_LINK, RejectReason.DESTINATION_UNKNOWN),
                EntryElsewhere(0, 3, FIRST_LINK, 2),
            ],
        ],
    )


async def views(history: History, transfer_id: bytes) -> list[TransferFound]:
    search = await history.transfer(transfer_id)
    assert search.missing is None
    return search.found


async def all_views(history: History) -> list[list[TransferFound]]:
    """
    Find every transfer, without the owners of wallets: those are known when they are projected.
    """
    return [
        [with_owners(view, {}) for view in await views(history, transfer_id)]
        for transfer_id in (PAID, REFUSED, RECALLED)
    ]


@pytest.mark.parametrize("together", [False, True])
async def test_what_is_found_does_not_depend_on_the_tables(dsns: list[str], together: bool) -> None:
    """
    After each record of either shard, every transfer reads the same from the tail, from the
    tables, and from both. Two shards in one database are no different from two in two.
    """
    first = source(dsns[0])
    second = destination(dsns[0] if together else dsns[1])
    async with history_of(dsns) as history:
        for shard in (first, second):
            for _ in shard.records:
                await shard.write()
                from_tail = await all_views(history)
                await shard.project()
                assert await all_views(history) == from_tail


async def test_a_whole_tail_reads_as_whole_tables(dsns: list[str]) -> None:
    """
    Also when nothing at all was projected.
    """
    shards = [source(dsns[0]), destination(dsns[1])]
    for shard in shards:
        await shard.write(len(shard.records))
    async with history_of(dsns) as history:
        from_tail = await all_views(history)
        for shard in shards:
            await shard.project()
        assert await all_views(history) == from_tail
        paid, credited = await views(history, PAID)
        (refused,) = await views(history, REFUSED)
        (recalled,) = await views(history, RECALLED)

    assert (paid.state, paid.shard_id, paid.sequence) == ("posted", 0, 5)
    assert paid.source == TransferSide("a", "acme", 95, 2)
    assert paid.destination == TransferSide("b", "globex", None, None)
    assert (credited.state, credited.shard_id, credited.sequence) == ("posted", 1, 3)
    assert credited.is_credit
    assert credited.source == TransferSide("a", "acme", None, None)
    assert credited.destination == TransferSide("b", "globex", 5, 1)
    assert (paid.reference, credited.metadata) == ("ref", '{"k":1}')
    assert (refused.state, refused.reason) == ("rejected", RejectReason.DESTINATION_UNKNOWN)
    assert refused.destination == TransferSide("nobody", None, None, None)
    assert (recalled.state, recalled.sequence) == ("posted", 7)
    assert recalled.source == TransferSide("a", "acme", 86, 3)


@pytest.mark.parametrize("projected", [False, True])
async def test_it_is_pending_until_its_source_has_settled_it(
    dsns: list[str], projected: bool
) -> None:
    """
    However far the destination is. A transfer that was sent anew is pending since then.
    """
    shards = [source(dsns[0]), destination(dsns[1])]
    await shards[0].write(4)
    await shards[1].write(3)
    async with history_of(dsns) as history:
        if projected:
            for shard in shards:
                await shard.project()
        pending, credited = await views(history, PAID)
        assert (pending.state, pending.sequence) == ("pending", 3)
        assert pending.source == TransferSide("a", "acme" if projected else None, None, None)
        assert credited.state == "posted"

        await shards[0].write(2)
        if projected:
            await shards[0].project()
        assert [view.state for view in await views(history, PAID)] == ["posted", "posted"]
        (sent_anew,) = await views(history, RECALLED)
        assert (sent_anew.state, sent_anew.sequence) == ("pending", 6)


async def test_the_other_side_is_a_wallet_and_not_what_is_due(dsns: list[str]) -> None:
    """
    Both histories name the customers' wallets.
    """
    for shard in (source(dsns[0]), destination(dsns[1])):
        await shard.write(len(shard.records))
        await shard.project()
    async with history_of(dsns) as history:
        paid = await entries_of(history, "a", Span(1, 3))
        received = await entries_of(history, "b", Span(1, 1))

    assert [(row.version, row.balance, row.counterparty) for row in paid] == [
        (1, 100, None),
        (2, 95, "b"),
        (3, 86, "c"),
    ]
    assert [(row.balance, row.counterparty, row.is_debit) for row in received] == [(5, "a", False)]


# --- Wallets that have moved --------------------------------------------------------------


def giver(dsn: str) -> Shard:
    """
    Shard 0: `m` gets 10 three times and goes to shard 1.
    """
    slot = slot_of("m")
    return Shard(
        0,
        dsn,
        [
            [EpochStarted("test"), SlotsGranted(slot, slot), system(world_wallet_id(0, "EUR"))],
            [WalletOpened("m", "acme", "EUR", 0), deposit(0, "m", 10)],
            [deposit(0, "m", 10, world_version=2)],
            [deposit(0, "m", 10, world_version=3)],
            [
                system(due_wallet_id(0, 1, "EUR")),
                SlotGiven(
                    1, 1, FIRST_LINK, slot, 2, [carried()], [], [DuePosting("EUR", 30, 1, 30)]
                ),
            ],
        ],
    )


def carried() -> CarriedWallet:
    return CarriedWallet("m", "acme", "EUR", 1, 0, 30, 3)


def taker(dsn: str) -> Shard:
    """
    Shard 1: `m` comes with 30, and gets 10 more.
    """
    slot = slot_of("m")
    key = identifier("after the move")
    return Shard(
        1,
        dsn,
        [
            [EpochStarted("test"), system(world_wallet_id(1, "EUR"))],
            [
                system(due_wallet_id(1, 0, "EUR")),
                SlotTaken(
                    *(0, 1, FIRST_LINK, slot, 2, [carried()], []), [DuePosting("EUR", 30, 1, -30)]
                ),
            ],
            [
                TransferPosted(
                    TransferType.DEPOSIT,
                    *(key, key, "acme", world_wallet_id(1, "EUR"), "m", "EUR", 10, None, None),
                    *(1, -10, 4, 40),
                )
            ],
        ],
    )


async def entries_of(history: History, wallet_id: str, span: Span) -> list[EntryRow]:
    rows = await history.entries(wallet_id, span)
    assert rows is not None, "the span is whole"
    return rows


def versions(rows: list[EntryRow]) -> list[int]:
    return [row.version for row in rows]


async def test_a_wallet_that_moved_has_one_history(dsns: list[str]) -> None:
    """
    Its entries come from both databases in order, in pages that meet; it is listed once, as it is
    at its new shard.
    """
    for shard in (giver(dsns[0]), taker(dsns[1])):
        await shard.write(len(shard.records))
        await shard.project()
    async with history_of(dsns) as history:
        for span in (Span(1, 4), Span(2, 3), Span(3, 4), Span(4, 4)):
            rows = await entries_of(history, "m", span)
            assert versions(rows) == list(range(span.first, span.last + 1))
        assert await history.last_version("m") == 4
        row = await history.wallet("m")
        assert row is not None
        assert (row.shard_id, row.version, row.posted) == (1, 4, 40)
        assert await history.wallets_of("acme", after="", limit=10) == [row]


@pytest.mark.parametrize("together", [False, True])
async def test_of_two_rows_the_later_counts(dsns: list[str], together: bool) -> None:
    """
    The old shard's tables are behind the new one's: a wallet has two rows, and is shown once.
    """
    old = giver(dsns[0])
    new = taker(dsns[0] if together else dsns[1])
    await old.write(3)
    await old.project()
    await old.write(2)
    await new.write(2)
    await new.project()
    async with history_of(dsns) as history:
        row = await history.wallet("m")
        assert row is not None
        assert (row.shard_id, row.version) == (1, 3)
        assert await history.wallets_of("acme", after="", limit=1) == [row]


async def moved_with_a_gap(dsns: list[str]) -> Shard:
    """
    Bring the new shard's entries into the tables before the old one's third; give the old one.
    """
    old, new = giver(dsns[0]), taker(dsns[1])
    await old.write(3)
    await old.project()
    await old.write(2)
    await new.write(3)
    await new.project()
    return old


@pytest.mark.parametrize("together", [False, True])
async def test_a_span_that_lacks_a_version_is_no_history(dsns: list[str], together: bool) -> None:
    """
    The new shard's entries are in the tables before the old one's: going on behind such a page
    would skip an entry for ever. Nor is the balance told of a time that the entry may be of, and
    a filter does not make it whole.
    """
    dsns = [dsns[0], dsns[0]] if together else dsns
    old = await moved_with_a_gap(dsns)
    await execute(dsns[1], later(4, START_US + 100))
    every = EntryFilter(TransferType.DEPOSIT)
    second_us, third_us = START_US + 2, START_US + 3
    async with history_of(dsns[:1] if together else dsns) as history:
        assert await history.entries("m", Span(1, 4)) is None
        assert versions(await entries_of(history, "m", Span(1, 2))) == [1, 2]
        for newest_first in (False, True):
            assert (
                await history.entries_chosen(
                    "m", Span(1, 4), every, limit=1, newest_first=newest_first
                )
                is None
            )
        assert await history.balance_of_version("m", 3) is None
        for at_us in (second_us, third_us):
            assert await history.balance_at("m", at_us, known=4) is None
        # Behind the gap each entry tells its own balance.
        assert await balances(history, START_US + 100) == (4, 40)

        await old.project()
        assert versions(await entries_of(history, "m", Span(1, 4))) == [1, 2, 3, 4]
        chosen = await history.entries_chosen("m", Span(1, 4), every, limit=3, newest_first=True)
        assert chosen is not None
        assert versions(chosen) == [4, 3, 2]


async def balances(history: History, at_us: int) -> tuple[int, int] | None:
    found = await history.balance_at("m", at_us, known=4)
    return None if found is None else (found.version, found.balance)


async def test_a_past_balance_is_that_of_whichever_database(dsns: list[str]) -> None:
    """
    Of what the databases have up to an instant, the highest version counts.
    """
    for shard in (giver(dsns[0]), taker(dsns[1])):
        await shard.write(len(shard.records))
        await shard.project()
    # The taker's clock: its third record is as late as the giver's fifth.
    await execute(dsns[1], later(4, START_US + 100))
    async with history_of(dsns) as history:
        assert await balances(history, START_US) == (0, 0)
        assert await balances(history, START_US + 1) == (1, 10)
        assert await balances(history, START_US + 2) == (2, 20)
        assert await balances(history, START_US + 99) == (3, 30)
        assert await balances(history, START_US + 100) == (4, 40)
        found = await history.balance_of_version("m", 4)
        assert found == PastBalance(4, 40, START_US + 100)


def later(version: int, at_us: int) -> str:
    """
    Write that `m`'s entry was at another time.
    """
    at = f"'epoch'::timestamptz + {at_us} * interval '1 microsecond'"
    entry = f"destination = 'm' AND destination_version = {version}"
    return f"UPDATE transfers SET at = {at} WHERE {entry}"


async def test_of_a_clock_that_is_behind_the_later_entry_counts(dsns: list[str]) -> None:
    """
    The shard that a wallet came to has the earlier time: then what was told last is the balance,
    and every instant has one.
    """
    for shard in (giver(dsns[0]), taker(dsns[1])):
        await shard.write(len(shard.records))
        await shard.project()
    await execute(dsns[1], later(4, START_US + 1))
    async with history_of(dsns) as history:
        assert await balances(history, START_US) == (0, 0)
        for offset_us in (1, 2, 3, 50):
            assert await balances(history, START_US + offset_us) == (4, 40)


_INSERT = """
    INSERT INTO transfers (transfer_id, shard_id, sequence, at, type, merchant_id, source,
        source_version, source_balance, destination, destination_version, destination_balance,
        currency, amount)
    SELECT gen_random_uuid(), 0, 1, to_timestamp($2), 1, 'acme', 'other', 0, 0, 'm', $1, $1,
           'EUR', 1
"""


async def write_entries(dsn: str, times_s: dict[int, int]) -> None:
    """
    Write entries of `m`: by version, the second of each; its balance is the version.
    """
    conn = await connect(dsn, application_name="tests")
    await conn.executemany(_INSERT, list(times_s.items()))
    await conn.close()


async def test_what_comes_next_is_always_later(dsns: list[str]) -> None:
    """
    Clocks that are far apart, and a wallet that went to and fro: bisection of one database ends
    before an entry of the other that is not later, and it is gone on from there.
    """
    await write_entries(dsns[0], {3: 3, 5: 25, 7: 30})
    await write_entries(dsns[1], {1: 1, 2: 10, 4: 2, 6: 20})
    async with history_of(dsns) as history:
        found = await history.balance_at("m", 5_000_000, known=7)
    assert found == PastBalance(4, 4, 2_000_000)


async def test_versions_of_elsewhere_are_passed_over(dsns: list[str]) -> None:
    """
    However few of a wallet's versions are in a database, each moment is found in it.
    """
    chance = random.Random(5)
    here = sorted(chance.sample(range(1, 200), 40))
    times_s = {version: 10 * (index // 2 + 1) for index, version in enumerate(here)}
    await write_entries(dsns[0], times_s)
    conn = await connect(dsns[0], application_name="tests")
    for second in range(0, 220, 5):
        for above in (0, here[7], here[20] - 1, 500):
            instant = datetime.fromtimestamp(second, UTC)
            found = await conn.fetchval(VERSION_AT, "m", instant, above)
            right = [v for v, time_s in times_s.items() if time_s <= second and v > above]
            assert found == max(right, default=above)
    await conn.close()


async def test_lists_are_merged_by_id(dsns: list[str]) -> None:
    """
    Wallets of all databases come in one order, and pages of any size meet.
    """
    names = [["b", "B", "zz"], ["a", "aa", "c", "Z"]]
    for shard_id, (dsn, own) in enumerate(zip(dsns, names, strict=True)):
        opened: list[Decision] = [WalletOpened(name, "acme", "EUR", 0) for name in own]
        shard = Shard(shard_id, dsn, [[EpochStarted("test")], opened])
        await shard.write(2)
        await shard.project()
    async with history_of(dsns) as history:
        for limit in (1, 2, 3, 100):
            seen: list[str] = []
            while page := await history.wallets_of(
                "acme", after=seen[-1] if seen else "", limit=limit
            ):
                seen += [row.wallet_id for row in page]
            assert seen == sorted(names[0] + names[1])


async def test_progress_is_that_of_all_databases(dsns: list[str]) -> None:
    """
    Each shard is listed once, wherever it lives.
    """
    for shard in (destination(dsns[1]), source(dsns[0])):
        await shard.write(3)
        await shard.project()
    async with history_of(dsns) as history:
        progress = await history.shards()
        assert [(one.shard_id, one.projected_sequence) for one in progress.shards] == [
            (0, 3),
            (1, 3),
        ]
        assert await history.watermarks() == {0: 3, 1: 3}


async def test_without_a_database_nothing_is_called_unknown(dsns: list[str]) -> None:
    """
    What the others know for certain is told; a list would have holes, and says so.
    """
    for shard in (source(dsns[0]), destination(dsns[1])):
        await shard.write(3)
        await shard.project()
    async with history_of(dsns) as history:
        await execute(dsns[1], "ALTER TABLE transfers RENAME TO gone; DROP TABLE watermark")
        search = await history.transfer(PAID)
        assert [view.state for view in search.found] == ["pending"]
        assert isinstance(search.missing, StoreUnavailable)
        nothing = await history.transfer(bytes(16))
        assert (nothing.found, bool(nothing.missing)) == ([], True)
        with pytest.raises(StoreUnavailable):
            await history.wallets_of("acme", after="", limit=10)
        with pytest.raises(StoreUnavailable):
            await history.entries("a", Span(1, 2))
        with pytest.raises(StoreUnavailable):
            await history.balance_at("a", START_US, known=2)
        progress = await history.shards()
        assert [shard.shard_id for shard in progress.shards] == [0]
        assert progress.databases_down == 1
