"""
Goal: memory is bounded by forgetting what the tables have, and by nothing else.
Method: keys remembered at known sequences, turned over at watermarks on both sides of them.
"""

from __future__ import annotations

import pytest

from processor.core.apply import apply
from processor.core.decide import decide_move
from processor.core.decisions import CarriedOutcome, LinkedPosted, TransferPosted, WalletOpened
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.limits import Limits, Usage
from processor.core.slots import slot_of
from processor.core.state import RememberedKeys, ShardState
from tests.support.bound_commands import leg
from tests.support.commands import AT_US, identifier, state_of, transfer, wallet, world


def posted(key: str) -> TransferPosted:
    state = state_of(wallet("alice", 100), wallet("bob"))
    decision = decide_move(state, transfer("alice", "bob", 1, key=key), AT_US)
    assert isinstance(decision, TransferPosted)
    return decision


def remembered(*sequences: int) -> RememberedKeys:
    keys = RememberedKeys()
    for sequence in sequences:
        keys.remember(posted(str(sequence)), sequence, AT_US)
    return keys


def test_first_turn_forgets_nothing() -> None:
    """
    The young generation becomes the old one; every key is still found.
    """
    keys = remembered(10, 11)
    assert keys.rotate(0) == {}
    assert keys.find(identifier("10")) is not None
    assert keys.find(identifier("11")) is not None
    assert len(keys) == 2


def test_generation_is_forgotten_at_its_last_sequence_not_before() -> None:
    """
    With the watermark one below its newest key a generation stays whole.
    """
    keys = remembered(10, 11)
    keys.rotate(0)
    keys.remember(posted("12"), 12, AT_US)

    assert keys.rotate(10) is None
    assert len(keys) == 3

    forgotten = keys.rotate(11)
    assert forgotten is not None
    assert set(forgotten) == {identifier("10"), identifier("11")}
    assert keys.find(identifier("10")) is None
    assert keys.find(identifier("12")) is not None


def test_key_of_an_old_record_does_not_make_its_generation_old() -> None:
    """
    An outcome read back from the tables beside a new one leaves with the new one only.
    """
    keys = remembered(20, 3)
    assert keys.young_sequence_max == 20
    keys.rotate(0)
    assert keys.rotate(19) is None
    assert keys.rotate(20) is not None


def test_emptied_generation_starts_again() -> None:
    """
    After a turn the young generation knows nothing of the sequences before it.
    """
    keys = remembered(20)
    keys.rotate(0)
    assert (keys.young_sequence_max, keys.old_sequence_max) == (0, 20)
    assert keys.rotate(20) is not None
    assert keys.old_sequence_max == 0


def test_posting_counts_for_its_generation() -> None:
    """
    The fast path of a posting guards the generation as the slow one does.
    """
    state = state_of(wallet("alice", 100), wallet("bob"))
    apply(state, posted("a"), 30, AT_US)
    state.keys.rotate(0)
    assert state.keys.rotate(29) is None


def test_outcome_from_the_tables_may_be_forgotten_at_once() -> None:
    """
    It may be of another journal, whose high sequence would keep its generation here for ever.
    """
    keys = RememberedKeys()
    keys.load((posted("a"), 10**9, AT_US))
    assert keys.recorded == {identifier("a"): 0}
    keys.rotate(0)
    assert keys.rotate(0) is not None
    assert keys.find(identifier("a")) is None
    assert keys.recorded == {}


def test_outcome_from_the_tables_does_not_take_the_place_of_one_here() -> None:
    """
    What is in memory is as new or newer, in either generation.
    """
    keys = remembered(20)
    for _ in range(2):
        keys.load((posted("20"), 3, AT_US))
        assert keys.find(identifier("20")) == (posted("20"), 20, AT_US)
        assert keys.recorded == {}
        keys.rotate(0)


def test_key_that_was_called_back_is_as_new() -> None:
    """
    Wherever it was remembered.
    """
    keys = remembered(20)
    keys.rotate(0)
    keys.remember(posted("20"), 21, AT_US)
    keys.forget(identifier("20"))
    assert keys.find(identifier("20")) is None


