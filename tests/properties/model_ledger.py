"""
A second opinion on the ledger, for comparison: the rules written down once more, naively.

A wallet is a dict whose balance is the sum of its entries and whose version is their number.
Nothing here is shared with what is tested but the commands, the results and the reasons.
"""

from __future__ import annotations

from typing import Any

import msgspec

from processor.core.commands import (
    Command,
    MoveMoney,
    OpenWallet,
    ReadWallet,
    SetWalletLimits,
    TransferType,
)
from processor.core.reject_reason import RejectReason as Reason
from processor.flow.frames import KeyReused, Posted, Rejected, Result, WalletFound, WalletRefused

LIMIT = 2**63 - 1
OPEN, FROZEN, LOCKED, CLOSED = 1, 2, 3, 4
Account = dict[str, Any]


def balance(account: Account) -> int:
    return sum(account["entries"])


class ModelLedger:
    """
    What a shard should answer, command by command.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.outcomes: dict[bytes, tuple[MoveMoney, Posted | Rejected]] = {}

    def execute(self, command: Command, sequence: int, at_us: int) -> Result:
        if isinstance(command, MoveMoney):
            return self._move(command, sequence, at_us)
        if isinstance(command, OpenWallet):
            return self._open(command, sequence)
        account = self.accounts.get(command.wallet_id)
        if account is None or account["merchant"] != command.merchant_id:
            return WalletRefused(Reason.WALLET_UNKNOWN)
        if isinstance(command, ReadWallet):
            return self._tell(command.wallet_id, changed=False)
        if isinstance(command, SetWalletLimits):
            field, value = "minimum", command.minimum
            allowed = value <= balance(account) or Reason.MINIMUM_ABOVE_AVAILABLE
            closed = account["status"] == CLOSED
        else:
            field, value = "status", int(command.status)
            empty = value != CLOSED or balance(account) == 0
            allowed = empty or Reason.WALLET_NOT_EMPTY
            closed = account["status"] == CLOSED != value
        if closed:
            return WalletRefused(Reason.WALLET_CLOSED)
        if account[field] == value:
            return self._tell(command.wallet_id, changed=False)
        if allowed is not True:
            return WalletRefused(allowed)
        account[field], account["touched"] = value, sequence
        return self._tell(command.wallet_id, changed=True)

    def _open(self, command: OpenWallet, sequence: int) -> Result:
        wanted = {
            "merchant": command.merchant_id,
            "currency": command.currency,
            "minimum": command.minimum,
        }
        account = self.accounts.get(command.wallet_id)
        if account is not None:
            same = account["status"] != CLOSED and wanted.items() <= account.items()
            if not same:
                return WalletRefused(Reason.WALLET_EXISTS)
            return self._tell(command.wallet_id, changed=False)
        if command.minimum > 0:
            return WalletRefused(Reason.MINIMUM_ABOVE_AVAILABLE)
        outside = {"merchant": "$system", "currency": command.currency, "minimum": -LIMIT}
        for name, facts in (
            (f"$world:0:{command.currency}", outside),
            (command.wallet_id, wanted),
        ):
            self.accounts.setdefault(
                name, {**facts, "status": OPEN, "entries": [], "touched": sequence}
            )
        return self._tell(command.wallet_id, changed=True)

    def _tell(self, name: str, *, changed: bool) -> WalletFound:
        account = self.accounts[name]
        return WalletFound(
            name,
            account["currency"],
            account["status"],
            account["minimum"],
            balance(account),
            len(account["entries"]),
            account["touched"],
            changed,
        )

    def _move(self, command: MoveMoney, sequence: int, at_us: int) -> Result:
        if command.key in self.outcomes:
            first, said = self.outcomes[command.key]
            for field in command.__struct_fields__:
                compared = field not in ("transfer_id", "key", "merchant_id")
                if compared and getattr(first, field) != getattr(command, field):
                    return KeyReused(field.removeprefix("transfer_"))
            return msgspec.structs.replace(said, repeated=True)
        outcome = self._settle(command, sequence, at_us)
        self.outcomes[command.key] = (command, outcome)
        return outcome

    def _settle(self, command: MoveMoney, sequence: int, at_us: int) -> Posted | Rejected:
        world = f"$world:0:{command.currency}"
        deposit = command.transfer_type == TransferType.DEPOSIT
        payer = world if deposit else command.source
        payee = world if command.transfer_type == TransferType.WITHDRAWAL else command.destination
        reasons = sorted(self._reasons(command, payer, payee))
        if reasons:
            return Rejected(command.transfer_id, sequence, at_us, reasons[0], False)
        for name, amount in ((payer, -command.amount), (payee, command.amount)):
            self.accounts[name]["entries"].append(amount)
            self.accounts[name]["touched"] = sequence
        own = self.accounts[payee if deposit else payer]
        return Posted(
            command.transfer_id, sequence, at_us, balance(own), len(own["entries"]), False
        )

    def _reasons(self, command: MoveMoney, payer: str, payee: str) -> list[Reason]:
        """
        List every rule that is broken, in any order: the smallest number is the answer.
        """
        found = []
        source, destination = self.accounts.get(payer), self.accounts.get(payee)
        kind, mine = command.transfer_type, command.merchant_id
        if payer == payee:
            found.append(Reason.WALLETS_IDENTICAL)
        if kind != TransferType.DEPOSIT and (source is None or source["merchant"] != mine):
            found.append(Reason.SOURCE_UNKNOWN)
        if kind == TransferType.TRANSFER and destination is None:
            found.append(Reason.DESTINATION_UNKNOWN)
        owner = destination and destination["merchant"]
        if kind == TransferType.DEPOSIT and owner != mine:
            found.append(Reason.DESTINATION_UNKNOWN)
        for account in (source, destination):
            if account is None or account["currency"] != command.currency:
                found.append(Reason.CURRENCY_MISMATCH)
        if source is not None:
            stopped = {
                CLOSED: Reason.SOURCE_CLOSED,
                LOCKED: Reason.SOURCE_LOCKED,
                FROZEN: Reason.SOURCE_FROZEN,
            }
            if source["status"] in stopped:
                found.append(stopped[source["status"]])
            if balance(source) - command.amount < source["minimum"]:
                short, spent = Reason.INSUFFICIENT_FUNDS, Reason.BALANCE_OUT_OF_RANGE
                found.append(spent if kind == TransferType.DEPOSIT else short)
        if destination is not None:
            stopped = {CLOSED: Reason.DESTINATION_CLOSED, LOCKED: Reason.DESTINATION_LOCKED}
            if destination["status"] in stopped:
                found.append(stopped[destination["status"]])
            if balance(destination) + command.amount > LIMIT:
                found.append(Reason.BALANCE_OUT_OF_RANGE)
        return found
