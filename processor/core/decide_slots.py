"""
Decisions on slots: giving one to another shard, and taking it there.

Rule 1: a slot leaves with all its wallets, their money and the outcomes that the tables may not
        have yet, as an entry of the channel to its new owner. Between the two it is nowhere.
Rule 2: it leaves only when nothing of it is on its way to other shards; so nobody but its owner
        ever has to settle anything for a wallet.
Rule 3: the new owner takes what comes, always. All that could speak against it is asked first.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from processor.core.amounts import BALANCE_MAX
from processor.core.channel import SlotEntry, next_link
from processor.core.commands import GiveSlot, TransferType
from processor.core.decisions import (
    CarriedOutcome,
    CarriedWallet,
    DuePosting,
    HoldExtended,
    HoldVoided,
    LinkedBegun,
    LinkedPosted,
    LinkedRejected,
    MoveDecision,
    SlotGiven,
    SlotTaken,
    TransferDecision,
    TransferReserved,
    as_carried,
    sums_of,
)
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.slots import slot_of, slot_of_hold
from processor.core.state import ShardState
from processor.core.wallet import Wallet, due_wallet_id, is_system_wallet

SLOT_ENTRY_BYTES_MAX = 4 * 1024 * 1024
# Half of the range for a peer's slots leaves the other half for transfers that are on their way.
SLOT_DUE_MAX = BALANCE_MAX // 2

ALREADY_HERE = "already_here"
TRANSFERS_PENDING = "transfers_pending"
BALANCE_OUT_OF_RANGE = "balance_out_of_range"
TOO_LARGE = "too_large"

_encode = msgspec.msgpack.Encoder().encode


class SlotStays(msgspec.Struct, frozen=True, gc=False):
    """
    The slot stays for now; `why` says for what.
    """

    why: str


def decide_give(state: ShardState, command: GiveSlot) -> SlotGiven | SlotStays:
    """
    Say whether a slot of this shard can go to another, and with what.

    Needs the slot's rows in memory, with their names in `state.leaving`.
    """
    slot, peer = command.slot, command.peer
    assert state.slots.owner(slot) == state.shard_id, "the slot is not here"
    if peer == state.shard_id:
        return SlotStays(ALREADY_HERE)
    wallets = _wallets_in(state, slot)
    if any(wallet.is_relied_on for wallet in wallets) or _is_key_open(state, slot):
        return SlotStays(TRANSFERS_PENDING)
    carried = [as_carried(wallet) for wallet in wallets]
    dues = postings_of_dues(state, peer, carried, sign=1)
    channel = state.channels.to(peer)
    if any(_may_come_to(state, peer, due) > SLOT_DUE_MAX for due in dues):
        return SlotStays(BALANCE_OUT_OF_RANGE)
    number, generation = channel.head + 1, state.slots.generation(slot) + 1
    entry = SlotEntry(
        number,
        slot,
        generation,
        carried,
        _outcomes_in(state, slot),
        _holds_in(state, slot),
        _refunds_in(state, slot),
    )
    if len(_encode(entry)) > SLOT_ENTRY_BYTES_MAX:
        return SlotStays(TOO_LARGE)
    chain = next_link(channel.chain, entry)
    return SlotGiven(
        peer,
        number,
        chain,
        slot,
        generation,
        entry.wallets,
        entry.outcomes,
        dues,
        entry.holds,
        entry.refunds,
    )


def _may_come_to(state: ShardState, peer: int, due: DuePosting) -> int:
    """
    Say how far from zero what *peer* is due may come after *due*, with all that is on its way and
    all that linked transfers may move that are not decided: they were judged before the slot left.
    """
    on_its_way = state.channels.to(peer).reserved.get(due.currency, 0)
    wallet = state.wallets.get(due_wallet_id(state.shard_id, peer, due.currency))
    undecided = max(wallet.incoming, wallet.reserved) if wallet is not None else 0
    return abs(due.balance + on_its_way) + undecided


def _is_key_open(state: ShardState, slot: int) -> bool:
    """
    Say whether a key that goes with *slot* stands for a linked transfer that is not done: what is
    posted relies on no wallet any more, but its outcome is to come.
    """
    return any(slot_of_outcome(linked.begun) == slot for linked in state.linked.values())


def decide_taken(state: ShardState, peer: int, entry: SlotEntry, chain: bytes) -> SlotTaken:
    """
    Take the slot that came from *peer*. Needs the wallets of what *peer* is due.
    """
    return SlotTaken(
        peer,
        entry.number,
        chain,
        entry.slot,
        entry.generation,
        entry.wallets,
        entry.outcomes,
        postings_of_dues(state, peer, entry.wallets, sign=-1),
        entry.holds,
        entry.refunds,
    )


def postings_of_dues(
    state: ShardState, peer: int, wallets: list[CarriedWallet], *, sign: int
) -> list[DuePosting]:
    """
    Say what *wallets* make of what *peer* is due: more where they leave (+1), less where they come.
    """
    postings = []
    for currency, amount in sums_of(wallets).items():
        due = state.wallets.get(due_wallet_id(state.shard_id, peer, currency))
        version, posted = (due.version, due.posted) if due is not None else (0, 0)
        postings.append(DuePosting(currency, amount, version + 1, posted + sign * amount))
    return postings


def slot_of_outcome(decision: TransferDecision) -> int | None:
    """
    Return the slot with which an outcome goes: that of the wallet, or of the hold, under which its
    key was made. None for what the ledger's own wallets did, which never leave.
    """
    if isinstance(decision, HoldVoided | HoldExtended):
        return slot_of_hold(decision.hold_id)
    if isinstance(decision, MoveDecision) and decision.terms and decision.terms.hold_id:
        return slot_of_hold(decision.terms.hold_id)
    if isinstance(decision, LinkedPosted | LinkedRejected | LinkedBegun):
        own = decision.legs[0].source
    elif isinstance(decision, MoveDecision) and decision.transfer_type == TransferType.DEPOSIT:
        own = decision.destination
    else:
        own = decision.source
    return None if is_system_wallet(own) else slot_of(own)


def _wallets_in(state: ShardState, slot: int) -> list[Wallet]:
    """
    List the slot's wallets: those in the tables, which were loaded, and those newer than these.
    """
    named = {*state.leaving[slot], *state.newest_in(slot)}
    return [state.wallets[name] for name in sorted(named) if not is_system_wallet(name)]


def _holds_in(state: ShardState, slot: int) -> list[Hold]:
    """
    List the slot's open holds, and those of which the tables may not have the end.
    """
    return [
        replace(hold, sequence=0)
        for hold in state.holds.values()
        if (hold.status == HoldStatus.OPEN or hold.sequence > state.tables_at)
        and slot_of_hold(hold.hold_id) == slot
    ]


def _refunds_in(state: ShardState, slot: int) -> list[RefundTotal]:
    """
    List the totals of the slot's wallets that the tables may not have.
    """
    return [
        replace(total, sequence=0)
        for total in state.refunds.values()
        if total.sequence > state.tables_at
        and slot_of(total.wallet_id) == slot
        and not is_system_wallet(total.wallet_id)
    ]


def _outcomes_in(state: ShardState, slot: int) -> list[CarriedOutcome]:
    """
    List the outcomes of the slot's wallets that the tables may not have.

    Those that are of another journal count by the record that took them.
    """
    keys, found = state.keys, []
    # The younger generation last: what was on its way in the older one may be settled in it.
    for decision, sequence, at_us in {**keys.old, **keys.young}.values():
        recorded = keys.recorded.get(decision.key, sequence)
        if recorded <= state.tables_at or slot_of_outcome(decision) != slot:
            continue
        assert not isinstance(decision, TransferReserved), "something of the slot is on its way"
        assert not isinstance(decision, LinkedBegun), "something of the slot is not decided"
        found.append(CarriedOutcome(decision, sequence, at_us))
    return found
