"""
What is offered: each scenario makes requests for a set of funded wallets.

Every request is new: its own idempotency key, a real API key, a valid body.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Callable
from random import Random
from zlib import crc32

import msgspec

from loadtests.http_load import CountPosted, MakeRequest, post

CURRENCY = "EUR"
FUNDS = 1_000_000_000
HOT_WALLET = "load-0"
BATCH_SIZE = 10_000
BATCH_TEMPLATES = 8  # Made before the load, so that the driver costs little.
NAME_MARK = b"@NAME@"

_POSTED = re.compile(rb'"posted":(\d+)')
_SEQUENCE = re.compile(rb'"shard":(\d+),"sequence":(\d+)')


class Scenario(msgspec.Struct, frozen=True):
    """
    A way to load the ledger. `count_posted` reads a good reply.
    """

    name: str
    connections: int
    transfers_per_request: int
    make: Callable[[Maker], MakeRequest]
    count_posted: CountPosted


class Maker:
    """
    Writes requests for one ledger; the choice of wallets follows from the seed.
    """

    def __init__(self, host: str, key: str, wallet_count: int, seed: int = 1) -> None:
        self.host = host
        self.key = key
        self.wallets = [f"load-{number}" for number in range(wallet_count)]
        self.random = Random(seed)
        # Of this run only: a key is never offered twice.
        run = secrets.token_hex(6)
        self._names = (f"{run}-{number}" for number in itertools.count())

    def opening(self) -> list[bytes]:
        """
        Write the requests that open all wallets.
        """
        return [
            self._post("/v1/wallets", {"wallet_id": wallet, "currency": CURRENCY})
            for wallet in self.wallets
        ]

    def funding(self) -> list[bytes]:
        """
        Write the requests that put money into all wallets.
        """
        return [
            self._post_with_key(
                "/v1/deposits", {"destination": wallet, "amount": FUNDS, "currency": CURRENCY}
            )
            for wallet in self.wallets
        ]

    def single(self) -> bytes:
        return self._transfer(*self._pair())

    def hot(self) -> bytes:
        other = self.wallets[self.random.randrange(1, len(self.wallets))]
        if self.random.random() < 0.5:
            return self._transfer(HOT_WALLET, other)
        return self._transfer(other, HOT_WALLET)

    def pairs_of(self, slots: dict[int, set[int]], *, across: bool) -> MakeRequest:
        """
        Make single transfers between wallets of one shard, or of two.
        """
        of_shard = {
            shard: [wallet for wallet in self.wallets if slot_of(wallet) in own]
            for shard, own in slots.items()
        }
        shards = [shard for shard, wallets in of_shard.items() if len(wallets) > 1]
        assert len(shards) > across, f"too few wallets or shards: {of_shard.keys()}"

        def make_request() -> bytes:
            if across:
                source, destination = self.random.sample(shards, 2)
                choice = self.random.choice
                return self._transfer(choice(of_shard[source]), choice(of_shard[destination]))
            return self._transfer(*self.random.sample(of_shard[self.random.choice(shards)], 2))

        return make_request

    def batches(self, size: int) -> MakeRequest:
        """
        Make batches of *size*: the pairs of wallets come around again, the keys never.
        """
        templates = itertools.cycle([self._batch_template(size) for _ in range(BATCH_TEMPLATES)])

        def make_request() -> bytes:
            body = next(templates).replace(NAME_MARK, next(self._names).encode())
            return post("/v1/transfers/batch", self.host, self.key, body)

        return make_request

    def _batch_template(self, size: int) -> bytes:
        rows = []
        for index in range(size):
            source, destination = self._pair()
            rows.append(
                f'{{"idempotency_key":"{NAME_MARK.decode()}-{index}","source":"{source}",'
                f'"destination":"{destination}","amount":1,"currency":"{CURRENCY}"}}'
            )
        return f'{{"transfers":[{",".join(rows)}]}}'.encode()

    def _pair(self) -> tuple[str, str]:
        count = len(self.wallets)
        source = int(self.random.random() * count)
        step = 1 + int(self.random.random() * (count - 1))
        return self.wallets[source], self.wallets[(source + step) % count]

    def _transfer(self, source: str, destination: str) -> bytes:
        body = (
            f'{{"source":"{source}","destination":"{destination}",'
            f'"amount":1,"currency":"{CURRENCY}"}}'
        ).encode()
        name = f"Idempotency-Key: {next(self._names)}\r\n"
        return post("/v1/transfers", self.host, self.key, body, name)

    def _post(self, path: str, body: dict[str, object]) -> bytes:
        return post(path, self.host, self.key, json.dumps(body).encode())

    def _post_with_key(self, path: str, body: dict[str, object]) -> bytes:
        name = f"Idempotency-Key: {next(self._names)}\r\n"
        return post(path, self.host, self.key, json.dumps(body).encode(), name)


def slot_of(wallet_id: str) -> int:
    """
    Find the slot of a wallet, as the architecture's page publishes it.
    """
    return crc32(wallet_id.encode()) & 4095


def one_posted(reply: bytes) -> int:
    """
    Count a good reply to a single transfer.
    """
    del reply
    return 1


def batch_posted(reply: bytes) -> int:
    """
    Read how many items of a batch are posted.
    """
    found = _POSTED.search(reply)
    assert found is not None, f"no reply to a batch: {reply[:500]!r}"
    return int(found[1])


def last_sequences(replies: list[bytes]) -> dict[int, int]:
    """
    Find the last journal record of each shard that *replies* name.
    """
    found: dict[int, int] = {}
    for reply in replies:
        for shard, sequence in _SEQUENCE.findall(reply):
            found[int(shard)] = max(found.get(int(shard), 0), int(sequence))
    return found


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("single", 64, 1, lambda maker: maker.single, one_posted),
        Scenario("hot", 64, 1, lambda maker: maker.hot, one_posted),
        Scenario("batch", 2, BATCH_SIZE, lambda maker: maker.batches(BATCH_SIZE), batch_posted),
    )
}
