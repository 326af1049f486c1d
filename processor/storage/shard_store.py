"""
The durable side of one shard in Postgres: ownership, the fenced append, and recovery.

Rule 1: one epoch = one connection = one append in flight. An epoch is never used on a second
        connection; a new connection takes a new epoch first.
Rule 2: an append is one autocommit statement that locks the shard's row FOR SHARE, so it and a
        takeover's UPDATE wait for each other, and the loser inserts nothing.
Rule 3: only the tag "INSERT 0 1" without any warning means durable. "INSERT 0 0" means fenced.
        Everything else is doubt, and doubt is settled by a new epoch, never by a guess.
Rule 4: the statement has no timeout and nobody cancels it: a cancel could turn a replicated
        commit into a local one that is reported as success.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import asyncpg

from processor.core.hold import Hold, RefundTotal
from processor.core.record import Record
from processor.core.state import Remembered
from processor.core.wallet import Wallet
from processor.flow.ports import AppendInDoubt, Fenced, ShardHalted, StoreUnavailable
from processor.storage.connection import Durability, given_up_on
from processor.storage.count_rows import (
    each_hold_once,
    each_total_once,
    holds_named,
    refunds_named,
)
from processor.storage.every_database import EveryDatabase
from processor.storage.outcomes import key_pages, outcomes_under
from processor.storage.recovery_view import PROJECTION, PostgresRecoveryView
from processor.storage.session import STORE_ERRORS, Session, connected
from processor.storage.wallet_rows import WALLETS, WALLETS_OF_SLOT, wallet_from_row

ENDPOINT_CHANNEL = "miliano_endpoint"
JOURNAL_PARTITION_RECORDS = 1_000_000
KEY_PAGE_ROWS = 5_000
TAIL_PAGE_RECORDS = 200
LOCK_TIMEOUT_MS = 3_000
PAGE_S_MAX = 60.0
BUMP_S_MAX = 15.0  # A server that does not answer for so long is given up on.

_CLAIM = """
    INSERT INTO shard (shard_id, epoch, build) VALUES ($1, 0, $2)
    ON CONFLICT (shard_id) DO NOTHING
"""

_TAKE_OVER = """
    UPDATE shard
       SET epoch = epoch + 1, endpoint = NULL, pid = NULL, build = $2, changed_at = now()
     WHERE shard_id = $1 AND state = 'active'
    RETURNING epoch
"""

# Only from one's own epoch: a fenced owner must never take the shard back.
_REACQUIRE = """
    UPDATE shard SET epoch = epoch + 1, endpoint = NULL, changed_at = now()
     WHERE shard_id = $1 AND epoch = $2 AND state = 'active'
    RETURNING epoch
"""

# The CTE locks the row a takeover updates. READ COMMITTED looks at the row again after the
# wait, so an append that lost sees the new epoch and inserts nothing.
APPEND = """
    WITH own AS (
        SELECT 1 FROM shard
         WHERE shard_id = $1 AND epoch = $3 AND state = 'active'
           FOR SHARE
    )
    INSERT INTO journal (shard_id, sequence, epoch, at_us, count, format, chain, payload)
    SELECT $1, $2, $3, $4, $5, $6, $7, $8 FROM own
"""

_CHAIN_AT = "SELECT chain FROM journal WHERE shard_id = $1 AND sequence = $2"

_CHECK_FENCE = "SELECT 1 FROM shard WHERE shard_id = $1 AND epoch = $2 AND state = 'active'"

_PUBLISH = """
    WITH published AS (
        UPDATE shard SET endpoint = $3, pid = $4, changed_at = now()
         WHERE shard_id = $1 AND epoch = $2 AND state = 'active'
        RETURNING shard_id
    )
    SELECT pg_notify($5, shard_id::text) FROM published
"""

# Whoever owns nothing, as the write-behind, halts whoever owns the shard. An owner halts itself
# only: its reasons are about a state that its successor does not have.
_HALT = """
    UPDATE shard SET state = 'halted', halted_for = $2, endpoint = NULL, changed_at = now()
     WHERE shard_id = $1 AND ($3::bigint = 0 OR epoch = $3)
    RETURNING epoch
"""

# A predecessor that is gone can leave a backend that still holds the row.
_END_PREDECESSORS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
     WHERE application_name LIKE $1 || '/%' AND datname = current_database()
       AND pid <> pg_backend_pid()
"""


