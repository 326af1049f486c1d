"""
Clients that pay over HTTP, singly and in batches, ask again, give up, and read.

Each keeps to the published rules alone: what a status and a problem's `outcome` mean. The key of
a movement is its reference too, by which the checker finds it in the histories.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from random import Random
from typing import Any

import httpx2

from tests.chaos.operations import Contradiction, Heard, Operation

TIMEOUT_S = 15.0
BATCH_SIZE = 25
CURRENCY = "EUR"
FUNDS = 1_000_000
ASKED_MAX = 200


class Clients:
    """
    *count* clients of one ledger, until told to stop.
    """

    def __init__(self, url: str, key: str, wallets: list[str], *, seed: int) -> None:
        self.operations: list[Operation] = []
        self.request_count = 0
        self.read_count = 0
        self._wallets = wallets
        self._random = Random(seed)
        self._numbers = itertools.count(1)
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._http = httpx2.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT_S
        )

    async def open_wallets(self) -> None:
        """
        Open all wallets and put money into them; nothing is broken yet.
        """
        for wallet in self._wallets:
            body = {"wallet_id": wallet, "currency": CURRENCY}
            reply = await self._http.post("/v1/wallets", json=body)
            assert reply.status_code in (200, 201), reply.text
            await self.ask(self._operation(None, wallet, FUNDS))

    def start(self, count: int) -> None:
        works = itertools.cycle([self._pay, self._pay, self._pay_batches, self._read, self._repeat])
        self._tasks = [asyncio.create_task(next(works)()) for _ in range(count)]

    async def stop(self) -> None:
        """
        Let each client finish what it is at; raises what one of them found.
        """
        self._stopping = True
        await asyncio.gather(*self._tasks)

    def check(self) -> None:
        """
        Raise what a client found so far, if any.
        """
        for task in self._tasks:
            if task.done():
                task.result()

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, operation: Operation) -> Heard:
        """
        Ask once, and say what was heard.
        """
        path, body = request_of(operation)
        headers = {"idempotency-key": operation.key}
        self.request_count += 1
        try:
            reply = await self._http.post(path, json=body, headers=headers)
        except httpx2.ConnectError:
            operation.hear(Heard.NOT_APPLIED, None)  # Nobody took the request.
        except httpx2.TransportError:
            operation.hear(Heard.UNKNOWN, None)
        else:
            operation.hear(*heard_in(reply.status_code, reply.content))
        return operation.heard[-1]

    async def ask_until_final(self, operation: Operation) -> None:
        """
        Ask until the outcome is known.
        """
        for _ in range(ASKED_MAX):
            await self.ask(operation)
            if operation.outcome is not None:
                return
            await asyncio.sleep(0.05)
        raise Contradiction(f"{operation.key}: no outcome after {ASKED_MAX} askings")

    async def settle(self) -> None:
        """
        Ask again for whatever may be applied and has no outcome yet.
        """
        for operation in self.operations:
            if operation.outcome is None and operation.may_be_applied:
                await self.ask_until_final(operation)

    def _operation(self, source: str | None, destination: str | None, amount: int) -> Operation:
        operation = Operation(f"op-{next(self._numbers)}", source, destination, amount)
        self.operations.append(operation)
        return operation

    def _new_operation(self) -> Operation:
        amount = self._random.choice([1, 7, 50, 400, 20_000_000])
        source, destination = self._random.sample(self._wallets, 2)
        match self._random.random():
            case chance if chance < 0.05:
                return self._operation(None, destination, min(amount, 400))
            case chance if chance < 0.1:
                return self._operation(source, None, amount)
        return self._operation(source, destination, amount)

    async def _pay(self) -> None:
        while not self._stopping:
            operation = self._new_operation()
            patience = self._random.random()
            while await self.ask(operation) in (Heard.UNKNOWN, Heard.NOT_APPLIED):
                if self._stopping or self._random.random() > patience:
                    break
                await asyncio.sleep(0.02)

    async def _pay_batches(self) -> None:
        while not self._stopping:
            operations = [
                self._operation(*self._random.sample(self._wallets, 2), self._random.randint(1, 9))
                for _ in range(BATCH_SIZE)
            ]
            items = [request_of(o)[1] | {"idempotency_key": o.key} for o in operations]
            self.request_count += 1
            try:
                reply = await self._http.post("/v1/transfers/batch", json={"transfers": items})
            except httpx2.ConnectError:
                self._hear_all(operations, Heard.NOT_APPLIED)
                await asyncio.sleep(0.1)
                continue
            except httpx2.TransportError:
                self._hear_all(operations, Heard.UNKNOWN)
                continue
            if reply.status_code != 200:
                self._hear_all(operations, heard_in(reply.status_code, reply.content)[0])
                await asyncio.sleep(0.05)
                continue
            results = reply.json()["results"]
            for operation, result in zip(operations, results, strict=True):
                operation.hear(*heard_of_item(result))

    @staticmethod
    def _hear_all(operations: list[Operation], answer: Heard) -> None:
        for operation in operations:
            operation.hear(answer, None)

    async def _repeat(self) -> None:
        """
        Ask again for what was asked before: known outcomes must not change.
        """
        while not self._stopping:
            await asyncio.sleep(0.01)
            await self.ask(self._random.choice(self.operations))

    async def _read(self) -> None:
        """
        Look at transfers that were acknowledged: each is there, as it was told.
        """
        while not self._stopping:
            await asyncio.sleep(0.01)
            operation = self._random.choice(self.operations)
            outcome, transfer_id = operation.outcome, operation.transfer_id
            if transfer_id is None:
                continue
            try:
                reply = await self._http.get(f"/v1/transfers/{transfer_id}")
            except httpx2.TransportError:
                continue
            self.read_count += 1
            if reply.status_code == 503:
                continue
            if reply.status_code != 200:
                raise Contradiction(f"{operation.key}: reads as {reply.status_code}: {reply.text}")
            status = reply.json()["status"]
            if outcome is not None and status != outcome:
                raise Contradiction(f"{operation.key}: was {outcome}, reads as {status}")


def request_of(operation: Operation) -> tuple[str, dict[str, Any]]:
    """
    Write the path and the body that ask for *operation*.
    """
    body: dict[str, Any] = {
        "amount": operation.amount,
        "currency": CURRENCY,
        "reference": operation.key,
    }
    if operation.source is None:
        return "/v1/deposits", body | {"destination": operation.destination}
    if operation.destination is None:
        return "/v1/withdrawals", body | {"source": operation.source}
    sides = {"source": operation.source, "destination": operation.destination}
    return "/v1/transfers", body | sides


def heard_in(status: int, content: bytes) -> tuple[Heard, str | None, str | None]:
    """
    Understand a reply as the API's reference tells to: answer, transfer and reason.
    """
    try:
        body = json.loads(content)
    except ValueError:
        return Heard.UNKNOWN, None, None
    if status in (200, 201):
        return Heard.POSTED, body["id"], None
    if status == 202:
        return Heard.PENDING, body["id"], None
    if body.get("outcome") == "rejected":
        return Heard.REJECTED, body["transfer"]["id"], body["code"]
    if body.get("outcome") == "not_applied" and status in (429, 503):
        return Heard.NOT_APPLIED, None, None
    if body.get("outcome") == "unknown":
        return Heard.UNKNOWN, None, None
    raise Contradiction(f"an answer that nothing here should get: {status} {body}")


def heard_of_item(result: dict[str, Any]) -> tuple[Heard, str | None, str | None]:
    """
    Understand one result of a batch.
    """
    match result["status"]:
        case "posted":
            return Heard.POSTED, result["id"], None
        case "pending":
            return Heard.PENDING, result["id"], None
        case "rejected":
            return Heard.REJECTED, result["id"], result["code"]
        case "unknown":
            return Heard.UNKNOWN, None, None
    if result["outcome"] != "not_applied":
        raise Contradiction(f"an item that nothing here should get: {result}")
    return Heard.NOT_APPLIED, None, None
