"""
Goal: a state that is out of step with its journal stops; it never goes on with wrong money.
Method: a decision that fits is changed in one number, or the state is, before it is applied.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from processor.core.apply import apply, wallets_touched
from processor.core.commands import TransferType
from processor.core.decide import decide_move
from processor.core.decisions import (
    Decision,
    EpochStarted,
    TransferPosted,
    TransferRejected,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
)
from processor.core.reject_reason import RejectReason
from processor.core.state import ShardState
from processor.core.wallet import WalletStatus
from tests.support.commands import AT_US, facts, identifier, state_of, transfer, wallet


def ledger() -> ShardState:
    return state_of(wallet("alice", 100), wallet("bob"))


def posted() -> TransferPosted:
    decision = decide_move(ledger(), transfer("alice", "bob", 30), AT_US)
    assert isinstance(decision, TransferPosted)
    return decision


REJECTED = TransferRejected(
    TransferType.TRANSFER,
    identifier("t"),
    identifier("k"),
    "acme",
    "alice",
    "bob",
    "EUR",
    101,
    None,
    None,
    RejectReason.INSUFFICIENT_FUNDS,
)


@pytest.mark.parametrize(
    "changed",
    [
        {"source_version": 1},
        {"source_version": 3},
        {"destination_version": 0},
        {"destination_version": 2},
        {"source_balance": 69},
        {"source_balance": 71},
        {"destination_balance": 29},
        {"destination_balance": 31},
        {"amount": 31},
        {"source_balance": 69, "amount": 31},
        {"destination": "alice", "destination_version": 2, "destination_balance": 70},
    ],
)
def test_posting_out_of_step_stops(changed: dict[str, Any]) -> None:
    """
    A balance or version that does not follow from the state stops, and nothing is changed.
    """
    state = ledger()
    before = facts(state)
    with pytest.raises(AssertionError):
        apply(state, msgspec.structs.replace(posted(), **changed), 1, AT_US)
    assert facts(state) == before
    assert len(state.keys) == 0


def test_posting_below_the_minimum_stops() -> None:
    """
    Even a decision that adds up may not break the wallet's own rule.
    """
    state = state_of(wallet("alice", 100, minimum=71), wallet("bob"))
    with pytest.raises(AssertionError, match="below minimum"):
        apply(state, posted(), 1, AT_US)


@pytest.mark.parametrize("missing", ["alice", "bob"])
def test_posting_on_a_missing_wallet_stops(missing: str) -> None:
    """
    A decision about a wallet that nobody opened cannot be applied.
    """
    state = ledger()
    del state.wallets[missing]
    with pytest.raises(KeyError, match=missing):
        apply(state, posted(), 1, AT_US)


def test_same_posting_does_not_apply_twice() -> None:
    """
    The version makes a decision fit once.
    """
    state = ledger()
    apply(state, posted(), 1, AT_US)
    with pytest.raises(AssertionError, match="not dense"):
        apply(state, posted(), 2, AT_US)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (WalletOpened("alice", "acme", "EUR", 0), "opened twice"),
        (WalletStatusSet("alice", WalletStatus.CLOSED), "closed with money"),
        (WalletLimitsSet("alice", 101), "minimum above available"),
    ],
)
def test_wallet_decision_out_of_step_stops(decision: Decision, message: str) -> None:
    """
    A wallet decision that `decide` would never make is not applied either.
    """
    state = ledger()
    before = facts(state)
    with pytest.raises(AssertionError, match=message):
        apply(state, decision, 1, AT_US)
    assert facts(state) == before


def test_outcomes_are_remembered_with_their_record() -> None:
    """
    Postings and refusals are found under their keys with sequence and time.
    """
    state = ledger()
    decision = posted()
    apply(state, decision, 4, AT_US)
    apply(state, REJECTED, 5, AT_US + 1)
    assert state.keys.find(decision.key) == (decision, 4, AT_US)
    assert state.keys.find(REJECTED.key) == (REJECTED, 5, AT_US + 1)
    assert state.keys.young_sequence_max == 5


def test_epoch_changes_nothing() -> None:
    """
    A new owner's record is no change of the books.
    """
    state = ledger()
    before = facts(state)
    apply(state, EpochStarted("build"), 1, AT_US)
    assert facts(state) == before


@pytest.mark.parametrize(
    ("decision", "touched"),
    [
        (posted(), ("alice", "bob")),
        (WalletStatusSet("alice", WalletStatus.FROZEN), ("alice",)),
        (WalletLimitsSet("alice", 0), ("alice",)),
        (WalletOpened("carol", "acme", "EUR", 0), ()),
        (REJECTED, ()),
        (EpochStarted("build"), ()),
    ],
)
def test_decision_names_the_wallets_it_changes(
    decision: Decision, touched: tuple[str, ...]
) -> None:
    """
    With just these wallets in memory a decision applies; with one less it does not.
    """
    state = state_of(*[one for one in ledger().wallets.values() if one.wallet_id in touched])
    assert wallets_touched(state, decision) == touched
    apply(state, decision, 1, AT_US)
