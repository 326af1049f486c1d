"""
What clients asked for and what they heard: one operation a key, with every answer to it.

Captures, refunds and the legs of a linked transfer are movements as others are; that a hold is
placed or voided is in no history, and is judged by the hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
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


@dataclass(kw_only=True)
class Asked:
    """
    Something that was asked for under its key.
    """

    key: str
    heard: list[Heard] = field(default_factory=list)
    transfer_id: str | None = None  # Or the id of the hold, or of the whole that is linked.
    outcome: Heard | None = None  # Once it is final.
    reason: str | None = None

    def hear(self, answer: Heard, transfer_id: str | None, reason: str | None = None) -> None:
        """
        Take in an answer; raises Contradiction when it does not go with an earlier one.
        """
        self.heard.append(answer)
        self.name(transfer_id)
        if self.outcome is None:
            if answer in FINAL:
                self.outcome, self.reason = answer, reason
            return
        is_answer = answer in FINAL or answer is Heard.PENDING
        if is_answer and (answer, reason) != (self.outcome, self.reason):
            said = f"{self.outcome} ({self.reason}), then {answer} ({reason})"
            raise Contradiction(f"{self.key}: was {said}")

    def name(self, transfer_id: str | None) -> None:
        """
        Take in the id that was told; raises Contradiction when it was another.
        """
        if transfer_id is None:
            return
        if self.transfer_id not in (None, transfer_id):
            raise Contradiction(f"{self.key}: is {self.transfer_id} and {transfer_id}")
        self.transfer_id = transfer_id

    @property
    def may_be_applied(self) -> bool:
        """
        Say whether an asking without a final answer may have been, or may still be, applied.
        """
        return bool({Heard.UNKNOWN, Heard.PENDING} & set(self.heard))


@dataclass(kw_only=True)
class Operation(Asked):
    """
    A movement. Money from outside has no source, money to outside or to the fees no destination.
    """

    source: str | None
    destination: str | None
    amount: int


@dataclass(kw_only=True)
class Placing(Asked):
    """
    A hold that is placed.
    """

    source: str
    amount: int
    lifetime_s: int


@dataclass(kw_only=True)
class Capture(Operation):
    """
    A part of a hold that is paid.
    """

    hold: Placing
    is_final: bool


@dataclass(kw_only=True)
class Voiding(Asked):
    """
    A hold that is given up.
    """

    hold: Placing


@dataclass(kw_only=True)
class Refund(Operation):
    """
    A part of a movement that goes back.
    """

    original: Operation


@dataclass(kw_only=True)
class Linked(Asked):
    """
    Movements that happen all or not at all: what is heard of the whole is heard of each leg.
    """

    legs: list[Operation]

    def hear(self, answer: Heard, transfer_id: str | None, reason: str | None = None) -> None:
        super().hear(answer, transfer_id, reason)
        for leg in self.legs:
            leg.hear(answer, None, reason)


def movements(asked: list[Asked]) -> list[Operation]:
    """
    List what has to be in the histories, with the legs one by one.
    """
    found: list[Operation] = []
    for one in asked:
        if isinstance(one, Linked):
            found += one.legs
        elif isinstance(one, Operation):
            found.append(one)
    return found


def told(asked: Iterable[Asked]) -> Counter[str]:
    """
    Count what was asked for by what is known of it in the end.
    """
    return Counter(outcome_of(one) for one in asked)


def told_of_money(asked: Iterable[Asked]) -> Counter[str]:
    """
    Count the same for each kind that is not a plain movement.
    """
    return Counter(
        f"{type(one).__name__.lower()} {outcome_of(one)}"
        for one in asked
        if type(one) is not Operation
    )


def outcome_of(asked: Asked) -> str:
    return asked.outcome or ("unknown" if asked.may_be_applied else "not applied")
