"""
Slots: which part of the ledger a wallet belongs to.

Rule: a wallet's slot never changes. Growing means giving slots to other shards, never counting
them anew; whoever changes this function moves every wallet there is.
"""

from __future__ import annotations

from zlib import crc32

SLOT_COUNT = 4096


def slot_of(wallet_id: str) -> int:
    """
    Return the slot of a wallet: the low 12 bits of the CRC-32 (IEEE 802.3) of its UTF-8.
    """
    return crc32(wallet_id.encode()) & (SLOT_COUNT - 1)


class SlotMap:
    """
    Which shard has which slot, as one shard or gateway knows it.

    A shard is certain of its own slots; those of others are where they were last seen.
    """

    __slots__ = ("_shard_ids",)

    def __init__(self, shard_ids: list[int]) -> None:
        assert len(shard_ids) == SLOT_COUNT, "a shard for each slot"
        self._shard_ids = shard_ids

    @classmethod
    def undivided(cls, shard_id: int) -> SlotMap:
        """
        Make the map of a ledger of one shard.
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
