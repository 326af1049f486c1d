"""
A payout file: read, checked row by row, and told apart into what can be paid and what cannot.

Rule 1: every error of every row is told at once; only a file that cannot be read on stops early.
Rule 2: what passes here can be stored and paid: ids, text and amounts are within every bound.
Rule 3: amounts are read by string arithmetic from the currency's exponent, never through a float.
Rule 4: equal content has an equal hash, however the file wrote it: column order, separator,
        quotes, "12.5" or "12.50".

`csv_rows` and `json_rows` turn input into `RawRow`s; `PayoutCheck.pages` checks them. Everything
is a generator that stops between pages, so the caller can take turns with other work, and a
million rows cost their bytes and one dictionary of references.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from hashlib import sha256
from itertools import chain
from typing import Any, Literal

import msgspec

from processor.core.amounts import AMOUNT_MAX, BALANCE_MAX

ERRORS_KEPT_MAX = 1_000
PAGE_ROWS = 250  # About 2 ms of work.
ROW_CHARS_MAX = 8_192
BLANK_ROWS_MAX = 10_000
NOTE_CHARS_MAX = 140
REFERENCE_CHARS_MAX = 64

OnInvalid = Literal["reject_batch", "skip_rows"]

_REQUIRED = ("reference", "destination")
_AMOUNTS = ("amount", "amount_minor")
_OPTIONAL = ("currency", "note")
_COLUMNS = (*_REQUIRED, *_AMOUNTS, *_OPTIONAL)
_JSON_FIELDS = ("reference", "destination", "amount", "note")

_DECODE_BYTES = 64 * 1024
_AMOUNT_DIGITS_MAX = 20

_is_plain_reference = re.compile(r"[!-~]{1,64}").fullmatch
_is_wallet_id = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}").fullmatch
_match_major = re.compile(r"([0-9]+)(?:\.([0-9]+))?").fullmatch
_match_minor = re.compile(r"[0-9]+").fullmatch
# A line break in a cell is ordinary; a NUL or half a surrogate pair no database takes.
_find_control = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]").search


class RowCode(StrEnum):
    """
    What can be wrong with a file or a row of it: one closed list.
    """

    # The file as a whole; nothing of it can be paid.
    FILE_EMPTY = "file_empty"
    FILE_NOT_UTF8 = "file_not_utf8"
    COLUMN_MISSING = "column_missing"
    COLUMN_UNKNOWN = "column_unknown"
    COLUMN_REPEATED = "column_repeated"
    QUOTE_UNCLOSED = "quote_unclosed"
    ROW_TOO_LONG = "row_too_long"
    ROWS_TOO_MANY = "rows_too_many"
    ROWS_BLANK = "rows_blank"
    SUM_OUT_OF_RANGE = "sum_out_of_range"

    # One row.
    ROW_MALFORMED = "row_malformed"
    CELLS_MISSING = "cells_missing"
    CELLS_EXCESS = "cells_excess"
    FIELD_MISSING = "field_missing"
    FIELD_UNKNOWN = "field_unknown"
    REFERENCE_MALFORMED = "reference_malformed"
    REFERENCE_REPEATED = "reference_repeated"
    DESTINATION_MALFORMED = "destination_malformed"
    DESTINATION_IS_SOURCE = "destination_is_source"
    AMOUNT_MALFORMED = "amount_malformed"
    AMOUNT_TOO_PRECISE = "amount_too_precise"
    AMOUNT_OUT_OF_RANGE = "amount_out_of_range"
    CURRENCY_MISMATCH = "currency_mismatch"
    NOTE_TOO_LONG = "note_too_long"
    NOTE_MALFORMED = "note_malformed"
    DUPLICATE_REFERENCE = "duplicate_reference"  # Found by the store: in an earlier batch.


class PayoutRules(msgspec.Struct, frozen=True, kw_only=True):
    """
    What the rows of one batch are held against.
    """

    source: str
    currency: str
    exponent: int
    on_invalid: OnInvalid
    rows_max: int


class RowError(msgspec.Struct, frozen=True):
    """
    One thing wrong; rows are numbered as an editor shows them (items of JSON: from 1).
    """

    row_number: int
    item_reference: str | None
    field: str | None
    code: str
    message: str


class CheckedRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """
    A row that can be paid, or with `code` one that cannot; then only its sound fields are set.
    """

    row_number: int
    reference: str | None
    destination: str | None
    amount: int | None
    note: str | None
    code: str | None = None


encode_page = msgspec.msgpack.Encoder().encode
decode_page = msgspec.msgpack.Decoder(list[CheckedRow]).decode


class Report(msgspec.Struct):
    """
    What a check found. `errors` are the first ERRORS_KEPT_MAX of `errors_total`.
    """

    rows: int = 0
    rows_invalid: int = 0
    amount: int = 0  # Of the rows that can be paid, minor units.
    file_refused: bool = False  # Whatever `on_invalid` says.
    errors_total: int = 0
    errors: list[RowError] = msgspec.field(default_factory=list)

    def add(self, error: RowError) -> None:
        self.errors_total += 1
        if len(self.errors) < ERRORS_KEPT_MAX:
            self.errors.append(error)

    @property
    def rows_valid(self) -> int:
        return self.rows - self.rows_invalid


class Fault(msgspec.Struct, frozen=True, gc=False):
    """
    One thing wrong with a row that is being read.
    """

    field: str | None
    code: RowCode
    message: str


class RawRow(msgspec.Struct, gc=False):
    """
    A row as it was read. With a fault in its shape the other fields are not to be believed.

    `said` is all that the row says, for the content hash: its cells, or its JSON text.
    """

    row_number: int
    reference: Any
    destination: Any
    amount: int | Fault
    currency: Any
    note: Any
    shape_fault: Fault | None
    said: list[str] | bytes


class FileBroken(Exception):
    """
    The file cannot be read on; nothing of it can be paid.
    """

    def __init__(self, errors: list[RowError]) -> None:
        super().__init__(errors[0].message)
        self.errors = errors


def _broken(row_number: int, code: RowCode, message: str) -> FileBroken:
    return FileBroken([RowError(row_number, None, None, code, message)])


class PayoutCheck:
    """
    The check of one file; `report` grows with each page, `content_hash` is of the pages so far.
    """

    def __init__(self, rules: PayoutRules) -> None:
        self.report = Report()
        self._rules = rules
        self._first_rows: dict[str, int] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._hash = sha256(self._encoder.encode([1, rules.source, rules.currency]))
        self._hash.update(self._encoder.encode(rules.on_invalid))

    @property
    def content_hash(self) -> bytes:
        return self._hash.digest()

    def pages(self, rows: Iterable[RawRow]) -> Iterator[list[CheckedRow]]:
        """
        Check *rows* and yield them in pages, the valid and the invalid in their order.
        """
        page = []
        try:
            for row in rows:
                if self.report.rows == self._rules.rows_max:
                    raise _broken(
                        row.row_number,
                        RowCode.ROWS_TOO_MANY,
                        f"A batch holds at most {self._rules.rows_max} rows: split the file.",
                    )
                page.append(self._check(row))
                if len(page) == PAGE_ROWS:
                    yield page
                    page = []
            if self.report.rows == 0:
                raise _broken(1, RowCode.FILE_EMPTY, "There are no rows to pay.")
        except FileBroken as broken:
            self.report.file_refused = True
            for error in broken.errors:
                self.report.add(error)
        if page:
            yield page

    def _check(self, row: RawRow) -> CheckedRow:
        report = self.report
        report.rows += 1
        faults = [row.shape_fault] if row.shape_fault else list(self._faults(row))
        if not faults:
            assert isinstance(row.amount, int)
            report.amount += row.amount
            if report.amount > BALANCE_MAX and not report.file_refused:
                report.file_refused = True
                report.add(_sum_error(row))
            note = row.note or None
            self._hash.update(
                self._encoder.encode((row.reference, row.destination, row.amount, note))
            )
            return CheckedRow(row.row_number, row.reference, row.destination, row.amount, note)

        report.rows_invalid += 1
        self._hash.update(self._encoder.encode((faults[0].code, row.said)))
        return self._set_aside(row, faults)

    def _faults(self, row: RawRow) -> Iterator[Fault]:
        reference = row.reference
        fault = _reference_fault(reference)
        if fault is not None:
            yield fault
        else:
            first = self._first_rows.setdefault(reference, row.row_number)
            if first != row.row_number:
                yield Fault(
                    "reference",
                    RowCode.REFERENCE_REPEATED,
                    f"Rows {first} and {row.row_number} have the same reference "
                    f"{reference!r}: each row needs its own.",
                )
        fault = self._destination_fault(row.destination)
        if fault is not None:
            yield fault
        if isinstance(row.amount, Fault):
            yield row.amount
        if row.currency and row.currency != self._rules.currency:
            yield Fault(
                "currency",
                RowCode.CURRENCY_MISMATCH,
                f"The row is in {_shown(row.currency)} and the batch in {self._rules.currency}: "
                "send a batch for each currency.",
            )
        if row.note is not None and row.note != "":
            fault = _note_fault(row.note)
            if fault is not None:
                yield fault

    def _destination_fault(self, value: Any) -> Fault | None:
        if value is None or value == "":
            return Fault("destination", RowCode.FIELD_MISSING, "The destination is missing.")
        if not isinstance(value, str) or not _is_wallet_id(value):
            return Fault(
                "destination",
                RowCode.DESTINATION_MALFORMED,
                f"{_shown(value)} is no wallet id: 1 to 64 of A-Z a-z 0-9 . _ : @ - beginning "
                "with a letter or digit.",
            )
        if value == self._rules.source:
            return Fault(
                "destination",
                RowCode.DESTINATION_IS_SOURCE,
                "The destination is the wallet that pays.",
            )
        return None

    def _set_aside(self, row: RawRow, faults: list[Fault]) -> CheckedRow:
        wrong = {fault.field for fault in faults}
        misread = row.shape_fault is not None
        known = _reference_fault(row.reference) is None
        reference = row.reference if known else None
        for fault in faults:
            self.report.add(
                RowError(row.row_number, reference, fault.field, fault.code, fault.message)
            )
        return CheckedRow(
            row.row_number,
            reference,
            None if misread or "destination" in wrong else row.destination,
            None if misread or isinstance(row.amount, Fault) else row.amount,
            None if misread or "note" in wrong else row.note or None,
            faults[0].code.value,
        )


def _sum_error(row: RawRow) -> RowError:
    return RowError(
        row.row_number,
        row.reference,
        "amount",
        RowCode.SUM_OUT_OF_RANGE,
        f"With this row the batch sums to more than {BALANCE_MAX} minor units: split it.",
    )


def _reference_fault(value: Any) -> Fault | None:
    if value is None or value == "":
        return Fault("reference", RowCode.FIELD_MISSING, "The reference is missing.")
    if isinstance(value, str) and (
        _is_plain_reference(value)
        or (len(value) <= REFERENCE_CHARS_MAX and value.isprintable() and " " not in value)
    ):
        return None
    return Fault(
        "reference",
        RowCode.REFERENCE_MALFORMED,
        f"{_shown(value)} is no reference: 1 to {REFERENCE_CHARS_MAX} visible characters "
        "without blanks.",
    )


def _note_fault(value: Any) -> Fault | None:
    if not isinstance(value, str):
        return Fault("note", RowCode.NOTE_MALFORMED, "The note is no text.")
    if len(value) > NOTE_CHARS_MAX:
        return Fault(
            "note",
            RowCode.NOTE_TOO_LONG,
            f"The note has {len(value)} characters; {NOTE_CHARS_MAX} are allowed.",
        )
    if _find_control(value):
        message = "The note holds a control character: remove it."
        return Fault("note", RowCode.NOTE_MALFORMED, message)
    return None


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Amounts.


def parse_major(text: str, exponent: int) -> int | Fault:
    """
    Read an amount in major units, such as 12.5 with exponent 2, into minor units, exactly.
    """
    match = _match_major(text)
    if match is None:
        return _amount_malformed(text)
    whole, fraction = match[1], match[2] or ""
    if len(fraction) > exponent:
        allowed = "no decimals" if exponent == 0 else f"at most {exponent} decimals"
        return Fault(
            "amount",
            RowCode.AMOUNT_TOO_PRECISE,
            f"{_shown(text)} has {len(fraction)} decimals; the currency has {allowed}.",
        )
    if len(whole) > _AMOUNT_DIGITS_MAX:
        return _amount_out_of_range(text)
    return _in_range(int(whole + fraction.ljust(exponent, "0")), text)


def format_major(amount: int, exponent: int) -> str:
    """
    Write minor units in major units: 1250 with exponent 2 is 12.50.
    """
    if exponent == 0:
        return str(amount)
    digits = str(amount).rjust(exponent + 1, "0")
    return f"{digits[:-exponent]}.{digits[-exponent:]}"


def parse_minor(text: str) -> int | Fault:
    """
    Read a whole number of minor units.
    """
    if not _match_minor(text):
        return Fault(
            "amount_minor",
            RowCode.AMOUNT_MALFORMED,
            f"{_shown(text)} is no whole number of minor units: write digits only.",
        )
    if len(text) > _AMOUNT_DIGITS_MAX:
        return _amount_out_of_range(text, "amount_minor")
    return _in_range(int(text), text, "amount_minor")


def _in_range(amount: int, text: str, field: str = "amount") -> int | Fault:
    return amount if 1 <= amount <= AMOUNT_MAX else _amount_out_of_range(text, field)


def _amount_out_of_range(text: str, field: str = "amount") -> Fault:
    return Fault(
        field,
        RowCode.AMOUNT_OUT_OF_RANGE,
        f"{_shown(text)} is out of range: 1 to {AMOUNT_MAX} minor units can be paid.",
    )


def _amount_malformed(text: str) -> Fault:
    if text == "":
        return Fault("amount", RowCode.FIELD_MISSING, "The amount is missing.")
    return Fault(
        "amount",
        RowCode.AMOUNT_MALFORMED,
        f"{_shown(text)} is no amount: write digits with a point, as in 1234.50, without sign, "
        "blanks, exponent or thousands separators.",
    )


# CSV.


class _Columns(msgspec.Struct, frozen=True):
    """
    Where each column of a file stands; -1 for one that is not there.
    """

    count: int
    reference: int
    destination: int
    amount: int
    amount_minor: int
    currency: int
    note: int


def csv_rows(chunks: Iterable[bytes], rules: PayoutRules) -> Iterator[RawRow]:
    """
    Read CSV from *chunks* of bytes, cut anywhere; raises FileBroken where it cannot go on.
    """
    lines = _RowLines(_lines(_decoded(chunks)))
    header = next(lines, "")
    delimiter = ";" if header.count(";") > header.count(",") else ","
    reader = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    columns: _Columns | None = None
    blank_count = 0
    while True:
        lines.chars = len(header) if columns is None else 0
        row_number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if columns is None or "end of data" in str(error):
                raise _quote_unclosed(row_number) from error
            yield _misshapen(row_number, [], None, _malformed_fault(error))
            continue
        if columns is None:
            columns = _read_header(cells)
        elif cells:
            yield _csv_row(row_number, cells, columns, rules.exponent)
        else:
            blank_count += 1
            if blank_count > BLANK_ROWS_MAX:
                raise _broken(row_number, RowCode.ROWS_BLANK, "Too many blank lines: remove them.")


def _csv_row(row_number: int, cells: list[str], columns: _Columns, exponent: int) -> RawRow:
    if len(cells) != columns.count:
        code = RowCode.CELLS_MISSING if len(cells) < columns.count else RowCode.CELLS_EXCESS
        fault = Fault(
            None,
            code,
            f"The row has {len(cells)} cells and the header {columns.count}: fill the row, or "
            "quote a cell that holds the separator.",
        )
        reference = cells[columns.reference] if columns.reference < len(cells) else None
        return _misshapen(row_number, cells, reference, fault)
    if columns.amount >= 0:
        amount = parse_major(cells[columns.amount], exponent)
    elif text := cells[columns.amount_minor]:
        amount = parse_minor(text)
    else:
        amount = Fault("amount_minor", RowCode.FIELD_MISSING, "The amount is missing.")
    return RawRow(
        row_number,
        cells[columns.reference],
        cells[columns.destination],
        amount,
        cells[columns.currency] if columns.currency >= 0 else None,
        cells[columns.note] if columns.note >= 0 else None,
        None,
        cells,
    )


def _misshapen(row_number: int, said: list[str] | bytes, reference: Any, fault: Fault) -> RawRow:
    return RawRow(row_number, reference, None, fault, None, None, fault, said)


def _malformed_fault(error: Exception) -> Fault:
    return Fault(None, RowCode.ROW_MALFORMED, f"The row cannot be read: {error}.")


def _quote_unclosed(row_number: int) -> FileBroken:
    return _broken(
        row_number,
        RowCode.QUOTE_UNCLOSED,
        f'The quote opened in row {row_number} is never closed: close it, or write "" for a '
        "quote inside a cell.",
    )


def _read_header(cells: list[str]) -> _Columns:
    names = [cell.strip(" ") for cell in cells]
    faults = _header_faults(names)
    if faults:
        raise FileBroken(
            [RowError(1, None, fault.field, fault.code, fault.message) for fault in faults]
        )
    places = {name: names.index(name) if name in names else -1 for name in _COLUMNS}
    return _Columns(count=len(names), **places)


def _header_faults(names: list[str]) -> list[Fault]:
    if not any(names):
        return [Fault(None, RowCode.FILE_EMPTY, "The first row must name the columns.")]
    faults = [
        Fault(
            None,
            RowCode.COLUMN_UNKNOWN,
            f"There is no column {_shown(name)}: the names are {', '.join(_COLUMNS)}, with "
            "commas or semicolons between them.",
        )
        for name in names
        if name not in _COLUMNS
    ]
    faults += [
        Fault(name, RowCode.COLUMN_REPEATED, f"The column {name} stands more than once.")
        for name in _COLUMNS
        if names.count(name) > 1
    ]
    faults += [
        Fault(name, RowCode.COLUMN_MISSING, f"The column {name} is missing.")
        for name in _REQUIRED
        if name not in names
    ]
    present = [name for name in _AMOUNTS if name in names]
    if not present:
        message = "A column amount (as 12.50) or amount_minor (as 1250) is missing."
        faults.append(Fault("amount", RowCode.COLUMN_MISSING, message))
    elif len(present) > 1:
        message = "Of the columns amount and amount_minor only one may be there."
        faults.append(Fault("amount", RowCode.COLUMN_REPEATED, message))
    return faults


class _RowLines:
    """
    Hands lines to the CSV reader and bounds what a single row may take of them.
    """

    def __init__(self, lines: Iterator[str]) -> None:
        self.chars = 0
        self._lines = lines
        self._count = 0
        self._row_number = 1

    def __iter__(self) -> _RowLines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._count += 1
        if self.chars == 0:
            self._row_number = self._count
        self.chars += len(line)
        if self.chars > ROW_CHARS_MAX:
            # Over several lines it is a quote left open; alone it is just too long.
            if self._row_number < self._count:
                raise _quote_unclosed(self._row_number)
            raise _row_too_long(self._row_number)
        return line


def _row_too_long(row_number: int) -> FileBroken:
    return _broken(
        row_number,
        RowCode.ROW_TOO_LONG,
        f"Row {row_number} has more than {ROW_CHARS_MAX} characters: this is no payout row.",
    )


class _NotUtf8(Exception):
    def __init__(self, offset: int, byte: int) -> None:
        super().__init__(offset)
        self.offset = offset
        self.byte = byte


def _decoded(chunks: Iterable[bytes]) -> Iterator[str]:
    """
    Decode UTF-8, drop a byte order mark; raises _NotUtf8 after all text before the bad byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    at_start = True
    pieces = (
        chunk[start : start + _DECODE_BYTES]
        for chunk in chunks
        for start in range(0, len(chunk), _DECODE_BYTES)
    )
    for piece in chain(pieces, [b""]):
        begin = offset - len(decoder.getstate()[0])
        offset += len(piece)
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            yield error.object[: error.start].decode()
            raise _NotUtf8(begin + error.start, error.object[error.start]) from error
        if at_start and text:
            text = text.removeprefix("\ufeff")
            at_start = False
        yield text


