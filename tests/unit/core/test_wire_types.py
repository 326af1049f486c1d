"""
Goal: what is out of bounds does not even decode, and the journal's bytes keep their meaning.
Method: commands encoded by hand, so that no constructor stands in the way; golden bytes of each
        decision, which may never change.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from processor.core.amounts import AMOUNT_MAX, BALANCE_MAX
from processor.core.commands import Command, TransferType
from processor.core.decisions import (
    DECISION_FORMAT,
    AnswersForgotten,
    CarriedOutcome,
    CarriedWallet,
    Decision,
    DuePosting,
    EntryCredited,
    EntryElsewhere,
    EntryRefused,
    EpochStarted,
    SlotDelivered,
    SlotGiven,
    SlotsGranted,
    SlotTaken,
    TransferPosted,
    TransferRecalled,
    TransferRejected,
    TransferReleased,
    TransferReserved,
    TransferSettled,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
    decode_decisions,
    encode_decisions,
)
from processor.core.reject_reason import RejectReason
from processor.core.wallet import WalletStatus
from tests.support.commands import deposit, identifier, open_wallet, read_wallet, transfer

decode = msgspec.msgpack.Decoder(Command).decode

MOVE = {
    "tag": 4,
    "transfer_type": 1,
    "transfer_id": bytes(16),
    "key": bytes(16),
    "merchant_id": "acme",
    "source": "alice",
    "destination": "bob",
    "currency": "EUR",
    "amount": 1,
    "reference": None,
    "metadata": None,
}


def encoded(fields: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode(list(fields.values()))


@pytest.mark.parametrize(
    "changed",
    [
        {"amount": 1},
        {"amount": AMOUNT_MAX},
        {"source": ""},
        {"destination": "x" * 64},
        {"reference": "r", "metadata": "{}"},
    ],
)
def test_command_within_bounds_decodes(changed: dict[str, Any]) -> None:
    """
    A bound itself is allowed.
    """
    command = decode(encoded({**MOVE, **changed}))
    for field, value in changed.items():
        assert getattr(command, field) == value


@pytest.mark.parametrize(
    "changed",
    [
        {"amount": 0},
        {"amount": -1},
        {"amount": AMOUNT_MAX + 1},
        {"amount": 2**63},
        {"amount": 1.0},
        {"amount": "1"},
        {"amount": True},
        {"transfer_id": bytes(15)},
        {"transfer_id": bytes(17)},
        {"transfer_id": b""},
        {"key": bytes(15)},
        {"key": bytes(17)},
        {"key": "k" * 16},
        {"source": "x" * 65},
        {"destination": "x" * 65},
        {"source": None},
        {"transfer_type": 0},
        {"transfer_type": 4},
        {"merchant_id": 7},
        {"metadata": {}},
        {"tag": 0},
        {"tag": 6},
        {"tag": 7},
    ],
)
def test_command_out_of_bounds_does_not_decode(changed: dict[str, Any]) -> None:
    """
    A frame with a field out of bounds is refused by the decoder.
    """
    with pytest.raises(msgspec.ValidationError):
        decode(encoded({**MOVE, **changed}))


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ([1, "acme", "x" * 64, "EUR", -BALANCE_MAX], True),
        ([1, "acme", "alice", "EUR", -BALANCE_MAX - 1], False),
        ([1, "acme", "alice", "EUR", AMOUNT_MAX], True),
        ([1, "acme", "alice", "EUR", AMOUNT_MAX + 1], False),
        ([1, "acme", "", "EUR", 0], False),
        ([1, "acme", "x" * 65, "EUR", 0], False),
        ([2, "acme", "alice", 4], True),
        ([2, "acme", "alice", 0], False),
        ([2, "acme", "alice", 5], False),
        ([3, "acme", "alice", AMOUNT_MAX], True),
        ([3, "acme", "alice", AMOUNT_MAX + 1], False),
        ([3, "acme", "alice", -BALANCE_MAX - 1], False),
        ([5, "acme", "alice"], True),
        ([5, "acme", ""], False),
        ([5, "acme"], False),
        ([6, 4095, 0], True),
        ([6, 4096, 0], False),
        ([6, -1, 0], False),
        ([6, 0, -1], False),
    ],
)
def test_wallet_command_bounds(fields: list[Any], fits: bool) -> None:
    """
    Wallet commands are bounded in the same place.
    """
    if fits:
        decode(msgspec.msgpack.encode(fields))
        return
    with pytest.raises(msgspec.ValidationError):
        decode(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    "command",
    [
        transfer("alice", "bob", 1, reference="é", metadata='{"a":1}'),
        deposit("bob", AMOUNT_MAX),
        open_wallet("alice", -5),
        read_wallet("alice"),
    ],
)
def test_command_survives_the_wire(command: Command) -> None:
    """
    What is encoded decodes to the same command.
    """
    assert decode(msgspec.msgpack.encode(command)) == command


ASKED = (
    TransferType.TRANSFER,
    identifier("t"),
    identifier("k"),
    "acme",
    "alice",
    "bob",
    "EUR",
    5,
    None,
    "{}",
)
LINK = identifier("link")
CARRIED = (
    [CarriedWallet("alice", "acme", "EUR", 2, -5, 70, 3)],
    [CarriedOutcome(TransferRejected(*ASKED, RejectReason.SOURCE_FROZEN), 9, 1_000)],
    [DuePosting("EUR", 70, 4, 75)],
)
# The left column was written once; a change here is a change of the journal's meaning.
GOLDEN: list[tuple[str, Decision]] = [
    (
        "919501a5616c696365a461636d65a3455552fb",
        WalletOpened("alice", "acme", "EUR", -5),
    ),
    (
        "919302a5616c69636503",
        WalletStatusSet("alice", WalletStatus.LOCKED),
    ),
    (
        "919303a5616c696365d1fed4",
        WalletLimitsSet("alice", -300),
    ),
    (
        (
            "919f0401c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3deca461"
            "636d65a5616c696365a3626f62a345555205c0a27b7d024601cf7fffffffffffffff"
        ),
        TransferPosted(*ASKED, 2, 70, 1, BALANCE_MAX),
    ),
    (
        (
            "919c0501c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3deca461"
            "636d65a5616c696365a3626f62a345555205c0a27b7d64"
        ),
        TransferRejected(*ASKED, RejectReason.INSUFFICIENT_FUNDS),
    ),
    (
        "919206a9302e312e302b616263",
        EpochStarted("0.1.0+abc"),
    ),
    (
        (
            "919e0701c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3dec"
            "a461636d65a5616c696365a3626f62a345555205c0a27b7d0107c41043aa5f0292af9aa1e782df3b"
            "55e70d4c"
        ),
        TransferReserved(*ASKED, 1, 7, LINK),
    ),
    (
        "9198080107c410883e609a05d85c187a019cad93c1223702460105",
        TransferSettled(1, 7, identifier("t"), 2, 70, 1, 5),
    ),
    (
        "9195090107c410883e609a05d85c187a019cad93c122371e",
        TransferReleased(1, 7, identifier("t"), RejectReason.DESTINATION_UNKNOWN),
    ),
    (
        (
            "91dc00100a0207c41043aa5f0292af9aa1e782df3b55e70d4cc410883e609a05d85c187a019cad93"
            "c12237a461636d65a5616c696365a3626f62a345555205c0a27b7d03fb0105"
        ),
        EntryCredited(
            2, 7, LINK, identifier("t"), "acme", "alice", "bob", "EUR", 5, None, "{}", 3, -5, 1, 5
        ),
    ),
    (
        "91950b0207c41043aa5f0292af9aa1e782df3b55e70d4c50",
        EntryRefused(2, 7, LINK, RejectReason.DESTINATION_CLOSED),
    ),
    ("91950c0207c41043aa5f0292af9aa1e782df3b55e70d4c03", EntryElsewhere(2, 7, LINK, 3)),
    ("91940d0107c410883e609a05d85c187a019cad93c12237", TransferRecalled(1, 7, identifier("t"))),
    ("91930e00cd0fff", SlotsGranted(0, 4095)),
    (
        (
            "91990f0107c41043aa5f0292af9aa1e782df3b55e70d4ccd012c029197a5616c696365a461636d65"
            "a345555202fb460391939c0501c410883e609a05d85c187a019cad93c12237c41061f5dc14830084"
            "d8dc2d1ebc02ef3deca461636d65a5616c696365a3626f62a345555205c0a27b7d4609cd03e89194"
            "a345555246044b"
        ),
        SlotGiven(1, 7, LINK, 300, 2, *CARRIED),
    ),
    (
        (
            "9199100207c41043aa5f0292af9aa1e782df3b55e70d4ccd012c029197a5616c696365a461636d65"
            "a345555202fb460391939c0501c410883e609a05d85c187a019cad93c12237c41061f5dc14830084"
            "d8dc2d1ebc02ef3deca461636d65a5616c696365a3626f62a345555205c0a27b7d4609cd03e89194"
            "a345555246044b"
        ),
        SlotTaken(2, 7, LINK, 300, 2, *CARRIED),
    ),
    ("9193110107", SlotDelivered(1, 7)),
    ("9193120207", AnswersForgotten(2, 7)),
]


def test_decisions_survive_the_journal() -> None:
    """
    Every kind of decision, in one payload, comes back as it was.
    """
    decisions: list[Decision] = [decision for _, decision in GOLDEN]
    assert {type(decision) for decision in decisions} == set(Decision.__args__)
    assert decode_decisions(encode_decisions(decisions), DECISION_FORMAT) == decisions


@pytest.mark.parametrize(("written", "decision"), GOLDEN)
def test_journal_bytes_never_change(written: str, decision: Decision) -> None:
    """
    Bytes that were journaled once are read as the same decision and written the same again.
    """
    assert decode_decisions(bytes.fromhex(written), 1) == [decision]
    assert encode_decisions([decision]).hex() == written


def test_journaled_numbers_never_change() -> None:
    """
    The numbers of types, statuses and reasons stand in journals.
    """
    assert [kind.value for kind in TransferType] == [1, 2, 3]
    assert [status.value for status in WalletStatus] == [1, 2, 3, 4]
    assert {reason.name: reason.value for reason in RejectReason} == {
        "WALLETS_IDENTICAL": 10,
        "SOURCE_UNKNOWN": 20,
        "DESTINATION_UNKNOWN": 30,
        "CURRENCY_MISMATCH": 40,
        "SOURCE_CLOSED": 50,
        "SOURCE_LOCKED": 60,
        "SOURCE_FROZEN": 70,
        "DESTINATION_CLOSED": 80,
        "DESTINATION_LOCKED": 90,
        "INSUFFICIENT_FUNDS": 100,
        "BALANCE_OUT_OF_RANGE": 110,
        "WALLET_UNKNOWN": 200,
        "WALLET_EXISTS": 210,
        "WALLET_CLOSED": 220,
        "WALLET_NOT_EMPTY": 230,
        "TRANSFERS_PENDING": 235,
        "MINIMUM_ABOVE_AVAILABLE": 240,
    }


@pytest.mark.parametrize("decision_format", [0, 2, 65_535])
def test_unknown_format_is_refused(decision_format: int) -> None:
    """
    A payload of a format this build does not know is not guessed at.
    """
    payload = encode_decisions([EpochStarted("build")])
    with pytest.raises(ValueError, match=f"format {decision_format} is unknown to this build"):
        decode_decisions(payload, decision_format)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        encode_decisions([EpochStarted("build")])[:-1],
        encode_decisions([EpochStarted("build")]) + b"\x00",
        msgspec.msgpack.encode([[99, "build"]]),
        msgspec.msgpack.encode([[6]]),
        msgspec.msgpack.encode([[2, "alice", 9]]),
        msgspec.msgpack.encode({"a": 1}),
    ],
)
def test_payload_that_makes_no_sense_is_refused(payload: bytes) -> None:
    """
    Cut off, unknown or ill-typed decisions are a ValueError, which halts a recovery.
    """
    with pytest.raises(ValueError, match=r".+"):
        decode_decisions(payload, DECISION_FORMAT)
