"""
Goal: the auditor is content with sound books, and names any row that was altered, lost or added.
Method: books made with the ledger's own decisions, written with plain SQL, then tampered with by
        plain SQL, one thing at a time; and journals that were sealed rightly over wrong decisions.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
from collections.abc import Callable
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.settings import WriteBehindSettings
from processor.core.commands import TransferType
from processor.core.decisions import (
    EpochStarted,
    TransferPosted,
    TransferRejected,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
    encode_decisions,
)
from processor.core.reject_reason import RejectReason
from processor.core.wallet import WalletStatus
from processor.storage import (
    audit,
    channel_audit,
    key_audit,
    payout_audit,
    recomputation,
    recomputed_between,
    recomputed_books,
    recomputed_counts,
    recomputed_ends,
    recomputed_holds,
    recomputed_layouts,
    recomputed_legs,
    recomputed_limits,
    recomputed_linked,
    recomputed_moves,
    recomputed_wallets,
    row_audit,
    shard_audit,
    verification,
)
from processor.storage.audit import CurrencyBooks, Difference, Verdict
from processor.storage.connection import connect
from processor.storage.payout_audit import REASON_CODES
from processor.storage.projection import Projection
from processor.storage.recomputation import ShardBooks, Unsound
from processor.storage.verification import verify
from tests.support.journal_builder import JournalBuilder, project, write_journal

BATCH_ID = UUID(int=7)
ALICE_TO_BOB = str(UUID(int=1 << 120 | 3))  # The third move of `small_books`.
REFUSED = str(UUID(int=1 << 120 | 5))
LAST_MOVE = str(UUID(int=1 << 120 | 9))


def small_books(shard_id: int = 0) -> JournalBuilder:
    """
    Seven records: two epochs, every kind of decision, a payout batch of two.
    """
    names = ("alice", "bob", "carol", "shop", "gone")
    alice, bob, carol, shop, gone = (f"{name}{shard_id or ''}" for name in names)
    books = JournalBuilder(shard_id)
    books.start_epoch()  # 1
    for wallet_id in (alice, bob, shop, gone):
        books.open_wallet(wallet_id)
    books.open_wallet(carol, currency="JPY", minimum=-50)
    books.seal()  # 2
    books.deposit(alice, 1_000, reference="first")
    books.deposit(carol, 70, currency="JPY")
    books.transfer(alice, bob, 300, reference="rent", metadata='{"month":"May"}')
    books.seal()  # 3
    books.set_minimum(alice, 100)
    books.set_status(gone, WalletStatus.CLOSED)
    books.withdraw(bob, 50)
    books.rejected(bob, alice, 999)
    books.seal()  # 4
    books.start_epoch()  # 5
    payout = f'{{"payout_batch":"{BATCH_ID}"}}'
    books.transfer(alice, shop, 20, reference="inv-1", metadata=payout)
    books.rejected(alice, "nobody", 30, reference="inv-2", metadata=payout)
    books.seal()  # 6
    books.set_status(shop, WalletStatus.FROZEN)
    books.transfer(bob, shop, 10)
    books.deposit(bob, 5)
    books.seal()  # 7
    return books


@pytest.fixture
async def conn(database: str):
    conn = await connect(database, application_name="tests")
    yield conn
    await conn.close()


async def audit_of(database: str, conn, *books: JournalBuilder, watermark=None) -> Verdict:
    for each in books:
        await write_journal(conn, each)
        await project(conn, each, watermark=watermark)
    return await verify(database)


def only_difference(verdict: Verdict) -> Difference:
    assert not verdict.balanced
    assert len(verdict.differences) == 1, verdict.differences
    return verdict.differences[0]


# --- Sound books --------------------------------------------------------------------------


async def test_sound_books_are_balanced(database: str, conn):
    """
    Nothing differs, and the verdict counts what the journal holds.
    """
    books = small_books()
    verdict = await audit_of(database, conn, books)
    assert verdict.differences == []
    assert verdict.balanced
    assert (verdict.shards, verdict.records, verdict.wallets) == (1, 7, 7)
    assert (verdict.transfers_posted, verdict.transfers_rejected) == (7, 2)
    assert verdict.currencies == {
        "EUR": CurrencyBooks(customers=955, world=-955),
        "JPY": CurrencyBooks(customers=70, world=-70),
    }
    (head,) = verdict.projected
    assert (head.shard_id, head.head, head.watermark) == (0, 7, 7)
    assert bytes.fromhex(head.chain) == books.records[-1].chain


async def test_an_empty_database_is_balanced(database: str):
    """
    Before the first shard there is nothing to differ.
    """
    assert await verify(database) == Verdict(True, 0, 0, 0, 0, 0, 0, {}, [], [])


@pytest.mark.parametrize("watermark", range(7))
async def test_tables_may_be_behind(database: str, conn, watermark: int):
    """
    Tables that tell an earlier sequence are judged as of that sequence.
    """
    verdict = await audit_of(database, conn, small_books(), watermark=watermark)
    assert verdict.differences == []
    assert verdict.projected[0].watermark == watermark
    assert verdict.transfers_posted == 7


async def test_a_shard_before_its_first_projection_is_balanced(database: str, conn):
    """
    A journal without a watermark and without rows is only young.
    """
    await write_journal(conn, small_books())
    verdict = await verify(database)
    assert verdict.balanced
    assert verdict.projected[0].watermark == 0


async def test_several_shards_add_up(database: str, conn):
    """
    Each shard is judged by its own journal, and the verdict sums over them.
    """
    verdict = await audit_of(database, conn, small_books(0), small_books(3))
    assert verdict.differences == []
    assert verdict.shards == 2
    assert verdict.currencies["EUR"] == CurrencyBooks(customers=2 * 955, world=2 * -955)
    assert [head.shard_id for head in verdict.projected] == [0, 3]


@pytest.mark.parametrize(("name", "bound"), [("PAGE_RECORDS_MAX", 3), ("PAGE_BYTES", 100)])
async def test_many_pages_and_chunks(
    database: str, conn, monkeypatch: pytest.MonkeyPatch, name: str, bound: int
):
    """
    Books that do not fit one page or one chunk are read to the end, and progress is told.
    """
    monkeypatch.setattr(shard_audit, "CHUNK_TRANSFERS", 7)
    monkeypatch.setattr(shard_audit, name, bound)
    books = small_books()
    for number in range(40):
        books.deposit("alice", 1 + number)
        if number % 3 == 0:
            books.seal()
    books.seal()
    await write_journal(conn, books)
    await project(conn, books, watermark=books.sequence - 4)
    seen = []
    verdict = await verify(database, progress=seen.append)
    assert verdict.differences == []
    assert verdict.transfers_posted == 47
    assert [(seen[-1].sequence, seen[-1].head)] == [(books.sequence, books.sequence)]
    assert [step.sequence for step in seen] == sorted({step.sequence for step in seen})
    assert len(seen) >= books.sequence / 3


async def test_the_real_write_behind_satisfies_the_auditor(database: str, conn):
    """
    What the ledger's own projection writes is what the auditor recomputes, at every watermark.
    """
    await write_journal(conn, small_books())
    projection = Projection(database, 0, WriteBehindSettings(records_max=2))
    await projection.open()
    try:
        while await projection.step():
            verdict = await verify(database)
            assert verdict.differences == []
            assert verdict.projected[0].watermark == projection.watermark
    finally:
        projection.close()
    assert projection.watermark == 7


async def test_an_audit_sees_one_moment(database: str, conn):
    """
    While records and rows keep coming, each audit judges one consistent moment.
    """
    books = small_books()
    for number in range(200):
        books.deposit("bob", 1 + number)
        books.seal()
    head = books.sequence
    await write_journal(conn, books)
    projection = Projection(database, 0, WriteBehindSettings(records_max=1))
    await projection.open()

    async def project_all() -> None:
        while await projection.step():
            pass

    writing = asyncio.create_task(project_all())
    watermarks = []
    while not writing.done():
        verdict = await verify(database)
        assert verdict.differences == []
        watermarks.append(verdict.projected[0].watermark)
    await writing
    projection.close()
    assert (await verify(database)).projected[0].watermark == head
    assert len(set(watermarks)) > 1, "no audit ran while the tables moved"


# --- Rows altered, lost or added ------------------------------------------------------------

CHAIN, PAYLOAD = 5, 6  # Places in a row as `ShardBooks.fold` takes it.

TAMPERED = [
    # The journal itself.
    (
        (
            "UPDATE journal SET payload = set_byte(payload, 40, get_byte(payload, 40) # 1)"
            " WHERE sequence = 3"
        ),
        ("journal", "shard 0, sequence 3", "chain"),
    ),
    (
        "UPDATE journal SET chain = set_byte(chain, 0, get_byte(chain, 0) # 1) WHERE sequence = 6",
        ("journal", "shard 0, sequence 6", "chain"),
    ),
    (
        "UPDATE journal SET at_us = at_us - 1 WHERE sequence = 1",
        ("journal", "shard 0, sequence 1", "chain"),
    ),
    (
        "UPDATE journal SET at_us = 1 WHERE sequence = 4",
        ("journal", "shard 0, sequence 4", "at_us"),
    ),
    (
        "UPDATE journal SET epoch = 9 WHERE sequence = 7",
        ("journal", "shard 0, sequence 7", "chain"),
    ),
    (
        "UPDATE journal SET epoch = 1 WHERE sequence = 7",
        ("journal", "shard 0, sequence 7", "epoch"),
    ),
    (
        "UPDATE journal SET count = count + 1 WHERE sequence = 2",
        ("journal", "shard 0, sequence 2", "chain"),
    ),
    (
        "UPDATE journal SET format = 2 WHERE sequence = 2",
        ("journal", "shard 0, sequence 2", "format"),
    ),
    (
        "UPDATE journal SET sequence = 8 WHERE sequence = 7",
        ("journal", "shard 0, sequence 8", "sequence"),
    ),
    ("DELETE FROM journal WHERE sequence = 4", ("journal", "shard 0, sequence 5", "sequence")),
    ("DELETE FROM journal WHERE sequence = 1", ("journal", "shard 0, sequence 2", "sequence")),
    ("DELETE FROM journal WHERE sequence = 7", ("watermark", "shard 0, tables", "sequence")),
    (
        (
            "INSERT INTO journal"
            " SELECT shard_id, 8, epoch, at_us + 1, count, format, chain, payload"
            " FROM journal WHERE sequence = 7"
        ),
        ("journal", "shard 0, sequence 8", "chain"),
    ),
    (
        (
            "INSERT INTO journal SELECT shard_id, 0, epoch, 1, count, format, chain, payload"
            " FROM journal WHERE sequence = 7"
        ),
        ("journal", "shard 0, sequence 0", "sequence"),
    ),
    (
        (
            "INSERT INTO journal SELECT 5, 1, epoch, at_us, count, format, chain, payload"
            " FROM journal WHERE sequence = 1"
        ),
        ("journal", "shard 5, sequence 1", "chain"),
    ),
    # Wallets.
    ("UPDATE wallets SET posted = 631 WHERE wallet_id = 'alice'", ("wallets", "alice", "posted")),
    (
        "UPDATE wallets SET posted = posted + 1 WHERE wallet_id = '$world:0:EUR'",
        ("wallets", "$world:0:EUR", "posted"),
    ),
    (
        "UPDATE wallets SET version = version + 1 WHERE wallet_id = 'bob'",
        ("wallets", "bob", "version"),
    ),
    ("UPDATE wallets SET status = 1 WHERE wallet_id = 'shop'", ("wallets", "shop", "status")),
    ("UPDATE wallets SET minimum = -1 WHERE wallet_id = 'bob'", ("wallets", "bob", "minimum")),
    (
        "UPDATE wallets SET currency = 'USD' WHERE wallet_id = 'bob'",
        ("wallets", "bob", "currency"),
    ),
    (
        "UPDATE wallets SET merchant_id = 'evil' WHERE wallet_id = 'bob'",
        ("wallets", "bob", "merchant_id"),
    ),
    (
        (
            "UPDATE wallets SET opened_at = opened_at + interval '1 microsecond'"
            " WHERE wallet_id = 'gone'"
        ),
        ("wallets", "gone", "opened_at"),
    ),
    ("UPDATE wallets SET slot = 0 WHERE wallet_id = 'bob'", ("wallets", "bob", "slot")),
    ("UPDATE wallets SET limits = '{1}' WHERE wallet_id = 'bob'", ("wallets", "bob", "limits")),
    ("UPDATE wallets SET usage = '{1}' WHERE wallet_id = 'bob'", ("wallets", "bob", "usage")),
    ("UPDATE wallets SET shard_id = 1 WHERE wallet_id = 'bob'", ("wallets", "bob", "row")),
    ("UPDATE wallets SET wallet_id = 'zed' WHERE wallet_id = 'bob'", ("wallets", "zed", "row")),
    ("DELETE FROM wallets WHERE wallet_id = 'carol'", ("wallets", "carol", "row")),
    (
        "INSERT INTO wallets VALUES ('mallory', 0, 'acme', 'EUR', 1, 0, 0, 0, now(), 7)",
        ("wallets", "mallory", "row"),
    ),
    (
        "INSERT INTO wallets VALUES ('mallory', 9, 'acme', 'EUR', 1, 0, 5, 0, now(), 7)",
        ("wallets", "mallory", "row"),
    ),
    # Transfers.
    (
        f"UPDATE transfers SET shard_id = 1 WHERE transfer_id = '{ALICE_TO_BOB}'",
        ("transfers", ALICE_TO_BOB, "row"),
    ),
    *(
        (
            f"UPDATE transfers SET {column} = {value} WHERE transfer_id = '{ALICE_TO_BOB}'",
            ("transfers", ALICE_TO_BOB, column),
        )
        for column, value in {
            "sequence": "sequence + 1",
            "at": "at + interval '1 microsecond'",
            "type": "3",
            "reason": "100",
            "merchant_id": "'evil'",
            "key": "gen_random_uuid()",
            "source": "'carol'",
            "source_version": "NULL",
            "source_balance": "source_balance + 1",
            "destination": "'carol'",
            "destination_version": "destination_version + 1",
            "destination_balance": "0",
            "currency": "'USD'",
            "amount": "amount - 1",
            "reference": "NULL",
            "metadata": """'{"month":"June"}'""",
            "counterparty": "'carol'",
            "linked_to": "gen_random_uuid()",
            "short_by": "1",
        }.items()
    ),
    (
        f"UPDATE transfers SET reason = 110 WHERE transfer_id = '{REFUSED}'",
        ("transfers", REFUSED, "reason"),
    ),
    (
        f"UPDATE transfers SET short_by = short_by + 1 WHERE transfer_id = '{REFUSED}'",
        ("transfers", REFUSED, "short_by"),
    ),
    (f"DELETE FROM transfers WHERE transfer_id = '{LAST_MOVE}'", ("transfers", LAST_MOVE, "row")),
    (
        f"UPDATE transfers SET transfer_id = '{UUID(int=5)}' WHERE transfer_id = '{REFUSED}'",
        ("transfers", REFUSED, "row"),
    ),
    *(
        (
            (
                "INSERT INTO transfers SELECT (t).* FROM (SELECT jsonb_populate_record(transfers,"
                f' \'{{"transfer_id": "{UUID(int=5)}", "key": "{UUID(int=6)}",'
                f' "sequence": {sequence}}}\') AS t FROM transfers'
                f" WHERE transfer_id = '{REFUSED}')"
            ),
            ("transfers", str(UUID(int=5)), "row"),
        )
        for sequence in (-1, 3, 7, 8, 10**12)
    ),
    ("DROP INDEX transfers_by_key", ("transfers", "transfers_by_key", "index")),
    # Watermark.
    (
        "UPDATE watermark SET chain = set_byte(chain, 5, get_byte(chain, 5) # 1)",
        ("watermark", "shard 0, tables", "chain"),
    ),
    ("UPDATE watermark SET sequence = 8", ("watermark", "shard 0, tables", "sequence")),
    ("UPDATE watermark SET sequence = -1", ("watermark", "shard 0, tables", "sequence")),
    ("DELETE FROM watermark", ("watermark", "shard 0, tables", "row")),
    (
        "INSERT INTO watermark SELECT shard_id, 'other', 3, chain FROM watermark",
        ("watermark", "shard 0, other", "chain"),
    ),
    (
        "INSERT INTO watermark SELECT 4, 'other', 1, chain FROM watermark",
        ("watermark", "shard 4, other", "sequence"),
    ),
    # The owner.
    ("UPDATE shard SET epoch = 1", ("shard", "shard 0", "epoch")),
    ("DELETE FROM shard", ("shard", "shard 0", "epoch")),
]


@pytest.mark.parametrize(("sql", "named"), TAMPERED)
async def test_a_touched_row_is_named(database: str, conn, sql: str, named: tuple[str, str, str]):
    """
    One row altered, deleted or added by hand is found, and the finding names it.
    """
    assert (await audit_of(database, conn, small_books())).balanced
    assert (await conn.execute(sql)).split()[-1] in {"1", "INDEX"}
    difference = only_difference(await verify(database))
    assert (difference.table, difference.key, difference.field) == named


async def test_a_watermark_set_back_is_named(database: str, conn):
    """
    An earlier sequence under the same chain is a difference of the watermark, and of the tables.
    """
    await audit_of(database, conn, small_books())
    await conn.execute("UPDATE watermark SET sequence = 4")
    verdict = await verify(database)
    found = {difference.table: difference for difference in verdict.differences}
    assert found["watermark"].field == "chain"
    assert found["watermark"].key == "shard 0, tables"


async def test_a_difference_says_both_sides(database: str, conn):
    """
    What the journal says and what the table says stand side by side.
    """
    await audit_of(database, conn, small_books())
    await conn.execute("UPDATE wallets SET posted = 1000000 WHERE wallet_id = 'alice'")
    assert only_difference(await verify(database)) == Difference(
        table="wallets", key="alice", field="posted", journal_says=680, table_says=1000000
    )


async def test_one_difference_of_each_table_is_told(database: str, conn):
    """
    Several tables altered at once are all named; the first difference of each is enough.
    """
    await audit_of(database, conn, small_books())
    await conn.execute("UPDATE wallets SET posted = posted + 1")
    await conn.execute("UPDATE transfers SET amount = amount + 1")
    await conn.execute("UPDATE watermark SET chain = ''")
    await conn.execute("UPDATE shard SET epoch = 0")
    verdict = await verify(database)
    tables = sorted(difference.table for difference in verdict.differences)
    assert tables == ["shard", "transfers", "wallets", "watermark"]


@pytest.mark.parametrize(
    ("table", "primary_key", "counts"),
    [("wallets", "wallets_pkey", (7, 8)), ("transfers", "transfers_pkey", (9, 10))],
)
async def test_a_row_that_is_there_twice_is_named(
    database: str, conn, table: str, primary_key: str, counts: tuple[int, int]
):
    """
    An exact copy of a row, once its keys were dropped, shows in the count.
    """
    await audit_of(database, conn, small_books())
    await conn.execute(f"ALTER TABLE {table} DROP CONSTRAINT {primary_key}")
    if table == "transfers":
        await conn.execute("DROP INDEX transfers_by_key")
        await conn.execute("CREATE INDEX ON transfers (transfer_id)")
    await conn.execute(f"INSERT INTO {table} SELECT * FROM {table} ORDER BY 1 DESC LIMIT 1")
    difference = only_difference(await verify(database))
    assert difference.table == table
    assert (difference.journal_says, difference.table_says) == counts


async def test_a_row_ahead_of_the_watermark_is_named(database: str, conn):
    """
    A transfer that is journaled but not projected yet has no row; one put there is extra.
    """
    books = small_books()
    await write_journal(conn, books)
    await project(conn, books, watermark=6)
    await conn.execute("UPDATE transfers SET sequence = 7 WHERE transfer_id = $1", uuid_of(7))
    difference = only_difference(await verify(database))
    assert (difference.table, difference.field) == ("transfers", "sequence")


@given(
    record=st.integers(0, 6),
    column=st.sampled_from([CHAIN, PAYLOAD]),
    place=st.integers(0, 10_000),
    bit=st.integers(0, 7),
)
def test_no_bit_of_the_journal_can_change(record: int, column: int, place: int, bit: int):
    """
    Whichever single bit of whichever payload or chain is flipped, the books do not go on.
    """
    rows = [row_of(each) for each in small_books().records]
    changed = bytearray(rows[record][column])
    changed[place % len(changed)] ^= 1 << bit
    rows[record] = (*rows[record][:column], bytes(changed), *rows[record][column + 1 :])
    with pytest.raises(Unsound):
        fold_all(rows)


# --- Journals that are sealed rightly over wrong decisions --------------------------------------


def posted_like(transfer: TransferPosted, **changes) -> TransferPosted:
    return msgspec.structs.replace(transfer, **changes)


def next_posted(books: JournalBuilder, **changes) -> TransferPosted:
    """
    Return what a transfer of 10 from alice to bob would be, with *changes*.
    """
    alice, bob = books.state.wallets["alice"], books.state.wallets["bob"]
    sound = TransferPosted(
        transfer_type=TransferType.TRANSFER,
        transfer_id=bytes(15) + b"a",
        key=bytes(15) + b"k",
        merchant_id="acme",
        source="alice",
        destination="bob",
        currency="EUR",
        amount=10,
        reference=None,
        metadata=None,
        source_version=alice.version + 1,
        source_balance=alice.posted - 10,
        destination_version=bob.version + 1,
        destination_balance=bob.posted + 10,
    )
    return posted_like(sound, **changes)


def refused(**changes) -> TransferRejected:
    sound = TransferRejected(
        transfer_type=TransferType.TRANSFER,
        transfer_id=bytes(15) + b"r",
        key=bytes(15) + b"q",
        merchant_id="acme",
        source="alice",
        destination="bob",
        currency="EUR",
        amount=10,
        reference=None,
        metadata=None,
        reason=RejectReason.INSUFFICIENT_FUNDS,
    )
    return msgspec.structs.replace(sound, **changes)


WRONG_DECISIONS = [
    (lambda books: next_posted(books, source_balance=680), "source_balance"),
    (lambda books: next_posted(books, destination_balance=0), "destination_balance"),
    (lambda books: next_posted(books, source_version=99), "source_version"),
    (lambda books: next_posted(books, destination_version=1), "destination_version"),
    (lambda books: next_posted(books, amount=11), "source_balance"),
    (lambda books: next_posted(books, amount=0), "amount"),
    (lambda books: next_posted(books, amount=-10), "amount"),
    (lambda books: next_posted(books, amount=2**53), "amount"),
    (lambda books: next_posted(books, amount=10.0), "amount"),
    (lambda books: next_posted(books, amount=True), "amount"),
    (lambda books: next_posted(books, amount=600, source_balance=80), "source_balance"),
    (lambda books: next_posted(books, source="nobody"), "source"),
    (lambda books: next_posted(books, destination="nobody"), "destination"),
    (lambda books: next_posted(books, destination="alice"), "destination"),
    (lambda books: next_posted(books, destination="carol"), "currency"),
    (lambda books: next_posted(books, currency="JPY"), "currency"),
    (lambda books: next_posted(books, merchant_id="evil"), "merchant"),
    (lambda books: next_posted(books, transfer_type=10), "type"),
    (lambda books: next_posted(books, transfer_type=TransferType.VOID), "type"),
    (lambda books: next_posted(books, transfer_type=TransferType.CAPTURE), "terms"),
    (lambda books: next_posted(books, transfer_type=TransferType.REFUND), "terms"),
    (lambda books: next_posted(books, transfer_type=TransferType.FEE), "destination of this type"),
    (lambda books: next_posted(books, transfer_type=TransferType.DEPOSIT), "source of this type"),
    (
        lambda books: next_posted(books, transfer_type=TransferType.WITHDRAWAL),
        "destination of this type",
    ),
    (
        lambda books: next_posted(books, source="$world:0:EUR", merchant_id="$system"),
        "source of this type",
    ),
    (lambda books: next_posted(books, destination="$world:0:EUR"), "destination of this type"),
    (lambda books: next_posted(books, transfer_id=b"short"), "transfer_id"),
    (lambda books: next_posted(books, key="sixteen letters!"), "key"),
    (lambda _: refused(amount=0), "amount"),
    (lambda _: refused(key=b""), "key"),
    (lambda _: refused(reason=None), "reason"),
    (lambda _: refused(short_by=-1), "short by"),
    (lambda _: WalletOpened("alice", "acme", "EUR", 0), "wallet opened"),
    (lambda _: WalletStatusSet("nobody", WalletStatus.FROZEN), "wallet"),
    (lambda _: WalletStatusSet("alice", WalletStatus.CLOSED), "balance of a closed wallet"),
    (lambda _: WalletLimitsSet("nobody", 0), "wallet"),
    (lambda _: WalletLimitsSet("alice", 10_000), "minimum"),
    (lambda _: EpochStarted("again"), "epoch"),
    (lambda _: [99, "alice", 1], "tag"),
    (lambda _: [7, "alice", 1], "fields of tag 7"),
    (lambda _: [1, "dave"], "fields of tag 1"),
    (lambda _: [], "payload"),
    (lambda _: 17, "payload"),
    (lambda _: [[4], [4]], "payload"),
]


@pytest.mark.parametrize(("wrong", "field"), WRONG_DECISIONS)
def test_a_wrong_decision_is_named(wrong: Callable, field: str):
    """
    A hash chain over a wrong decision does not make it right.
    """
    books = small_books()
    books.journal(wrong(books))
    books.seal()
    unsound = unsound_of(books)
    assert (unsound.key, unsound.field) == ("shard 0, sequence 8", field)


@pytest.mark.parametrize(
    ("decisions", "field"),
    [
        (
            lambda books: [
                next_posted(
                    books, destination="gone", destination_version=1, destination_balance=10
                )
            ],
            "balance of a closed wallet",
        ),
        (lambda _: [WalletOpened("dave", "acme", "EUR", 5)], "balance"),
    ],
)
def test_books_that_end_wrongly_are_named(decisions: Callable, field: str):
    """
    Money in a closed wallet, or a wallet below its minimum, is found when the books are closed.
    """
    books = small_books()
    for decision in decisions(books):
        books.journal(decision)
    books.seal()
    recomputed = fold_all([row_of(record) for record in books.records])
    with pytest.raises(Unsound) as raised:
        recomputed.check_end()
    assert raised.value.field == field


def test_no_balance_passes_the_largest():
    """
    A balance that no table could hold is not accepted, though all sums are right.
    """
    books = small_books()
    books.open_wallet("dave", minimum=-(2**62))  # An overdraft, so that the world stays in range.
    bob, largest = books.state.wallets["bob"], 2**53 - 1
    while bob.posted + largest <= 2**63 - 1:
        books.deposit("bob", largest)
    more = {"destination_version": bob.version + 1, "destination_balance": bob.posted + largest}
    books.journal(
        next_posted(
            books, source="dave", amount=largest, source_version=1, source_balance=-largest, **more
        )
    )
    books.seal()
    assert unsound_of(books).field == "destination_balance"


def test_a_right_decision_passes():
    """
    The decisions that the wrong ones were made from are accepted.
    """
    books = small_books()
    books.journal(next_posted(books))
    books.journal(refused())
    books.seal()
    recomputed = fold_all([row_of(record) for record in books.records])
    recomputed.check_end()
    assert recomputed.wallets["alice"][recomputation.BALANCE] == 670


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ({"sequence": 9}, "sequence"),
        ({"sequence": 7}, "sequence"),
        ({"epoch": 1}, "epoch"),
        ({"at_us": 1}, "at_us"),
        ({"count": 2}, "count"),
        ({"count": 0}, "count"),
        ({"decision_format": 2}, "format"),
        ({"previous_chain": bytes(32)}, "chain"),
        ({"payload": b""}, "payload"),
        ({"payload": b"\xc1"}, "payload"),
        ({"payload": encode_decisions([])}, "count"),
    ],
)
def test_a_wrong_header_is_named(header: dict, field: str):
    """
    A record that was sealed with a header that does not follow is not accepted.
    """
    books = small_books()
    books.journal(next_posted(books))
    books.seal(**header)
    assert unsound_of(books).field == field


def test_a_journal_starts_with_an_epoch():
    """
    The first decision of a shard is its first owner.
    """
    books = JournalBuilder()
    books.epoch = 1
    books.open_wallet("alice")
    books.seal()
    assert unsound_of(books).field == "first decision"


def test_an_epoch_starts_at_the_front_of_its_record():
    """
    No decision of one owner shares a record with the start of the next.
    """
    books = small_books()
    books.journal(next_posted(books))
    books.journal(EpochStarted("late"))
    books.seal(epoch=3)
    assert unsound_of(books).field == "place of the epoch's start"


@pytest.mark.parametrize("watermark", [7, 8, 9])
@pytest.mark.parametrize("reused", ["key", "transfer_id"])
async def test_a_key_used_twice_is_named(database: str, conn, reused: str, watermark: int):
    """
    Two journaled transfers under one key or id are found wherever the watermark stands.
    """
    books = small_books()
    first = next_posted(books)
    books.decided(first)
    books.seal()
    second = next_posted(books, transfer_id=bytes(15) + b"b", key=bytes(15) + b"l")
    books.decided(posted_like(second, **{reused: getattr(first, reused)}))
    books.seal()
    await write_journal(conn, books)
    if watermark == 9:
        # The tables cannot hold both; whoever forced the second in had to drop the index.
        await conn.execute("DROP INDEX transfers_by_key")
        await conn.execute("ALTER TABLE transfers DROP CONSTRAINT transfers_pkey")
    await project(conn, books, watermark=watermark)
    verdict = await verify(database)
    assert not verdict.balanced
    if watermark < 9:
        difference = only_difference(verdict)
        assert difference.table == "journal"
        assert difference.table_says == getattr(first, reused).hex()


async def test_an_unsound_shard_does_not_hide_another(database: str, conn):
    """
    A shard whose journal is broken is named, and the tables of the others are still compared.
    """
    await audit_of(database, conn, small_books(0), small_books(1))
    await conn.execute("UPDATE journal SET chain = payload WHERE shard_id = 0 AND sequence = 3")
    await conn.execute("UPDATE wallets SET posted = 0 WHERE wallet_id = 'alice1'")
    verdict = await verify(database)
    assert [(found.table, found.key) for found in verdict.differences] == [
        ("journal", "shard 0, sequence 3"),
        ("wallets", "alice1"),
    ]


# --- Payouts ------------------------------------------------------------------------------


async def write_payouts(conn) -> None:
    """
    Write the batch that `small_books` paid: one item paid, one failed, one invalid, one pending.
    """
    await conn.execute(
        "INSERT INTO payout_batches (batch_id, merchant_id, reference, content_hash, source,"
        " currency, on_invalid, state, total_count, pending_count, paid_count, failed_count,"
        " invalid_count, total_amount, pending_amount, paid_amount, failed_amount)"
        " VALUES ($1, 'acme', 'may', '', 'alice', 'EUR', 'skip_rows', 'processing',"
        " 4, 1, 1, 2, 1, 90, 40, 20, 30)",
        BATCH_ID.bytes,
    )
    items = [
        (1, "inv-1", "shop", 20, "paid", None, uuid_of(6), 6),
        (2, "inv-2", "nobody", 30, "failed", "destination_unknown", uuid_of(7), 6),
        (3, "inv-3", None, None, "failed", "amount_invalid", None, None),
        (4, "inv-4", "bob", 40, "pending", None, None, None),
    ]
    await conn.executemany(
        "INSERT INTO payout_items (batch_id, merchant_id, row_number, item_reference, destination,"
        " amount, state, code, transfer_id, sequence)"
        " VALUES ($1, 'acme', $2, $3, $4, $5, $6, $7, $8, $9)",
        [(BATCH_ID.bytes, *item) for item in items],
    )


@pytest.mark.parametrize("watermark", [5, 7])
async def test_sound_payouts_are_balanced(database: str, conn, watermark: int):
    """
    Items that tell what their transfers did are fine, also before the transfers are projected.
    """
    await write_payouts(conn)
    verdict = await audit_of(database, conn, small_books(), watermark=watermark)
    assert verdict.differences == []


PAYOUTS_TAMPERED = [
    ("UPDATE payout_items SET amount = 21 WHERE row_number = 1", "row 1", "amount"),
    ("UPDATE payout_items SET destination = 'bob' WHERE row_number = 1", "row 1", "destination"),
    ("UPDATE payout_items SET item_reference = 'x' WHERE row_number = 1", "row 1", "item_ref"),
    ("UPDATE payout_items SET sequence = 5 WHERE row_number = 1", "row 1", "sequence"),
    ("UPDATE payout_items SET merchant_id = 'x' WHERE row_number = 1", "row 1", "merchant_id"),
    (
        "UPDATE payout_items SET state = 'paid', code = NULL WHERE row_number = 2",
        "row 2",
        "state",
    ),
    ("UPDATE payout_items SET code = 'source_closed' WHERE row_number = 2", "row 2", "code"),
    (
        f"UPDATE payout_items SET transfer_id = '{UUID(int=5)}' WHERE row_number = 1",
        "row 1",
        "transfer_id",
    ),
    (
        f"UPDATE payout_items SET transfer_id = '{LAST_MOVE}' WHERE row_number = 1",
        "row 1",
        "sequence",
    ),
]


@pytest.mark.parametrize(("sql", "key", "field"), PAYOUTS_TAMPERED)
async def test_a_touched_payout_item_is_named(database: str, conn, sql: str, key: str, field: str):
    """
    An item that tells another story than its transfer is named.
    """
    await write_payouts(conn)
    assert (await audit_of(database, conn, small_books())).balanced
    assert await conn.execute(sql) == "UPDATE 1"
    verdict = await verify(database)
    (difference,) = [each for each in verdict.differences if each.table == "payout_items"]
    assert difference.key == f"{BATCH_ID}, {key}"
    assert difference.field.startswith(field)


@pytest.mark.parametrize(
    ("sql", "field"),
    [
        ("DELETE FROM payout_items WHERE row_number = 4", "total_count"),
        ("DELETE FROM payout_items", "total_count"),
        ("DELETE FROM payout_batches", "total_count"),
        ("UPDATE payout_items SET amount = 41 WHERE row_number = 4", "pending_amount"),
        (
            "UPDATE payout_items SET batch_id = gen_random_uuid() WHERE row_number = 4",
            "total_count",
        ),
    ],
)
async def test_wrong_payout_counters_are_named(database: str, conn, sql: str, field: str):
    """
    Counters that are not the sum of the items are named, and so are items without a batch.
    """
    await write_payouts(conn)
    await audit_of(database, conn, small_books())
    await conn.execute(sql)
    verdict = await verify(database)
    (difference,) = [each for each in verdict.differences if each.table == "payout_batches"]
    assert difference.field == field


async def test_databases_without_payouts_can_be_audited(database: str, conn):
    """
    The audit of the ledger does not need the payout tables.
    """
    await conn.execute("DROP TABLE payout_items, payout_batches")
    assert (await audit_of(database, conn, small_books())).balanced


# --- Independence -------------------------------------------------------------------------

AUDITOR = (
    *(verification, audit, shard_audit, row_audit, channel_audit, key_audit, payout_audit),
    *(recomputation, recomputed_between, recomputed_books, recomputed_counts, recomputed_ends),
    *(recomputed_holds, recomputed_layouts, recomputed_legs, recomputed_limits),
    *(recomputed_linked, recomputed_moves, recomputed_wallets),
)


def test_the_auditor_shares_no_code_with_the_ledger():
    """
    Neither the auditor nor what it imports of this project reads `processor.core` or flow.
    """
    for module in AUDITOR:
        names = [
            node.module
            for node in ast.walk(ast.parse(inspect.getsource(module)))
            if isinstance(node, ast.ImportFrom)
        ] + [
            alias.name
            for node in ast.walk(ast.parse(inspect.getsource(module)))
            if isinstance(node, ast.Import)
            for alias in node.names
        ]
        ours = {name for name in names if name.split(".")[0] in {"processor", "configs"}}
        own = {each.__name__ for each in AUDITOR}
        assert ours <= {"processor.storage.connection", *own}


def test_the_auditor_knows_every_refusal():
    """
    The auditor's own list of journaled refusals is complete and has the public names.
    """
    journaled = [reason for reason in RejectReason if reason < RejectReason.WALLET_UNKNOWN]
    assert {int(reason): reason.code for reason in journaled} == REASON_CODES


def fold_all(rows: list[tuple]) -> ShardBooks:
    books = ShardBooks(0)
    for row in rows:
        books.fold(row)
    return books


def row_of(record) -> tuple:
    return (
        record.sequence,
        record.epoch,
        record.at_us,
        record.count,
        record.format,
        record.chain,
        record.payload,
    )


def unsound_of(books: JournalBuilder) -> Unsound:
    recomputed = fold_all([row_of(record) for record in books.records[:-1]])
    with pytest.raises(Unsound) as raised:
        recomputed.fold(row_of(books.records[-1]))
    return raised.value


def uuid_of(move: int) -> bytes:
    return (1 << 120 | move).to_bytes(16)
