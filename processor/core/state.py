"""
What a shard holds in memory: wallets, and the outcomes remembered under their keys.

Rule 1: only `apply` and the loader of rows at or below the watermark write here. What is not
        journaled (hints, what is about to leave, how far the tables are) decides no outcome.
Rule 2: a key is forgotten only when its record is in the tables (see `RememberedKeys.rotate`);
        forgetting earlier would pay twice.
Rule 3: a wallet is in memory only while its slot is this shard's. The tables lag: a row of a
        slot that was given may still be there, and is not taken in.
"""

from __future__ import annotations

from processor.core.channel import Channels
from processor.core.decisions import CarriedOutcome, TransferDecision, TransferReserved
from processor.core.slots import SlotMap, slot_of
from processor.core.wallet import Wallet, is_system_wallet

Remembered = tuple[TransferDecision, int, int]  # The decision, its sequence, its time in µs.


class RememberedKeys:
    """
    Outcomes by key in two generations: exact, and bounded by turning them over.

    `young` takes what is new, `old` is the generation before it. `recorded` says for outcomes that
    may be of another journal which record of this one has them: 0 where only the tables have.
    """

    __slots__ = ("old", "old_sequence_max", "recorded", "young", "young_sequence_max")

    def __init__(self) -> None:
        self.recorded: dict[bytes, int] = {}
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

    def carry(self, outcome: CarriedOutcome, sequence: int) -> None:
        """
        Remember an outcome of another shard that came in the record *sequence* of this one.

        It keeps its own sequence, which is of another journal and says nothing of these tables.
        """
        key = outcome.decision.key
        self.young[key] = (outcome.decision, outcome.sequence, outcome.at_us)
        self.recorded[key] = sequence
        self.young_sequence_max = max(self.young_sequence_max, sequence)

    def load(self, remembered: Remembered) -> None:
        """
        Take in an outcome from the tables, be they another shard's; what is here already stays.
        """
        key = remembered[0].key
        if self.find(key) is None:
            self.young[key] = remembered
            self.recorded[key] = 0

    def forget(self, key: bytes) -> None:
        """
        Make *key* as new: what it stood for was called back and is decided anew.
        """
        for known in (self.young, self.old, self.recorded):
            known.pop(key, None)

    def rotate(self, watermark: int) -> dict[bytes, Remembered] | None:
        """
        Forget the old generation and return it, or None while it is above *watermark*.
        """
        if self.old_sequence_max > watermark:
            return None
        forgotten = self.old
        if self.recorded:
            for key in forgotten:
                self.recorded.pop(key, None)
        self.old, self.old_sequence_max = self.young, self.young_sequence_max
        self.young, self.young_sequence_max = {}, 0
        return forgotten


class ShardState:
    """
    The state of one shard; wallets that nothing has named yet are in the tables only.

    `has_granted` says that slots have come here once, so that the first ones are not granted
    again; `has_taken`, that one came from another shard, whose tables have the older outcomes.
    `given` has the slots that were here and went on, `newest` the wallets that were opened or
    taken above the watermark, with the sequence.

    Not journaled: `tables_at`, the watermark that is durable; `hints`, where slots were that this
    shard's transfers did not find; `closing`, the slots of which nothing new is sent to other
    shards until a time in µs; `leaving`, the wallets of slots that are about to be given.
    """

    __slots__ = (
        "channels",
        "closing",
        "given",
        "has_granted",
        "has_taken",
        "hints",
        "keys",
        "leaving",
        "newest",
        "shard_id",
        "slots",
        "tables_at",
        "wallets",
    )

    def __init__(self, shard_id: int, slots: SlotMap | None = None) -> None:
        self.shard_id = shard_id
        self.slots = slots or SlotMap.undivided(shard_id)
        self.has_granted = False
        self.has_taken = False
        self.given: set[int] = set()
        self.wallets: dict[str, Wallet] = {}
        self.newest: dict[str, int] = {}
        self.keys = RememberedKeys()
        self.channels = Channels()
        self.tables_at = 0
        self.hints: dict[int, int] = {}
        self.closing: dict[int, int] = {}
        self.leaving: dict[int, list[str]] = {}

    def has_slot_of(self, wallet_id: str) -> bool:
        """
        Say whether *wallet_id*, be it open or not, is this shard's.
        """
        return self.slots.shard_of(wallet_id) == self.shard_id

    def peer_for(self, wallet_id: str) -> int:
        """
        Return the shard to which money for a wallet elsewhere is sent first.

        A hint steers only this shard's own transfers. What it tells others stays what its journal
        and the catalog say: a slot that was given is where it was given to, and by following that
        one always comes to the owner. With hints in between one could go round in a circle.
        """
        slot = slot_of(wallet_id)
        return self.hints.get(slot, self.slots.owner(slot))

    def tables_reach(self, watermark: int) -> None:
        """
        Take in that the tables are durable up to *watermark*.
        """
        self.tables_at = max(self.tables_at, watermark)
        newest = self.newest  # In the order of sequences, so that this costs what it drops.
        while newest and newest[wallet_id := next(iter(newest))] <= self.tables_at:
            del newest[wallet_id]

    def newest_in(self, slot: int) -> list[str]:
        """
        List the wallets of *slot* that the tables may not have.

        Whoever reads the slot's rows asks before: while that lasts, the tables come nearer.
        """
        return [wallet_id for wallet_id in self.newest if slot_of(wallet_id) == slot]

    def may_evict(self, wallet: Wallet) -> bool:
        """
        Say whether *wallet* may leave memory: its row is as new, and nothing relies on it.
        """
        return (
            wallet.sequence <= self.tables_at
            and wallet.reserved == 0
            and not is_system_wallet(wallet.wallet_id)
        )

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
                if isinstance(pending, TransferReserved) and pending.key in forgotten:
                    self.keys.young[pending.key] = forgotten.pop(pending.key)
        return forgotten

    def load(self, wallet: Wallet) -> None:
        """
        Take in a wallet from the tables; one that is already here is newer and stays.
        """
        wallet_id = wallet.wallet_id
        # The row of a wallet that went with its slot; its money is not here any more.
        if slot_of(wallet_id) in self.given and not is_system_wallet(wallet_id):
            return
        self.wallets.setdefault(wallet_id, wallet)
