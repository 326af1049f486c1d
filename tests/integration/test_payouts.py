"""
Goal: a payout batch is stored whole or not at all, its counters add up at every moment, and no
      item is in two batches at once.
Method: real Postgres; what the tables hold is read by other connections and counted anew.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import asyncpg
import pytest
import uuid_utils

from processor.flow.payout_file import CheckedRow, encode_page
from processor.storage.connection import connect
from processor.storage.payouts import (
    BatchLocks,
    Duplicate,
    DuplicatesFound,
    ItemOutcome,
    NewBatch,
    PayoutStore,
    ReferenceTaken,
    Submitted,
)
from tests.support.waiting import until

MERCHANT = "acme"


@pytest.fixture
async def store(database) -> AsyncIterator[PayoutStore]:
    opened = await PayoutStore.open(database, durability="local")
    yield opened
    opened.close()


def row(number: int, reference: str | None = None, **changes) -> CheckedRow:
    defaults = {
        "row_number": number,
        "reference": reference or f"r{number}",
        "destination": f"emp-{number}",
        "amount": 100 * number,
        "note": None,
        "code": None,
    }
    return CheckedRow(**(defaults | changes))


def batch_of(*rows: CheckedRow, **changes) -> NewBatch:
    """
    Make a batch; its hash stands for the rows.
    """
    defaults = {
        "batch_id": uuid_utils.uuid7().bytes,
        "merchant_id": MERCHANT,
        "reference": "may",
        "content_hash": encode_page(list(rows)),
        "source": "payroll",
        "currency": "EUR",
        "on_invalid": "reject_batch",
        "rows_per_second_max": None,
        "pages": [encode_page(list(rows[at : at + 3])) for at in range(0, len(rows), 3)],
    }
    return NewBatch(**(defaults | changes))


async def submitted(store: PayoutStore, *rows: CheckedRow, **changes):
    submission = await store.submit(batch_of(*rows, **changes))
    assert isinstance(submission, Submitted)
    return submission.batch


def paid(number: int) -> ItemOutcome:
    return ItemOutcome(number, "paid", None, uuid_utils.uuid7().bytes, number)


def failed(number: int, code: str = "destination_unknown") -> ItemOutcome:
    return ItemOutcome(number, "failed", code, uuid_utils.uuid7().bytes, number)


def undecided(number: int) -> ItemOutcome:
    return ItemOutcome(number, "pending")


async def broken_counters(dsn: str) -> list[str]:
    """
    Count every batch anew from its items, in one statement, and name what differs.
    """
    conn = await connect(dsn, application_name="tests")
    try:
        rows = await conn.fetch(COUNT_ANEW)
    finally:
        await conn.close()
    return [str(dict(found)) for found in rows]


COUNT_ANEW = """
    WITH anew AS (
        SELECT batch_id, count(*) AS total_count,
               count(*) FILTER (WHERE state = 'pending') AS pending_count,
               count(*) FILTER (WHERE state = 'paid') AS paid_count,
               count(*) FILTER (WHERE state = 'failed') AS failed_count,
               count(*) FILTER (WHERE state = 'failed' AND transfer_id IS NULL) AS invalid_count,
               coalesce(sum(amount) FILTER (WHERE state = 'pending'), 0) AS pending_amount,
               coalesce(sum(amount) FILTER (WHERE state = 'paid'), 0) AS paid_amount,
               coalesce(sum(amount) FILTER (WHERE state = 'failed' AND transfer_id IS NOT NULL),
                        0) AS failed_amount
          FROM payout_items GROUP BY batch_id
    )
    SELECT * FROM payout_batches AS batch FULL JOIN anew USING (batch_id)
     WHERE (batch.total_count, batch.pending_count, batch.paid_count, batch.failed_count,
            batch.invalid_count, batch.pending_amount, batch.paid_amount, batch.failed_amount)
           IS DISTINCT FROM
           (anew.total_count, anew.pending_count, anew.paid_count, anew.failed_count,
            anew.invalid_count, anew.pending_amount, anew.paid_amount, anew.failed_amount)
