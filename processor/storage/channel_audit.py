"""
The audit of what is between shards: the tables of each, and each channel's two ends.

Rule 1: the ends of a channel are compared at one cut through both journals: the source has settled
        at most what the destination has answered, which is at most what the source has sent.
Rule 2: one snapshot of one database is such a cut by itself, or something is wrong. Those of
        several databases are not of one moment: there the journal that is behind is read on,
        decision by decision, up to the nearest cut. What another database has seen of a journal
        was durable before, so it is there to be read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import msgspec

from processor.storage.audit import CHUNK_TRANSFERS, Audit, JournalEnd
from processor.storage.connection import connect
from processor.storage.recomputation import ShardBooks
from processor.storage.recomputed_ends import BETWEEN, InEnd, OutEnd, sum_of_answer
from processor.storage.recomputed_layouts import PREPARE_SENT, filled_up
from processor.storage.recomputed_wallets import SLOT_COUNT, Contradiction

CATCH_UP_S_MAX = 5.0  # How long a journal that is behind is waited for; a standby's may be late.
CATCH_UP_PAUSE_S = 0.05
TAIL_RECORDS_MAX = 1_000

_TAIL = """
    SELECT sequence, at_us, payload FROM journal WHERE shard_id = $1 AND sequence > $2
     ORDER BY sequence LIMIT $3
"""

_MOVED = """
    SELECT transfer_id, max(amount) FROM transfers
     WHERE transfer_id = ANY($1) AND reason IS NULL GROUP BY transfer_id
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

Rows = dict[tuple[Any, ...], tuple[Any, ...]]


# --- The tables of one shard ----------------------------------------------------------------


