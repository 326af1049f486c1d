"""
What a round means for the tables of channels: both ends of each, what is on its way, the slots.

Rule 1: what was on its way before the round is known only to its row: its settlement is kept until
        the row is read back, see `take_back`.
Rule 2: what is sent and settled within the round leaves no trace of its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from processor.core.channel import FIRST_LINK
from processor.core.decisions import (
    PendingEntry,
    PrepareSent,
    SettlementDecision,
    SlotDelivered,
    SlotGiven,
    SlotsGranted,
    SlotTaken,
    TransferReserved,
    VerdictDelivered,
    VerdictSent,
    VoteTaken,
)
from processor.storage.projected_change import Change, Stamp

TAKE_PENDING = """
    DELETE FROM pending_entries
     USING unnest($2::int[], $3::bigint[]) AS settled (peer, number)
     WHERE shard_id = $1 AND pending_entries.peer = settled.peer
       AND pending_entries.number = settled.number
    RETURNING decision
"""

_ADD_PENDING = """
    INSERT INTO pending_entries (shard_id, peer, number, sequence, at_us, transfer_id, decision)
    SELECT $1, * FROM unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::uuid[],
                             $7::bytea[])
"""

# Both ends of a channel only ever move forward, so an end that did not move comes as zero.
_MOVE_OUT = """
    INSERT INTO channels_out AS own (shard_id, peer, head, chain, settled, settled_chain)
    SELECT $1, * FROM unnest($2::int[], $3::bigint[], $4::bytea[], $5::bigint[], $6::bytea[])
    ON CONFLICT (shard_id, peer) DO UPDATE SET
        head = greatest(own.head, excluded.head),
        chain = CASE WHEN excluded.head > own.head THEN excluded.chain ELSE own.chain END,
        settled = greatest(own.settled, excluded.settled),
        settled_chain = CASE WHEN excluded.settled > own.settled
                             THEN excluded.settled_chain ELSE own.settled_chain END
"""

_MOVE_IN = """
    INSERT INTO channels_in (shard_id, peer, cursor, chain)
    SELECT $1, * FROM unnest($2::int[], $3::bigint[], $4::bytea[])
    ON CONFLICT (shard_id, peer) DO UPDATE SET cursor = excluded.cursor, chain = excluded.chain
"""

_FORGET_ANSWERS = """
    DELETE FROM channel_answers
     USING unnest($2::int[], $3::bigint[]) AS settled (peer, number)
     WHERE shard_id = $1 AND channel_answers.peer = settled.peer
       AND channel_answers.number <= settled.number
"""

_ADD_ANSWERS = """
    INSERT INTO channel_answers (shard_id, peer, number, answer)
    SELECT $1, * FROM unnest($2::int[], $3::bigint[], $4::bigint[])
"""

_GIVE_SLOTS = """
    UPDATE slots SET given_to = given.peer
      FROM unnest($2::int[], $3::int[]) AS given (slot, peer)
     WHERE shard_id = $1 AND slots.slot = given.slot
"""

_SET_SLOTS = """
    INSERT INTO slots (shard_id, slot, generation, taken_from, given_to)
    SELECT $1, * FROM unnest($2::int[], $3::int[], $4::int[], $5::int[])
    ON CONFLICT (shard_id, slot) DO UPDATE SET generation = excluded.generation,
        taken_from = excluded.taken_from, given_to = excluded.given_to
