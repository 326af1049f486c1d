"""
Goal: what must hold of every state is told in words when it does not.
Method: wallets that break one rule each.
"""

from __future__ import annotations

import pytest

from processor.core.invariants import books, broken_wallets
from processor.core.wallet import Wallet, WalletStatus
from tests.support.commands import wallet, world


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (wallet("alice", -1), "alice: available is below the minimum"),
        (wallet("alice", 5, minimum=6), "alice: available is below the minimum"),
        (Wallet("alice", "acme", "EUR", posted=5), "alice: money without an entry"),
        (Wallet("alice", "acme", "EUR", version=-1), "alice: money without an entry"),
        (wallet("alice", 5, status=WalletStatus.CLOSED), "alice: closed with money in it"),
    ],
)
def test_broken_wallet_is_named(broken: Wallet, words: str) -> None:
    """
    One broken rule gives one sentence with the wallet's name.
    """
    assert broken_wallets([wallet("bob", 5), broken, world(-10)]) == [words]


def test_sound_wallets_are_not_named() -> None:
    """
    Wallets at their bounds are sound.
    """
    sound = [
        wallet("at the minimum", -5, minimum=-5),
        wallet("closed", status=WalletStatus.CLOSED),
        wallet("spent", 0, minimum=0),
        world(-(2**63 - 1)),
    ]
    assert broken_wallets(sound) == []


def test_books_are_kept_per_currency() -> None:
    """
    What is missing in one currency is not hidden by another.
    """
    wallets = [world(-5), wallet("a", 5), world(-7, "USD"), wallet("b", 6, currency="USD")]
    assert books(wallets) == {"EUR": 0, "USD": -1}
