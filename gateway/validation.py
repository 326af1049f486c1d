"""
Which values are acceptable.

Rule 1: each check names every wrong field of a request, not only the first.
Rule 2: what passes here is acceptable to the ledger, to the wire between gateway and shard, and
        to Postgres: no NUL anywhere, integers within their columns, texts within their bounds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from configs.settings import Settings
from gateway.hold_wire import LIFETIME_S_MAX, CaptureHoldRequest, PlaceHoldRequest
from gateway.problems import FieldError
from gateway.strict_json import escaped
from gateway.wire import (
    WALLET_ID_PATTERN,
    BatchTransfer,
    ChangeWalletRequest,
    DepositRequest,
    OpenWalletRequest,
    TransferRequest,
    WalletLimits,
    WithdrawalRequest,
)
from processor.core.amounts import AMOUNT_MAX

IDEMPOTENCY_KEY_CHARS_MAX = 255
METADATA_INTEGER_MAX = 2**53 - 1  # Exact in every JSON reader.

Movement = TransferRequest | DepositRequest | WithdrawalRequest | BatchTransfer
Metadata = Mapping[str, str | int | bool]

is_wallet_id = re.compile(WALLET_ID_PATTERN).fullmatch
_canonical = msgspec.json.Encoder(order="sorted").encode


def is_idempotency_key(key: str) -> bool:
    """
    Say whether *key* is 1 to 255 visible ASCII characters.
    """
    return (
        0 < len(key) <= IDEMPOTENCY_KEY_CHARS_MAX
        and key.isascii()
        and key.isprintable()
        and " " not in key
    )


def canonical_metadata(metadata: Metadata | None) -> str | None:
    """
    Write *metadata* the one way the ledger stores and compares it; empty is as good as none.
    """
    return _canonical(metadata).decode() if metadata else None


class Validation:
    """
    The checks, with the bounds of the settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._currencies = frozenset(settings.currency_exponents)
        self._reference_chars_max = settings.gateway.reference_chars_max
        self._metadata_bytes_max = settings.gateway.metadata_bytes_max

    def movement(self, request: Movement) -> list[FieldError]:
        """
        Check a transfer, deposit or withdrawal.
        """
        errors: list[FieldError] = []
        if not isinstance(request, DepositRequest) and not is_wallet_id(request.source):
            errors.append(_wallet_id_error("/source"))
        if not isinstance(request, WithdrawalRequest) and not is_wallet_id(request.destination):
            errors.append(_wallet_id_error("/destination"))
        errors += amount_errors(request.amount)
        if request.currency not in self._currencies:
            errors.append(_currency_error())
        errors += _condition_errors(request.if_version, request.if_available_gte)
        return errors + self.words(request.reference, request.metadata)

    def words(self, reference: str | None, metadata: Metadata | None) -> list[FieldError]:
        """
        Check what a request says besides its money.
        """
        errors = [] if reference is None else self._reference(reference)
        return errors + self._metadata(metadata) if metadata else errors

    def placing(self, request: PlaceHoldRequest) -> list[FieldError]:
        """
        Check the placing of a hold.
        """
        errors: list[FieldError] = []
        if not is_wallet_id(request.source):
            errors.append(_wallet_id_error("/source"))
        if request.destination is not None and not is_wallet_id(request.destination):
            errors.append(_wallet_id_error("/destination"))
        elif request.destination == request.source:
            detail = "What a hold keeps is captured into another wallet than its own."
            errors.append(FieldError("not_allowed", detail, "/destination"))
        errors += amount_errors(request.amount)
        if request.currency not in self._currencies:
            errors.append(_currency_error())
        errors += lifetime_errors(request.expires_in_s)
        errors += _condition_errors(request.if_version, request.if_available_gte)
        return errors + self.words(request.reference, request.metadata)

    def capture(self, request: CaptureHoldRequest) -> list[FieldError]:
        """
        Check the capture of a hold.
        """
        errors = [] if request.amount is None else amount_errors(request.amount)
        if request.destination is not None and not is_wallet_id(request.destination):
            errors.append(_wallet_id_error("/destination"))
        return errors + self.words(request.reference, request.metadata)

    def batch_transfer(self, item: BatchTransfer) -> list[FieldError]:
        """
        Check one item of a batch.
        """
        errors = self.movement(item)
        if not is_idempotency_key(item.idempotency_key):
            detail = "A key is 1 to 255 visible ASCII characters."
            errors.append(FieldError("bad_format", detail, "/idempotency_key"))
        return errors

    def opening(self, request: OpenWalletRequest) -> list[FieldError]:
        """
        Check the opening of a wallet.
        """
        errors = []
        if request.wallet_id is not None and not is_wallet_id(request.wallet_id):
            errors.append(_wallet_id_error("/wallet_id"))
        if request.currency not in self._currencies:
            errors.append(_currency_error())
        return errors + _minimum_errors(request.minimum)

    def change(self, request: ChangeWalletRequest) -> list[FieldError]:
        """
        Check a change of a wallet.
        """
        if request.status is None and request.minimum is None and request.limits is None:
            return [FieldError("required", "Give a status, a minimum, limits, or several.", "")]
        errors = [] if request.minimum is None else _minimum_errors(request.minimum)
        return errors + _limit_errors(request.limits) if request.limits is not None else errors

    def _reference(self, reference: str) -> list[FieldError]:
        if "\x00" in reference:
            return [_nul_error("/reference")]
        if 0 < len(reference) <= self._reference_chars_max:
            return []
        detail = f"A reference is 1 to {self._reference_chars_max} characters, or left out."
        return [FieldError("out_of_range", detail, "/reference")]

    def _metadata(self, metadata: Metadata) -> list[FieldError]:
        errors = []
        for name, value in metadata.items():
            pointer = f"/metadata/{escaped(name)}"
            if "\x00" in name or (isinstance(value, str) and "\x00" in value):
                errors.append(_nul_error(pointer))
            elif isinstance(value, int) and abs(value) > METADATA_INTEGER_MAX:
                detail = f"An integer here is within ±{METADATA_INTEGER_MAX}; use a string."
                errors.append(FieldError("out_of_range", detail, pointer))
        if len(_canonical(metadata)) > self._metadata_bytes_max:
            detail = f"Metadata is at most {self._metadata_bytes_max} bytes of JSON."
            return [FieldError("out_of_range", detail, "/metadata")]
        return errors


