"""
Goal: a payout file is read exactly, every error of it is told with its row, and nothing passes
      that could not be stored and paid.
Method: files as bytes, on both sides of each boundary; files made at random are compared with
        the rows they were made of.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.amounts import AMOUNT_MAX, BALANCE_MAX
from processor.flow.payout_file import (
    BLANK_ROWS_MAX,
    ERRORS_KEPT_MAX,
    PAGE_ROWS,
    ROW_CHARS_MAX,
    CheckedRow,
    PayoutCheck,
    PayoutRules,
    csv_rows,
    decode_page,
    encode_page,
    format_major,
    json_rows,
    parse_major,
    parse_minor,
)

HEADER = "reference,destination,amount\n"


def rules(**changes) -> PayoutRules:
    defaults = {
        "source": "payroll",
        "currency": "EUR",
        "exponent": 2,
        "on_invalid": "reject_batch",
        "rows_max": 100,
    }
    return PayoutRules(**(defaults | changes))


class Checked:
    """
    A file after its check.
    """

    def __init__(self, rows, rules_used: PayoutRules) -> None:
        self.check = PayoutCheck(rules_used)
        self.pages = list(self.check.pages(rows))
        self.rows = [row for page in self.pages for row in page]
        self.report = self.check.report
        self.errors = self.report.errors
        self.hash = self.check.content_hash

    @property
    def codes(self) -> list[tuple[int, str]]:
        return [(error.row_number, str(error.code)) for error in self.errors]

    @property
    def valid(self) -> list[CheckedRow]:
        return [row for row in self.rows if row.code is None]


def checked(data: str | bytes | Iterable[bytes], **changes) -> Checked:
    if isinstance(data, str):
        data = data.encode()
    chunks = [data] if isinstance(data, bytes) else data
    used = rules(**changes)
    return Checked(csv_rows(chunks, used), used)


def checked_items(*items: object, **changes) -> Checked:
    encoded = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in items]
    return Checked(json_rows(encoded), rules(**changes))


def row_with(**cells: str) -> str:
    """
    Write a file of one row with these cells, and sound ones for the rest.
    """
    cells = {"reference": "r1", "destination": "emp-1", "amount": "12.50"} | cells
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(cells)
    writer.writerow(cells.values())
    return text.getvalue()


class TestHeader:
    @pytest.mark.parametrize(
        "header",
        [
            "reference,destination,amount",
            "amount;reference;destination",
            '"reference","destination","amount"',
            " reference , destination,amount ",
            "\ufeffreference,destination,amount",
            "\ufeff\"reference\";'destination';amount".replace("'", '"'),
        ],
    )
    def test_columns_stand_in_any_order_with_either_separator(self, header):
        """
        Column order, separator, quotes and a byte order mark do not matter.
        """
        cells = {"reference": "r1", "destination": "emp-1", "amount": "12.5"}
        names = header.replace("\ufeff", "").replace('"', "").replace(" ", "")
        separator = ";" if ";" in header else ","
        row = separator.join(cells[name] for name in names.split(separator))
        result = checked(f"{header}\n{row}\n")
        assert result.errors == []
        assert result.rows == [CheckedRow(2, "r1", "emp-1", 1250, None)]

    def test_the_separator_is_taken_from_the_header_only(self):
        """
        Commas in the rows of a semicolon file are text.
        """
        result = checked("reference;destination;amount;note\nr1;emp-1;1;a,b,c,d,e,f\n")
        assert result.rows == [CheckedRow(2, "r1", "emp-1", 100, "a,b,c,d,e,f")]

    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ("reference,destination", {("column_missing", "amount")}),
            ("destination,amount", {("column_missing", "reference")}),
            ("reference,amount_minor", {("column_missing", "destination")}),
            ("reference,destination,amount,amount_minor", {("column_repeated", "amount")}),
            ("reference,destination,amount,amount", {("column_repeated", "amount")}),
            ("reference,destination,amount,colour", {("column_unknown", None)}),
            (
                "Reference,destination,amount",
                {("column_unknown", None), ("column_missing", "reference")},
            ),
            (
                "r1,emp-1,12.50",
                {
                    ("column_unknown", None),
                    ("column_missing", "reference"),
                    ("column_missing", "destination"),
                    ("column_missing", "amount"),
                },
            ),
            ("", {("file_empty", None)}),
            (",,", {("file_empty", None)}),
        ],
    )
    def test_a_wrong_header_refuses_the_file_with_all_its_errors(self, header, expected):
        """
        Every error of the header is told at once, in row 1, and no row is looked at.
        """
        result = checked(f"{header}\nr1,emp-1,12.50\n")
        assert {(error.code, error.field) for error in result.errors} == expected
        assert {error.row_number for error in result.errors} == {1}
        assert result.report.file_refused
        assert result.rows == []

    def test_a_tab_separated_file_is_told_what_to_use(self):
        """
        An unknown separator makes one unknown column, and the message names the separators.
        """
        result = checked("reference\tdestination\tamount\nr1\temp-1\t1\n")
        assert "commas or semicolons" in result.errors[0].message

    @pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n", b"\r\n\r\n", HEADER.encode()])
    def test_a_file_without_rows_is_refused(self, data):
        """
        Nothing, a byte order mark, blank lines and a lonely header are empty files.
        """
        result = checked(data)
        assert result.codes == [(1, "file_empty")]
        assert result.report.file_refused


class TestAmounts:
    @pytest.mark.parametrize(
        ("text", "exponent", "expected"),
        [
            ("12", 2, 1200),
            ("12.5", 2, 1250),
            ("12.50", 2, 1250),
            ("0.01", 2, 1),
            ("0012.50", 2, 1250),
            ("12", 0, 12),
            ("12.345", 3, 12345),
            ("0.000001", 6, 1),
            ("90071992547409.91", 2, AMOUNT_MAX),
            (str(AMOUNT_MAX), 0, AMOUNT_MAX),
        ],
    )
    def test_major_units_are_read_exactly(self, text, exponent, expected):
        """
        Digits and a point, up to the currency's decimals and 2^53-1 minor units.
        """
        assert parse_major(text, exponent) == expected

    @pytest.mark.parametrize(
        ("text", "exponent", "code"),
        [
            ("12.345", 2, "amount_too_precise"),
            ("12.500", 2, "amount_too_precise"),
            ("12.0", 0, "amount_too_precise"),
            ("0", 2, "amount_out_of_range"),
            ("0.00", 2, "amount_out_of_range"),
            ("90071992547409.92", 2, "amount_out_of_range"),
            (str(AMOUNT_MAX + 1), 0, "amount_out_of_range"),
            ("9" * 5000, 2, "amount_out_of_range"),
            ("", 2, "field_missing"),
            *[
                (text, 2, "amount_malformed")
                for text in [
                    "12,50",
                    "1,234.50",
                    "1'234.50",
                    "1_000",
                    "-1",
                    "+1",
                    "1e3",
                    "1E3",
                    ".5",
                    "12.",
                    ".",
                    "1.2.3",
                    "0x10",
                    "NaN",
                    "inf",
                    "abc",
                ]
            ],
            (" 12", 2, "amount_malformed"),
            ("12 ", 2, "amount_malformed"),
            ("12\n", 2, "amount_malformed"),
            ("1 000", 2, "amount_malformed"),
            ("€12", 2, "amount_malformed"),
            ("١٢", 2, "amount_malformed"),
            ("\uff11\uff12", 2, "amount_malformed"),
            ("12\u00a0000", 2, "amount_malformed"),
        ],
    )
    def test_anything_else_is_refused(self, text, exponent, code):
        """
        No sign, blank, exponent, thousands separator or foreign digit, and no rounding.
        """
        fault = parse_major(text, exponent)
        assert not isinstance(fault, int)
        assert fault.code == code

    @given(amount=st.integers(1, AMOUNT_MAX), exponent=st.integers(0, 6))
    def test_writing_and_reading_an_amount_gives_it_back(self, amount, exponent):
        """
        What the result file writes, a payout file may say.
        """
        assert parse_major(format_major(amount, exponent), exponent) == amount

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("1", 1),
            (str(AMOUNT_MAX), AMOUNT_MAX),
            ("0", "amount_out_of_range"),
            (str(AMOUNT_MAX + 1), "amount_out_of_range"),
            ("9" * 5000, "amount_out_of_range"),
            ("12.5", "amount_malformed"),
            ("-1", "amount_malformed"),
            ("1e3", "amount_malformed"),
            ("\uff11", "amount_malformed"),
        ],
    )
    def test_minor_units_are_whole(self, text, expected):
        """
        Digits only, from 1 to 2^53-1.
        """
        result = parse_minor(text)
        assert (result if isinstance(result, int) else result.code) == expected

    def test_a_column_of_minor_units(self):
        """
        The column amount_minor is taken as it stands, and its errors name it.
        """
        text = "reference,destination,amount_minor\nr1,emp-1,1250\nr2,emp-2,12.50\nr3,emp-3,\n"
        result = checked(text)
        assert result.rows[0].amount == 1250
        assert [(error.code, error.field) for error in result.errors] == [
            ("amount_malformed", "amount_minor"),
            ("field_missing", "amount_minor"),
        ]


class TestEncoding:
    def test_windows_1252_names_the_byte_the_line_and_the_remedy(self):
        """
        One clear error tells where the first bad byte is and how to save the file.
        """
        data = HEADER.encode() + b"r1,emp-1,1\nr2,emp-2,1\nM\xfcller,emp-3,1\nr4,emp-4,1\n"
        result = checked(data)
        assert result.codes == [(4, "file_not_utf8")]
        message = result.errors[0].message
        assert f"byte 0xfc at offset {data.index(0xFC)}, in line 4" in message
        assert "CSV UTF-8" in message
        assert result.report.file_refused

    def test_rows_before_the_bad_byte_are_still_checked(self):
        """
        The errors of the rows above are told with it.
        """
        result = checked(HEADER.encode() + b"r1,emp-1,1.234\nr\xe9,emp-2,1\n")
        assert result.codes == [(2, "amount_too_precise"), (3, "file_not_utf8")]

    def test_utf_16_is_refused_at_its_first_byte(self):
        """
        A UTF-16 file is no UTF-8 from offset 0 on.
        """
        result = checked(f"{HEADER}r1,emp-1,1\n".encode("utf-16"))
        assert result.codes == [(1, "file_not_utf8")]
        assert "offset 0" in result.errors[0].message

    def test_a_character_cut_off_by_the_end_is_told(self):
        """
        The last byte of the file may not be half a character.
        """
        data = f"{HEADER}r1,emp-1,1\nr2,emp-2,1\nré".encode()[:-1]
        result = checked(data)
        assert result.codes == [(4, "file_not_utf8")]
        assert f"offset {len(data) - 1}," in result.errors[0].message

    @pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
    def test_the_bad_line_is_counted_with_any_line_end(self, line_end):
        """
        CRLF is one line end, also where a chunk ends inside it.
        """
        text = line_end.join(["reference,destination,amount", "r1,emp-1,1", "r2,emp-2,1", ""])
        data = text.encode() + b"\xff"
        for cut in range(len(data)):
            result = checked([data[:cut], data[cut:]])
            assert result.codes == [(4, "file_not_utf8")]
            assert f"offset {len(text)}, in line 4" in result.errors[0].message

    def test_characters_may_be_cut_anywhere(self):
        """
        Chunks of single bytes give the same rows.
        """
        text = f"\ufeff{HEADER}gehalt-märz-€-😀,emp-1,1\r\nr2,emp-2,2\r\n"
        data = text.encode()
        whole = checked(data)
        assert whole.errors == []
        assert checked(bytes([byte]) for byte in data).rows == whole.rows
        assert whole.rows[0].reference == "gehalt-märz-€-😀"


class TestRows:
    @pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
    def test_rows_are_numbered_as_an_editor_shows_them(self, line_end):
        """
        A row has the number of its first line, after blank lines and quoted line breaks too.
        """
        lines = [
            "reference,destination,amount,note",
            'r2,emp-1,1,"two',
            'lines"',
            "r4,emp-1,1,",
            "",
            "r6,emp-1,1,",
            'r7,emp-1,1,"a',
            "",
            'b"',
            "r10,emp-1,1,",
        ]
        result = checked(line_end.join(lines))
        assert result.errors == []
        assert [(row.row_number, row.reference) for row in result.rows] == [
            (2, "r2"),
            (4, "r4"),
            (6, "r6"),
            (7, "r7"),
            (10, "r10"),
        ]
        assert result.rows[0].note == f"two{line_end}lines"

    def test_other_line_separators_of_unicode_end_no_row(self):
        """
        NEL and the line separator are text to an editor and to the row numbers.
        """
        result = checked(f"{HEADER[:-1]},note\nr1,emp-1,1,a\u2028b\nr2,emp-2,1,\x0b\n")
        assert result.rows[0] == CheckedRow(2, "r1", "emp-1", 100, "a\u2028b")
        assert result.codes == [(3, "note_malformed")]

    @pytest.mark.parametrize(
        ("row", "code"),
        [
            ("r1,emp-1", "cells_missing"),
            ("r1", "cells_missing"),
            ("r1,emp-1,1,2", "cells_excess"),
            ("r1,emp-1,12,50", "cells_excess"),
            ('"r1"x,emp-1,1', "row_malformed"),
            ("r1;emp-1;1", "cells_missing"),
        ],
    )
    def test_a_row_of_the_wrong_shape_is_one_error(self, row, code):
        """
        Too few or too many cells and stray quotes are told, and the rows after it are read.
        """
        result = checked(f"{HEADER}{row}\nr2,emp-2,1.234\n")
        assert result.codes == [(2, code), (3, "amount_too_precise")]
        assert not result.report.file_refused

    def test_all_errors_of_a_row_are_told_at_once(self):
        """
        A row with everything wrong gives an error for each field.
        """
        text = "reference,destination,amount,currency,note\na b,?,x,USD," + "n" * 141 + "\n"
        result = checked(text)
        assert result.codes == [
            (2, "reference_malformed"),
            (2, "destination_malformed"),
            (2, "amount_malformed"),
            (2, "currency_mismatch"),
            (2, "note_too_long"),
        ]
        assert [error.field for error in result.errors] == [
            "reference",
            "destination",
            "amount",
            "currency",
            "note",
        ]
        assert result.rows == [CheckedRow(2, None, None, None, None, "reference_malformed")]

    def test_an_error_names_the_reference_of_its_row(self):
        """
        Where the reference itself is sound, the error carries it.
        """
        assert checked(row_with(amount="x")).errors[0].item_reference == "r1"

    @pytest.mark.parametrize("field", ["reference", "destination", "amount"])
    def test_an_empty_cell_is_a_missing_field(self, field):
        """
        A required cell without text is told as missing.
        """
        error = checked(row_with(**{field: ""})).errors[0]
        assert (error.code, error.field) == ("field_missing", field)

    @pytest.mark.parametrize(
        ("reference", "accepted"),
        [
            ("r", True),
            ("r" * 64, True),
            ("r" * 65, False),
            ("märz/2024#7", True),
            ("=HYPERLINK()", True),
            ("é" * 64, True),
            ("é" * 65, False),
            ("a b", False),
            (" a", False),
            ("a\u00a0b", False),
            ("a\tb", False),
            ("a\nb", False),
            ("a\x00b", False),
            ("a\x7fb", False),
            ("a\u200bb", False),
            ("a\u202eb", False),
        ],
    )
    def test_a_reference_is_1_to_64_visible_characters(self, reference, accepted):
        """
        Blanks, controls and characters nobody sees are refused.
        """
        expected = [] if accepted else [(2, "reference_malformed")]
        assert checked(row_with(reference=reference)).codes == expected

    @pytest.mark.parametrize(
        ("destination", "code"),
        [
            ("e", None),
            ("e" * 64, None),
            ("A9._:@-z", None),
            ("e" * 65, "destination_malformed"),
            (".emp", "destination_malformed"),
            ("$world:0:EUR", "destination_malformed"),
            ("emp 1", "destination_malformed"),
            ("emp-1\n", "destination_malformed"),
            ("emp\x001", "destination_malformed"),
            ("émp", "destination_malformed"),
            ("payroll", "destination_is_source"),
        ],
    )
    def test_a_destination_is_a_wallet_id(self, destination, code):
        """
        The pattern of wallet ids, the source itself excepted.
        """
        expected = [] if code is None else [(2, code)]
        assert checked(row_with(destination=destination)).codes == expected

    @pytest.mark.parametrize(
        ("currency", "accepted"), [("EUR", True), ("", True), ("USD", False), ("eur", False)]
    )
    def test_a_currency_is_that_of_the_batch_or_left_out(self, currency, accepted):
        """
        One batch is in one currency.
        """
        expected = [] if accepted else [(2, "currency_mismatch")]
        assert checked(row_with(currency=currency)).codes == expected

    @pytest.mark.parametrize(
        ("note", "code"),
        [
            ("", None),
            ("n" * 140, None),
            ("😀" * 140, None),
            ("line\nline\r\n\tline", None),
            ("n" * 141, "note_too_long"),
            ("\x00", "note_malformed"),
            ("\x1b[31m", "note_malformed"),
            ("\x85", "note_malformed"),
        ],
    )
    def test_a_note_is_up_to_140_characters_of_text(self, note, code):
        """
        Line breaks are text, other control characters are not.
        """
        expected = [] if code is None else [(2, code)]
        assert checked(row_with(note=note)).codes == expected

    def test_a_repeated_reference_names_both_rows(self):
        """
        The later row is refused, with the number of the first.
        """
        text = HEADER + "a,emp-1,1\nb,emp-1,1\na,emp-2,1\na,emp-3,1\n"
        result = checked(text)
        assert result.codes == [(4, "reference_repeated"), (5, "reference_repeated")]
        assert "Rows 2 and 4" in result.errors[0].message
        assert "Rows 2 and 5" in result.errors[1].message
        assert [row.row_number for row in result.valid] == [2, 3]

    def test_a_reference_is_taken_by_an_invalid_row_too(self):
        """
        Which of two rows was meant is not for us to guess.
        """
        result = checked(HEADER + "a,emp-1,bad\na,emp-1,1\n")
        assert result.codes == [(2, "amount_malformed"), (3, "reference_repeated")]


class TestBounds:
    def test_rows_up_to_the_maximum(self):
        """
        The last allowed row passes; one more refuses the file at that row.
        """
        text = HEADER + "".join(f"r{n},emp-1,1\n" for n in range(100))
        assert checked(text).errors == []
        result = checked(text + "one-more,emp-1,1\n")
        assert result.codes == [(102, "rows_too_many")]
        assert result.report.file_refused

    def test_errors_are_capped_and_counted(self):
        """
        The first thousand are kept, all are counted.
        """
        text = HEADER + "r,emp-1,x\n" * 600
        result = checked(text, rows_max=600)
        assert result.report.errors_total == 600 + 599
        assert len(result.errors) == ERRORS_KEPT_MAX
        assert result.report.rows_invalid == 600

    def test_the_sum_of_a_batch_fits_a_balance(self):
        """
        2^63-1 minor units pass, one more refuses the file once.
        """
        full, rest = divmod(BALANCE_MAX, AMOUNT_MAX)
        amounts = [AMOUNT_MAX] * full + [rest]
        lines = [f"r{n},emp-1,{amount}" for n, amount in enumerate(amounts)]
        text = "reference,destination,amount_minor\n" + "\n".join(lines)
        result = checked(text, rows_max=10_000)
        assert result.errors == []
        assert result.report.amount == BALANCE_MAX

        above = checked(f"{text}\na,emp-1,1\nb,emp-1,1\n", rows_max=10_000)
        assert above.codes == [(len(amounts) + 2, "sum_out_of_range")]
        assert above.report.file_refused

    def test_a_row_is_bounded(self):
        """
        A row of the bound is read; a longer one refuses the file.
        """
        row = "r1,emp-1,1,"
        note = "n" * (ROW_CHARS_MAX - len(row) - 1)
        header = HEADER[:-1] + ",note\n"
        assert checked(f"{header}{row}{note}\n").codes == [(2, "note_too_long")]
        assert checked(f"{header}{row}{note}n\n").codes == [(2, "row_too_long")]
        assert checked("x" * 10_000_000).codes == [(1, "row_too_long")]

    @pytest.mark.parametrize("rows_after", [0, 5, 5_000])
    def test_a_quote_left_open_names_the_row_it_opened_in(self, rows_after):
        """
        However much follows, the error points at the opening quote.
        """
        text = (
            HEADER
            + 'r1,emp-1,1\nr2,"emp-2,1\n'
            + "".join(f"s{n},emp-1,1\n" for n in range(rows_after))
        )
        result = checked(text, rows_max=10_000)
        assert result.codes == [(3, "quote_unclosed")]
        assert result.report.file_refused

    def test_blank_lines_are_bounded(self):
        """
        Blank lines are skipped, but not for ever.
        """
        text = HEADER + "\n" * BLANK_ROWS_MAX + "r1,emp-1,1\n"
        assert checked(text).errors == []
        assert checked(text + "\n").codes == [(BLANK_ROWS_MAX + 3, "rows_blank")]

    def test_pages_are_full_but_the_last(self):
        """
        Rows come in pages of a fixed size, so that the caller can take turns.
        """
        text = HEADER + "".join(f"r{n},emp-1,1\n" for n in range(2 * PAGE_ROWS + 1))
        result = checked(text, rows_max=10_000)
        assert [len(page) for page in result.pages] == [PAGE_ROWS, PAGE_ROWS, 1]

    def test_the_report_adds_up(self):
        """
        Rows, invalid rows and the sum are those of the rows.
        """
        report = checked(HEADER + "a,emp-1,1\nb,emp-1,x\nc,emp-1,2.50\n").report
        assert (report.rows, report.rows_valid, report.rows_invalid) == (3, 2, 1)
        assert report.amount == 350


class TestContentHash:
    ROWS = HEADER + "r1,emp-1,12.50\nr2,emp-2,7\n"

    @pytest.mark.parametrize(
        "same",
        [
            "\ufeff" + ROWS,
            ROWS.replace(",", ";"),
            ROWS.replace("\n", "\r\n"),
            ROWS.replace("12.50", "12.5"),
            ROWS.replace("r1", '"r1"'),
            ROWS.replace("\n", "\n\n"),
            "amount_minor,destination,reference\n1250,emp-1,r1\n700,emp-2,r2\n",
            "reference,destination,amount,currency,note\nr1,emp-1,12.50,EUR,\nr2,emp-2,7,,\n",
        ],
    )
    def test_the_same_rows_have_the_same_hash(self, same):
        """
        How the file is written does not count.
        """
        assert checked(same).hash == checked(self.ROWS).hash

    def test_json_and_csv_of_the_same_rows_have_the_same_hash(self):
        """
        The form does not count either.
        """
        items = checked_items(
            {"reference": "r1", "destination": "emp-1", "amount": 1250},
            {"reference": "r2", "destination": "emp-2", "amount": 700, "note": ""},
        )
        assert items.hash == checked(self.ROWS).hash

    @pytest.mark.parametrize(
        "other",
        [
            ROWS.replace("r1", "r3"),
            ROWS.replace("emp-1", "emp-3"),
            ROWS.replace("12.50", "12.51"),
            ROWS + "r3,emp-3,1\n",
            ROWS.replace("r2,emp-2,7\n", ""),
            ROWS.replace("r2,emp-2,7", "r2,emp-2,x"),
            HEADER + "r2,emp-2,7\nr1,emp-1,12.50\n",
            "reference,destination,amount,note\nr1,emp-1,12.50,n\nr2,emp-2,7,\n",
        ],
    )
    def test_other_rows_have_another_hash(self, other):
        """
        Every field, every row, their order, and a row that became invalid count.
        """
        assert checked(other).hash != checked(self.ROWS).hash

    @pytest.mark.parametrize(
        "change", [{"source": "other"}, {"currency": "USD"}, {"on_invalid": "skip_rows"}]
    )
    def test_source_currency_and_mode_count(self, change):
        """
        The same rows from another wallet are another batch.
        """
        assert checked(self.ROWS, **change).hash != checked(self.ROWS).hash

    def test_invalid_rows_count_with_what_they_say(self):
        """
        Two files that differ in an invalid cell are not the same.
        """
        left, right = (checked(HEADER + f"r1,emp-1,{text}\n").hash for text in ("x", "y"))
        assert left != right

    def test_the_hash_of_a_known_file(self):
        """
        The hash is the same in every build: a resubmission after an upgrade is recognised.
        """
        assert checked(self.ROWS).hash.hex() == GOLDEN_HASH


GOLDEN_HASH = "eb2a628853f3075e29dc143f92577c4224f47727bb09da464ad9a92cb675fc45"


class TestJson:
    def test_items_are_numbered_from_one(self):
        """
        Items are read with their note, amounts in minor units.
        """
        result = checked_items(
            {"reference": "r1", "destination": "emp-1", "amount": 1250, "note": "May"},
            {"reference": "r2", "destination": "emp-2", "amount": 1, "note": None},
        )
        assert result.rows == [
            CheckedRow(1, "r1", "emp-1", 1250, "May"),
            CheckedRow(2, "r2", "emp-2", 1, None),
        ]

    @pytest.mark.parametrize(
        ("amount", "code"),
        [
            (1, None),
            (AMOUNT_MAX, None),
            (0, "amount_out_of_range"),
            (-1, "amount_out_of_range"),
            (AMOUNT_MAX + 1, "amount_out_of_range"),
            (2**70, "amount_out_of_range"),
            (1.0, "amount_malformed"),
            (1e3, "amount_malformed"),
            (True, "amount_malformed"),
            ("1", "amount_malformed"),
            ([], "amount_malformed"),
            (None, "field_missing"),
        ],
    )
    def test_an_amount_is_an_integer_of_minor_units(self, amount, code):
        """
        No float, no text, no boolean, from 1 to 2^53-1.
        """
        result = checked_items({"reference": "r1", "destination": "emp-1", "amount": amount})
        assert result.codes == ([] if code is None else [(1, code)])

    @pytest.mark.parametrize(
        ("item", "code"),
        [
            (b"[]", "row_malformed"),
            (b"7", "row_malformed"),
            (b'{"reference":"r","reference":"s"}', "row_malformed"),
            (b'{"reference":"\xff"}', "row_malformed"),
            (b'{"amount":' + b"9" * 5000 + b"}", "row_malformed"),
            (b"[" * 100_000 + b"]" * 100_000, "row_malformed"),
            (b'{"reference":"r","colour":1}', "field_unknown"),
            (b'{"reference":7,"destination":"emp-1","amount":1}', "reference_malformed"),
            (b'{"reference":"\\ud800","destination":"emp-1","amount":1}', "reference_malformed"),
            (b'{"reference":"r","destination":["emp"],"amount":1}', "destination_malformed"),
            (b'{"reference":"r","destination":"emp-1","amount":1,"note":7}', "note_malformed"),
            (b'{"reference":"r","destination":"emp-1","amount":1,"note":0}', "note_malformed"),
            (
                b'{"reference":"r","destination":"emp-1","amount":1,"note":"\\ud800"}',
                "note_malformed",
            ),
            (
                b'{"reference":"r","destination":"emp-1","amount":1,"note":"\\u0000"}',
                "note_malformed",
            ),
        ],
    )
    def test_a_malformed_item_is_one_error_and_the_rest_is_read(self, item, code):
        """
        Whatever an item is, the next one is checked too.
        """
        sound = {"reference": "r2", "destination": "emp-2", "amount": 5}
        result = checked_items(item, sound)
        assert result.codes == [(1, code)]
        assert [row.reference for row in result.valid] == ["r2"]

    def test_no_items_are_refused(self):
        """
        A batch of nothing is no batch.
        """
        assert checked_items().codes == [(1, "file_empty")]


REFERENCES = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=64
).filter(str.isprintable)
DESTINATIONS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}", fullmatch=True).filter(
    lambda text: text != "payroll"
)
NOTES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], include_characters="\n\r\t"),
    max_size=140,
)
ROWS = st.lists(
    st.tuples(REFERENCES, DESTINATIONS, st.integers(1, AMOUNT_MAX), NOTES),
    min_size=1,
    max_size=20,
    unique_by=lambda row: row[0],
)


@given(
    rows=ROWS,
    separator=st.sampled_from(",;"),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    mark=st.sampled_from(["", "\ufeff"]),
    chunk_bytes=st.integers(1, 200),
)
def test_what_is_written_is_read(*, rows, separator, line_end, quoting, mark, chunk_bytes):
    """
    Any rows, in any dialect, cut anywhere, come back as they are, and through a page's bytes.
    """
    text = io.StringIO(newline="")
    # The module quotes a lone LF or CR only when it is part of the line end it writes itself.
    writer = csv.writer(text, delimiter=separator, lineterminator="\r\n", quoting=quoting)
    writer.writerow(["reference", "destination", "amount", "note"])
    for reference, destination, amount, note in rows:
        writer.writerow([reference, destination, format_major(amount, 2), note])
    data = (mark + text.getvalue()).encode()
    if not any("\n" in row[3] or "\r" in row[3] for row in rows):
        data = data.replace(b"\r\n", line_end.encode())

    result = checked(data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes))
    assert result.errors == []
    read = [(row.reference, row.destination, row.amount, row.note or "") for row in result.rows]
    assert read == rows
    assert [decode_page(encode_page(page)) for page in result.pages] == result.pages


def assert_report_fits(data: bytes) -> None:
    """
    Check that the counts add up and that every row's texts can be stored.
    """
    result = checked(data)
    report = result.report
    assert report.rows == len(result.rows) == report.rows_valid + report.rows_invalid
    assert bool(result.errors) == (report.file_refused or report.rows_invalid > 0)
    assert report.amount == sum(row.amount for row in result.valid)
    for row in result.rows:
        for text in (row.reference, row.destination, row.note):
            assert text is None or "\x00" not in text
            assert text is None or text.encode() is not None


@given(data=st.binary(max_size=400))
def test_any_bytes_give_a_report(data):
    """
    No input raises, with or without a sound header before it.
    """
    assert_report_fits(data)
    assert_report_fits(HEADER.encode() + data)


@given(
    cells=st.lists(
        st.one_of(
            st.sampled_from(["r1", "emp-1", "12.50", "payroll", '"', ",", ";", "\r", "\n", "\x00"]),
            st.text(max_size=10),
        ),
        max_size=30,
    )
)
def test_any_cells_give_a_report(cells):
    """
    The same, closer to what a file looks like.
    """
    assert_report_fits((HEADER + ",".join(cells)).encode())
