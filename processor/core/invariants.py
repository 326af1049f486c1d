"""
What must hold of every state, at every sequence.

Called by tests after each step and by recovery once; `apply` holds the same facts posting by
posting.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from processor.core.channel import OutChannel, entry_sent, next_link, weight_sent
from processor.core.decisions import TransferReserved
from processor.core.hold import HoldStatus
from processor.core.linked import moves_begun, moves_prepared, nets_of
from processor.core.state import ShardState
from processor.core.wallet import Wallet, WalletStatus, is_system_wallet


def broken_wallets(wallets: Iterable[Wallet]) -> list[str]:
    """
    Name every wallet that breaks a rule of its own, in words.
    """
    found = []
    for wallet in wallets:
        if wallet.available < wallet.minimum:
            found.append(f"{wallet.wallet_id}: available is below the minimum")
        if wallet.version < 0 or (wallet.version == 0 and wallet.posted != 0):
            found.append(f"{wallet.wallet_id}: money without an entry")
        if wallet.status == WalletStatus.CLOSED and wallet.posted != 0:
            found.append(f"{wallet.wallet_id}: closed with money in it")
    return found


def broken_channels(state: ShardState) -> list[str]:
    """
    Name every channel, and every wallet of which something is set aside, that breaks a rule.
    """
    found = []
    for peer, channel in state.channels.outgoing.items():
        by_currency: Counter[str] = Counter()
        for pending in channel.outbox.values():
            if isinstance(pending, TransferReserved):
                by_currency[pending.currency] += pending.amount
        if by_currency != Counter(channel.reserved):
            found.append(f"channel to shard {peer}: its outbox has another sum than is reserved")
        if channel.weight != sum(map(weight_sent, channel.outbox.values())):
            found.append(f"channel to shard {peer}: its outbox has another weight")
        if list(channel.outbox) != list(range(channel.settled + 1, channel.head + 1)):
            found.append(f"channel to shard {peer}: its outbox is not what is on its way")
        elif _chain_of(channel) != channel.chain:
            found.append(f"channel to shard {peer}: its outbox has another chain")
    return found + _broken_reserves(state)


def _broken_reserves(state: ShardState) -> list[str]:
    reserved, incoming, held = _set_aside(state)
    found = [
        f"{wallet_id}: money of it is set aside, but it is not in memory"
        for wallet_id in sorted((reserved.keys() | incoming.keys()) - state.wallets.keys())
    ]
    holds_open = Counter(
        hold.wallet_id for hold in state.holds.values() if hold.status == HoldStatus.OPEN
    )
    for wallet_id, wallet in state.wallets.items():
        if wallet.holds_open != holds_open[wallet_id]:
            found.append(f"{wallet_id}: another number of holds is open than is counted")
        if wallet.reserved != reserved[wallet_id]:
            found.append(f"{wallet_id}: something else is reserved than is on its way or held")
        if wallet.held != held[wallet_id]:
            found.append(f"{wallet_id}: something else is held than its holds keep")
        if wallet.incoming != incoming[wallet_id]:
            found.append(f"{wallet_id}: something else may come than linked transfers bring")
    return found


def _set_aside(state: ShardState) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """
    Sum by wallet what is reserved in all, what may come, and what holds keep.
    """
    held: Counter[str] = Counter()
    for hold in state.holds.values():
        held[hold.wallet_id] += hold.kept
    reserved, incoming = held.copy(), Counter[str]()
    for channel in state.channels.outgoing.values():
        for pending in channel.outbox.values():
            if isinstance(pending, TransferReserved):
                reserved[pending.source] += pending.amount
    prepared = [moves_prepared(state.shard_id, one) for one, _, _ in state.prepared.values()]
    begun = [one.begun for one in state.linked.values() if one.posted is None]
    for moves in (*prepared, *(moves_begun(state.shard_id, one) for one in begun)):
        for wallet_id, net in nets_of(moves).items():
            reserved[wallet_id] += net.reserved
            incoming[wallet_id] += net.brought
    return +reserved, +incoming, +held


def _chain_of(channel: OutChannel) -> bytes:
    chain = channel.settled_chain
    for pending in channel.outbox.values():
        chain = next_link(chain, entry_sent(pending))
    return chain


def strangers(state: ShardState) -> list[str]:
    """
    Name the wallets in memory whose slot is another shard's.
    """
    return [
        wallet_id
        for wallet_id in state.wallets
        if not is_system_wallet(wallet_id) and not state.has_slot_of(wallet_id)
    ]


def books(wallets: Iterable[Wallet]) -> dict[str, int]:
    """
    Sum the balances per currency; over all wallets of a shard every sum is zero.
    """
    sums: dict[str, int] = defaultdict(int)
    for wallet in wallets:
        sums[wallet.currency] += wallet.posted
    return dict(sums)
