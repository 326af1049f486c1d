"""
Goal: nothing leaves a batch before `release`, and what leaves tells exactly what was decided.
Method: frames executed on a state, with a list in place of the socket.
"""

from __future__ import annotations

import pytest

from processor.core.amounts import BALANCE_MAX
from processor.core.channel import FIRST_LINK, PrepareEntry, next_link
from processor.core.commands import Command, SetWalletLimits, SetWalletStatus
from processor.core.decide_holds import SECOND_US
from processor.core.decisions import (
    HoldChanged,
    LegPart,
    TransferPosted,
    TransferRejected,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
)
from processor.core.hold import HoldStatus
from processor.core.reject_reason import RejectReason
from processor.core.state import ShardState
from processor.core.wallet import WalletStatus
from processor.flow import batch as batch_module
from processor.flow.batch import Batch
from processor.flow.channel_link import Entries
from processor.flow.frames import (
    Answered,
    HoldFound,
    KeyReused,
    LinkedMoved,
    Posted,
    Rejected,
    Reply,
    RequestFrame,
    Result,
    WalletFound,
    WalletRefused,
)
from tests.support.bound_commands import hold_id_of, leg, linked, place
from tests.support.commands import (
    AT_US,
    deposit,
    identifier,
    open_wallet,
    read_wallet,
    state_of,
    transfer,
    wallet,
    withdrawal,
    world,
)

OPEN, FROZEN, LOCKED, CLOSED = WalletStatus


def new_batch(sequence: int = 8) -> Batch:
    batch = Batch(sequence)
    batch.at_us = AT_US
    return batch


def frame(*commands: Command, frame_id: int = 1) -> RequestFrame:
    return RequestFrame(frame_id, 0, 1, list(commands))


def executed(state: ShardState, *commands: Command) -> tuple[Batch, list[Result]]:
    """
    Execute *commands* as one frame and let the results go.
    """
    batch = new_batch()
    replies: list[Reply] = []
    batch.add(state, frame(*commands), replies.append)
    batch.release()
    (reply,) = replies
    assert isinstance(reply, Answered)
    return batch, reply.results


def ledger() -> ShardState:
    return state_of(world(-100), wallet("alice", 100, sequence=3), wallet("bob"))


def test_nothing_is_delivered_before_release() -> None:
    """
    Postings, refusals, repeats, reuses and reads all wait for the same gate.
    """
    batch, state = new_batch(), ledger()
    replies: list[Reply] = []
    commands: list[Command] = [
        transfer("alice", "bob", 60),
        transfer("alice", "bob", 60),
        transfer("alice", "bob", 61),
        transfer("alice", "bob", 60, key="2"),
        read_wallet("alice"),
        read_wallet("nobody"),
        open_wallet("carol"),
    ]
    for number, command in enumerate(commands):
        batch.add(state, frame(command, frame_id=number), replies.append)
    assert replies == []
    assert batch.command_count == len(commands)

    batch.release()
    assert [reply.frame_id for reply in replies] == list(range(len(commands)))
    results = [result for reply in replies for result in reply.results]  # type: ignore[union-attr]
    assert [type(result) for result in results] == [
        Posted,
        Posted,
        KeyReused,
        Rejected,
        WalletFound,
        WalletRefused,
        WalletFound,
    ]


def test_replies_leave_once() -> None:
    """
    A second release lets nothing go again.
    """
    batch = new_batch()
    replies: list[Reply] = []
    batch.add(ledger(), frame(read_wallet("alice")), replies.append)
    batch.release()
    batch.release()
    assert len(replies) == 1


def test_batch_without_a_time_executes_nothing() -> None:
    """
    Every record has a time, stamped before the first command.
    """
    with pytest.raises(AssertionError, match="no time"):
        Batch(1).add(ledger(), frame(read_wallet("alice")), lambda _reply: None)
    with pytest.raises(AssertionError, match="no time"):
        Batch(1).tick(ledger())


def test_batch_with_anything_to_do_is_true() -> None:
    """
    A batch counts as work when a reply waits or a decision was made.
    """
    batch = new_batch()
    assert not batch
    batch.add(ledger(), frame(), lambda _reply: None)
    assert batch
    batch.release()
    assert not batch
    batch.decisions.append(WalletOpened("carol", "acme", "EUR", 0))
    assert batch


