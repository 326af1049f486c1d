"""
What the records that speak of one transfer say, step by step and in words.

Rule 1: balances are told of the caller's own wallets only, and what was counted next to it, or how
        many other legs there are, only to who asked for it: a payer's hold is not its payee's.
Rule 2: an entry of a channel is known at the other shard by its chain, which is the same on both
        sides: what that shard answered does not name the transfer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from gateway.explanation_wire import Entry, Step, StepText, WalletChange
from gateway.identifiers import timestamp_text, uuid_text
from processor.core.channel import refusal_answered, shard_answered
from processor.core.decisions import (
    Decision,
    EntryCredited,
    EntryElsewhere,
    EntryRefused,
    HoldChanged,
    LinkedBegun,
    LinkedDone,
    LinkedPosted,
    LinkedPrepared,
    LinkedRecalled,
    LinkedRejected,
    Posting,
    PrepareSent,
    RefundCounted,
    TransferPosted,
    TransferRecalled,
    TransferRejected,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    VerdictDelivered,
    VerdictSent,
    VerdictTaken,
    VoteTaken,
)
from processor.core.hold import HoldStatus
from processor.core.leg_ids import leg_number
from processor.core.reject_reason import RejectReason
from processor.storage.journal_search import Mention

SentEntry = TransferReserved | PrepareSent | VerdictSent

# What sends an entry to another shard; whatever else names it comes after what is said there.
_SENDING = ("reserved", "asked", "told")


class Subject(msgspec.Struct, frozen=True):
    """
    What is explained: a transfer of `amount` from `source`, the linked transfer that it is a leg
    of, if so, the hold that it captures and the transfer that it refunds; `own` are the caller's
    wallets, and `is_asker` says whether the caller asked for it.
    """

    transfer_id: bytes
    linked_id: bytes | None
    hold_id: bytes | None
    refund_of: bytes | None
    amount: int
    source: str
    own: frozenset[str]
    is_asker: bool


class Said(msgspec.Struct, frozen=True):
    """
    One decision in words, with the caller's wallets that it changed.
    """

    step: StepText
    text: str
    entry: Entry | None = None
    wallets: list[WalletChange] = []


def sent_entries(mentions: Iterable[Mention], subject: Subject) -> list[tuple[Mention, SentEntry]]:
    """
    List the entries that were sent to other shards for it, each with its record.
    """
    return [
        (mention, decision)
        for mention in mentions
        for decision in mention.decisions
        if isinstance(decision, TransferReserved | PrepareSent | VerdictSent)
        and identifier_of(decision) in (subject.transfer_id, subject.linked_id)
    ]


def identifier_of(entry: SentEntry) -> bytes:
    return entry.transfer_id if isinstance(entry, TransferReserved) else entry.linked_id


class Told(NamedTuple):
    """
    What one decision of a record says, with its place in the record.
    """

    at_us: int
    shard_id: int
    sequence: int
    place: int
    said: Said


def steps_of(mentions: Iterable[Mention], subject: Subject) -> list[Step]:
    """
    Tell all steps, each once, in an order in which nothing comes before what led to it.
    """
    records = {(one.shard_id, one.sequence): one for one in mentions}
    sent = {
        entry.chain: mention.shard_id for mention, entry in sent_entries(records.values(), subject)
    }
    teller = _Teller(subject, sent)
    told = [
        Told(mention.at_us, mention.shard_id, mention.sequence, place, said)
        for mention in records.values()
        for place, said in enumerate(teller.told(mention))
    ]
    return [
        Step(
            timestamp_text(one.at_us),
            one.shard_id,
            one.sequence,
            one.said.step,
            one.said.text,
            one.said.entry,
            one.said.wallets,
        )
        for one in in_order(told)
    ]


def in_order(told: Iterable[Told]) -> list[Told]:
    """
    Order what was told by its time; but the clocks of two shards may differ, and an entry is sent
    before it is answered, and answered before the answer is taken in.
    """
    left = sorted(told, key=lambda one: one[:4])
    ordered: list[Told] = []
    while left:
        first = next((one for one in left if not any(_leads_to(o, one) for o in left)), left[0])
        left.remove(first)
        ordered.append(first)
    return ordered


def _leads_to(one: Told, other: Told) -> bool:
    """
    Say whether *one* is what *other* follows on: in its journal, or of its entry.
    """
    if one.shard_id == other.shard_id:
        return one[2:4] < other[2:4]
    entry = one.said.entry
    return entry is not None and entry == other.said.entry and _stage(one) < _stage(other)


def _stage(told: Told) -> int:
    entry = told.said.entry
    if told.said.step in _SENDING:
        return 0
    return 1 if entry is not None and told.shard_id == entry.destination else 2


class _Teller:
    """
    Puts the decisions of records into words; *sent* has the chains of entries that were sent, with
    the shards that sent them.
    """

    def __init__(self, subject: Subject, sent: dict[bytes, int]) -> None:
        self._subject = subject
        self._sent = sent

    def told(self, mention: Mention) -> Iterator[Said]:
        decisions = mention.decisions
        for place, decision in enumerate(decisions):
            said = self._moved(mention.shard_id, decision)
            said = said or self._linked(mention, decision)
            said = said or self._answered(mention.shard_id, decision)
            if said is not None:
                notes = self._notes(decision, decisions, place)
                yield msgspec.structs.replace(said, text=" ".join([said.text, *notes]))

    # --- One movement -----------------------------------------------------------------------------

    def _moved(self, shard_id: int, decision: Decision) -> Said | None:
        if getattr(decision, "transfer_id", None) != self._subject.transfer_id:
            return None
        match decision:
            case TransferPosted():
                return Said(
                    "posted", "Decided here, and the money moved.", None, self._posted(decision)
                )
            case TransferRejected(reason=reason):
                return Said("rejected", f"Decided here, and refused: {reason.code}.")
            case TransferReserved(peer=peer, number=number):
                text = f"Judged at its source, set aside, and sent to shard {peer}."
                return Said("reserved", text, Entry(shard_id, peer, number))
            case TransferSettled(peer=peer, number=number):
                text = f"Shard {peer} has taken it: what was set aside has left the source."
                return Said("settled", text, Entry(shard_id, peer, number), self._settled(decision))
            case TransferReleased(peer=peer, number=number, reason=reason):
                text = f"Shard {peer} refused it ({reason.code}): what was set aside is free again."
                return Said("released", text, Entry(shard_id, peer, number))
            case TransferRecalled(peer=peer, number=number):
                text = f"Its destination had moved on from shard {peer}: called back, and decided "
                return Said("recalled", f"{text}anew.", Entry(shard_id, peer, number))
            case EntryCredited(peer=peer, number=number):
                text = f"The entry from shard {peer} was judged, and is in the destination."
                return Said(
                    "credited", text, Entry(peer, shard_id, number), self._credited(decision)
                )
        return None

    def _answered(self, shard_id: int, decision: Decision) -> Said | None:
        """
        Tell what a shard answered that names no transfer.
        """
        if not isinstance(decision, EntryRefused | EntryElsewhere):
            return None
        if self._sent.get(decision.chain) != decision.peer:
            return None
        entry = Entry(decision.peer, shard_id, decision.number)
        if isinstance(decision, EntryElsewhere):
            text = f"The wallet is not here; it was last seen at shard {decision.shard_id}."
            return Said("elsewhere", text, entry)
        which = "" if self._subject.linked_id is None else f" (leg {decision.leg})"
        text = f"The entry from shard {decision.peer} was judged, and refused: "
        return Said("refused", f"{text}{RejectReason(decision.reason).code}{which}.", entry)

    # --- A leg of a linked transfer ---------------------------------------------------------------

    def _linked(self, mention: Mention, decision: Decision) -> Said | None:
        named = getattr(decision, "linked_id", getattr(decision, "transfer_id", None))
        if self._subject.linked_id is None or named != self._subject.linked_id:
            return None
        return self._decided(decision) or self._over_channels(mention.shard_id, decision)

    def _decided(self, decision: Decision) -> Said | None:
        match decision:
            case LinkedBegun(attempt=attempt, legs=legs):
                text = f"{len(legs)} legs over several shards begin (attempt {attempt}): what is "
                return Said("begun", f"{text}this shard's is set aside.")
            case LinkedPosted(is_open=is_open, legs=legs, postings=postings):
                which = f"all {len(legs)} legs are" if self._subject.is_asker else "the leg is"
                text = f"Decided here: {which} posted, in this one record."
                if is_open:
                    text = f"Every shard has voted yes: {which} posted."
                return Said("posted", text, None, self._changes(postings))
            case LinkedRejected(leg=leg, reason=reason):
                text = f"No leg moves, because leg {leg} fails: {RejectReason(reason).code}."
                return Said("rejected", text)
            case LinkedRecalled():
                text = "A wallet was elsewhere: all is called back, and decided anew."
                return Said("called_back", text)
            case LinkedDone():
                return Said("done", "Every shard has moved what is its own.")
        return None

    def _over_channels(self, shard_id: int, decision: Decision) -> Said | None:
        match decision:
            case PrepareSent(peer=peer, number=number, parts=parts):
                text = f"Shard {peer} is asked whether its {len(parts)} legs can move."
                return Said("asked", text, Entry(shard_id, peer, number))
            case LinkedPrepared(peer=peer, number=number):
                text = f"They can: what they need is set aside until shard {peer} decides."
                return Said("prepared", text, Entry(peer, shard_id, number))
            case VoteTaken(peer=peer, number=number, answer=answer):
                text = f"Shard {peer} votes {_vote(answer)}."
                return Said("voted", text, Entry(shard_id, peer, number))
            case VerdictSent(peer=peer, number=number, is_posted=is_posted):
                verdict = "posted" if is_posted else "not posted"
                text = f"Shard {peer} is told that it is {verdict}."
                return Said("told", text, Entry(shard_id, peer, number))
            case VerdictTaken(peer=peer, number=number, postings=postings):
                text = "Nothing of it moves here, and what was set aside is free again."
                if decision.is_posted:
                    text = f"What shard {peer} decided is done here: the legs move."
                entry = Entry(peer, shard_id, number)
                return Said("followed", text, entry, self._changes(postings))
            case VerdictDelivered(peer=peer, number=number):
                text = f"Shard {peer} has done it."
                return Said("confirmed", text, Entry(shard_id, peer, number))
        return None

    # --- Next to it -------------------------------------------------------------------------------

    def _notes(
        self, decision: Decision, decisions: Sequence[Decision], place: int
    ) -> Iterator[str]:
        """
        Tell what was counted with a decision: a hold lets go before it, a refund counts after it.
        """
        if not self._subject.is_asker or not isinstance(
            decision, TransferPosted | TransferReserved | TransferSettled | TransferReleased
        ):
            return
        before, after = decisions[:place][::-1], decisions[place + 1 :]
        is_first = isinstance(decision, TransferPosted | TransferReserved)
        hold = _first_of(before if is_first else after, self._subject.hold_id)
        if isinstance(hold, HoldChanged):
            status = HoldStatus(hold.status).code
            yield f"Hold {uuid_text(hold.hold_id)} is {status}: captured {hold.captured}, on its"
            yield f"way {hold.pending}."
        refund = _first_of(after, self._subject.refund_of)
        if isinstance(refund, RefundCounted):
            yield f"Gone back in all, or on its way: {refund.refunded}."

    # --- Balances ---------------------------------------------------------------------------------

    def _posted(self, decision: TransferPosted) -> list[WalletChange]:
        amount = decision.amount
        return self._own(
            _changed(decision.source, -amount, decision.source_balance, decision.source_version),
            _changed(
                decision.destination,
                amount,
                decision.destination_balance,
                decision.destination_version,
            ),
        )

    def _settled(self, decision: TransferSettled) -> list[WalletChange]:
        subject = self._subject
        return self._own(
            _changed(
                subject.source, -subject.amount, decision.source_balance, decision.source_version
            )
        )

    def _credited(self, decision: EntryCredited) -> list[WalletChange]:
        return self._own(
            _changed(
                decision.destination,
                decision.amount,
                decision.destination_balance,
                decision.destination_version,
            )
        )

    def _changes(self, postings: Iterable[Posting]) -> list[WalletChange]:
        """
        Tell what the postings of this leg changed.
        """
        amount, number = self._subject.amount, leg_number(self._subject.transfer_id)
        return [
            change
            for one in postings
            if one.leg == number
            for change in self._own(
                _changed(one.source, -amount, one.source_balance, one.source_version),
                _changed(one.destination, amount, one.destination_balance, one.destination_version),
            )
        ]

    def _own(self, *changes: WalletChange) -> list[WalletChange]:
        return [change for change in changes if change.wallet in self._subject.own]


def _changed(wallet: str, by: int, balance: int, version: int) -> WalletChange:
    return WalletChange(wallet, balance - by, balance, version)


def _first_of(decisions: Iterable[Decision], identifier: bytes | None) -> Decision | None:
    """
    Return the first count of what *identifier* names.
    """
    if identifier is None:
        return None
    for one in decisions:
        if isinstance(one, HoldChanged) and one.hold_id == identifier:
            return one
        if isinstance(one, RefundCounted) and one.transfer_id == identifier:
            return one
    return None


def _vote(answer: int) -> str:
    if answer == 0:
        return "yes"
    if answer < 0:
        return f"that a wallet is elsewhere, last seen at shard {shard_answered(answer)}"
    refusal = refusal_answered(answer)
    return f"no: leg {refusal.leg} fails with {RejectReason(refusal.reason).code}"
