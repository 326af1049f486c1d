"""
Goal: a linked transfer is asked for, told and taken back leg by leg, with ids that a repeated key
      gives again.
Method: requests, the commands that are made of them, and what a shard answers.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from configs.settings import Settings
from gateway.identifiers import uuid_text
from gateway.linked_transfers import (
    legs_to_reverse,
    linked_command,
    linked_errors,
    linked_reply,
    reversal_command,
    shown_linked,
)
from gateway.linked_wire import LegRequest, LinkedTransferRequest, ReversalRequest
from gateway.problems import Refusal
from gateway.validation import Validation
from processor.core.commands import LEGS_MAX, Leg, Terms, TransferType
from processor.core.decisions import LinkedBegun, LinkedPosted, LinkedRejected, Posting
from processor.core.leg_ids import leg_id, linked_id_in
from processor.core.reject_reason import RejectReason
from processor.core.wallet import due_wallet_id, fees_wallet_id
from processor.flow.frames import (
    KeyReused,
    LegSource,
    LinkedMoved,
    LinkedRefused,
    Pending,
    Result,
)
from processor.storage.linked_search import Debited, LinkedFound
from tests.support.commands import identifier

VALIDATION = Validation(Settings())
REQUEST = LinkedTransferRequest(
    [
        LegRequest("buyer", 900, "EUR", "seller", reference="order", metadata={"b": 1, "a": 2}),
        LegRequest("seller", 45, "EUR", type="fee"),
    ]
)
COMMAND = linked_command(REQUEST, "acme", "key")
AT_US = 1_700_000_000_000_000


def told(result: Result) -> Any:
    return json.loads(linked_reply(COMMAND, result, 3).body)


def test_a_command_has_a_leg_for_each() -> None:
    """
    A fee names no destination, the key is of the first wallet, and ids belong together.
    """
    first, second = COMMAND.legs
    assert (first.transfer_type, first.source, first.destination) == (1, "buyer", "seller")
    assert (first.reference, first.metadata) == ("order", '{"a":2,"b":1}')
    assert (second.transfer_type, second.destination) == (TransferType.FEE, "")
    assert [leg.transfer_id for leg in COMMAND.legs] == [
        leg_id(COMMAND.linked_id, n) for n in (0, 1)
    ]
    again = linked_command(REQUEST, "acme", "key")
    assert again.linked_id != COMMAND.linked_id
    assert again.key == COMMAND.key
    assert linked_command(REQUEST, "globex", "key").key != COMMAND.key


def test_a_reply_tells_balances_of_the_wallets_it_knows() -> None:
    """
    Those at the shard that decided.
    """
    sources = [LegSource(1, 855, 2)]
    reply = told(LinkedMoved(COMMAND.linked_id, 8, AT_US, False, sources))
    assert (reply["id"], reply["status"]) == (uuid_text(COMMAND.linked_id), "posted")
    assert [leg["balance"] for leg in reply["legs"]] == [None, 855]
    assert [leg["destination"] for leg in reply["legs"]] == ["seller", None]


def test_a_repeated_key_tells_the_first_ids() -> None:
    """
    Each request makes ids of its own; the answer is about those that moved.
    """
    first = linked_id_in(identifier("first"))
    reply = linked_reply(COMMAND, LinkedMoved(first, 8, AT_US, True, []), 0)
    assert (b"idempotent-replayed", b"true") in reply.headers
    legs = json.loads(reply.body)["legs"]
    assert [leg["id"] for leg in legs] == [uuid_text(leg_id(first, place)) for place in (0, 1)]


def test_what_is_pending_says_where_to_look() -> None:
    """
    With 202, and nothing said of balances.
    """
    reply = linked_reply(COMMAND, Pending(COMMAND.linked_id, 8, AT_US, False), 0)
    assert reply.status == 202
    path = f"/v1/linked-transfers/{uuid_text(COMMAND.linked_id)}".encode()
    assert (b"location", path) in reply.headers
    assert json.loads(reply.body)["status"] == "pending"


def test_a_refusal_names_the_leg() -> None:
    """
    By pointer, in words, and in what did not happen.
    """
    result = LinkedRefused(
        COMMAND.linked_id, 8, AT_US, False, 1, RejectReason.INSUFFICIENT_FUNDS, 7
    )
    with pytest.raises(Refusal) as refused:
        linked_reply(COMMAND, result, 0)
    refusal = refused.value
    assert (refusal.kind.code, refusal.errors[0].pointer) == ("insufficient_funds", "/legs/1")
    assert "Leg 1 fails" in refusal.detail
    linked: Any = refusal.extensions["linked_transfer"]
    assert (linked.status, linked.leg, linked.short_by) == ("rejected", 1, 7)


def test_nobody_is_told_how_full_anothers_wallet_is() -> None:
    """
    By how much a leg failed at its destination is not told.
    """
    result = LinkedRefused(
        COMMAND.linked_id, 8, AT_US, False, 0, RejectReason.BALANCE_MAX_EXCEEDED, 7
    )
    with pytest.raises(Refusal) as refused:
        linked_reply(COMMAND, result, 0)
    linked: Any = refused.value.extensions["linked_transfer"]
    assert linked.short_by is None


def test_a_key_of_another_command_points_at_the_difference() -> None:
    """
    Into the leg that differs.
    """
    with pytest.raises(Refusal) as refused:
        linked_reply(COMMAND, KeyReused("legs/1/amount"), 0)
    assert refused.value.errors[0].pointer == "/legs/1/amount"


@pytest.mark.parametrize(
    ("leg", "pointer"),
    [
        (LegRequest("a", 0, "EUR", "b"), "/legs/1/amount"),
        (LegRequest("$a", 1, "EUR", "b"), "/legs/1/source"),
        (LegRequest("a", 1, "EUR", "$b"), "/legs/1/destination"),
        (LegRequest("a", 1, "EUR"), "/legs/1/destination"),
        (LegRequest("a", 0, "EUR"), "/legs/1/amount /legs/1/destination"),
        (LegRequest("a", 1, "EUR", "b", type="fee"), "/legs/1/destination"),
        (LegRequest("$a", 1, "EUR", type="fee"), "/legs/1/source"),
        (LegRequest("a", 1, "EURO", "b"), "/legs/1/currency"),
        (LegRequest("a", 1, "EUR", "b", reference=""), "/legs/1/reference"),
        (LegRequest("a", 1, "EUR", "b", metadata={"x": 2**60}), "/legs/1/metadata/x"),
    ],
)
def test_every_wrong_leg_is_pointed_at(leg: LegRequest, pointer: str) -> None:
    """
    All of them at once, each with its number.
    """
    errors = linked_errors(VALIDATION, LinkedTransferRequest([REQUEST.legs[0], leg, leg]))
    pointers = f"{pointer} {pointer.replace('/1/', '/2/')}".split()
    assert [error.pointer for error in errors] == pointers


@pytest.mark.parametrize("count", [0, 1, LEGS_MAX + 1])
def test_too_few_or_too_many_legs(count: int) -> None:
    """
    They are not looked at.
    """
    (error,) = linked_errors(VALIDATION, LinkedTransferRequest([REQUEST.legs[0]] * count))
    assert error.pointer == "/legs"
    assert linked_errors(VALIDATION, LinkedTransferRequest([REQUEST.legs[0]] * LEGS_MAX)) == []


# --- Taking back ------------------------------------------------------------------------------

POSTED = LinkedPosted(COMMAND.linked_id, COMMAND.key, "acme", COMMAND.legs, [], is_open=False)


def test_a_reversal_goes_back_from_the_last_leg_on() -> None:
    """
    Each leg from who was paid, capped at what it moved; a fee from the shard that took it.
    """
    legs = legs_to_reverse(POSTED, fees="returned")
    homes = {COMMAND.legs[1].transfer_id: 5}
    command = reversal_command(ReversalRequest("returned"), legs, homes, "acme", b"k" * 16)

    fee, paid = command.legs
    assert (fee.source, fee.destination) == (fees_wallet_id(5, "acme", "EUR"), "seller")
    assert (paid.source, paid.destination, paid.amount) == ("seller", "buyer", 900)
    assert paid.terms == Terms(refund_of=COMMAND.legs[0].transfer_id, refundable=900)
    assert {leg.transfer_type for leg in command.legs} == {TransferType.REFUND}
    assert paid.reference == "order"
    named = ReversalRequest("kept", "back", {"a": 1})
    (kept,) = reversal_command(
        named, legs_to_reverse(POSTED, fees="kept"), {}, "acme", b"k" * 16
    ).legs
    assert (kept.source, kept.reference, kept.metadata) == ("seller", "back", '{"a":1}')


@pytest.mark.parametrize(
    ("field", "pointer"),
    [("legs", "/fees"), ("legs/0/reference", "/reference"), ("legs/1/metadata", "/metadata")],
)
def test_a_reversal_points_into_its_own_body(field: str, pointer: str) -> None:
    """
    It has no legs there: a key that was used otherwise points at what they follow from, and the leg
    that fails is named in words and in the reply.
    """
    back = reversal_command(
        ReversalRequest("kept"), legs_to_reverse(POSTED, fees="kept"), {}, "acme", b"k" * 16
    )
    with pytest.raises(Refusal) as refused:
        linked_reply(back, KeyReused(field), 0)
    assert refused.value.errors[0].pointer == pointer
    result = LinkedRefused(back.linked_id, 8, AT_US, False, 0, RejectReason.INSUFFICIENT_FUNDS, 7)
    with pytest.raises(Refusal) as refused:
        linked_reply(back, result, 0)
    assert list(refused.value.errors) == []
    assert "Leg 0 fails" in refused.value.detail


REFUND = replace(COMMAND.legs[0], transfer_type=TransferType.REFUND)


@pytest.mark.parametrize(
    ("original", "words"),
    [
        (LinkedRejected(b"", b"", "acme", [], 0, RejectReason.SOURCE_UNKNOWN), "rejected"),
        (LinkedBegun(b"", b"", "acme", [], [], 1, 0), "still pending"),
        (replace(POSTED, legs=[REFUND]), "a reversal itself"),
        (replace(POSTED, legs=COMMAND.legs[1:]), "fees only"),
    ],
)
def test_what_cannot_be_reversed_says_why(original: object, words: str) -> None:
    """
    Nothing is asked of the ledger.
    """
    with pytest.raises(Refusal, match="not_refundable") as refused:
        legs_to_reverse(original, fees="kept")
    assert words in refused.value.detail


# --- Looking at one ---------------------------------------------------------------------------


def test_what_is_posted_and_not_done_everywhere_is_pending() -> None:
    """
    As its key tells; then with the wallets that its postings and the tables know.
    """
    legs = [
        *COMMAND.legs,
        Leg(TransferType.TRANSFER, leg_id(COMMAND.linked_id, 2), "x", "y", "EUR", 1),
    ]
    postings = [
        Posting(0, "buyer", 2, 100, "seller", 1, 900),
        Posting(2, due_wallet_id(0, 1, "EUR"), 1, 5, due_wallet_id(0, 2, "EUR"), 1, 7),
    ]
    posted = replace(POSTED, legs=legs, postings=postings, is_open=True)
    found = LinkedFound(posted, False, 0, 8, AT_US)

    pending = shown_linked(found, [])
    done = shown_linked(replace(found, is_done=True), [Debited(legs[1].transfer_id, 855, 2)])

    assert (pending.status, pending.legs[0].balance) == ("pending", None)
    assert done.status == "posted"
    assert [leg.balance for leg in done.legs] == [100, 855, None]


def test_what_was_rejected_tells_its_leg() -> None:
    """
    With the reason and by how much.
    """
    decision = LinkedRejected(
        COMMAND.linked_id, COMMAND.key, "acme", COMMAND.legs, 1, RejectReason.SOURCE_LOCKED
    )
    shown = shown_linked(LinkedFound(decision, True, 0, 8, AT_US), [])
    assert (shown.status, shown.leg, shown.reason) == ("rejected", 1, "source_locked")
    assert shown.short_by is None
