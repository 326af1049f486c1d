"""
Goal: a merchant submits a file, sees every error of it at once, and can follow each row to its
      end; asking twice pays once.
Method: a gateway process in front of a real shard, spoken to over HTTP; the example file too.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uuid_utils

from processor.core.commands import Command, SetWalletStatus
from processor.core.wallet import WalletStatus
from processor.storage.api_keys import Scope
from processor.storage.verification import verify
from tests.support.commands import MERCHANT, deposit, open_wallet
from tests.support.running_gateway import RunningGateway, running_gateway
from tests.support.stack import Stack, running_stack

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
END_S_MAX = 60.0
JSON_BYTES_MAX = 100_000
FILE_BYTES_MAX = 2_000_000
FUNDS = 5_000_000_000
HEADER = "reference,destination,amount\n"


@pytest.fixture(scope="module")
def stack(module_database) -> Iterator[Stack]:
    with running_stack(module_database) as started:
        yield started


@pytest.fixture(scope="module")
def gateway(stack) -> Iterator[RunningGateway]:
    bounds = {
        "MILIANO_GATEWAY_BODY_BYTES_MAX": str(JSON_BYTES_MAX),
        "MILIANO_PAYOUTS_FILE_BYTES_MAX": str(FILE_BYTES_MAX),
        "MILIANO_PAYOUTS_UPLOADS_MAX": "1",
    }
    with running_gateway(stack, **bounds) as started:
        yield started


class Merchant:
    """
    A merchant's view of the API.
    """

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client

    def send_csv(self, text: str | bytes, **query: object) -> httpx2.Response:
        return self.client.post(
            "/v1/payout-batches",
            content=text.encode() if isinstance(text, str) else text,
            headers={"content-type": "text/csv"},
            params={"source": "payroll", "currency": "EUR", **query},
        )

    def send_json(self, body: object, **query: object) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        return self.client.post(
            "/v1/payout-batches", content=content, headers=headers, params=query
        )

    def batch(self, name: str) -> dict[str, Any]:
        reply = self.client.get(f"/v1/payout-batches/{name}")
        assert reply.status_code == 200, reply.text
        batch = reply.json()
        counts, amounts = batch["counts"], batch["amounts"]
        assert counts["total"] == counts["pending"] + counts["paid"] + counts["failed"]
        assert amounts["total"] == amounts["pending"] + amounts["paid"] + amounts["failed"]
        return batch

    def finished(self, name: str) -> dict[str, Any]:
        """
        Wait for the end of a batch; its counters add up at each look.
        """
        deadline = time.monotonic() + END_S_MAX
        while (batch := self.batch(name))["state"] == "processing":
            assert time.monotonic() < deadline, batch
        return batch

    def items(self, name: str, **query: object) -> list[dict[str, Any]]:
        """
        Read all pages of the items.
        """
        items, after = [], 0
        while True:
            reply = self.client.get(
                f"/v1/payout-batches/{name}/items", params={"after": after, **query}
            )
            page = reply.json()
            items += page["items"]
            assert page["has_more"] == ("link" in reply.headers)
            if not page["has_more"]:
                return items
            after = page["next_cursor"]

    def result(self, name: str) -> list[dict[str, str]]:
        reply = self.client.get(f"/v1/payout-batches/{name}/result.csv")
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/csv; charset=utf-8"
        return list(csv.DictReader(io.StringIO(reply.text, newline="")))


@pytest.fixture(scope="module")
def merchant(gateway) -> Iterator[Merchant]:
    headers = {"authorization": f"Bearer {gateway.key(MERCHANT)}"}
    with httpx2.Client(base_url=gateway.url, headers=headers, timeout=30) as client:
        made = Merchant(client)
        asyncio.run(open_company(gateway.stack))
        yield made


async def open_company(stack: Stack) -> None:
    """
    Open the wallets of the example file, and close and lock those that its maker names.
    """
    wallets = ["payroll", "empty", "frozen", *(f"emp-{n:06d}" for n in range(1, 9946))]
    closed = [f"emp-{n:06d}" for n in range(8801, 8805)]
    locked = [f"emp-{n:06d}" for n in range(8901, 8904)]
    await send(stack, *map(open_wallet, wallets))
    await send(
        stack,
        *(SetWalletStatus(MERCHANT, name, WalletStatus.CLOSED) for name in closed),
        *(SetWalletStatus(MERCHANT, name, WalletStatus.LOCKED) for name in locked),
        SetWalletStatus(MERCHANT, "frozen", WalletStatus.FROZEN),
        deposit("payroll", FUNDS),
    )


async def send(stack: Stack, *commands: Command) -> None:
    """
    Have the shard do something that is not the matter of the test.
    """
    async with stack.clients() as clients:
        for start in range(0, len(commands), 5_000):
            chunk = commands[start : start + 5_000]
            results = await clients.submit_many(chunk, timeout_ms=20_000)
            assert not [result for result, _ in results if isinstance(result, Exception)]


@pytest.fixture
def name() -> str:
    """
    Give a reference that no other test has.
    """
    return fresh_name()


def fresh_name() -> str:
    return f"b-{uuid_utils.uuid7().hex}"


def rows(name: str, *lines: str) -> str:
    """
    Write a file whose references begin with *name*.
    """
    return HEADER + "".join(f"{name}-{line}\n" for line in lines)


def codes(problem: dict[str, Any]) -> list[tuple[int, str]]:
    return [(error["row_number"], error["code"]) for error in problem["report"]["errors"]]


class TestExample:
    """
    The file of the examples, as its maker describes it.
    """

    FILE = (EXAMPLES / "payouts.csv").read_bytes()

    def of(self, name: str) -> bytes:
        """
        Give the file item references of its own.
        """
        return self.FILE.replace(b"sal-2026-05", name.encode())

    def test_it_is_what_its_maker_makes(self):
        """
        The committed file is the script's, byte by byte.
        """
        namespace: dict[str, Any] = {}
        exec(compile((EXAMPLES / "make_payouts.py").read_text(), "m", "exec"), namespace)
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(namespace["rows"]())
        assert text.getvalue().encode() == self.FILE

    def test_its_errors_are_told_at_once(self, merchant, name):
        """
        The check finds the 47 rows that are wrong in form, and nothing is stored.
        """
        reply = merchant.send_csv(self.of(name), reference=name)
        assert reply.status_code == 422
        problem = reply.json()
        assert problem["code"] == "payout_rejected"
        report = problem["report"]
        assert (report["rows"], report["rows_invalid"], report["errors_total"]) == (10_000, 47, 47)
        assert merchant.client.get(f"/v1/payout-batches/{name}").status_code == 404

    def test_it_is_paid_but_for_its_62_mistakes(self, gateway, merchant, name):
        """
        Every row has its outcome, in the items, in the result file and in the books.
        """
        file = self.of(name)
        reply = merchant.send_csv(file, reference=name, on_invalid="skip_rows")
        assert reply.status_code == 201
        assert reply.headers["location"].endswith(reply.json()["batch"]["id"])
        done = merchant.finished(name)
        assert done["state"] == "completed_with_failures"
        assert done["counts"] == {
            "total": 10_000,
            "pending": 0,
            "paid": 9_938,
            "failed": 62,
            "invalid": 47,
        }
        failed = merchant.items(name, state="failed", limit=7)
        by_ledger = Counter(item["code"] for item in failed if item["transfer_id"])
        assert by_ledger == {
            "destination_unknown": 8,
            "destination_closed": 4,
            "destination_locked": 3,
        }
        result = merchant.result(name)
        assert len(result) == 10_000
        paid = [row for row in result if row["state"] == "paid"]
        cents = sum(int(row["amount"].replace(".", "")) for row in paid)
        assert (len(paid), cents) == (9_938, done["amounts"]["paid"])
        asyncio.run(gateway.stack.settled())
        verdict = asyncio.run(verify(gateway.stack.dsn))
        assert verdict.balanced, verdict.differences

        # The same again: the same batch, and nobody is paid twice.
        again = merchant.send_csv(file, reference=name, on_invalid="skip_rows")
        assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
        assert again.json()["batch"] == merchant.batch(name) == done


class TestRepeats:
    def test_the_same_file_in_another_form_is_the_same_batch(self, merchant, name):
        """
        CSV, other CSV and JSON of the same rows give one batch.
        """
        first = merchant.send_csv(rows(name, "1,emp-000001,12.50"), reference=name)
        assert first.status_code == 201
        assert "idempotent-replayed" not in first.headers
        text = f"\ufeffdestination;amount_minor;reference\r\nemp-000001;1250;{name}-1\r\n"
        second = merchant.send_csv(text, reference=name)
        item = {"reference": f"{name}-1", "destination": "emp-000001", "amount": 1250}
        third = merchant.send_json(
            {"reference": name, "source": "payroll", "currency": "EUR", "items": [item]}
        )
        for reply in (second, third):
            assert (reply.status_code, reply.headers["idempotent-replayed"]) == (200, "true")
            assert reply.json()["batch"]["id"] == first.json()["batch"]["id"]
        assert merchant.finished(name)["counts"]["paid"] == 1

    def test_the_batch_is_answered_whatever_its_source_is_by_now(self, stack, merchant, name):
        """
        A resubmission after the source was emptied and frozen gives the batch, without warnings.
        """
        source = f"source-{name}"
        text = rows(name, "1,emp-000001,12.50")
        asyncio.run(send(stack, open_wallet(source), deposit(source, 1250, key=name)))
        first = merchant.send_csv(text, reference=name, source=source)
        assert first.status_code == 201
        assert merchant.finished(name)["state"] == "completed"
        asyncio.run(send(stack, SetWalletStatus(MERCHANT, source, WalletStatus.FROZEN)))
        again = merchant.send_csv(text, reference=name, source=source)
        assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
        assert again.json()["report"]["warnings"] == []
        other = merchant.send_csv(text + "x,emp-1,1\n", reference=name, source=source)
        assert (other.status_code, other.json()["code"]) == (409, "payout_reference_taken")

    def test_a_broken_file_is_never_a_repeat(self, merchant, name):
        """
        A file that breaks off after the rows of the first batch is refused, not taken for it.
        """
        text = rows(name, "1,emp-000001,12.50")
        merchant.send_csv(text, reference=name)
        for flag, status in (("false", 422), ("true", 200)):
            reply = merchant.send_csv(text.encode() + b"\xff", reference=name, validate_only=flag)
            assert reply.status_code == status
            assert codes(reply.json()) == [(3, "file_not_utf8")]

    def test_other_content_is_a_conflict_that_tells_the_first(self, merchant, name):
        """
        The hash of the first batch is in the answer; the second one is nowhere.
        """
        first = merchant.send_csv(rows(name, "1,emp-000001,12.50"), reference=name)
        reply = merchant.send_csv(rows(name, "1,emp-000001,12.51"), reference=name)
        assert reply.status_code == 409
        problem = reply.json()
        assert problem["code"] == "payout_reference_taken"
        batch = first.json()["batch"]
        assert (problem["batch_id"], problem["content_hash"]) == (
            batch["id"],
            batch["content_hash"],
        )
        assert merchant.finished(name)["amounts"]["paid"] == 1250

    def test_an_item_of_an_earlier_file_is_refused(self, merchant, name):
        """
        Found with the other errors, in the order of the rows, naming the earlier batch.
        """
        merchant.send_csv(rows(name, "1,emp-000001,1", "2,nobody,1"), reference=name)
        merchant.finished(name)
        text = rows(name, "x,emp-000002,1", "1,emp-000001,1", "2,emp-000002,1", "3,emp-000002,z")
        reply = merchant.send_csv(text, reference=f"{name}-b")
        assert reply.status_code == 422
        assert codes(reply.json()) == [(3, "duplicate_reference"), (5, "amount_malformed")]
        assert name in reply.json()["report"]["errors"][0]["message"]

        sound = rows(name, "x,emp-000002,1", "1,emp-000001,1")
        reply = merchant.send_csv(sound, reference=f"{name}-b")
        assert codes(reply.json()) == [(3, "duplicate_reference")]

        reply = merchant.send_csv(sound, reference=f"{name}-b", on_invalid="skip_rows")
        assert reply.status_code == 201
        report = reply.json()["report"]
        assert (report["rows_invalid"], report["amount"]) == (1, 100)
        assert merchant.finished(f"{name}-b")["counts"]["paid"] == 1

    def test_a_failed_item_may_be_sent_again(self, merchant, name):
        """
        What the ledger refused is free for the next file, and is paid by it.
        """
        merchant.send_csv(rows(name, "1,nobody,1"), reference=name)
        assert merchant.finished(name)["state"] == "failed"
        reply = merchant.send_csv(rows(name, "1,emp-000001,1"), reference=f"{name}-b")
        assert reply.status_code == 201
        assert merchant.finished(f"{name}-b")["state"] == "completed"


class TestValidateOnly:
    def test_nothing_is_stored(self, merchant, name):
        """
        The report comes with 200, right or wrong, and there is no batch.
        """
        text = rows(name, "1,emp-000001,12.50", "2,emp-000001,x")
        reply = merchant.send_csv(text, reference=name, validate_only="true")
        assert reply.status_code == 200
        body = reply.json()
        assert body["batch"] is None
        assert (body["report"]["rows_valid"], body["report"]["rows_invalid"]) == (1, 1)
        assert codes(body) == [(3, "amount_malformed")]
        assert merchant.client.get(f"/v1/payout-batches/{name}").status_code == 404

    def test_a_shortfall_is_told(self, merchant, name):
        """
        The sum is held against what the source can pay now.
        """
        reply = merchant.send_csv(
            rows(name, "1,emp-000001,12.50"), reference=name, source="empty", validate_only="true"
        )
        report = reply.json()["report"]
        assert (report["amount"], report["available"]) == (1250, 0)
        assert report["funding_shortfall"] == 1250
        assert [warning["code"] for warning in report["warnings"]] == ["funding_shortfall"]

    def test_a_reference_in_use_is_told(self, merchant, name):
        """
        A file that was submitted says so; another one under its reference, too.
        """
        text = rows(name, "1,emp-000001,12.50")
        merchant.send_csv(text, reference=name)
        same = merchant.send_csv(text, reference=name, validate_only="true").json()
        other = merchant.send_csv(
            text.replace("12.50", "1"), reference=name, validate_only="true"
        ).json()
        told = [
            [warning["code"] for warning in body["report"]["warnings"]] for body in (same, other)
        ]
        assert told == [["already_submitted"], ["reference_taken"]]
        assert same["report"]["errors"] == other["report"]["errors"] == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("query", "parameter", "code"),
        [
            ({"reference": ""}, "reference", "required"),
            ({"reference": "a/b"}, "reference", "bad_format"),
            ({"reference": "r" * 65}, "reference", "bad_format"),
            ({"source": "$world:0:EUR"}, "source", "bad_format"),
            ({"currency": "XXX"}, "currency", "unknown_currency"),
            ({"currency": ""}, "currency", "required"),
            ({"rows_per_second_max": 0}, "rows_per_second_max", "out_of_range"),
            ({"rows_per_second_max": 1_000_001}, "rows_per_second_max", "out_of_range"),
            ({"on_invalid": "ignore"}, "on_invalid", None),
            ({"colour": "red"}, "colour", "unknown_field"),
        ],
    )
    def test_a_wrong_parameter_is_named(self, merchant, name, query, parameter, code):
        """
        What is said about the file is checked before the file.
        """
        reply = merchant.send_csv(rows(name, "1,emp-000001,1"), **({"reference": name} | query))
        assert reply.status_code == 400
        (error,) = reply.json()["errors"]
        assert error["parameter"] == parameter
        assert code in (None, error["code"])

    def test_all_wrong_parameters_are_named_at_once(self, merchant):
        """
        Not the first only.
        """
        reply = merchant.send_csv("", reference="", source="", currency="")
        assert [error["parameter"] for error in reply.json()["errors"]] == [
            "reference",
            "source",
            "currency",
        ]

    @pytest.mark.parametrize(
        ("query", "status", "code"),
        [
            ({"source": "not-there"}, 404, "wallet_unknown"),
            ({"source": "frozen"}, 409, "payout_source_unusable"),
            ({"source": "emp-008801"}, 409, "payout_source_unusable"),
            ({"source": "emp-008901"}, 409, "payout_source_unusable"),
            ({"currency": "USD"}, 409, "payout_source_unusable"),
        ],
    )
    def test_the_source_must_be_able_to_pay(self, merchant, name, query, status, code):
        """
        A wallet that is not there, not open or in another currency refuses the whole file.
        """
        reply = merchant.send_csv(rows(name, "1,emp-000001,1"), **({"reference": name} | query))
        assert (reply.status_code, reply.json()["code"]) == (status, code)

    def test_another_merchants_wallet_and_batch_are_unknown(self, gateway, merchant, name):
        """
        Nobody pays from a stranger's wallet or sees a stranger's batch.
        """
        merchant.send_csv(rows(name, "1,emp-000001,1"), reference=name)
        headers = {"authorization": f"Bearer {gateway.key('stranger')}"}
        with httpx2.Client(base_url=gateway.url, headers=headers) as client:
            stranger = Merchant(client)
            reply = stranger.send_csv(rows(name, "1,emp-000001,1"), reference=name)
            assert (reply.status_code, reply.json()["code"]) == (404, "wallet_unknown")
            batch_id = merchant.batch(name)["id"]
            for path in (name, batch_id, f"{name}/items", f"{batch_id}/result.csv"):
                reply = client.get(f"/v1/payout-batches/{path}")
                assert (reply.status_code, reply.json()["code"]) == (404, "payout_batch_unknown")
            assert client.get("/v1/payout-batches").json()["payout_batches"] == []

    def test_scopes_are_asked_for(self, gateway, name):
        """
        Reading needs payouts:read, submitting payouts:write.
        """
        key = gateway.key("reader", [Scope.PAYOUTS_READ])
        with httpx2.Client(
            base_url=gateway.url, headers={"authorization": f"Bearer {key}"}
        ) as client:
            assert client.get("/v1/payout-batches").status_code == 200
            reply = Merchant(client).send_csv(rows(name, "1,emp-000001,1"), reference=name)
            assert (reply.status_code, reply.json()["code"]) == (403, "scope_missing")

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b"", "file_empty"),
            (HEADER.encode(), "file_empty"),
            (HEADER.encode() + b"m\xfcller,emp-000001,1\n", "file_not_utf8"),
            (b"reference,amount\na,1\n", "column_missing"),
            (HEADER.encode() + b'r,"emp-000001,1\n', "quote_unclosed"),
        ],
    )
    @pytest.mark.parametrize("on_invalid", ["reject_batch", "skip_rows"])
    def test_an_unreadable_file_is_refused_in_every_mode(
        self, merchant, name, data, code, on_invalid
    ):
        """
        Skipping rows does not help a file that cannot be read.
        """
        reply = merchant.send_csv(data, reference=name, on_invalid=on_invalid)
        assert reply.status_code == 422
        assert codes(reply.json())[0][1] == code

    def test_bodies_are_bounded(self, merchant, name):
        """
        A file of the bound is read, one byte more is not; JSON has the bound of other bodies.
        """
        row = rows(name, "1,emp-000001,1")
        at_bound = merchant.send_csv(row + " " * (FILE_BYTES_MAX - len(row)), reference=name)
        assert at_bound.json()["code"] == "payout_rejected"
        above = merchant.send_csv(row + " " * (FILE_BYTES_MAX - len(row) + 1), reference=name)
        assert (above.status_code, above.json()["code"]) == (413, "body_too_large")
        large = merchant.send_json(b" " * (JSON_BYTES_MAX + 1))
        assert (large.status_code, large.json()["code"]) == (413, "body_too_large")

    @pytest.mark.parametrize("media_type", ["text/plain", "text/csv; charset=windows-1252", ""])
    def test_other_media_types_are_refused(self, merchant, name, media_type):
        """
        CSV in UTF-8 or JSON.
        """
        reply = merchant.client.post(
            "/v1/payout-batches", content=b"x", headers={"content-type": media_type}
        )
        assert (reply.status_code, reply.json()["code"]) == (415, "media_type_unsupported")

    def test_a_second_upload_waits_its_turn(self, gateway, merchant):
        """
        While a file arrives slowly, the next one is told to come back; then there is room again.
        """
        head = (
            f"POST /v1/payout-batches?reference=slow HTTP/1.1\r\nhost: x\r\n"
            f"authorization: {merchant.client.headers['authorization']}\r\n"
            "content-type: text/csv\r\ncontent-length: 1000\r\n\r\nreference"
        ).encode()
        deadline = time.monotonic() + 10
        reply = None
        while reply is None or reply.status_code == 201:
            # Of the two at once the other may have been the first.
            assert time.monotonic() < deadline
            with socket.create_connection(("127.0.0.1", gateway.port)) as slow:
                slow.sendall(head)
                name = fresh_name()
                reply = merchant.send_csv(rows(name, "1,emp-000001,1"), reference=name)
        assert (reply.status_code, reply.json()["code"]) == (503, "overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        while reply.status_code == 503:
            assert time.monotonic() < deadline
            name = fresh_name()
            reply = merchant.send_csv(rows(name, "1,emp-000001,1"), reference=name)
        assert reply.status_code == 201


class TestJson:
    def body(self, name: str, *items: dict[str, object], **changes: object) -> dict[str, object]:
        defaults = {"reference": name, "source": "payroll", "currency": "EUR"}
        return {**defaults, "items": list(items), **changes}

    def test_items_are_paid(self, merchant, name):
        """
        Everything is in the body, amounts in minor units.
        """
        item = {"reference": f"{name}-1", "destination": "emp-000001", "amount": 5, "note": "n"}
        reply = merchant.send_json(self.body(name, item, rows_per_second_max=1000))
        assert reply.status_code == 201
        assert reply.json()["batch"]["rows_per_second_max"] == 1000
        assert merchant.finished(name)["amounts"]["paid"] == 5
        (told,) = merchant.items(name)
        assert (told["row_number"], told["note"], told["attempts"]) == (1, "n", 1)

    def test_wrong_items_are_pointed_at(self, merchant, name):
        """
        Each error has the JSON Pointer of its field, all at once.
        """
        items = [
            {"reference": f"{name}-1", "destination": "emp-000001", "amount": 1.5},
            {"reference": f"{name}-2", "destination": "emp-000001", "amount": 1},
            {"reference": f"{name}-3", "destination": "?", "amount": 0},
        ]
        reply = merchant.send_json(self.body(name, *items))
        assert reply.status_code == 422
        assert [(error["pointer"], error["code"]) for error in reply.json()["errors"]] == [
            ("/items/0/amount", "amount_malformed"),
            ("/items/2/destination", "destination_malformed"),
            ("/items/2/amount", "amount_out_of_range"),
        ]

    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"source": "?"}, "/source"),
            ({"currency": "eur"}, "/currency"),
            ({"rows_per_second_max": 0}, "/rows_per_second_max"),
            ({"colour": 1}, "/colour"),
            ({"items": {}}, "/items"),
        ],
    )
    def test_a_wrong_field_is_pointed_at(self, merchant, name, changes, pointer):
        """
        What is said about the items, likewise.
        """
        item = {"reference": f"{name}-1", "destination": "emp-000001", "amount": 1}
        reply = merchant.send_json(self.body(name, item, **changes))
        assert reply.status_code == 422
        assert [error["pointer"] for error in reply.json()["errors"]] == [pointer]

    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b'{"reference":"a","reference":"b","source":"payroll","currency":"EUR","items":[]}',
            b'{"reference":"\xff","source":"payroll","currency":"EUR","items":[]}',
        ],
    )
    def test_what_is_no_good_json_is_refused(self, merchant, body):
        """
        Broken JSON, a key twice, bytes that are no UTF-8.
        """
        reply = merchant.send_json(body)
        assert (reply.status_code, reply.json()["code"]) == (400, "malformed_json")

    def test_parameters_do_not_mix_with_a_body(self, merchant, name):
        """
        With JSON nothing is taken from the query, so nothing there is ignored either.
        """
        reply = merchant.send_json(self.body(name), validate_only="true")
        assert (reply.status_code, reply.json()["code"]) == (400, "query_invalid")


class TestReading:
    def test_a_batch_is_named_by_id_or_reference(self, merchant, name):
        """
        Both lead to the same batch.
        """
        reply = merchant.send_csv(rows(name, "1,emp-000001,1"), reference=name)
        batch_id = reply.json()["batch"]["id"]
        merchant.finished(name)
        assert merchant.batch(batch_id) == merchant.batch(name)
        assert merchant.batch(batch_id.upper()) == merchant.batch(name)

    def test_progress_is_told_while_it_lasts(self, merchant, name):
        """
        A paced batch has a rate and a time left until it is finished, then none.
        """
        lines = [f"{n},emp-000001,1" for n in range(60)]
        merchant.send_csv(rows(name, *lines), reference=name, rows_per_second_max=60)
        seen = []
        while (batch := merchant.batch(name))["state"] == "processing":
            seen.append(batch["progress"])
        told = [progress for progress in seen if progress]
        assert all(progress["rows_per_second"] > 0 for progress in told)
        # The first chunk goes at once, so the average comes down to the pace from above.
        assert told[-1]["rows_per_second"] < 2 * 60
        assert told[-1]["seconds_left"] <= 1
        assert batch["progress"] is None
        assert batch["finished_at"] > batch["created_at"]

    def test_batches_are_listed_by_pages_newest_first(self, merchant, name):
        """
        The cursor and the link lead through all of them, each once.
        """
        names = [f"{name}-{number}" for number in range(5)]
        for one in names:
            merchant.send_csv(rows(one, "1,emp-000001,1"), reference=one)
        seen, path = [], "/v1/payout-batches?limit=2"
        while path and len(seen) < len(names):
            reply = merchant.client.get(path)
            page = reply.json()
            seen += [batch["reference"] for batch in page["payout_batches"]]
            path = reply.headers.get("link", "").partition(">")[0].removeprefix("<")
            assert bool(path) == page["has_more"]
            assert not path or page["next_cursor"] in path
        assert seen[:5] == names[::-1]

    @pytest.mark.parametrize(
        ("path", "parameter"),
        [
            ("?after=x", "after"),
            ("?limit=0", "limit"),
            ("?limit=1001", "limit"),
            ("/{name}/items?state=done", "state"),
            ("/{name}/items?after=-1", "after"),
            ("/{name}/items?limit=1001", "limit"),
        ],
    )
    def test_a_wrong_page_is_refused(self, merchant, name, path, parameter):
        """
        The parameter is named.
        """
        merchant.send_csv(rows(name, "1,emp-000001,1"), reference=name)
        reply = merchant.client.get(f"/v1/payout-batches{path.format(name=name)}")
        assert reply.status_code == 400
        assert [error["parameter"] for error in reply.json()["errors"]] == [parameter]

    def test_the_result_file_holds_no_formula(self, merchant, name):
        """
        A reference that a spreadsheet would calculate is written as text; money in major units.
        """
        formula = f"=cmd|{name}"
        text = f"{HEADER}{formula},emp-000001,12.5\n-{name},nobody,1\n+{name},emp-000001,x\n"
        merchant.send_csv(text, reference=name, on_invalid="skip_rows")
        merchant.finished(name)
        first, second, third = merchant.result(name)
        assert (first["row_number"], first["reference"]) == ("2", f"'{formula}")
        assert (first["amount"], first["state"], first["code"]) == ("12.50", "paid", "")
        assert (second["reference"], second["code"]) == (f"'-{name}", "destination_unknown")
        assert second["transfer_id"] != ""
        assert (third["reference"], third["amount"]) == (f"'+{name}", "")
        assert (third["code"], third["transfer_id"]) == ("amount_malformed", "")
        assert first["transfer_id"] == merchant.items(name)[0]["transfer_id"]

    def test_a_paid_item_is_a_transfer_like_any_other(self, merchant, name):
        """
        The item's transfer can be looked at by its id, with the item's reference.
        """
        merchant.send_csv(rows(name, "1,emp-000001,12.50"), reference=name)
        merchant.finished(name)
        (item,) = merchant.items(name)
        transfer = merchant.client.get(f"/v1/transfers/{item['transfer_id']}").json()
        assert (transfer["status"], transfer["amount"]) == ("posted", 1250)
        assert transfer["reference"] == f"{name}-1"
        assert transfer["metadata"] == {"payout_batch": merchant.batch(name)["id"]}
