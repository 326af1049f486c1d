"""
`miliano status`: is the ledger well?

The gateway tells what matters. On the ledger's own machine the catalog adds the processes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import typer
from rich.console import Group
from rich.markup import escape

from gateway.cli.commands import LEDGER, Failure, Outcome, Session, command, database_errors
from gateway.cli.exit_codes import ExitCode
from gateway.cli.ledger import open_ledger
from gateway.cli.tables import facts, table
from gateway.wire import ShardHealth

if TYPE_CHECKING:
    from processor.storage.directory import ShardEntry


class ShardStatus(msgspec.Struct, frozen=True):
    """
    One shard: what the gateway says, and its process as the catalog knows it.
    """

    shard: int
    phase: str
    epoch: int
    sequence: int
    projected_sequence: int
    lag_records: int
    pid: int | None
    build: str | None
    halted_for: str | None


class Status(msgspec.Struct, frozen=True):
    """
    The whole ledger at a moment.
    """

    ready: bool
    url: str
    durability: str
    database: str
    shards: list[ShardStatus]


def register(app: typer.Typer) -> None:
    command(app, "status", LEDGER)(status)


def status(session: Session) -> Outcome:
    """
    Show the health of gateway, shards, write-behind and database; 3 when money does not move.
    """
    with open_ledger(session, with_key=False) as ledger:
        url, health = ledger.url, ledger.health()
    entries = _entries(session, url)
    shards = [_shard(shard, entries.get(shard.shard)) for shard in health.shards]
    found = Status(health.ready, url, health.durability, health.database, shards)
    code = ExitCode.OK if health.ready else ExitCode.NOT_REACHABLE
    return Outcome(found, _shown(found), code)


def _entries(session: Session, url: str) -> dict[int, ShardEntry]:
    """
    Read the catalog, if the gateway is that of this data folder and the database answers.
    """
    running = session.running()
    if running is None or running.url != url:
        return {}
    # Late: they read the database's driver.
    from processor.storage.connection import connect
    from processor.storage.directory import read_directory

    async def read() -> dict[int, ShardEntry]:
        found = {}
        for dsn in running.dsn.split():
            connection = await connect(dsn, application_name="miliano/status")
            try:
                found.update({e.shard_id: e for e in await read_directory(connection)})
            finally:
                await connection.close()
        return found

    try:
        with database_errors():
            return asyncio.run(read())
    except Failure:
        return {}


def _shard(health: ShardHealth, entry: ShardEntry | None) -> ShardStatus:
    phase = "serving" if health.connected else "recovering"
    return ShardStatus(
        health.shard,
        "halted" if health.state == "halted" else phase,
        health.epoch,
        health.sequence,
        health.projected_sequence,
        health.lag_records,
        entry.pid if entry is not None else None,
        entry.build if entry is not None else None,
        health.halted_for,
    )


def _shown(found: Status) -> Group:
    ready = "[bold green]ready[/]" if found.ready else "[bold red]not ready[/]"
    rows = [
        ("gateway", found.url),
        ("database", found.database),
        ("durability", found.durability),
    ]
    columns = ["shard>", "phase", "epoch>", "sequence>", "in the tables>", "lag>", "pid", "build"]
    shards = [
        (
            shard.shard,
            shard.phase,
            shard.epoch,
            shard.sequence,
            shard.projected_sequence,
            shard.lag_records,
            None if shard.pid is None else str(shard.pid),
            shard.build,
        )
        for shard in found.shards
    ]
    halted = [
        f"shard {shard.shard} is halted: {escape(shard.halted_for)}"
        for shard in found.shards
        if shard.halted_for
    ]
    return Group(ready, facts(rows), table(columns, shards), *halted)
