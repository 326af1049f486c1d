"""
Goal: a refund goes back the way of its transfer, under a key of its own scope; what cannot be
      refunded says why.
Method: transfers as the tables tell them, and the commands that are made of them.
"""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.idempotency_key import command_key
from gateway.identifiers import uuid_text
from gateway.refund_wire import RefundRequest
from gateway.refunds import (
    Original,
    payer_of,
    refund_command,
    refund_key,
    shown_refunds,
    why_not_refundable,
)
from processor.core.commands import Terms, TransferType
from processor.core.wallet import fees_wallet_id
from processor.storage.transfer_found import TransferFound, TransferSide
from tests.support.commands import identifier

PAID = TransferFound(
    identifier("paid"),
    TransferType.TRANSFER,
    "posted",
    None,
    "acme",
    TransferSide("buyer", "acme", 95, 3),
    TransferSide("seller", "globex", 5, 1),
    "EUR",
    50,
    "order",
    None,
    1,
    8,
    1_700_000_000_000_000,
)


def test_it_goes_back_the_way_it_came() -> None:
    """
    From who was paid to who had paid, bound to the transfer and to what that moved.
    """
    request = RefundRequest(20, "a cup", {"line": 2})
    command = refund_command(request, Original(PAID, "seller"), "globex", "key")

    assert command.transfer_type == TransferType.REFUND
    assert (command.source, command.destination, command.amount) == ("seller", "buyer", 20)
    assert (command.currency, command.reference) == ("EUR", "a cup")
    assert command.metadata == '{"line":2}'
    assert command.terms == Terms(refund_of=PAID.transfer_id, refundable=50)
    assert command.merchant_id == "globex"


def test_without_an_amount_it_is_all_that_is_left() -> None:
    """
    Asked for in the same words whatever is left by then, so that a repeated key is no other
    command.
    """
    command = refund_command(RefundRequest(), Original(PAID, "seller"), "globex", "key")
    assert (command.amount, command.terms) == (
        50,
        Terms(refund_of=PAID.transfer_id, refundable=50, amount_max=50),
    )


def test_the_key_belongs_to_merchant_and_transfer() -> None:
    """
    No wallet's key is the same, whatever the wallet is called.
    """
    key = refund_key("globex", PAID.transfer_id, "key")
    assert key == refund_command(RefundRequest(), Original(PAID, "s"), "globex", "key").key
    assert key != refund_key("acme", PAID.transfer_id, "key")
    assert key != refund_key("globex", identifier("other"), "key")
    assert key != command_key("globex", uuid_text(PAID.transfer_id), "key")


def test_a_fee_is_paid_back_from_the_fees_of_its_shard() -> None:
    """
    Wherever the wallet that paid it is by now.
    """
    fee = replace(PAID, transfer_type=TransferType.FEE, destination=None)
    assert payer_of(fee) == fees_wallet_id(1, "acme", "EUR")
    assert payer_of(PAID) == "seller"
    assert payer_of(replace(PAID, destination=None)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transfer_type": TransferType.DEPOSIT, "source": None}, "with a withdrawal"),
        ({"transfer_type": TransferType.WITHDRAWAL, "destination": None}, "with a deposit"),
        ({"transfer_type": TransferType.REFUND}, "pay again"),
        ({"transfer_type": TransferType.HOLD, "state": "rejected"}, "moved no money"),
        ({"state": "rejected"}, "rejected"),
        ({"state": "pending"}, "still pending"),
        ({"source": None}, "your own fees"),
    ],
)
def test_what_cannot_be_refunded_says_why(changes: dict[str, object], words: str) -> None:
    """
    And what to do instead.
    """
    why = why_not_refundable(replace(PAID, **changes))
    assert why is not None
    assert words in why


@pytest.mark.parametrize("kind", [TransferType.TRANSFER, TransferType.CAPTURE, TransferType.FEE])
def test_what_was_paid_can_be_refunded(kind: TransferType) -> None:
    """
    However it was paid.
    """
    assert why_not_refundable(replace(PAID, transfer_type=kind)) is None


def test_each_refund_is_shown_once_to_each_side() -> None:
    """
    Between two shards it has two rows; who paid it back sees the one, who got it the other.
    """
    sent = replace(
        PAID,
        transfer_type=TransferType.REFUND,
        merchant_id="globex",
        source=TransferSide("seller", "globex", 30, 2),
        destination=TransferSide("buyer", "acme", None, None),
    )
    came = replace(
        sent,
        source=TransferSide("seller", "globex", None, None),
        destination=TransferSide("buyer", "acme", 115, 4),
        is_credit=True,
    )
    assert [one.balance for one in shown_refunds([came, sent], "globex")] == [30]
    assert [one.balance for one in shown_refunds([came, sent], "acme")] == [115]
    assert shown_refunds([came, sent], "initech") == []
