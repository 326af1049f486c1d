"""
The steps of linked transfers at one shard: what was begun here, what was prepared for others, and
what each step has to be followed by.

A part of `recomputation`, and like it without any code of the ledger. The decisions:

   25 linked posted      id, key, merchant, legs, postings, whether other shards are to be told
   26 linked rejected    id, key, merchant, legs, the leg that fails, reason, by how much
   27 linked begun       id, key, merchant, legs, for each leg the shards of its two sides, attempt,
                         deadline in µs
   28 prepare sent       peer, number, chain, id, merchant, attempt, parts
   29 vote taken         peer, number, id, answer
   30 linked recalled    id
   31 verdict sent       peer, number, chain, id, whether it is posted
   32 verdict delivered  peer, number, id
   33 linked done        id
   34 linked prepared    peer, number, chain, id, merchant, parts
   35 verdict taken      peer, number, chain, id, whether it is posted, postings

The shard that decides asks every other shard that has a part, once an attempt. With the last yes
it posts, at the first no or past the deadline it rejects, when a slot is elsewhere it calls the
attempt back and decides anew; each in the record that settles the answer. Then it tells each other
shard but one that said no. When all were told that it is posted, it is done. What follows from what
is in the same record, and so at its end nothing may be open.
"""

from __future__ import annotations

from typing import Any

from processor.storage.recomputed_layouts import (
    LINKED_BEGUN,
    LINKED_DONE,
    LINKED_POSTED,
    LINKED_RECALLED,
    LINKED_REJECTED,
)
from processor.storage.recomputed_legs import check_homes, check_legs, parts_at
from processor.storage.recomputed_wallets import Contradiction

DEADLINE_PASSED = 150
_REASON_BITS, _LEG_BITS = 10, 7


def answer_refused(reason: Any, short_by: Any, leg: Any) -> int:
    """
    Put a refusal into one number above zero, as a channel's answer has it; raises Contradiction.
    """
    if type(reason) is not int or not 0 < reason < 1 << _REASON_BITS:
        raise Contradiction("reason", "a number", reason)
    if type(short_by) is not int or short_by < 0:
        raise Contradiction("short by", "0 or more", short_by)
    if type(leg) is not int or not 0 <= leg < 1 << _LEG_BITS:
        raise Contradiction("leg", "a number", leg)
    return reason | leg << _REASON_BITS | min(short_by, (1 << 45) - 1) << _REASON_BITS + _LEG_BITS


def refusal_answered(answer: int) -> list[int]:
    """
    Read the leg, the reason and by how much out of an answer above zero.
    """
    leg = answer >> _REASON_BITS & (1 << _LEG_BITS) - 1
    return [leg, answer & (1 << _REASON_BITS) - 1, answer >> _REASON_BITS + _LEG_BITS]


class OpenLinked:
    """
    A linked transfer that is decided here and not done everywhere, with the sequence and the time
    of the record that began it, or posted it. `waiting` has the peers that have not answered.
    """

    __slots__ = ("at_us", "begun", "peers", "posted", "sequence", "waiting")

    def __init__(self, begun: list[Any], peers: list[int], sequence: int, at_us: int) -> None:
        self.begun = begun
        self.peers = peers
        self.waiting = set(peers)
        self.posted: list[Any] | None = None
        self.sequence = sequence
        self.at_us = at_us


class Prepared:
    """
    Parts that were set aside for a shard that decides, with their record's sequence and time.
    """

    __slots__ = ("at_us", "decision", "sequence")

    def __init__(self, decision: list[Any], sequence: int, at_us: int) -> None:
        self.decision = decision
        self.sequence = sequence
        self.at_us = at_us


