"""
Amounts for people: minor units as a decimal number with its currency.
"""

from __future__ import annotations

from functools import cache

from configs.settings import load_settings


def amount_text(amount: int, currency: str) -> str:
    """
    Write 123456 EUR as `1,234.56 EUR`; an unknown currency stays in minor units.
    """
    exponent = _exponents().get(currency)
    if exponent is None:
        return f"{amount:,} minor units of {currency}"
    major, minor = divmod(abs(amount), 10**exponent)
    sign = "-" if amount < 0 else ""
    decimals = f".{minor:0{exponent}d}" if exponent else ""
    return f"{sign}{major:,}{decimals} {currency}"


@cache
def _exponents() -> dict[str, int]:
    return dict(load_settings().currency_exponents)
