"""
What holds do to the wallets in the auditor's books.

A part of `recomputation`, and like it without any code of the ledger. The decisions:

   19 hold placed     id, key, merchant, source, destination, currency, amount, reference, metadata,
                      lifetime in s, over at, terms
   20 hold changed    id, captured, on its way, status (1 open, 2 captured, 3 voided, 4 expired),
                      whether the last capture is on its way, over at
   21 hold voided     id, key, merchant, source, hold, currency, amount
   22 hold extended   id, key, merchant, source, hold, currency, amount, lifetime in s, over at

What an open hold keeps is reserved in its wallet. It counts as a debit when it is placed; what it
has not captured when it ends is given back to the limits.
"""

from __future__ import annotations

from typing import Any

from processor.storage.recomputed_books import (
    TERMS_HOLD,
    TERMS_IS_FINAL,
    Books,
    Stamp,
)
from processor.storage.recomputed_counts import (
    HOLD_AMOUNT,
    HOLD_CHANGED_AT,
    HOLD_CURRENCY,
    HOLD_MERCHANT,
    HOLD_PENDING,
    HOLD_PLACED_AT,
    HOLD_STATUS,
    HOLD_WALLET,
    OPEN,
    HoldState,
    slot_of_hold,
    state_of,
)
from processor.storage.recomputed_layouts import HOLD_CHANGED, HOLD_EXTENDED, HOLD_PLACED
from processor.storage.recomputed_limits import count_debits, give_back_debits
from processor.storage.recomputed_wallets import (
    CURRENCY,
    HELD,
    MERCHANT,
    RESERVED,
    USAGE,
    Contradiction,
    check_amount,
    check_available,
    check_identifier,
    slot_of,
)

_SECOND_US = 1_000_000
LIFETIME_S_MAX = 31 * 86_400


def fold_hold(books: Books, decision: list[Any], stamp: Stamp) -> None:
    """
    Take in a decision on a hold; raises Contradiction.
    """
    tag = decision[0]
    if tag == HOLD_PLACED:
        _place(books, decision, stamp)
    elif tag == HOLD_CHANGED:
        _change(books, decision, stamp)
    else:
        _end_or_extend(books, decision, stamp)


def _place(books: Books, decision: list[Any], stamp: Stamp) -> None:
    _, hold_id, _, merchant_id, source_id, destination_id, currency, amount = decision[:8]
    reference, metadata, lifetime_s, expires_at_us, terms = decision[8:]
    check_identifier("hold", hold_id)
    check_amount(amount)
    source = books.wallets.get(source_id)
    if source is None:
        raise Contradiction("source", "a wallet opened before", source_id)
    if source[CURRENCY] != currency or source[MERCHANT] != merchant_id:
        expected = (source[CURRENCY], source[MERCHANT])
        raise Contradiction("currency and merchant", expected, (currency, merchant_id))
    if slot_of_hold(hold_id) != slot_of(source_id):
        raise Contradiction("slot of the hold", slot_of(source_id), slot_of_hold(hold_id))
    _check_lifetime(lifetime_s, stamp.at_us, expires_at_us)
    books.check_terms(terms, source, amount)
    _count_placed(books, source_id, amount, stamp)
    source[RESERVED] += amount
    source[HELD] += amount
    check_available(source, "source")
    facts = [merchant_id, source_id, destination_id, currency, amount, 0, 0, OPEN, False]
    facts += [stamp.at_us, expires_at_us, reference, metadata, stamp.at]
    books.holds.place(hold_id, facts)
    books.remember(decision, stamp)


def _count_placed(books: Books, wallet_id: str, amount: int, stamp: Stamp) -> None:
    wallet = books.wallets[wallet_id]
    if wallet[USAGE] is not None:
        before = wallet[USAGE]
        count_debits(wallet, stamp.at_us, amount)
        books.note_usage(wallet_id, before)


def _check_lifetime(lifetime_s: Any, at_us: int, expires_at_us: Any) -> None:
    if type(lifetime_s) is not int or not 1 <= lifetime_s <= LIFETIME_S_MAX:
        raise Contradiction("lifetime", f"1 to {LIFETIME_S_MAX}", lifetime_s)
    if expires_at_us != at_us + lifetime_s * _SECOND_US:
        raise Contradiction("over at", at_us + lifetime_s * _SECOND_US, expires_at_us)


