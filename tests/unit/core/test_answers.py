"""
Goal: one number says what became of an entry: taken, refused and why, or elsewhere and where.
Method: the bounds of each part of it, there and back.
"""

from __future__ import annotations

from itertools import product

import pytest

from processor.core.channel import (
    ChannelBroken,
    Refusal,
    answer_elsewhere,
    answer_refused,
    refusal_answered,
    shard_answered,
    side_answered,
)
from processor.core.commands import LEGS_MAX
from processor.core.decide_channel import decide_settlement
from processor.core.decisions import SlotGiven, VerdictSent
from processor.core.reject_reason import RejectReason
from processor.core.state import ShardState

LAST_LEG = LEGS_MAX - 1
SHORT_MAX = 2**45 - 1


@pytest.mark.parametrize("reason", [*RejectReason, 1, 1_023])
def test_a_refusal_is_read_as_it_was_told(reason: int) -> None:
    """
    Reason, leg and by how much; it is above zero and fits a bigint.
    """
    for leg, short_by in product((0, 1, LAST_LEG), (0, 1, 2**40, SHORT_MAX)):
        answer = answer_refused(reason, short_by, leg)
        assert 0 < answer < 2**63
        assert refusal_answered(answer) == Refusal(reason, short_by, leg)


def test_a_plain_refusal_is_its_reason() -> None:
    """
    As earlier builds answered.
    """
    assert answer_refused(RejectReason.DESTINATION_CLOSED) == 80


def test_by_how_much_is_cut_and_nothing_else() -> None:
    """
    It is a help, and may be too large to tell.
    """
    answer = answer_refused(100, 2**62, LAST_LEG)
    assert refusal_answered(answer) == Refusal(100, SHORT_MAX, LAST_LEG)


@pytest.mark.parametrize(("reason", "leg"), [(0, 0), (-1, 0), (1_024, 0), (5, 128), (5, -1)])
def test_what_does_not_fit_is_no_answer(reason: int, leg: int) -> None:
    """
    It would be read as another.
    """
    with pytest.raises(AssertionError, match="no such"):
        answer_refused(reason, 0, leg)


@pytest.mark.parametrize("shard_id", [0, 1, 4_095, 2**31 - 1])
@pytest.mark.parametrize("side", [0, 1, 2 * LAST_LEG + 1])
def test_elsewhere_says_where_and_which_side(shard_id: int, side: int) -> None:
    """
    Below zero, and as earlier builds answered where there is but one side.
    """
    answer = answer_elsewhere(shard_id, side)
    assert -(2**63) <= answer < 0
    assert (shard_answered(answer), side_answered(answer)) == (shard_id, side)
    assert answer_elsewhere(shard_id) == -1 - shard_id


def test_an_answer_that_is_not_known_halts() -> None:
    """
    Guessing would keep or free money that the peer may have taken.
    """
    state = ShardState(0)
    channel = state.channels.to(1)
    channel.outbox[1] = VerdictSent(1, 1, bytes(16), bytes(16), True)
    for answer in (80, answer_elsewhere(1)):
        with pytest.raises(ChannelBroken, match="cannot be refused"):
            decide_settlement(state, 1, answer)
    channel.outbox[1] = SlotGiven(1, 1, bytes(16), 7, 2, [], [], [])
    with pytest.raises(ChannelBroken, match="cannot be refused"):
        decide_settlement(state, 1, 80)
