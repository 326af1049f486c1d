"""
Goal: a sweep is one transfer a shard under derived keys, and its answer adds them up.
Method: what shards may answer, and fees as the tables have them.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from configs.settings import Settings
from gateway.fee_wire import SweepRequest
from gateway.fees import shown_fees, sweep_command, sweep_errors, sweep_reply
from gateway.problems import Refusal
from gateway.shard_client import OutcomeUnknown, ShardOverloaded, ShardUnavailable
from gateway.shard_clients import Told
from gateway.validation import Validation
from processor.core.commands import shard_asked
from processor.core.reject_reason import RejectReason
from processor.flow.frames import FilledIn, KeyReused, Pending, Posted, Rejected
from processor.storage.fee_listing import FeesRow

REQUEST = SweepRequest("EUR", "till")
COMMANDS = [sweep_command(REQUEST, shard_id, "acme", "key") for shard_id in (0, 1)]
AT_US = 1_700_000_000_000_000


def filled(place: int, amount: int) -> FilledIn:
    command = COMMANDS[place]
    return FilledIn(command.source, command.destination, command.currency, amount)


def posted(place: int, amount: int) -> Told:
    result = Posted(COMMANDS[place].transfer_id, 1, AT_US, 0, 2, False, filled(place, amount))
    return result, place


def pending(place: int, amount: int) -> Told:
    return Pending(COMMANDS[place].transfer_id, 1, AT_US, False, filled(place, amount)), place


def rejected(place: int, reason: RejectReason) -> Told:
    return Rejected(
        COMMANDS[place].transfer_id, 1, AT_US, reason, False, 1, filled(place, 1)
    ), place


def test_each_shard_is_asked_under_a_key_of_its_own() -> None:
    """
    The same for the same sweep, another for another destination.
    """
    assert [shard_asked(command) for command in COMMANDS] == [0, 1]
    keys = {command.key for command in COMMANDS}
    again = {sweep_command(REQUEST, n, "acme", "key").key for n in (0, 1)}
    other = {sweep_command(SweepRequest("EUR", "safe"), n, "acme", "key").key for n in (0, 1)}
    assert keys == again
    assert len(keys | other) == 4


def test_what_moved_is_added_up() -> None:
    """
    What is on its way is told apart, with where to look.
    """
    reply = sweep_reply(REQUEST, COMMANDS, [posted(0, 30), posted(1, 12)])
    told: Any = json.loads(reply.body)
    assert (reply.status, told["amount"], told["pending"]) == (201, 42, 0)
    assert {one["source"] for one in told["transfers"]} == {None}
    reply = sweep_reply(REQUEST, COMMANDS, [posted(0, 30), pending(1, 12)])
    told = json.loads(reply.body)
    assert (reply.status, told["amount"], told["pending"]) == (202, 30, 12)
    location = f"/v1/transfers/{told['transfers'][1]['id']}".encode()
    assert (b"location", location) in reply.headers


@pytest.mark.parametrize("reason", [RejectReason.SOURCE_UNKNOWN, RejectReason.INSUFFICIENT_FUNDS])
def test_a_shard_that_has_nothing_is_left_out(reason: RejectReason) -> None:
    """
    And when none has anything, nothing is wrong.
    """
    one = sweep_reply(REQUEST, COMMANDS, [posted(0, 30), rejected(1, reason)])
    assert (one.status, len(json.loads(one.body)["transfers"])) == (201, 1)
    none = sweep_reply(REQUEST, COMMANDS, [rejected(0, reason), rejected(1, reason)])
    assert (none.status, json.loads(none.body)["transfers"]) == (200, [])


def test_a_refusal_is_told_beside_what_moved() -> None:
    """
    Alone it is the answer.
    """
    locked = RejectReason.DESTINATION_LOCKED
    mixed = sweep_reply(REQUEST, COMMANDS, [posted(0, 30), rejected(1, locked)])
    assert [one["status"] for one in json.loads(mixed.body)["transfers"]] == ["posted", "rejected"]
    nothing = rejected(0, RejectReason.SOURCE_UNKNOWN)
    with pytest.raises(Refusal, match="destination_locked"):
        sweep_reply(REQUEST, COMMANDS, [nothing, rejected(1, locked)])


def test_another_outcome_is_a_replay() -> None:
    """
    As soon as one shard had done it before.
    """
    before = Posted(bytes(16), 1, AT_US, 0, 2, True, filled(1, 5))
    reply = sweep_reply(REQUEST, COMMANDS, [posted(0, 30), (before, 1)])
    assert (b"idempotent-replayed", b"true") in reply.headers
    with pytest.raises(Refusal, match="idempotency_key_reused"):
        sweep_reply(REQUEST, COMMANDS, [posted(0, 30), (KeyReused("type"), 1)])


def test_what_may_have_moved_is_unknown() -> None:
    """
    Only when no shard can have moved anything, nothing has happened.
    """
    down, busy = ShardUnavailable("down"), ShardOverloaded(10)
    for told in ([posted(0, 3), (down, 1)], [(OutcomeUnknown("?"), 0), (down, 1)]):
        with pytest.raises(OutcomeUnknown):
            sweep_reply(REQUEST, COMMANDS, told)
    with pytest.raises(ShardOverloaded):
        sweep_reply(REQUEST, COMMANDS, [(busy, 0), (down, 1)])


def test_fees_are_shown_by_currency() -> None:
    """
    In order, with their sum.
    """
    rows = [FeesRow("USD", 0, 7, 1), FeesRow("EUR", 1, 5, 2), FeesRow("EUR", 0, 3, 1)]
    shown = shown_fees(rows).fees
    assert [(one.currency, one.balance) for one in shown] == [("EUR", 8), ("USD", 7)]
    assert [shard.shard for shard in shown[0].shards] == [0, 1]


def test_a_sweep_names_a_wallet_and_a_currency() -> None:
    """
    Of the configuration, and no wallet of the ledger's own.
    """
    validation = Validation(Settings())
    assert sweep_errors(validation, REQUEST) == []
    pointers = [e.pointer for e in sweep_errors(validation, SweepRequest("EURO", "$fees:0:EUR:a"))]
    assert pointers == ["/destination", "/currency"]