class ChannelTable(msgspec.Struct, frozen=True):
    """
    A table of a shard's ends: its key and other columns, and the rows that the books mean.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Callable[[ShardBooks], Rows]

    def query(self) -> str:
        columns = ", ".join((*self.key, *self.columns))
        return f"SELECT {columns} FROM {self.name} WHERE shard_id = $1"


def _slots(books: ShardBooks) -> Rows:
    return {(slot,): tuple(facts) for slot, facts in books.ends.slots.items()}


def _channels_out(books: ShardBooks) -> Rows:
    return {
        (peer,): (end.head, end.chain, end.settled, end.settled_chain)
        for peer, end in books.ends.outgoing.items()
        if end.head > 0
    }


def _channels_in(books: ShardBooks) -> Rows:
    ends = books.ends.incoming.items()
    return {(peer,): (end.cursor, end.chain) for peer, end in ends if end.cursor > 0}


def _channel_answers(books: ShardBooks) -> Rows:
    return {
        (peer, number): (answer,)
        for peer, end in books.ends.incoming.items()
        for number, answer in end.refused.items()
    }


def _pending_entries(books: ShardBooks) -> Rows:
    return {
        (peer, number): (sent.sequence, sent.at_us, sent.transfer_id, _encode(sent.decision))
        for peer, end in books.ends.outgoing.items()
        for number, sent in end.outbox.items()
    }


def _refunds(books: ShardBooks) -> Rows:
    return {(transfer_id,): tuple(total) for transfer_id, total in books.refunds.rows.items()}


def _linked_begun(books: ShardBooks) -> Rows:
    return {
        (linked_id,): (
            *(one.sequence, one.at_us, _encode(one.begun)),
            None if one.posted is None else _encode(one.posted),
        )
        for linked_id, one in books.ends.linked.open.items()
    }


def _linked_prepared(books: ShardBooks) -> Rows:
    return {
        (linked_id,): (one.decision[1], one.sequence, one.at_us, _encode(one.decision))
        for linked_id, one in books.ends.linked.prepared.items()
    }


TABLES = (
    ChannelTable("slots", ("slot",), ("generation", "taken_from", "given_to"), _slots),
    ChannelTable(
        "channels_out", ("peer",), ("head", "chain", "settled", "settled_chain"), _channels_out
    ),
    ChannelTable("channels_in", ("peer",), ("cursor", "chain"), _channels_in),
    ChannelTable("channel_answers", ("peer", "number"), ("answer",), _channel_answers),
    ChannelTable(
        "pending_entries",
        ("peer", "number"),
        ("sequence", "at_us", "transfer_id", "decision"),
        _pending_entries,
    ),
    ChannelTable("refunds", ("transfer_id",), ("wallet_id", "refunded", "version"), _refunds),
    ChannelTable(
        "linked_begun", ("linked_id",), ("sequence", "at_us", "begun", "posted"), _linked_begun
    ),
    ChannelTable(
        "linked_prepared",
        ("linked_id",),
        ("peer", "sequence", "at_us", "prepared"),
        _linked_prepared,
    ),
)


async def compare_channel_tables(
    audit: Audit, conn: asyncpg.Connection[asyncpg.Record], books: ShardBooks
) -> None:
    """
    Compare the tables of a shard's ends and slots with its books, as they are at the watermark.
    """
    for table in TABLES:
        expected = table.rows(books)
        cursor = await conn.cursor(table.query(), books.shard_id)
        while rows := await cursor.fetch(CHUNK_TRANSFERS):
            for row in rows:
                key = tuple(row[: len(table.key)])
                where = _where(books.shard_id, table, key)
                facts = expected.pop(key, None)
                if facts is None:
                    audit.differs(table.name, where, "row", None, "present")
                elif facts != row[len(table.key) :] and not _is_older(table, facts, row):
                    audit.name_field(
                        table.name,
                        where,
                        fields=table.columns,
                        journal_says=list(facts),
                        table_says=list(row[len(table.key) :]),
                    )
        for key in sorted(expected)[:1]:
            where = _where(books.shard_id, table, key)
            audit.differs(table.name, where, "row", "present", None)


def _is_older(table: ChannelTable, facts: tuple[Any, ...], row: asyncpg.Record) -> bool:
    """
    Say whether a row says the same in fewer fields, as an older build wrote it.
    """
    *expected, told = facts
    *found, there = row[len(table.key) :]
    if table.name != "pending_entries" or expected != found:
        return False
    try:
        return filled_up(_decode(told)) == filled_up(_decode(there))
    except (Contradiction, msgspec.DecodeError, ValueError, LookupError, TypeError):
        return False


def _where(shard_id: int, table: ChannelTable, key: tuple[Any, ...]) -> str:
    named = [f"shard {shard_id}"]
    for column, value in zip(table.key, key, strict=True):
        named.append(f"{column} {value.hex() if isinstance(value, bytes) else value}")
    return ", ".join(named)


# --- Two ends of one channel ----------------------------------------------------------------


class Channel:
    """
    A channel between two shards that were audited.
    """

    def __init__(self, source: JournalEnd, destination: JournalEnd) -> None:
        self.source = source
        self.destination = destination
        self.name = f"shard {source.ends.shard_id} to {destination.ends.shard_id}"

    @property
    def out(self) -> OutEnd:
        return self.source.ends.to(self.destination.ends.shard_id)

    @property
    def into(self) -> InEnd:
        return self.destination.ends.of(self.source.ends.shard_id)

    @property
    def source_is_behind(self) -> bool:
        return self.into.cursor > self.out.head or self.into.forgotten > self.out.settled

    @property
    def destination_is_behind(self) -> bool:
        return self.out.settled > self.into.cursor

    @property
    def is_of_one_moment(self) -> bool:
        return self.source.database is self.destination.database

    def in_flight_slots(self) -> Iterator[int]:
        """
        List the slots that have left and have not arrived.
        """
        for number, sent in self.out.outbox.items():
            if sent.is_slot and number > self.into.cursor:
                yield sent.decision[4]


class JournalTail:
    """
    What came to a shard's journal after the snapshot, decision by decision.
    """

    def __init__(self, journal: JournalEnd) -> None:
        self.journal = journal
        self._decisions: deque[tuple[list[Any], int, int]] = deque()
        self._conn: asyncpg.Connection[asyncpg.Record] | None = None

    async def step(self) -> bool:
        """
        Take in the next decision between shards, if one comes in time; raises Contradiction.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CATCH_UP_S_MAX
        while not self._decisions:
            if not await self._read_on():
                if loop.time() > deadline:
                    return False
                await asyncio.sleep(CATCH_UP_PAUSE_S)
        self.journal.ends.fold(*self._decisions.popleft())
        return True

    async def close(self) -> None:
        if self._conn is not None:
            await self._conn.close()

    async def _read_on(self) -> bool:
        journal = self.journal
        if self._conn is None:
            self._conn = await connect(journal.database.dsn, application_name="miliano/verify")
        rows = await self._conn.fetch(
            _TAIL, journal.ends.shard_id, journal.sequence, TAIL_RECORDS_MAX
        )
        for sequence, at_us, payload in rows:
            for decision in _decode(payload):
                if decision[0] in BETWEEN:
                    self._decisions.append((decision, sequence, at_us))
            journal.sequence, journal.was_read_on = sequence, True
        return bool(rows)