"""


class TestSubmit:
    async def test_a_batch_is_stored_with_its_rows(self, store, database):
        """
        What is read back is what was submitted, pending, in the order of the rows.
        """
        batch = await submitted(store, row(2, note="May"), row(3), row(5), row(9))
        assert batch.state == "processing"
        assert (batch.total_count, batch.pending_count) == (4, 4)
        assert (batch.total_amount, batch.pending_amount) == (1900, 1900)
        assert batch.finished_at is None

        items = await store.items(batch.batch_id, after_row=0, limit=10)
        assert [(item.row_number, item.item_reference, item.amount) for item in items] == [
            (2, "r2", 200),
            (3, "r3", 300),
            (5, "r5", 500),
            (9, "r9", 900),
        ]
        assert {item.state for item in items} == {"pending"}
        assert items[0].note == "May"
        assert await broken_counters(database) == []

    async def test_the_same_content_is_the_same_batch(self, store):
        """
        A resubmission gives the first batch in its present state and stores nothing.
        """
        first = await submitted(store, row(2), row(3))
        await store.record_results(first.batch_id, [paid(2)])
        again = await store.submit(batch_of(row(2), row(3)))
        assert isinstance(again, Submitted)
        assert again.repeated
        assert again.batch.batch_id == first.batch_id
        assert again.batch.paid_count == 1
        assert len(await store.newest(MERCHANT, before=None, limit=10)) == 1

    async def test_other_content_under_the_reference_is_refused(self, store):
        """
        The answer names the first batch, and nothing is stored.
        """
        first = await submitted(store, row(2))
        other = await store.submit(batch_of(row(2), row(3)))
        assert other == ReferenceTaken(first)
        assert len(await store.newest(MERCHANT, before=None, limit=10)) == 1

    async def test_two_merchants_share_no_references(self, store):
        """
        References of batches and of items are each merchant's own.
        """
        first = await submitted(store, row(2))
        second = await submitted(store, row(2), merchant_id="other")
        assert first.batch_id != second.batch_id
        assert await store.get("other", str(uuid_utils.UUID(bytes=first.batch_id))) is None

    async def test_rows_that_cannot_be_paid_are_stored_as_failed(self, store, database):
        """
        With skip_rows the invalid rows stand in the batch with their code, and count as failed.
        """
        batch = await submitted(
            store,
            row(2),
            row(3, amount=None, code="amount_malformed"),
            CheckedRow(4, None, None, None, None, "row_malformed"),
            row(5, code="reference_repeated"),
            on_invalid="skip_rows",
        )
        assert (batch.state, batch.pending_count, batch.failed_count) == ("processing", 1, 3)
        assert (batch.invalid_count, batch.total_amount) == (3, 200)
        items = await store.items(batch.batch_id, after_row=0, limit=10, state="failed")
        assert [(item.row_number, item.code) for item in items] == [
            (3, "amount_malformed"),
            (4, "row_malformed"),
            (5, "reference_repeated"),
        ]
        assert await broken_counters(database) == []

    async def test_a_batch_without_a_payable_row_has_failed(self, store, database):
        """
        It is finished at once and never called completed.
        """
        batch = await submitted(store, row(2, code="x"), on_invalid="skip_rows")
        assert batch.state == "failed"
        assert batch.finished_at is not None
        assert await store.unfinished() == []
        assert await broken_counters(database) == []

    async def test_every_text_the_check_accepts_is_stored(self, store):
        """
        Text of every plane, line breaks and tabs come back as they were.
        """
        note = "zeile\r\n\t😀 \u2028 \ufeff \U0010fffd"
        batch = await submitted(store, row(2, "ré😀", note=note))
        (item,) = await store.items(batch.batch_id, after_row=0, limit=1)
        assert (item.item_reference, item.note) == ("ré😀", note)

    async def test_two_equal_submissions_at_once_are_one_batch(self, store):
        """
        Of many at the same time one is stored, and all answer with it.
        """
        rows = [row(number) for number in range(2, 50)]
        answers = await asyncio.gather(*(store.submit(batch_of(*rows)) for _ in range(8)))
        assert len({answer.batch.batch_id for answer in answers}) == 1
        assert sorted(answer.repeated for answer in answers) == [False] + [True] * 7


class TestDuplicates:
    async def test_an_item_of_an_earlier_batch_is_refused_by_name(self, store):
        """
        Pending and paid items stand in the way; the error names row and batch.
        """
        first = await submitted(store, row(2, "a"), row(3, "b"), reference="april")
        await store.record_results(first.batch_id, [paid(2)])
        answer = await store.submit(batch_of(row(2, "x"), row(3, "b"), row(4, "a")))
        assert isinstance(answer, DuplicatesFound)
        assert answer.duplicates == [
            Duplicate(3, "b", 300, first.batch_id, "april"),
            Duplicate(4, "a", 400, first.batch_id, "april"),
        ]
        assert len(await store.newest(MERCHANT, before=None, limit=10)) == 1

    async def test_a_failed_item_may_be_sent_again(self, store):
        """
        What failed, by the ledger or by validation, is free for a new batch.
        """
        first = await submitted(
            store,
            row(2, "a"),
            row(3, "b", code="amount_malformed"),
            reference="april",
            on_invalid="skip_rows",
        )
        await store.record_results(first.batch_id, [failed(2)])
        second = await submitted(store, row(2, "a"), row(3, "b"))
        assert second.pending_count == 2

    async def test_duplicates_are_skipped_when_asked_for(self, store, database):
        """
        With skip_rows they are stored as failed, told in the answer, and the others are paid.
        """
        await submitted(store, row(2, "a"), reference="april")
        answer = await store.submit(batch_of(row(2, "a"), row(3, "b"), on_invalid="skip_rows"))
        assert isinstance(answer, Submitted)
        assert [duplicate.row_number for duplicate in answer.duplicates] == [2]
        assert (answer.batch.pending_count, answer.batch.failed_count) == (1, 1)
        assert answer.batch.total_amount == 300
        assert await broken_counters(database) == []

    async def test_overlapping_batches_at_once_never_share_an_item(self, store, database):
        """
        Ten batches that want the same items at the same moment: each item is in one of them.
        """
        answers = await asyncio.gather(
            *(
                store.submit(
                    batch_of(
                        *(row(number, f"shared-{number}") for number in order),
                        reference=f"batch-{index}",
                    )
                )
                for index, order in enumerate([range(2, 60), range(59, 1, -1)] * 5)
            )
        )
        assert [type(answer) for answer in answers].count(Submitted) == 1
        assert [type(answer) for answer in answers].count(DuplicatesFound) == 9
        assert await broken_counters(database) == []

    async def test_the_index_is_the_belt(self, store, database):
        """
        Even around the check, the table takes no item twice while one is pending or paid.
        """
        first = await submitted(store, row(2, "a"))
        conn = await connect(database, application_name="tests")
        copy = (
            "INSERT INTO payout_items SELECT gen_random_uuid(), row_number, merchant_id,"
            " item_reference, destination, amount, note, state FROM payout_items"
        )
        with pytest.raises(asyncpg.UniqueViolationError):
            await conn.execute(copy)
        await store.record_results(first.batch_id, [paid(2)])
        with pytest.raises(asyncpg.UniqueViolationError):
            await conn.execute(copy.replace("state FROM", "'pending' FROM"))
        await conn.close()


class TestResults:
    async def test_a_batch_goes_on_to_its_end(self, store, database):
        """
        States and counters follow the outcomes; the last one finishes the batch.
        """
        batch = await submitted(store, row(2), row(3), row(4))
        batch = await store.record_results(batch.batch_id, [paid(2), undecided(3)])
        assert (batch.state, batch.pending_count, batch.paid_count) == ("processing", 2, 1)
        assert (batch.pending_amount, batch.paid_amount) == (700, 200)
        assert await broken_counters(database) == []
        batch = await store.record_results(batch.batch_id, [failed(3), paid(4)])
        assert batch.state == "completed_with_failures"
        assert (batch.pending_count, batch.paid_count, batch.failed_count) == (0, 2, 1)
        assert (batch.paid_amount, batch.failed_amount) == (600, 300)
        assert batch.finished_at is not None
        assert await broken_counters(database) == []

        items = await store.items(batch.batch_id, after_row=0, limit=10)
        assert [(item.state, item.code, item.attempts) for item in items] == [
            ("paid", None, 1),
            ("failed", "destination_unknown", 2),
            ("paid", None, 1),
        ]

    @pytest.mark.parametrize(
        ("outcomes", "state"),
        [
            ([paid(2), paid(3)], "completed"),
            ([failed(2), failed(3)], "failed"),
            ([paid(2), failed(3)], "completed_with_failures"),
        ],
    )
    async def test_the_state_tells_failures(self, store, outcomes, state):
        """
        Only a batch without failures is completed.
        """
        batch = await submitted(store, row(2), row(3))
        assert (await store.record_results(batch.batch_id, outcomes)).state == state

    async def test_a_skipped_row_is_a_failure_of_the_batch(self, store):
        """
        A batch with rows that were never sent is not completed without failures.
        """
        batch = await submitted(store, row(2), row(3, code="x"), on_invalid="skip_rows")
        batch = await store.record_results(batch.batch_id, [paid(2)])
        assert batch.state == "completed_with_failures"

    async def test_an_outcome_is_recorded_once(self, store, database):
        """
        Recorded again, by another runner or with another word, it changes nothing.
        """
        batch = await submitted(store, row(2), row(3))
        outcome = paid(2)
        first = await store.record_results(batch.batch_id, [outcome])
        assert await store.record_results(batch.batch_id, [outcome]) == first
        assert await store.record_results(batch.batch_id, [failed(2), undecided(2)]) == first
        done = await store.record_results(batch.batch_id, [paid(3)])
        assert await store.record_results(batch.batch_id, [failed(3)]) == done
        items = await store.items(batch.batch_id, after_row=0, limit=10)
        assert items[0].transfer_id == outcome.transfer_id
        assert await broken_counters(database) == []

    async def test_counters_add_up_while_many_record(self, store, database):
        """
        Runners record overlapping chunks at once while a reader counts anew in each snapshot.
        """
        numbers = range(2, 202)
        batch = await submitted(store, *(row(number) for number in numbers))
        chunks = [
            [paid(number) if number % 3 else failed(number) for number in numbers[at : at + 20]]
            for at in range(0, 200, 10)
        ]
        recording = asyncio.gather(
            *(store.record_results(batch.batch_id, chunk) for chunk in chunks + chunks[::-1])
        )
        looks = 0
        while not recording.done():
            assert await broken_counters(database) == []
            looks += 1
        await recording
        assert looks >= 1
        done = await store.get(MERCHANT, "may")
        assert (done.state, done.pending_count) == ("completed_with_failures", 0)
        assert done.failed_count == sum(number % 3 == 0 for number in numbers)
        assert await broken_counters(database) == []


class TestReading:
    async def test_a_batch_is_found_by_id_and_by_reference(self, store):
        """
        The id goes first; what is neither is not found.
        """
        batch = await submitted(store, row(2))
        batch_id = str(uuid_utils.UUID(bytes=batch.batch_id))
        assert await store.get(MERCHANT, batch_id) == batch
        assert await store.get(MERCHANT, "may") == batch
        assert await store.get(MERCHANT, "june") is None
        assert await store.get("other", "may") is None

    async def test_a_reference_may_look_like_an_id(self, store):
        """
        A reference in the form of a UUID is found when no batch has that id.
        """
        name = str(uuid_utils.uuid7())
        batch = await submitted(store, row(2), reference=name)
        assert await store.get(MERCHANT, name) == batch

    async def test_batches_are_listed_newest_first_by_pages(self, store):
        """
        Pages go on below the last id and miss and repeat nothing.
        """
        batches = [
            await submitted(store, row(2, f"r{n}"), reference=f"batch-{n}") for n in range(5)
        ]
        seen, before = [], None
        while page := await store.newest(MERCHANT, before=before, limit=2):
            seen += page
            before = page[-1].batch_id
        assert seen == batches[::-1]

    async def test_items_are_listed_by_state_and_page(self, store):
        """
        A page goes on after a row, within one state when asked for.
        """
        batch = await submitted(store, *(row(number) for number in range(2, 12)))
        await store.record_results(batch.batch_id, [failed(n) for n in (3, 6, 9)])
        page = await store.items(batch.batch_id, after_row=3, limit=2, state="failed")
        assert [item.row_number for item in page] == [6, 9]
        page = await store.items(batch.batch_id, after_row=5, limit=3)
        assert [item.row_number for item in page] == [6, 7, 8]
        pending = await store.pending_items(batch.batch_id, after_row=5, limit=3)
        assert [item.row_number for item in pending] == [7, 8, 10]

    async def test_unfinished_batches_are_listed_oldest_first(self, store):
        """
        A finished batch is not among them.
        """
        batches = [
            await submitted(store, row(2, f"r{n}"), reference=f"batch-{n}") for n in range(3)
        ]
        await store.record_results(batches[1].batch_id, [paid(2)])
        assert await store.unfinished() == [batches[0], batches[2]]


class TestLocks:
    async def test_one_process_has_a_batch(self, database):
        """
        A second one gets it when the first gives it back or loses its connection.
        """
        first, second = BatchLocks(database), BatchLocks(database)
        one, other = os.urandom(16), os.urandom(16)
        assert await first.try_take(one)
        assert not await second.try_take(one)
        assert await second.try_take(other)
        await first.release(one)
        assert await second.try_take(one)
        second.close()
        assert second.lost
        await until(lambda: first.try_take(one), "the lock of a connection that ended")
        assert await first.try_take(other)
        first.close()
