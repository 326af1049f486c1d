"""
What may be asked of a shard.

Rule 1: a command carries everything a decision needs except the state and the time.
Rule 2: bounds stand in the types, so a frame with an amount of zero does not decode.
Commands travel as msgpack arrays with a number in front that names the kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Annotated

import msgspec

from processor.core.amounts import AMOUNT_MAX, BALANCE_MAX
from processor.core.limits import Limits
from processor.core.slots import SLOT_COUNT, slot_of, slot_of_hold
from processor.core.wallet import (
    WalletStatus,
    fees_wallet_id,
    home_of,
    is_system_wallet,
    world_wallet_id,
)

WALLET_ID_CHARS_MAX = 64
WalletId = Annotated[str, msgspec.Meta(min_length=1, max_length=WALLET_ID_CHARS_MAX)]
Amount = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX)]
Minimum = Annotated[int, msgspec.Meta(ge=-BALANCE_MAX, le=AMOUNT_MAX)]
Identifier = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
LIFETIME_S_MAX = 31 * 86_400
LifetimeSeconds = Annotated[int, msgspec.Meta(ge=1, le=LIFETIME_S_MAX)]

LEGS_MAX = 100


class TransferType(IntEnum):
    """
    How money moves; the numbers are journaled.
    """

    TRANSFER = 1
    DEPOSIT = 2  # From the world into `destination`.
    WITHDRAWAL = 3  # From `source` into the world.
    HOLD = 4  # Money of `source` is set aside until it is captured, voided or its time is over.
    CAPTURE = 5  # Money that a hold keeps goes to `destination`.
    VOID = 6  # What a hold still keeps is the wallet's again.
    EXTEND = 7  # A hold lasts longer.
    REFUND = 8  # Money goes back to where an earlier transfer took it from.
    FEE = 9  # From `source` into its merchant's wallet of fees at the same shard.

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
    Set how far the balance may fall, in minor units, and what may come and go; a negative minimum
    grants an overdraft. None leaves the one or the other as it is, `Limits()` lifts every limit.
    """

    merchant_id: str
    wallet_id: WalletId
    minimum: Minimum | None
    limits: Limits | None = None


