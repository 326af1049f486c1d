"""
The ledger as a client sees it: HTTP, its refusals, and what is not known after an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from gateway.cli.commands import Failure, Session
from gateway.cli.exit_codes import ExitCode
from gateway.problems import Problem
from gateway.wire import Health

TIMEOUT_S = 30.0

Body = TypeVar("Body")


class Answer(msgspec.Struct, Generic[Body], frozen=True):
    """
    A good reply: its body as it came and as a struct.
    """

    raw: bytes
    body: Body
    status: int
    replayed: bool


class _NotMoved(msgspec.Struct, frozen=True):
    """
    By how much a movement failed, where the ledger says so.
    """

    short_by: int | None = None


class _Refused(Problem, frozen=True):
    """
    A problem with what did not happen inside.
    """

    transfer: _NotMoved | None = None
    linked_transfer: _NotMoved | None = None


class Ledger:
    """
    One gateway and the key to it.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        # Late: help needs no HTTP.
        import httpx2

        self.url = url
        self._http = httpx2
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # Certificates take long to load, and only TLS needs them.
        is_tls = url.startswith("https:")
        self._client = httpx2.Client(
            base_url=url, headers=headers, timeout=TIMEOUT_S, verify=is_tls
        )

    def close(self) -> None:
        self._client.close()

    def get(
        self, path: str, body: type[Body], query: Mapping[str, Any] | None = None
    ) -> Answer[Body]:
        """
        Read something; raises Failure.
        """
        chosen = {name: value for name, value in (query or {}).items() if value is not None}
        return self._call("GET", path, body, params=chosen)

    def health(self) -> Health:
        """
        Ask how the ledger is, be it ready or not; raises Failure when nobody answers.
        """
        with self._errors("GET"):
            reply = self._client.get("/v1/health")
        try:
            return msgspec.json.decode(reply.content, type=Health)
        except msgspec.DecodeError:
            raise _failure(reply.status_code, reply.content) from None

    def send(
        self,
        method: str,
        path: str,
        body: type[Body],
        value: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
    ) -> Answer[Body]:
        """
        Ask for a change, with the fields of *value* that are set; raises Failure.
        """
        headers = {"content-type": "application/json"}
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        fields = {name: field for name, field in value.items() if field is not None}
        return self._call(method, path, body, content=msgspec.json.encode(fields), headers=headers)

    def send_file(
        self, path: str, body: type[Body], file: Path, media_type: str, query: Mapping[str, Any]
    ) -> Answer[Body]:
        """
        Send a whole file as the body; raises Failure.
        """
        chosen = {name: value for name, value in query.items() if value is not None}
        headers = {"content-type": media_type}
        with file.open("rb") as content:
            return self._call("POST", path, body, params=chosen, headers=headers, content=content)

    def pieces(self, path: str) -> Iterator[bytes]:
        """
        Read a reply of any length, piece by piece; raises Failure.
        """
        with self._errors("GET"), self._client.stream("GET", path) as reply:
            if not reply.is_success:
                reply.read()
                raise _failure(reply.status_code, reply.content)
            yield from reply.iter_bytes()

    def _call(self, method: str, path: str, body: type[Body], **arguments: Any) -> Answer[Body]:
        with self._errors(method):
            reply = self._client.request(method, path, **arguments)
        if not reply.is_success:
            raise _failure(reply.status_code, reply.content)
        return Answer(
            reply.content,
            msgspec.json.decode(reply.content, type=body),
            reply.status_code,
            reply.headers.get("idempotent-replayed") == "true",
        )

    @contextmanager
    def _errors(self, method: str) -> Iterator[None]:
        """
        Tell what never was sent from what may have been done.
        """
        http = self._http
        try:
            yield
        except (http.ConnectError, http.ConnectTimeout, http.UnsupportedProtocol) as error:
            raise Failure(
                ExitCode.NOT_REACHABLE,
                f"Nothing answers at {self.url}: {error}. Is the ledger running? (`miliano up`)",
            ) from error
        except http.TransportError as error:
            words = f"The connection to {self.url} broke: {error or type(error).__name__}."
            if method == "GET":
                raise Failure(ExitCode.NOT_REACHABLE, words) from error
            raise Failure(
                ExitCode.OUTCOME_UNKNOWN,
                f"{words}\nWhether it was done is not known; asking again tells.",
            ) from error


@contextmanager
def open_ledger(session: Session, *, with_key: bool = True) -> Iterator[Ledger]:
    """
    Find the gateway: the options or the environment, else the ledger of the data folder.
    """
    url, api_key = session.url, session.api_key
    if url is None or (api_key is None and with_key):
        running = session.running()
        if url is None:
            url = session.require_running("say where it is with --url").url
        if api_key is None and running is not None and running.url == url:
            api_key = running.api_key()
    if api_key is None and with_key:
        raise Failure(ExitCode.USAGE, "There is no API key: set MILIANO_KEY, or use --api-key.")
    ledger = Ledger(url, api_key if with_key else None)
    try:
        yield ledger
    finally:
        ledger.close()


def _failure(status: int, content: bytes) -> Failure:
    """
    Read a refusal; one without a problem's body comes from something in between.
    """
    try:
        problem = msgspec.json.decode(content, type=_Refused)
    except msgspec.DecodeError:
        code = ExitCode.OUTCOME_UNKNOWN if status >= 500 else ExitCode.REFUSED
        return Failure(code, f"The reply has status {status} and is not the ledger's.")
    lines = [f"{problem.title} ({problem.code})", problem.detail]
    for error in problem.errors:
        where = error.parameter or error.pointer or "the body"
        lines.append(f"  {where}: {error.detail} ({error.code})")
    not_moved = problem.transfer or problem.linked_transfer
    if not_moved is not None and not_moved.short_by is not None:
        lines.append(f"  short_by: {not_moved.short_by:,}")
    return Failure(_exit_code(problem), "\n".join(lines), content)


def _exit_code(problem: Problem) -> ExitCode:
    if problem.outcome == "unknown":
        return ExitCode.OUTCOME_UNKNOWN
    return ExitCode.NOT_REACHABLE if problem.status >= 500 else ExitCode.REFUSED
