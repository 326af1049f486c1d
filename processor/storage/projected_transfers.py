"""
What a round means for the tables of transfers and of outcomes.

Rule 1: a plain movement has a row with its key. What has terms, and a leg of a linked transfer,
        has a row without: its key is with its outcome, as it was decided.
Rule 2: a plain posting at one shard, as nearly all are, has no more columns than it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from processor.core.commands import Leg, Terms
from processor.core.decisions import (
    CarriedOutcome,
    EntryCredited,
    Outcome,
    Posting,
    TransferPosted,
    TransferRejected,
    TransferReserved,
    TransferSettled,
    asked_of,
)
from processor.core.wallet import due_wallet_id
from processor.storage.projected_change import Change, Stamp

TRANSFER_COLUMNS = (
    "transfer_id",
    "shard_id",
    "sequence",
    "at",
    "type",
    "reason",
    "merchant_id",
    "key",
    "source",
    "source_version",
    "source_balance",
    "destination",
    "destination_version",
    "destination_balance",
    "currency",
    "amount",
    "reference",
    "metadata",
)

# The wallet at the other shard, what the transfer belongs to, and by how much it failed.
RELATED_COLUMNS = (*TRANSFER_COLUMNS, "counterparty", "linked_to", "short_by")

_ADD_OUTCOMES = """
    INSERT INTO outcomes (shard_id, key, sequence, outcome, transfer_id)
    SELECT $1, * FROM unnest($2::uuid[], $3::bigint[], $4::bytea[], $5::uuid[])
    ON CONFLICT (shard_id, key) DO UPDATE SET sequence = excluded.sequence,
        outcome = excluded.outcome, transfer_id = excluded.transfer_id
