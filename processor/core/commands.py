"""
What may be asked of a shard.

Rule 1: a command carries everything a decision needs except the state and the time.
Rule 2: bounds stand in the types, so a frame with an amount of zero does not decode.
Commands travel as msgpack arrays with a number in front that names the kind.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec

from processor.core.amounts import AMOUNT_MAX, BALANCE_MAX
from processor.core.slots import SLOT_COUNT
from processor.core.wallet import WalletStatus, world_wallet_id

WalletId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Amount = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX)]
Minimum = Annotated[int, msgspec.Meta(ge=-BALANCE_MAX, le=AMOUNT_MAX)]
Identifier = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class TransferType(IntEnum):
    """
    How money moves; the numbers are journaled.
    """

    TRANSFER = 1
    DEPOSIT = 2  # From the world into `destination`.
    WITHDRAWAL = 3  # From `source` into the world.

    @property
    def code(self) -> str:
        return self.name.lower()


class OpenWallet(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """
    Open an empty wallet; asking again with the same facts is no change.
    """

    merchant_id: str
    wallet_id: WalletId
    currency: str
    minimum: Minimum = 0


class SetWalletStatus(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """
    Freeze, lock, reopen or close a wallet.
    """

    merchant_id: str
    wallet_id: WalletId
    status: WalletStatus


class SetWalletLimits(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """
    Set how far the balance may fall, in minor units; negative grants an overdraft.
    """

    merchant_id: str
    wallet_id: WalletId
    minimum: Minimum


class MoveMoney(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """
    Move money once under a key: a transfer, a deposit or a withdrawal.

    `transfer_id` is a UUIDv7 the gateway made, `key` the 16-byte hash of merchant, wallet and
    idempotency key. `source` is empty for a deposit, `destination` for a withdrawal.
    `metadata` is canonical JSON text.
    """

    transfer_type: TransferType
    transfer_id: Identifier
    key: Identifier
    merchant_id: str
    source: Annotated[str, msgspec.Meta(max_length=64)]
    destination: Annotated[str, msgspec.Meta(max_length=64)]
    currency: str
    amount: Amount
    reference: str | None = None
    metadata: str | None = None


class ReadWallet(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """
    Read a wallet as of the last decision; changes nothing.
    """

    merchant_id: str
    wallet_id: WalletId


class GiveSlot(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """
    Give a slot with all its wallets to another shard. An operator asks this, never a merchant.
    """

    slot: Annotated[int, msgspec.Meta(ge=0, lt=SLOT_COUNT)]
    peer: Annotated[int, msgspec.Meta(ge=0)]


Command = OpenWallet | SetWalletStatus | SetWalletLimits | MoveMoney | ReadWallet | GiveSlot


def wallets_named(command: Command, shard_id: int) -> tuple[str, ...]:
    """
    List the wallets that must be in memory before *command* is decided.
    """
    if isinstance(command, MoveMoney):
        if command.transfer_type == TransferType.TRANSFER:
            return (command.source, command.destination)
        own = (
            command.destination if command.transfer_type == TransferType.DEPOSIT else command.source
        )
        return (own, world_wallet_id(shard_id, command.currency))
    if isinstance(command, OpenWallet):
        return (command.wallet_id, world_wallet_id(shard_id, command.currency))
    if isinstance(command, GiveSlot):
        return ()  # The shard loads the wallets of a slot by the slot.
    return (command.wallet_id,)
