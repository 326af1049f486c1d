"""
One shard's core by hand: decide a command, apply what was decided, and check the books.
"""

from __future__ import annotations

from collections.abc import Iterable

from processor.core.apply import apply
from processor.core.channel import PrepareEntry, entry_sent
from processor.core.commands import (
    ExtendHold,
    MoveLinked,
    MoveMoney,
    PlaceHold,
    TransferType,
    VoidHold,
)
from processor.core.counts import Decided, counts_of_settlement
from processor.core.counts_needed import (
    refunds_of_answers,
    refunds_of_commands,
    refunds_of_entries,
)
from processor.core.decide import MoveOutcome, decide_move
from processor.core.decide_channel import decide_due, decide_entry, decide_settlement
from processor.core.decide_holds import HoldOutcome, decide_extend, decide_place, decide_void
from processor.core.decide_linked import (
    LinkedOutcome,
    decide_after_vote,
    decide_linked,
    homes_of,
    wallets_to_open,
)
from processor.core.decisions import Decision, PrepareSent, TransferReserved, VoteTaken
from processor.core.invariants import books, broken_channels, broken_wallets
from processor.core.linked import Move, moves_at_home, moves_of_parts
from processor.core.state import ShardState
from processor.core.wallet import fees_wallet_id
from tests.support.commands import AT_US
from tests.support.totals import know_totals

SEQUENCE = 9

Asked = MoveMoney | PlaceHold | VoidHold | ExtendHold | MoveLinked
Outcome = MoveOutcome | HoldOutcome | LinkedOutcome


def do(state: ShardState, command: Asked, at_us: int = AT_US) -> object:
    """
    Decide and apply *command*, and return what the caller is told of.
    """
    outcome = decided(state, command, at_us)
    if isinstance(outcome, Decided):
        apply_all(state, outcome.decisions, at_us)
        return outcome.outcome
    return outcome


def decided(state: ShardState, command: Asked, at_us: int = AT_US) -> Outcome:
    """
    Decide *command*; the ledger's own wallets are opened first, as a batch does, and totals of
    refunds are looked up, as a shard does.
    """
    know_totals(state, refunds_of_commands(state, [command]))
    match command:
        case MoveMoney():
            if command.transfer_type == TransferType.FEE:
                _open_fees(state, command)
            outcome = decide_move(state, command, at_us)
            if isinstance(outcome, Decision):  # A plain one: nothing is counted with it.
                if isinstance(outcome, TransferReserved):
                    _open_due(state, outcome)
                return Decided(outcome, [outcome])
            if isinstance(outcome, Decided) and isinstance(outcome.outcome, TransferReserved):
                _open_due(state, outcome.outcome)
            return outcome
        case PlaceHold():
            return decide_place(state, command, at_us)
        case VoidHold():
            return decide_void(state, command, at_us)
        case ExtendHold():
            return decide_extend(state, command, at_us)
        case MoveLinked():
            homes = homes_of(state, command.legs)
            open_named(
                state, moves_at_home(state.shard_id, command.merchant_id, command.legs, homes)
            )
            return decide_linked(state, command, at_us)


def open_named(state: ShardState, moves: Iterable[Move]) -> None:
    for opened in wallets_to_open(state, "acme", moves):
        apply(state, opened, SEQUENCE, AT_US)


def _open_fees(state: ShardState, command: MoveMoney) -> None:
    fees = fees_wallet_id(state.shard_id, command.merchant_id, command.currency)
    move = Move(0, command.transfer_type, command.source, fees, command.currency, command.amount)
    open_named(state, [move])


def _open_due(state: ShardState, reserved: TransferReserved) -> None:
    due = decide_due(state, reserved.peer, reserved.currency)
    if due is not None:
        apply(state, due, SEQUENCE, AT_US)


def apply_all(state: ShardState, decisions: Iterable[Decision], at_us: int = AT_US) -> None:
    """
    Apply a record's decisions, after which everything has to be sound.
    """
    for decision in decisions:
        apply(state, decision, SEQUENCE, at_us)
    check(state)


def check(state: ShardState) -> None:
    wallets = state.wallets.values()
    assert broken_wallets(wallets) == []
    assert broken_channels(state) == []
    assert not any(books(wallets).values())


def deliver(source: ShardState, peer: ShardState, at_us: int = AT_US) -> int:
    """
    Let *peer* decide the next entry from *source*, and return its answer.
    """
    channel = peer.channels.of(source.shard_id)
    number = channel.cursor + 1
    entry = entry_sent(source.channels.to(peer.shard_id).outbox[number])
    know_totals(peer, refunds_of_entries(peer, [entry]))
    if isinstance(entry, PrepareEntry):
        open_named(
            peer, moves_of_parts(peer.shard_id, source.shard_id, entry.merchant_id, entry.parts)
        )
    elif hasattr(entry, "currency") and peer.has_slot_of(entry.destination):
        due = decide_due(peer, source.shard_id, entry.currency)
        apply_all(peer, [] if due is None else [due])
    apply_all(peer, decide_entry(peer, source.shard_id, entry, at_us), at_us)
    return channel.answers(number, number)[0]


def settle(source: ShardState, peer: ShardState, answer: int, at_us: int = AT_US) -> list[Decision]:
    """
    Settle the next entry to *peer* as it was answered, with what follows, and return all of it.
    """
    channel = source.channels.to(peer.shard_id)
    pending = channel.outbox[channel.settled + 1]
    know_totals(source, refunds_of_answers(source, peer.shard_id, [answer]))
    decision = decide_settlement(source, peer.shard_id, answer)
    follows: list[Decision] = [decision]
    if isinstance(pending, TransferReserved):
        remembered = source.keys.find(pending.key)
        assert remembered is not None, "money on its way that is not remembered"
        follows += counts_of_settlement(source, pending, decision, reserved_at_us=remembered[2])
    apply_all(source, follows, at_us)
    if isinstance(pending, PrepareSent):
        assert isinstance(decision, VoteTaken), "a vote answers it"
        after = decide_after_vote(source, pending, decision)
        apply_all(source, after, at_us)
        follows += after
    return follows
