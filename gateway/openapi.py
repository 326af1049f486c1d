"""
The OpenAPI 3.1 document, made from the route table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from gateway.endpoint import Endpoint
from gateway.idempotency_key import HEADER
from gateway.linked_wire import LinkedTransfer
from gateway.problems import PROBLEMS, Problem
from gateway.wire import (
    BatchResult,
    BatchTransfer,
    IdempotencyKeyText,
    Transfer,
    WalletIdText,
)

REF = "#/components/schemas/{name}"

DESCRIPTION = """\
Moves money between wallets, exactly once.

A reply of 200 or 201 means: it is done, on disk; money that was moved is in both wallets. 202
means: the money is set aside in the source, on disk, and certain to be posted or rejected in a
moment. 409 means: a business reason against it, recorded under the key where money was to move.
Any other 4xx: nothing happened. 5xx: `outcome` says whether nothing was applied or nothing is
known; the same request with the same key tells.
"""

Json = dict[str, Any]

CSV_SCHEMA: Json = {
    "type": "string",
    "description": "UTF-8. The header row names the columns: reference, destination, one of amount "
    "(as 12.50) and amount_minor (as 1250), and if you like currency and note; with commas or "
    "semicolons between them. The rest of the batch is in the query parameters.",
}


def openapi_document(endpoints: Iterable[Endpoint]) -> Json:
    """
    Describe *endpoints*.
    """
    table = list(endpoints)
    schemas = _Schemas(table)
    paths: dict[str, Json] = defaultdict(dict)
    for endpoint in table:
        paths[endpoint.path][endpoint.method.lower()] = _operation(endpoint, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Miliano", "version": version("miliano"), "description": DESCRIPTION},
        "paths": dict(paths),
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "api_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`Authorization: Bearer mil_live_...`; each operation names "
                    "the scope that the key needs.",
                }
            },
        },
    }


class _Schemas:
    """
    The schemas of all types in the table, each once.
    """

    def __init__(self, table: Sequence[Endpoint]) -> None:
        types: list[Any] = [Problem, BatchTransfer, BatchResult, WalletIdText, IdempotencyKeyText]
        types += [Transfer, LinkedTransfer]
        for endpoint in table:
            used = (endpoint.request, endpoint.response)
            types += [type_ for type_ in used if type_ is not None]
        self._types = types
        self._schemas, self.components = msgspec.json.schema_components(types, ref_template=REF)

    def of(self, type_: Any) -> Json:
        """
        Return the schema of *type_*, mostly a reference.
        """
        return self._schemas[self._types.index(type_)]


def _operation(endpoint: Endpoint, schemas: _Schemas) -> Json:
    operation: Json = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "responses": {**_good_responses(endpoint, schemas), **_problem_responses(endpoint)},
    }
    parameters = _parameters(endpoint, schemas)
    if parameters:
        operation["parameters"] = parameters
    if endpoint.request is not None:
        operation["requestBody"] = {
            "required": True,
            "content": _request_content(endpoint, schemas),
        }
    if endpoint.scope is not None:
        operation["security"] = [{"api_key": [endpoint.scope.value]}]
    return operation


def _parameters(endpoint: Endpoint, schemas: _Schemas) -> list[Json]:
    parameters: list[Json] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": schemas.of(WalletIdText) if name == "wallet_id" else {"type": "string"},
        }
        for name in endpoint.parameter_names
    ]
    if endpoint.idempotent:
        schema = schemas.of(IdempotencyKeyText)
        parameters.append({"name": HEADER, "in": "header", "required": True, "schema": schema})
    if endpoint.query is not None:
        query = msgspec.json.schema(endpoint.query)["$defs"][endpoint.query.__name__]
        required = query.get("required", [])
        parameters += [
            {"name": name, "in": "query", "required": name in required, "schema": schema}
            for name, schema in query["properties"].items()
        ]
    return parameters


def _request_content(endpoint: Endpoint, schemas: _Schemas) -> Json:
    return {
        media_type: {"schema": _body_schema(media_type, endpoint, schemas)}
        for media_type in endpoint.media_types
    }


def _body_schema(media_type: str, endpoint: Endpoint, schemas: _Schemas) -> Json:
    match media_type:
        case "application/x-ndjson":
            return schemas.of(BatchTransfer)
        case "text/csv":
            return CSV_SCHEMA
    return schemas.of(endpoint.request)


def _good_responses(endpoint: Endpoint, schemas: _Schemas) -> Json:
    responses: Json = {}
    for status, description in endpoint.statuses.items():
        response: Json = {"description": description}
        if endpoint.response is not None:
            content = {"application/json": {"schema": schemas.of(endpoint.response)}}
            if "application/x-ndjson" in endpoint.media_types:
                content["application/x-ndjson"] = {"schema": schemas.of(BatchResult)}
            response["content"] = content
        if endpoint.idempotent:
            response["headers"] = {
                "Idempotent-Replayed": {
                    "description": "`true` when an earlier request with this key did it.",
                    "schema": {"const": "true"},
                }
            }
        if status == 202:
            response.setdefault("headers", {})["Location"] = {
                "description": "Where to look what became of it.",
                "schema": {"type": "string"},
            }
        responses[str(status)] = response
    return responses


def _problem_responses(endpoint: Endpoint) -> Json:
    by_status: dict[int, list[str]] = defaultdict(list)
    for code in endpoint.problem_codes:
        by_status[PROBLEMS[code].status].append(code)
    return {
        str(status): {
            "description": " ".join(f"`{code}`: {PROBLEMS[code].title}" for code in codes),
            "content": {"application/problem+json": {"schema": _problem_schema(endpoint, codes)}},
        }
        for status, codes in sorted(by_status.items())
        if status not in endpoint.statuses
    }


def _problem_schema(endpoint: Endpoint, codes: Sequence[str]) -> Json:
    properties: Json = {"code": {"enum": list(codes)}}
    if any(PROBLEMS[code].outcome == "rejected" for code in codes):
        # What did not happen is inside, with by how much it failed.
        is_linked = endpoint.response is LinkedTransfer
        inside, type_ = ("linked_transfer", LinkedTransfer) if is_linked else ("transfer", Transfer)
        properties[inside] = {"$ref": REF.format(name=type_.__name__)}
    return {"allOf": [{"$ref": REF.format(name=Problem.__name__)}, {"properties": properties}]}
