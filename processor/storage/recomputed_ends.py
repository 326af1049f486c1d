"""
What one shard has sent to others and taken from them, worked out a second time from its journal.

Like `recomputation`, whose part it is, this shares no code with the ledger. The decisions:

    7 transfer reserved   as 4 up to metadata, then peer, number, chain, terms, and of money that is
                          sent anew when it was counted first
    8 transfer settled    peer, number, transfer, then version and balance after it of the source
                          and of the wallet that stands for what the peer is due
    9 transfer released   peer, number, transfer, reason, by how much
   10 entry credited      peer, number, chain, transfer, merchant, source, destination, currency,
                          amount, reference, metadata, then version and balance after it of the
                          wallet of what is due and of the destination, type, terms
   11 entry refused       peer, number, chain, reason, by how much, the leg that fails
   12 entry elsewhere     peer, number, chain, the shard where the slot was last seen, the side
   13 transfer recalled   peer, number, transfer
   14 slots granted       first, last
   15 slot given          peer, number, chain, slot, generation, wallets, outcomes, dues, holds,
                          refunds
   16 slot taken          as 15
   17 slot delivered      peer, number
   18 answers forgotten   peer, settled

and of linked transfers 28, 29, 31, 32, 34 and 35, see `recomputed_linked`.

A channel leads from one shard to another; 7, 15, 28 and 31 send its entries, numbered from 1, 10,
11, 12, 16, 34 and 35 answer them, 8, 9, 13, 17, 29 and 32 settle them, each in their order. An
entry is a msgpack array that starts with its kind and its number: 1 of a transfer, then transfer,
merchant, source, destination, currency, amount, reference, metadata; 3 of another movement or one
with terms, as 1, then type and terms; 2 of a slot, then what 15 has from the slot to the outcomes,
holds, refunds; 4 of legs to prepare, then id, merchant, parts; 5 of a verdict, then id and whether
it is posted. The chain up to an entry is `blake2b(chain before + entry)`, 16 bytes; before the
first it is 16 zero bytes. An answer is 0 for an entry that was taken; above zero, a
reason in 10 bits, a leg in 7 and by how much in 45 (lowest first), for a refusal; -1 - (shard in 31
bits and the side above them) for one that is elsewhere.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Any

import msgspec

from processor.storage.recomputed_layouts import (
    CREDITED,
    DELIVERED,
    ELSEWHERE,
    FORGOTTEN,
    GIVEN,
    GRANTED,
    LINKED_BEGUN,
    LINKED_DONE,
    LINKED_POSTED,
    LINKED_PREPARED,
    LINKED_RECALLED,
    LINKED_REJECTED,
    PREPARE_SENT,
    RECALLED,
    REFUSED,
    RELEASED,
    RESERVED,
    SETTLED,
    TAKEN,
    VERDICT_DELIVERED,
    VERDICT_SENT,
    VERDICT_TAKEN,
    VOTE_TAKEN,
    filled_up,
)
from processor.storage.recomputed_legs import money_from_decider, money_to
from processor.storage.recomputed_linked import LinkedBook, answer_refused
from processor.storage.recomputed_wallets import SLOT_COUNT, Contradiction, slot_of

# What concerns two shards, or linked transfers.
BETWEEN = frozenset(range(RESERVED, FORGOTTEN + 1)) | frozenset(
    range(LINKED_POSTED, VERDICT_TAKEN + 1)
)
_SENDS = {RESERVED, GIVEN, PREPARE_SENT, VERDICT_SENT}
_ANSWERS = {CREDITED, REFUSED, ELSEWHERE, TAKEN, LINKED_PREPARED, VERDICT_TAKEN}
_LINKED = {LINKED_POSTED, LINKED_REJECTED, LINKED_BEGUN, LINKED_RECALLED, LINKED_DONE}
# What settles what was sent by which tag.
_SETTLES = {
    SETTLED: RESERVED,
    RELEASED: RESERVED,
    RECALLED: RESERVED,
    DELIVERED: GIVEN,
    VOTE_TAKEN: PREPARE_SENT,
    VERDICT_DELIVERED: VERDICT_SENT,
}

FIRST_LINK = bytes(16)
MOVED_ON = -1  # What an answer counts as here that names another shard, whichever it is.

# Where the facts of a slot stand, in the order of the columns of `slots`.
GENERATION, TAKEN_FROM, GIVEN_TO = range(3)

_ANSWER = struct.Struct(">qq")
_encode = msgspec.msgpack.Encoder().encode


def sum_of_answer(number: int, answer: int) -> int:
    """
    Hash an answer other than 0, so that sums of these show whether two shards tell the same.
    """
    counted = answer if answer >= 0 else MOVED_ON
    return int.from_bytes(blake2b(_ANSWER.pack(number, counted), digest_size=32).digest())


class Pending:
    """
    Something on its way: its decision, and the sequence and time of the record that sent it.

    `amounts` is the money on its way, by currency; of a verdict what has moved with it.
    """

    __slots__ = ("amounts", "at_us", "decision", "sequence")

    def __init__(self, decision: list[Any], sequence: int, at_us: int) -> None:
        self.decision = decision
        self.sequence = sequence
        self.at_us = at_us
        self.amounts: list[tuple[str, int]] = []
        if self.is_transfer:
            self.amounts = [(decision[7], decision[8])]
        elif self.is_slot:
            self.amounts = [(currency, amount) for currency, amount, _, _ in decision[8]]

    @property
    def is_transfer(self) -> bool:
        return bool(self.decision[0] == RESERVED)

    @property
    def is_slot(self) -> bool:
        return bool(self.decision[0] == GIVEN)

    @property
    def chain(self) -> bytes:
        chain: bytes = self.decision[13 if self.is_transfer else 3]
        return chain

    @property
    def transfer_id(self) -> bytes | None:
        return self.decision[2] if self.is_transfer else None

    @property
    def linked_id(self) -> bytes | None:
        return self.decision[4] if self.decision[0] in {PREPARE_SENT, VERDICT_SENT} else None


class OutEnd:
    """
    The source's end towards one peer. `moved` is the money that has gone over to what the peer is
    due, by currency; `answers` sums the answers other than 0 that were settled.
    """

    __slots__ = ("answers", "chain", "head", "moved", "outbox", "settled", "settled_chain")

    def __init__(self) -> None:
        self.head = 0
        self.chain = FIRST_LINK
        self.settled = 0
        self.settled_chain = FIRST_LINK
        self.outbox: dict[int, Pending] = {}
        self.moved: dict[str, int] = {}
        self.answers = 0

    def chain_at(self, number: int) -> bytes | None:
        """
        Return the chain up to *number*, when it is settled last or on its way.
        """
        if number == self.settled:
            return self.settled_chain
        pending = self.outbox.get(number)
        return pending.chain if pending is not None else None


class InEnd:
    """
    The destination's end from one peer. `refused` has the answers other than 0 that it has not
    forgotten, `forgotten` how far the peer had settled then; `moved` and `answers` as in `OutEnd`.
    """

    __slots__ = ("answers", "chain", "cursor", "forgotten", "moved", "refused")

    def __init__(self) -> None:
        self.cursor = 0
        self.chain = FIRST_LINK
        self.refused: dict[int, int] = {}
        self.forgotten = 0
        self.moved: dict[str, int] = {}
        self.answers = 0


class ShardEnds:
    """
    All ends of channels at one shard, the slots it has or had, and its linked transfers.
    """

    def __init__(self, shard_id: int) -> None:
        self.shard_id = shard_id
        self.outgoing: dict[int, OutEnd] = {}
        self.incoming: dict[int, InEnd] = {}
        self.slots: dict[int, list[int | None]] = {}
        self.slots_had: set[tuple[int, int]] = set()  # Slots with each generation they had here.
        self.is_granted = False
        self.linked = LinkedBook(shard_id)

    def to(self, peer: int) -> OutEnd:
        end = self.outgoing.get(peer)
        if end is None:
            end = self.outgoing[peer] = OutEnd()
        return end

    def of(self, peer: int) -> InEnd:
        end = self.incoming.get(peer)
        if end is None:
            end = self.incoming[peer] = InEnd()
        return end

    def has_slot(self, slot: int) -> bool:
        """
        Say whether the slot is here now; before the first slot every one is.
        """
        facts = self.slots.get(slot)
        return not self.slots or (facts is not None and facts[GIVEN_TO] is None)

    def own_slots(self) -> dict[int, int]:
        """
        Map each slot that is here to its generation.
        """
        return {
            slot: facts[GENERATION] or 0
            for slot, facts in self.slots.items()
            if facts[GIVEN_TO] is None
        }

    def pending_transfers(self) -> list[list[Any]]:
        """
        List the decisions that sent what is on its way to other shards.
        """
        return [
            pending.decision
            for end in self.outgoing.values()
            for pending in end.outbox.values()
            if pending.is_transfer
        ]

    def fold(self, decision: list[Any], sequence: int, at_us: int) -> Pending | None:
        """
        Take in a decision and return what it settles, if any; raises Contradiction.
        """
        raw, decision = decision, filled_up(decision)
        entry = _entry_of(raw)
        tag = decision[0]
        if tag == GRANTED:
            self._grant(decision)
            return None
        if tag in _LINKED:
            self.linked.fold(decision, sequence, at_us)
            return None
        peer = decision[11 if tag == RESERVED else 1]
        if type(peer) is not int or peer < 0 or peer == self.shard_id:
            raise Contradiction("peer", "another shard", peer)
        if tag in _SENDS:
            self._send(peer, Pending(decision, sequence, at_us), entry)
        elif tag in _ANSWERS:
            self._answer(peer, Pending(decision, sequence, at_us), entry)
        elif tag == FORGOTTEN:
            self._forget(peer, decision[2])
        else:
            return self._settle(peer, decision)
        return None

    def _grant(self, decision: list[Any]) -> None:
        _, first, last = decision
        if self.is_granted or self.slots:
            raise Contradiction("slots granted", "once, before any other", (first, last))
        if not 0 <= first <= last < SLOT_COUNT:
            raise Contradiction("slots granted", f"of 0 to {SLOT_COUNT - 1}", (first, last))
        self.is_granted = True
        for slot in range(first, last + 1):
            self._own(slot, 1, None)

    def _own(self, slot: int, generation: int, taken_from: int | None) -> None:
        self.slots[slot] = [generation, taken_from, None]
        self.slots_had.add((slot, generation))

    def _send(self, peer: int, pending: Pending, entry: list[Any] | None) -> None:
        end, decision = self.to(peer), pending.decision
        number, chain = decision[12:14] if pending.is_transfer else decision[2:4]
        if pending.is_transfer:
            if self.slots and self.has_slot(slot_of(decision[6])):
                raise Contradiction("destination", "a wallet of another shard", decision[6])
        elif pending.is_slot:
            self._give(peer, decision[4], decision[5])
        elif decision[0] == PREPARE_SENT:
            self.linked.check_asked_of(decision)
        else:
            self._tell(peer, pending)
        _check_next(number, end.head, chain, end.chain, entry)
        end.head, end.chain = number, chain
        end.outbox[number] = pending
        if not pending.is_transfer:
            _add(end.moved, pending.amounts)

    def _tell(self, peer: int, pending: Pending) -> None:
        _, _, _, _, linked_id, is_posted = pending.decision
        self.linked.check_told(linked_id, peer, is_posted)
        if is_posted:
            _, _, _, _, legs, homes, _, _ = self.linked.open[linked_id].begun
            pending.amounts = money_to(peer, legs, homes)

    def _give(self, peer: int, slot: int, generation: int) -> None:
        if not self.slots or not self.has_slot(slot):
            raise Contradiction("slot given", "a slot that is here", slot)
        facts = self.slots[slot]
        if generation != (facts[GENERATION] or 0) + 1:
            raise Contradiction("generation", (facts[GENERATION] or 0) + 1, generation)
        facts[GIVEN_TO] = peer

    def _answer(self, peer: int, taken: Pending, entry: list[Any] | None) -> None:
        decision = taken.decision
        tag, _, number, chain = decision[:4]
        end = self.of(peer)
        answer = 0
        if tag == REFUSED:
            answer = answer_refused(*decision[4:7])
        elif tag == ELSEWHERE:
            answer = _answer_elsewhere(*decision[4:6])
        elif tag == CREDITED:
            _add(end.moved, [(decision[8], decision[9])])
        elif tag == TAKEN:
            self._take(peer, decision[4], decision[5])
            _add(end.moved, [(due[0], due[1]) for due in decision[8]])
        elif tag == LINKED_PREPARED:
            self.linked.prepare(decision, taken.sequence, taken.at_us)
        elif tag == VERDICT_TAKEN:
            prepared = self.linked.take_verdict(decision)
            if prepared is not None and decision[5]:
                _add(end.moved, money_from_decider(prepared.decision[6]))
        # What was refused is not in this journal: there the source's shows whether the chain fits.
        _check_next(number, end.cursor, chain, end.chain, entry)
        end.cursor, end.chain = number, chain
        if answer:
            end.refused[number] = answer
            end.answers += sum_of_answer(number, answer)

    def _take(self, peer: int, slot: int, generation: int) -> None:
        if type(slot) is not int or not 0 <= slot < SLOT_COUNT:
            raise Contradiction("slot taken", f"0 to {SLOT_COUNT - 1}", slot)
        facts = self.slots.get(slot)
        if facts is not None and facts[GIVEN_TO] is None:
            raise Contradiction("slot taken", "a slot that is not here", slot)
        newest = 1 if facts is None else (facts[GENERATION] or 0) + 1
        if type(generation) is not int or generation <= newest:
            raise Contradiction("generation", f"more than {newest}", generation)
        self._own(slot, generation, peer)

    def _settle(self, peer: int, decision: list[Any]) -> Pending:
        tag, _, number = decision[:3]
        end = self.to(peer)
        pending = end.outbox.pop(number, None)
        if number != end.settled + 1 or pending is None:
            raise Contradiction("number", f"{end.settled + 1}, if it was sent", number)
        if pending.decision[0] != _SETTLES[tag]:
            raise Contradiction("tag", "one that fits what was sent", tag)
        if tag != DELIVERED and decision[3] != (pending.transfer_id or pending.linked_id):
            raise Contradiction("transfer_id", pending.transfer_id, decision[3])
        end.settled, end.settled_chain = number, pending.chain
        answer = 0
        if tag == SETTLED:
            _add(end.moved, pending.amounts)
        elif tag == RELEASED:
            answer = answer_refused(decision[4], decision[5], 0)
        elif tag == RECALLED:
            answer = MOVED_ON
        elif tag == VOTE_TAKEN:
            answer = decision[4]
            self.linked.vote(pending.decision, peer, answer)
        elif tag == VERDICT_DELIVERED:
            self.linked.delivered(decision[3], peer, pending.decision[5])
        if answer:
            end.answers += sum_of_answer(number, answer)
        return pending

    def _forget(self, peer: int, settled: int) -> None:
        end = self.of(peer)
        if type(settled) is not int or not end.forgotten <= settled <= end.cursor:
            raise Contradiction("forgotten", f"{end.forgotten} to {end.cursor}", settled)
        end.forgotten = settled
        end.refused = {number: why for number, why in end.refused.items() if number > settled}


def _check_next(
    number: int, last: int, chain: bytes, last_chain: bytes, entry: list[Any] | None
) -> None:
    if type(number) is not int or number != last + 1:
        raise Contradiction("number", last + 1, number)
    if entry is not None:
        link = blake2b(last_chain + _encode(entry), digest_size=len(FIRST_LINK)).digest()
        if chain != link:
            raise Contradiction("chain of the channel", link, chain)
    elif type(chain) is not bytes or len(chain) != len(FIRST_LINK):
        raise Contradiction("chain of the channel", f"{len(FIRST_LINK)} bytes", chain)


def _entry_of(decision: list[Any]) -> list[Any] | None:
    """
    Tell the entry that a decision sends or answers, where it says what that is, as it was then.
    """
    tag = decision[0]
    if tag == RESERVED:
        told = [decision[12], decision[2], *decision[4:11]]
        return _movement(told, decision[1], decision[14] if len(decision) > 14 else None)
    if tag == CREDITED:
        kind, terms = decision[16:18] or (1, None)
        return _movement([decision[2], *decision[4:12]], kind, terms)
    if tag in {GIVEN, TAKEN}:
        return [2, decision[2], *decision[4:8], *decision[9:]]
    if tag == PREPARE_SENT:
        return [4, decision[2], decision[4], decision[5], decision[7]]
    if tag == LINKED_PREPARED:
        return [4, decision[2], *decision[4:7]]
    return [5, decision[2], *decision[4:6]] if tag in {VERDICT_SENT, VERDICT_TAKEN} else None


def _movement(told: list[Any], kind: Any, terms: list[Any] | None) -> list[Any]:
    return [1, *told] if kind == 1 and terms is None else [3, *told, kind, terms]


def _answer_elsewhere(shard_id: Any, side: Any) -> int:
    if type(shard_id) is not int or not 0 <= shard_id < 1 << 31:
        raise Contradiction("shard of the slot", "a shard", shard_id)
    if type(side) is not int or side < 0:
        raise Contradiction("side of a leg", "0 or more", side)
    return -1 - (shard_id | side << 31)


def _add(sums: dict[str, int], amounts: list[tuple[str, int]]) -> None:
    for currency, amount in amounts:
        sums[currency] = sums.get(currency, 0) + amount
