"""
Finding one leg of a linked transfer: what the shard that decides and the others tell of it.

Rule: the shard whose wallet a leg debits tells that it is posted. The one that decides tells of a
      leg between two others only that it is pending, until all have done it, or is rejected.
"""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg
import msgspec

from processor.core.commands import Leg
from processor.core.decisions import (
    CarriedOutcome,
    Decision,
    LinkedBegun,
    LinkedDone,
    LinkedPosted,
    LinkedPrepared,
    LinkedRecalled,
    LinkedRejected,
    Posting,
    VerdictTaken,
)
from processor.core.leg_ids import linked_id_in
from processor.storage.connection import Connection
from processor.storage.transfer_found import (
    Place,
    TransferFound,
    TransferState,
    is_due,
    place_of,
    side_of,
)

BEGUN = "SELECT shard_id, sequence, at_us, begun, posted FROM linked_begun WHERE linked_id = $1"

_PREPARED = "SELECT shard_id, sequence, at_us, prepared FROM linked_prepared WHERE linked_id = $1"

OUTCOMES = "SELECT shard_id, sequence, outcome FROM outcomes WHERE transfer_id = $1"

_decode_begun = msgspec.msgpack.Decoder(LinkedBegun).decode
_decode_posted = msgspec.msgpack.Decoder(LinkedPosted).decode
_decode_prepared = msgspec.msgpack.Decoder(LinkedPrepared).decode
_decode_outcome = msgspec.msgpack.Decoder(CarriedOutcome).decode


class OwnOutcome(msgspec.Struct, frozen=True):
    """
    What the journal of the shard that tells it has decided, with its record's place.
    """

    outcome: CarriedOutcome
    place: Place


def own_outcome(row: asyncpg.Record) -> OwnOutcome | None:
    """
    Read a row of `outcomes`; None for what came with a slot, which its first shard tells.
    """
    outcome = _decode_outcome(row["outcome"])
    if outcome.sequence != row["sequence"]:
        return None
    return OwnOutcome(outcome, (row["shard_id"], outcome.sequence, outcome.at_us))


class LegViews:
    """
    What is known of one leg, by shard, while journals are followed.
    """

    def __init__(self, transfer_id: bytes) -> None:
        self._transfer_id = transfer_id
        self._linked_id = linked_id_in(transfer_id)
        self._views: dict[tuple[int, bool], TransferFound] = {}
        self._prepared: dict[int, LinkedPrepared] = {}

    @property
    def found(self) -> list[TransferFound]:
        return list(self._views.values())

    async def read(self, conn: Connection) -> None:
        """
        Take in what the tables have besides the rows of transfers.
        """
        for row in await conn.fetch(OUTCOMES, self._linked_id):
            own = own_outcome(row)
            if own is not None and isinstance(own.outcome.decision, LinkedRejected):
                self.follow(own.place, own.outcome.decision)
        for row in await conn.fetch(_PREPARED, self._linked_id):
            self._prepared[row["shard_id"]] = _decode_prepared(row["prepared"])
        for row in await conn.fetch(BEGUN, self._linked_id):
            place = place_of(row)
            begun = _decode_begun(row["begun"])
            posted = None if row["posted"] is None else _decode_posted(row["posted"])
            self.follow(place, begun if posted is None else posted)

    def follow(self, place: Place, decision: Decision) -> None:
        """
        Take in a decision, if it is of this leg; those of a shard come in their order.
        """
        shard_id = place[0]
        match decision:
            case LinkedBegun(transfer_id=self._linked_id):
                self._set(self._asked(place, decision, decision.legs, "pending"))
            case LinkedPosted(transfer_id=self._linked_id):
                self._post(place, decision)
            case LinkedRejected(transfer_id=self._linked_id):
                self._reject(place, decision)
            case LinkedDone(self._linked_id) | LinkedRecalled(self._linked_id):
                self._drop_pending(shard_id)
            case LinkedPrepared(linked_id=self._linked_id):
                self._prepared[shard_id] = decision
            case VerdictTaken(linked_id=self._linked_id):
                self._take_verdict(place, decision)

    def _post(self, place: Place, decision: LinkedPosted) -> None:
        self._drop_pending(place[0])
        for posting in decision.postings:
            leg = decision.legs[posting.leg]
            if leg.transfer_id == self._transfer_id:
                self._set_posting(place, decision.merchant_id, leg, posting)
        if decision.is_open and (place[0], False) not in self._views:
            self._set(self._asked(place, decision, decision.legs, "pending"))

    def _reject(self, place: Place, decision: LinkedRejected) -> None:
        self._drop_pending(place[0])
        view = self._asked(place, decision, decision.legs, "rejected")
        if view is not None:
            fails = decision.legs[decision.leg].transfer_id == self._transfer_id
            short_by = decision.short_by if fails else 0
            self._set(msgspec.structs.replace(view, reason=decision.reason, short_by=short_by))

    def _take_verdict(self, place: Place, verdict: VerdictTaken) -> None:
        prepared = self._prepared.pop(place[0], None)
        if prepared is None:
            return
        asked = {part.leg: part.asked for part in prepared.parts}
        for posting in verdict.postings:
            if asked[posting.leg].transfer_id == self._transfer_id:
                self._set_posting(place, prepared.merchant_id, asked[posting.leg], posting)

    def _set_posting(self, place: Place, merchant_id: str, leg: Leg, posting: Posting) -> None:
        if is_due(posting.source) and is_due(posting.destination):
            return
        source, destination = side_of(leg.source), side_of(leg.destination)
        if not is_due(posting.source):
            source = side_of(posting.source, posting.source_balance, posting.source_version)
        if not is_due(posting.destination):
            destination = side_of(
                posting.destination, posting.destination_balance, posting.destination_version
            )
        view = self._view(place, merchant_id, leg, "posted")
        self._set(
            msgspec.structs.replace(
                view,
                source=source,
                destination=destination,
                is_credit=is_due(posting.source),
            )
        )

    def _asked(
        self,
        place: Place,
        decision: LinkedBegun | LinkedPosted | LinkedRejected,
        legs: Iterable[Leg],
        state: TransferState,
    ) -> TransferFound | None:
        for leg in legs:
            if leg.transfer_id == self._transfer_id:
                return self._view(place, decision.merchant_id, leg, state)
        return None

    def _view(
        self, place: Place, merchant_id: str, leg: Leg, state: TransferState
    ) -> TransferFound:
        return TransferFound(
            leg.transfer_id,
            leg.transfer_type,
            state,
            None,
            merchant_id,
            side_of(leg.source),
            side_of(leg.destination),
            leg.currency,
            leg.amount,
            leg.reference,
            leg.metadata,
            *place,
            linked_to=self._linked_id,
        )

    def _set(self, view: TransferFound | None) -> None:
        if view is not None:
            self._views[view.shard_id, view.is_credit] = view

    def _drop_pending(self, shard_id: int) -> None:
        view = self._views.get((shard_id, False))
        if view is not None and view.state == "pending":
            del self._views[shard_id, False]
