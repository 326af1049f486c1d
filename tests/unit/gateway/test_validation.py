"""
Goal: each bound holds on both sides, and every wrong field of a request is named.
Method: tables of values around the bounds; requests with one wrong field, and with all.
"""

from __future__ import annotations

from typing import Any

import pytest

from configs.settings import GatewaySettings, Settings
from gateway.hold_wire import CaptureHoldRequest, PlaceHoldRequest
from gateway.problems import FieldError
from gateway.validation import (
    Validation,
    canonical_metadata,
    is_idempotency_key,
    is_wallet_id,
    lifetime_errors,
)
from gateway.wire import (
    BatchTransfer,
    ChangeWalletRequest,
    DepositRequest,
    OpenWalletRequest,
    TransferRequest,
    VelocityLimits,
    WalletLimits,
    WithdrawalRequest,
)
from processor.core.amounts import AMOUNT_MAX

SMALL = GatewaySettings(reference_chars_max=10, metadata_bytes_max=30)
validation = Validation(Settings(gateway=SMALL, currencies={"PTS": 0}))


def errors_of(**fields: Any) -> list[FieldError]:
    sound = {"source": "a", "destination": "b", "amount": 1, "currency": "EUR"}
    return validation.movement(TransferRequest(**(sound | fields)))


def pointers(errors: list[FieldError]) -> list[str | None]:
    return [error.pointer for error in errors]


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("a", True),
        ("0", True),
        ("Shop-1.till_2:eur@x", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("", False),
        (".a", False),
        ("$world:0:EUR", False),
        ("a b", False),
        ("a\n", False),
        ("a\x00", False),
        ("é", False),
        ("a/b", False),
    ],
)
def test_wallet_ids(text: str, sound: bool) -> None:
    """
    A wallet id is 1 to 64 of a closed alphabet; the ledger's own ids are none.
    """
    assert bool(is_wallet_id(text)) is sound
    assert pointers(errors_of(source=text)) == ([] if sound else ["/source"])
    assert pointers(errors_of(destination=text)) == ([] if sound else ["/destination"])


@pytest.mark.parametrize(
    ("key", "sound"),
    [
        ("k", True),
        ("~!", True),
        ("k" * 255, True),
        ("k" * 256, False),
        ("", False),
        ("a b", False),
        ("a\tb", False),
        ("a\x7f", False),
        ("ä", False),
    ],
)
def test_idempotency_keys(key: str, sound: bool) -> None:
    """
    A key is 1 to 255 visible ASCII characters.
    """
    assert is_idempotency_key(key) is sound
    item = BatchTransfer(key, "a", "b", 1, "EUR")
    assert pointers(validation.batch_transfer(item)) == ([] if sound else ["/idempotency_key"])


@pytest.mark.parametrize("amount", [1, AMOUNT_MAX])
def test_amounts_that_fit(amount: int) -> None:
    """
    From one minor unit to the largest integer that is exact everywhere.
    """
    assert errors_of(amount=amount) == []


@pytest.mark.parametrize("amount", [0, -1, AMOUNT_MAX + 1, 2**63, 10**100])
def test_amounts_that_do_not(amount: int) -> None:
    """
    Nothing, less than nothing and 2^53 are refused.
    """
    assert pointers(errors_of(amount=amount)) == ["/amount"]


@pytest.mark.parametrize(
    ("currency", "known"),
    [("EUR", True), ("JPY", True), ("PTS", True), ("eur", False), ("XXX", False), ("", False)],
)
def test_currencies(currency: str, known: bool) -> None:
    """
    ISO 4217 in capitals, and what the configuration adds.
    """
    assert pointers(errors_of(currency=currency)) == ([] if known else ["/currency"])
    opening = OpenWalletRequest(currency)
    assert pointers(validation.opening(opening)) == ([] if known else ["/currency"])


@pytest.mark.parametrize(
    ("reference", "sound"),
    [
        (None, True),
        ("r" * 10, True),
        ("\U0001f600" * 10, True),
        ("r" * 11, False),
        ("", False),
        ("a\x00b", False),
    ],
)
def test_references(reference: str | None, sound: bool) -> None:
    """
    A reference is left out, or 1 to its bound in characters, without NUL.
    """
    assert pointers(errors_of(reference=reference)) == ([] if sound else ["/reference"])


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, []),
        ({}, []),
        ({"a": "x", "b": 1, "c": True}, []),
        ({"a": 2**53 - 1}, []),
        ({"a": 2**53}, ["/metadata/a"]),
        ({"a": -(2**53)}, ["/metadata/a"]),
        ({"a": "\x00"}, ["/metadata/a"]),
        ({"\x00/": "x"}, ["/metadata/\x00~1"]),
        ({"a": "\\u0000"}, []),
        ({"a": "x" * 22}, []),
        ({"a": "x" * 23}, ["/metadata"]),
        ({"a": "é" * 12}, ["/metadata"]),
    ],
)
def test_metadata(metadata: dict[str, str | int | bool] | None, expected: list[str]) -> None:
    """
    Metadata is bounded in bytes of its canonical form; its integers are exact everywhere.
    """
    assert pointers(errors_of(metadata=metadata)) == expected