def test_commands_see_those_before_them() -> None:
    """
    Commands run in order, each on the state that the one before it left.
    """
    batch, results = executed(
        state_of(),
        open_wallet("alice"),
        open_wallet("bob", -5),
        deposit("alice", 10, key="1"),
        transfer("alice", "bob", 10, key="2"),
        transfer("alice", "bob", 1, key="3"),
        withdrawal("bob", 15, key="4"),
        read_wallet("bob"),
    )
    assert results == [
        WalletFound("alice", "EUR", OPEN, 0, 0, 0, 8, True, 0, 0),
        WalletFound("bob", "EUR", OPEN, -5, 0, 0, 8, True, 0, 0),
        Posted(identifier("transfer of 1"), 8, AT_US, 10, 1, False),
        Posted(identifier("transfer of 2"), 8, AT_US, 0, 2, False),
        Rejected(identifier("transfer of 3"), 8, AT_US, RejectReason.INSUFFICIENT_FUNDS, False, 1),
        Posted(identifier("transfer of 4"), 8, AT_US, -5, 2, False),
        WalletFound("bob", "EUR", OPEN, -5, -5, 2, 8, False, -5, 0),
    ]
    assert [type(decision) for decision in batch.decisions] == [
        WalletOpened,
        WalletOpened,
        WalletOpened,
        TransferPosted,
        TransferPosted,
        TransferRejected,
        TransferPosted,
    ]


def test_world_is_opened_before_the_first_wallet_of_a_currency_only() -> None:
    """
    The first wallet of a currency brings the world; a second one and a refusal do not.
    """
    batch, _ = executed(
        state_of(),
        open_wallet("rich", 1),
        open_wallet("alice"),
        open_wallet("bob"),
        open_wallet("dollars", currency="USD"),
    )
    assert batch.decisions == [
        WalletOpened("$world:0:EUR", "$system", "EUR", -BALANCE_MAX),
        WalletOpened("alice", "acme", "EUR", 0),
        WalletOpened("bob", "acme", "EUR", 0),
        WalletOpened("$world:0:USD", "$system", "USD", -BALANCE_MAX),
        WalletOpened("dollars", "acme", "USD", 0),
    ]


def test_answer_is_of_the_callers_own_wallet() -> None:
    """
    A deposit tells of its destination, a transfer and a withdrawal of their source.
    """
    _, results = executed(
        ledger(),
        deposit("bob", 7, key="1"),
        transfer("alice", "bob", 20, key="2"),
        withdrawal("alice", 30, key="3"),
    )
    assert [(result.balance, result.version) for result in results] == [  # type: ignore[union-attr]
        (7, 1),
        (80, 2),
        (50, 3),
    ]


def test_repeat_tells_the_first_record() -> None:
    """
    A repeat has the sequence, time, transfer id and balance of then, not of now.
    """
    state, first = ledger(), new_batch(4)
    first.at_us = AT_US - 1_000
    first.add(state, frame(transfer("alice", "bob", 10)), lambda _reply: None)

    batch, results = executed(
        state,
        transfer("alice", "bob", 5, key="2"),
        transfer("alice", "bob", 10, transfer_id="another"),
    )
    assert results[1] == Posted(identifier("transfer of key"), 4, AT_US - 1_000, 90, 2, True)
    assert len(batch.decisions) == 1


def test_repeat_of_a_refusal_is_marked_too() -> None:
    """
    A refusal that comes again says that it is a repeat.
    """
    batch, results = executed(
        ledger(), transfer("alice", "bob", 101), transfer("alice", "bob", 101)
    )
    assert [result.repeated for result in results] == [False, True]  # type: ignore[union-attr]
    assert len(batch.decisions) == 1


