"""
Goal: wallets are opened, changed and closed only as the rules say, and saying it twice is no
      change.
Method: one wallet in every status; each command against it, and the reason or decision it gets.
"""

from __future__ import annotations

import pytest

from processor.core.amounts import BALANCE_MAX
from processor.core.apply import apply
from processor.core.commands import OpenWallet, SetWalletLimits, SetWalletStatus, wallets_named
from processor.core.decide import (
    decide_limits,
    decide_open,
    decide_status,
    decide_world,
    owned_wallet,
)
from processor.core.decisions import Decision, WalletLimitsSet, WalletOpened, WalletStatusSet
from processor.core.invariants import broken_wallets
from processor.core.reject_reason import RejectReason
from processor.core.wallet import WalletStatus
from tests.support.commands import (
    AT_US,
    deposit,
    open_wallet,
    read_wallet,
    state_of,
    transfer,
    wallet,
    withdrawal,
    world,
)

OPEN, FROZEN, LOCKED, CLOSED = WalletStatus


def set_status(status: WalletStatus, merchant_id: str = "acme") -> SetWalletStatus:
    return SetWalletStatus(merchant_id, "alice", status)


def set_minimum(minimum: int, merchant_id: str = "acme") -> SetWalletLimits:
    return SetWalletLimits(merchant_id, "alice", minimum)


def test_new_wallet_opens() -> None:
    """
    Opening makes an empty, open wallet with the facts of the command.
    """
    state = state_of(world())
    decision = decide_open(state, open_wallet("alice", -50))
    assert decision == WalletOpened("alice", "acme", "EUR", -50)
    apply(state, decision, 3, AT_US)
    alice = state.wallets["alice"]
    assert alice.facts() == ("alice", "acme", "EUR", OPEN, -50, 0, 0, 0, 0, 0, 0, None, None)
    assert alice.sequence == 3


@pytest.mark.parametrize("status", [OPEN, FROZEN, LOCKED])
def test_opening_again_with_the_same_facts_is_no_change(status: WalletStatus) -> None:
    """
    A repeat of the opening is answered with the wallet as it is.
    """
    state = state_of(wallet("alice", 100, status=status))
    assert decide_open(state, open_wallet("alice")) is None


@pytest.mark.parametrize(
    "command",
    [
        open_wallet("alice", merchant_id="globex"),
        open_wallet("alice", currency="USD"),
        open_wallet("alice", -1),
    ],
)
def test_opening_again_with_other_facts_is_refused(command: OpenWallet) -> None:
    """
    An id that is taken is refused when owner, currency or minimum differ.
    """
    assert decide_open(state_of(wallet("alice")), command) is RejectReason.WALLET_EXISTS


def test_closed_wallet_does_not_open_again() -> None:
    """
    Closed is for ever.
    """
    state = state_of(wallet("alice", status=CLOSED))
    assert decide_open(state, open_wallet("alice")) is RejectReason.WALLET_EXISTS
    for status in (OPEN, FROZEN, LOCKED):
        assert decide_status(state, set_status(status)) is RejectReason.WALLET_CLOSED
    assert decide_limits(state, set_minimum(-1)) is RejectReason.WALLET_CLOSED
    assert decide_status(state, set_status(CLOSED)) is None


@pytest.mark.parametrize(("minimum", "opens"), [(0, True), (1, False), (-BALANCE_MAX, True)])
def test_empty_wallet_has_no_reserve(minimum: int, opens: bool) -> None:
    """
    A new wallet has nothing, so its minimum is zero or an overdraft.
    """
    decision = decide_open(state_of(), open_wallet("alice", minimum))
    expected = WalletOpened("alice", "acme", "EUR", minimum)
    assert decision == (expected if opens else RejectReason.MINIMUM_ABOVE_AVAILABLE)


@pytest.mark.parametrize("wallet_id", ["$world:0:EUR", "$world:0:XXX", "$anything"])
def test_system_wallets_are_not_for_clients(wallet_id: str) -> None:
    """
    An id of the ledger's own is taken, whether the wallet exists yet or not.
    """
    decision = decide_open(state_of(world()), open_wallet(wallet_id))
    assert decision is RejectReason.WALLET_EXISTS


def test_world_opens_once_per_currency() -> None:
    """
    The wallet of outside money comes with the first wallet of a currency and may go negative.
    """
    state = state_of(shard_id=3)
    decision = decide_world(state, "EUR")
    assert decision == WalletOpened("$world:3:EUR", "$system", "EUR", -BALANCE_MAX)
    apply(state, decision, 1, AT_US)
    assert decide_world(state, "EUR") is None
    assert decide_world(state, "USD") is not None


