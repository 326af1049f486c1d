"""
Goal: a hold's commands carry what the ledger needs to find and to compare them, and what came of
      them is told as it is.
Method: commands made of requests, and replies made of what a shard may answer.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.hold_wire import CaptureHoldRequest, PlaceHoldRequest
from gateway.holds import capture_command, hold_key, hold_reply, place_command
from gateway.idempotency_key import command_key
from gateway.identifiers import uuid_text
from gateway.problems import Refusal
from processor.core.amounts import AMOUNT_MAX
from processor.core.commands import ExtendHold, PlaceHold, Terms, VoidHold, slot_asked
from processor.core.hold import Hold, HoldStatus
from processor.core.reject_reason import RejectReason
from processor.core.slots import hold_id_in, slot_of
from processor.flow.frames import FilledIn, HoldFound, KeyReused, Rejected

AT_US = 1_700_000_000_000_000
HOLD_ID = hold_id_in(slot_of("guest"), bytes(range(16)))
PLACE = place_command(PlaceHoldRequest("guest", 50, "EUR", "hotel"), "acme", "key")
VOID = VoidHold(bytes(16), hold_key("acme", HOLD_ID, "k"), "acme", HOLD_ID)
EXTEND = ExtendHold(bytes(16), hold_key("acme", HOLD_ID, "k"), "acme", HOLD_ID, 60)
HOLD = Hold(
    PLACE.hold_id,
    "acme",
    "guest",
    "hotel",
    "EUR",
    50,
    20,
    5,
    HoldStatus.OPEN,
    False,
    AT_US,
    AT_US + 60_000_000,
    "room 12",
    '{"nights":2}',
    7,
)


def found(transfer_id: bytes, hold: Hold = HOLD) -> HoldFound:
    return HoldFound(hold, transfer_id, 9, AT_US, False, 100, 70, 25, 4)


def rejected(transfer_id: bytes, reason: RejectReason, *, source: str = "guest") -> Rejected:
    filled_in = FilledIn(source, "", "EUR" if source else "", 30 if source else 0)
    return Rejected(transfer_id, 9, AT_US, reason, False, 3, filled_in)


def refused(command: PlaceHold | VoidHold | ExtendHold, result: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        hold_reply(command, result, 1, 200)
    return caught.value


def test_a_hold_is_where_its_wallet_is() -> None:
    """
    Whoever has the id finds the shard: the wallet's slot is in it.
    """
    again = place_command(PlaceHoldRequest("guest", 50, "EUR", "hotel"), "acme", "key")
    capture = capture_command(CaptureHoldRequest(), PLACE.hold_id, "acme", "key")

    assert slot_asked(PLACE) == slot_asked(capture) == slot_of("guest")
    assert again.hold_id != PLACE.hold_id
    assert again.key == PLACE.key == command_key("acme", "guest", "key")


def test_keys_are_of_merchant_and_hold() -> None:
    """
    The same words at another hold, of another merchant, or at a wallet are another key.
    """
    others = [
        hold_key("globex", HOLD_ID, "k"),
        hold_key("acme", bytes(16), "k"),
        command_key("acme", uuid_text(HOLD_ID), "k"),
        command_key("acme", "guest", "k"),
    ]

    assert VOID.key == EXTEND.key
    assert VOID.key not in others
    assert len(set(others)) == 4


def test_conditions_of_a_placing_are_its_terms() -> None:
    """
    Without any, a hold has no terms.
    """
    bound = PlaceHoldRequest("guest", 50, "EUR", if_version=0, if_available_gte=-5)

    assert PLACE.terms is None
    assert place_command(bound, "acme", "key").terms == Terms(if_version=0, if_available_gte=-5)


@pytest.mark.parametrize(
    ("request_", "amount", "terms"),
    [
        (CaptureHoldRequest(), AMOUNT_MAX, (True, AMOUNT_MAX)),
        (CaptureHoldRequest(final=False), AMOUNT_MAX, (False, AMOUNT_MAX)),
        (CaptureHoldRequest(amount=7), 7, (False, None)),
        (CaptureHoldRequest(amount=7, final=True), 7, (True, None)),
    ],
)
def test_captures(
    request_: CaptureHoldRequest, amount: int, terms: tuple[bool, int | None]
) -> None:
    """
    Without an amount all is taken and the hold ends; with one it stays open, unless said.
    """
    command = capture_command(request_, HOLD_ID, "acme", "key")

    assert (command.source, command.destination, command.currency) == ("", "", "")
    assert command.amount == amount
    assert command.terms == Terms(hold_id=HOLD_ID, is_final=terms[0], amount_max=terms[1])


def test_shows_a_hold() -> None:
    """
    What was captured, what is on its way and what remains, and the wallet as it is now.
    """
    reply = hold_reply(PLACE, found(PLACE.hold_id), 1, 201)

    assert json.loads(reply.body) == {
        "id": uuid_text(PLACE.hold_id),
        "status": "open",
        "source": "guest",
        "destination": "hotel",
        "amount": 50,
        "captured": 20,
        "pending": 5,
        "remaining": 25,
        "currency": "EUR",
        "reference": "room 12",
        "metadata": {"nights": 2},
        "created_at": "2023-11-14T22:13:20.000000Z",
        "expires_at": "2023-11-14T22:14:20.000000Z",
        "shard": 1,
        "sequence": 9,
        "balance": 100,
        "available": 70,
        "held": 25,
        "version": 4,
    }
    location = (b"location", f"/v1/holds/{uuid_text(PLACE.hold_id)}".encode())
    assert (reply.status, location in reply.headers) == (201, True)
    assert not any(name == b"idempotent-replayed" for name, _ in reply.headers)


@pytest.mark.parametrize("command", [PLACE, VOID, EXTEND])
def test_a_replay_is_another_requests_doing(command: PlaceHold | VoidHold | ExtendHold) -> None:
    """
    The id of what did it tells a replay: of a hold its own, else that of the change.
    """
    own = command.hold_id if isinstance(command, PlaceHold) else command.transfer_id

    first = hold_reply(command, found(own), 1, 200)
    again = hold_reply(command, found(b"another request!"), 1, 200)

    assert (b"idempotent-replayed", b"true") not in first.headers
    assert (b"idempotent-replayed", b"true") in again.headers


@pytest.mark.parametrize(
    ("command", "kind", "linked_to"),
    [
        (PLACE, "hold", None),
        (VOID, "void", uuid_text(HOLD_ID)),
        (EXTEND, "extend", uuid_text(HOLD_ID)),
    ],
)
def test_shows_what_was_not_done(
    command: PlaceHold | VoidHold | ExtendHold, kind: str, linked_to: str | None
) -> None:
    """
    A refusal has what did not happen inside, and by how much.
    """
    refusal = refused(command, rejected(b"another request!", RejectReason.INSUFFICIENT_FUNDS))

    assert refusal.kind.code == "insufficient_funds"
    assert refusal.headers == ((b"idempotent-replayed", b"true"),)
    told: Any = refusal.extensions["transfer"]
    assert (told.type, told.status, told.reason) == (kind, "rejected", "insufficient_funds")
    assert (told.source, told.destination, told.amount, told.short_by) == ("guest", None, 30, 3)
    assert told.linked_to == linked_to


def test_of_an_unknown_hold_nothing_is_shown() -> None:
    """
    A foreign hold and none at all look the same.
    """
    refusal = refused(VOID, rejected(bytes(16), RejectReason.HOLD_UNKNOWN, source=""))

    assert (refusal.kind.code, refusal.extensions) == ("hold_unknown", {})


def test_a_used_key_points_at_the_difference() -> None:
    """
    The field that differs is named as the request names it.
    """
    refusal = refused(EXTEND, KeyReused("expires_in_s"))

    assert refusal.kind.code == "idempotency_key_reused"
    assert [error.pointer for error in refusal.errors] == ["/expires_in_s"]