def _change(books: Books, decision: list[Any], stamp: Stamp) -> None:
    _, hold_id, *told = decision
    captured, pending, status, is_ending, expires_at_us = told
    counts = (captured, pending, expires_at_us)
    if any(type(count) is not int or count < 0 for count in counts) or status not in range(1, 5):
        raise Contradiction("hold changed", "counts, and a status", told)
    facts = books.holds.facts(hold_id)
    amount, wallet_id = facts[HOLD_AMOUNT], facts[HOLD_WALLET]
    if captured + pending > amount:
        raise Contradiction("captured amount", f"at most {amount}", captured + pending)
    after = HoldState(captured, pending, status, is_ending, expires_at_us)
    before = books.holds.tell(hold_id, after, stamp.at_us, stamp.at)
    wallet = books.wallets[wallet_id]
    freed = before.kept(amount) - after.kept(amount)
    wallet[RESERVED] -= freed
    wallet[HELD] -= freed
    unused = _unused(before, after, amount)
    if unused and wallet[USAGE] is not None:
        usage = wallet[USAGE]
        count = 0 if captured or pending else 1
        give_back_debits(wallet, facts[HOLD_PLACED_AT], unused, count)
        books.note_usage(wallet_id, usage)
    books.holds.close_if_over(hold_id)


def _unused(before: HoldState, after: HoldState, amount: int) -> int:
    """
    Say how much of a hold has come to nothing with this change.
    """
    if after.status == OPEN:
        return 0
    if before.status == OPEN:
        return amount - after.captured - after.pending
    # It was over already: what comes back from its way is not captured any more.
    return before.pending - after.pending - (after.captured - before.captured)


def _end_or_extend(books: Books, decision: list[Any], stamp: Stamp) -> None:
    tag, _, _, merchant_id, source_id, hold_id, currency, amount, *rest = decision
    facts, own = books.holds.usable(hold_id, stamp.at_us)
    said = [merchant_id, source_id, currency, amount]
    expected = [facts[HOLD_MERCHANT], facts[HOLD_WALLET], facts[HOLD_CURRENCY]]
    expected.append(own.kept(facts[HOLD_AMOUNT]))
    if said != expected:
        raise Contradiction("hold", expected, said)
    if tag == HOLD_EXTENDED:
        lifetime_s, expires_at_us = rest
        asked = stamp.at_us + lifetime_s * _SECOND_US
        _check_lifetime(lifetime_s, stamp.at_us, asked)
        if expires_at_us != max(asked, own.expires_at_us):
            raise Contradiction("over at", max(asked, own.expires_at_us), expires_at_us)
        books.holds.extend(hold_id, expires_at_us)
    else:
        books.holds.void(hold_id)
    books.remember(decision, stamp)


# --- Captures -------------------------------------------------------------------------------------


def capture(books: Books, decision: list[Any], terms: list[Any], stamp: Stamp) -> None:
    """
    Take in a capture, which is posted or, as 7, on its way to another shard; raises Contradiction.
    """
    hold_id, is_final = terms[TERMS_HOLD], terms[TERMS_IS_FINAL]
    move = books.holds.send if decision[0] == 7 else books.holds.capture
    facts = move(hold_id, decision[8], stamp.at_us, is_final=is_final)
    expected = [facts[HOLD_MERCHANT], facts[HOLD_WALLET], facts[HOLD_CURRENCY]]
    said = [decision[4], decision[5], decision[7]]
    if said != expected:
        raise Contradiction("captured hold", expected, said)


# --- Holds that move with their slot ----------------------------------------------------------


def give_holds(books: Books, slot: int, carried: list[list[Any]]) -> None:
    """
    Let the holds of a slot go; raises Contradiction when one is missing or told to be another.
    """
    leaving = books.holds.take_slot(slot)
    for hold_id, *facts, sequence in carried:
        if sequence != 0 or slot_of_hold(hold_id) != slot:
            raise Contradiction("carried hold", f"one of slot {slot}", hold_id)
        known = leaving.pop(hold_id, None)
        if known is None:
            books.holds.left.append((hold_id, facts))
        elif known[:HOLD_CHANGED_AT] != facts:
            raise Contradiction("carried hold", known[:HOLD_CHANGED_AT], facts)
    if leaving:
        raise Contradiction("carried hold", min(leaving), None)


def take_holds(books: Books, slot: int, carried: list[list[Any]], stamp: Stamp) -> None:
    """
    Take in the holds that came with a slot, and what they keep in its wallets.
    """
    for hold_id, *facts, sequence in carried:
        wallet = books.wallets.get(facts[HOLD_WALLET])
        if sequence != 0 or slot_of_hold(hold_id) != slot or wallet is None:
            raise Contradiction("carried hold", f"one of slot {slot}", hold_id)
        kept = state_of([*facts, stamp.at]).kept(facts[HOLD_AMOUNT])
        if facts[HOLD_PENDING] != 0 or kept < 0:
            raise Contradiction("carried hold", "nothing on its way", facts)
        wallet[RESERVED] += kept
        wallet[HELD] += kept
        if facts[HOLD_STATUS] == OPEN:
            books.holds.add(hold_id, [*facts, stamp.at])
        else:
            books.holds.ended.append((hold_id, [*facts, stamp.at]))
