"""
Goal: the wire gives the same messages however it is cut, bounds them, and proves who speaks.
Method: streams cut at random places; proofs made for one side and shown to the other.
"""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.core.commands import Command, GiveSlot, SetWalletLimits, SetWalletStatus
from processor.core.hold import Hold
from processor.core.limits import Counter, Limits, Usage, Velocity
from processor.core.reject_reason import RejectReason
from processor.core.wallet import WalletStatus
from processor.flow.frames import (
    NONCE_BYTES,
    PROOF_BYTES,
    Answered,
    ChannelFull,
    FilledIn,
    FrameSplitter,
    FrameTooLarge,
    HoldFound,
    KeyReused,
    LegSource,
    LinkedMoved,
    LinkedRefused,
    Moved,
    NotServing,
    Outcome,
    Overloaded,
    Pending,
    Posted,
    Rejected,
    Reply,
    RequestFrame,
    Result,
    Settled,
    SlotKept,
    SlotLeft,
    StaleEpoch,
    WalletFound,
    WalletRefused,
    client_proof,
    decode_reply,
    decode_request,
    encode,
    same_proof,
    server_proof,
    with_length,
)
from tests.support.bound_commands import (
    capture,
    extend,
    fee_leg,
    leg,
    linked,
    place,
    read_hold,
    refund,
    void,
)
from tests.support.commands import deposit, identifier, open_wallet, read_wallet, transfer

SECRET = b"sixteen bytes or more"
ONE, OTHER = bytes(NONCE_BYTES), bytes([1]) * NONCE_BYTES


@settings(deadline=None)
@given(
    messages=st.lists(st.binary(max_size=40), max_size=8),
    cuts=st.lists(st.integers(min_value=0, max_value=400), max_size=12),
)
def test_any_cut_gives_the_same_messages(messages: list[bytes], cuts: list[int]) -> None:
    """
    What was sent comes out in order and whole, wherever the network cut the stream.
    """
    stream = b"".join(with_length(message) for message in messages)
    splitter = FrameSplitter()
    found: list[bytes] = []
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(places):
        found += splitter.feed(stream[start:end])
    assert found == messages


@settings(deadline=None)
@given(message=st.binary(min_size=1, max_size=40), missing=st.integers(min_value=1))
def test_unfinished_message_is_kept_back(message: bytes, missing: int) -> None:
    """
    Nothing comes out before its last byte is in, and nothing is lost until then.
    """
    stream = with_length(message)
    cut = max(0, len(stream) - missing)
    splitter = FrameSplitter()
    assert splitter.feed(stream[:cut]) == []
    assert splitter.feed(stream[cut:]) == [message]


def test_bound_is_the_largest_message() -> None:
    """
    A message at the bound passes; one more byte is refused by its announcement alone.
    """
    splitter = FrameSplitter(bytes_max=10)
    assert splitter.feed(with_length(bytes(10))) == [bytes(10)]
    with pytest.raises(FrameTooLarge, match="11 bytes announced, 10 allowed"):
        splitter.feed(with_length(bytes(11))[:4])


def test_bound_widens_between_messages() -> None:
    """
    A peer that proved itself may send more, on the same stream.
    """
    splitter = FrameSplitter(bytes_max=1)
    assert splitter.feed(with_length(b"a") + b"\0\0") == [b"a"]
    splitter.widen(100)
    assert splitter.feed(b"\0\x02bc") == [b"bc"]


def test_proofs_fit_once() -> None:
    """
    A proof holds for one side, one pair of nonces and one secret, and for nothing else.
    """
    proof = client_proof(SECRET, ONE, OTHER)
    assert len(proof) == PROOF_BYTES
    assert same_proof(proof, client_proof(SECRET, ONE, OTHER))
    others = [
        server_proof(SECRET, ONE, OTHER),
        server_proof(SECRET, OTHER, ONE),
        client_proof(SECRET, OTHER, ONE),
        client_proof(SECRET, ONE, ONE),
        client_proof(SECRET + b"!", ONE, OTHER),
        b"",
        proof[:-1],
    ]
    assert not any(same_proof(proof, other) for other in others)


PLACED = place("alice", 5, destination="bob", reference="room 7")
LIMITS = Limits(Velocity(hour_count=1), Velocity(day_amount=2), balance_max=3)
COMMANDS: list[Command] = [
    open_wallet("alice"),
    SetWalletStatus("acme", "alice", WalletStatus.FROZEN),
    SetWalletLimits("acme", "alice", None, LIMITS),
    transfer("alice", "bob", 5),
    deposit("bob", 1),
    refund("earlier", "bob", "alice", 1, refundable=5),
    read_wallet("bob"),
    GiveSlot(4_095, 3),
    PLACED,
    capture(PLACED.hold_id, 5, key="capture", is_final=True),
    extend(PLACED.hold_id, 60),
    void(PLACED.hold_id),
    read_hold(PLACED.hold_id),
    linked(leg("alice", "bob", 5), fee_leg("alice", 1)),
]


def test_request_survives_the_wire() -> None:
    """
    A frame with every kind of command decodes to itself.
    """
    frame = RequestFrame(2**40, 0, 7, COMMANDS)
    assert decode_request(encode(frame)) == frame
    assert {type(command) for command in COMMANDS} == set(get_args(Command))


FILLED_IN = FilledIn("alice", "bob", "EUR", 5)
HELD = Hold(
    *(PLACED.hold_id, "acme", "alice", "bob", "EUR", 5, 1, 2, 1, True, 3, 4),
    *("room 7", '{"a":1}', 8),
)
RESULTS: list[Result] = [
    Posted(identifier("t"), 3, 4, -5, 6, False),
    Posted(identifier("t"), 3, 4, -5, 6, False, FILLED_IN),
    Rejected(identifier("t"), 3, 4, RejectReason.SOURCE_FROZEN, True),
    Rejected(identifier("t"), 3, 4, RejectReason.CAPTURE_EXCEEDS_HOLD, True, 9, FILLED_IN),
    KeyReused("amount"),
    WalletFound("alice", "EUR", 1, -5, -(2**63) + 1, 6, 7, True, -(2**63), 0),
    WalletFound("alice", "EUR", 1, -5, 6, 6, 7, True, 5, 1, LIMITS, Usage(Counter(1, 2, 3))),
    WalletRefused(RejectReason.WALLET_CLOSED),
    Pending(identifier("t"), 3, 4, True, FILLED_IN),
    Moved(-1),
    ChannelFull(7),
    SlotLeft(4_095, 3, 1),
    SlotKept(4_095, "too_large"),
    HoldFound(HELD, identifier("t"), 3, 4, True, 5, 6, 7, 8),
    LinkedMoved(identifier("t"), 3, 4, True, [LegSource(0, -5, 6), LegSource(99, 5, 7)]),
    LinkedRefused(identifier("t"), 3, 4, True, 99, RejectReason.LINKED_DEADLINE_PASSED, 0),
]
REPLIES: list[Reply] = [
    Answered(1, RESULTS),
    Answered(1, []),
    Overloaded(2, 250),
    StaleEpoch(3, 9),
    NotServing(4),
    Settled([one for one in RESULTS if isinstance(one, Outcome)]),
]


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: type(reply).__name__)
def test_reply_survives_the_wire(reply: Reply) -> None:
    """
    Every kind of reply and result decodes to itself.
    """
    assert decode_reply(encode(reply)) == reply


def test_no_kind_of_answer_is_left_out() -> None:
    """
    The replies above are of every kind, and so are the results and the outcomes in them.
    """
    assert {type(reply) for reply in REPLIES} == set(get_args(Reply))
    assert {type(result) for result in RESULTS} == set(get_args(Result))
    settled = REPLIES[-1]
    assert isinstance(settled, Settled)
    assert {type(result) for result in settled.results} == set(get_args(Outcome))
