"""
Goal: shards on several machines: when one of them is lost, or comes back from the dead, every
      answer that was given stays true, every payment happens at most once, and whatever is on its
      way between shards arrives.
Method: three nodes of Ray on addresses of their own, two databases, one `miliano up` that joins
        them; clients pay within and across the shards, and ask again with the same key. A node is
        killed, frozen or stopped under this load. At the end each key is asked once more, the
        balances are added up from what was answered, and the auditor reads both databases.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from configs.settings import GatewaySettings
from gateway.shard_client import OutcomeUnknown, ShardOverloaded, ShardUnavailable
from gateway.shard_clients import ShardClients
from processor.core.channel import FIRST_LINK, Entry, next_link
from processor.core.commands import MoveMoney
from processor.flow import frames
from processor.flow.channel_link import Entries, Greeting, Welcome, decode_effect, encode
from processor.flow.frames import Pending, Posted, Rejected, WalletFound
from processor.storage.directory import ShardEntry, read_directory
from processor.storage.verification import verify
from tests.support.commands import (
    CURRENCY,
    MERCHANT,
    deposit,
    identifier,
    open_wallet,
    read_wallet,
    transfer,
)
from tests.support.databases import Databases, reading
from tests.support.gates import gate_at
from tests.support.ledger import Ledger, end, ledger_folder
from tests.support.pausing import has_ended
from tests.support.raw_peer import RawPeer, connected_peer
from tests.support.ray_nodes import RayNode, RayNodes, running_ray_nodes
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(180)

SECRET = "known to every node"
# One is told its address by its settings, the other takes what Ray knows.
HOSTS = {"127.0.0.3": {"MILIANO_CLUSTER_SHARD_HOST": "127.0.0.3"}, "127.0.0.4": {}}
SHARD_COUNT = 2
STRANGER = 99  # A shard that was never placed.
WALLETS = [f"w{number}" for number in range(10)]
FUNDS = 1_000_000
PATIENT_MS = 30_000
ASK_AGAIN_S = 0.01
HURRIED_MS = 200  # Shorter than the loss of any node, so that answers get lost.
AWAY_S_MAX = 60.0

MARKS = "SELECT shard_id, sequence FROM watermark ORDER BY shard_id"


class Cluster:
    """
    The nodes, the ledger on them, and how to reach it.
    """

    def __init__(self, nodes: RayNodes, ledger: Ledger, dsns: list[str]) -> None:
        self.nodes = nodes
        self.ledger = ledger
        self.dsns = dsns

    def start_missing(self) -> None:
        """
        Start a node wherever none runs any more, as after a repair. Call it in the main thread: a
        node ends with the thread that started it.
        """
        running = {node.host for node in self.nodes.nodes if node.is_running}
        for host, settings in HOSTS.items():
            if host not in running:
                self.nodes.start(host, settings)

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[ShardClients]:
        """
        Connect as a gateway does.
        """
        clients = ShardClients(self.dsns, secret=SECRET.encode(), settings=GatewaySettings())
        await clients.start()
        try:
            await until(lambda: clients.knows_slots, "the slot map")
            yield clients
        finally:
            await clients.stop()

    async def shards(self) -> list[ShardEntry]:
        """
        Read where all shards are served; not all may be served now.
        """
        entries = []
        for dsn in self.dsns:
            async with reading(dsn) as connection:
                entries += await read_directory(connection)
        return sorted(entries, key=lambda entry: entry.shard_id)

    async def taken_over_from(self, old: list[ShardEntry]) -> list[ShardEntry]:
        """
        Wait until every shard of *old* is served by another; return where.
        """
        epochs = {entry.shard_id: entry.epoch for entry in old}

        async def served() -> list[ShardEntry]:
            now = [entry for entry in await self.shards() if entry.shard_id in epochs]
            anew = [e for e in now if e.epoch > epochs[e.shard_id] and e.endpoint is not None]
            return anew if len(anew) == len(old) else []

        try:
            return await until(served, "the shards of a lost node", timeout_s=AWAY_S_MAX)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.ledger.words()}\n{self.nodes.logs()}") from None

    async def projecting(self) -> None:
        """
        Wait until all tables have moved on.
        """
        for dsn in self.dsns:
            async with reading(dsn) as connection:
                before = await connection.fetch(MARKS)

                async def moved_on(connection=connection, before=before) -> bool:
                    now = await connection.fetch(MARKS)
                    return all(one > other for one, other in zip(now, before, strict=True))

                await until(moved_on, "the tables")

    async def projected(self) -> None:
        """
        Wait until the tables of both databases have caught up with the journals.
        """
        for dsn in self.dsns:
            async with reading(dsn) as connection:
                await until(lambda connection=connection: has_caught_up(connection), "the tables")


async def has_caught_up(connection) -> bool:
    heads = await connection.fetch("SELECT shard_id, max(sequence) FROM journal GROUP BY shard_id")
    marks = await connection.fetch(MARKS)
    return bool(heads) and {tuple(row) for row in heads} <= {tuple(row) for row in marks}


def host_of(entry: ShardEntry) -> str:
    """
    Name the node that a shard is served at.
    """
    assert entry.endpoint is not None
    kind, host, _port = entry.endpoint.split(":")
    assert kind == "tcp", "other nodes cannot reach it"
    return host


@pytest.fixture(scope="module")
def cluster(databases: Databases) -> Iterator[Cluster]:
    with databases.empty() as first, databases.empty() as second, ledger_folder() as folder:
        shared = {"MILIANO_POSTGRES_DSN": f"{first} {second}", "MILIANO_CLUSTER_SECRET": SECRET}
        with running_ray_nodes(shared) as nodes:
            for host, settings in HOSTS.items():
                nodes.start(host, settings)
            ledger = joined_ledger(nodes, folder / "data")
            try:
                ledger.start()
                yield Cluster(nodes, ledger, [first, second])
                assert ledger.stop() == 0, ledger.words()
            finally:
                end(ledger)


def joined_ledger(nodes: RayNodes, data_dir: Path) -> Ledger:
    """
    Make a `miliano up` that puts its shards on *nodes*; it is not started yet.
    """
    ledger = Ledger(data_dir)
    ledger.environment = nodes.environment | {
        "MILIANO_CLUSTER_RAY_ADDRESS": nodes.address,
        "MILIANO_CLUSTER_SHARDS": str(SHARD_COUNT),
    }
    return ledger


# --- The load -------------------------------------------------------------------------------------


class Payment(msgspec.Struct):
    """
    What a client knows of one payment.
    """

    command: MoveMoney
    answer: Posted | Rejected | Pending | None = None  # The last that it heard.
    sent: bool = False  # Perhaps applied, unless the client was told otherwise.
    was_pending: bool = False


class Payers:
    """
    Clients that pay within and across shards until told to stop.

    One that hears nothing in time asks again under the same key, and sometimes gives up.
    """

    def __init__(self, name: str, clients: ShardClients, paid_by: list[str]) -> None:
        self.payments: list[Payment] = []
        self.answer_count = 0
        self._name = name
        self._clients = clients
        self._wallets = paid_by
        self._random = random.Random(name)
        self._stopping = False
        self._workers: list[asyncio.Task[None]] = []

    async def fill(self) -> None:
        commands = [open_wallet(wallet) for wallet in self._wallets]
        commands += [deposit(wallet, FUNDS, key=f"fill {wallet}") for wallet in self._wallets]
        told = await self._clients.submit_many(commands, timeout_ms=PATIENT_MS)
        assert not [result for result, _ in told if not isinstance(result, WalletFound | Posted)]
        assert {shard_id for _, shard_id in told} == set(range(SHARD_COUNT)), "one shard has all"

    def start(self, worker_count: int) -> None:
        self._workers = [asyncio.create_task(self._work(n)) for n in range(worker_count)]

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._workers)

    async def answered(self, count: int) -> None:
        target = self.answer_count + count
        await until(
            lambda: self.answer_count >= target or any(w.done() for w in self._workers),
            f"{target} answers",
            timeout_s=60,
        )

    async def _work(self, number: int) -> None:
        count = 0
        while not self._stopping:
            count += 1
            source, destination = self._random.sample(self._wallets, 2)
            amount = self._random.choice([1, 5, 20, 500_000])
            key = f"{self._name} {number} {count}"
            payment = Payment(transfer(source, destination, amount, key=key))
            self.payments.append(payment)
            # The first client never asks twice, so that it is left with something unknown.
            patience = 0.0 if number == 0 else 0.8
            while not await self._ask(payment, HURRIED_MS):
                if self._stopping or self._random.random() >= patience:
                    break
                await asyncio.sleep(ASK_AGAIN_S)

    async def _ask(self, payment: Payment, timeout_ms: int) -> bool:
        """
        Ask once, and compare with what was answered before; False when nothing was heard.
        """
        try:
            answer, _ = await self._clients.submit(payment.command, timeout_ms=timeout_ms)
        except OutcomeUnknown:
            payment.sent = True
            return False
        except (ShardUnavailable, ShardOverloaded):
            return False
        assert isinstance(answer, Posted | Rejected | Pending), answer
        check_answer(payment, answer)
        payment.answer = answer
        payment.was_pending |= isinstance(answer, Pending)
        self.answer_count += 1
        return True

    def crosses(self, payment: Payment) -> bool:
        """
        Say whether a payment goes from one shard to another.
        """
        command, shard_of = payment.command, self._clients.shard_of
        return shard_of(command.source) != shard_of(command.destination)

    def paid_within(self, shard_id: int) -> MoveMoney:
        """
        Find a payment that was made between two wallets of *shard_id*.
        """
        return next(
            payment.command
            for payment in self.payments
            if isinstance(payment.answer, Posted)
            and not self.crosses(payment)
            and self._clients.shard_of(payment.command.source) == shard_id
        )

    async def settle(self) -> None:
        """
        Ask for every payment until its outcome is final.
        """
        open_payments = self.payments
        for _ in range(200):
            await asyncio.gather(*(self._ask(one, PATIENT_MS) for one in open_payments))
            open_payments = [
                one for one in open_payments if not isinstance(one.answer, Posted | Rejected)
            ]
            if not open_payments:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"never settled: {open_payments[:3]}")

    async def check_balances(self) -> None:
        """
        Compare each wallet with what its payments add up to.
        """
        expected = dict.fromkeys(self._wallets, FUNDS)
        for payment in self.payments:
            if isinstance(payment.answer, Posted):
                expected[payment.command.source] -= payment.command.amount
                expected[payment.command.destination] += payment.command.amount
        reads = [read_wallet(wallet) for wallet in self._wallets]
        told = await self._clients.submit_many(reads, timeout_ms=PATIENT_MS)
        assert {found.wallet_id: found.posted for found, _ in told} == expected


def check_answer(payment: Payment, answer: Posted | Rejected | Pending) -> None:
    """
    Compare a new answer with what the client was told before.
    """
    before = payment.answer
    if before is None:
        assert payment.sent or not answer.repeated, f"told that it was not applied: {payment}"
        return
    assert answer.repeated, f"an answer was forgotten: {payment} {answer}"
    assert answer.transfer_id == before.transfer_id
    if not isinstance(before, Pending):
        told = msgspec.structs.replace(answer, repeated=before.repeated)
        assert told == before, f"another outcome than before: {payment} {answer}"


async def check_everything(cluster: Cluster, payers: Payers) -> None:
    await payers.settle()
    await payers.check_balances()
    outcomes = {type(payment.answer) for payment in payers.payments}
    assert outcomes == {Posted, Rejected}
    await cluster.projected()
    verdict = await verify(cluster.dsns)
    assert verdict.balanced, verdict
    assert verdict.pending == 0


@asynccontextmanager
async def paying(cluster: Cluster, name: str) -> AsyncIterator[Payers]:
    """
    Pay while the body runs and a little longer; then check everything.
    """
    cluster.start_missing()
    async with cluster.clients() as clients:
        payers = Payers(name, clients, [f"{name}-{wallet}" for wallet in WALLETS])
        await payers.fill()
        payers.start(worker_count=8)
        await payers.answered(300)
        try:
            yield payers
            await payers.answered(300)
        finally:
            await payers.stop()
        await check_everything(cluster, payers)


async def busiest(cluster: Cluster) -> tuple[RayNode, list[ShardEntry]]:
    """
    Return the node of shard 0, and the shards that are on it.
    """
    shards = await cluster.shards()
    host = host_of(shards[0])
    return cluster.nodes.at(host), [entry for entry in shards if host_of(entry) == host]


# --- The tests ------------------------------------------------------------------------------------


async def test_shards_are_spread_over_the_nodes(cluster: Cluster):
    """
    Each shard is served at the address of its node, none on the head; and a `miliano up` that was
    stopped and started spreads them anew, whatever became of the nodes before.
    """
    cluster.start_missing()
    assert await asyncio.to_thread(cluster.ledger.stop) == 0, cluster.ledger.words()
    await asyncio.to_thread(cluster.ledger.start)
    async with paying(cluster, "spread"):
        shards = await cluster.shards()
        assert len(shards) == SHARD_COUNT
        assert {host_of(entry) for entry in shards} == set(HOSTS)
        assert all(entry.pid in cluster.nodes.at(host_of(entry)).processes() for entry in shards)


async def test_shards_live_on_without_the_one_that_started_them(cluster: Cluster):
    """
    `miliano up` is killed: the shards serve on, and the next one finds them as they are.
    """
    async with paying(cluster, "alone") as payers:
        before = await cluster.shards()
        await asyncio.to_thread(end, cluster.ledger)
        await payers.answered(300)
        await asyncio.to_thread(cluster.ledger.start)
        assert await cluster.shards() == before
    status = await asyncio.to_thread(cluster.ledger.json, "status")
    assert [shard["phase"] for shard in status["shards"]] == ["serving"] * SHARD_COUNT


LOSSES: dict[str, Callable[[RayNode], None]] = {
    "loses its power": RayNode.kill,
    "is taken out of service": RayNode.stop,
}


@pytest.mark.parametrize("lose", LOSSES)
async def test_the_shards_of_a_lost_node_come_back_on_another(cluster: Cluster, lose: str):
    """
    A node that is killed, or stopped as for maintenance: its shards come back on the other, no
    acknowledged payment is lost, none is done twice, and all that was on its way settles.
    """
    async with paying(cluster, lose) as payers:
        node, lost = await busiest(cluster)
        await asyncio.to_thread(LOSSES[lose], node)
        served = await cluster.taken_over_from(lost)
        assert all(host_of(entry) != node.host for entry in served)
    assert [one for one in payers.payments if one.sent or one.was_pending], "nothing was under way"


async def test_a_frozen_node_that_comes_back_answers_nobody(cluster: Cluster):
    """
    Frozen with all it runs until its shards are elsewhere, then thawed with frames of clients and
    of peers waiting: its shards answer no read, no repeat, no payment and no entry, they end by
    themselves, and so does the node.
    """
    async with paying(cluster, "frozen") as payers, AsyncExitStack() as leaving:
        node, old = await busiest(cluster)
        asked = [await asked_of(payers, entry, leaving) for entry in old]
        gates = [
            await leaving.enter_async_context(gate_at(d, "UPDATE", "wallets")) for d in cluster.dsns
        ]
        for gate in gates:
            await gate.close()
            await gate.reached()
        await asyncio.to_thread(node.freeze)
        for gate in gates:
            await gate.open()
        leaving.callback(node.kill)
        for waiting in asked:
            waiting.send()
        served = await cluster.taken_over_from(old)
        assert all(host_of(entry) != node.host for entry in served)
        await cluster.projecting()
        # The shards first: nobody ends them but they themselves.
        node.thaw([entry.pid for entry in old if entry.pid is not None])
        for waiting in asked:
            await waiting.hears_nothing()
        await until(lambda: all(has_ended(entry.pid) for entry in old), "the end of the old shards")
        assert all(tells_of_its_end(node, entry.shard_id) for entry in old), node.logs()
        node.thaw()
        await until(lambda: not node.processes(), "the end of the node", timeout_s=AWAY_S_MAX)


def tells_of_its_end(node: RayNode, shard_id: int) -> bool:
    log = (node.folder / "log" / f"shard-{shard_id}.log").read_text()
    return "shard process ends" in log and "Fenced" in log


class Waiting:
    """
    What waits in the sockets of a shard that is frozen.
    """

    def __init__(self, shard: ShardEntry, payer: str, payee: str, paid: MoveMoney) -> None:
        self._shard = shard
        self._entry = Entry(
            1, identifier(f"entry {payee}"), MERCHANT, "far", payee, CURRENCY, 7, None, None
        )
        self._commands = {
            "a read": read_wallet(payer),
            "a repeat": paid,
            "a payment": transfer(payer, payee, 7, key=f"zombie {payer}"),
        }
        self._clients: dict[str, RawPeer] = {}
        self._peer: RawPeer | None = None

    async def connect(self, leaving: AsyncExitStack) -> None:
        endpoint = self._shard.endpoint
        assert endpoint is not None
        secret = SECRET.encode()
        for asked in self._commands:
            connection = connected_peer(endpoint, secret)
            self._clients[asked] = await leaving.enter_async_context(connection)
        self._peer = await leaving.enter_async_context(connected_peer(endpoint))
        await greet(self._peer, self._shard.shard_id)

    def send(self) -> None:
        for asked, command in self._commands.items():
            self._clients[asked].send(
                command, epoch=self._shard.epoch, shard_id=self._shard.shard_id
            )
        assert self._peer is not None
        said = Entries([self._entry], next_link(FIRST_LINK, self._entry), 0)
        self._peer.writer.write(frames.with_length(encode(said)))

    async def hears_nothing(self) -> None:
        for asked, client in self._clients.items():
            assert await client.read_to_the_end() == b"", asked
        assert self._peer is not None
        assert await self._peer.read_to_the_end() == b"", "an entry"


async def greet(connection: RawPeer, shard_id: int) -> None:
    """
    Do as a shard does that was never heard of, and hear that it is welcome.
    """
    server_nonce = await connection.read_message()
    own_nonce = secrets.token_bytes(frames.NONCE_BYTES)
    proof = frames.peer_proof(SECRET.encode(), server_nonce, own_nonce, shard_id)
    connection.writer.write(frames.with_length(own_nonce + proof))
    assert await connection.read_message(), "no proof of the other side"
    greeting = encode(Greeting(STRANGER, 0, FIRST_LINK, 0))
    connection.writer.write(frames.with_length(greeting))
    assert decode_effect(await connection.read_message()) == Welcome(0, FIRST_LINK, [])


async def asked_of(payers: Payers, shard: ShardEntry, leaving: AsyncExitStack) -> Waiting:
    """
    Connect to *shard* as clients and as a peer, with something to ask of two of its wallets.
    """
    paid = payers.paid_within(shard.shard_id)
    waiting = Waiting(shard, paid.source, paid.destination, paid)
    await waiting.connect(leaving)
    return waiting
