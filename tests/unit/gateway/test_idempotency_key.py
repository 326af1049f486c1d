"""
Goal: a key is read from its header in both forms, and stands for one 16-byte hash in its scope.
Method: tables of headers; pairs of scopes that would collide if they were only joined.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.idempotency_key import command_key, parse_header
from gateway.problems import Refusal


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (b"k-1", "k-1"),
        (b'"k-1"', "k-1"),
        (b'"a\\"b\\\\c"', 'a"b\\c'),
        (b'a"b', 'a"b'),
        (b'"', '"'),
        (b'"open', '"open'),
        (b"k" * 255, "k" * 255),
        (b'"' + b"k" * 255 + b'"', "k" * 255),
    ],
)
def test_reads_both_forms(header: bytes, key: str) -> None:
    """
    A quoted string is the same key as its content; what only begins like one is taken as it is.
    """
    assert parse_header(header) == key


@pytest.mark.parametrize(
    "header", [b"", b'""', b"a b", b'"a b"', b"k" * 256, "schlüssel".encode(), b"a\tb"]
)
def test_refuses_other_text(header: bytes) -> None:
    """
    Spaces, other alphabets and too much are refused, and the header is named.
    """
    with pytest.raises(Refusal) as caught:
        parse_header(header)

    assert caught.value.kind.code == "idempotency_key_invalid"
    assert [error.parameter for error in caught.value.errors] == ["Idempotency-Key"]


def test_refuses_its_absence() -> None:
    """
    Money does not move without a key.
    """
    with pytest.raises(Refusal) as caught:
        parse_header(None)

    assert caught.value.kind.code == "idempotency_key_missing"


def test_the_hash_never_changes() -> None:
    """
    A key that was used years ago still means the same.
    """
    assert command_key("acme", "shop:till", "order-1").hex() == "2bf118af418bbcae1f6b58fa907e8069"


texts = st.text(min_size=1, max_size=4)


@given(st.tuples(texts, texts, texts), st.tuples(texts, texts, texts))
def test_scopes_do_not_run_together(
    left: tuple[str, str, str], right: tuple[str, str, str]
) -> None:
    """
    Two different triples of merchant, wallet and key have different hashes.
    """
    assert (command_key(*left) == command_key(*right)) is (left == right)


def test_moving_a_letter_changes_the_scope() -> None:
    """
    Joined, these would be the same text.
    """
    assert command_key("ab", "c", "d") != command_key("a", "bc", "d")
    assert command_key("a", "b", "cd") != command_key("a", "bc", "d")
    assert command_key("1", "1:a", "b") != command_key("11:", "a", "b")
