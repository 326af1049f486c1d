"""
API keys over HTTP: a merchant's administrator makes, lists and revokes them.
"""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.endpoint import Call
from gateway.problems import FieldError, Refusal
from gateway.reply import Reply, json_reply
from gateway.wire import ApiKey, ApiKeyPage, CreateApiKeyRequest
from processor.storage import api_keys
from processor.storage.api_keys import Scope

LABEL_CHARS_MAX = 100


async def create_api_key(call: Call) -> Reply:
    """
    Make a key and show it, this once.
    """
    body: CreateApiKeyRequest = call.body
    errors = creation_errors(body)
    if errors:
        raise Refusal("validation_failed", errors=errors)
    scopes = frozenset(Scope(text) for text in body.scopes)
    missing = sorted(scopes - call.caller.scopes)
    if missing:
        detail = f"A key cannot give away what it lacks: {', '.join(missing)}."
        raise Refusal("scope_missing", detail)
    key, text = await call.gateway.key_store.create(call.caller.merchant_id, scopes, body.label)
    return json_reply(201, _shown(key, text), (b"cache-control", b"no-store"))


async def list_api_keys(call: Call) -> Reply:
    keys = await call.gateway.key_store.list(call.caller.merchant_id)
    return json_reply(200, ApiKeyPage([_shown(key) for key in keys]))


async def revoke_api_key(call: Call) -> Reply:
    """
    End a key; within 30 seconds no gateway takes it any more.
    """
    key_id = call.parameters[0]
    is_id = key_id.isascii() and key_id.isalnum()
    revoked = is_id and await call.gateway.key_store.revoke(call.caller.merchant_id, key_id)
    if not revoked:
        raise Refusal("api_key_unknown")
    call.gateway.keys.forget(key_id)
    return Reply(204, b"", ())


def creation_errors(body: CreateApiKeyRequest) -> list[FieldError]:
    """
    Name every field of *body* that is not acceptable.
    """
    errors = []
    if not body.scopes:
        errors.append(FieldError("required", "Give at least one scope.", "/scopes"))
    known = frozenset(Scope)
    for index, text in enumerate(body.scopes):
        if text not in known:
            detail = f"The scopes are {', '.join(Scope)}."
            errors.append(FieldError("not_allowed", detail, f"/scopes/{index}"))
    if len(body.label) > LABEL_CHARS_MAX or "\x00" in body.label:
        detail = f"A label is at most {LABEL_CHARS_MAX} characters, without NUL."
        errors.append(FieldError("out_of_range", detail, "/label"))
    return errors


def _shown(key: api_keys.ApiKey, text: str | None = None) -> ApiKey:
    return ApiKey(
        key.key_id,
        sorted(key.scopes),
        key.label,
        _time_text(key.created_at),
        None if key.revoked_at is None else _time_text(key.revoked_at),
        text,
    )


def _time_text(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
