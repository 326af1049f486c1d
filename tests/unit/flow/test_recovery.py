"""
Goal: a shard that begins at its watermark is the shard that replayed everything, and tables that
      contradict themselves are not begun with.
Method: a snapshot after each record of a journal with all that can be on its way; then the same
        snapshot with one thing changed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from processor.core.commands import GiveSlot
from processor.core.slots import NOWHERE, SLOT_COUNT, SlotMap, slot_of
from processor.core.state import ShardState
from processor.flow.ports import InEnd, ShardSnapshot, SlotRow
from processor.flow.recovery import TablesBroken, restore
from tests.support.commands import deposit, open_wallet, transfer
from tests.support.shard_net import NetShard, ShardNet, names_on

SHARD_COUNT = 3
PAYER, LEAVING = names_on(0, SHARD_COUNT)[:2]
PAYEE, NOBODY = names_on(1, SHARD_COUNT)[:2]
BACK = names_on(2, SHARD_COUNT)[0]
EMPTY = ShardSnapshot([], [], [], [], [])


def busy() -> ShardNet:
    """
    Make shards that have settled, refused, given and taken, with more of all that on its way.
    """
    net = ShardNet(SHARD_COUNT)
    net.ask(0, [open_wallet(PAYER), deposit(PAYER, 100, key="first"), open_wallet(LEAVING)])
    net.ask(1, [open_wallet(PAYEE), deposit(PAYEE, 9, key="second")])
    net.ask(2, [open_wallet(BACK), deposit(BACK, 9, key="third")])
    net.ask(0, [transfer(PAYER, PAYEE, 1, key="paid"), transfer(PAYER, NOBODY, 2, key="refused")])
    net.ask(1, [transfer(PAYEE, slot, 1, key=f"to {slot}") for slot in ("nobody", BACK)])
    net.settle()
    net.ask(2, [GiveSlot(slot_of(BACK), 0)])
    net.settle()
    net.ask(1, [transfer(PAYEE, PAYER, 1, key="here"), transfer(PAYEE, "nobody", 1, key="no")])
    net.ask(0, [transfer(PAYER, PAYEE, 3, key="pending"), GiveSlot(slot_of(LEAVING), 1)])
    net.ask(0, [transfer(BACK, PAYEE, 1, key="from what came")])
    for shard in net.shards:
        net.commit(shard.shard_id)
    for _ in range(2):
        net.arrive(1, 0)
        net.commit(0)
    return net


def known(state: ShardState) -> dict[str, object]:
    """
    Tell all that a shard knows besides wallets and outcomes.
    """
    channels = state.channels
    return {
        "own": state.slots.slots_of(state.shard_id),
        "generations": [state.slots.generation(slot) for slot in range(SLOT_COUNT)],
        "given": state.given,
        "granted": state.has_granted,
        "taken": state.has_taken,
        "out": {
            peer: (c.head, c.chain, c.settled, c.settled_chain, c.outbox, +Counter(c.reserved))
            for peer, c in channels.outgoing.items()
            if c.head
        },
        "in": {peer: (c.cursor, c.chain, c.refused) for peer, c in channels.incoming.items()},
        "reserved": {name: one.reserved for name, one in state.wallets.items() if one.reserved},
    }


def at_every_watermark(shard: NetShard) -> list[dict[str, object]]:
    found = []
    while shard.tables.watermark < len(shard.journal):
        shard.project(1, durably=True)
        shard.recover(with_tables=True)
        found.append(known(shard.state))
    return found


@pytest.mark.parametrize("shard_id", [0, 1, 2])
def test_each_watermark_leads_to_the_same_shard(shard_id: int) -> None:
    """
    However much of the journal is in the tables.
    """
    shard = busy().shards[shard_id]
    shard.recover()
    whole = known(shard.state)
    for state in at_every_watermark(shard):
        assert state == whole


def test_what_is_on_its_way_is_remembered_under_its_key() -> None:
    """
    The key asked again says pending, and does not pay again.
    """
    net = busy()
    shard = net.shards[0]
    shard.project(99, durably=True)
    shard.recover(with_tables=True)
    pending = transfer(PAYER, PAYEE, 3, key="pending")
    assert shard.state.keys.find(pending.key) is not None
    for _ in range(3):
        shard.state.forget_keys(99)
    assert shard.state.keys.find(pending.key) is not None


def test_the_catalog_does_not_say_what_is_here() -> None:
    """
    Its map may be of a later time than the tables, or wrong: only the journal gives a slot.
    """
    slots = SlotMap.even(2)
    rows = [SlotRow(0, 1, None, None), SlotRow(1, 3, 7, 5), SlotRow(4000, 2, 1, None)]
    state = restore(0, slots, msgspec.structs.replace(EMPTY, slots=rows))
    assert state.slots.slots_of(0) == [0, 4000]
    assert (state.slots.owner(2), state.slots.owner(3000)) == (NOWHERE, 1)
    assert (state.slots.owner(1), state.slots.generation(1)) == (5, 4)
    assert (state.given, state.has_granted, state.has_taken) == ({1}, True, True)
    assert slots.owner(0) == 0
    assert slots.owner(4000) == 1


def test_a_shard_without_slots_is_granted_its_first_ones() -> None:
    """
    Nothing was granted while there is no row.
    """
    state = restore(0, SlotMap.even(2), EMPTY)
    assert (state.has_granted, state.has_taken) == (False, False)
    assert state.slots.slots_of(0) == []


def test_answers_are_forgotten_in_order_however_they_were_read() -> None:
    """
    Rows come in any order; the first number is looked at alone.
    """
    end = InEnd(1, 9, bytes(16), {7: 30, 3: 30, 5: 30})
    state = restore(0, SlotMap.even(2), msgspec.structs.replace(EMPTY, incoming=[end]))
    channel = state.channels.of(1)
    assert channel.has_answers_to(3)
    channel.forget_answers(5)
    assert channel.refused == {7: 30}


def broken_snapshots() -> list[Any]:
    shard = busy().shards[0]
    shard.project(99, durably=True)
    sound = shard.tables.snapshot()
    end, answered = sound.outgoing[0], sound.incoming[0]
    replace = msgspec.structs.replace

    def with_end(**changes: object) -> ShardSnapshot:
        return replace(sound, outgoing=[replace(end, **changes), *sound.outgoing[1:]])

    return [
        pytest.param(with_end(head=end.head + 1), id="head"),
        pytest.param(with_end(settled=end.settled - 1), id="settled"),
        pytest.param(with_end(chain=bytes(16)), id="chain"),
        pytest.param(with_end(settled_chain=bytes(16)), id="settled chain"),
        pytest.param(replace(sound, pending=sound.pending[1:]), id="pending lost"),
        pytest.param(replace(sound, outgoing=[]), id="end lost"),
        pytest.param(replace(sound, wallets=[]), id="source lost"),
        pytest.param(
            replace(sound, incoming=[replace(answered, refused={answered.cursor + 1: 30})]),
            id="answer above the cursor",
        ),
    ]


@pytest.mark.parametrize("snapshot", broken_snapshots())
def test_tables_that_contradict_themselves_are_refused(snapshot: ShardSnapshot) -> None:
    """
    A gap, another chain, money on its way of nobody: the shard halts instead.
    """
    with pytest.raises(TablesBroken):
        restore(0, SlotMap.even(SHARD_COUNT), snapshot)
