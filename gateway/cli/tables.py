"""
Tables and fact sheets on the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

NUMBER_SUFFIX = ">"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """
    Lay out rows; a column whose name ends with `>` is of numbers.
    """
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        name = column.removesuffix(NUMBER_SUFFIX)
        made.add_column(name, justify="right" if column != name else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell(value) for value in row))
    return made


def facts(rows: Iterable[tuple[str, object]]) -> Table:
    """
    Lay out names and values; what is None is left out.
    """
    made = Table(box=None, show_header=False, show_edge=False, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        if value is not None:
            made.add_row(name, cell(value))
    return made


def cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def with_more(shown: RenderableType, cursor: object, option: str) -> RenderableType:
    """
    Say below a page how to see the next one, if there is one.
    """
    return Group(shown, f"more: {option} {cursor}") if cursor is not None else shown
