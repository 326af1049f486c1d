"""
Goal: what the journals say of a transfer is told step by step, with the caller's own balances and
      nobody else's, and a refusal by its check.
Method: two and three shards do what is explained, sealed record by record; their whole journals
        are told.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gateway.explained_steps import Subject, sent_entries, steps_of
from gateway.explanation_wire import Step, StepText
from gateway.explanations import (
    CLOCKS_DIFFER_US,
    amount_judged,
    check_of,
    made_us,
    measure,
    sought_at_home,
    sought_at_peers,
)
from gateway.identifiers import new_transfer_id, uuid_text
from gateway.reject_rules import RULES, checks_before
from processor.core.commands import GiveSlot, MoveLinked, TransferType
from processor.core.decisions import LinkedRejected, decode_decisions
from processor.core.leg_ids import leg_id, linked_id_in
from processor.core.reject_reason import RejectReason
from processor.core.slots import slot_of
from processor.storage.journal_search import Mention
from processor.storage.linked_search import LinkedFound
from processor.storage.transfer_found import TransferFound, TransferSide
from tests.support.bound_commands import capture, hold_id_of, leg, linked, place, refund, up_to
from tests.support.commands import AT_US, deposit, identifier, open_wallet, transfer
from tests.support.money_net import ALSO_HERE, FAR, HERE, LEAVES, NOBODY, THERE, MoneyNet

R = RejectReason


def funded_net() -> MoneyNet:
    net = MoneyNet()
    for shard, names in ((net.zero, [HERE, ALSO_HERE]), (net.one, [THERE, LEAVES])):
        for name in names:
            shard.ask(open_wallet(name), deposit(name, 1_000, key=f"to {name}"))
    net.two.ask(open_wallet(FAR), deposit(FAR, 1_000, key="to far"))
    return net


def journals(net: MoneyNet) -> list[Mention]:
    return [
        Mention(one.shard_id, one.sequence, one.at_us, decode_decisions(one.payload, one.format))
        for shard in net.shards
        for one in shard.records
    ]


def subject(transfer_id: bytes, amount: int, source: str, **fields: Any) -> Subject:
    known = {"linked_id": None, "hold_id": None, "refund_of": None, "own": frozenset([source])}
    known["is_asker"] = True
    return Subject(transfer_id=transfer_id, amount=amount, source=source, **(known | fields))


def told(net: MoneyNet, asked: Subject) -> list[Step]:
    return steps_of(journals(net), asked)


def kinds(steps: list[Step]) -> list[tuple[StepText, int]]:
    return [(step.step, step.shard) for step in steps]


def test_a_transfer_at_home() -> None:
    """
    One step, with what both wallets had when both are the caller's.
    """
    net = funded_net()
    net.zero.ask(transfer(HERE, ALSO_HERE, 30, key="t"))
    both = frozenset([HERE, ALSO_HERE])
    (step,) = told(net, subject(identifier("transfer of t"), 30, HERE, own=both))
    assert step.step == "posted"
    assert [(one.had, one.has) for one in step.wallets] == [(1_000, 970), (1_000, 1_030)]
    (step,) = told(net, subject(identifier("transfer of t"), 30, HERE))
    assert [one.wallet for one in step.wallets] == [HERE]


def test_a_transfer_across() -> None:
    """
    Each step with its entry; the balance where the caller's wallet changed.
    """
    net = funded_net()
    net.zero.ask(transfer(HERE, THERE, 30, key="t"), transfer(HERE, THERE, 7, key="other"))
    net.quiet()
    steps = told(net, subject(identifier("transfer of t"), 30, HERE))
    assert kinds(steps) == [("reserved", 0), ("credited", 1), ("settled", 0)]
    assert {(s.entry.source, s.entry.destination, s.entry.number) for s in steps if s.entry} == {
        (0, 1, 1)
    }
    assert [len(step.wallets) for step in steps] == [0, 0, 1]
    assert (steps[2].wallets[0].had, steps[2].wallets[0].has) == (1_000, 970)


def test_a_transfer_that_is_refused_there() -> None:
    """
    What the other shard answered names no transfer; its entry does.
    """
    net = funded_net()
    net.zero.ask(transfer(HERE, NOBODY, 30, key="t"), transfer(HERE, THERE, 7, key="other"))
    net.quiet()
    steps = told(net, subject(identifier("transfer of t"), 30, HERE))
    assert kinds(steps) == [("reserved", 0), ("refused", 1), ("released", 0)]


def test_a_transfer_that_follows_a_slot() -> None:
    """
    It is not there, is called back, and decided anew in the same record.
    """
    net = funded_net()
    net.one.ask(GiveSlot(slot_of(LEAVES), 2))
    net.go(1, 2)
    net.zero.ask(transfer(HERE, LEAVES, 30, key="t"))
    net.quiet()
    steps = told(net, subject(identifier("transfer of t"), 30, HERE))
    assert kinds(steps) == [
        ("reserved", 0),
        ("elsewhere", 1),
        ("recalled", 0),
        ("reserved", 0),
        ("credited", 2),
        ("settled", 0),
    ]
    assert "shard 2" in steps[1].text


def test_what_is_counted_beside_it() -> None:
    """
    How a hold is after a capture, and how much has gone back after a refund.
    """
    net = funded_net()
    hold_id = hold_id_of(HERE)
    net.zero.ask(place(HERE, 100, destination=THERE))
    net.zero.ask(capture(hold_id, 40, key="c"))
    net.quiet()
    captured = subject(identifier("transfer of c"), 40, HERE, hold_id=hold_id)
    first, _, last = told(net, captured)
    assert f"Hold {uuid_text(hold_id)} is open: captured 0, on its way 40." in first.text
    assert "captured 40, on its way 0." in last.text
    net.one.ask(refund("c", THERE, HERE, 15, refundable=40, key="r"))
    of = identifier("transfer of c")
    steps = told(net, subject(identifier("transfer of r"), 15, THERE, refund_of=of))
    assert "Gone back in all, or on its way: 15." in steps[0].text


def test_who_is_paid_is_told_nothing_of_the_payer() -> None:
    """
    Not what else a hold has paid, and not how many legs there were.
    """
    net = funded_net()
    hold_id = hold_id_of(HERE)
    net.zero.ask(place(HERE, 100, destination=ALSO_HERE))
    net.zero.ask(capture(hold_id, 40, key="c"))
    transfer_id = identifier("transfer of c")
    payee = {"own": frozenset([ALSO_HERE]), "hold_id": hold_id, "is_asker": False}
    (step,) = told(net, subject(transfer_id, 40, HERE, **payee))
    assert step.text == "Decided here, and the money moved."
    assert [one.wallet for one in step.wallets] == [ALSO_HERE]
    command = asked(leg(HERE, ALSO_HERE, 1), leg(HERE, ALSO_HERE, 2), key="l")
    net.zero.ask(command)
    (step,) = told(net, leg_of(command, 0, own=frozenset([ALSO_HERE]), is_asker=False))
    assert (step.step, "legs" in step.text) == ("posted", False)
    (step,) = told(net, leg_of(command, 0))
    assert "all 2 legs" in step.text


# --- Legs -------------------------------------------------------------------------------------


def asked(*legs: Any, key: str) -> MoveLinked:
    command = linked(*legs, key=key)
    linked_id = linked_id_in(command.linked_id)
    legs = [replace(one, transfer_id=leg_id(linked_id, n)) for n, one in enumerate(command.legs)]
    return replace(command, linked_id=linked_id, legs=legs)


def leg_of(command: MoveLinked, number: int, **fields: Any) -> Subject:
    one = command.legs[number]
    whole = {"linked_id": command.linked_id}
    return subject(one.transfer_id, one.amount, one.source, **(whole | fields))


def test_a_leg_between_two_others() -> None:
    """
    Begun, asked, prepared, voted; posted, told, followed, confirmed by both; done. Its balances are
    told where they changed, and no other leg's.
    """
    net = funded_net()
    command = asked(leg(HERE, ALSO_HERE, 1), leg(THERE, FAR, 20), key="l")
    net.zero.ask(command)
    net.quiet()
    steps = told(net, leg_of(command, 1, own=frozenset([HERE, THERE, FAR])))
    assert sorted(kinds(steps)) == sorted(
        [
            *[("begun", 0), ("posted", 0), ("done", 0)],
            *[(step, 0) for step in ("asked", "voted", "told", "confirmed") for _ in (1, 2)],
            *[(step, shard) for step in ("prepared", "followed") for shard in (1, 2)],
        ]
    )
    changes = {one.wallet: (one.had, one.has) for step in steps for one in step.wallets}
    assert changes == {THERE: (1_000, 980), FAR: (1_000, 1_020)}


def test_a_leg_that_fails() -> None:
    """
    The vote says which leg, and why; what was set aside elsewhere is free again.
    """
    net = funded_net()
    command = asked(leg(HERE, THERE, 1), leg(FAR, HERE, 9_999), key="l")
    net.zero.ask(command)
    net.quiet()
    steps = told(net, leg_of(command, 0))
    texts = {step.step: step.text for step in steps}
    assert "no: leg 1 fails with insufficient_funds" in " ".join(s.text for s in steps)
    assert "(leg 1)" in texts["refused"]
    assert "leg 1 fails: insufficient_funds" in texts["rejected"]
    assert ("followed", 1) in kinds(steps)


def test_a_leg_that_is_begun_anew() -> None:
    """
    A vote says where the wallet went, and the next attempt begins.
    """
    net = funded_net()
    net.one.ask(GiveSlot(slot_of(LEAVES), 2))
    net.go(1, 2)
    command = asked(leg(HERE, LEAVES, 3), leg(HERE, ALSO_HERE, 4), key="l")
    net.zero.ask(command)
    net.quiet()
    steps = told(net, leg_of(command, 0))
    assert [step.step for step in steps].count("begun") == 2
    assert any("last seen at shard 2" in step.text for step in steps if step.step == "voted")
    assert any("attempt 2" in step.text for step in steps)
    assert {"called_back", "elsewhere", "done"} <= {step.step for step in steps}


def test_clocks_may_differ() -> None:
    """
    An answer is told after its entry, however late the clock of the one shard or early that of the
    other is; and what was taken in after the answer.
    """
    net = funded_net()
    net.zero.ask(transfer(HERE, THERE, 30, key="t"))
    net.quiet()
    own = subject(identifier("transfer of t"), 30, HERE)
    for behind in (0, -1_000_000, 1_000_000):
        skewed = [
            replace(one, at_us=one.at_us + (behind if one.shard_id == 1 else 0))
            for one in journals(net)
        ]
        assert kinds(steps_of(skewed, own)) == [("reserved", 0), ("credited", 1), ("settled", 0)]
        assert steps_of([*skewed, *skewed], own) == steps_of(skewed, own)


# --- Where it is looked for -------------------------------------------------------------------


def view(**fields: Any) -> TransferFound:
    found = TransferFound(
        new_transfer_id(),
        TransferType.TRANSFER,
        "rejected",
        R.INSUFFICIENT_FUNDS,
        "acme",
        TransferSide("a", "acme", None, None),
        TransferSide("b", "acme", None, None),
        "EUR",
        100,
        None,
        None,
        0,
        8,
        AT_US,
        short_by=30,
    )
    return replace(found, **fields)


def test_an_id_tells_when_it_was_made() -> None:
    """
    To the millisecond; an id of another kind tells nothing, and all is read.
    """
    assert made_us(bytes.fromhex("0190163d86947000a000000000000000")) == 0x0190163D8694 * 1_000
    assert made_us(bytes(16)) == 0


def test_it_is_looked_for_up_to_where_it_ended() -> None:
    """
    At each shard that tells of it; where a linked transfer is not done, to the journal's end.
    """
    one, two = view(sequence=8), view(sequence=12)
    two = replace(two, transfer_id=one.transfer_id)
    (sought,) = sought_at_home(subject(one.transfer_id, 1, "a"), [one, two], None)
    assert (sought.shard_id, sought.last) == (0, 12)
    assert sought.since_us == made_us(one.transfer_id) - CLOCKS_DIFFER_US
    assert sought.pieces == [one.transfer_id[:15]]
    rejected = LinkedRejected(b"", b"", "acme", [], 0, R.SOURCE_UNKNOWN)
    for is_done, last in ((True, 40), (False, None)):
        found = LinkedFound(rejected, is_done, 3, 40, AT_US)
        homes = sought_at_home(subject(one.transfer_id, 1, "a"), [one], found)
        assert [(home.shard_id, home.last) for home in homes] == [(0, 8), (3, last)]


def test_entries_are_looked_for_where_they_were_sent() -> None:
    """
    By their chains, up to a moment after the last that is known; while one is not answered, to the
    end.
    """
    net = funded_net()
    net.zero.ask(transfer(HERE, THERE, 30, key="t"))
    asked_for = subject(identifier("transfer of t"), 30, HERE)
    own = [one for one in journals(net) if sent_entries([one], asked_for)]
    (open_end,) = sought_at_peers(own, asked_for)
    assert (open_end.shard_id, open_end.until_us) == (1, None)
    ((_, entry),) = sent_entries(own, asked_for)
    assert open_end.pieces == [entry.chain]
    later = Mention(0, 99, own[0].at_us + 50, [])
    (bounded,) = sought_at_peers([*own, later], asked_for)
    assert bounded.until_us == own[0].at_us + 50 + CLOCKS_DIFFER_US
    assert bounded.since_us == own[0].at_us - CLOCKS_DIFFER_US


# --- Why it was refused -----------------------------------------------------------------------


def test_each_reason_has_a_rule() -> None:
    """
    Each that money can be refused for, in their order; those before it are told as codes.
    """
    assert list(RULES) == [reason for reason in sorted(R) if reason < R.WALLET_UNKNOWN]
    assert checks_before(R.WALLETS_IDENTICAL) == []
    before = checks_before(R.INSUFFICIENT_FUNDS)
    assert before[0] == "wallets_identical"
    assert before[-1] == "available_below_condition"


@pytest.mark.parametrize(
    ("reason", "short_by", "text"),
    [
        (R.INSUFFICIENT_FUNDS, 30, "100 was asked for and 70 could be spent: 30 missing."),
        (R.CAPTURE_EXCEEDS_HOLD, 30, "100 was asked for and 70 was kept: 30 missing."),
        (R.REFUND_EXCEEDS_PAID, 30, "100 was asked for and 70 was left: 30 too much."),
        (R.INSUFFICIENT_FUNDS, 130, "It failed by 130."),
        (R.VERSION_DIFFERS, 2, "The wallet's version was 2 away from the one that was named."),
        (R.DEBIT_COUNT_DAY_EXCEEDED, 1, "It failed by 1."),
        (R.SOURCE_LOCKED, None, "There is no measure of it, or it is not of your own wallet."),
    ],
)
def test_it_is_measured(reason: RejectReason, short_by: int | None, text: str) -> None:
    """
    In what there was, where that follows from what was missing.
    """
    assert measure(100, reason, short_by) == text


def test_a_check_is_told_as_far_as_it_concerns_the_caller() -> None:
    """
    Nothing failed of what was posted; nobody is told how full another's wallet is.
    """
    assert check_of(view(reason=None, state="posted"), None, []) is None
    check = check_of(view(), None, [])
    assert check is not None
    assert (check.reason, check.short_by) == ("insufficient_funds", 30)
    foreign = check_of(view(reason=R.BALANCE_MAX_EXCEEDED), None, [])
    assert foreign is not None
    assert foreign.short_by is None


def test_the_amount_of_what_may_be_less_is_the_smallest() -> None:
    """
    That is what could not be moved.
    """
    net = funded_net()
    net.zero.ask(open_wallet("poor" + HERE), up_to(transfer(NOBODY, HERE, 500, key="nobody")))
    net.zero.ask(transfer(HERE, ALSO_HERE, 1_000, key="all"))
    net.zero.ask(up_to(transfer(HERE, ALSO_HERE, 500, key="up to")))
    refused = view(transfer_id=identifier("transfer of up to"), amount=500, short_by=1)
    assert amount_judged(refused, journals(net)) == 1
    assert amount_judged(view(), journals(net)) == 100
