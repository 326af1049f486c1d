"""
The life of a transfer, as it is told, version 1; the rules are those of `gateway.wire`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.wire import Timestamp, Transfer

StepText = Literal[
    "posted",
    "rejected",
    "reserved",
    "credited",
    "refused",
    "elsewhere",
    "recalled",
    "settled",
    "released",
    "begun",
    "asked",
    "prepared",
    "voted",
    "called_back",
    "told",
    "followed",
    "confirmed",
    "done",
]


class WalletChange(msgspec.Struct, frozen=True):
    """
    What one of your wallets had before a step, and has after it.
    """

    wallet: str
    had: int
    has: int
    version: int


class Entry(msgspec.Struct, frozen=True):
    """
    The entry of a channel between two shards by which a step was asked for.
    """

    source: int
    destination: int
    number: int


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    One record that speaks of the transfer: when, at which shard, and what it says.
    """

    at: Timestamp
    shard: int
    sequence: int
    step: StepText
    text: str
    entry: Entry | None = None
    wallets: list[WalletChange] = []


class Check(msgspec.Struct, frozen=True):
    """
    The check that failed: `rule` is what it wants, `short_by` by how much it failed, where that is
    known of your own wallet, and `checks_before` those that come before it: when several fail on
    one side, the first of them is told.
    """

    reason: str
    rule: str
    text: str
    short_by: int | None
    checks_before: list[str]


class Explanation(msgspec.Struct, frozen=True):
    """
    The life of a transfer from the journals, the oldest step first. `refusal` is null unless it was
    rejected. `is_whole` is false when it took so long that not all records of that time were read.
    """

    transfer: Transfer
    steps: list[Step]
    refusal: Check | None
    is_whole: bool
