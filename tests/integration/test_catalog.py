"""
Goal: a cluster is opened only with all of its databases and none of another's; shards are placed
      once and spread; and a database that was set back is found, and its peers stop.
Method: real databases; a copy (CREATE DATABASE ... TEMPLATE) is the backup that is restored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from processor.core.slots import SLOT_COUNT, SlotMap
from processor.flow.ports import SetBack, ShardHalted, StoreUnavailable
from processor.storage.catalog import (
    SHARDS_CHANNEL,
    ForeignDatabase,
    Placement,
    dsn_of,
    open_cluster,
    place_shard,
    place_shards,
    read_placements,
    read_slot_map,
)
from processor.storage.cluster import PostgresCluster
from processor.storage.directory import Directory, ShardEntry
from processor.storage.shard_store import PostgresShardStore
from processor.storage.slot_map import SLOTS_CHANNEL
from tests.support.databases import Databases, execute, reading
from tests.support.sealed_net import SealedNet, eventful_net
from tests.support.store_rigs import project_once
from tests.support.waiting import until


@pytest.fixture
def dsns(databases: Databases) -> Iterator[list[str]]:
    """
    Give three databases that are migrated and know nothing of each other.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(databases.migrated()) for _ in range(3)]


async def identities(dsns: list[str]) -> list[tuple[bytes, bytes, bytes | None]]:
    found = []
    for dsn in dsns:
        async with reading(dsn) as connection:
            row = await connection.fetchrow(
                "SELECT cluster_id, database_id, catalog_id FROM cluster"
            )
        found.append(tuple(row))
    return found


# --- Opening --------------------------------------------------------------------------------------


async def test_new_databases_are_adopted(dsns: list[str]):
    """
    At first, and when one more is given later, empty databases become the cluster's; opening
    again changes nothing, in whatever order the others come.
    """
    assert [one.dsn for one in await open_cluster(dsns[:2])] == dsns[:2]
    before = await identities(dsns)
    assert before[0][0] == before[1][0] != before[2][0]
    opened = await open_cluster(dsns)
    after = await identities(dsns)
    assert after[:2] == before[:2]
    assert {row[0] for row in after} == {before[0][0]}
    assert {row[2] for row in after} == {before[0][1]}
    assert [one.database_id for one in opened] == [row[1] for row in after]
    assert await open_cluster([dsns[0], dsns[2], dsns[1]]) == [opened[0], opened[2], opened[1]]
    assert await identities(dsns) == after


async def test_an_adoption_that_was_cut_off_is_completed(dsns: list[str]):
    """
    A database that was adopted and not registered yet is registered at the next start.
    """
    await open_cluster(dsns[:1])
    (catalog, _, _) = await identities(dsns)
    async with reading(dsns[1]) as connection:
        await connection.execute(
            "UPDATE cluster SET cluster_id = $1, catalog_id = $2", catalog[0], catalog[1]
        )
    await open_cluster(dsns[:2])
    with pytest.raises(ForeignDatabase, match="2 databases"):
        await open_cluster(dsns[:1])


DATA = {
    "a shard": "INSERT INTO shard (shard_id) VALUES (0)",
    "a journal": "INSERT INTO journal VALUES (0, 1, 1, 1, 1, 1, '\\x00', '\\x00')",
    "a merchant": "INSERT INTO merchants (merchant_id, name) VALUES ('acme', 'Acme')",
    "a catalog": "UPDATE cluster SET catalog_id = database_id",
}


@pytest.mark.parametrize("what", DATA)
async def test_a_database_of_somebody_else_is_refused(dsns: list[str], what: str):
    """
    Whatever is in it, it does not become another cluster's, and nothing changes anywhere.
    """
    await open_cluster(dsns[:1])
    await execute(dsns[1], DATA[what])
    before = await identities(dsns)
    with pytest.raises(ForeignDatabase, match=r"database 2 .* another cluster.* an empty database"):
        await open_cluster(dsns)
    assert await identities(dsns) == before
    await open_cluster(dsns[:1])


async def test_data_that_the_catalog_does_not_know_is_refused(dsns: list[str]):
    """
    A database of this cluster with shards, of which the catalog knows nothing: it was set back.
    """
    await open_cluster(dsns[:2])
    await execute(dsns[1], DATA["a shard"])
    await execute(
        dsns[0],
        "DELETE FROM database WHERE database_id <> (SELECT database_id FROM cluster)",
    )
    with pytest.raises(ForeignDatabase, match=r"database 2 .* set back"):
        await open_cluster(dsns[:2])


