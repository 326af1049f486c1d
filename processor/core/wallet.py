"""
One wallet, as the shard holds it in memory.

Rule: `posted`, `reserved` and `version` change only in `apply`; available money is computed,
never stored.
"""

from __future__ import annotations

from enum import IntEnum

SYSTEM_MERCHANT = "$system"  # Owns the ledger's own wallets; no merchant can be called that.


class WalletStatus(IntEnum):
    """
    What may happen to a wallet; the numbers are journaled.
    """

    OPEN = 1
    FROZEN = 2  # No debits.
    LOCKED = 3  # Nothing in or out.
    CLOSED = 4  # For ever; the balance is zero.


class Wallet:
    """
    A wallet with its balance in minor units.

    `version` is the number of its entries, `sequence` the journal record that touched it last
    (0 when it was read from the tables and not touched since). `reserved` is money on its way to
    other shards: the sum of its entries in their channels.
    """

    __slots__ = (
        "currency",
        "merchant_id",
        "minimum",
        "posted",
        "reserved",
        "sequence",
        "status",
        "version",
        "wallet_id",
    )

    def __init__(
        self,
        wallet_id: str,
        merchant_id: str,
        currency: str,
        *,
        status: int = WalletStatus.OPEN,
        minimum: int = 0,
        posted: int = 0,
        version: int = 0,
        sequence: int = 0,
    ) -> None:
        self.wallet_id = wallet_id
        self.merchant_id = merchant_id
        self.currency = currency
        self.status = status
        self.minimum = minimum
        self.posted = posted
        self.reserved = 0
        self.version = version
        self.sequence = sequence

    @property
    def available(self) -> int:
        return self.posted - self.reserved

    def facts(self) -> tuple[str, str, str, int, int, int, int, int]:
        """
        Return everything that must survive a replay, in a fixed order.
        """
        return (
            self.wallet_id,
            self.merchant_id,
            self.currency,
            int(self.status),
            self.minimum,
            self.posted,
            self.reserved,
            self.version,
        )


def is_system_wallet(wallet_id: str) -> bool:
    """
    Say whether the ledger made this wallet itself; no client can choose such an id.
    """
    return wallet_id.startswith("$")


def world_wallet_id(shard_id: int, currency: str) -> str:
    """
    Name the wallet that stands for all money outside, per shard and currency.
    """
    return f"$world:{shard_id}:{currency}"


def due_wallet_id(shard_id: int, peer: int, currency: str) -> str:
    """
    Name the wallet of *shard_id* that stands for what *peer* owes it (or, below zero, is owed).
    """
    return f"$due:{shard_id}:{peer}:{currency}"
