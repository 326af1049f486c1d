"""
What the exit codes of `miliano` mean: the one place.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """
    How a command ended.
    """

    OK = 0
    DIFFERENCE = 1
    USAGE = 2
    NOT_REACHABLE = 3
    REFUSED = 4
    OUTCOME_UNKNOWN = 5
    NOT_STARTED = 6


MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.DIFFERENCE: "a check found a difference, or a watched batch has failures",
    ExitCode.USAGE: "the command or the settings are wrong",
    ExitCode.NOT_REACHABLE: "the ledger or its database cannot be reached or is not ready",
    ExitCode.REFUSED: "refused, and nothing moved",
    ExitCode.OUTCOME_UNKNOWN: "unknown whether money moved: the same key tells",
    ExitCode.NOT_STARTED: "up could not start",
}


def exit_code_lines() -> str:
    return "; ".join(f"{code.value} {meaning}" for code, meaning in MEANINGS.items()) + "."
