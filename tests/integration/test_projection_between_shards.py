"""
Goal: what goes between shards is told by the tables exactly as the journals tell it: ends of
      channels, what is on its way, slots, wallets that came and went, outcomes that came along,
      holds, refunds, limits and linked transfers.
Method: shards that did all that they can do with each other, projected in rounds of every
        cut; after each round the tables are compared with a replay of the journal up to there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from configs.settings import WriteBehindSettings
from processor.core.commands import GiveSlot
from processor.core.decisions import (
    DECISION_FORMAT,
    Decision,
    EpochStarted,
    HoldChanged,
    LinkedDone,
    LinkedPosted,
    PrepareSent,
    SlotDelivered,
    SlotsGranted,
    TransferReserved,
    TransferSettled,
    UsageCounted,
    VerdictDelivered,
    VerdictSent,
    VerdictTaken,
    VoteTaken,
    WalletLimitsSet,
    encode_decisions,
)
from processor.core.limits import Counter
from processor.core.record import GENESIS_CHAIN, BrokenChain, Record, seal
from processor.core.slots import SLOT_COUNT, slot_of
from processor.core.state import ShardState
from processor.storage.projection import Projection, Unprojectable
from tests.support.books import Journal, read_balanced_tables
from tests.support.commands import MERCHANT, deposit, open_wallet, transfer
from tests.support.databases import execute, reading
from tests.support.money_net import moneyed_net
from tests.support.sealed_net import SealedNet, eventful_net, names_in

INSERT = """
    INSERT INTO journal (shard_id, sequence, epoch, at_us, count, format, payload, chain)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""


@asynccontextmanager
async def projecting(
    dsn: str, shard_id: int, settings: WriteBehindSettings
) -> AsyncIterator[Projection]:
    projection = Projection(dsn, shard_id, settings)
    await projection.open()
    try:
        yield projection
    finally:
        projection.close()


async def write(dsn: str, records: Sequence[Record]) -> None:
    rows = [[getattr(record, field) for field in record.__struct_fields__] for record in records]
    async with reading(dsn) as connection:
        await connection.executemany(INSERT, rows)


@pytest.mark.parametrize("make_net", [eventful_net, moneyed_net])
@pytest.mark.parametrize("records_a_round", [1, 3, 7, 1_000])
async def test_every_cut_tells_the_same(
    database: str, records_a_round: int, make_net: Callable[[], SealedNet]
):
    """
    Whatever a round holds, the tables are what the journal says up to its end; both shards are in
    one database, where a wallet that moves has a row of each for a moment.
    """
    net = make_net()
    settings = WriteBehindSettings(records_max=records_a_round)
    for shard in reversed(net.shards):
        async with projecting(database, shard.shard_id, settings) as projection:
            for first in range(0, len(shard.records), records_a_round):
                written = shard.records[first : first + records_a_round]
                await write(database, written)
                assert await projection.step() == len(written)
                await read_balanced_tables(database, shard.shard_id)


async def test_a_round_ends_at_its_bound_of_commands(database: str):
    """
    Rounds of one command tell the same as rounds of one record.
    """
    net = eventful_net()
    for shard in net.shards:
        await write(database, shard.records)
        settings = WriteBehindSettings(commands_max=1)
        async with projecting(database, shard.shard_id, settings) as projection:
            rounds = 0
            while await projection.step():
                rounds += 1
        assert rounds == len(shard.records)
        await read_balanced_tables(database, shard.shard_id)


