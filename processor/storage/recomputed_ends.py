"""
What one shard has sent to others and taken from them, worked out a second time from its journal.

Like `recomputation`, whose part it is, this shares no code with the ledger. The decisions:

    7 transfer reserved   as 4 up to metadata, then peer, number, chain
    8 transfer settled    peer, number, transfer, then version and balance after it of the source
                          and of the wallet that stands for what the peer is due
    9 transfer released   peer, number, transfer, reason
   10 entry credited      peer, number, chain, transfer, merchant, source, destination, currency,
                          amount, reference, metadata, then version and balance after it of the
                          wallet of what is due and of the destination
   11 entry refused       peer, number, chain, reason
   12 entry elsewhere     peer, number, chain, the shard where the slot was last seen
   13 transfer recalled   peer, number, transfer
   14 slots granted       first, last
   15 slot given          peer, number, chain, slot, generation, wallets, outcomes, dues
   16 slot taken          as 15
   17 slot delivered      peer, number
   18 answers forgotten   peer, settled

A channel leads from one shard to another; 7 and 15 send its entries, numbered from 1, 10, 11, 12
and 16 answer them, 8, 9, 13 and 17 settle them, each in their order. An entry is a msgpack array:
of a transfer 1, number, transfer, merchant, source, destination, currency, amount, reference,
metadata; of a slot 2, number, slot, generation, wallets, outcomes. The chain up to an entry is
`blake2b(chain before + entry)`, 16 bytes; before the first it is 16 zero bytes. An answer is 0 for
an entry that was taken, a reason's number for a refusal, -1 - shard for one that is elsewhere.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Any

import msgspec

from processor.storage.recomputed_wallets import SLOT_COUNT, Contradiction, slot_of

RESERVED, SETTLED, RELEASED, CREDITED, REFUSED, ELSEWHERE, RECALLED = range(7, 14)
GRANTED, GIVEN, TAKEN, DELIVERED, FORGOTTEN = range(14, 19)
FIELD_COUNTS = {
    RESERVED: 14,
    SETTLED: 8,
    RELEASED: 5,
    CREDITED: 16,
    REFUSED: 5,
    ELSEWHERE: 5,
    RECALLED: 4,
    GRANTED: 3,
    GIVEN: 9,
    TAKEN: 9,
    DELIVERED: 3,
    FORGOTTEN: 3,
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
    """

    __slots__ = ("at_us", "decision", "sequence")

    def __init__(self, decision: list[Any], sequence: int, at_us: int) -> None:
        self.decision = decision
        self.sequence = sequence
        self.at_us = at_us

    @property
    def is_transfer(self) -> bool:
        return bool(self.decision[0] == RESERVED)

    @property
    def chain(self) -> bytes:
        chain: bytes = self.decision[13 if self.is_transfer else 3]
        return chain

    @property
    def transfer_id(self) -> bytes | None:
        return self.decision[2] if self.is_transfer else None

    def amounts(self) -> list[tuple[str, int]]:
        """
        List the money on its way, by currency.
        """
        if self.is_transfer:
            return [(self.decision[7], self.decision[8])]
        return [(currency, amount) for currency, amount, _, _ in self.decision[8]]


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
    All ends of channels at one shard, and the slots it has or had.
    """

    def __init__(self, shard_id: int) -> None:
        self.shard_id = shard_id
        self.outgoing: dict[int, OutEnd] = {}
        self.incoming: dict[int, InEnd] = {}
        self.slots: dict[int, list[int | None]] = {}
        self.slots_had: set[tuple[int, int]] = set()  # Slots with each generation they had here.
        self.is_granted = False

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
        tag = decision[0]
        if len(decision) != FIELD_COUNTS.get(tag, len(decision)):
            raise Contradiction(f"fields of tag {tag}", FIELD_COUNTS[tag], len(decision))
        if tag == GRANTED:
            self._grant(decision)
            return None
        peer = decision[11 if tag == RESERVED else 1]
        if type(peer) is not int or peer < 0 or peer == self.shard_id:
            raise Contradiction("peer", "another shard", peer)
        if tag in {RESERVED, GIVEN}:
            self._send(peer, Pending(decision, sequence, at_us))
        elif tag in {CREDITED, REFUSED, ELSEWHERE, TAKEN}:
            self._answer(peer, decision)
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

    def _send(self, peer: int, pending: Pending) -> None:
        end, decision = self.to(peer), pending.decision
        if pending.is_transfer:
            number, chain = decision[12:14]
            entry = [1, number, decision[2], *decision[4:11]]
            if self.slots and self.has_slot(slot_of(decision[6])):
                raise Contradiction("destination", "a wallet of another shard", decision[6])
        else:
            number, chain = decision[2:4]
            entry = [2, number, *decision[4:8]]
            self._give(peer, decision[4], decision[5])
        _check_next(number, end.head, chain, end.chain, entry)
        end.head, end.chain = number, chain
        end.outbox[number] = pending
        if not pending.is_transfer:
            _add(end.moved, pending.amounts())

    def _give(self, peer: int, slot: int, generation: int) -> None:
        if not self.slots or not self.has_slot(slot):
            raise Contradiction("slot given", "a slot that is here", slot)
        facts = self.slots[slot]
        if generation != (facts[GENERATION] or 0) + 1:
            raise Contradiction("generation", (facts[GENERATION] or 0) + 1, generation)
        facts[GIVEN_TO] = peer

    def _answer(self, peer: int, decision: list[Any]) -> None:
        tag, _, number, chain = decision[:4]
        end = self.of(peer)
        entry: list[Any] | None = None
        answer = 0
        if tag == CREDITED:
            entry = [1, number, *decision[4:12]]
            _add(end.moved, [(decision[8], decision[9])])
        elif tag == TAKEN:
            entry = [2, number, *decision[4:8]]
            self._take(peer, decision[4], decision[5])
            _add(end.moved, [(due[0], due[1]) for due in decision[8]])
        elif tag == REFUSED:
            answer = _reason(decision[4])
        else:
            if type(decision[4]) is not int or decision[4] < 0:
                raise Contradiction("shard of the slot", "a shard", decision[4])
            answer = -1 - decision[4]
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
        if pending.is_transfer == (tag == DELIVERED):
            raise Contradiction("tag", "one that fits what was sent", tag)
        if tag != DELIVERED and pending.transfer_id != decision[3]:
            raise Contradiction("transfer_id", pending.transfer_id, decision[3])
        end.settled, end.settled_chain = number, pending.chain
        if tag == SETTLED:
            _add(end.moved, pending.amounts())
        elif tag != DELIVERED:
            answer = _reason(decision[4]) if tag == RELEASED else MOVED_ON
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


def _reason(reason: Any) -> int:
    if type(reason) is not int or reason < 1:
        raise Contradiction("reason", "a number", reason)
    return reason


def _add(sums: dict[str, int], amounts: list[tuple[str, int]]) -> None:
    for currency, amount in amounts:
        sums[currency] = sums.get(currency, 0) + amount
