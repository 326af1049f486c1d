"""
One wallet, as the shard holds it in memory.

Rule 1: balances, what is set aside and `version` change only in `apply`; available money is
        computed, never stored.
Rule 2: a wallet that something still relies on (money set aside or on its way to it) stays in
        memory, keeps its slot and cannot be closed.
"""

from __future__ import annotations

from enum import IntEnum

from processor.core.limits import Limits, Usage

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
    (0 when it was read from the tables and not touched since).

    `reserved` is all money set aside: on its way to other shards, in linked transfers that are not
    decided, and `held`, the part of it that open holds keep; `holds_open` says how many these are.
    `incoming` is what linked transfers that are not decided may bring. `usage` is counted only
    while there are `limits`.
    """

    __slots__ = (
        "currency",
        "held",
        "holds_open",
        "incoming",
        "limits",
        "merchant_id",
        "minimum",
        "posted",
        "reserved",
        "sequence",
        "status",
        "usage",
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
        limits: Limits | None = None,
        usage: Usage | None = None,
    ) -> None:
        self.wallet_id = wallet_id
        self.merchant_id = merchant_id
        self.currency = currency
        self.status = status
        self.minimum = minimum
        self.posted = posted
        self.reserved = 0
        self.held = 0
        self.holds_open = 0
        self.incoming = 0
        self.version = version
        self.sequence = sequence
        self.limits = limits
        self.usage = usage

    @property
    def available(self) -> int:
        return self.posted - self.reserved

    @property
    def is_relied_on(self) -> bool:
        """
        Say whether something besides open holds is still to be decided of it.
        """
        return self.reserved != self.held or self.incoming != 0

    def facts(self) -> tuple[object, ...]:
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
            self.held,
            self.holds_open,
            self.incoming,
            self.limits,
            self.usage,
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


def fees_wallet_id(shard_id: int, merchant_id: str, currency: str) -> str:
    """
    Name the wallet that takes a merchant's fees at *shard_id*, so that a fee never leaves a shard.
    """
    return f"$fees:{shard_id}:{currency}:{merchant_id}"


def home_of(wallet_id: str) -> int:
    """
    Return the shard that one of the ledger's own wallets belongs to, as its id says.
    """
    return int(wallet_id.split(":", 2)[1])
