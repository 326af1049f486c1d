"""
Goal: whatever is wrong with a request, the answer is a problem that says what and where, and
      nothing has happened.
Method: a table of bad requests against a running gateway; each one is a first try afterwards.
"""

from __future__ import annotations

import gzip
import json
import socket
from typing import Any

import pytest

from tests.support.merchant import Merchant, check_problem, code_of, fresh, pointers_of
from tests.support.running_gateway import RunningGateway

MOVEMENTS = {
    "/v1/transfers": {"source": "a", "destination": "b", "amount": 1, "currency": "EUR"},
    "/v1/deposits": {"destination": "a", "amount": 1, "currency": "EUR"},
    "/v1/withdrawals": {"source": "a", "amount": 1, "currency": "EUR"},
}
TRANSFER = MOVEMENTS["/v1/transfers"]


def changed(**fields: Any) -> bytes:
    return json.dumps(TRANSFER | fields).encode()


BAD_BODIES = [
    (changed(amount=0), 422, "/amount"),
    (changed(amount=-5), 422, "/amount"),
    (changed(amount=1.0), 422, "/amount"),
    (changed(amount=1e2), 422, "/amount"),
    (changed(amount=2**53), 422, "/amount"),
    (changed(amount=10**40), 422, "/amount"),
    (changed(amount="1"), 422, "/amount"),
    (changed(amount=True), 422, "/amount"),
    (changed(amount=None), 422, "/amount"),
    (changed(currency="XXX"), 422, "/currency"),
    (changed(currency="eur"), 422, "/currency"),
    (changed(currency=""), 422, "/currency"),
    (changed(source="a\x00"), 422, "/source"),
    (changed(source="a" * 65), 422, "/source"),
    (changed(source="$world:0:EUR"), 422, "/source"),
    (changed(destination="$world:0:EUR"), 422, "/destination"),
    (changed(destination="é"), 422, "/destination"),
    (changed(destination=""), 422, "/destination"),
    (changed(source=None), 422, "/source"),
    (changed(reference=""), 422, "/reference"),
    (changed(reference="r" * 141), 422, "/reference"),
    (changed(reference="a\x00b"), 422, "/reference"),
    (changed(metadata={"k": "x" * 1_024}), 422, "/metadata"),
    (changed(metadata={"k": "\x00"}), 422, "/metadata/k"),
    (changed(metadata={"k": 2**53}), 422, "/metadata/k"),
    (changed(metadata={"k": 1.5}), 422, "/metadata"),
    (changed(metadata={"k": {}}), 422, "/metadata"),
    (changed(balance=5), 422, "/balance"),
    (changed(merchant_id="globex"), 422, "/merchant_id"),
    (changed(status="posted"), 422, "/status"),
    (changed(transfer_id="0"), 422, "/transfer_id"),
    (b"{}", 422, "/source"),
    (b"[]", 422, ""),
    (b"null", 422, ""),
    (changed()[:-1] + b', "amount": 2}', 400, "/amount"),
    (changed()[:-1] + b', "metadata": {"a": 1, "a": 2}}', 400, "/metadata/a"),
    (changed(source="a\ud800"), 400, None),
    (changed().replace(b'"a"', b'"\xed\xa0\x80"'), 400, None),
    (changed().replace(b'"a"', b'"\xff"'), 400, None),
    (b"", 400, None),
    (b"{", 400, None),
    (changed() + b"{}", 400, None),
    (b"\xef\xbb\xbf" + changed(), 400, None),
    (changed().replace(b'"', b"'"), 400, None),
]


@pytest.mark.parametrize(("body", "status", "pointer"), BAD_BODIES)
def test_bad_bodies(acme: Merchant, body: bytes, status: int, pointer: str | None) -> None:
    """
    A body that is not acceptable is refused with its place, and outcome `not_applied`.
    """
    reply = acme.post("/v1/transfers", body, key=fresh("key"))

    assert reply.status_code == status
    assert code_of(reply) == ("malformed_json" if status == 400 else "validation_failed")
    assert pointers_of(reply) == ([] if pointer is None else [pointer])
    assert reply.json()["outcome"] == "not_applied"


def test_every_wrong_field_at_once(acme: Merchant) -> None:
    """
    Nobody has to fix one field to hear of the next.
    """
    body = {"source": "", "destination": "!", "amount": 0, "currency": "?", "reference": ""}

    reply = acme.post("/v1/transfers", body, key=fresh("key"))

    expected = ["/source", "/destination", "/amount", "/currency", "/reference"]
    assert pointers_of(reply) == expected


def test_deep_documents(acme: Merchant) -> None:
    """
    A million brackets are refused as quickly as one.
    """
    for body in (b"[" * 1_000_000, changed()[:-1] + b', "metadata": ' + b'{"a":' * 200_000):
        reply = acme.post("/v1/transfers", body, key=fresh("key"))
        assert reply.status_code in (400, 422)
        assert reply.elapsed.total_seconds() < 5


@pytest.mark.parametrize("path", MOVEMENTS)
@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, "idempotency_key_missing"),
        ("", "idempotency_key_invalid"),
        ("a b", "idempotency_key_invalid"),
        ("k" * 256, "idempotency_key_invalid"),
        ('""', "idempotency_key_invalid"),
    ],
)
def test_keys_are_required(acme: Merchant, path: str, key: str | None, code: str) -> None:
    """
    No money moves without a usable key.
    """
    reply = acme.post(path, MOVEMENTS[path], key=key)

    assert (reply.status_code, code_of(reply)) == (400, code)
    assert reply.json()["errors"][0]["parameter"] == "Idempotency-Key"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": ""},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_media_types(acme: Merchant, headers: dict[str, str]) -> None:
    """
    What is not plain JSON in UTF-8 is not read.
    """
    body = gzip.compress(changed()) if "content-encoding" in headers else changed()
    reply = acme.send("POST", "/v1/transfers", body, key=fresh("key"), headers=headers)

    assert (reply.status_code, code_of(reply)) == (415, "media_type_unsupported")


