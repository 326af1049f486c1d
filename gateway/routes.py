"""
Finding the endpoint of a request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from gateway.endpoint import Endpoint
from gateway.metrics import RequestCounts
from gateway.problems import FieldError, Refusal
from gateway.strict_json import StrictDecoder, field_error


class Route:
    """
    An endpoint, with what is made once for all its requests.
    """

    __slots__ = ("counts", "decode", "endpoint", "missing_scope")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.counts = RequestCounts(endpoint.name)
        self.missing_scope = f"The key lacks the scope {endpoint.scope}."
        self.decode = None
        if endpoint.request is not None and not endpoint.decodes_itself:
            self.decode = StrictDecoder[Any](endpoint.request).decode

    def query(self, query_string: bytes) -> Any:
        """
        Decode the query string; raises Refusal.
        """
        pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
        values = dict(pairs)
        if len(values) != len(pairs):
            raise Refusal("query_invalid", "A parameter appears twice.")
        try:
            return msgspec.convert(values, self.endpoint.query, strict=False)
        except msgspec.ValidationError as error:
            found = field_error(str(error))
            name = (found.pointer or "").removeprefix("/")
            wrong = FieldError(found.code, found.detail, parameter=name)
            raise Refusal("query_invalid", errors=[wrong]) from None


Methods = Mapping[str, Route]


class Routes:
    """
    The routes of a table: fixed paths first, then those with parameters.
    """

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self.all = [Route(endpoint) for endpoint in endpoints]
        self._fixed: dict[str, dict[str, Route]] = defaultdict(dict)
        patterns: dict[tuple[str, ...], dict[str, Route]] = defaultdict(dict)
        for route in self.all:
            path, method = route.endpoint.path, route.endpoint.method
            if "{" in path:
                parts = ("" if part.startswith("{") else part for part in path.split("/")[1:])
                patterns[tuple(parts)][method] = route
            else:
                self._fixed[path][method] = route
        self._patterns = dict(patterns)

    def find(self, path: str, method: str) -> tuple[Route, tuple[str, ...]] | None:
        """
        Return the route and the path's parameters; None when the path is nobody's.

        Raises Refusal when the path does not take the method.
        """
        methods: Methods | None = self._fixed.get(path)
        parameters: tuple[str, ...] = ()
        if methods is None:
            methods, parameters = self._match(path)
        if methods is None:
            return None
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allow = (b"allow", ", ".join(sorted(methods)).encode())
            raise Refusal("method_not_allowed", headers=(allow,))
        return route, parameters

    def _match(self, path: str) -> tuple[Methods | None, tuple[str, ...]]:
        parts = path.split("/")[1:]
        for pattern, methods in self._patterns.items():
            if len(pattern) == len(parts) and all(
                part == fixed if fixed else part for part, fixed in zip(parts, pattern, strict=True)
            ):
                return methods, tuple(
                    part for part, fixed in zip(parts, pattern, strict=True) if not fixed
                )
        return None, ()
