"""
Slots: which part of the ledger a wallet belongs to.

Rule: a wallet's slot never changes. Growing means giving slots to other shards, never counting
them anew; whoever changes this function moves every wallet there is.
"""

from __future__ import annotations

from zlib import crc32

SLOT_COUNT = 4096
NOWHERE = -1  # The owner of a slot of which nobody has said where it is.


def slot_of(wallet_id: str) -> int:
    """
    Return the slot of a wallet: the low 12 bits of the CRC-32 (IEEE 802.3) of its UTF-8.
    """
    return crc32(wallet_id.encode()) & (SLOT_COUNT - 1)


def slot_of_hold(hold_id: bytes) -> int:
    """
    Return the slot of a hold's wallet: the low 12 bits of its id.
    """
    return int.from_bytes(hold_id[-2:], "big") & (SLOT_COUNT - 1)


def hold_id_in(slot: int, random_id: bytes) -> bytes:
    """
    Make a hold's id for a wallet of *slot* from a UUIDv7.
    """
    low = int.from_bytes(random_id[-2:], "big") & ~(SLOT_COUNT - 1) | slot
    return random_id[:-2] + low.to_bytes(2, "big")


class SlotMap:
    """
    Which shard has which slot, as one shard or gateway knows it.

    A shard is certain of its own slots: only its journal says which they are. Those of others
    are where they were last seen. A slot's generation counts its owners: 1 for the first.
    """

    __slots__ = ("_generations", "_shard_ids")

    def __init__(self, shard_ids: list[int], generations: list[int] | None = None) -> None:
        assert len(shard_ids) == SLOT_COUNT, "a shard for each slot"
        self._shard_ids = shard_ids
        self._generations = generations or [1] * SLOT_COUNT

    @classmethod
    def undivided(cls, shard_id: int) -> SlotMap:
        """
        Make the map of a ledger of one shard, or of one about which nothing is known.
        """
        return cls([shard_id] * SLOT_COUNT)

    @classmethod
    def even(cls, shard_count: int) -> SlotMap:
        """
        Make the first map of *shard_count* shards: equal runs of slots, in order.
        """
        return cls([slot * shard_count // SLOT_COUNT for slot in range(SLOT_COUNT)])

    def shard_of(self, wallet_id: str) -> int:
        return self._shard_ids[slot_of(wallet_id)]

    def owner(self, slot: int) -> int:
        return self._shard_ids[slot]

    def generation(self, slot: int) -> int:
        return self._generations[slot]

    def slots_of(self, shard_id: int) -> list[int]:
        """
        List the slots of a shard, in order.
        """
        return [slot for slot, owner in enumerate(self._shard_ids) if owner == shard_id]

    def assign(self, slot: int, shard_id: int, generation: int) -> None:
        """
        Take in that *slot* is at *shard_id* in its *generation*.
        """
        self._shard_ids[slot] = shard_id
        self._generations[slot] = generation
