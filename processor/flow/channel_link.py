"""
What two shards say to each other over a channel, and what either end makes of it.

The source connects and greets; the destination answers how far it is, with the answers that the
source may have missed; then entries flow one way and answers the other, both in their order.

Rule 1: everything said here is an effect of a durable record: a greeting, an entry, an answer.
        So a crash on either side takes back nothing that the other has heard.
Rule 2: what comes twice is answered again and does nothing, what comes too early ends the
        connection, and the next greeting starts from what both sides have.
Rule 3: two ends that contradict each other are `ChannelBroken`: who finds it says `Broken`, and
        both shards halt.
Rule 4: at most so many entries are sent and not answered, and one that is large, a slot or many
        legs, is the last of its frame.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from processor.core.channel import (
    AnyEntry,
    ChannelBroken,
    InChannel,
    OutChannel,
    PrepareEntry,
    SlotEntry,
    entry_sent,
    next_link,
)

ENTRIES_A_FRAME_MAX = 2_000
ENTRIES_IN_FLIGHT_MAX = 8_000
LEGS_A_FRAME_MAX = 2_000  # Each may have a kibibyte of metadata.


class OutOfOrder(Exception):
    """
    Something between was lost: the connection is dropped and made anew.
    """


class Greeting(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """
    The source's end: which shard it is, and how far it has settled and sent.
    """

    source: int
    settled: int
    settled_chain: bytes
    head: int


class Welcome(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """
    The destination's end, and its answers after what the source has settled.
    """

    cursor: int
    chain: bytes
    answers: list[int]


class Entries(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """
    Entries in order; `chain` is that up to the last, `settled` how far answers may be forgotten.
    """

    entries: Annotated[list[AnyEntry], msgspec.Meta(min_length=1, max_length=ENTRIES_A_FRAME_MAX)]
    chain: bytes
    settled: int


class Answers(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """
    What became of the entries from `first` on: 0 for taken, the reason of a refusal, or where the
    slot is.
    """

    first: Annotated[int, msgspec.Meta(ge=1)]
    answers: list[int]


class Broken(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """
    The two ends contradict each other: who says this halts, and who hears it has to.
    """

    why: str


Effect = Greeting | Welcome | Entries | Answers | Broken

encode = msgspec.msgpack.Encoder().encode
decode_effect = msgspec.msgpack.Decoder(Effect).decode


def greet(shard_id: int, channel: OutChannel) -> Greeting:
    return Greeting(shard_id, channel.settled, channel.settled_chain, channel.head)


def welcome(channel: InChannel, greeting: Greeting) -> Welcome:
    """
    Answer a greeting at the destination; raises ChannelBroken.
    """
    where = f"channel from shard {greeting.source}"
    if not greeting.settled <= channel.cursor <= greeting.head:
        raise ChannelBroken(
            f"{where}: it has settled {greeting.settled} and sent {greeting.head}, "
            f"here it is at {channel.cursor}: one side was set back"
        )
    if greeting.settled == channel.cursor and greeting.settled_chain != channel.chain:
        raise ChannelBroken(f"{where}: other entries up to {channel.cursor} than here")
    answers = channel.answers(greeting.settled + 1, channel.cursor)
    return Welcome(channel.cursor, channel.chain, answers)


def new_entries(channel: InChannel, frame: Entries) -> list[AnyEntry]:
    """
    Return the entries that are not decided yet; raises OutOfOrder or ChannelBroken.
    """
    if frame.settled > channel.cursor:
        raise ChannelBroken(
            f"channel from shard {channel.peer}: it has settled {frame.settled}, here it is at "
            f"{channel.cursor}"
        )
    fresh = [entry for entry in frame.entries if entry.number > channel.cursor]
    chain = channel.chain
    for number, entry in enumerate(fresh, channel.cursor + 1):
        if entry.number != number:
            raise OutOfOrder(f"entry {number} was expected, {entry.number} came")
        chain = next_link(chain, entry)
    if fresh and chain != frame.chain:
        raise ChannelBroken(f"channel from shard {channel.peer}: another chain at {number}")
    return fresh


class OutgoingLink:
    """
    The source's side of one connection to a peer, from its greeting to its end.

    `durable_head` and `durable_settled` come from the batches that are durable; nothing above
    them is said.
    """

    def __init__(
        self, channel: OutChannel, entries_in_flight_max: int = ENTRIES_IN_FLIGHT_MAX
    ) -> None:
        self._channel = channel
        self._entries_in_flight_max = entries_in_flight_max
        self._sent: int | None = None  # None until the peer has said how far it is.
        self.durable_head = channel.head
        self.durable_settled = channel.settled

    def made_durable(self, head: int, settled: int) -> None:
        self.durable_head, self.durable_settled = head, settled

    def dropped(self) -> None:
        """
        Forget what was sent: the connection ended.
        """
        self._sent = None

    def take_welcome(self, said: Welcome) -> list[int]:
        """
        Compare the ends and return the answers not settled yet; raises ChannelBroken.
        """
        channel = self._channel
        if said.cursor < channel.settled:
            # An old welcome, or a peer that was set back: only the next greeting can tell.
            raise OutOfOrder(f"welcome at {said.cursor}, {channel.settled} is settled")
        if channel.chain_at(said.cursor) != said.chain:
            raise ChannelBroken(
                f"channel to shard {channel.peer}: other entries up to {said.cursor} than here"
            )
        self._sent = said.cursor
        return self.take_answers(Answers(said.cursor - len(said.answers) + 1, said.answers))

    def next_entries(self) -> Entries | None:
        """
        Return the next entries to send, if the peer may have any.
        """
        channel = self._channel
        if self._sent is None:
            return None
        # What an earlier connection brought late may be answered before it is sent on this one.
        first = max(self._sent, channel.settled) + 1
        last = min(
            self.durable_head,
            first - 1 + ENTRIES_A_FRAME_MAX,
            channel.settled + self._entries_in_flight_max,
        )
        entries: list[AnyEntry] = []
        legs = 0
        for number in range(first, last + 1):
            entry = entry_sent(channel.outbox[number])
            entries.append(entry)
            if isinstance(entry, PrepareEntry):
                legs += len(entry.parts)
            if isinstance(entry, SlotEntry) or legs >= LEGS_A_FRAME_MAX:
                break  # What comes after it waits for the next frame.
        if not entries:
            return None
        self._sent = entries[-1].number
        return Entries(entries, channel.outbox[self._sent].chain, self.durable_settled)

    def take_answers(self, said: Answers) -> list[int]:
        """
        Return the answers that are not settled yet; raises OutOfOrder or ChannelBroken.
        """
        settled = self._channel.settled
        if said.first > settled + 1:
            raise OutOfOrder(f"answer {settled + 1} was expected, {said.first} came")
        if said.first + len(said.answers) - 1 > self.durable_head:
            raise ChannelBroken(
                f"channel to shard {self._channel.peer}: it answers more than the "
                f"{self.durable_head} entries that it can have"
            )
        return said.answers[settled + 1 - said.first :]
