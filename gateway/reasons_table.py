"""
Two tables of `docs/limits.md`, made from the code: `python -m gateway.reasons_table`.

Rule: what the page says of the order of checks and of what counts is what the ledger does; a test
      holds the page against these.
"""

from __future__ import annotations

from gateway.problems import PROBLEMS
from processor.core.commands import TransferType
from processor.core.judge import CREDITS_LIMITED, DEBITS_LIMITED
from processor.core.reject_reason import RejectReason

_NEVER_COUNTED = (TransferType.VOID, TransferType.EXTEND)  # They move nothing.


def reasons_table() -> str:
    """
    List the ledger's reasons in their order of precedence.
    """
    lines = ["| Order | Code | What is found |", "|---|---|---|"]
    lines += [
        f"| {reason.value} | `{reason.code}` | {PROBLEMS[reason.code].title} |"
        for reason in sorted(RejectReason)
    ]
    return "\n".join(lines) + "\n"


def counted_table() -> str:
    """
    List which movements count, of which side.
    """
    lines = ["| Movement | Counts as a debit | Counts as a credit |", "|---|---|---|"]
    for kind in TransferType:
        if kind not in _NEVER_COUNTED:
            sides = (kind in DEBITS_LIMITED, kind in CREDITS_LIMITED)
            words = " | ".join("yes" if is_counted else "no" for is_counted in sides)
            lines.append(f"| {kind.code} | {words} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(counted_table(), reasons_table(), sep="\n", end="")
