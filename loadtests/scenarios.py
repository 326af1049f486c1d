"""
What is offered: each scenario makes requests for a set of funded wallets.

Every request is new: its own idempotency key, a real API key, a valid body.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from random import Random

import msgspec

from loadtests.http_load import MakeRequest, post

CURRENCY = "EUR"
FUNDS = 1_000_000_000
HOT_WALLET = "load-0"


class Scenario(msgspec.Struct, frozen=True):
    """
    A way to load the ledger. `transfers_per_request` is 1 unless it sends batches.
    """

    name: str
    connections: int
    transfers_per_request: int
    make: Callable[[Maker], MakeRequest]


class Maker:
    """
    Writes requests for one ledger; the choice of wallets follows from the seed.
    """

    def __init__(self, host: str, key: str, wallet_count: int, seed: int = 1) -> None:
        self.host = host
        self.key = key
        self.wallets = [f"load-{number}" for number in range(wallet_count)]
        self.random = Random(seed)
        # Of this process and run only: a key is never offered twice.
        self._names = (f"{os.getpid()}-{seed}-{number}" for number in itertools.count())

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
        source, destination = self.random.sample(self.wallets, 2)
        return self._transfer(source, destination)

    def hot(self) -> bytes:
        other = self.wallets[self.random.randrange(1, len(self.wallets))]
        if self.random.random() < 0.5:
            return self._transfer(HOT_WALLET, other)
        return self._transfer(other, HOT_WALLET)

    def batch(self, size: int) -> bytes:
        rows = []
        for _ in range(size):
            source, destination = self.random.sample(self.wallets, 2)
            rows.append(
                f'{{"idempotency_key":"{next(self._names)}","source":"{source}",'
                f'"destination":"{destination}","amount":1,"currency":"{CURRENCY}"}}'
            )
        body = f'{{"transfers":[{",".join(rows)}]}}'.encode()
        return post("/v1/transfers/batch", self.host, self.key, body)

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


BATCH_SIZE = 10_000

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("single", 64, 1, lambda maker: maker.single),
        Scenario("hot", 64, 1, lambda maker: maker.hot),
        Scenario("batch", 2, BATCH_SIZE, lambda maker: lambda: maker.batch(BATCH_SIZE)),
    )
}
