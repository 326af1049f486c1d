"""
Goal: the auditor is content with sound books of several shards, and names whatever was altered in
      the tables between them, or does not fit between their journals.
Method: journals made with the ledger's own decisions and carried by hand from shard to shard,
        written with plain SQL, then tampered with, one thing at a time; journals that are sealed
        rightly over decisions that contradict the other end; two databases at two moments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import msgspec
import pytest

from configs.settings import WriteBehindSettings
from processor.core.channel import Entry, SlotEntry, entry_sent, next_link
from processor.core.decisions import (
    AnswersForgotten,
    Decision,
    EntryCredited,
    EntryElsewhere,
    EntryRefused,
    EpochStarted,
    SlotDelivered,
    SlotGiven,
    SlotsGranted,
    SlotTaken,
    TransferRecalled,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
    decode_decisions,
)
from processor.core.reject_reason import RejectReason
from processor.core.slots import SLOT_COUNT, slot_of
from processor.core.wallet import SYSTEM_MERCHANT, WalletStatus
from processor.flow.frames import Pending, SlotLeft
from processor.storage import channel_audit
from processor.storage.audit import (
    Audit,
    AuditedDatabase,
    CurrencyBooks,
    Difference,
    JournalEnd,
    Verdict,
)
from processor.storage.channel_audit import Channel, compare_ends
from processor.storage.projection import Projection
from processor.storage.recomputation import ShardBooks, Unsound
from processor.storage.recomputed_wallets import (
    BALANCE,
    BALANCE_MAX,
    RESERVED,
    Contradiction,
    post,
)
from processor.storage.verification import verify
from tests.support.commands import identifier, open_wallet, transfer
from tests.support.databases import reading
from tests.support.journal_builder import JournalBuilder, write_journal
from tests.support.net_builder import NetBuilder, name_on, write_shard, write_slot_map

ALICE, BOB, ANN = (name_on(0, 3, number) for number in range(3))
CAROL, DAVE, NOBODY = (name_on(1, 3, number) for number in range(3))
ERIN = name_on(2, 3)

NO_DATABASE = AuditedDatabase(0, "", None)
EMPTY = (
    "TRUNCATE shard, journal, watermark, wallets, transfers, slots, channels_out, channels_in,"
    " channel_answers, pending_entries, outcomes, slot_map, placement, database"
)


def busy_net() -> NetBuilder:
    """
    Three shards with something in every state between them; bob's slot went from 0 to 2, and
    ann's is on its way to 1.
    """
    net = NetBuilder(3)
    for shard_id, wallet_id in ((0, ALICE), (0, BOB), (0, ANN), (1, CAROL), (1, DAVE), (2, ERIN)):
        net.open_with(shard_id, wallet_id, 1_000)
    net.pay(0, ALICE, CAROL, 100, "posted")
    net.pay(0, BOB, NOBODY, 10, "rejected")
    net.carry(0, 1)
    net.pay(1, CAROL, BOB, 7, "recalled")
    assert isinstance(net.give(0, slot_of(BOB), 2), SlotLeft)
    net.carry(0, 2)
    net.carry(1, 0)
    assert net.shards[1].state.channels.to(2).head == 1, "sent anew"
    net.carry(1, 2)
    net.pay(2, BOB, ALICE, 60, "back")
    net.carry(2, 0)
    net.pay(0, ALICE, ERIN, 5, "arrived")
    net.send(0, 2)
    net.pay(0, ALICE, CAROL, 20, "credited, not settled")
    net.pay(0, ALICE, NOBODY, 30, "refused, not settled")
    net.send(0, 1)
    assert isinstance(net.pay(0, ALICE, CAROL, 40, "sent"), Pending)
    assert isinstance(net.give(0, slot_of(ANN), 1), SlotLeft)
    return net


@pytest.fixture
def database(module_database: str) -> str:
    """
    Give one database for the whole module; `conn` empties it.
    """
    return module_database


@pytest.fixture
async def conn(database: str):
    async with reading(database) as conn:
        await conn.execute(EMPTY)
        yield conn


@pytest.fixture
def two_databases(databases) -> Iterator[list[str]]:
    with ExitStack() as stack:
        yield [stack.enter_context(databases.migrated()) for _ in range(2)]


async def write_net(conn, net: NetBuilder) -> None:
    for shard in net.shards:
        await write_shard(conn, shard, shard.sequence)
    await write_slot_map(conn, net)


def only_difference(verdict: Verdict) -> Difference:
    assert not verdict.balanced
    assert len(verdict.differences) == 1, verdict.differences
    return verdict.differences[0]


# --- Sound books --------------------------------------------------------------------------


async def test_sound_books_of_several_shards_are_balanced(database: str, conn):
    """
    Nothing differs while money and slots are on their way, and a transfer counts once.
    """
    await write_net(conn, busy_net())
    verdict = await verify(database)
    assert verdict.differences == []
    assert (verdict.transfers_posted, verdict.transfers_rejected) == (9, 1)
    assert verdict.pending == 4
    assert verdict.shards == 3


async def test_what_is_between_shards_is_told(database: str, conn):
    """
    Customers', outside and due money are at zero together; at rest nothing is due.
    """
    net = busy_net()
    await write_net(conn, net)
    books = (await verify(database)).currencies["EUR"]
    assert books.world == -6_000
    assert books.customers + books.world + books.due == 0
    assert books.due != 0


async def test_at_rest_nothing_is_due(database: str, conn):
    """
    When everything has arrived and is settled, what shards are due from each other is zero in sum.
    """
    net = NetBuilder(2)
    alice, carol = name_on(0, 2), name_on(1, 2)
    net.open_with(0, alice, 500)
    net.open_with(1, carol, 500)
    net.pay(0, alice, carol, 200, "there")
    net.carry(0, 1)
    net.pay(1, carol, alice, 50, "back")
    net.carry(1, 0)
    await write_net(conn, net)
    verdict = await verify(database)
    assert verdict.differences == []
    assert verdict.currencies == {"EUR": CurrencyBooks(customers=1_000, world=-1_000)}
    assert (verdict.pending, verdict.transfers_posted) == (0, 4)


async def test_tables_of_every_shard_may_be_behind(database: str, conn):
    """
    Each shard's tables are judged as of their own watermark, whatever was on its way then.
    """
    net = busy_net()
    for cut in range(max(shard.sequence for shard in net.shards)):
        for shard in net.shards:
            await write_shard(conn, shard, min(cut * (shard.shard_id + 1) // 2, shard.sequence))
        assert (await verify(database)).differences == []
        await conn.execute(EMPTY)


async def test_the_real_write_behind_satisfies_the_auditor(database: str, conn):
    """
    What the ledger's own projection writes is what the auditor recomputes, at every watermark.
    """
    net = busy_net()
    projections = []
    for shard in net.shards:
        await write_journal(conn, shard)
        settings = WriteBehindSettings(records_max=1 + shard.shard_id)
        projections.append(Projection(database, shard.shard_id, settings))
        await projections[-1].open()
    try:
        while any([await projection.step() for projection in projections]):
            assert (await verify(database)).differences == []
    finally:
        for projection in projections:
            projection.close()


async def test_an_old_ledger_of_one_shard_gets_its_slots(database: str, conn):
    """
    A journal without slots is sound, and so is one that is granted all of them later.
    """
    books = JournalBuilder()
    books.start_epoch()
    books.open_wallet("alice")
    books.deposit("alice", 5)
    books.seal()
    books.epoch = 2
    books.decided(EpochStarted("test"))
    books.decided(SlotsGranted(0, 4095))
    books.seal()
    await write_shard(conn, books, 2)
    assert (await verify(database)).differences == []


# --- Rows altered, lost or added ------------------------------------------------------------

A_SLOT = slot_of(ALICE)
POSTED, SENT = identifier("transfer of posted").hex(), identifier("transfer of sent").hex()

TAMPERED = [
    ("UPDATE slots SET generation = 3 WHERE generation = 2", ("slots", "generation")),
    ("UPDATE slots SET taken_from = 1 WHERE taken_from = 0", ("slots", "taken_from")),
    ("UPDATE slots SET given_to = 1 WHERE given_to = 2", ("slots", "given_to")),
    (f"UPDATE slots SET given_to = 2 WHERE slot = {A_SLOT}", ("slots", "given_to")),
    (f"DELETE FROM slots WHERE slot = {A_SLOT}", ("slots", "row")),
    ("INSERT INTO slots VALUES (1, 5, 1)", ("slots", "row")),
    ("INSERT INTO slots VALUES (9, 5, 1)", ("slots", "row")),
    *(
        (
            f"UPDATE channels_out SET {column} = {value} WHERE shard_id = 0 AND peer = 1",
            ("channels_out", column),
        )
        for column, value in {
            "head": "head + 1",
            "settled": "settled - 1",
            "chain": "set_byte(chain, 0, 1 # get_byte(chain, 0))",
            "settled_chain": "chain",
        }.items()
    ),
    ("DELETE FROM channels_out WHERE shard_id = 0 AND peer = 2", ("channels_out", "row")),
    (
        "UPDATE channels_in SET cursor = cursor - 1 WHERE shard_id = 1 AND peer = 0",
        ("channels_in", "cursor"),
    ),
    ("UPDATE channels_in SET chain = '' WHERE shard_id = 1 AND peer = 0", ("channels_in", "chain")),
    ("INSERT INTO channels_in VALUES (0, 7, 1, '')", ("channels_in", "row")),
    (
        "UPDATE channel_answers SET answer = 0 WHERE shard_id = 1 AND number = 4",
        ("channel_answers", "answer"),
    ),
    ("DELETE FROM channel_answers WHERE shard_id = 1 AND number = 4", ("channel_answers", "row")),
    ("INSERT INTO channel_answers VALUES (1, 0, 3, 30)", ("channel_answers", "row")),
    (
        "UPDATE pending_entries SET sequence = 1 WHERE transfer_id = '{SENT}'",
        ("pending_entries", "sequence"),
    ),
    (
        "UPDATE pending_entries SET at_us = 1 WHERE transfer_id = '{SENT}'",
        ("pending_entries", "at_us"),
    ),
    (
        "UPDATE pending_entries SET transfer_id = NULL WHERE transfer_id = '{SENT}'",
        ("pending_entries", "transfer_id"),
    ),
    (
        (
            "UPDATE pending_entries SET decision = set_byte(decision, 40, 0)"
            " WHERE transfer_id = '{SENT}'"
        ),
        ("pending_entries", "decision"),
    ),
    ("DELETE FROM pending_entries WHERE transfer_id IS NULL", ("pending_entries", "row")),
    (
        (
            "INSERT INTO pending_entries SELECT shard_id, peer, 99, sequence, at_us, transfer_id,"
            " decision FROM pending_entries WHERE transfer_id = '{SENT}'"
        ),
        ("pending_entries", "row"),
    ),
    (
        f"UPDATE outcomes SET sequence = 1 WHERE key = '{identifier('rejected').hex()}'",
        ("outcomes", "sequence"),
    ),
    (
        f"UPDATE outcomes SET outcome = '' WHERE key = '{identifier('rejected').hex()}'",
        ("outcomes", "outcome"),
    ),
    (
        f"DELETE FROM outcomes WHERE key = '{identifier('rejected').hex()}'",
        ("outcomes", "row"),
    ),
    (
        "INSERT INTO outcomes VALUES (2, gen_random_uuid(), 1, '')",
        ("outcomes", "rows"),
    ),
    (f"UPDATE wallets SET shard_id = 0 WHERE wallet_id = '{BOB}'", ("wallets", "row")),
    (
        (
            "INSERT INTO wallets SELECT wallet_id, 0, merchant_id, currency, status, minimum,"
            f" posted, version, opened_at, slot FROM wallets WHERE wallet_id = '{BOB}'"
        ),
        ("wallets", "row"),
    ),
    *(
        (
            (
                f"UPDATE transfers SET {column} = {value}"
                f" WHERE transfer_id = '{POSTED}' AND shard_id = {shard_id}"
            ),
            ("transfers", column),
        )
        for shard_id, column, value in (
            (0, "counterparty", f"'{DAVE}'"),
            (0, "destination", f"'{CAROL}'"),
            (0, "destination_balance", "0"),
            (1, "counterparty", "NULL"),
            (1, "source", f"'{ALICE}'"),
            (1, "source_version", "9"),
            (1, "key", "gen_random_uuid()"),
            (1, "merchant_id", "'evil'"),
        )
    ),
    (
        f"DELETE FROM transfers WHERE transfer_id = '{POSTED}' AND shard_id = 1",
        ("transfers", "row"),
    ),
    (f"UPDATE slot_map SET generation = 2 WHERE slot = {A_SLOT}", ("slot_map", "owner")),
    (f"UPDATE slot_map SET shard_id = 1 WHERE slot = {A_SLOT}", ("slot_map", "owner")),
]


@pytest.mark.parametrize(("sql", "named"), TAMPERED)
async def test_a_touched_row_is_named(database: str, conn, sql: str, named: tuple[str, str]):
    """
    One row of the tables between shards that is altered, deleted or added by hand is found.
    """
    await write_net(conn, busy_net())
    assert (await conn.execute(sql.replace("{SENT}", SENT))).split()[-1] == "1"
    difference = only_difference(await verify(database))
    assert (difference.table, difference.field) == named


# --- Journals that are sealed rightly over wrong decisions --------------------------------------


def next_of(net: NetBuilder, shard_id: int, step: Callable[[NetBuilder], object]) -> list[Decision]:
    """
    Let *step* happen and take what the shard has decided back out of its journal.
    """
    step(net)
    record = net.shards[shard_id].records.pop()
    return decode_decisions(record.payload, record.format)


def altered(decisions: list[Decision], kind: type, **changes: object) -> list[Decision]:
    return [
        msgspec.structs.replace(each, **changes) if isinstance(each, kind) else each
        for each in decisions
    ]


def reserve(net: NetBuilder) -> None:
    net.pay(0, ALICE, CAROL, 9, "next")


def answer(net: NetBuilder) -> None:
    net.settle(0, 1, [0, 30])


def arrive(net: NetBuilder) -> None:
    net.send(0, 1, 1)


def take(net: NetBuilder) -> None:
    net.send(0, 1, 1)
    net.send(0, 1)


def give(net: NetBuilder) -> None:
    net.give(2, slot_of(BOB), 1)


def call_back(net: NetBuilder) -> None:
    net.settle(0, 1, [0, -3])  # As if it were at shard 2 now.


CHAIN = bytes(16)
WRONG = [
    (0, reserve, TransferReserved, {"number": 6}, "number"),
    (0, reserve, TransferReserved, {"chain": CHAIN}, "chain of the channel"),
    (0, reserve, TransferReserved, {"amount": 10}, "chain of the channel"),
    (0, reserve, TransferReserved, {"amount": 0}, "chain of the channel"),
    (0, reserve, TransferReserved, {"transfer_type": 2}, "chain of the channel"),
    (0, reserve, TransferReserved, {"key": b"short"}, "key"),
    (0, reserve, TransferReserved, {"peer": 0}, "peer"),
    (0, reserve, TransferReserved, {"destination": ERIN, "peer": 9}, "number"),
    (0, reserve, TransferReserved, {"destination": name_on(0, 3, 5)}, "destination"),
    (0, answer, TransferSettled, {"number": 5}, "number"),
    (0, answer, TransferSettled, {"transfer_id": bytes(16)}, "transfer_id"),
    (0, answer, TransferSettled, {"source_balance": 0}, "source_balance"),
    (0, answer, TransferSettled, {"source_version": 0}, "source_version"),
    (0, answer, TransferSettled, {"due_balance": 0}, "due_balance"),
    (0, answer, TransferSettled, {"due_version": 0}, "due_version"),
    (0, answer, TransferReleased, {"number": 3}, "number"),
    (0, answer, TransferReleased, {"reason": 0}, "reason"),
    (0, answer, TransferReleased, {"transfer_id": bytes(16)}, "transfer_id"),
    (0, call_back, TransferReserved, {"transfer_id": bytes(16)}, "chain of the channel"),
    (0, call_back, TransferRecalled, {"transfer_id": bytes(16)}, "transfer_id"),
    (0, call_back, TransferReserved, None, "recalled transfer"),
    (1, arrive, "EntryCredited", {"number": 6}, "number"),
    (1, arrive, "EntryCredited", {"chain": CHAIN}, "chain of the channel"),
    (1, arrive, "EntryCredited", {"amount": 41}, "chain of the channel"),
    (1, arrive, "EntryCredited", {"due_balance": 0}, "due_balance"),
    (1, arrive, "EntryCredited", {"due_version": 0}, "due_version"),
    (1, arrive, "EntryCredited", {"destination_balance": 0}, "destination_balance"),
    (1, arrive, "EntryCredited", {"destination_version": 0}, "destination_version"),
    (1, take, SlotTaken, {"generation": 1}, "generation"),
    (1, take, SlotTaken, {"generation": 3}, "chain of the channel"),
    (1, take, SlotTaken, {"slot": slot_of(CAROL)}, "slot taken"),
    (1, take, SlotTaken, {"wallets": []}, "chain of the channel"),
    (1, take, SlotTaken, {"outcomes": []}, "chain of the channel"),
    (1, take, SlotTaken, {"dues": []}, "dues"),
    (2, give, SlotGiven, {"generation": 4}, "generation"),
    (2, give, SlotGiven, {"slot": slot_of(ALICE)}, "slot given"),
    (2, give, SlotGiven, {"wallets": []}, "chain of the channel"),
    (2, give, SlotGiven, {"dues": []}, "dues"),
]


@pytest.mark.parametrize(("shard_id", "step", "kind", "changes", "field"), WRONG)
def test_an_altered_decision_is_named(shard_id, step, kind, changes, field):
    """
    Whatever field of a decision between shards says something else, a sealed journal over it is
    not accepted; a decision that is left out neither.
    """
    net = busy_net()
    decisions = next_of(net, shard_id, step)
    if isinstance(kind, str):
        kind = next(type(each) for each in decisions if type(each).__name__ == kind)
    assert any(isinstance(each, kind) for each in decisions)
    if changes is None:
        wrong = [each for each in decisions if not isinstance(each, kind)]
    else:
        wrong = altered(decisions, kind, **changes)
    assert unsound_of(net.shards[shard_id], wrong).field == field


@pytest.mark.parametrize(("first", "last"), [(-1, 5), (5, 4), (0, 4096)])
def test_slots_that_there_are_not_cannot_be_granted(first: int, last: int):
    """
    The first slots of a shard are some of those there are.
    """
    books = JournalBuilder()
    books.epoch = 1
    decisions: list[Decision] = [EpochStarted("test"), SlotsGranted(first, last)]
    assert unsound_of(books, decisions).field == "slots granted"


def test_wallets_are_in_the_slots_that_are_granted():
    """
    Slots that are told later must have all wallets that were opened before.
    """
    books = JournalBuilder()
    books.start_epoch()
    books.open_wallet("alice")
    books.seal()
    books.epoch = 2
    slot = slot_of("alice")
    wrong: list[Decision] = [EpochStarted("test"), SlotsGranted(slot + 1, 4095)]
    assert unsound_of(books, wrong).field == "wallet"


def test_slots_are_granted_to_a_new_owner_of_the_shard():
    """
    The first slots are told in the record that starts an epoch, and in no other.
    """
    books = JournalBuilder()
    books.start_epoch()
    assert unsound_of(books, [SlotsGranted(0, 5)]).field == "slots granted"


@pytest.mark.parametrize("step", [reserve, answer, call_back])
def test_the_right_decisions_pass(step):
    """
    The decisions that the wrong ones were made from are accepted.
    """
    net = busy_net()
    step(net)
    fold(net.shards[0]).check_end()


def one_more(books: ShardBooks, wallet_id: str, place: int, amount: int = 1) -> None:
    books.wallets[wallet_id][place] += amount


def renamed(books: ShardBooks) -> None:
    books.wallets["somebody"] = books.wallets.pop(ALICE)
    books.wallets["somebody"][RESERVED] = 0


def misplaced(books: ShardBooks) -> None:
    one_more(books, "$due:0:1:EUR", BALANCE)
    one_more(books, ALICE, BALANCE, -1)


@pytest.mark.parametrize(
    ("alter", "key", "field"),
    [
        (lambda books: one_more(books, ALICE, BALANCE), "shard 0", "sum of EUR"),
        (lambda books: one_more(books, ALICE, RESERVED), ALICE, "reserved"),
        (renamed, ALICE, "wallet with money on its way"),
        (misplaced, "$due:0:1:EUR", "balance"),
    ],
)
def test_books_that_do_not_add_up_are_named(alter, key: str, field: str):
    """
    At the end wallets are compared with the channels once more, whatever led there.
    """
    books = fold(busy_net().shards[0])
    books.check_end()
    alter(books)
    with pytest.raises(Unsound) as raised:
        books.check_end()
    assert (raised.value.key, raised.value.field) == (key, field)


def test_no_due_passes_the_largest_balance():
    """
    What a shard is due stays within what a table can hold, in both directions.
    """
    for sign in (1, -1):
        wallet = ["$system", "EUR", 1, -BALANCE_MAX, sign * BALANCE_MAX, 7, None, 0, 0]
        with pytest.raises(Contradiction) as raised:
            post(wallet, sign, version=8, balance=sign * (BALANCE_MAX + 1), name="due")
        assert raised.value.field == "due_balance"


def carried_wallet(net: NetBuilder, **changes: object) -> list[Decision]:
    (given,) = next_of(net, 2, give)
    assert isinstance(given, SlotGiven)
    wallets = [msgspec.structs.replace(given.wallets[0], **changes)]
    return [rechained(net.shards[2], msgspec.structs.replace(given, wallets=wallets))]


def rechained(builder: JournalBuilder, decision: Any) -> Any:
    """
    Chain what a decision says anew, so that only its own contradictions are left.
    """
    ends = fold(builder).ends
    if isinstance(decision, TransferReserved | SlotGiven):
        chain, entry = ends.to(decision.peer).chain, entry_sent(decision)
    elif isinstance(decision, EntryCredited):
        told = msgspec.structs.astuple(decision)[3:11]
        chain, entry = ends.of(decision.peer).chain, Entry(decision.number, *told)
    else:
        told = msgspec.structs.astuple(decision)[3:7]
        chain, entry = ends.of(decision.peer).chain, SlotEntry(decision.number, *told)
    return msgspec.structs.replace(decision, chain=next_link(chain, entry))


def carried_twice(net: NetBuilder) -> list[Decision]:
    (given,) = next_of(net, 2, give)
    wallets = given.wallets * 2
    return [rechained(net.shards[2], msgspec.structs.replace(given, wallets=wallets))]


def without_wallets(net: NetBuilder) -> list[Decision]:
    (given,) = next_of(net, 2, give)
    assert isinstance(given, SlotGiven)
    return [rechained(net.shards[2], msgspec.structs.replace(given, wallets=[], dues=[]))]


def with_outcome(**changes: object) -> dict[str, object]:
    (given,) = next_of(busy_net(), 2, give)
    return {"outcomes": [msgspec.structs.replace(given.outcomes[-1], **changes)]}


def outcome_of_another_slot() -> dict[str, object]:
    (taken,) = next_of(busy_net(), 1, take)
    decision = msgspec.structs.replace(taken.outcomes[-1].decision, source=ERIN, destination=ERIN)
    return {"outcomes": [msgspec.structs.replace(taken.outcomes[-1], decision=decision)]}


def with_wallet(shard_id: int, step: Callable[[NetBuilder], object], **changes: object) -> dict:
    decision = next_of(busy_net(), shard_id, step)[-1]
    wallet = msgspec.structs.replace(decision.wallets[0], **changes)
    return {"wallets": [wallet], "dues": decision.dues}


# Its slot is not one of shard 0, so that only its name speaks against it.
SYSTEM_ELSEWHERE = next(
    name for number in range(9) if slot_of(name := f"$due:1:{number}:EUR") > SLOT_COUNT // 3
)

RECHAINED = [
    (0, reserve, TransferReserved, {"amount": 0}, "amount"),
    (0, reserve, TransferReserved, {"amount": 10_000}, "available of the source"),
    (0, reserve, TransferReserved, {"transfer_type": 2}, "type"),
    (0, reserve, TransferReserved, {"counted_at_us": 5}, "counted at"),
    (0, reserve, TransferReserved, {"source": NOBODY}, "source"),
    (0, reserve, TransferReserved, {"source": "$world:0:EUR"}, "source"),
    (0, reserve, TransferReserved, {"destination": SYSTEM_ELSEWHERE}, "destination"),
    (0, reserve, TransferReserved, {"currency": "JPY"}, "currency"),
    (0, reserve, TransferReserved, {"merchant_id": "evil"}, "merchant"),
    (0, reserve, TransferReserved, {"transfer_id": b""}, "transfer_id"),
    (0, call_back, TransferReserved, {"reference": "new"}, "recalled transfer"),
    (1, arrive, EntryCredited, {"amount": 0}, "amount"),
    (1, arrive, EntryCredited, {"transfer_id": b""}, "transfer_id"),
    (1, arrive, EntryCredited, {"destination": NOBODY}, "destination"),
    (1, arrive, EntryCredited, {"destination": "$world:1:EUR"}, "destination"),
    (1, arrive, EntryCredited, {"currency": "JPY"}, "currency"),
    (1, take, SlotTaken, {"slot": 4096}, "slot taken"),
    (1, take, SlotTaken, {"wallets": []}, "dues"),
    (1, take, SlotTaken, with_wallet(1, take, wallet_id=CAROL), "carried wallet"),
    (1, take, SlotTaken, with_wallet(1, take, wallet_id=NOBODY), "carried wallet"),
    (1, take, SlotTaken, with_wallet(1, take, minimum=2_000), f"available of the {ANN}"),
    (1, take, SlotTaken, with_outcome(), "carried outcome"),
    (1, take, SlotTaken, with_outcome(decision=WalletLimitsSet(ANN, 1)), "carried outcome"),
    (1, take, SlotTaken, outcome_of_another_slot(), "carried outcome"),
    (2, give, SlotGiven, with_outcome(sequence="1"), "carried outcome"),
    (2, give, SlotGiven, with_wallet(2, give, wallet_id=ERIN), "carried wallet"),
]


@pytest.mark.parametrize(("shard_id", "step", "kind", "changes", "field"), RECHAINED)
def test_a_decision_that_is_chained_rightly_is_named(shard_id, step, kind, changes, field):
    """
    A decision that fits into its channel is judged by what it does at its own shard.
    """
    net = busy_net()
    wrong = altered(next_of(net, shard_id, step), kind, **changes)
    shard = net.shards[shard_id]
    for place, decision in enumerate(wrong):
        if isinstance(decision, kind):
            wrong[place] = rechained(shard, decision)
            break
    assert unsound_of(shard, wrong).field == field


def test_an_outcome_comes_as_it_came_before():
    """
    A slot that comes again may bring an outcome that it brought before, as it was.
    """
    net = busy_net()
    net.carry(0, 1)
    net.give(2, slot_of(BOB), 0)
    net.carry(2, 0)
    net.give(0, slot_of(BOB), 2)
    (taken,) = next_of(net, 2, lambda net: net.send(0, 2))
    assert isinstance(taken, SlotTaken)
    place = [each.decision.key for each in taken.outcomes].index(identifier("rejected"))
    outcomes = list(taken.outcomes)
    outcomes[place] = msgspec.structs.replace(outcomes[place], sequence=1)
    wrong = rechained(net.shards[2], msgspec.structs.replace(taken, outcomes=outcomes))
    assert unsound_of(net.shards[2], [wrong]).field.startswith("outcome under")


def granted_again(net: NetBuilder, first: int, last: int) -> list[Decision]:
    net.shards[0].epoch = 2
    return [EpochStarted("test"), SlotsGranted(first, last)]


OTHERS = [
    (2, lambda net: carried_wallet(net, posted=1), f"facts of {BOB}"),
    (2, lambda net: carried_wallet(net, version=1), f"facts of {BOB}"),
    (2, lambda net: carried_wallet(net, merchant_id="evil"), f"facts of {BOB}"),
    (2, lambda net: carried_wallet(net, wallet_id=ERIN), "carried wallet"),
    (2, carried_twice, "carried wallet"),
    (2, without_wallets, "carried wallet"),
    (0, lambda _: [WalletOpened(CAROL, "acme", "EUR", 0)], "wallet opened"),
    (0, lambda _: [WalletOpened(BOB, "acme", "EUR", 0)], "wallet opened"),
    (0, lambda _: [WalletOpened("$due:0:1:EUR", SYSTEM_MERCHANT, "EUR", 0)], "wallet opened"),
    (0, lambda _: [WalletOpened("$due:1:0:EUR", SYSTEM_MERCHANT, "EUR", 0)], "wallet opened"),
    (0, lambda _: [WalletOpened("$due:0:1:JPY", SYSTEM_MERCHANT, "EUR", 0)], "wallet opened"),
    (0, lambda _: [WalletOpened("$due:0:1:JPY", "acme", "JPY", 0)], "owner and minimum"),
    (0, lambda _: [WalletOpened("$fees", SYSTEM_MERCHANT, "EUR", 0)], "wallet opened"),
    (0, lambda _: [WalletLimitsSet(ALICE, 900)], "minimum"),
    (0, lambda _: [SlotsGranted(0, 5)], "slots granted"),
    (0, lambda net: granted_again(net, 0, 5), "slots granted"),
    (0, lambda _: [SlotDelivered(1, 3)], "tag"),
    (0, lambda _: [SlotDelivered(1, 9)], "number"),
    (0, lambda _: [TransferSettled(7, 1, bytes(16), 1, 1, 1, 1)], "number"),
    (1, lambda _: [EntryRefused(0, 9, CHAIN, RejectReason.SOURCE_CLOSED)], "number"),
    (1, lambda _: [EntryRefused(0, 5, b"", RejectReason.SOURCE_CLOSED)], "chain of the channel"),
    (1, lambda _: [EntryElsewhere(0, 5, CHAIN, -1)], "shard of the slot"),
    (1, lambda _: [AnswersForgotten(0, 5)], "forgotten"),
    (1, lambda _: [AnswersForgotten(1, 0)], "peer"),
]


@pytest.mark.parametrize(("shard_id", "wrong", "field"), OTHERS)
def test_a_wrong_decision_is_named(shard_id, wrong, field):
    """
    A decision that cannot follow is named, though the journal over it is sealed rightly.
    """
    net = busy_net()
    assert unsound_of(net.shards[shard_id], wrong(net)).field == field


def test_what_is_reserved_is_not_available():
    """
    A transfer that takes what is on its way to another shard is not accepted, nor is closing.
    """
    net = NetBuilder(2)
    alice, bob, carol = name_on(0, 2), name_on(0, 2, 1), name_on(1, 2)
    net.open_with(0, alice, 100)
    net.open_with(0, bob, 1)
    net.pay(0, alice, carol, 60, "away")
    net.shards[0].state.wallets[alice].reserved = 0  # A ledger that forgets it.
    twice = next_of(net, 0, lambda net: net.ask(0, transfer(alice, bob, 50, key="twice")))
    assert unsound_of(net.shards[0], twice).field == "source_balance"


def test_a_slot_with_money_on_its_way_does_not_leave():
    """
    A slot is given only when nothing of it is on its way to other shards.
    """
    net = NetBuilder(3)
    net.open_with(0, ALICE, 100)
    net.pay(0, ALICE, CAROL, 60, "away")
    state = net.shards[0].state
    state.wallets[ALICE].reserved = 0  # A ledger that forgets it.
    state.tables_at = 99
    given = next_of(net, 0, lambda net: net.give(0, slot_of(ALICE), 2))
    assert unsound_of(net.shards[0], given).field == f"reserved of {ALICE}"


def test_what_is_due_has_a_wallet():
    """
    Nothing comes from another shard before the wallet of what that is due is open.
    """
    net = NetBuilder(3)
    net.open_with(0, ALICE, 100)
    net.open_with(1, CAROL, 100)
    net.pay(0, ALICE, CAROL, 60, "away")
    opened, credited = next_of(net, 1, lambda net: net.send(0, 1))
    assert isinstance(opened, WalletOpened)
    assert unsound_of(net.shards[1], [credited]).field == "due"


def test_a_wallet_with_money_on_its_way_is_not_closed():
    """
    Closing waits for what is on its way, though the balance may be at zero.
    """
    net = NetBuilder(2)
    alice, carol = name_on(0, 2), name_on(1, 2)
    net.ask(0, open_wallet(alice, minimum=-100))
    net.pay(0, alice, carol, 60, "away")
    closed = [WalletStatusSet(alice, WalletStatus.CLOSED)]
    assert unsound_of(net.shards[0], closed).field == "reserved of a closed wallet"


# --- Ends that do not fit -------------------------------------------------------------------


def without_last(net: NetBuilder, shard_id: int, count: int = 1) -> NetBuilder:
    del net.shards[shard_id].records[-count:]
    return net


def settled_as(net: NetBuilder, answers: list[int]) -> NetBuilder:
    net.settle(0, 1, answers)
    return net


def forgotten(net: NetBuilder, settled: int) -> NetBuilder:
    net.shards[1].journal(AnswersForgotten(0, settled))
    net.shards[1].seal()
    return net


def another_refusal(net: NetBuilder) -> NetBuilder:
    """
    Shard 1 has refused another entry than the one that shard 0 has sent.
    """
    net.shards[1].journal(EntryRefused(0, 5, CHAIN, RejectReason.DESTINATION_CLOSED))
    net.shards[1].seal()
    return net


def test_money_that_went_and_money_that_came_are_compared():
    """
    What the ends say has gone across is compared by currency, beside the entries themselves.
    """
    net = busy_net()
    audit = Audit([], None)
    books = [fold(shard) for shard in net.shards]
    journals = [JournalEnd(NO_DATABASE, each) for each in books]
    channel = Channel(journals[0], journals[1])
    compare_ends(audit, channel)
    assert audit.differences == {}
    channel.into.moved["EUR"] += 1
    compare_ends(audit, channel)
    assert audit.differences["channel"].field == "sum of EUR"


MISFITS = [
    (lambda net: without_last(net, 1), "settled", False),
    (lambda net: without_last(settled_as(net, [0, 30]), 1), "settled", True),
    (lambda net: without_last(net, 0, 3), "answered", True),
    (lambda net: settled_as(net, [0, 0]), "answers up to 4", True),
    (lambda net: settled_as(net, [0, 20]), "answers up to 4", True),
    (lambda net: settled_as(net, [30, 30]), "answers up to 4", True),
    (lambda net: forgotten(net, 4), "forgotten", True),
    (another_refusal, "chain at 5", True),
]


@pytest.mark.parametrize(("broken", "field", "is_found"), MISFITS)
async def test_ends_that_do_not_fit_are_named(database: str, conn, broken, field, is_found):
    """
    Two journals that are sound each, but tell two stories of the channel between them, are named
    with the channel; one that has only not come as far yet is fine.
    """
    net = broken(busy_net())
    for shard in net.shards:
        await write_shard(conn, shard, shard.sequence)
    verdict = await verify(database)
    found = {difference.table: difference for difference in verdict.differences}
    assert ("channel" in found) == is_found, verdict.differences
    if is_found:
        assert (found["channel"].key, found["channel"].field) == ("shard 0 to 1", field)


async def test_a_channel_to_a_shard_that_is_not_here_is_named(database: str, conn):
    """
    A database that was left out cannot pass as a shard that has nothing to say.
    """
    net = busy_net()
    for shard in net.shards[:2]:
        await write_shard(conn, shard, shard.sequence)
    difference = only_difference(await verify(database))
    assert (difference.table, difference.key) == ("channel", "shard 0 to 2")


async def test_a_channel_from_a_shard_that_is_not_here_is_named(database: str, conn):
    """
    Money that came from a shard that nobody knows is named with its channel.
    """
    net = NetBuilder(2)
    alice, carol = name_on(0, 2), name_on(1, 2)
    net.open_with(0, alice, 100)
    net.open_with(1, carol, 100)
    net.pay(0, alice, carol, 60, "away")
    net.send(0, 1)
    await write_shard(conn, net.shards[1], net.shards[1].sequence)
    difference = only_difference(await verify(database))
    assert (difference.table, difference.key) == ("channel", "shard 0 to 1")


async def test_a_slot_of_two_or_of_nobody_is_named(database: str, conn):
    """
    Each slot has one owner, be it on its way or not.
    """
    net = NetBuilder(2)
    await write_shard(conn, net.shards[0], 1)
    difference = only_difference(await verify(database))
    assert (difference.table, difference.key, difference.table_says) == ("slots", "slot 2048", None)
    both = JournalBuilder(1)
    both.epoch = 1
    both.journal(EpochStarted("test"))
    both.journal(SlotsGranted(2_000, 4_095))
    both.seal()
    await write_shard(conn, both, 1)
    difference = only_difference(await verify(database))
    assert (difference.key, difference.table_says) == ("slot 2000", "shard 0, shard 1")


async def test_wallets_without_a_slot_are_named(database: str, conn):
    """
    A new shard has no wallets before it has a slot.
    """
    net = NetBuilder(1)
    await write_shard(conn, net.shards[0], 1)
    fresh = JournalBuilder(1)
    fresh.start_epoch()
    await write_shard(conn, fresh, 1)
    assert (await verify(database)).balanced
    await conn.execute("DELETE FROM journal WHERE shard_id = 1")
    await conn.execute("DELETE FROM watermark WHERE shard_id = 1")
    await conn.execute("DELETE FROM shard WHERE shard_id = 1")
    fresh.open_wallet("alice")
    fresh.seal()
    await write_shard(conn, fresh, 2)
    difference = only_difference(await verify(database))
    assert (difference.table, difference.key) == ("slots", "shard 1")


async def test_slots_of_a_shard_that_has_not_started_are_its_own(database: str, conn):
    """
    What a shard is placed with belongs to it before its first record.
    """
    net = NetBuilder(2)
    await write_shard(conn, net.shards[0], 1)
    await conn.execute("INSERT INTO database SELECT database_id FROM cluster")
    await conn.execute(
        "INSERT INTO placement (shard_id, database_id, first_slot, last_slot)"
        " SELECT 1, database_id, 2048, 4095 FROM cluster"
    )
    assert (await verify(database)).differences == []


@pytest.mark.parametrize("is_projected", [True, False])
async def test_an_outcome_that_was_carried_wrongly_is_named(database: str, conn, is_projected):
    """
    An outcome that leaves with its slot is the one that the giver's own tables have.
    """
    net = busy_net()
    (given,) = next_of(net, 2, give)
    assert isinstance(given, SlotGiven)
    outcomes = list(given.outcomes)
    place = [each.decision.key for each in outcomes].index(identifier("back"))
    wrong = msgspec.structs.replace(outcomes[place].decision, reference="another")
    outcomes[place] = msgspec.structs.replace(outcomes[place], decision=wrong)
    giver = net.shards[2]
    giver.journal(rechained(net.shards[2], msgspec.structs.replace(given, outcomes=outcomes)))
    giver.seal()
    for shard in net.shards:
        await write_shard(conn, shard, shard.sequence - (shard is giver and not is_projected))
    difference = only_difference(await verify(database))
    assert (difference.table, difference.field) == ("journal", "carried")
    assert "shard 2, outcome of" in difference.key


def test_an_outcome_that_goes_on_is_as_it_came():
    """
    An outcome that came with a slot leaves with it as it is.
    """
    net = busy_net()
    (given,) = next_of(net, 2, give)
    assert isinstance(given, SlotGiven)
    outcomes = list(given.outcomes)
    place = [each.decision.key for each in outcomes].index(identifier("rejected"))
    outcomes[place] = msgspec.structs.replace(outcomes[place], sequence=1)
    wrong = rechained(net.shards[2], msgspec.structs.replace(given, outcomes=outcomes))
    assert unsound_of(net.shards[2], [wrong]).field.startswith("outcome under")


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize(
    ("names", "field"),
    [
        ({"key": "sent", "transfer_id": "another"}, "key"),
        ({"key": "another", "transfer_id": "transfer of sent"}, "transfer_id"),
    ],
)
async def test_names_of_what_is_on_its_way_are_not_used_again(
    two_databases: list[str], behind: int, home: int, names: dict, field: str
):
    """
    Another payment under the key or the id of money that is on its way is found, projected or not.
    """
    net = busy_net()
    net.ask(1, transfer(CAROL, DAVE, 1, **names))
    for number, dsn in enumerate(two_databases):
        async with reading(dsn) as conn:
            await conn.execute("UPDATE cluster SET cluster_id = $1", UUID(int=1).bytes)
            for shard in net.shards:
                if (shard.shard_id == 1) * home == number:
                    await write_shard(conn, shard, shard.sequence - behind)
    difference = only_difference(await verify(two_databases))
    assert (difference.table, difference.key) == ("journal", "shard 0, on its way")
    assert difference.field == field


# --- Several databases ----------------------------------------------------------------------


async def write_apart(
    two_databases: list[str], net: NetBuilder, home: dict[int, int], *, behind: int = 0
) -> None:
    """
    Write each shard into its own database of the two, and the map into the first.
    """
    for number, dsn in enumerate(two_databases):
        async with reading(dsn) as conn:
            await conn.execute("UPDATE cluster SET cluster_id = $1", UUID(int=1).bytes)
            for shard in net.shards:
                if home[shard.shard_id] == number:
                    await write_shard(conn, shard, shard.sequence - behind)
            if number == 0:
                await write_slot_map(conn, net)


async def test_shards_of_two_databases_add_up(two_databases: list[str]):
    """
    A ledger over two databases is judged as one, named as a list or as one text.
    """
    await write_apart(two_databases, busy_net(), {0: 0, 1: 1, 2: 0})
    verdict = await verify(two_databases)
    assert verdict.differences == []
    assert (verdict.shards, verdict.pending) == (3, 4)
    assert await verify(" ".join(two_databases)) == verdict
    assert not (await verify(two_databases[:1])).balanced


async def test_a_key_of_two_databases_is_named(
    two_databases: list[str], monkeypatch: pytest.MonkeyPatch
):
    """
    Two payments under one key are found, though each database knows one of them only.
    """
    monkeypatch.setattr("processor.storage.key_audit.CHUNK_TRANSFERS", 2)
    net = NetBuilder(2)
    for shard_id in range(2):
        one, two = name_on(shard_id, 2), name_on(shard_id, 2, 1)
        net.open_with(shard_id, one, 100)
        net.open_with(shard_id, two, 100)
        for number in range(5):
            net.pay(shard_id, one, two, 1, f"{shard_id} {number}")
    await write_apart(two_databases, net, {0: 0, 1: 1})
    assert (await verify(two_databases)).balanced
    for shard_id in range(2):
        net.pay(shard_id, name_on(shard_id, 2), name_on(shard_id, 2, 1), 1, "both")
    for number, dsn in enumerate(two_databases):
        async with reading(dsn) as conn:
            await conn.execute(EMPTY)
            await write_shard(conn, net.shards[number], net.shards[number].sequence)
    difference = only_difference(await verify(two_databases))
    assert (difference.table, difference.journal_says) == ("transfers", "used once")


async def test_a_foreign_database_is_named(two_databases: list[str]):
    """
    A database of another ledger, and a shard that is in both, do not pass.
    """
    net = NetBuilder(1)
    await write_apart(two_databases, net, {0: 0})
    async with reading(two_databases[1]) as conn:
        await conn.execute("UPDATE cluster SET cluster_id = gen_random_uuid()")
        assert only_difference(await verify(two_databases)).table == "cluster"
        await conn.execute("INSERT INTO shard (shard_id, epoch) VALUES (0, 1)")
        found = {each.table: each for each in (await verify(two_databases)).differences}
        assert (found["shard"].key, found["shard"].field) == ("shard 0", "database")


async def write_payouts(dsn: str, items: list[tuple]) -> None:
    """
    Write a batch that carol at shard 1 pays; an item is (transfer, destination, sequence, code).
    """
    async with reading(dsn) as conn:
        failed = sum(code is not None for *_, code in items)
        counts = (len(items), len(items) - failed, failed)
        await conn.execute(
            "INSERT INTO payout_batches (batch_id, merchant_id, reference, content_hash, source,"
            " currency, on_invalid, state, total_count, pending_count, paid_count, failed_count,"
            " invalid_count, total_amount, pending_amount, paid_amount, failed_amount, finished_at)"
            " VALUES ($1, 'acme', 'may', '', $2, 'EUR', 'skip_rows', 'completed_with_failures',"
            " $3, 0, $4, $5, 0, 10 * $3, 0, 10 * $4, 10 * $5, now())",
            *(BATCH_ID.bytes, CAROL, *counts),
        )
        await conn.executemany(
            "INSERT INTO payout_items (batch_id, merchant_id, row_number, item_reference,"
            " destination, amount, state, code, transfer_id, sequence)"
            " VALUES ($1, 'acme', $2, $3, $4, 10, $5, $6, $7, $8)",
            [
                (
                    *(BATCH_ID.bytes, number, f"inv-{number}", destination),
                    *("failed" if code else "paid", code, identifier(transfer_id), sequence),
                )
                for number, (transfer_id, destination, sequence, code) in enumerate(items, 1)
            ],
        )


BATCH_ID = UUID(int=7)


def paid_out(net: NetBuilder) -> list[tuple]:
    """
    Pay four rows: in the own shard, to another, to nobody, and one that has not arrived.
    """
    payees = (DAVE, ALICE, name_on(0, 3, 9), ALICE)
    for number, payee in enumerate(payees, 1):
        metadata = f'{{"payout_batch":"{BATCH_ID}"}}'
        options = {"reference": f"inv-{number}", "metadata": metadata}
        net.ask(1, transfer(CAROL, payee, 10, key=f"item {number}", **options))
        if number == 1:
            local = net.shards[1].sequence
        if number == 3:
            net.carry(1, 0)
            settled = net.shards[1].sequence
    return [
        ("transfer of item 1", payees[0], local, None),
        ("transfer of item 2", payees[1], settled, None),
        ("transfer of item 3", payees[2], settled, "destination_unknown"),
    ]


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("behind", [0, 2])
async def test_payouts_are_compared_wherever_their_transfers_are(
    two_databases: list[str], home: int, behind: int
):
    """
    Items that tell what their transfers did are fine, also of transfers to other shards, in
    another database than the items, and before the transfers are projected.
    """
    net = busy_net()
    await write_payouts(two_databases[0], paid_out(net))
    await write_apart(two_databases, net, {0: 1 - home, 1: home, 2: 0}, behind=behind)
    assert (await verify(two_databases)).differences == []


PAYOUTS_TAMPERED = [
    ("UPDATE payout_items SET amount = 11 WHERE row_number = 2", "row 2", "amount"),
    (f"UPDATE payout_items SET destination = '{BOB}' WHERE row_number = 2", "row 2", "destination"),
    ("UPDATE payout_items SET code = 'source_closed' WHERE row_number = 3", "row 3", "code"),
    (
        (
            f"UPDATE payout_items SET transfer_id = '{identifier('transfer of item 4').hex()}'"
            " WHERE row_number = 2"
        ),
        "row 2",
        "transfer_id",
    ),
]


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize(("sql", "row", "field"), PAYOUTS_TAMPERED)
async def test_a_touched_payout_item_is_named(
    two_databases: list[str], sql: str, row: str, field: str, home: int
):
    """
    An item that tells another story than its transfer is named, and so is one that counts as
    paid while its money is on its way.
    """
    net = busy_net()
    await write_payouts(two_databases[0], paid_out(net))
    await write_apart(two_databases, net, {0: 1 - home, 1: home, 2: 0})
    async with reading(two_databases[0]) as conn:
        await conn.execute(sql)
    found = {each.table: each for each in (await verify(two_databases)).differences}
    difference = found["payout_items"]
    assert (difference.key, difference.field) == (f"{BATCH_ID}, {row}", field)


LATE = [
    # What the database of shard 0 has too little at first: the source's side, the destination's.
    (lambda net: net.send(0, 1), 2),
    (lambda net: (net.pay(1, CAROL, ALICE, 3, "late"), net.carry(1, 0)), 1),
    (lambda net: (net.pay(1, CAROL, ALICE, 3, "late"), net.carry(1, 0)), 4),
    (lambda net: (net.send(0, 1), net.give(1, slot_of(ANN), 2), net.carry(1, 2)), 3),
]


@pytest.mark.parametrize(("later", "missing_count"), LATE)
async def test_databases_at_two_moments_are_brought_to_one(
    two_databases: list[str], later, missing_count: int
):
    """
    A database that was read a moment before the other is read on until the ends fit.
    """
    net = busy_net()
    later(net)
    first, records = net.shards[0], net.shards[0].records
    late = records[-missing_count:]
    del records[-missing_count:]
    await write_apart(two_databases, net, {0: 0, 1: 1, 2: 1})
    records += late
    all_snapshots_taken = asyncio.Event()
    verifying = asyncio.create_task(
        verify(two_databases, progress=lambda _: all_snapshots_taken.set())
    )
    await all_snapshots_taken.wait()
    async with reading(two_databases[0]) as conn:
        await conn.execute("DELETE FROM shard WHERE shard_id = 0")
        await conn.execute("DELETE FROM journal WHERE shard_id = 0")
        await write_journal(conn, first)
    verdict = await verifying
    assert [each for each in verdict.differences if each.table != "slot_map"] == []


async def test_what_comes_late_is_judged_too(two_databases: list[str]):
    """
    A journal that is read on and contradicts itself there is named.
    """
    net = without_last(busy_net(), 0, 3)
    await write_apart(two_databases, net, {0: 0, 1: 1, 2: 0})
    sent = next_of(net, 0, reserve)
    late = net.shards[0]
    for decision in altered(sent, TransferReserved, number=99):
        late.journal(decision)
    wrong = late.seal()
    all_snapshots_taken = asyncio.Event()
    verifying = asyncio.create_task(
        verify(two_databases, progress=lambda _: all_snapshots_taken.set())
    )
    await all_snapshots_taken.wait()
    late.records[:] = [wrong]
    async with reading(two_databases[0]) as conn:
        await conn.execute("DELETE FROM shard WHERE shard_id = 0")
        await write_journal(conn, late)
    found = {each.table: each for each in (await verifying).differences}
    assert (found["journal"].key, found["journal"].field) == (
        f"shard 0, sequence {wrong.sequence}",
        "number",
    )


async def test_a_database_that_was_set_back_is_named(
    two_databases: list[str], monkeypatch: pytest.MonkeyPatch
):
    """
    What never comes in the journal that is behind is a difference in the end.
    """
    monkeypatch.setattr(channel_audit, "CATCH_UP_S_MAX", 0.2)
    net = without_last(busy_net(), 0, 3)
    await write_apart(two_databases, net, {0: 0, 1: 1, 2: 0})
    verdict = await verify(two_databases)
    found = {difference.table: difference for difference in verdict.differences}
    assert (found["channel"].key, found["channel"].field) == ("shard 0 to 1", "answered")


def fold(builder: JournalBuilder) -> ShardBooks:
    books = ShardBooks(builder.shard_id)
    for record in builder.records:
        books.fold(row_of(record))
    return books


def unsound_of(builder: JournalBuilder, decisions: list[Decision]) -> Unsound:
    """
    Journal *decisions* as the last record, and return what the auditor has against them.
    """
    books = fold(builder)
    for decision in decisions:
        builder.journal(decision)
    with pytest.raises(Unsound) as raised:
        books.fold(row_of(builder.seal()))
    return raised.value


def row_of(record) -> tuple:
    return (
        *(record.sequence, record.epoch, record.at_us, record.count, record.format),
        *(record.chain, record.payload),
    )
