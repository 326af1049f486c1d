"""
Goal: a batch is read item by item where that is needed, and refused as a whole where it must be.
Method: the same items as JSON and as NDJSON, sound and broken in one place.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.problems import Refusal
from gateway.transfer_batches import read_items
from gateway.wire import BatchTransfer


def item(number: int, **more: Any) -> dict[str, Any]:
    sound = {
        "idempotency_key": f"k{number}",
        "source": "a",
        "destination": "b",
        "amount": 1,
        "currency": "EUR",
    }
    return sound | more


async def codes_of(body: bytes, *, is_ndjson: bool) -> list[str]:
    """
    Read a body; say for each item its key, or the code of its refusal.
    """
    items = await read_items(body, is_ndjson=is_ndjson)
    return [
        found.idempotency_key if isinstance(found, BatchTransfer) else found.kind.code
        for found in items
    ]


async def json_codes(*items: str) -> list[str]:
    body = '{ "transfers" :\n[' + ",".join(items) + "] }\n"
    return await codes_of(body.encode(), is_ndjson=False)


async def ndjson_codes(*items: str) -> list[str]:
    return await codes_of("\n".join(items).encode(), is_ndjson=True)


both = pytest.mark.parametrize("codes", [json_codes, ndjson_codes])


@both
async def test_reads_sound_items(codes: Any) -> None:
    """
    Items come in their order, escaped or not.
    """
    plain = [json.dumps(item(number)) for number in range(2_500)]
    assert await codes(*plain) == [f"k{number}" for number in range(2_500)]

    escaped = json.dumps(item(1, reference='é "', metadata={"\\": 'é "'}))
    assert await codes(json.dumps(item(0)), escaped) == ["k0", "k1"]


@both
@pytest.mark.parametrize(
    ("broken", "code"),
    [
        ("{}", "validation_failed"),
        ("5", "validation_failed"),
        (json.dumps(item(1, amount=1.5)), "validation_failed"),
        (json.dumps(item(1, balance=1)), "validation_failed"),
        (json.dumps(item(1, metadata={"a": None})), "validation_failed"),
        (json.dumps(item(1))[:-1] + ', "amount": 1}', "malformed_json"),
        (json.dumps(item(1))[:-1] + ', "am\\u006funt": 1}', "malformed_json"),
        (json.dumps(item(1))[:-1] + ', "metadata": {"a": 1, "a": 1}}', "malformed_json"),
    ],
)
async def test_a_broken_item_stands_alone(codes: Any, broken: str, code: str) -> None:
    """
    What is wrong with one item is its own result, between sound ones.
    """
    sound = [json.dumps(item(0)), json.dumps(item(2))]

    assert await codes(sound[0], broken, sound[1]) == ["k0", code, "k2"]


async def test_lines_may_be_empty() -> None:
    """
    Blank lines, returns and a missing last newline are no items.
    """
    lines = f"\r\n{json.dumps(item(0))}\r\n\n  \n{json.dumps(item(1))}"

    assert await codes_of(lines.encode(), is_ndjson=True) == ["k0", "k1"]
    assert await codes_of(b"\n \n", is_ndjson=True) == []


async def test_a_line_that_breaks_off_stands_alone() -> None:
    """
    In NDJSON even broken syntax is only its line's.
    """
    surrogate = json.dumps(item(1)).replace("EUR", "\\ud800")

    codes = await ndjson_codes(json.dumps(item(0)), '{"a', "]", surrogate)

    assert codes == ["k0", "malformed_json", "malformed_json", "malformed_json"]


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        (b"[]", "validation_failed", ""),
        (b"{}", "validation_failed", "/transfers"),
        (b'{"transfers": 5}', "validation_failed", "/transfers"),
        (b'{"transfers": {}}', "validation_failed", "/transfers"),
        (b'{"transfers": [], "x": 1}', "validation_failed", "/x"),
        (b'{"transfers": [], "transfers": [{}]}', "malformed_json", "/transfers"),
        (b'{"transfers": [{}], "transf\\u0065rs": [{}]}', "malformed_json", "/transfers"),
        (b'{"transfers": [{}], "transfers": [{}] }', "malformed_json", "/transfers"),
        (b'{"transfers": [{}', "malformed_json", None),
        (b'{"transfers": ["\\ud800"]}', "malformed_json", None),
        (b'{"transfers": [{}]} x', "malformed_json", None),
        (b'{"transfers": ' + b"[" * 100_000, "malformed_json", None),
    ],
)
async def test_a_document_that_cannot_be_read(body: bytes, code: str, pointer: str | None) -> None:
    """
    Without items nothing can be done: the whole is refused, with its place.
    """
    with pytest.raises(Refusal) as caught:
        await read_items(body, is_ndjson=False)

    assert caught.value.kind.code == code
    assert [error.pointer for error in caught.value.errors] == (
        [] if pointer is None else [pointer]
    )


texts = st.text(st.sampled_from('a"\\:{}[],é '), max_size=5)


@given(st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=5))
async def test_both_ways_of_reading_agree(drawn: list[tuple[str, bool]]) -> None:
    """
    Whatever texts are in it, the batch is read as its items say, JSON or NDJSON.
    """
    items = [item(number, reference=text) for number, (text, _) in enumerate(drawn)]
    written = [
        json.dumps(one, ensure_ascii=ascii_only)
        for one, (_, ascii_only) in zip(items, drawn, strict=True)
    ]

    keys = [one["idempotency_key"] for one in items]
    assert await json_codes(*written) == keys
    assert await ndjson_codes(*written) == keys
