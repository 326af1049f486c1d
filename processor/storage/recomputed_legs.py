"""
Which wallets the legs of a linked transfer move money between at each shard, by the auditor's
own reading.

A part of `recomputation`, and like it without any code of the ledger. All money goes by way of the
shard that decides: what a leg moves from or to another shard is, there, moved from or to what that
shard is due; at the other one from or to what the deciding shard is due. A leg within another shard
moves nothing at the one that decides. A fee goes to its merchant's wallet at its source's shard.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from processor.storage.recomputed_wallets import Contradiction, due_wallet_id, fees_wallet_id

_FEE = 9
_LEG_TYPES = (1, 8, 9)
_LEG_FIELD_COUNT = 9


class Move(NamedTuple):
    """
    What leg number `leg` moves at one shard.
    """

    leg: int
    kind: int
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


def check_legs(legs: list[list[Any]]) -> None:
    """
    Check the legs as they are asked for; raises Contradiction.
    """
    if not 1 <= len(legs) <= 100:
        raise Contradiction("legs", "1 to 100", len(legs))
    for kind, transfer_id, source, _, _, amount, *more in legs:
        if kind not in _LEG_TYPES or len(more) != _LEG_FIELD_COUNT - 6:
            raise Contradiction("leg", f"of type {_LEG_TYPES}", kind)
        if type(transfer_id) is not bytes or len(transfer_id) != 16 or not source:
            raise Contradiction("leg", "16 bytes and a source", (transfer_id, source))
        if type(amount) is not int or not 1 <= amount < 2**53:
            raise Contradiction("amount of a leg", "1 to 2^53 - 1", amount)


def check_homes(shard_id: int, legs: list[list[Any]], homes: list[list[int]]) -> list[int]:
    """
    Return the other shards that have a part; raises Contradiction when there is none.
    """
    if len(homes) != len(legs) or any(len(pair) != 2 for pair in homes):
        raise Contradiction("homes", "a pair for each leg", homes)
    for leg, (source_home, destination_home) in zip(legs, homes, strict=True):
        if leg[0] == _FEE and source_home != destination_home:
            raise Contradiction("home of a fee", source_home, destination_home)
    shards = {home for pair in homes for home in pair}
    if any(type(home) is not int or home < 0 for home in shards):
        raise Contradiction("homes", "shards", homes)
    peers = sorted(shards - {shard_id})
    if not peers:
        raise Contradiction("homes", "another shard", homes)
    return peers


def parts_at(shard_id: int, legs: list[list[Any]], homes: list[list[int]]) -> list[list[Any]]:
    """
    List what of *legs* is a shard's own.
    """
    return [
        [place, source_home == shard_id, destination_home == shard_id, leg]
        for place, (leg, (source_home, destination_home)) in enumerate(
            zip(legs, homes, strict=True)
        )
        if shard_id in (source_home, destination_home)
    ]


def moves_at_decider(
    shard_id: int, merchant_id: str, legs: list[list[Any]], homes: list[list[int]] | None
) -> list[Move]:
    """
    List what *legs* move at the shard that decides; without *homes* all of them are here.
    """
    moves = []
    for place, leg in enumerate(legs):
        kind, _, source, destination, currency, amount = leg[:6]
        source_home, destination_home = (shard_id, shard_id) if homes is None else homes[place]
        if source_home == destination_home != shard_id:
            continue
        if kind == _FEE:
            destination = fees_wallet_id(shard_id, merchant_id, currency)
        if source_home != shard_id:
            source = due_wallet_id(shard_id, source_home, currency)
        if destination_home != shard_id:
            destination = due_wallet_id(shard_id, destination_home, currency)
        moves.append(Move(place, kind, source, destination, currency, amount))
    return moves


def moves_of_parts(
    shard_id: int, peer: int, merchant_id: str, parts: list[list[Any]]
) -> list[Move]:
    """
    List what *parts* move at a shard that was asked by *peer*.
    """
    moves = []
    for place, is_debit, is_credit, leg in parts:
        kind, _, source, destination, currency, amount = leg[:6]
        if kind == _FEE:
            destination = fees_wallet_id(shard_id, merchant_id, currency)
        due = due_wallet_id(shard_id, peer, currency)
        source, destination = source if is_debit else due, destination if is_credit else due
        moves.append(Move(place, kind, source, destination, currency, amount))
    return moves


def nets_of(moves: list[Move]) -> dict[str, Net]:
    """
    Sum what *moves* take from each wallet and bring into it.
    """
    nets: dict[str, Net] = {}
    for move in moves:
        taken, brought = nets.get(move.source, Net(0, 0))
        nets[move.source] = Net(taken + move.amount, brought)
        taken, brought = nets.get(move.destination, Net(0, 0))
        nets[move.destination] = Net(taken, brought + move.amount)
    return nets


def money_to(peer: int, legs: list[list[Any]], homes: list[list[int]]) -> list[tuple[str, int]]:
    """
    Say what goes over to *peer*, leg by leg; below zero where it comes from there.
    """
    found = []
    for leg, (source_home, destination_home) in zip(legs, homes, strict=True):
        if peer in (source_home, destination_home) and source_home != destination_home:
            found.append((leg[4], leg[5] if destination_home == peer else -leg[5]))
    return found


def money_from_decider(parts: list[list[Any]]) -> list[tuple[str, int]]:
    """
    Say what comes from the deciding shard with *parts*; below zero where it goes there.
    """
    return [
        (leg[4], leg[5] if is_credit else -leg[5])
        for _, is_debit, is_credit, leg in parts
        if is_debit != is_credit
    ]
