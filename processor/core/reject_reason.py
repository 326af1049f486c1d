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
    HOLD_UNKNOWN = 12
    HOLD_EXPIRED = 13
    HOLD_VOIDED = 14
    HOLD_CAPTURED = 15
    HOLD_CAPTURE_PENDING = 16
    SOURCE_UNKNOWN = 20
    DESTINATION_UNKNOWN = 30
    CURRENCY_MISMATCH = 40
    SOURCE_CLOSED = 50
    SOURCE_LOCKED = 60
    SOURCE_FROZEN = 70
    DESTINATION_CLOSED = 80
    DESTINATION_LOCKED = 90
    CAPTURE_EXCEEDS_HOLD = 92
    REFUND_TOTAL_UNKNOWN = 93
    REFUND_EXCEEDS_PAID = 94
    VERSION_DIFFERS = 96
    AVAILABLE_BELOW_CONDITION = 98
    INSUFFICIENT_FUNDS = 100
    HOLDS_TOO_MANY = 102
    BALANCE_OUT_OF_RANGE = 110
    DEBIT_COUNT_HOUR_EXCEEDED = 120
    DEBIT_AMOUNT_HOUR_EXCEEDED = 121
    DEBIT_COUNT_DAY_EXCEEDED = 122
    DEBIT_AMOUNT_DAY_EXCEEDED = 123
    CREDIT_COUNT_HOUR_EXCEEDED = 130
    CREDIT_AMOUNT_HOUR_EXCEEDED = 131
    CREDIT_COUNT_DAY_EXCEEDED = 132
    CREDIT_AMOUNT_DAY_EXCEEDED = 133
    BALANCE_MAX_EXCEEDED = 140
    LINKED_DEADLINE_PASSED = 150

    WALLET_UNKNOWN = 200
    WALLET_EXISTS = 210
    WALLET_CLOSED = 220
    WALLET_NOT_EMPTY = 230
    TRANSFERS_PENDING = 235
    HOLDS_OPEN = 236
    MINIMUM_ABOVE_AVAILABLE = 240

    @property
    def code(self) -> str:
        return self.name.lower()