async def test_a_database_given_twice_is_refused(dsns: list[str]):
    """
    Neither the same one nor a copy of it can be a second database.
    """
    await open_cluster(dsns[:2])
    with pytest.raises(ForeignDatabase, match=r"database 3 .* same as database 2"):
        await open_cluster([*dsns[:2], dsns[1]])
    with pytest.raises(ForeignDatabase, match=r"database 2 .* same as database 1"):
        await open_cluster([dsns[2], dsns[2]])


async def test_a_missing_database_is_refused(dsns: list[str]):
    """
    Without one of its databases a cluster is not opened; the refusal says how many there are.
    """
    await open_cluster(dsns)
    missing = (await identities(dsns))[1][1].hex()
    with pytest.raises(ForeignDatabase, match=f"3 databases, and 1 of them .*{missing}"):
        await open_cluster([dsns[0], dsns[2]])


async def test_the_catalog_comes_first(dsns: list[str]):
    """
    In another order, or without it, the cluster is not opened as if it were a new one.
    """
    await open_cluster(dsns)
    with pytest.raises(ForeignDatabase, match=r"give database 2 .* first"):
        await open_cluster([dsns[1], dsns[0], dsns[2]])
    with pytest.raises(ForeignDatabase, match="does not have the catalog"):
        await open_cluster([dsns[1]])


async def test_refusals_tell_no_password(dsns: list[str]):
    """
    A database is named by its number and its name, never by its whole DSN.
    """
    with pytest.raises(ForeignDatabase) as refusal:
        await open_cluster([dsns[0], dsns[0]])
    assert dsns[0] not in str(refusal.value)
    assert "postgres@" not in str(refusal.value)


async def test_two_openings_at_once_agree(dsns: list[str]):
    """
    Both find the same cluster, and one place for each shard.
    """

    async def start() -> list[Placement]:
        return await place_shards(await open_cluster(dsns), 4)

    first, second = await asyncio.gather(start(), start())
    assert first == second
    assert len(first) == 4


async def test_a_database_that_is_down_is_told_so(dsns: list[str]):
    """
    Nothing is opened without all databases; the next start tries again.
    """
    nowhere = dsns[1].replace("host=/", "host=/nowhere/")
    with pytest.raises(StoreUnavailable):
        await open_cluster([dsns[0], nowhere])
    with pytest.raises(StoreUnavailable):
        await PostgresCluster(0, nowhere, [nowhere]).slot_map()


# --- Placing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_count", [1, 2, 5])
async def test_first_shards_are_spread_and_placed_once(dsns: list[str], shard_count: int):
    """
    Shard k lives in database k modulo their number, with an even run of slots; whoever starts
    later with another count finds what is placed.
    """
    opened = await open_cluster(dsns)
    placed = await place_shards(opened, shard_count)
    even = SlotMap.even(shard_count)
    assert [(one.shard_id, one.database_number, one.dsn) for one in placed] == [
        (shard_id, shard_id % 3, dsns[shard_id % 3]) for shard_id in range(shard_count)
    ]
    assert [(one.first_slot, one.last_slot) for one in placed] == [
        (even.slots_of(k)[0], even.slots_of(k)[-1]) for k in range(shard_count)
    ]
    seen = await read_slot_map(dsns[0])
    assert [seen.owner(slot) for slot in range(SLOT_COUNT)] == [
        even.owner(slot) for slot in range(SLOT_COUNT)
    ]
    assert await place_shards(opened, shard_count + 3) == placed
    assert await read_placements(opened) == placed
    for one in placed:
        assert await dsn_of(dsns, one.shard_id) == one.dsn
    with pytest.raises(ForeignDatabase, match="not placed"):
        await dsn_of(dsns, 99)
    if shard_count > 1:
        with pytest.raises(ForeignDatabase, match="not among the DSNs"):
            await dsn_of(dsns[:1], 1)


async def test_a_shard_is_found_past_a_database_that_is_down(dsns: list[str]):
    """
    Another database that does not answer keeps no shard from its own; when its own does not
    answer, it is not said to be missing.
    """
    placed = await place_shards(await open_cluster(dsns), 2)
    nowhere = "postgresql://postgres@127.0.0.1:1/nowhere"
    assert await dsn_of([dsns[0], nowhere, dsns[1]], 1) == placed[1].dsn
    with pytest.raises(StoreUnavailable):
        await dsn_of([dsns[0], nowhere], 1)


