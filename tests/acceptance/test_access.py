"""
Goal: a key opens what its scopes and its merchant say, and nothing else.
Method: every row of the route table without a key, with a key of every other scope, and with
        another merchant's objects.
"""

from __future__ import annotations

import re
from typing import Any

import httpx2
import pytest

from gateway.endpoint import Endpoint
from gateway.endpoints import ENDPOINTS
from processor.storage.api_keys import Scope
from tests.support.merchant import Merchant, code_of, fresh
from tests.support.running_gateway import RunningGateway

GUARDED = [endpoint for endpoint in ENDPOINTS if endpoint.scope is not None]

each_guarded = pytest.mark.parametrize("endpoint", GUARDED, ids=lambda endpoint: endpoint.name)


def ask(merchant: Merchant, endpoint: Endpoint) -> httpx2.Response:
    """
    Send the endpoint's own example to some path of it.
    """
    path = re.sub(r"\{\w+\}", "x", endpoint.path)
    body = endpoint.example.encode() if endpoint.example else None
    headers = {"content-type": endpoint.media_types[0]} if endpoint.media_types else {}
    return merchant.send(endpoint.method, path, body, key=fresh("key"), headers=headers)


@each_guarded
def test_no_key_no_answer(gateway: RunningGateway, endpoint: Endpoint) -> None:
    """
    Without a key, and with one that is not valid, there is only 401.
    """
    for key, code in ((None, "api_key_missing"), ("mil_live_x", "api_key_invalid")):
        nobody = Merchant(gateway.url, key)
        reply = ask(nobody, endpoint)
        nobody.close()
        assert (reply.status_code, code_of(reply)) == (401, code)
        assert reply.headers["www-authenticate"].startswith("Bearer")
        assert "mil_live_x" not in reply.text


@each_guarded
def test_every_other_scope_is_not_enough(gateway: RunningGateway, endpoint: Endpoint) -> None:
    """
    A key with all scopes but the one is refused, and told which one.
    """
    clerk = Merchant(gateway.url, gateway.key("clerks", set(Scope) - {endpoint.scope}))

    reply = ask(clerk, endpoint)

    clerk.close()
    assert (reply.status_code, code_of(reply)) == (403, "scope_missing")
    assert str(endpoint.scope) in reply.json()["detail"]


@each_guarded
def test_the_scope_is_enough(gateway: RunningGateway, endpoint: Endpoint) -> None:
    """
    A key with this scope alone passes the door, though not every door behind it.
    """
    assert endpoint.scope is not None
    clerk = Merchant(gateway.url, gateway.key("clerks", [endpoint.scope]))

    reply = ask(clerk, endpoint)

    clerk.close()
    assert reply.status_code != 401
    assert f"lacks the scope {endpoint.scope}" not in reply.text


def test_foreign_wallets_are_unknown(acme: Merchant, globex: Merchant) -> None:
    """
    Another merchant's wallet can be paid, and nothing else; it looks like one that is not there.
    """
    own, foreign = acme.open_wallet(funds=10), globex.open_wallet(funds=10)
    body = {"amount": 1, "currency": "EUR"}

    def changed(wallet_id: str) -> httpx2.Response:
        return acme.send("PATCH", f"/v1/wallets/{wallet_id}", {"status": "closed"})

    for wallet in (foreign, fresh("nobody")):
        refused = [
            acme.get(f"/v1/wallets/{wallet}"),
            acme.get(f"/v1/wallets/{wallet}/entries"),
            changed(wallet),
        ]
        assert [(reply.status_code, code_of(reply)) for reply in refused] == [
            (404, "wallet_unknown")
        ] * 3
        debit = body | {"source": wallet, "destination": own}
        assert code_of(acme.post("/v1/transfers", debit, key=fresh("key"))) == "source_unknown"
        withdrawal = body | {"source": wallet}
        reply = acme.post("/v1/withdrawals", withdrawal, key=fresh("key"))
        assert code_of(reply) == "source_unknown"
        deposit = body | {"destination": wallet}
        reply = acme.post("/v1/deposits", deposit, key=fresh("key"))
        assert code_of(reply) == "destination_unknown"
    assert globex.balance(foreign) == 10
    credit = body | {"source": own, "destination": foreign}
    assert acme.post("/v1/transfers", credit, key=fresh("key")).status_code == 201
    assert globex.balance(foreign) == 11


@pytest.fixture
def administrator(gateway: RunningGateway) -> Any:
    """
    Give a merchant of its own whose key may make keys.
    """
    scopes = [Scope.KEYS_ADMIN, Scope.WALLETS_READ, Scope.WALLETS_WRITE]
    merchant = Merchant(gateway.url, gateway.key(fresh("merchant"), scopes))
    yield merchant
    merchant.close()


def test_the_life_of_a_key(gateway: RunningGateway, administrator: Merchant) -> None:
    """
    A key is shown once, works as far as its scopes go, is listed, and ends when it is revoked.
    """
    request = {"scopes": ["wallets:write"], "label": "till é"}
    made = administrator.post("/v1/api-keys", request)
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    key = made.json()
    clerk = Merchant(gateway.url, key["key"])
    assert clerk.post("/v1/wallets", {"currency": "EUR"}).status_code == 201
    assert clerk.get("/v1/wallets").status_code == 403

    listed = administrator.get("/v1/api-keys").json()["api_keys"]
    (shown,) = [found for found in listed if found["key_id"] == key["key_id"]]
    assert shown == {name: value for name, value in key.items() if name != "key"}
    assert all("key" not in found for found in listed)

    path = f"/v1/api-keys/{key['key_id']}"
    assert administrator.send("DELETE", path).status_code == 204
    assert clerk.get("/v1/wallets").status_code == 401
    assert code_of(administrator.send("DELETE", path)) == "api_key_unknown"
    listed = administrator.get("/v1/api-keys").json()["api_keys"]
    assert any(found.get("revoked_at") for found in listed)
    clerk.close()


def test_a_key_gives_no_more_than_it_has(administrator: Merchant) -> None:
    """
    Nobody makes a key that may do more than the own one.
    """
    reply = administrator.post("/v1/api-keys", {"scopes": ["wallets:read", "transfers:write"]})

    assert (reply.status_code, code_of(reply)) == (403, "scope_missing")
    assert "transfers:write" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/scopes"),
        ({"scopes": []}, "/scopes"),
        ({"scopes": ["wallets:read", "all"]}, "/scopes/1"),
        ({"scopes": ["wallets:read"], "label": "x" * 101}, "/label"),
        ({"scopes": ["wallets:read"], "label": "\x00"}, "/label"),
        ({"scopes": ["wallets:read"], "merchant_id": "acme"}, "/merchant_id"),
    ],
)
def test_keys_that_are_wrong(administrator: Merchant, body: dict[str, Any], pointer: str) -> None:
    """
    Scopes are of the list, and a key is the asking merchant's.
    """
    reply = administrator.post("/v1/api-keys", body)

    assert reply.status_code == 422
    assert [error["pointer"] for error in reply.json()["errors"]] == [pointer]


def test_foreign_keys_are_unknown(acme: Merchant, administrator: Merchant) -> None:
    """
    Nobody revokes or lists another merchant's keys.
    """
    key = administrator.post("/v1/api-keys", {"scopes": ["wallets:read"]}).json()

    assert code_of(acme.send("DELETE", f"/v1/api-keys/{key['key_id']}")) == "api_key_unknown"
    listed = acme.get("/v1/api-keys").json()["api_keys"]
    assert key["key_id"] not in [found["key_id"] for found in listed]