async def check_channels(audit: Audit) -> None:
    """
    Compare the two ends of each channel, and where the slots are, at one cut through all journals.
    """
    channels = [channel for channel in channels_of(audit) if _fits_in_snapshot(audit, channel)]
    await _find_cut(audit, channels)
    for channel in channels:
        if _behind(channel) is None:
            compare_ends(audit, channel)
        else:
            source = f"sent {channel.out.head}, settled {channel.out.settled}"
            audit.differs("channel", channel.name, "answered", source, channel.into.cursor)


def channels_of(audit: Audit) -> Iterator[Channel]:
    """
    List the channels between shards that are sound; those to shards that are not here differ.
    """
    journals = audit.journals
    judged = {shard.shard_id for shard in audit.projected}
    for shard_id, journal in sorted(journals.items()):
        for peer, end in sorted(journal.ends.outgoing.items()):
            if peer not in judged and end.head > 0:
                audit.differs("channel", f"shard {shard_id} to {peer}", "shard", "present", None)
        for peer, arrived in sorted(journal.ends.incoming.items()):
            if peer not in judged and arrived.cursor > 0:
                audit.differs("channel", f"shard {peer} to {shard_id}", "shard", None, "present")
    for source in sorted(journals):
        for destination in sorted(journals):
            has_sent = destination in journals[source].ends.outgoing
            if has_sent or source in journals[destination].ends.incoming:
                yield Channel(journals[source], journals[destination])


def _fits_in_snapshot(audit: Audit, channel: Channel) -> bool:
    """
    Say whether two ends of one snapshot may be compared; those of several are brought to fit.
    """
    if not channel.is_of_one_moment:
        return True
    out, into = channel.out, channel.into
    if out.settled > into.cursor:
        audit.differs("channel", channel.name, "settled", out.settled, f"answered {into.cursor}")
    elif into.cursor > out.head:
        audit.differs("channel", channel.name, "answered", f"sent {out.head}", into.cursor)
    elif into.forgotten > out.settled:
        audit.differs(
            "channel", channel.name, "forgotten", f"settled {out.settled}", into.forgotten
        )
    else:
        return True
    return False


async def _find_cut(audit: Audit, channels: list[Channel]) -> None:
    """
    Read on in journals that are behind others until each channel's ends are of one cut.

    Each step takes in what the cut must have, so this ends at the nearest one.
    """
    tails = {shard_id: JournalTail(journal) for shard_id, journal in audit.journals.items()}
    broken: set[str] = set()
    try:
        moved = len(audit.databases) > 1
        while moved:
            moved = False
            for channel in channels:
                if channel.name not in broken and (behind := _behind(channel)) is not None:
                    moved = True
                    tail = tails[behind.ends.shard_id]
                    if not await _catch_up(audit, channel, tail):
                        broken.add(channel.name)
    finally:
        for tail in tails.values():
            await tail.close()


def _behind(channel: Channel) -> JournalEnd | None:
    if channel.source_is_behind:
        return channel.source
    return channel.destination if channel.destination_is_behind else None


