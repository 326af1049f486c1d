"""
The only place where balances change.

Rule 1: `apply` never refuses and never decides; what a decision says, happens.
Rule 2: every posting is checked against the balance and version the decision carries. A state
        that is out of step stops the process here, before anything leaves it.
Live traffic and recovery both come through this file, so a replayed shard equals the lost one.
"""

from __future__ import annotations

from processor.core.decisions import (
    Decision,
    EpochStarted,
    TransferPosted,
    TransferRejected,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
)
from processor.core.state import ShardState
from processor.core.wallet import Wallet, WalletStatus


def apply_posted(state: ShardState, decision: TransferPosted, sequence: int, at_us: int) -> None:
    """
    Move the money of one posted transfer.
    """
    source = state.wallets[decision.source]
    destination = state.wallets[decision.destination]
    amount = decision.amount

    # `decide` computed these from the wallets; recomputing them here from the other side makes
    # the posting zero-sum, the versions dense and the balances the ones that were answered.
    assert source.version + 1 == decision.source_version, "source version is not dense"
    assert destination.version + 1 == decision.destination_version, "version is not dense"
    assert source.posted - amount == decision.source_balance, "source balance differs"
    assert destination.posted + amount == decision.destination_balance, "balance differs"
    assert source.currency == decision.currency == destination.currency, "currencies differ"
    assert decision.source_balance >= source.minimum, "available below minimum"

    source.posted = decision.source_balance
    source.version = decision.source_version
    source.sequence = sequence
    destination.posted = decision.destination_balance
    destination.version = decision.destination_version
    destination.sequence = sequence

    keys = state.keys
    keys.young[decision.key] = (decision, sequence, at_us)
    keys.young_sequence_max = sequence


def apply(state: ShardState, decision: Decision, sequence: int, at_us: int) -> None:
    """
    Fold *decision* into *state*; *sequence* and *at_us* are its record's.
    """
    match decision:
        case TransferPosted():
            apply_posted(state, decision, sequence, at_us)
        case TransferRejected():
            state.keys.remember(decision, sequence, at_us)
        case WalletOpened(wallet_id, merchant_id, currency, minimum):
            assert wallet_id not in state.wallets, f"{wallet_id} is opened twice"
            state.wallets[wallet_id] = Wallet(
                wallet_id, merchant_id, currency, minimum=minimum, sequence=sequence
            )
        case WalletStatusSet(wallet_id, status):
            wallet = state.wallets[wallet_id]
            assert status != WalletStatus.CLOSED or wallet.posted == 0, "closed with money"
            wallet.status = status
            wallet.sequence = sequence
        case WalletLimitsSet(wallet_id, minimum):
            wallet = state.wallets[wallet_id]
            assert minimum <= wallet.available, "minimum above available"
            wallet.minimum = minimum
            wallet.sequence = sequence
        case EpochStarted():
            pass


def wallets_touched(decision: Decision) -> tuple[str, ...]:
    """
    List the existing wallets that must be in memory before *decision* is applied.
    """
    match decision:
        case TransferPosted():
            return (decision.source, decision.destination)
        case WalletStatusSet() | WalletLimitsSet():
            return (decision.wallet_id,)
        case _:
            return ()
