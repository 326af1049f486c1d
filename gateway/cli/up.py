"""
`miliano up`: a whole ledger on this machine, until Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.markup import escape

from configs.settings import load_settings
from gateway.cli.commands import PLAIN, Failure, Outcome, Session, command, out, print_json
from gateway.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from actors.supervisor import Running, Supervisor

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Runtime(StrEnum):
    """
    Where shards and write-behind run.
    """

    RAY = "ray"
    PROCESS = "process"


def register(app: typer.Typer) -> None:
    command(app, "up", PLAIN)(up)


def up(
    session: Session,
    runtime: Annotated[
        Runtime | None, typer.Option("--runtime", help="Where the actors run (default: ray).")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Where to listen.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="0 is any free one.")
    ] = None,
) -> Outcome:
    """
    Run a ledger here: database, shards, write-behind and gateway. Ctrl-C stops it.

    The data stays in the data folder and is found again.
    """
    chosen = {
        "MILIANO_CLUSTER_DATA_DIR": session.data_dir and str(session.data_dir.absolute()),
        "MILIANO_CLUSTER_RUNTIME": runtime,
        "MILIANO_GATEWAY_HOST": host,
        "MILIANO_GATEWAY_PORT": port,
    }
    # The parts are processes of their own and read their settings from the environment.
    os.environ.update({name: str(value) for name, value in chosen.items() if value is not None})
    _log_to_stderr()
    stop = threading.Event()
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    try:
        supervisor, running = _start(session)
    except KeyboardInterrupt:
        return Outcome(None, "stopped before it was up")
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    try:
        _tell(session, supervisor, running)
        supervisor.watch(stop)
    finally:
        session.say("stopping")
        supervisor.stop()
    return Outcome(None, f"stopped; the data is in {escape(str(supervisor.data_dir))}")


def _start(session: Session) -> tuple[Supervisor, Running]:
    # Only here: this loads the machinery of every part, and Ray when it is wanted.
    from actors.supervisor import AlreadyRunning, NotServing, Supervisor
    from processor.storage.connection import UnsafeDatabase
    from processor.storage.embedded_postgres import EmbeddedPostgresError
    from processor.storage.schema import SchemaUnknown
    from processor.storage.session import STORE_ERRORS

    said = (AlreadyRunning, NotServing, EmbeddedPostgresError, UnsafeDatabase, SchemaUnknown)

    supervisor = Supervisor(load_settings(), progress=session.say)
    try:
        return supervisor, supervisor.start()
    except said as error:
        raise Failure(ExitCode.NOT_STARTED, str(error)) from error
    except STORE_ERRORS as error:
        words = f"{type(error).__name__}: {error}"
        raise Failure(ExitCode.NOT_STARTED, words) from error


def _tell(session: Session, supervisor: Supervisor, running: Running) -> None:
    if session.as_json:
        document = {
            "ready": not supervisor.halted,
            **msgspec.to_builtins(running),
            "new_key": supervisor.new_key,
        }
        del document["dsn"]  # It may hold a password, and logs are kept.
        print_json(document)
        return
    for shard_id, reason in supervisor.halted.items():
        out.print(f"[bold red]shard {shard_id} is halted:[/] {escape(reason)}")
    ready = "[bold red]not ready[/]" if supervisor.halted else "[bold green]ready[/]"
    out.print(f"{ready} at [bold]{running.url}[/]  (reference: {running.url}/docs)")
    if supervisor.new_key is not None:
        out.print(f"API key: {supervisor.new_key}")
    out.print(f"key file: {escape(running.key_file)}")
    out.print(f"logs:     {escape(running.log_dir)}")
    out.print("Ctrl-C stops it; the data stays.")


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _log_to_stderr() -> None:
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
