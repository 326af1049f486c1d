"""
Sending something under an idempotency key.

Rule: a key that is made here is told before anything is sent: whatever happens then, the same
      command with that key gives the one true outcome.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import typer

from gateway.cli.commands import Failure, Session
from gateway.cli.exit_codes import ExitCode
from gateway.cli.ledger import Answer, open_ledger

Key = Annotated[
    str | None,
    typer.Option("--key", help="The idempotency key (default: one is made and told)."),
]

Body = TypeVar("Body")


def post_once(
    session: Session, path: str, body: type[Body], value: Mapping[str, Any], key: str | None
) -> Answer[Body]:
    """
    Post the fields of *value* that are set; raises Failure.
    """
    with open_ledger(session) as ledger:
        if key is None:
            key = f"cli-{uuid.uuid4()}"
            session.say(f"idempotency key: {key}")
        try:
            return ledger.send("POST", path, body, value, idempotency_key=key)
        except Failure as failure:
            if failure.code is not ExitCode.OUTCOME_UNKNOWN:
                raise
            words = f"{failure}\nSend the same command again with --key {key}"
            raise Failure(failure.code, words, failure.document) from failure
