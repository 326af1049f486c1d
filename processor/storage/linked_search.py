"""
Finding one linked transfer: among those that are not done everywhere, among outcomes, and in the
journals' tails.

Rule: it is pending until every shard has done it, though it may be decided; this is what its key
      tells, too. It is told by the journal of the shard that decides alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import asyncpg
import msgspec

from processor.core.decisions import (
    Decision,
    LinkedBegun,
    LinkedDone,
    LinkedPosted,
    LinkedRecalled,
    LinkedRejected,
    Posting,
    decode_decisions,
)
from processor.storage.connection import Connection
from processor.storage.leg_search import BEGUN, OUTCOMES, own_outcome
from processor.storage.recovery_view import PROJECTION
from processor.storage.transfer_found import Place, is_due, place_of
from processor.storage.transfer_search import TAIL

_POSTINGS = """
    SELECT transfer_id, source, source_version, source_balance FROM transfers
     WHERE linked_to = $1
"""

_decode_begun = msgspec.msgpack.Decoder(LinkedBegun).decode
_decode_posted = msgspec.msgpack.Decoder(LinkedPosted).decode

State: TypeAlias = LinkedBegun | LinkedPosted | LinkedRejected


class LinkedFound(msgspec.Struct, frozen=True, gc=False):
    """
    A linked transfer: `decision` is the last that is known of it, `is_done` says whether nothing
    comes after it.
    """

    decision: State
    is_done: bool
    shard_id: int
    sequence: int
    at_us: int


class Debited(msgspec.Struct, frozen=True, gc=False):
    """
    The wallet that a leg has debited, after it.
    """

    transfer_id: bytes
    balance: int
    version: int


async def search(conn: Connection, linked_id: bytes) -> LinkedFound | None:
    """
    Find a linked transfer in one database.
    """
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        view = LinkedView(linked_id)
        for row in await conn.fetch(OUTCOMES, linked_id):
            own = own_outcome(row)
            if own is not None:
                view.take_outcome(own.place, own.outcome.decision)
        if view.found is not None:
            return view.found
        for row in await conn.fetch(BEGUN, linked_id):
            view.add_begun(row)
        for record in await conn.fetch(TAIL, linked_id, PROJECTION):
            view.follow(place_of(record), decode_decisions(record["payload"], record["format"]))
    return view.found


async def debited(conn: Connection, linked_id: bytes) -> list[Debited]:
    """
    List what the tables of one database have of the wallets that a linked transfer debited.
    """
    rows = await conn.fetch(_POSTINGS, linked_id)
    return [
        Debited(row["transfer_id"], row["source_balance"], row["source_version"])
        for row in rows
        if row["source_version"] is not None and not is_due(row["source"])
    ]


class LinkedView:
    """
    What is known of one linked transfer, while journals are followed.
    """

    def __init__(self, linked_id: bytes) -> None:
        self._linked_id = linked_id
        self.found: LinkedFound | None = None

    def take_outcome(self, place: Place, decision: object) -> None:
        if isinstance(decision, LinkedPosted | LinkedRejected):
            self.found = LinkedFound(decision, True, *place)

    def add_begun(self, row: asyncpg.Record) -> None:
        decision: State = _decode_begun(row["begun"])
        if row["posted"] is not None:
            decision = _decode_posted(row["posted"])
        self.found = LinkedFound(decision, False, *place_of(row))

    def follow(self, place: Place, decisions: Iterable[Decision]) -> None:
        """
        Take in a record; those of a shard come in their order.
        """
        for decision in decisions:
            match decision:
                case LinkedBegun(transfer_id=self._linked_id):
                    self.found = LinkedFound(decision, False, *place)
                case LinkedPosted(transfer_id=self._linked_id):
                    self.found = LinkedFound(decision, not decision.is_open, *place)
                case LinkedRejected(transfer_id=self._linked_id):
                    self.found = LinkedFound(decision, True, *place)
                case LinkedRecalled(self._linked_id):
                    self.found = None  # What takes its place is in the same record.
                case LinkedDone(self._linked_id):
                    assert self.found is not None, "done, but never posted"
                    self.found = LinkedFound(self.found.decision, True, *place)


def debited_in(postings: Iterable[Posting], legs: Iterable[bytes]) -> list[Debited]:
    """
    List what postings tell of the wallets that were debited; *legs* are the legs' ids in order.
    """
    identifiers = list(legs)
    return [
        Debited(identifiers[posting.leg], posting.source_balance, posting.source_version)
        for posting in postings
        if not is_due(posting.source)
    ]