def amount_errors(amount: int) -> list[FieldError]:
    if 0 < amount <= AMOUNT_MAX:
        return []
    detail = f"An amount is between 1 and {AMOUNT_MAX} minor units."
    return [FieldError("out_of_range", detail, "/amount")]


def lifetime_errors(lifetime_s: int) -> list[FieldError]:
    """
    Check how long a hold shall last.
    """
    if 1 <= lifetime_s <= LIFETIME_S_MAX:
        return []
    detail = f"A hold lasts 1 to {LIFETIME_S_MAX} seconds; it can be extended."
    return [FieldError("out_of_range", detail, "/expires_in_s")]


def _condition_errors(if_version: int | None, if_available_gte: int | None) -> list[FieldError]:
    errors = []
    if if_version is not None and not 0 <= if_version <= AMOUNT_MAX:
        detail = "A version is a wallet's number of entries."
        errors.append(FieldError("out_of_range", detail, "/if_version"))
    if if_available_gte is not None and abs(if_available_gte) > AMOUNT_MAX:
        detail = f"A condition is within ±{AMOUNT_MAX} minor units."
        errors.append(FieldError("out_of_range", detail, "/if_available_gte"))
    return errors


def _limit_errors(limits: WalletLimits) -> list[FieldError]:
    bounds = [("/limits/balance_max", limits.balance_max)]
    for side, velocity in (("debits", limits.debits), ("credits", limits.credits)):
        named = msgspec.structs.asdict(velocity).items()
        bounds += [(f"/limits/{side}/{name}", bound) for name, bound in named]
    detail = f"A limit is between 0 and {AMOUNT_MAX}; null is none."
    return [
        FieldError("out_of_range", detail, pointer)
        for pointer, bound in bounds
        if bound is not None and not 0 <= bound <= AMOUNT_MAX
    ]


def _wallet_id_error(pointer: str) -> FieldError:
    detail = "A wallet id is 1 to 64 of A-Z a-z 0-9 . _ : @ - and begins with a letter or a digit."
    return FieldError("bad_format", detail, pointer)


def _currency_error() -> FieldError:
    detail = "Name an ISO 4217 currency in capitals, or one of the configuration."
    return FieldError("unknown_currency", detail, "/currency")


def _minimum_errors(minimum: int) -> list[FieldError]:
    if abs(minimum) <= AMOUNT_MAX:
        return []
    detail = f"A minimum is within ±{AMOUNT_MAX} minor units."
    return [FieldError("out_of_range", detail, "/minimum")]


def _nul_error(pointer: str) -> FieldError:
    return FieldError("bad_format", "A text must not contain NUL (U+0000).", pointer)
