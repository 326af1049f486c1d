"""
How a shard gets its state back: the tables at the watermark, then the journal behind them.

Rule: every record is checked before it is applied, and the state is checked at the end. What
cannot be explained is `BrokenChain` or one of `UNEXPLAINED`, never a guess.
"""

from __future__ import annotations

import msgspec

from processor.core.apply import apply, wallets_touched
from processor.core.decisions import decode_decisions
from processor.core.invariants import broken_channels, broken_wallets
from processor.core.record import BrokenChain, Record, check_link
from processor.core.slots import SlotMap
from processor.core.state import ShardState
from processor.flow.ports import Fenced, RecoveryView, ShardStore
from processor.flow.recovery import restore

UNEXPLAINED = (BrokenChain, AssertionError, KeyError, ValueError)


class Recovered(msgspec.Struct):
    """
    A shard as its journal says, with the end of the journal.

    `lagging` has the sequences above the watermark, each with its number of commands.
    """

    state: ShardState
    sequence: int
    chain: bytes
    epoch: int
    at_us: int
    watermark: int
    lagging: list[tuple[int, int]]


async def recover(store: ShardStore, shard_id: int, slot_map: SlotMap) -> Recovered:
    """
    Read the state of a shard that was taken over; *slot_map* says where others' slots may be.

    Raises Fenced, StoreUnavailable, or one of `UNEXPLAINED`.
    """
    async with store.recovery_view() as view:
        snapshot = await view.load_snapshot()
        recovered = Recovered(
            state=restore(shard_id, slot_map, snapshot),
            sequence=view.watermark,
            chain=view.watermark_chain,
            epoch=view.watermark_epoch,
            at_us=view.watermark_at_us,
            watermark=view.watermark,
            lagging=[],
        )
        async for record in view.records():
            _check(recovered, record, store.epoch)
            await _replay(recovered.state, view, record)
            recovered.sequence, recovered.chain = record.sequence, record.chain
            recovered.epoch, recovered.at_us = record.epoch, record.at_us
            recovered.lagging.append((record.sequence, record.count))
    state = recovered.state
    broken = [*broken_wallets(state.wallets.values()), *broken_channels(state)]
    if broken:
        raise BrokenChain(f"the replayed state breaks a rule: {broken[0]}")
    return recovered


def _check(before: Recovered, record: Record, own_epoch: int) -> None:
    check_link(record, after_sequence=before.sequence, after_chain=before.chain)
    if record.epoch > own_epoch:
        raise Fenced(f"sequence {record.sequence} is of epoch {record.epoch}")
    if record.epoch < before.epoch or record.epoch == own_epoch:
        raise BrokenChain(f"sequence {record.sequence} is of epoch {record.epoch}")


async def _replay(state: ShardState, view: RecoveryView, record: Record) -> None:
    decisions = decode_decisions(record.payload, record.format)
    if len(decisions) != record.count:
        raise BrokenChain(f"sequence {record.sequence} has {len(decisions)} decisions")
    named = {name for decision in decisions for name in wallets_touched(state, decision)}
    missing = named.difference(state.wallets)
    if missing:
        for wallet in await view.load_wallets(missing):
            state.load(wallet)
    for decision in decisions:
        apply(state, decision, record.sequence, record.at_us)
