"""
What a shard holds in memory: wallets, and the outcomes remembered under their keys.

Rule 1: only `apply` and the loader of rows at or below the watermark write here.
Rule 2: a key is forgotten only when its record is in the tables (see `RememberedKeys.rotate`);
        forgetting earlier would pay twice.
"""

from __future__ import annotations

from processor.core.channel import Channels
from processor.core.decisions import TransferDecision
from processor.core.slots import SlotMap
from processor.core.wallet import Wallet

Remembered = tuple[TransferDecision, int, int]  # The decision, its sequence, its time in µs.


class RememberedKeys:
    """
    Outcomes by key in two generations: exact, and bounded by turning them over.

    `young` takes what is new, `old` is the generation before it.
    """

    __slots__ = ("old", "old_sequence_max", "young", "young_sequence_max")

    def __init__(self) -> None:
        self.young: dict[bytes, Remembered] = {}
        self.old: dict[bytes, Remembered] = {}
        self.young_sequence_max = 0
        self.old_sequence_max = 0

    def __len__(self) -> int:
        return len(self.young) + len(self.old)

    def find(self, key: bytes) -> Remembered | None:
        return self.young.get(key) or self.old.get(key)

    def remember(self, decision: TransferDecision, sequence: int, at_us: int) -> None:
        self.young[decision.key] = (decision, sequence, at_us)
        self.young_sequence_max = max(self.young_sequence_max, sequence)

    def rotate(self, watermark: int) -> dict[bytes, Remembered] | None:
        """
        Forget the old generation and return it, or None while it is above *watermark*.
        """
        if self.old_sequence_max > watermark:
            return None
        forgotten = self.old
        self.old, self.old_sequence_max = self.young, self.young_sequence_max
        self.young, self.young_sequence_max = {}, 0
        return forgotten


class ShardState:
    """
    The state of one shard; wallets that nothing has named yet are in the tables only.
    """

    __slots__ = ("channels", "keys", "shard_id", "slots", "wallets")

    def __init__(self, shard_id: int, slots: SlotMap | None = None) -> None:
        self.shard_id = shard_id
        self.slots = slots or SlotMap.undivided(shard_id)
        self.wallets: dict[str, Wallet] = {}
        self.keys = RememberedKeys()
        self.channels = Channels()

    def has_slot_of(self, wallet_id: str) -> bool:
        """
        Say whether *wallet_id*, be it open or not, is this shard's.
        """
        return self.slots.shard_of(wallet_id) == self.shard_id

    def forget_keys(self, watermark: int) -> dict[bytes, Remembered] | None:
        """
        Forget the old generation and return it, or None while it is above *watermark*.

        What is on its way to another shard is remembered until it is settled.
        """
        forgotten = self.keys.rotate(watermark)
        if not forgotten:
            return forgotten
        for channel in self.channels.outgoing.values():
            for pending in channel.outbox.values():
                if pending.key in forgotten:
                    self.keys.young[pending.key] = forgotten.pop(pending.key)
        return forgotten

    def load(self, wallet: Wallet) -> None:
        """
        Take in a wallet from the tables; one that is already here is newer and stays.
        """
        self.wallets.setdefault(wallet.wallet_id, wallet)
