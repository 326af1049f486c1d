"""
Goal: who was told "pending" is told the outcome once, after that answer and when it is durable.
Method: one payment from shard 0 to shard 1, with lists in place of sockets.
"""

from __future__ import annotations

import pytest

from processor.core.commands import MoveMoney
from processor.core.reject_reason import RejectReason
from processor.core.slots import SlotMap, slot_of
from processor.core.state import ShardState
from processor.flow.batch import Batch
from processor.flow.frames import Answered, Pending, Posted, Rejected, Reply, RequestFrame, Settled
from processor.flow.settlement_watch import WAITING_MAX, SettlementWatch
from tests.support.commands import AT_US, identifier, transfer, wallet


class Shard:
    """
    A shard with alice's 100; bob is at shard 1.
    """

    def __init__(self) -> None:
        slots = SlotMap.undivided(0)
        slots.assign(slot_of("bob"), 1, 1)
        self.state = ShardState(0, slots)
        self.state.load(wallet("alice", 100))
        self.watch = SettlementWatch()

    def batch(self, sequence: int) -> Batch:
        batch = Batch(sequence, self.watch)
        batch.at_us = AT_US + sequence
        return batch

    def ask(self, batch: Batch, said: list[Reply], *commands: MoveMoney) -> None:
        batch.add(self.state, RequestFrame(batch.sequence, 0, 1, list(commands)), said.append)


def payment(key: str = "pay") -> MoveMoney:
    return transfer("alice", "bob", 10, key=key)


@pytest.mark.parametrize("answer", [0, int(RejectReason.DESTINATION_CLOSED)])
def test_the_outcome_follows_the_answer(answer: int) -> None:
    """
    Nothing before the release of its own batch; then what the key says from now on.
    """
    shard = Shard()
    said: list[Reply] = []
    first, second = shard.batch(1), shard.batch(2)
    shard.ask(first, said, payment())
    second.add_answers(shard.state, 1, [answer])
    assert (first.ends, second.ends) == ({1: (1, 0)}, {1: (1, 1)})
    assert said == []
    first.release()
    assert [type(reply) for reply in said] == [Answered]
    second.release()
    second.release()
    assert [type(reply) for reply in said] == [Answered, Settled]

    third = shard.batch(3)
    shard.ask(third, said, payment())
    third.release()
    outcome, again = said[1], said[2]
    assert isinstance(outcome, Settled)
    assert isinstance(again, Answered)
    (told,), (repeated,) = outcome.results, again.results
    assert isinstance(told, Rejected if answer else Posted)
    assert isinstance(repeated, Posted | Rejected)
    assert (told.transfer_id, told.sequence, told.at_us) == (payment().transfer_id, 2, AT_US + 2)
    assert (repeated.sequence, told.repeated, repeated.repeated) == (2, False, True)


def test_each_who_waits_hears_all_in_one() -> None:
    """
    One message a deliverer, also when it asked twice; one who asked again later hears as well.
    """
    shard = Shard()
    here: list[Reply] = []
    there: list[Reply] = []
    hear, hear_too = here.append, there.append
    first = shard.batch(1)
    first.add(shard.state, RequestFrame(1, 0, 1, [payment(), payment("two")]), hear)
    first.add(shard.state, RequestFrame(2, 0, 1, [payment()]), hear)
    first.add(shard.state, RequestFrame(3, 0, 1, [payment()]), hear_too)
    first.release()
    second = shard.batch(2)
    second.add_answers(shard.state, 1, [0, 0])
    second.release()
    assert [len(reply.results) for reply in here if isinstance(reply, Settled)] == [2]
    assert [len(reply.results) for reply in there if isinstance(reply, Settled)] == [1]
    assert len(shard.watch) == 0


def test_asked_and_settled_in_one_batch() -> None:
    """
    Who is still told "pending" hears the outcome right after.
    """
    shard = Shard()
    said: list[Reply] = []
    first = shard.batch(1)
    shard.ask(first, [], payment())
    first.release()
    second = shard.batch(2)
    shard.ask(second, said, payment())
    second.add_answers(shard.state, 1, [0])
    second.release()
    answered, outcome = said
    assert isinstance(answered, Answered)
    assert isinstance(answered.results[0], Pending)
    assert isinstance(outcome, Settled)


def test_only_so_many_wait_for_one_transfer() -> None:
    """
    Memory is bounded, and the same one waits once.
    """
    watch = SettlementWatch()
    heard: list[list[Reply]] = [[] for _ in range(WAITING_MAX + 5)]
    for deliver in [one.append for one in heard]:
        watch.wait(identifier("t"), deliver)
        watch.wait(identifier("t"), deliver)
    assert len(watch.take(identifier("t"))) == WAITING_MAX
    assert watch.take(identifier("t")) == []
