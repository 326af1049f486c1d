"""
The rows of transfers and of outcomes that the journal of one shard comes to, read by hand.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import astuple

from processor.core.commands import Leg, Terms
from processor.core.decisions import (
    CarriedOutcome,
    Decision,
    EntryCredited,
    HoldExtended,
    HoldPlaced,
    HoldVoided,
    LinkedDone,
    LinkedPosted,
    LinkedPrepared,
    LinkedRejected,
    Outcome,
    Posting,
    SlotTaken,
    TransferPosted,
    TransferRejected,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    VerdictTaken,
    decode_decisions,
)
from processor.core.record import Record

Row = tuple[Any, ...]

ROWS = """
    SELECT transfer_id, sequence, (extract(epoch FROM at) * 1000000)::bigint, type, reason,
           merchant_id, key, source, source_version, source_balance, destination,
           destination_version, destination_balance, currency, amount, reference, metadata,
           counterparty, linked_to, short_by
      FROM transfers WHERE shard_id = $1
"""

OUTCOMES = "SELECT key, sequence, outcome, transfer_id FROM outcomes WHERE shard_id = $1"


class TransferRows:
    """
    `rows` are those of transfers, `outcomes` has by key the sequence of the row, the outcome with
    its own sequence and time, and what it is of.
    """

    def __init__(self, shard_id: int, records: list[Record]) -> None:
        self.rows: list[Row] = []
        self.outcomes: dict[bytes, Row] = {}
        self._shard_id = shard_id
        self._sent: dict[tuple[int, int], Decision] = {}
        self._posted: dict[bytes, LinkedPosted] = {}
        self._prepared: dict[bytes, LinkedPrepared] = {}
        for record in records:
            self._sequence, self._at_us = record.sequence, record.at_us
            for decision in decode_decisions(record.payload, record.format):
                self._add(decision)

    def _add(self, decision: Decision) -> None:
        match decision:
            case TransferPosted():
                *asked, _terms = astuple(decision)
                self._move(asked[:10], decision.terms, asked[10:], None, None)
            case TransferRejected():
                self._reject(list(astuple(decision))[:10], decision)
            case TransferReserved():
                self._sent[decision.peer, decision.number] = decision
            case TransferSettled() | TransferReleased():
                self._settle(decision)
            case EntryCredited():
                kind = decision.transfer_type
                due = f"$due:{self._shard_id}:{decision.peer}:{decision.currency}"
                sides = (due, decision.due_version, decision.due_balance, decision.destination)
                after = (decision.destination_version, decision.destination_balance)
                asked = (kind, decision.transfer_id, decision.merchant_id, None)
                told = (decision.currency, decision.amount, decision.reference, decision.metadata)
                related = (decision.source, linked_by(decision.terms))
                self._row(asked, (*sides, *after), told, related)
            case HoldPlaced() | HoldVoided() | HoldExtended():
                self._remember(decision)
            case SlotTaken():
                for one in decision.outcomes:
                    row = (self._sequence, one, one.decision.transfer_id)
                    self.outcomes[one.decision.key] = row
            case _:
                self._add_linked(decision)

    def _add_linked(self, decision: Decision) -> None:
        match decision:
            case LinkedPosted(transfer_id=linked_id, merchant_id=merchant_id):
                self._posted[linked_id] = decision
                for posting in decision.postings:
                    self._leg(linked_id, merchant_id, decision.legs[posting.leg], posting)
                if not decision.is_open:
                    self._remember(decision)
            case LinkedDone(linked_id):
                self._remember(self._posted[linked_id])
            case LinkedRejected():
                self._remember(decision)
            case LinkedPrepared(linked_id=linked_id):
                self._prepared[linked_id] = decision
            case VerdictTaken(linked_id=linked_id) if decision.is_posted:
                prepared = self._prepared[linked_id]
                for part, posting in zip(prepared.parts, decision.postings, strict=True):
                    self._leg(linked_id, prepared.merchant_id, part.asked, posting)

    def _leg(self, linked_id: bytes, merchant_id: str, leg: Leg, posting: Posting) -> None:
        _, *sides = astuple(posting)
        dues = [sides[0].startswith("$due"), sides[3].startswith("$due")]
        counterparty = None
        if dues == [True, False]:
            counterparty = leg.source
        elif dues == [False, True]:
            counterparty = leg.destination
        told = (leg.currency, leg.amount, leg.reference, leg.metadata)
        asked = (leg.transfer_type, leg.transfer_id, merchant_id, None)
        self._row(asked, tuple(sides), told, (counterparty, linked_id))

    def _settle(self, decision: TransferSettled | TransferReleased) -> None:
        sent = self._sent[decision.peer, decision.number]
        assert isinstance(sent, TransferReserved)
        asked = list(astuple(sent))[:10]
        if isinstance(decision, TransferReleased):
            facts = (decision.reason, decision.short_by, sent.terms)
            self._reject(asked, TransferRejected(*asked, *facts))
        else:
            due = f"$due:{self._shard_id}:{sent.peer}:{sent.currency}"
            self._move(asked, sent.terms, astuple(decision)[3:], due, sent.destination)

    def _move(
        self, asked: list[Any], terms: Terms | None, after: Any, due: str | None, other: str | None
    ) -> None:
        kind, transfer_id, key, merchant_id, source, destination, *told = asked
        sides = (source, *after[:2], due or destination, *after[2:])
        named = (kind, transfer_id, merchant_id, key if terms is None else None)
        self._row(named, sides, tuple(told), (other, linked_by(terms)))
        if terms is not None:
            self._remember(TransferPosted(*asked, *after, terms))

    def _reject(self, asked: list[Any], decision: TransferRejected) -> None:
        kind, transfer_id, key, merchant_id, source, destination, *told = asked
        sides = (source, None, None, destination, None, None)
        terms = decision.terms
        named = (kind, transfer_id, merchant_id, key if terms is None else None)
        why = (decision.reason, decision.short_by or None)
        self._row(named, sides, tuple(told), (None, linked_by(terms)), why)
        if terms is not None:
            self._remember(decision)

    def _row(
        self,
        asked: Row,
        sides: Row,
        told: Row,
        related: Row,
        why: tuple[int | None, int | None] = (None, None),
    ) -> None:
        kind, transfer_id, merchant_id, key = asked
        reason, short_by = why
        head = (transfer_id, self._sequence, self._at_us, kind, reason, merchant_id, key)
        self.rows.append((*head, *sides, *told, *related, short_by))

    def _remember(self, decision: Outcome) -> None:
        outcome = CarriedOutcome(decision, self._sequence, self._at_us)
        self.outcomes[decision.key] = (self._sequence, outcome, decision.transfer_id)


def linked_by(terms: Terms | None) -> bytes | None:
    return None if terms is None else terms.hold_id or terms.refund_of
