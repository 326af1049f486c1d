"""
Goal: Postgres and its twin in memory keep the same promises, so that what is tested on the twin
      is true of production.
Method: one suite, run on both. Appends are lost and hidden behind the store's back, the store
        goes down, and other owners come between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from actors.shard_recovery import recover
from processor.core.apply import apply
from processor.core.commands import Command, SetWalletLimits, SetWalletStatus
from processor.core.decisions import (
    DECISION_FORMAT,
    EpochStarted,
    decode_decisions,
    encode_decisions,
)
from processor.core.hold import RefundTotal
from processor.core.record import GENESIS_CHAIN, Record, seal
from processor.core.slots import SlotMap
from processor.core.state import ShardState
from processor.core.wallet import WalletStatus
from processor.flow.batch import Batch
from processor.flow.frames import RequestFrame
from processor.flow.ports import AppendInDoubt, Fenced, ShardHalted, ShardStore, StoreUnavailable
from tests.support.books import Journal, assert_snapshot, tables_of
from tests.support.commands import AT_US, deposit, identifier, open_wallet, transfer
from tests.support.databases import execute
from tests.support.money_net import SHARD_COUNT, moneyed_net
from tests.support.net_tables import NetTables
from tests.support.same_shard import assert_same
from tests.support.store_rigs import MemoryRig, StoreRig, postgres_rig

BUILD = "test build"
KEYS = [identifier(name) for name in ("1", "2", "3")]
FIRST: list[Command] = [
    open_wallet("alice"),
    open_wallet("bob", -5),
    deposit("alice", 100, key="1"),
]
SECOND: list[Command] = [
    transfer("alice", "bob", 30, key="2", reference="invoice é", metadata='{"a":1}'),
    transfer("bob", "alice", 36, key="3"),
]
THIRD: list[Command] = [
    SetWalletStatus("acme", "bob", WalletStatus.FROZEN),
    SetWalletLimits("acme", "alice", 70),
]

EMPTY = """
    TRUNCATE shard, journal, watermark, wallets, transfers, slots, channels_out, channels_in,
             channel_answers, pending_entries, outcomes, holds, refunds, linked_begun,
             linked_prepared
