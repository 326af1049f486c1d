"""
Goal: between gateway and shard a connection may break anywhere: each command gets its one true
      answer, is applied once, and nobody who lacks the cluster secret is heard or told anything.
Method: the gateway's clients and a shard with its real socket in one process, on a real
        database; a proxy between them cuts and swallows, and raw peers break the rules.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import uvloop

from actors import shard_server
from actors.shard_server import ShardServer
from configs.settings import GatewaySettings, ShardSettings, WriteBehindSettings
from gateway.shard_client import OutcomeUnknown, ShardOverloaded, ShardUnavailable
from gateway.shard_clients import ShardClients
from processor.flow import frames
from processor.flow.frames import Posted, StaleEpoch
from processor.storage.catalog import open_cluster, place_shards
from processor.storage.projection import Projection
from tests.support.books import read_journal
from tests.support.commands import deposit, open_wallet, read_wallet, transfer
from tests.support.databases import execute
from tests.support.local_shard import LocalShard, owning
from tests.support.raw_peer import connected_peer
from tests.support.tcp_proxy import Direction, Link, TcpProxy
from tests.support.waiting import until

SECRET = secrets.token_bytes(16)
PATIENT_MS = 15_000


@dataclass
class Served:
    """
    A shard with its socket, and the proxy that stands before it in the directory.
    """

    dsn: str
    shard: LocalShard
    endpoint: str
    proxy: TcpProxy

    @asynccontextmanager
    async def clients(self, secret: bytes = SECRET) -> AsyncIterator[ShardClients]:
        clients = ShardClients([self.dsn], secret=secret, settings=GatewaySettings())
        await clients.start()
        try:
            yield clients
        finally:
            await clients.stop()


@pytest.fixture
def folder() -> Iterator[Path]:
    # A Unix socket's path is short.
    with TemporaryDirectory(prefix="mil-") as folder:
        yield Path(folder)


@pytest.fixture
async def served(database: str, folder: Path) -> AsyncIterator[Served]:
    async with serving(database, folder) as served:
        yield served


@asynccontextmanager
async def serving(
    dsn: str, folder: Path, *, lag_records_max: int = 20_000
) -> AsyncIterator[Served]:
    """
    Serve a shard with two wallets, one filled, on a Unix socket and through a proxy.

    Nothing projects: the shard is overloaded as soon as the tables are *lag_records_max* behind.
    """
    shard = LocalShard(dsn, ShardSettings(lag_records_max=lag_records_max))
    server = ShardServer(shard.shard, SECRET)
    await server.listen_unix(folder / "shard")
    proxy = TcpProxy(folder / "shard", folder / "proxy")
    proxy.start()
    shard.endpoint = f"unix:{folder / 'proxy'}"
    try:
        await shard.start()
        await shard.ask(open_wallet("a"), open_wallet("b"), deposit("a", 1_000, key="fill"))
        yield Served(dsn, shard, server.endpoint, proxy)
    finally:
        proxy.stop()
        server.close()
        await shard.stop()


@pytest.mark.parametrize("direction", Direction)
async def test_a_cut_after_any_message_costs_nothing_but_time(served: Served, direction: Direction):
    """
    Cut at each message of the handshake, of the request and of the reply: the command is sent
    again, answered truly and applied once.
    """
    async with served.clients() as clients:
        for number in range(1, 8):
            for link in served.proxy.links:
                link.cut()
            cut_once(served.proxy, direction, message_count=number // 2)
            command = transfer("a", "b", 1, key=f"{number}")
            result, _ = await clients.submit(command, timeout_ms=PATIENT_MS)
            assert isinstance(result, Posted)
            assert result.balance == 1_000 - number
    journal = await read_journal(served.dsn)
    assert set(journal.key_counts().values()) == {1}
    assert journal.balance("b") == 7


def cut_once(proxy: TcpProxy, direction: Direction, *, message_count: int) -> None:
    """
    Cut the next connection after so many messages.
    """

    def cut(link: Link) -> None:
        proxy.on_open(None)
        link.cut_after(direction, message_count=message_count)

    proxy.on_open(cut)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_shard_that_dies_with_the_handshake_is_looked_for_again(
    database: str, folder: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]
):
    """
    The proof and the end of the connection arrive in one turn of the gateway's loop: it does not
    take the dead connection for a living one, and connects again.
    """

    async def look() -> None:
        dying = DyingShard(folder / "shard", asyncio.get_running_loop(), connection_count=3)
        await execute(
            database,
            f"INSERT INTO shard (shard_id, epoch, endpoint) VALUES (0, 1, 'unix:{folder}/shard')",
        )
        clients = ShardClients([database], secret=SECRET, settings=GatewaySettings())
        dying.start()
        try:
            await clients.start()
            await until(lambda: not dying.is_alive(), "three connections")
        finally:
            await clients.stop()
            dying.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(look())


class DyingShard(threading.Thread):
    """
    Shakes hands as a shard does and hangs up at once, while *loop* is busy.
    """

    def __init__(
        self, path: Path, loop: asyncio.AbstractEventLoop, *, connection_count: int
    ) -> None:
        super().__init__(name="dying-shard", daemon=True)
        self._loop = loop
        self._connection_count = connection_count
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()

    def close(self) -> None:
        self._listener.close()

    def run(self) -> None:
        for _ in range(self._connection_count):
            connection, _ = self._listener.accept()
            with connection:
                self._die(connection)

    def _die(self, connection: socket.socket) -> None:
        nonce = secrets.token_bytes(frames.NONCE_BYTES)
        connection.sendall(frames.with_length(nonce))
        spoken = connection.recv(4 + frames.NONCE_BYTES + frames.PROOF_BYTES, socket.MSG_WAITALL)
        client_nonce = spoken[4 : 4 + frames.NONCE_BYTES]
        busy, over = threading.Event(), threading.Event()

        def keep_busy() -> None:
            busy.set()
            over.wait(10)

        self._loop.call_soon_threadsafe(keep_busy)
        busy.wait(10)
        connection.sendall(frames.with_length(frames.server_proof(SECRET, nonce, client_nonce)))
        connection.close()
        over.set()


async def test_clients_can_be_stopped_at_any_moment(served: Served):
    """
    Stopping ends in time also in the very turn of the loop in which a connection comes about.
    """
    for turns in range(12):
        clients = ShardClients([served.dsn], secret=SECRET, settings=GatewaySettings())
        link_count = len(served.proxy.links)
        await clients.start()
        while not proof_is_out(served.proxy, link_count):
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await clients.stop()


def proof_is_out(proxy: TcpProxy, link_count: int) -> bool:
    """
    Say whether a connection after the first *link_count* has got the shard's proof.
    """
    return any(link.messages[Direction.TO_CLIENT] == 2 for link in proxy.links[link_count:])


async def test_an_answer_that_never_comes_is_unknown_and_then_found(served: Served):
    """
    A swallowed reply leaves the outcome unknown at the deadline; on the next connection the same
    key gives the answer of the first time.
    """
    async with served.clients() as clients:
        await clients.submit(read_wallet("a"), timeout_ms=PATIENT_MS)
        link = served.proxy.links[-1]
        link.swallow(Direction.TO_CLIENT)
        command = transfer("a", "b", 1, key="1")
        with pytest.raises(OutcomeUnknown):
            await clients.submit(command, timeout_ms=100)
        link.cut()
        result, _ = await clients.submit(command, timeout_ms=PATIENT_MS)
        assert isinstance(result, Posted)
        assert result.repeated
    assert (await read_journal(served.dsn)).balance("b") == 1


async def test_an_overloaded_shard_is_not_asked_in_a_tight_loop(database: str, folder: Path):
    """
    A command in doubt meets an overloaded shard: only the shard knows what became of it, so it
    is asked again until it can say, at a pace that leaves it time; new commands are refused.
    """
    async with serving(database, folder, lag_records_max=2) as served, served.clients() as clients:
        await clients.submit(read_wallet("a"), timeout_ms=PATIENT_MS)
        link = served.proxy.links[-1]
        link.swallow(Direction.TO_CLIENT)
        doubtful = asyncio.create_task(
            clients.submit(transfer("a", "b", 1, key="1"), timeout_ms=PATIENT_MS)
        )
        await until(lambda: link.lost[Direction.TO_CLIENT], "the lost answer")
        link.cut()
        await until(lambda: answer_count(served.proxy.links[-1], after=link), "a refusal")
        with pytest.raises(ShardOverloaded):
            await clients.submit(transfer("a", "b", 1, key="2"), timeout_ms=PATIENT_MS)
        frame_count = clients.statistics()[0].frame_count
        started = time.monotonic()
        await until(lambda: clients.statistics()[0].frame_count >= frame_count + 5, "asking again")
        elapsed_s = time.monotonic() - started
        assert clients.statistics()[0].frame_count - frame_count < 10 + elapsed_s * 50

        projection = Projection(database, 0, WriteBehindSettings())
        await projection.open()
        while await projection.step():
            pass
        projection.close()
        result, _ = await doubtful
        assert isinstance(result, Posted)
        assert result.repeated


def answer_count(link: Link, *, after: Link) -> int:
    """
    Count what the shard said on *link* since the handshake, if it is another one than *after*.
    """
    return 0 if link is after else max(0, link.messages[Direction.TO_CLIENT] - 2)


async def test_what_was_never_sent_is_called_not_applied(served: Served):
    """
    While no connection can be made the deadline says that nothing was applied, and it is true.
    """
    async with served.clients() as clients:
        await clients.submit(read_wallet("a"), timeout_ms=PATIENT_MS)
        served.proxy.refuse()
        served.proxy.links[-1].cut()
        await until(lambda: not clients.statistics()[0].connected, "the loss")
        with pytest.raises(ShardUnavailable):
            await clients.submit(transfer("a", "b", 1, key="1"), timeout_ms=100)
        served.proxy.refuse(refused=False)
        await clients.submit(read_wallet("a"), timeout_ms=PATIENT_MS)
    assert (await read_journal(served.dsn)).balance("b") == 0


async def test_a_frame_for_another_epoch_is_refused_and_sent_again(served: Served):
    """
    The epoch moves under a standing connection: the shard applies nothing of a frame for the
    old one and names the new one, and the gateway's client sends the command again by itself.
    """
    async with served.clients() as clients, connected_peer(served.endpoint, SECRET) as peer:
        await clients.submit(read_wallet("a"), timeout_ms=PATIENT_MS)
        epoch = served.shard.store.epoch
        await execute(
            served.dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
            " current_database() AND application_name = 'miliano/shard-0/writer'",
        )
        await served.shard.ask(transfer("a", "b", 1, key="1"))
        assert served.shard.store.epoch == epoch + 1

        peer.send(transfer("a", "b", 1, key="stale"), epoch=epoch, frame_id=7)
        assert await peer.reply() == StaleEpoch(7, epoch + 1)
        result, _ = await clients.submit(transfer("a", "b", 1, key="2"), timeout_ms=PATIENT_MS)
        assert isinstance(result, Posted)
        assert result.balance == 998
    assert (await read_journal(served.dsn)).balance("b") == 2


async def test_an_impostor_is_sent_no_command(database: str, folder: Path):
    """
    A server at the published address that cannot prove the secret gets a proof that is of no
    use to it, and never a frame.
    """
    received: list[bytes] = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frames.with_length(secrets.token_bytes(frames.NONCE_BYTES)))
        await reader.readexactly(4 + frames.NONCE_BYTES + frames.PROOF_BYTES)
        writer.write(frames.with_length(secrets.token_bytes(frames.PROOF_BYTES)))
        received.append(await reader.read())
        writer.close()

    server = await asyncio.start_unix_server(pretend, folder / "impostor")
    clients = ShardClients([database], secret=SECRET, settings=GatewaySettings())
    try:
        await execute(
            database,
            "INSERT INTO shard (shard_id, epoch, endpoint)"
            f" VALUES (0, 1, 'unix:{folder}/impostor')",
        )
        await place_shards(await open_cluster([database]), 1)
        await clients.start()
        await until(lambda: clients.knows_slots, "the map that leads to the impostor")
        with pytest.raises(ShardUnavailable):
            await clients.submit(read_wallet("a"), timeout_ms=500)
        await until(lambda: len(received) > 1, "two attempts")
        assert set(received) == {b""}
    finally:
        await clients.stop()
        server.close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_a_peer_that_never_reads_is_cut_off(
    database: str, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """
    Replies pile up for a peer that asks and does not read: past the bound it is dropped; another
    peer is served before and after.
    """
    monkeypatch.setattr(shard_server, "UNSENT_BYTES_MAX", 100_000)
    async with owning(database) as shard:
        server = ShardServer(shard.shard, SECRET)
        if kind == "unix":
            await server.listen_unix(folder / "shard")
        else:
            await server.listen_tcp("127.0.0.1")
        await shard.ask(open_wallet("a"))
        async with (
            connected_peer(server.endpoint, SECRET) as greedy,
            connected_peer(server.endpoint, SECRET) as modest,
        ):
            reads = [read_wallet("a")] * 10_000
            asked = 0
            while not greedy.writer.is_closing() and asked < 100:
                asked += 1
                try:
                    greedy.send(*reads, epoch=shard.store.epoch, frame_id=asked)
                    await greedy.writer.drain()
                except ConnectionError:
                    break
                modest.send(read_wallet("a"), epoch=shard.store.epoch)
                await modest.reply()
            assert asked < 100
            modest.send(transfer("a", "b", 1, key="after"), epoch=shard.store.epoch)
            await modest.reply()
        server.close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_a_peer_that_says_nothing_is_dropped(
    database: str, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """
    Who has not proved the secret in time is hung up on; who has may be silent as long as it likes.
    """
    monkeypatch.setattr(shard_server, "HANDSHAKE_S_MAX", 0.2)
    async with owning(database) as shard:
        server = ShardServer(shard.shard, SECRET)
        if kind == "unix":
            await server.listen_unix(folder / "shard")
        else:
            await server.listen_tcp("127.0.0.1")
        async with (
            connected_peer(server.endpoint, SECRET) as known,
            connected_peer(server.endpoint) as silent,
            connected_peer(server.endpoint) as slow,
        ):
            slow.writer.write(b"\0\0\0\x40half a proof")
            nonce = 4 + frames.NONCE_BYTES
            assert len(await silent.read_to_the_end()) == nonce
            assert len(await slow.read_to_the_end()) == nonce
            known.send(read_wallet("a"), epoch=shard.store.epoch)
            await known.reply()
        server.close()
