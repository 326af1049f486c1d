"""
Goal: what is over ends by itself, in time and never early: holds, and linked transfers that nobody
      votes on; and what the shard has forgotten of them is looked up before it is decided on.
Method: real shards on twins of their stores; the test sets the clock and says when the tables
        come nearer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from configs.settings import ShardSettings
from processor.core.commands import GiveSlot, MoveLinked, Terms, TransferType
from processor.core.decide_linked import DEADLINE_US
from processor.core.decisions import Decision, HoldChanged, decode_decisions
from processor.core.hold import HoldStatus
from processor.core.record import Record
from processor.core.reject_reason import RejectReason
from processor.core.slots import slot_of, slot_of_hold
from processor.flow import batch
from processor.flow.frames import (
    HoldFound,
    LinkedMoved,
    LinkedRefused,
    Moved,
    Overloaded,
    Pending,
    Posted,
    Rejected,
    Result,
    SlotLeft,
    WalletFound,
    WalletRefused,
)
from processor.storage.memory_store import MemoryDatabase
from tests.support.bound_commands import (
    capture,
    extend,
    fee_leg,
    hold_id_of,
    leg,
    linked,
    place,
    read_hold,
    refund,
    void,
)
from tests.support.commands import deposit, identifier, open_wallet, read_wallet, transfer
from tests.support.memory_peers import MemoryPeers, running_peers
from tests.support.memory_shard import MemoryShard, owning
from tests.support.shard_net import names_on
from tests.support.waiting import until

SECOND_US = 1_000_000
SMALL = ShardSettings(wallets_max=0, keys_recent_max=1, counts_max=0)

ALICE, ALAN = names_on(0, 2)[:2]
BOB, BERT = names_on(1, 2)[:2]

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
async def shard() -> AsyncIterator[MemoryShard]:
    """
    A shard that serves, with 1,000 in each of two wallets.
    """
    async with owning() as shard:
        await fill(shard)
        yield shard


async def fill(shard: MemoryShard, *names: str) -> None:
    for name in names or (ALICE, BOB):
        await shard.ask(open_wallet(name), deposit(name, 1_000, key=f"fill {name}"))


async def several_looks(shard: MemoryShard) -> None:
    """
    Let the shard look at its clock some times.
    """
    clock, looks = shard.shard._clock_us, 0

    def counting() -> int:
        nonlocal looks
        looks += 1
        return clock()

    shard.shard._clock_us = counting
    await until(lambda: looks > 5, "some looks at the clock")
    shard.shard._clock_us = clock


def only(results: list[Result], kind: type[Any]) -> Any:
    (result,) = results
    assert isinstance(result, kind), result
    return result


async def wallet(shard: MemoryShard, wallet_id: str = ALICE) -> WalletFound:
    found = only(await shard.ask(read_wallet(wallet_id)), WalletFound)
    assert isinstance(found, WalletFound)
    return found


def decided(database: MemoryDatabase, since: int = 0) -> list[list[Decision]]:
    return [decode_decisions(one.payload, one.format) for one in database.journal[since:]]


# --- Holds end by themselves ----------------------------------------------------------------------


async def test_a_hold_ends_when_its_time_is_over(shard: MemoryShard) -> None:
    """
    Nobody asks for anything: its money is free again all the same.
    """
    placed = place(ALICE, 300, lifetime_s=60)
    found = only(await shard.ask(placed), HoldFound)
    assert (found.available, found.held) == (700, 300)
    before = shard.sequence

    shard.now_us = found.hold.expires_at_us
    await until(lambda: shard.sequence > before, "the end of the hold")

    ((ended,),) = decided(shard.database, before)
    assert ended == HoldChanged(
        placed.hold_id, 0, 0, HoldStatus.EXPIRED, False, found.hold.expires_at_us
    )
    assert shard.database.journal[-1].at_us >= found.hold.expires_at_us
    assert (await wallet(shard)).available == 1_000
    late = only(await shard.ask(capture(placed.hold_id, 1, key="late", destination=BOB)), Rejected)
    assert late.reason == RejectReason.HOLD_EXPIRED


async def test_a_hold_never_ends_early(shard: MemoryShard) -> None:
    """
    One microsecond before, it is open, however often the shard looks; also with a clock that went
    back since.
    """
    found = only(await shard.ask(place(ALICE, 300, lifetime_s=60)), HoldFound)
    before = shard.sequence
    for now_us in (found.hold.expires_at_us - 2, found.hold.placed_at_us - SECOND_US):
        shard.now_us = now_us
        await several_looks(shard)
    assert shard.sequence == before
    assert shard.state.holds[found.hold.hold_id].status == HoldStatus.OPEN


async def test_what_comes_first_in_a_batch_finds_what_is_over_ended(shard: MemoryShard) -> None:
    """
    A payment out of what a hold had kept until then is decided after its end, in the same record.
    """
    found = only(await shard.ask(place(ALICE, 900, lifetime_s=60)), HoldFound)
    before = shard.sequence
    shard.now_us = found.hold.expires_at_us
    only(await shard.ask(transfer(ALICE, BOB, 1_000)), Posted)
    decisions = [one for record in decided(shard.database, before) for one in record]
    assert isinstance(decisions[0], HoldChanged)
    assert len(decisions) == 2


async def test_an_alarm_that_ends_nothing_writes_nothing(shard: MemoryShard) -> None:
    """
    A hold that lasts longer now, or has ended, leaves its alarm behind: no record comes of it.
    """
    longer, gone = place(ALICE, 300, key="longer"), place(ALICE, 100, key="gone")
    await shard.ask(longer, gone, extend(longer.hold_id, 600), void(gone.hold_id))
    before = shard.sequence
    shard.now_us += 61 * SECOND_US
    await until(lambda: len(shard.state.alarms) == 1, "the old alarms to go off")
    await several_looks(shard)
    assert shard.sequence == before
    assert (await wallet(shard)).held == 300

    shard.now_us += 600 * SECOND_US
    await until(lambda: shard.sequence > before, "the end of the other")
    assert (await wallet(shard)).held == 0


async def test_a_batch_that_came_to_nothing_lends_its_time_to_nobody(shard: MemoryShard) -> None:
    """
    An alarm that ended nothing, and then a long time: what comes next has its own time.
    """
    placed = place(ALICE, 300, key="longer", lifetime_s=60)
    await shard.ask(placed, extend(placed.hold_id, 120))
    shard.now_us += 61 * SECOND_US
    await until(lambda: len(shard.state.alarms) == 1, "the old alarm to go off")
    shard.shard._clock_us = lambda: shard.now_us + 3_600 * SECOND_US
    late = only(await shard.ask(capture(placed.hold_id, 1, key="late", destination=BOB)), Rejected)
    assert late.reason == RejectReason.HOLD_EXPIRED
    assert late.at_us >= shard.now_us + 3_600 * SECOND_US


async def test_many_ends_at_once_go_into_several_records(
    shard: MemoryShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Each record ends a bounded number; the next follows at once.
    """
    monkeypatch.setattr(batch, "ALARMS_MAX", 4)
    await shard.ask(*(place(ALICE, 1, key=f"{number}") for number in range(10)))
    before = shard.sequence
    shard.now_us += 61 * SECOND_US
    await until(lambda: not shard.state.alarms, "all to end")
    await until(lambda: shard.shard.is_idle, "the last record")
    assert [len(record) for record in decided(shard.database, before)] == [4, 4, 2]
    assert (await wallet(shard)).available == 1_000


