"""
The state of a shard at the watermark, as its tables tell it; the journal behind it is replayed
on top.

Rule 1: which slots the shard has, only its own journal says. What the catalog says of others' is
        a hint, and what it says of this one's is nothing.
Rule 2: what is on its way stands in the tables as it was decided, so reserved money is counted
        anew from it and nothing that can be computed is believed.
Rule 3: ends that do not fit what is on its way are `TablesBroken`: the shard halts.
"""

from __future__ import annotations

from processor.core.decisions import TransferReserved
from processor.core.invariants import broken_channels
from processor.core.slots import NOWHERE, SLOT_COUNT, SlotMap
from processor.core.state import ShardState
from processor.flow.ports import PendingRow, ShardSnapshot, SlotRow


class TablesBroken(ValueError):
    """
    The tables contradict themselves; `str` says how.
    """


def restore(shard_id: int, slot_map: SlotMap, snapshot: ShardSnapshot) -> ShardState:
    """
    Build the state at the watermark; raises TablesBroken.

    *slot_map* says where the slots of others were last seen.
    """
    state = ShardState(shard_id, _slots(shard_id, slot_map, snapshot.slots))
    state.given = {row.slot for row in snapshot.slots if row.given_to is not None}
    state.has_granted = bool(snapshot.slots)
    state.has_taken = any(row.taken_from is not None for row in snapshot.slots)
    for wallet in snapshot.wallets:
        wallet.reserved = 0
        state.load(wallet)
    _restore_channels(state, snapshot)
    for row in snapshot.pending:
        _put_out(state, row)
    broken = broken_channels(state)
    if broken:
        raise TablesBroken(f"the tables break a rule: {broken[0]}")
    return state


def _slots(shard_id: int, slot_map: SlotMap, rows: list[SlotRow]) -> SlotMap:
    owners = [slot_map.owner(slot) for slot in range(SLOT_COUNT)]
    slots = SlotMap(
        [NOWHERE if owner == shard_id else owner for owner in owners],
        [slot_map.generation(slot) for slot in range(SLOT_COUNT)],
    )
    for row in rows:
        if row.given_to is None:
            slots.assign(row.slot, shard_id, row.generation)
        else:
            # Not where the catalog saw it since: by the givers' words alone one always gets on.
            slots.assign(row.slot, row.given_to, row.generation + 1)
    return slots


def _restore_channels(state: ShardState, snapshot: ShardSnapshot) -> None:
    for end in snapshot.outgoing:
        out = state.channels.to(end.peer)
        out.head, out.chain = end.head, end.chain
        out.settled, out.settled_chain = end.settled, end.settled_chain
    for entry_end in snapshot.incoming:
        channel = state.channels.of(entry_end.peer)
        channel.cursor, channel.chain = entry_end.cursor, entry_end.chain
        channel.refused = dict(sorted(entry_end.refused.items()))
        if channel.refused and max(channel.refused) > channel.cursor:
            raise TablesBroken(f"channel from shard {entry_end.peer}: answers above its cursor")


def _put_out(state: ShardState, row: PendingRow) -> None:
    pending = row.decision
    channel = state.channels.to(pending.peer)
    channel.outbox[pending.number] = pending
    if not isinstance(pending, TransferReserved):
        return
    wallet = state.wallets.get(pending.source)
    if wallet is None:
        raise TablesBroken(f"{pending.source}: money of it is on its way, but it has no row")
    reserved = channel.reserved
    reserved[pending.currency] = reserved.get(pending.currency, 0) + pending.amount
    wallet.reserved += pending.amount
    state.keys.remember(pending, row.sequence, row.at_us)
