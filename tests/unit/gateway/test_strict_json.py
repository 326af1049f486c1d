"""
Goal: a body is decoded as it stands or refused with the place of what is wrong.
Method: tables of documents, each with the status, code and pointer of its refusal.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.problems import Refusal
from gateway.strict_json import StrictDecoder, escaped, field_error
from gateway.wire import BatchTransfer, CreateApiKeyRequest, TransferRequest

decode = StrictDecoder(TransferRequest).decode

FIELDS = {"source": "a", "destination": "b", "amount": 5, "currency": "EUR"}
SOUND = json.dumps(FIELDS)


def refusal_of(body: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        decode(body)
    return caught.value


def with_fields(**more: Any) -> bytes:
    return json.dumps(FIELDS | more).encode()


def test_takes_what_is_sound() -> None:
    """
    Every field arrives as it was sent, in whatever way it was escaped.
    """
    body = with_fields(reference='caf\u00e9 \U0001f600 "x"', metadata={"b": True, "a\\": 1})

    request = decode(body)

    assert request.reference == 'caf\u00e9 \U0001f600 "x"'
    assert request.metadata == {"b": True, "a\\": 1}
    assert decode(SOUND.replace("source", "s\\u006furce").encode()).source == "a"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        SOUND.encode() + b"x",
        b"\xef\xbb\xbf" + SOUND.encode(),
        SOUND.encode("utf-16"),
        SOUND.replace('"a"', "'a'").encode(),
        SOUND.replace("5", "05").encode(),
        SOUND.replace("5", "NaN").encode(),
        SOUND.replace('"EUR"', '"EUR",').encode(),
        SOUND.replace('"a"', '"\\ud800"').encode(),
        SOUND.replace('"a"', '"\\udc00 and more text behind it"').encode(),
        SOUND.replace('"a"', '"\\ud800\\u0041"').encode(),
        SOUND.encode().replace(b'"a"', b'"\xff"'),
        SOUND.encode().replace(b'"a"', b'"\xed\xa0\x80"'),
        SOUND.encode().replace(b'"a"', b'"\xc0\x80"'),
        SOUND.encode().replace(b'"a"', b'"a\nb"'),
    ],
)
def test_refuses_what_is_not_json(body: bytes) -> None:
    """
    Broken syntax, broken UTF-8, lone surrogates and raw control characters are 400.
    """
    refusal = refusal_of(body)

    assert (refusal.kind.code, refusal.kind.status) == ("malformed_json", 400)


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        (b"[]", "wrong_type", ""),
        (b"5", "wrong_type", ""),
        (with_fields(amount=5.0), "wrong_type", "/amount"),
        (with_fields(amount="5"), "wrong_type", "/amount"),
        (with_fields(amount=True), "wrong_type", "/amount"),
        (with_fields(amount=None), "wrong_type", "/amount"),
        (SOUND.replace("5", "5e2").encode(), "wrong_type", "/amount"),
        (with_fields(source=5), "wrong_type", "/source"),
        (with_fields(metadata=[]), "wrong_type", "/metadata"),
        (with_fields(metadata={"a": None}), "wrong_type", "/metadata"),
        (with_fields(metadata={"a": 1.5}), "wrong_type", "/metadata"),
        (with_fields(metadata={"a": {"b": "c"}}), "wrong_type", "/metadata"),
        (with_fields(balance=1), "unknown_field", "/balance"),
        (with_fields(**{"a/b~c": 1}), "unknown_field", "/a~1b~0c"),
        (b'{"source":"a"}', "required", "/destination"),
    ],
)
def test_points_at_the_field(body: bytes, code: str, pointer: str) -> None:
    """
    What is well-formed but not acceptable is 422 and names the field.
    """
    refusal = refusal_of(body)

    assert (refusal.kind.code, refusal.kind.status) == ("validation_failed", 422)
    assert [(error.code, error.pointer) for error in refusal.errors] == [(code, pointer)]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (SOUND.replace('"amount"', '"source": "a", "amount"'), "/source"),
        (SOUND.replace('"amount"', '"s\\u006furce": "a", "amount"'), "/source"),
        (SOUND.replace('"amount"', '"amount": 4, "amount"'), "/amount"),
        (SOUND[:-1] + ', "metadata": {"k": 1, "k": 1}}', "/metadata/k"),
        (SOUND[:-1] + ', "metadata": {"\\"": 1, "\\u0022": 1}}', '/metadata/"'),
        (SOUND[:-1] + ', "reference": null, "reference": null}', "/reference"),
        (SOUND[:-1] + ', "metadata": {"x": 1}, "metadata": {}}', "/metadata"),
    ],
)
def test_refuses_a_key_twice(body: str, pointer: str) -> None:
    """
    A duplicate key is refused wherever it is and however it is spelled, even with equal values.
    """
    refusal = refusal_of(body.encode())

    assert refusal.kind.code == "malformed_json"
    assert [(error.code, error.pointer) for error in refusal.errors] == [("duplicate_key", pointer)]


texts = st.text(st.sampled_from('ab"\\:{}é\U0001f600,'), max_size=4)
members = st.lists(
    st.tuples(texts, st.one_of(texts, st.booleans(), st.integers(-9, 9))), max_size=4
)


@given(members, st.booleans(), st.booleans())
def test_finds_every_duplicate(
    pairs: list[tuple[str, Any]], ensure_ascii: bool, reference_is_null: bool
) -> None:
    """
    A document is refused exactly when one of its objects has a key twice.
    """

    def written(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii)

    metadata = ",".join(f"{written(name)}:{written(value)}" for name, value in pairs)
    reference = ', "reference": null' if reference_is_null else ""
    body = f'{SOUND[:-1]}{reference}, "metadata": {{{metadata}}}}}'.encode()
    names = [name for name, _ in pairs]

    if len(set(names)) == len(names):
        assert decode(body).metadata == dict(pairs)
    else:
        assert refusal_of(body).kind.code == "malformed_json"


def test_refuses_deep_documents() -> None:
    """
    Nesting is refused at the first level that no type has, however deep it goes.
    """
    deep = b"[" * 1_000_000

    assert refusal_of(with_fields()[:-1] + b', "x": ' + deep).kind.status in (400, 422)
    assert refusal_of(with_fields()[:-1] + b', "metadata": ' + deep).kind.status in (400, 422)
    assert refusal_of(deep).kind.status in (400, 422)


def test_points_into_lists() -> None:
    """
    The index of an element is a step of the pointer.
    """
    with pytest.raises(Refusal) as caught:
        StrictDecoder(CreateApiKeyRequest).decode(b'{"scopes": ["a", 1]}')

    assert [error.pointer for error in caught.value.errors] == ["/scopes/1"]


def test_cuts_long_names() -> None:
    """
    A refusal does not grow with the name of an unknown field.
    """
    refusal = refusal_of(with_fields(**{"n" * 100_000: 1}))

    assert len(refusal.reply().body) < 1_000


def test_words_of_the_client_are_no_path() -> None:
    """
    A field whose name imitates a place does not break the translation.
    """
    error = field_error("Object contains unknown field `x` - at `$.y` - at `$[3]`")

    assert (error.code, error.pointer) == ("unknown_field", "/3/x` - at `$.y")


def test_escapes_pointers() -> None:
    """
    Slash and tilde are written as RFC 6901 says.
    """
    assert escaped("a/b~c") == "a~1b~0c"


def test_each_item_has_a_key() -> None:
    """
    An item of a batch names its key itself.
    """
    with pytest.raises(Refusal) as caught:
        StrictDecoder(BatchTransfer).decode(SOUND.encode())

    assert [error.pointer for error in caught.value.errors] == ["/idempotency_key"]
