"""
Goal: each shard's part of a linked transfer moves money between its own wallets only, and what
      the shards owe one another afterwards fits.
Method: legs between all pairs of three shards, as the shard that decides and as the others see
        them.
"""

from __future__ import annotations

from collections import Counter
from itertools import product

from processor.core.commands import TransferType
from processor.core.linked import (
    Move,
    Net,
    moves_at_home,
    moves_of_parts,
    nets_of,
    parts_at,
    peers_of,
)
from tests.support.bound_commands import fee_leg, leg

HOMES = list(product(range(3), range(3)))
LEGS = [leg(f"from-{a}-{b}", f"to-{a}-{b}", 1 << place) for place, (a, b) in enumerate(HOMES)]


def moves_at(shard_id: int, decides: int) -> list[Move]:
    if shard_id == decides:
        return moves_at_home(shard_id, "acme", LEGS, HOMES)
    return moves_of_parts(shard_id, decides, "acme", parts_at(shard_id, LEGS, HOMES))


def sums(shard_id: int, decides: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for move in moves_at(shard_id, decides):
        found[move.source] -= move.amount
        found[move.destination] += move.amount
    return found


def test_every_customers_wallet_gets_what_its_leg_says() -> None:
    """
    Once, at its own shard, whoever decides.
    """
    for decides in range(3):
        found = [sums(shard_id, decides) for shard_id in range(3)]
        for place, (source_home, destination_home) in enumerate(HOMES):
            asked = LEGS[place]
            assert [one[asked.source] for one in found if one[asked.source]] == [-asked.amount]
            assert found[source_home][asked.source] == -asked.amount
            assert found[destination_home][asked.destination] == asked.amount


def test_all_money_goes_by_way_of_the_shard_that_decides() -> None:
    """
    What one side owes is what the other is owed, so that a channel settles it.
    """
    for decides in range(3):
        found = [sums(shard_id, decides) for shard_id in range(3)]
        for peer in {0, 1, 2} - {decides}:
            here, there = f"$due:{decides}:{peer}:EUR", f"$due:{peer}:{decides}:EUR"
            assert found[decides][here] == -found[peer][there]
            assert sum(found[peer].values()) == 0
        named = {name for one in found for name in one if name.startswith("$due")}
        assert len(named) == 4


def test_each_shard_is_told_of_its_own_parts_only() -> None:
    """
    Those with a side there, and which.
    """
    for shard_id in range(3):
        parts = parts_at(shard_id, LEGS, HOMES)
        assert {HOMES[part.leg] for part in parts} == {pair for pair in HOMES if shard_id in pair}
        for part in parts:
            assert (part.is_debit, part.is_credit) == tuple(
                home == shard_id for home in HOMES[part.leg]
            )
    assert peers_of(1, HOMES) == [0, 2]
    assert peers_of(1, [(1, 1)]) == []


def test_a_fee_stays_where_its_source_is() -> None:
    """
    In its merchant's wallet there.
    """
    legs, homes = [fee_leg("alice", 3), fee_leg("bob", 4)], [(0, 0), (1, 1)]
    fee = TransferType.FEE
    at_home = moves_at_home(0, "acme", legs, homes)
    assert at_home == [Move(0, fee, "alice", "$fees:0:EUR:acme", "EUR", 3)]
    there = moves_of_parts(1, 0, "acme", parts_at(1, legs, homes))
    assert there == [Move(1, fee, "bob", "$fees:1:EUR:acme", "EUR", 4)]


def test_only_what_is_taken_in_all_is_set_aside() -> None:
    """
    What comes in may go out again at once.
    """
    kind = TransferType.TRANSFER
    moves = [Move(0, kind, "a", "b", "EUR", 5), Move(1, kind, "b", "c", "EUR", 7)]
    nets = nets_of(moves)
    assert nets == {"a": Net(5, 0), "b": Net(7, 5), "c": Net(0, 7)}
    assert [net.reserved for net in nets.values()] == [5, 2, 0]
