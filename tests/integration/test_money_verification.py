"""
Goal: the auditor is content with sound books of holds, refunds, limits and linked transfers, and
      names whatever was altered in their tables.
Method: shards that have done all that money needs, told by the real write-behind, then tampered
        with by plain SQL: several tables at once, since one difference of each is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import zip_longest
from uuid import UUID

import pytest

from configs.settings import WriteBehindSettings
from processor.storage import row_audit, shard_audit
from processor.storage.audit import Audit, AuditedDatabase, Counted
from processor.storage.channel_audit import check_refunded
from processor.storage.key_audit import check_keys
from processor.storage.projection import Projection
from processor.storage.verification import verify
from tests.support.bound_commands import place
from tests.support.commands import identifier
from tests.support.databases import Databases, reading
from tests.support.money_net import ALSO_HERE, HERE, MoneyNet, moneyed_net

INSERT = """
    INSERT INTO journal (shard_id, sequence, epoch, at_us, count, format, payload, chain)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""
USED_AGAIN = "UPDATE transfers SET key = $1 WHERE key = $2"
TABLES = (
    "wallets",
    "transfers",
    "outcomes",
    "holds",
    "refunds",
    "linked_begun",
    "linked_prepared",
    "pending_entries",
)


async def write_journals(dsn: str, net: MoneyNet, *shard_ids: int) -> None:
    async with reading(dsn) as conn:
        for shard_id in shard_ids:
            records = net.shards[shard_id].records
            await conn.execute("INSERT INTO shard (shard_id, epoch) VALUES ($1, 1)", shard_id)
            rows = [[getattr(one, field) for field in one.__struct_fields__] for one in records]
            await conn.executemany(INSERT, rows)


async def project(dsn: str, shard_id: int, *, steps_max: int = 1_000, **bounds: int) -> None:
    projection = Projection(dsn, shard_id, WriteBehindSettings(**bounds))
    await projection.open()
    try:
        for _ in range(steps_max):
            if not await projection.step():
                break
    finally:
        projection.close()


# --- Sound books --------------------------------------------------------------------------


async def test_the_real_write_behind_satisfies_the_auditor(
    database: str, monkeypatch: pytest.MonkeyPatch
):
    """
    What the ledger's own projection writes is what the auditor recomputes, at every watermark, also
    where the rows do not fit one chunk.
    """
    monkeypatch.setattr(shard_audit, "CHUNK_TRANSFERS", 3)
    monkeypatch.setattr(row_audit, "CHUNK_TRANSFERS", 2)
    net = moneyed_net()
    await write_journals(database, net, 0, 1, 2)
    for cut in range(1, 12):
        for shard in net.shards:
            await project(database, shard.shard_id, steps_max=1, records_max=8 - cut % 3)
        verdict = await verify(database)
        assert verdict.differences == [], cut
    assert verdict.counted == Counted(
        holds=11, holds_open=3, refunded=4, limited_wallets=4, linked=5
    )


@pytest.fixture
def two_databases(databases: Databases) -> Iterator[list[str]]:
    with ExitStack() as stack:
        yield [stack.enter_context(databases.migrated()) for _ in range(2)]


async def test_shards_of_two_databases_are_judged_as_one(two_databases: list[str]):
    """
    Outcomes, refunds and linked transfers of a ledger over two databases fit, wherever they are;
    a plain transfer under the key of a hold of the other database is found.
    """
    net = moneyed_net()
    for dsn, shard_ids in zip(two_databases, ((0, 2), (1,)), strict=True):
        async with reading(dsn) as conn:
            await conn.execute("UPDATE cluster SET cluster_id = $1", UUID(int=1).bytes)
        await write_journals(dsn, net, *shard_ids)
        for shard_id in shard_ids:
            await project(dsn, shard_id)
    verdict = await verify(two_databases)
    assert verdict.differences == []
    audits = [AuditedDatabase(number, dsn, None) for number, dsn in enumerate(two_databases)]
    async with reading(two_databases[0]) as one, reading(two_databases[1]) as two:
        audits[0].conn, audits[1].conn = one, two
        async with one.transaction(), two.transaction():
            await two.execute(USED_AGAIN, identifier("hold 1"), identifier("to there"))
            audit = Audit(audits, None)
            await check_keys(audit)
    assert audit.differences["transfers"].key == f"key {UUID(bytes=identifier('hold 1'))}"


# --- Rows altered, lost or added ------------------------------------------------------------


@pytest.fixture(scope="module")
def moneyed(module_database: str) -> str:
    """
    Give a database with all that money needs, and a copy of its tables to start from again.
    """

    async def prepare() -> None:
        net = moneyed_net()
        await write_journals(module_database, net, 0, 1, 2)
        for shard in net.shards:
            await project(module_database, shard.shard_id)
        assert (await verify(module_database)).differences == []
        async with reading(module_database) as conn:
            for table in TABLES:
                await conn.execute(f"CREATE TABLE saved_{table} AS TABLE {table}")

    asyncio.run(prepare())
    return module_database


