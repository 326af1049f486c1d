"""
Submitting a payout file.

Rule 1: a file is refused or stored as a whole; the reply to a stored one means that every row
        will get an outcome, whatever crashes.
Rule 2: a file is checked in turns of a few milliseconds, so that it holds up nobody, and only a
        few at a time, so that memory is bounded.
Rule 3: the reply and the refusal carry the same report: all that is wrong, with its rows.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import msgspec
import uuid_utils

from gateway.endpoint import Call
from gateway.identifiers import uuid_text
from gateway.payout_wire import (
    REFERENCE_PATTERN,
    ROWS_PER_SECOND_MAX,
    PayoutReport,
    PayoutRowError,
    PayoutSubmission,
    PayoutWarning,
    SubmitPayoutBatchQuery,
    SubmitPayoutBatchRequest,
    WarningCode,
)
from gateway.payouts import batch_of
from gateway.problems import FieldError, Refusal
from gateway.reply import REPLAYED, Reply, json_reply
from gateway.strict_json import StrictDecoder
from gateway.validation import is_wallet_id
from gateway.wallets import read_wallet
from processor.core.wallet import WalletStatus
from processor.flow.frames import WalletFound
from processor.flow.payout_file import (
    OnInvalid,
    PayoutCheck,
    PayoutRules,
    RawRow,
    RowCode,
    RowError,
    csv_rows,
    encode_page,
    json_rows,
)
from processor.storage.payouts import (
    Duplicate,
    DuplicatesFound,
    NewBatch,
    PayoutBatch,
    PayoutStore,
    ReferenceTaken,
    Submission,
    Submitted,
)

_is_reference = re.compile(REFERENCE_PATTERN).fullmatch
_decode_request = StrictDecoder(SubmitPayoutBatchRequest).decode


class _Form(msgspec.Struct, frozen=True):
    """
    What is said about the rows. `is_csv` decides how a wrong part is named.
    """

    is_csv: bool
    reference: str
    source: str
    currency: str
    on_invalid: OnInvalid
    rows_per_second_max: int | None
    validate_only: bool


async def submit_payout_batch(call: Call) -> Reply:
    payouts, merchant_id = call.gateway.payouts, call.caller.merchant_id
    with payouts.upload():
        body = await payouts.bodies.read(call.headers, call.receive)
        form, items = _read_form(call, body)
        source, _ = await read_wallet(call, form.source)
        first = await payouts.store.by_reference(merchant_id, form.reference)
        if first is None:
            # What was submitted before is answered as it is, whatever its source is by now.
            _require_usable(source, form)
        rules = PayoutRules(
            source=form.source,
            currency=form.currency,
            exponent=call.gateway.settings.currency_exponents[form.currency],
            on_invalid=form.on_invalid,
            rows_max=call.gateway.settings.payouts.rows_max,
        )
        check = PayoutCheck(rules)
        pages = await _pages(check, csv_rows([body], rules) if form.is_csv else json_rows(items))
        report = _ReportOf(form, source, check)
        new = NewBatch(
            batch_id=uuid_utils.uuid7().bytes,
            merchant_id=merchant_id,
            reference=form.reference,
            content_hash=check.content_hash,
            source=form.source,
            currency=form.currency,
            on_invalid=form.on_invalid,
            rows_per_second_max=form.rows_per_second_max,
            pages=pages,
        )
        if form.validate_only:
            return await _validated(payouts.store, new, report, first)
        submission = await _submit(payouts.store, new, report, first)
    payouts.runner.look()
    return _submitted(submission, report)


async def _pages(check: PayoutCheck, rows: Iterable[RawRow]) -> list[bytes]:
    pages = []
    for page in check.pages(rows):
        pages.append(encode_page(page))
        await asyncio.sleep(0)  # Others take their turn.
    return pages


async def _submit(
    store: PayoutStore, new: NewBatch, report: _ReportOf, first: PayoutBatch | None
) -> Submission:
    if report.is_unreadable:
        raise report.refusal()
    if first is not None:
        same = first.content_hash == new.content_hash
        return Submitted(first, repeated=True) if same else ReferenceTaken(first)
    if report.is_refused:
        report.add(await store.find_duplicates(new.merchant_id, new.pages))
        raise report.refusal()
    return await store.submit(new)


async def _validated(
    store: PayoutStore, new: NewBatch, report: _ReportOf, first: PayoutBatch | None
) -> Reply:
    if first is None:
        report.add(await store.find_duplicates(new.merchant_id, new.pages))
        report.warn_of_shortfall()
    elif first.content_hash == new.content_hash and not report.is_unreadable:
        report.warn("already_submitted", "This file was submitted before; it is not paid again.")
    else:
        report.warn("reference_taken", "This reference belongs to another batch; choose another.")
    return json_reply(200, PayoutSubmission(None, report.wire()))


def _submitted(submission: Submission, report: _ReportOf) -> Reply:
    match submission:
        case ReferenceTaken(first):
            raise Refusal(
                "payout_reference_taken",
                batch_id=uuid_text(first.batch_id),
                content_hash=first.content_hash.hex(),
            )
        case DuplicatesFound(duplicates):
            report.add(duplicates)
            raise report.refusal()
        case Submitted(batch, repeated, duplicates):
            report.add(duplicates)
            if not repeated:
                report.warn_of_shortfall()
            wire = batch_of(batch, datetime.now(UTC))
            location = (b"location", f"/v1/payout-batches/{wire.id}".encode())
            headers = (location, REPLAYED) if repeated else (location,)
            body = PayoutSubmission(wire, report.wire())
            return json_reply(200 if repeated else 201, body, *headers)


def _read_form(call: Call, body: bytes) -> tuple[_Form, Iterable[bytes]]:
    query: SubmitPayoutBatchQuery = call.query
    if call.media_type == "text/csv":
        said: SubmitPayoutBatchQuery | SubmitPayoutBatchRequest = query
        items: Iterable[bytes] = ()
    else:
        if query != SubmitPayoutBatchQuery():
            raise Refusal("query_invalid", "With a JSON body, everything is in the body.")
        bytes_max = call.gateway.settings.gateway.body_bytes_max
        if len(body) > bytes_max:
            detail = f"At most {bytes_max} bytes of JSON are taken; send CSV, or split the batch."
            raise Refusal("body_too_large", detail)
        request = _decode_request(body)
        said, items = request, map(bytes, request.items)
    form = _Form(
        call.media_type == "text/csv",
        said.reference or "",
        said.source or "",
        said.currency or "",
        said.on_invalid,
        said.rows_per_second_max,
        said.validate_only,
    )
    errors = list(_form_errors(call, form))
    if errors:
        raise Refusal("query_invalid" if form.is_csv else "validation_failed", errors=errors)
    return form, items


def _form_errors(call: Call, form: _Form) -> Iterator[FieldError]:
    def error(field: str, code: str, detail: str) -> FieldError:
        if getattr(form, field) == "":
            code, detail = "required", f"Name the {field} of the batch."
        if form.is_csv:
            return FieldError(code, detail, parameter=field)
        return FieldError(code, detail, f"/{field}")

    if not _is_reference(form.reference):
        detail = "1 to 64 of A-Z a-z 0-9 . _ : @ - and a letter or digit first."
        yield error("reference", "bad_format", detail)
    if not is_wallet_id(form.source):
        detail = "A wallet id: 1 to 64 of A-Z a-z 0-9 . _ : @ - and a letter or digit first."
        yield error("source", "bad_format", detail)
    if form.currency not in call.gateway.settings.currency_exponents:
        detail = "Name an ISO 4217 currency in capitals, or one of the configuration."
        yield error("currency", "unknown_currency", detail)
    pace = form.rows_per_second_max
    if pace is not None and not 1 <= pace <= ROWS_PER_SECOND_MAX:
        detail = f"Between 1 and {ROWS_PER_SECOND_MAX} rows a second."
        yield error("rows_per_second_max", "out_of_range", detail)


def _require_usable(source: WalletFound, form: _Form) -> None:
    """
    Raise Refusal when every row would fail for the wallet that pays.
    """
    status = WalletStatus(source.status)
    if source.currency != form.currency:
        detail = f"{form.source} is in {source.currency}, the batch in {form.currency}."
        raise Refusal("payout_source_unusable", detail)
    if status is not WalletStatus.OPEN:
        detail = f"{form.source} is {status.name.lower()}: nothing can be paid from it."
        raise Refusal("payout_source_unusable", detail)


class _ReportOf:
    """
    The report of one check, with what the store finds added to it.
    """

    def __init__(self, form: _Form, source: WalletFound, check: PayoutCheck) -> None:
        self._form = form
        self._available = source.posted - source.minimum
        self._content_hash = check.content_hash
        self._report = check.report
        self._warnings: list[PayoutWarning] = []

    @property
    def is_unreadable(self) -> bool:
        return self._report.file_refused

    @property
    def is_refused(self) -> bool:
        return self._report.rows_invalid > 0 and self._form.on_invalid == "reject_batch"

    @property
    def shortfall(self) -> int:
        return max(0, self._report.amount - self._available)

    def add(self, duplicates: Iterable[Duplicate]) -> None:
        for duplicate in duplicates:
            self._report.rows_invalid += 1
            self._report.amount -= duplicate.amount
            self._report.add(_duplicate_error(duplicate))
        self._report.errors.sort(key=lambda error: error.row_number)

    def warn(self, code: WarningCode, message: str) -> None:
        self._warnings.append(PayoutWarning(code, message))

    def warn_of_shortfall(self) -> None:
        if self.shortfall:
            message = (
                f"The source lacks {self.shortfall} minor units of the sum; without them the "
                "last rows fail with insufficient_funds."
            )
            self.warn("funding_shortfall", message)

    def wire(self) -> PayoutReport:
        report = self._report
        return PayoutReport(
            rows=report.rows,
            rows_valid=report.rows_valid,
            rows_invalid=report.rows_invalid,
            amount=report.amount,
            available=self._available,
            funding_shortfall=self.shortfall,
            currency=self._form.currency,
            content_hash=self._content_hash.hex(),
            warnings=self._warnings,
            errors_total=report.errors_total,
            errors=[_row_error(error) for error in report.errors],
        )

    def refusal(self) -> Refusal:
        """
        Refuse the file, with the whole report inside.
        """
        errors = [] if self._form.is_csv else [_item_error(e) for e in self._report.errors]
        return Refusal("payout_rejected", errors=errors, report=self.wire())


def _row_error(error: RowError) -> PayoutRowError:
    return PayoutRowError(
        error.row_number, error.item_reference, error.field, error.code, error.message
    )


def _item_error(error: RowError) -> FieldError:
    pointer = f"/items/{error.row_number - 1}"
    if error.field is not None:
        pointer = f"{pointer}/{error.field}"
    return FieldError(error.code, error.message, pointer)


def _duplicate_error(duplicate: Duplicate) -> RowError:
    return RowError(
        duplicate.row_number,
        duplicate.item_reference,
        "reference",
        RowCode.DUPLICATE_REFERENCE,
        f"{duplicate.item_reference!r} is pending or paid in your batch "
        f"{duplicate.batch_reference} ({uuid_text(duplicate.batch_id)}): a new payment needs a "
        "new reference.",
    )
