"""
`miliano wallets limits`: how much and how often.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Group

from gateway.cli.amounts import amount_text
from gateway.cli.commands import LEDGER, Failure, Outcome, Session, command
from gateway.cli.exit_codes import ExitCode
from gateway.cli.ledger import Answer, open_ledger
from gateway.cli.tables import facts, table
from gateway.wire import Wallet, WalletLimits, WalletUsage

SIDES = ("debits", "credits")
WINDOWS = ("hour_count", "hour_amount", "day_count", "day_amount")

Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=NUMBER",
        help="For example debits.day_amount=100000, credits.hour_count=20 or balance_max=500000;"
        " `none` in place of the number lifts it. Amounts are in minor units.",
    ),
]


def register(app: typer.Typer) -> None:
    command(app, "limits", LEDGER)(limits)


def limits(
    session: Session,
    wallet_id: Annotated[str, typer.Argument(metavar="WALLET", help="The wallet's id.")],
    settings: Limits = None,
    lift: Annotated[bool, typer.Option("--lift", help="First lift all that there are.")] = False,
) -> Outcome:
    """
    Show a wallet's limits and what is used of them; with --set or --lift, change them.
    """
    path = f"/v1/wallets/{quote(wallet_id, safe='')}"
    with open_ledger(session) as ledger:
        answer = ledger.get(path, Wallet)
        if settings or lift:
            wanted = {} if lift or answer.body.limits is None else fields_of(answer.body.limits)
            for setting in settings or []:
                set_limit(wanted, setting)
            answer = ledger.send("PATCH", path, Wallet, {"limits": wanted})
    return _outcome(answer)


def fields_of(limits: WalletLimits) -> dict[str, Any]:
    """
    Write limits as a request's object.
    """
    fields: dict[str, Any] = {
        side: {window: of(limits, side, window) for window in WINDOWS} for side in SIDES
    }
    return fields | {"balance_max": limits.balance_max}


def set_limit(wanted: dict[str, Any], setting: str) -> None:
    """
    Take `debits.day_amount=100000` into *wanted*; raises Failure.
    """
    name, _, text = setting.partition("=")
    side, _, window = name.partition(".")
    is_known = name == "balance_max" or (side in SIDES and window in WINDOWS)
    if not is_known or not (text == "none" or text.isdecimal()):
        names = ", ".join(f"{side}.{window}" for side in SIDES for window in WINDOWS)
        words = f"{setting!r} is no limit: write NAME=NUMBER or NAME=none, with one of {names}"
        raise Failure(ExitCode.USAGE, f"{words}, balance_max.")
    bound = None if text == "none" else int(text)
    if window:
        wanted.setdefault(side, {})[window] = bound
    else:
        wanted[name] = bound


def _outcome(answer: Answer[Wallet]) -> Outcome:
    wallet = answer.body
    limits, usage = wallet.limits, wallet.usage
    if limits is None or usage is None:
        return Outcome(answer.raw, f"{wallet.wallet_id} has no limits")
    rows = [
        (f"{side}.{window}", *_cells(window, bound, used, wallet.currency))
        for side in SIDES
        for window in WINDOWS
        for bound, used in [(of(limits, side, window), of(usage, side, window))]
        if bound is not None and used is not None
    ]
    if limits.balance_max is not None:
        cells = _cells("amount", limits.balance_max, wallet.balance, wallet.currency)
        rows.append(("balance_max", *cells))
    ends = facts(
        [
            ("this hour ends", usage.hour_ends_at[:19].replace("T", " ")),
            ("this day ends", usage.day_ends_at[:19].replace("T", " ")),
        ]
    )
    return Outcome(answer.raw, Group(table(["limit", "at most>", "used>"], rows), ends))


def of(both: WalletLimits | WalletUsage, side: str, window: str) -> int | None:
    """
    Return one number of limits, or of what is used of them.
    """
    number: int | None = getattr(getattr(both, side), window)
    return number


def _cells(window: str, bound: int, used: int, currency: str) -> tuple[str, str]:
    if window.endswith("count"):
        return f"{bound:,}", f"{used:,}"
    return amount_text(bound, currency), amount_text(used, currency)
