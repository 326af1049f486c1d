"""
One journal record: a batch of decisions under a header, chained by hash.

Rule 1: sequences are contiguous from 1; each chain value covers the one before it, the header
        and the payload, so a record that is missing, altered or from elsewhere shows.
Rule 2: a record is accepted only through `check_link`.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import msgspec

CHAIN_BYTES = 32
GENESIS_CHAIN = bytes(CHAIN_BYTES)

_HEADER = struct.Struct(">IQQQIH")


class BrokenChain(Exception):
    """
    The journal does not continue as its hashes say; the shard must halt.
    """


class Record(msgspec.Struct, frozen=True, gc=False):
    """
    A journal row. `at_us` is the record's time in µs since 1970, `count` its decisions.
    """

    shard_id: int
    sequence: int
    epoch: int
    at_us: int
    count: int
    format: int
    payload: bytes
    chain: bytes


def seal(
    *,
    shard_id: int,
    sequence: int,
    epoch: int,
    at_us: int,
    count: int,
    decision_format: int,
    payload: bytes,
    previous_chain: bytes,
) -> Record:
    """
    Close a batch into the record that follows *previous_chain*.
    """
    header = _HEADER.pack(shard_id, sequence, epoch, at_us, count, decision_format)
    chain = blake2b(previous_chain + header + payload, digest_size=CHAIN_BYTES).digest()
    return Record(shard_id, sequence, epoch, at_us, count, decision_format, payload, chain)


def check_link(record: Record, *, after_sequence: int, after_chain: bytes) -> None:
    """
    Check that *record* is the one that follows; raises BrokenChain if it is not.
    """
    where = f"shard {record.shard_id}, sequence {record.sequence}"
    if record.sequence != after_sequence + 1:
        raise BrokenChain(f"{where}: sequence {after_sequence + 1} was expected")
    try:
        expected = seal(
            shard_id=record.shard_id,
            sequence=record.sequence,
            epoch=record.epoch,
            at_us=record.at_us,
            count=record.count,
            decision_format=record.format,
            payload=record.payload,
            previous_chain=after_chain,
        )
    except struct.error as error:
        raise BrokenChain(f"{where}: a header that nobody sealed: {error}") from error
    if expected.chain != record.chain:
        raise BrokenChain(f"{where}: the hash chain is broken")