async def _catch_up(audit: Audit, channel: Channel, tail: JournalTail) -> bool:
    """
    Read on until the channel's end in this journal is not behind; say whether that came about.
    """
    try:
        while _behind(channel) is tail.journal:
            if not await tail.step():
                return False
    except Contradiction as error:
        where = f"shard {tail.journal.ends.shard_id}, sequence {tail.journal.sequence}"
        audit.differs("journal", where, error.field, error.expected, error.found)
        return False
    return True


def compare_ends(audit: Audit, channel: Channel) -> None:
    """
    Compare two ends of one cut: the entries, the answers, and the money that went across.
    """
    out, into = channel.out, channel.into
    chain = out.chain_at(into.cursor)
    if chain != into.chain:
        audit.differs("channel", channel.name, f"chain at {into.cursor}", chain, into.chain)
    settled = into.answers
    for number, answer in into.refused.items():
        if number > out.settled:
            settled -= sum_of_answer(number, answer)
    if settled != out.answers:
        field = f"answers up to {out.settled}"
        audit.differs("channel", channel.name, field, f"{out.answers:x}", f"{settled:x}")
    for currency, (sent, arrived) in sorted(_money_across(out, into).items()):
        if sent != arrived:
            audit.differs("channel", channel.name, f"sum of {currency}", sent, arrived)
    _compare_linked(audit, channel)


def _compare_linked(audit: Audit, channel: Channel) -> None:
    """
    Compare what the destination has set aside for linked transfers of the source with what the
    source knows of: none may be known to one of the two only.
    """
    must, may = _asked_for(channel)
    prepared = {
        linked_id
        for linked_id, one in channel.destination.ends.linked.prepared.items()
        if one.decision[1] == channel.source.ends.shard_id
    }
    for linked_id in sorted(prepared - must - may):
        audit.differs("channel", channel.name, "linked transfer", None, linked_id)
    for linked_id in sorted(must - prepared):
        audit.differs("channel", channel.name, "linked transfer", linked_id, None)


def _asked_for(channel: Channel) -> tuple[set[bytes], set[bytes]]:
    """
    Name the linked transfers for which the destination must have something set aside, as the source
    says, and those for which it may: a no to what has been given up since is not kept.
    """
    out, into, peer = channel.out, channel.into, channel.destination.ends.shard_id
    must = {
        linked_id
        for linked_id, one in channel.source.ends.linked.open.items()
        if one.posted is None and peer in one.peers and peer not in one.waiting
    }
    may: set[bytes] = set()
    for number, sent in out.outbox.items():
        linked_id, is_prepare = sent.linked_id, sent.decision[0] == PREPARE_SENT
        if linked_id is None or (is_prepare and number > into.cursor):
            continue
        if number <= into.cursor:
            is_yes = is_prepare and number not in into.refused
            (must.add if is_yes else must.discard)(linked_id)
        elif sent.decision[5]:
            must.add(linked_id)
        else:
            may.add(linked_id)
    return must, may


def _money_across(out: OutEnd, into: InEnd) -> dict[str, tuple[int, int]]:
    """
    Sum up what either end says has gone across, as of the destination's cursor.
    """
    sums = {currency: [amount, 0] for currency, amount in out.moved.items()}
    for currency, amount in into.moved.items():
        sums.setdefault(currency, [0, 0])[1] = amount
    for number, sent in out.outbox.items():
        # Transfers count here when they are settled, slots and verdicts when they are sent.
        sign = 0
        if sent.is_transfer and number <= into.cursor and number not in into.refused:
            sign = 1
        elif not sent.is_transfer and number > into.cursor:
            sign = -1
        for currency, amount in sent.amounts:
            sums.setdefault(currency, [0, 0])[0] += sign * amount
    return {currency: (sent, arrived) for currency, (sent, arrived) in sums.items()}


# --- Refunds --------------------------------------------------------------------------------------


