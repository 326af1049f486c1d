"""
The gateway's side of one shard's socket: coalesces, resends, and knows what it does not know.

Rule 1: commands that wait for a shard leave together, once per turn of the event loop, in
        frames of bounded size, a bounded number of them in flight. There is no timer.
Rule 2: a connection that ends leaves its frames in doubt; their commands go out again on the
        next connection. That is safe because each command that moves money has a key, and the
        others say how things shall be.
Rule 3: at its deadline a command that was never sent is `ShardUnavailable` (not applied), one
        that was sent is `OutcomeUnknown`. Nothing else turns doubt into an answer.
Rule 4: a caller that goes away cancels nothing.
Rule 5: money on its way to another shard is answered as pending; such an answer is held back for
        a moment, for its settlement (see `settlement_wait`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Sequence
from typing import cast

import msgspec
import structlog

from configs.settings import GatewaySettings
from gateway.settlement_wait import Answer, SettlementWait
from processor.core.commands import Command, weight_of
from processor.flow import frames
from processor.flow.frames import (
    Answered,
    FrameSplitter,
    NotServing,
    Overloaded,
    Pending,
    Reply,
    RequestFrame,
    Result,
    Settled,
    StaleEpoch,
)
from processor.storage.directory import ShardEntry

RECONNECT_S = 0.05
CONNECT_S_MAX = 5.0

log = structlog.get_logger("shard_client")


class OutcomeUnknown(Exception):
    """
    Sent, and no answer came in time: the same key gives the one true outcome.
    """


class ShardUnavailable(Exception):
    """
    Not sent in time, so nothing was applied.
    """


class ShardOverloaded(Exception):
    """
    Nothing was applied: the queue is full, or a channel to another shard is.
    """

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__(f"try again in {retry_after_ms} ms")
        self.retry_after_ms = retry_after_ms


class ShardClientStatistics(msgspec.Struct, frozen=True):
    """
    A moment of one connection. Counts are since the start.
    """

    shard_id: int
    connected: bool
    epoch: int
    queued_commands: int
    frames_in_flight: int
    frame_count: int
    command_count: int
    resent_command_count: int
    pending_answer_count: int


class Group:
    """
    Commands that are sent together and answered together; `weight` is what they cost.

    `sent_count` is of sendings that may have been applied: all but those that were refused whole.
    """

    __slots__ = ("answer", "commands", "deadline", "sent_count", "weight")

    def __init__(
        self, commands: Sequence[Command], answer: Answer, deadline: float, *, in_doubt: bool
    ) -> None:
        self.commands = commands
        self.weight = weight_of(commands)
        self.answer = answer
        self.deadline = deadline
        self.sent_count = 1 if in_doubt else 0

    @property
    def was_in_doubt(self) -> bool:
        """
        Say of an answered group whether an earlier sending may have been applied as well.
        """
        return self.sent_count > 1

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class ShardClient:
    """
    One shard, seen from one gateway.
    """

    def __init__(self, shard_id: int, secret: bytes, settings: GatewaySettings) -> None:
        self.shard_id = shard_id
        self._secret = secret
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Group] = deque()
        self._queued_commands = 0
        self._in_flight: dict[int, list[Group]] = {}
        self._connection: GatewayConnection | None = None
        self._endpoint: str | None = None
        self._attempt: asyncio.Timeout | None = None  # To connect.
        self._epoch = 0
        self._endpoint_changed = asyncio.Event()
        self._flush_due = False
        self._frame_id = 0
        self._frame_count = 0
        self._command_count = 0
        self._resent_command_count = 0
        self._settlements = SettlementWait()

    def submit(
        self, commands: Sequence[Command], deadline: float, *, in_doubt: bool = False
    ) -> Group:
        """
        Queue *commands* for the next frame and return the group with its future answer.

        *deadline* is in loop time. *in_doubt* says that an earlier sending, to this shard or
        another, may have been applied; such commands are never called "not applied".
        """
        answer: Answer = self._loop.create_future()
        group = Group(commands, answer, deadline, in_doubt=in_doubt)
        queued = self._queued_commands + group.weight
        if queued > self._settings.queued_commands_max and not in_doubt:
            answer.set_exception(ShardOverloaded(retry_after_ms=100))
            return group
        self._waiting.append(group)
        self._queued_commands = queued
        self._flush_soon()
        return group

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        connection = self._connection
        if connection is None:
            return
        while self._waiting and len(self._in_flight) < self._settings.frames_in_flight_max:
            groups, commands = self._next_frame()
            if not groups:
                return
            self._frame_id += 1
            self._frame_count += 1
            self._command_count += len(commands)
            self._in_flight[self._frame_id] = groups
            connection.send(RequestFrame(self._frame_id, self.shard_id, self._epoch, commands))

    def _next_frame(self) -> tuple[list[Group], list[Command]]:
        groups: list[Group] = []
        commands: list[Command] = []
        weight = 0
        while self._waiting:
            group = self._waiting[0]
            weight += group.weight
            if commands and weight > frames.FRAME_COMMANDS_MAX:
                break
            self._waiting.popleft()
            self._queued_commands -= group.weight
            if group.sent_count:
                self._resent_command_count += len(group.commands)
            group.sent_count += 1
            groups.append(group)
            commands.extend(group.commands)
        return groups, commands

    def take_reply(self, reply: Reply) -> None:
        if isinstance(reply, Settled):
            self._settlements.settle(reply.results)
            return
        groups = self._in_flight.pop(reply.frame_id, None)
        if groups is None:
            return
        match reply:
            case Answered():
                start = 0
                for group in groups:
                    end = start + len(group.commands)
                    if not group.answer.done():
                        self._answer(group, reply.results[start:end])
                    start = end
            case Overloaded():
                if self._refuse(groups, reply.retry_after_ms):
                    self._loop.call_later(RECONNECT_S, self._flush_soon)
                    return
            case StaleEpoch():
                self._epoch = reply.epoch
                self._put_back(groups, applied=False)
            case NotServing():
                # Draining: a successor will publish its endpoint. Ask again, but not at once.
                self._put_back(groups, applied=False)
                self._loop.call_later(RECONNECT_S, self._flush_soon)
                return
        if self._waiting:
            self._flush_soon()

    def _answer(self, group: Group, results: list[Result]) -> None:
        if Pending not in map(type, results):
            group.answer.set_result(results)
            return
        left_s = group.deadline - self._loop.time()
        wait_s = min(self._settings.settlement_wait_ms / 1000, left_s)
        self._settlements.hold(group.answer, results, wait_s)

    def _refuse(self, groups: list[Group], retry_after_ms: int) -> bool:
        """
        Tell who can be told; return whether the others have to be asked for again.
        """
        in_doubt = []
        for group in groups:
            if group.sent_count == 1:
                group.fail(ShardOverloaded(retry_after_ms))
            else:
                # An earlier sending may have been applied: only the shard can tell.
                in_doubt.append(group)
        self._put_back(in_doubt, applied=False)
        return bool(in_doubt)

    def _put_back(self, groups: list[Group], *, applied: bool) -> None:
        for group in reversed(groups):
            if not applied:
                group.sent_count -= 1
            self._waiting.appendleft(group)
            self._queued_commands += group.weight

    def connection_lost(self, connection: GatewayConnection) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._settlements.give_up()
        # Who was told "unknown" already may have asked for something else since: an old wallet
        # command that is sent again then would undo it.
        in_doubt = [
            group
            for groups in self._in_flight.values()
            for group in groups
            if not group.answer.done()
        ]
        self._in_flight.clear()
        self._put_back(in_doubt, applied=True)
        self._endpoint_changed.set()

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.abort()

    def entry_changed(self, entry: ShardEntry) -> None:
        """
        Take in what the directory says of this shard.
        """
        self._epoch = max(entry.epoch, self._epoch)
        # Without an endpoint it is being taken over; where it was may still be where it will be.
        if entry.endpoint is not None and entry.endpoint != self._endpoint:
            self._endpoint = entry.endpoint
            self._drop_connection()
            if self._attempt is not None and not self._attempt.expired():
                # A machine that is gone does not even refuse; the shard is elsewhere by now.
                self._attempt.reschedule(self._loop.time())
        self._endpoint_changed.set()

    async def stay_connected(self) -> None:
        """
        Keep one connection to wherever the shard is served.
        """
        while True:
            self._endpoint_changed.clear()
            if self._connection is None and self._endpoint is not None:
                try:
                    await self._connect(self._endpoint)
                except (TimeoutError, OSError) as error:
                    log.info("shard not reached", shard_id=self.shard_id, error=str(error))
                    await asyncio.sleep(RECONNECT_S)
                    continue
            # Not `wait_for`: in Python 3.11 it can swallow the cancellation that ends this task.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._endpoint_changed.wait()

    async def _connect(self, endpoint: str) -> None:
        connection = GatewayConnection(self, self._secret)
        kind, _, address = endpoint.partition(":")
        try:
            async with asyncio.timeout(CONNECT_S_MAX) as self._attempt:
                if kind == "unix":
                    await self._loop.create_unix_connection(lambda: connection, address)
                else:
                    host, _, port = address.rpartition(":")
                    await self._loop.create_connection(lambda: connection, host, int(port))
                await connection.trusted
        except BaseException:
            connection.abort()
            raise
        finally:
            self._attempt = None
        if not connection.is_open or endpoint != self._endpoint:
            # Lost again, or the shard moved, before this task had its turn.
            connection.abort()
            raise ConnectionError("the shard is not there any more")
        self._connection = connection
        self._flush_soon()

    def expire(self, now: float) -> None:
        """
        Give up on every group whose deadline has passed.
        """
        kept: deque[Group] = deque()
        for group in self._waiting:
            if group.deadline <= now:
                group.fail(_deadline_error(group))
                self._queued_commands -= group.weight
            else:
                kept.append(group)
        self._waiting = kept
        for groups in self._in_flight.values():
            for group in groups:
                if group.deadline <= now:
                    group.fail(_deadline_error(group))

    def close(self) -> None:
        self._drop_connection()

    def statistics(self) -> ShardClientStatistics:
        return ShardClientStatistics(
            shard_id=self.shard_id,
            connected=self._connection is not None,
            epoch=self._epoch,
            queued_commands=self._queued_commands,
            frames_in_flight=len(self._in_flight),
            frame_count=self._frame_count,
            command_count=self._command_count,
            resent_command_count=self._resent_command_count,
            pending_answer_count=self._settlements.told_pending_count,
        )


def _deadline_error(group: Group) -> Exception:
    return deadline_error(in_doubt=group.sent_count > 0)


def deadline_error(*, in_doubt: bool) -> OutcomeUnknown | ShardUnavailable:
    """
    Say at the deadline what is known of a command.
    """
    if in_doubt:
        return OutcomeUnknown("no answer in time")
    return ShardUnavailable("the shard was not reached in time")


class GatewayConnection(asyncio.Protocol):
    """
    One connection to a shard: the handshake, then frames.
    """

    def __init__(self, client: ShardClient, secret: bytes) -> None:
        self.trusted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client = client
        self._secret = secret
        self._splitter = FrameSplitter()
        self._server_nonce = b""
        self._client_nonce = secrets.token_bytes(frames.NONCE_BYTES)
        self._transport: asyncio.WriteTransport | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.trusted.done():
            self.trusted.set_exception(ConnectionError(f"the shard hung up: {exc}"))
            # Whoever waited may be gone already; nobody else is to be told.
            self.trusted.exception()
        self._transport = None
        self._client.connection_lost(self)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._splitter.feed(data):
                self._take(message)
        except (frames.FrameTooLarge, msgspec.DecodeError) as error:
            log.warning("connection dropped", error=f"{type(error).__name__}: {error}")
            self.abort()

    def _take(self, message: bytes) -> None:
        if self.trusted.done():
            self._client.take_reply(frames.decode_reply(message))
        elif not self._server_nonce:
            self._server_nonce = message
            proof = frames.client_proof(self._secret, message, self._client_nonce)
            assert self._transport is not None
            self._transport.write(frames.with_length(self._client_nonce + proof))
        else:
            expected = frames.server_proof(self._secret, self._server_nonce, self._client_nonce)
            if frames.same_proof(message, expected):
                self.trusted.set_result(None)
            else:
                self.abort()

    def send(self, frame: RequestFrame) -> None:
        if self._transport is not None:
            self._transport.write(frames.with_length(frames.encode(frame)))

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
