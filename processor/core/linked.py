"""
What a linked transfer means at one shard: which wallets it moves money between there.

Rule 1: all money goes by way of the shard that decides. A leg from one participant to another is a
        debit towards it at the one, a credit from it at the other, and at itself moves from what
        it owes the one to what it owes the other. So each shard's books are zero at every sequence,
        and what is on its way is always on its channels.
Rule 2: a wallet is judged, and its money set aside, by what all legs together make of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from processor.core.commands import Leg, TransferType
from processor.core.decisions import LegPart, LinkedBegun, LinkedPrepared
from processor.core.wallet import due_wallet_id, fees_wallet_id

Homes = list[tuple[int, int]]  # For each leg the shards of its source and of its destination.


class Move(NamedTuple):
    """
    What leg number `leg` moves at one shard.
    """

    leg: int
    transfer_type: TransferType
    source: str
    destination: str
    currency: str
    amount: int


class Net(NamedTuple):
    """
    What all moves together take from a wallet and bring into it.
    """

    taken: int
    brought: int

    @property
    def reserved(self) -> int:
        return max(0, self.taken - self.brought)


def parts_at(shard_id: int, legs: list[Leg], homes: Homes) -> list[LegPart]:
    """
    List what of *legs* is a shard's own.
    """
    return [
        LegPart(place, source_home == shard_id, destination_home == shard_id, leg)
        for place, (leg, (source_home, destination_home)) in enumerate(
            zip(legs, homes, strict=True)
        )
        if shard_id in (source_home, destination_home)
    ]


def peers_of(shard_id: int, homes: Homes) -> list[int]:
    """
    List the other shards that have a part, in order.
    """
    return sorted({home for pair in homes for home in pair} - {shard_id})


def moves_at_home(shard_id: int, merchant_id: str, legs: list[Leg], homes: Homes) -> list[Move]:
    """
    List what *legs* move at the shard that decides; a leg within one other shard moves nothing.
    """
    moves = []
    for place, (leg, (source_home, destination_home)) in enumerate(zip(legs, homes, strict=True)):
        if source_home == destination_home != shard_id:
            continue
        source, destination = leg.source, destination_of(leg, shard_id, merchant_id)
        if source_home != shard_id:
            source = due_wallet_id(shard_id, source_home, leg.currency)
        if destination_home != shard_id:
            destination = due_wallet_id(shard_id, destination_home, leg.currency)
        moves.append(Move(place, leg.transfer_type, source, destination, leg.currency, leg.amount))
    return moves


def moves_of_parts(
    shard_id: int, peer: int, merchant_id: str, parts: Iterable[LegPart]
) -> list[Move]:
    """
    List what a participant's parts move at it; *peer* decides.
    """
    moves = []
    for part in parts:
        leg = part.asked
        due = due_wallet_id(shard_id, peer, leg.currency)
        source = leg.source if part.is_debit else due
        destination = destination_of(leg, shard_id, merchant_id) if part.is_credit else due
        moves.append(
            Move(part.leg, leg.transfer_type, source, destination, leg.currency, leg.amount)
        )
    return moves


def moves_begun(shard_id: int, begun: LinkedBegun) -> list[Move]:
    return moves_at_home(shard_id, begun.merchant_id, begun.legs, begun.homes)


def moves_prepared(shard_id: int, prepared: LinkedPrepared) -> list[Move]:
    return moves_of_parts(shard_id, prepared.peer, prepared.merchant_id, prepared.parts)


def destination_of(leg: Leg, shard_id: int, merchant_id: str) -> str:
    """
    Name where a leg that arrives at *shard_id* goes; a fee goes to its merchant's wallet there.
    """
    if leg.transfer_type == TransferType.FEE:
        return fees_wallet_id(shard_id, merchant_id, leg.currency)
    return leg.destination


def nets_of(moves: Iterable[Move]) -> dict[str, Net]:
    """
    Sum what *moves* take from each wallet and bring into it.
    """
    nets: dict[str, Net] = {}
    for move in moves:
        taken, brought = nets.get(move.source, (0, 0))
        nets[move.source] = Net(taken + move.amount, brought)
        taken, brought = nets.get(move.destination, (0, 0))
        nets[move.destination] = Net(taken, brought + move.amount)
    return nets