async def test_a_shard_that_drains_ends_nothing_more(shard: MemoryShard) -> None:
    """
    It finishes what it has taken in; what is over then is its successor's, at once.
    """
    only(await shard.ask(place(ALICE, 300)), HoldFound)
    await shard.shard.drain()
    before = shard.sequence
    shard.now_us += 61 * SECOND_US
    await asyncio.sleep(0)
    assert shard.shard.is_idle
    assert shard.sequence == before
    await shard.stop()

    successor = MemoryShard(shard.database, now_us=shard.now_us)
    await successor.start()
    await until(lambda: successor.sequence == before + 2, "the end of the hold")
    await successor.stop()


@pytest.mark.parametrize("records", [0, 2, 3, 99], ids=lambda count: f"{count} in the tables")
async def test_holds_are_as_before_after_a_crash(records: int) -> None:
    """
    What they keep, and until when, comes back from tables and journal, wherever the one ends.
    """
    database = MemoryDatabase()
    placed = place(ALICE, 300, destination=BOB)
    async with owning(database) as first:
        await fill(first)
        await first.ask(placed, place(ALICE, 50, key="other", lifetime_s=600))
        only(await first.ask(capture(placed.hold_id, 100, key="part")), Posted)
        lost = dict(first.state.holds)
        database.project(records)
        now_us = first.now_us
    second = MemoryShard(database, now_us=now_us)
    await second.start()
    held = {key: msgspec.structs.replace(one, sequence=0) for key, one in lost.items()}
    found = {
        key: msgspec.structs.replace(one, sequence=0) for key, one in second.state.holds.items()
    }
    assert found == held
    assert ((await wallet(second)).held, (await wallet(second)).available) == (250, 650)
    second.now_us += 61 * SECOND_US
    await until(lambda: second.state.holds[placed.hold_id].kept == 0, "the end of the hold")
    assert ((await wallet(second)).held, (await wallet(second)).available) == (50, 850)
    await second.stop()


