"""
Goal: whatever moved money is found as soon as it is durable, and reads the same from the journal's
      tail as from the tables; a linked transfer and its legs in each phase, at every shard.
Method: three shards do all that money needs, record by record and sealed; the records come into two
        databases and are projected one by one, and what they speak of is searched for
        before and after.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from configs.settings import WriteBehindSettings
from processor.core.commands import GiveSlot, Leg, MoveLinked
from processor.core.decisions import Decision, decode_decisions
from processor.core.leg_ids import leg_id, linked_id_in
from processor.core.record import Record
from processor.core.slots import slot_of
from processor.storage import linked_search
from processor.storage.connection import connect
from processor.storage.fee_listing import FeesRow, fees_of
from processor.storage.history import History
from processor.storage.linked_search import LinkedFound
from processor.storage.projection import Projection
from processor.storage.refund_listing import refunds_of
from processor.storage.transfer_found import TransferFound, TransferSide, with_owners
from tests.support.bound_commands import fee_leg, leg, linked, refund_leg
from tests.support.commands import MERCHANT, deposit, identifier, open_wallet
from tests.support.databases import Databases
from tests.support.money_net import (
    ALSO_HERE,
    FAR,
    HERE,
    LEAVES,
    NOBODY,
    THERE,
    MoneyNet,
    moneyed_net,
)

_INSERT = """
    INSERT INTO journal (shard_id, sequence, epoch, at_us, count, format, payload, chain)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""


@pytest.fixture
def dsns(databases: Databases) -> Iterator[list[str]]:
    """
    Give the database of each shard: two shards share one.
    """
    with databases.migrated() as one, databases.migrated() as two:
        yield [one, two, one]


class Journal:
    """
    One shard's records, which become durable and then come into the tables one by one.
    """

    def __init__(self, dsn: str, records: list[Record]) -> None:
        self.dsn = dsn
        self.records = records
        self.written = 0
        self._projection = Projection(dsn, records[0].shard_id, WriteBehindSettings())

    async def open(self) -> None:
        self._conn = await connect(self.dsn, application_name="tests")
        first = self.records[0]
        row = "INSERT INTO shard (shard_id, epoch) VALUES ($1, $2)"
        await self._conn.execute(row, first.shard_id, first.epoch)
        await self._projection.open()

    def close(self) -> None:
        self._conn.terminate()
        self._projection.close()

    async def write(self) -> list[Decision]:
        """
        Make the next record durable.
        """
        record = self.records[self.written]
        self.written += 1
        fields = ("shard_id", "sequence", "epoch", "at_us", "count", "format", "payload", "chain")
        await self._conn.execute(_INSERT, *(getattr(record, field) for field in fields))
        return decode_decisions(record.payload, record.format)

    async def project(self) -> None:
        while await self._projection.step():
            pass


@asynccontextmanager
async def journals_of(dsns: list[str], net: MoneyNet) -> AsyncIterator[list[Journal]]:
    journals = [Journal(dsn, s.records) for dsn, s in zip(dsns, net.shards, strict=True)]
    for journal in journals:
        await journal.open()
    try:
        yield journals
    finally:
        for journal in journals:
            journal.close()


@asynccontextmanager
async def history_of(dsns: list[str]) -> AsyncIterator[History]:
    history = await History.open(list(dict.fromkeys(dsns)), connections_max=2, timeout_ms=10_000)
    try:
        yield history
    finally:
        history.close()


def with_ids(command: MoveLinked) -> MoveLinked:
    """
    Give a linked transfer and its legs ids that belong together, as a gateway does.
    """
    linked_id = linked_id_in(command.linked_id)
    legs = [replace(one, transfer_id=leg_id(linked_id, n)) for n, one in enumerate(command.legs)]
    return replace(command, linked_id=linked_id, legs=legs)


def asked(*legs: Leg, key: str) -> MoveLinked:
    return with_ids(linked(*legs, key=key))


