"""
Goal: what every transfer costs stays what it is: deciding and applying, journaling, telling the
      tables.
Method: pytest-benchmark on a thousand transfers between a hundred wallets. The bounds are loose
        and in units of a loop of plain Python that runs right before, so a slow or busy machine
        slows both; they fail on a mistake of the kind that makes a thing several times slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture

from processor.core.apply import apply_posted
from processor.core.commands import MoveMoney
from processor.core.decide import decide_move
from processor.core.decisions import (
    DECISION_FORMAT,
    Decision,
    TransferPosted,
    decode_decisions,
    encode_decisions,
)
from processor.core.record import GENESIS_CHAIN, seal
from processor.core.state import ShardState
from processor.flow.batch import Batch
from processor.flow.frames import Reply, RequestFrame
from processor.storage.projection import Round
from tests.support.commands import AT_US, state_of, transfer, wallet

TRANSFERS = 1_000
WALLETS = 100
ROUNDS = 25

COMMANDS = [
    transfer(f"w{number % WALLETS}", f"w{number * 7 % WALLETS + WALLETS}", 1, key=str(number))
    for number in range(TRANSFERS)
]


class Point:
    __slots__ = ("x", "y")

    def __init__(self) -> None:
        self.x = self.y = 1


def calibrate() -> float:
    """
    Time a thousand turns of calls, attributes and dicts, the stuff the ledger is made of.
    """

    def move(point: Point, number: int) -> int:
        point.x = point.y + number
        return point.x

    point = Point()
    table: dict[str, int] = {}
    started = time.perf_counter()
    for number in range(TRANSFERS):
        table[f"w{number % WALLETS}"] = move(point, number)
        assert table.get("nobody") is None
    return time.perf_counter() - started


def fresh_state() -> ShardState:
    return state_of(*[wallet(f"w{number}", 10**6) for number in range(2 * WALLETS)])


def with_fresh_state() -> tuple[tuple[ShardState], dict[str, object]]:
    """
    Give a call's arguments, as pytest-benchmark wants them.
    """
    return (fresh_state(),), {}


def decided(state: ShardState) -> list[Decision]:
    decisions: list[Decision] = []
    for command in COMMANDS:
        decision = decide_move(state, command, AT_US)
        assert isinstance(decision, TransferPosted)
        apply_posted(state, decision, 1, AT_US)
        decisions.append(decision)
    return decisions


def measure(
    benchmark: BenchmarkFixture, call: Callable[..., object], *, ratio_max: float, fresh: bool
) -> None:
    """
    Run *call*, with a state of its own each time if it wants one, and hold its best time
    against the best of the calibration.
    """
    best = min(calibrate() for _ in range(ROUNDS))
    run: Callable[..., object] = benchmark.pedantic
    run(
        call,
        setup=with_fresh_state if fresh else None,
        rounds=ROUNDS,
        iterations=1,
        warmup_rounds=1,
    )
    if benchmark.stats is None:
        return  # Measuring is switched off.
    ratio = benchmark.stats.stats.min / best
    benchmark.extra_info["ratio_to_plain_python"] = round(ratio, 2)
    assert ratio < ratio_max, f"{ratio:.1f} times the plain loop, {ratio_max} allowed"


def test_decide_and_apply(benchmark: BenchmarkFixture) -> None:
    """
    The whole ledger's part of a transfer.
    """
    measure(benchmark, decided, ratio_max=12, fresh=True)


def test_batch_of_a_frame(benchmark: BenchmarkFixture) -> None:
    """
    The same with its results, from frame to released replies.
    """
    commands: list[MoveMoney] = COMMANDS

    def run(state: ShardState) -> None:
        batch = Batch(1)
        batch.at_us = AT_US
        replies: list[Reply] = []
        batch.add(state, RequestFrame(1, 0, 1, list(commands)), replies.append)
        batch.release()
        assert len(replies) == 1

    measure(benchmark, run, ratio_max=15, fresh=True)


def test_encode_and_seal(benchmark: BenchmarkFixture) -> None:
    """
    A record out of a batch's decisions.
    """
    decisions = decided(fresh_state())

    def run() -> None:
        seal(
            shard_id=0,
            sequence=1,
            epoch=1,
            at_us=AT_US,
            count=len(decisions),
            decision_format=DECISION_FORMAT,
            payload=encode_decisions(decisions),
            previous_chain=GENESIS_CHAIN,
        )

    measure(benchmark, run, ratio_max=3, fresh=False)


def test_decode(benchmark: BenchmarkFixture) -> None:
    """
    A record's decisions, as recovery and write-behind read them.
    """
    payload = encode_decisions(decided(fresh_state()))
    measure(
        benchmark,
        lambda: decode_decisions(payload, DECISION_FORMAT),
        ratio_max=3.5,
        fresh=False,
    )


def test_round_of_write_behind(benchmark: BenchmarkFixture) -> None:
    """
    A record turned into rows.
    """
    decisions = decided(fresh_state())
    record = seal(
        shard_id=0,
        sequence=1,
        epoch=1,
        at_us=AT_US,
        count=len(decisions),
        decision_format=DECISION_FORMAT,
        payload=encode_decisions(decisions),
        previous_chain=GENESIS_CHAIN,
    )
    measure(benchmark, lambda: Round().add(record), ratio_max=10, fresh=False)
