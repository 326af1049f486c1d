"""
Goal: no answer is taken from a database over a connection that was not compared with the past,
      whenever the one before it ended.
Method: the keys of two databases, asked by the shard of one; the other is restored to an earlier
        point, which ends the connection to it, while a question waits for its turn.
"""

from __future__ import annotations

import asyncio

import pytest

from processor.flow.ports import StoreUnavailable
from processor.storage.catalog import open_cluster, place_shards
from processor.storage.every_database import EveryDatabase
from processor.storage.session import Session
from processor.storage.shard_store import PostgresShardStore
from tests.support.databases import Databases, execute
from tests.support.sealed_net import SealedNet, eventful_net
from tests.support.store_rigs import PostgresClusterRig
from tests.support.waiting import until


@pytest.fixture
def dsns(databases: Databases):
    with databases.migrated() as first, databases.migrated() as second:
        asyncio.run(execute(second, "UPDATE cluster SET cluster_id = gen_random_uuid()"))
        yield [first, second]


async def write(dsns: list[str], net: SealedNet) -> PostgresClusterRig:
    """
    Write and project the journals of *net*, one in each database.
    """
    placed = await place_shards(await open_cluster(dsns), 2)
    rig = PostgresClusterRig(dsns, placed)
    for placement, shard in zip(placed, net.shards, strict=True):
        store = PostgresShardStore(placement.dsn, shard.shard_id)
        await store.take_over(build="test")
        for record in shard.records:
            await store.append(record)
        await store.close()
        await rig.project(shard.shard_id)
    return rig


async def test_a_connection_that_is_made_while_one_asks_is_not_believed(dsns: list[str]) -> None:
    """
    It leads to a database that was set back, and the question was asked of the one before.
    """
    net = eventful_net()
    rig = await write(dsns, net)
    keys = list(net.shards[1].state.keys.young)
    own = Session(dsns[0], "miliano/shard-0/reader")
    everywhere = EveryDatabase(0, own, dsns[1:], "miliano/shard-0/keys")
    other = everywhere._others[0]
    found = await everywhere.outcomes_under(keys)
    assert found

    async with other._turn:
        asking = asyncio.create_task(everywhere.outcomes_under(keys))
        await rig.restore(1, 3)
        await until(lambda: not other.connection_number, "the end of the connection")
        assert not asking.done()
    with pytest.raises(StoreUnavailable, match="made anew"):
        await asking
    with pytest.raises(StoreUnavailable, match="from shard 1"):
        await everywhere.outcomes_under(keys)
    everywhere.close()
    own.close()


async def test_a_connection_is_compared_once(dsns: list[str]) -> None:
    """
    Then it is only asked for keys, until there is another one.
    """
    net = eventful_net()
    rig = await write(dsns, net)
    keys = list(net.shards[1].state.keys.young)
    own = Session(dsns[0], "miliano/shard-0/reader")
    everywhere = EveryDatabase(0, own, dsns[1:], "miliano/shard-0/keys")
    found = await everywhere.outcomes_under(keys)
    await execute(dsns[1], "DELETE FROM channels_out; UPDATE watermark SET sequence = 1000")
    assert await everywhere.outcomes_under(keys) == found
    everywhere.close()
    with pytest.raises(StoreUnavailable, match="from shard 1"):
        await everywhere.outcomes_under(keys)
    await rig.restore(1, len(net.shards[1].records))
    assert len(await everywhere.outcomes_under(keys)) == len(found)
    everywhere.close()
    own.close()
