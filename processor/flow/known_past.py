"""
Whether the journals of a cluster are as late as one of its shards needs them, before it believes
that a key which is in nobody's tables was never used.

A shard that took a slot reads in the tables of its earlier owners which keys were used. A database
that was restored to an earlier point, and whose shards have not started yet, has lost some.

Rule 1: of every journal the last record that was witnessed is there, as it was.
Rule 2: what a shard has taken from a peer is among what the peer's journal has sent, and so on
        from taker to giver. A journal that has sent a slot has all that was decided on it before;
        a slot may have come by way of several.
Rule 3: what is not proved is StoreUnavailable, so nothing is decided.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from processor.core.decisions import PendingEntry, SlotTaken, decode_decisions
from processor.core.record import Record
from processor.flow.ports import StoreUnavailable

REMEDY = "start its shards, or restore a newer copy"


class Seen(msgspec.Struct, frozen=True):
    """
    The last record of a journal in another database that was witnessed.
    """

    shard_id: int
    sequence: int
    chain: bytes


class ChannelEnds(msgspec.Struct):
    """
    The ends of channels in the tables of all databases. `watermarks` has all shards that live in
    them; `heads` are by source and destination, `cursors` by destination and then source.
    """

    watermarks: dict[int, int] = {}
    heads: dict[tuple[int, int], int] = {}
    cursors: dict[int, dict[int, int]] = {}

    def sent(self, source: int, destination: int, number: int) -> None:
        head = self.heads.get((source, destination), 0)
        self.heads[source, destination] = max(head, number)

    def taken(self, destination: int, source: int, number: int) -> None:
        cursors = self.cursors.setdefault(destination, {})
        cursors[source] = max(cursors.get(source, 0), number)


class Past(Protocol):
    """
    All databases of a cluster, as the database of one shard and the others. Every method raises
    StoreUnavailable.
    """

    async def channel_ends(self) -> ChannelEnds:
        """
        Read the tables: of each database as at one moment.
        """
        ...

    def records_above(self, shard_id: int, sequence: int) -> AsyncIterator[Record]:
        """
        Yield the records of any shard above *sequence*, in order, unchecked.
        """
        ...

    async def seen(self) -> list[Seen]:
        """
        Read what the shard's own database has witnessed.
        """
        ...

    async def chains_at(self, seen: list[Seen]) -> dict[int, bytes]:
        """
        Read the chains that the other databases have at those sequences, by shard.
        """
        ...


async def check_past(shard_id: int, past: Past) -> None:
    """
    Prove that no journal ends before what *shard_id* needs of it; raises StoreUnavailable.
    """
    ends = await past.channel_ends()
    await _check_seen(past, ends)
    await _check_sent(shard_id, past, ends)


async def _check_seen(past: Past, ends: ChannelEnds) -> None:
    # A shard that lives in none of these databases is none of theirs; its channels tell.
    seen = [one for one in await past.seen() if one.shard_id in ends.watermarks]
    chains = await past.chains_at(seen)
    for one in seen:
        if chains.get(one.shard_id) != one.chain:
            raise StoreUnavailable(
                f"shard {one.shard_id} was seen at sequence {one.sequence}, which its database "
                f"lacks as it was: {REMEDY}"
            )


async def _check_sent(shard_id: int, past: Past, ends: ChannelEnds) -> None:
    read: set[int] = set()
    known = {shard_id}
    unchecked = [shard_id]
    await _take_in_records(shard_id, past, ends)
    while unchecked:
        taker = unchecked.pop()
        for giver, number in list(ends.cursors.get(taker, {}).items()):
            if ends.heads.get((giver, taker), 0) < number and giver not in read:
                # Its tables are behind, or have lost it.
                read.add(giver)
                await _take_in_records(giver, past, ends)
                known.discard(giver)  # Has perhaps taken more than its tables said.
            if ends.heads.get((giver, taker), 0) < number:
                raise StoreUnavailable(
                    f"shard {taker} has taken entry {number} from shard {giver}, whose database "
                    f"has not sent it: {REMEDY}"
                )
            if giver not in known:
                known.add(giver)
                unchecked.append(giver)


async def _take_in_records(shard_id: int, past: Past, ends: ChannelEnds) -> None:
    """
    Add what a journal says above the tables: what was sent, and the slots that came.
    """
    if shard_id not in ends.watermarks:
        return
    async for record in past.records_above(shard_id, ends.watermarks[shard_id]):
        try:
            decisions = decode_decisions(record.payload, record.format)
        except ValueError as error:
            raise StoreUnavailable(f"shard {shard_id}: {error}") from error
        for decision in decisions:
            if isinstance(decision, PendingEntry):
                ends.sent(shard_id, decision.peer, decision.number)
            elif isinstance(decision, SlotTaken):
                ends.taken(shard_id, decision.peer, decision.number)
