"""
Progress of something long: a bar where somebody watches, a line now and then in a log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from gateway.cli.commands import Session, err

LINES = 10  # About as many in a log.

Advance = Callable[[int, int, str], None]


@contextmanager
def progress(session: Session, what: str) -> Iterator[Advance]:
    """
    Give a function that takes what is done, of how much, and a word on it.
    """
    if session.as_json:
        yield lambda _done, _total, _note: None
    elif err.is_terminal:
        yield from _bar(what)
    else:
        yield _lines(what)


def _bar(what: str) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(what, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def _lines(what: str) -> Advance:
    told = -1

    def advance(done: int, total: int, note: str) -> None:
        nonlocal told
        part = LINES * done // max(total, 1)
        if part > told:
            told = part
            err.print(f"{what}: {done:,} of {total:,}  {note}".rstrip(), markup=False)

    return advance
