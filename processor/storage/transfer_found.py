"""
A transfer as one shard tells it, and how what a shard recorded is told so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import asyncpg
import msgspec

from processor.core.decisions import (
    EntryCredited,
    TransferPosted,
    TransferRejected,
    TransferReleased,
    TransferReserved,
    TransferSettled,
)
from processor.core.wallet import is_system_wallet

TransferState = Literal["posted", "rejected", "pending"]


class TransferSide(msgspec.Struct, frozen=True, gc=False):
    """
    One wallet of a transfer, with the balance and version after it; they are None where it was
    not posted, or not by the shard that tells. `merchant_id` is None where the tables have no
    such wallet, as while it moves.
    """

    wallet_id: str
    merchant_id: str | None
    balance: int | None
    version: int | None


class TransferFound(msgspec.Struct, frozen=True, gc=False):
    """
    A transfer as one shard tells it. A side is None when it is outside, or a merchant's fees;
    `merchant_id` asked for it. `is_credit` marks the view of the destination's shard, which is not
    for who asked.
    """

    transfer_id: bytes
    transfer_type: int
    state: TransferState
    reason: int | None
    merchant_id: str
    source: TransferSide | None
    destination: TransferSide | None
    currency: str
    amount: int
    reference: str | None
    metadata: str | None
    shard_id: int
    sequence: int
    at_us: int
    is_credit: bool = False
    linked_to: bytes | None = None
    short_by: int = 0

    def wallet_ids(self) -> list[str]:
        sides = (self.source, self.destination)
        return [side.wallet_id for side in sides if side is not None]


Place = tuple[int, int, int]  # The shard, the sequence and the time in µs of a record.


def place_of(row: asyncpg.Record) -> Place:
    return row["shard_id"], row["sequence"], row["at_us"]


def side_of(
    wallet_id: str, balance: int | None = None, version: int | None = None
) -> TransferSide | None:
    if not wallet_id or is_system_wallet(wallet_id):
        return None
    return TransferSide(wallet_id, None, balance, version)


def is_due(wallet_id: str) -> bool:
    """
    Say whether a side of a posting is what another shard is due.
    """
    return wallet_id.startswith("$due:")


def projected(row: asyncpg.Record) -> TransferFound | None:
    """
    Tell a row of `transfers`; None for what a shard that decides a leg moves for two others.
    """
    is_credit = is_due(row["source"])
    counterparty = row["counterparty"]
    source = side_of(row["source"], row["source_balance"], row["source_version"])
    destination = side_of(
        row["destination"], row["destination_balance"], row["destination_version"]
    )
    if is_credit and is_due(row["destination"]):
        return None
    if counterparty is not None and is_credit:
        source = side_of(counterparty)
    elif counterparty is not None:
        destination = side_of(counterparty)
    return TransferFound(
        row["transfer_id"],
        row["type"],
        "posted" if row["reason"] is None else "rejected",
        row["reason"],
        row["merchant_id"],
        source,
        destination,
        row["currency"],
        row["amount"],
        row["reference"],
        row["metadata"],
        *place_of(row),
        is_credit,
        row["linked_to"],
        row["short_by"] or 0,
    )


def asked(
    place: Place,
    decision: TransferPosted | TransferRejected | TransferReserved,
    state: TransferState,
) -> TransferFound:
    """
    Tell a transfer that has moved nothing, or not yet.
    """
    terms = decision.terms
    return TransferFound(
        decision.transfer_id,
        decision.transfer_type,
        state,
        None,
        decision.merchant_id,
        side_of(decision.source),
        side_of(decision.destination),
        decision.currency,
        decision.amount,
        decision.reference,
        decision.metadata,
        *place,
        linked_to=None if terms is None else terms.hold_id or terms.refund_of,
    )


def decided(place: Place, decision: TransferPosted | TransferRejected) -> TransferFound:
    if isinstance(decision, TransferRejected):
        return msgspec.structs.replace(
            asked(place, decision, "rejected"),
            reason=decision.reason,
            short_by=decision.short_by,
        )
    return msgspec.structs.replace(
        asked(place, decision, "posted"),
        source=side_of(decision.source, decision.source_balance, decision.source_version),
        destination=side_of(
            decision.destination, decision.destination_balance, decision.destination_version
        ),
    )


def settled(place: Place, pending: TransferReserved, decision: TransferSettled) -> TransferFound:
    source = side_of(pending.source, decision.source_balance, decision.source_version)
    return msgspec.structs.replace(asked(place, pending, "posted"), source=source)


def released(place: Place, pending: TransferReserved, decision: TransferReleased) -> TransferFound:
    return msgspec.structs.replace(
        asked(place, pending, "rejected"), reason=decision.reason, short_by=decision.short_by
    )


def credited(place: Place, decision: EntryCredited) -> TransferFound:
    terms = decision.terms
    return TransferFound(
        decision.transfer_id,
        decision.transfer_type,
        "posted",
        None,
        decision.merchant_id,
        side_of(decision.source),
        side_of(decision.destination, decision.destination_balance, decision.destination_version),
        decision.currency,
        decision.amount,
        decision.reference,
        decision.metadata,
        *place,
        is_credit=True,
        linked_to=None if terms is None else terms.hold_id or terms.refund_of,
    )


def with_owners(found: TransferFound, owners: Mapping[str, str]) -> TransferFound:
    """
    Fill in whose wallets they are.
    """

    def owned(side: TransferSide | None) -> TransferSide | None:
        if side is None:
            return None
        return msgspec.structs.replace(side, merchant_id=owners.get(side.wallet_id))

    return msgspec.structs.replace(
        found, source=owned(found.source), destination=owned(found.destination)
    )


def wallets_of(found: Iterable[TransferFound]) -> list[str]:
    """
    List the wallets in *found*, each once.
    """
    return list(dict.fromkeys(wallet_id for one in found for wallet_id in one.wallet_ids()))


def in_order(views: Iterable[TransferFound]) -> list[TransferFound]:
    """
    Order views of one transfer, that of the source first. Where that one is decided, a shard that
    has none of its wallets, and still waits for others, has nothing to add.
    """
    found = sorted(views, key=rank)
    if found and not found[0].is_credit and found[0].state != "pending":
        return [view for view in found if view.state != "pending"]
    return found


def rank(found: TransferFound) -> tuple[bool, bool]:
    """
    Order views of one transfer: that of the source first, and what is decided before the rest.
    """
    return found.is_credit, found.state == "pending"