async def test_without_anything_to_end_nobody_looks_at_the_clock(shard: MemoryShard) -> None:
    """
    A shard that has nothing to do sleeps until somebody asks; one look at most is set otherwise.
    """
    assert shard.shard._watch_alarms() is None
    await shard.ask(place(ALICE, 300))
    await until(lambda: shard.shard.is_idle, "the record")
    watch = shard.shard._watch_alarms()
    assert watch is not None
    watch.cancel()


# --- What was forgotten is looked up --------------------------------------------------------------


async def other_work(shard: MemoryShard) -> None:
    """
    Let the tables come near, and bring something of everything into memory.
    """
    name = f"other work {shard.sequence}"
    placed = place(BOB, 1, key=f"hold of {name}")
    await shard.ask(
        deposit(BOB, 1, key=name),
        placed,
        void(placed.hold_id, key=f"void of {name}"),
        refund(name, BOB, "nobody", 1, refundable=0, key=f"refund of {name}"),
    )
    await shard.projected()


async def forgotten(shard: MemoryShard, *of_interest: bytes) -> None:
    """
    Work on until memory has given back the holds or totals *of_interest*, and Alice's wallet.
    """

    async def is_gone() -> bool:
        await other_work(shard)
        state = shard.state
        known = {*state.refunds, *state.holds}
        return known.isdisjoint(of_interest) and ALICE not in state.wallets

    await until(is_gone, "memory to give back")


@pytest.fixture
async def forgetful() -> AsyncIterator[MemoryShard]:
    """
    A shard that serves and has no room for anything that may go.
    """
    async with owning(settings=SMALL) as shard:
        await fill(shard)
        yield shard


async def test_an_ended_hold_is_told_again(forgetful: MemoryShard) -> None:
    """
    By its id and under the keys of what was done to it, with its wallet as it is now.
    """
    placed, ended = place(ALICE, 300), void(hold_id_of(ALICE))
    first = only(await forgetful.ask(placed), HoldFound)
    voided = only(await forgetful.ask(ended), HoldFound)
    for asked, told in ((placed, first), (ended, voided), (read_hold(placed.hold_id), None)):
        await forgotten(forgetful, placed.hold_id)
        again = only(await forgetful.ask(asked), HoldFound)
        assert again.hold.status == HoldStatus.VOIDED
        assert (again.available, again.held) == (1_000, 0)
        assert told is None or (again.repeated, again.sequence) == (True, told.sequence)
    await forgotten(forgetful, placed.hold_id)
    late = only(
        await forgetful.ask(capture(placed.hold_id, 1, key="late", destination=BOB)), Rejected
    )
    assert late.reason == RejectReason.HOLD_VOIDED


async def test_under_a_key_the_hold_of_then_is_told(forgetful: MemoryShard) -> None:
    """
    Who asks again has made a new id for the hold; the one of then is looked up.
    """
    placed = place(ALICE, 300)
    await forgetful.ask(placed, void(placed.hold_id))
    await forgotten(forgetful, placed.hold_id)
    again = only(await forgetful.ask(place(ALICE, 300, name="made anew")), HoldFound)
    assert again.repeated
    assert again.hold.hold_id == placed.hold_id


async def test_a_hold_that_never_was_is_looked_up_once(forgetful: MemoryShard) -> None:
    """
    It is unknown, and neither waited for nor asked for again and again.
    """
    unknown = place(ALICE, 1, key="never placed")
    refused = only(await forgetful.ask(read_hold(unknown.hold_id)), WalletRefused)
    assert refused.reason == RejectReason.HOLD_UNKNOWN
    rejected = only(await forgetful.ask(void(unknown.hold_id)), Rejected)
    assert rejected.reason == RejectReason.HOLD_UNKNOWN


