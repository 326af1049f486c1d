"""
`miliano keys`: merchants' API keys, made on the database itself.

The API makes keys too, for whoever has one that may. This is for the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Group

from gateway.cli.commands import DATABASE, Failure, Outcome, Session, command, database_errors
from gateway.cli.exit_codes import ExitCode
from gateway.cli.tables import facts, table

if TYPE_CHECKING:
    from processor.storage.api_keys import ApiKey
    from processor.storage.connection import Connection

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

Found = TypeVar("Found")
Merchant = Annotated[str, typer.Option("--merchant", metavar="ID", help="Whose.")]
NewMerchant = Annotated[
    str,
    typer.Option(
        "--merchant",
        metavar="ID",
        help="Whose: 1 to 32 of A-Z a-z 0-9 . _ - beginning with a letter or a digit.",
    ),
]

FIRST_MERCHANT = "first"  # The one that `miliano up` makes.


@command(app, "create", DATABASE)
def create(
    session: Session,
    merchant: NewMerchant = FIRST_MERCHANT,
    merchant_name: Annotated[
        str, typer.Option("--merchant-name", help="For a merchant that is new.")
    ] = "",
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", help="What it may do; several times (default: everything)."),
    ] = None,
    label: Annotated[str, typer.Option("--label", help="Your own words.")] = "",
) -> Outcome:
    """
    Make an API key, and the merchant if it is new. The key is shown once.
    """
    from processor.storage.api_keys import MerchantIdUnfit, Scope, create_key, create_merchant

    unknown = sorted({*(scopes or [])} - {*Scope})
    if unknown:
        words = f"There is no scope {', '.join(unknown)}; there are {', '.join(Scope)}."
        raise Failure(ExitCode.USAGE, words)
    granted = {Scope(scope) for scope in scopes} if scopes else {*Scope}

    async def make(connection: Connection) -> tuple[ApiKey, str]:
        await create_merchant(connection, merchant, merchant_name or merchant)
        return await create_key(connection, merchant, granted, label)

    try:
        key, text = _on_database(session, make)
    except MerchantIdUnfit as error:
        raise Failure(ExitCode.USAGE, str(error)) from error
    shown = facts([("key", text), ("id", key.key_id), ("merchant", merchant)])
    return Outcome(
        {**_document(key), "key": text}, Group(shown, "Keep it: it is never shown again.")
    )


@command(app, "list", DATABASE)
def list_all(session: Session, merchant: Merchant = FIRST_MERCHANT) -> Outcome:
    """
    List a merchant's keys, revoked ones too, without their secrets.
    """
    from processor.storage.api_keys import list_keys

    keys = _on_database(session, lambda connection: list_keys(connection, merchant))
    rows = [
        (
            key.key_id,
            f"{key.created_at:%Y-%m-%d %H:%M}",
            "revoked" if key.revoked_at else "in force",
            key.label,
            " ".join(sorted(key.scopes)),
        )
        for key in keys
    ]
    shown = table(["id", "made", "state", "label", "scopes"], rows)
    return Outcome({"api_keys": [_document(key) for key in keys]}, shown)


@command(app, "revoke", DATABASE)
def revoke(
    session: Session,
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="As `keys list` shows it.")],
    merchant: Merchant = FIRST_MERCHANT,
) -> Outcome:
    """
    End a key for ever; within 30 seconds no gateway takes it any more.
    """
    from processor.storage.api_keys import revoke_key

    if not _on_database(session, lambda connection: revoke_key(connection, merchant, key_id)):
        words = f"The merchant {merchant} has no key {key_id} in force."
        raise Failure(ExitCode.REFUSED, words)
    return Outcome({"key_id": key_id, "revoked": True}, f"{key_id} is revoked.")


def _on_database(session: Session, work: Callable[[Connection], Awaitable[Found]]) -> Found:
    from processor.storage.connection import connect

    async def run(dsn: str) -> Found:
        connection = await connect(dsn, application_name="miliano/keys")
        try:
            return await work(connection)
        finally:
            await connection.close()

    dsn = session.database().split()[0]  # Of several, the first has the keys.
    with database_errors():
        return asyncio.run(run(dsn))


def _document(key: ApiKey) -> dict[str, object]:
    return {
        "key_id": key.key_id,
        "merchant_id": key.merchant_id,
        "scopes": sorted(key.scopes),
        "label": key.label,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }
