"""
Goal: the wire gives the same messages however it is cut, bounds them, and proves who speaks.
Method: streams cut at random places; proofs made for one side and shown to the other.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.core.reject_reason import RejectReason
from processor.flow.frames import (
    NONCE_BYTES,
    PROOF_BYTES,
    Answered,
    FrameSplitter,
    FrameTooLarge,
    KeyReused,
    NotServing,
    Overloaded,
    Posted,
    Rejected,
    Reply,
    RequestFrame,
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


def test_request_survives_the_wire() -> None:
    """
    A frame with every kind of command decodes to itself.
    """
    frame = RequestFrame(
        2**40,
        0,
        7,
        [
            open_wallet("alice"),
            transfer("alice", "bob", 5),
            deposit("bob", 1),
            read_wallet("bob"),
        ],
    )
    assert decode_request(encode(frame)) == frame


@pytest.mark.parametrize(
    "reply",
    [
        Answered(
            1,
            [
                Posted(identifier("t"), 3, 4, -5, 6, False),
                Rejected(identifier("t"), 3, 4, RejectReason.SOURCE_FROZEN, True),
                KeyReused("amount"),
                WalletFound("alice", "EUR", 1, -5, -(2**63) + 1, 6, 7, True),
                WalletRefused(RejectReason.WALLET_CLOSED),
            ],
        ),
        Answered(1, []),
        Overloaded(2, 250),
        StaleEpoch(3, 9),
        NotServing(4),
    ],
)
def test_reply_survives_the_wire(reply: Reply) -> None:
    """
    Every kind of reply and result decodes to itself.
    """
    assert decode_reply(encode(reply)) == reply