@pytest.fixture
def untouched(moneyed: str) -> Iterator[str]:
    yield moneyed

    async def restore() -> None:
        async with reading(moneyed) as conn:
            for table in TABLES:
                await conn.execute(f"TRUNCATE {table}")
                await conn.execute(f"INSERT INTO {table} SELECT * FROM saved_{table}")

    asyncio.run(restore())


def changed(table: str, where: str, **columns: str) -> list[tuple[str, str]]:
    """
    List an update of the first row *where*, column by column, and what is named then.
    """
    one = f"ctid = (SELECT ctid FROM {table} WHERE {where} ORDER BY 1 LIMIT 1)"
    return [
        (f"UPDATE {table} SET {column} = {value} WHERE {one}", column)
        for column, value in columns.items()
    ]


def lost(table: str, where: str, field: str = "row") -> tuple[str, str]:
    one = f"ctid = (SELECT ctid FROM {table} WHERE {where} ORDER BY 1 LIMIT 1)"
    return f"DELETE FROM {table} WHERE {one}", field


def added(table: str, columns: dict[str, str], field: str = "row") -> tuple[str, str]:
    changes = ", ".join(f'"{column}": "{value}"' for column, value in columns.items())
    row = f"SELECT jsonb_populate_record({table}, '{{{changes}}}') AS t FROM {table} LIMIT 1"
    return f"INSERT INTO {table} SELECT (t).* FROM ({row}) AS one", field


OTHER = str(UUID(int=5))
FLIPPED = "set_byte({0}, length({0}) - 1, 1 # get_byte({0}, length({0}) - 1))"
VOIDED, OPEN = "status = 3 AND shard_id = 0", "status = 1 AND pending = 0"
BOUND = "linked_to IS NOT NULL AND shard_id = 0"
TAMPERED = {
    "holds": [
        *changed(
            "holds",
            VOIDED,
            merchant_id="'evil'",
            wallet_id="'evil'",
            destination="'evil'",
            currency="'JPY'",
            amount="amount + 1",
            captured="captured + 1",
            pending="pending + 1",
            status="4",
            is_ending="NOT is_ending",
            placed_at_us="placed_at_us + 1",
            expires_at_us="expires_at_us + 1",
            reference="'evil'",
            metadata="'{}'",
            changed_at="changed_at + interval '1 microsecond'",
        ),
        *changed("holds", OPEN, status="2", captured="1", expires_at_us="1", is_ending="true"),
        *changed("holds", "pending > 0", pending="0", status="3"),
        *changed("holds", VOIDED, status="1"),
        *((sql, "row") for sql, _ in changed("holds", OPEN, hold_id=f"'{OTHER}'", shard_id="1")),
        *((sql, "row") for sql, _ in changed("holds", VOIDED, hold_id=f"'{OTHER}'", shard_id="1")),
        lost("holds", OPEN),
        lost("holds", VOIDED),
        added("holds", {"hold_id": OTHER}, "rows"),
        added("holds", {"hold_id": OTHER, "shard_id": "9"}, "rows"),
    ],
    "refunds": [
        *changed(
            "refunds",
            "shard_id = 0",
            wallet_id="'evil'",
            refunded="refunded - 1",
            version="version + 1",
        ),
        *((sql, "row") for sql, _ in changed("refunds", "true", transfer_id=f"'{OTHER}'")),
        *((sql, "row") for sql, _ in changed("refunds", "true", shard_id="2")),
        lost("refunds", "shard_id = 1"),
        added("refunds", {"transfer_id": OTHER}),
    ],
    "linked_begun": [
        *changed(
            "linked_begun",
            "posted IS NOT NULL",
            sequence="sequence + 1",
            at_us="at_us + 1",
            begun=FLIPPED.format("begun"),
            posted=FLIPPED.format("posted"),
        ),
        *changed("linked_begun", "posted IS NOT NULL", posted="NULL"),
        *changed("linked_begun", "posted IS NULL", posted="begun"),
        lost("linked_begun", "true"),
        added("linked_begun", {"linked_id": OTHER}),
    ],
    "linked_prepared": [
        *changed(
            "linked_prepared",
            "true",
            peer="7",
            sequence="sequence + 1",
            at_us="at_us + 1",
            prepared=FLIPPED.format("prepared"),
        ),
        lost("linked_prepared", "true"),
        added("linked_prepared", {"linked_id": OTHER}),
    ],
    "outcomes": [
        *changed(
            "outcomes",
            "shard_id = 0",
            sequence="sequence + 1",
            outcome=FLIPPED.format("outcome"),
            transfer_id="gen_random_uuid()",
        ),
        *changed("outcomes", "shard_id = 0", transfer_id="NULL"),
        *((sql, "row") for sql, _ in changed("outcomes", "true", key=f"'{OTHER}'")),
        *((sql, "row") for sql, _ in changed("outcomes", "shard_id = 0", shard_id="7")),
        lost("outcomes", "shard_id = 1"),
        added("outcomes", {"key": OTHER, "transfer_id": OTHER}, "rows"),
    ],
    "transfers": [
        *changed("transfers", BOUND, key="gen_random_uuid()", linked_to="NULL", short_by="1"),
        *changed("transfers", "type = 5 AND reason IS NULL", linked_to="transfer_id", type="1"),
        *changed("transfers", "type = 8 AND reason IS NULL", linked_to="NULL", type="1"),
        *changed("transfers", "type = 9 AND linked_to IS NULL", linked_to="transfer_id"),
        *changed("transfers", "type = 9", destination="'evil'", source="'evil'"),
        *changed("transfers", "short_by IS NOT NULL", short_by="short_by + 1", reason="10"),
        *changed("transfers", "type = 4", short_by="NULL", amount="amount + 1"),
        *changed("transfers", f"{BOUND} AND counterparty IS NOT NULL", counterparty="NULL"),
        lost("transfers", BOUND),
        lost("transfers", "linked_to IS NOT NULL AND shard_id = 2"),
    ],
    "wallets": [
        *changed(
            "wallets",
            f"wallet_id = '{HERE}'",
            limits="NULL",
            usage="NULL",
        ),
        *(
            (f"UPDATE wallets SET limits[{place}] = 77 WHERE wallet_id = '{HERE}'", "limits")
            for place in range(1, 10)
        ),
        *(
            (f"UPDATE wallets SET usage[{place}] = 77 WHERE wallet_id = '{ALSO_HERE}'", "usage")
            for place in range(1, 14)
        ),
    ],
    "pending_entries": [
        *changed("pending_entries", "transfer_id IS NULL", transfer_id=f"'{OTHER}'"),
        *changed("pending_entries", "true", decision=FLIPPED.format("decision")),
        lost("pending_entries", "transfer_id IS NULL"),
    ],
}
ROUNDS = [
    {table: case for table, case in zip(TAMPERED, cases, strict=True) if case is not None}
    for cases in zip_longest(*TAMPERED.values())
]


