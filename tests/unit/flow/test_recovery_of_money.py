"""
Goal: a shard with holds, refunds, limits and linked transfers in every phase begins at any
      watermark as the shard that replayed everything.
Method: the journals of shards that did all that; tables of them by an own reading of the decisions
        (`NetTables`), restored at each watermark, with the tail replayed up to the next record and
        up to the end. Then the same tables with one row changed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from msgspec.structs import replace

from processor.core.apply import apply, wallets_touched
from processor.core.commands import GiveSlot
from processor.core.decisions import (
    PrepareSent,
    VerdictSent,
    decode_decisions,
)
from processor.core.hold import RefundTotal
from processor.core.invariants import broken_channels, broken_wallets
from processor.core.record import Record
from processor.core.slots import SlotMap, slot_of
from processor.core.state import ShardState, refunds_at_stake
from processor.core.wallet import Wallet
from processor.flow.ports import ShardSnapshot
from processor.flow.recovery import TablesBroken, restore
from tests.support.books import Journal
from tests.support.bound_commands import leg, linked
from tests.support.commands import deposit, open_wallet
from tests.support.money_net import SHARD_COUNT, MoneyNet, moneyed_net
from tests.support.net_tables import NetTables
from tests.support.same_shard import assert_same, undecided
from tests.support.sealed_net import SealedNet, names_in

SHARD_IDS = range(SHARD_COUNT)


@cache
def net() -> MoneyNet:
    return moneyed_net()


def project(tables: NetTables, record: Record) -> None:
    tables.project(decode_decisions(record.payload, record.format), record.at_us)


def recovered(tables: NetTables, records: list[Record]) -> ShardState:
    """
    Begin with the tables and replay what is above them, as `actors.shard_recovery` does.
    """
    state = restore(tables.shard_id, SlotMap.even(SHARD_COUNT), tables.snapshot())
    for record in records[tables.watermark :]:
        decisions = decode_decisions(record.payload, record.format)
        named = [name for one in decisions for name in wallets_touched(state, one)]
        for wallet in tables.load_wallets(named):
            state.load(wallet)
        for decision in decisions:
            apply(state, decision, record.sequence, record.at_us)
    assert broken_channels(state) == []
    assert broken_wallets(state.wallets.values()) == []
    return state


@pytest.mark.parametrize("shard_id", SHARD_IDS)
def test_each_watermark_leads_to_the_same_shard(shard_id: int) -> None:
    """
    With no tail, and with the whole journal as the tail.
    """
    records = net().shards[shard_id].records
    tables = NetTables(shard_id)
    for count, record in enumerate(records, 1):
        project(tables, record)
        assert_same(recovered(tables, records[:count]), Journal(records[:count], shard_id).state)
        assert_same(recovered(tables, records), net().shards[shard_id].state)


def sound(shard_id: int = 0) -> ShardSnapshot:
    tables = NetTables(shard_id)
    for record in net().shards[shard_id].records:
        project(tables, record)
    return tables.snapshot()


def test_every_phase_is_begun_with() -> None:
    """
    At the end something of each kind is open here: the tests above mean what they say.
    """
    snapshot = sound()
    assert {row.posted is None for row in snapshot.linked} == {True, False}
    assert snapshot.prepared
    assert {hold.pending > 0 for hold in snapshot.holds} == {True, False}
    assert snapshot.refunds
    state = restore(0, SlotMap.even(SHARD_COUNT), snapshot)
    assert sorted(len(one.waiting) for one in state.linked.values()) == [1, 1]


def test_a_verdict_of_an_earlier_attempt_is_not_waited_for() -> None:
    """
    That nothing moves may still be on its way to one that had a part then and has none now.
    """
    net = SealedNet(4)
    here, moves, comes = (names_in(range(slot, slot + 1024), 1)[0] for slot in (0, 1024, 2048))
    net.shards[0].ask(open_wallet(here), deposit(here, 100, key="in"))
    net.shards[1].ask(open_wallet(moves))
    net.shards[2].ask(open_wallet(comes))
    net.shards[1].ask(GiveSlot(slot_of(moves), 3))
    net.carry(1, 3)
    net.shards[0].ask(linked(leg(here, moves, 1), leg(here, comes, 1)))
    net.shards[2].ask(GiveSlot(slot_of(comes), 0))
    net.carry(2, 0)
    net.carry(0, 1)  # It is elsewhere: called back, and begun anew without the second.
    entries = net.send(0, 3)
    assert entries is not None
    net.settle(0, 3, net.decide(0, 3, entries))
    state = net.shards[0].state
    (open_linked,) = state.linked.values()
    told = [one for one in undecided(state) if isinstance(one, VerdictSent)]
    assert {(one.peer, one.is_posted) for one in told} == {(2, False), (3, True)}
    assert open_linked.waiting == {3}
    records, tables = net.shards[0].records, NetTables(0)
    for count, record in enumerate(records, 1):  # Also while the second attempt is asked about.
        project(tables, record)
        assert_same(recovered(tables, records[:count]), Journal(records[:count]).state)


def broken_snapshots() -> list[Any]:
    whole = sound()
    linked = [replace(row, posted=None) for row in whole.linked]
    without_verdicts = [
        row for row in whole.pending if not isinstance(row.decision, VerdictSent | PrepareSent)
    ]
    return [
        pytest.param(replace(whole, wallets=without(whole, 0)), id="wallet of a hold lost"),
        pytest.param(replace(whole, linked=linked), id="posted, told as undecided"),
        pytest.param(replace(whole, linked=[*whole.linked, whole.linked[0]]), id="begun twice"),
        pytest.param(replace(whole, pending=without_verdicts), id="nobody is waited for"),
    ]


def without(snapshot: ShardSnapshot, place: int) -> list[Wallet]:
    return [one for one in snapshot.wallets if one.wallet_id != snapshot.holds[place].wallet_id]


@pytest.mark.parametrize("snapshot", broken_snapshots())
def test_tables_that_contradict_themselves_are_refused(snapshot: ShardSnapshot) -> None:
    """
    Money set aside of nobody, a question that nobody was asked: the shard halts instead.
    """
    with pytest.raises(TablesBroken):
        restore(0, SlotMap.even(SHARD_COUNT), snapshot)


def test_a_refund_that_comes_to_nothing_is_counted_down_after_a_restart() -> None:
    """
    Its total is in memory whenever something at stake may have to be taken back, and stays.
    """
    state = restore(0, SlotMap.even(SHARD_COUNT), sound())
    state.tables_reach(1_000)
    at_stake = refunds_at_stake(undecided(state))
    assert at_stake
    assert at_stake == state.refunds.keys()
    for number in range(50):
        state.load_refund(RefundTotal(number.to_bytes(16), "", 0, 0))
    state.forget_counts(0)
    assert state.refunds.keys() == at_stake