async def test_open_holds_stay_and_their_destination_is_looked_up(forgetful: MemoryShard) -> None:
    """
    With room for nothing an open hold keeps its money; a capture that names no destination finds
    the hold's, which only the tables have by then.
    """
    await fill(forgetful, "shop")
    placed = place(ALICE, 300, destination="shop", lifetime_s=3_600)
    await forgetful.ask(placed)

    async def shop_is_gone() -> bool:
        await other_work(forgetful)
        return "shop" not in forgetful.state.wallets

    await until(shop_is_gone, "the shop to leave memory")
    assert placed.hold_id in forgetful.state.holds
    posted = only(await forgetful.ask(capture(placed.hold_id, 120, key="part")), Posted)
    assert posted.filled_in.destination == "shop"
    assert posted.balance == 880


async def test_what_went_back_counts_when_it_was_forgotten(forgetful: MemoryShard) -> None:
    """
    The cap of a refund is over all refunds, those that only the tables know, too.
    """
    await forgetful.ask(transfer(ALICE, BOB, 100, key="paid"))

    def back(amount: int, key: str) -> Any:
        return refund("paid", BOB, ALICE, amount, refundable=100, key=key)

    only(await forgetful.ask(back(70, "first")), Posted)
    await forgotten(forgetful, identifier("transfer of paid"))
    refused = only(await forgetful.ask(back(40, "too much")), Rejected)
    assert (refused.reason, refused.short_by) == (RejectReason.REFUND_EXCEEDS_PAID, 10)
    await forgotten(forgetful, identifier("transfer of paid"))
    only(await forgetful.ask(back(30, "rest")), Posted)


async def test_what_is_counted_stays_bounded() -> None:
    """
    Ended holds leave memory when the tables have them, in steps of a tenth; open ones never do.
    """
    async with owning(settings=ShardSettings(counts_max=20)) as shard:
        await fill(shard)
        await shard.ask(*(place(ALICE, 1, key=f"open {number}") for number in range(30)))
        most = 0
        for number in range(60):
            placed = place(ALICE, 1, key=f"{number}")
            await shard.ask(placed, void(placed.hold_id, key=f"void {number}"))
            await shard.projected()
            most = max(most, len(shard.state.holds))
        assert most <= 30 + 20 + 10
        assert sum(one.status == HoldStatus.OPEN for one in shard.state.holds.values()) == 30


async def test_a_frame_waits_while_holds_cannot_be_looked_up(forgetful: MemoryShard) -> None:
    """
    A look-up that fails is tried again; it never passes for a hold that is not there.
    """
    placed = place(ALICE, 300)
    await forgetful.ask(placed, void(placed.hold_id))
    await forgotten(forgetful, placed.hold_id)
    forgetful.store.reads.close()
    frame = forgetful.send(read_hold(placed.hold_id))
    await forgetful.store.reads.reached()
    forgetful.database.available = False
    forgetful.store.reads.open()
    await several_turns()
    assert forgetful.replies[frame] == []
    forgetful.database.available = True
    assert only(await forgetful.results(frame), HoldFound).hold.status == HoldStatus.VOIDED


async def several_turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


# --- Several shards -------------------------------------------------------------------------------


@pytest.fixture
async def peers(folder: Path) -> AsyncIterator[MemoryPeers]:
    """
    Two shards, with two wallets of 1,000 on each.
    """
    async with running_peers(folder) as peers:
        await fill(peers[0], ALICE, ALAN)
        await fill(peers[1], BOB, BERT)
        yield peers


async def give(peers: MemoryPeers, slot: int, source: int, target: int) -> None:
    """
    Move a slot as the operator's command does, and wait until it has arrived.
    """

    async def left() -> bool:
        return isinstance((await peers[source].ask(GiveSlot(slot, target)))[0], SlotLeft)

    await until(left, f"slot {slot} to leave")
    await until(lambda: peers.catalog.slots.owner(slot) == target, f"slot {slot} to arrive")


