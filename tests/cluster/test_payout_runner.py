"""
Goal: each row of a batch is paid once, whatever is killed, and its counters add up all the time.
Method: two real shards and a write-behind in processes of their own; the runner is killed, doubled,
        cut off and started again; at the end the journal is counted and the books are audited.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import uuid_utils

from actors.child_process import ChildProcess
from configs.settings import PayoutSettings
from gateway.payout_runner import PayoutRunner, command_of, outcome_of
from gateway.shard_clients import ShardClients
from processor.core.commands import MoveMoney, SetWalletStatus
from processor.core.decisions import TransferPosted, TransferRejected, TransferReserved
from processor.core.slots import SlotMap
from processor.core.wallet import WalletStatus
from processor.flow.frames import Pending, Posted, Result
from processor.flow.payout_file import CheckedRow, encode_page
from processor.storage.payouts import (
    BatchLocks,
    NewBatch,
    PayoutBatch,
    PayoutItem,
    PayoutStore,
    Submitted,
)
from processor.storage.verification import verify
from tests.support.books import read_journal
from tests.support.commands import MERCHANT, deposit, open_wallet
from tests.support.databases import reading
from tests.support.stack import Stack, running_stack
from tests.support.waiting import until

FUNDS = 10_000_000
EMPLOYEES = 20
KILLS = 5  # That hit a batch at work.
BATCHES_MAX = 20


@pytest.fixture(scope="module")
def stack(module_database) -> Iterator[Stack]:
    with running_stack(module_database) as started:
        yield started


@pytest.fixture
async def clients(stack) -> AsyncIterator[ShardClients]:
    async with stack.clients() as connected:
        yield connected


@pytest.fixture
async def store(stack) -> AsyncIterator[PayoutStore]:
    opened_store = await PayoutStore.open(stack.dsn, durability="local")
    yield opened_store
    opened_store.close()


class Payroll:
    """
    A funded source and wallets to pay to, with names of their own in each test.
    """

    def __init__(self, clients: ShardClients, store: PayoutStore) -> None:
        self.name = uuid_utils.uuid7().hex
        self.source = f"payroll-{self.name}"
        self.shard_id = 0  # Of the source.
        self._clients = clients
        self._store = store

    def employee(self, number: int) -> str:
        return f"emp-{number % EMPLOYEES}-{self.name}"

    async def open(self) -> None:
        wallets = [self.source, *(self.employee(number) for number in range(EMPLOYEES))]
        results = await self._clients.submit_many(
            [open_wallet(wallet_id) for wallet_id in wallets], timeout_ms=10_000
        )
        assert not [result for result, _ in results if isinstance(result, Exception)]
        funded, self.shard_id = await self._clients.submit(
            deposit(self.source, FUNDS, key=self.name), timeout_ms=10_000
        )
        assert isinstance(funded, Posted)

    async def submit(self, row_count: int, **changes) -> PayoutBatch:
        """
        Store a batch of rows of 100, every tenth of them to a wallet that is not there.
        """
        rows = [
            CheckedRow(
                number,
                f"{changes.get('reference', self.name)}-{number}",
                f"nobody-{number}" if number % 10 == 0 else self.employee(number),
                100,
                None,
            )
            for number in range(2, row_count + 2)
        ]
        new = NewBatch(
            batch_id=uuid_utils.uuid7().bytes,
            merchant_id=MERCHANT,
            reference=changes.pop("reference", self.name),
            content_hash=b"content",
            source=self.source,
            currency="EUR",
            on_invalid="reject_batch",
            rows_per_second_max=changes.pop("rows_per_second_max", None),
            pages=[encode_page(rows[at : at + 250]) for at in range(0, row_count, 250)],
        )
        submission = await self._store.submit(new)
        assert isinstance(submission, Submitted)
        return submission.batch


@pytest.fixture
async def payroll(clients, store) -> Payroll:
    made = Payroll(clients, store)
    await made.open()
    return made


@asynccontextmanager
async def running(
    stack: Stack,
    clients: ShardClients,
    store: PayoutStore,
    *,
    locks_dsn: str | None = None,
    **settings: int,
) -> AsyncIterator[PayoutRunner]:
    """
    Run a runner in this process.
    """
    defaults = {"chunk_rows": 10, "poll_ms": 20, "retry_ms": 5, "retry_ms_max": 50}
    runner = PayoutRunner(
        store=store,
        locks=BatchLocks(locks_dsn or stack.dsn),
        clients=clients,
        settings=PayoutSettings(**(defaults | settings)),
        timeout_ms=5_000,
        random=random.Random(7),
    )
    runner.start()
    try:
        yield runner
    finally:
        await runner.stop()


async def now(store: PayoutStore, batch: PayoutBatch) -> PayoutBatch:
    """
    Read the batch as it is, and check that its counters add up.
    """
    found = await store.get(MERCHANT, str(uuid_utils.UUID(bytes=batch.batch_id)))
    assert found is not None
    assert found.total_count == found.pending_count + found.paid_count + found.failed_count
    assert found.total_amount == found.pending_amount + found.paid_amount + found.failed_amount
    assert found.paid_amount == 100 * found.paid_count
    return found


async def finished(store: PayoutStore, batch: PayoutBatch) -> PayoutBatch:
    """
    Wait for the end of the batch, its counters checked at every look.
    """

    async def look() -> PayoutBatch | None:
        found = await now(store, batch)
        return found if found.state != "processing" else None

    return await until(look, "the end of the batch", timeout_s=60)


async def assert_paid_once(stack: Stack, store: PayoutStore, batch: PayoutBatch) -> None:
    """
    Check each item against the journal, and the whole database by the auditor.
    """
    await stack.settled()
    journal = await read_journal(stack.dsn, SlotMap.even(2).shard_of(batch.source))
    metadata = msgspec.json.encode(
        {"payout_batch": str(uuid_utils.UUID(bytes=batch.batch_id))}
    ).decode()
    asked = Counter(
        decision.key
        for decision in journal.decisions
        if isinstance(decision, TransferPosted | TransferRejected | TransferReserved)
    )
    assert set(asked.values()) == {1}
    outcomes = [outcome for outcome, _, _ in journal.state.keys.young.values()]
    decided = [outcome for outcome in outcomes if outcome.metadata == metadata]
    by_id = {decision.transfer_id: decision for decision in decided}
    items = await store.items(batch.batch_id, after_row=0, limit=100_000)
    assert len(by_id) == len(decided) == len(items) == batch.total_count
    for item in items:
        assert_item_is(item, by_id[item.transfer_id])
    verdict = await verify(stack.dsn)
    assert verdict.balanced, verdict.differences


def assert_item_is(item: PayoutItem, decision) -> None:
    assert (item.item_reference, item.destination, item.amount) == (
        decision.reference,
        decision.destination,
        decision.amount,
    )
    if isinstance(decision, TransferPosted):
        assert (item.state, item.code) == ("paid", None)
    else:
        assert (item.state, item.code) == ("failed", decision.reason.code)


async def test_a_batch_is_paid_to_its_end(stack, clients, store, payroll):
    """
    Sound rows are paid, rows to nobody fail with the ledger's reason, and the state tells both.
    """
    batch = await payroll.submit(95)
    async with running(stack, clients, store) as runner:
        done = await finished(store, batch)
        await until(lambda: runner.statistics().paid_count == 86, "its own count")
    assert done.state == "completed_with_failures"
    assert (done.paid_count, done.failed_count, done.invalid_count) == (86, 9, 0)
    items = await store.items(batch.batch_id, after_row=0, limit=100, state="failed")
    assert {item.code for item in items} == {"destination_unknown"}
    assert {item.row_number % 10 for item in items} == {0}
    await assert_paid_once(stack, store, batch)


async def test_funds_that_run_out_fail_the_rest(stack, clients, store, payroll):
    """
    Every row gets an outcome; nothing waits for money for ever.
    """
    rows = [
        CheckedRow(number, f"{payroll.name}-{number}", payroll.employee(number), FUNDS // 3, None)
        for number in range(2, 7)
    ]
    submission = await store.submit(
        NewBatch(
            batch_id=uuid_utils.uuid7().bytes,
            merchant_id=MERCHANT,
            reference=payroll.name,
            content_hash=b"content",
            source=payroll.source,
            currency="EUR",
            on_invalid="reject_batch",
            rows_per_second_max=None,
            pages=[encode_page(rows)],
        )
    )
    assert isinstance(submission, Submitted)
    async with running(stack, clients, store):
        await until(lambda: payout_state(store, submission.batch) or None, "the end of the batch")
    items = await store.items(submission.batch.batch_id, after_row=0, limit=10)
    assert Counter(item.code for item in items) == {None: 3, "insufficient_funds": 2}
    await assert_paid_once(stack, store, submission.batch)


async def payout_state(store: PayoutStore, batch: PayoutBatch) -> str | None:
    found = await store.get(MERCHANT, batch.reference)
    assert found is not None
    return None if found.state == "processing" else found.state


async def test_killed_at_any_moment_it_goes_on(stack, clients, store, payroll):
    """
    The runner's process is killed again and again while it works; each row is paid once.

    A fast machine finishes a batch within few kills, so batches follow until enough have hit.
    """
    process = stack.child("payouts", ["tests.support.payout_process", "12"])
    chance = random.Random(11)
    interruptions = 0
    batches: list[PayoutBatch] = []
    try:
        while interruptions < KILLS:
            assert len(batches) < BATCHES_MAX, f"{interruptions} kills hit a batch at work"
            batches.append(await payroll.submit(250, reference=f"{payroll.name}-{len(batches)}"))
            interruptions += await kill_until_paid(stack, store, process, batches[-1], chance)
    finally:
        process.kill()
    for batch in batches:
        await assert_paid_once(stack, store, batch)


async def kill_until_paid(
    stack: Stack,
    store: PayoutStore,
    process: ChildProcess,
    batch: PayoutBatch,
    chance: random.Random,
) -> int:
    """
    Kill the runner shortly after each start that got on; return how often it was at work then.
    """
    interruptions = 0
    while (before := await now(store, batch)).state == "processing":
        process.start()

        async def moved(pending_count: int = before.pending_count) -> bool:
            return (await now(store, batch)).pending_count < pending_count

        await until(moved, f"progress\n{stack.logs()}")
        await asyncio.sleep(chance.uniform(0, 0.03))  # Any moment within a chunk or two.
        process.kill()
        interruptions += (await now(store, batch)).state == "processing"
    return interruptions


@pytest.mark.parametrize("recorded", [0, 3])
async def test_paid_and_not_recorded_is_paid_once(stack, clients, store, payroll, recorded):
    """
    A crash between the ledger's answer and its record: the answer comes again, with its id.
    """
    batch = await payroll.submit(20)
    items = await store.pending_items(batch.batch_id, after_row=0, limit=10)
    commands = [command_of(batch, item) for item in items]
    results = await settled_results(clients, commands)
    outcomes = [outcome_of(item, result) for item, result in zip(items, results, strict=True)]
    if recorded:
        await store.record_results(batch.batch_id, outcomes[:recorded])
    # From here on as if the process had died before it could write down the rest.

    async with running(stack, clients, store):
        await finished(store, batch)
    told = await store.items(batch.batch_id, after_row=0, limit=10)
    assert [item.transfer_id for item in told] == [command.transfer_id for command in commands]
    await assert_paid_once(stack, store, batch)


async def settled_results(clients: ShardClients, commands: list[MoveMoney]) -> list[Result]:
    """
    Ask until nothing of *commands* is on its way any more.
    """

    async def asked() -> list[Result] | None:
        told = await clients.submit_many(commands, timeout_ms=10_000)
        results = [result for result, _ in told]
        return None if any(isinstance(result, Pending) for result in results) else results

    return await until(asked, "the outcomes")


async def test_two_runners_at_once_pay_once(stack, clients, store, payroll, empty_database):
    """
    Even when the locks do not keep them apart, two runners do no harm.
    """
    batch = await payroll.submit(60, rows_per_second_max=20)
    # Advisory locks hold within one database: these keep nobody away from anything.
    async with (
        running(stack, clients, store) as first,
        running(stack, clients, store, locks_dsn=empty_database, chunk_rows=13) as second,
    ):
        for runner in (first, second):
            await until(lambda runner=runner: runner.statistics().paid_count > 0, "a share each")
        await finished(store, batch)
    await assert_paid_once(stack, store, batch)


async def test_the_locks_spare_a_second_runner_the_work(stack, clients, store, payroll):
    """
    Of two runners on one database, one has the batch.
    """
    batch = await payroll.submit(60)
    async with (
        running(stack, clients, store) as first,
        running(stack, clients, store) as second,
    ):
        done = await finished(store, batch)

        def shares() -> list[int]:
            return sorted(runner.statistics().paid_count for runner in (first, second))

        await until(lambda: sum(shares()) >= done.paid_count, "their own counts")
        assert shares() == [0, done.paid_count]


async def test_a_stopped_runner_leaves_the_batch_to_the_next(stack, clients, store, payroll):
    """
    After an orderly stop another runner takes the batch over where it is.
    """
    batch = await payroll.submit(200, rows_per_second_max=400)
    async with running(stack, clients, store):

        async def begun() -> bool:
            return (await now(store, batch)).paid_count > 0

        await until(begun, "the first rows")
    middle = await now(store, batch)
    assert middle.state == "processing"
    async with running(stack, clients, store):
        await finished(store, batch)
    await assert_paid_once(stack, store, batch)


async def test_lost_locks_are_taken_again(stack, clients, store, payroll):
    """
    When Postgres ends the runner's connections, it connects anew and goes on.
    """
    batch = await payroll.submit(200, rows_per_second_max=200)
    async with running(stack, clients, store):

        async def begun() -> bool:
            return (await now(store, batch)).paid_count > 0

        await until(begun, "the first rows")
        async with reading(stack.dsn) as connection:
            ended = await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name = 'miliano/payouts' AND datname = current_database()"
            )
        assert ended >= 1
        await until_readable(store, batch)
        await finished(store, batch)
    await assert_paid_once(stack, store, batch)


async def until_readable(store: PayoutStore, batch: PayoutBatch) -> None:
    async def look() -> bool:
        try:
            await now(store, batch)
        except Exception:  # The pool's own connections were ended too.
            return False
        return True

    await until(look, "a connection")


async def test_a_crashed_shard_delays_and_loses_nothing(stack, clients, store, payroll):
    """
    While the shard is gone rows stay pending; when it is back, each is paid once.
    """
    batch = await payroll.submit(300)
    async with running(stack, clients, store):

        async def begun() -> bool:
            return (await now(store, batch)).paid_count > 0

        await until(begun, "the first rows")
        stack.crash_shard(payroll.shard_id)
        await finished(store, batch)
    await assert_paid_once(stack, store, batch)


async def test_without_an_answer_rows_stay_pending(stack, clients, store, payroll):
    """
    A deadline that passes is no outcome: attempts are counted, and nothing is failed.
    """
    batch = await payroll.submit(20)
    stack.shards[payroll.shard_id].kill()
    try:
        runner = PayoutRunner(
            store=store,
            locks=BatchLocks(stack.dsn),
            clients=clients,
            settings=PayoutSettings(chunk_rows=10, poll_ms=20, retry_ms=5, retry_ms_max=20),
            timeout_ms=50,
            random=random.Random(7),
        )
        runner.start()

        async def tried_thrice() -> bool:
            items = await store.items(batch.batch_id, after_row=0, limit=20)
            return min(item.attempts for item in items) >= 3

        await until(tried_thrice, "three attempts at each row")
        assert (await now(store, batch)).pending_count == 20
    finally:
        stack.shards[payroll.shard_id].start()
    await finished(store, batch)
    await runner.stop()
    await assert_paid_once(stack, store, batch)


async def test_a_small_batch_does_not_wait_for_a_large_one(stack, clients, store, payroll):
    """
    Batches take turns, so ten rows are done while the large batch is still being paid.
    """
    large = await payroll.submit(2_000, reference=f"large-{payroll.name}")
    async with running(stack, clients, store, chunks_in_flight_max=1) as runner:

        async def begun() -> bool:
            return (await now(store, large)).paid_count > 0

        await until(begun, "the first rows")
        small = await payroll.submit(10, reference=f"small-{payroll.name}")
        runner.look()
        await finished(store, small)
        assert (await now(store, large)).state == "processing"
        await finished(store, large)


async def test_the_pace_is_kept(stack, clients, store, payroll):
    """
    A batch of 40 rows at 50 rows a second takes at least the time of all but its last chunk.
    """
    batch = await payroll.submit(40, rows_per_second_max=50)
    async with running(stack, clients, store):
        done = await finished(store, batch)
    assert done.finished_at is not None
    assert (done.finished_at - done.created_at).total_seconds() >= (40 - 5) / 50


async def test_a_closed_destination_fails_its_row(stack, clients, store, payroll):
    """
    The wallet's state at the time of payment decides, not that at submission.
    """
    batch = await payroll.submit(5)
    closed = SetWalletStatus(MERCHANT, payroll.employee(3), WalletStatus.CLOSED)
    await clients.submit(closed, timeout_ms=10_000)
    async with running(stack, clients, store):
        await finished(store, batch)
    items = await store.items(batch.batch_id, after_row=0, limit=10, state="failed")
    assert [(item.row_number, item.code) for item in items] == [(3, "destination_closed")]
    await assert_paid_once(stack, store, batch)
