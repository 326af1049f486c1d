"""
What linked transfers do to the wallets in the auditor's books.

A part of `recomputation`, and like it without any code of the ledger. Before it is decided, what
all legs together take from a wallet is reserved and what they bring is on its way into it; when
it is posted every leg moves, one after the other, and when it is not what was set aside is free.
Limits and refunds are counted when the money is set aside, or posted at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from processor.storage.recomputed_books import (
    TERMS_REFUND_OF,
    TERMS_REFUNDABLE,
    Books,
    Stamp,
    TransferRow,
)
from processor.storage.recomputed_layouts import (
    LINKED_BEGUN,
    LINKED_DONE,
    LINKED_POSTED,
    LINKED_PREPARED,
    LINKED_RECALLED,
    LINKED_REJECTED,
    VERDICT_TAKEN,
)
from processor.storage.recomputed_legs import (
    Move,
    moves_at_decider,
    moves_of_parts,
    nets_of,
    parts_at,
)
from processor.storage.recomputed_limits import (
    CREDITS_COUNTED,
    DEBITS_COUNTED,
    count_credits,
    count_debits,
    give_back_credits,
    give_back_debits,
)
from processor.storage.recomputed_linked import OpenLinked, Prepared
from processor.storage.recomputed_wallets import (
    BALANCE,
    BALANCE_MAX,
    CURRENCY,
    INCOMING,
    MERCHANT,
    RESERVED,
    USAGE,
    Contradiction,
    check_available,
    post,
)

_REFUND, _FEE = 8, 9


def fold_linked(books: Books, decision: list[Any], stamp: Stamp) -> list[TransferRow]:
    """
    Take in a step of a linked transfer, with what it means for its channel, and return the rows of
    `transfers` it means.
    """
    tag = decision[0]
    linked_id = decision[4] if tag in {LINKED_PREPARED, VERDICT_TAKEN} else decision[1]
    begun, prepared = _known(books, tag, linked_id)
    books.ends.fold(decision, stamp.sequence, stamp.at_us)
    if tag == LINKED_BEGUN:
        set_aside(books, _begun_moves(books, decision), stamp, _own_legs(books, decision))
    elif tag == LINKED_POSTED:
        return _post(books, decision, begun, stamp)
    elif tag == LINKED_REJECTED:
        if begun is not None:
            _let_go_of_begun(books, begun)
        books.remember(decision, stamp)
        books.rejected_count += 1
    elif tag == LINKED_RECALLED and begun is not None:
        _let_go_of_begun(books, begun)
    elif tag == LINKED_DONE and begun is not None and begun.posted is not None:
        books.remember(begun.posted, stamp)
    elif tag == LINKED_PREPARED:
        _, peer, _, _, _, merchant_id, parts = decision
        moves = moves_of_parts(books.shard_id, peer, merchant_id, parts)
        _check_owners(books, moves, merchant_id)
        set_aside(books, moves, stamp, [part[3] for part in parts if part[1]])
    elif tag == VERDICT_TAKEN and prepared is not None:
        return _take_verdict(books, decision, prepared, stamp)
    return []


def _known(books: Books, tag: int, linked_id: bytes) -> tuple[OpenLinked | None, Prepared | None]:
    if tag == VERDICT_TAKEN:
        return None, books.ends.linked.prepared.get(linked_id)
    return books.ends.linked.open.get(linked_id), None


def _begun_moves(books: Books, begun: list[Any]) -> list[Move]:
    _, _, _, merchant_id, legs, homes, _, _ = begun
    moves = moves_at_decider(books.shard_id, merchant_id, legs, homes)
    _check_owners(books, moves, merchant_id)
    return moves


def _own_legs(books: Books, begun: list[Any]) -> list[list[Any]]:
    parts = parts_at(books.shard_id, begun[4], begun[5])
    return [leg for _, is_debit, _, leg in parts if is_debit]


def _check_owners(books: Books, moves: list[Move], merchant_id: str) -> None:
    """
    Check that each move is of wallets that are here, in their currency, out of what is its owner's.
    """
    for _, kind, source_id, destination_id, currency, _ in moves:
        source, destination = books.wallets.get(source_id), books.wallets.get(destination_id)
        if source is None:
            raise Contradiction("source of a leg", "a wallet opened before", source_id)
        if destination is None or destination is source:
            raise Contradiction("destination of a leg", "another open wallet", destination_id)
        if source[CURRENCY] != currency or destination[CURRENCY] != currency:
            raise Contradiction("currency of a leg", source[CURRENCY], currency)
        if not source_id.startswith("$due:") and source[MERCHANT] != merchant_id:
            raise Contradiction("merchant of a leg", source[MERCHANT], merchant_id)
        is_fees = destination_id.startswith("$fees:")
        if is_fees != (kind == _FEE and not destination_id.startswith("$due:")):
            raise Contradiction("destination of a leg", f"one for type {kind}", destination_id)


def undecided_moves(books: Books) -> Iterator[list[Move]]:
    """
    List what is set aside for each linked transfer that is not decided, as far as is known here.
    """
    for linked in books.ends.linked.open.values():
        if linked.posted is None:
            yield _begun_moves(books, linked.begun)
    for prepared in books.ends.linked.prepared.values():
        _, peer, _, _, _, merchant_id, parts = prepared.decision
        yield moves_of_parts(books.shard_id, peer, merchant_id, parts)


# --- Set aside ------------------------------------------------------------------------------------


def set_aside(books: Books, moves: list[Move], stamp: Stamp, debited: list[list[Any]]) -> None:
    """
    Set aside what *moves* need and may bring, and count it; *debited* are the legs from wallets
    that are here.
    """
    count(books, moves, debited, stamp.at_us)
    for wallet_id, net in nets_of(moves).items():
        wallet = books.wallets[wallet_id]
        wallet[RESERVED] += net.reserved
        wallet[INCOMING] += net.brought
        if net.reserved:
            check_available(wallet, wallet_id)
        if wallet[BALANCE] + wallet[INCOMING] > BALANCE_MAX:
            raise Contradiction(f"incoming of {wallet_id}", f"<= {BALANCE_MAX}", wallet[INCOMING])


def let_go(books: Books, moves: list[Move]) -> None:
    """
    Let go of what was set aside.
    """
    for wallet_id, net in nets_of(moves).items():
        wallet = books.wallets[wallet_id]
        wallet[RESERVED] -= net.reserved
        wallet[INCOMING] -= net.brought


def _let_go_of_begun(books: Books, linked: OpenLinked) -> None:
    moves = _begun_moves(books, linked.begun)
    let_go(books, moves)
    _give_back(books, moves, _own_legs(books, linked.begun), linked.at_us)


def count(books: Books, moves: list[Move], debited: list[list[Any]], at_us: int) -> None:
    """
    Count *moves* for the limits of their wallets, and the legs that take something back.
    """
    for wallet_id in nets_of(moves):
        wallet = books.wallets[wallet_id]
        if wallet[USAGE] is None:
            continue
        before = wallet[USAGE]
        out, into = _limited(wallet_id, moves)
        if out:
            count_debits(wallet, at_us, sum(out), len(out))
        if into:
            count_credits(wallet, at_us, sum(into), len(into))
        books.note_usage(wallet_id, before)
    for leg in debited:
        _count_refund(books, leg, 1)


def _give_back(
    books: Books, moves: list[Move], debited: list[list[Any]], counted_at_us: int
) -> None:
    for wallet_id in nets_of(moves):
        wallet = books.wallets[wallet_id]
        if wallet[USAGE] is None:
            continue
        before = wallet[USAGE]
        out, into = _limited(wallet_id, moves)
        give_back_debits(wallet, counted_at_us, sum(out), len(out))
        give_back_credits(wallet, counted_at_us, sum(into), len(into))
        books.note_usage(wallet_id, before)
    for leg in debited:
        _count_refund(books, leg, -1)


def _limited(wallet_id: str, moves: list[Move]) -> tuple[list[int], list[int]]:
    out = [m.amount for m in moves if m.source == wallet_id and m.kind in DEBITS_COUNTED]
    into = [m.amount for m in moves if m.destination == wallet_id and m.kind in CREDITS_COUNTED]
    return out, into


def _count_refund(books: Books, leg: list[Any], sign: int) -> None:
    source_id, amount, terms = leg[2], leg[5], leg[8]
    is_refund = terms is not None and terms[TERMS_REFUND_OF] is not None
    if is_refund != (leg[0] == _REFUND):
        raise Contradiction("terms of a leg", f"those of type {leg[0]}", terms)
    if is_refund:
        refundable = terms[TERMS_REFUNDABLE] if sign > 0 else None
        books.refunds.count(terms[TERMS_REFUND_OF], source_id, sign * amount, refundable)


# --- Posted ---------------------------------------------------------------------------------------


def _post(
    books: Books, decision: list[Any], begun: OpenLinked | None, stamp: Stamp
) -> list[TransferRow]:
    _, linked_id, _, merchant_id, legs, postings, _ = decision
    if begun is None:
        moves = moves_at_decider(books.shard_id, merchant_id, legs, None)
        _check_owners(books, moves, merchant_id)
        count(books, moves, legs, stamp.at_us)
        books.remember(decision, stamp)
    else:
        moves = _begun_moves(books, begun.begun)
        let_go(books, moves)
    books.posted_count += len(legs)
    books.linked_count += 1
    _move_all(books, moves, postings)
    asked = dict(enumerate(legs))
    return [_row(books, asked, one, (linked_id, merchant_id), stamp) for one in postings]


def _take_verdict(
    books: Books, decision: list[Any], prepared: Prepared, stamp: Stamp
) -> list[TransferRow]:
    _, peer, _, _, linked_id, merchant_id, parts = prepared.decision
    is_posted, postings = decision[5:7]
    moves = moves_of_parts(books.shard_id, peer, merchant_id, parts)
    let_go(books, moves)
    if not is_posted:
        debited = [leg for _, is_debit, _, leg in parts if is_debit]
        _give_back(books, moves, debited, prepared.at_us)
        return []
    _move_all(books, moves, postings)
    asked = {place: leg for place, _, _, leg in parts}
    return [_row(books, asked, one, (linked_id, merchant_id), stamp) for one in postings]


def _move_all(books: Books, moves: list[Move], postings: list[list[Any]]) -> None:
    """
    Move the money of every leg here, and compare what the postings say; raises Contradiction.
    """
    said = [(posting[0], posting[1], posting[4]) for posting in postings]
    expected = [(move.leg, move.source, move.destination) for move in moves]
    if said != expected:
        raise Contradiction("postings", expected, said)
    for move, posting in zip(moves, postings, strict=True):
        _, _, source_version, source_balance, _, version, balance = posting
        source, destination = books.wallets[move.source], books.wallets[move.destination]
        amount = move.amount
        post(source, -amount, version=source_version, balance=source_balance, name="source")
        post(destination, amount, version=version, balance=balance, name="destination")
    for move in moves:
        check_available(books.wallets[move.source], move.source)


def _row(
    books: Books,
    legs: dict[int, list[Any]],
    posting: list[Any],
    linked: tuple[bytes, str],
    stamp: Stamp,
) -> TransferRow:
    place, *after = posting
    source_id, destination_id = after[0], after[3]
    kind, transfer_id, source, destination, currency, amount, reference, metadata, _ = legs[place]
    counterparty = None
    if source_id.startswith("$due:") != destination_id.startswith("$due:"):
        counterparty = source if source_id.startswith("$due:") else destination
    linked_id, merchant_id = linked
    return (
        *(transfer_id, books.shard_id, stamp.sequence, stamp.at, kind, None, merchant_id, None),
        *(*after, currency, amount, reference, metadata, counterparty, linked_id, None),
    )
