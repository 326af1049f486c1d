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

from processor.core.amounts import BALANCE_MAX
from processor.core.channel import SlotEntry, next_link
from processor.core.commands import GiveSlot, TransferType
from processor.core.decisions import (
    CarriedOutcome,
    CarriedWallet,
    DuePosting,
    SlotGiven,
    SlotTaken,
    TransferDecision,
    TransferReserved,
    sums_of,
)
from processor.core.slots import slot_of
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
    if any(wallet.reserved for wallet in wallets):
        return SlotStays(TRANSFERS_PENDING)
    carried = [_carried(wallet) for wallet in wallets]
    dues = postings_of_dues(state, peer, carried, sign=1)
    channel = state.channels.to(peer)
    if any(abs(due.balance + channel.reserved.get(due.currency, 0)) > SLOT_DUE_MAX for due in dues):
        return SlotStays(BALANCE_OUT_OF_RANGE)
    number, generation = channel.head + 1, state.slots.generation(slot) + 1
    entry = SlotEntry(number, slot, generation, carried, _outcomes_in(state, slot))
    if len(_encode(entry)) > SLOT_ENTRY_BYTES_MAX:
        return SlotStays(TOO_LARGE)
    chain = next_link(channel.chain, entry)
    return SlotGiven(peer, number, chain, slot, generation, entry.wallets, entry.outcomes, dues)


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


def own_wallet_of(decision: TransferDecision) -> str:
    """
    Name the wallet under which the key of *decision* was made.
    """
    is_deposit = decision.transfer_type == TransferType.DEPOSIT
    return decision.destination if is_deposit else decision.source


def _wallets_in(state: ShardState, slot: int) -> list[Wallet]:
    """
    List the slot's wallets: those in the tables, which were loaded, and those newer than these.
    """
    named = {*state.leaving[slot], *state.newest_in(slot)}
    return [state.wallets[name] for name in sorted(named) if not is_system_wallet(name)]


def _carried(wallet: Wallet) -> CarriedWallet:
    return CarriedWallet(
        wallet.wallet_id,
        wallet.merchant_id,
        wallet.currency,
        wallet.status,
        wallet.minimum,
        wallet.posted,
        wallet.version,
    )


def _outcomes_in(state: ShardState, slot: int) -> list[CarriedOutcome]:
    """
    List the outcomes of the slot's wallets that the tables may not have.

    Those that are of another journal count by the record that took them.
    """
    keys, found = state.keys, []
    # The younger generation last: what was on its way in the older one may be settled in it.
    for decision, sequence, at_us in {**keys.old, **keys.young}.values():
        recorded = keys.recorded.get(decision.key, sequence)
        if recorded <= state.tables_at or slot_of(own_wallet_of(decision)) != slot:
            continue
        assert not isinstance(decision, TransferReserved), "something of the slot is on its way"
        found.append(CarriedOutcome(decision, sequence, at_us))
    return found