async def test_an_open_hold_goes_with_its_slot_and_ends_there(peers: MemoryPeers) -> None:
    """
    At its new shard it keeps its money until its time is over; the old one says where it is, under
    its key, too.
    """
    placed = place(ALICE, 300, lifetime_s=60)
    only(await peers[0].ask(placed), HoldFound)
    await give(peers, slot_of_hold(placed.hold_id), 0, 1)
    assert await peers[0].ask(read_hold(placed.hold_id), placed) == [Moved(1), Moved(1)]
    assert only(await peers[1].ask(placed), HoldFound).repeated
    assert (await wallet(peers[1])).held == 300
    peers[1].now_us += 61 * SECOND_US
    await until(lambda: peers[1].state.holds[placed.hold_id].kept == 0, "the end of the hold")
    assert (await wallet(peers[1])).available == 1_000


@pytest.fixture
async def without_third(folder: Path) -> AsyncIterator[MemoryPeers]:
    """
    Two shards, of which the second has its own slot (bob's) and one of the first (alice's); the
    database of a third is down.
    """
    async with running_peers(folder) as peers:
        third = peers.place()
        await peers.start(third)
        await fill(peers[0], ALICE, ALAN)
        await fill(peers[1], BOB)
        await peers.crash(1)
        await peers.start(1)  # It knows of the third database now.
        await give(peers, slot_of(ALICE), 0, 1)
        await until(lambda: peers[1].shard.statistics().key_filter_complete, "the filter")
        peers.databases[third].available = False
        yield peers


async def test_without_another_database_nobody_is_held_up(without_third: MemoryPeers) -> None:
    """
    A shard that has taken a slot looks for holds and its refunds elsewhere, too: where that cannot
    be, it says so at once, decides nothing of it, and goes on with all else.
    """
    peers = without_third
    asked = [
        read_hold(hold_id_of(BOB, "unknown")),
        refund("earlier", ALICE, BOB, 1, refundable=1, key="back"),
    ]
    for command in asked:
        frame = peers[1].send(command)
        await until(lambda: peers[1].replies[frame], "a refusal")  # noqa: B023
        assert isinstance(peers[1].replies[frame][0], Overloaded)
    only(await peers[1].ask(place(BOB, 5)), HoldFound)
    peers.databases[2].available = True
    only(await peers[1].ask(asked[0]), WalletRefused)
    only(await peers[1].ask(asked[1]), Posted)


async def test_what_never_was_elsewhere_is_not_looked_up_there(without_third: MemoryPeers) -> None:
    """
    Refunds by wallets of the slots that a shard had first go on without the others' databases.
    """
    peers = without_third
    only(await peers[1].ask(refund("bob's", BOB, ALICE, 4, refundable=5, key="1")), Posted)
    peers.databases[1].project()
    peers[1].state.refunds.clear()
    too_much = refund("bob's", BOB, ALICE, 2, refundable=5, key="2")
    refused = only(await peers[1].ask(too_much), Rejected)
    assert (refused.reason, refused.short_by) == (RejectReason.REFUND_EXCEEDS_PAID, 1)


async def test_a_peers_question_is_a_no_without_another_database(
    without_third: MemoryPeers,
) -> None:
    """
    A total that cannot be looked up is a no to the refund on it, under its key for good; the
    channel goes on, with what follows it and with refunds that ask nobody else.
    """
    peers = without_third

    def asked(source: str, key: str) -> MoveLinked:
        terms = Terms(refund_of=identifier(f"of {source}"), refundable=5)
        back = leg(source, ALAN, 5, transfer_type=TransferType.REFUND, terms=terms)
        return linked(leg(ALAN, source, 5), back, key=key)

    refused = asked(ALICE, "in vain")
    assert isinstance((await peers[0].ask(refused))[0], Pending)
    told = await linked_outcome(peers, refused)
    assert isinstance(told, LinkedRefused)
    assert (told.leg, told.reason) == (1, RejectReason.REFUND_TOTAL_UNKNOWN)
    only(await peers[0].ask(transfer(ALAN, BOB, 7, key="behind it")), Pending)
    assert isinstance(await linked_outcome(peers, asked(BOB, "of bob")), LinkedMoved)
    peers.databases[2].available = True
    assert isinstance(await linked_outcome(peers, refused), LinkedRefused)
    assert isinstance(await linked_outcome(peers, asked(ALICE, "then")), LinkedMoved)
    await peers.settled()
    assert peers.balances([ALICE, ALAN, BOB]) == {ALICE: 1_000, ALAN: 993, BOB: 1_007}


