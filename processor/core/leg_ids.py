"""
The ids of a linked transfer and of its legs: they differ in the last byte alone.

Rule 1: whoever has a leg's id has the id of what it is a leg of, and the other way round. So a
        repeated key tells the ids of the first answer's legs, although it made others.
Rule 2: all of them begin with the same 15 bytes, by which a journal is searched for the whole.
"""

from __future__ import annotations

from processor.core.commands import LEGS_MAX

_LINKED = 0xFF  # No leg has this number.

assert LEGS_MAX <= _LINKED, "each leg has a last byte of its own"


def linked_id_in(identifier: bytes) -> bytes:
    """
    Make the id of a linked transfer from a UUIDv7, or find it from one of its legs' ids.
    """
    return identifier[:-1] + bytes([_LINKED])


def leg_id(linked_id: bytes, place: int) -> bytes:
    """
    Return the id of leg number *place*.
    """
    assert 0 <= place < LEGS_MAX, "no such leg"
    return linked_id[:-1] + bytes([place])


def leg_number(transfer_id: bytes) -> int:
    """
    Return which leg of its linked transfer a leg's id is of.
    """
    return transfer_id[-1]


def shared_prefix(identifier: bytes) -> bytes:
    """
    Return what the ids of a linked transfer and of all its legs begin with.
    """
    return identifier[:-1]


def is_leg_of(transfer_id: bytes, linked_to: bytes | None) -> bool:
    """
    Say whether what a transfer is linked to is the linked transfer that it is a leg of.
    """
    return linked_to is not None and linked_to == linked_id_in(transfer_id) != transfer_id
