"""
Why the ledger said no: one closed list.

Rule 1: when several reasons apply, the one with the smallest number wins.
Rule 2: a number is journaled and never changes its meaning; gaps leave room for new reasons.
"""

from enum import IntEnum


class RejectReason(IntEnum):
    """
    A business refusal; `code` is its public name.
    """

    WALLETS_IDENTICAL = 10
    SOURCE_UNKNOWN = 20
    DESTINATION_UNKNOWN = 30
    CURRENCY_MISMATCH = 40
    SOURCE_CLOSED = 50
    SOURCE_LOCKED = 60
    SOURCE_FROZEN = 70
    DESTINATION_CLOSED = 80
    DESTINATION_LOCKED = 90
    INSUFFICIENT_FUNDS = 100
    BALANCE_OUT_OF_RANGE = 110

    WALLET_UNKNOWN = 200
    WALLET_EXISTS = 210
    WALLET_CLOSED = 220
    WALLET_NOT_EMPTY = 230
    TRANSFERS_PENDING = 235
    MINIMUM_ABOVE_AVAILABLE = 240

    @property
    def code(self) -> str:
        return self.name.lower()
