"""
A second opinion on the ledger, for comparison: the rules written down once more, naively.

A wallet is a dict whose balance is the sum of its entries and whose version is their number. A
hold is a dict with the captures that it has seen, and what has gone back of a transfer a list.
Nothing here is shared with what is tested but the commands, the results and the reasons.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from processor.core.commands import (
    Command,
    ExtendHold,
    Leg,
    MoveLinked,
    MoveMoney,
    OpenWallet,
    PlaceHold,
    ReadHold,
    ReadWallet,
    SetWalletStatus,
    TransferType,
    VoidHold,
)
from processor.core.hold import Hold
from processor.core.limits import Counter, Limits, Usage, Velocity
from processor.core.reject_reason import RejectReason as Reason
from processor.flow.frames import (
    FilledIn,
    HoldFound,
    KeyReused,
    LegSource,
    LinkedMoved,
    LinkedRefused,
    Posted,
    Rejected,
    Result,
    WalletFound,
    WalletRefused,
)

LIMIT = 2**63 - 1
HOUR, DAY = 3_600_000_000, 86_400_000_000
OPEN, FROZEN, LOCKED, CLOSED = 1, 2, 3, 4
HELD, CAPTURED, VOIDED, EXPIRED = 1, 2, 3, 4
TRANSFER, DEPOSIT, WITHDRAWAL, HOLD, CAPTURE, VOID, EXTEND, REFUND, FEE = TransferType
LIMITED_OUT, LIMITED_IN = (TRANSFER, WITHDRAWAL, HOLD), (TRANSFER, DEPOSIT, CAPTURE)
STOPPED_OUT = {
    CLOSED: Reason.SOURCE_CLOSED,
    LOCKED: Reason.SOURCE_LOCKED,
    FROZEN: Reason.SOURCE_FROZEN,
}
STOPPED_IN = {CLOSED: Reason.DESTINATION_CLOSED, LOCKED: Reason.DESTINATION_LOCKED}

Account = dict[str, Any]
Broken = tuple[Reason, int]  # A rule that is broken, and by how much.


def balance(account: Account) -> int:
    return sum(account["entries"])


def kept(hold: Account) -> int:
    return hold["amount"] - sum(hold["captures"]) if hold["status"] == HELD else 0


def no_usage() -> dict[str, list[int]]:
    """
    Make a side's counts: window, how many and how much, for the hour and for the day.
    """
    return {"hour": [0, 0, 0], "day": [0, 0, 0]}


def count(used: dict[str, list[int]], at_us: int, amount: int, times: int) -> None:
    for name, length in (("hour", HOUR), ("day", DAY)):
        if at_us // length > used[name][0]:
            used[name] = [at_us // length, 0, 0]
        used[name][1] += times
        used[name][2] += amount


def give_back(used: dict[str, list[int]], then_us: int, amount: int, times: int) -> None:
    for name, length in (("hour", HOUR), ("day", DAY)):
        if used[name][0] == then_us // length:
            used[name][1] = max(0, used[name][1] - times)
            used[name][2] = max(0, used[name][2] - amount)


def told_usage(usage: Account | None) -> Usage | None:
    if usage is None:
        return None
    sides = [Counter(*usage[side]["hour"], *usage[side]["day"]) for side in ("out", "in")]
    return Usage(*sides, since_us=usage["since"])


class ModelLedger:
    """
    What a shard should answer, command by command.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.holds: dict[bytes, Account] = {}
        self.holds_max = 10_000  # Open ones of a wallet.
        self.refunds: dict[bytes, list[int]] = {}
        self.outcomes: dict[bytes, tuple[Any, Any, Any]] = {}

    def pass_time(self, sequence: int, at_us: int) -> None:
        """
        End the holds that are over.
        """
        for hold in self.holds.values():
            if hold["status"] == HELD and hold["expires"] <= at_us:
                self._end(hold, EXPIRED, sequence)

    def execute(self, command: Command, sequence: int, at_us: int) -> Result:
        self.now = (sequence, at_us)
        match command:
            case MoveMoney() | PlaceHold() | VoidHold() | ExtendHold() | MoveLinked():
                return self._once(command)
            case ReadHold():
                hold = self.holds.get(command.hold_id)
                if hold is None or hold["merchant"] != command.merchant_id:
                    return WalletRefused(Reason.HOLD_UNKNOWN)
                told = (command.hold_id, hold["touched"], hold["placed"])
                return self._tell_hold(command.hold_id, told, repeated=False)
            case OpenWallet():
                return self._open(command)
            case _:
                account = self.accounts.get(command.wallet_id)
                if account is None or account["merchant"] != command.merchant_id:
                    return WalletRefused(Reason.WALLET_UNKNOWN)
                return self._manage(command, account)

    # --- Wallets --------------------------------------------------------------------------

    def _held(self, name: str) -> int:
        return sum(kept(hold) for hold in self.holds.values() if hold["wallet"] == name)

    def _available(self, name: str) -> int:
        return balance(self.accounts[name]) - self._held(name)

    def _manage(self, command: Any, account: Account) -> Result:
        if isinstance(command, ReadWallet):
            return self._tell(command.wallet_id, changed=False)
        changes = self._changes(command, account)
        if isinstance(changes, Reason):
            return WalletRefused(changes)
        changes = {name: value for name, value in changes.items() if account[name] != value}
        if changes:
            account |= {**changes, "touched": self.now[0]}
            if "limits" in changes:
                anew = {"out": no_usage(), "in": no_usage(), "since": self.now[1]}
                used = account["usage"] or anew
                account["usage"] = used if account["limits"] is not None else None
        return self._tell(command.wallet_id, changed=bool(changes))

    def _changes(self, command: Any, account: Account) -> dict[str, Any] | Reason:
        name = command.wallet_id
        if isinstance(command, SetWalletStatus):
            if account["status"] == command.status:
                return {}
            if account["status"] == CLOSED:
                return Reason.WALLET_CLOSED
            if command.status == CLOSED and balance(account) != 0:
                return Reason.WALLET_NOT_EMPTY
            if command.status == CLOSED and self._held(name) != 0:
                return Reason.HOLDS_OPEN
            return {"status": int(command.status)}
        if account["status"] == CLOSED:
            return Reason.WALLET_CLOSED
        changes: dict[str, Any] = {}
        if command.minimum is not None:
            changes["minimum"] = command.minimum
            raised = command.minimum > account["minimum"]
            if raised and command.minimum > self._available(name):
                return Reason.MINIMUM_ABOVE_AVAILABLE
        if command.limits is not None:
            nothing = Limits(Velocity(), Velocity(), None)
            changes["limits"] = command.limits if command.limits != nothing else None
        return changes

    def _open(self, command: OpenWallet) -> Result:
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
        self._add(f"$world:0:{command.currency}", "$system", command.currency, -LIMIT)
        self._add(command.wallet_id, command.merchant_id, command.currency, command.minimum)
        return self._tell(command.wallet_id, changed=True)

    def _add(self, name: str, merchant: str, currency: str, minimum: int = 0) -> None:
        account = {"merchant": merchant, "currency": currency, "minimum": minimum}
        account |= {"status": OPEN, "entries": [], "holds": 0, "touched": self.now[0]}
        self.accounts.setdefault(name, {**account, "limits": None, "usage": None})

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
            self._available(name),
            self._held(name),
            account["limits"],
            told_usage(account["usage"]),
        )

    # --- Keys -----------------------------------------------------------------------------

    def _once(self, command: Any) -> Result:
        if isinstance(command, MoveMoney) and command.transfer_type == FEE:
            self._open_fees(command, [command])
        if command.key in self.outcomes:
            first, filled, said = self.outcomes[command.key]
            for field, then, now in compared(first, filled, command):
                if then != now:
                    return KeyReused(field)
            if isinstance(said, tuple):
                return self._tell_hold(*said, repeated=True)
            return replace(said, repeated=True)
        match command:
            case MoveMoney():
                filled, said = self._move(command)
            case PlaceHold():
                filled, said = command, self._place(command)
            case MoveLinked():
                filled, said = command, self._move_linked(command)
            case _:
                filled, said = command, self._change_hold(command)
        self.outcomes[command.key] = (command, filled, said)
        return self._tell_hold(*said, repeated=False) if isinstance(said, tuple) else said

    def _open_fees(self, command: Any, legs: Iterable[Any]) -> None:
        for leg in legs:
            # One of its own is opened only when there is something to pay from.
            if leg.transfer_type == FEE and (leg is not command or leg.source in self.accounts):
                name = f"$fees:0:{leg.currency}:{command.merchant_id}"
                self._add(name, command.merchant_id, leg.currency)

    # --- Movements ------------------------------------------------------------------------

    def _move(self, command: MoveMoney) -> tuple[MoveMoney, Posted | Rejected]:
        filled, broken = self._filled(command)
        broken += self._broken(filled)
        own = filled.destination if command.transfer_type == DEPOSIT else filled.source
        told = None
        if command.terms is not None:
            told = FilledIn(filled.source, filled.destination, filled.currency, filled.amount)
        if broken:
            reason, short_by = min(broken)
            said = Rejected(command.transfer_id, *self.now, reason, False, short_by, told)
            return filled, said
        self._settle(filled)
        account = self.accounts[own]
        posted = (balance(account), len(account["entries"]))
        return filled, Posted(command.transfer_id, *self.now, *posted, False, told)

    def _filled(self, command: MoveMoney) -> tuple[MoveMoney, list[Broken]]:
        """
        Fill in what the command leaves open, with the rules that are broken by then.
        """
        terms, kind = command.terms, command.transfer_type
        at_most = terms.amount_max if terms is not None else None
        source = self.accounts.get(command.source)
        if kind == DEPOSIT:
            return replace(command, source=f"$world:0:{command.currency}"), []
        if kind == FEE:
            fees = f"$fees:0:{command.currency}:{command.merchant_id}"
            return replace(command, destination=fees), []
        if kind == CAPTURE:
            return self._filled_capture(command)
        if kind == REFUND:
            assert terms is not None
            left = terms.refundable - sum(self.refunds.get(terms.refund_of or b"", []))
            amount = command.amount if at_most is None else left
            if amount > left or amount < 1:
                return command, [(Reason.REFUND_EXCEEDS_PAID, max(0, amount - left))]
            return replace(command, amount=amount), []
        if kind == WITHDRAWAL:
            command = replace(command, destination=f"$world:0:{command.currency}")
        if at_most is None or source is None or source["merchant"] != command.merchant_id:
            return command, []
        there_is = min(at_most, self._available(command.source) - source["minimum"])
        if there_is < 1:
            return command, [(Reason.INSUFFICIENT_FUNDS, 1 - there_is)]
        return replace(command, amount=there_is), []

    def _filled_capture(self, command: MoveMoney) -> tuple[MoveMoney, list[Broken]]:
        assert command.terms is not None
        hold = self.holds.get(command.terms.hold_id or b"")
        if hold is None or hold["merchant"] != command.merchant_id:
            return command, [(Reason.HOLD_UNKNOWN, 0)]
        broken = self._broken_hold(hold)
        amount = command.amount if command.terms.amount_max is None else kept(hold)
        if amount > kept(hold) or amount < 1:
            broken.append((Reason.CAPTURE_EXCEEDS_HOLD, max(1, amount - kept(hold))))
        filled = replace(
            command,
            source=hold["wallet"],
            destination=command.destination or hold["destination"],
            currency=command.currency or hold["currency"],
            amount=amount or hold["amount"],
        )
        return filled, broken

    def _broken_hold(self, hold: Account) -> list[Broken]:
        ended = {
            VOIDED: Reason.HOLD_VOIDED,
            CAPTURED: Reason.HOLD_CAPTURED,
            EXPIRED: Reason.HOLD_EXPIRED,
        }
        return [(ended[hold["status"]], 0)] if hold["status"] in ended else []

    def _broken(self, command: MoveMoney) -> list[Broken]:
        """
        List every rule that is broken, in any order: the smallest number is the answer.
        """
        found: list[Broken] = []
        kind, mine, currency = command.transfer_type, command.merchant_id, command.currency
        if kind == CAPTURE and not command.source:
            return found  # Nothing is known of the hold.
        source, destination = (
            self.accounts.get(command.source),
            self.accounts.get(command.destination),
        )
        if command.source == command.destination:
            found.append((Reason.WALLETS_IDENTICAL, 0))
        if kind != DEPOSIT and (source is None or source["merchant"] != mine):
            found.append((Reason.SOURCE_UNKNOWN, 0))
        if kind not in (DEPOSIT, WITHDRAWAL) and destination is None:
            found.append((Reason.DESTINATION_UNKNOWN, 0))
        if kind == DEPOSIT and (destination is None or destination["merchant"] != mine):
            found.append((Reason.DESTINATION_UNKNOWN, 0))
        if any(one is None or one["currency"] != currency for one in (source, destination)):
            found.append((Reason.CURRENCY_MISMATCH, 0))
        if source is not None:
            found += self._broken_source(kind, command.source, command.amount)
        if destination is not None:
            found += self._broken_destination(kind, command.destination, command.amount)
        own = command.destination if kind == DEPOSIT else command.source
        return found + self._broken_conditions(own, command.terms)

    def _broken_source(self, kind: TransferType, name: str, amount: int) -> list[Broken]:
        account, found = self.accounts[name], []
        status = account["status"]
        if status in STOPPED_OUT and not (kind == CAPTURE and status == FROZEN):
            found.append((STOPPED_OUT[status], 0))
        if kind == CAPTURE:
            return found
        missing = account["minimum"] - (self._available(name) - amount)
        if missing > 0:
            short, spent = Reason.INSUFFICIENT_FUNDS, Reason.BALANCE_OUT_OF_RANGE
            found.append((spent if kind == DEPOSIT else short, missing))
        if kind in LIMITED_OUT:
            found += self._broken_limits(name, "out", amount, 1)
        return found

    def _broken_destination(self, kind: TransferType, name: str, amount: int) -> list[Broken]:
        account, found = self.accounts[name], []
        if account["status"] in STOPPED_IN:
            found.append((STOPPED_IN[account["status"]], 0))
        over = balance(account) + amount - LIMIT
        if over > 0:
            found.append((Reason.BALANCE_OUT_OF_RANGE, over))
        if kind in LIMITED_IN:
            found += self._broken_limits(name, "in", amount, 1)
        return found

    def _broken_limits(self, name: str, side: str, amount: int, times: int) -> list[Broken]:
        account = self.accounts[name]
        limits, found = account["limits"], []
        if limits is None:
            return []
        used = {window: list(counts) for window, counts in account["usage"][side].items()}
        count(used, self.now[1], amount, times)
        bounds = limits.debits if side == "out" else limits.credits
        for window in ("hour", "day"):
            for place, what in ((1, "count"), (2, "amount")):
                bound = getattr(bounds, f"{window}_{what}")
                if bound is not None and used[window][place] > bound:
                    word = "DEBIT" if side == "out" else "CREDIT"
                    reason = Reason[f"{word}_{what}_{window}_EXCEEDED".upper()]
                    found.append((reason, used[window][place] - bound))
        if side == "in" and limits.balance_max is not None:
            over = balance(account) + amount - limits.balance_max
            if over > 0:
                found.append((Reason.BALANCE_MAX_EXCEEDED, over))
        return found

    def _broken_conditions(self, name: str, terms: Any) -> list[Broken]:
        found: list[Broken] = []
        account = self.accounts.get(name)
        if terms is None or account is None:
            return found
        version = len(account["entries"])
        if terms.if_version not in (None, version):
            found.append((Reason.VERSION_DIFFERS, abs(version - terms.if_version)))
        wanted = terms.if_available_gte
        if wanted is not None and self._available(name) < wanted:
            found.append((Reason.AVAILABLE_BELOW_CONDITION, wanted - self._available(name)))
        return found

    def _settle(self, command: MoveMoney) -> None:
        kind, amount, terms = command.transfer_type, command.amount, command.terms
        if kind == CAPTURE:
            assert terms is not None
            hold = self.holds[terms.hold_id or b""]
            hold["captures"].append(amount)
            hold["touched"] = self.now[0]
            if terms.is_final or kept(hold) == 0:
                self._end(hold, CAPTURED, self.now[0])
        if kind == REFUND:
            assert terms is not None
            self.refunds.setdefault(terms.refund_of or b"", []).append(amount)
        self._post(command.source, command.destination, amount)
        if kind in LIMITED_OUT:
            self._count(command.source, "out", amount, 1)
        if kind in LIMITED_IN:
            self._count(command.destination, "in", amount, 1)

    def _post(self, payer: str, payee: str, amount: int) -> None:
        for name, signed in ((payer, -amount), (payee, amount)):
            self.accounts[name]["entries"].append(signed)
            self.accounts[name]["touched"] = self.now[0]

    def _count(self, name: str, side: str, amount: int, times: int) -> None:
        account = self.accounts[name]
        if account["usage"] is not None:
            count(account["usage"][side], self.now[1], amount, times)

    # --- Holds ----------------------------------------------------------------------------

    def _place(self, command: PlaceHold) -> Any:
        account = self.accounts.get(command.source)
        broken: list[Broken] = []
        if account is None or account["merchant"] != command.merchant_id:
            broken.append((Reason.SOURCE_UNKNOWN, 0))
        else:
            if account["currency"] != command.currency:
                broken.append((Reason.CURRENCY_MISMATCH, 0))
            broken += self._broken_source(HOLD, command.source, command.amount)
            broken += self._broken_conditions(command.source, command.terms)
            if account["holds"] >= self.holds_max:
                broken.append((Reason.HOLDS_TOO_MANY, 1))
        if broken:
            reason, short_by = min(broken)
            told = FilledIn(command.source, command.destination, command.currency, command.amount)
            return Rejected(command.hold_id, *self.now, reason, False, short_by, told)
        self.holds[command.hold_id] = {
            "merchant": command.merchant_id,
            "wallet": command.source,
            "destination": command.destination,
            "currency": command.currency,
            "amount": command.amount,
            "captures": [],
            "status": HELD,
            "placed": self.now[1],
            "expires": self.now[1] + command.lifetime_s * 1_000_000,
            "texts": (command.reference, command.metadata),
        }
        account["holds"] += 1
        self._touch(self.holds[command.hold_id])
        self._count(command.source, "out", command.amount, 1)
        return command.hold_id, (command.hold_id, *self.now)

    def _touch(self, hold: Account) -> None:
        hold["touched"] = self.accounts[hold["wallet"]]["touched"] = self.now[0]

    def _change_hold(self, command: VoidHold | ExtendHold) -> Any:
        hold = self.holds.get(command.hold_id)
        if hold is None or hold["merchant"] != command.merchant_id:
            told = FilledIn("", "", "", 0)
            reason = Reason.HOLD_UNKNOWN
            return Rejected(command.transfer_id, *self.now, reason, False, 0, told)
        broken = self._broken_hold(hold)
        if broken:
            told = FilledIn(hold["wallet"], "", hold["currency"], kept(hold))
            return Rejected(command.transfer_id, *self.now, broken[0][0], False, 0, told)
        self._touch(hold)
        if isinstance(command, VoidHold):
            self._end(hold, VOIDED, self.now[0])
        else:
            longer = self.now[1] + command.lifetime_s * 1_000_000
            hold["expires"] = max(hold["expires"], longer)
        return command.hold_id, (command.transfer_id, *self.now)

    def _end(self, hold: Account, status: int, sequence: int) -> None:
        unused = kept(hold)
        hold["status"] = status
        account = self.accounts[hold["wallet"]]
        account["holds"] -= 1
        hold["touched"] = account["touched"] = sequence
        # A hold of the record that set the limits is as one from before them.
        if unused and account["usage"] is not None and hold["placed"] > account["usage"]["since"]:
            times = 0 if hold["captures"] else 1
            give_back(account["usage"]["out"], hold["placed"], unused, times)

    def _tell_hold(
        self, hold_id: bytes, told: tuple[bytes, int, int], *, repeated: bool
    ) -> HoldFound:
        hold = self.holds[hold_id]
        name = hold["wallet"]
        account = self.accounts[name]
        return HoldFound(
            Hold(
                hold_id,
                hold["merchant"],
                name,
                hold["destination"],
                hold["currency"],
                hold["amount"],
                sum(hold["captures"]),
                0,
                hold["status"],
                False,
                hold["placed"],
                hold["expires"],
                *hold["texts"],
                hold["touched"],
            ),
            *told,
            repeated,
            balance(account),
            self._available(name),
            self._held(name),
            len(account["entries"]),
        )

    # --- Linked transfers -----------------------------------------------------------------

    def _move_linked(self, command: MoveLinked) -> LinkedMoved | LinkedRefused:
        self._open_fees(command, command.legs)
        legs = [
            replace(leg, destination=f"$fees:0:{leg.currency}:{command.merchant_id}")
            if leg.transfer_type == FEE
            else leg
            for leg in command.legs
        ]
        identical = [place for place, leg in enumerate(legs) if leg.source == leg.destination]
        if identical:
            found = [(Reason.WALLETS_IDENTICAL, identical[0], 0)]
        else:
            found = self._broken_legs(command.merchant_id, legs) or self._broken_nets(legs)
        if found:
            reason, place, short_by = min(found)
            return LinkedRefused(command.linked_id, *self.now, False, place, reason, short_by)
        return LinkedMoved(command.linked_id, *self.now, False, self._settle_legs(legs))

    def _broken_legs(self, mine: str, legs: list[Leg]) -> list[tuple[Reason, int, int]]:
        found = []
        asked: dict[bytes, int] = {}
        for place, leg in enumerate(legs):
            source = self.accounts.get(leg.source)
            if source is None or source["merchant"] != mine:
                found.append((Reason.SOURCE_UNKNOWN, place, 0))
            elif source["currency"] != leg.currency:
                found.append((Reason.CURRENCY_MISMATCH, place, 0))
            elif source["status"] in STOPPED_OUT:
                found.append((STOPPED_OUT[source["status"]], place, 0))
            destination = self.accounts.get(leg.destination)
            if destination is None:
                found.append((Reason.DESTINATION_UNKNOWN, place, 0))
            elif destination["currency"] != leg.currency:
                found.append((Reason.CURRENCY_MISMATCH, place, 0))
            elif destination["status"] in STOPPED_IN:
                found.append((STOPPED_IN[destination["status"]], place, 0))
            if leg.terms is not None and leg.terms.refund_of is not None:
                paid = leg.terms.refund_of
                asked[paid] = asked.get(paid, sum(self.refunds.get(paid, []))) + leg.amount
                over = asked[paid] - leg.terms.refundable
                if over > 0:
                    found.append((Reason.REFUND_EXCEEDS_PAID, place, over))
        return found

    def _broken_nets(self, legs: list[Leg]) -> list[tuple[Reason, int, int]]:
        found = []
        for name in {leg.source for leg in legs} | {leg.destination for leg in legs}:
            out = [(place, leg) for place, leg in enumerate(legs) if leg.source == name]
            into = [(place, leg) for place, leg in enumerate(legs) if leg.destination == name]
            taken, brought = (sum(leg.amount for _, leg in side) for side in (out, into))
            account = self.accounts[name]
            missing = account["minimum"] - (self._available(name) - (taken - brought))
            if taken > brought and missing > 0:
                found.append((Reason.INSUFFICIENT_FUNDS, out[0][0], missing))
            if into and balance(account) + brought > LIMIT:
                over = balance(account) + brought - LIMIT
                found.append((Reason.BALANCE_OUT_OF_RANGE, into[0][0], over))
            for side, legs_there in (("out", out), ("in", into)):
                limited = [(p, leg) for p, leg in legs_there if leg.transfer_type == TRANSFER]
                if limited:
                    amount = sum(leg.amount for _, leg in limited)
                    broken = self._broken_limits(name, side, amount, len(limited))
                    found += [(reason, limited[0][0], short_by) for reason, short_by in broken]
        return found

    def _settle_legs(self, legs: list[Leg]) -> list[LegSource]:
        sources = []
        for place, leg in enumerate(legs):
            self._post(leg.source, leg.destination, leg.amount)
            account = self.accounts[leg.source]
            sources.append(LegSource(place, balance(account), len(account["entries"])))
            if leg.terms is not None and leg.terms.refund_of is not None:
                self.refunds.setdefault(leg.terms.refund_of, []).append(leg.amount)
            if leg.transfer_type == TRANSFER:
                self._count(leg.source, "out", leg.amount, 1)
                self._count(leg.destination, "in", leg.amount, 1)
        return sources


