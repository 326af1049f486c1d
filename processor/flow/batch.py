"""
The batch that is being collected, and the gate its effects wait at.

Rule 1: nothing a shard says leaves it before the record it depends on is durable. Replies,
        refusals, repeats and reads are all effects of the batch they were computed in; only
        `release` lets them go, and only the committer calls it, after the append.
Rule 2: a batch without decisions needs no record; its effects leave after a fence check that
        began after they were computed, so a fenced owner cannot answer a read either.
Rule 3: commands are executed to the end, one after another, without awaiting.
"""

from __future__ import annotations

from collections.abc import Callable

from processor.core.apply import apply, apply_posted
from processor.core.commands import (
    Command,
    MoveMoney,
    OpenWallet,
    ReadWallet,
    SetWalletLimits,
    SetWalletStatus,
    TransferType,
)
from processor.core.decide import (
    ChannelFull,
    Elsewhere,
    KeyReused,
    Repeated,
    decide_due,
    decide_entry,
    decide_limits,
    decide_move,
    decide_open,
    decide_settlement,
    decide_status,
    decide_world,
    owned_wallet,
)
from processor.core.decisions import (
    Decision,
    TransferDecision,
    TransferPosted,
    TransferReserved,
)
from processor.core.reject_reason import RejectReason
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
from processor.flow.frames import Answered, Reply, Result

Deliver = Callable[[Reply], None]
DeliverEffect = Callable[[Effect], None]

_DEPOSIT = TransferType.DEPOSIT


class Batch:
    """
    Decisions for one journal record, and the replies that wait for it.
    """

    __slots__ = ("_effects", "_replies", "at_us", "command_count", "decisions", "ends", "sequence")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.at_us = 0  # Stamped when the first frame is executed.
        self.command_count = 0
        self.decisions: list[Decision] = []
        self._replies: list[tuple[Deliver, Answered]] = []
        self._effects: list[tuple[DeliverEffect, Effect]] = []
        # By peer: how far a channel is sent and settled once this batch is durable.
        self.ends: dict[int, tuple[int, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._replies or self._effects or self.decisions)

    def add(self, state: ShardState, frame: frames.RequestFrame, deliver: Deliver) -> None:
        """
        Execute a frame's commands on *state* and keep the reply until `release`.
        """
        assert self.at_us > 0, "the batch has no time yet"
        results = [self._execute(state, command) for command in frame.commands]
        self.command_count += len(results)
        self._replies.append((deliver, Answered(frame.frame_id, results)))

    def add_greeting(self, state: ShardState, peer: int, deliver: DeliverEffect) -> None:
        """
        Say how far the channel to *peer* is; it leaves when that is durable.
        """
        self._effects.append((deliver, greet(state.shard_id, state.channels.to(peer))))

    def add_welcome(self, state: ShardState, greeting: Greeting, deliver: DeliverEffect) -> None:
        """
        Answer a peer's greeting; raises ChannelBroken when the two ends contradict each other.
        """
        channel = state.channels.of(greeting.source)
        self._effects.append((deliver, welcome(channel, greeting)))

    def add_entries(
        self, state: ShardState, peer: int, frame: Entries, deliver: DeliverEffect
    ) -> None:
        """
        Decide the entries from *peer* that are new, and answer all of them at `release`.

        Raises OutOfOrder or ChannelBroken; nothing is decided then.
        """
        assert self.at_us > 0, "the batch has no time yet"
        channel = state.channels.of(peer)
        for entry in new_entries(channel, frame):
            self._open_due(state, peer, entry.currency)
            self._record(state, decide_entry(state, peer, entry))
            self.command_count += 1
        # Also those that came before: the connection their answers went to may be gone.
        first, last = frame.entries[0].number, frame.entries[-1].number
        self._effects.append((deliver, Answers(first, channel.answers(first, last))))

    def add_answers(self, state: ShardState, peer: int, answers: list[int]) -> None:
        """
        Settle the next entries to *peer*, in order, as it answered them.
        """
        assert self.at_us > 0, "the batch has no time yet"
        for answer in answers:
            self._record(state, decide_settlement(state, peer, answer))
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

    def _execute(self, state: ShardState, command: Command) -> Result:
        if isinstance(command, MoveMoney):
            return self._move(state, command)
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
            return moved(outcome.decision, outcome.sequence, outcome.at_us, repeated=True)
        if isinstance(outcome, KeyReused):
            return frames.KeyReused(outcome.field)
        if isinstance(outcome, Elsewhere):
            return frames.Moved(outcome.shard_id)
        if isinstance(outcome, ChannelFull):
            return frames.ChannelFull(outcome.peer)
        if isinstance(outcome, TransferReserved):
            self._open_due(state, outcome.peer, outcome.currency)
        self._record(state, outcome)
        if isinstance(outcome, TransferReserved):
            self._note_end(state, outcome.peer)
        return moved(outcome, self.sequence, self.at_us, repeated=False)

    def _control(
        self, state: ShardState, command: OpenWallet | SetWalletStatus | SetWalletLimits
    ) -> Result:
        decision: Decision | RejectReason | None
        match command:
            case OpenWallet():
                decision = decide_open(state, command)
                world = decide_world(state, command.currency)
                if world is not None and not isinstance(decision, RejectReason):
                    self._record(state, world)
            case SetWalletStatus():
                decision = decide_status(state, command)
            case SetWalletLimits():
                decision = decide_limits(state, command)
        if isinstance(decision, RejectReason):
            return frames.WalletRefused(decision)
        if decision is not None:
            self._record(state, decision)
        return self._found(state, command.wallet_id, changed=decision is not None)

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
