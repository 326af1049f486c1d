"""
Goal: the auditor names what does not follow in a journal of holds, refunds, limits and linked
      transfers, though it is sealed rightly.
Method: shards do one step each; what one has decided last is altered, left out or added to, and
        sealed again with the same header.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from processor.core.channel import entry_sent, next_link
from processor.core.commands import GiveSlot, SetWalletLimits, Terms, TransferType
from processor.core.decisions import (
    DECISION_FORMAT,
    CarriedWallet,
    Decision,
    HoldChanged,
    HoldExtended,
    HoldPlaced,
    HoldVoided,
    LinkedBegun,
    LinkedDone,
    LinkedPosted,
    LinkedPrepared,
    LinkedRecalled,
    LinkedRejected,
    PrepareSent,
    RefundCounted,
    SlotGiven,
    SlotTaken,
    TransferPosted,
    UsageCounted,
    VerdictSent,
    VerdictTaken,
    VoteTaken,
    WalletLimitsSet,
    WalletOpened,
    decode_decisions,
    encode_decisions,
)
from processor.core.hold import HoldStatus
from processor.core.limits import Counter, Limits, Velocity
from processor.core.record import seal
from processor.core.reject_reason import RejectReason
from processor.core.slots import slot_of
from processor.storage.audit import Audit, AuditedDatabase, JournalEnd
from processor.storage.channel_audit import channels_of, check_refunds, compare_ends
from processor.storage.recomputation import ShardBooks, Unsound
from processor.storage.recomputed_books import OutcomeRow, Stamp
from processor.storage.recomputed_counts import HoldBook, HoldState, RefundBook
from processor.storage.recomputed_holds import take_holds
from processor.storage.recomputed_layouts import FIELD_COUNTS, filled_up
from processor.storage.recomputed_legs import Move, check_homes, check_legs
from processor.storage.recomputed_limits import flat_usage
from processor.storage.recomputed_linked import LinkedBook, answer_refused
from processor.storage.recomputed_moves import set_aside
from processor.storage.recomputed_wallets import (
    BALANCE,
    BALANCE_MAX,
    HELD,
    INCOMING,
    USAGE,
    Contradiction,
)
from tests.support.bound_commands import (
    capture,
    extend,
    fee,
    fee_leg,
    hold_id_of,
    leg,
    linked,
    on_terms,
    place,
    refund,
    refund_leg,
    void,
)
from tests.support.commands import MERCHANT, deposit, identifier, open_wallet, transfer
from tests.support.money_net import ALSO_HERE, FAR, HERE, MOVES, NOBODY, THERE, MoneyNet

LIMITS = Limits(Velocity(9, 2_000, 20, 3_000), Velocity(9, 2_000, None, None), 5_000)
HOLD = hold_id_of(HERE)


def funded_net() -> MoneyNet:
    """
    Wallets with money at three shards, two of them with limits; one open hold, one payment, and a
    linked transfer between all three that waits for votes.
    """
    net = MoneyNet()
    for name in (HERE, ALSO_HERE, MOVES):
        net.zero.ask(open_wallet(name), deposit(name, 1_000, key=f"to {name}"))
    net.one.ask(open_wallet(THERE), deposit(THERE, 1_000, key="to there"))
    net.two.ask(open_wallet(FAR), deposit(FAR, 1_000, key="to far"))
    net.zero.ask(
        SetWalletLimits(MERCHANT, HERE, None, LIMITS),
        SetWalletLimits(MERCHANT, MOVES, None, LIMITS),
    )
    net.one.ask(SetWalletLimits(MERCHANT, THERE, None, LIMITS))
    net.zero.ask(place(HERE, 100, destination=ALSO_HERE, lifetime_s=60))
    net.zero.ask(transfer(HERE, MOVES, 40, key="paid"), fee(HERE, 2, key="fee"))
    net.zero.ask(
        linked(
            leg(HERE, THERE, 30, name="one"),
            leg(THERE, FAR, 20, name="two"),
            refund_leg("paid", MOVES, HERE, 5, refundable=40),
            key="waiting",
        )
    )
    return net


# --- Steps --------------------------------------------------------------------------------


def at_zero(*commands: Any) -> Callable[[MoneyNet], object]:
    return lambda net: net.zero.ask(*commands)


def expire(net: MoneyNet) -> None:
    net.zero.wait(61)


def vote_yes(net: MoneyNet) -> None:
    net.go(0, 1)


def last_vote(net: MoneyNet) -> None:
    net.go(0, 1)
    net.go(0, 2)


def told(net: MoneyNet) -> None:
    last_vote(net)
    net.go(0, 1)


def done(net: MoneyNet) -> None:
    told(net)
    net.go(0, 2)


def vote_no(net: MoneyNet) -> None:
    net.zero.ask(
        linked(
            leg(HERE, THERE, 1, name="no 1"),
            leg(FAR, ALSO_HERE, 99_999, name="no 2"),
            refund_leg("paid", MOVES, HERE, 5, refundable=40),
            key="no",
        )
    )
    net.go(0, 1)
    net.go(0, 2)


def overdue(net: MoneyNet) -> None:
    net.zero.wait(11)


def overdue_there(net: MoneyNet) -> None:
    net.go(0, 1)
    net.zero.wait(11)
    entries = net.send(0, 1)
    assert entries is not None
    net.decide(0, 1, entries)


def call_back(net: MoneyNet) -> None:
    net.one.ask(GiveSlot(slot_of(NOBODY), 2))
    net.go(1, 2)
    net.zero.ask(
        linked(
            leg(MOVES, NOBODY, 1, name="back 1"),
            leg(HERE, THERE, 1, name="back 2"),
            key="called back",
        )
    )
    net.go(0, 1)


def settle_capture(net: MoneyNet) -> None:
    net.zero.ask(capture(HOLD, 30, THERE, key="capture across"))
    net.go(0, 1)


def settle_last_capture(net: MoneyNet) -> None:
    net.zero.ask(capture(HOLD, 30, THERE, key="capture across", is_final=True))
    net.go(0, 1)


def refuse_capture(net: MoneyNet) -> None:
    net.zero.ask(capture(HOLD, 30, NOBODY, key="capture in vain"))
    net.zero.ask(void(HOLD))
    net.go(0, 1)


def refuse_refund(net: MoneyNet) -> None:
    net.zero.ask(refund("paid", MOVES, NOBODY, 3, refundable=40, key="in vain"))
    net.go(0, 1)


def refuse_transfer(net: MoneyNet) -> None:
    net.zero.ask(transfer(HERE, NOBODY, 3, key="in vain"))
    net.go(0, 1)


def credit(net: MoneyNet) -> None:
    last_vote(net)
    net.zero.ask(transfer(HERE, THERE, 3, key="credited"))
    net.go(0, 1)


def give(net: MoneyNet) -> None:
    done(net)
    net.zero.ask(place(MOVES, 10, key="goes along"))
    net.zero.ask(refund("paid", MOVES, HERE, 3, refundable=40, key="goes along too"))
    net.zero.ask(GiveSlot(slot_of(MOVES), 1))


def take(net: MoneyNet) -> None:
    give(net)
    net.go(0, 1)


def void_from_before_the_limits(net: MoneyNet) -> None:
    net.zero.ask(place(ALSO_HERE, 100, key="before"))
    net.zero.ask(SetWalletLimits(MERCHANT, ALSO_HERE, None, LIMITS))
    net.zero.ask(transfer(ALSO_HERE, HERE, 90, key="counted"))
    net.zero.ask(void(hold_id_of(ALSO_HERE, "before"), key="void before"))


PLACE = at_zero(place(HERE, 10, key="next"))
CAPTURE = at_zero(capture(HOLD, 30, key="capture"))
LAST_CAPTURE = at_zero(capture(HOLD, None, key="last capture"))
SEND_CAPTURE = at_zero(capture(HOLD, 30, THERE, key="capture", is_final=True))
VOID = at_zero(void(HOLD))
EXTEND = at_zero(extend(HOLD, 90))
REFUND = at_zero(refund("paid", MOVES, ALSO_HERE, 7, refundable=40, key="back"))
SEND_REFUND = at_zero(refund("paid", MOVES, THERE, 7, refundable=40, key="back"))
PAY = at_zero(transfer(HERE, ALSO_HERE, 9, key="next"))
SEND = at_zero(transfer(HERE, THERE, 9, key="next"))
EARN = at_zero(transfer(ALSO_HERE, MOVES, 9, key="next"))
FEE = at_zero(fee(HERE, 3, key="next fee"))
ON_TERMS = at_zero(on_terms(transfer(ALSO_HERE, MOVES, 9, key="next"), if_version=1))
LINK = at_zero(
    linked(
        leg(HERE, ALSO_HERE, 5, name="home 1"),
        fee_leg(ALSO_HERE, 4, name="home 2"),
        refund_leg("paid", MOVES, HERE, 2, refundable=40),
        key="at home",
    )
)
LINK_ACROSS = at_zero(
    linked(
        leg(HERE, THERE, 5, name="across 1"),
        leg(FAR, MOVES, 4, name="across 2"),
        refund_leg("paid", MOVES, HERE, 2, refundable=40),
        key="across",
    )
)


# --- What is wrong with them ----------------------------------------------------------------

Decisions = list[Decision]
Alter = Callable[[Decisions], Decisions]


def altered(kind: type, **changes: Any) -> Alter:
    """
    Let fields of each decision of a kind say something else; a function makes it of what is there.
    """

    def alter(decision: Any) -> Any:
        values = {
            name: value(getattr(decision, name)) if callable(value) else value
            for name, value in changes.items()
        }
        return replace(decision, **values)

    return lambda decisions: [alter(one) if isinstance(one, kind) else one for one in decisions]


def without(*kinds: type) -> Alter:
    return lambda decisions: [one for one in decisions if not isinstance(one, kinds)]


def followed_by(*more: Decision) -> Alter:
    return lambda decisions: [*decisions, *more]


def twice(kind: type) -> Alter:
    return lambda decisions: [
        *decisions,
        *(one for one in decisions if isinstance(one, kind)),
    ]


def more(value: int) -> int:
    return value + 1


def counted(counter: Counter) -> Counter:
    return replace(counter, day_amount=counter.day_amount + 1)


def first_leg(**changes: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda legs: [replace(legs[0], **changes), *legs[1:]]


def counted_longer(wallets: list[CarriedWallet]) -> list[CarriedWallet]:
    first, *others = wallets
    assert first.usage is not None
    return [replace(first, usage=replace(first.usage, since_us=first.usage.since_us - 1)), *others]


def lower_bits(hold_id: bytes) -> bytes:
    return hold_id[:-1] + bytes([hold_id[-1] ^ 1])


def on_other_terms(**changes: Any) -> Callable[[Any], Any]:
    return lambda terms: replace(terms, **changes)


WRONG: list[tuple[int, Callable[[MoneyNet], object], Alter, str]] = [
    # Holds.
    (0, PLACE, altered(HoldPlaced, transfer_id=lower_bits), "slot of the hold"),
    (0, PLACE, altered(HoldPlaced, transfer_id=HOLD), "hold"),
    (0, PLACE, altered(HoldPlaced, key=b"short"), "key"),
    (0, PLACE, altered(HoldPlaced, amount=0), "amount"),
    (0, PLACE, altered(HoldPlaced, amount=10_000), "usage under a limit"),
    (0, PLACE, altered(HoldPlaced, amount=860), "available of the source"),
    (0, PLACE, altered(HoldPlaced, amount=more), "usage of"),
    (0, PLACE, altered(HoldPlaced, source="nobody"), "source"),
    (0, PLACE, altered(HoldPlaced, merchant_id="evil"), "currency and merchant"),
    (0, PLACE, altered(HoldPlaced, currency="JPY"), "currency and merchant"),
    (0, PLACE, altered(HoldPlaced, lifetime_s=0), "lifetime"),
    (0, PLACE, altered(HoldPlaced, lifetime_s=31 * 86_400 + 1), "lifetime"),
    (0, PLACE, altered(HoldPlaced, expires_at_us=more), "over at"),
    (0, PLACE, without(UsageCounted), "usage of"),
    (0, PLACE, altered(UsageCounted, debits=counted), "usage of"),
    (0, PLACE, altered(UsageCounted, credits=counted), "usage of"),
    (0, PLACE, altered(UsageCounted, wallet_id=ALSO_HERE), "usage"),
    (0, PLACE, twice(HoldPlaced), "hold"),
    (0, CAPTURE, without(HoldChanged), "hold"),
    (0, CAPTURE, without(TransferPosted), "hold"),
    (0, CAPTURE, altered(HoldChanged, captured=more), "hold"),
    (0, CAPTURE, altered(HoldChanged, captured=101), "captured amount"),
    (0, CAPTURE, altered(HoldChanged, captured=-1), "hold changed"),
    (0, CAPTURE, altered(HoldChanged, pending=more), "hold"),
    (0, CAPTURE, altered(HoldChanged, status=HoldStatus.CAPTURED), "hold"),
    (0, CAPTURE, altered(HoldChanged, status=5), "hold changed"),
    (0, CAPTURE, altered(HoldChanged, is_ending=True), "hold"),
    (0, CAPTURE, altered(HoldChanged, expires_at_us=more), "hold"),
    (0, CAPTURE, altered(HoldChanged, hold_id=bytes(16)), "hold"),
    (0, CAPTURE, altered(TransferPosted, terms=None), "terms"),
    (0, CAPTURE, altered(TransferPosted, terms=on_other_terms(is_final=True)), "hold"),
    (0, CAPTURE, altered(TransferPosted, terms=on_other_terms(hold_id=bytes(16))), "hold"),
    (0, CAPTURE, altered(TransferPosted, transfer_type=TransferType.TRANSFER), "terms"),
    (0, CAPTURE, altered(TransferPosted, source=MOVES), "captured hold"),
    (0, CAPTURE, altered(TransferPosted, amount=101), "captured amount"),
    (0, LAST_CAPTURE, altered(HoldChanged, status=HoldStatus.OPEN), "hold"),
    (0, SEND_CAPTURE, without(HoldChanged), "hold"),
    (0, SEND_CAPTURE, altered(HoldChanged, pending=0), "hold"),
    (0, SEND_CAPTURE, altered(HoldChanged, is_ending=False), "hold"),
    (0, settle_capture, without(HoldChanged), "hold"),
    (0, settle_capture, altered(HoldChanged, captured=0), "hold"),
    (0, settle_capture, altered(HoldChanged, pending=30, captured=0), "hold"),
    (0, settle_last_capture, altered(HoldChanged, status=HoldStatus.OPEN), "hold"),
    (0, settle_last_capture, without(UsageCounted), "usage of"),
    (0, refuse_capture, without(HoldChanged), "hold|usage of"),
    (0, refuse_capture, without(UsageCounted), "usage of"),
    (0, refuse_capture, altered(HoldChanged, captured=30), "hold|usage of"),
    (0, VOID, without(HoldChanged), "hold|usage of"),
    (0, VOID, without(HoldVoided), "hold"),
    (0, VOID, without(UsageCounted), "usage of"),
    (0, void_from_before_the_limits, altered(UsageCounted, debits=Counter()), "usage of"),
    (0, VOID, altered(HoldVoided, amount=more), "hold"),
    (0, VOID, altered(HoldVoided, source=MOVES), "hold"),
    (0, VOID, altered(HoldVoided, hold_id=bytes(16)), "hold"),
    (0, VOID, altered(HoldVoided, transfer_id=b""), "transfer_id"),
    (0, VOID, altered(HoldChanged, status=HoldStatus.EXPIRED), "hold"),
    (0, VOID, altered(HoldChanged, status=HoldStatus.OPEN), "hold|usage of"),
    (0, VOID, twice(HoldVoided), "hold"),
    (0, EXTEND, without(HoldChanged), "hold"),
    (0, EXTEND, without(HoldExtended), "hold"),
    (0, EXTEND, altered(HoldExtended, expires_at_us=more), "over at"),
    (0, EXTEND, altered(HoldExtended, lifetime_s=more), "over at"),
    (0, EXTEND, altered(HoldChanged, expires_at_us=more), "hold"),
    (0, expire, altered(HoldChanged, status=HoldStatus.VOIDED), "hold"),
    (0, expire, altered(HoldChanged, captured=1), "hold|usage of"),
    (0, expire, without(UsageCounted), "usage of"),
    # Not before its time, and nothing afterwards.
    (
        0,
        PAY,
        followed_by(HoldChanged(HOLD, 0, 0, HoldStatus.EXPIRED, False, 0)),
        "hold",
    ),
    # Refunds.
    (0, REFUND, without(RefundCounted), "refunds of"),
    (0, REFUND, altered(RefundCounted, refunded=more), "refunds of"),
    (0, REFUND, altered(RefundCounted, version=more), "refunds of"),
    (0, REFUND, altered(RefundCounted, wallet_id=HERE), "refunds of"),
    (0, REFUND, altered(RefundCounted, transfer_id=bytes(16)), "refunds of"),
    (0, REFUND, twice(RefundCounted), "refunds of"),
    (0, REFUND, altered(TransferPosted, terms=on_other_terms(refundable=11)), "refunds of"),
    (0, REFUND, altered(TransferPosted, terms=None), "terms"),
    (0, REFUND, altered(TransferPosted, transfer_type=TransferType.TRANSFER), "terms"),
    (0, SEND_REFUND, without(RefundCounted), "refunds of"),
    (0, refuse_refund, without(RefundCounted), "refunds of"),
    (0, refuse_refund, altered(RefundCounted, refunded=more), "refunds of"),
    # Limits.
    (0, PAY, without(UsageCounted), "usage of"),
    (0, PAY, altered(UsageCounted, debits=counted), "usage of"),
    (0, SEND, without(UsageCounted), "usage of"),
    (0, EARN, without(UsageCounted), "usage of"),
    (0, FEE, followed_by(UsageCounted(HERE, Counter(), Counter())), "usage of"),
    (0, FEE, altered(TransferPosted, destination=MOVES), "destination of this type"),
    (0, refuse_transfer, without(UsageCounted), "usage of"),
    (1, credit, without(UsageCounted), "usage of"),
    (0, PAY, followed_by(WalletLimitsSet(HERE, 0, Limits())), "limits"),
    (0, PAY, followed_by(WalletLimitsSet(HERE, 0, Limits(balance_max=-1))), "limits"),
    (0, ON_TERMS, altered(TransferPosted, terms=on_other_terms(if_version=2)), "version asked for"),
    (
        0,
        ON_TERMS,
        altered(TransferPosted, terms=on_other_terms(if_available_gte=5_000)),
        "available",
    ),
    (0, ON_TERMS, altered(TransferPosted, terms=on_other_terms(amount_max=8)), "amount"),
    # Linked transfers, at once.
    (0, LINK, altered(LinkedPosted, is_open=True), "linked transfer posted"),
    (0, LINK, altered(LinkedPosted, key=b"short"), "key"),
    (0, LINK, altered(LinkedPosted, legs=first_leg(amount=0)), "amount of a leg"),
    (0, LINK, altered(LinkedPosted, legs=first_leg(amount=6)), "source_balance"),
    (0, LINK, altered(LinkedPosted, legs=first_leg(source=MOVES)), "postings"),
    (0, LINK, altered(LinkedPosted, legs=first_leg(source="nobody")), "source of a leg"),
    (0, LINK, altered(LinkedPosted, legs=first_leg(destination="?")), "destination of a leg"),
    (0, LINK, altered(LinkedPosted, legs=first_leg(destination=HERE)), "destination of a leg"),
    (0, LINK, altered(LinkedPosted, legs=first_leg(currency="JPY")), "currency of a leg"),
    (
        0,
        LINK,
        altered(LinkedPosted, legs=first_leg(destination=f"$fees:0:EUR:{MERCHANT}")),
        "destination of a leg",
    ),
    (0, LINK, altered(LinkedPosted, legs=first_leg(terms=Terms(refund_of=HOLD))), "terms of a leg"),
    (0, LINK, altered(LinkedPosted, legs=first_leg(transfer_id=b"")), "leg"),
    (0, LINK, altered(LinkedPosted, legs=first_leg(transfer_type=5)), "leg"),
    (0, LINK, altered(LinkedPosted, merchant_id="evil"), "merchant of a leg"),
    (0, LINK, altered(LinkedPosted, postings=lambda made: made[1:]), "postings"),
    (0, LINK, altered(LinkedPosted, postings=lambda made: made[::-1]), "postings"),
    (0, LINK, altered(LinkedPosted, postings=first_leg(source_balance=1)), "source_balance"),
    (0, LINK, altered(LinkedPosted, postings=first_leg(source_version=1)), "source_version"),
    (0, LINK, altered(LinkedPosted, postings=first_leg(destination_balance=1)), "destination_bal"),
    (0, LINK, altered(LinkedPosted, postings=first_leg(destination_version=1)), "destination_ver"),
    (0, LINK, without(UsageCounted), "usage of"),
    (0, LINK, without(RefundCounted), "refunds of"),
    # Begun.
    (0, LINK_ACROSS, altered(LinkedBegun, attempt=2), "attempt and deadline"),
    (0, LINK_ACROSS, altered(LinkedBegun, deadline_us=0), "attempt and deadline"),
    (0, LINK_ACROSS, altered(LinkedBegun, homes=lambda homes: homes[1:]), "homes"),
    (0, LINK_ACROSS, altered(LinkedBegun, homes=lambda homes: [(0, 0)] * len(homes)), "homes"),
    (
        0,
        LINK_ACROSS,
        altered(LinkedBegun, homes=lambda homes: [(0, 2), *homes[1:]]),
        "shard asked",
    ),
    (0, LINK_ACROSS, altered(LinkedBegun, legs=first_leg(amount=2_000)), "usage under a limit"),
    (0, LINK_ACROSS, altered(LinkedBegun, transfer_id=identifier("linked of waiting")), "linked"),
    (0, LINK_ACROSS, without(PrepareSent), "linked transfer"),
    (0, LINK_ACROSS, without(UsageCounted), "usage of"),
    (0, LINK_ACROSS, without(RefundCounted), "refunds of"),
    (0, LINK_ACROSS, altered(PrepareSent, attempt=2), "asked to prepare"),
    (0, LINK_ACROSS, altered(PrepareSent, parts=lambda parts: parts[1:]), "asked to prepare"),
    (0, LINK_ACROSS, altered(PrepareSent, merchant_id="evil"), "asked to prepare"),
    (0, LINK_ACROSS, altered(PrepareSent, linked_id=bytes(16)), "shard asked to prepare"),
    (0, LINK_ACROSS, altered(PrepareSent, peer=7), "shard asked to prepare"),
    (0, LINK_ACROSS, altered(PrepareSent, chain=bytes(16)), "chain of the channel"),
    (0, LINK_ACROSS, altered(PrepareSent, number=more), "number"),
    # Votes and verdicts.
    (0, vote_yes, altered(VoteTaken, answer=30), "linked transfer"),
    (0, vote_yes, altered(VoteTaken, answer=-3), "linked transfer"),
    (0, vote_yes, altered(VoteTaken, linked_id=bytes(16)), "transfer_id"),
    (0, vote_yes, altered(VoteTaken, number=more), "number"),
    (0, last_vote, without(LinkedPosted, VerdictSent), "linked transfer"),
    (0, last_vote, without(VerdictSent), "linked transfer"),
    (0, last_vote, altered(VerdictSent, is_posted=False), "verdict"),
    (0, last_vote, altered(LinkedPosted, is_open=False), "linked transfer posted"),
    (0, last_vote, altered(LinkedPosted, key=bytes(16)), "linked transfer"),
    (0, last_vote, altered(LinkedPosted, legs=first_leg(amount=1)), "linked transfer"),
    (0, last_vote, altered(LinkedPosted, postings=lambda made: made[1:]), "postings"),
    (0, last_vote, altered(LinkedPosted, postings=first_leg(source_balance=1)), "source_balance"),
    (0, vote_no, without(LinkedRejected, VerdictSent, UsageCounted, RefundCounted), "linked"),
    (0, vote_no, altered(LinkedRejected, leg=0), "linked transfer"),
    (0, vote_no, altered(LinkedRejected, leg=9), "leg"),
    (0, vote_no, altered(LinkedRejected, reason=RejectReason.SOURCE_UNKNOWN), "linked transfer"),
    (0, vote_no, altered(LinkedRejected, short_by=more), "linked transfer"),
    (0, vote_no, without(VerdictSent), "linked transfer"),
    (0, vote_no, without(UsageCounted), "usage of"),
    (0, vote_no, without(RefundCounted), "refunds of"),
    (0, vote_no, altered(VerdictSent, is_posted=True), "verdict"),
    (0, vote_no, altered(VerdictSent, peer=2), "chain of the channel|verdict|number"),
    (0, overdue, altered(LinkedRejected, reason=RejectReason.SOURCE_UNKNOWN), "linked transfer re"),
    (0, PAY, followed_by(LinkedDone(identifier("linked of waiting"))), "linked transfer"),
    (0, PAY, followed_by(LinkedRecalled(identifier("linked of waiting"))), "linked transfer"),
    (0, done, without(LinkedDone), "linked transfer"),
    (0, told, followed_by(LinkedDone(identifier("linked of waiting"))), "linked transfer"),
    (0, call_back, without(LinkedRecalled), "linked transfer|usage"),
    (0, call_back, without(LinkedBegun, PrepareSent), "usage of|linked"),
    (0, call_back, altered(LinkedBegun, attempt=1), "attempt and deadline"),
    (0, call_back, altered(LinkedBegun, deadline_us=more), "attempt and deadline"),
    (0, call_back, altered(LinkedBegun, key=bytes(16)), "recalled linked transfer"),
    # At the others.
    (
        1,
        vote_yes,
        altered(LinkedPrepared, parts=lambda parts: parts[1:]),
        "chain of the channel|us",
    ),
    (1, vote_yes, altered(LinkedPrepared, merchant_id="evil"), "chain of the channel"),
    (1, vote_yes, altered(LinkedPrepared, number=more), "number"),
    (1, vote_yes, without(UsageCounted), "usage of"),
    (1, told, altered(VerdictTaken, is_posted=False), "postings"),
    (1, told, altered(VerdictTaken, linked_id=bytes(16)), "verdict"),
    (1, told, altered(VerdictTaken, postings=lambda made: made[1:]), "postings"),
    (1, told, altered(VerdictTaken, postings=first_leg(source_version=77)), "source_version"),
    (1, overdue_there, altered(VerdictTaken, is_posted=True), "chain of the channel"),
    (1, overdue_there, without(UsageCounted), "usage of"),
    # Slots.
    (0, give, altered(SlotGiven, holds=[]), "carried hold"),
    (0, give, altered(SlotGiven, holds=first_leg(amount=11)), "carried hold"),
    (0, give, altered(SlotGiven, holds=first_leg(sequence=1)), "carried hold"),
    (0, give, altered(SlotGiven, refunds=first_leg(refunded=1)), "carried refunds"),
    (0, give, altered(SlotGiven, refunds=first_leg(wallet_id=HERE)), "carried refunds"),
    (0, give, altered(SlotGiven, wallets=first_leg(limits=None)), f"facts of {MOVES}"),
    (0, give, altered(SlotGiven, wallets=first_leg(usage=None)), f"facts of {MOVES}"),
    (0, give, altered(SlotGiven, wallets=counted_longer), f"facts of {MOVES}"),
    (1, take, altered(SlotTaken, holds=[]), "chain of the channel"),
    (1, take, altered(SlotTaken, refunds=[]), "chain of the channel"),
]


def last_of(net: MoneyNet, shard_id: int, step: Callable[[MoneyNet], object]) -> Any:
    """
    Let *step* happen and take the shard's last record back out of its journal.
    """
    step(net)
    return net.shards[shard_id].records.pop()


def resealed(books: ShardBooks, record: Any, decisions: list[Any]) -> tuple[Any, ...]:
    """
    Seal *decisions* in the place of those of *record*, behind what the books have read.
    """
    again = seal(
        shard_id=record.shard_id,
        sequence=record.sequence,
        epoch=record.epoch,
        at_us=record.at_us,
        count=len(decisions),
        decision_format=DECISION_FORMAT,
        payload=msgspec.msgpack.encode(decisions),
        previous_chain=books.chain,
    )
    return row_of(again)


def row_of(record: Any) -> tuple[Any, ...]:
    return (
        *(record.sequence, record.epoch, record.at_us, record.count, record.format),
        *(record.chain, record.payload),
    )


def books_of(net: MoneyNet, shard_id: int) -> ShardBooks:
    books = ShardBooks(shard_id)
    for record in net.shards[shard_id].records:
        books.fold(row_of(record))
    return books


def rechained(books: ShardBooks, given: SlotGiven) -> SlotGiven:
    """
    Chain a slot anew, so that only what it says of this shard is left.
    """
    return replace(given, chain=next_link(books.ends.to(given.peer).chain, entry_sent(given)))


@pytest.mark.parametrize(("shard_id", "step", "alter", "field"), WRONG)
def test_what_does_not_follow_is_named(shard_id: int, step: Any, alter: Alter, field: str):
    """
    A decision that is altered, left out or there once more is named, whatever the chain says.
    """
    net = funded_net()
    record = last_of(net, shard_id, step)
    decisions = decode_decisions(record.payload, record.format)
    wrong = alter(decisions)
    assert encode_decisions(wrong) != record.payload, "nothing is wrong"
    books = books_of(net, shard_id)
    wrong = [rechained(books, one) if isinstance(one, SlotGiven) else one for one in wrong]
    with pytest.raises(Unsound) as raised:
        books.fold(resealed(books, record, wrong))
    assert raised.value.field.startswith(tuple(field.split("|"))), raised.value


@pytest.mark.parametrize(
    ("shard_id", "step"), list({(shard_id, step): None for shard_id, step, _, _ in WRONG})
)
def test_what_follows_passes(shard_id: int, step: Any):
    """
    The decisions that the wrong ones were made from are accepted.
    """
    net = funded_net()
    step(net)
    for shard in net.shards:
        books_of(net, shard.shard_id).check_end()
    assert net.shards[shard_id].records


def test_a_hold_is_not_captured_after_its_time():
    """
    A capture in a record of a later time than the hold lasts is named; so is an expiry too early.
    """
    for step, at_us in ((CAPTURE, 60_000_000), (expire, -30_000_000)):
        net = funded_net()
        record = last_of(net, 0, step)
        books = books_of(net, 0)
        late = replace(record, at_us=record.at_us + at_us)
        decisions = decode_decisions(record.payload, record.format)
        with pytest.raises(Unsound) as raised:
            books.fold(resealed(books, late, decisions))
        assert raised.value.field.startswith("hold")


def test_what_is_held_is_compared_at_the_end():
    """
    At the end wallets are compared with holds and undecided linked transfers once more.
    """
    for place_of, field in ((HELD, "held"), (INCOMING, "incoming")):
        books = books_of(funded_net(), 0)
        books.check_end()
        books.wallets[HERE][place_of] += 1
        with pytest.raises(Unsound) as raised:
            books.check_end()
        assert (raised.value.key, raised.value.field) == (HERE, field)


def test_usage_begins_and_ends_with_limits():
    """
    Counting starts at zero with the first limits, and is over with the last.
    """
    net = funded_net()
    net.zero.ask(SetWalletLimits(MERCHANT, HERE, None, Limits()))
    assert books_of(net, 0).wallets[HERE][USAGE] is None
    net.zero.ask(SetWalletLimits(MERCHANT, HERE, None, LIMITS))
    since_us = net.zero.records[-1].at_us
    assert books_of(net, 0).wallets[HERE][USAGE] == [*[0] * 12, since_us]
    net.zero.ask(SetWalletLimits(MERCHANT, HERE, None, Limits(balance_max=50_000)))
    assert books_of(net, 0).wallets[HERE][USAGE] == [*[0] * 12, since_us]


def test_only_wallets_of_fees_are_a_merchants():
    """
    A wallet of the ledger's own that is opened for a merchant is one of its fees, and empty.
    """
    opened = [
        (WalletOpened("$fees:0:JPY:acme", "acme", "JPY", -5), "owner and minimum"),
        (WalletOpened("$fees:0:JPY:acme", "evil", "JPY", 0), "wallet opened"),
        (WalletOpened("$fees:1:JPY:acme", "acme", "JPY", 0), "wallet opened"),
        (WalletOpened("$fees:0:EUR:acme", "acme", "JPY", 0), "wallet opened"),
    ]
    for decision, field in opened:
        net = funded_net()
        record = last_of(net, 0, PAY)
        books = books_of(net, 0)
        with pytest.raises(Unsound) as raised:
            books.fold(resealed(books, record, [decision]))
        assert raised.value.field == field


# --- Between shards -------------------------------------------------------------------------


def audit_of(net: MoneyNet) -> Audit:
    audit = Audit([], None)
    database = AuditedDatabase(0, "", None)
    for shard in net.shards:
        books = books_of(net, shard.shard_id)
        audit.add(books, 0)
        audit.journals[shard.shard_id] = JournalEnd(database, books)
    for channel in channels_of(audit):
        compare_ends(audit, channel)
    return audit


@pytest.mark.parametrize("step", [vote_yes, last_vote, told, done, vote_no, overdue, call_back])
def test_linked_transfers_fit_at_every_step(step: Any):
    """
    What participants have set aside is what the shard that decides knows of, and dues fit.
    """
    net = funded_net()
    assert audit_of(net).differences == {}
    step(net)
    assert audit_of(net).differences == {}


def test_what_nobody_decides_is_named():
    """
    Parts that are prepared for a shard that does not know of the linked transfer are named, and so
    is a vote of yes of which the voter has nothing.
    """
    net = funded_net()
    net.go(0, 1)
    audit = audit_of(net)
    del audit.journals[0].ends.linked.open[identifier("linked of waiting")]
    for channel in channels_of(audit):
        compare_ends(audit, channel)
    assert audit.differences["channel"].field == "linked transfer"
    audit = audit_of(net)
    audit.journals[1].ends.linked.prepared.clear()
    for channel in channels_of(audit):
        compare_ends(audit, channel)
    assert audit.differences["channel"].field == "linked transfer"


def test_dues_of_verdicts_on_their_way_are_counted():
    """
    A shard that decides is ahead by what it has posted and not told; no more and no less.
    """
    net = funded_net()
    last_vote(net)
    audit = audit_of(net)
    assert audit.differences == {}
    (pending,) = [sent for sent in audit.journals[0].ends.to(1).outbox.values() if sent.amounts]
    pending.amounts[0] = ("EUR", pending.amounts[0][1] + 1)
    for channel in channels_of(audit):
        compare_ends(audit, channel)
    assert audit.differences["channel"].field == "sum of EUR"


async def test_totals_of_refunds_go_on_where_they_were_left():
    """
    A shard that took a wallet counts on from what the other had told, which nobody else does.
    """
    net = funded_net()
    take(net)
    net.one.state.tables_reach(99)
    net.one.ask(refund("paid", MOVES, THERE, 1, refundable=40, key="there"))
    audit = audit_of(net)
    await check_refunds(audit)
    assert audit.differences == {}
    audit.journals[1].refunds_brought *= 2
    await check_refunds(audit)
    assert audit.differences["journal"].field == "total before"
    audit = audit_of(net)
    audit.journals[0].refunds_left.clear()
    await check_refunds(audit)
    assert audit.differences["journal"].field == "total before"


# --- Journals of older builds -------------------------------------------------------------------


def test_fields_that_were_added_mean_what_was_meant_before():
    """
    A decision with the fields of before is filled up; one with some of the new ones is not.
    """
    for tag, added in ((3, 1), (4, 1), (5, 2), (7, 2), (9, 1), (10, 2), (11, 2), (12, 1), (15, 2)):
        old = [tag, *[0] * (FIELD_COUNTS[tag] - added - 1)]
        assert len(filled_up(old)) == FIELD_COUNTS[tag]
        for wrong in (old[:-1], [*old, *[0] * (added + 1)]):
            with pytest.raises(Contradiction):
                filled_up(wrong)


ADDED_COUNTS = {3: 1, 4: 1, 5: 2, 7: 2, 9: 1, 10: 2, 11: 2, 12: 1}


def test_a_journal_of_an_older_build_is_read():
    """
    What was journaled before there was money besides balances is sound, and says the same.
    """
    net = MoneyNet()
    net.zero.ask(open_wallet(HERE), deposit(HERE, 1_000, key="to here"))
    net.one.ask(open_wallet(THERE))
    net.zero.ask(SetWalletLimits(MERCHANT, HERE, -5))
    net.zero.ask(transfer(HERE, THERE, 9, key="across"), transfer(HERE, NOBODY, 9, key="refused"))
    net.zero.ask(transfer(HERE, ALSO_HERE, 9, key="rejected"))
    net.go(0, 1)
    net.zero.ask(transfer(HERE, THERE, 7, key="on its way"))
    for shard in net.shards:
        books = ShardBooks(shard.shard_id)
        for record in shard.records:
            old = [
                one[: len(one) - ADDED_COUNTS.get(one[0], 0)]
                for one in msgspec.msgpack.decode(record.payload)
            ]
            books.fold(resealed(books, record, old))
        books.check_end()
        now = books_of(net, shard.shard_id)
        assert books.wallets == now.wallets
        assert books.posted_count == now.posted_count


# --- One part of the books by itself --------------------------------------------------------

LINKED_ID, SOME_KEY = bytes(15) + b"l", bytes(15) + b"k"
A_LEG = [1, bytes(15) + b"t", "a", "b", "EUR", 5, None, None, None]
BEGUN = [27, LINKED_ID, SOME_KEY, "acme", [A_LEG], [[0, 1]], 1, 99]
ASKED = [28, 1, 1, bytes(16), LINKED_ID, "acme", 1, [[0, False, True, A_LEG]]]
POSTED = [25, LINKED_ID, SOME_KEY, "acme", [A_LEG], [], True]
PREPARED = [34, 1, 1, bytes(16), LINKED_ID, "acme", [[0, False, True, A_LEG]]]


def linked_book(*answers: int, posted: bool = False) -> LinkedBook:
    book = LinkedBook(0)
    book.fold(BEGUN, 1, 1)
    book.check_asked_of(ASKED)
    for answer in answers:
        book.vote(ASKED, 1, answer)
    if posted:
        book.fold(POSTED, 1, 1)
        book.check_told(LINKED_ID, 1, True)
    return book


def prepared_book() -> LinkedBook:
    book = LinkedBook(0)
    book.prepare(PREPARED, 1, 1)
    return book


def called_back() -> None:
    book = linked_book(-1)
    book.fold([30, LINKED_ID], 1, 1)
    book.check_record()


def hold_book(**changes: Any) -> HoldBook:
    book = HoldBook()
    book.place(HOLD, facts_of_hold(**changes))
    return book


def facts_of_hold(pending: int = 0, status: int = 1, wallet_id: str = HERE) -> list[Any]:
    counts = [0, pending, status, False, 1, 99]
    return ["acme", wallet_id, "", "EUR", 10, *counts, None, None, None]


def tell_twice() -> None:
    book = hold_book()
    for captured in (1, 2):
        book.tell(HOLD, HoldState(captured, 0, 1, False, 99), 1, None)


def settle_twice() -> None:
    book = hold_book(pending=10)
    for _ in range(2):
        book.settle(HOLD, 5, is_final=False)


def take_total_twice() -> None:
    book = RefundBook()
    for _ in range(2):
        book.take([bytes(16), HERE, 1, 1, 0])


def take_hold(hold_id: bytes = HOLD, **changes: Any) -> None:
    books = books_of(funded_net(), 0)
    carried = [hold_id, *facts_of_hold(**changes)[:-1], 0]
    take_holds(books, slot_of(HERE), [carried], Stamp(1, 1, None))


def rich_wallet() -> ShardBooks:
    books = books_of(funded_net(), 0)
    books.wallets[MOVES][BALANCE] = BALANCE_MAX
    return books


def come_in(books: ShardBooks, kind: int) -> None:
    moves = [Move(0, kind, HERE, MOVES, "EUR", 1)]
    set_aside(books, moves, Stamp(1, 1_700_000_000_000_099, None), [])


def key_that_was_carried() -> None:
    books = books_of(funded_net(), 0)
    books.carried[SOME_KEY] = OutcomeRow(SOME_KEY, 1, b"", bytes(16))
    books.remember([21, bytes(16), SOME_KEY, "acme", HERE, HOLD, "EUR", 1], Stamp(1, 1, None))


ALONE = {
    "told twice": (tell_twice, "hold"),
    "an ended hold is not used": (lambda: hold_book(pending=5, status=3).usable(HOLD, 1), "hold"),
    "settled twice": (settle_twice, "hold"),
    "a total taken twice": (take_total_twice, "carried refunds"),
    "a hold of another slot": (lambda: take_hold(lower_bits(HOLD)), "carried hold"),
    "a hold of no wallet": (lambda: take_hold(wallet_id="?"), "carried hold"),
    "a hold with captures": (
        lambda: take_hold(bytes([HOLD[0] ^ 1]) + HOLD[1:], pending=5),
        "carried hold",
    ),
    "no reason": (lambda: answer_refused(0, 0, 0), "reason"),
    "short by less than nothing": (lambda: answer_refused(1, -1, 0), "short by"),
    "no such leg": (lambda: answer_refused(1, 0, 128), "leg"),
    "a vote too many": (lambda: linked_book(0, 0), "vote taken"),
    "delivered before it is posted": (
        lambda: linked_book().delivered(LINKED_ID, 1, True),
        "verdict delivered",
    ),
    "prepared twice": (lambda: prepared_book().prepare(PREPARED, 2, 2), "linked transfer prep"),
    "a verdict of another": (
        lambda: prepared_book().take_verdict([35, 2, 2, b"", LINKED_ID, False, []]),
        "verdict",
    ),
    "called back for good": (called_back, "linked transfer"),
    "rejected when it is posted": (
        lambda: linked_book(0, posted=True).fold([26, *BEGUN[1:5], 0, 30, 0], 2, 2),
        "linked transfer",
    ),
    "no legs": (lambda: check_legs([]), "legs"),
    "a fee that leaves": (lambda: check_homes(0, [[9, *A_LEG[1:]]], [[0, 1]]), "home of a fee"),
    "a home below zero": (lambda: check_homes(0, [A_LEG], [[0, -1]]), "homes"),
    "more than there can be": (lambda: come_in(rich_wallet(), 8), "incoming"),
    "more than the balance may be": (lambda: come_in(rich_wallet(), 1), "balance under a limit"),
    "half a usage": (lambda: flat_usage([[1], [2]]), "usage"),
    "half of the terms": (
        lambda: books_of(funded_net(), 0).check_terms([None], [], 1),
        "terms",
    ),
    "a key that came with a slot": (key_that_was_carried, "key"),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_part_of_the_books_names_what_cannot_be(name: str):
    """
    What no ledger can be made to journal is named as well.
    """
    contradict, field = ALONE[name]
    with pytest.raises(Contradiction) as raised:
        contradict()
    assert raised.value.field.startswith(field)
