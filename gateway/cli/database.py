"""
`miliano db`: the schema of every database of the ledger.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.commands import DATABASE, Failure, Outcome, Session, command, database_errors
from gateway.cli.exit_codes import ExitCode
from gateway.cli.tables import table

if TYPE_CHECKING:
    from processor.storage.schema import Revision

app = typer.Typer(help="Look after the database's schema.", no_args_is_help=True)


@command(app, "migrate", DATABASE)
def migrate(session: Session) -> Outcome:
    """
    Bring the schema up to date, and make the databases that are missing.
    """
    dsns = session.database().split()
    with database_errors():
        from processor.storage import schema

        applied = []
        for dsn in dsns:
            schema.ensure_database(dsn)
            applied += schema.migrate(dsn)
        return _outcome(_distinct(applied), "The schema is up to date.")


@command(app, "rollback", DATABASE)
def rollback(
    session: Session,
    steps: Annotated[int, typer.Option("--steps", min=1, help="How many migrations.")] = 1,
    yes: Annotated[bool, typer.Option("--yes", help="Really, data included.")] = False,
) -> Outcome:
    """
    Take back the newest migrations, with the data in their tables.
    """
    dsns = session.database().split()
    if not yes:
        raise Failure(
            ExitCode.USAGE, "This drops tables with their data: say --yes if you want that."
        )
    with database_errors():
        from processor.storage import schema

        taken_back = [revision for dsn in dsns for revision in schema.rollback(dsn, steps)]
        return _outcome(_distinct(taken_back), "There was nothing to take back.")


@command(app, "status", DATABASE)
def show_status(session: Session) -> Outcome:
    """
    List the migrations of this build, and which of them all databases have.
    """
    dsns = session.database().split()
    with database_errors():
        from processor.storage import schema

        found = [revision for dsn in dsns for revision in schema.schema_status(dsn)]
        missing = {revision.revision for revision in found if not revision.applied}
        everywhere = [r for r in found if r.applied == (r.revision not in missing)]
        return _outcome(_distinct(everywhere), "")


@command(app, "resume", DATABASE)
def resume(
    session: Session,
    shard: Annotated[int, typer.Argument(metavar="SHARD", min=0, help="The shard's number.")],
) -> Outcome:
    """
    Let a halted shard recover at its next start. Make sure first that `verify` is clean.
    """

    async def run() -> bool:
        resumed = False
        for dsn in dsns:
            connection = await connect(dsn, application_name="miliano/resume")
            try:
                resumed |= await resume_shard(connection, shard)
            finally:
                await connection.close()
        return resumed

    dsns = session.database().split()
    with database_errors():
        from processor.storage.connection import connect
        from processor.storage.directory import resume_shard

        if not asyncio.run(run()):
            raise Failure(ExitCode.REFUSED, f"Shard {shard} is not halted.")
    shown = f"Shard {shard} is active; it recovers when `miliano up` starts the next time."
    return Outcome({"shard": shard, "state": "active"}, shown)


def _distinct(revisions: list[Revision]) -> list[Revision]:
    """
    Leave out what another database has said already.
    """
    return list({revision.revision: revision for revision in revisions}.values())


def _outcome(revisions: list[Revision], nothing: str) -> Outcome:
    rows = [(r.revision, r.name, "applied" if r.applied else "missing") for r in revisions]
    shown = table(["migration", "name", "state"], rows) if rows else nothing
    return Outcome({"migrations": revisions}, shown)