"""

_encode = msgspec.msgpack.Encoder().encode


class TransferRows:
    """
    Collects rows of transfers and outcomes.
    """

    def __init__(self) -> None:
        self.plain: list[tuple[Any, ...]] = []  # With `TRANSFER_COLUMNS`.
        self.related: list[tuple[Any, ...]] = []  # With `RELATED_COLUMNS`.
        self._outcomes: dict[bytes, tuple[int, bytes, bytes]] = {}  # By key.

    def add_plain(self, decision: TransferPosted, stamp: Stamp) -> None:
        shard_id, sequence, _, at = stamp
        self.plain.append(
            (
                decision.transfer_id,
                shard_id,
                sequence,
                at,
                decision.transfer_type,
                None,
                decision.merchant_id,
                decision.key,
                decision.source,
                decision.source_version,
                decision.source_balance,
                decision.destination,
                decision.destination_version,
                decision.destination_balance,
                decision.currency,
                decision.amount,
                decision.reference,
                decision.metadata,
            )
        )

    def add_bound(self, decision: TransferPosted, stamp: Stamp) -> None:
        """
        Add a movement with terms.
        """
        source = (decision.source, decision.source_version, decision.source_balance)
        after = (decision.destination_version, decision.destination_balance)
        destination = (decision.destination, *after)
        self._add_movement(decision, stamp, None, source, destination)
        self._remember_if_bound(decision, stamp)

    def add_settled(
        self, sent: TransferReserved, decision: TransferSettled, due: str, stamp: Stamp
    ) -> None:
        """
        Add what has arrived at another shard; its row has what that one is *due* in its place.
        """
        after = (decision.source_version, decision.source_balance)
        due_after = (decision.due_version, decision.due_balance)
        posted = TransferPosted(*asked_of(sent), *after, *due_after, sent.terms)
        self._add_movement(
            posted, stamp, sent.destination, (sent.source, *after), (due, *due_after)
        )
        self._remember_if_bound(posted, stamp)

    def add_rejected(self, decision: TransferRejected, stamp: Stamp) -> None:
        nothing = (None, None)
        self._add_movement(
            decision,
            stamp,
            None,
            (decision.source, *nothing),
            (decision.destination, *nothing),
        )
        self._remember_if_bound(decision, stamp)

    def _add_movement(
        self,
        decision: TransferPosted | TransferRejected,
        stamp: Stamp,
        counterparty: str | None,
        source: tuple[str, int | None, int | None],
        destination: tuple[str, int | None, int | None],
    ) -> None:
        terms = decision.terms
        reason, short_by = None, 0
        if isinstance(decision, TransferRejected):
            reason, short_by = decision.reason, decision.short_by
        self.related.append(
            (
                *(decision.transfer_id, stamp.shard_id, stamp.sequence, stamp.at),
                decision.transfer_type,
                reason,
                decision.merchant_id,
                decision.key if terms is None else None,
                *(*source, *destination),
                *(decision.currency, decision.amount, decision.reference, decision.metadata),
                counterparty,
                _linked_to(terms),
                short_by or None,
            )
        )

    def _remember_if_bound(self, decision: TransferPosted | TransferRejected, stamp: Stamp) -> None:
        if decision.terms is not None:
            self.remember(decision, stamp)

    def add_credited(self, decision: EntryCredited, stamp: Stamp) -> None:
        """
        Add what came from another shard, where its key is.
        """
        self.related.append(
            (
                *(decision.transfer_id, stamp.shard_id, stamp.sequence, stamp.at),
                *(decision.transfer_type, None, decision.merchant_id, None),
                due_wallet_id(stamp.shard_id, decision.peer, decision.currency),
                *(decision.due_version, decision.due_balance),
                decision.destination,
                *(decision.destination_version, decision.destination_balance),
                *(decision.currency, decision.amount, decision.reference, decision.metadata),
                decision.source,
                _linked_to(decision.terms),
                None,
            )
        )

    def add_leg(
        self, linked_id: bytes, merchant_id: str, leg: Leg, posting: Posting, stamp: Stamp
    ) -> None:
        """
        Add what *leg* moved at this shard.
        """
        self.related.append(
            (
                *(leg.transfer_id, stamp.shard_id, stamp.sequence, stamp.at),
                *(leg.transfer_type, None, merchant_id, None),
                *(posting.source, posting.source_version, posting.source_balance),
                *(posting.destination, posting.destination_version, posting.destination_balance),
                *(leg.currency, leg.amount, leg.reference, leg.metadata),
                _counterparty(leg, posting),
                linked_id,
                None,
            )
        )

    def remember(self, decision: Outcome, stamp: Stamp) -> None:
        """
        Keep an outcome under its key as it was decided.
        """
        outcome = CarriedOutcome(decision, stamp.sequence, stamp.at_us)
        self.carry(outcome, stamp)

    def carry(self, outcome: CarriedOutcome, stamp: Stamp) -> None:
        """
        Keep an outcome that came in the record of *stamp* from another shard.
        """
        decision = outcome.decision
        row = (stamp.sequence, _encode(outcome), decision.transfer_id)
        self._outcomes[decision.key] = row

    def changes(self) -> Iterator[Change]:
        """
        Yield what is not copied.
        """
        rows = [(key, *self._outcomes[key]) for key in sorted(self._outcomes)]
        yield Change(_ADD_OUTCOMES, rows)


def _linked_to(terms: Terms | None) -> bytes | None:
    """
    Name what a movement belongs to: the hold it captures (or would have), or what it takes back.
    """
    return None if terms is None else terms.hold_id or terms.refund_of


def _counterparty(leg: Leg, posting: Posting) -> str | None:
    """
    Name the leg's wallet at another shard where one side is here: what is due stands for it. At
    the shard that decides for two others it stands for both, and neither is the counterparty.
    """
    is_from, is_to = _is_due(posting.source), _is_due(posting.destination)
    if is_from == is_to:
        return None
    return leg.source if is_from else leg.destination


def _is_due(wallet_id: str) -> bool:
    return wallet_id.startswith("$due:")
