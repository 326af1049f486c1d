"""
What is served beside the API: the reference, the OpenAPI document, the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway.endpoint import Endpoint
from gateway.metrics import metrics_text
from gateway.openapi import openapi_document
from gateway.problems import DOCUMENTATION_PATH, Refusal
from gateway.reference_page import POLICY, reference_page
from gateway.reply import encode


def pages(endpoints: Sequence[Endpoint], collector: Callable[[], Collector]) -> list[Route]:
    """
    Make the routes; what does not change is written once, here.
    """
    document = openapi_document(endpoints)
    document_json = encode(document)
    reference = reference_page(endpoints, document)

    async def to_reference(_request: Request) -> Response:
        return RedirectResponse(DOCUMENTATION_PATH)

    async def get_reference(_request: Request) -> Response:
        headers = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
        return Response(reference, media_type="text/html", headers=headers)

    async def get_document(_request: Request) -> Response:
        return Response(document_json, media_type="application/json")

    async def get_metrics(_request: Request) -> Response:
        return Response(metrics_text(collector()), media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/", to_reference),
        Route(DOCUMENTATION_PATH, get_reference),
        Route("/openapi.json", get_document),
        Route("/metrics", get_metrics),
    ]


async def refused(_request: Request, error: Exception) -> Response:
    """
    Answer as the API does where Starlette would answer in plain text.
    """
    assert isinstance(error, HTTPException), "registered for this alone"
    code = "method_not_allowed" if error.status_code == 405 else "path_unknown"
    headers = tuple(
        (name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()
    )
    reply = Refusal(code, headers=headers).reply()
    response = Response(reply.body, reply.status)
    response.raw_headers += reply.headers
    return response
