"""
How each operation is asked for over HTTP, and how an answer to it is understood.
"""

from __future__ import annotations

import json
from typing import Any

from tests.chaos.operations import (
    Asked,
    Capture,
    Contradiction,
    Heard,
    Linked,
    Operation,
    Placing,
    Refund,
    Voiding,
)

CURRENCY = "EUR"


def request_of(asked: Asked) -> tuple[str, dict[str, Any]]:
    """
    Write the path and the body that ask for it.
    """
    match asked:
        case Placing():
            sides = {"source": asked.source, "expires_in_s": asked.lifetime_s}
            return "/v1/holds", _money(asked.key, asked.amount) | sides
        case Voiding():
            return f"/v1/holds/{asked.hold.transfer_id}/void", {}
        case Linked():
            return "/v1/linked-transfers", {"legs": [_leg(leg) for leg in asked.legs]}
        case Capture():
            part = {"amount": asked.amount, "reference": asked.key, "final": asked.is_final}
            path = f"/v1/holds/{asked.hold.transfer_id}/captures"
            return path, part | {"destination": asked.destination}
        case Refund():
            path = f"/v1/transfers/{asked.original.transfer_id}/refunds"
            return path, {"amount": asked.amount, "reference": asked.key}
        case Operation():
            return _movement(asked)
    raise AssertionError(f"nobody knows how to ask for {asked}")


def _money(key: str, amount: int) -> dict[str, Any]:
    return {"amount": amount, "currency": CURRENCY, "reference": key}


def _movement(operation: Operation) -> tuple[str, dict[str, Any]]:
    body = _money(operation.key, operation.amount)
    if operation.source is None:
        return "/v1/deposits", body | {"destination": operation.destination}
    if operation.destination is None:
        return "/v1/withdrawals", body | {"source": operation.source}
    sides = {"source": operation.source, "destination": operation.destination}
    return "/v1/transfers", body | sides


def _leg(leg: Operation) -> dict[str, Any]:
    body = _money(leg.key, leg.amount) | {"source": leg.source}
    if leg.destination is None:
        return body | {"type": "fee"}
    return body | {"destination": leg.destination}


def hear_reply(asked: Asked, status: int, content: bytes) -> None:
    """
    Take in a reply, with the ids of the legs if it has some.
    """
    heard = heard_in(status, content)
    asked.hear(*heard)
    if isinstance(asked, Linked) and heard[1] is not None:
        body = json.loads(content)
        told = body.get("linked_transfer", body)["legs"]
        for leg, shown in zip(asked.legs, told, strict=True):
            leg.name(shown["id"])


def heard_in(status: int, content: bytes) -> tuple[Heard, str | None, str | None]:
    """
    Understand a reply as the API's reference tells to: answer, transfer and reason.
    """
    try:
        body = json.loads(content)
    except ValueError:
        return Heard.UNKNOWN, None, None
    if status in (200, 201):
        return Heard.POSTED, body["id"], None
    if status == 202:
        return Heard.PENDING, body["id"], None
    if body.get("outcome") == "rejected":
        refused = body.get("transfer") or body["linked_transfer"]
        return Heard.REJECTED, refused["id"], body["code"]
    if body.get("outcome") == "not_applied" and status in (429, 503):
        return Heard.NOT_APPLIED, None, None
    if body.get("outcome") == "unknown":
        return Heard.UNKNOWN, None, None
    raise Contradiction(f"an answer that nothing here should get: {status} {body}")


def heard_of_item(result: dict[str, Any]) -> tuple[Heard, str | None, str | None]:
    """
    Understand one result of a batch.
    """
    match result["status"]:
        case "posted":
            return Heard.POSTED, result["id"], None
        case "pending":
            return Heard.PENDING, result["id"], None
        case "rejected":
            return Heard.REJECTED, result["id"], result["code"]
        case "unknown":
            return Heard.UNKNOWN, None, None
    if result["outcome"] != "not_applied":
        raise Contradiction(f"an item that nothing here should get: {result}")
    return Heard.NOT_APPLIED, None, None
