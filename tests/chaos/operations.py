"""
What clients asked for and what they heard: one operation a key, with every answer to it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Heard(StrEnum):
    """
    One answer, as its client has to understand it.
    """

    POSTED = "posted"
    REJECTED = "rejected"
    PENDING = "pending"
    NOT_APPLIED = "not applied"  # Of this asking; an earlier one may have been.
    UNKNOWN = "unknown"


FINAL = {Heard.POSTED, Heard.REJECTED}


class Contradiction(AssertionError):
    """
    Two answers to one key do not go together.
    """


@dataclass
class Operation:
    """
    A movement under its key. Money from outside has no source, money to outside no destination.
    """

    key: str
    source: str | None
    destination: str | None
    amount: int
    heard: list[Heard] = field(default_factory=list)
    transfer_id: str | None = None
    outcome: Heard | None = None  # Once it is final.
    reason: str | None = None

    def hear(self, answer: Heard, transfer_id: str | None, reason: str | None = None) -> None:
        """
        Take in an answer; raises Contradiction when it does not go with an earlier one.
        """
        self.heard.append(answer)
        if transfer_id is not None:
            if self.transfer_id not in (None, transfer_id):
                raise Contradiction(f"{self.key}: is {self.transfer_id} and {transfer_id}")
            self.transfer_id = transfer_id
        if self.outcome is None:
            if answer in FINAL:
                self.outcome, self.reason = answer, reason
            return
        is_answer = answer in FINAL or answer is Heard.PENDING
        if is_answer and (answer, reason) != (self.outcome, self.reason):
            said = f"{self.outcome} ({self.reason}), then {answer} ({reason})"
            raise Contradiction(f"{self.key}: was {said}")

    @property
    def may_be_applied(self) -> bool:
        """
        Say whether an asking without a final answer may have been, or may still be, applied.
        """
        return bool({Heard.UNKNOWN, Heard.PENDING} & set(self.heard))


def told(operations: list[Operation]) -> Counter[str]:
    """
    Count the operations by what is known of them in the end.
    """
    return Counter(
        operation.outcome or ("unknown" if operation.may_be_applied else "not applied")
        for operation in operations
    )
