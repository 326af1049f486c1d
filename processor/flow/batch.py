"""
The batch that is being collected, and the gate its effects wait at.

Rule 1: nothing a shard says leaves it before the record it depends on is durable. Replies,
        refusals, repeats and reads are all effects of the batch they were computed in; only
        `release` lets them go, and only the committer calls it, after the append.
Rule 2: a batch without decisions needs no record; its effects leave after a fence check that
        began after they were computed, so a fenced owner cannot answer a read either.
Rule 3: commands are executed to the end, one after another, without awaiting.
Rule 4: money that did not find its destination is called back and sent anew in the same record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from processor.core.apply import apply, apply_posted
from processor.core.channel import AnyEntry, SlotEntry, shard_answered
from processor.core.commands import (
    Command,
    GiveSlot,
    MoveMoney,
    OpenWallet,
    ReadWallet,
    SetWalletLimits,
    SetWalletStatus,
    TransferType,
)
from processor.core.decide import (
    KeyReused,
    Repeated,
    decide_limits,
    decide_move,
    decide_open,
    decide_status,
    decide_world,
    owned_wallet,
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
from processor.core.decide_slots import TRANSFERS_PENDING, SlotStays, decide_give
from processor.core.decisions import (
    Decision,
    SlotTaken,
    TransferDecision,
    TransferPosted,
    TransferReserved,
    sums_of,
)
from processor.core.reject_reason import RejectReason
from processor.core.slots import slot_of
from processor.core.state import ShardState
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
from processor.flow.settlement_watch import Deliver, SettlementWatch

DeliverEffect = Callable[[Effect], None]

CLOSING_US = 200_000  # How long a slot with transfers on their way sends nothing new elsewhere.

_DEPOSIT = TransferType.DEPOSIT


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
        self._outcomes: dict[Deliver, list[frames.Posted | frames.Rejected]] = defaultdict(list)

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
        self.command_count += len(fresh)
        # Also those that came before: the connection their answers went to may be gone.
        first, last = frame.entries[0].number, frame.entries[-1].number
        self._effects.append((deliver, Answers(first, channel.answers(first, last))))

    def add_answers(self, state: ShardState, peer: int, answers: list[int]) -> None:
        """
        Settle the next entries to *peer*, in order, as it answered them; raises ChannelBroken.
        """
        assert self.at_us > 0, "the batch has no time yet"
        channel = state.channels.to(peer)
        for answer in answers:
            pending = channel.outbox[channel.settled + 1]
            self._record(state, decide_settlement(state, peer, answer))
            if isinstance(pending, TransferReserved) and not (
                answer < 0 and self._is_sent_anew(state, pending, answer)
            ):
                self._tell_outcome(state, pending)
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
        if isinstance(command, GiveSlot):
            return self._give(state, command)
        if not state.has_slot_of(command.wallet_id):
            return frames.Moved(state.slots.shard_of(command.wallet_id))
        if isinstance(command, ReadWallet):
            if owned_wallet(state, command.merchant_id, command.wallet_id) is None:
                return frames.WalletRefused(RejectReason.WALLET_UNKNOWN)
            return self._found(state, command.wallet_id, changed=False)
        return self._control(state, command)

    def _move(self, state: ShardState, command: MoveMoney) -> Result:
        outcome = decide_move(state, command)
        if type(outcome) is TransferPosted:
            apply_posted(state, outcome, self.sequence, self.at_us)
            self.decisions.append(outcome)
            return moved(outcome, self.sequence, self.at_us, repeated=False)
        if isinstance(outcome, Repeated):
            if isinstance(outcome.decision, TransferReserved):
                self._pending.append(outcome.decision.transfer_id)
            return moved(outcome.decision, outcome.sequence, outcome.at_us, repeated=True)
        if isinstance(outcome, KeyReused):
            return frames.KeyReused(outcome.field)
        if isinstance(outcome, Elsewhere):
            return frames.Moved(outcome.shard_id)
        if isinstance(outcome, ChannelFull):
            return frames.ChannelFull(outcome.peer)
        if isinstance(outcome, TransferReserved):
            self._send(state, outcome)
            self._pending.append(outcome.transfer_id)
        else:
            self._record(state, outcome)
        return moved(outcome, self.sequence, self.at_us, repeated=False)

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
        return self._found(state, command.wallet_id, changed=decision is not None)

    def _take_entry(self, state: ShardState, peer: int, entry: AnyEntry) -> None:
        if isinstance(entry, SlotEntry):
            currencies = list(sums_of(entry.wallets))
            # Wherever a wallet is, there is the world in its currency: deposits rely on it.
            for currency in dict.fromkeys(wallet.currency for wallet in entry.wallets):
                self._open_world(state, currency)
        else:
            currencies = [entry.currency] if state.has_slot_of(entry.destination) else []
        for currency in currencies:
            self._open_due(state, peer, currency)
        decision = decide_entry(state, peer, entry)
        self._record(state, decision)
        if isinstance(decision, SlotTaken):
            self.taken.append((decision.slot, decision.generation))

    def _send(self, state: ShardState, reserved: TransferReserved) -> None:
        self._open_due(state, reserved.peer, reserved.currency)
        self._record(state, reserved)
        self._note_end(state, reserved.peer)

    def _is_sent_anew(self, state: ShardState, pending: TransferReserved, answer: int) -> bool:
        """
        Decide in the same record what becomes of a transfer that was called back, and say whether
        it is on its way again.
        """
        slot, answered = slot_of(pending.destination), shard_answered(answer)
        if answered == state.shard_id:
            state.hints.pop(slot, None)
        else:
            state.hints[slot] = answered
        anew = decide_anew(state, pending, answer)
        if isinstance(anew, TransferReserved):
            self._send(state, anew)
            return True
        self._record(state, anew)
        return False

    def _tell_outcome(self, state: ShardState, pending: TransferReserved) -> None:
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

    def _record(self, state: ShardState, decision: Decision) -> None:
        apply(state, decision, self.sequence, self.at_us)
        self.decisions.append(decision)

    def _found(self, state: ShardState, wallet_id: str, *, changed: bool) -> frames.WalletFound:
        wallet = state.wallets[wallet_id]
        return frames.WalletFound(
            wallet_id,
            wallet.currency,
            wallet.status,
            wallet.minimum,
            wallet.posted,
            wallet.version,
            wallet.sequence,
            changed,
        )


def moved(
    decision: TransferDecision, sequence: int, at_us: int, *, repeated: bool
) -> frames.Posted | frames.Rejected | frames.Pending:
    """
    Tell what *decision* did, with the balance of the wallet the caller owns.
    """
    if isinstance(decision, TransferPosted):
        deposit = decision.transfer_type == _DEPOSIT
        return frames.Posted(
            decision.transfer_id,
            sequence,
            at_us,
            decision.destination_balance if deposit else decision.source_balance,
            decision.destination_version if deposit else decision.source_version,
            repeated,
        )
    if isinstance(decision, TransferReserved):
        return frames.Pending(decision.transfer_id, sequence, at_us, repeated)
    return frames.Rejected(decision.transfer_id, sequence, at_us, decision.reason, repeated)
