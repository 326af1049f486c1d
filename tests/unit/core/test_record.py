"""
Goal: a record that is missing, altered, moved or from elsewhere does not link.
Method: a chain of sealed records, broken in each way a hand or a disk can break it.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from processor.core.record import GENESIS_CHAIN, BrokenChain, Record, check_link, seal


def chain(length: int, *, shard_id: int = 0, start: bytes = GENESIS_CHAIN) -> list[Record]:
    records: list[Record] = []
    for sequence in range(1, length + 1):
        records.append(
            seal(
                shard_id=shard_id,
                sequence=sequence,
                epoch=2,
                at_us=1_000 + sequence,
                count=1,
                decision_format=1,
                payload=f"payload {sequence}".encode(),
                previous_chain=records[-1].chain if records else start,
            )
        )
    return records


def check(records: list[Record]) -> None:
    """
    Walk the chain as every reader of the journal does.
    """
    sequence, link = 0, GENESIS_CHAIN
    for record in records:
        check_link(record, after_sequence=sequence, after_chain=link)
        sequence, link = record.sequence, record.chain


def test_whole_chain_links() -> None:
    """
    Records as they were sealed are accepted.
    """
    check(chain(5))


@pytest.mark.parametrize("missing", range(4))
def test_missing_record_shows(missing: int) -> None:
    """
    A gap anywhere but at the end is found at the record behind it.
    """
    records = chain(5)
    del records[missing]
    with pytest.raises(BrokenChain, match=f"sequence {missing + 1} was expected"):
        check(records)


@pytest.mark.parametrize(
    "changed",
    [
        {"epoch": 3},
        {"at_us": 1},
        {"count": 2},
        {"format": 2},
        {"payload": b"payload 9"},
        {"payload": b""},
        {"chain": bytes(32)},
        {"shard_id": 1},
    ],
)
def test_altered_record_shows(changed: dict[str, Any]) -> None:
    """
    The chain covers every field of the header and the payload.
    """
    records = chain(5)
    records[2] = msgspec.structs.replace(records[2], **changed)
    with pytest.raises(BrokenChain, match="sequence 3: the hash chain is broken"):
        check(records)


@pytest.mark.parametrize("field", ["shard_id", "epoch", "at_us", "count", "format"])
@pytest.mark.parametrize("value", [-1, 2**64])
def test_header_that_nobody_could_seal_shows(field: str, value: int) -> None:
    """
    A number outside the header's range is a broken chain, not an error of some other kind.
    """
    records = chain(3)
    records[1] = msgspec.structs.replace(records[1], **{field: value})
    with pytest.raises(BrokenChain, match="sequence 2"):
        check(records)


def test_reordered_records_show() -> None:
    """
    Two records in each other's place are found, also when they take over the numbers.
    """
    records = chain(5)
    records[1], records[2] = records[2], records[1]
    with pytest.raises(BrokenChain):
        check(records)
    renumbered = [
        msgspec.structs.replace(record, sequence=number) for number, record in enumerate(records, 1)
    ]
    with pytest.raises(BrokenChain, match="sequence 2: the hash chain is broken"):
        check(renumbered)


def test_record_from_elsewhere_shows() -> None:
    """
    A record that was sealed in another shard's journal does not link in this one.
    """
    records, others = chain(5), chain(5, shard_id=1)
    with pytest.raises(BrokenChain, match="sequence 3: the hash chain is broken"):
        check([*records[:2], others[2], *records[3:]])
    relabelled = msgspec.structs.replace(others[2], shard_id=0)
    with pytest.raises(BrokenChain, match="sequence 3: the hash chain is broken"):
        check([*records[:2], relabelled])


def test_rewritten_past_shows() -> None:
    """
    A record sealed anew after its predecessor was altered no longer leads to its successor.
    """
    records = chain(3)
    forged = seal(
        shard_id=0,
        sequence=2,
        epoch=2,
        at_us=1_002,
        count=1,
        decision_format=1,
        payload=b"forged",
        previous_chain=records[0].chain,
    )
    check([records[0], forged])
    with pytest.raises(BrokenChain, match="sequence 3"):
        check([records[0], forged, records[2]])


def test_sealing_is_repeatable() -> None:
    """
    Equal facts seal alike, whoever does it and when.
    """
    assert chain(3) == chain(3)
    assert len({record.chain for record in chain(3) + chain(3, shard_id=1)}) == 6