class PostgresShardStore:
    """
    Keeps the promises of `ShardStore` in Postgres.

    *dsn* names the database the shard lives in, *other_dsns* the other databases of the cluster;
    *durability* is checked on every connection that writes.
    """

    def __init__(
        self,
        dsn: str,
        shard_id: int,
        *,
        durability: Durability = "local",
        other_dsns: Sequence[str] = (),
    ) -> None:
        self.epoch = 0
        self._dsn = dsn
        self._shard_id = shard_id
        self._durability = durability
        self._application = f"miliano/shard-{shard_id}"
        self._durable: tuple[int, bytes] | None = None  # The last own record, with its chain.
        self._writer: asyncpg.Connection | None = None
        self._writer_warned = False
        self._reader = Session(dsn, f"{self._application}/reader")
        self._everywhere = EveryDatabase(
            shard_id, self._reader, other_dsns, f"{self._application}/keys"
        )
        self._partition_ready = -1

    async def take_over(self, *, build: str) -> int:
        self.abandon()
        self._durable = None
        connection = await self._connect_writer()
        try:
            with given_up_on(connection, BUMP_S_MAX):
                await connection.execute(_CLAIM, self._shard_id, build)
                self.epoch = await self._bump(connection, build)
        except STORE_ERRORS as error:
            connection.terminate()
            raise StoreUnavailable(f"takeover failed: {error}") from error
        except BaseException:
            connection.terminate()
            raise
        self._writer = connection
        return self.epoch

    async def _bump(self, connection: asyncpg.Connection, build: str) -> int:
        await connection.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
        try:
            epoch = await connection.fetchval(_TAKE_OVER, self._shard_id, build)
        except asyncpg.LockNotAvailableError:
            await connection.execute(_END_PREDECESSORS, self._application)
            epoch = await connection.fetchval(_TAKE_OVER, self._shard_id, build)
        await connection.execute("SET lock_timeout = 0")
        if self._writer_warned:
            raise StoreUnavailable("the new epoch may not be replicated")
        if epoch is None:
            reason = await connection.fetchval(
                "SELECT halted_for FROM shard WHERE shard_id = $1", self._shard_id
            )
            raise ShardHalted(reason or "halted by hand")
        return int(epoch)

    @asynccontextmanager
    async def recovery_view(self) -> AsyncIterator[PostgresRecoveryView]:
        connection = await connected(self._dsn, f"{self._application}/reader")
        try:
            # One snapshot, taken after the bump committed: nothing older can still arrive.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                with given_up_on(connection, PAGE_S_MAX):
                    view = await PostgresRecoveryView.open(connection, self._shard_id)
                yield view
        except STORE_ERRORS as error:
            raise StoreUnavailable(f"recovery read failed: {error}") from error
        finally:
            connection.terminate()

    async def append(self, record: Record) -> None:
        if self._writer is None:
            raise AppendInDoubt("no connection")
        assert record.epoch == self.epoch, "a record of another epoch"
        self._writer_warned = False
        try:
            tag = await self._writer.execute(
                APPEND,
                record.shard_id,
                record.sequence,
                record.epoch,
                record.at_us,
                record.count,
                record.format,
                record.chain,
                record.payload,
            )
        except STORE_ERRORS as error:
            raise AppendInDoubt(f"{type(error).__name__}: {error}") from error
        if tag == "INSERT 0 0":
            raise Fenced(f"epoch {self.epoch} of shard {self._shard_id} is over")
        if tag != "INSERT 0 1" or self._writer_warned:
            raise AppendInDoubt(f"the server answered {tag!r} with a warning")
        self._durable = (record.sequence, record.chain)

    async def settle(self, record: Record) -> bool:
        await self._reacquire()
        assert self._writer is not None
        # A statement after the bump's commit: the old backend held the row until its own end,
        # so the fate of its insert is decided and visible here.
        try:
            with given_up_on(self._writer, BUMP_S_MAX):
                chain = await self._writer.fetchval(_CHAIN_AT, self._shard_id, record.sequence)
        except STORE_ERRORS as error:
            raise StoreUnavailable(f"settle failed: {error}") from error
        if chain is not None and chain != record.chain:
            raise Fenced(f"sequence {record.sequence} was written by somebody else")
        if chain is not None:
            self._durable = (record.sequence, record.chain)
        return chain is not None

    async def _reacquire(self) -> None:
        self.abandon()
        connection = await self._connect_writer()
        try:
            with given_up_on(connection, BUMP_S_MAX):
                epoch = await connection.fetchval(_REACQUIRE, self._shard_id, self.epoch)
            if self._writer_warned:
                raise Fenced("the new epoch may not be replicated")
        except STORE_ERRORS as error:
            connection.terminate()
            # The bump itself may have committed; then the row has our epoch + 1 and no other
            # owner can be told from us. Ending the process is the only safe answer.
            raise Fenced(f"ownership is in doubt: {error}") from error
        except Fenced:
            connection.terminate()
            raise
        if epoch is None:
            connection.terminate()
            raise Fenced(f"epoch {self.epoch} of shard {self._shard_id} is over")
        self.epoch = int(epoch)
        try:
            await self._check_past(connection)
        except BaseException:
            connection.terminate()
            raise
        self._writer = connection

    async def _check_past(self, connection: asyncpg.Connection) -> None:
        """
        Check that a server met anew still has what was durable: it may have been set back, by a
        restore or a failover, and nobody may append behind a hole. Raises Fenced, or
        StoreUnavailable when it did not say.
        """
        if self._durable is None:
            return
        sequence, expected = self._durable
        try:
            with given_up_on(connection, BUMP_S_MAX):
                chain = await connection.fetchval(_CHAIN_AT, self._shard_id, sequence)
        except STORE_ERRORS as error:
            raise StoreUnavailable(f"the past was not checked: {error}") from error
        if chain != expected:
            raise Fenced(f"the journal was set back: it lacks sequence {sequence} as it was")

    async def check_fence(self) -> None:
        if self._writer is None:
            raise AppendInDoubt("no connection")
        try:
            own = await self._writer.fetchval(_CHECK_FENCE, self._shard_id, self.epoch)
        except STORE_ERRORS as error:
            raise AppendInDoubt(f"{type(error).__name__}: {error}") from error
        if own is None:
            raise Fenced(f"epoch {self.epoch} of shard {self._shard_id} is over")

    async def restore_connection(self) -> None:
        """
        Replace a broken connection when no append is in doubt; moves to a new epoch.
        """
        await self._reacquire()

    def abandon(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.terminate()

    async def load_wallets(self, wallet_ids: Iterable[str]) -> list[Wallet]:
        rows = await self._reader.fetch(WALLETS, self._shard_id, list(wallet_ids))
        return [wallet_from_row(row) for row in rows]

    async def load_holds(
        self, hold_ids: Iterable[bytes], *, everywhere: bool = False
    ) -> list[Hold]:
        asked = list(hold_ids)
        if everywhere:
            return each_hold_once(await self._everywhere.holds_named(asked))
        return await holds_named(self._reader, asked, self._shard_id)

    async def load_refunds(
        self, transfer_ids: Iterable[bytes], *, everywhere: bool = False
    ) -> list[RefundTotal]:
        asked = list(transfer_ids)
        if everywhere:
            return each_total_once(asked, await self._everywhere.refunds_named(asked))
        return each_total_once(asked, await refunds_named(self._reader, asked, self._shard_id))

    async def load_slot(self, slot: int) -> list[Wallet]:
        rows = await self._reader.fetch(WALLETS_OF_SLOT, self._shard_id, slot)
        return [wallet_from_row(row) for row in rows]

    async def load_keys(
        self, keys: Iterable[bytes], *, everywhere: bool = False
    ) -> list[Remembered]:
        asked = list(keys)
        if everywhere:
            return await self._everywhere.outcomes_under(asked)
        return await outcomes_under(self._reader, asked, self._shard_id)

    async def key_pages(self, *, everywhere: bool = False) -> AsyncIterator[list[bytes]]:
        if everywhere:
            async for page in self._everywhere.key_pages():
                yield page
            return
        connection = await connected(self._dsn, f"{self._application}/keys")
        try:
            async for page in key_pages(connection, self._shard_id):
                yield page
        finally:
            connection.terminate()

    async def chain_at(self, sequence: int) -> bytes | None:
        rows = await self._reader.fetch(_CHAIN_AT, self._shard_id, sequence)
        return rows[0]["chain"] if rows else None

    async def read_watermark(self) -> int:
        rows = await self._reader.fetch(
            "SELECT sequence FROM watermark WHERE shard_id = $1 AND projection = $2",
            self._shard_id,
            PROJECTION,
        )
        return int(rows[0][0]) if rows else 0

    async def publish(self, *, endpoint: str, pid: int) -> None:
        rows = await self._reader.fetch(
            _PUBLISH, self._shard_id, self.epoch, endpoint, pid, ENDPOINT_CHANNEL
        )
        if not rows:
            raise Fenced(f"epoch {self.epoch} of shard {self._shard_id} is over")

    async def halt(self, reason: str) -> None:
        rows = await self._reader.fetch(_HALT, self._shard_id, reason, self.epoch)
        if not rows and self.epoch:
            raise Fenced(f"epoch {self.epoch} of shard {self._shard_id} is over")

    async def prepare_journal(self, sequence: int) -> None:
        last = (sequence + JOURNAL_PARTITION_RECORDS) // JOURNAL_PARTITION_RECORDS
        for index in range(sequence // JOURNAL_PARTITION_RECORDS, last + 1):
            if index > self._partition_ready:
                await self._make_partition(index)
                self._partition_ready = index

    async def _make_partition(self, index: int) -> None:
        name = f"journal_{index}"
        if await self._reader.fetch("SELECT 1 WHERE to_regclass($1) IS NOT NULL", name):
            return
        low = index * JOURNAL_PARTITION_RECORDS
        # Attaching takes a weaker lock than creating in place: appends go on meanwhile.
        script = f"""
            CREATE TABLE {name} (LIKE journal INCLUDING DEFAULTS INCLUDING CONSTRAINTS
                                 INCLUDING STORAGE);
            ALTER TABLE journal ATTACH PARTITION {name}
                FOR VALUES FROM ({low}) TO ({low + JOURNAL_PARTITION_RECORDS})
        """
        await self._reader.call(lambda reader: reader.execute(script))

    async def close(self) -> None:
        self.abandon()
        self._reader.close()
        self._everywhere.close()

    def _warned(self, _connection: object, message: asyncpg.PostgresLogMessage) -> None:
        # A synchronous-replication wait that is cancelled ends as success with a warning.
        if message.severity_en == "WARNING":
            self._writer_warned = True

    async def _connect_writer(self) -> asyncpg.Connection:
        connection = await connected(self._dsn, f"{self._application}/writer", self._durability)
        self._writer_warned = False
        connection.add_log_listener(self._warned)
        return connection