def test_names_every_wrong_field() -> None:
    """
    A request that is wrong everywhere hears all of it at once.
    """
    errors = errors_of(
        source="", destination="!", amount=0, currency="?", reference="", metadata={"a": "\x00"}
    )

    expected = ["/source", "/destination", "/amount", "/currency", "/reference", "/metadata/a"]
    assert pointers(errors) == expected
    assert all(error.detail.endswith(".") for error in errors)


def test_deposits_and_withdrawals_have_one_wallet() -> None:
    """
    The wallet that a movement has is checked, and no other.
    """
    assert pointers(validation.movement(DepositRequest("!", 1, "EUR"))) == ["/destination"]
    assert pointers(validation.movement(WithdrawalRequest("!", 1, "EUR"))) == ["/source"]


def test_openings() -> None:
    """
    A wallet id is optional; a minimum is exact everywhere.
    """
    assert validation.opening(OpenWalletRequest("EUR", None, -AMOUNT_MAX)) == []
    wrong = OpenWalletRequest("EUR", "!", -AMOUNT_MAX - 1)
    assert pointers(validation.opening(wrong)) == ["/wallet_id", "/minimum"]


def test_changes() -> None:
    """
    A change changes something.
    """
    assert validation.change(ChangeWalletRequest(status="frozen")) == []
    assert validation.change(ChangeWalletRequest(minimum=0)) == []
    assert pointers(validation.change(ChangeWalletRequest())) == [""]
    assert pointers(validation.change(ChangeWalletRequest(minimum=2**53))) == ["/minimum"]


def test_limits() -> None:
    """
    Each limit is checked in its own place; zero is one, and nothing set lifts all.
    """
    wrong = VelocityLimits(-1, AMOUNT_MAX + 1, 0, AMOUNT_MAX)

    def change(limits: WalletLimits) -> list[str | None]:
        return pointers(validation.change(ChangeWalletRequest(limits=limits)))

    assert change(WalletLimits()) == []
    assert change(WalletLimits(VelocityLimits(0, 0, 0, 0), VelocityLimits(), 0)) == []
    assert change(WalletLimits(debits=wrong)) == [
        "/limits/debits/hour_count",
        "/limits/debits/hour_amount",
    ]
    assert change(WalletLimits(credits=wrong, balance_max=-1)) == [
        "/limits/balance_max",
        "/limits/credits/hour_count",
        "/limits/credits/hour_amount",
    ]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"if_version": 0, "if_available_gte": 0}, []),
        ({"if_version": AMOUNT_MAX, "if_available_gte": -AMOUNT_MAX}, []),
        ({"if_version": -1, "if_available_gte": AMOUNT_MAX + 1}, ["version", "available_gte"]),
        (
            {"if_version": AMOUNT_MAX + 1, "if_available_gte": -(2**53)},
            ["version", "available_gte"],
        ),
    ],
)
def test_conditions(conditions: dict[str, int], expected: list[str]) -> None:
    """
    A condition is exact in every JSON reader, on every movement that takes one.
    """
    placing = PlaceHoldRequest("a", 1, "EUR", **conditions)
    deposit = DepositRequest("a", 1, "EUR", **conditions)

    named = [f"/if_{name}" for name in expected]
    assert pointers(errors_of(**conditions)) == named
    assert pointers(validation.placing(placing)) == named
    assert pointers(validation.movement(deposit)) == named


@pytest.mark.parametrize(
    ("lifetime_s", "sound"), [(1, True), (31 * 86_400, True), (0, False), (31 * 86_400 + 1, False)]
)
def test_lifetimes(lifetime_s: int, sound: bool) -> None:
    """
    A hold lasts a second to 31 days.
    """
    expected = [] if sound else ["/expires_in_s"]

    assert pointers(lifetime_errors(lifetime_s)) == expected
    placing = PlaceHoldRequest("a", 1, "EUR", expires_in_s=lifetime_s)
    assert pointers(validation.placing(placing)) == expected


def test_holds_name_every_wrong_field() -> None:
    """
    A hold and a capture hear all that is wrong at once.
    """
    words: dict[str, Any] = {"reference": "", "metadata": {"a": "\x00"}}
    placing = PlaceHoldRequest("!", 0, "?", "!", expires_in_s=0, **words)
    capture = CaptureHoldRequest(amount=0, destination="!", **words)

    assert pointers(validation.placing(placing)) == [
        "/source",
        "/destination",
        "/amount",
        "/currency",
        "/expires_in_s",
        "/reference",
        "/metadata/a",
    ]
    expected = ["/amount", "/destination", "/reference", "/metadata/a"]
    assert pointers(validation.capture(capture)) == expected
    assert validation.placing(PlaceHoldRequest("a", 1, "EUR")) == []
    assert validation.capture(CaptureHoldRequest()) == []


def test_a_hold_is_for_another_wallet() -> None:
    """
    Nothing could be captured to where it is already.
    """
    assert pointers(validation.placing(PlaceHoldRequest("a", 1, "EUR", "a"))) == ["/destination"]
    assert validation.placing(PlaceHoldRequest("a", 1, "EUR", "b")) == []


def test_canonical_metadata() -> None:
    """
    The order of the keys does not matter, and nothing is nothing.
    """
    assert canonical_metadata({"b": 1, "a": "é"}) == '{"a":"é","b":1}'
    assert canonical_metadata({"a": "é", "b": 1}) == '{"a":"é","b":1}'
    assert canonical_metadata({}) is None
    assert canonical_metadata(None) is None
