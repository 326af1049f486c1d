"""
Goal: what shards know of each other, and what of it is in their tables, is the same with Postgres
      and with its twin in memory.
Method: one suite, run on the twin and on one and two databases; the journals are those of two
        shards that did all that they can do with each other, and a third that did nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from msgspec.structs import replace

from processor.core.decisions import (
    PendingEntry,
    SlotTaken,
    TransferReserved,
    WalletOpened,
    decode_decisions,
)
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.slots import SLOT_COUNT, SlotMap, slot_of
from processor.core.wallet import is_system_wallet
from processor.flow.ports import SetBack, ShardCluster, ShardHalted, ShardStore, StoreUnavailable
from processor.storage.count_rows import each_hold_once, each_total_once
from tests.support.books import Journal, assert_snapshot, row_facts, tables_of
from tests.support.commands import open_wallet
from tests.support.databases import Databases, execute
from tests.support.money_net import moneyed_net
from tests.support.sealed_net import SealedNet, eventful_net
from tests.support.store_rigs import ClusterRig, MemoryClusterRig, PostgresClusterRig

MakeStore = Callable[[int], ShardStore]
MakeCluster = Callable[[int], ShardCluster]
EMPTY = """
    TRUNCATE shard, journal, watermark, wallets, transfers, slots, channels_out, channels_in,
             channel_answers, pending_entries, outcomes, holds, refunds, linked_begun,
             linked_prepared, witness, slot_map, placement, database;
    UPDATE cluster SET catalog_id = NULL