"""

_encode = msgspec.msgpack.Encoder().encode
_decode_pending = msgspec.msgpack.Decoder(PendingEntry).decode

Place = tuple[int, int]  # A peer and a number of the channel to it or from it.


class Settlement(NamedTuple):
    """
    What was on its way, and how and in which record it ended.
    """

    sent: PendingEntry
    decision: SettlementDecision
    stamp: Stamp


class ChannelRows:
    """
    Collects in order what is said between shards.
    """

    def __init__(self) -> None:
        self.settlements: dict[Place, tuple[SettlementDecision, Stamp]] = {}
        self._pending: dict[Place, tuple[PendingEntry, Stamp]] = {}
        self._heads: dict[int, tuple[int, bytes]] = {}  # Peer: number, chain.
        self._settled: dict[int, tuple[int, bytes]] = {}
        self._cursors: dict[int, tuple[int, bytes]] = {}
        self._answers: dict[Place, int] = {}
        self._forgotten: dict[int, int] = {}
        self._slots: dict[int, tuple[int, int | None, int | None]] = {}  # As in the table.
        self._given: dict[int, int] = {}  # Slots that had their rows before, and to whom.

    # --- The source's end -------------------------------------------------------------------------

    def send(self, decision: PendingEntry, stamp: Stamp) -> None:
        self._heads[decision.peer] = (decision.number, decision.chain)
        self._pending[decision.peer, decision.number] = (decision, stamp)

    def settle(self, decision: SettlementDecision, stamp: Stamp) -> Settlement | None:
        """
        Return what *decision* ends; None where only the tables have it.
        """
        place = (decision.peer, decision.number)
        sent = self._pending.pop(place, None)
        if sent is None:
            self.settlements[place] = (decision, stamp)
            return None
        return self._settlement(sent[0], decision, stamp)

    def take_back(self, rows: Iterable[bytes]) -> Iterator[Settlement]:
        """
        Yield what `settlements` have ended, as the tables had it; raises ValueError when one of
        them is not there.
        """
        for row in rows:
            sent = _decode_pending(row)
            yield self._settlement(sent, *self.settlements.pop((sent.peer, sent.number)))
        if self.settlements:
            raise ValueError(f"not on their way: {sorted(self.settlements)} (peer, number)")

    def _settlement(
        self, sent: PendingEntry, decision: SettlementDecision, stamp: Stamp
    ) -> Settlement:
        if not _is_of(sent, decision):
            raise ValueError(f"entry {sent.number} to shard {sent.peer} is another one")
        if decision.number > self._settled.get(decision.peer, (0, b""))[0]:
            self._settled[decision.peer] = (decision.number, sent.chain)
        return Settlement(sent, decision, stamp)

    # --- The destination's end --------------------------------------------------------------------

    def take(self, peer: int, number: int, chain: bytes, answer: int = 0) -> None:
        """
        Take in an entry with what was answered; 0 is not kept.
        """
        self._cursors[peer] = (number, chain)
        if answer:
            self._answers[peer, number] = answer

    def forget_answers(self, peer: int, settled: int) -> None:
        self._forgotten[peer] = settled
        self._answers = {
            (of, number): answer
            for (of, number), answer in self._answers.items()
            if of != peer or number > settled
        }

    # --- Slots ------------------------------------------------------------------------------------

    def grant(self, decision: SlotsGranted) -> None:
        granted = range(decision.first, decision.last + 1)
        self._slots.update((slot, (1, None, None)) for slot in granted)

    def give_slot(self, decision: SlotGiven) -> None:
        known = self._slots.get(decision.slot)
        if known is None:
            self._given[decision.slot] = decision.peer
        else:
            self._slots[decision.slot] = (*known[:2], decision.peer)

    def take_slot(self, decision: SlotTaken) -> None:
        self._given.pop(decision.slot, None)
        self._slots[decision.slot] = (decision.generation, decision.peer, None)

    # --- Rows -------------------------------------------------------------------------------------

    def changes(self) -> Iterator[Change]:
        yield Change(_GIVE_SLOTS, sorted(self._given.items()), finds_each=True)
        yield Change(_SET_SLOTS, [(slot, *row) for slot, row in self._slots.items()])
        yield Change(_ADD_PENDING, list(self._pending_rows()))
        yield Change(_MOVE_OUT, list(self._out_rows()))
        yield Change(_MOVE_IN, [(peer, *end) for peer, end in self._cursors.items()])
        yield Change(_FORGET_ANSWERS, list(self._forgotten.items()))
        answers = [(*place, answer) for place, answer in self._answers.items()]
        yield Change(_ADD_ANSWERS, answers)

    def _pending_rows(self) -> Iterator[tuple[Any, ...]]:
        """
        Yield a row for each entry that is still on its way at the end of the round.
        """
        for (peer, number), (sent, stamp) in self._pending.items():
            transfer_id = sent.transfer_id if isinstance(sent, TransferReserved) else None
            yield (peer, number, stamp.sequence, stamp.at_us, transfer_id, _encode(sent))

    def _out_rows(self) -> Iterator[tuple[Any, ...]]:
        """
        Yield the new end of each channel that leads out; an end that did not move is at zero.
        """
        for peer in sorted(self._heads.keys() | self._settled.keys()):
            unmoved = (0, FIRST_LINK)
            yield (peer, *self._heads.get(peer, unmoved), *self._settled.get(peer, unmoved))


def _is_of(sent: PendingEntry, decision: SettlementDecision) -> bool:
    """
    Say whether *decision* speaks of what was *sent*.
    """
    match decision:
        case SlotDelivered():
            return isinstance(sent, SlotGiven)
        case VoteTaken(linked_id=linked_id):
            return isinstance(sent, PrepareSent) and sent.linked_id == linked_id
        case VerdictDelivered(linked_id=linked_id):
            return isinstance(sent, VerdictSent) and sent.linked_id == linked_id
        case _:
            return isinstance(sent, TransferReserved) and sent.transfer_id == decision.transfer_id
