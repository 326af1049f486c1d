"""
What each check wants, in words: the rule that a refused movement did not keep.
"""

from __future__ import annotations

from processor.core.reject_reason import RejectReason

R = RejectReason

RULES: dict[RejectReason, str] = {
    R.WALLETS_IDENTICAL: "Source and destination are two different wallets.",
    R.HOLD_UNKNOWN: "The hold exists and is of the merchant who asks.",
    R.HOLD_EXPIRED: "The hold's time is not over.",
    R.HOLD_VOIDED: "The hold was not given up.",
    R.HOLD_CAPTURED: "The hold has not ended with its last capture.",
    R.HOLD_CAPTURE_PENDING: "No last capture of the hold is on its way.",
    R.SOURCE_UNKNOWN: "The source exists and is of the merchant who asks.",
    R.DESTINATION_UNKNOWN: "The destination exists; for a deposit it is of the merchant who asks.",
    R.CURRENCY_MISMATCH: "Both wallets are in the currency that was asked for.",
    R.SOURCE_CLOSED: "The source is not closed.",
    R.SOURCE_LOCKED: "The source is not locked.",
    R.SOURCE_FROZEN: "The source is not frozen.",
    R.DESTINATION_CLOSED: "The destination is not closed.",
    R.DESTINATION_LOCKED: "The destination is not locked.",
    R.CAPTURE_EXCEEDS_HOLD: "The hold keeps at least what is to be captured.",
    R.REFUND_TOTAL_UNKNOWN: "What went back of the transfer so far can be looked up.",
    R.REFUND_EXCEEDS_PAID: "All refunds of a transfer together are at most what it moved.",
    R.VERSION_DIFFERS: "The caller's wallet has the version that was named in `if_version`.",
    R.AVAILABLE_BELOW_CONDITION: "What is available is at least what `if_available_gte` says.",
    R.INSUFFICIENT_FUNDS: "What is available without the amount is at least the source's minimum.",
    R.HOLDS_TOO_MANY: "The source has no more than 10,000 open holds.",
    R.BALANCE_OUT_OF_RANGE: "No balance goes out of the range of numbers.",
    R.DEBIT_COUNT_HOUR_EXCEEDED: "Debits of the source this hour of UTC are within its count.",
    R.DEBIT_AMOUNT_HOUR_EXCEEDED: "Debits of the source this hour of UTC are within its amount.",
    R.DEBIT_COUNT_DAY_EXCEEDED: "Debits of the source this day of UTC are within its count.",
    R.DEBIT_AMOUNT_DAY_EXCEEDED: "Debits of the source this day of UTC are within its amount.",
    R.CREDIT_COUNT_HOUR_EXCEEDED: "Credits of the destination this hour are within its count.",
    R.CREDIT_AMOUNT_HOUR_EXCEEDED: "Credits of the destination this hour are within its amount.",
    R.CREDIT_COUNT_DAY_EXCEEDED: "Credits of the destination this day are within its count.",
    R.CREDIT_AMOUNT_DAY_EXCEEDED: "Credits of the destination this day are within its amount.",
    R.BALANCE_MAX_EXCEEDED: "The destination's balance stays within its maximum.",
    R.LINKED_DEADLINE_PASSED: "Every shard has voted on a linked transfer within ten seconds.",
}


def checks_before(reason: RejectReason) -> list[str]:
    """
    List the checks that come before *reason*, in order: none of them had failed on that side.
    """
    return [one.code for one in RULES if one < reason]
