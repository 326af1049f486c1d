"""
Goal: the page on limits says what the ledger does.
Method: its tables are held against those made from the code.
"""

from __future__ import annotations

from pathlib import Path

from gateway.reasons_table import counted_table, reasons_table
from processor.core.reject_reason import RejectReason

PAGE = (Path(__file__).parents[3] / "docs" / "limits.md").read_text()


def test_the_page_has_the_tables() -> None:
    """
    docs/limits.md shows what `python -m gateway.reasons_table` prints.
    """
    assert reasons_table() in PAGE
    assert counted_table() in PAGE


def test_the_order_is_that_of_precedence() -> None:
    """
    Each reason stands once, the one with the smallest number first.
    """
    rows = [row.split(" | ") for row in reasons_table().splitlines()[2:]]

    assert [row[1] for row in rows] == [f"`{reason.code}`" for reason in sorted(RejectReason)]


def test_refunds_and_fees_do_not_count() -> None:
    """
    What goes back, or to the merchant's fees, passes every limit.
    """
    rows = counted_table().splitlines()

    assert "| refund | no | no |" in rows
    assert "| fee | no | no |" in rows
    assert "| hold | yes | no |" in rows
    assert "| capture | no | yes |" in rows
