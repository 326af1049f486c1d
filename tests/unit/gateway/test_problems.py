"""
Goal: every refusal has its row, and the page of errors is the table.
Method: the table is compared with the ledger's reasons, with RFC 9457, and with docs/errors.md.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gateway.problems import PROBLEMS, FieldError, Problem, ProblemKind, Refusal, errors_page
from processor.core.reject_reason import RejectReason

PAGE = Path(__file__).parents[3] / "docs" / "errors.md"


@pytest.mark.parametrize("reason", RejectReason)
def test_each_reason_has_a_problem(reason: RejectReason) -> None:
    """
    Whatever the ledger refuses for has a row; what is recorded under a key says so.
    """
    kind = PROBLEMS[reason.code]

    is_money = reason < RejectReason.WALLET_UNKNOWN
    assert kind.outcome == ("rejected" if is_money else "not_applied")
    assert kind.status == (404 if reason == RejectReason.WALLET_UNKNOWN else 409)


@pytest.mark.parametrize("kind", PROBLEMS.values(), ids=lambda kind: kind.code)
def test_each_row_is_complete(kind: ProblemKind) -> None:
    """
    Title and detail are sentences; only broken machinery leaves an outcome unknown; only
    the ledger's own refusals are recorded.
    """
    assert kind.title.endswith(".")
    assert kind.detail.endswith(".")
    assert kind.outcome != "unknown" or kind.status >= 500
    assert kind.outcome != "rejected" or kind.code in {reason.code for reason in RejectReason}


def test_codes_are_unique() -> None:
    """
    No row hides another.
    """
    assert len(PROBLEMS) == errors_page().count("\n| `")


@pytest.mark.parametrize("code", PROBLEMS)
def test_the_body_is_the_published_one(code: str) -> None:
    """
    A refusal reads as `Problem`, with its status, and as problem+json.
    """
    wrong = FieldError("required", "Needed.", "/a")
    reply = Refusal(code, errors=[wrong], headers=((b"retry-after", b"1"),)).reply()

    problem = msgspec.json.decode(reply.body, type=Problem)
    assert (problem.code, problem.status) == (code, reply.status)
    assert problem.type == f"/docs#{code}"
    assert problem.errors == [wrong]
    assert (b"content-type", b"application/problem+json") in reply.headers
    assert (b"retry-after", b"1") in reply.headers


def test_extensions_stand_beside() -> None:
    """
    A refusal can carry more, and its own detail.
    """
    body = Refusal("wallet_not_empty", "Empty it.", wallet={"balance": 5}).body()

    assert (body["detail"], body["wallet"]) == ("Empty it.", {"balance": 5})


def test_the_page_is_the_table() -> None:
    """
    docs/errors.md is what `python -m gateway.problems` prints.
    """
    assert PAGE.read_text() == errors_page()
