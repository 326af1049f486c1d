"""
Goal: the filter says "new" only when that is certain: a false "new" pays twice.
Method: seeded keys, more than the first filter holds, before and after it is complete.
"""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from processor.flow.key_filter import KeyFilter


def keys(count: int, seed: int = 1) -> list[bytes]:
    return [random.Random(f"{seed} {number}").randbytes(16) for number in range(count)]


def test_incomplete_filter_is_never_sure() -> None:
    """
    Until the tables were read to the end every key may be in them, an unseen one too.
    """
    part = KeyFilter()
    assert part.may_contain(keys(1)[0])
    part.add(keys(10))
    assert all(part.may_contain(key) for key in keys(20))


def test_complete_filter_knows_every_member_and_most_strangers() -> None:
    """
    Each member is found, and a look-up is saved for nearly every other key.
    """
    whole = KeyFilter(capacity=1_000)
    whole.add(keys(1_000))
    whole.complete = True
    assert all(whole.may_contain(key) for key in keys(1_000))
    assert sum(whole.may_contain(key) for key in keys(5_000, seed=2)) <= 2


def test_empty_complete_filter_is_sure() -> None:
    """
    Nothing was ever paid: every key is new.
    """
    empty = KeyFilter()
    empty.complete = True
    assert not any(empty.may_contain(key) for key in keys(100))


def test_filter_grows_without_forgetting() -> None:
    """
    Far beyond its first room it still finds every member and stays precise.
    """
    growing = KeyFilter(capacity=10)
    growing.complete = True
    members = keys(5_000)
    for start in range(0, len(members), 7):
        growing.add(members[start : start + 7])
    assert all(growing.may_contain(key) for key in members)
    assert sum(growing.may_contain(key) for key in keys(5_000, seed=2)) <= 3


@settings(deadline=None)
@given(st.lists(st.binary(min_size=16, max_size=16), max_size=50))
def test_any_key_is_found_again(members: list[bytes]) -> None:
    """
    There is no key that is added and then called new: all zeros and all ones included.
    """
    whole = KeyFilter(capacity=4)
    whole.add(members)
    whole.add([bytes(16), b"\xff" * 16, b"\x80" + bytes(15)])
    whole.complete = True
    assert all(whole.may_contain(key) for key in members)
    assert whole.may_contain(bytes(16))
    assert whole.may_contain(b"\xff" * 16)
    assert whole.may_contain(b"\x80" + bytes(15))