"""


@pytest.fixture(scope="module")
def two_databases(databases: Databases):
    with databases.migrated() as first, databases.migrated() as second:
        yield [first, second]


@pytest.fixture(
    params=[
        "memory",
        pytest.param("one database", marks=pytest.mark.integration),
        pytest.param("two databases", marks=pytest.mark.integration),
    ]
)
def rig(request: pytest.FixtureRequest) -> ClusterRig:
    if request.param == "memory":
        return MemoryClusterRig()
    dsns = request.getfixturevalue("two_databases")
    for dsn in dsns:
        asyncio.run(execute(dsn, EMPTY))
    asyncio.run(execute(dsns[1], "UPDATE cluster SET cluster_id = gen_random_uuid()"))
    return asyncio.run(
        PostgresClusterRig.open(dsns[:1] if request.param == "one database" else dsns)
    )


@pytest.fixture
async def make_store(rig: ClusterRig) -> AsyncIterator[MakeStore]:
    stores: list[ShardStore] = []

    def make(shard_id: int) -> ShardStore:
        stores.append(rig.store(shard_id))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def make_cluster(rig: ClusterRig) -> AsyncIterator[MakeCluster]:
    clusters: list[ShardCluster] = []

    def make(shard_id: int) -> ShardCluster:
        clusters.append(rig.cluster(shard_id))
        return clusters[-1]

    yield make
    for cluster in clusters:
        await cluster.close()


async def write(make_store: MakeStore, net: SealedNet) -> list[ShardStore]:
    """
    Write the journals of *net*; return their owners.
    """
    owners = []
    for shard in net.shards:
        owner = make_store(shard.shard_id)
        assert await owner.take_over(build="test") == shard.epoch
        for record in shard.records:
            await owner.append(record)
        owners.append(owner)
    return owners


def outcomes_of(journal: Journal) -> dict[bytes, object]:
    """
    Tell what is under each key, but for what is still on its way.
    """
    return {
        key: remembered
        for key, remembered in journal.state.keys.young.items()
        if not isinstance(remembered[0], TransferReserved)
    }


# --- The tables -----------------------------------------------------------------------------------


async def test_tables_are_those_of_the_journal_at_every_watermark(
    make_store: MakeStore, rig: ClusterRig
) -> None:
    """
    After each record the snapshot, the wallets, those of a slot and the outcomes are those of a
    shard that was replayed up to there.
    """
    net = eventful_net()
    opened = {
        decision.wallet_id
        for shard in net.shards
        for decision in Journal(shard.records, shard.shard_id).decisions
        if isinstance(decision, WalletOpened)
    }
    for owner, shard in zip(await write(make_store, net), net.shards, strict=True):
        names = sorted(opened)
        slots = {slot_of(name) for name in names}  # Those of the ledger's own too: they stay.
        for watermark in range(len(shard.records) + 1):
            journal = Journal(shard.records[:watermark], shard.shard_id)
            expected = {one.wallet_id: row_facts(one) for one in journal.state.wallets.values()}
            async with owner.recovery_view() as view:
                assert view.watermark == watermark
                assert_snapshot(journal, await view.load_snapshot())
                found = await view.load_wallets(names)
            assert {one.wallet_id: row_facts(one) for one in found} == expected
            found = await owner.load_wallets(names)
            assert {one.wallet_id: row_facts(one) for one in found} == expected
            of_slots = {
                one.wallet_id: slot for slot in slots for one in await owner.load_slot(slot)
            }
            assert of_slots == {
                name: slot_of(name) for name in expected if not is_system_wallet(name)
            }
            outcomes = outcomes_of(journal)
            told = {one[0].key: one for one in await owner.load_keys(shard.state.keys.young)}
            assert told == outcomes
            pages = [key async for page in owner.key_pages() for key in page]
            assert set(pages) == set(outcomes)
            await rig.project(shard.shard_id, 1)


async def test_snapshot_does_not_move(make_store: MakeStore, rig: ClusterRig) -> None:
    """
    What is projected while a view is open does not show in it.
    """
    net = eventful_net()
    owner = (await write(make_store, net))[0]
    await rig.project(0, 10)
    async with owner.recovery_view() as view:
        await rig.project(0)
        records = net.shards[0].records[:10]
        assert_snapshot(Journal(records), await view.load_snapshot())


async def test_keys_are_found_everywhere(make_store: MakeStore, rig: ClusterRig) -> None:
    """
    Whoever asks, every outcome that is in anybody's tables is found, each once; in the own tables
    alone only the own and what came along.
    """
    net = eventful_net()
    owners = await write(make_store, net)
    await rig.project(0)
    await rig.project(1)
    known = [outcomes_of(Journal(shard.records, shard.shard_id)) for shard in net.shards]
    everything = known[1] | known[0]
    assert everything not in known
    assert known[0].keys() & known[1].keys()  # Carried: in the tables of both.
    for owner, own in zip(owners, known, strict=True):
        found = await owner.load_keys(list(everything), everywhere=True)
        assert {one[0].key: one for one in found} == everything
        assert len(found) == len(everything)
        pages = [key async for page in owner.key_pages(everywhere=True) for key in page]
        assert set(pages) == set(everything)
        found = await owner.load_keys(list(everything))
        assert {one[0].key: one for one in found} == own


async def test_holds_and_refunds_are_found_everywhere(
    make_store: MakeStore, rig: ClusterRig
) -> None:
    """
    Whoever asks, a hold is told once, as it ended if it did, and a total as it was counted last;
    in the own tables alone as those have it.
    """
    net = moneyed_net()
    owners = await write(make_store, net)
    for shard in net.shards:
        await rig.project(shard.shard_id)
    tables = [tables_of(Journal(shard.records, shard.shard_id)) for shard in net.shards]
    holds = {hold_id for own in tables for hold_id in own.holds}
    refunds = {transfer_id for own in tables for transfer_id in own.refunds}
    latest = {
        transfer_id: max(
            (own.refunds[transfer_id] for own in tables if transfer_id in own.refunds),
            key=lambda total: total.version,
        )
        for transfer_id in refunds
    }
    assert any(own.refunds != latest and own.refunds for own in tables)
    assert sum(len(own.holds) for own in tables) == len(holds)
    for owner, own in zip(owners, tables, strict=True):
        found = await owner.load_holds(holds, everywhere=True)
        assert sorted(found, key=lambda one: one.hold_id) == sorted(
            (hold for one in tables for hold in one.holds.values()), key=lambda one: one.hold_id
        )
        assert {one.hold_id: one for one in await owner.load_holds(holds)} == own.holds
        totals = await owner.load_refunds(refunds, everywhere=True)
        assert {one.transfer_id: one for one in totals} == latest
        totals = await owner.load_refunds(refunds)
        assert {one.transfer_id: one for one in totals if one.version} == own.refunds


def test_of_several_rows_the_last_one_counts() -> None:
    """
    A hold that has ended is not open any more, and what went back is not less than it was.
    """
    hold = Hold(bytes(16), "m", "w", "", "EUR", 9, 0, 0, HoldStatus.OPEN, False, 1, 2)
    ended = replace(hold, status=HoldStatus.VOIDED)
    assert each_hold_once([hold, ended]) == each_hold_once([ended, hold]) == [ended]
    early, late = RefundTotal(bytes(16), "w", 9, 1), RefundTotal(bytes(16), "w", 5, 2)
    for rows in ([early, late], [late, early]):
        assert each_total_once([bytes(16)], rows) == [late]


# --- Keys in a database that was restored ---------------------------------------------------------


async def ask_everywhere(owner: ShardStore, keys: list[bytes]) -> int:
    """
    Look up *keys* in both ways; return how many were found.
    """
    pages = {key async for page in owner.key_pages(everywhere=True) for key in page}
    found = await owner.load_keys(keys, everywhere=True)
    assert pages >= {one[0].key for one in found}
    return len(found)


async def assert_refused(owner: ShardStore, keys: list[bytes], why: str) -> None:
    """
    No key, hold or total is looked up and no filter filled, not at the second try either.
    """
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=why):
            await owner.load_keys(keys, everywhere=True)
    with pytest.raises(StoreUnavailable, match=why):
        await owner.load_holds(keys, everywhere=True)
    with pytest.raises(StoreUnavailable, match=why):
        await owner.load_refunds(keys, everywhere=True)
    with pytest.raises(StoreUnavailable, match=why):
        [page async for page in owner.key_pages(everywhere=True)]


def record_that_sent(net: SealedNet, number: int) -> int:
    """
    Return the sequence at which shard 1 sent an entry to shard 0.
    """
    (sequence,) = (
        record.sequence
        for record in net.shards[1].records
        for decision in decode_decisions(record.payload, record.format)
        if isinstance(decision, PendingEntry) and (decision.peer, decision.number) == (0, number)
    )
    return sequence


@pytest.mark.parametrize("is_projected", [True, False], ids=["projected", "not projected"])
async def test_keys_are_not_looked_up_where_what_a_peer_sent_was_lost(
    make_store: MakeStore, rig: ClusterRig, is_projected: bool
) -> None:
    """
    Without any witness: the taker's end of the channel tells, and of slots its journal if its
    tables do not have them yet. A database with all that was taken is believed, whatever it lacks
    after that.
    """
    net = eventful_net()
    net.shards[1].ask(open_wallet("afterwards"))
    owner = (await write(make_store, net))[0]
    taken = Journal(net.shards[0].records).decisions
    number = [one.number for one in taken if isinstance(one, SlotTaken)][-1]
    if is_projected:
        await rig.project(0)
        number = net.shards[0].state.channels.of(1).cursor
    await rig.project(1)
    keys = list(outcomes_of(Journal(net.shards[1].records, 1)))
    assert await ask_everywhere(owner, keys) == len(keys)
    if not rig.has_witness:
        return  # All shards of one database go back together.
    sent_at = record_that_sent(net, number)
    await rig.restore(1, sent_at)
    kept = outcomes_of(Journal(net.shards[1].records[:sent_at], 1))
    assert await settled(lambda: ask_everywhere(owner, list(kept))) == len(kept)
    await rig.restore(1, sent_at - 1)
    await assert_refused(owner, keys, f"has taken entry {number} from shard 1")


async def settled(ask: Callable[[], Awaitable[int]]) -> int:
    """
    Ask a second time: a connection that was ended may be noticed by the first.
    """
    with contextlib.suppress(StoreUnavailable):
        return await ask()
    return await ask()


async def test_keys_are_not_looked_up_where_a_witnessed_record_was_lost(
    make_store: MakeStore, make_cluster: MakeCluster, rig: ClusterRig
) -> None:
    """
    Once it is there again, or if another one is there, the witness tells the same of its chain.
    """
    net = eventful_net()
    owner = (await write(make_store, net))[0]
    for shard_id in (0, 1):
        await rig.project(shard_id)
    last = net.shards[1].records[-1]
    keys = list(outcomes_of(Journal(net.shards[1].records, 1)))
    bear_witness = make_cluster(1).bear_witness
    await bear_witness(epoch=1, sequence=last.sequence, chain=last.chain)
    assert await ask_everywhere(owner, keys) == len(keys)
    if not rig.has_witness:
        return
    await rig.restore(1, last.sequence - 1)
    await assert_refused(owner, keys, f"shard 1 was seen at sequence {last.sequence}")
    await make_store(1).take_over(build="test")
    again = make_store(1)
    epoch = await again.take_over(build="test")
    await again.append(replace(last, epoch=epoch, chain=bytes(32)))
    await assert_refused(owner, keys, "as it was")


async def test_chain_is_found_by_its_sequence(make_store: MakeStore) -> None:
    """
    A record's chain is told, and None where there is no record.
    """
    net = eventful_net()
    for owner, shard in zip(await write(make_store, net), net.shards, strict=True):
        for record in shard.records:
            assert await owner.chain_at(record.sequence) == record.chain
        assert await owner.chain_at(0) is None
        assert await owner.chain_at(len(shard.records) + 1) is None


# --- Slots ----------------------------------------------------------------------------------------


async def test_first_slots_cover_all(make_cluster: MakeCluster) -> None:
    """
    The first slots of the shards are runs that leave nothing out, and the map says the same.
    """
    runs = [await make_cluster(shard_id).first_slots() for shard_id in range(3)]
    even = SlotMap.even(3)
    assert runs == [(even.slots_of(k)[0], even.slots_of(k)[-1]) for k in range(3)]
    seen = await make_cluster(2).slot_map()
    assert [seen.owner(slot) for slot in range(SLOT_COUNT)] == [
        even.owner(slot) for slot in range(SLOT_COUNT)
    ]
    assert {seen.generation(slot) for slot in range(SLOT_COUNT)} == {1}


async def test_map_only_moves_forward(make_cluster: MakeCluster) -> None:
    """
    Slots are noted in their generation; what comes late, or twice, changes nothing.
    """
    one, two = make_cluster(1), make_cluster(2)
    await one.note_slots([(7, 2), (8, 2)])
    await two.note_slots([(7, 3)])
    await one.note_slots([(7, 2), (8, 2)])
    await one.note_slots([])
    await two.note_slots([(0, 1)])
    seen = await two.slot_map()
    told = [(seen.owner(slot), seen.generation(slot)) for slot in (0, 7, 8, 9)]
    assert told == [(0, 1), (2, 3), (1, 2), (0, 1)]


async def test_slot_map_is_the_callers_own(make_cluster: MakeCluster) -> None:
    """
    Changing a map that was read changes nothing for others.
    """
    cluster = make_cluster(0)
    (await cluster.slot_map()).assign(5, 2, 9)
    seen = await cluster.slot_map()
    assert (seen.owner(5), seen.generation(5)) == (0, 1)


# --- Journals that were set back ------------------------------------------------------------------


async def chains(sequence: int) -> bytes | None:
    """
    Be a journal of ten records.
    """
    return bytes([sequence]) * 32 if 1 <= sequence <= 10 else None


async def test_witness_finds_what_is_missing(make_cluster: MakeCluster, rig: ClusterRig) -> None:
    """
    A journal that ends earlier than others have seen, or has another record there, was set back.
    """
    cluster = make_cluster(1)
    await cluster.check_witness(0, chains)
    await cluster.bear_witness(epoch=1, sequence=9, chain=bytes([9]) * 32)
    await cluster.check_witness(9, chains)
    await cluster.check_witness(10, chains)
    await make_cluster(0).check_witness(0, chains)  # Another shard's witness is not its own.
    if not rig.has_witness:
        await cluster.check_witness(8, chains)
        return
    with pytest.raises(SetBack, match="shard 1"):
        await cluster.check_witness(8, chains)

    async def other_chains(sequence: int) -> bytes | None:
        return bytes([sequence + 1]) * 32

    with pytest.raises(SetBack, match="another record"):
        await cluster.check_witness(10, other_chains)


async def test_witness_only_moves_forward(make_cluster: MakeCluster, rig: ClusterRig) -> None:
    """
    What is told late does not take back what was seen.
    """
    cluster = make_cluster(2)
    for sequence in (3, 9, 5):
        assert await cluster.bear_witness(epoch=1, sequence=sequence, chain=bytes([sequence]) * 32)
    await cluster.check_witness(9, chains)
    if rig.has_witness:
        with pytest.raises(SetBack):
            await cluster.check_witness(8, chains)


@pytest.mark.parametrize("projected", [(0,), (1,), (0, 1)])
async def test_peers_halt_and_nobody_else(
    make_store: MakeStore,
    make_cluster: MakeCluster,
    rig: ClusterRig,
    projected: tuple[int, ...],
) -> None:
    """
    Whoever has a channel with the shard halts for the reason told, be it known from the peer's
    tables or from the shard's own; the shard itself and strangers do not, and a reason that was
    there before stays.
    """
    await write(make_store, eventful_net())
    await make_store(2).take_over(build="test")
    for shard_id in projected:
        await rig.project(shard_id)
    await make_cluster(0).halt_peers("shard 0 was set back")
    await make_cluster(0).halt_peers("a second reason")
    with pytest.raises(ShardHalted, match="shard 0 was set back"):
        await make_store(1).take_over(build="test")
    await make_store(0).take_over(build="test")
    await make_store(2).take_over(build="test")
