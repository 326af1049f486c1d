"""
Goal: each rule of a channel holds where chance seldom goes: a crash between two words, a word that
      comes late, a side that was set back.
Method: three shards in one process (`shard_net`); each test places its fault by hand.
"""

from __future__ import annotations

import msgspec
import pytest

from processor.core import decide_channel
from processor.core.amounts import BALANCE_MAX
from processor.core.apply import apply
from processor.core.channel import ChannelBroken
from processor.core.commands import GiveSlot, MoveMoney, SetWalletStatus
from processor.core.decisions import DECISION_FORMAT, EntryCredited, decode_decisions
from processor.core.reject_reason import RejectReason
from processor.core.wallet import WalletStatus
from processor.flow.channel_link import (
    Answers,
    Broken,
    Effect,
    Entries,
    Greeting,
    OutgoingLink,
    OutOfOrder,
    Welcome,
    decode_effect,
    encode,
    new_entries,
    welcome,
)
from processor.flow.frames import ChannelFull, Pending, Posted, Rejected, Result, WalletRefused
from tests.support.commands import AT_US, MERCHANT, deposit, open_wallet, transfer
from tests.support.shard_net import ShardNet, names_on

SHARD_COUNT = 3
PAYER = names_on(0, SHARD_COUNT)[0]
PAYEE, NOBODY = names_on(1, SHARD_COUNT)[:2]


@pytest.fixture
def net() -> ShardNet:
    """
    A payer with 100 at shard 0, a payee at shard 1, and a channel between them that is open.
    """
    made = ShardNet(SHARD_COUNT)
    made.ask(0, [open_wallet(PAYER, -50), deposit(PAYER, 100, key="first")])
    made.ask(1, [open_wallet(PAYEE)])
    made.settle()
    return made


def pay(net: ShardNet, destination: str, key: str, amount: int = 10) -> None:
    net.ask(0, [payment(destination, key, amount)])


def payment(destination: str, key: str, amount: int = 10) -> MoveMoney:
    return transfer(PAYER, destination, amount, key=key)


def outcome(net: ShardNet, command: MoveMoney) -> Result:
    """
    Ask for a command's outcome when everything is settled.
    """
    net.settle()
    net.ask(0, [command])
    net.commit(0)
    return net.replies[-1][1][0]


def posted(net: ShardNet) -> tuple[int, int]:
    """
    Return the balances of payer and payee.
    """
    wallets = [net.shards[0].state.wallets[PAYER], net.shards[1].state.wallets[PAYEE]]
    return wallets[0].posted, wallets[1].posted


def refuse_without_settling(net: ShardNet) -> None:
    """
    Let shard 1 refuse a payment, and shard 0 have the answer in memory only.
    """
    pay(net, NOBODY, "refused")
    net.commit(0)
    net.arrive(0, 1)
    net.commit(1)
    net.arrive(0, 1)
    assert net.shards[0].state.channels.to(1).settled == 1


def test_a_greeting_waits_for_what_it_says(net: ShardNet) -> None:
    """
    Settled in memory is not settled: a peer that forgot the refusal would call it paid.
    """
    refuse_without_settling(net)
    net.cut(0, 1)
    net.connect(0, 1)
    net.arrive(0, 1)
    net.commit(1)
    net.crash(0, written=False)

    said = outcome(net, payment(NOBODY, "refused"))

    assert isinstance(said, Rejected)
    assert said.reason == RejectReason.DESTINATION_UNKNOWN
    assert posted(net) == (100, 0)


def test_entries_say_only_what_is_durably_settled(net: ShardNet) -> None:
    """
    The same with entries that leave while the settlement is not on disk yet.
    """
    pay(net, PAYEE, "paid")
    net.commit(0)
    pay(net, NOBODY, "refused")
    net.commit(0)
    pay(net, PAYEE, "next")
    net.shards[0].close_batch()
    for _ in range(3):
        net.arrive(0, 1)
        net.commit(1)
    net.arrive(0, 1)
    assert net.shards[0].state.channels.to(1).settled == 2
    net.finish_commit(0)
    net.arrive(0, 1)
    net.commit(1)
    net.crash(0, written=False)

    said = outcome(net, payment(NOBODY, "refused"))

    assert isinstance(said, Rejected)
    assert posted(net) == (80, 20)


def test_an_entry_that_came_before_is_answered_again(net: ShardNet) -> None:
    """
    An earlier connection brought it late, so that its answer went nowhere: the connection there
    is now hears the answer all the same.
    """
    pay(net, PAYEE, "late")
    net.commit(0)
    late = net.sent[-1][2]
    net.cut(0, 1)
    net.connect(0, 1)
    net.commit(0)
    net.arrive(0, 1)
    shard = net.shards[1]
    shard.batch.add_entries(shard.state, 0, late, lambda _: None)
    net.commit(1)
    for _ in range(4):
        net.arrive(0, 1)
        net.commit(0)
        net.commit(1)

    assert posted(net) == (90, 10)
    assert not net.shards[0].state.channels.to(1).outbox


