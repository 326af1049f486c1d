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
from tests.support.bound_commands import (
    capture,
    extend,
    fee,
    fee_leg,
    hold_id_of,
    leg,
    linked,
    on_terms,
    place,
    refund,
    up_to,
    void,
)
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
from tests.support.decided import decided as decide
from tests.support.decided import do

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
    return state_of(world(-100), world(currency="USD"), wallet("alice", 100), wallet("bob"))


def decided(command: MoveMoney) -> tuple[ShardState, TransferPosted | TransferRejected]:
    """
    Decide and apply *command* on a ledger of its own.
    """
    state = ledger()
    decision = decide_move(state, command, AT_US)
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

    assert decide_move(state, again, AT_US) == Repeated(decision, 5, AT_US)
    assert facts(state) == before


def test_refusal_stays_a_refusal() -> None:
    """
    A refusal is repeated even when the money has come since.
    """
    command = transfer("alice", "bob", 101)
    state, decision = decided(command)
    assert isinstance(decision, TransferRejected)
    rich = decide_move(state, deposit("alice", 500, key="later"), AT_US)
    assert isinstance(rich, TransferPosted)
    apply(state, rich, 6, AT_US)

    assert decide_move(state, command, AT_US) == Repeated(decision, 5, AT_US)
    assert decision.reason is RejectReason.INSUFFICIENT_FUNDS


def test_repeat_is_found_in_the_older_generation() -> None:
    """
    A key whose generation was turned over once is still remembered exactly.
    """
    command = COMMANDS["transfer"]
    state, decision = decided(command)
    state.keys.rotate(5)
    assert command.key in state.keys.old
    assert decide_move(state, command, AT_US) == Repeated(decision, 5, AT_US)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("field", CHANGES)
def test_reuse_names_the_field(command: MoveMoney, field: str) -> None:
    """
    Another command under the key is told which field differs, and nothing is decided.
    """
    state, _ = decided(command)
    before = facts(state), len(state.keys)
    changed = msgspec.structs.replace(command, **{field: CHANGES[field]})

    assert decide_move(state, changed, AT_US) == KeyReused(field)
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
    assert decide_move(state, msgspec.structs.replace(command, **changed), AT_US) == KeyReused(
        field
    )


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
        assert decide_move(state, other, AT_US) == KeyReused(told)
        del changes[field]
    assert isinstance(decide_move(state, first, AT_US), Repeated)


def test_side_that_the_ledger_chose_is_not_compared() -> None:
    """
    A deposit's source and a withdrawal's destination are the world, whatever the command says.
    """
    for name, side in (("deposit", "source"), ("withdrawal", "destination")):
        state, decision = decided(COMMANDS[name])
        again = msgspec.structs.replace(COMMANDS[name], **{side: "nonsense"})
        assert decide_move(state, again, AT_US) == Repeated(decision, 5, AT_US)


def test_other_key_is_another_payment() -> None:
    """
    The same facts under a new key move money again.
    """
    state, _ = decided(COMMANDS["transfer"])
    again = decide_move(
        state, msgspec.structs.replace(COMMANDS["transfer"], key=identifier("2")), AT_US
    )
    assert isinstance(again, TransferPosted)
    assert again.source_balance == 40


# --- Commands on terms, on holds, and of several legs ---------------------------------------------

HOLD = hold_id_of("alice")
LEGS = (leg("alice", "bob", 30), fee_leg("alice", 2))
BOUND: dict[str, Any] = {
    "up to": up_to(transfer("alice", "bob", 500)),
    "with a condition": on_terms(transfer("alice", "bob", 5), if_version=1),
    "capture": capture(HOLD, 5, "bob"),
    "last capture": capture(HOLD, None, "bob"),
    "capture to where the hold says": capture(HOLD, 5),
    "refund": refund("paid", "alice", "bob", 5, refundable=9),
    "refund of the rest": refund("paid", "alice", "bob", None, refundable=9),
    "fee": fee("alice", 5),
    "hold": place("alice", 5, key="another"),
    "void": void(HOLD),
    "extend": extend(HOLD, 90),
    "linked": linked(*LEGS),
    "too much": on_terms(transfer("alice", "bob", 500), if_version=1),
    "hold of too much": place("alice", 500, key="another"),
    "hold on a condition": on_terms(place("alice", 5, key="another"), if_version=9),
    "void of nothing": void(bytes(16)),
    "extend of nothing": extend(bytes(16), 90),
    "capture of nothing": capture(bytes(16), 5),
    "linked with too much": linked(leg("alice", "bob", 500), fee_leg("alice", 2)),
}


def holding() -> ShardState:
    state = ledger()
    do(state, place("alice", 40, destination="bob"))
    return state


