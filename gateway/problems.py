"""
Every way the gateway says no: one table, and how a refusal is written.

Rule 1: a code never changes its meaning and is never used for anything else; clients branch on
        it, not on the words.
Rule 2: each kind says what became of the money. `rejected`: it did not move, and the refusal is
        recorded under the key. `not_applied`: nothing happened and nothing is recorded.
        `unknown`: only the same key, sent again, tells.
Rule 3: each `RejectReason` has a kind of the same code.
A body is RFC 9457 problem+json. `docs/errors.md` is printed from the table by
`python -m gateway.problems`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from gateway.reply import Header, Reply

Outcome = Literal["not_applied", "rejected", "unknown"]

DOCUMENTATION_PATH = "/docs"


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    What is wrong with one part of a request.

    `pointer` is a JSON Pointer into the body ("" is the whole of it); `parameter` names a
    header or a query parameter instead.
    """

    code: str
    detail: str
    pointer: str | None = None
    parameter: str | None = None


class ProblemKind(msgspec.Struct, frozen=True):
    """
    One row of the table. `detail` says what to do; a refusal may say it more exactly.
    """

    code: str
    status: int
    outcome: Outcome
    title: str
    detail: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    The body of every refusal (RFC 9457). `type` resolves to this page's entry for the code.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    outcome: Outcome
    errors: list[FieldError] = []


_BEFORE_ADMISSION = (
    ProblemKind(
        "malformed_json",
        400,
        "not_applied",
        "The body is not acceptable JSON.",
        "Send one UTF-8 JSON document without duplicate keys or lone surrogates.",
    ),
    ProblemKind(
        "malformed_request",
        400,
        "not_applied",
        "The request is not HTTP/1.1 as it should be.",
        "Check the request line and the headers; the connection is closed.",
    ),
    ProblemKind(
        "head_too_large",
        431,
        "not_applied",
        "The request's head is too large.",
        "Send fewer or shorter headers; the connection is closed.",
    ),
    ProblemKind(
        "header_repeated",
        400,
        "not_applied",
        "A header that must be there once is there twice.",
        "Send the header named in `detail` once.",
    ),
    ProblemKind(
        "idempotency_key_missing",
        400,
        "not_applied",
        "The Idempotency-Key header is missing.",
        "Make a new key for each payment, store it, and send it again with every retry.",
    ),
    ProblemKind(
        "idempotency_key_invalid",
        400,
        "not_applied",
        "The Idempotency-Key header is not acceptable.",
        "Send one key of 1 to 255 visible ASCII characters.",
    ),
    ProblemKind(
        "query_invalid",
        400,
        "not_applied",
        "The query string is not acceptable.",
        "Correct the parameters named in `errors`.",
    ),
    ProblemKind(
        "api_key_missing",
        401,
        "not_applied",
        "The request names no API key.",
        "Send `Authorization: Bearer mil_live_...`.",
    ),
    ProblemKind(
        "api_key_invalid",
        401,
        "not_applied",
        "The API key is not valid.",
        "Check that the whole key was sent and that it has not been revoked.",
    ),
    ProblemKind(
        "scope_missing",
        403,
        "not_applied",
        "The API key may not do this.",
        "Use a key that has the scope named in `detail`.",
    ),
    ProblemKind(
        "path_unknown",
        404,
        "not_applied",
        "There is nothing at this path.",
        "See /docs for every path.",
    ),
    ProblemKind(
        "transfer_unknown",
        404,
        "not_applied",
        "No such transfer is known.",
        "It may still come: to learn what became of a payment, send it again with its key.",
    ),
    ProblemKind(
        "linked_transfer_unknown",
        404,
        "not_applied",
        "No such linked transfer is known.",
        "It may still come: to learn what became of it, send it again with its key.",
    ),
    ProblemKind(
        "not_refundable",
        409,
        "not_applied",
        "This cannot be refunded, or not by you.",
        "`detail` says why, and what to do instead.",
    ),
    ProblemKind(
        "hold_not_found",
        404,
        "not_applied",
        "There is no such hold, or it is not yours.",
        "List a wallet's holds with GET /v1/wallets/{wallet_id}/holds.",
    ),
    ProblemKind(
        "api_key_unknown",
        404,
        "not_applied",
        "No such API key is known.",
        "List the keys with GET /v1/api-keys.",
    ),
    ProblemKind(
        "method_not_allowed",
        405,
        "not_applied",
        "The path does not take this method.",
        "Use one of the methods in the Allow header.",
    ),
    ProblemKind(
        "request_too_slow",
        408,
        "not_applied",
        "The request did not arrive in time.",
        "Send it again; the connection is closed.",
    ),
    ProblemKind(
        "body_too_large",
        413,
        "not_applied",
        "The body is too large.",
        "Send less at once; `detail` says how much is allowed.",
    ),
    ProblemKind(
        "media_type_unsupported",
        415,
        "not_applied",
        "The body has a media type that this path does not take.",
        "Send one of the media types in `detail`, in UTF-8, without a content encoding.",
    ),
    ProblemKind(
        "validation_failed",
        422,
        "not_applied",
        "The request has fields that are not acceptable.",
        "Correct the fields named in `errors`.",
    ),
    ProblemKind(
        "idempotency_key_reused",
        422,
        "not_applied",
        "The idempotency key belongs to another request.",
        "Use a new key for a new payment. The field in `errors` differs from the first request.",
    ),
)