@pytest.mark.parametrize(
    ("command", "decision", "result"),
    [
        (
            SetWalletStatus("acme", "alice", FROZEN),
            WalletStatusSet("alice", FROZEN),
            WalletFound("alice", "EUR", FROZEN, 0, 100, 1, 8, True, 100, 0),
        ),
        (
            SetWalletLimits("acme", "alice", -7),
            WalletLimitsSet("alice", -7),
            WalletFound("alice", "EUR", OPEN, -7, 100, 1, 8, True, 100, 0),
        ),
        (
            SetWalletStatus("acme", "alice", OPEN),
            None,
            WalletFound("alice", "EUR", OPEN, 0, 100, 1, 3, False, 100, 0),
        ),
        (
            SetWalletStatus("acme", "alice", CLOSED),
            None,
            WalletRefused(RejectReason.WALLET_NOT_EMPTY),
        ),
        (
            SetWalletLimits("globex", "alice", 0),
            None,
            WalletRefused(RejectReason.WALLET_UNKNOWN),
        ),
        (
            read_wallet("alice"),
            None,
            WalletFound("alice", "EUR", OPEN, 0, 100, 1, 3, False, 100, 0),
        ),
        (read_wallet("alice", "globex"), None, WalletRefused(RejectReason.WALLET_UNKNOWN)),
        (
            open_wallet("alice", currency="USD"),
            None,
            WalletRefused(RejectReason.WALLET_EXISTS),
        ),
    ],
)
def test_wallet_command_is_answered_with_the_wallet(
    command: Command, decision: object, result: Result
) -> None:
    """
    A change is recorded and told; no change, a read and a refusal leave no decision.
    """
    batch, results = executed(ledger(), command)
    assert results == [result]
    assert batch.decisions == ([decision] if decision is not None else [])


# --- What is over -----------------------------------------------------------------------------


def with_holds(*lifetimes_s: int) -> ShardState:
    """
    Make a state with a hold of 1 for each lifetime, placed at AT_US.
    """
    state = ledger()
    executed(state, *(place("alice", 1, key=f"{s}", lifetime_s=s) for s in lifetimes_s))
    return state


def ticked(state: ShardState, at_us: int) -> Batch:
    batch = new_batch(9)
    batch.at_us = at_us
    batch.tick(state)
    return batch


def test_a_tick_ends_what_is_over_and_nothing_else() -> None:
    """
    To the microsecond, and each once; a tick that ends nothing leaves the batch empty.
    """
    state = with_holds(10, 20)
    assert not ticked(state, AT_US + 10 * SECOND_US - 1)
    batch = ticked(state, AT_US + 10 * SECOND_US)
    (ended,) = batch.decisions
    assert isinstance(ended, HoldChanged)
    assert (ended.hold_id, ended.status) == (hold_id_of("alice", "10"), HoldStatus.EXPIRED)
    assert not ticked(state, AT_US + 10 * SECOND_US)
    assert state.wallets["alice"].held == 1
    assert ticked(state, AT_US + 60 * SECOND_US)
    assert state.wallets["alice"].held == 0


def test_a_tick_ends_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The others wait for the next batch.
    """
    monkeypatch.setattr(batch_module, "ALARMS_MAX", 2)
    state = with_holds(1, 2, 3)
    later = AT_US + 60 * SECOND_US
    assert [len(ticked(state, later).decisions) for _ in range(3)] == [2, 1, 0]


def test_a_hold_that_ended_is_told_as_it_is_now() -> None:
    """
    Under the key it was placed with, too: as a repeat, with the record of then.
    """
    state = with_holds(10)
    ticked(state, AT_US + 10 * SECOND_US)
    _, (found,) = executed(state, place("alice", 1, key="10", lifetime_s=10))
    assert isinstance(found, HoldFound)
    assert (found.hold.status, found.repeated) == (HoldStatus.EXPIRED, True)
    assert (found.sequence, found.available) == (8, 100)


def test_each_leg_counts() -> None:
    """
    A batch is full by what it costs: a linked transfer is as much as its legs.
    """
    legs = [leg("alice", "bob", number) for number in range(1, 8)]
    batch, results = executed(ledger(), linked(*legs), read_wallet("bob"))
    assert isinstance(results[0], LinkedMoved)
    assert batch.command_count == 8


def test_each_leg_of_a_question_counts() -> None:
    """
    What a peer asks to be prepared costs as much, whatever comes of it.
    """
    parts = [LegPart(number, True, True, leg("alice", "bob", 1)) for number in range(3)]
    entry = PrepareEntry(1, bytes(16), "acme", parts)
    batch = Batch(5)
    batch.at_us = AT_US
    asked = Entries([entry], next_link(FIRST_LINK, entry), 0)
    batch.add_entries(ledger(), 1, asked, lambda _effect: None)
    assert batch.command_count == 3
