"""
How long each decision is in the journal, and what was there before a field was added.

A part of `recomputation`, and like it without any code of the ledger. Fields are only ever added
at the end, and what is missing means what it meant before: see `filled_up`. Within decisions:

    terms      hold, whether it is the last capture, transfer that is taken back, how much that
               moved, wanted version, wanted available, amount up to which, lifetime in s
    limits     count and amount an hour, count and amount a day of debits, the same of credits as
               a second array, balance maximum; None is no bound
    counter    hour since 1970, count, amount, day since 1970, count, amount
    leg        type, id, source, destination, currency, amount, reference, metadata, terms
    part       number of the leg, whether its debit is here, whether its credit is, the leg
    posting    number of the leg, then name, version and balance after it of both wallets
    hold       hold, merchant, wallet, destination, currency, amount, captured, on its way, status,
               whether the last capture is on its way, placed at, over at, reference, metadata,
               sequence (0)
    refunded   transfer, wallet, how much has gone back, version, sequence (0)
    outcome    decision, sequence, time in µs
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from processor.storage.recomputed_wallets import Contradiction

OPENED, STATUS_SET, LIMITS_SET, POSTED, REJECTED, EPOCH_STARTED = range(1, 7)
RESERVED, SETTLED, RELEASED, CREDITED, REFUSED, ELSEWHERE, RECALLED = range(7, 14)
GRANTED, GIVEN, TAKEN, DELIVERED, FORGOTTEN = range(14, 19)
HOLD_PLACED, HOLD_CHANGED, HOLD_VOIDED, HOLD_EXTENDED, USAGE_COUNTED, REFUND_COUNTED = range(19, 25)
LINKED_POSTED, LINKED_REJECTED, LINKED_BEGUN, PREPARE_SENT, VOTE_TAKEN = range(25, 30)
LINKED_RECALLED, VERDICT_SENT, VERDICT_DELIVERED, LINKED_DONE = range(30, 34)
LINKED_PREPARED, VERDICT_TAKEN = range(34, 36)

# With the tag in front.
FIELD_COUNTS = {
    OPENED: 5,
    STATUS_SET: 3,
    LIMITS_SET: 4,
    POSTED: 16,
    REJECTED: 14,
    EPOCH_STARTED: 2,
    RESERVED: 16,
    SETTLED: 8,
    RELEASED: 6,
    CREDITED: 18,
    REFUSED: 7,
    ELSEWHERE: 6,
    RECALLED: 4,
    GRANTED: 3,
    GIVEN: 11,
    TAKEN: 11,
    DELIVERED: 3,
    FORGOTTEN: 3,
    HOLD_PLACED: 13,
    HOLD_CHANGED: 7,
    HOLD_VOIDED: 8,
    HOLD_EXTENDED: 10,
    USAGE_COUNTED: 4,
    REFUND_COUNTED: 5,
    LINKED_POSTED: 7,
    LINKED_REJECTED: 8,
    LINKED_BEGUN: 8,
    PREPARE_SENT: 8,
    VOTE_TAKEN: 5,
    LINKED_RECALLED: 2,
    VERDICT_SENT: 6,
    VERDICT_DELIVERED: 4,
    LINKED_DONE: 2,
    LINKED_PREPARED: 7,
    VERDICT_TAKEN: 7,
}

# What a decision that was journaled before these fields were added stands for. Each was added
# at once, so that a decision has all of them or none.
_ADDED: dict[int, tuple[Any, ...]] = {
    LIMITS_SET: (None,),
    POSTED: (None,),
    REJECTED: (0, None),
    RESERVED: (None, 0),
    RELEASED: (0,),
    CREDITED: (1, None),
    REFUSED: (0, 0),
    ELSEWHERE: (0,),
    GIVEN: ([], []),
    TAKEN: ([], []),
}


def filled_up(decision: list[Any]) -> list[Any]:
    """
    Return a decision with all its fields; raises Contradiction for one of another length.
    """
    tag = decision[0]
    added = _ADDED.get(tag, ())
    missing = FIELD_COUNTS[tag] - len(decision)
    if missing == 0:
        return decision
    if missing != len(added):
        raise Contradiction(f"fields of tag {tag}", FIELD_COUNTS[tag], len(decision))
    return [*decision, *added]


def filled_up_outcome(outcome: list[Any]) -> list[Any]:
    """
    Return an outcome whose decision has all its fields.
    """
    decision, sequence, at_us = outcome
    return [filled_up(decision), sequence, at_us]


def filled_up_wallets(carried: Iterable[list[Any]]) -> list[list[Any]]:
    """
    Return carried wallets with limits and usage, which were added.
    """
    return [wallet if len(wallet) == 9 else [*wallet, None, None] for wallet in carried]