_MACHINERY = (
    ProblemKind(
        "internal_error",
        500,
        "unknown",
        "The gateway failed.",
        "Send the same request with the same key again; report it if it persists.",
    ),
    ProblemKind(
        "overloaded",
        503,
        "not_applied",
        "More is asked than can be done at present.",
        "Send the same request again after the time in Retry-After.",
    ),
    ProblemKind(
        "unavailable",
        503,
        "not_applied",
        "The ledger cannot be reached at present.",
        "Send the same request again after the time in Retry-After.",
    ),
    ProblemKind(
        "not_projected_yet",
        503,
        "not_applied",
        "The history has not come as far as min_sequence.",
        "Ask again after the time in Retry-After.",
    ),
    ProblemKind(
        "outcome_unknown",
        504,
        "unknown",
        "No answer came in time; the money may have moved or not.",
        "Send the same request with the same key again: it gives the one true outcome.",
    ),
)

_MONEY_REJECTED = (
    ProblemKind(
        "wallets_identical",
        409,
        "rejected",
        "Source and destination are the same wallet.",
        "Name two different wallets, under a new key.",
    ),
    ProblemKind(
        "hold_unknown",
        409,
        "rejected",
        "The hold does not exist or is not yours.",
        "Check the id; list a wallet's holds with GET /v1/wallets/{wallet_id}/holds.",
    ),
    ProblemKind(
        "hold_expired",
        409,
        "rejected",
        "The hold's time was over; what it kept is the wallet's again.",
        "Place a new hold, under a new key; extend the next one in time.",
    ),
    ProblemKind(
        "hold_voided",
        409,
        "rejected",
        "The hold was given up; what it kept is the wallet's again.",
        "Place a new hold, under a new key.",
    ),
    ProblemKind(
        "hold_captured",
        409,
        "rejected",
        "The hold has ended with its last capture.",
        "Place a new hold for more money, under a new key.",
    ),
    ProblemKind(
        "hold_capture_pending",
        409,
        "rejected",
        "The hold's last capture is on its way.",
        "Look at the hold in a moment; if it is still open, use a new key.",
    ),
    ProblemKind(
        "source_unknown",
        409,
        "rejected",
        "The source wallet does not exist or is not yours.",
        "Open the wallet first, then use a new key.",
    ),
    ProblemKind(
        "destination_unknown",
        409,
        "rejected",
        "The destination wallet does not exist, or for a deposit is not yours.",
        "Open the wallet first, then use a new key.",
    ),
    ProblemKind(
        "currency_mismatch",
        409,
        "rejected",
        "A wallet is not in the currency of the request.",
        "Use the currency of both wallets, under a new key.",
    ),
    ProblemKind(
        "source_closed",
        409,
        "rejected",
        "The source wallet is closed.",
        "Use another wallet; a closed one stays closed.",
    ),
    ProblemKind(
        "source_locked",
        409,
        "rejected",
        "The source wallet is locked.",
        "Reopen the wallet, then use a new key.",
    ),
    ProblemKind(
        "source_frozen",
        409,
        "rejected",
        "The source wallet is frozen: nothing leaves it.",
        "Reopen the wallet, then use a new key.",
    ),
    ProblemKind(
        "destination_closed",
        409,
        "rejected",
        "The destination wallet is closed.",
        "Use another wallet; a closed one stays closed.",
    ),
    ProblemKind(
        "destination_locked",
        409,
        "rejected",
        "The destination wallet is locked.",
        "Wait until it is reopened, then use a new key.",
    ),
    ProblemKind(
        "capture_exceeds_hold",
        409,
        "rejected",
        "The hold keeps less than is to be captured.",
        "Capture at most what is left, under a new key; `short_by` is how much is missing.",
    ),
    ProblemKind(
        "refund_total_unknown",
        409,
        "rejected",
        "What went back so far cannot be looked up now.",
        "Try again under another key: a database that has to be asked is down.",
    ),
    ProblemKind(
        "refund_exceeds_paid",
        409,
        "rejected",
        "More would go back than was paid and not refunded yet.",
        "Refund at most what is left, under a new key; `short_by` is how much is missing.",
    ),
    ProblemKind(
        "version_differs",
        409,
        "rejected",
        "The wallet has changed: its version is not `if_version`.",
        "Read the wallet, think again, and use a new key.",
    ),
    ProblemKind(
        "available_below_condition",
        409,
        "rejected",
        "Less is available in the wallet than `if_available_gte`.",
        "Read the wallet, think again, and use a new key; `short_by` is what is missing.",
    ),
    ProblemKind(
        "insufficient_funds",
        409,
        "rejected",
        "The source wallet would fall below its minimum.",
        "Fund the wallet or send less, under a new key.",
    ),
    ProblemKind(
        "holds_too_many",
        409,
        "rejected",
        "The wallet has as many open holds as one may have.",
        "Capture or void some of its holds, or let them expire, then use a new key.",
    ),
    ProblemKind(
        "balance_out_of_range",
        409,
        "rejected",
        "The destination wallet cannot hold that much.",
        "Send less or use another wallet, under a new key.",
    ),
    ProblemKind(
        "debit_count_hour_exceeded",
        409,
        "rejected",
        "More movements would leave the source wallet this hour than its limits allow.",
        "Wait for the next hour of UTC or change the limits, then use a new key.",
    ),
    ProblemKind(
        "debit_amount_hour_exceeded",
        409,
        "rejected",
        "More money would leave the source wallet this hour than its limits allow.",
        "Move less, wait for the next hour of UTC, or change the limits; use a new key.",
    ),
    ProblemKind(
        "debit_count_day_exceeded",
        409,
        "rejected",
        "More movements would leave the source wallet this day than its limits allow.",
        "Wait for the next day of UTC or change the limits, then use a new key.",
    ),
    ProblemKind(
        "debit_amount_day_exceeded",
        409,
        "rejected",
        "More money would leave the source wallet this day than its limits allow.",
        "Move less, wait for the next day of UTC, or change the limits; use a new key.",
    ),
    ProblemKind(
        "credit_count_hour_exceeded",
        409,
        "rejected",
        "More movements would come into the destination wallet this hour than its limits allow.",
        "Wait for the next hour of UTC, then use a new key.",
    ),
    ProblemKind(
        "credit_amount_hour_exceeded",
        409,
        "rejected",
        "More money would come into the destination wallet this hour than its limits allow.",
        "Send less, or wait for the next hour of UTC; use a new key.",
    ),
    ProblemKind(
        "credit_count_day_exceeded",
        409,
        "rejected",
        "More movements would come into the destination wallet this day than its limits allow.",
        "Wait for the next day of UTC, then use a new key.",
    ),
    ProblemKind(
        "credit_amount_day_exceeded",
        409,
        "rejected",
        "More money would come into the destination wallet this day than its limits allow.",
        "Send less, or wait for the next day of UTC; use a new key.",
    ),
    ProblemKind(
        "balance_max_exceeded",
        409,
        "rejected",
        "The destination wallet would have more than its limits allow.",
        "Send less, or send it when the wallet has less; use a new key.",
    ),
    ProblemKind(
        "linked_deadline_passed",
        409,
        "rejected",
        "The shards of the wallets did not agree in time.",
        "Send the whole linked transfer again, under a new key.",
    ),
)