@pytest.mark.parametrize("set_back", [0, 1])
def test_a_side_that_was_set_back_is_noticed(net: ShardNet, set_back: int) -> None:
    """
    Whichever side comes back from an older copy, the two do not go on.
    """
    for key in ("one", "two"):
        pay(net, PAYEE, key)
        net.settle()
    shard = net.shards[set_back]
    del shard.journal[2:]  # The slots and wallets alone are left.
    net.crash(set_back, written=False)

    with pytest.raises(ChannelBroken, match="one side was set back"):
        net.settle()


def test_another_past_of_the_same_length_is_noticed(net: ShardNet) -> None:
    """
    A source that was set back and has sent as much again says something else by its chain.
    """
    shard = net.shards[0]
    before = list(shard.journal)
    pay(net, PAYEE, "one")
    net.settle()
    shard.journal[:] = before
    net.crash(0, written=False)
    pay(net, PAYEE, "another")
    net.commit(0)

    with pytest.raises(ChannelBroken, match="other entries up to 1"):
        net.settle()


def test_a_greeting_from_another_past_is_not_welcome(net: ShardNet) -> None:
    """
    The destination sees by itself that what the source has settled is not what came here.
    """
    pay(net, PAYEE, "one")
    net.settle()
    channel = net.shards[1].state.channels.of(0)
    with pytest.raises(ChannelBroken, match="other entries up to 1 than here"):
        welcome(channel, Greeting(0, 1, bytes(16), 1))


def test_an_entry_is_never_applied_twice(net: ShardNet) -> None:
    """
    Even if a decision on it were made again, the state takes it once.
    """
    pay(net, PAYEE, "one")
    net.settle()
    (*_, credited) = decode_decisions(net.shards[1].journal[-1], DECISION_FORMAT)
    assert isinstance(credited, EntryCredited)
    again = msgspec.structs.replace(
        credited,
        due_version=credited.due_version + 1,
        due_balance=credited.due_balance - 10,
        destination_version=credited.destination_version + 1,
        destination_balance=credited.destination_balance + 10,
    )
    with pytest.raises(AssertionError, match="an entry twice"):
        apply(net.shards[1].state, again, 9, AT_US)


def test_entries_with_another_chain_are_not_taken(net: ShardNet) -> None:
    """
    What is altered on its way, or made up, is not decided.
    """
    pay(net, PAYEE, "one")
    net.commit(0)
    said = net.sent[-1][2]
    channel = net.shards[1].state.channels.of(0)
    with pytest.raises(ChannelBroken, match="another chain at 1"):
        new_entries(channel, Entries(said.entries, bytes(16), 0))
    assert channel.cursor == 0


def test_entries_that_settle_what_was_not_answered_are_not_taken(net: ShardNet) -> None:
    """
    A source can have settled only what came from here: one side was set back.
    """
    pay(net, PAYEE, "one")
    net.commit(0)
    said = net.sent[-1][2]
    channel = net.shards[1].state.channels.of(0)
    with pytest.raises(ChannelBroken, match="it has settled 1, here it is at 0"):
        new_entries(channel, Entries(said.entries, said.chain, 1))


def test_answers_to_what_was_not_sent_are_a_contradiction(net: ShardNet) -> None:
    """
    Nothing is settled that is not durable here.
    """
    pay(net, PAYEE, "one")
    net.commit(0)
    pay(net, PAYEE, "in memory only")
    link = net.shards[0].links[1]
    assert link.take_answers(Answers(1, [0])) == [0]
    with pytest.raises(ChannelBroken, match="more than the 1 entries"):
        link.take_answers(Answers(1, [0, 0]))


def test_forgetting_answers_is_journaled(net: ShardNet) -> None:
    """
    A shard that begins again has forgotten what it had forgotten, and records nothing for nothing.
    """
    pay(net, NOBODY, "refused")
    net.settle()
    assert net.shards[1].state.channels.of(0).refused == {1: RejectReason.DESTINATION_UNKNOWN}
    pay(net, PAYEE, "next")
    net.settle()
    assert net.shards[1].state.channels.of(0).refused == {}
    records = len(net.shards[1].journal)
    net.crash(1, written=True)
    assert net.shards[1].state.channels.of(0).refused == {}
    net.settle()
    assert len(net.shards[1].journal) == records


def test_an_answer_is_forgotten_by_a_greeting_too(net: ShardNet) -> None:
    """
    A channel on which nothing more is sent keeps nothing for ever.
    """
    pay(net, NOBODY, "refused")
    net.settle()
    net.cut(0, 1)
    net.settle()
    assert net.shards[1].state.channels.of(0).refused == {}