def kind_of(command: Any) -> TransferType | None:
    kinds = {PlaceHold: HOLD, VoidHold: VOID, ExtendHold: EXTEND, MoveLinked: None}
    kind: TransferType | None = kinds.get(type(command), getattr(command, "transfer_type", None))
    return kind


def compared(first: Any, filled: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """
    List what a repeat is compared by: the field, what it was and what it is.
    """
    if kind_of(first) != kind_of(now):
        return [("type", 1, 2)]
    if isinstance(first, MoveLinked):
        pairs = zip(range(len(first.legs)), first.legs, now.legs, strict=False)
        found = [("legs", len(first.legs), len(now.legs))]
        for place, then, leg in pairs:
            for field in Leg.__struct_fields__:
                if field != "transfer_id":
                    name = field.removeprefix("transfer_")
                    value = (getattr(then, field), getattr(leg, field))
                    found.append((f"legs/{place}/{name}", *value))
        return found
    if isinstance(first, VoidHold | ExtendHold):
        found = [("hold_id", first.hold_id, now.hold_id)]
        if isinstance(first, ExtendHold):
            found.append(("expires_in_s", first.lifetime_s, now.lifetime_s))
        return found
    return _compared_facts(first, filled, now)


def _compared_facts(first: Any, filled: Any, now: Any) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    kind = kind_of(first)
    for field in ("source", "destination", "currency", "amount", "reference", "metadata"):
        then, value = getattr(first, field), getattr(now, field)
        if kind == CAPTURE and field in ("destination", "currency"):
            then, value = getattr(filled, field), value or getattr(filled, field)
        chosen = {DEPOSIT: "source", CAPTURE: "source", WITHDRAWAL: "destination"}
        if chosen.get(kind) == field or (kind == FEE and field == "destination"):
            continue
        if field == "amount":
            found.append((field, _amount_max(first), _amount_max(now)))
            then, value = _amount_max(first) or then, _amount_max(now) or value
        found.append((field, then, value))
    if kind == HOLD:
        found.append(("expires_in_s", first.lifetime_s, now.lifetime_s))
    names = {"is_final": "final", "refund_of": "transfer_id"}
    for field in ("hold_id", "is_final", "refund_of", "if_version", "if_available_gte"):
        pair = [getattr(one.terms, field, None) or False for one in (first, now)]
        if field in ("if_version", "if_available_gte"):  # Here 0 is not the same as nothing.
            pair = [getattr(one.terms, field, None) for one in (first, now)]
        found.append((names.get(field, field), *pair))
    return found


def _amount_max(command: Any) -> int | None:
    return command.terms.amount_max if command.terms is not None else None