_PAYOUT_REFUSED = (
    ProblemKind(
        "payout_rejected",
        422,
        "not_applied",
        "The payout file has rows that are not acceptable; nothing of it was stored.",
        "Correct the rows named in `report`, or send it with on_invalid=skip_rows.",
    ),
    ProblemKind(
        "payout_reference_taken",
        409,
        "not_applied",
        "The reference belongs to a batch with other content.",
        "Look at the batch in `batch_id`; choose another reference for another batch.",
    ),
    ProblemKind(
        "payout_source_unusable",
        409,
        "not_applied",
        "The batch cannot be paid from this wallet.",
        "`detail` says why; name an open wallet in the currency of the batch.",
    ),
    ProblemKind(
        "payout_batch_unknown",
        404,
        "not_applied",
        "No such payout batch is known.",
        "Name it by its id or by your reference; list the batches with GET /v1/payout-batches.",
    ),
)

_WALLET_REFUSED = (
    ProblemKind(
        "wallet_unknown",
        404,
        "not_applied",
        "The wallet does not exist or is not yours.",
        "Check the id; open the wallet with POST /v1/wallets.",
    ),
    ProblemKind(
        "wallet_exists",
        409,
        "not_applied",
        "A wallet with this id exists and differs from the one asked for.",
        "Choose another id, or read the wallet with GET /v1/wallets/{wallet_id}.",
    ),
    ProblemKind(
        "wallet_closed",
        409,
        "not_applied",
        "The wallet is closed.",
        "Open another wallet; a closed one stays closed.",
    ),
    ProblemKind(
        "wallet_not_empty",
        409,
        "not_applied",
        "The wallet still has a balance.",
        "Bring the balance to 0, then close it.",
    ),
    ProblemKind(
        "transfers_pending",
        409,
        "not_applied",
        "Money from the wallet is on its way.",
        "Close it when its pending transfers are posted or rejected; that takes moments.",
    ),
    ProblemKind(
        "holds_open",
        409,
        "not_applied",
        "Open holds keep money of the wallet.",
        "Capture or void its holds, or wait until they expire, then close it.",
    ),
    ProblemKind(
        "minimum_above_available",
        409,
        "not_applied",
        "The minimum is above the balance.",
        "Fund the wallet first, or set a lower minimum. A new wallet has a balance of 0.",
    ),
)

