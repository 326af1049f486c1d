"""
Whether a shard that began with its tables is the shard that has replayed everything.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from msgspec.structs import replace

from processor.core.decisions import LinkedBegun, TransferReserved
from processor.core.hold import HoldStatus
from processor.core.state import ShardState, refunds_at_stake
from processor.core.wallet import is_system_wallet


def assert_same(state: ShardState, whole: ShardState) -> None:
    """
    Check that *state* has all that *whole* has to have in memory, and nothing that differs.
    """
    assert known(state) == known(whole)
    # What a tail has loaded besides is as new, too.
    for name, wallet in state.wallets.items():
        assert wallet.facts() == whole.wallets[name].facts()
    for hold_id, hold in state.holds.items():
        assert replace(hold, sequence=0) == replace(whole.holds[hold_id], sequence=0)
    for transfer_id, total in state.refunds.items():
        assert replace(total, sequence=0) == replace(whole.refunds[transfer_id], sequence=0)
    assert set(state.alarms) >= alarms_due(whole)


def undecided(state: ShardState) -> list[Any]:
    """
    List what is on its way, and the linked transfers that are not decided.
    """
    outboxes = [channel.outbox.values() for channel in state.channels.outgoing.values()]
    begun = [one.begun for one in state.linked.values() if one.posted is None]
    return [*(sent for outbox in outboxes for sent in outbox), *begun] + [
        prepared for prepared, _, _ in state.prepared.values()
    ]


def known(state: ShardState) -> dict[str, object]:
    """
    Tell all that a shard has to know before anything is asked of it.
    """
    open_holds = {
        hold_id: replace(hold, sequence=0)
        for hold_id, hold in state.holds.items()
        if hold.status == HoldStatus.OPEN or hold.pending
    }
    relied_on = {
        name: wallet.facts()
        for name, wallet in state.wallets.items()
        if is_system_wallet(name) or wallet.is_relied_on or wallet.held
    }
    at_stake = refunds_at_stake(undecided(state)) & state.refunds.keys()
    channels = state.channels
    return {
        "holds": open_holds,
        "wallets": relied_on,
        "refunds": {one: replace(state.refunds[one], sequence=0) for one in at_stake},
        "linked": {
            linked_id: (one.begun, one.posted, one.waiting, one.sequence, one.at_us)
            for linked_id, one in state.linked.items()
        },
        "prepared": state.prepared,
        "keys": {key for key, value in state.keys.young.items() if is_pending(value)},
        "outboxes": {
            peer: (end.outbox, end.head, end.settled, +Counter(end.reserved))
            for peer, end in channels.outgoing.items()
            if end.head
        },
        "answers": {peer: (end.cursor, end.refused) for peer, end in channels.incoming.items()},
    }


def is_pending(remembered: Any) -> bool:
    return isinstance(remembered[0], TransferReserved | LinkedBegun)


def alarms_due(state: ShardState) -> set[tuple[int, bytes]]:
    """
    List when open holds and questions have to be looked at.
    """
    holds = [one for one in state.holds.values() if one.status == HoldStatus.OPEN]
    begun = [one.begun for one in state.linked.values() if one.posted is None]
    return {
        *((hold.expires_at_us, hold.hold_id) for hold in holds),
        *((one.deadline_us, one.transfer_id) for one in begun),
    }
