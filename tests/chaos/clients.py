"""
Clients that pay over HTTP, singly and in batches, tell stories, ask again, give up, and read.

Each keeps to the published rules alone: what a status and a problem's `outcome` mean. The key of
a movement is its reference too, by which the checker finds it in the histories.
"""

from __future__ import annotations

import asyncio
import itertools
from random import Random

import httpx2

from tests.chaos.operations import (
    Asked,
    Contradiction,
    Heard,
    Linked,
    Operation,
    Placing,
    Voiding,
)
from tests.chaos.requests import CURRENCY, hear_reply, heard_in, heard_of_item, request_of
from tests.chaos.stories import Story, new_story

TIMEOUT_S = 15.0
BATCH_SIZE = 25
FUNDS = 1_000_000
ASKED_MAX = 200


class Clients:
    """
    *count* clients of one ledger, until told to stop.
    """

    def __init__(self, url: str, key: str, wallets: list[str], *, seed: int) -> None:
        self.asked: list[Asked] = []
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
        works = itertools.cycle(
            [self._pay, self._tell_stories, self._pay_batches, self._read, self._repeat]
        )
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

    async def ask(self, operation: Asked) -> Heard:
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
            hear_reply(operation, reply.status_code, reply.content)
        return operation.heard[-1]

    async def ask_until_final(self, operation: Asked) -> None:
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
        for operation in self.asked:
            if operation.outcome is None and operation.may_be_applied:
                await self.ask_until_final(operation)

    def _operation(self, source: str | None, destination: str | None, amount: int) -> Operation:
        operation = Operation(
            key=self._new_key(), source=source, destination=destination, amount=amount
        )
        self.asked.append(operation)
        return operation

    def _new_key(self) -> str:
        return f"op-{next(self._numbers)}"

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
            await self._ask_with_patience(self._new_operation())

    async def _ask_with_patience(self, operation: Asked) -> None:
        """
        Ask again while nothing is known, for as long as this client likes.
        """
        patience = self._random.random()
        while await self.ask(operation) in (Heard.UNKNOWN, Heard.NOT_APPLIED):
            if self._stopping or self._random.random() > patience:
                return
            await asyncio.sleep(0.02)

    async def _tell_stories(self) -> None:
        """
        Place a hold and end it, give something back, or link movements; some steps at once.
        """
        while not self._stopping:
            story = new_story(self._random, self._new_key, self._wallets, self.asked)
            self.asked += story.first
            for operation in story.first:
                await self._ask_with_patience(operation)
            if all(operation.outcome is Heard.POSTED for operation in story.first):
                await self._follow(story)
            await asyncio.sleep(0.01)

    async def _follow(self, story: Story) -> None:
        await asyncio.sleep(story.pause_s)
        self.asked += story.then
        if story.at_once:
            await asyncio.gather(*(self._ask_with_patience(one) for one in story.then))
            return
        for operation in story.then:
            await self._ask_with_patience(operation)

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
            await self.ask(self._random.choice(self.asked))

    async def _read(self) -> None:
        """
        Look at transfers that were acknowledged: each is there, as it was told.
        """
        while not self._stopping:
            await asyncio.sleep(0.01)
            operation = self._random.choice(self._readable())
            outcome, transfer_id = operation.outcome, operation.transfer_id
            if transfer_id is None:
                continue
            try:
                reply = await self._http.get(f"{path_read(operation)}/{transfer_id}")
            except httpx2.TransportError:
                continue
            self.read_count += 1
            if reply.status_code == 503:
                continue
            if reply.status_code != 200:
                raise Contradiction(f"{operation.key}: reads as {reply.status_code}: {reply.text}")
            status = reply.json()["status"]
            if outcome is not None and status != outcome and not isinstance(operation, Placing):
                raise Contradiction(f"{operation.key}: was {outcome}, reads as {status}")

    def _readable(self) -> list[Asked]:
        one = self._random.choice(self.asked)
        if isinstance(one, Linked):
            return [one, *one.legs]
        is_hold = isinstance(one, Voiding) or (
            isinstance(one, Placing) and one.outcome is not Heard.POSTED
        )
        return self.asked[:1] if is_hold else [one]


def path_read(asked: Asked) -> str:
    """
    Write where to look at what came of *asked*.
    """
    if isinstance(asked, Placing):
        return "/v1/holds"
    return "/v1/linked-transfers" if isinstance(asked, Linked) else "/v1/transfers"
