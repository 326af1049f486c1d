"""
Goal: a payout to a wallet at another shard is paid once, however long it is on its way.
Method: the real runner, its store and the gateway's clients, before a shard that follows a
        script.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from configs.settings import GatewaySettings, PayoutSettings
from gateway.payout_runner import PayoutRunner
from gateway.shard_clients import ShardClients
from processor.core.commands import Command, MoveMoney
from processor.core.reject_reason import RejectReason
from processor.core.slots import SlotMap
from processor.flow.frames import Pending, Posted, Rejected, Result
from processor.flow.payout_file import CheckedRow, encode_page
from processor.storage.payouts import BatchLocks, NewBatch, PayoutBatch, PayoutStore, Submitted
from tests.support.commands import identifier
from tests.support.scripted_shard import answering, listening
from tests.support.waiting import until

SECRET = b"sixteen bytes ok"
ASKED_TIMES = 25
REFUSED = "emp-3"

SETTINGS = PayoutSettings(poll_ms=20, retry_ms=1, retry_ms_max=100_000)


class SlowLedger:
    """
    Answers each key as pending until it is asked for the last time.
    """

    def __init__(self) -> None:
        self.asked: Counter[bytes] = Counter()

    def answer(self, command: Command) -> Result:
        assert isinstance(command, MoveMoney)
        self.asked[command.key] += 1
        repeated = self.asked[command.key] > 1
        transfer_id = identifier(command.destination)
        if self.asked[command.key] < ASKED_TIMES:
            return Pending(transfer_id, 5, 1, repeated)
        if command.destination == REFUSED:
            return Rejected(transfer_id, 9, 1, RejectReason.DESTINATION_UNKNOWN, repeated)
        return Posted(transfer_id, 9, 1, 0, 1, repeated)


async def submitted(store: PayoutStore) -> PayoutBatch:
    rows = [
        CheckedRow(number, f"r{number}", f"emp-{number}", 100, None, None) for number in range(1, 8)
    ]
    page = encode_page(rows)
    submission = await store.submit(
        NewBatch(
            batch_id=identifier("batch"),
            merchant_id="acme",
            reference="may",
            content_hash=b"",
            source="payroll",
            currency="EUR",
            on_invalid="reject_batch",
            rows_per_second_max=None,
            pages=[page],
        )
    )
    assert isinstance(submission, Submitted)
    return submission.batch


async def test_a_row_on_its_way_is_asked_for_again_soon(database: str) -> None:
    """
    With its key, until it is paid or refused, and without the growing pauses of errors: with those
    the last question would come after a quarter of an hour.
    """
    ledger = SlowLedger()
    store = await PayoutStore.open(database, durability="local")
    batch = await submitted(store)
    with TemporaryDirectory(prefix="mil-") as folder:
        async with listening(0, Path(folder), SECRET, answering(ledger.answer)) as shard:
            settings = GatewaySettings(settlement_wait_ms=0)
            clients = ShardClients([database], secret=SECRET, settings=settings)
            await clients.start()
            clients.entries_changed([shard.entry])
            clients.slots_changed(SlotMap.undivided(0))
            runner = PayoutRunner(
                store=store,
                locks=BatchLocks(database),
                clients=clients,
                settings=SETTINGS,
                timeout_ms=5_000,
                random=Random(1),
            )
            runner.start()

            async def finished() -> PayoutBatch | None:
                found = await store.get("acme", "may")
                return found if found is not None and found.state != "processing" else None

            done = await until(finished, "the batch")
            statistics = runner.statistics()
            await runner.stop()
            await clients.stop()

    assert (done.state, done.paid_count, done.failed_count) == ("completed_with_failures", 6, 1)
    items = await store.items(batch.batch_id, after_row=0, limit=10)
    store.close()
    assert [item.code for item in items] == [None, None, "destination_unknown", None, *[None] * 3]
    assert {item.attempts for item in items} == {ASKED_TIMES}
    assert set(ledger.asked.values()) == {ASKED_TIMES}
    assert len(ledger.asked) == 7
    assert statistics.under_way_count == 7 * (ASKED_TIMES - 1)
    assert (statistics.undecided_count, statistics.error_count) == (0, 0)