GROUPS = (
    ("Refused before anything was recorded", _BEFORE_ADMISSION),
    ("Money that did not move, recorded under the key", _MONEY_REJECTED),
    ("Wallets that did not change", _WALLET_REFUSED),
    ("Payout batches", _PAYOUT_REFUSED),
    ("Broken or busy machinery", _MACHINERY),
)

PROBLEMS = {kind.code: kind for _, kinds in GROUPS for kind in kinds}

_PROBLEM_JSON: Header = (b"content-type", b"application/problem+json")
_encode = msgspec.json.Encoder().encode


class Refusal(Exception):
    """
    The request is answered with the problem *code*; nothing after it runs.

    *extensions* are further members of the body.
    """

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        headers: tuple[Header, ...] = (),
        **extensions: object,
    ) -> None:
        super().__init__(code)
        self.kind = PROBLEMS[code]
        self.detail = detail or self.kind.detail
        self.errors = errors
        self.headers = headers
        self.extensions = extensions

    def body(self) -> dict[str, Any]:
        """
        Return the members of the problem, JSON-ready.
        """
        return {**problem_of(self.kind, self.detail, self.errors), **self.extensions}

    def reply(self) -> Reply:
        return Reply(self.kind.status, _encode(self.body()), (_PROBLEM_JSON, *self.headers))


def problem_of(
    kind: ProblemKind, detail: str, errors: Sequence[FieldError] = ()
) -> dict[str, object]:
    members: dict[str, object] = {
        "type": f"{DOCUMENTATION_PATH}#{kind.code}",
        "title": kind.title,
        "status": kind.status,
        "code": kind.code,
        "detail": detail,
        "outcome": kind.outcome,
    }
    if errors:
        members["errors"] = errors
    return members


def errors_page() -> str:
    """
    Write the table as the page `docs/errors.md`.
    """
    lines = [
        "# Errors",
        "",
        "Every refusal is `application/problem+json` (RFC 9457). Branch on `code`. `outcome` says",
        "what became of the money: `rejected` and `not_applied` mean that it did not move;",
        "`unknown` means that only the same request with the same key tells. `errors` names the",
        "fields, each with a JSON Pointer into the body or the name of a parameter.",
        "",
        "This page is made by `python -m gateway.problems`.",
    ]
    for heading, kinds in GROUPS:
        lines += ["", f"## {heading}", "", "| Code | Status | Outcome | Meaning | What to do |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| `{kind.code}` | {kind.status} | `{kind.outcome}` | {kind.title} | {kind.detail} |"
            for kind in kinds
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(errors_page(), end="")
