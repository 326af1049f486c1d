"""
The channels from this shard to its peers, and the connections they are on.

Rule 1: nothing is sent that is not durable: a greeting leaves through the gate of a batch, and
        entries up to the end that the last durable batch has told (`made_durable`).
Rule 2: one connection a peer, and each begins with a greeting.
Rule 3: a peer that is down costs this shard a connection attempt now and then, nothing else.
A connection is made when there is something for the peer, or ever was, and it stays.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import structlog

from actors.peer_connection import PeerConnection, connect_peer
from actors.peer_intake import PeerIntake, Said, Speaker
from processor.core.channel import ChannelBroken, OutChannel
from processor.core.state import ShardState
from processor.flow.batch import Batch
from processor.flow.channel_link import (
    Answers,
    Broken,
    Effect,
    Entries,
    Greeting,
    OutgoingLink,
    OutOfOrder,
    Welcome,
)

RECONNECT_S = 0.02
RECONNECT_S_MAX = 1.0
LOOK_S_MAX = 1.0

log = structlog.get_logger("peer_links")


class PeerLink:
    """
    The channel to one peer, and its connection while there is one.
    """

    def __init__(
        self, channel: OutChannel, secret: bytes, intake: PeerIntake, in_flight_max: int
    ) -> None:
        self.peer = channel.peer
        self.outgoing = OutgoingLink(channel, in_flight_max)
        self._secret = secret
        self._intake = intake
        self._endpoint: str | None = None
        self._connection: PeerConnection | None = None
        self._changed = asyncio.Event()
        self._pause_s = RECONNECT_S

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    def moved_to(self, endpoint: str) -> None:
        """
        Take in where the peer is served now.
        """
        if endpoint != self._endpoint:
            self._endpoint = endpoint
            self._pause_s = RECONNECT_S
            if self._connection is not None:
                self._connection.abort()
            self._changed.set()

    def heard(self, connection: PeerConnection, said: Effect) -> None:
        self._intake.put(connection, said)

    def drained(self) -> None:
        self.send()

    def lost(self, connection: PeerConnection) -> None:
        if connection is self._connection:
            self._connection = None
            self.outgoing.dropped()
            self._changed.set()

    def unsettled(self, said: Welcome | Answers) -> list[int]:
        """
        Return what of *said* would be settled; nothing when it does not fit.
        """
        if isinstance(said, Welcome):
            said = Answers(said.cursor - len(said.answers) + 1, said.answers)
        try:
            return self.outgoing.take_answers(said)
        except (OutOfOrder, ChannelBroken):
            return []  # `decide` will say so.

    def take(self, said: Welcome | Answers) -> list[int]:
        """
        Return the answers that are not settled yet; raises OutOfOrder or ChannelBroken.
        """
        if isinstance(said, Answers):
            return self.outgoing.take_answers(said)
        self._pause_s = RECONNECT_S
        return self.outgoing.take_welcome(said)

    def send(self) -> None:
        """
        Send all that is durable and that the peer may have.
        """
        while self._connection is not None and self._connection.has_room:
            entries = self.outgoing.next_entries()
            if entries is None:
                return
            self._connection.say(entries)

    async def stay_connected(self) -> None:
        """
        Keep one connection to wherever the peer is served.
        """
        while True:
            self._changed.clear()
            if self._connection is None and self._endpoint is not None:
                await self._try_to_connect(self._endpoint)
                # Also after success: a peer that hangs up at once is not called at once.
                await asyncio.sleep(self._pause_s)
                self._pause_s = min(self._pause_s * 2, RECONNECT_S_MAX)
                if self._connection is None:
                    continue
            # Not `wait_for`: in Python 3.11 it can swallow the cancellation that ends this task.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S_MAX):
                    await self._changed.wait()

    async def _try_to_connect(self, endpoint: str) -> None:
        attempt = asyncio.create_task(connect_peer(endpoint, self.peer, self._secret, self))
        # A machine that is off keeps one waiting, though the peer may be elsewhere by now.
        moved = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({attempt, moved}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            moved.cancel()
            if not attempt.done():
                attempt.cancel()
        if not attempt.done():
            return
        try:
            connection = attempt.result()
        except (TimeoutError, OSError) as error:
            log.info("peer not reached", peer=self.peer, error=str(error))
            return
        if not connection.is_open or endpoint != self._endpoint:
            connection.abort()
            return
        self._connection = connection
        self._intake.put(connection, None)

    def close(self) -> None:
        """
        Hang up when all that was said has been sent, and stay so.
        """
        self._endpoint = None
        if self._connection is not None:
            self._connection.close()


class PeerLinks:
    """
    All links of a shard.
    """

    def __init__(self, secret: bytes, intake: PeerIntake, in_flight_max: int) -> None:
        self._secret = secret
        self._intake = intake
        self._in_flight_max = in_flight_max
        self._links: dict[int, PeerLink] = {}
        self._greeted: dict[int, int] = {}  # By source: the newest connection that has greeted.
        self._endpoints: dict[int, str] = {}
        self._new: list[PeerLink] = []
        self._has_new = asyncio.Event()
        self._is_closed = False

    async def run(self) -> None:
        """
        Keep every link connected, those that are opened later too.
        """
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._has_new.clear()
                for link in self._new:
                    tasks.create_task(link.stay_connected())
                self._new.clear()
                await self._has_new.wait()

    def recovered(self, state: ShardState) -> None:
        """
        Open a link to each peer that was ever sent something; all of *state* is durable.

        Also where nothing is on its way: the greeting shows whether one of the two was set back.
        """
        for channel in list(state.channels.outgoing.values()):
            if channel.head:
                self._open(channel)

    def endpoints_changed(self, endpoints: Mapping[int, str]) -> None:
        """
        Take in where shards are served.
        """
        if self._is_closed:
            return
        self._endpoints.update(endpoints)
        for peer, endpoint in endpoints.items():
            if peer in self._links:
                self._links[peer].moved_to(endpoint)

    def made_durable(self, state: ShardState, ends: Mapping[int, tuple[int, int]]) -> None:
        """
        Send what a batch that is durable now has put on its way.
        """
        for peer, (head, settled) in ends.items():
            link = self._links.get(peer) or self._open(state.channels.to(peer))
            # A link that is new has taken the channel's end in memory, which may be further.
            link.outgoing.made_durable(head, settled)
            link.send()

    def _open(self, channel: OutChannel) -> PeerLink:
        link = PeerLink(channel, self._secret, self._intake, self._in_flight_max)
        self._links[channel.peer] = link
        if channel.peer in self._endpoints:
            link.moved_to(self._endpoints[channel.peer])
        self._new.append(link)
        self._has_new.set()
        return link

    def decide(self, state: ShardState, batch: Batch, speaker: Speaker, said: Said) -> None:
        """
        Execute what a peer said on *state*; raises OutOfOrder or ChannelBroken.
        """
        match said:
            case None:
                batch.add_greeting(state, speaker.peer, speaker.say)
            case Greeting():
                if self._greeted.get(said.source, 0) > speaker.number:
                    # Of a source that is gone: its ends are old, and contradict nothing.
                    raise OutOfOrder("a newer connection has greeted")
                self._greeted[said.source] = speaker.number
                batch.add_welcome(state, said, speaker.say)
            case Entries():
                batch.add_entries(state, speaker.peer, said, speaker.say)
            case Welcome() | Answers():
                link = self._links.get(speaker.peer)
                if link is None:
                    raise OutOfOrder("an answer to what was never sent")
                answers = link.take(said)
                if answers:
                    batch.add_answers(state, speaker.peer, answers)
                link.send()
            case Broken(why):
                raise ChannelBroken(f"shard {speaker.peer} says: {why}")

    def unsettled(self, speaker: Speaker, said: Welcome | Answers) -> list[int]:
        """
        Return the answers that `decide` will settle, to load their wallets before it.
        """
        link = self._links.get(speaker.peer)
        return link.unsettled(said) if link is not None else []

    def connected(self) -> list[int]:
        """
        List the peers that are connected.
        """
        return [peer for peer, link in self._links.items() if link.is_connected]

    def close(self) -> None:
        self._is_closed = True
        self._endpoints.clear()
        for link in self._links.values():
            link.close()