@pytest.mark.parametrize("before", [OPEN, FROZEN, LOCKED])
@pytest.mark.parametrize("after", WalletStatus)
def test_status_changes(before: WalletStatus, after: WalletStatus) -> None:
    """
    An empty wallet goes from any status but closed to any; to its own it is no change.
    """
    state = state_of(wallet("alice", status=before))
    decision = decide_status(state, set_status(after))
    assert decision == (None if before == after else WalletStatusSet("alice", after))
    if decision is not None:
        assert not isinstance(decision, RejectReason)
        apply(state, decision, 8, AT_US)
        assert state.wallets["alice"].status == after
        assert state.wallets["alice"].sequence == 8


@pytest.mark.parametrize("posted", [1, -1])
def test_wallet_with_money_does_not_close(posted: int) -> None:
    """
    Neither money nor a debt disappears with a wallet.
    """
    state = state_of(wallet("alice", posted, minimum=-1))
    assert decide_status(state, set_status(CLOSED)) is RejectReason.WALLET_NOT_EMPTY


@pytest.mark.parametrize(
    ("posted", "minimum", "fits"),
    [(100, 100, True), (100, 101, False), (0, 1, False), (0, -BALANCE_MAX, True), (-5, -4, False)],
)
def test_minimum_stays_at_or_below_available(posted: int, minimum: int, fits: bool) -> None:
    """
    A minimum may reach what is available, exactly.
    """
    state = state_of(wallet("alice", posted, minimum=-10))
    decision = decide_limits(state, set_minimum(minimum))
    if not fits:
        assert decision is RejectReason.MINIMUM_ABOVE_AVAILABLE
        return
    assert decision == WalletLimitsSet("alice", minimum)
    apply(state, decision, 4, AT_US)
    assert state.wallets["alice"].minimum == minimum
    assert broken_wallets(state.wallets.values()) == []


def test_same_minimum_is_no_change() -> None:
    """
    Setting what is set already decides nothing.
    """
    assert decide_limits(state_of(wallet("alice", minimum=-5)), set_minimum(-5)) is None


def test_foreign_wallets_are_unknown() -> None:
    """
    To another merchant a wallet is as unknown as one that does not exist.
    """
    state = state_of(wallet("alice", 100), world())
    assert decide_status(state, set_status(FROZEN, "globex")) is RejectReason.WALLET_UNKNOWN
    assert decide_limits(state, set_minimum(0, "globex")) is RejectReason.WALLET_UNKNOWN
    assert owned_wallet(state.wallets, "globex", "alice") is None
    assert owned_wallet(state.wallets, "acme", "$world:0:EUR") is None
    assert owned_wallet(state.wallets, "acme", "alice") is state.wallets["alice"]


def test_every_reason_of_wallets_is_reached() -> None:
    """
    Each reason that a wallet command can be refused for is told by some state.
    """
    state = state_of(
        wallet("alice", 1),
        wallet("gone", status=CLOSED),
        wallet("paying", minimum=-1),
        wallet("holding", minimum=-1),
    )
    state.wallets["paying"].reserved = 1
    state.wallets["holding"].reserved = state.wallets["holding"].held = 1
    reached: set[Decision | RejectReason | None] = {
        decide_open(state, open_wallet("alice", -1)),
        decide_open(state, open_wallet("new", 1)),
        decide_status(state, set_status(CLOSED)),
        decide_status(state, SetWalletStatus("acme", "gone", OPEN)),
        decide_status(state, SetWalletStatus("acme", "paying", CLOSED)),
        decide_status(state, SetWalletStatus("acme", "holding", CLOSED)),
        decide_status(state, SetWalletStatus("acme", "nobody", OPEN)),
    }
    assert reached == {reason for reason in RejectReason if reason >= RejectReason.WALLET_UNKNOWN}


def test_commands_name_the_wallets_they_need() -> None:
    """
    What a decision looks at is named beforehand, the world of the shard included.
    """
    assert wallets_named(transfer("alice", "bob", 1), 3) == ("alice", "bob")
    assert wallets_named(deposit("bob", 1), 3) == ("bob", "$world:3:EUR")
    assert wallets_named(withdrawal("alice", 1), 3) == ("alice", "$world:3:EUR")
    assert wallets_named(open_wallet("alice"), 3) == ("alice", "$world:3:EUR")
    for command in (set_status(OPEN), set_minimum(0), read_wallet("alice")):
        assert wallets_named(command, 3) == ("alice",)
