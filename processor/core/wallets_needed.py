"""
Which wallets have to be in memory before something is decided.

Rule: only a wallet whose slot is this shard's is asked for. Others are not in its tables, or only
        as they were before their slot was given. The ledger's own wallets are in memory always.
"""

from __future__ import annotations

from collections.abc import Iterable

from processor.core.channel import AnyEntry, BoundEntry, Entry, PrepareEntry
from processor.core.commands import Command, wallets_named
from processor.core.decisions import PrepareSent, TransferReserved
from processor.core.state import ShardState
from processor.core.wallet import is_system_wallet


def absent_wallets(state: ShardState, names: Iterable[str]) -> list[str]:
    """
    List those of *names* that are not in memory but may be in the tables, once each.
    """
    return [
        name
        for name in dict.fromkeys(names)
        if name not in state.wallets and not is_system_wallet(name) and state.has_slot_of(name)
    ]


def wallets_of_commands(state: ShardState, commands: Iterable[Command]) -> list[str]:
    """
    List the wallets to load before *commands* are decided.
    """
    return absent_wallets(
        state, (name for command in commands for name in wallets_named(command, state.shard_id))
    )


def wallets_of_entries(state: ShardState, entries: Iterable[AnyEntry]) -> list[str]:
    """
    List the wallets to load before *entries* are decided.
    """
    named: list[str] = []
    for entry in entries:
        if isinstance(entry, Entry | BoundEntry):
            named.append(entry.destination)
        elif isinstance(entry, PrepareEntry):
            for part in entry.parts:
                named += (part.asked.source, part.asked.destination)
    return absent_wallets(state, filter(None, named))


def wallets_of_answers(state: ShardState, peer: int, answers: list[int]) -> list[str]:
    """
    List the wallets to load before *answers* from *peer* are: those of money that comes back, which
    may be here now. Wallets of which something is set aside are in memory always.
    """
    channel = state.channels.to(peer)
    found = []
    for number, answer in enumerate(answers, channel.settled + 1):
        pending = channel.outbox.get(number) if answer < 0 else None
        if isinstance(pending, TransferReserved):
            found.append(pending.destination)
        elif isinstance(pending, PrepareSent) and pending.linked_id in state.linked:
            for leg in state.linked[pending.linked_id].begun.legs:
                found += filter(None, (leg.source, leg.destination))
    return absent_wallets(state, found)