def linked_net() -> MoneyNet:
    """
    Let three shards post, refuse, call back and leave open linked transfers.
    """
    net = MoneyNet()
    for shard, names in ((net.zero, [HERE, ALSO_HERE]), (net.one, [THERE, LEAVES])):
        for name in names:
            shard.ask(open_wallet(name), deposit(name, 1_000, key=f"to {name}"))
    net.two.ask(open_wallet(FAR), deposit(FAR, 1_000, key="to far"))
    net.zero.ask(
        asked(leg(HERE, ALSO_HERE, 5), fee_leg(ALSO_HERE, 1), key="home"),
        asked(leg(HERE, ALSO_HERE, 5), leg(ALSO_HERE, HERE, 9_999), key="home in vain"),
    )
    net.zero.ask(asked(*ACROSS, key="across"))
    for _ in range(2):
        net.go(0, 1)
        net.go(0, 2)
    net.one.ask(asked(leg(THERE, HERE, 3), leg(FAR, LEAVES, 9_999), key="in vain"))
    net.go(1, 0)
    net.go(1, 2)
    net.quiet()
    net.zero.ask(asked(leg(HERE, THERE, 3), leg(THERE, NOBODY, 3), key="to nobody"))
    net.quiet()
    # What was decided for a wallet goes along with its slot, and is told where it was decided.
    net.one.ask(asked(leg(LEAVES, THERE, 9_999), leg(THERE, LEAVES, 1), key="carried"))
    # A slot is elsewhere: called back, and begun anew.
    net.one.ask(GiveSlot(slot_of(LEAVES), 2))
    net.go(1, 2)
    net.zero.ask(asked(leg(HERE, LEAVES, 3), leg(THERE, HERE, 4), key="moved"))
    net.quiet()
    net.two.ask(asked(*REVERSED, key="reversed"))
    net.quiet()
    # Left open: posted and not heard by all; not voted on by all.
    net.zero.ask(asked(leg(HERE, THERE, 2), leg(THERE, FAR, 1), key="posted"))
    net.go(0, 1)
    net.go(0, 2)
    net.go(0, 1)
    net.zero.ask(asked(leg(HERE, THERE, 2), leg(THERE, FAR, 1), key="open"))
    net.go(0, 1)
    return net


ACROSS = [
    leg(HERE, THERE, 9, name="1"),
    leg(THERE, FAR, 8, name="2"),
    leg(FAR, HERE, 7, name="3"),
    leg(THERE, LEAVES, 2, name="4"),
    fee_leg(FAR, 1, name="5"),
    leg(HERE, ALSO_HERE, 4, name="6"),
]
REVERSED = [refund_leg("a payment", FAR, THERE, 8, refundable=8), leg(FAR, HERE, 1)]
ACROSS_ID = asked(*ACROSS, key="across").linked_id


async def found(history: History, transfer_id: bytes) -> list[TransferFound]:
    """
    Find a transfer, without the owners of wallets: those are known when they are projected.
    """
    search = await history.transfer(transfer_id)
    assert search.missing is None
    return [with_owners(view, {}) for view in search.found]


async def linked_found(history: History, linked_id: bytes) -> LinkedFound | None:
    pages, missing = await history.each(lambda conn: linked_search.search(conn, linked_id))
    assert missing is None
    views = [one for one in pages if one is not None]
    assert len(views) <= 1
    return views[0] if views else None


def ids_in(decision: Decision) -> set[bytes]:
    """
    Return the transfers and linked transfers that a decision speaks of.
    """
    named = {getattr(decision, name, None) for name in ("transfer_id", "linked_id")}
    legs = {leg_id(one, n) for one in named if one and one[-1] == 0xFF for n in range(6)}
    return {one for one in named | legs if one is not None}


@pytest.mark.parametrize("make", [linked_net, moneyed_net])
async def test_what_is_found_does_not_depend_on_the_tables(
    dsns: list[str], make: type[MoneyNet]
) -> None:
    """
    After each record of any shard, whatever it speaks of reads the same from the tail and from the
    tables; in the end, all of it from everywhere.
    """
    net = make()
    everything: set[bytes] = set()
    async with history_of(dsns) as history, journals_of(dsns, net) as journals:
        for step in range(max(len(journal.records) for journal in journals)):
            for journal in journals:
                if step >= len(journal.records):
                    continue
                named = {one for decision in await journal.write() for one in ids_in(decision)}
                from_tail = [await found(history, one) for one in named]
                linked_from_tail = [await linked_found(history, one) for one in named]
                await journal.project()
                assert [await found(history, one) for one in named] == from_tail
                assert [await linked_found(history, one) for one in named] == linked_from_tail
                everything |= named
        from_tables = {one: await found(history, one) for one in everything}
    async with history_of(dsns) as history:
        for dsn in dict.fromkeys(dsns):
            await forget_the_tables(dsn)
        assert {one: await found(history, one) for one in everything} == from_tables