"""

MakeStore = Callable[[], ShardStore]


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.integration)])
def rig(request: pytest.FixtureRequest) -> Iterator[StoreRig]:
    if request.param == "memory":
        yield MemoryRig()
        return
    # One database for all: emptying it is much cheaper than making another one.
    dsn = request.getfixturevalue("module_database")
    asyncio.run(execute(dsn, EMPTY))
    with postgres_rig(dsn) as rig:
        yield rig


@pytest.fixture
async def make_store(rig: StoreRig) -> AsyncIterator[MakeStore]:
    """
    Make owners' views of the shard; they are closed at the end.
    """
    stores: list[ShardStore] = []

    def make() -> ShardStore:
        stores.append(rig.store())
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def owner(make_store: MakeStore) -> ShardStore:
    store = make_store()
    await store.take_over(build=BUILD)
    return store


class Writer:
    """
    What an owner writes: the ledger's own decisions, sealed into one chain.
    """

    def __init__(self) -> None:
        self.state = ShardState(0)
        self.records: list[Record] = []

    def seal(self, store: ShardStore, commands: list[Command] | None = None) -> Record:
        """
        Seal the next record in the store's epoch; without commands it starts an epoch.
        """
        batch = Batch(len(self.records) + 1)
        batch.at_us = AT_US + batch.sequence
        if commands is None:
            apply(self.state, EpochStarted(BUILD), batch.sequence, batch.at_us)
            batch.decisions.append(EpochStarted(BUILD))
        else:
            frame = RequestFrame(1, 0, store.epoch, commands)
            batch.add(self.state, frame, lambda _reply: None)
        return self.seal_again(store, batch)

    def seal_again(self, store: ShardStore, batch: Batch) -> Record:
        return seal(
            shard_id=0,
            sequence=batch.sequence,
            epoch=store.epoch,
            at_us=batch.at_us,
            count=len(batch.decisions),
            decision_format=DECISION_FORMAT,
            payload=encode_decisions(batch.decisions),
            previous_chain=self.records[-1].chain if self.records else GENESIS_CHAIN,
        )

    async def write(self, store: ShardStore, commands: list[Command] | None = None) -> Record:
        record = self.seal(store, commands)
        await store.append(record)
        self.records.append(record)
        return record


async def write_three(store: ShardStore) -> Writer:
    writer = Writer()
    for commands in (FIRST, SECOND, THIRD):
        await writer.write(store, commands)
    return writer


async def tail(store: ShardStore) -> list[Record]:
    async with store.recovery_view() as view:
        return [record async for record in view.records()]


# --- Ownership ------------------------------------------------------------------------------------


async def test_each_takeover_has_a_larger_epoch(make_store: MakeStore) -> None:
    """
    Nobody ever owns a shard in an epoch that somebody had before.
    """
    epochs = [await make_store().take_over(build=BUILD) for _ in range(3)]
    assert epochs == [1, 2, 3]


async def test_owner_knows_its_epoch(make_store: MakeStore) -> None:
    """
    The epoch that the takeover returned is the store's.
    """
    store = make_store()
    assert await store.take_over(build=BUILD) == store.epoch
    assert await store.take_over(build=BUILD) == store.epoch == 2


async def test_owner_writes_and_reads_back(owner: ShardStore, rig: StoreRig) -> None:
    """
    Records come back as they were written, in order.
    """
    writer = await write_three(owner)
    assert await tail(owner) == writer.records
    assert await rig.journal() == writer.records


async def test_epochs_may_leave_gaps(make_store: MakeStore, owner: ShardStore) -> None:
    """
    An owner that never wrote leaves an epoch without a record; the journal goes on.
    """
    writer = Writer()
    await writer.write(owner, None)
    await make_store().take_over(build=BUILD)
    third = make_store()
    await third.take_over(build=BUILD)
    await writer.write(third, None)
    assert [record.epoch for record in await tail(third)] == [1, 3]


async def test_fenced_owner_can_do_nothing(
    make_store: MakeStore, owner: ShardStore, rig: StoreRig
) -> None:
    """
    After a takeover the older owner writes nothing, proves nothing and publishes nothing.
    """
    successor = make_store()
    await successor.take_over(build=BUILD)
    await successor.publish(endpoint="unix:/new", pid=2)
    writer = Writer()
    record = writer.seal(owner, FIRST)

    with pytest.raises(Fenced):
        await owner.append(record)
    with pytest.raises(Fenced):
        await owner.check_fence()
    with pytest.raises(Fenced):
        await owner.publish(endpoint="unix:/old", pid=1)
    with pytest.raises(Fenced):
        await owner.settle(record)
    with pytest.raises(Fenced):
        await owner.restore_connection()

    assert await rig.journal() == []
    assert await rig.endpoint() == ("unix:/new", 2)
    await successor.check_fence()
    assert successor.epoch == 2


async def test_record_is_of_the_owners_epoch(make_store: MakeStore, owner: ShardStore) -> None:
    """
    A record that was sealed in another epoch is our own mistake, and is not written.
    """
    record = Writer().seal(owner, FIRST)
    successor = make_store()
    await successor.take_over(build=BUILD)
    with pytest.raises(AssertionError, match="another epoch"):
        await successor.append(record)


async def test_owner_proves_that_it_owns(owner: ShardStore) -> None:
    """
    The fence check returns as long as nobody came.
    """
    await owner.check_fence()
    await Writer().write(owner, FIRST)
    await owner.check_fence()


# --- Doubt ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [False, True], ids=["lost", "hidden"])
async def test_doubt_is_settled_by_the_truth(
    owner: ShardStore, rig: StoreRig, written: bool
) -> None:
    """
    Settling finds a hidden record and is sure of a lost one, in a new epoch of its own.
    """
    writer = Writer()
    await writer.write(owner, FIRST)
    record = writer.seal(owner, SECOND)
    rig.break_next_append(written=written)

    with pytest.raises(AppendInDoubt):
        await owner.append(record)
    assert await owner.settle(record) is written

    assert owner.epoch == record.epoch + 1
    assert (record in await rig.journal()) is written
    await owner.check_fence()


async def test_lost_batch_is_written_in_the_new_epoch(owner: ShardStore, rig: StoreRig) -> None:
    """
    After a loss the same sequence is sealed again, and the journal has it once.
    """
    writer = Writer()
    record = writer.seal(owner, None)
    rig.break_next_append(written=False)
    with pytest.raises(AppendInDoubt):
        await owner.append(record)
    assert not await owner.settle(record)

    again = await writer.write(owner, None)
    assert (again.sequence, again.epoch) == (record.sequence, record.epoch + 1)
    assert await rig.journal() == [again]


async def test_journal_goes_on_after_a_hidden_record(owner: ShardStore, rig: StoreRig) -> None:
    """
    A record found by settling is followed by the next sequence in the new epoch.
    """
    writer = Writer()
    await writer.write(owner, None)
    record = writer.seal(owner, None)
    rig.break_next_append(written=True)
    with pytest.raises(AppendInDoubt):
        await owner.append(record)
    assert await owner.settle(record)

    writer.records.append(record)
    await writer.write(owner, None)
    epochs = [(row.sequence, row.epoch) for row in await rig.journal()]
    assert epochs == [(1, 1), (2, 1), (3, 2)]


@pytest.mark.parametrize("written", [False, True], ids=["lost", "hidden"])
async def test_doubt_ends_when_another_owner_came(
    make_store: MakeStore, owner: ShardStore, rig: StoreRig, written: bool
) -> None:
    """
    Whatever became of the record, a successor knows it now, and the older owner answers nobody.
    """
    writer = Writer()
    await writer.write(owner, FIRST)
    record = writer.seal(owner, SECOND)
    rig.break_next_append(written=written)
    with pytest.raises(AppendInDoubt):
        await owner.append(record)
    await make_store().take_over(build=BUILD)
    with pytest.raises(Fenced):
        await owner.settle(record)


@pytest.mark.parametrize("asked", ["a reconnect", "a settlement"])
async def test_owner_whose_journal_was_set_back_appends_no_more(
    owner: ShardStore, rig: StoreRig, asked: str
) -> None:
    """
    A server that is met anew and lacks what was durable has lost it: nobody goes on behind a hole.
    """
    writer = await write_three(owner)
    record = writer.seal(owner, THIRD)
    owner.abandon()
    await rig.set_back(1)
    with pytest.raises(Fenced, match="set back"):
        await (owner.restore_connection() if asked == "a reconnect" else owner.settle(record))
    assert len(await rig.journal()) == 1


async def test_dropped_connection_is_doubt(owner: ShardStore) -> None:
    """
    Without a connection an append is in doubt and a fence check says nothing; both are repaired
    by a new epoch.
    """
    record = Writer().seal(owner, FIRST)
    owner.abandon()
    with pytest.raises(AppendInDoubt):
        await owner.append(record)
    with pytest.raises(AppendInDoubt):
        await owner.check_fence()
    assert not await owner.settle(record)

    owner.abandon()
    with pytest.raises(AppendInDoubt):
        await owner.check_fence()
    await owner.restore_connection()
    await owner.check_fence()
    assert owner.epoch == 3


async def test_store_that_is_down_says_so(
    make_store: MakeStore, owner: ShardStore, rig: StoreRig
) -> None:
    """
    Nothing that needs the store succeeds or pretends to while it is down.
    """
    record = Writer().seal(owner, FIRST)
    rig.go_down()

    with pytest.raises(AppendInDoubt):
        await owner.append(record)
    with pytest.raises(AppendInDoubt):
        await owner.check_fence()
    with pytest.raises(StoreUnavailable):
        await owner.settle(record)
    with pytest.raises(StoreUnavailable):
        await owner.restore_connection()
    with pytest.raises(StoreUnavailable):
        await make_store().take_over(build=BUILD)
    with pytest.raises(StoreUnavailable):
        await owner.load_wallets(["alice"])
    with pytest.raises(StoreUnavailable):
        await owner.load_keys(KEYS)
    with pytest.raises(StoreUnavailable):
        await owner.read_watermark()
    with pytest.raises(StoreUnavailable):
        await owner.publish(endpoint="unix:/x", pid=1)
    with pytest.raises(StoreUnavailable):
        await owner.halt("because")
    with pytest.raises(StoreUnavailable):
        await tail(owner)
    with pytest.raises(StoreUnavailable):
        [page async for page in owner.key_pages()]


async def test_store_that_came_back_is_used_again(owner: ShardStore, rig: StoreRig) -> None:
    """
    An outage leaves the owner where it was: it settles, writes and reads on.
    """
    writer = Writer()
    await writer.write(owner, FIRST)
    record = writer.seal(owner, SECOND)
    rig.go_down()
    with pytest.raises(AppendInDoubt):
        await owner.append(record)
    with pytest.raises(StoreUnavailable):
        await owner.settle(record)
    rig.come_up()

    assert not await owner.settle(record)
    assert await owner.load_wallets(["alice"]) == []
    assert await tail(owner) == writer.records
    await owner.check_fence()


# --- Halting --------------------------------------------------------------------------------------


async def test_halted_shard_has_no_owner(
    make_store: MakeStore, owner: ShardStore, rig: StoreRig
) -> None:
    """
    A halt takes effect at once, on its owner and on whoever comes, and says why.
    """
    await owner.publish(endpoint="unix:/x", pid=1)
    record = Writer().seal(owner, FIRST)
    await make_store().halt("sequence 7 is missing")

    with pytest.raises(Fenced):
        await owner.append(record)
    with pytest.raises(Fenced):
        await owner.check_fence()
    with pytest.raises(Fenced):
        await owner.publish(endpoint="unix:/x", pid=1)
    with pytest.raises(Fenced):
        await owner.settle(record)
    with pytest.raises(ShardHalted, match="sequence 7 is missing"):
        await make_store().take_over(build=BUILD)
    assert await rig.journal() == []
    assert await rig.endpoint() is None


async def test_owner_that_was_replaced_halts_nobody(
    make_store: MakeStore, owner: ShardStore
) -> None:
    """
    Its reason may be about a state that its successor does not have: it is told that it is fenced,
    and the successor goes on. An owner halts itself.
    """
    successor = make_store()
    await successor.take_over(build=BUILD)
    with pytest.raises(Fenced):
        await owner.halt("too late")
    await successor.check_fence()
    await Writer().write(successor, FIRST)
    await successor.halt("its own reason")
    with pytest.raises(ShardHalted, match="its own reason"):
        await make_store().take_over(build=BUILD)


# --- The tables -----------------------------------------------------------------------------------


async def test_wallets_are_as_of_the_watermark(owner: ShardStore, rig: StoreRig) -> None:
    """
    A wallet is read as the projected records left it, whole, and not at all before its opening.
    """
    writer = Writer()
    ids = ["alice", "bob", "nobody", "$world:0:EUR"]
    assert await owner.load_wallets(ids) == []
    for done, commands in enumerate((FIRST, SECOND, THIRD)):
        await writer.write(owner, commands)
        before = {wallet.wallet_id: wallet.facts() for wallet in await owner.load_wallets(ids)}
        assert await owner.read_watermark() == done
        await rig.project()
        after = await owner.load_wallets(ids)
        expected = {name: one.facts() for name, one in writer.state.wallets.items()}
        assert before != expected
        assert {wallet.wallet_id: wallet.facts() for wallet in after} == expected
        assert {wallet.sequence for wallet in after} == {0}
    assert await owner.read_watermark() == 3


async def test_loaded_wallet_is_the_callers_own(owner: ShardStore, rig: StoreRig) -> None:
    """
    Changing a wallet that was loaded does not change the tables.
    """
    await Writer().write(owner, FIRST)
    await rig.project()
    (wallet,) = await owner.load_wallets(["alice"])
    wallet.posted = 7
    (again,) = await owner.load_wallets(["alice"])
    assert again.posted == 100


async def test_keys_are_found_with_their_outcome(owner: ShardStore, rig: StoreRig) -> None:
    """
    Postings and refusals come back as they were decided, with sequence and time to the µs.
    """
    writer = await write_three(owner)
    unknown = identifier("unknown")
    assert await owner.load_keys([*KEYS, unknown]) == []
    await rig.project()
    found = {remembered[0].key: remembered for remembered in await owner.load_keys(KEYS)}
    assert found == writer.state.keys.young
    assert await owner.load_keys([unknown]) == []
    assert await owner.load_keys([]) == []


async def test_key_pages_have_every_key_once(owner: ShardStore, rig: StoreRig) -> None:
    """
    The pages together are the keys in the tables.
    """
    assert [key async for page in owner.key_pages() for key in page] == []
    await write_three(owner)
    await rig.project(1)
    assert [key async for page in owner.key_pages() for key in page] == KEYS[:1]
    await rig.project()
    assert sorted([key async for page in owner.key_pages() for key in page]) == sorted(KEYS)


# --- Recovery -------------------------------------------------------------------------------------


async def test_recovery_begins_at_genesis(owner: ShardStore) -> None:
    """
    With nothing projected the view is empty and the journal is read from its beginning.
    """
    writer = await write_three(owner)
    async with owner.recovery_view() as view:
        assert (view.watermark, view.watermark_chain) == (0, GENESIS_CHAIN)
        assert (view.watermark_at_us, view.watermark_epoch) == (0, 0)
        assert [record async for record in view.records()] == writer.records
        assert await view.load_wallets(["alice"]) == []


async def test_recovery_goes_on_from_the_watermark(owner: ShardStore, rig: StoreRig) -> None:
    """
    The view says where the tables are, and has the records above.
    """
    writer = await write_three(owner)
    await rig.project(2)
    last = writer.records[1]
    async with owner.recovery_view() as view:
        assert (view.watermark, view.watermark_chain) == (2, last.chain)
        assert (view.watermark_at_us, view.watermark_epoch) == (last.at_us, last.epoch)
        assert [record async for record in view.records()] == writer.records[2:]
        (bob,) = await view.load_wallets(["bob"])
        assert (bob.posted, bob.status) == (30, WalletStatus.OPEN)


async def test_recovery_view_does_not_move(owner: ShardStore, rig: StoreRig) -> None:
    """
    What is projected or written while a view is open does not show in it.
    """
    writer = await write_three(owner)
    await rig.project(1)
    async with owner.recovery_view() as view:
        await rig.project()
        await writer.write(owner, None)
        assert view.watermark == 1
        assert [record.sequence async for record in view.records()] == [2, 3]
        (alice,) = await view.load_wallets(["alice"])
        assert (alice.posted, alice.minimum) == (100, 0)


# --- Money that is held, goes back, or waits for others -------------------------------------------


def records_a_step(rig: StoreRig) -> int:
    """
    Say how far the tables go from one look to the next: the projection's own tests look at each.
    """
    return 1 if isinstance(rig, MemoryRig) else 7


async def write_money(store: ShardStore) -> list[Record]:
    """
    Write the journal of a shard that has done all of it.
    """
    records = moneyed_net(epoch=store.epoch).zero.records
    for record in records:
        await store.append(record)
    return records


async def test_what_is_counted_is_read_as_of_the_watermark(
    owner: ShardStore, rig: StoreRig
) -> None:
    """
    Holds, open and ended, totals, wallets with their limits, and the outcomes of all kinds.
    """
    records = await write_money(owner)
    tables, whole = NetTables(0), tables_of(Journal(records))
    holds, refunds, keys = list(whole.holds), list(whole.refunds), list(whole.outcomes)
    never = identifier("never placed, and nothing of it went back")
    step = records_a_step(rig)
    for first in range(0, len(records), step):
        for record in records[first : first + step]:
            tables.project(decode_decisions(record.payload, record.format), record.at_us)
        await rig.project(step)
        loaded = await owner.load_holds([*holds, never])
        assert {one.hold_id: one for one in loaded} == tables.holds
        totals = {one.transfer_id: one for one in await owner.load_refunds([*refunds, never])}
        nothing = {one: RefundTotal(one, "", 0, 0) for one in (*refunds, never)}
        assert totals == nothing | tables.refunds
        outcomes = {one[0].key: one for one in await owner.load_keys(keys)}
        assert outcomes == tables.outcomes
        paged = [key async for page in owner.key_pages() for key in page]
        assert sorted(paged) == sorted(tables.outcomes)
        wallets = {one.wallet_id: one.facts() for one in await owner.load_wallets(whole.wallets)}
        assert wallets == {name: one.facts() for name, one in tables.wallets.items()}
    assert await owner.load_holds([]) == []
    assert await owner.load_refunds([]) == []


async def test_counts_are_not_read_from_a_store_that_is_down(
    owner: ShardStore, rig: StoreRig
) -> None:
    """
    No hold and no total is taken for none.
    """
    rig.go_down()
    with pytest.raises(StoreUnavailable):
        await owner.load_holds([identifier("hold")])
    with pytest.raises(StoreUnavailable):
        await owner.load_refunds([identifier("refund")])


async def test_recovery_is_the_same_at_every_cut(
    make_store: MakeStore, owner: ShardStore, rig: StoreRig
) -> None:
    """
    Wherever the tables are, and with any linked transfer in any phase: the view has what a recovery
    begins with, and with the tail it comes to what the whole journal comes to.
    """
    records = await write_money(owner)
    whole = Journal(records).state
    successor = make_store()
    await successor.take_over(build=BUILD)
    step = records_a_step(rig)
    for count in range(0, len(records) + 1, step):
        if count:
            await rig.project(step)
            async with successor.recovery_view() as view:
                assert_snapshot(Journal(records[:count]), await view.load_snapshot())
        recovered = await recover(successor, 0, SlotMap.even(SHARD_COUNT))
        assert recovered.watermark == count
        assert_same(recovered.state, whole)


# --- Publishing -----------------------------------------------------------------------------------


async def test_endpoint_is_the_owners(
    make_store: MakeStore, owner: ShardStore, rig: StoreRig
) -> None:
    """
    An owner publishes; a takeover and a new epoch withdraw what was published before.
    """
    assert await rig.endpoint() is None
    await owner.publish(endpoint="unix:/a", pid=1)
    assert await rig.endpoint() == ("unix:/a", 1)

    await owner.restore_connection()
    assert await rig.endpoint() is None
    await owner.publish(endpoint="unix:/a", pid=1)

    successor = make_store()
    await successor.take_over(build=BUILD)
    assert await rig.endpoint() is None
    await successor.publish(endpoint="unix:/b", pid=2)
    assert await rig.endpoint() == ("unix:/b", 2)


async def test_journal_is_prepared_as_often_as_one_likes(owner: ShardStore) -> None:
    """
    Making room again where there is room is no error.
    """
    for sequence in (1, 1, 2):
        await owner.prepare_journal(sequence)
    await Writer().write(owner, None)