async def check_refunds(audit: Audit) -> None:
    """
    Check that what a shard has counted on top of another's total is what that one had told when the
    slot left it, and that no total was gone on from twice. Comes after `check_channels`.
    """
    if len(audit.journals) < len(audit.projected) or "channel" in audit.differences:
        return  # Something worse is told already.
    if any(journal.was_read_on for journal in audit.journals.values()):
        return  # Which totals have left by that moment was not read.
    left: dict[tuple[bytes, int], list[Any]] = {}
    for journal in audit.journals.values():
        for name, total in journal.refunds_left.items():
            left.setdefault(name, []).append(total)
    for shard_id, journal in sorted(audit.journals.items()):
        for transfer_id, total in journal.refunds_brought:
            known = left.get((transfer_id, total.version), [])
            if total not in known:
                where = f"shard {shard_id}, refunds of {transfer_id.hex()}"
                audit.differs("journal", where, "total before", known and known[0], total)
                continue
            known.remove(total)


async def check_refunded(audit: Audit) -> None:
    """
    Check that no more has gone back of any transfer than its row, in whichever database, has moved.
    """
    for database in audit.databases:
        cursor = await database.conn.cursor("SELECT transfer_id, refunded FROM refunds")
        while rows := await cursor.fetch(CHUNK_TRANSFERS):
            moved: dict[bytes, int] = {}
            for other in audit.databases:
                found = await other.conn.fetch(_MOVED, [row[0] for row in rows])
                moved.update((row[0], row[1]) for row in found)
            for transfer_id, refunded in rows:
                # One that the tables have not got yet is bounded by what its refunds say.
                most = moved.get(transfer_id, refunded)
                if refunded > most:
                    key = transfer_id.hex()
                    audit.differs("refunds", key, "refunded", f"at most {most}", refunded)


# --- Where the slots are --------------------------------------------------------------------


async def check_slots(audit: Audit) -> None:
    """
    Check that each slot has one owner, counting those on their way, and that the catalog's map
    names only owners that a slot has had. Comes after `check_channels` has found a cut.
    """
    if len(audit.journals) < len(audit.projected) or "channel" in audit.differences:
        return  # Something worse is told already.
    promised = await _promised_slots(audit)
    owners: dict[int, list[str]] = {}
    for shard_id, journal in sorted(audit.journals.items()):
        for slot in [*journal.ends.own_slots(), *promised.get(shard_id, ())]:
            owners.setdefault(slot, []).append(f"shard {shard_id}")
    for channel in channels_of(audit):
        for slot in channel.in_flight_slots():
            owners.setdefault(slot, []).append(f"on its way, {channel.name}")
    for shard_id in promised.keys() - audit.journals.keys():
        for slot in promised[shard_id]:
            owners.setdefault(slot, []).append(f"shard {shard_id}")
    if owners:  # A ledger that is older than slots has none.
        _check_owners(audit, owners)
        for shard_id, journal in sorted(audit.journals.items()):
            if journal.has_customers and not journal.ends.slots and shard_id not in promised:
                audit.differs("slots", f"shard {shard_id}", "slots", "some for its wallets", None)
    await _check_map(audit, promised)


def _check_owners(audit: Audit, owners: dict[int, list[str]]) -> None:
    for slot in range(SLOT_COUNT):
        found = owners.get(slot, [])
        if len(found) != 1:
            audit.differs("slots", f"slot {slot}", "owner", "one", ", ".join(found) or None)


async def _promised_slots(audit: Audit) -> dict[int, range]:
    """
    Read which slots shards begin with that have not journaled it yet.
    """
    rows = await audit.databases[0].conn.fetch(
        "SELECT shard_id, first_slot, last_slot FROM placement WHERE first_slot IS NOT NULL"
    )
    return {
        shard_id: range(first, last + 1)
        for shard_id, first, last in rows
        if shard_id not in audit.journals or not audit.journals[shard_id].ends.is_granted
    }


async def _check_map(audit: Audit, promised: dict[int, range]) -> None:
    rows = await audit.databases[0].conn.fetch("SELECT slot, shard_id, generation FROM slot_map")
    for slot, shard_id, generation in rows:
        journal = audit.journals.get(shard_id)
        had = journal is not None and (slot, generation) in journal.ends.slots_had
        if not had and not (generation == 1 and slot in promised.get(shard_id, ())):
            found = f"shard {shard_id}, generation {generation}"
            audit.differs("slot_map", f"slot {slot}", "owner", "one it has had", found)
