"""
The keys, holds and refunds in every database of the cluster, as the owner of one shard reads them.

Rule: no answer is believed that came over a connection which was not compared with the past
      (`known_past`) after it was made. What a live connection leads to is not set back: a restore
      ends it, and the next one is compared anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

import asyncpg

from processor.core.hold import Hold, RefundTotal
from processor.core.record import Record
from processor.core.state import Remembered
from processor.flow.known_past import ChannelEnds, Seen, check_past
from processor.flow.ports import StoreUnavailable
from processor.storage.connection import given_up_on
from processor.storage.count_rows import holds_named, refunds_named
from processor.storage.journal_rows import RECORD_COLUMNS, record_from_row
from processor.storage.outcomes import key_pages, outcomes_under
from processor.storage.recovery_view import PROJECTION
from processor.storage.session import STORE_ERRORS, Session, connected

ASK_S_MAX = 30.0
TAIL_PAGE_RECORDS = 20

# One statement sees one moment.
_ENDS = """
    SELECT 'shard' AS kind, shard.shard_id, NULL::int AS peer, coalesce(sequence, 0) AS number
      FROM shard
      LEFT JOIN watermark ON watermark.shard_id = shard.shard_id AND projection = $1
     UNION ALL
    SELECT 'out', shard_id, peer, head FROM channels_out
     UNION ALL
    SELECT 'in', shard_id, peer, cursor FROM channels_in
"""

_RECORDS = f"""
    SELECT {RECORD_COLUMNS} FROM journal
     WHERE shard_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3
"""

_SEEN = "SELECT shard_id, sequence, chain FROM witness"

_CHAINS = """
    SELECT shard_id, chain
      FROM unnest($1::int[], $2::bigint[]) AS seen (shard_id, sequence)
      JOIN journal USING (shard_id, sequence)
"""

Fetch = Callable[..., Awaitable[list[asyncpg.Record]]]
T = TypeVar("T")


class PostgresPast:
    """
    Keeps the promises of `Past` in Postgres: *own* asks the shard's own database.
    """

    def __init__(self, own: Fetch, others: Sequence[Fetch]) -> None:
        self._own = own
        self._others = others
        self._homes: dict[int, Fetch] = {}

    async def channel_ends(self) -> ChannelEnds:
        ends = ChannelEnds()
        asked = [self._own, *self._others]
        answers = await asyncio.gather(*(fetch(_ENDS, PROJECTION) for fetch in asked))
        for fetch, rows in zip(asked, answers, strict=True):
            for kind, shard_id, peer, number in rows:
                if kind == "shard":
                    ends.watermarks[shard_id] = number
                    self._homes[shard_id] = fetch
                elif kind == "out":
                    ends.sent(shard_id, peer, number)
                else:
                    ends.taken(shard_id, peer, number)
        return ends

    async def records_above(self, shard_id: int, sequence: int) -> AsyncIterator[Record]:
        while True:
            rows = await self._homes[shard_id](_RECORDS, shard_id, sequence, TAIL_PAGE_RECORDS)
            for row in rows:
                yield record_from_row(row)
            if len(rows) < TAIL_PAGE_RECORDS:
                return
            sequence = rows[-1]["sequence"]

    async def seen(self) -> list[Seen]:
        return [Seen(*row) for row in await self._own(_SEEN)]

    async def chains_at(self, seen: list[Seen]) -> dict[int, bytes]:
        places = [one.shard_id for one in seen], [one.sequence for one in seen]
        answers = await asyncio.gather(*(fetch(_CHAINS, *places) for fetch in self._others))
        return {row["shard_id"]: row["chain"] for rows in answers for row in rows}


class EveryDatabase:
    """
    The database of one shard, which *own* leads to, and the others. Every method raises
    StoreUnavailable.
    """

    def __init__(
        self, shard_id: int, own: Session, other_dsns: Sequence[str], application_name: str
    ) -> None:
        self._shard_id = shard_id
        self._own = own
        self._application_name = application_name
        self._others = [Session(dsn, application_name) for dsn in other_dsns]
        self._compared: list[int] = []  # The numbers of the connections that were compared.

    async def outcomes_under(self, keys: list[bytes]) -> list[Remembered]:
        """
        Read the outcomes in all of them, each once.
        """
        found = await self._asked(lambda session: outcomes_under(session, keys, None))
        # A carried outcome is the one of the row that its first shard has.
        return list({outcome[0].key: outcome for outcome in found}.values())

    async def holds_named(self, hold_ids: list[bytes]) -> list[Hold]:
        """
        Read the rows of holds in all of them.
        """
        return await self._asked(lambda session: holds_named(session, hold_ids, None))

    async def refunds_named(self, transfer_ids: list[bytes]) -> list[RefundTotal]:
        """
        Read the rows of totals in all of them.
        """
        return await self._asked(lambda session: refunds_named(session, transfer_ids, None))

    async def _asked(self, ask: Callable[[Session], Awaitable[list[T]]]) -> list[T]:
        """
        Ask all of them, and believe only what came over connections that were compared.
        """
        if self._compared != self._connections():
            await self._compare()
        answers = await asyncio.gather(*(ask(one) for one in (self._own, *self._others)))
        if self._compared != self._connections():
            raise StoreUnavailable("a connection was made anew while it was asked")
        return [found for answer in answers for found in answer]

    async def _compare(self) -> None:
        compared = [await session.reached() for session in self._others]
        past = PostgresPast(self._own.fetch, [session.fetch for session in self._others])
        await check_past(self._shard_id, past)
        self._compared = compared

    def _connections(self) -> list[int]:
        return [session.connection_number for session in self._others]

    async def key_pages(self) -> AsyncIterator[list[bytes]]:
        """
        Yield the keys in all of them, page by page, over connections of their own.
        """
        async with AsyncExitStack() as stack:
            opened = []
            for session in (self._own, *self._others):
                opened.append(await connected(session.dsn, self._application_name))
                stack.callback(opened[-1].terminate)
            others = [partial(_fetch_on, connection) for connection in opened[1:]]
            await check_past(self._shard_id, PostgresPast(self._own.fetch, others))
            for connection in opened:
                async for page in key_pages(connection, None):
                    yield page

    def close(self) -> None:
        for session in self._others:
            session.close()


async def _fetch_on(
    connection: asyncpg.Connection[asyncpg.Record], query: str, *arguments: object
) -> list[asyncpg.Record]:
    try:
        with given_up_on(connection, ASK_S_MAX):
            return await connection.fetch(query, *arguments)
    except STORE_ERRORS as error:
        raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
