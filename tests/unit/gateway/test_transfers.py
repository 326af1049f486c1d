"""
Goal: what came of a movement is shown from the caller's side, and only to those it concerns.
Method: commands and results of one transfer, seen by its two merchants and a third.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.identifiers import uuid_text
from gateway.reply import encode
from gateway.transfers import (
    is_replay,
    move_command,
    moved_transfer,
    rejection,
    reuse_error,
    short_by_told,
    visible_transfer,
)
from gateway.wire import DepositRequest, Transfer, TransferRequest, WithdrawalRequest
from processor.core.commands import Terms, TransferType
from processor.core.reject_reason import RejectReason
from processor.flow.frames import FilledIn, KeyReused, Pending, Posted, Rejected
from processor.storage.transfer_found import TransferFound, TransferSide

COMMAND = move_command(TransferRequest("a", "b", 5, "EUR", "ref", {"k": 1}), "acme", "key")
AT_US = 1_700_000_000_000_000

FOUND = TransferFound(
    bytes(16),
    TransferType.TRANSFER,
    "posted",
    None,
    "acme",
    TransferSide("a", "acme", 95, 3),
    TransferSide("b", "globex", 5, 1),
    "EUR",
    5,
    "ref",
    '{"k":1}',
    0,
    8,
    AT_US,
)


def shown(value: Any) -> Any:
    return json.loads(encode(value))


def seen(found: TransferFound, merchant_id: str) -> Transfer:
    transfer = visible_transfer(found, merchant_id)
    assert transfer is not None
    return transfer


def posted(transfer_id: bytes, *, repeated: bool = False) -> Posted:
    return Posted(transfer_id, 8, AT_US, 95, 3, repeated)


def test_commands_name_the_callers_side() -> None:
    """
    A deposit has no source and a withdrawal no destination, and their keys differ by wallet.
    """
    deposit = move_command(DepositRequest("a", 5, "EUR"), "acme", "key")
    withdrawal = move_command(WithdrawalRequest("a", 5, "EUR"), "acme", "key")

    assert (deposit.transfer_type, deposit.source, deposit.destination) == (2, "", "a")
    assert (withdrawal.transfer_type, withdrawal.source, withdrawal.destination) == (3, "a", "")
    assert deposit.key == withdrawal.key == COMMAND.key
    assert move_command(DepositRequest("b", 5, "EUR"), "acme", "key").key != COMMAND.key
    assert move_command(DepositRequest("a", 5, "EUR"), "globex", "key").key != COMMAND.key


def test_shows_what_was_posted() -> None:
    """
    The reply repeats the request, and adds the balance, the version and the time.
    """
    assert shown(moved_transfer(COMMAND, posted(COMMAND.transfer_id), 3)) == {
        "id": uuid_text(COMMAND.transfer_id),
        "type": "transfer",
        "status": "posted",
        "reason": None,
        "source": "a",
        "destination": "b",
        "amount": 5,
        "currency": "EUR",
        "reference": "ref",
        "metadata": {"k": 1},
        "balance": 95,
        "version": 3,
        "shard": 3,
        "sequence": 8,
        "created_at": "2023-11-14T22:13:20.000000Z",
        "linked_to": None,
        "short_by": None,
    }


def test_shows_what_is_pending() -> None:
    """
    Neither a balance nor a reason yet; the record is the one that set the money aside.
    """
    result = Pending(COMMAND.transfer_id, 8, AT_US, repeated=False)

    transfer = moved_transfer(COMMAND, result, 1)

    assert (transfer.status, transfer.reason) == ("pending", None)
    assert (transfer.balance, transfer.version) == (None, None)
    assert (transfer.shard, transfer.sequence) == (1, 8)


TOLD_WITH_A_TRANSFER = [
    reason
    for reason in RejectReason
    if reason < RejectReason.WALLET_UNKNOWN and reason != RejectReason.HOLD_UNKNOWN
]


@pytest.mark.parametrize("reason", TOLD_WITH_A_TRANSFER)
def test_shows_what_was_rejected(reason: RejectReason) -> None:
    """
    Each reason of the ledger is a problem with the transfer inside, and no balance.
    """
    result = Rejected(COMMAND.transfer_id, 8, AT_US, reason, repeated=False)

    refusal = rejection(COMMAND, result, 0)

    transfer = shown(refusal.body())["transfer"]
    assert (refusal.kind.code, transfer["reason"]) == (reason.code, reason.code)
    assert (transfer["status"], transfer["balance"], transfer["version"]) == (
        "rejected",
        None,
        None,
    )
    assert refusal.headers == ()


def test_of_an_unknown_hold_nothing_is_shown() -> None:
    """
    Nobody knows what a capture of no hold would have moved.
    """
    result = Rejected(COMMAND.transfer_id, 8, AT_US, RejectReason.HOLD_UNKNOWN, repeated=False)

    body = rejection(COMMAND, result, 0).body()

    assert (body["code"], "transfer" in body) == ("hold_unknown", False)


@pytest.mark.parametrize("reason", TOLD_WITH_A_TRANSFER)
def test_the_shortage_is_of_the_own_wallet(reason: RejectReason) -> None:
    """
    A payer is never told by how much somebody else's wallet is too full; the owner is.
    """
    is_of_destination = "balance" in reason.code or reason.code.startswith("credit_")

    told = short_by_told(TransferType.TRANSFER, reason, 7)

    assert told == (None if is_of_destination else 7)
    assert short_by_told(TransferType.DEPOSIT, reason, 7) == 7
    assert short_by_told(TransferType.DEPOSIT, reason, 0) is None


def test_conditions_are_terms() -> None:
    """
    What a request is bound to goes along; a plain one has no terms, which is the fast way.
    """
    bound = TransferRequest("a", "b", 5, "EUR", if_version=3, if_available_gte=-2, up_to=True)

    assert COMMAND.terms is None
    assert move_command(bound, "acme", "key").terms == Terms(
        if_version=3, if_available_gte=-2, amount_max=5
    )
    assert move_command(DepositRequest("a", 5, "EUR", if_version=0), "acme", "key").terms == Terms(
        if_version=0
    )


def test_shows_what_the_ledger_filled_in() -> None:
    """
    What was left open is shown as it was moved; the ledger's own wallets stay unnamed.
    """
    request = WithdrawalRequest("a", 5, "EUR", up_to=True)
    command = move_command(request, "acme", "key")
    filled_in = FilledIn("a", "$world:0:EUR", "EUR", 3)
    result = Posted(command.transfer_id, 8, AT_US, 0, 3, repeated=False, filled_in=filled_in)

    transfer = moved_transfer(command, result, 0)

    assert (transfer.source, transfer.destination, transfer.amount) == ("a", None, 3)


def test_a_replay_is_another_requests_transfer() -> None:
    """
    What the gateway itself sent twice is the first answer, not a replay.
    """
    own, other = COMMAND.transfer_id, bytes(16)

    assert not is_replay(COMMAND, posted(own))
    assert not is_replay(COMMAND, posted(own, repeated=True))
    assert is_replay(COMMAND, posted(other, repeated=True))
    # In the words of a first answer, because another request was pending when it asked.
    assert is_replay(COMMAND, posted(other))
    replayed = rejection(COMMAND, Rejected(other, 8, AT_US, 100, repeated=True), 0)
    assert replayed.headers == ((b"idempotent-replayed", b"true"),)


@pytest.mark.parametrize(
    ("field", "pointer"), [("amount", "/amount"), ("source", "/source"), ("type", "")]
)
def test_points_at_what_differs(field: str, pointer: str) -> None:
    """
    A key that was used for something else points at the difference.
    """
    assert reuse_error(KeyReused(field)).pointer == pointer


def test_each_side_sees_its_own_balance() -> None:
    """
    The one who paid and the one who was paid see the same transfer with different balances.
    """
    payer, payee = seen(FOUND, "acme"), seen(FOUND, "globex")

    assert (payer.balance, payer.version) == (95, 3)
    assert (payee.balance, payee.version) == (5, 1)
    same = msgspec.structs.replace(payee, balance=95, version=3)
    assert shown(same) == shown(payer)


def test_nobody_else_sees_it() -> None:
    """
    For a third merchant there is no such transfer.
    """
    assert visible_transfer(FOUND, "initech") is None


def test_a_rejection_concerns_who_asked() -> None:
    """
    What did not happen is not in anybody else's history.
    """
    rejected = msgspec.structs.replace(
        FOUND,
        state="rejected",
        reason=RejectReason.INSUFFICIENT_FUNDS,
        source=TransferSide("a", "acme", None, None),
        destination=TransferSide("b", "globex", None, None),
    )

    assert seen(rejected, "acme").reason == "insufficient_funds"
    assert visible_transfer(rejected, "globex") is None


SETTLED = msgspec.structs.replace(FOUND, destination=TransferSide("b", "globex", None, None))
CREDITED = msgspec.structs.replace(
    FOUND,
    source=TransferSide("a", "acme", None, None),
    shard_id=1,
    sequence=5,
    is_credit=True,
)


def test_between_shards_each_side_sees_its_own_shard() -> None:
    """
    Who asked sees the source's record, who was paid the destination's, and nobody the other's.
    """
    assert visible_transfer(CREDITED, "acme") is None
    assert visible_transfer(SETTLED, "globex") is None
    payer, payee = seen(SETTLED, "acme"), seen(CREDITED, "globex")

    assert (payer.status, payer.shard, payer.sequence, payer.balance) == ("posted", 0, 8, 95)
    assert (payee.status, payee.shard, payee.sequence, payee.balance) == ("posted", 1, 5, 5)


def test_what_is_pending_concerns_who_asked() -> None:
    """
    Also when both wallets are theirs and the money has arrived: the source has not settled it.
    """
    both_own = TransferSide("b", "acme", None, None)
    on_its_way = msgspec.structs.replace(
        SETTLED, state="pending", source=TransferSide("a", "acme", None, None), destination=both_own
    )
    credited = msgspec.structs.replace(CREDITED, destination=TransferSide("b", "acme", 5, 1))

    assert seen(on_its_way, "acme").status == "pending"
    assert visible_transfer(on_its_way, "globex") is None
    assert visible_transfer(credited, "acme") is None


def test_a_deposit_shows_its_only_wallet() -> None:
    """
    Outside money has no wallet to show, and the balance is the one that grew.
    """
    deposit = msgspec.structs.replace(
        FOUND,
        transfer_type=TransferType.DEPOSIT,
        source=None,
        destination=TransferSide("a", None, 100, 1),
    )

    transfer = seen(deposit, "acme")

    assert (transfer.type, transfer.source, transfer.balance) == ("deposit", None, 100)


def test_no_metadata_is_an_empty_object() -> None:
    """
    A reader finds an object in any case.
    """
    bare = msgspec.structs.replace(FOUND, metadata=None)

    assert shown(seen(bare, "acme"))["metadata"] == {}
