"""
The batch that is being collected, and the gate its effects wait at.

Rule 1: nothing a shard says leaves it before the record it depends on is durable. Replies,
        refusals, repeats and reads are all effects of the batch they were computed in; only
        `release` lets them go, and only the committer calls it, after the append.
Rule 2: a batch without decisions needs no record; its effects leave after a fence check that
        began after they were computed, so a fenced owner cannot answer a read either.
Rule 3: commands are executed to the end, one after another, without awaiting.
Rule 4: what did not find its destination is called back and sent anew in the same record.
Rule 5: what is over by the batch's time is ended before anything else is decided in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from processor.core.apply import apply, apply_posted
from processor.core.channel import AnyEntry, PrepareEntry, SlotEntry, VerdictEntry, shard_answered
from processor.core.commands import (
    Command,
    ExtendHold,
    GiveSlot,
    MoveLinked,
    MoveMoney,
    OpenWallet,
    PlaceHold,
    ReadHold,
    ReadWallet,
    SetWalletLimits,
    SetWalletStatus,
    TransferType,
    VoidHold,
)
from processor.core.counts import Decided, counts_of_settlement
from processor.core.decide import (
    decide_limits,
    decide_move,
    decide_open,
    decide_status,
    decide_world,
)
from processor.core.decide_channel import (
    ChannelFull,
    Elsewhere,
    decide_anew,
    decide_due,
    decide_entry,
    decide_forgotten,
    decide_settlement,
)
from processor.core.decide_holds import decide_expiry, decide_extend, decide_place, decide_void
from processor.core.decide_linked import (
    NotNow,
    decide_after_vote,
    decide_done,
    decide_linked,
    decide_linked_anew,
    decide_overdue,
    homes_anew,
    homes_of,
    wallet_lost,
    wallets_to_open,
)
from processor.core.decide_slots import TRANSFERS_PENDING, SlotStays, decide_give
from processor.core.decisions import (
    Decision,
    LinkedBegun,
    LinkedRecalled,
    LinkedRejected,
    PrepareSent,
    SlotTaken,
    TransferPosted,
    TransferReserved,
    VerdictSent,
    VoteTaken,
    sums_of,
)
from processor.core.judge import owned_wallet
from processor.core.linked import Move, moves_at_home, moves_of_parts
from processor.core.reject_reason import RejectReason
from processor.core.repeats import KeyReused, Repeated
from processor.core.slots import NOWHERE, slot_of
from processor.core.state import OpenLinked, ShardState
from processor.core.wallet import fees_wallet_id
from processor.flow import frames
from processor.flow.channel_link import (
    Answers,
    Effect,
    Entries,
    Greeting,
    greet,
    new_entries,
    welcome,
)
from processor.flow.frames import Answered, Result, Settled
from processor.flow.results import hold_found, moved, posted, told_hold, wallet_found
from processor.flow.settlement_watch import Deliver, SettlementWatch

DeliverEffect = Callable[[Effect], None]

_FEE = TransferType.FEE  # A plain name: an enum member costs a look-up on every transfer.

CLOSING_US = 200_000  # How long a slot with transfers on their way sends nothing new elsewhere.
ALARMS_MAX = 1_000  # What is over is ended in steps: many holds may end in the same second.


class Batch:
    """
    Decisions for one journal record, and the replies that wait for it.
    """

    __slots__ = (
        "_effects",
        "_outcomes",
        "_pending",
        "_replies",
        "_watch",
        "at_us",
        "command_count",
        "decisions",
        "ends",
        "sequence",
        "taken",
    )

    def __init__(self, sequence: int, watch: SettlementWatch | None = None) -> None:
        self.sequence = sequence
        self.at_us = 0  # Stamped when the first frame is executed.
        self.command_count = 0
        self.decisions: list[Decision] = []
        # By peer: how far a channel is sent and settled once this batch is durable.
        self.ends: dict[int, tuple[int, int]] = {}
        self.taken: list[tuple[int, int]] = []  # Slots that came, each with its generation.
        self._watch = watch if watch is not None else SettlementWatch()
        self._pending: list[bytes] = []  # Transfers that the frame being executed waits for.
        self._replies: list[tuple[Deliver, Answered]] = []
        self._effects: list[tuple[DeliverEffect, Effect]] = []
        self._outcomes: dict[Deliver, list[frames.Outcome]] = defaultdict(list)

    def __bool__(self) -> bool:
        return bool(self._replies or self._effects or self.decisions)

    def add(self, state: ShardState, frame: frames.RequestFrame, deliver: Deliver) -> None:
        """
        Execute a frame's commands on *state* and keep the reply until `release`.
        """
        assert self.at_us > 0, "the batch has no time yet"
        if state.closing:
            self._open_again(state)
        results = [self._execute(state, command) for command in frame.commands]
        self.command_count += len(results)
        self._replies.append((deliver, Answered(frame.frame_id, results)))
        if self._pending:
            for transfer_id in self._pending:
                self._watch.wait(transfer_id, deliver)
            self._pending.clear()
        if state.leaving:
            state.leaving.clear()

    def tick(self, state: ShardState) -> None:
        """
        End what is over by now: holds, and linked transfers that were not voted on in time.
        """
        assert self.at_us > 0, "the batch has no time yet"
        for identifier in state.take_alarms(self.at_us, ALARMS_MAX):
            hold = state.holds.get(identifier)
            if hold is not None:
                self._record_all(state, decide_expiry(state, hold, self.at_us))
            linked = state.linked.get(identifier)
            if linked is not None:
                self._end_overdue(state, linked)

    def _end_overdue(self, state: ShardState, linked: OpenLinked) -> None:
        decisions = decide_overdue(state, linked, self.at_us)
        self._record_all(state, decisions)
        if decisions:
            self._tell_outcome(state, linked.begun)

    def add_greeting(self, state: ShardState, peer: int, deliver: DeliverEffect) -> None:
        """
        Say how far the channel to *peer* is; it leaves when that is durable.
        """
        self._effects.append((deliver, greet(state.shard_id, state.channels.to(peer))))

    def add_welcome(self, state: ShardState, greeting: Greeting, deliver: DeliverEffect) -> None:
        """
        Answer a peer's greeting; raises ChannelBroken when the two ends contradict each other.
        """
        assert self.at_us > 0, "the batch has no time yet"
        channel = state.channels.of(greeting.source)
        said = welcome(channel, greeting)
        self._forget(state, greeting.source, greeting.settled)
        self._effects.append((deliver, said))

    def add_entries(
        self, state: ShardState, peer: int, frame: Entries, deliver: DeliverEffect
    ) -> None:
        """
        Decide the entries from *peer* that are new, and answer all of them at `release`.

        Raises OutOfOrder or ChannelBroken; nothing is decided then.
        """
        assert self.at_us > 0, "the batch has no time yet"
        channel = state.channels.of(peer)
        fresh = new_entries(channel, frame)
        self._forget(state, peer, frame.settled)
        for entry in fresh:
            self._take_entry(state, peer, entry)
        # Also those that came before: the connection their answers went to may be gone.
        first, last = frame.entries[0].number, frame.entries[-1].number
        self._effects.append((deliver, Answers(first, channel.answers(first, last))))

    def add_answers(self, state: ShardState, peer: int, answers: list[int]) -> None:
        """
        Settle the next entries to *peer*, in order, as it answered them; raises ChannelBroken.
        """
        assert self.at_us > 0, "the batch has no time yet"
        for answer in answers:
            self._settle(state, peer, answer)
        self.command_count += len(answers)
        self._note_end(state, peer)

    def release(self) -> None:
        """
        Let the replies go; the caller has made the record durable or checked the fence.
        """
        for deliver, reply in self._replies:
            deliver(reply)
        self._replies.clear()
        for deliver_effect, effect in self._effects:
            deliver_effect(effect)
        self._effects.clear()
        for deliver, outcomes in self._outcomes.items():
            deliver(Settled(outcomes))
        self._outcomes.clear()

    def _execute(self, state: ShardState, command: Command) -> Result:
        if isinstance(command, MoveMoney):
            return self._move(state, command)
        if isinstance(command, MoveLinked):
            return self._move_linked(state, command)
        if isinstance(command, PlaceHold | VoidHold | ExtendHold | ReadHold):
            return self._hold(state, command)
        if isinstance(command, GiveSlot):
            return self._give(state, command)
        if not state.has_slot_of(command.wallet_id):
            return frames.Moved(state.slots.shard_of(command.wallet_id))
        if isinstance(command, ReadWallet):
            if owned_wallet(state.wallets, command.merchant_id, command.wallet_id) is None:
                return frames.WalletRefused(RejectReason.WALLET_UNKNOWN)
            return wallet_found(state, command.wallet_id, changed=False)
        return self._control(state, command)

    def _move(self, state: ShardState, command: MoveMoney) -> Result:
        if command.transfer_type is _FEE:
            self._open_fees(state, command)
        outcome = decide_move(state, command, self.at_us)
        if type(outcome) is TransferPosted:
            apply_posted(state, outcome, self.sequence, self.at_us)
            self.decisions.append(outcome)
            return posted(outcome, self.sequence, self.at_us, repeated=False)
        if isinstance(outcome, Elsewhere):
            return frames.Moved(outcome.shard_id)
        if isinstance(outcome, ChannelFull):
            return frames.ChannelFull(outcome.peer)
        if isinstance(outcome, Decided):
            return self._decided(state, outcome)
        if isinstance(outcome, Repeated | KeyReused):
            return self._known(outcome)
        return self._decided(state, Decided(outcome, [outcome]))

    def _known(self, outcome: Repeated | KeyReused) -> Result:
        """
        Tell what is known under a key that was used before.
        """
        if isinstance(outcome, KeyReused):
            return frames.KeyReused(outcome.field)
        if isinstance(outcome.decision, TransferReserved | LinkedBegun):
            self._pending.append(outcome.decision.transfer_id)
        return moved(outcome.decision, outcome.sequence, outcome.at_us, repeated=True)

    def _decided(self, state: ShardState, decided: Decided) -> Result:
        """
        Take in what belongs together, and tell what the caller is told of it.
        """
        self._record_all(state, decided.decisions)
        outcome = decided.outcome
        if isinstance(outcome, TransferReserved | LinkedBegun):
            self._pending.append(outcome.transfer_id)
        return moved(outcome, self.sequence, self.at_us, repeated=False)

    def _hold(
        self, state: ShardState, command: PlaceHold | VoidHold | ExtendHold | ReadHold
    ) -> Result:
        match command:
            case PlaceHold():
                outcome = decide_place(state, command, self.at_us)
            case VoidHold():
                outcome = decide_void(state, command, self.at_us)
            case ExtendHold():
                outcome = decide_extend(state, command, self.at_us)
            case ReadHold():
                return hold_found(state, command)
        if isinstance(outcome, Elsewhere):
            return frames.Moved(outcome.shard_id)
        if isinstance(outcome, KeyReused):
            return frames.KeyReused(outcome.field)
        if isinstance(outcome, Repeated):
            known = (outcome.decision, outcome.sequence, outcome.at_us)
            return told_hold(state, known, repeated=True)
        self._record_all(state, outcome.decisions)
        known = (outcome.outcome, self.sequence, self.at_us)
        return told_hold(state, known, repeated=False)

    def _move_linked(self, state: ShardState, command: MoveLinked) -> Result:
        self.command_count += len(command.legs) - 1  # One is counted with the frame.
        if state.keys.find(command.key) is None:
            homes = homes_of(state, command.legs)
            # One that is nowhere is asked for again, and nothing is opened for it.
            if not any(NOWHERE in pair for pair in homes):
                moves = moves_at_home(state.shard_id, command.merchant_id, command.legs, homes)
                self._open_named(state, command.merchant_id, moves)
        outcome = decide_linked(state, command, self.at_us)
        if isinstance(outcome, NotNow):
            if outcome.peer is not None:
                return frames.ChannelFull(outcome.peer)
            return frames.Moved(outcome.shard_id)
        if isinstance(outcome, Decided):
            return self._decided(state, outcome)
        return self._known(outcome)

    def _give(self, state: ShardState, command: GiveSlot) -> Result:
        owner = state.slots.owner(command.slot)
        if owner != state.shard_id:
            return frames.Moved(owner)
        outcome = decide_give(state, command)
        if isinstance(outcome, SlotStays):
            if outcome.why == TRANSFERS_PENDING:
                state.closing[command.slot] = self.at_us + CLOSING_US
            return frames.SlotKept(command.slot, outcome.why)
        for posting in outcome.dues:
            self._open_due(state, outcome.peer, posting.currency)
        self._record(state, outcome)
        self._note_end(state, outcome.peer)
        return frames.SlotLeft(command.slot, outcome.peer, len(outcome.wallets))

    def _open_again(self, state: ShardState) -> None:
        for slot in [slot for slot, until in state.closing.items() if until <= self.at_us]:
            del state.closing[slot]

    def _control(
        self, state: ShardState, command: OpenWallet | SetWalletStatus | SetWalletLimits
    ) -> Result:
        decision: Decision | RejectReason | None
        match command:
            case OpenWallet():
                decision = decide_open(state, command)
                if not isinstance(decision, RejectReason):
                    self._open_world(state, command.currency)
            case SetWalletStatus():
                decision = decide_status(state, command)
            case SetWalletLimits():
                decision = decide_limits(state, command)
        if isinstance(decision, RejectReason):
            return frames.WalletRefused(decision)
        if decision is not None:
            self._record(state, decision)
        return wallet_found(state, command.wallet_id, changed=decision is not None)

    def _take_entry(self, state: ShardState, peer: int, entry: AnyEntry) -> None:
        self.command_count += 1
        match entry:
            case SlotEntry(wallets=wallets):
                # Wherever a wallet is, there is the world in its currency: deposits rely on it.
                for currency in dict.fromkeys(wallet.currency for wallet in wallets):
                    self._open_world(state, currency)
                for currency in sums_of(wallets):
                    self._open_due(state, peer, currency)
            case PrepareEntry(merchant_id=merchant_id, parts=parts):
                self.command_count += len(parts) - 1
                moves = moves_of_parts(state.shard_id, peer, merchant_id, parts)
                self._open_named(state, merchant_id, moves)
            case VerdictEntry():
                pass
            case _:
                if state.has_slot_of(entry.destination):
                    self._open_due(state, peer, entry.currency)
        decisions = decide_entry(state, peer, entry, self.at_us)
        self._record_all(state, decisions)
        if isinstance(decisions[0], SlotTaken):
            self.taken.append((decisions[0].slot, decisions[0].generation))

    # --- Answers of peers -------------------------------------------------------------------------

    def _settle(self, state: ShardState, peer: int, answer: int) -> None:
        channel = state.channels.to(peer)
        pending = channel.outbox[channel.settled + 1]
        decision = decide_settlement(state, peer, answer)
        if isinstance(pending, TransferReserved):
            known = state.keys.find(pending.key)
            assert known is not None, "money on its way that is not remembered"
            counts = counts_of_settlement(state, pending, decision, reserved_at_us=known[2])
            self._record_all(state, [decision, *counts])
            if answer >= 0 or not self._is_sent_anew(state, pending, answer, known[2]):
                self._tell_outcome(state, pending)
            return
        self._record(state, decision)
        if isinstance(pending, PrepareSent):
            assert isinstance(decision, VoteTaken), "a vote answers it"
            self._voted(state, pending, decision)
        elif isinstance(pending, VerdictSent):
            self._done(state, pending.linked_id)

    def _voted(self, state: ShardState, asked: PrepareSent, vote: VoteTaken) -> None:
        linked = state.linked.get(vote.linked_id)
        follows = decide_after_vote(state, asked, vote)
        if not follows or linked is None:
            return
        self._record_all(state, follows)
        begun = linked.begun
        if isinstance(follows[0], LinkedRejected):
            self._tell_outcome(state, begun)
        elif isinstance(follows[0], LinkedRecalled):
            self._note_hint(state, wallet_lost(begun, vote.answer), vote.answer)
            self._begin_anew(state, begun)

    def _begin_anew(self, state: ShardState, begun: LinkedBegun) -> None:
        """
        Decide in the same record what takes the place of an attempt that was called back.
        """
        homes = homes_anew(state, begun)
        moves = moves_at_home(state.shard_id, begun.merchant_id, begun.legs, homes)
        self._open_named(state, begun.merchant_id, moves)
        anew = decide_linked_anew(state, begun, homes, self.at_us)
        self._record_all(state, anew.decisions)
        if not isinstance(anew.outcome, LinkedBegun):
            self._tell_outcome(state, begun)

    def _done(self, state: ShardState, linked_id: bytes) -> None:
        done = decide_done(state, linked_id)
        if done is not None:
            begun = state.linked[linked_id].begun
            self._record(state, done)
            self._tell_outcome(state, begun)

    def _is_sent_anew(
        self, state: ShardState, pending: TransferReserved, answer: int, reserved_at_us: int
    ) -> bool:
        """
        Decide in the same record what becomes of a transfer that was called back, and say whether
        it is on its way again.
        """
        self._note_hint(state, pending.destination, answer)
        anew = decide_anew(state, pending, answer, reserved_at_us=reserved_at_us, at_us=self.at_us)
        self._record_all(state, anew.decisions)
        return isinstance(anew.outcome, TransferReserved)

    def _note_hint(self, state: ShardState, wallet_id: str, answer: int) -> None:
        """
        Take in where a peer said that the slot of *wallet_id* is.
        """
        slot, answered = slot_of(wallet_id), shard_answered(answer)
        if answered == state.shard_id:
            state.hints.pop(slot, None)
        else:
            state.hints[slot] = answered

    def _tell_outcome(self, state: ShardState, pending: TransferReserved | LinkedBegun) -> None:
        """
        Tell those who wait for it what became of *pending*.
        """
        for deliver in self._watch.take(pending.transfer_id):
            remembered = state.keys.find(pending.key)
            assert remembered is not None, "an outcome that is not remembered"
            result = moved(*remembered, repeated=False)
            assert not isinstance(result, frames.Pending), "it is on its way still"
            self._outcomes[deliver].append(result)

    def _forget(self, state: ShardState, peer: int, settled: int) -> None:
        forgotten = decide_forgotten(state, peer, settled)
        if forgotten is not None:
            self._record(state, forgotten)

    def _open_world(self, state: ShardState, currency: str) -> None:
        world = decide_world(state, currency)
        if world is not None:
            self._record(state, world)

    def _open_due(self, state: ShardState, peer: int, currency: str) -> None:
        due = decide_due(state, peer, currency)
        if due is not None:
            self._record(state, due)

    def _note_end(self, state: ShardState, peer: int) -> None:
        channel = state.channels.to(peer)
        self.ends[peer] = (channel.head, channel.settled)

    def _open_fees(self, state: ShardState, command: MoveMoney) -> None:
        if command.source in state.wallets:
            fees = fees_wallet_id(state.shard_id, command.merchant_id, command.currency)
            move = Move(
                0, command.transfer_type, command.source, fees, command.currency, command.amount
            )
            self._open_named(state, command.merchant_id, [move])

    def _open_named(self, state: ShardState, merchant_id: str, moves: list[Move]) -> None:
        self._record_all(state, wallets_to_open(state, merchant_id, moves))

    def _record_all(self, state: ShardState, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, TransferReserved):
                self._open_due(state, decision.peer, decision.currency)
            self._record(state, decision)
            if isinstance(decision, TransferReserved | PrepareSent | VerdictSent):
                self._note_end(state, decision.peer)

    def _record(self, state: ShardState, decision: Decision) -> None:
        apply(state, decision, self.sequence, self.at_us)
        self.decisions.append(decision)
