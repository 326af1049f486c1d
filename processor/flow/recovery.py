"""
The state of a shard at the watermark, as its tables tell it; the journal behind it is replayed
on top.

Rule 1: which slots the shard has, only its own journal says. What the catalog says of others' is
        a hint, and what it says of this one's is nothing.
Rule 2: what is on its way, held or undecided stands in the tables as it was decided, so money that
        is set aside is counted anew from it and nothing that can be computed is believed.
Rule 3: ends that do not fit what is on its way are `TablesBroken`: the shard halts.
Rule 4: whoever is still waited for in a linked transfer is whom it was sent to, and who has not
        answered: what says so is still on its way.
Rule 5: no tail asks for more than this and the wallets it touches. It changes only holds that keep
        something or have captures on their way, or that it places or takes itself: one that has
        ended for good never changes. It tells totals as they are; only what comes to nothing is
        counted from what was known before, and of that the totals are here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from processor.core.apply_counts import take_hold
from processor.core.apply_linked import begin, set_aside
from processor.core.channel import weight_sent
from processor.core.decisions import Decision, PrepareSent, TransferReserved, VerdictSent
from processor.core.hold import Hold
from processor.core.invariants import broken_channels
from processor.core.linked import moves_begun, moves_prepared
from processor.core.slots import NOWHERE, SLOT_COUNT, SlotMap
from processor.core.state import ShardState, refunds_at_stake
from processor.core.wallet import is_system_wallet
from processor.flow.ports import LinkedRow, PendingRow, PreparedRow, ShardSnapshot, SlotRow


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
        wallet.reserved = wallet.held = wallet.holds_open = wallet.incoming = 0
        state.load(wallet)
    _restore_channels(state, snapshot)
    try:
        for row in snapshot.pending:
            _put_out(state, row)
        _restore_counts(state, snapshot)
        _restore_linked(state, snapshot)
    except KeyError as error:
        raise TablesBroken(f"{error}: money of it is set aside, but it has no row") from error
    except AssertionError as error:
        raise TablesBroken(f"the tables break a rule: {error}") from error
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
    channel.weight += weight_sent(pending)
    if not isinstance(pending, TransferReserved):
        return
    reserved = channel.reserved
    reserved[pending.currency] = reserved.get(pending.currency, 0) + pending.amount
    state.wallets[pending.source].reserved += pending.amount
    state.keys.remember(pending, row.sequence, row.at_us)


def _restore_counts(state: ShardState, snapshot: ShardSnapshot) -> None:
    for hold in snapshot.holds:
        take_hold(state, hold, 0)
    for total in snapshot.refunds:
        state.load_refund(total)


def _restore_linked(state: ShardState, snapshot: ShardSnapshot) -> None:
    asked, told = _waited_for(state)
    for row in snapshot.linked:
        begun = row.begun
        linked = begin(state, begun, row.sequence, row.at_us)
        linked.posted = row.posted
        if row.posted is None:
            linked.waiting = asked[begun.transfer_id, begun.attempt]
            set_aside(state, moves_begun(state.shard_id, begun), 0)
        else:
            linked.waiting = told[begun.transfer_id]
        assert linked.waiting, f"linked transfer {begun.transfer_id.hex()} waits for nobody"
        state.keys.remember(begun, row.sequence, row.at_us)
    for one in snapshot.prepared:
        state.prepared[one.prepared.linked_id] = (one.prepared, one.sequence, one.at_us)
        set_aside(state, moves_prepared(state.shard_id, one.prepared), 0)


def _waited_for(
    state: ShardState,
) -> tuple[dict[tuple[bytes, int], set[int]], dict[bytes, set[int]]]:
    """
    Tell of linked transfers which peers are asked to prepare an attempt, and which are told that it
    is posted. That an earlier attempt moves nothing may be on its way, too.
    """
    asked: dict[tuple[bytes, int], set[int]] = defaultdict(set)
    told: dict[bytes, set[int]] = defaultdict(set)
    for peer, channel in state.channels.outgoing.items():
        for sent in channel.outbox.values():
            if isinstance(sent, PrepareSent):
                asked[sent.linked_id, sent.attempt].add(peer)
            elif isinstance(sent, VerdictSent) and sent.is_posted:
                told[sent.linked_id].add(peer)
    return asked, told


# --- What has to be in memory --------------------------------------------------------------------


def wallets_relied_on(
    shard_id: int,
    pending: Iterable[PendingRow],
    holds: Iterable[Hold],
    linked: Iterable[LinkedRow],
    prepared: Iterable[PreparedRow],
) -> set[str]:
    """
    Name the customers' wallets of which something is set aside, or which something may come to.
    """
    transfers = [row.decision for row in pending if isinstance(row.decision, TransferReserved)]
    moves = [move for row in prepared for move in moves_prepared(shard_id, row.prepared)]
    for row in linked:
        if row.posted is None:
            moves += moves_begun(shard_id, row.begun)
    named = {
        *(transfer.source for transfer in transfers),
        *(hold.wallet_id for hold in holds),
        *(name for move in moves for name in (move.source, move.destination)),
    }
    return {name for name in named if not is_system_wallet(name)}


def refunds_relied_on(
    pending: Iterable[PendingRow], linked: Iterable[LinkedRow], prepared: Iterable[PreparedRow]
) -> set[bytes]:
    """
    Name the transfers whose totals go down again if something comes to nothing.
    """
    undecided: list[Decision] = [row.decision for row in pending]
    undecided += [row.begun for row in linked if row.posted is None]
    undecided += [row.prepared for row in prepared]
    return refunds_at_stake(undecided)
