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
from processor.core.commands import Command, Leg, Terms, TransferType
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
    HoldChanged,
    HoldExtended,
    HoldPlaced,
    HoldVoided,
    LegPart,
    LinkedBegun,
    LinkedDone,
    LinkedPosted,
    LinkedPrepared,
    LinkedRecalled,
    LinkedRejected,
    Posting,
    PrepareSent,
    RefundCounted,
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
    UsageCounted,
    VerdictDelivered,
    VerdictSent,
    VerdictTaken,
    VoteTaken,
    WalletLimitsSet,
    WalletOpened,
    WalletStatusSet,
    decode_decisions,
    encode_decisions,
)
from processor.core.hold import Hold, HoldStatus, RefundTotal
from processor.core.limits import Counter, Limits, Usage, Velocity
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

LEG = [1, bytes(16), "alice", "bob", "EUR", 1]


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
        {"transfer_type": 10},
        {"merchant_id": 7},
        {"metadata": {}},
        {"tag": 0},
        {"tag": 6},
        {"tag": 7},
        {"tag": 12},
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
        ([3, "acme", "alice", None, [[0, 0, 0, 0], [None, None, None, None], BALANCE_MAX]], True),
        ([3, "acme", "alice", None, [[-1]]], False),
        ([3, "acme", "alice", None, [[], [], BALANCE_MAX + 1]], False),
        ([7, bytes(16), bytes(16), "acme", "alice", "", "EUR", 1, 31 * 86_400], True),
        ([7, bytes(16), bytes(16), "acme", "alice", "", "EUR", 1, 31 * 86_400 + 1], False),
        ([7, bytes(16), bytes(16), "acme", "alice", "", "EUR", 1, 0], False),
        ([7, bytes(16), bytes(16), "acme", "alice", "", "EUR", 0, 60], False),
        ([7, bytes(16), bytes(16), "acme", "", "", "EUR", 1, 60], False),
        ([8, bytes(16), bytes(16), "acme", bytes(16)], True),
        ([8, bytes(16), bytes(16), "acme", bytes(15)], False),
        ([9, bytes(16), bytes(16), "acme", bytes(16), 1], True),
        ([9, bytes(16), bytes(16), "acme", bytes(16), 0], False),
        ([10, "acme", bytes(16)], True),
        ([10, "acme", bytes(17)], False),
        ([11, bytes(16), bytes(16), "acme", [LEG] * 100], True),
        ([11, bytes(16), bytes(16), "acme", [LEG] * 101], False),
        ([11, bytes(16), bytes(16), "acme", []], False),
        ([11, bytes(16), bytes(16), "acme", [[*LEG[:5], 0]]], False),
        ([11, bytes(16), bytes(16), "acme", [[1, bytes(16), "", *LEG[3:]]]], False),
        ([*MOVE.values(), [None, False, None, 0, None, None, AMOUNT_MAX]], True),
        ([*MOVE.values(), [None, False, None, 0, None, None, 0]], False),
        (
            [
                4,
                *list(MOVE.values())[1:],
                [None, False, None, AMOUNT_MAX, BALANCE_MAX, -BALANCE_MAX, None, 31 * 86_400],
            ],
            True,
        ),
        ([*MOVE.values(), [None, False, None, AMOUNT_MAX + 1]], False),
        ([*MOVE.values(), [None, False, None, -1]], False),
        ([*MOVE.values(), [None, False, None, 0, -1]], False),
        ([*MOVE.values(), [None, False, None, 0, BALANCE_MAX + 1]], False),
        ([*MOVE.values(), [None, False, None, 0, None, AMOUNT_MAX + 1]], False),
        ([*MOVE.values(), [None, False, None, 0, None, -BALANCE_MAX - 1]], False),
        (
            [
                4,
                *list(MOVE.values())[1:],
                [None, False, None, 0, None, None, None, 31 * 86_400 + 1],
            ],
            False,
        ),
        ([*MOVE.values(), [bytes(15)]], False),
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
TERMS = Terms(identifier("h"), True, identifier("t"), 90, 3, 20, 50, 60)
LIMITS = Limits(Velocity(1, 2, 3, 4), Velocity(day_amount=9), 70)
USAGE = Usage(Counter(472_222, 1, 5, 19_675, 2, 10), Counter(day=19_675, day_count=1))
HOLD = Hold(identifier("h"), "acme", "alice", "bob", "EUR", 9, 2, 3, 1, True, 7, 8, "r", "{}", 6)
LEGS = [
    Leg(TransferType.TRANSFER, identifier("t"), "alice", "bob", "EUR", 5, "r", "{}"),
    Leg(TransferType.REFUND, identifier("u"), "bob", "alice", "EUR", 2, None, None, TERMS),
]
PARTS = [LegPart(0, True, False, LEGS[0])]
POSTINGS = [Posting(0, "alice", 3, -5, "bob", 1, 5)]
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
        "919403a5616c696365d1fed4c0",
        WalletLimitsSet("alice", -300),
    ),
    (
        (
            "91dc00100401c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef"
            "3deca461636d65a5616c696365a3626f62a345555205c0a27b7d024601cf7fffffffffffffffc0"
        ),
        TransferPosted(*ASKED, 2, 70, 1, BALANCE_MAX),
    ),
    (
        (
            "919e0501c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3dec"
            "a461636d65a5616c696365a3626f62a345555205c0a27b7d6400c0"
        ),
        TransferRejected(*ASKED, RejectReason.INSUFFICIENT_FUNDS),
    ),
    (
        "919206a9302e312e302b616263",
        EpochStarted("0.1.0+abc"),
    ),
    (
        (
            "91dc00100701c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef"
            "3deca461636d65a5616c696365a3626f62a345555205c0a27b7d0107c41043aa5f0292af9aa1e782"
            "df3b55e70d4cc000"
        ),
        TransferReserved(*ASKED, 1, 7, LINK),
    ),
    (
        "9198080107c410883e609a05d85c187a019cad93c1223702460105",
        TransferSettled(1, 7, identifier("t"), 2, 70, 1, 5),
    ),
    (
        "9196090107c410883e609a05d85c187a019cad93c122371e00",
        TransferReleased(1, 7, identifier("t"), RejectReason.DESTINATION_UNKNOWN),
    ),
    (
        (
            "91dc00120a0207c41043aa5f0292af9aa1e782df3b55e70d4cc410883e609a05d85c187a019cad93"
            "c12237a461636d65a5616c696365a3626f62a345555205c0a27b7d03fb010501c0"
        ),
        EntryCredited(
            2, 7, LINK, identifier("t"), "acme", "alice", "bob", "EUR", 5, None, "{}", 3, -5, 1, 5
        ),
    ),
    (
        "91970b0207c41043aa5f0292af9aa1e782df3b55e70d4c500000",
        EntryRefused(2, 7, LINK, RejectReason.DESTINATION_CLOSED),
    ),
    (
        "91960c0207c41043aa5f0292af9aa1e782df3b55e70d4c0300",
        EntryElsewhere(2, 7, LINK, 3),
    ),
    (
        "91940d0107c410883e609a05d85c187a019cad93c12237",
        TransferRecalled(1, 7, identifier("t")),
    ),
    (
        "91930e00cd0fff",
        SlotsGranted(0, 4095),
    ),
    (
        (
            "919b0f0107c41043aa5f0292af9aa1e782df3b55e70d4ccd012c029199a5616c696365a461636d65"
            "a345555202fb4603c0c091939e0501c410883e609a05d85c187a019cad93c12237c41061f5dc1483"
            "0084d8dc2d1ebc02ef3deca461636d65a5616c696365a3626f62a345555205c0a27b7d4600c009cd"
            "03e89194a345555246044b9090"
        ),
        SlotGiven(1, 7, LINK, 300, 2, *CARRIED),
    ),
    (
        (
            "919b100207c41043aa5f0292af9aa1e782df3b55e70d4ccd012c029199a5616c696365a461636d65"
            "a345555202fb4603c0c091939e0501c410883e609a05d85c187a019cad93c12237c41061f5dc1483"
            "0084d8dc2d1ebc02ef3deca461636d65a5616c696365a3626f62a345555205c0a27b7d4600c009cd"
            "03e89194a345555246044b9090"
        ),
        SlotTaken(2, 7, LINK, 300, 2, *CARRIED),
    ),
    (
        "9193110107",
        SlotDelivered(1, 7),
    ),
    (
        "9193120207",
        AnswersForgotten(2, 7),
    ),
    (
        "919403a5616c696365d1fed493940102030494c0c0c00946",
        WalletLimitsSet("alice", -300, LIMITS),
    ),
    (
        (
            "91dc00100401c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef"
            "3deca461636d65a5616c696365a3626f62a345555205c0a27b7d0246010598c410f4f2b657b0d4a1"
            "df55fb36c591a03ac8c3c410883e609a05d85c187a019cad93c122375a0314323c"
        ),
        TransferPosted(*ASKED, 2, 70, 1, 5, TERMS),
    ),
    (
        (
            "919e0501c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3dec"
            "a461636d65a5616c696365a3626f62a345555205c0a27b7d0d0798c410f4f2b657b0d4a1df55fb36"
            "c591a03ac8c3c410883e609a05d85c187a019cad93c122375a0314323c"
        ),
        TransferRejected(*ASKED, RejectReason.HOLD_EXPIRED, 7, TERMS),
    ),
    (
        (
            "91dc00100701c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef"
            "3deca461636d65a5616c696365a3626f62a345555205c0a27b7d0107c41043aa5f0292af9aa1e782"
            "df3b55e70d4c98c410f4f2b657b0d4a1df55fb36c591a03ac8c3c410883e609a05d85c187a019cad"
            "93c122375a0314323c08"
        ),
        TransferReserved(*ASKED, 1, 7, LINK, TERMS, 8),
    ),
    (
        (
            "919d13c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3deca4"
            "61636d65a5616c696365a3626f62a345555205c0a27b7d3ccd1f4098c410f4f2b657b0d4a1df55fb"
            "36c591a03ac8c3c410883e609a05d85c187a019cad93c122375a0314323c"
        ),
        HoldPlaced(*ASKED[1:], 60, 8_000, TERMS),
    ),
    (
        "919714c410f4f2b657b0d4a1df55fb36c591a03ac8020302c3cd1f40",
        HoldChanged(identifier("h"), 2, 3, HoldStatus.CAPTURED, True, 8_000),
    ),
    (
        (
            "919815c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3deca4"
            "61636d65a5616c696365c410f4f2b657b0d4a1df55fb36c591a03ac8a345555205"
        ),
        HoldVoided(*ASKED[1:5], identifier("h"), "EUR", 5),
    ),
    (
        (
            "919a16c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3deca4"
            "61636d65a5616c696365c410f4f2b657b0d4a1df55fb36c591a03ac8a3455552053ccd1f40"
        ),
        HoldExtended(*ASKED[1:5], identifier("h"), "EUR", 5, 60, 8_000),
    ),
    (
        "919417a5616c69636596ce0007349e0105cd4cdb020a96000000cd4cdb0100",
        UsageCounted("alice", USAGE.debits, USAGE.credits),
    ),
    (
        "919518c410883e609a05d85c187a019cad93c12237a3626f620502",
        RefundCounted(identifier("t"), "bob", 5, 2),
    ),
    (
        (
            "919719c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3deca4"
            "61636d65929901c410883e609a05d85c187a019cad93c12237a5616c696365a3626f62a345555205"
            "a172a27b7dc09908c41013d650693b19482ad7061da30b45bfbca3626f62a5616c696365a3455552"
            "02c0c098c410f4f2b657b0d4a1df55fb36c591a03ac8c3c410883e609a05d85c187a019cad93c122"
            "375a0314323c919700a5616c69636503fba3626f620105c3"
        ),
        LinkedPosted(*ASKED[1:4], LEGS, POSTINGS, True),
    ),
    (
        (
            "91981ac410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3deca4"
            "61636d65929901c410883e609a05d85c187a019cad93c12237a5616c696365a3626f62a345555205"
            "a172a27b7dc09908c41013d650693b19482ad7061da30b45bfbca3626f62a5616c696365a3455552"
            "02c0c098c410f4f2b657b0d4a1df55fb36c591a03ac8c3c410883e609a05d85c187a019cad93c122"
            "375a0314323c01cc9603"
        ),
        LinkedRejected(*ASKED[1:4], LEGS, 1, RejectReason.LINKED_DEADLINE_PASSED, 3),
    ),
    (
        (
            "91981bc410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3deca4"
            "61636d65929901c410883e609a05d85c187a019cad93c12237a5616c696365a3626f62a345555205"
            "a172a27b7dc09908c41013d650693b19482ad7061da30b45bfbca3626f62a5616c696365a3455552"
            "02c0c098c410f4f2b657b0d4a1df55fb36c591a03ac8c3c410883e609a05d85c187a019cad93c122"
            "375a0314323c9292000192010002cd1f40"
        ),
        LinkedBegun(*ASKED[1:4], LEGS, [(0, 1), (1, 0)], 2, 8_000),
    ),
    (
        (
            "91981c0107c41043aa5f0292af9aa1e782df3b55e70d4cc410883e609a05d85c187a019cad93c122"
            "37a461636d6502919400c3c29901c410883e609a05d85c187a019cad93c12237a5616c696365a362"
            "6f62a345555205a172a27b7dc0"
        ),
        PrepareSent(1, 7, LINK, identifier("t"), "acme", 2, PARTS),
    ),
    (
        "91951d0107c410883e609a05d85c187a019cad93c12237fc",
        VoteTaken(1, 7, identifier("t"), -4),
    ),
    (
        "91921ec410883e609a05d85c187a019cad93c12237",
        LinkedRecalled(identifier("t")),
    ),
    (
        ("91961f0107c41043aa5f0292af9aa1e782df3b55e70d4cc410883e609a05d85c187a019cad93c12237c3"),
        VerdictSent(1, 7, LINK, identifier("t"), True),
    ),
    (
        "9194200107c410883e609a05d85c187a019cad93c12237",
        VerdictDelivered(1, 7, identifier("t")),
    ),
    (
        "919221c410883e609a05d85c187a019cad93c12237",
        LinkedDone(identifier("t")),
    ),
    (
        (
            "9197220207c41043aa5f0292af9aa1e782df3b55e70d4cc410883e609a05d85c187a019cad93c122"
            "37a461636d65919400c3c29901c410883e609a05d85c187a019cad93c12237a5616c696365a3626f"
            "62a345555205a172a27b7dc0"
        ),
        LinkedPrepared(2, 7, LINK, identifier("t"), "acme", PARTS),
    ),
    (
        (
            "9197230207c41043aa5f0292af9aa1e782df3b55e70d4cc410883e609a05d85c187a019cad93c122"
            "37c3919700a5616c69636503fba3626f620105"
        ),
        VerdictTaken(2, 7, LINK, identifier("t"), True, POSTINGS),
    ),
    (
        (
            "919b0f0107c41043aa5f0292af9aa1e782df3b55e70d4ccd012c029199a5616c696365a461636d65"
            "a345555202fb4603c0c091939e0501c410883e609a05d85c187a019cad93c12237c41061f5dc1483"
            "0084d8dc2d1ebc02ef3deca461636d65a5616c696365a3626f62a345555205c0a27b7d4600c009cd"
            "03e89194a345555246044b919fc410f4f2b657b0d4a1df55fb36c591a03ac8a461636d65a5616c69"
            "6365a3626f62a345555209020301c30708a172a27b7d069195c410883e609a05d85c187a019cad93"
            "c12237a3626f62050206"
        ),
        SlotGiven(
            1, 7, LINK, 300, 2, *CARRIED, [HOLD], [RefundTotal(identifier("t"), "bob", 5, 2, 6)]
        ),
    ),
    (
        (
            "919b100207c41043aa5f0292af9aa1e782df3b55e70d4ccd012c029199a5616c696365a461636d65"
            "a345555202fb4603c0c091939e0501c410883e609a05d85c187a019cad93c12237c41061f5dc1483"
            "0084d8dc2d1ebc02ef3deca461636d65a5616c696365a3626f62a345555205c0a27b7d4600c009cd"
            "03e89194a345555246044b919fc410f4f2b657b0d4a1df55fb36c591a03ac8a461636d65a5616c69"
            "6365a3626f62a345555209020301c30708a172a27b7d069195c410883e609a05d85c187a019cad93"
            "c12237a3626f62050206"
        ),
        SlotTaken(
            2, 7, LINK, 300, 2, *CARRIED, [HOLD], [RefundTotal(identifier("t"), "bob", 5, 2, 6)]
        ),
    ),
]
# As they were written before the last fields were added.
EARLIER: list[tuple[str, Decision]] = [
    (
        "919303a5616c696365d1fed4",
        WalletLimitsSet("alice", -300),
    ),
    (
        (
            "919f0401c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3dec"
            "a461636d65a5616c696365a3626f62a345555205c0a27b7d024601cf7fffffffffffffff"
        ),
        TransferPosted(*ASKED, 2, 70, 1, BALANCE_MAX),
    ),
    (
        (
            "919c0501c410883e609a05d85c187a019cad93c12237c41061f5dc14830084d8dc2d1ebc02ef3dec"
            "a461636d65a5616c696365a3626f62a345555205c0a27b7d64"
        ),
        TransferRejected(*ASKED, RejectReason.INSUFFICIENT_FUNDS),
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
    (
        "91950c0207c41043aa5f0292af9aa1e782df3b55e70d4c03",
        EntryElsewhere(2, 7, LINK, 3),
    ),
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


@pytest.mark.parametrize(("written", "decision"), EARLIER)
def test_earlier_bytes_are_read_as_what_they_meant(written: str, decision: Decision) -> None:
    """
    What an earlier build journaled has the meaning that it had: the fields added since are empty.
    """
    assert decode_decisions(bytes.fromhex(written), 1) == [decision]


def test_journaled_numbers_never_change() -> None:
    """
    The numbers of types, statuses and reasons stand in journals.
    """
    assert [kind.value for kind in TransferType] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [status.value for status in HoldStatus] == [1, 2, 3, 4]
    assert [status.value for status in WalletStatus] == [1, 2, 3, 4]
    assert {reason.name: reason.value for reason in RejectReason} == {
        "WALLETS_IDENTICAL": 10,
        "HOLD_UNKNOWN": 12,
        "HOLD_EXPIRED": 13,
        "HOLD_VOIDED": 14,
        "HOLD_CAPTURED": 15,
        "HOLD_CAPTURE_PENDING": 16,
        "SOURCE_UNKNOWN": 20,
        "DESTINATION_UNKNOWN": 30,
        "CURRENCY_MISMATCH": 40,
        "SOURCE_CLOSED": 50,
        "SOURCE_LOCKED": 60,
        "SOURCE_FROZEN": 70,
        "DESTINATION_CLOSED": 80,
        "DESTINATION_LOCKED": 90,
        "CAPTURE_EXCEEDS_HOLD": 92,
        "REFUND_TOTAL_UNKNOWN": 93,
        "REFUND_EXCEEDS_PAID": 94,
        "VERSION_DIFFERS": 96,
        "AVAILABLE_BELOW_CONDITION": 98,
        "INSUFFICIENT_FUNDS": 100,
        "HOLDS_TOO_MANY": 102,
        "BALANCE_OUT_OF_RANGE": 110,
        "DEBIT_COUNT_HOUR_EXCEEDED": 120,
        "DEBIT_AMOUNT_HOUR_EXCEEDED": 121,
        "DEBIT_COUNT_DAY_EXCEEDED": 122,
        "DEBIT_AMOUNT_DAY_EXCEEDED": 123,
        "CREDIT_COUNT_HOUR_EXCEEDED": 130,
        "CREDIT_AMOUNT_HOUR_EXCEEDED": 131,
        "CREDIT_COUNT_DAY_EXCEEDED": 132,
        "CREDIT_AMOUNT_DAY_EXCEEDED": 133,
        "BALANCE_MAX_EXCEEDED": 140,
        "LINKED_DEADLINE_PASSED": 150,
        "WALLET_UNKNOWN": 200,
        "WALLET_EXISTS": 210,
        "WALLET_CLOSED": 220,
        "WALLET_NOT_EMPTY": 230,
        "TRANSFERS_PENDING": 235,
        "HOLDS_OPEN": 236,
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
