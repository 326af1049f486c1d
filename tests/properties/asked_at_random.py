"""
What clients ask at random: every command, mostly sound, over a few wallets and keys.

`Random` decides, so that hypothesis (by `st.randoms`) and long runs with a seed draw alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from msgspec.structs import replace

from processor.core.amounts import AMOUNT_MAX
from processor.core.commands import (
    Command,
    Leg,
    MoveLinked,
    MoveMoney,
    PlaceHold,
    ReadHold,
    SetWalletLimits,
    Terms,
    TransferType,
    key_of,
)
from processor.core.limits import Limits, Velocity
from tests.support.bound_commands import (
    capture,
    extend,
    fee,
    fee_leg,
    leg,
    linked,
    on_terms,
    place,
    refund,
    up_to,
    void,
)
from tests.support.commands import deposit, identifier, transfer, withdrawal

LIFETIMES_S = (1, 2, 5, 30)


class Paid:
    """
    A transfer that may be taken back, as a gateway knows it from its row.
    """

    def __init__(self, name: str, payer: str, payee: str, amount: int) -> None:
        self.name = name
        self.payer = payer
        self.payee = payee
        self.amount = amount


class Client:
    """
    A client that knows which holds it has placed, and what it has paid.
    """

    def __init__(
        self,
        chance: Random,
        wallets: Sequence[str],
        *,
        amounts: Sequence[int],
        strange: float = 0.1,
        shard_count: int = 1,
        keys_again: int = 12,
    ) -> None:
        self.chance = chance
        self.wallets = wallets
        self.amounts = amounts
        self.strange = strange  # How often something does not fit.
        self.shard_count = shard_count
        self.keys_again = keys_again  # One in so many has another command's key; 0 is none.
        self.number = 0
        self.holds: list[bytes] = []
        self.paid: list[Paid] = []
        self.keyed: list[Any] = []

    # --- Bits -----------------------------------------------------------------------------

    def _is(self, likely: float) -> bool:
        return self.chance.random() < likely

    def _wallet(self) -> str:
        return self.chance.choice(self.wallets)

    def _amount(self) -> int:
        return self.chance.choice(self.amounts)

    def _key(self) -> str:
        self.number += 1
        return f"{self.number}"

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"key": self._key()}
        if self._is(self.strange):
            options["merchant_id"] = "globex"
        if self._is(self.strange):
            options["currency"] = "USD"
        if self._is(self.strange):
            options["reference"] = "another"
        return options

    def _conditions(self) -> dict[str, int]:
        return self.chance.choice(
            (
                {"if_version": self.chance.randrange(6)},
                {"if_available_gte": self.chance.randrange(60)},
                {"if_version": 1, "if_available_gte": 20},
            )
        )

    # --- Movements ------------------------------------------------------------------------

    def movement(self) -> MoveMoney:
        kind = self.chance.choice((0, 0, 1, 2, 2, 2))
        options, amount = self._options(), self._amount()
        if kind == 0:
            command = deposit(self._wallet(), amount, **options)
        elif kind == 1:
            command = withdrawal(self._wallet(), amount, **options)
        else:
            command = transfer(self._wallet(), self._wallet(), amount, **options)
        if self._is(0.1):
            command = on_terms(command, **self._conditions())
        if self._is(0.1) and kind > 0:
            command = up_to(command)
        return command

    def place_hold(self) -> PlaceHold:
        options = self._options()
        reference = options.pop("reference", None)
        destination = self._wallet() if self._is(0.5) else ""
        lifetime_s = self.chance.choice(LIFETIMES_S)
        made = place(
            self._wallet(),
            self._amount(),
            destination=destination,
            lifetime_s=lifetime_s,
            **options,
        )
        self.holds.append(made.hold_id)
        made = replace(made, reference=reference)
        return on_terms(made, **self._conditions()) if self._is(0.1) else made

    def _hold_id(self) -> bytes:
        if not self.holds or self._is(self.strange / 4):
            return identifier(f"hold {self.number}")
        # Mostly a young one, which is open still.
        return self.chance.choice(self.holds[-6:] if self._is(0.8) else self.holds)

    def capture(self) -> MoveMoney:
        options = self._options()
        options["currency"] = options.get("currency", "")
        amount = None if self._is(0.3) else self._amount()
        destination = self._wallet() if self._is(0.6) else ""
        is_final = self.chance.choice((None, None, True, False))
        return capture(self._hold_id(), amount, destination, is_final=is_final, **options)

    def void(self) -> Command:
        return void(self._hold_id(), key=self._key(), merchant_id=self._merchant())

    def extend(self) -> Command:
        lifetime_s = self.chance.choice(LIFETIMES_S)
        hold_id, merchant_id = self._hold_id(), self._merchant()
        return extend(hold_id, lifetime_s, key=self._key(), merchant_id=merchant_id)

    def _merchant(self) -> str:
        return "globex" if self._is(self.strange / 2) else "acme"

    def read_hold(self) -> Command:
        return ReadHold(self._merchant(), self._hold_id())

    def refund(self) -> Command:
        if not self.paid:
            return self.movement()
        paid = self._paid()
        amount = None if self._is(0.3) else self._amount()
        return refund(
            paid.name, paid.payee, paid.payer, amount, refundable=paid.amount, **self._options()
        )

    def _paid(self) -> Paid:
        return self.chance.choice(self.paid[-4:])

    def fee(self) -> MoveMoney:
        return fee(self._wallet(), self._amount(), **self._options())

    def sweep(self) -> MoveMoney:
        fees = f"$fees:{self.chance.randrange(self.shard_count)}:EUR:acme"
        return up_to(transfer(fees, self._wallet(), AMOUNT_MAX, **self._options()))

    def linked(self) -> MoveLinked:
        legs = [self._leg(place) for place in range(self.chance.randrange(1, 5))]
        return linked(*legs, key=self._key(), merchant_id=self._merchant())

    def _leg(self, place: int) -> Leg:
        name, kind = f"{self.number} {place}", self.chance.randrange(8)
        currency = "USD" if self._is(self.strange / 4) else "EUR"
        if kind == 0:
            return fee_leg(self._wallet(), self._amount(), name=name, currency=currency)
        if kind == 1 and self.paid:
            paid = self._paid()
            terms = Terms(refund_of=identifier(f"transfer of {paid.name}"), refundable=paid.amount)
            return leg(
                paid.payee,
                paid.payer,
                self._amount(),
                transfer_type=TransferType.REFUND,
                name=name,
                terms=terms,
            )
        return leg(self._wallet(), self._wallet(), self._amount(), name=name, currency=currency)

    # --- Limits ---------------------------------------------------------------------------

    def set_limits(self, wallet_id: str | None = None) -> SetWalletLimits:
        minimum = self.chance.choice((None, None, None, 0, 0, -30, 5))
        name = wallet_id or self._wallet()
        return SetWalletLimits(self._merchant(), name, minimum, self.limits())

    def limits(self) -> Limits | None:
        if self._is(0.2):
            return None
        return Limits(self._velocity(), self._velocity(), self.chance.choice((None, None, 90, 250)))

    def _velocity(self) -> Velocity:
        def bound(*choice: int | None) -> int | None:
            return self.chance.choice((None, None, *choice))

        return Velocity(bound(3, 9), bound(50), bound(5, 30), bound(90, 200))

    # --- Asked ----------------------------------------------------------------------------

    def money(self) -> Command:
        """
        Draw a command that moves money or sets it aside.
        """
        makes: list[tuple[Callable[[], Command], int]] = [
            (self.movement, 10),
            (self.place_hold, 4),
            (self.capture, 4),
            (self.void, 1),
            (self.extend, 1),
            (self.read_hold, 1),
            (self.refund, 3),
            (self.fee, 2),
            (self.sweep, 1),
            (self.linked, 6),
        ]
        (make,) = self.chance.choices([one for one, _ in makes], [weight for _, weight in makes])
        command: Any = make()
        if self.keys_again and self.keyed and key_of(command) is not None:
            command = self._under_a_used_key(command)
        if key_of(command) is not None:
            self.keyed.append(command)
        return command

    def _under_a_used_key(self, command: Any) -> Any:
        if self.chance.randrange(self.keys_again):
            return command
        return replace(command, key=self.chance.choice(self.keyed).key)

    def again(self) -> Any:
        """
        Draw an earlier command with a key, under another id.
        """
        return self.under_another_id(self.chance.choice(self.keyed))

    def under_another_id(self, command: Any) -> Any:
        self.number += 1
        if isinstance(command, PlaceHold):
            # Its low bits have to stay: they are the slot of its wallet.
            made = identifier(f"again {self.number}")
            return replace(command, hold_id=made[:14] + command.hold_id[14:])
        field = "linked_id" if isinstance(command, MoveLinked) else "transfer_id"
        return replace(command, **{field: identifier(f"again {self.number}")})

    def heard_of(self, command: MoveMoney, amount: int) -> None:
        """
        Take in that *command* has moved *amount*; a transfer may be taken back.
        """
        if command.transfer_type == TransferType.TRANSFER and not command.source.startswith("$"):
            name = f"paid {len(self.paid)}"
            self.paid.append(Paid(name, command.source, command.destination, amount))