@pytest.mark.parametrize("name", BOUND)
def test_a_bound_repeat_tells_the_first_answer(name: str) -> None:
    """
    Under new ids, whatever has become of wallets, holds and totals since.
    """
    state, command = holding(), BOUND[name]
    outcome = do(state, command)
    if name != "void":
        do(state, void(HOLD, key="since"))
    before = facts(state), dict(state.holds), dict(state.refunds)
    field = {"PlaceHold": "hold_id", "MoveLinked": "linked_id"}.get(type(command).__name__)
    new_id = identifier("new") if field != "hold_id" else hold_id_of("alice", "new")
    again = msgspec.structs.replace(command, **{field or "transfer_id": new_id})
    assert do(state, again) == Repeated(outcome, 9, AT_US)  # type: ignore[arg-type]
    assert (facts(state), state.holds, state.refunds) == before


def legs_with(place_: int, **changed: Any) -> Any:
    legs = list(LEGS)
    legs[place_] = msgspec.structs.replace(legs[place_], **changed)
    return linked(*legs)


@pytest.mark.parametrize(
    ("name", "other", "field"),
    [
        ("up to", transfer("alice", "bob", 500), "amount"),
        ("up to", up_to(transfer("alice", "bob", 499)), "amount"),
        ("with a condition", transfer("alice", "bob", 5), "if_version"),
        (
            "with a condition",
            on_terms(transfer("alice", "bob", 5), if_version=1, if_available_gte=1),
            "if_available_gte",
        ),
        ("capture", capture(hold_id_of("alice", "2"), 5, "bob"), "hold_id"),
        ("capture", capture(HOLD, 5, "bob", is_final=True), "final"),
        ("capture", capture(HOLD, 6, "bob"), "amount"),
        ("capture", capture(HOLD, None, "bob", is_final=False), "amount"),
        ("capture", capture(HOLD, 5, "alice"), "destination"),
        ("capture", capture(HOLD, 5, "bob", currency="USD"), "currency"),
        ("capture", capture(HOLD, 5, "bob", reference="r"), "reference"),
        ("capture", refund("paid", "alice", "bob", 5, refundable=9), "type"),
        ("refund", refund("other", "alice", "bob", 5, refundable=9), "transfer_id"),
        ("refund", refund("paid", "alice", "alice", 5, refundable=9), "destination"),
        ("fee", fee("bob", 5), "source"),
        ("fee", fee("alice", 5, currency="USD"), "currency"),
        ("hold", place("bob", 5), "source"),
        ("hold", place("alice", 6), "amount"),
        ("hold", place("alice", 5, destination="bob"), "destination"),
        ("hold", place("alice", 5, currency="USD"), "currency"),
        ("hold", place("alice", 5, lifetime_s=61), "expires_in_s"),
        ("hold", on_terms(place("alice", 5), if_version=3), "if_version"),
        ("hold", msgspec.structs.replace(place("alice", 5), reference="r"), "reference"),
        ("hold", msgspec.structs.replace(place("alice", 5), metadata="{}"), "metadata"),
        ("hold of too much", place("alice", 500, lifetime_s=61), "expires_in_s"),
        ("hold of too much", transfer("alice", "", 500), "type"),
        ("hold on a condition", on_terms(place("alice", 5), if_version=8), "if_version"),
        ("void", void(hold_id_of("alice", "2")), "hold_id"),
        ("void", extend(HOLD, 90), "type"),
        ("void of nothing", void(HOLD), "hold_id"),
        ("extend", extend(hold_id_of("alice", "2"), 90), "hold_id"),
        ("extend", extend(HOLD, 91), "expires_in_s"),
        ("extend", void(HOLD), "type"),
        ("extend of nothing", extend(bytes(16), 91), "expires_in_s"),
        ("linked", linked(*LEGS, LEGS[0]), "legs"),
        ("linked", legs_with(0, amount=31), "legs/0/amount"),
        ("linked", legs_with(0, source="bob"), "legs/0/source"),
        ("linked", legs_with(0, destination="alice"), "legs/0/destination"),
        ("linked", legs_with(1, currency="USD"), "legs/1/currency"),
        ("linked", legs_with(1, transfer_type=TransferType.REFUND), "legs/1/type"),
        ("linked", legs_with(1, reference="r"), "legs/1/reference"),
        ("linked", legs_with(1, metadata="{}"), "legs/1/metadata"),
        ("linked with too much", linked(*LEGS), "legs/0/amount"),
        ("linked", transfer("alice", "bob", 30), "type"),
    ],
)
def test_bound_reuse_names_the_field(name: str, other: Any, field: str) -> None:
    """
    All that was asked for is compared, and nothing that the ledger filled in.
    """
    state = holding()
    do(state, BOUND[name])
    again = msgspec.structs.replace(other, key=BOUND[name].key)
    assert decide(state, again) == KeyReused(field)


def test_what_may_be_left_out_is_not_compared() -> None:
    """
    Where a capture goes and in what currency may be left to the hold.
    """
    state = holding()
    first = do(state, capture(HOLD, 5))
    assert decide(state, capture(HOLD, 5, "", currency="")) == Repeated(first, 9, AT_US)  # type: ignore[arg-type]
    named = capture(HOLD, 5, "bob", currency="EUR")
    assert decide(state, named) == Repeated(first, 9, AT_US)  # type: ignore[arg-type]
