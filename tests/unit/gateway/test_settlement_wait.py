"""
Goal: an answer that is pending is told once, with every settlement that came in time.
Method: answers and settlements by hand, in every order.
"""

from __future__ import annotations

import asyncio

import pytest

from gateway.settlement_wait import Answer, SettlementWait
from processor.flow.frames import (
    LegSource,
    LinkedMoved,
    LinkedRefused,
    Pending,
    Posted,
    Rejected,
    Result,
    WalletRefused,
)

LONG_S = 3_600.0
ONE, TWO = bytes([1]) * 16, bytes([2]) * 16


def pending(transfer_id: bytes) -> Pending:
    return Pending(transfer_id, 5, 1, False)


def posted(transfer_id: bytes) -> Posted:
    return Posted(transfer_id, 6, 2, 90, 3, False)


def held(wait: SettlementWait, *results: Result, wait_s: float = LONG_S) -> Answer:
    answer: Answer = asyncio.get_running_loop().create_future()
    wait.hold(answer, list(results), wait_s)
    return answer


async def test_a_settlement_takes_the_place_of_what_was_pending() -> None:
    """
    The others stay as they are, and the answer comes with the last settlement.
    """
    wait = SettlementWait()
    other = WalletRefused(1)
    answer = held(wait, pending(ONE), other, pending(TWO))
    rejected = Rejected(TWO, 7, 2, 107, False)

    wait.settle([posted(ONE)])
    assert not answer.done()
    wait.settle([rejected])

    assert answer.result() == [posted(ONE), other, rejected]
    assert wait.told_pending_count == 0


async def test_a_linked_transfer_is_waited_for_too() -> None:
    """
    Whether its legs moved or not.
    """
    wait = SettlementWait()
    answer = held(wait, pending(ONE), pending(TWO))
    moved = LinkedMoved(ONE, 6, 2, False, [LegSource(0, 90, 3)])
    refused = LinkedRefused(TWO, 7, 2, False, 1, 107, 5)

    wait.settle([moved, refused])

    assert answer.result() == [moved, refused]


async def test_one_settlement_serves_all_who_wait_for_it() -> None:
    """
    The same transfer twice in a group, and in another group.
    """
    wait = SettlementWait()
    twice, once = held(wait, pending(ONE), pending(ONE)), held(wait, pending(ONE))

    wait.settle([posted(ONE), posted(TWO), posted(ONE)])

    assert twice.result() == [posted(ONE), posted(ONE)]
    assert once.result() == [posted(ONE)]


async def test_after_a_while_it_is_told_as_it_is() -> None:
    """
    What was settled until then is told as settled; what comes later changes nothing.
    """
    wait = SettlementWait()
    answer = held(wait, pending(ONE), pending(TWO), wait_s=0.001)
    wait.settle([posted(ONE)])

    assert await asyncio.wait_for(answer, 10) == [posted(ONE), pending(TWO)]
    wait.settle([posted(TWO)])
    assert answer.result() == [posted(ONE), pending(TWO)]
    assert wait.told_pending_count == 1


async def test_nobody_waits_for_a_connection_that_is_gone() -> None:
    """
    Each group is told at once, once, and nothing is kept.
    """
    wait = SettlementWait()
    first, second = held(wait, pending(ONE), pending(TWO)), held(wait, pending(TWO))

    wait.give_up()
    wait.give_up()

    assert first.result() == [pending(ONE), pending(TWO)]
    assert second.result() == [pending(TWO)]
    assert wait.told_pending_count == 3
    wait.settle([posted(ONE), posted(TWO)])


@pytest.mark.parametrize("ends_by", ["settlement", "giving up"])
async def test_a_caller_that_went_away_disturbs_nobody(ends_by: str) -> None:
    """
    A cancelled answer is left alone, and its neighbour is told.
    """
    wait = SettlementWait()
    gone, stays = held(wait, pending(ONE)), held(wait, pending(ONE))
    gone.cancel()

    if ends_by == "settlement":
        wait.settle([posted(ONE)])
    else:
        wait.give_up()

    assert stays.done()
