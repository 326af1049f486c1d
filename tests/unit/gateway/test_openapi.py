"""
Goal: the OpenAPI document and the reference page say what the route table says.
Method: each row is looked up in both; the document is checked against its own standard.
"""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import validate

from gateway.endpoint import Endpoint
from gateway.endpoints import ENDPOINTS
from gateway.openapi import openapi_document
from gateway.problems import PROBLEMS
from gateway.reference_page import reference_page
from gateway.strict_json import StrictDecoder

DOCUMENT: dict[str, Any] = json.loads(msgspec.json.encode(openapi_document(ENDPOINTS)))
PAGE = reference_page(ENDPOINTS, DOCUMENT)

MOVING_PATHS = {
    "/v1/transfers",
    "/v1/deposits",
    "/v1/withdrawals",
    "/v1/holds",
    "/v1/holds/{hold_id}/captures",
    "/v1/holds/{hold_id}/void",
    "/v1/holds/{hold_id}/extend",
    "/v1/transfers/{transfer_id}/refunds",
    "/v1/linked-transfers",
    "/v1/linked-transfers/{linked_id}/reversal",
    "/v1/fees/sweep",
}

each_endpoint = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)


def operation_of(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = DOCUMENT["paths"][endpoint.path][endpoint.method.lower()]
    return operation


def test_the_document_is_openapi() -> None:
    """
    The document keeps the rules of OpenAPI 3.1.
    """
    validate(DOCUMENT)


def test_the_document_has_the_table_and_nothing_else() -> None:
    """
    Each row is one operation, and each operation a row.
    """
    described = {
        (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
    }

    assert described == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}


def test_names_are_unique() -> None:
    """
    A name is one operation.
    """
    assert len({endpoint.name for endpoint in ENDPOINTS}) == len(ENDPOINTS)


@each_endpoint
def test_statuses_are_described(endpoint: Endpoint) -> None:
    """
    Every good status and every problem's status is a response, and the problem's codes stand
    in its schema.
    """
    responses = operation_of(endpoint)["responses"]

    codes = {code: str(PROBLEMS[code].status) for code in endpoint.problem_codes}
    assert set(responses) == {str(status) for status in endpoint.statuses} | set(codes.values())
    for code, status in codes.items():
        if int(status) not in endpoint.statuses:
            schema = responses[status]["content"]["application/problem+json"]["schema"]
            assert code in schema["allOf"][1]["properties"]["code"]["enum"]


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/v1/transfers", "transfer"),
        ("/v1/holds", "transfer"),
        ("/v1/linked-transfers", "linked_transfer"),
    ],
)
def test_a_refusal_has_what_did_not_happen_inside(path: str, inside: str) -> None:
    """
    Where it was recorded, its type is described: a client reads `short_by` from it.
    """
    responses = DOCUMENT["paths"][path]["post"]["responses"]
    for status, is_there in (("409", True), ("422", False)):
        schema = responses[status]["content"]["application/problem+json"]["schema"]
        assert (inside in schema["allOf"][1]["properties"]) == is_there


@each_endpoint
def test_scopes_are_described(endpoint: Endpoint) -> None:
    """
    An operation names the scope of its row; without one it is open.
    """
    security = operation_of(endpoint).get("security")

    assert security == ([{"api_key": [endpoint.scope]}] if endpoint.scope else None)


@each_endpoint
def test_only_health_is_open(endpoint: Endpoint) -> None:
    """
    A new row without a scope is a mistake.
    """
    assert (endpoint.scope is None) == endpoint.path.startswith("/v1/health")


@each_endpoint
def test_what_moves_money_wants_a_key(endpoint: Endpoint) -> None:
    """
    The header is required where a row says so, and every single movement says so.
    """
    moves = endpoint.method == "POST" and endpoint.path in MOVING_PATHS
    headers = [
        parameter["name"]
        for parameter in operation_of(endpoint).get("parameters", [])
        if parameter["in"] == "header" and parameter["required"]
    ]

    assert endpoint.idempotent == moves
    assert ("Idempotency-Key" in headers) == moves


@each_endpoint
def test_examples_are_good_bodies(endpoint: Endpoint) -> None:
    """
    What the page shows can be sent.
    """
    if endpoint.example and "application/json" in endpoint.media_types:
        StrictDecoder(endpoint.request).decode(endpoint.example.encode())


@each_endpoint
def test_the_page_shows_each_row(endpoint: Endpoint) -> None:
    """
    The page has a section for each row, with its path.
    """
    section = PAGE[PAGE.index(f'<section id="{endpoint.name}">') :]

    assert f"{endpoint.method} {endpoint.path}" in unescape(section[:2_000])


def test_links_of_the_page_lead_somewhere() -> None:
    """
    Each anchor that is linked to exists, the problems' own `type` among them.
    """
    ids = set(re.findall(r'id="([^"]+)"', PAGE))
    links = set(re.findall(r"""href=["']#([^"']+)["']""", PAGE))

    assert links <= ids
    assert set(PROBLEMS) <= ids


def test_the_page_needs_nothing_else() -> None:
    """
    No script, no style or picture from elsewhere.
    """
    assert "<script" not in PAGE
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', PAGE)
