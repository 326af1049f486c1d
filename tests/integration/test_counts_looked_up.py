"""
Goal: what a shard has forgotten of holds, refunds and linked transfers it finds in Postgres as it
      was, and a new owner begins with what is open.
Method: a shard that has room for nothing that may go, on a real database with its write-behind
        close behind; then its successor.
"""

from __future__ import annotations

from typing import Any

from configs.settings import ShardSettings, WriteBehindSettings
from processor.core.hold import HoldStatus
from processor.core.reject_reason import RejectReason
from processor.flow.frames import HoldFound, LinkedMoved, Posted, Rejected, Result, WalletFound
from processor.storage.projection import Projection
from tests.support.books import read_balanced_tables
from tests.support.bound_commands import (
    capture,
    fee_leg,
    leg,
    linked,
    place,
    read_hold,
    refund,
    void,
)
from tests.support.commands import deposit, identifier, open_wallet, read_wallet, transfer
from tests.support.local_shard import LocalShard, owning
from tests.support.waiting import until

SETTINGS = ShardSettings(wallets_max=0, keys_recent_max=1, counts_max=0)

OPEN = place("alice", 100, key="open", destination="shop", lifetime_s=3_600)
ENDED = place("alice", 50, key="ended")
SPLIT = linked(leg("alice", "bob", 5), leg("alice", "shop", 6), fee_leg("alice", 1))


def only(results: list[Result], kind: type[Any]) -> Any:
    (result,) = results
    assert isinstance(result, kind), result
    return result


def back(amount: int, key: str) -> Any:
    return refund("paid", "bob", "alice", amount, refundable=30, key=key)


async def forgotten(shard: LocalShard, projection: Projection) -> None:
    """
    Let the tables come near, and work until memory has given back what may go.
    """
    gone = {ENDED.hold_id, identifier("transfer of paid")}

    async def is_gone() -> bool:
        name = f"other work {shard.shard.statistics().sequence}"
        placed = place("bob", 1, key=f"hold of {name}")
        await shard.ask(
            deposit("bob", 1, key=name),
            placed,
            void(placed.hold_id, key=f"void of {name}"),
            refund(name, "bob", "nobody", 1, refundable=0, key=f"refund of {name}"),
        )
        while await projection.step():
            pass
        state = shard.shard._state
        known = {*state.holds, *state.refunds}
        return known.isdisjoint(gone) and "alice" in state.wallets and "shop" not in state.wallets

    await until(is_gone, "memory to give back")


async def test_what_was_forgotten_is_found(database: str) -> None:
    """
    Holds by id and by key, the cap of refunds, and the legs of a key; before and after a restart.
    """
    projection = Projection(database, 0, WriteBehindSettings())
    await projection.open()
    async with owning(database, SETTINGS) as shard:
        await shard.ask(*(open_wallet(name) for name in ("alice", "bob", "shop")))
        await shard.ask(deposit("alice", 1_000, key="first"), OPEN, ENDED)
        await shard.ask(
            void(ENDED.hold_id), transfer("alice", "bob", 30, key="paid"), back(20, "back")
        )
        moved = only(await shard.ask(SPLIT), LinkedMoved)
        await forgotten(shard, projection)
        await check(shard, moved, "once")
        await forgotten(shard, projection)
    async with owning(database, SETTINGS) as successor:
        await check(successor, moved, "again")
        posted = only(
            await successor.ask(capture(OPEN.hold_id, 60, key="last", is_final=True)), Posted
        )
        assert posted.filled_in.destination == "shop"
        while await projection.step():
            pass
    projection.close()
    await read_balanced_tables(database)


async def check(shard: LocalShard, moved: LinkedMoved, when: str) -> None:
    ended = only(await shard.ask(read_hold(ENDED.hold_id)), HoldFound)
    assert ended.hold.status == HoldStatus.VOIDED
    assert only(await shard.ask(void(ENDED.hold_id)), HoldFound).repeated
    assert only(await shard.ask(ENDED), HoldFound).hold.status == HoldStatus.VOIDED
    still = only(await shard.ask(OPEN), HoldFound)
    assert (still.repeated, still.hold.kept, still.held) == (True, 100, 100)
    refused = only(await shard.ask(back(11, f"too much {when}")), Rejected)
    assert (refused.reason, refused.short_by) == (RejectReason.REFUND_EXCEEDS_PAID, 1)
    again = only(await shard.ask(SPLIT), LinkedMoved)
    assert again.repeated
    assert again.sources == moved.sources
    assert only(await shard.ask(read_wallet("alice")), WalletFound).available == 878