async def test_what_is_settled_in_its_round_never_waits_in_a_table(database: str):
    """
    A transfer that is reserved and settled within a round is written once, as posted.
    """
    net = SealedNet(2)
    here, there = names_in(range(2048), 1) + names_in(range(2048, 4096), 1)
    net.shards[0].ask(open_wallet(here), deposit(here, 100, key="in"))
    net.shards[1].ask(open_wallet(there))
    net.shards[0].ask(transfer(here, there, 10, key="across"))
    net.quiet()
    await write(database, net.shards[0].records)
    await execute(
        database,
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'written to for nothing'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT OR DELETE ON pending_entries
           EXECUTE FUNCTION refuse()
        """,
    )
    async with projecting(database, 0, WriteBehindSettings()) as projection:
        assert await projection.step() == len(net.shards[0].records)
    await read_balanced_tables(database, 0)


async def test_a_wallet_that_was_settled_and_left_in_one_round_is_gone(database: str):
    """
    What was on its way before the round is settled in it, and then its wallet leaves: the entry
    has its row, and the wallet has none.
    """
    net = SealedNet(2)
    here, there = names_in(range(2048), 1) + names_in(range(2048, 4096), 1)
    one, two = net.shards
    one.ask(open_wallet(here), deposit(here, 100, key="in"))
    two.ask(open_wallet(there))
    one.ask(transfer(here, there, 10, key="across"))
    before = len(one.records)
    net.quiet()
    one.ask(GiveSlot(slot_of(here), 1))
    async with projecting(database, 0, WriteBehindSettings()) as projection:
        for written in (one.records[:before], one.records[before:]):
            await write(database, written)
            assert await projection.step() == len(written)
            await read_balanced_tables(database, 0)


async def test_rows_of_a_transfer_between_shards(database: str):
    """
    It has a row at each shard: at its source the other side is what the peer is due, at its
    destination what is due from the peer; each names the wallet at the other shard.
    """
    net = SealedNet(2)
    here, there = names_in(range(2048), 1) + names_in(range(2048, 4096), 1)
    net.shards[0].ask(open_wallet(here), deposit(here, 100, key="in"))
    net.shards[1].ask(open_wallet(there))
    net.shards[0].ask(transfer(here, there, 10, key="across"))
    net.quiet()
    for shard in net.shards:
        await write(database, shard.records)
        async with projecting(database, shard.shard_id, WriteBehindSettings()) as projection:
            await projection.step()
    async with reading(database) as connection:
        rows = await connection.fetch("""
            SELECT shard_id, source, source_version, source_balance, destination,
                   destination_version, destination_balance, counterparty, key IS NULL,
                   merchant_id, type, sequence
              FROM transfers WHERE amount = 10 ORDER BY shard_id
        """)
    assert [tuple(row) for row in rows] == [
        (0, here, 2, 90, "$due:0:1:EUR", 1, 10, there, False, MERCHANT, 1, 4),
        (1, "$due:1:0:EUR", 1, -10, there, 1, 10, here, True, MERCHANT, 1, 3),
    ]


def sealed(decisions: list[Decision], after: Sequence[Record]) -> Record:
    """
    Seal what no ledger would decide behind records that are in order.
    """
    return seal(
        shard_id=0,
        sequence=len(after) + 1,
        epoch=1,
        at_us=1_000_000,
        count=len(decisions),
        decision_format=DECISION_FORMAT,
        payload=encode_decisions(decisions),
        previous_chain=after[-1].chain if after else GENESIS_CHAIN,
    )


async def test_what_is_not_on_its_way_is_not_settled(database: str):
    """
    A settlement that finds nothing, or something else, under its number halts with its whole
    round unwritten.
    """
    net = eventful_net()
    shard = net.shards[0]
    transfers = [
        pending
        for pending in shard.state.channels.to(1).outbox.values()
        if isinstance(pending, TransferReserved)
    ]
    async with projecting(database, 0, WriteBehindSettings()) as projection:
        await write(database, shard.records)
        await projection.step()
        mark = projection.watermark
        (pending,) = transfers
        for wrong in (
            SlotDelivered(1, 1_000),
            SlotDelivered(1, pending.number),
            TransferSettled(1, pending.number, bytes(16), 1, 1, 1, 1),
            TransferSettled(1, pending.number + 1, pending.transfer_id, 1, 1, 1, 1),
        ):
            await write(database, [sealed([wrong], shard.records)])
            with pytest.raises(Unprojectable, match=r"not on their way|is another one"):
                await projection.step()
            await projection.open()
            assert projection.watermark == mark
            await execute(database, f"DELETE FROM journal WHERE sequence > {mark}")
        await read_balanced_tables(database, 0)


def contradictions(state: ShardState) -> list[tuple[Decision, str]]:
    """
    List what cannot be told behind the journal of *state*, with the words of the refusal.
    """
    posted, undecided = (
        next(one.begun for one in state.linked.values() if (one.posted is not None) == is_posted)
        for is_posted in (True, False)
    )
    outboxes = [channel.outbox.values() for channel in state.channels.outgoing.values()]
    sent = [pending for outbox in outboxes for pending in outbox]
    asked = next(one for one in sent if isinstance(one, PrepareSent))
    told = next(one for one in sent if isinstance(one, VerdictSent))
    nobody, chain = bytes(16), bytes(16)
    open_again = LinkedPosted(nobody, nobody, MERCHANT, [], [], is_open=True)
    return [
        (LinkedDone(nobody), "never begun"),
        (LinkedDone(undecided.transfer_id), "never posted"),
        (VerdictTaken(2, 1_000, chain, nobody, True, []), "never prepared"),
        (VoteTaken(asked.peer, asked.number, nobody, 0), "is another one"),
        (VoteTaken(told.peer, told.number, posted.transfer_id, 0), "is another one"),
        (VerdictDelivered(told.peer, told.number, nobody), "is another one"),
        (VerdictDelivered(asked.peer, asked.number, asked.linked_id), "is another one"),
        (open_again, "UPDATE 0 of 1"),
        (HoldChanged(nobody, 0, 0, 3, False, 1), "UPDATE 0 of 1"),
        (UsageCounted("nobody", Counter(), Counter()), "UPDATE 0 of 1"),
        (WalletLimitsSet("nobody", 0), "UPDATE 0 of 1"),
    ]


async def test_what_is_not_there_does_not_change_or_end(database: str):
    """
    A hold, a wallet, a question or a verdict that the tables do not have, or not so, halts with its
    whole round unwritten.
    """
    shard = moneyed_net().zero
    async with projecting(database, 0, WriteBehindSettings()) as projection:
        await write(database, shard.records)
        await projection.step()
        mark = projection.watermark
        for wrong, why in contradictions(shard.state):
            await write(database, [sealed([wrong], shard.records)])
            with pytest.raises((Unprojectable, BrokenChain), match=why):
                await projection.step()
            await projection.open()
            assert projection.watermark == mark
            await execute(database, f"DELETE FROM journal WHERE sequence > {mark}")
        await read_balanced_tables(database, 0)


@pytest.mark.parametrize(
    ("table", "spoil"),
    [
        ("wallets", "DELETE FROM wallets WHERE shard_id = 1 AND wallet_id = $1"),
        ("slots", "DELETE FROM slots WHERE shard_id = 1 AND slot = $1"),
    ],
)
async def test_a_row_that_is_missing_is_not_ignored(database: str, table: str, spoil: str):
    """
    A wallet or a slot that leaves has a row; where it has none, nothing of the round is written.
    """
    net = eventful_net()
    records = net.shards[1].records
    given = next(
        record
        for record in records
        if any(
            type(decision).__name__ == "SlotGiven"
            for decision in Journal(records[: record.sequence], 1).decisions
        )
    )
    before = records[: given.sequence - 1]
    after = Journal(records[: given.sequence], 1)
    decision = after.decisions[-1]
    gone = decision.wallets[0].wallet_id if table == "wallets" else decision.slot
    async with projecting(database, 1, WriteBehindSettings()) as projection:
        await write(database, before)
        await projection.step()
        async with reading(database) as connection:
            await connection.execute(spoil, gone)
        await write(database, [given])
        with pytest.raises(BrokenChain):
            await projection.step()


async def test_a_shard_of_its_own_slots_only(database: str):
    """
    Granted slots are told with their first generation, and a shard without any has none.
    """
    await write(database, [sealed([EpochStarted("test"), SlotsGranted(0, SLOT_COUNT - 1)], [])])
    async with projecting(database, 0, WriteBehindSettings()) as projection:
        await projection.step()
    async with reading(database) as connection:
        rows = await connection.fetch("SELECT * FROM slots ORDER BY slot")
    assert [tuple(row) for row in rows] == [(0, slot, 1, None, None) for slot in range(SLOT_COUNT)]
    assert ShardState(0).slots.slots_of(0) == [row["slot"] for row in rows]
