"""
The checks of a linked transfer at one shard: its own parts, judged as a whole.

Rule: a wallet is judged by what all moves together make of it, so that one leg may spend what
      another brings. When several checks fail, the reason with the smallest number is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from processor.core.decisions import LegPart
from processor.core.judge import (
    CREDITS_LIMITED,
    DEBITS_LIMITED,
    Refused,
    refusal_by_credit_limits,
    refusal_by_debit_limits,
    refusal_of_destination,
    refusal_of_room,
    refusal_of_source,
)
from processor.core.linked import Move, destination_of, nets_of
from processor.core.reject_reason import RejectReason
from processor.core.state import ShardState
from processor.core.wallet import SYSTEM_MERCHANT, Wallet, due_wallet_id

RefusedLeg = tuple[int, RejectReason, int]  # The leg, why, and by how much.


def refused_leg(
    state: ShardState, merchant_id: str, parts: list[LegPart], moves: list[Move], at_us: int
) -> RefusedLeg | None:
    """
    Judge a shard's own parts as a whole; the reason with the smallest number is told.
    """
    found = [
        (reason, place, short_by)
        for place, (reason, short_by) in (
            *_refused_sides(state, merchant_id, parts),
            *_refused_refunds(state, parts),
        )
    ]
    if not found:
        found = [
            (reason, place, short_by)
            for place, (reason, short_by) in _refused_wallets(state, moves, at_us)
        ]
    if not found:
        return None
    reason, place, short_by = min(found)
    return place, reason, short_by


def _refused_sides(
    state: ShardState, merchant_id: str, parts: list[LegPart]
) -> Iterator[tuple[int, Refused]]:
    for part in parts:
        leg = part.asked
        if part.is_debit:
            source = state.wallets.get(leg.source)
            refused = refusal_of_source(source, merchant_id, leg.currency)
            if refused is not None:
                yield part.leg, refused
        if part.is_credit:
            destination = state.wallets.get(destination_of(leg, state.shard_id, merchant_id))
            if destination is not None and destination.merchant_id == SYSTEM_MERCHANT:
                destination = None  # No leg goes there by name.
            refused = refusal_of_destination(destination, leg.currency)
            if refused is not None:
                yield part.leg, refused


def _refused_refunds(state: ShardState, parts: list[LegPart]) -> Iterator[tuple[int, Refused]]:
    asked: dict[bytes, int] = {}
    for part in parts:
        terms = part.asked.terms
        if not part.is_debit or terms is None or terms.refund_of is None:
            continue
        total = state.refunds.get(terms.refund_of)
        if total is None:
            yield part.leg, (RejectReason.REFUND_TOTAL_UNKNOWN, 0)  # It may be anything.
            continue
        asked[terms.refund_of] = asked.get(terms.refund_of, 0) + part.asked.amount
        refunded = total.refunded + asked[terms.refund_of]
        if refunded > terms.refundable:
            yield part.leg, (RejectReason.REFUND_EXCEEDS_PAID, refunded - terms.refundable)


def _refused_wallets(
    state: ShardState, moves: list[Move], at_us: int
) -> Iterator[tuple[int, Refused]]:
    """
    Judge each wallet by what all moves together make of it.
    """
    for wallet_id, net in nets_of(moves).items():
        wallet = state.wallets.get(wallet_id)
        if wallet is None:
            continue  # What a peer is due, of which there is nothing so far.
        missing = wallet.minimum - (wallet.available - net.reserved)
        if net.reserved and missing > 0:
            place = next(move.leg for move in moves if move.source == wallet_id)
            yield place, (RejectReason.INSUFFICIENT_FUNDS, missing)
        brought = net.brought + _on_its_way_to(state, wallet)
        room = refusal_of_room(wallet, brought) if net.brought else None
        if room is not None:
            yield next(move.leg for move in moves if move.destination == wallet_id), room
        yield from _refused_by_limits(state, wallet_id, moves, at_us)


def _on_its_way_to(state: ShardState, wallet: Wallet) -> int:
    """
    Return what settling will bring into a wallet of what a peer is due: it must always be possible.
    """
    for peer, channel in state.channels.outgoing.items():
        if wallet.wallet_id == due_wallet_id(state.shard_id, peer, wallet.currency):
            return channel.reserved.get(wallet.currency, 0)
    return 0


def _refused_by_limits(
    state: ShardState, wallet_id: str, moves: list[Move], at_us: int
) -> Iterator[tuple[int, Refused]]:
    wallet = state.wallets[wallet_id]
    if wallet.limits is None:
        return
    judged = (
        (limited_debits(wallet_id, moves), refusal_by_debit_limits),
        (limited_credits(wallet_id, moves), refusal_by_credit_limits),
    )
    for limited, refusal_by in judged:
        if not limited:
            continue
        amount, kind = sum(move.amount for move in limited), limited[0].transfer_type
        refused = refusal_by(wallet, amount, transfer_type=kind, at_us=at_us, count=len(limited))
        if refused is not None:
            yield limited[0].leg, refused


def limited_debits(wallet_id: str, moves: Iterable[Move]) -> list[Move]:
    return [m for m in moves if m.source == wallet_id and m.transfer_type in DEBITS_LIMITED]


def limited_credits(wallet_id: str, moves: Iterable[Move]) -> list[Move]:
    return [m for m in moves if m.destination == wallet_id and m.transfer_type in CREDITS_LIMITED]