def test_outcome_that_came_counts_for_its_generation_by_its_record_here() -> None:
    """
    Its own sequence, low or high, says nothing of these tables.
    """
    for own_sequence in (1, 10**9):
        keys = RememberedKeys()
        decision = posted("a")
        keys.carry(CarriedOutcome(decision, own_sequence, AT_US), 20)
        assert keys.find(identifier("a")) == (decision, own_sequence, AT_US)
        keys.rotate(0)
        assert keys.rotate(19) is None
        assert keys.rotate(20) is not None


def test_a_wallet_leaves_memory_only_when_nothing_relies_on_it() -> None:
    """
    Not above the durable tables, not with money on its way, and never the ledger's own.
    """
    state = state_of()
    state.tables_reach(5)
    assert state.may_evict(wallet("alice", sequence=5))
    assert not state.may_evict(wallet("alice", sequence=6))
    assert not state.may_evict(world())
    reserving = wallet("alice", 10)
    reserving.reserved = 1
    assert not state.may_evict(reserving)


def test_newest_wallets_are_those_above_the_tables() -> None:
    """
    As the tables come nearer they are dropped; tables that fell back bring none back.
    """
    state = state_of()
    for sequence, name in enumerate(("a", "b", "c"), 4):
        apply(state, WalletOpened(name, "acme", "EUR", 0), sequence, AT_US)
    state.tables_reach(5)
    assert state.newest == {"c": 6}
    state.tables_reach(4)
    assert state.tables_at == 5
    assert state.newest == {"c": 6}


def test_wallet_in_memory_is_newer_than_its_row() -> None:
    """
    Loading a wallet that is here already changes nothing.
    """
    state = ShardState(0)
    state.load(wallet("alice", 100))
    state.load(wallet("alice", 1))
    assert state.wallets["alice"].posted == 100


def test_row_of_a_slot_that_was_given_stays_in_the_tables() -> None:
    """
    Its money is not here any more. The ledger's own wallets have no slot, whatever their hash is.
    """
    state = ShardState(0)
    state.given = {slot_of("alice"), slot_of("$world:0:EUR")}
    for one in (wallet("alice", 100), wallet("bob"), world()):
        state.load(one)
    assert list(state.wallets) == ["bob", "$world:0:EUR"]


def test_facts_leave_out_only_the_record() -> None:
    """
    Two wallets with the same facts are the same wallet, wherever they were last touched.
    """
    one, two = wallet("alice", 100, sequence=5), wallet("alice", 100, sequence=9)
    assert one.facts() == two.facts()
    for field in ("wallet_id", "merchant_id", "currency", "minimum", "posted", "version"):
        other = wallet("alice", 100)
        setattr(other, field, "x" if isinstance(getattr(other, field), str) else 77)
        assert other.facts() != one.facts(), field
    assert wallet("alice", 100, status=2).facts() != one.facts()
    assert wallet("alice", 100, limits=Limits()).facts() != one.facts()
    assert wallet("alice", 100, usage=Usage()).facts() != one.facts()
    for field in ("reserved", "held", "incoming"):
        other = wallet("alice", 100)
        setattr(other, field, 1)
        assert other.facts() != one.facts(), field


@pytest.mark.parametrize(
    ("reserved", "held", "incoming", "is_relied_on", "may_go"),
    [
        (0, 0, 0, False, True),
        (1, 1, 0, False, False),
        (2, 1, 0, True, False),
        (0, 0, 1, True, False),
    ],
)
def test_open_holds_alone_do_not_keep_a_wallet_at_its_shard(
    reserved: int, held: int, incoming: int, is_relied_on: bool, may_go: bool
) -> None:
    """
    They go along with it; but they keep it in memory.
    """
    one = wallet("alice", 10)
    one.reserved, one.held, one.incoming = reserved, held, incoming
    assert one.is_relied_on is is_relied_on
    assert state_of().may_evict(one) is may_go


# --- Holds, refunds and alarms ----------------------------------------------------------------


def hold(number: int, status: HoldStatus, *, pending: int = 0, sequence: int = 0) -> Hold:
    return Hold(
        bytes([number] * 16),
        "acme",
        "alice",
        "",
        "EUR",
        9,
        0,
        pending,
        status,
        False,
        AT_US,
        AT_US + number,
        sequence=sequence,
    )


