"""
Goal: a wallet's slot is the same for ever, and slots are shared out evenly.
Method: golden vectors, written once, and a count over many ids.
"""

from __future__ import annotations

from collections import Counter

import pytest

from processor.core.slots import SLOT_COUNT, SlotMap, hold_id_in, slot_of, slot_of_hold


@pytest.mark.parametrize(
    ("wallet_id", "slot"),
    [
        ("a", 3651),
        ("0", 3873),
        ("alice", 3143),
        ("shop:till", 4070),
        ("emp-000123", 1335),
        ("user@example.com", 1441),
        ("wal_01JD3K9Q6X8Z5T7V2B4N6M8P0R", 2500),
        ("A" * 64, 572),
    ],
)
def test_slots_never_change(wallet_id: str, slot: int) -> None:
    """
    A change here would look for every wallet in the wrong place.
    """
    assert slot_of(wallet_id) == slot


@pytest.mark.parametrize("name", ["wal_{:06}", "emp-{}", "{:032x}"])
def test_numbered_wallets_spread(name: str) -> None:
    """
    Ids that are counted up fall evenly: no slot has twice its share, none stays empty.
    """
    counts = Counter(slot_of(name.format(number)) for number in range(40 * SLOT_COUNT))
    assert len(counts) == SLOT_COUNT
    assert max(counts.values()) < 80


@pytest.mark.parametrize("shard_count", [1, 2, 3, 7])
def test_a_first_map_is_even(shard_count: int) -> None:
    """
    Each of the shards has its share, and every slot has a shard.
    """
    slots = SlotMap.even(shard_count)
    found = Counter(slots.shard_of(f"wallet-{number}") for number in range(20_000))
    assert set(found) == set(range(shard_count))
    assert max(found.values()) - min(found.values()) < 2_000


def test_a_slot_is_assigned_with_its_generation() -> None:
    """
    The others stay where they are.
    """
    slots = SlotMap.even(2)
    slots.assign(7, 1, 2)
    assert (slots.owner(7), slots.generation(7)) == (1, 2)
    assert (slots.owner(8), slots.generation(8)) == (0, 1)
    assert slots.slots_of(1) == [7, *range(2048, 4096)]


@pytest.mark.parametrize("slot", [0, 1, 255, 256, 4095])
@pytest.mark.parametrize("byte", [0, 255])
def test_a_hold_is_found_by_its_id(slot: int, byte: int) -> None:
    """
    Its low 12 bits are its wallet's slot; all others are as they were.
    """
    random_id = bytes([byte] * 16)
    hold_id = hold_id_in(slot, random_id)
    assert slot_of_hold(hold_id) == slot
    assert hold_id[:14] == random_id[:14]
    assert hold_id[14] >> 4 == byte >> 4
