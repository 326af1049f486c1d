"""
Goal: a slot goes to another shard with everything that belongs to it, money that was on its way to
      it still arrives once, and everybody finds it.
Method: three shards in one process (`shard_net`); each test moves slots at the worst moment.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from processor.core import decide_slots
from processor.core.channel import ChannelBroken, SlotEntry
from processor.core.commands import Command, GiveSlot, MoveMoney, SetWalletStatus
from processor.core.decide_slots import SLOT_DUE_MAX
from processor.core.decisions import (
    DECISION_FORMAT,
    Decision,
    EntryElsewhere,
    HoldChanged,
    SlotGiven,
    SlotTaken,
    TransferPosted,
    TransferRecalled,
    TransferRejected,
    TransferReserved,
    WalletOpened,
    decode_decisions,
)
from processor.core.hold import HoldStatus
from processor.core.invariants import books
from processor.core.reject_reason import RejectReason
from processor.core.slots import NOWHERE, slot_of
from processor.core.wallet import WalletStatus
from processor.flow.frames import (
    HoldFound,
    Moved,
    Pending,
    Posted,
    Rejected,
    Result,
    SlotKept,
    SlotLeft,
    WalletFound,
)
from tests.support.bound_commands import capture, place, read_hold
from tests.support.commands import (
    MERCHANT,
    deposit,
    open_wallet,
    read_wallet,
    transfer,
    withdrawal,
)
from tests.support.shard_net import ShardNet, names_on

SHARD_COUNT = 3
PAYER, SECOND = names_on(0, SHARD_COUNT)[:2]
PAYEE, NOBODY = names_on(1, SHARD_COUNT)[:2]
FAR = names_on(2, SHARD_COUNT)[0]
PAYEES_SLOT = slot_of(PAYEE)


@pytest.fixture
def net() -> ShardNet:
    """
    A payer with 100 at shard 0, a payee at shard 1, one more at shard 2, and open channels.
    """
    made = ShardNet(SHARD_COUNT)
    made.ask(0, [open_wallet(PAYER), deposit(PAYER, 100, key="first"), open_wallet(SECOND)])
    made.ask(1, [open_wallet(PAYEE), deposit(PAYEE, 7, key="payee's own")])
    made.ask(2, [open_wallet(FAR)])
    made.settle()
    return made


def ask(net: ShardNet, shard_id: int, command: Command) -> Result:
    net.ask(shard_id, [command])
    net.commit(shard_id)
    return net.replies[-1][1][0]


def give(net: ShardNet, source: int, peer: int, slot: int = PAYEES_SLOT) -> Result:
    return ask(net, source, GiveSlot(slot, peer))


def payment(destination: str = PAYEE, amount: int = 10, key: str = "pay") -> MoveMoney:
    return transfer(PAYER, destination, amount, key=key)


def decided(net: ShardNet, shard_id: int) -> list[Decision]:
    return [
        decision
        for payload in net.shards[shard_id].journal
        for decision in decode_decisions(payload, DECISION_FORMAT)
    ]


def kinds(net: ShardNet, shard_id: int, *wanted: type) -> list[type]:
    return [type(one) for one in decided(net, shard_id) if isinstance(one, wanted)]


def balance(net: ShardNet, shard_id: int, wallet_id: str) -> int:
    return net.shards[shard_id].state.wallets[wallet_id].posted


def check_books(net: ShardNet) -> None:
    for shard in net.shards:
        assert not any(books(shard.all_wallets()).values())


def test_a_slot_goes_with_all_that_is_in_it(net: ShardNet) -> None:
    """
    The wallet keeps its balance, version, minimum and status; a wallet without money goes too.
    """
    ask(net, 1, SetWalletStatus(MERCHANT, PAYEE, WalletStatus.FROZEN))
    before = net.shards[1].state.wallets[PAYEE].facts()

    assert give(net, 1, 2) == SlotLeft(PAYEES_SLOT, 2, 1)

    assert PAYEE not in net.shards[1].state.wallets
    assert net.shards[1].state.leaving == {}
    net.settle()
    assert net.shards[2].state.wallets[PAYEE].facts() == before
    assert net.shards[1].state.wallets["$due:1:2:EUR"].posted == 7
    assert net.shards[2].state.wallets["$due:2:1:EUR"].posted == -7
    assert net.owners()[PAYEES_SLOT] == [2]
    assert net.catalog.owner(PAYEES_SLOT) == 2
    check_books(net)


def test_a_slot_on_its_way_is_nobodys(net: ShardNet) -> None:
    """
    Until the new owner has it, each shard sends on; then there is one answer.
    """
    give(net, 1, 2)
    assert ask(net, 1, read_wallet(PAYEE)) == Moved(2)
    assert ask(net, 2, read_wallet(PAYEE)) == Moved(1)
    net.settle()
    found = ask(net, 2, read_wallet(PAYEE))
    assert isinstance(found, WalletFound)
    assert (found.posted, found.version) == (7, 1)
    assert ask(net, 1, read_wallet(PAYEE)) == Moved(2)


def test_an_outcome_goes_with_its_slot(net: ShardNet) -> None:
    """
    The same key at the new owner has the answer that the old one gave, with its record.
    """
    asked = deposit(PAYEE, 7, key="payee's own")
    first = ask(net, 1, asked)
    give(net, 1, 2)
    net.settle()
    assert ask(net, 2, asked) == first
    assert balance(net, 2, PAYEE) == 7


def test_an_outcome_that_the_tables_have_stays_behind(net: ShardNet) -> None:
    """
    What is durably in the tables is looked up there: it does not go along.
    """
    net.shards[1].project(99, durably=True)
    give(net, 1, 2)
    (given,) = [one for one in decided(net, 1) if isinstance(one, SlotGiven)]
    assert given.outcomes == []
    net.settle()
    again = ask(net, 2, deposit(PAYEE, 7, key="payee's own"))
    assert isinstance(again, Posted)
    assert again.repeated


def test_an_outcome_of_either_generation_goes_along(net: ShardNet) -> None:
    """
    The older one counts too, but not for what was on its way then and is settled since.
    """
    ask(net, 1, transfer(PAYEE, FAR, 1, key="paid"))
    net.shards[1].state.keys.rotate(0)
    net.settle()
    give(net, 1, 2)
    (given,) = [one for one in decided(net, 1) if isinstance(one, SlotGiven)]
    kinds_carried = [type(outcome.decision) for outcome in given.outcomes]
    assert kinds_carried == [TransferPosted, TransferPosted]


def test_tables_that_may_fall_back_do_not_count(net: ShardNet) -> None:
    """
    Seen in the tables is not durable there: the outcome goes along.
    """
    net.shards[1].project(99, durably=False)
    give(net, 1, 2)
    (given,) = [one for one in decided(net, 1) if isinstance(one, SlotGiven)]
    assert len(given.outcomes) == 1


def test_an_outcome_goes_on_until_tables_have_it(net: ShardNet) -> None:
    """
    The first shard's sequence is low; that says nothing of the tables of the second, which has
    the outcome from a later record of its own.
    """
    asked = deposit(PAYEE, 7, key="payee's own")
    first = ask(net, 1, asked)
    for number in range(9):
        ask(net, 2, deposit(FAR, 1, key=f"more {number}"))
    net.shards[2].project(99, durably=True)
    give(net, 1, 2)
    net.settle()
    give(net, 2, 0)
    net.settle()
    (given,) = [one for one in decided(net, 2) if isinstance(one, SlotGiven)]
    assert [outcome.sequence for outcome in given.outcomes] == [first.sequence]
    assert ask(net, 0, asked) == first


def test_an_outcome_that_the_second_tables_have_does_not_go_on(net: ShardNet) -> None:
    """
    Once the record that took it is in the tables, an outcome is found there.
    """
    asked = deposit(PAYEE, 7, key="payee's own")
    first = ask(net, 1, asked)
    give(net, 1, 2)
    net.settle()
    net.shards[2].project(99, durably=True)
    give(net, 2, 0)
    net.settle()
    (given,) = [one for one in decided(net, 2) if isinstance(one, SlotGiven)]
    assert given.outcomes == []
    assert ask(net, 0, asked) == first


def test_an_outcome_that_came_is_not_forgotten_too_early(net: ShardNet) -> None:
    """
    A low sequence of another journal does not make a key old: its record here does.
    """
    asked = deposit(PAYEE, 7, key="payee's own")
    for number in range(9):
        ask(net, 2, deposit(FAR, 1, key=f"more {number}"))
    net.shards[2].project(99, durably=True)
    net.shards[2].forget()
    give(net, 1, 2)
    net.settle()
    net.shards[2].forget()
    keys = net.shards[2].state.keys
    assert keys.find(asked.key) is not None
    net.shards[2].project(99, durably=True)
    net.shards[2].forget()
    net.shards[2].forget()
    assert keys.find(asked.key) is None
    assert not keys.recorded


def test_money_follows_a_slot_that_left(net: ShardNet) -> None:
    """
    The entry came too late: its money is called back and sent on in one record, and arrives.
    """
    give(net, 1, 2)
    net.settle()
    assert isinstance(ask(net, 0, payment()), Pending)
    net.settle()

    assert isinstance(ask(net, 0, payment()), Posted)
    assert (balance(net, 0, PAYER), balance(net, 2, PAYEE)) == (90, 17)
    (elsewhere,) = [one for one in decided(net, 1) if isinstance(one, EntryElsewhere)]
    assert elsewhere.shard_id == 2
    assert "$due:1:0:EUR" not in net.shards[1].state.wallets
    (record,) = [
        names
        for payload in net.shards[0].journal
        if TransferRecalled in (names := [*map(type, decode_decisions(payload, DECISION_FORMAT))])
    ]
    assert record == [TransferRecalled, WalletOpened, TransferReserved]
    check_books(net)


def test_the_next_money_knows_the_way(net: ShardNet) -> None:
    """
    What one transfer found out spares the others the detour.
    """
    give(net, 1, 2)
    net.settle()
    for key in ("one", "two"):
        ask(net, 0, payment(key=key))
        net.settle()
    assert kinds(net, 0, TransferRecalled) == [TransferRecalled]
    assert balance(net, 2, PAYEE) == 27


def test_a_hint_is_told_to_nobody(net: ShardNet) -> None:
    """
    A shard that gave a slot points to whom it gave it, whatever its own transfers heard since:
    else two shards could point to each other for ever.
    """
    slot = slot_of(PAYER)
    give(net, 0, 1, slot)
    net.settle()
    give(net, 1, 2, slot)
    net.settle()
    back = transfer(SECOND, PAYER, 1, key="to the far one")
    ask(net, 0, deposit(SECOND, 5, key="second's"))
    ask(net, 0, back)
    net.settle()
    assert isinstance(ask(net, 0, back), Posted)
    assert net.shards[0].state.hints == {slot: 2}
    assert ask(net, 0, read_wallet(PAYER)) == Moved(1)


@pytest.mark.parametrize("crashes", [False, True])
def test_money_comes_home(net: ShardNet, crashes: bool) -> None:
    """
    The slot came to the payer's own shard while money was on its way to where it was: then the
    transfer is one between two wallets of one shard.
    """
    net.shards[1].project(99, durably=True)
    ask(net, 0, payment())
    late = net.shards[0].links[1]
    give(net, 1, 0)
    net.turn()
    net.settle()
    assert late.durable_head == 1
    if crashes:
        net.crash(0, written=True, with_tables=True)
    said = ask(net, 0, payment())
    assert isinstance(said, Posted)
    assert (balance(net, 0, PAYER), balance(net, 0, PAYEE)) == (90, 17)
    kinds_at_home = kinds(net, 0, SlotTaken, TransferRecalled, TransferPosted)
    assert kinds_at_home == [TransferPosted, SlotTaken, TransferRecalled, TransferPosted]
    check_books(net)


def test_money_that_comes_home_is_judged_at_its_destination_only(net: ShardNet) -> None:
    """
    A payer that was frozen since does not stop what it sent before; a payee that does not exist
    does, and the money is free again.
    """
    slot = slot_of(NOBODY)
    for key, destination in (("good", PAYEE), ("bad", NOBODY)):
        ask(net, 0, payment(destination, key=key))
    ask(net, 0, SetWalletStatus(MERCHANT, PAYER, WalletStatus.FROZEN))
    for moved in {slot, PAYEES_SLOT}:
        assert isinstance(give(net, 1, 0, moved), SlotLeft)
    net.settle()
    good, bad = ask(net, 0, payment(key="good")), ask(net, 0, payment(NOBODY, key="bad"))
    assert isinstance(good, Posted)
    assert isinstance(bad, Rejected)
    assert bad.reason == RejectReason.DESTINATION_UNKNOWN
    wallet = net.shards[0].state.wallets[PAYER]
    assert (wallet.posted, wallet.reserved) == (90, 0)


def test_money_waits_for_a_slot_on_its_way_home(net: ShardNet) -> None:
    """
    Told that the slot is coming here, the source asks at the same place again until it is here.
    """
    give(net, 1, 0)
    net.cut(1, 0)
    assert isinstance(ask(net, 0, payment()), Pending)
    for _ in range(3):
        net.arrive(0, 1)
        net.commit(1)
        net.arrive(0, 1)
        net.commit(0)
    sent = [one for one in decided(net, 0) if isinstance(one, TransferReserved)]
    assert len(sent) > 1
    assert {one.peer for one in sent} == {1}
    net.settle()
    assert isinstance(ask(net, 0, payment()), Posted)


def test_money_follows_a_slot_that_was_here_and_went_on(net: ShardNet) -> None:
    """
    The peer says "it is yours", but it went on: the source sends to where it gave it, not back.
    """
    net.cut(0, 1)
    ask(net, 0, payment())
    give(net, 1, 0)
    net.arrive(1, 0)
    net.commit(0)
    net.arrive(1, 0)
    net.commit(1)
    assert net.owners()[PAYEES_SLOT] == [0]
    assert isinstance(give(net, 0, 2), SlotLeft)
    net.shards[0].state.hints[PAYEES_SLOT] = 1
    net.settle()
    assert net.shards[0].state.hints == {}
    assert isinstance(ask(net, 0, payment()), Posted)
    assert balance(net, 2, PAYEE) == 17
    assert [one.peer for one in decided(net, 0) if isinstance(one, TransferReserved)] == [1, 2]


def test_a_slot_goes_there_and_back(net: ShardNet) -> None:
    """
    Old rows of the tables are still there when it returns; they are not what it is worth.
    """
    net.shards[1].project(99, durably=True)
    give(net, 1, 2)
    net.settle()
    assert ask(net, 2, deposit(PAYEE, 5, key="while away")).balance == 12
    net.shards[1].forget()
    assert ask(net, 1, read_wallet(PAYEE)) == Moved(2)
    assert PAYEE not in net.shards[1].state.wallets
    give(net, 2, 1)
    net.settle()
    assert balance(net, 1, PAYEE) == 12
    assert net.shards[1].state.slots.generation(PAYEES_SLOT) == 3
    assert net.shards[1].state.given == set()
    for with_tables in (False, True):
        net.crash(1, written=True, with_tables=with_tables)
        found = ask(net, 1, read_wallet(PAYEE))
        assert isinstance(found, WalletFound)
        assert (found.posted, found.version) == (12, 2)
    check_books(net)


def test_a_row_of_a_slot_that_left_is_not_loaded(net: ShardNet) -> None:
    """
    The tables lag: a row that is still there is not taken for the wallet.
    """
    shard = net.shards[1]
    shard.project(99, durably=True)
    give(net, 1, 2)
    shard.load([PAYEE])
    assert PAYEE not in shard.state.wallets


def test_nothing_leaves_that_is_on_its_way(net: ShardNet) -> None:
    """
    With money on its way from it a slot stays, and sends nothing new to others for a moment; all
    else goes on, and then it can leave.
    """
    slot = slot_of(PAYER)
    ask(net, 0, payment())
    assert give(net, 0, 2, slot) == SlotKept(slot, "transfers_pending")
    assert ask(net, 0, payment(key="next")) == Moved(0)
    assert isinstance(
        ask(net, 0, transfer(PAYER, SECOND, 1, key="local")), Posted | Pending | Moved
    )
    assert isinstance(ask(net, 0, payment()), Pending)
    assert isinstance(ask(net, 0, payment(amount=900, key="poor")), Rejected)
    net.settle()
    assert isinstance(give(net, 0, 2, slot), SlotLeft)
    assert net.shards[0].state.closing == {}


def test_a_slot_that_stays_sends_again_after_a_moment(net: ShardNet) -> None:
    """
    The operator who went away has stopped nothing for good.
    """
    net.cut(0, 1)
    ask(net, 0, payment())
    give(net, 0, 2, slot_of(PAYER))
    results = []
    for number in range(40):
        ask(net, 0, deposit(SECOND, 1, key=f"time passes {number}"))
        results.append(type(ask(net, 0, payment(key="next"))))
    assert results[0] is Moved
    assert results[-1] is Pending


@pytest.mark.parametrize(
    ("why", "peer", "change"),
    [
        ("already_here", 1, lambda _net, _patch: None),
        (
            "balance_out_of_range",
            2,
            lambda net, _patch: setattr(
                net.shards[1].state.wallets["$due:1:2:EUR"], "posted", SLOT_DUE_MAX - 5
            ),
        ),
        (
            "balance_out_of_range",
            2,
            lambda net, _patch: setattr(
                net.shards[1].state.wallets["$due:1:2:EUR"], "incoming", SLOT_DUE_MAX
            ),
        ),
        (
            "balance_out_of_range",
            2,
            lambda net, _patch: setattr(
                net.shards[1].state.wallets["$due:1:2:EUR"], "reserved", SLOT_DUE_MAX
            ),
        ),
        (
            "too_large",
            2,
            lambda _net, patch: patch.setattr(decide_slots, "SLOT_ENTRY_BYTES_MAX", 100),
        ),
    ],
)
def test_why_a_slot_stays(
    net: ShardNet,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
    peer: int,
    change: Callable[[ShardNet, pytest.MonkeyPatch], None],
) -> None:
    """
    Each reason is told, and nothing is recorded.
    """
    net.ask(2, [transfer(FAR, PAYEE, 1, key="none")])
    ask(net, 1, transfer(PAYEE, FAR, 1, key="opens the wallet of what is due"))
    net.settle()
    change(net, monkeypatch)
    count = len(decided(net, 1))
    assert give(net, 1, peer) == SlotKept(PAYEES_SLOT, why)
    assert len(decided(net, 1)) == count
    assert net.shards[1].state.closing == {}


def test_a_slot_of_others_is_not_given(net: ShardNet) -> None:
    """
    Who does not have it says who has.
    """
    assert give(net, 0, 2) == Moved(1)


def test_a_wallet_opened_right_before_goes_too(net: ShardNet) -> None:
    """
    In the frame of the order itself, when the slot's rows were read already.
    """
    slot = slot_of(NOBODY)
    net.ask(1, [open_wallet(NOBODY), deposit(NOBODY, 3, key="new"), GiveSlot(slot, 0)])
    net.settle()
    assert balance(net, 0, NOBODY) == 3
    assert NOBODY not in net.shards[1].state.wallets


def test_a_slot_goes_with_the_wallets_that_were_evicted(net: ShardNet) -> None:
    """
    What is in the tables only is read and goes.
    """
    net.shards[1].project(99, durably=True)
    net.shards[1].forget()
    assert PAYEE not in net.shards[1].state.wallets
    assert give(net, 1, 2) == SlotLeft(PAYEES_SLOT, 2, 1)
    net.settle()
    assert balance(net, 2, PAYEE) == 7


def test_money_in_several_currencies_is_due_in_each(net: ShardNet) -> None:
    """
    What is carried is due currency by currency, debts too, and nothing where it comes to zero.
    """
    number = 0
    names: list[str] = []
    while len(names) < 3:
        number += 1
        if slot_of(f"n{number}") == PAYEES_SLOT:
            names.append(f"n{number}")
    dollars, debtor, empty = names
    net.ask(
        1,
        [
            open_wallet(dollars, currency="USD"),
            deposit(dollars, 5, key="dollars", currency="USD"),
            open_wallet(debtor, -20),
            transfer(debtor, PAYEE, 20, key="debt"),
            open_wallet(empty, currency="JPY"),
        ],
    )
    net.settle()
    assert give(net, 1, 2) == SlotLeft(PAYEES_SLOT, 2, 4)
    net.settle()
    (given,) = [one for one in decided(net, 1) if isinstance(one, SlotGiven)]
    assert [(due.currency, due.amount) for due in given.dues] == [("EUR", 7), ("USD", 5)]
    assert balance(net, 2, debtor) == -20
    assert empty in net.shards[2].state.wallets
    check_books(net)


def test_the_world_is_there_when_a_wallet_comes(net: ShardNet) -> None:
    """
    In a currency that the new owner never had, money still comes in from outside and goes out.
    """
    slot = slot_of(NOBODY)
    ask(net, 1, open_wallet(NOBODY, currency="JPY"))
    give(net, 1, 2, slot)
    net.settle()
    for asked in (
        deposit(NOBODY, 5, key="in", currency="JPY"),
        withdrawal(NOBODY, 2, key="out", currency="JPY"),
    ):
        assert isinstance(ask(net, 2, asked), Posted)
    check_books(net)


def test_an_entry_for_a_slot_that_is_nowhere_known_is_asked_again(net: ShardNet) -> None:
    """
    Nowhere is never an answer: as a number it would say "taken".
    """
    ask(net, 0, payment())
    net.shards[1].state.slots.assign(PAYEES_SLOT, NOWHERE, 1)
    net.arrive(0, 1)
    net.commit(1)
    (elsewhere,) = [one for one in decided(net, 1) if isinstance(one, EntryElsewhere)]
    assert elsewhere.shard_id == 1
    net.shards[1].state.slots.assign(PAYEES_SLOT, 1, 1)
    net.settle()
    assert isinstance(ask(net, 0, payment()), Posted)
    assert balance(net, 1, PAYEE) == 17


def test_money_for_a_slot_that_is_nowhere_known_is_not_taken(net: ShardNet) -> None:
    """
    Nothing is set aside for a peer that nobody can name.
    """
    net.shards[0].state.slots.assign(PAYEES_SLOT, NOWHERE, 1)
    assert ask(net, 0, payment()) == Moved(0)


def test_who_waits_is_told_once_the_outcome_is_durable(net: ShardNet) -> None:
    """
    Also when the money takes a detour: nothing is told of the first try.
    """
    give(net, 1, 2)
    net.settle()
    ask(net, 0, payment())
    ask(net, 0, payment(amount=1, key="another"))
    ask(net, 0, payment())
    assert net.settled == []
    net.settle()
    told = {outcome.transfer_id: outcome for outcome in net.settled}
    assert len(told) == 2
    assert all(isinstance(outcome, Posted) for outcome in told.values())
    assert told[payment().transfer_id].balance == 90
    assert len(net.shards[0].watch) == 0


def test_a_key_called_back_is_decided_once(net: ShardNet) -> None:
    """
    While the money takes its detour the key says pending, and it is the same transfer.
    """
    give(net, 1, 2)
    net.settle()
    first = ask(net, 0, payment())
    assert isinstance(first, Pending)
    for _ in range(2):
        net.arrive(0, 1)
        net.commit(1)
        net.commit(0)
    again = ask(net, 0, msgspec.structs.replace(payment(), transfer_id=bytes(16)))
    assert isinstance(again, Pending)
    assert (again.transfer_id, again.repeated) == (first.transfer_id, True)
    assert again.sequence > first.sequence


def test_a_slot_that_a_peer_refuses_is_a_contradiction(net: ShardNet) -> None:
    """
    A slot is always taken; who says otherwise is not understood.
    """
    give(net, 1, 2)
    shard = net.shards[1]
    with pytest.raises(ChannelBroken, match="cannot be refused"):
        shard.batch.add_answers(shard.state, 2, [int(RejectReason.DESTINATION_CLOSED)])


def test_a_slot_is_the_last_of_its_frame(net: ShardNet) -> None:
    """
    It is large; what follows it goes in the next frame.
    """
    ask(net, 1, transfer(PAYEE, FAR, 1, key="before"))
    net.settle()
    net.cut(1, 2)
    ask(net, 1, open_wallet(NOBODY))
    ask(net, 1, deposit(NOBODY, 9, key="nobody's"))
    ask(net, 1, transfer(NOBODY, FAR, 1, key="one"))
    give(net, 1, 2)
    ask(net, 1, transfer(NOBODY, FAR, 1, key="two"))
    net.settle()
    frames = [said.entries for source, _, said in net.sent if source == 1]
    with_slots = [entries for entries in frames if isinstance(entries[-1], SlotEntry)]
    assert with_slots
    for entries in frames:
        assert not any(isinstance(entry, SlotEntry) for entry in entries[:-1])
    assert balance(net, 2, FAR) == 3


def test_only_so_many_are_on_their_way(net: ShardNet) -> None:
    """
    A peer that does not answer gets a window's worth, and the rest when it does.
    """
    for number in range(20):
        net.ask(0, [payment(amount=1, key=f"pay {number}")])
    net.commit(0)
    numbers = [entry.number for _, _, said in net.sent for entry in said.entries]
    assert numbers == [1, 2, 3, 4, 5, 6]
    net.settle()
    assert balance(net, 1, PAYEE) == 27


def test_the_rejected_rest_is_named(net: ShardNet) -> None:
    """
    A payee without a wallet at the new owner is refused there, after the detour.
    """
    give(net, 1, 2, slot_of(NOBODY))
    net.settle()
    ask(net, 0, payment(NOBODY))
    net.settle()
    said = ask(net, 0, payment(NOBODY))
    assert isinstance(said, Rejected)
    assert said.reason == RejectReason.DESTINATION_UNKNOWN
    assert kinds(net, 0, TransferRecalled, TransferRejected) == [TransferRecalled]


# --- Holds ------------------------------------------------------------------------------------


def test_a_capture_follows_a_slot_that_has_moved(net: ShardNet) -> None:
    """
    It is called back and sent anew, and counts once with its hold, which ends with it.
    """
    placed = place(PAYER, 30, destination=PAYEE)
    assert isinstance(ask(net, 0, placed), HoldFound)
    give(net, 1, 2)
    net.settle()
    assert isinstance(ask(net, 0, capture(placed.hold_id, 10, key="last", is_final=True)), Pending)
    held = net.shards[0].state.holds[placed.hold_id]
    assert (held.pending, held.is_ending) == (10, True)
    net.settle()

    assert kinds(net, 0, TransferRecalled) == [TransferRecalled]
    held = net.shards[0].state.holds[placed.hold_id]
    assert (held.status, held.captured, held.pending) == (HoldStatus.CAPTURED, 10, 0)
    payer = net.shards[0].state.wallets[PAYER]
    assert (payer.posted, payer.reserved, payer.held) == (90, 0, 0)
    assert balance(net, 2, PAYEE) == 17
    check_books(net)


def test_an_open_hold_goes_on_at_the_new_owner(net: ShardNet) -> None:
    """
    What it keeps goes with the wallet; while a part of it is on its way, the slot stays.
    """
    placed = place(PAYER, 30, destination=PAYEE)
    ask(net, 0, placed)
    ask(net, 0, capture(placed.hold_id, 10, key="part"))
    assert isinstance(give(net, 0, 2, slot_of(PAYER)), SlotKept)
    net.settle()
    assert isinstance(give(net, 0, 2, slot_of(PAYER)), SlotLeft)
    assert ask(net, 0, read_hold(placed.hold_id)) == Moved(2)
    assert ask(net, 0, placed) == Moved(2)  # Under its key as well.
    net.settle()

    payer = net.shards[2].state.wallets[PAYER]
    assert (payer.posted, payer.held, payer.reserved) == (90, 20, 20)
    assert isinstance(ask(net, 2, capture(placed.hold_id, 20, key="rest")), Pending)
    net.settle()
    assert net.shards[2].state.holds[placed.hold_id].status == HoldStatus.CAPTURED
    assert balance(net, 1, PAYEE) == 37
    check_books(net)


def test_a_hold_ends_at_its_new_owner(net: ShardNet) -> None:
    """
    In time, and at the old one nothing is left that could end it.
    """
    placed = place(PAYER, 30, lifetime_s=60)
    ask(net, 0, placed)
    give(net, 0, 2, slot_of(PAYER))
    net.settle()
    net.passed_us += 61_000_000
    for shard_id in range(SHARD_COUNT):
        net.tick(shard_id)
    net.settle()
    assert kinds(net, 0, HoldChanged) == []
    assert kinds(net, 2, HoldChanged) == [HoldChanged]
    assert net.shards[2].state.wallets[PAYER].held == 0
