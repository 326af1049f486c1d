"""
JSON in, or a refusal that says where it is wrong.

Rule 1: unknown fields, wrong types (a float for an integer, too), duplicate keys, lone
        surrogates and deep nesting are refused; nothing is converted or dropped silently.
Rule 2: what is well-formed but not acceptable is 422 with a pointer; what is not is 400.
"""

from __future__ import annotations

import json
import re
from typing import Any, Generic, TypeVar

import msgspec

from gateway.problems import FieldError, Refusal

NAME_CHARS_MAX = 64

_encode = msgspec.json.Encoder().encode
_PATH_AT_END = re.compile(r"(.*?)(?: - at `\$([^`]*)`)?", re.DOTALL)
_PATH_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_FIELD_NAMED = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)

T = TypeVar("T")


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    A request body. `omit_defaults` is what `StrictDecoder` needs to see duplicate keys.
    """


class StrictDecoder(Generic[T]):
    """
    Decodes bodies of one type.
    """

    def __init__(self, type_: type[T]) -> None:
        self._decode = msgspec.json.Decoder(type_).decode

    def decode(self, body: bytes | msgspec.Raw) -> T:
        """
        Decode *body* or raise the Refusal that tells why not.
        """
        try:
            value = self._decode(body)
        except msgspec.ValidationError as error:
            raise Refusal("validation_failed", errors=[field_error(str(error))]) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise malformed(error) from None
        refuse_duplicate_keys(bytes(body), value)
        return value


def malformed(error: Exception) -> Refusal:
    """
    Word what the parser found.
    """
    if isinstance(error, RecursionError):
        return Refusal("malformed_json", "The document is nested too deeply.")
    return Refusal("malformed_json", f"{error}. Send one UTF-8 JSON document.")


def repeated_key(pointer: str) -> Refusal:
    error = FieldError("duplicate_key", "This key appears twice in its object.", pointer)
    return Refusal("malformed_json", "A key appears twice.", errors=[error])


def field_error(message: str) -> FieldError:
    """
    Translate msgspec's words about one field into a code, a pointer and a detail.
    """
    match = _PATH_AT_END.fullmatch(message)
    assert match is not None, "the expression takes any text"
    text, path = match[1], match[2] or ""
    pointer = "".join(f"/{name or index}" for name, index in _PATH_STEP.findall(path))
    named = _FIELD_NAMED.fullmatch(text)
    if named is None:
        code = "wrong_type" if text.startswith("Expected") and ", got" in text else "not_allowed"
        return FieldError(code, f"{text}.", pointer)
    name = named[2][:NAME_CHARS_MAX]
    pointer = f"{pointer}/{escaped(name)}"
    if named[1] == "missing required":
        return FieldError("required", f"The field {name} is required.", pointer)
    return FieldError("unknown_field", f"There is no field {name} here.", pointer)


def escaped(name: str) -> str:
    """
    Write *name* as one step of a JSON Pointer (RFC 6901).
    """
    return name.replace("~", "~0").replace("/", "~1")


def has_plain_keys(body: bytes, value: object) -> bool:
    """
    Say whether *body* surely has no key twice, at the cost of an encode.

    Without a backslash each key and each string is two quotes. *value* holds every key once,
    so a second one leaves quotes over. False means: look closer.
    """
    return b"\\" not in body and body.count(b'"') == _encode(value).count(b'"')


def refuse_duplicate_keys(body: bytes, value: object) -> None:
    """
    Raise the Refusal of *body*, which decoded to *value*, when an object has a key twice.
    """
    if has_plain_keys(body, value):
        return
    tree = json.loads(body, object_pairs_hook=_Members, parse_int=str, parse_float=str)
    pointer = _duplicate(tree, "")
    if pointer is not None:
        raise repeated_key(pointer)


class _Members(list[tuple[str, Any]]):
    """
    The members of one JSON object, in order, repeated keys included.
    """


def _duplicate(tree: object, pointer: str) -> str | None:
    seen = set()
    if isinstance(tree, _Members):
        steps = [(escaped(name[:NAME_CHARS_MAX]), name, value) for name, value in tree]
    elif isinstance(tree, list):
        steps = [(str(index), str(index), value) for index, value in enumerate(tree)]
    else:
        return None
    for step, name, value in steps:
        if name in seen:
            return f"{pointer}/{step}"
        seen.add(name)
        found = _duplicate(value, f"{pointer}/{step}")
        if found is not None:
            return found
    return None
