"""
Goal: an item is the same payment in every attempt and every build, and only the ledger's answer
      moves it on.
Method: the runner's pure parts; keys and commands against known values.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from gateway.payout_runner import Pace, command_of, item_key, outcome_of
from gateway.shard_client import OutcomeUnknown, ShardOverloaded, ShardUnavailable
from processor.core.commands import TransferType
from processor.core.reject_reason import RejectReason
from processor.flow.frames import KeyReused, Pending, Posted, Rejected
from processor.storage.payouts import ItemOutcome, PayoutBatch, PendingItem

BATCH = PayoutBatch(
    batch_id=bytes(range(16)),
    merchant_id="acme",
    reference="may",
    content_hash=b"",
    source="payroll",
    currency="EUR",
    on_invalid="reject_batch",
    rows_per_second_max=None,
    state="processing",
    total_count=1,
    pending_count=1,
    paid_count=0,
    failed_count=0,
    invalid_count=0,
    total_amount=1250,
    pending_amount=1250,
    paid_amount=0,
    failed_amount=0,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    finished_at=None,
)
ITEM = PendingItem(row_number=7, item_reference="r7", destination="emp-7", amount=1250)
TRANSFER_ID = bytes(16)


class TestKey:
    def test_the_key_of_a_known_item(self):
        """
        The key is the same for ever; another one would pay a batch again after an upgrade.
        """
        assert item_key(BATCH, "r7").hex() == "30bd3d4dc033d63315491c61f3984808"

    @pytest.mark.parametrize(
        "change",
        [
            {"merchant_id": "acme2"},
            {"source": "payroll2"},
            {"batch_id": bytes(16)},
            {"merchant_id": "acmepay", "source": "roll"},
        ],
    )
    def test_merchant_source_and_batch_are_in_the_key(self, change):
        """
        Each part counts, and two parts cannot run into each other.
        """
        assert item_key(msgspec.structs.replace(BATCH, **change), "r7") != item_key(BATCH, "r7")

    def test_the_item_is_in_the_key(self):
        """
        Two items of a batch are two payments.
        """
        assert item_key(BATCH, "r7") != item_key(BATCH, "r8")

    def test_what_may_change_is_not_in_the_key(self):
        """
        Counters, pace and state do not touch it.
        """
        later = msgspec.structs.replace(BATCH, paid_count=1, pending_count=0, state="completed")
        assert item_key(later, "r7") == item_key(BATCH, "r7")


class TestCommand:
    def test_the_command_is_a_transfer_that_names_item_and_batch(self):
        """
        The reference is the item's, the metadata canonical JSON with the batch.
        """
        command = command_of(BATCH, ITEM)
        assert command.transfer_type == TransferType.TRANSFER
        assert command.key == item_key(BATCH, "r7")
        assert (command.merchant_id, command.source, command.destination) == (
            "acme",
            "payroll",
            "emp-7",
        )
        assert (command.currency, command.amount, command.reference) == ("EUR", 1250, "r7")
        metadata = {"payout_batch": "00010203-0405-0607-0809-0a0b0c0d0e0f"}
        assert command.metadata == msgspec.json.encode(metadata, order="sorted").decode()

    def test_only_the_id_differs_between_attempts(self):
        """
        A second attempt is the same command with an id of its own.
        """
        first, second = command_of(BATCH, ITEM), command_of(BATCH, ITEM)
        assert first.transfer_id != second.transfer_id
        assert msgspec.structs.replace(second, transfer_id=first.transfer_id) == first


class TestOutcome:
    @pytest.mark.parametrize("repeated", [False, True])
    def test_posted_is_paid(self, repeated):
        """
        A first answer and a repeated one are the same; the id is the ledger's.
        """
        posted = Posted(TRANSFER_ID, 42, 1, 0, 1, repeated)
        assert outcome_of(ITEM, posted) == ItemOutcome(7, "paid", None, TRANSFER_ID, 42)

    def test_rejected_is_failed_with_its_code(self):
        """
        The public name of the reason is the item's code.
        """
        rejected = Rejected(TRANSFER_ID, 42, 1, RejectReason.DESTINATION_CLOSED, False)
        expected = ItemOutcome(7, "failed", "destination_closed", TRANSFER_ID, 42)
        assert outcome_of(ITEM, rejected) == expected

    @pytest.mark.parametrize(
        "result",
        [
            OutcomeUnknown(),
            ShardUnavailable(),
            ShardOverloaded(5),
            KeyReused("amount"),
            Pending(TRANSFER_ID, 42, 1, False),
        ],
    )
    def test_anything_else_leaves_the_item_pending(self, result):
        """
        What is no outcome is never recorded as one.
        """
        assert outcome_of(ITEM, result) == ItemOutcome(7, "pending")


class TestPace:
    def test_without_a_pace_there_is_no_pause(self):
        """
        Full chunks, one after the other.
        """
        pace = Pace(None, 500)
        assert pace.chunk_rows == 500
        assert pace.pause_s(500, begun=1.0, now=1.0) == 0

    @pytest.mark.parametrize(
        ("rate", "rows"), [(1, 1), (9, 1), (10, 1), (100, 10), (4_999, 499), (100_000, 500)]
    )
    def test_a_slow_batch_is_sent_in_small_chunks(self, rate, rows):
        """
        About ten chunks a second, never more than a chunk holds.
        """
        assert Pace(rate, 500).chunk_rows == rows

    def test_rows_never_run_ahead_of_the_pace(self):
        """
        After a second of chunks that take no time, a second has been paused.
        """
        pace, now = Pace(100, 500), 1_000.0
        for _ in range(10):
            now += pace.pause_s(10, begun=now, now=now)
        assert now == pytest.approx(1_001.0)

    def test_time_that_was_lost_is_not_caught_up(self):
        """
        After a long chunk the next ones keep the pace from there on.
        """
        pace = Pace(100, 500)
        assert pace.pause_s(10, begun=0.0, now=50.0) == 0
        assert pace.pause_s(10, begun=50.0, now=50.0) == pytest.approx(0.1)
