"""
Which holds, and which totals of refunds, have to be in memory before something is decided.

Rule 1: open holds, and those with captures on their way, are in memory always: only one that has
        ended is looked up.
Rule 2: a hold or a total is looked up only where its wallet's slot is this shard's. Whoever has the
        slot changes it, and what was read here would be old when the slot comes.
Rule 3: a total is in the tables of those who had the slot: while this shard is the first, nobody
        else's have to be there to be asked.
Rule 4: what is counted down again when it comes to nothing is in memory until that is decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from processor.core.channel import AnyEntry, PrepareEntry
from processor.core.commands import (
    Command,
    ExtendHold,
    Leg,
    MoveMoney,
    PlaceHold,
    VoidHold,
    hold_named,
    refunds_asked,
    refunds_named,
)
from processor.core.decisions import (
    HoldExtended,
    HoldPlaced,
    HoldVoided,
    PrepareSent,
)
from processor.core.slots import slot_of, slot_of_hold
from processor.core.state import ShardState
from processor.core.wallet import is_system_wallet
from processor.core.wallets_needed import absent_wallets

# --- Holds ----------------------------------------------------------------------------------------


def holds_of_commands(state: ShardState, commands: Iterable[Command]) -> list[bytes]:
    """
    List the holds to look up before *commands* are decided, once each. Needs their keys: a repeat
    is told the hold that its key stands for.
    """
    named = dict.fromkeys(_holds_of(state, commands))
    own = state.shard_id
    return [
        hold_id
        for hold_id in named
        if hold_id not in state.holds and state.slots.owner(slot_of_hold(hold_id)) == own
    ]


def wallets_of_holds(state: ShardState, commands: Iterable[Command]) -> list[str]:
    """
    List the wallets to load before *commands* are decided, because of the holds that they name:
    the holds' own, and where captures go that name no other. Needs the holds.
    """
    named = []
    for command in commands:
        for hold_id in _holds_of(state, [command]):
            hold = state.holds.get(hold_id)
            if hold is None:
                continue
            named.append(hold.wallet_id)
            if isinstance(command, MoveMoney) and not command.destination:
                named.append(hold.destination)
    return absent_wallets(state, filter(None, named))


def _holds_of(state: ShardState, commands: Iterable[Command]) -> list[bytes]:
    found = []
    for command in commands:
        named = hold_named(command)
        if named is not None:
            found.append(named)
        if isinstance(command, PlaceHold | VoidHold | ExtendHold):
            found += _hold_told(state, command.key)
    return found


def _hold_told(state: ShardState, key: bytes) -> list[bytes]:
    remembered = state.keys.find(key)
    match remembered:
        case (HoldPlaced(transfer_id=hold_id), _, _):
            return [hold_id]
        case (HoldVoided(hold_id=hold_id) | HoldExtended(hold_id=hold_id), _, _):
            return [hold_id]
        case _:
            return []


# --- Totals of refunds ----------------------------------------------------------------------------


class RefundsNeeded(NamedTuple):
    """
    The transfers whose totals are to be looked up, once each: in the shard's own tables, or in
    everybody's.
    """

    own: list[bytes]
    everywhere: list[bytes]


def refunds_of_commands(state: ShardState, commands: Iterable[Command]) -> RefundsNeeded:
    """
    List the transfers whose totals are to be looked up before *commands* are decided.
    """
    return _absent(state, (pair for command in commands for pair in refunds_named(command)))


def refunds_of_entries(state: ShardState, entries: Iterable[AnyEntry]) -> RefundsNeeded:
    """
    List the transfers whose totals are to be looked up before *entries* are decided.
    """
    prepared = [entry for entry in entries if isinstance(entry, PrepareEntry)]
    parts = (part for entry in prepared for part in entry.parts)
    return _absent(state, refunds_asked(part.asked for part in parts if part.is_debit))


def refunds_of_answers(state: ShardState, peer: int, answers: list[int]) -> RefundsNeeded:
    """
    List the transfers whose totals are to be looked up before *answers* from *peer* are settled:
    a leg that was elsewhere may be decided here anew.
    """
    channel = state.channels.to(peer)
    legs: list[Leg] = []
    for number, answer in enumerate(answers, channel.settled + 1):
        pending = channel.outbox.get(number) if answer < 0 else None
        if isinstance(pending, PrepareSent) and pending.linked_id in state.linked:
            legs += state.linked[pending.linked_id].begun.legs
    return _absent(state, refunds_asked(legs))


def _absent(state: ShardState, paid: Iterable[tuple[bytes, str]]) -> RefundsNeeded:
    own: dict[bytes, None] = {}
    everywhere: dict[bytes, None] = {}
    for refund_of, wallet_id in paid:
        if state.has_slot_of(wallet_id) and refund_of not in state.refunds:
            asked = everywhere if _was_elsewhere(state, wallet_id) else own
            asked[refund_of] = None
    return RefundsNeeded([one for one in own if one not in everywhere], [*everywhere])


def _was_elsewhere(state: ShardState, wallet_id: str) -> bool:
    return not is_system_wallet(wallet_id) and state.slots.generation(slot_of(wallet_id)) > 1