def test_the_window_moves_with_the_answers(net: ShardNet) -> None:
    """
    As many as were answered may follow, also on a new connection.
    """
    for number in range(5):
        pay(net, PAYEE, f"pay {number}", 1)
    net.commit(0)
    link = OutgoingLink(net.shards[0].state.channels.to(1), 2)
    link.take_welcome(Welcome(0, bytes(16), []))
    first = link.next_entries()
    assert first is not None
    assert [entry.number for entry in first.entries] == [1, 2]
    assert link.next_entries() is None
    shard = net.shards[0]
    shard.batch.add_answers(shard.state, 1, link.take_answers(Answers(1, [0])))
    second = link.next_entries()
    assert second is not None
    assert [entry.number for entry in second.entries] == [3]


def test_what_peers_say_survives_the_wire(net: ShardNet) -> None:
    """
    Each word comes back as it was, entries of both kinds included.
    """
    pay(net, PAYEE, "one")
    net.ask(0, [GiveSlot(7, 1)])
    net.settle()
    words: list[Effect] = [said for _, _, said in net.sent]
    words += [Greeting(0, 1, bytes(16), 2), Welcome(1, bytes(16), [0, -3])]
    words += [Answers(1, [0, 30]), Broken("why")]
    for word in words:
        assert decode_effect(encode(word)) == word


def test_an_entry_too_early_ends_the_connection(net: ShardNet) -> None:
    """
    A gap is never skipped.
    """
    pay(net, PAYEE, "one")
    pay(net, PAYEE, "two")
    net.commit(0)
    said = net.sent[-1][2]
    channel = net.shards[1].state.channels.of(0)
    with pytest.raises(OutOfOrder, match="entry 1 was expected, 2 came"):
        new_entries(channel, Entries(said.entries[1:], said.chain, 0))


def test_a_full_channel_takes_nothing_new(net: ShardNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    With the peer away, memory is bounded: what is over is not recorded and may be tried again.
    """
    monkeypatch.setattr(decide_channel, "ENTRIES_PENDING_MAX", 2)
    net.cut(0, 1)
    for number in range(3):
        pay(net, PAYEE, f"pay {number}")
    net.commit(0)
    assert [type(results[0]) for _, results, _ in net.replies[-3:]] == [
        Pending,
        Pending,
        ChannelFull,
    ]
    assert isinstance(outcome(net, payment(PAYEE, "pay 2")), Pending)
    assert isinstance(outcome(net, payment(PAYEE, "pay 2")), Posted)
    assert posted(net) == (70, 30)


def test_an_empty_wallet_with_money_on_its_way_is_not_closed() -> None:
    """
    The balance alone does not tell: an overdraft can be on its way too.
    """
    net = ShardNet(SHARD_COUNT)
    net.ask(0, [open_wallet(PAYER, -50), payment(PAYEE, "pay", 30)])
    net.ask(0, [SetWalletStatus(MERCHANT, PAYER, WalletStatus.CLOSED)])
    net.commit(0)
    assert net.replies[-1][1] == [WalletRefused(RejectReason.TRANSFERS_PENDING)]


def test_what_a_peer_is_due_has_bounds_on_both_sides(net: ShardNet) -> None:
    """
    The source keeps room for what it has to settle; the destination refuses what does not fit.
    """
    source, destination = net.shards[0].state, net.shards[1].state
    pay(net, PAYEE, "opens the wallets of what is due")
    net.settle()
    source.wallets["$due:0:1:EUR"].posted = BALANCE_MAX - 4
    pay(net, PAYEE, "too much for the source", 5)
    net.commit(0)
    assert net.replies[-1][1][0].reason == RejectReason.BALANCE_OUT_OF_RANGE
    source.wallets["$due:0:1:EUR"].posted = 10
    destination.wallets["$due:1:0:EUR"].posted = -BALANCE_MAX + 4
    said = outcome(net, payment(PAYEE, "too much for the destination", 5))
    assert isinstance(said, Pending)
    said = outcome(net, payment(PAYEE, "too much for the destination", 5))
    assert isinstance(said, Rejected)
    assert said.reason == RejectReason.BALANCE_OUT_OF_RANGE


def test_a_key_is_remembered_while_its_money_is_on_its_way(net: ShardNet) -> None:
    """
    However often keys are forgotten, the key of a pending transfer is not one of them.
    """
    pay(net, PAYEE, "pending")
    net.commit(0)
    state = net.shards[0].state
    for _ in range(3):
        state.forget_keys(1_000)
    pay(net, PAYEE, "pending")
    net.commit(0)
    assert net.replies[-1][1][0].repeated
    assert isinstance(outcome(net, payment(PAYEE, "pending")), Posted)
    assert posted(net) == (90, 10)
