"""
Goal: a shard believes what other databases say of keys only while none of them lacks what led to a
      slot that it has; wherever their tables are, nothing whole is refused and nothing lost passes.
Method: the journals of three shards between which a slot goes from one to the next, and back and
        forth, in twins of their databases; tables at every watermark, and journals that were cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from processor.core.commands import GiveSlot
from processor.core.decisions import DECISION_FORMAT, SlotGiven, decode_decisions
from processor.core.slots import slot_of
from processor.flow.known_past import check_past
from processor.flow.ports import StoreUnavailable
from processor.storage.memory_store import MemoryDatabase, MemoryPast
from tests.support.commands import deposit, open_wallet, transfer
from tests.support.sealed_net import SealedNet, names_in

ALICE = names_in(range(1000), 1)[0]


def net_with_moves(*owners: int) -> SealedNet:
    """
    Let a slot with a wallet go from the first shard to *owners*, one after the other.
    """
    net = SealedNet(3)
    net.shards[0].ask(open_wallet(ALICE))
    at = 0
    for owner in owners:
        net.shards[at].ask(deposit(ALICE, 10, key=f"deposit for {owner}"))
        net.shards[at].ask(GiveSlot(slot_of(ALICE), owner))
        net.carry(at, owner)
        at = owner
    return net


def databases_of(net: SealedNet, watermarks: Sequence[int] = ()) -> list[MemoryDatabase]:
    """
    Write the journals, and project up to *watermarks*; all, if not told else.
    """
    databases = [MemoryDatabase(shard.shard_id) for shard in net.shards]
    for database, shard in zip(databases, net.shards, strict=True):
        for record in shard.records:
            database.add(record)
        database.project(watermarks[shard.shard_id] if watermarks else None)
    return databases


def giving(net: SealedNet, shard_id: int, peer: int) -> int:
    """
    Return the sequence at which a shard gave the slot to *peer* first.
    """
    return next(
        record.sequence
        for record in net.shards[shard_id].records
        for decision in decode_decisions(record.payload, record.format)
        if isinstance(decision, SlotGiven) and decision.peer == peer
    )


def cut(database: MemoryDatabase, sequence: int) -> None:
    """
    Restore a database to what it was at *sequence*; its tables are no later than that.
    """
    watermark = min(database.watermark, sequence)
    del database.journal[sequence:]
    database.crash()
    database.project(max(0, watermark - database.watermark))
    assert database.watermark <= sequence


async def check(shard_id: int, databases: Sequence[MemoryDatabase]) -> None:
    own = databases[shard_id]
    await check_past(shard_id, MemoryPast(own, [one for one in databases if one is not own]))


async def test_a_whole_past_is_believed_wherever_the_tables_are() -> None:
    """
    What the tables of one do not have yet is read in its journal: tables that are behind are not
    tables that were set back.
    """
    net = net_with_moves(1, 2, 0, 2)
    ranges = [range(0, len(shard.records) + 1, 2) for shard in net.shards]
    for watermarks in itertools.product(*ranges):
        databases = databases_of(net, watermarks)
        for shard_id in range(3):
            await check(shard_id, databases)


@pytest.mark.parametrize("is_projected", list(itertools.product([True, False], repeat=2)))
async def test_a_giver_that_lacks_the_giving_is_found(is_projected: tuple[bool, bool]) -> None:
    """
    Also by who has the slot from somebody else, and when neither of them has it in its tables yet:
    the keys of the first owner are in the first owner's tables.
    """
    net = net_with_moves(1, 2)
    given = giving(net, 0, 1)
    watermarks = [given, *(1_000 if each else 0 for each in is_projected)]
    databases = databases_of(net, watermarks)
    cut(databases[0], given)
    await check(2, databases)
    cut(databases[0], given - 1)
    with pytest.raises(StoreUnavailable, match="shard 1 has taken entry 1 from shard 0"):
        await check(2, databases)
    await check(0, databases)  # Its own end does not look for more than it has.


async def test_an_owner_in_between_is_found_when_the_slot_came_another_way_since() -> None:
    """
    Nobody's row of the slot names it any more, the channel still does.
    """
    net = net_with_moves(1, 2, 0, 2)
    databases = databases_of(net)
    cut(databases[1], giving(net, 1, 2) - 1)
    with pytest.raises(StoreUnavailable, match="shard 2 has taken entry 1 from shard 1"):
        await check(2, databases)


async def test_what_a_journal_adds_to_tables_that_were_looked_at_is_looked_at_too() -> None:
    """
    The tables of shard 1 have what shard 3 took from it, but not yet the slot that it took and gave
    on; shard 2 gave that to shard 3.
    """
    net = SealedNet(4)
    names = [names_in(range(low, low + 1024), 2)[1] for low in range(0, 4096, 1024)]
    for shard, name in zip(net.shards, names, strict=True):
        shard.ask(open_wallet(name), deposit(name, 10, key=f"to {name}"))
    net.shards[0].ask(open_wallet(ALICE))
    for source in (2, 1):
        net.shards[source].ask(transfer(names[source], names[3], 1, key=f"from {source}"))
        net.carry(source, 3)
    watermarks = [len(shard.records) for shard in net.shards]
    for giver in range(3):
        net.shards[giver].ask(GiveSlot(slot_of(ALICE), giver + 1))
        net.carry(giver, giver + 1)
    watermarks[2:] = [1_000, 1_000]
    databases = databases_of(net, watermarks)
    await check(3, databases)
    cut(databases[0], giving(net, 0, 1) - 1)
    with pytest.raises(StoreUnavailable, match="shard 1 has taken entry 1 from shard 0"):
        await check(3, databases)


async def test_a_giver_that_is_in_no_known_database_is_missed() -> None:
    """
    A shard that was not told of a new database cannot have read the keys there.
    """
    databases = databases_of(net_with_moves(1, 2))
    with pytest.raises(StoreUnavailable, match="from shard 0"):
        await check_past(2, MemoryPast(databases[2], [databases[1]]))


async def test_a_witness_of_a_shard_elsewhere_refuses_nothing() -> None:
    """
    A new database that this shard was not told of is no database that was set back.
    """
    databases = databases_of(net_with_moves(1))
    databases[1].witness[7] = (5, bytes(32))
    await check(1, databases)
    databases[1].witness[0] = (5, bytes(32))
    with pytest.raises(StoreUnavailable, match="shard 0 was seen at sequence 5"):
        await check(1, databases)


async def test_a_journal_that_is_not_understood_proves_nothing() -> None:
    """
    A newer build has written it.
    """
    net = net_with_moves(1, 2)
    databases = databases_of(net, [0, 1_000, 1_000])
    last = databases[0].journal[-1]
    databases[0].journal[-1] = replace(last, format=DECISION_FORMAT + 1)
    with pytest.raises(StoreUnavailable, match="newer build"):
        await check(2, databases)
