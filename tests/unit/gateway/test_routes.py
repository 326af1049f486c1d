"""
Goal: each row of the table is found by its method and path, and nothing else is.
Method: the paths of the table, filled in, and paths beside them.
"""

from __future__ import annotations

import re

import pytest

from gateway.endpoint import Endpoint
from gateway.endpoints import ENDPOINTS
from gateway.history_wire import EntriesQuery
from gateway.problems import Refusal
from gateway.routes import Route, Routes

routes = Routes(ENDPOINTS)


def route_named(name: str) -> Route:
    return next(route for route in routes.all if route.endpoint.name == name)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_finds_each_row(endpoint: Endpoint) -> None:
    """
    A path with its parameters filled in is found, with the parameters.
    """
    path = re.sub(r"\{\w+\}", "x:1", endpoint.path)

    found = routes.find(path, endpoint.method)

    assert found is not None
    assert found[0].endpoint is endpoint
    assert found[1] == ("x:1",) * len(endpoint.parameter_names)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1",
        "/v1/wallets/",
        "/v1/wallets/a/",
        "/v1/wallets//entries",
        "/v1/x",
        "v1/wallets",
    ],
)
def test_other_paths_are_not_found(path: str) -> None:
    """
    An empty parameter is no parameter, and a slash more is another path.
    """
    assert routes.find(path, "GET") is None


def test_other_methods_are_told_which_are_allowed() -> None:
    """
    A known path with an unknown method says what it takes.
    """
    with pytest.raises(Refusal) as caught:
        routes.find("/v1/wallets/a", "POST")

    assert caught.value.kind.code == "method_not_allowed"
    assert caught.value.headers == ((b"allow", b"GET, PATCH"),)


def test_head_is_get() -> None:
    """
    HEAD is answered by the handler of GET.
    """
    found = routes.find("/v1/health", "HEAD")

    assert found is not None
    assert found[0].endpoint.name == "getHealth"


def test_reads_query_strings() -> None:
    """
    Parameters arrive as their types, with their defaults.
    """
    query = route_named("listEntries").query(b"after=3&limit=7")

    assert query == EntriesQuery(after=3, limit=7)


@pytest.mark.parametrize(
    ("query_string", "parameter", "code"),
    [
        (b"limit=0", "limit", "not_allowed"),
        (b"limit=1.5", "limit", "wrong_type"),
        (b"limit=", "limit", "wrong_type"),
        (b"after=-1", "after", "not_allowed"),
        (b"after=9007199254740992", "after", "not_allowed"),
        (b"min_sequence=x", "min_sequence", "wrong_type"),
        (b"page=2", "page", "unknown_field"),
        (b"%00=1", "\x00", "unknown_field"),
    ],
)
def test_points_at_parameters(query_string: bytes, parameter: str, code: str) -> None:
    """
    A wrong parameter is named.
    """
    with pytest.raises(Refusal) as caught:
        route_named("listEntries").query(query_string)

    assert caught.value.kind.code == "query_invalid"
    assert [(error.parameter, error.code) for error in caught.value.errors] == [(parameter, code)]


def test_refuses_a_parameter_twice() -> None:
    """
    Two values for one parameter are no value.
    """
    with pytest.raises(Refusal) as caught:
        route_named("listEntries").query(b"after=1&after=2")

    assert caught.value.kind.code == "query_invalid"
