"""
How a function becomes a command: its options, what it prints, how it fails.

A command takes a `Session` and its own parameters and returns an `Outcome`: the JSON document
and the same for people. `command` adds the options that all have, prints the one or the other,
and turns what can go wrong into words and an exit code.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, RenderableType
from rich.markup import escape

from configs.settings import SettingsError, load_settings
from gateway.cli.exit_codes import ExitCode

WIDTH_OF_PIPE = 200  # Nothing is folded where nobody looks at columns.


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH_OF_PIPE
    return console


out = _console(stderr=False)
err = _console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="The folder of the ledger (default: the settings')."),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="MILIANO_URL", help="Where the gateway is."),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="MILIANO_KEY",
        show_envvar=True,
        help="The API key; better in the environment than here.",
    ),
]
DsnOption = Annotated[
    str | None,
    typer.Option("--dsn", help="The database (default: that of the running ledger)."),
]


class Failure(Exception):
    """
    The command cannot do what was asked: *code* and *message* for people, *document* for JSON.
    """

    def __init__(self, code: ExitCode, message: str, document: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.document = document


class Outcome(msgspec.Struct, frozen=True):
    """
    What a command found: as JSON (bytes are JSON already), and for people.

    Nothing is printed for None: the command has printed itself.
    """

    document: Any
    shown: RenderableType | None
    code: ExitCode = ExitCode.OK


class Running(msgspec.Struct, frozen=True):
    """
    What `running.json` of a data folder says, as far as the command line reads it.
    """

    url: str
    dsn: str
    key_file: str

    def api_key(self) -> str:
        return read_own(Path(self.key_file)).decode().strip()


def read_own(path: Path) -> bytes:
    """
    Read a file of the data folder; raises Failure for whoever may not.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise Failure(
            ExitCode.NOT_REACHABLE,
            f"Cannot read {path}: {error.strerror}. Ask as the ledger's own user, or name another"
            " ledger with MILIANO_URL and MILIANO_KEY.",
        ) from error


class Session(msgspec.Struct, frozen=True):
    """
    The options of one run of a command.
    """

    as_json: bool
    data_dir: Path | None = None
    url: str | None = None
    api_key: str | None = None
    dsn: str | None = None

    @property
    def folder(self) -> Path:
        return self.data_dir or Path(load_settings().cluster.data_dir)

    def running(self) -> Running | None:
        """
        Read what the ledger of this folder says about itself; None when it does not run.
        """
        path = self.folder / "running.json"
        return msgspec.json.decode(read_own(path), type=Running) if path.exists() else None

    def require_running(self, instead: str) -> Running:
        running = self.running()
        if running is None:
            raise Failure(
                ExitCode.NOT_REACHABLE,
                f"No ledger runs in {self.folder}. Start one with `miliano up`, or {instead}.",
            )
        return running

    def database(self) -> str:
        """
        Name the database: the option, the settings, or what the running ledger uses.
        """
        dsn = self.dsn or load_settings().postgres.dsn
        return dsn or self.require_running("name a database with --dsn").dsn

    def say(self, text: str) -> None:
        """
        Tell people at once; a JSON document is not disturbed.
        """
        err.print(text, markup=False)


PLAIN = {"as_json": JsonOption, "data_dir": DataDirOption}
LEDGER = {"url": UrlOption, "api_key": ApiKeyOption, **PLAIN}
DATABASE = {"dsn": DsnOption, **PLAIN}


def command(
    app: typer.Typer, name: str, options: dict[str, Any], **settings: Any
) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
    """
    Make a function of a `Session` and its own parameters a command of *app*; *settings* are
    typer's.
    """

    def register(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        @functools.wraps(function)
        def run(**values: Any) -> None:
            session = Session(**{option: values.pop(option) for option in options})
            raise typer.Exit(_run(session, lambda: function(session, **values)))

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        shared = [_keyword(option, annotation) for option, annotation in options.items()]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + shared
        )
        app.command(name, **settings)(run)
        return function

    return register


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    default = False if annotation is JsonOption else None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _run(session: Session, function: Callable[[], Outcome]) -> int:
    try:
        outcome = function()
    except Failure as failure:
        _print_failure(session, failure)
        return failure.code
    except SettingsError as error:
        _print_failure(session, Failure(ExitCode.USAGE, f"The settings are wrong: {error}"))
        return ExitCode.USAGE
    if session.as_json:
        if outcome.document is not None:
            print_json(outcome.document)
    elif outcome.shown is not None:
        out.print(outcome.shown)
    return outcome.code


def print_json(document: Any) -> None:
    """
    Print one line of JSON at once.
    """
    encoded = document if isinstance(document, bytes) else msgspec.json.encode(document)
    sys.stdout.write(encoded.decode().rstrip("\n") + "\n")
    sys.stdout.flush()


def _print_failure(session: Session, failure: Failure) -> None:
    if session.as_json:
        print_json(failure.document or {"code": failure.code.name.lower(), "detail": str(failure)})
    else:
        err.print(f"[red]{escape(failure.message)}[/]")


@contextmanager
def database_errors() -> Iterator[None]:
    """
    Say in words that the database cannot be reached, or is not what this build needs.
    """
    from processor.storage.connection import UnsafeDatabase
    from processor.storage.schema import SchemaUnknown
    from processor.storage.session import STORE_ERRORS

    try:
        yield
    except (UnsafeDatabase, SchemaUnknown) as error:
        raise Failure(ExitCode.REFUSED, str(error)) from error
    except STORE_ERRORS as error:
        words = str(error) or type(error).__name__
        raise Failure(ExitCode.NOT_REACHABLE, f"The database cannot be used: {words}") from error