async def test_a_ledger_of_one_shard_stays_one(dsns: list[str]):
    """
    A ledger from before there was a catalog keeps its shard, with all slots, also when more
    databases are given with it.
    """
    await execute(dsns[0], DATA["a shard"])
    (placed,) = await place_shards(await open_cluster(dsns), 4)
    assert (placed.shard_id, placed.dsn) == (0, dsns[0])
    assert (placed.first_slot, placed.last_slot) == (0, SLOT_COUNT - 1)
    assert (await read_slot_map(dsns[0])).slots_of(0) == list(range(SLOT_COUNT))


async def test_shards_without_a_placement_are_not_placed_anew(dsns: list[str]):
    """
    With shards that the catalog should know and does not, nothing is guessed.
    """
    opened = await open_cluster(dsns)
    await execute(dsns[0], "INSERT INTO shard (shard_id) VALUES (0), (2)")
    with pytest.raises(ForeignDatabase, match="set back"):
        await place_shards(opened, 3)
    assert await read_placements(opened) == []


async def test_more_shards_go_where_the_fewest_are(dsns: list[str]):
    """
    A new shard begins without slots, where there is most room or where one wants it.
    """
    opened = await open_cluster(dsns)
    await place_shards(opened, 4)
    more = [await place_shard(opened) for _ in range(2)]
    more.append(await place_shard(opened, opened[2].database_id))
    assert [(one.shard_id, one.database_number) for one in more] == [(4, 1), (5, 2), (6, 2)]
    assert {(one.first_slot, one.last_slot) for one in more} == {(None, None)}
    assert (await read_placements(opened))[4:] == more
    cluster = PostgresCluster(4, dsns[1], dsns)
    assert await cluster.first_slots() is None
    await cluster.close()
    seen = await read_slot_map(dsns[0])
    assert [seen.slots_of(one.shard_id) for one in more] == [[], [], []]


async def test_what_changes_is_notified(dsns: list[str]):
    """
    Who listens hears of a new shard and of slots that moved, and of nothing when none did.
    """
    opened = await open_cluster(dsns)
    heard: list[str] = []
    cluster = PostgresCluster(1, dsns[1], dsns)
    async with reading(dsns[0]) as listening:
        for channel in (SHARDS_CHANNEL, SLOTS_CHANNEL):
            await listening.add_listener(channel, lambda *told: heard.append(told[2]))
        await place_shards(opened, 2)
        await until(lambda: len(heard) == 2, "the first shards")
        await cluster.note_slots([(1, 1)])
        await cluster.note_slots([(1, 2), (2, 2)])
        await until(lambda: len(heard) == 3, "the slots")
    assert sorted(heard[:2]) == [SHARDS_CHANNEL, SLOTS_CHANNEL]
    assert heard[2] == SLOTS_CHANNEL
    await cluster.close()


# --- Watching -------------------------------------------------------------------------------------


async def test_the_directory_watches_all_databases(dsns: list[str]):
    """
    The shards of all databases are told as one list, and the map of slots as it changes.
    """
    opened = await open_cluster(dsns)
    shards: list[list[ShardEntry]] = []
    maps: list[SlotMap] = []
    watching = asyncio.create_task(Directory(dsns, shards.append, maps.append).run())
    cluster = PostgresCluster(2, dsns[2], dsns)
    try:
        await until(lambda: shards, "the first look")
        assert not maps
        await place_shards(opened, 3)
        await until(lambda: maps, "the first map")
        for shard_id in (2, 0, 1):
            await execute(dsns[shard_id], f"INSERT INTO shard (shard_id) VALUES ({shard_id})")
        await until(lambda: len(shards[-1]) == 3, "all shards")
        assert [entry.shard_id for entry in shards[-1]] == [0, 1, 2]
        maps[-1].assign(9, 1, 50)  # Its own copy: a hint that came from elsewhere.
        await cluster.note_slots([(7, 2)])
        await until(lambda: len(maps) == 2, "the second map")
        assert (maps[-1].owner(7), maps[-1].generation(9)) == (2, 1)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await cluster.close()


async def test_a_database_that_is_down_keeps_its_entries(dsns: list[str]):
    """
    While one database cannot be reached, the shards of the others are told as before.
    """
    nowhere = dsns[1].replace("host=/", "host=/nowhere/")
    shards: list[list[ShardEntry]] = []
    watching = asyncio.create_task(Directory([dsns[0], nowhere], shards.append).run())
    try:
        await until(lambda: shards, "the first look")
        await execute(dsns[0], DATA["a shard"])
        await until(lambda: len(shards[-1]) == 1, "the shard")
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