def test_bodies_have_a_bound(gateway: RunningGateway, acme: Merchant) -> None:
    """
    A body past the bound is refused, announced or not, and the connection goes on.
    """
    bytes_max = gateway.stack.settings.gateway.body_bytes_max
    padding = b" " * bytes_max

    announced = acme.post("/v1/transfers", changed() + padding, key=fresh("key"))
    assert (announced.status_code, code_of(announced)) == (413, "body_too_large")

    def parts() -> Any:
        yield changed()
        for start in range(0, bytes_max, 65_536):
            yield padding[start : start + 65_536]

    headers = {"content-type": "application/json", "idempotency-key": fresh("key")}
    unannounced = acme.http.post("/v1/transfers", content=parts(), headers=headers)
    assert unannounced.status_code == 413
    check_problem("POST", "/v1/transfers", unannounced)
    assert acme.get("/v1/health/live").status_code == 200


def test_a_body_at_the_bound_is_read(gateway: RunningGateway, acme: Merchant) -> None:
    """
    The last byte that is allowed is allowed.
    """
    bytes_max = gateway.stack.settings.gateway.body_bytes_max
    body = changed(source="nobody") + b" " * bytes_max

    reply = acme.post("/v1/transfers", body[:bytes_max], key=fresh("key"))

    assert (reply.status_code, code_of(reply)) == (409, "source_unknown")


@pytest.mark.parametrize("name", ["authorization", "idempotency-key", "content-type"])
def test_repeated_headers(gateway: RunningGateway, acme: Merchant, name: str) -> None:
    """
    Two values for what must be one are refused, not chosen from.
    """
    headers = [
        ("connection", "close"),
        ("content-type", "application/json"),
        ("idempotency-key", fresh("key")),
        ("authorization", acme.http.headers["authorization"]),
        (name, "other"),
    ]
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        lines = "".join(f"{header}: {value}\r\n" for header, value in headers)
        connection.sendall(f"POST /v1/transfers HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
        answer = connection.makefile("rb").read()

    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"code":"header_repeated"' in answer


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1", 404, "path_unknown"),
        ("GET", "/v1/wallets/", 404, "path_unknown"),
        ("GET", "/v2/transfers", 404, "path_unknown"),
        ("GET", "/%ff%00", 404, "path_unknown"),
        ("PUT", "/v1/transfers", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/wallets", 405, "method_not_allowed"),
        ("POST", "/docs", 405, "method_not_allowed"),
        ("GET", "/v1/wallets/%24world%3A0%3AEUR", 404, "wallet_unknown"),
        ("GET", "/v1/wallets/a%00", 404, "wallet_unknown"),
        ("GET", "/v1/wallets/%ff", 404, "wallet_unknown"),
        ("GET", "/v1/wallets/nobody", 404, "wallet_unknown"),
        ("GET", "/v1/wallets/nobody/entries", 404, "wallet_unknown"),
        ("GET", "/v1/transfers/x", 404, "transfer_unknown"),
        ("GET", "/v1/transfers/00000000-0000-0000-0000-000000000000", 404, "transfer_unknown"),
        ("DELETE", "/v1/api-keys/%27%00", 404, "api_key_unknown"),
    ],
)
def test_paths(acme: Merchant, method: str, path: str, status: int, code: str) -> None:
    """
    What is not there is a problem too.
    """
    reply = acme.send(method, path)

    assert (reply.status_code, code_of(reply)) == (status, code)


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/v1/wallets?limit=0", "limit"),
        ("/v1/wallets?limit=1001", "limit"),
        ("/v1/wallets?limit=1&limit=2", None),
        ("/v1/wallets?after=%00", "after"),
        ("/v1/wallets?offset=5", "offset"),
        ("/v1/wallets/a/entries?after=x", "after"),
        ("/v1/wallets/a/entries?after=1&before=2", "before"),
        ("/v1/wallets/a/entries?min_sequence=-1", "min_sequence"),
    ],
)
def test_queries(acme: Merchant, path: str, parameter: str | None) -> None:
    """
    A wrong parameter is named.
    """
    reply = acme.get(path)

    assert (reply.status_code, code_of(reply)) == (400, "query_invalid")
    named = [error["parameter"] for error in reply.json().get("errors", [])]
    assert named == ([] if parameter is None else [parameter])


def test_a_refused_request_leaves_its_key_alone(acme: Merchant) -> None:
    """
    After every refusal before admission, the same key is a first try.
    """
    source, destination = acme.open_wallet(funds=10), acme.open_wallet()
    sound = {"source": source, "destination": destination, "amount": 1, "currency": "EUR"}
    key = fresh("key")
    refused = [
        acme.post("/v1/transfers", sound | {"amount": 0}, key=key),
        acme.post("/v1/transfers", b"{", key=key),
        acme.send("POST", "/v1/transfers", sound, key=key, headers={"content-type": "text/plain"}),
        acme.post("/v1/transfers", b" " * 9_000_000, key=key),
    ]
    assert [reply.status_code for reply in refused] == [422, 400, 415, 413]

    posted = acme.post("/v1/transfers", sound | {"amount": 2}, key=key)

    assert posted.status_code == 201
    assert "idempotent-replayed" not in posted.headers
    assert acme.balance(source) == 8