def test_only_a_hold_that_has_ended_is_taken_in_from_the_tables() -> None:
    """
    Another is in memory, or its row is of before; and what is here is as new or newer.
    """
    state = state_of()
    ended = hold(1, HoldStatus.VOIDED)
    for one in (ended, hold(2, HoldStatus.OPEN), hold(3, HoldStatus.EXPIRED, pending=1)):
        state.load_hold(one)
    state.load_hold(hold(1, HoldStatus.CAPTURED))
    assert state.holds == {ended.hold_id: ended}


def test_a_total_in_memory_is_newer_than_its_row() -> None:
    """
    As a wallet is.
    """
    state = state_of()
    state.load_refund(RefundTotal(bytes(16), "alice", 5, 2))
    state.load_refund(RefundTotal(bytes(16), "alice", 4, 1))
    assert state.refunds[bytes(16)].refunded == 5


def test_alarms_come_in_the_order_of_their_times() -> None:
    """
    At their time, not before, and no more at once than is asked for.
    """
    state = state_of()
    for at_us in (30, 10, 20):
        state.wake_at(at_us, bytes([at_us] * 16))
    assert state.take_alarms(9, 10) == []
    assert state.take_alarms(20, 1) == [bytes([10] * 16)]
    assert state.take_alarms(20, 10) == [bytes([20] * 16)]
    assert state.take_alarms(99, 10) == [bytes([30] * 16)]


def test_ended_holds_and_totals_are_forgotten_when_the_tables_have_them() -> None:
    """
    The oldest, down to the bound; open ones, those with captures on their way and those above the
    tables stay.
    """
    state = state_of()
    state.tables_reach(5)
    stay = [
        hold(1, HoldStatus.OPEN),
        hold(2, HoldStatus.EXPIRED, pending=1),
        hold(3, HoldStatus.VOIDED, sequence=6),
    ]
    ended = [hold(number, HoldStatus.CAPTURED, sequence=5) for number in range(10, 40)]
    state.holds = {one.hold_id: one for one in [*ended, *stay]}
    for number in range(30):
        state.load_refund(RefundTotal(bytes([number] * 16), "alice", 5, 1, sequence=5))
    state.refunds[bytes([99] * 16)] = RefundTotal(bytes([99] * 16), "alice", 5, 1, sequence=6)
    state.forget_counts(40)
    assert (len(state.holds), len(state.refunds)) == (33, 31)
    state.forget_counts(10)
    assert list(state.holds) == [one.hold_id for one in [*ended[-10:], *stay]]
    assert list(state.refunds) == [bytes([number] * 16) for number in (*range(20, 30), 99)]
    assert state.kept == {"holds": 3, "refunds": 1}


def test_alarms_of_what_has_ended_are_forgotten_when_they_are_many() -> None:
    """
    A hold that is captured at once leaves one for as long as it might have lasted.
    """
    state = state_of()
    still_open = hold(1, HoldStatus.OPEN)
    state.holds = {still_open.hold_id: still_open}
    for number in range(20):
        state.wake_at(AT_US + number, bytes([number] * 16))
    state.forget_counts(18)
    assert len(state.alarms) == 20
    state.forget_counts(17)
    assert state.alarms == [(still_open.expires_at_us, still_open.hold_id)]


def test_legs_are_counted_however_their_outcome_came() -> None:
    """
    Decided here, carried or read: a turn starts from zero.
    """
    legs = [leg("alice", "bob", 1), leg("alice", "bob", 2)]
    names = ("decided", "carried", "read")
    decided, carried, read = (
        LinkedPosted(identifier(name), identifier(f"key {name}"), "acme", legs, [], False)
        for name in names
    )
    keys = RememberedKeys()
    keys.remember(decided, 1, AT_US)
    keys.carry(CarriedOutcome(carried, 7, AT_US), 2)
    keys.load((read, 9, AT_US))
    keys.load((read, 9, AT_US))
    assert keys.young_legs == 6
    keys.rotate(0)
    assert keys.young_legs == 0
