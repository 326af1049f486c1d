"""
What must hold of every state, at every sequence.

Called by tests after each step and by recovery once; `apply` holds the same facts posting by
posting.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from processor.core.wallet import Wallet, WalletStatus


def broken_wallets(wallets: Iterable[Wallet]) -> list[str]:
    """
    Name every wallet that breaks a rule of its own, in words.
    """
    found = []
    for wallet in wallets:
        if wallet.available < wallet.minimum:
            found.append(f"{wallet.wallet_id}: available is below the minimum")
        if wallet.version < 0 or (wallet.version == 0 and wallet.posted != 0):
            found.append(f"{wallet.wallet_id}: money without an entry")
        if wallet.status == WalletStatus.CLOSED and wallet.posted != 0:
            found.append(f"{wallet.wallet_id}: closed with money in it")
    return found


def books(wallets: Iterable[Wallet]) -> dict[str, int]:
    """
    Sum the balances per currency; over all wallets of a shard every sum is zero.
    """
    sums: dict[str, int] = defaultdict(int)
    for wallet in wallets:
        sums[wallet.currency] += wallet.posted
    return dict(sums)