def _lines(texts: Iterator[str]) -> Iterator[str]:
    """
    Cut text into lines as an editor does, line ends kept: CRLF, LF or CR.
    """
    count = 0
    carry = ""
    try:
        for text in texts:
            lines = list(io.StringIO(carry + text, newline=""))
            # The last line waits: it may go on, and its CR may be half of a CRLF.
            carry = lines.pop() if lines else ""
            if len(carry) > ROW_CHARS_MAX:
                raise _row_too_long(count + len(lines) + 1)
            for line in lines:
                count += 1
                yield line
    except _NotUtf8 as error:
        if carry.endswith(("\n", "\r")):
            count += 1
            yield carry
        raise _broken(
            count + 1,
            RowCode.FILE_NOT_UTF8,
            f"The file is not UTF-8: byte 0x{error.byte:02x} at offset {error.offset}, in line "
            f'{count + 1}. Save it as "CSV UTF-8" (it may be Windows-1252 or UTF-16 now) and '
            "send it again.",
        ) from error
    if carry:
        yield carry


# JSON.


def json_rows(items: Iterable[bytes]) -> Iterator[RawRow]:
    """
    Read items of JSON text; amounts are whole minor units.
    """
    for row_number, item in enumerate(items, start=1):
        yield _json_row(row_number, item)


