"""
Goal: money moves exactly when every rule allows it, and the refusal names the first rule broken.
Method: situations as tables of facts. One that posts is the ground; a defect changes a few facts
        so that one reason applies, and pairs of defects show which reason comes first.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from processor.core.amounts import AMOUNT_MAX, BALANCE_MAX
from processor.core.apply import apply
from processor.core.commands import MoveMoney, TransferType
from processor.core.decide import decide_move
from processor.core.decisions import TransferPosted, TransferRejected
from processor.core.invariants import books, broken_wallets
from processor.core.reject_reason import RejectReason
from processor.core.state import ShardState
from processor.core.wallet import WalletStatus
from tests.support.commands import (
    AT_US,
    deposit,
    facts,
    move,
    state_of,
    transfer,
    wallet,
    withdrawal,
    world,
)

TRANSFER, DEPOSIT, WITHDRAWAL = TransferType.TRANSFER, TransferType.DEPOSIT, TransferType.WITHDRAWAL

# For these a plain movement between wallets without limits is refused.
PLAIN_REASONS = {
    RejectReason.WALLETS_IDENTICAL,
    *(
        reason
        for reason in RejectReason
        if RejectReason.SOURCE_UNKNOWN <= reason <= RejectReason.DESTINATION_LOCKED
    ),
    RejectReason.INSUFFICIENT_FUNDS,
    RejectReason.BALANCE_OUT_OF_RANGE,
}

GROUND: dict[TransferType, dict[str, Any]] = {
    TRANSFER: {"source": "alice", "destination": "bob", "source_posted": 100},
    DEPOSIT: {"destination": "bob"},
    WITHDRAWAL: {"source": "alice", "source_posted": 100},
}
SOURCE_DEFECTS: dict[RejectReason, dict[str, Any]] = {
    RejectReason.SOURCE_UNKNOWN: {"source_exists": False},
    RejectReason.SOURCE_CLOSED: {"source_status": WalletStatus.CLOSED},
    RejectReason.SOURCE_LOCKED: {"source_status": WalletStatus.LOCKED},
    RejectReason.SOURCE_FROZEN: {"source_status": WalletStatus.FROZEN},
    RejectReason.INSUFFICIENT_FUNDS: {"source_posted": 99},
}
DESTINATION_DEFECTS: dict[RejectReason, dict[str, Any]] = {
    RejectReason.DESTINATION_UNKNOWN: {"destination_exists": False},
    RejectReason.DESTINATION_CLOSED: {"destination_status": WalletStatus.CLOSED},
    RejectReason.DESTINATION_LOCKED: {"destination_status": WalletStatus.LOCKED},
    RejectReason.BALANCE_OUT_OF_RANGE: {"destination_posted": BALANCE_MAX - 99},
}
DEFECTS: dict[TransferType, dict[RejectReason, dict[str, Any]]] = {
    TRANSFER: {
        RejectReason.WALLETS_IDENTICAL: {"destination": "alice"},
        RejectReason.CURRENCY_MISMATCH: {"destination_currency": "USD"},
        **SOURCE_DEFECTS,
        **DESTINATION_DEFECTS,
    },
    DEPOSIT: {
        RejectReason.CURRENCY_MISMATCH: {"destination_currency": "USD"},
        **DESTINATION_DEFECTS,
    },
    WITHDRAWAL: {
        RejectReason.CURRENCY_MISMATCH: {"source_currency": "USD"},
        RejectReason.BALANCE_OUT_OF_RANGE: {"world_posted": BALANCE_MAX - 99},
        **SOURCE_DEFECTS,
    },
}
SINGLE = [
    pytest.param(kind, reason, defect, id=f"{kind.code}-{reason.code}")
    for kind, defects in DEFECTS.items()
    for reason, defect in defects.items()
]
PAIRS = [
    pytest.param(kind, first, {**two, **one}, id=f"{kind.code}-{first.code}-{second.code}")
    for kind, defects in DEFECTS.items()
    for (first, one), (second, two) in itertools.combinations(sorted(defects.items()), 2)
    if not one.keys() & two.keys()
]


def situation(kind: TransferType, changed: dict[str, Any]) -> tuple[ShardState, MoveMoney]:
    """
    Make the state and the command that the facts tell of: 100 are asked to move.
    """
    known = {**GROUND[kind], **changed}
    wallets = [world(known.get("world_posted", 0)), world(currency="USD")]
    for side in ("source", "destination"):
        if side in GROUND[kind] and known.get(f"{side}_exists", True):
            wallets.append(
                wallet(
                    known[side],
                    known.get(f"{side}_posted", 0),
                    currency=known.get(f"{side}_currency", "EUR"),
                    status=known.get(f"{side}_status", WalletStatus.OPEN),
                )
            )
    command = move(kind, known.get("source", ""), known.get("destination", ""), 100)
    return state_of(*wallets), command


@pytest.mark.parametrize("kind", GROUND)
def test_ground_posts(kind: TransferType) -> None:
    """
    Without a defect each kind of transfer posts, so a refusal below is the defect's.
    """
    state, command = situation(kind, {})
    assert isinstance(decide_move(state, command, AT_US), TransferPosted)


@pytest.mark.parametrize(("kind", "reason", "defect"), SINGLE)
def test_one_defect_gives_its_reason(
    kind: TransferType, reason: RejectReason, defect: dict[str, Any]
) -> None:
    """
    One broken rule gives its own reason, changes nothing, and is remembered when applied.
    """
    state, command = situation(kind, defect)
    before = facts(state)

    decision = decide_move(state, command, AT_US)

    assert isinstance(decision, TransferRejected)
    assert decision.reason is reason
    apply(state, decision, 7, AT_US)
    assert facts(state) == before
    assert state.keys.find(command.key) == (decision, 7, AT_US)


@pytest.mark.parametrize(("kind", "first", "defects"), PAIRS)
def test_smallest_number_wins(
    kind: TransferType, first: RejectReason, defects: dict[str, Any]
) -> None:
    """
    Of two broken rules the one with the smaller number is told.
    """
    decision = decide_move(*situation(kind, defects), AT_US)
    assert isinstance(decision, TransferRejected)
    assert decision.reason is first


def test_every_reason_is_reached() -> None:
    """
    The tables reach each reason that a plain movement can be refused for.
    """
    assert {reason for defects in DEFECTS.values() for reason in defects} == PLAIN_REASONS
    assert len(PAIRS) > 60


def test_reasons_have_public_names() -> None:
    """
    The public name of a reason is its own in lower case, and no two are alike.
    """
    assert RejectReason.INSUFFICIENT_FUNDS.code == "insufficient_funds"
    assert len({reason.code for reason in RejectReason}) == len(RejectReason)


@pytest.mark.parametrize("kind", [TRANSFER, WITHDRAWAL])
def test_foreign_source_is_as_good_as_unknown(kind: TransferType) -> None:
    """
    Nobody moves money out of another merchant's wallet, or learns that it exists.
    """
    state = state_of(world(), wallet("alice", 100, merchant_id="globex"), wallet("bob"))
    decision = decide_move(state, move(kind, "alice", "bob", 100), AT_US)
    assert isinstance(decision, TransferRejected)
    assert decision.reason is RejectReason.SOURCE_UNKNOWN


def test_foreign_destination_of_a_deposit_is_unknown() -> None:
    """
    A deposit goes into a wallet of one's own only.
    """
    state = state_of(world(), wallet("bob", merchant_id="globex"))
    decision = decide_move(state, deposit("bob", 1), AT_US)
    assert isinstance(decision, TransferRejected)
    assert decision.reason is RejectReason.DESTINATION_UNKNOWN


def test_foreign_destination_of_a_transfer_is_paid() -> None:
    """
    A transfer may pay another merchant's wallet.
    """
    state = state_of(wallet("alice", 100), wallet("bob", merchant_id="globex"))
    assert isinstance(decide_move(state, transfer("alice", "bob", 100), AT_US), TransferPosted)


def test_currency_nobody_has_is_a_mismatch() -> None:
    """
    Without a world in the currency there is no wallet in it either.
    """
    state = state_of(world(), wallet("bob"))
    decision = decide_move(state, deposit("bob", 1, currency="USD"), AT_US)
    assert isinstance(decision, TransferRejected)
    assert decision.reason is RejectReason.CURRENCY_MISMATCH


def test_currency_of_the_command_counts() -> None:
    """
    Two wallets of one currency do not move an amount that is in another.
    """
    state = state_of(wallet("alice", 100), wallet("bob"), world(currency="USD"))
    decision = decide_move(state, transfer("alice", "bob", 1, currency="USD"), AT_US)
    assert isinstance(decision, TransferRejected)
    assert decision.reason is RejectReason.CURRENCY_MISMATCH


def test_frozen_wallet_takes_money() -> None:
    """
    Frozen stops debits only.
    """
    state = state_of(world(), wallet("bob", status=WalletStatus.FROZEN))
    assert isinstance(decide_move(state, deposit("bob", 1), AT_US), TransferPosted)


@pytest.mark.parametrize(
    ("posted", "minimum", "amount", "moves"),
    [
        (1, 0, 1, True),
        (0, 0, 1, False),
        (100, 0, 101, False),
        (AMOUNT_MAX, 0, AMOUNT_MAX, True),
        (AMOUNT_MAX - 1, 0, AMOUNT_MAX, False),
        (0, -50, 50, True),
        (0, -50, 51, False),
        (-50, -50, 1, False),
        (100, 40, 60, True),
        (100, 40, 61, False),
        (-BALANCE_MAX + 1, -BALANCE_MAX, 1, True),
        (-BALANCE_MAX, -BALANCE_MAX, 1, False),
    ],
)
def test_source_falls_to_its_minimum_and_no_further(
    posted: int, minimum: int, amount: int, moves: bool
) -> None:
    """
    The balance may reach the minimum, an overdraft or a reserve, exactly.
    """
    state = state_of(wallet("alice", posted, minimum=minimum), wallet("bob"))
    decision = decide_move(state, transfer("alice", "bob", amount), AT_US)
    assert isinstance(decision, TransferPosted) is moves
    if isinstance(decision, TransferRejected):
        assert decision.reason is RejectReason.INSUFFICIENT_FUNDS


@pytest.mark.parametrize(
    ("posted", "amount", "moves"),
    [
        (BALANCE_MAX - 1, 1, True),
        (BALANCE_MAX, 1, False),
        (BALANCE_MAX - AMOUNT_MAX, AMOUNT_MAX, True),
        (BALANCE_MAX - AMOUNT_MAX + 1, AMOUNT_MAX, False),
    ],
)
def test_destination_rises_to_the_largest_balance(posted: int, amount: int, moves: bool) -> None:
    """
    A balance may reach the largest that Postgres holds, exactly.
    """
    state = state_of(wallet("alice", AMOUNT_MAX), wallet("bob", posted))
    decision = decide_move(state, transfer("alice", "bob", amount), AT_US)
    assert isinstance(decision, TransferPosted) is moves
    if isinstance(decision, TransferRejected):
        assert decision.reason is RejectReason.BALANCE_OUT_OF_RANGE


@pytest.mark.parametrize(("posted", "moves"), [(-BALANCE_MAX + 1, True), (-BALANCE_MAX, False)])
def test_world_runs_out_of_numbers_not_of_money(posted: int, moves: bool) -> None:
    """
    A deposit that the world's balance cannot express is out of range, not short of funds.
    """
    state = state_of(world(posted), wallet("bob"))
    decision = decide_move(state, deposit("bob", 1), AT_US)
    assert isinstance(decision, TransferPosted) is moves
    if isinstance(decision, TransferRejected):
        assert decision.reason is RejectReason.BALANCE_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (transfer("alice", "bob", 30), {"alice": 70, "bob": 30, "$world:0:EUR": -100}),
        (deposit("bob", 30), {"alice": 100, "bob": 30, "$world:0:EUR": -130}),
        (withdrawal("alice", 30), {"alice": 70, "bob": 0, "$world:0:EUR": -70}),
    ],
)
def test_money_moves_between_the_right_wallets(
    command: MoveMoney, expected: dict[str, int]
) -> None:
    """
    Each kind debits one wallet and credits another, and the books stay at zero.
    """
    state = state_of(world(-100), wallet("alice", 100), wallet("bob"))
    versions = {name: one.version for name, one in state.wallets.items()}

    decision = decide_move(state, command, AT_US)
    assert isinstance(decision, TransferPosted)
    apply(state, decision, 9, AT_US)

    assert {name: one.posted for name, one in state.wallets.items()} == expected
    for name, one in state.wallets.items():
        touched = name in (decision.source, decision.destination)
        assert one.version == versions[name] + touched
        assert one.sequence == (9 if touched else 0)
    assert books(state.wallets.values()) == {"EUR": 0}
    assert broken_wallets(state.wallets.values()) == []


def test_decision_says_everything() -> None:
    """
    A posting carries what was asked and both wallets after it.
    """
    state = state_of(wallet("alice", 100), wallet("bob", 5))
    command = transfer("alice", "bob", 30, reference="invoice 7", metadata='{"a":1}')
    assert decide_move(state, command, AT_US) == TransferPosted(
        TRANSFER,
        command.transfer_id,
        command.key,
        "acme",
        "alice",
        "bob",
        "EUR",
        30,
        "invoice 7",
        '{"a":1}',
        source_version=2,
        source_balance=70,
        destination_version=2,
        destination_balance=35,
    )


def test_deciding_changes_nothing() -> None:
    """
    The same state and command give the same decision, as often as one asks.
    """
    state = state_of(wallet("alice", 100), wallet("bob"))
    before = facts(state)
    command = transfer("alice", "bob", 100)
    assert decide_move(state, command, AT_US) == decide_move(state, command, AT_US)
    assert facts(state) == before
    assert len(state.keys) == 0
