"""
What one shard knows of the rest of its cluster, and tells to it.

Rule 1: a witness only ever moves forward, so a journal that was set back cannot take back what
        others have seen of it.
Rule 2: witnesses are kept in all databases but the shard's own, which is set back with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import asyncpg
import structlog

from processor.core.slots import SlotMap
from processor.flow.ports import ChainAt, SetBack, StoreUnavailable
from processor.storage.session import Session
from processor.storage.slot_map import note_slots_on, slots_on

log = structlog.get_logger("cluster")

_BEAR_WITNESS = """
    INSERT INTO witness (shard_id, epoch, sequence, chain) VALUES ($1, $2, $3, $4)
    ON CONFLICT (shard_id) DO UPDATE
       SET epoch = excluded.epoch, sequence = excluded.sequence, chain = excluded.chain, at = now()
     WHERE witness.sequence < excluded.sequence
"""

_OWN_PEERS = """
    SELECT peer FROM channels_out WHERE shard_id = $1
     UNION
    SELECT peer FROM channels_in WHERE shard_id = $1
"""

_HALT_PEERS = """
    UPDATE shard SET state = 'halted', halted_for = $3, endpoint = NULL, changed_at = now()
     WHERE state = 'active' AND shard_id <> $1 AND (shard_id = ANY($2::int[]) OR shard_id IN (
               SELECT shard_id FROM channels_out WHERE peer = $1
                UNION
               SELECT shard_id FROM channels_in WHERE peer = $1))
"""


class PostgresCluster:
    """
    Keeps the promises of `ShardCluster` in Postgres: *dsn* is the shard's own database, *dsns*
    are all, the catalog's first.
    """

    def __init__(self, shard_id: int, dsn: str, dsns: Sequence[str]) -> None:
        self._shard_id = shard_id
        self._sessions = [Session(one, f"miliano/cluster-{shard_id}") for one in dsns]
        self._catalog = self._sessions[0]
        self._others = [session for session in self._sessions if session.dsn != dsn]
        self._down: set[Session] = set()
        self._own = next(session for session in self._sessions if session.dsn == dsn)

    async def first_slots(self) -> tuple[int, int] | None:
        rows = await self._catalog.fetch(
            "SELECT first_slot, last_slot FROM placement"
            " WHERE shard_id = $1 AND first_slot IS NOT NULL",
            self._shard_id,
        )
        return (rows[0]["first_slot"], rows[0]["last_slot"]) if rows else None

    async def slot_map(self) -> SlotMap:
        return await self._catalog.call(slots_on)

    async def note_slots(self, taken: Iterable[tuple[int, int]]) -> None:
        slots = list(taken)
        await self._catalog.call(
            lambda connection: note_slots_on(connection, self._shard_id, slots)
        )

    async def check_witness(self, sequence: int, chain_at: ChainAt) -> None:
        for seen in await self._ask_others(
            "SELECT sequence, chain FROM witness WHERE shard_id = $1", self._shard_id
        ):
            for row in seen:
                where = f"shard {self._shard_id}: another database has seen its journal"
                if row["sequence"] > sequence:
                    raise SetBack(
                        f"{where} at sequence {row['sequence']}, here it ends at {sequence}"
                    )
                if await chain_at(row["sequence"]) != row["chain"]:
                    raise SetBack(f"{where} with another record at sequence {row['sequence']}")

    async def bear_witness(self, *, epoch: int, sequence: int, chain: bytes) -> bool:
        await self._ask_others(_BEAR_WITNESS, self._shard_id, epoch, sequence, chain)
        return not self._down

    async def halt_peers(self, reason: str) -> None:
        peers = [row["peer"] for row in await self._own.fetch(_OWN_PEERS, self._shard_id)]
        arguments = (self._shard_id, peers, reason)
        # All are tried, also when one of the databases is down.
        halted = await asyncio.gather(
            *(session.fetch(_HALT_PEERS, *arguments) for session in self._sessions),
            return_exceptions=True,
        )
        for outcome in halted:
            if isinstance(outcome, BaseException):
                raise outcome

    async def close(self) -> None:
        for session in self._sessions:
            session.close()

    async def _ask_others(self, query: str, *arguments: object) -> list[list[asyncpg.Record]]:
        """
        Ask every other database at once; one that is down is left out.
        """
        asked = (self._ask(session, query, *arguments) for session in self._others)
        return await asyncio.gather(*asked)

    async def _ask(self, session: Session, query: str, *arguments: object) -> list[asyncpg.Record]:
        try:
            rows = await session.fetch(query, *arguments)
        except StoreUnavailable as error:
            if session not in self._down:
                log.warning("a witness is down", shard_id=self._shard_id, error=str(error))
            self._down.add(session)
            return []
        self._down.discard(session)
        return rows
