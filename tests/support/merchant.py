"""
A merchant at the API: says what it sends, and holds every refusal to what is published.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import httpx2
import msgspec

from gateway.endpoints import ENDPOINTS
from gateway.problems import PROBLEMS, Problem
from gateway.routes import Routes
from processor.core.slots import SlotMap

TIMEOUT_S = 60.0

_routes = Routes(ENDPOINTS)
_numbers = itertools.count(1)


def fresh(word: str) -> str:
    """
    Make a name that no other test uses.
    """
    return f"{word}-{next(_numbers)}"


def fresh_on(shard_id: int, word: str) -> str:
    """
    Make a name whose wallet is at *shard_id*, as two shards begin.
    """
    halves = SlotMap.even(2)
    return next(name for name in iter(lambda: fresh(word), "") if halves.shard_of(name) == shard_id)


class Merchant:
    """
    A client with one API key.
    """

    def __init__(self, url: str, key: str | None) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT_S)

    def close(self) -> None:
        self.http.close()

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """
        Send a request; *body* is JSON to be written, or bytes as they are.
        """
        sent = dict(headers or {})
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        if body is not None:
            sent.setdefault("content-type", "application/json")
        if key is not None:
            sent["idempotency-key"] = key
        content_or_none = None if body is None else content
        reply = self.http.request(method, path, content=content_or_none, headers=sent)
        if (reply.is_error and reply.status_code != 503) or is_problem(reply):
            check_problem(method, path, reply)
        return reply

    def get(self, path: str) -> httpx2.Response:
        return self.send("GET", path)

    def post(self, path: str, body: Any, *, key: str | None = None) -> httpx2.Response:
        return self.send("POST", path, body, key=key)

    def open_wallet(
        self, word: str = "wallet", *, funds: int = 0, shard_id: int | None = None, **fields: Any
    ) -> str:
        """
        Open a fresh wallet, at one of two shards if it matters, put *funds* into it, and return
        its id.
        """
        wallet_id = fresh(word) if shard_id is None else fresh_on(shard_id, word)
        body = {"wallet_id": wallet_id, "currency": "EUR"} | fields
        reply = self.post("/v1/wallets", body)
        assert reply.status_code == 201, reply.text
        if funds:
            deposit = {"destination": wallet_id, "amount": funds, "currency": body["currency"]}
            reply = self.post("/v1/deposits", deposit, key=fresh("funds"))
            assert reply.status_code == 201, reply.text
        return wallet_id

    def seen(self, wallet_id: str) -> str:
        """
        Say in a query that a history is wanted that shows the wallet as it is now.
        """
        wallet = self.get(f"/v1/wallets/{wallet_id}").json()
        return f"min_sequence={wallet['sequence']}&shard={wallet['shard']}"

    def balance(self, wallet_id: str) -> int:
        reply = self.get(f"/v1/wallets/{wallet_id}")
        assert reply.status_code == 200, reply.text
        balance: int = reply.json()["balance"]
        return balance


def is_problem(reply: httpx2.Response) -> bool:
    return reply.headers.get("content-type") == "application/problem+json"


def check_problem(method: str, path: str, reply: httpx2.Response) -> None:
    """
    Check that a refusal is a problem document, of the table, and of the endpoint's own list.
    """
    assert is_problem(reply), reply.text
    problem = msgspec.json.decode(reply.content, type=Problem)
    kind = PROBLEMS[problem.code]
    assert (reply.status_code, problem.outcome) == (kind.status, kind.outcome)
    if problem.code in ("path_unknown", "method_not_allowed", "header_repeated"):
        return
    found = _routes.find(httpx2.URL(path).path, method)
    assert found is not None, f"no endpoint answers {method} {path}"
    assert problem.code in found[0].endpoint.problem_codes, f"{problem.code} is not published"


def code_of(reply: httpx2.Response) -> str:
    code: str = reply.json()["code"]
    return code


def pointers_of(reply: httpx2.Response) -> list[str | None]:
    return [error.get("pointer") for error in reply.json().get("errors", [])]