async def forget_the_tables(dsn: str) -> None:
    """
    Empty the tables, so that all is read from the journals alone.
    """
    conn = await connect(dsn, application_name="tests")
    await conn.execute(
        "TRUNCATE transfers, outcomes, pending_entries, linked_begun, linked_prepared, watermark"
    )
    await conn.close()


async def all_written(dsns: list[str], net: MoneyNet) -> None:
    async with journals_of(dsns, net) as journals:
        for journal in journals:
            while journal.written < len(journal.records):
                await journal.write()
            await journal.project()


async def test_each_leg_is_told_by_the_shards_of_its_wallets(dsns: list[str]) -> None:
    """
    Posted with the source's balance by the source's shard, credited with the destination's by that
    one's; the shard that decides adds no view of a leg between two others.
    """
    await all_written(dsns, linked_net())
    async with history_of(dsns) as history:
        views = [await found(history, leg_id(ACROSS_ID, n)) for n in range(len(ACROSS))]
    assert [[(v.shard_id, v.is_credit) for v in view] for view in views] == [
        [(0, False), (1, True)],
        [(1, False), (2, True)],
        [(2, False), (0, True)],
        [(1, False)],
        [(2, False)],
        [(0, False)],
    ]
    assert {view.state for leg_views in views for view in leg_views} == {"posted"}
    assert {view.linked_to for leg_views in views for view in leg_views} == {ACROSS_ID}
    second = views[1]
    assert second[0].source == TransferSide(THERE, None, 1_001, 3)
    assert second[0].destination == TransferSide(FAR, None, None, None)
    assert second[1].source == TransferSide(THERE, None, None, None)
    assert second[1].destination == TransferSide(FAR, None, 1_008, 2)
    assert views[4][0].destination is None  # A fee.


async def test_what_is_open_is_pending(dsns: list[str]) -> None:
    """
    Also when it is decided and one shard has not heard it; a leg whose source has is posted.
    """
    await all_written(dsns, linked_net())
    posted, undecided = linked_id_of("posted"), linked_id_of("open")
    async with history_of(dsns) as history:
        states = [
            [view.state for view in await found(history, leg_id(linked_id, n))]
            for linked_id in (posted, undecided)
            for n in range(2)
        ]
        whole = [await linked_found(history, one) for one in (posted, undecided)]
    assert states == [["posted", "posted"], ["posted"], ["pending"], ["pending"]]
    assert [one is not None and one.is_done for one in whole] == [False, False]


def linked_id_of(key: str) -> bytes:
    return linked_id_in(identifier(f"linked of {key}"))


async def test_a_rejected_leg_tells_whose_fault_it_is(dsns: list[str]) -> None:
    """
    All legs have the reason, and the one that failed by how much.
    """
    await all_written(dsns, linked_net())
    async with history_of(dsns) as history:
        first, second = [
            (await found(history, leg_id(linked_id_of("in vain"), n)))[0] for n in range(2)
        ]
    assert (first.state, second.state) == ("rejected", "rejected")
    assert first.reason == second.reason is not None
    assert first.short_by == 0 < second.short_by


async def test_what_came_with_a_slot_is_told_where_it_was_decided(dsns: list[str]) -> None:
    """
    The outcome is in the tables of both shards.
    """
    await all_written(dsns, linked_net())
    async with history_of(dsns) as history:
        whole = await linked_found(history, linked_id_of("carried"))
        (view,) = await found(history, leg_id(linked_id_of("carried"), 0))
    assert whole is not None
    assert (whole.shard_id, view.shard_id, view.state) == (1, 1, "rejected")


async def test_fees_and_refunds_are_listed(dsns: list[str]) -> None:
    """
    Fees by shard; of refunds the rows, and the last total over all databases.
    """
    await all_written(dsns, moneyed_net())
    paid = identifier("transfer of paid across")
    async with history_of(dsns) as history:
        fees, _ = await history.each(lambda conn: fees_of(conn, MERCHANT))
        others, _ = await history.each(lambda conn: fees_of(conn, "somebody"))
        pages, _ = await history.each(lambda conn: refunds_of(conn, paid, 100))
    rows = [row for page in fees for row in page]
    assert [row for page in others for row in page] == []
    assert {row.shard_id for row in rows} == {0, 2}
    assert all(isinstance(row, FeesRow) and row.balance > 0 for row in rows)
    last = max(pages, key=lambda page: page.version)
    views = [view for page in pages for view in page.views if not view.is_credit]
    assert sum(view.amount for view in views) == last.refunded == 60