class _NameRepeated(ValueError):
    pass


def _json_row(row_number: int, item: bytes) -> RawRow:
    try:
        fields = json.loads(item.decode(), object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as error:
        return _misshapen(row_number, item, None, _malformed_fault(error))
    if not isinstance(fields, dict):
        fault = Fault(None, RowCode.ROW_MALFORMED, "An item is an object.")
        return _misshapen(row_number, item, None, fault)
    unknown = [name for name in fields if name not in _JSON_FIELDS]
    if unknown:
        message = (
            f"There is no field {_shown(unknown[0])}: the names are {', '.join(_JSON_FIELDS)}."
        )
        fault = Fault(None, RowCode.FIELD_UNKNOWN, message)
        return _misshapen(row_number, item, fields.get("reference"), fault)
    return RawRow(
        row_number,
        fields.get("reference"),
        fields.get("destination"),
        _json_amount(fields.get("amount")),
        None,
        fields.get("note"),
        None,
        item,
    )


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _NameRepeated("a name stands twice in the object")
    return fields


def _json_amount(value: Any) -> int | Fault:
    if value is None:
        return Fault("amount", RowCode.FIELD_MISSING, "The amount is missing.")
    if type(value) is not int:  # True is an int too.
        return Fault(
            "amount",
            RowCode.AMOUNT_MALFORMED,
            f"{_shown(value)} is no whole number of minor units: 12.50 EUR is 1250.",
        )
    return _in_range(value, repr(value))
