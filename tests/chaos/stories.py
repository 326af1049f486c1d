"""
What a platform does besides paying: holds, refunds and linked transfers, some of which must fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.chaos.operations import (
    Asked,
    Capture,
    Heard,
    Linked,
    Operation,
    Placing,
    Refund,
    Voiding,
    movements,
)

AMOUNTS = (7, 50, 400)
TOO_MUCH = 20_000_000
LIFETIME_S = 86_400
SHORT_LIFETIME_S = 1
LEGS_MAX = 4
TRIES_MAX = 20
RECENT_COUNT = 500


@dataclass
class Story:
    """
    What is asked first, and once that is posted, after a pause, what is asked then: one after the
    other, or all at once.
    """

    first: list[Asked]
    then: list[Asked]
    at_once: bool
    pause_s: float = 0.0


def new_story(
    random: Random, new_key: Callable[[], str], wallets: list[str], asked: list[Asked]
) -> Story:
    """
    Think of a story; a refund is one of something in *asked* that was posted.
    """
    match random.random():
        case chance if chance < 0.4:
            return hold_story(random, new_key, wallets)
        case chance if chance < 0.7:
            original = _refundable(random, asked)
            if original is not None:
                return refund_story(random, new_key, original)
    return Story([linked_transfer(random, new_key(), wallets)], [], at_once=False)


def hold_story(random: Random, new_key: Callable[[], str], wallets: list[str]) -> Story:
    """
    Place a hold, and capture it in one part or two, void it, both, or leave it as it is.
    """
    amount = random.choice([*AMOUNTS, *AMOUNTS, TOO_MUCH])
    lifetime_s = SHORT_LIFETIME_S if random.random() < 0.15 else LIFETIME_S
    source = random.choice(wallets)
    hold = Placing(key=new_key(), source=source, amount=amount, lifetime_s=lifetime_s)
    then: list[Asked] = []
    for number in range(random.choice([0, 1, 1, 2, 2])):
        destination = random.choice([wallet for wallet in wallets if wallet != source])
        then.append(
            Capture(
                key=new_key(),
                source=source,
                destination=destination,
                amount=random.choice([amount, amount // 2, amount // 3, amount + 1]),
                hold=hold,
                is_final=number == 1 or random.random() < 0.5,
            )
        )
    if random.random() < 0.3:
        then.append(Voiding(key=new_key(), hold=hold))
    # What follows a short hold comes in time or too late.
    pause_s = random.uniform(0, 2) if lifetime_s == SHORT_LIFETIME_S else 0.0
    return Story([hold], then, at_once=random.random() < 0.4, pause_s=pause_s)


def refund_story(random: Random, new_key: Callable[[], str], original: Operation) -> Story:
    """
    Give back a movement in parts, which together may be more than it moved.
    """
    parts = [original.amount, original.amount // 2, original.amount // 3, original.amount + 1]
    refunds: list[Asked] = [
        Refund(
            key=new_key(),
            source=original.destination,
            destination=original.source,
            amount=max(1, random.choice(parts)),
            original=original,
        )
        for _ in range(random.randint(1, 3))
    ]
    return Story([], refunds, at_once=random.random() < 0.5)


def linked_transfer(random: Random, key: str, wallets: list[str]) -> Linked:
    """
    Link two to four movements over any wallets; of some one leg asks for more than there is.
    """
    legs = []
    for place in range(random.randint(2, LEGS_MAX)):
        source, destination = random.sample(wallets, 2)
        is_fee = place > 0 and random.random() < 0.2
        legs.append(
            Operation(
                key=f"{key}/{place}",
                source=source,
                destination=None if is_fee else destination,
                amount=random.choice(AMOUNTS),
            )
        )
    if random.random() < 0.25:
        random.choice(legs).amount = TOO_MUCH
    return Linked(key=key, legs=legs)


def _refundable(random: Random, asked: list[Asked]) -> Operation | None:
    """
    Choose something recent that was posted from wallet to wallet and is no refund itself.
    """
    for _ in range(TRIES_MAX):
        for one in movements([random.choice(asked[-RECENT_COUNT:])]):
            is_between = one.source is not None and one.destination is not None
            if is_between and one.outcome is Heard.POSTED and not isinstance(one, Refund):
                return one
    return None