class Terms(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    What a movement is bound to besides its wallets and its amount.

    A capture names its `hold_id`, and whether it is the last (`is_final`: the rest is free again).
    A refund names the transfer it takes back and how much that one moved (`refundable`), which the
    gateway has read from its row: rows of transfers never change. `if_version` and
    `if_available_gte` are of the caller's own wallet. `amount_max` takes the place of the amount
    asked for: as much of it as is available is moved; for a capture, all that the hold still
    keeps; for a refund, all that was not refunded yet. `lifetime_s` is what a hold was asked for.
    """

    hold_id: Identifier | None = None
    is_final: bool = False
    refund_of: Identifier | None = None
    refundable: Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX)] = 0
    if_version: Annotated[int, msgspec.Meta(ge=0, le=BALANCE_MAX)] | None = None
    if_available_gte: Minimum | None = None
    amount_max: Amount | None = None
    lifetime_s: Annotated[int, msgspec.Meta(ge=0, le=LIFETIME_S_MAX)] = 0


class MoveMoney(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """
    Move money once under a key: a transfer, a deposit or a withdrawal.

    `transfer_id` is a UUIDv7 the gateway made, `key` the 16-byte hash of merchant, wallet and
    idempotency key. `source` is empty for a deposit, `destination` for a withdrawal.
    `metadata` is canonical JSON text. A capture takes its source from the hold, and its destination
    and its currency too where they are empty. With `terms.amount_max` the amount is that, too.
    """

    transfer_type: TransferType
    transfer_id: Identifier
    key: Identifier
    merchant_id: str
    source: Annotated[str, msgspec.Meta(max_length=WALLET_ID_CHARS_MAX)]
    destination: Annotated[str, msgspec.Meta(max_length=WALLET_ID_CHARS_MAX)]
    currency: str
    amount: Amount
    reference: str | None = None
    metadata: str | None = None
    terms: Terms | None = None


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


class PlaceHold(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """
    Set money of a wallet aside for `lifetime_s` seconds, once under a key.

    The low 12 bits of `hold_id` are the wallet's slot (`slot_of_hold`), so that whoever has the id
    finds the shard. `destination` is where captures go that name no other; it may be empty.
    """

    hold_id: Identifier
    key: Identifier
    merchant_id: str
    source: WalletId
    destination: Annotated[str, msgspec.Meta(max_length=WALLET_ID_CHARS_MAX)]
    currency: str
    amount: Amount
    lifetime_s: LifetimeSeconds
    reference: str | None = None
    metadata: str | None = None
    terms: Terms | None = None


class VoidHold(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    """
    Give back what a hold still keeps, once under a key.
    """

    transfer_id: Identifier
    key: Identifier
    merchant_id: str
    hold_id: Identifier


class ExtendHold(msgspec.Struct, array_like=True, tag=9, frozen=True, gc=False):
    """
    Let a hold last `lifetime_s` seconds from now on, once under a key; never shorter than before.
    """

    transfer_id: Identifier
    key: Identifier
    merchant_id: str
    hold_id: Identifier
    lifetime_s: LifetimeSeconds


class ReadHold(msgspec.Struct, array_like=True, tag=10, frozen=True, gc=False):
    """
    Read a hold as of the last decision; changes nothing.
    """

    merchant_id: str
    hold_id: Identifier


class Leg(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    One movement of a linked transfer: of type TRANSFER, REFUND (its `terms` say of what) or FEE
    (then `destination` is empty).
    """

    transfer_type: TransferType
    transfer_id: Identifier
    source: WalletId
    destination: Annotated[str, msgspec.Meta(max_length=WALLET_ID_CHARS_MAX)]
    currency: str
    amount: Amount
    reference: str | None = None
    metadata: str | None = None
    terms: Terms | None = None


class MoveLinked(msgspec.Struct, array_like=True, tag=11, frozen=True, gc=False):
    """
    Move money along all legs or along none, once under a key; each source is the merchant's.

    A wallet is judged by what all legs together make of it, so one leg may spend what another
    brings. The shard of the first leg's source decides.
    """

    linked_id: Identifier
    key: Identifier
    merchant_id: str
    legs: Annotated[list[Leg], msgspec.Meta(min_length=1, max_length=LEGS_MAX)]


HoldCommand = PlaceHold | VoidHold | ExtendHold
Command = (
    OpenWallet
    | SetWalletStatus
    | SetWalletLimits
    | MoveMoney
    | ReadWallet
    | GiveSlot
    | PlaceHold
    | VoidHold
    | ExtendHold
    | ReadHold
    | MoveLinked
)


def wallets_named(command: Command, shard_id: int) -> tuple[str, ...]:
    """
    List the wallets that must be in memory before *command* is decided; a hold's own always is.
    """
    match command:
        case MoveMoney():
            return _wallets_moved(command, shard_id)
        case MoveLinked(legs=legs):
            return tuple(name for leg in legs for name in (leg.source, leg.destination) if name)
        case OpenWallet(wallet_id=wallet_id, currency=currency):
            return (wallet_id, world_wallet_id(shard_id, currency))
        case PlaceHold(source=source):
            return (source,)
        case SetWalletStatus() | SetWalletLimits() | ReadWallet():
            return (command.wallet_id,)
        case _:
            return ()  # The shard loads the wallets of a slot by the slot.


def _wallets_moved(command: MoveMoney, shard_id: int) -> tuple[str, ...]:
    sides = (command.source, command.destination)
    if command.transfer_type == TransferType.FEE:
        fees = fees_wallet_id(shard_id, command.merchant_id, command.currency)
        return (command.source, fees)
    if command.transfer_type in (TransferType.DEPOSIT, TransferType.WITHDRAWAL):
        return (*filter(None, sides), world_wallet_id(shard_id, command.currency))
    return tuple(filter(None, sides))


def hold_named(command: Command) -> bytes | None:
    """
    Return the hold that must be in memory before *command* is decided, if it names one.
    """
    if isinstance(command, VoidHold | ExtendHold | ReadHold):
        return command.hold_id
    if isinstance(command, MoveMoney) and command.terms is not None:
        return command.terms.hold_id
    return None


def refunds_named(command: Command) -> list[tuple[bytes, str]]:
    """
    List the transfers of which *command* takes something back, each with the wallet that pays it.
    """
    if isinstance(command, MoveMoney):
        return refunds_asked([command])
    return refunds_asked(command.legs) if isinstance(command, MoveLinked) else []


def refunds_asked(moves: Iterable[MoveMoney | Leg]) -> list[tuple[bytes, str]]:
    """
    List the transfers of which *moves* take something back, each with the wallet that pays it.
    """
    return [
        (one.terms.refund_of, one.source)
        for one in moves
        if one.terms is not None and one.terms.refund_of is not None
    ]


def key_of(command: Command) -> bytes | None:
    """
    Return the key under which *command* is done once; None where it changes nothing twice anyway.
    """
    if isinstance(command, MoveMoney | PlaceHold | VoidHold | ExtendHold | MoveLinked):
        return command.key
    return None


def weight_of(commands: Sequence[Command]) -> int:
    """
    Count what *commands* cost: one for each, and for a linked transfer one for each leg.
    """
    return len(commands) + sum(len(one.legs) - 1 for one in commands if type(one) is MoveLinked)


def slot_asked(command: Command) -> int | None:
    """
    Return the slot whose shard decides *command*; None where `shard_asked` says the shard.
    """
    match command:
        case MoveMoney(terms=Terms(hold_id=bytes() as hold_id)):
            return slot_of_hold(hold_id)
        case VoidHold(hold_id=hold_id) | ExtendHold(hold_id=hold_id) | ReadHold(hold_id=hold_id):
            return slot_of_hold(hold_id)
        case GiveSlot():
            return None
    wallet_id = wallet_asked(command)
    return None if is_system_wallet(wallet_id) else slot_of(wallet_id)


def shard_asked(command: Command) -> int | None:
    """
    Return the shard that decides *command* because its wallet never leaves it.
    """
    if isinstance(command, MoveMoney | MoveLinked) and is_system_wallet(wallet_asked(command)):
        return home_of(wallet_asked(command))
    return None


def wallet_asked(command: Command) -> str:
    """
    Name the wallet whose shard decides *command*; empty where a hold's id says it.
    """
    match command:
        case MoveMoney():
            return command.source or command.destination
        case MoveLinked(legs=legs):
            return legs[0].source
        case PlaceHold(source=source):
            return source
        case OpenWallet() | SetWalletStatus() | SetWalletLimits() | ReadWallet():
            return command.wallet_id
        case _:
            return ""
