"""
What a round means for the tables of linked transfers: those that are decided here, and what is set
aside here for others.

Rule 1: a row is there from the beginning to the end of a linked transfer. What ends one whose row
        is from before the round needs what stands in it: it is kept until the row is read back,
        see `take_back_begun` and `take_back_prepared`.
Rule 2: an attempt that was called back and its successor have the same id: the old row goes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from processor.core.decisions import (
    LinkedBegun,
    LinkedDone,
    LinkedPosted,
    LinkedPrepared,
    LinkedRecalled,
    LinkedRejected,
    VerdictTaken,
)
from processor.storage.projected_change import Change, Stamp
from processor.storage.projected_transfers import TransferRows

END_BEGUN = """
    DELETE FROM linked_begun WHERE shard_id = $1 AND linked_id = ANY($2::uuid[])
    RETURNING linked_id, posted
"""

END_PREPARED = """
    DELETE FROM linked_prepared WHERE shard_id = $1 AND linked_id = ANY($2::uuid[])
    RETURNING prepared
"""

_BEGIN = """
    INSERT INTO linked_begun (shard_id, linked_id, sequence, at_us, begun, posted)
    SELECT $1, * FROM unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::bytea[], $6::bytea[])
"""

_POST = """
    UPDATE linked_begun
       SET sequence = told.sequence, at_us = told.at_us, posted = told.posted
      FROM unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::bytea[])
        AS told (linked_id, sequence, at_us, posted)
     WHERE shard_id = $1 AND linked_begun.linked_id = told.linked_id
"""

_PREPARE = """
    INSERT INTO linked_prepared (shard_id, linked_id, peer, sequence, at_us, prepared)
    SELECT $1, * FROM unnest($2::uuid[], $3::int[], $4::bigint[], $5::bigint[], $6::bytea[])
"""

_encode = msgspec.msgpack.Encoder().encode
_decode_posted = msgspec.msgpack.Decoder(LinkedPosted).decode
_decode_prepared = msgspec.msgpack.Decoder(LinkedPrepared).decode


class _Open(msgspec.Struct):
    """
    A linked transfer that was begun in the round, and posted if it was.
    """

    begun: LinkedBegun
    stamp: Stamp
    posted: LinkedPosted | None = None


class LinkedRows:
    """
    Collects in order what becomes of linked transfers; what they move goes to *transfers*.

    `ended` has those whose rows go, with the stamp of what is done everywhere, and `verdicts` what
    is said of parts that were prepared before the round, if they were.
    """

    def __init__(self, transfers: TransferRows) -> None:
        self.ended: dict[bytes, Stamp | None] = {}
        self.verdicts: dict[bytes, tuple[VerdictTaken, Stamp]] = {}
        self._transfers = transfers
        self._begun: dict[bytes, _Open] = {}
        self._posted: dict[bytes, tuple[LinkedPosted, Stamp]] = {}  # Begun before the round.
        self._prepared: dict[bytes, tuple[LinkedPrepared, Stamp]] = {}

    # --- The shard that decides -------------------------------------------------------------------

    def begin(self, decision: LinkedBegun, stamp: Stamp) -> None:
        self._begun[decision.transfer_id] = _Open(decision, stamp)

    def post(self, decision: LinkedPosted, stamp: Stamp) -> None:
        linked_id = decision.transfer_id
        for posting in decision.postings:
            leg = decision.legs[posting.leg]
            self._transfers.add_leg(linked_id, decision.merchant_id, leg, posting, stamp)
        if not decision.is_open:
            self._transfers.remember(decision, stamp)
        elif linked_id in self._begun:
            self._begun[linked_id] = _Open(self._begun[linked_id].begun, stamp, decision)
        else:
            self._posted[linked_id] = (decision, stamp)

    def reject(self, decision: LinkedRejected, stamp: Stamp) -> None:
        self._transfers.remember(decision, stamp)
        self._end(decision.transfer_id)

    def recall(self, decision: LinkedRecalled) -> None:
        self._end(decision.linked_id)

    def _end(self, linked_id: bytes) -> None:
        if self._begun.pop(linked_id, None) is None:
            self.ended[linked_id] = None

    def finish(self, decision: LinkedDone, stamp: Stamp) -> None:
        """
        Take in that all shards have moved what is theirs; the outcome is that of this record.
        """
        linked_id = decision.linked_id
        known, told = self._begun.pop(linked_id, None), self._posted.pop(linked_id, None)
        if told is not None:
            self.ended[linked_id] = None
            self._transfers.remember(told[0], stamp)
        elif known is None:
            self.ended[linked_id] = stamp
        elif known.posted is not None:
            self._transfers.remember(known.posted, stamp)
        else:
            raise ValueError(f"linked transfer {linked_id.hex()} is done, but was never posted")

    def take_back_begun(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """
        Take in what `ended` has ended, as the tables had it; raises ValueError when one that is
        done everywhere is not there as posted.
        """
        for linked_id, posted in rows:
            stamp = self.ended.pop(linked_id)
            if stamp is not None and posted is not None:
                self._transfers.remember(_decode_posted(posted), stamp)
            elif stamp is not None:
                raise ValueError(f"linked transfer {linked_id.hex()} is done, but was never posted")
        lost = [linked_id.hex() for linked_id, stamp in self.ended.items() if stamp is not None]
        if lost:
            raise ValueError(f"linked transfers are done, but were never begun: {lost}")

    # --- The other shards -------------------------------------------------------------------------

    def prepare(self, decision: LinkedPrepared, stamp: Stamp) -> None:
        self._prepared[decision.linked_id] = (decision, stamp)

    def take_verdict(self, decision: VerdictTaken, stamp: Stamp) -> None:
        prepared = self._prepared.pop(decision.linked_id, None)
        if prepared is None:
            self.verdicts[decision.linked_id] = (decision, stamp)
        else:
            self._move_parts(prepared[0], decision, stamp)

    def take_back_prepared(self, rows: Iterable[bytes]) -> None:
        """
        Take in what `verdicts` speak of, as the tables had it; raises ValueError when something
        was posted that is not there.
        """
        for row in rows:
            prepared = _decode_prepared(row)
            self._move_parts(prepared, *self.verdicts.pop(prepared.linked_id))
        lost = [one.linked_id.hex() for one, _ in self.verdicts.values() if one.is_posted]
        if lost:
            raise ValueError(f"parts of linked transfers move that were never prepared: {lost}")

    def _move_parts(self, prepared: LinkedPrepared, decision: VerdictTaken, stamp: Stamp) -> None:
        legs = {part.leg: part.asked for part in prepared.parts}
        for posting in decision.postings:
            leg = legs[posting.leg]
            self._transfers.add_leg(decision.linked_id, prepared.merchant_id, leg, posting, stamp)

    # --- Rows -------------------------------------------------------------------------------------

    def changes(self) -> Iterator[Change]:
        yield Change(_BEGIN, list(self._begun_rows()))
        posted = [
            (linked_id, stamp.sequence, stamp.at_us, _encode(decision))
            for linked_id, (decision, stamp) in self._posted.items()
        ]
        yield Change(_POST, posted, finds_each=True)
        prepared = [
            (linked_id, decision.peer, stamp.sequence, stamp.at_us, _encode(decision))
            for linked_id, (decision, stamp) in self._prepared.items()
        ]
        yield Change(_PREPARE, prepared)

    def _begun_rows(self) -> Iterator[tuple[Any, ...]]:
        for linked_id, one in self._begun.items():
            posted = None if one.posted is None else _encode(one.posted)
            yield (linked_id, one.stamp.sequence, one.stamp.at_us, _encode(one.begun), posted)
