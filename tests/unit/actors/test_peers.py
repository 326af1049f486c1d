"""
Goal: money between shards arrives once, whoever is down or comes again meanwhile; nobody waits for
      a peer but who pays to it; a peer that breaks a rule is hung up on, and one that contradicts
      what it said before halts both.
Method: two or three real shards in one event loop on twins of their stores, connected through the
        sockets of their servers; they are crashed, held and set back. Raw peers say what no shard
        would.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from actors import peer_intake
from actors.peer_connection import CONNECT_S_MAX
from actors.wallet_shard import Phase
from configs.settings import ShardSettings
from processor.core.channel import FIRST_LINK, Entry, next_link
from processor.core.commands import GiveSlot, SetWalletStatus
from processor.core.reject_reason import RejectReason
from processor.core.slots import slot_of
from processor.core.wallet import WalletStatus
from processor.flow import frames
from processor.flow.channel_link import Answers, Broken, Entries, Greeting, Welcome
from processor.flow.frames import (
    Moved,
    NotServing,
    Overloaded,
    Pending,
    Posted,
    Rejected,
    SlotKept,
    SlotLeft,
    WalletFound,
)
from processor.flow.ports import ChainAt
from tests.support.commands import deposit, identifier, open_wallet, read_wallet, transfer
from tests.support.memory_peers import MemoryPeers, running_peers
from tests.support.memory_shard import SECRET, Door, MemoryShard
from tests.support.raw_peer import connected_peer
from tests.support.shard_net import names_on
from tests.support.waiting import until

ALICE, ALAN = names_on(0, 2)[:2]
BOB, BERT = names_on(1, 2)[:2]
STRANGER = names_on(0, 2)[3]
NOBODY = names_on(1, 2)[3]

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
async def peers(folder: Path) -> AsyncIterator[MemoryPeers]:
    """
    Two shards, with two wallets of 1,000 on each.
    """
    async with running_peers(folder) as peers:
        await fill(peers)
        yield peers


async def fill(peers: MemoryPeers) -> None:
    for shard_id, names in ((0, (ALICE, ALAN)), (1, (BOB, BERT))):
        await peers[shard_id].ask(*(open_wallet(name) for name in names))
        await peers[shard_id].ask(*(deposit(name, 1_000, key=f"fill {name}") for name in names))


def pay(number: int, amount: int = 1, source: str = ALICE, destination: str = BOB) -> Any:
    return transfer(source, destination, amount, key=f"payment {number}")


def only(results: list[Any], kind: type[Any]) -> Any:
    (result,) = results
    assert isinstance(result, kind), result
    return result


# --- Money ----------------------------------------------------------------------------------------


async def test_money_to_another_shard_is_pending_and_then_told_unasked(peers: MemoryPeers) -> None:
    """
    The answer says pending; when the money has arrived, who asked is told once.
    """
    pending = only(await peers[0].ask(pay(1, 300)), Pending)
    assert not pending.repeated
    await until(lambda: peers[0].settled, "the outcome")
    posted = only(peers[0].settled, Posted)
    assert (posted.transfer_id, posted.balance) == (pending.transfer_id, 700)
    assert posted.sequence > pending.sequence
    await peers.settled()
    assert peers.balances([ALICE, BOB]) == {ALICE: 700, BOB: 1_300}
    assert only(await peers[0].ask(pay(1, 300)), Posted).repeated
    assert len(peers[0].settled) == 1


async def test_money_that_is_refused_comes_back(peers: MemoryPeers) -> None:
    """
    Refused at its destination, it was never gone: rejected, with the destination's reason.
    """
    only(await peers[0].ask(pay(1, 300, destination=NOBODY)), Pending)
    await until(lambda: peers[0].settled, "the outcome")
    assert only(peers[0].settled, Rejected).reason == RejectReason.DESTINATION_UNKNOWN
    await peers.settled()
    assert peers.balances([ALICE]) == {ALICE: 1_000}


async def test_a_key_asked_again_while_pending_is_told_too(peers: MemoryPeers) -> None:
    """
    Both who asked hear the outcome, each once.
    """
    await peers.crash(1)
    only(await peers[0].ask(pay(1)), Pending)
    assert only(await peers[0].ask(pay(1)), Pending).repeated
    await peers.start(1)
    await until(lambda: len(peers[0].settled) == 2, "both to be told")
    assert {type(result) for result in peers[0].settled} == {Posted}


async def test_a_peer_that_is_down_holds_up_nobody_else(peers: MemoryPeers) -> None:
    """
    Payments within a shard go on as if nothing was; those to the peer settle when it is back.
    """
    await peers.crash(1)
    for number in range(50):
        only(await peers[0].ask(pay(number)), Pending)
        only(await peers[0].ask(pay(1_000 + number, destination=ALAN)), Posted)
    assert peers.pending() == 50
    await peers.start(1)
    await peers.settled()
    assert len(peers[0].settled) == 50
    assert peers.balances([ALICE, ALAN, BOB]) == {ALICE: 900, ALAN: 1_050, BOB: 1_050}


async def test_crashes_of_either_side_pay_once(peers: MemoryPeers) -> None:
    """
    Crashed by turns in the middle of payments both ways, with tables at some point behind: each
    key ends with one outcome, and no money is made or lost.
    """
    asked = [pay(number) for number in range(60)]
    asked += [pay(100 + number, source=BOB, destination=ALICE) for number in range(60)]
    for number in range(0, 60, 10):
        for shard_id, start in ((0, number), (1, 60 + number)):
            peers[shard_id].send(*asked[start : start + 10])
        await peers[number % 2].decided()
        peers.databases[0].project(number)
        await peers.crash(number // 10 % 2)
        await peers.start(number // 10 % 2)
    for shard_id, start in ((0, 0), (1, 60)):
        await peers[shard_id].ask(*asked[start : start + 60])
    await peers.settled()
    for shard_id, start in ((0, 0), (1, 60)):
        results = await peers[shard_id].ask(*asked[start : start + 60])
        assert {type(result) for result in results} == {Posted}
    assert peers.balances([ALICE, BOB]) == {ALICE: 1_000, BOB: 1_000}


async def test_a_peer_is_found_at_its_new_address(peers: MemoryPeers) -> None:
    """
    A peer that is served elsewhere is called there, though its old socket still answers.
    """
    await peers[0].ask(pay(1))
    await peers.settled()
    old = peers.shards[1]
    await peers.start(1)
    only(await peers[0].ask(pay(2)), Pending)
    await peers.settled()
    assert old.sequence < peers[1].sequence
    await old.stop()


async def test_an_address_that_says_nothing_is_left_for_a_new_one(
    peers: MemoryPeers, folder: Path
) -> None:
    """
    The machine is gone and the peer serves elsewhere: nobody waits until the attempt is over.
    """
    reached, gate = asyncio.Event(), asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await gate.wait()
        writer.close()

    silent = await asyncio.start_unix_server(say_nothing, folder / "silent")
    peers[0].shard.endpoints_changed({1: f"unix:{folder / 'silent'}"})
    only(await peers[0].ask(pay(1)), Pending)
    await reached.wait()
    async with asyncio.timeout(CONNECT_S_MAX - 1):
        peers.tell_endpoints(0)
        await until(lambda: peers[0].settled, "the outcome")
    gate.set()
    silent.close()


async def test_more_than_the_window_settles(folder: Path) -> None:
    """
    What is on its way is sent in portions of the window, all in the end.
    """
    settings = ShardSettings(entries_in_flight_max=7)
    async with running_peers(folder, settings=settings) as peers:
        await fill(peers)
        await peers[0].ask(*(pay(number) for number in range(100)))
        await peers.settled()
        assert peers.balances([BOB]) == {BOB: 1_100}


async def test_wallets_with_money_on_its_way_stay_in_memory(folder: Path) -> None:
    """
    With room for no wallet at all, reserved money is neither spent twice nor forgotten.
    """
    settings = ShardSettings(wallets_max=0, keys_recent_max=1)
    async with running_peers(folder, settings=settings) as peers:
        await fill(peers)
        await peers.crash(1)
        only(await peers[0].ask(pay(1, 900)), Pending)
        for number in range(10):
            await peers[0].ask(read_wallet(ALAN), deposit(ALAN, 1, key=f"more {number}"))
            await peers[0].projected()
        refused = only(await peers[0].ask(pay(2, 200)), Rejected)
        assert refused.reason == RejectReason.INSUFFICIENT_FUNDS
        await peers.start(1)
        await peers.settled()
        assert only(await peers[0].ask(read_wallet(ALICE)), WalletFound).posted == 100


async def test_a_drain_does_not_wait_for_peers(peers: MemoryPeers) -> None:
    """
    What was taken in is answered, pending or not; the rest is the next owner's.
    """
    peers[1].store.writes.close()
    frame = peers[0].send(*(pay(number) for number in range(20)))
    await peers[0].results(frame)
    await peers[0].shard.drain()
    assert peers[0].shard.phase is Phase.DRAINING
    peers[1].store.writes.open()
    await peers.crash(0)
    await peers.start(0)
    await peers.settled()
    assert peers.balances([BOB]) == {BOB: 1_020}


async def test_nothing_is_sent_before_it_is_durable(peers: MemoryPeers) -> None:
    """
    While an append hangs, the peer hears nothing of it, though the batch before it is sent.
    """
    source, destination = peers[0], peers[1]
    await source.ask(pay(0))
    await peers.settled()
    source.store.writes.close()
    first = source.send(pay(1))
    await source.store.writes.reached()
    second = source.send(pay(2))
    await source.decided()
    source.store.writes.open_once()
    await source.reply(first)
    await source.store.writes.reached()
    assert source.state.channels.to(1).head == 3
    # What the peer answers is decided, too, while the append of the second hangs.
    await until(lambda: source.state.channels.to(1).settled == 2, "the answer")
    assert destination.state.channels.of(0).cursor == 2
    source.store.writes.open()
    await source.reply(second)
    await peers.settled()


# --- Slots ----------------------------------------------------------------------------------------


async def give(peers: MemoryPeers, slot: int, source: int, target: int) -> None:
    """
    Move a slot as the operator's command does, and wait until it has arrived.
    """

    async def left() -> bool:
        (result,) = await peers[source].ask(GiveSlot(slot, target))
        return isinstance(result, SlotLeft)

    await until(left, f"slot {slot} to leave")
    await until(lambda: peers.catalog.slots.owner(slot) == target, f"slot {slot} to arrive")


async def in_the_tables(peers: MemoryPeers, shard_id: int) -> None:
    """
    Wait until the shard knows that the tables have all of its journal for good.
    """
    end = peers[shard_id].sequence
    peers.databases[shard_id].project()

    async def is_for_good() -> bool:
        # It is known by what is written after it.
        await peers[shard_id].ask(open_wallet(ALAN), deposit(ALAN, 1, key=str(peers[0].sequence)))
        return peers[shard_id].state.tables_at >= end

    await until(is_for_good, "the tables")


async def test_a_slot_moves_with_its_wallets_and_its_keys(peers: MemoryPeers) -> None:
    """
    At its new shard a wallet is as it was, and an old key gives the old outcome, be it in the
    giver's tables or not; the old shard says where to ask.
    """
    third = peers.place()
    await peers.start(third)
    await until(lambda: peers[third].shard.statistics().key_filter_complete, "the first filter")
    before = only(await peers[0].ask(pay(1, 10, destination=ALAN)), Posted)
    await in_the_tables(peers, 0)
    after = only(await peers[0].ask(pay(2, 20, destination=ALAN)), Posted)
    await give(peers, slot_of(ALICE), 0, third)
    assert await peers[0].ask(read_wallet(ALICE)) == [Moved(third)]
    assert only(await peers[third].ask(read_wallet(ALICE)), WalletFound).posted == 970
    for asked, told in (
        (pay(1, 10, destination=ALAN), before),
        (pay(2, 20, destination=ALAN), after),
    ):
        again = only(await peers[third].ask(asked), Posted)
        assert again.repeated
        assert (again.sequence, again.balance) == (told.sequence, told.balance)
    await until(lambda: peers[third].shard.statistics().key_filter_complete, "the filter")
    only(await peers[third].ask(pay(3, 100)), Pending)
    await peers.settled()
    assert peers.balances([ALICE, BOB]) == {ALICE: 870, BOB: 1_100}


async def test_a_slot_with_money_on_its_way_stays_a_moment(peers: MemoryPeers) -> None:
    """
    It is kept while something of it is on its way, takes nothing new for other shards meanwhile,
    and leaves as soon as that has settled.
    """
    await peers.crash(1)
    only(await peers[0].ask(pay(1)), Pending)
    kept = only(await peers[0].ask(GiveSlot(slot_of(ALICE), 1)), SlotKept)
    assert kept.why == "transfers_pending"
    assert await peers[0].ask(pay(2)) == [Moved(0)]
    only(await peers[0].ask(pay(3, destination=ALAN)), Posted)
    await peers.start(1)
    await give(peers, slot_of(ALICE), 0, 1)
    assert only(await peers[1].ask(pay(2)), Posted).balance == 997
    await peers.settled()


async def test_money_follows_a_slot_that_has_moved(peers: MemoryPeers) -> None:
    """
    A payment that finds its destination gone is sent on to where it is, under the same key.
    """
    third = peers.place()
    await peers.start(third)
    await give(peers, slot_of(BOB), 1, third)
    only(await peers[0].ask(pay(1, 50)), Pending)
    await peers.settled()
    assert only(await peers[0].ask(pay(1, 50)), Posted).balance == 950
    assert peers.balances([ALICE, BOB]) == {ALICE: 950, BOB: 1_050}


async def test_money_to_a_slot_that_comes_home_stays(folder: Path) -> None:
    """
    A payment that finds its destination gone to the payer's own shard ends there; the wallet, which
    only the tables have by then, is looked up first.
    """
    settings = ShardSettings(wallets_max=0, keys_recent_max=1)
    async with running_peers(folder, settings=settings) as peers:
        await fill(peers)
        await peers.crash(1)
        only(await peers[0].ask(pay(1, 5)), Pending)
        await peers.start(1, is_told=False)
        await give(peers, slot_of(BOB), 1, 0)
        await in_the_tables(peers, 0)
        await peers[0].ask(read_wallet(ALAN))
        assert BOB not in peers[0].state.wallets
        assert peers.pending() == 1
        peers.tell_endpoints(0)
        await peers.settled()
        assert only(await peers[0].ask(pay(1, 5)), Posted).balance == 995
        assert only(await peers[0].ask(read_wallet(BOB)), WalletFound).posted == 1_005


async def test_a_slot_leaves_with_wallets_that_only_the_tables_have(folder: Path) -> None:
    """
    Evicted wallets are loaded before their slot is given; none stays behind.
    """
    settings = ShardSettings(wallets_max=0, keys_recent_max=1)
    async with running_peers(folder, settings=settings) as peers:
        await fill(peers)
        peers.databases[0].project()
        await peers.crash(0)
        await peers.start(0)
        assert ALICE not in peers[0].state.wallets
        await give(peers, slot_of(ALICE), 0, 1)
        assert only(await peers[1].ask(read_wallet(ALICE)), WalletFound).posted == 1_000
        await peers.settled()


async def test_the_catalog_is_told_again_after_a_crash(peers: MemoryPeers) -> None:
    """
    A catalog that was down when a slot came hears of it later, from the next owner too.
    """
    slot = slot_of(ALICE)
    peers.catalog.available = False
    only(await peers[0].ask(GiveSlot(slot, 1)), SlotLeft)
    await until(lambda: peers[1].state.slots.owner(slot) == 1, "the slot")
    await peers.crash(1)
    peers.catalog.available = True
    await peers.start(1)
    await until(lambda: peers.catalog.slots.owner(slot) == 1, "the catalog")


# --- Strangers ------------------------------------------------------------------------------------


def entry(number: int, amount: int = 1) -> Entry:
    name = identifier(f"entry {number}")
    return Entry(number, name, "acme", "somebody", ALICE, "EUR", amount, None, None)


GREETING = Greeting(7, 0, FIRST_LINK, 0)
RUDE: dict[str, list[bytes]] = {
    "entries without a greeting": [frames.encode(Entries([entry(1)], FIRST_LINK, 0))],
    "a second greeting": [frames.encode(GREETING), frames.encode(GREETING)],
    "garbage": [b"\xc1garbage"],
    "a client's frame": [frames.encode([1, 0, 1, []])],
    "an entry too early": [
        frames.encode(Greeting(7, 0, FIRST_LINK, 9)),
        frames.encode(Entries([entry(5)], FIRST_LINK, 0)),
    ],
    "an answer to nothing": [frames.encode(GREETING), frames.encode(Answers(1, [0]))],
}


@pytest.mark.parametrize("said", RUDE.values(), ids=RUDE)
async def test_a_peer_that_breaks_the_rules_is_hung_up_on(
    peers: MemoryPeers, said: list[bytes]
) -> None:
    """
    Nothing of it is decided, and nobody else notices.
    """
    async with connected_peer(peers[0].endpoint, SECRET, as_peer_of=0) as stranger:
        for message in said:
            stranger.writer.write(frames.with_length(message))
        await stranger.read_to_the_end()
    only(await peers[0].ask(pay(1, destination=ALAN)), Posted)
    assert peers[0].shard.phase is Phase.RUNNING
    assert 7 not in peers[0].state.channels.incoming or not peers[0].state.channels.of(7).cursor


async def test_a_peer_must_want_this_shard(peers: MemoryPeers) -> None:
    """
    Whoever wants shard 1 and comes to shard 0, as where an address has a new owner, is not heard.
    """
    async with connected_peer(peers[0].endpoint) as lost:
        with pytest.raises(asyncio.IncompleteReadError):
            await lost.shake_hands(SECRET, as_peer_of=1)


async def test_a_frame_above_the_bound_ends_the_connection(peers: MemoryPeers) -> None:
    """
    It is not waited for.
    """
    async with connected_peer(peers[0].endpoint, SECRET, as_peer_of=0) as stranger:
        stranger.writer.write((frames.FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
        assert await stranger.read_to_the_end() == b""


async def test_a_peer_is_not_read_while_too_much_of_it_waits(peers: MemoryPeers) -> None:
    """
    While the journal stands still, what a peer may leave here is bounded; then all is answered.
    """
    shard = peers[0]
    count = 400
    async with connected_peer(shard.endpoint, SECRET, as_peer_of=0) as peer:
        peer.say(Greeting(7, 0, FIRST_LINK, count))
        assert isinstance(await peer.heard(), Welcome)
        shard.store.reads.close()
        chain = FIRST_LINK
        for number in range(1, count + 1):
            one = Entry(
                *(number, identifier(f"entry {number}"), "acme", "somebody", STRANGER, "EUR", 1),
                *(None, "x" * 16_000),
            )
            chain = next_link(chain, one)
            peer.say(Entries([one], chain, 0))
        await shard.store.reads.reached()
        held = shard.shard._peer_intake
        await until(lambda: len(held) >= peer_intake.HELD_MAX, "the peer to fill what it may")
        only(await peers[1].ask(read_wallet(BOB)), WalletFound)
        assert len(held) < count / 4
        shard.store.reads.open()
        answered = 0
        while answered < count:
            heard = await peer.heard()
            assert isinstance(heard, Answers)
            answered += len(heard.answers)


# --- Contradictions -------------------------------------------------------------------------------


async def halted(peers: MemoryPeers, shard_id: int) -> str:
    await until(lambda: peers[shard_id].shard.phase is Phase.HALTED, f"shard {shard_id} to halt")
    assert peers.databases[shard_id].halted_for == peers[shard_id].shard.halted_for
    return peers[shard_id].shard.halted_for or ""


def set_back(peers: MemoryPeers, shard_id: int, record_count: int) -> None:
    """
    Let a shard's database be an older one: *record_count* records are as if they never were.
    """
    database = peers.databases[shard_id]
    del database.journal[-record_count:]
    database.crash()


@pytest.mark.parametrize("shard_id", [0, 1], ids=["source", "destination"])
async def test_a_journal_that_was_set_back_halts_both(peers: MemoryPeers, shard_id: int) -> None:
    """
    With nobody to witness it, the first greeting between the two shows it, and both halt and say
    why; who asks is not served.
    """
    for number in range(3):
        await peers[0].ask(pay(number))
        await peers.settled()
    await peers.crash(shard_id)
    set_back(peers, shard_id, 3)
    for database in peers.databases:
        database.witness.clear()
    await peers.start(shard_id)
    for each in (0, 1):
        assert "channel broken" in await halted(peers, each)
        assert await peers[each].reply(peers[each].send(read_wallet(ALICE))) == NotServing(
            max(peers[each].replies)
        )


async def test_a_witness_halts_who_was_set_back_and_its_peers(folder: Path) -> None:
    """
    What another database has seen of the journal is enough: it halts before it serves.
    """
    async with running_peers(folder, settings=ShardSettings(witness_ms=1)) as peers:
        await fill(peers)
        await peers[0].ask(pay(1))
        await peers.settled()
        for database in peers.databases:
            database.project()
        end = len(peers.databases[0].journal)
        await until(lambda: peers.databases[1].witness[0][0] == end, "the witness")
        await peers.crash(0)
        set_back(peers, 0, 1)
        await peers.start(0)
        reason = await halted(peers, 0)
        assert reason.startswith("set back: ")
        assert peers.databases[1].halted_for == reason


async def test_a_witness_that_was_down_is_told_later(folder: Path) -> None:
    """
    Also when nothing more is written: else the last records could be lost unseen.
    """
    async with running_peers(folder, settings=ShardSettings(witness_ms=1)) as peers:
        await fill(peers)
        peers.databases[1].available = False
        only(await peers[0].ask(deposit(ALICE, 1, key="unseen")), Posted)
        end = len(peers.databases[0].journal)
        peers.databases[1].available = True
        await until(lambda: peers.databases[1].witness[0][0] == end, "the witness")


async def test_who_hears_of_a_contradiction_halts(peers: MemoryPeers) -> None:
    """
    A peer's word is enough.
    """
    async with connected_peer(peers[0].endpoint, SECRET, as_peer_of=0) as peer:
        peer.say(GREETING)
        await peer.heard()
        peer.say(Broken("we do not agree"))
        assert "we do not agree" in await halted(peers, 0)


async def test_who_was_replaced_halts_nobody(peers: MemoryPeers) -> None:
    """
    An old owner that sees a contradiction has an old state: it ends, and tells nobody.
    """
    old = peers[0]
    await peers.start(0)
    async with connected_peer(old.endpoint, SECRET, as_peer_of=0) as peer:
        peer.say(Greeting(7, 5, FIRST_LINK, 9))
        await until(lambda: old.ended, "the end")
    assert old.ended
    assert old.ended.startswith("Fenced")
    assert peers.databases[0].halted_for is None
    assert peers[0].shard.phase is Phase.RUNNING
    await old.stop()


async def test_who_was_replaced_while_it_recovered_halts_nobody(folder: Path) -> None:
    """
    Others have seen more than it has read, because its successor has written since: it was not set
    back, it is too late.
    """
    async with running_peers(folder, settings=ShardSettings(witness_ms=1)) as peers:
        await fill(peers)
        await peers[0].ask(pay(1))
        await peers.settled()
        await peers.crash(0)
        slow = MemoryShard(peers.databases[0], catalog=peers.catalog)
        door = Door()
        door.close()
        check_witness = slow.shard._cluster.check_witness

        async def check_late(sequence: int, chain_at: ChainAt) -> None:
            await door.passed()
            await check_witness(sequence, chain_at)

        slow.shard._cluster.check_witness = check_late
        slow.launch()
        await door.reached()
        await peers.start(0)
        await peers[0].ask(pay(2))
        await peers.settled()
        end = len(peers.databases[0].journal)
        await until(lambda: peers.databases[1].witness[0][0] == end, "the witness")
        door.open()
        await until(lambda: slow.ended, "the end of the late one")
        assert slow.ended
        assert slow.ended.startswith("Fenced")
        assert [database.halted_for for database in peers.databases] == [None, None]
        await slow.stop()


async def test_a_late_greeting_contradicts_nothing(peers: MemoryPeers) -> None:
    """
    What a source said before it was replaced may arrive after its successor's words: it is old,
    and whoever said it is hung up on.
    """
    first = entry(1)
    async with (
        connected_peer(peers[0].endpoint, SECRET, as_peer_of=0) as old,
        connected_peer(peers[0].endpoint, SECRET, as_peer_of=0) as new,
    ):
        new.say(Greeting(7, 0, FIRST_LINK, 1))
        await new.heard()
        new.say(Entries([first], next_link(FIRST_LINK, first), 0))
        await new.heard()
        old.say(Greeting(7, 0, FIRST_LINK, 0))
        await old.read_to_the_end()
    only(await peers[0].ask(pay(1, destination=ALAN)), Posted)
    assert peers[0].shard.phase is Phase.RUNNING


async def test_another_database_that_is_down_holds_up_nobody(folder: Path) -> None:
    """
    A shard that has taken a slot has to look for keys elsewhere: where that cannot be, it takes
    no new movement, says so at once, and goes on with all else.
    """
    async with running_peers(folder) as peers:
        third = peers.place()
        await peers.start(third)
        await fill(peers)
        await peers.crash(1)
        await peers.start(1)  # It knows of the third database now.
        peers.databases[third].available = False
        only(await peers[0].ask(GiveSlot(slot_of(ALICE), 1)), SlotLeft)
        await until(lambda: peers[1].state.has_taken, "the slot")
        asked = peers[1].send(deposit(BOB, 1, key="new"))
        await until(lambda: peers[1].replies[asked], "a refusal")
        assert isinstance(peers[1].replies[asked][0], Overloaded)
        only(await peers[1].ask(read_wallet(BOB)), WalletFound)
        peers.databases[third].available = True
        only(await peers[1].ask(deposit(BOB, 1, key="new")), Posted)


async def test_frozen_wallets_take_part(peers: MemoryPeers) -> None:
    """
    A wallet that is frozen after its money left keeps its word: the transfer settles.
    """
    await peers.crash(1)
    only(await peers[0].ask(pay(1, 10)), Pending)
    await peers[0].ask(SetWalletStatus("acme", ALICE, WalletStatus.FROZEN))
    await peers.start(1)
    await peers.settled()
    assert peers.balances([ALICE, BOB]) == {ALICE: 990, BOB: 1_010}
