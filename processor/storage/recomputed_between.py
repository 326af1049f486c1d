"""
What the decisions between shards do to the wallets in the auditor's books.

A part of `recomputation`, and like it without any code of the ledger; the layouts, and what the
ends of the channels must say, are in `recomputed_ends`.

A reservation moves nothing: the wallet's available money falls. When it is settled, the money goes
to the wallet of what the peer is due; an entry that is credited is taken from there at the other
shard. A slot that is given takes its wallets with it, and what was in them is due to the peer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from processor.storage.recomputed_books import (
    CAPTURE,
    DEPOSIT,
    REFUND,
    TERMS_HOLD,
    TERMS_IS_FINAL,
    TERMS_REFUND_OF,
    TERMS_REFUNDABLE,
    TRANSFER,
    Books,
    OutcomeRow,
    Stamp,
    TransferRow,
    names_of,
)
from processor.storage.recomputed_counts import slot_of_hold
from processor.storage.recomputed_ends import Pending
from processor.storage.recomputed_holds import capture, give_holds, take_holds
from processor.storage.recomputed_layouts import (
    CREDITED,
    FIELD_COUNTS,
    GIVEN,
    GRANTED,
    HOLD_EXTENDED,
    HOLD_PLACED,
    HOLD_VOIDED,
    LINKED_POSTED,
    LINKED_REJECTED,
    POSTED,
    RECALLED,
    REJECTED,
    RELEASED,
    SETTLED,
    TAKEN,
    filled_up,
    filled_up_wallets,
)
from processor.storage.recomputed_layouts import RESERVED as SENT
from processor.storage.recomputed_limits import (
    CREDITS_COUNTED,
    DEBITS_COUNTED,
    count_credits,
    count_debits,
    flat_limits,
    flat_usage,
    give_back_debits,
)
from processor.storage.recomputed_wallets import (
    BALANCE,
    CURRENCY,
    HELD,
    INCOMING,
    LIMITS,
    MERCHANT,
    OPENED_AT,
    RESERVED,
    STATUS,
    USAGE,
    VERSION,
    Contradiction,
    check_amount,
    check_available,
    check_identifier,
    post,
    slot_of,
)

_OUTCOMES = {POSTED, REJECTED, HOLD_PLACED, HOLD_VOIDED, HOLD_EXTENDED}
_OUTCOMES |= {LINKED_POSTED, LINKED_REJECTED}
_encode = msgspec.msgpack.Encoder().encode


def fold_between(books: Books, decision: list[Any], stamp: Stamp) -> TransferRow | None:
    """
    Take in a decision between shards and return the row of `transfers` it means, if any.
    """
    pending = books.ends.fold(decision, stamp.sequence, stamp.at_us)
    tag, is_older = decision[0], len(decision) < FIELD_COUNTS[decision[0]]
    decision = filled_up(decision)
    if tag == SENT:
        _reserve(books, decision, stamp, is_older=is_older)
    elif tag == CREDITED:
        return _credit(books, decision, stamp)
    elif tag == GIVEN:
        _give(books, decision)
    elif tag == TAKEN:
        _take(books, decision, stamp)
    elif tag == GRANTED:
        _check_all_here(books)
    elif pending is not None and pending.is_transfer:
        return _settle(books, decision, pending, stamp)
    return None


def _reserve(books: Books, decision: list[Any], stamp: Stamp, *, is_older: bool) -> None:
    books.check_asked(decision)
    _, kind, _, _, merchant_id, source_id, destination_id, currency, amount = decision[:9]
    terms, counted_at_us = decision[14:16]
    source = books.wallets.get(source_id)
    if kind not in (TRANSFER, CAPTURE, REFUND):
        raise Contradiction("type", f"{TRANSFER}, {CAPTURE} or {REFUND}", kind)
    if source is None or (source_id[0] == "$" and not source_id.startswith("$fees:")):
        raise Contradiction("source", "a wallet opened before", source_id)
    if destination_id[0] == "$" or destination_id == source_id:
        raise Contradiction("destination", "another customer's wallet", destination_id)
    if source[CURRENCY] != currency:
        raise Contradiction("currency", source[CURRENCY], currency)
    if source[MERCHANT] != merchant_id:
        raise Contradiction("merchant", source[MERCHANT], merchant_id)
    before = books.decide_anew(decision)
    # Older builds did not tell, and counted nothing.
    expected_at_us = 0 if before is None or is_older else before[1]
    if counted_at_us != expected_at_us:
        raise Contradiction("counted at", expected_at_us, counted_at_us)
    if before is None:
        bind(books, decision, terms, stamp)
        count_movement(books, decision, stamp, debit=True)
    source[RESERVED] += amount
    check_available(source, "source")


def _settle(
    books: Books, decision: list[Any], pending: Pending, stamp: Stamp
) -> TransferRow | None:
    asked = pending.decision
    source_id, destination_id, currency, amount = asked[5:9]
    terms = asked[14]
    source = books.wallets[source_id]
    source[RESERVED] -= amount
    tag, peer = decision[:2]
    if tag == RECALLED:
        books.recalled[asked[2]] = (asked, asked[15] or pending.at_us)
        return None
    if tag == RELEASED:
        _, _, _, _, reason, short_by = decision
        come_to_nothing(books, asked, asked[15] or pending.at_us)
        books.rejected_count += 1
        if terms is not None:
            books.remember([REJECTED, *asked[1:11], reason, short_by, terms], stamp)
        return books.row(asked, stamp, terms=terms, reason=reason, short_by=short_by)
    assert tag == SETTLED, "nothing else ends a transfer"
    after = decision[4:]
    due_id, due = books.due_of(peer, currency)
    post(source, -amount, version=after[0], balance=after[1], name="source")
    post(due, amount, version=after[2], balance=after[3], name="due")
    arrive(books, asked)
    books.posted_count += 1
    if terms is not None:
        books.remember([POSTED, *asked[1:11], *after, terms], stamp)
    told = [*asked[:6], due_id, *asked[7:11], *after]
    return books.row(told, stamp, terms=terms, counterparty=destination_id)


def _credit(books: Books, decision: list[Any], stamp: Stamp) -> TransferRow:
    _, peer, _, _, transfer_id, merchant_id, source_id, destination_id, currency = decision[:9]
    amount, reference, metadata, due_version, due_balance, version, balance = decision[9:16]
    kind, terms = decision[16:]
    check_identifier("transfer_id", transfer_id)
    check_amount(amount)
    destination = books.wallets.get(destination_id)
    if destination is None or destination_id[0] == "$":
        raise Contradiction("destination", "a wallet that is here", destination_id)
    if destination[CURRENCY] != currency:
        raise Contradiction("currency", destination[CURRENCY], currency)
    if kind not in (TRANSFER, CAPTURE, REFUND):
        raise Contradiction("type", f"{TRANSFER}, {CAPTURE} or {REFUND}", kind)
    due_id, due = books.due_of(peer, currency)
    movement = [CREDITED, kind, transfer_id, None, merchant_id, due_id, destination_id, currency]
    told = [*movement, amount, reference, metadata, due_version, due_balance, version, balance]
    count_movement(books, told, stamp, debit=False)
    post(due, -amount, version=due_version, balance=due_balance, name="due")
    post(destination, amount, version=version, balance=balance, name="destination")
    return books.row(told, stamp, terms=terms, counterparty=source_id)


# --- What goes with a movement ----------------------------------------------------------------


def bind(books: Books, decision: list[Any], terms: list[Any] | None, stamp: Stamp) -> None:
    """
    Take in what a movement that is decided first is bound to, before it moves; raises
    Contradiction.
    """
    kind, amount = decision[1], decision[8]
    is_capture = terms is not None and terms[TERMS_HOLD] is not None
    is_refund = terms is not None and terms[TERMS_REFUND_OF] is not None
    if is_capture != (kind == CAPTURE) or is_refund != (kind == REFUND):
        raise Contradiction("terms", f"those of type {kind}", terms)
    if terms is None:
        return
    if is_capture:
        capture(books, decision, terms, stamp)
        return
    own = books.wallets[decision[6] if kind == DEPOSIT else decision[5]]
    books.check_terms(terms, own, amount)
    if is_refund:
        books.refunds.count(terms[TERMS_REFUND_OF], decision[5], amount, terms[TERMS_REFUNDABLE])


def count_movement(
    books: Books, decision: list[Any], stamp: Stamp, *, debit: bool, credit: bool | None = None
) -> None:
    """
    Count a movement for the limits of its wallets, before it moves: its debit, its credit, or both.
    """
    kind, source_id, destination_id, amount = decision[1], *decision[5:7], decision[8]
    source = books.wallets[source_id]
    if debit and source[USAGE] is not None and kind in DEBITS_COUNTED:
        before = source[USAGE]
        count_debits(source, stamp.at_us, amount)
        books.note_usage(source_id, before)
    is_credit = not debit if credit is None else credit
    destination = books.wallets[destination_id] if is_credit else None
    if destination is not None and destination[USAGE] is not None and kind in CREDITS_COUNTED:
        before = destination[USAGE]
        count_credits(destination, stamp.at_us, amount)
        books.note_usage(destination_id, before)


def arrive(books: Books, asked: list[Any]) -> None:
    """
    Take in that a movement that was on its way, laid out as 7, has arrived.
    """
    terms = asked[14]
    if terms is not None and terms[TERMS_HOLD] is not None:
        books.holds.settle(terms[TERMS_HOLD], asked[8], is_final=terms[TERMS_IS_FINAL])


def come_to_nothing(books: Books, asked: list[Any], counted_at_us: int) -> None:
    """
    Take in that a movement that was on its way, laid out as 7, was refused.
    """
    kind, source_id, amount, terms = asked[1], asked[5], asked[8], asked[14]
    source = books.wallets[source_id]
    if source[USAGE] is not None and kind in DEBITS_COUNTED:
        before = source[USAGE]
        give_back_debits(source, counted_at_us, amount)
        books.note_usage(source_id, before)
    if terms is not None and terms[TERMS_REFUND_OF] is not None:
        books.refunds.count(terms[TERMS_REFUND_OF], source_id, -amount, None)
    if terms is not None and terms[TERMS_HOLD] is not None:
        books.holds.take_back(terms[TERMS_HOLD], amount, is_final=terms[TERMS_IS_FINAL])


# --- Slots ----------------------------------------------------------------------------------------


def _give(books: Books, decision: list[Any]) -> None:
    _, peer, _, _, slot, _, wallets, outcomes, dues, holds, refunds = decision
    wallets = filled_up_wallets(wallets)
    leaving = books.wallets_of_slot(slot)
    _check_unique("carried wallet", wallets)
    for carried in wallets:
        wallet = books.wallets.get(carried[0])
        if wallet is None or carried[0] not in leaving:
            raise Contradiction("carried wallet", f"a wallet of slot {slot}", carried[0])
        if wallet[RESERVED] != wallet[HELD] or wallet[INCOMING] != 0:
            found = wallet[RESERVED] - wallet[HELD], wallet[INCOMING]
            raise Contradiction(f"reserved of {carried[0]}", (0, 0), found)
        facts = [*carried[1:7], flat_limits(carried[7]), flat_usage(carried[8])]
        known = [*wallet[:OPENED_AT], wallet[LIMITS], wallet[USAGE]]
        if facts != known:
            raise Contradiction(f"facts of {carried[0]}", known, facts)
    if len(wallets) != len(leaving):
        missing = min(leaving.difference(carried[0] for carried in wallets))
        raise Contradiction("carried wallet", missing, None)
    give_holds(books, slot, holds)
    books.refunds.give(slot, refunds)
    _move_dues(books, peer, wallets, dues, sign=1)
    for wallet_id in leaving:
        del books.wallets[wallet_id]
    leaving.clear()
    for outcome in outcomes:
        key, _ = _check_outcome(slot, outcome)
        if key not in books.carried:
            books.claims.append(outcome)
        elif books.carried[key].outcome != _encode(outcome):
            raise Contradiction(f"outcome under {key.hex()}", "as it was carried here", outcome)


def _take(books: Books, decision: list[Any], stamp: Stamp) -> None:
    _, peer, _, _, slot, _, wallets, outcomes, dues, holds, refunds = decision
    wallets = filled_up_wallets(wallets)
    if len(books.ends.slots) == 1:
        _check_all_here(books)
    _check_unique("carried wallet", wallets)
    for wallet_id, merchant_id, currency, status, minimum, posted, version, *more in wallets:
        # None of this slot can be in the books: they went with it, or it never was here.
        if wallet_id[0] == "$" or slot_of(wallet_id) != slot:
            raise Contradiction("carried wallet", f"a wallet of slot {slot}", wallet_id)
        wallet = books.add_wallet(wallet_id, merchant_id, currency, minimum, stamp.at)
        wallet[STATUS], wallet[BALANCE], wallet[VERSION] = status, posted, version
        wallet[LIMITS], wallet[USAGE] = flat_limits(more[0]), flat_usage(more[1])
        if (wallet[LIMITS] is None) != (wallet[USAGE] is None):
            raise Contradiction(f"usage of {wallet_id}", "counted under limits", more)
    take_holds(books, slot, holds, stamp)
    for carried in wallets:
        check_available(books.wallets[carried[0]], carried[0])
    for total in refunds:
        books.refunds.take(total)
    _move_dues(books, peer, wallets, dues, sign=-1)
    for outcome in outcomes:
        key, transfer_id = _check_outcome(slot, outcome)
        encoded = _encode(outcome)
        if key in books.carried and books.carried[key].outcome != encoded:
            raise Contradiction(f"outcome under {key.hex()}", "as it was carried before", outcome)
        books.carried[key] = OutcomeRow(key, stamp.sequence, encoded, transfer_id)


def _move_dues(books: Books, peer: int, wallets: list[Any], dues: list[Any], *, sign: int) -> None:
    """
    Move what is in the carried wallets to (or from) what the peer is due.
    """
    sums: dict[str, int] = {}
    for carried in wallets:
        sums[carried[2]] = sums.get(carried[2], 0) + carried[5]
    expected = {currency: amount for currency, amount in sums.items() if amount != 0}
    found = {currency: amount for currency, amount, _, _ in dues}
    if expected != found or len(dues) != len(found):
        raise Contradiction("dues", expected, found)
    for currency, amount, version, balance in dues:
        _, due = books.due_of(peer, currency)
        post(due, sign * amount, version=version, balance=balance, name="due")


def _check_outcome(slot: int, outcome: list[Any]) -> tuple[bytes, bytes]:
    """
    Check an outcome that is carried, and return its key and what it is of; raises Contradiction.
    """
    decision, sequence, at_us = outcome
    if decision[0] not in _OUTCOMES:
        raise Contradiction("carried outcome", "one under a key", decision)
    decision = filled_up(decision)
    if type(sequence) is not int or type(at_us) is not int:
        raise Contradiction("carried outcome", "a sequence and a time", (sequence, at_us))
    if _slot_of_outcome(decision) != slot:
        raise Contradiction("carried outcome", f"one of a wallet of slot {slot}", decision)
    return names_of(decision)


def _slot_of_outcome(decision: list[Any]) -> int:
    tag = decision[0]
    if tag in {HOLD_VOIDED, HOLD_EXTENDED}:
        return slot_of_hold(decision[5])
    if tag in {LINKED_POSTED, LINKED_REJECTED}:
        return slot_of(decision[4][0][2])
    if tag == HOLD_PLACED:
        return slot_of(decision[4])
    terms = decision[15 if tag == POSTED else 13]
    if terms is not None and terms[TERMS_HOLD] is not None:
        return slot_of_hold(terms[TERMS_HOLD])
    return slot_of(decision[6] if decision[1] == DEPOSIT else decision[5])


def _check_unique(field: str, carried: list[Any]) -> None:
    names: set[str] = set()
    for each in carried:
        if each[0] in names:
            raise Contradiction(field, "once", each[0])
        names.add(each[0])


def _check_all_here(books: Books) -> None:
    """
    Check the wallets of a shard whose first slots are told only now.
    """
    for wallet_id in books.wallets:
        if wallet_id[0] != "$" and not books.ends.has_slot(slot_of(wallet_id)):
            raise Contradiction("wallet", "one of a slot that is here", wallet_id)
