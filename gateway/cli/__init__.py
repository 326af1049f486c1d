"""
The command line: `miliano`.

Rule 1: every command has `--json`: then standard output is one JSON document, what the API
        answered where it was asked, and nothing else; a failure too is a document.
Rule 2: what went wrong is said in words, with its code and what to do, and the exit code is one
        of `exit_codes`.
Rule 3: `miliano --help` is quick: a module imports at its head only what help needs. What a
        command needs is imported when it runs; Ray only by `up`.

Most commands speak HTTP with the gateway, as any client does. `verify`, `db` and `keys` read the
database itself: they are the operator's.
"""

from __future__ import annotations

from gateway.cli.application import app


def main() -> None:
    app()
