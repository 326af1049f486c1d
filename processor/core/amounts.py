"""
Bounds of money.

Rule: money is an integer in the currency's minor unit. No float and no Decimal anywhere.
"""

AMOUNT_MAX = 2**53 - 1  # One posting: exact in every JSON reader.
BALANCE_MAX = 2**63 - 1  # One balance: exact in a Postgres bigint.