async def test_legs_are_counted_one_by_one() -> None:
    """
    What may wait is bounded by legs, not by linked transfers.
    """
    settings = ShardSettings(intake_commands_max=9)
    async with owning(settings=settings) as shard:
        await fill(shard)
        legs = [leg(ALICE, BOB, number) for number in range(1, 6)]
        frame = shard.send(linked(*legs, key="1"), linked(*legs, key="2"))
        assert isinstance(await shard.reply(frame), Overloaded)
        only(await shard.ask(linked(*legs)), LinkedMoved)
        assert shard.shard.statistics().queued_commands == 0


LEGS = (leg(ALICE, BOB, 100), leg(BOB, ALAN, 1_050), fee_leg(BOB, 3))
AFTER = {ALICE: 900, ALAN: 2_050, BOB: 47}
START = {ALICE: 1_000, ALAN: 1_000, BOB: 1_000}


async def linked_outcome(peers: MemoryPeers, command: MoveLinked) -> Result:
    """
    Ask under the same key until there is an outcome.
    """

    async def answered() -> Result | None:
        (result,) = await peers[0].ask(command)
        return None if isinstance(result, Pending) else result

    found: Result = await until(answered, "the outcome")
    return found


async def test_linked_legs_over_two_shards_are_told_unasked(peers: MemoryPeers) -> None:
    """
    Pending first; then who asked is told once that all legs have moved.
    """
    command = linked(*LEGS)
    only(await peers[0].ask(command), Pending)
    await until(lambda: peers[0].settled, "the outcome")
    moved = only(peers[0].settled, LinkedMoved)
    assert [source.balance for source in moved.sources] == [900]
    await peers.settled()
    assert peers.balances([*AFTER]) == AFTER


async def test_votes_that_do_not_come_in_time_reject(peers: MemoryPeers) -> None:
    """
    With the other shard down the deadline passes: rejected, unasked, with all money free again; and
    the other hears of it when it is back.
    """
    await peers.crash(1)
    only(await peers[0].ask(linked(*LEGS)), Pending)
    assert (await wallet(peers[0])).available == 900
    peers[0].now_us += DEADLINE_US + SECOND_US
    await until(lambda: peers[0].settled, "the outcome")
    refused = only(peers[0].settled, LinkedRefused)
    assert refused.reason == RejectReason.LINKED_DEADLINE_PASSED
    assert (await wallet(peers[0])).available == 1_000
    await peers.start(1)
    await peers.settled()
    assert not peers[1].state.prepared
    assert peers.balances([*START]) == START


def stop_after(shard: MemoryShard, record_count: int) -> None:
    """
    Let so many more records be written; the next one stands still.
    """
    append = shard.store.append

    async def limited(record: Record) -> None:
        nonlocal record_count
        if record_count == 0:
            shard.store.writes.close()
        record_count -= 1
        await append(record)

    shard.store.append = limited  # type: ignore[method-assign]


def let_go_on(shard: MemoryShard) -> None:
    shard.store.__dict__.pop("append")
    shard.store.writes.open()


# How many records who decides, and who takes part, have written; the next one is lost or late.
PHASES = {
    "not begun": (0, 0),
    "begun": (1, 0),
    "prepared": (1, 1),
    "posted": (2, 1),
    "told": (2, 2),
}


@pytest.mark.parametrize("projects", [True, False], ids=["from tables", "from the journal"])
@pytest.mark.parametrize("killed", [0, 1], ids=["who decides", "who takes part"])
@pytest.mark.parametrize("written", PHASES.values(), ids=PHASES)
async def test_a_crash_in_any_phase_ends_the_same_way(
    peers: MemoryPeers, written: tuple[int, int], killed: int, projects: bool
) -> None:
    """
    Whoever begins again knows what it has promised: all legs move, once.
    """
    command = linked(*LEGS)
    for shard_id, record_count in enumerate(written):
        stop_after(peers[shard_id], record_count)
    peers[0].send(command)
    doors = [peers[shard_id].store.writes for shard_id in (0, 1)]
    await until(lambda: doors[0].waiting or doors[1].waiting, "the phase")
    if projects:
        peers.databases[killed].project()
    await peers.crash(killed)
    await peers.start(killed)
    let_go_on(peers[1 - killed])
    assert isinstance(await linked_outcome(peers, command), LinkedMoved)
    await peers.settled()
    assert peers.balances([*AFTER]) == AFTER
    for shard in peers.shards.values():
        assert not shard.state.prepared
        assert not shard.state.linked