# --- A database that was set back -----------------------------------------------------------------


@asynccontextmanager
async def copy_of(databases: Databases, dsn: str) -> AsyncIterator[str]:
    """
    Make a copy that is dropped after the block; what makes it runs a loop of its own.
    """
    with ExitStack() as stack:
        yield await asyncio.to_thread(stack.enter_context, databases.copy_of(dsn))
        await asyncio.to_thread(stack.close)


async def written(placed: list[Placement], net: SealedNet, counts: list[int]) -> None:
    """
    Append the records up to *counts* that the databases do not have yet, and project them.
    """
    for placement, shard, count in zip(placed, net.shards, counts, strict=True):
        async with reading(placement.dsn) as connection:
            has = await connection.fetchval("SELECT coalesce(max(sequence), 0) FROM journal")
        store = PostgresShardStore(placement.dsn, shard.shard_id)
        await store.take_over(build="test")
        async with reading(placement.dsn) as connection:
            for record in shard.records[has:count]:
                await connection.execute(
                    "INSERT INTO journal VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                    *(record.shard_id, record.sequence, record.epoch, record.at_us),
                    *(record.count, record.format, record.chain, record.payload),
                )
        await store.close()
        await project_once(placement.dsn, shard.shard_id, 1_000)


async def test_a_database_restored_from_an_old_copy_is_found(dsns: list[str], databases: Databases):
    """
    What the other database has seen of the journal is missing in the copy: the shard must halt,
    and the peer that it has a channel with is halted with the reason.
    """
    dsns = dsns[:2]
    placed = await place_shards(await open_cluster(dsns), 2)
    net = eventful_net()
    await written(placed, net, [10, 10])
    async with copy_of(databases, dsns[0]) as restored:
        await written(placed, net, [20, 20])
        cluster = PostgresCluster(0, dsns[0], dsns)
        store = PostgresShardStore(dsns[0], 0)
        last = net.shards[0].records[19]
        await cluster.bear_witness(epoch=1, sequence=20, chain=last.chain)
        await cluster.check_witness(20, store.chain_at)
        await cluster.close()
        await store.close()

        set_back = [restored, dsns[1]]
        assert [one.dsn for one in await open_cluster(set_back)] == set_back
        cluster = PostgresCluster(0, restored, set_back)
        store = PostgresShardStore(restored, 0)
        with pytest.raises(SetBack, match="at sequence 20, here it ends at 10") as found:
            await cluster.check_witness(10, store.chain_at)
        await store.halt(str(found.value))
        await cluster.halt_peers(str(found.value))
        peer = PostgresShardStore(dsns[1], 1)
        for halted in (store, peer):
            with pytest.raises(ShardHalted, match="here it ends at 10"):
                await halted.take_over(build="test")
            await halted.close()
        await cluster.close()


async def test_a_journal_that_went_on_otherwise_is_found(dsns: list[str]):
    """
    As long as before, but with other records: the chain tells.
    """
    placed = await place_shards(await open_cluster(dsns), 2)
    net = eventful_net()
    await written(placed, net, [20, 10])
    cluster = PostgresCluster(0, dsns[0], dsns)
    store = PostgresShardStore(dsns[0], 0)
    await cluster.bear_witness(epoch=1, sequence=15, chain=net.shards[0].records[14].chain)
    await cluster.check_witness(20, store.chain_at)
    await cluster.bear_witness(epoch=1, sequence=16, chain=bytes(32))
    with pytest.raises(SetBack, match="another record at sequence 16"):
        await cluster.check_witness(20, store.chain_at)
    await execute(dsns[1], "DELETE FROM witness")
    await execute(dsns[2], "DELETE FROM witness")
    await cluster.check_witness(20, store.chain_at)
    await store.close()
    await cluster.close()


async def test_a_witness_that_is_down_says_nothing(dsns: list[str]):
    """
    A shard recovers and goes on while another database is down.
    """
    await open_cluster(dsns)
    nowhere = dsns[1].replace("host=/", "host=/nowhere/")
    cluster = PostgresCluster(0, dsns[0], [dsns[0], nowhere, dsns[2]])
    store = PostgresShardStore(dsns[0], 0)
    await cluster.check_witness(5, store.chain_at)
    await cluster.bear_witness(epoch=1, sequence=5, chain=bytes(32))
    with pytest.raises(SetBack):
        await cluster.check_witness(4, store.chain_at)
    with pytest.raises(StoreUnavailable):
        await cluster.halt_peers("because")
    await store.close()
    await cluster.close()
