"""
A wallet in the auditor's books, and what can be wrong with it.

A part of `recomputation`, and like it without any code of the ledger. Wallets that start with `$`
are the ledger's own: `$world:<shard>:<currency>` stands for all money outside,
`$due:<shard>:<peer>:<currency>` for what another shard owes (below zero: is owed). These belong to
`$system` and may be negative without a limit. `$fees:<shard>:<currency>:<merchant>` takes the fees
of its merchant, whose it is.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

AMOUNT_MAX = 2**53 - 1
BALANCE_MAX = 2**63 - 1
SLOT_COUNT = 4096
SYSTEM_MERCHANT = "$system"

# Where a wallet's facts stand: first the columns of `wallets` in their order, then what no table
# has: the money that is set aside, the part of it that holds keep, and what linked transfers may
# bring.
MERCHANT, CURRENCY, STATUS, MINIMUM, BALANCE, VERSION, OPENED_AT, SLOT = range(8)
LIMITS, USAGE, RESERVED, HELD, INCOMING = range(8, 13)
COLUMN_COUNT = RESERVED


class Contradiction(Exception):
    """
    What cannot follow from the journal so far: *field* is *found* where *expected* would be right.
    """

    def __init__(self, field: str, expected: object, found: object) -> None:
        super().__init__(f"{field} is {found!r}, {expected!r} would follow")
        self.field = field
        self.expected = expected
        self.found = found


def slot_of(wallet_id: str) -> int:
    """
    Work out the slot of a wallet: the low 12 bits of the CRC-32 of its UTF-8.
    """
    return crc32(wallet_id.encode()) & (SLOT_COUNT - 1)


def due_wallet_id(shard_id: int, peer: int, currency: str) -> str:
    return f"$due:{shard_id}:{peer}:{currency}"


def fees_wallet_id(shard_id: int, merchant_id: str, currency: str) -> str:
    return f"$fees:{shard_id}:{currency}:{merchant_id}"


def check_system_wallet(shard_id: int, opened: list[Any]) -> None:
    """
    Check a wallet of the ledger's own at its opening; raises Contradiction.
    """
    _, wallet_id, merchant_id, currency, minimum = opened
    if wallet_id == fees_wallet_id(shard_id, merchant_id, currency):
        if merchant_id == SYSTEM_MERCHANT or minimum != 0:
            raise Contradiction("owner and minimum", "a merchant and 0", (merchant_id, minimum))
        return
    kind, _, rest = wallet_id.partition(":")
    names = [str(shard_id), currency]
    if kind == "$due":
        names.insert(1, rest.split(":")[1])
    if kind not in {"$world", "$due"} or rest != ":".join(names):
        raise Contradiction("wallet opened", f"the world or a due of shard {shard_id}", wallet_id)
    if merchant_id != SYSTEM_MERCHANT or minimum != -BALANCE_MAX:
        expected = (SYSTEM_MERCHANT, -BALANCE_MAX)
        raise Contradiction("owner and minimum", expected, (merchant_id, minimum))


def post(
    wallet: list[Any], amount: int, *, version: object, balance: object, name: str = ""
) -> None:
    """
    Add *amount* to a wallet, and check what the decision says it has then; raises Contradiction.

    *name* is how the decision calls the wallet: the start of its fields' names.
    """
    wallet[BALANCE] += amount
    wallet[VERSION] += 1
    if balance != wallet[BALANCE]:
        raise Contradiction(f"{name}_balance", wallet[BALANCE], balance)
    if abs(wallet[BALANCE]) > BALANCE_MAX:
        raise Contradiction(f"{name}_balance", f"<= {BALANCE_MAX}", balance)
    if version != wallet[VERSION]:
        raise Contradiction(f"{name}_version", wallet[VERSION], version)


def check_available(wallet: list[Any], name: str) -> None:
    """
    Check that what is not reserved is not below the minimum; raises Contradiction.
    """
    available = wallet[BALANCE] - wallet[RESERVED]
    if available < wallet[MINIMUM]:
        raise Contradiction(f"available of the {name}", f"{wallet[MINIMUM]} or more", available)


def check_identifier(field: str, identifier: object) -> None:
    """
    Check the name of a transfer, or its key; raises Contradiction.
    """
    if type(identifier) is not bytes or len(identifier) != 16:
        raise Contradiction(field, "16 bytes", identifier)


def check_amount(amount: object) -> None:
    """
    Check an amount that moves; raises Contradiction.
    """
    if type(amount) is not int or not 1 <= amount <= AMOUNT_MAX:
        raise Contradiction("amount", f"1 to {AMOUNT_MAX}", amount)
