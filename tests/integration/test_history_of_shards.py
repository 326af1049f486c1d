"""
Goal: several databases read as one ledger: a wallet's history is whole wherever it has been, and
      a transfer between shards is shown to each side as its own shard tells it, projected or not.
Method: the journals of two shards in two databases, written decision by decision, and the real
        write-behind one record at a time; what is read must not depend on how far it has come.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

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
from processor.storage.history import EntryRow, History, is_whole
from processor.storage.projection import Projection
from processor.storage.transfer_search import TransferFound, TransferSide, with_owners
from tests.support.commands import identifier
from tests.support.databases import Databases, execute
from tests.support.journal_builder import JournalBuilder, write_journal

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
        paid = await history.entries_after("a", 0, 10)
        received = await history.entries_before("b", None, 10)

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
        assert versions(await history.entries_after("m", 0, 10)) == [1, 2, 3, 4]
        assert versions(await history.entries_after("m", 1, 2)) == [2, 3]
        assert versions(await history.entries_before("m", None, 2)) == [4, 3]
        assert versions(await history.entries_before("m", 3, 10)) == [2, 1]
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


async def test_a_page_that_lacks_a_version_is_known(dsns: list[str]) -> None:
    """
    The new shard's entries are in the tables before the old one's: going on behind such a page
    would skip an entry for ever.
    """
    old, new = giver(dsns[0]), taker(dsns[1])
    await old.write(3)
    await old.project()
    await old.write(2)
    await new.write(3)
    await new.project()
    async with history_of(dsns) as history:
        rows = await history.entries_after("m", 0, 10)
        assert versions(rows) == [1, 2, 4]
        assert not is_whole(rows, after=0, before=None, known=4, limit=10)
        await old.project()
        rows = await history.entries_after("m", 0, 10)
        assert is_whole(rows, after=0, before=None, known=4, limit=10)


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
            await history.entries_after("a", 0, 10)
        progress = await history.shards()
        assert [shard.shard_id for shard in progress.shards] == [0]
        assert progress.databases_down == 1
