"""
Goal: a key pays once: asked again it tells what was said, asked for something else it says what
      differs.
Method: a command is decided and applied; then it comes again, whole or with one field changed.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from processor.core.apply import apply
from processor.core.commands import MoveMoney, TransferType
from processor.core.decide import KeyReused, Repeated, decide_move
from processor.core.decisions import TransferPosted, TransferRejected
from processor.core.reject_reason import RejectReason
from processor.core.state import ShardState
from tests.support.commands import (
    AT_US,
    deposit,
    facts,
    identifier,
    state_of,
    transfer,
    wallet,
    withdrawal,
    world,
)

COMMANDS = {
    "transfer": transfer("alice", "bob", 30, reference="r", metadata="{}"),
    "deposit": deposit("bob", 30, reference="r", metadata="{}"),
    "withdrawal": withdrawal("alice", 30, reference="r", metadata="{}"),
}
CHANGES: dict[str, Any] = {
    "currency": "USD",
    "amount": 31,
    "reference": "another",
    "metadata": '{"a":1}',
}


def ledger() -> ShardState:
    return state_of(world(), world(currency="USD"), wallet("alice", 100), wallet("bob"))


def decided(command: MoveMoney) -> tuple[ShardState, TransferPosted | TransferRejected]:
    """
    Decide and apply *command* on a ledger of its own.
    """
    state = ledger()
    decision = decide_move(state, command)
    assert isinstance(decision, TransferPosted | TransferRejected)
    apply(state, decision, 5, AT_US)
    return state, decision


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_repeat_tells_the_first_answer(command: MoveMoney) -> None:
    """
    The same command again, under a new transfer id, is answered with the first decision.
    """
    state, decision = decided(command)
    before = facts(state)
    again = msgspec.structs.replace(command, transfer_id=identifier("another"))

    assert decide_move(state, again) == Repeated(decision, 5, AT_US)
    assert facts(state) == before


def test_refusal_stays_a_refusal() -> None:
    """
    A refusal is repeated even when the money has come since.
    """
    command = transfer("alice", "bob", 101)
    state, decision = decided(command)
    assert isinstance(decision, TransferRejected)
    rich = decide_move(state, deposit("alice", 500, key="later"))
    assert isinstance(rich, TransferPosted)
    apply(state, rich, 6, AT_US)

    assert decide_move(state, command) == Repeated(decision, 5, AT_US)
    assert decision.reason is RejectReason.INSUFFICIENT_FUNDS


def test_repeat_is_found_in_the_older_generation() -> None:
    """
    A key whose generation was turned over once is still remembered exactly.
    """
    command = COMMANDS["transfer"]
    state, decision = decided(command)
    state.keys.rotate(5)
    assert command.key in state.keys.old
    assert decide_move(state, command) == Repeated(decision, 5, AT_US)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("field", CHANGES)
def test_reuse_names_the_field(command: MoveMoney, field: str) -> None:
    """
    Another command under the key is told which field differs, and nothing is decided.
    """
    state, _ = decided(command)
    before = facts(state), len(state.keys)
    changed = msgspec.structs.replace(command, **{field: CHANGES[field]})

    assert decide_move(state, changed) == KeyReused(field)
    assert (facts(state), len(state.keys)) == before


@pytest.mark.parametrize(
    ("command", "changed", "field"),
    [
        (COMMANDS["transfer"], {"source": "carol"}, "source"),
        (COMMANDS["transfer"], {"destination": "carol"}, "destination"),
        (COMMANDS["deposit"], {"destination": "carol"}, "destination"),
        (COMMANDS["withdrawal"], {"source": "carol"}, "source"),
        (COMMANDS["transfer"], {"transfer_type": TransferType.WITHDRAWAL}, "type"),
        (COMMANDS["deposit"], {"transfer_type": TransferType.TRANSFER}, "type"),
        (COMMANDS["transfer"], {"reference": None}, "reference"),
        (COMMANDS["transfer"], {"metadata": None}, "metadata"),
    ],
)
def test_reuse_names_the_side(command: MoveMoney, changed: dict[str, Any], field: str) -> None:
    """
    Type, source and destination are compared as well, and what is missing differs.
    """
    state, _ = decided(command)
    assert decide_move(state, msgspec.structs.replace(command, **changed)) == KeyReused(field)


def test_first_differing_field_is_told() -> None:
    """
    When everything differs the type is told, then the sides, then the rest in order.
    """
    first = COMMANDS["transfer"]
    state, _ = decided(first)
    order = {
        "transfer_type": ("type", TransferType.WITHDRAWAL),
        "source": ("source", "carol"),
        "destination": ("destination", "dave"),
        **{field: (field, value) for field, value in CHANGES.items()},
    }
    changes = {field: value for field, (_, value) in order.items()}
    for field, (told, _) in order.items():
        other = msgspec.structs.replace(first, **changes)
        assert decide_move(state, other) == KeyReused(told)
        del changes[field]
    assert isinstance(decide_move(state, first), Repeated)


def test_side_that_the_ledger_chose_is_not_compared() -> None:
    """
    A deposit's source and a withdrawal's destination are the world, whatever the command says.
    """
    for name, side in (("deposit", "source"), ("withdrawal", "destination")):
        state, decision = decided(COMMANDS[name])
        again = msgspec.structs.replace(COMMANDS[name], **{side: "nonsense"})
        assert decide_move(state, again) == Repeated(decision, 5, AT_US)


def test_other_key_is_another_payment() -> None:
    """
    The same facts under a new key move money again.
    """
    state, _ = decided(COMMANDS["transfer"])
    again = decide_move(state, msgspec.structs.replace(COMMANDS["transfer"], key=identifier("2")))
    assert isinstance(again, TransferPosted)
    assert again.source_balance == 40