@pytest.mark.parametrize("cases", ROUNDS, ids=[f"round {number}" for number in range(len(ROUNDS))])
async def test_a_touched_row_is_named(untouched: str, cases: dict[str, tuple[str, str]]):
    """
    Whatever column of whichever table is altered by hand, and rows that are lost or added, are
    found, and the finding names it.
    """
    async with reading(untouched) as conn:
        for sql, _ in cases.values():
            assert (await conn.execute(sql)).split()[-1] == "1", sql
    found = {each.table: each.field for each in (await verify(untouched)).differences}
    expected = {table: field for table, (_, field) in cases.items()}
    assert {table: found.get(table) for table in expected} == expected, cases


async def test_a_key_of_an_outcome_is_used_once(untouched: str):
    """
    A row of transfers under the key of a hold is found, though neither table has it twice.
    """
    database = AuditedDatabase(0, untouched, None)
    async with reading(untouched) as conn, conn.transaction():
        database.conn = conn
        audit = Audit([database], None)
        await check_keys(audit)
        assert audit.differences == {}
        await conn.execute(USED_AGAIN, identifier("hold 1"), identifier("to there"))
        await check_keys(audit)
    assert audit.differences["transfers"].key == f"key {UUID(bytes=identifier('hold 1'))}"


async def test_two_outcomes_under_a_key_are_found(untouched: str):
    """
    Copies of an outcome that went with a slot are the same wherever they are.
    """
    database = AuditedDatabase(0, untouched, None)
    async with reading(untouched) as conn, conn.transaction():
        database.conn = conn
        await conn.execute(
            "INSERT INTO outcomes SELECT 7, key, sequence, outcome || 'x', transfer_id"
            " FROM outcomes WHERE key = $1",
            identifier("hold 1"),
        )
        audit = Audit([database], None)
        await check_keys(audit)
    assert audit.differences["transfers"].field == "key"


@pytest.mark.parametrize("watermark", [76, 77])
async def test_a_hold_that_is_not_projected_does_not_hide_its_key(database: str, watermark: int):
    """
    A key that a plain transfer has used and a hold uses again is found before the tables have it.
    """
    net = moneyed_net()
    zero = net.zero
    zero.state.keys.forget(identifier("fee"))
    zero.ask(place(HERE, 1, key="fee"))
    await write_journals(database, net, 0, 1, 2)
    for shard in net.shards:
        await project(database, shard.shard_id, steps_max=1, records_max=watermark)
    verdict = await verify(database)
    assert "used once" in {each.journal_says for each in verdict.differences}


async def test_no_more_goes_back_than_was_moved(untouched: str):
    """
    What a refund says of its transfer is compared with the row of that.
    """
    database = AuditedDatabase(0, untouched, None)
    async with reading(untouched) as conn, conn.transaction():
        database.conn = conn
        audit = Audit([database], None)
        await check_refunded(audit)
        assert audit.differences == {}
        await conn.execute(
            "UPDATE transfers SET amount = 3 WHERE transfer_id = $1",
            identifier("transfer of paid"),
        )
        await check_refunded(audit)
    assert audit.differences["refunds"].journal_says == "at most 3"
