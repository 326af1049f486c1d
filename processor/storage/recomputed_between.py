"""
What the decisions between shards do to the wallets in the auditor's books.

A part of `recomputation`, and like it without any code of the ledger; the layouts, and what the
ends of the channels must say, are in `recomputed_ends`.

A reservation moves nothing: the wallet's available money falls. When it is settled, the money goes
to the wallet of what the peer is due; an entry that is credited is taken from there at the other
shard. A slot that is given takes its wallets with it, and what was in them is due to the peer.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from processor.storage.recomputed_ends import (
    CREDITED,
    GIVEN,
    GRANTED,
    RECALLED,
    RELEASED,
    SETTLED,
    TAKEN,
    Pending,
)
from processor.storage.recomputed_ends import RESERVED as SENT
from processor.storage.recomputed_wallets import (
    BALANCE,
    CURRENCY,
    MERCHANT,
    OPENED_AT,
    RESERVED,
    STATUS,
    VERSION,
    Contradiction,
    check_amount,
    check_available,
    check_identifier,
    due_wallet_id,
    post,
    slot_of,
)

if TYPE_CHECKING:
    from processor.storage.recomputation import ShardBooks

TransferRow = tuple[Any, ...]

_TRANSFER, _DEPOSIT = 1, 2
_OUTCOME_FIELD_COUNTS = {4: 15, 5: 12}  # Of a posted and of a rejected transfer.
_encode = msgspec.msgpack.Encoder().encode


def fold_between(
    books: ShardBooks, decision: list[Any], sequence: int, at: datetime, at_us: int
) -> TransferRow | None:
    """
    Take in a decision between shards and return the row of `transfers` it means, if any.
    """
    pending = books.ends.fold(decision, sequence, at_us)
    tag = decision[0]
    if tag == SENT:
        _reserve(books, decision)
    elif tag == CREDITED:
        return _credit(books, decision, sequence, at)
    elif tag == GIVEN:
        _give(books, decision)
    elif tag == TAKEN:
        _take(books, decision, sequence, at)
    elif tag == GRANTED:
        _check_all_here(books)
    elif pending is not None and pending.is_transfer:
        return _settle(books, decision, pending, sequence, at)
    return None


def _reserve(books: ShardBooks, decision: list[Any]) -> None:
    books.check_asked(decision)
    _, kind, _, _, merchant_id, source_id, destination_id, currency, amount = decision[:9]
    source = books.wallets.get(source_id)
    if kind != _TRANSFER:
        raise Contradiction("type", _TRANSFER, kind)
    if source is None or source_id[0] == "$":
        raise Contradiction("source", "a wallet opened before", source_id)
    if destination_id[0] == "$" or destination_id == source_id:
        raise Contradiction("destination", "another customer's wallet", destination_id)
    if source[CURRENCY] != currency:
        raise Contradiction("currency", source[CURRENCY], currency)
    if source[MERCHANT] != merchant_id:
        raise Contradiction("merchant", source[MERCHANT], merchant_id)
    source[RESERVED] += amount
    check_available(source, "source")
    books.decide_anew(decision)


def _settle(
    books: ShardBooks, decision: list[Any], pending: Pending, sequence: int, at: datetime
) -> TransferRow | None:
    asked = pending.decision
    source_id, destination_id, currency, amount = asked[5:9]
    source = books.wallets[source_id]
    source[RESERVED] -= amount
    tag, peer = decision[:2]
    if tag == RECALLED:
        books.recalled[asked[2]] = asked
        return None
    if tag == RELEASED:
        books.rejected_count += 1
        return books.row(asked, sequence, at, reason=decision[4])
    assert tag == SETTLED, "nothing else ends a transfer"
    _, _, _, _, *source_after, due_version, due_balance = decision
    due_id, due = _due_of(books, peer, currency)
    post(source, -amount, version=source_after[0], balance=source_after[1], name="source")
    post(due, amount, version=due_version, balance=due_balance, name="due")
    books.posted_count += 1
    return books.row(
        [*asked[:6], due_id, *asked[7:11], *source_after, due_version, due_balance],
        sequence,
        at,
        counterparty=destination_id,
    )


def _credit(books: ShardBooks, decision: list[Any], sequence: int, at: datetime) -> TransferRow:
    _, peer, _, _, transfer_id, merchant_id, source_id, destination_id, currency = decision[:9]
    amount, reference, metadata, due_version, due_balance, version, balance = decision[9:]
    check_identifier("transfer_id", transfer_id)
    check_amount(amount)
    destination = books.wallets.get(destination_id)
    if destination is None or destination_id[0] == "$":
        raise Contradiction("destination", "a wallet that is here", destination_id)
    if destination[CURRENCY] != currency:
        raise Contradiction("currency", destination[CURRENCY], currency)
    due_id, due = _due_of(books, peer, currency)
    post(due, -amount, version=due_version, balance=due_balance, name="due")
    post(destination, amount, version=version, balance=balance, name="destination")
    movement = [transfer_id, None, merchant_id, due_id, destination_id, currency, amount]
    after = [reference, metadata, due_version, due_balance, version, balance]
    return books.row([CREDITED, _TRANSFER, *movement, *after], sequence, at, counterparty=source_id)


def _give(books: ShardBooks, decision: list[Any]) -> None:
    _, peer, _, _, slot, _, wallets, outcomes, dues = decision
    leaving = books.wallets_of_slot(slot)
    _check_unique("carried wallet", wallets)
    for carried in wallets:
        wallet = books.wallets.get(carried[0])
        if wallet is None or carried[0] not in leaving:
            raise Contradiction("carried wallet", f"a wallet of slot {slot}", carried[0])
        if wallet[RESERVED] != 0:
            raise Contradiction(f"reserved of {carried[0]}", 0, wallet[RESERVED])
        if carried[1:] != wallet[:OPENED_AT]:
            raise Contradiction(f"facts of {carried[0]}", wallet[:OPENED_AT], carried[1:])
    if len(wallets) != len(leaving):
        missing = min(leaving.difference(carried[0] for carried in wallets))
        raise Contradiction("carried wallet", missing, None)
    _move_dues(books, peer, wallets, dues, sign=1)
    for wallet_id in leaving:
        del books.wallets[wallet_id]
    leaving.clear()
    for outcome in outcomes:
        _check_outcome(slot, outcome)
        key = outcome[0][3]
        if key not in books.carried:
            books.claims.append(outcome)
        elif books.carried[key][1] != _encode(outcome):
            raise Contradiction(f"outcome under {key.hex()}", "as it was carried here", outcome)


def _take(books: ShardBooks, decision: list[Any], sequence: int, at: datetime) -> None:
    _, peer, _, _, slot, _, wallets, outcomes, dues = decision
    if len(books.ends.slots) == 1:
        _check_all_here(books)
    _check_unique("carried wallet", wallets)
    for wallet_id, merchant_id, currency, status, minimum, posted, version in wallets:
        # None of this slot can be in the books: they went with it, or it never was here.
        if wallet_id[0] == "$" or slot_of(wallet_id) != slot:
            raise Contradiction("carried wallet", f"a wallet of slot {slot}", wallet_id)
        wallet = books.add_wallet(wallet_id, merchant_id, currency, minimum, at)
        wallet[STATUS], wallet[BALANCE], wallet[VERSION] = status, posted, version
        check_available(wallet, wallet_id)
    _move_dues(books, peer, wallets, dues, sign=-1)
    for outcome in outcomes:
        _check_outcome(slot, outcome)
        key, encoded = outcome[0][3], _encode(outcome)
        if books.carried.get(key, (0, encoded))[1] != encoded:
            raise Contradiction(f"outcome under {key.hex()}", "as it was carried before", outcome)
        books.carried[key] = (sequence, encoded)


def _move_dues(
    books: ShardBooks, peer: int, wallets: list[Any], dues: list[Any], *, sign: int
) -> None:
    """
    Move what is in the carried wallets to (or from) what the peer is due.
    """
    sums: dict[str, int] = {}
    for _, _, currency, _, _, posted, _ in wallets:
        sums[currency] = sums.get(currency, 0) + posted
    expected = {currency: amount for currency, amount in sums.items() if amount != 0}
    found = {currency: amount for currency, amount, _, _ in dues}
    if expected != found or len(dues) != len(found):
        raise Contradiction("dues", expected, found)
    for currency, amount, version, balance in dues:
        _, due = _due_of(books, peer, currency)
        post(due, sign * amount, version=version, balance=balance, name="due")


def _due_of(books: ShardBooks, peer: int, currency: str) -> tuple[str, list[Any]]:
    due_id = due_wallet_id(books.shard_id, peer, currency)
    due = books.wallets.get(due_id)
    if due is None:
        raise Contradiction("due", "a wallet opened before", due_id)
    return due_id, due


def _check_outcome(slot: int, outcome: list[Any]) -> None:
    decision, sequence, at_us = outcome
    if len(decision) != _OUTCOME_FIELD_COUNTS.get(decision[0]):
        raise Contradiction("carried outcome", "posted or rejected", decision)
    if type(sequence) is not int or type(at_us) is not int:
        raise Contradiction("carried outcome", "a sequence and a time", (sequence, at_us))
    own = decision[6] if decision[1] == _DEPOSIT else decision[5]
    if slot_of(own) != slot:
        raise Contradiction("carried outcome", f"one of a wallet of slot {slot}", own)


def _check_unique(field: str, carried: list[Any]) -> None:
    names: set[str] = set()
    for each in carried:
        if each[0] in names:
            raise Contradiction(field, "once", each[0])
        names.add(each[0])


def _check_all_here(books: ShardBooks) -> None:
    """
    Check the wallets of a shard whose first slots are told only now.
    """
    for wallet_id in books.wallets:
        if wallet_id[0] != "$" and not books.ends.has_slot(slot_of(wallet_id)):
            raise Contradiction("wallet", "one of a slot that is here", wallet_id)
