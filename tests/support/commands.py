"""
Commands and wallets for tests: each option has a default, and a name stands for an identifier.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from processor.core.amounts import BALANCE_MAX
from processor.core.commands import MoveMoney, OpenWallet, ReadWallet, TransferType
from processor.core.state import ShardState
from processor.core.wallet import Wallet, world_wallet_id

MERCHANT = "acme"
CURRENCY = "EUR"
AT_US = 1_700_000_000_000_000


def identifier(name: str) -> bytes:
    """
    Make the 16 bytes that *name* stands for.
    """
    return blake2b(name.encode(), digest_size=16).digest()


def move(
    transfer_type: TransferType,
    source: str,
    destination: str,
    amount: int,
    *,
    key: str = "key",
    merchant_id: str = MERCHANT,
    currency: str = CURRENCY,
    transfer_id: str | None = None,
    reference: str | None = None,
    metadata: str | None = None,
) -> MoveMoney:
    return MoveMoney(
        transfer_type,
        identifier(transfer_id or f"transfer of {key}"),
        identifier(key),
        merchant_id,
        source,
        destination,
        currency,
        amount,
        reference,
        metadata,
    )


def transfer(source: str, destination: str, amount: int, **options: Any) -> MoveMoney:
    return move(TransferType.TRANSFER, source, destination, amount, **options)


def deposit(destination: str, amount: int, **options: Any) -> MoveMoney:
    return move(TransferType.DEPOSIT, "", destination, amount, **options)


def withdrawal(source: str, amount: int, **options: Any) -> MoveMoney:
    return move(TransferType.WITHDRAWAL, source, "", amount, **options)


def open_wallet(wallet_id: str, minimum: int = 0, **options: str) -> OpenWallet:
    merchant_id = options.get("merchant_id", MERCHANT)
    return OpenWallet(merchant_id, wallet_id, options.get("currency", CURRENCY), minimum)


def read_wallet(wallet_id: str, merchant_id: str = MERCHANT) -> ReadWallet:
    return ReadWallet(merchant_id, wallet_id)


def wallet(wallet_id: str, posted: int = 0, **options: Any) -> Wallet:
    """
    Make a wallet that has seen one entry if there is money in it.
    """
    merchant_id = options.pop("merchant_id", MERCHANT)
    currency = options.pop("currency", CURRENCY)
    return Wallet(
        wallet_id, merchant_id, currency, posted=posted, version=1 if posted else 0, **options
    )


def world(posted: int = 0, currency: str = CURRENCY, shard_id: int = 0) -> Wallet:
    return wallet(
        world_wallet_id(shard_id, currency),
        posted,
        merchant_id="$system",
        currency=currency,
        minimum=-BALANCE_MAX,
    )


def state_of(*wallets: Wallet, shard_id: int = 0) -> ShardState:
    state = ShardState(shard_id)
    for one in wallets:
        state.load(one)
    return state


def facts(state: ShardState) -> dict[str, tuple[object, ...]]:
    """
    Tell everything that must survive a replay, wallet by wallet.
    """
    return {name: one.facts() for name, one in state.wallets.items()}