class LinkedBook:
    """
    The linked transfers at one shard that are not done.
    """

    def __init__(self, shard_id: int) -> None:
        self.shard_id = shard_id
        self.open: dict[bytes, OpenLinked] = {}
        self.prepared: dict[bytes, Prepared] = {}
        # What the record still has to say.
        self._to_follow: dict[bytes, tuple[int, list[Any]]] = {}  # A tag, and what it tells.
        self._to_ask: set[tuple[bytes, int]] = set()
        self._to_tell: dict[tuple[bytes, int], bool] = {}
        self._recalled: dict[bytes, list[Any]] = {}
        self._said_no: dict[bytes, int] = {}  # Who needs not to be told.

    def fold(self, decision: list[Any], sequence: int, at_us: int) -> None:
        """
        Take in a step that is no entry of a channel and no answer; raises Contradiction.
        """
        tag, linked_id = decision[:2]
        if tag == LINKED_BEGUN:
            self._begin(decision, sequence, at_us)
        elif tag == LINKED_POSTED:
            self._post(decision, sequence, at_us)
        elif tag == LINKED_REJECTED:
            self._reject(decision, at_us)
        elif tag == LINKED_RECALLED:
            self._take_next(linked_id, LINKED_RECALLED, [])
            linked = self._undecided(linked_id)
            self._recalled[linked_id] = linked.begun
            self._give_up(linked_id, linked)
        else:
            self._take_next(linked_id, LINKED_DONE, [])
            del self.open[linked_id]

    # --- The shard that decides -------------------------------------------------------------------

    def _begin(self, decision: list[Any], sequence: int, at_us: int) -> None:
        _, linked_id, _, _, legs, homes, attempt, deadline_us = decision
        check_legs(legs)
        peers = check_homes(self.shard_id, legs, homes)
        if linked_id in self.open:
            raise Contradiction("linked transfer begun", "a new one", linked_id)
        before = self._decided_anew(decision)
        expected = (1, deadline_us) if before is None else (before[6] + 1, before[7])
        if (attempt, deadline_us) != expected or deadline_us <= at_us:
            raise Contradiction("attempt and deadline", expected, (attempt, deadline_us))
        self.open[linked_id] = OpenLinked(decision, peers, sequence, at_us)
        self._to_ask.update((linked_id, peer) for peer in peers)

    def _decided_anew(self, decision: list[Any]) -> list[Any] | None:
        before = self._recalled.pop(decision[1], None)
        if before is not None and before[1:5] != decision[1:5]:
            raise Contradiction("recalled linked transfer", before[1:5], decision[1:5])
        return before

    def _post(self, decision: list[Any], sequence: int, at_us: int) -> None:
        _, linked_id, _, _, legs, _, is_open = decision
        linked = self.open.get(linked_id)
        if is_open != (linked is not None):
            raise Contradiction("linked transfer posted", "begun, if others are told", is_open)
        if linked is None:
            check_legs(legs)
            self._decided_anew(decision)
            return
        self._take_next(linked_id, LINKED_POSTED, [])
        self._check_asked(linked, decision)
        linked.posted, linked.sequence, linked.at_us = decision, sequence, at_us
        linked.waiting = set(linked.peers)
        self._to_tell.update({(linked_id, peer): True for peer in linked.peers})

    def _reject(self, decision: list[Any], at_us: int) -> None:
        _, linked_id, _, _, legs, *why = decision
        leg, reason, short_by = why
        answer_refused(reason, short_by, leg)
        if leg >= len(legs):
            raise Contradiction("leg", f"one of {len(legs)}", leg)
        if linked_id not in self.open:
            check_legs(legs)
            self._decided_anew(decision)
            return
        linked = self._undecided(linked_id)
        self._check_asked(linked, decision)
        if linked_id in self._to_follow:
            self._take_next(linked_id, LINKED_REJECTED, why)
        elif why != [0, DEADLINE_PASSED, 0] or at_us < linked.begun[7]:
            raise Contradiction("linked transfer rejected", "a vote of no, or the deadline", why)
        self._give_up(linked_id, linked)

    def _give_up(self, linked_id: bytes, linked: OpenLinked) -> None:
        del self.open[linked_id]
        said_no = self._said_no.pop(linked_id, None)
        self._to_tell.update({(linked_id, peer): False for peer in linked.peers if peer != said_no})

    def check_asked_of(self, decision: list[Any]) -> None:
        """
        Check what a peer is asked to prepare; raises Contradiction.
        """
        _, peer, _, _, linked_id, merchant_id, attempt, parts = decision
        if (linked_id, peer) not in self._to_ask:
            raise Contradiction("shard asked to prepare", "one with a part, once", peer)
        self._to_ask.remove((linked_id, peer))
        _, _, _, merchant_begun, legs, homes, attempt_begun, _ = self.open[linked_id].begun
        expected = [merchant_begun, attempt_begun, parts_at(peer, legs, homes)]
        if [merchant_id, attempt, parts] != expected:
            raise Contradiction("asked to prepare", expected, [merchant_id, attempt, parts])

    def vote(self, asked: list[Any], peer: int, answer: int) -> None:
        """
        Take in a vote, and what has to follow from it.
        """
        linked_id, attempt = asked[4], asked[6]
        linked = self.open.get(linked_id)
        if linked is None or linked.posted is not None or linked.begun[6] != attempt:
            return
        if linked_id in self._to_follow:
            raise Contradiction("vote taken", "after what follows from the last", answer)
        if answer == 0:
            linked.waiting.remove(peer)
            if not linked.waiting:
                self._to_follow[linked_id] = LINKED_POSTED, []
            return
        self._said_no[linked_id] = peer
        if answer < 0:
            self._to_follow[linked_id] = LINKED_RECALLED, []
        else:
            self._to_follow[linked_id] = LINKED_REJECTED, refusal_answered(answer)

    def check_told(self, linked_id: bytes, peer: int, is_posted: object) -> None:
        """
        Check that a peer is told what it has to be; raises Contradiction.
        """
        expected = self._to_tell.pop((linked_id, peer), None)
        if expected is not is_posted:
            raise Contradiction("verdict", expected, is_posted)

    def delivered(self, linked_id: bytes, peer: int, is_posted: bool) -> None:
        """
        Take in that a peer has done what it was told.
        """
        linked = self.open.get(linked_id)
        if not is_posted:
            return
        if linked is None or linked.posted is None or peer not in linked.waiting:
            raise Contradiction("verdict delivered", "one of a posted linked transfer", linked_id)
        linked.waiting.remove(peer)
        if not linked.waiting:
            self._to_follow[linked_id] = LINKED_DONE, []

    # --- The others -------------------------------------------------------------------------------

    def prepare(self, decision: list[Any], sequence: int, at_us: int) -> None:
        """
        Take in parts that are set aside for a peer.
        """
        linked_id = decision[4]
        if linked_id in self.prepared:
            raise Contradiction("linked transfer prepared", "once", linked_id)
        check_legs([part[3] for part in decision[6]])
        self.prepared[linked_id] = Prepared(decision, sequence, at_us)

    def take_verdict(self, decision: list[Any]) -> Prepared | None:
        """
        Take in what a peer has decided, and return what was prepared for it.
        """
        _, peer, _, _, linked_id, is_posted, postings = decision
        known = self.prepared.get(linked_id)
        if known is not None and known.decision[1] != peer:
            raise Contradiction("verdict", f"from shard {known.decision[1]}", peer)
        if is_posted and known is None:
            raise Contradiction("verdict", "on what was prepared", linked_id)
        if postings and not is_posted:
            raise Contradiction("postings", "none", postings)
        return self.prepared.pop(linked_id, None)

    # --- What follows -----------------------------------------------------------------------------

    def check_record(self) -> None:
        """
        Check that a record has told all that follows from it; raises Contradiction.
        """
        for linked_id, (tag, told) in self._to_follow.items():
            raise Contradiction(f"linked transfer {linked_id.hex()}", (tag, told), None)
        for linked_id, peer in self._to_ask:
            raise Contradiction(f"linked transfer {linked_id.hex()}", f"shard {peer} asked", None)
        for linked_id, peer in self._to_tell:
            raise Contradiction(f"linked transfer {linked_id.hex()}", f"shard {peer} told", None)
        for linked_id in self._recalled:
            raise Contradiction(f"linked transfer {linked_id.hex()}", "decided anew", None)

    def _undecided(self, linked_id: bytes) -> OpenLinked:
        linked = self.open.get(linked_id)
        if linked is None or linked.posted is not None:
            raise Contradiction("linked transfer", "one that is not decided", linked_id)
        return linked

    def _check_asked(self, linked: OpenLinked, decision: list[Any]) -> None:
        if linked.begun[1:5] != decision[1:5]:
            raise Contradiction("linked transfer", linked.begun[1:5], decision[1:5])

    def _take_next(self, linked_id: bytes, tag: int, told: list[Any]) -> None:
        expected = self._to_follow.pop(linked_id, None)
        if expected != (tag, told):
            raise Contradiction(f"linked transfer {_hex(linked_id)}", expected, (tag, told))


def _hex(identifier: object) -> str:
    return identifier.hex() if isinstance(identifier, bytes) else repr(identifier)
