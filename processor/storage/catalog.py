"""
The catalog: which databases a cluster has, and which shard lives in which of them.

It is in the first database. Every database has the same tables and knows its cluster.

Rule 1: databases are opened as a whole: each of the cluster is given once, and none of another.
        Two ledgers in one would each be missing half of its money.
Rule 2: only an empty database is adopted, so nothing that holds money changes its cluster.
Rule 3: a shard stays where it was placed, for ever.
What changes here does so in one transaction of the catalog, one at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec

from processor.core.slots import SLOT_COUNT, SlotMap
from processor.flow.ports import StoreUnavailable
from processor.storage.connection import SilentRollback, committed
from processor.storage.session import STORE_ERRORS, connected
from processor.storage.slot_map import SLOTS_CHANNEL, slots_on

APPLICATION = "miliano/catalog"
SHARDS_CHANNEL = "miliano_shards"  # Notified when a shard is placed.
CATALOG_LOCK = 0x6D696C63617461  # "milcata"

_IDENTITY = """
    SELECT cluster_id, database_id, catalog_id,
           EXISTS (SELECT FROM shard) OR EXISTS (SELECT FROM journal)
               OR EXISTS (SELECT FROM merchants) AS has_data
      FROM cluster
"""

_PLACEMENTS = """
    SELECT shard_id, database_id, first_slot, last_slot FROM placement ORDER BY shard_id
"""

_PLACE = (
    "INSERT INTO placement (shard_id, database_id, first_slot, last_slot) VALUES ($1, $2, $3, $4)"
)

_FIRST_SLOTS = """
    INSERT INTO slot_map (slot, shard_id, generation)
    SELECT slot, $1, 1 FROM generate_series($2::int, $3::int) AS slot
"""


class ForeignDatabase(Exception):
    """
    The databases are not those of one cluster; `str` says which is wrong and what to do.
    """


class Database(msgspec.Struct, frozen=True):
    """
    One database of the cluster, and how to reach it.
    """

    database_id: bytes
    dsn: str


class Placement(msgspec.Struct, frozen=True):
    """
    Where a shard lives, and the slots it begins with, if any; *database_number* counts the DSNs.
    """

    shard_id: int
    database_id: bytes
    database_number: int
    dsn: str
    first_slot: int | None
    last_slot: int | None


class _Identity(msgspec.Struct, frozen=True):
    """
    What a database says of itself.
    """

    cluster_id: bytes
    database_id: bytes
    catalog_id: bytes | None
    has_data: bool


# --- Opening --------------------------------------------------------------------------------------


async def open_cluster(dsns: Sequence[str]) -> list[Database]:
    """
    Check that these are the databases of one cluster, adopt those that are new, and return them.

    The first has the catalog, or will have it. Raises ForeignDatabase, and then nothing has
    changed, or StoreUnavailable.
    """
    async with AsyncExitStack() as stack:
        catalog = await stack.enter_async_context(_catalog_of(dsns[0]))
        others = [await stack.enter_async_context(_connection_to(dsn)) for dsn in dsns[1:]]
        identities = [await _identity_of(connection) for connection in (catalog, *others)]
        registered = await _registered(catalog)
        _check_identities(dsns, identities, registered)
        own = identities[0]
        for connection in others:
            await connection.execute(
                "UPDATE cluster SET cluster_id = $1, catalog_id = $2"
                " WHERE catalog_id IS DISTINCT FROM $2",
                own.cluster_id,
                own.database_id,
            )
        await catalog.execute(
            "UPDATE cluster SET catalog_id = database_id WHERE catalog_id IS NULL"
        )
        await catalog.executemany(
            "INSERT INTO database (database_id) VALUES ($1) ON CONFLICT DO NOTHING",
            [(identity.database_id,) for identity in identities],
        )
    return [
        Database(identity.database_id, dsn) for identity, dsn in zip(identities, dsns, strict=True)
    ]


def _check_identities(
    dsns: Sequence[str], identities: list[_Identity], registered: set[bytes]
) -> None:
    names = [_name_of(number, dsn) for number, dsn in enumerate(dsns, 1)]
    by_id: dict[bytes, str] = {}
    for name, identity in zip(names, identities, strict=True):
        twin = by_id.setdefault(identity.database_id, name)
        if twin is not name:
            raise ForeignDatabase(
                f"{name} is the same as {twin}, or a copy of it: give every database once"
            )
    catalog = identities[0]
    if catalog.catalog_id not in (None, catalog.database_id):
        first = by_id.get(catalog.catalog_id or b"", "the one that is missing here")
        raise ForeignDatabase(
            f"{names[0]} does not have the catalog of its cluster: give {first} first"
        )
    for name, identity in zip(names[1:], identities[1:], strict=True):
        _check_belongs(name, identity, catalog, registered)
    missing = registered - by_id.keys()
    if missing:
        listed = ", ".join(sorted(database_id.hex() for database_id in missing))
        raise ForeignDatabase(
            f"the cluster has {len(registered)} databases, and {len(missing)} of them are not "
            f"among the DSNs: give those of all (missing by their database_id: {listed})"
        )


def _check_belongs(
    name: str, identity: _Identity, catalog: _Identity, registered: set[bytes]
) -> None:
    """
    Raise ForeignDatabase unless the database is the cluster's or an empty one of nobody's.
    """
    if identity.cluster_id == catalog.cluster_id:
        if identity.has_data and identity.database_id not in registered:
            raise ForeignDatabase(
                f"{name} has data of this cluster, whose catalog does not know it: the catalog "
                "was set back; restore the newer one"
            )
    elif identity.catalog_id is not None or identity.has_data:
        raise ForeignDatabase(
            f"{name} belongs to another cluster: give an empty database instead"
            + ("" if registered else ", or give that one first if it is your ledger")
        )


def _name_of(number: int, dsn: str) -> str:
    # Never the whole DSN: it may have a password.
    return f"database {number} ({urlsplit(dsn).path.removeprefix('/')!r})"


# --- Shards ---------------------------------------------------------------------------------------


async def place_shards(databases: Sequence[Database], shard_count: int) -> list[Placement]:
    """
    Place the first *shard_count* shards, if none is placed yet, and return all that are.

    The slots are spread over them evenly. A ledger from before there was a catalog stays one
    shard with all slots.
    """
    assert 1 <= shard_count <= SLOT_COUNT, "a slot for each shard, at least"
    async with _catalog_of(databases[0].dsn) as catalog:
        if not await catalog.fetchval("SELECT EXISTS (SELECT FROM placement)"):
            if await _is_undivided(databases):
                shard_count = 1
            await _place_first(catalog, databases, shard_count)
        return await _placements_on(catalog, databases)


async def _is_undivided(databases: Sequence[Database]) -> bool:
    """
    Say whether there is a ledger of one shard already; raises ForeignDatabase for any other.
    """
    found = []
    for number, database in enumerate(databases):
        async with _connection_to(database.dsn) as connection:
            rows = await connection.fetch("SELECT shard_id FROM shard")
        found += [(number, row["shard_id"]) for row in rows]
    if found in ([], [(0, 0)]):
        return bool(found)
    listed = ", ".join(str(shard_id) for _, shard_id in sorted(found))
    raise ForeignDatabase(
        f"there are shards ({listed}), and the catalog has not placed them: it was set back; "
        "restore the newer one"
    )


async def _place_first(
    catalog: asyncpg.Connection[Any], databases: Sequence[Database], shard_count: int
) -> None:
    first_map = SlotMap.even(shard_count)
    for shard_id in range(shard_count):
        slots = first_map.slots_of(shard_id)
        home = databases[shard_id % len(databases)]
        await catalog.execute(_PLACE, shard_id, home.database_id, slots[0], slots[-1])
        await catalog.execute(_FIRST_SLOTS, shard_id, slots[0], slots[-1])
    await _notify(catalog)


async def place_shard(databases: Sequence[Database], database_id: bytes | None = None) -> Placement:
    """
    Place one more shard, without slots, in the database with the fewest or in that of
    *database_id*.
    """
    async with _catalog_of(databases[0].dsn) as catalog:
        placed = await _placements_on(catalog, databases)
        homes = [placement.database_id for placement in placed]
        if database_id is None:
            ids = [database.database_id for database in databases]
            database_id = min(ids, key=homes.count)
        shard_id = max((placement.shard_id for placement in placed), default=-1) + 1
        await catalog.execute(_PLACE, shard_id, database_id, None, None)
        await _notify(catalog)
        return (await _placements_on(catalog, databases))[-1]


async def read_placements(databases: Sequence[Database]) -> list[Placement]:
    """
    List every shard of the cluster; raises StoreUnavailable.
    """
    async with _connection_to(databases[0].dsn) as catalog:
        return await _placements_on(catalog, databases)


async def dsn_of(dsns: Sequence[str], shard_id: int) -> str:
    """
    Find the database of a shard; raises ForeignDatabase when it is not among *dsns*.
    """
    async with _connection_to(dsns[0]) as catalog:
        home = await catalog.fetchval(
            "SELECT database_id FROM placement WHERE shard_id = $1", shard_id
        )
    if home is None:
        raise ForeignDatabase(f"shard {shard_id} is not placed in any database")
    unavailable: StoreUnavailable | None = None
    for dsn in dsns:
        try:
            async with _connection_to(dsn) as connection:
                if (await _identity_of(connection)).database_id == home:
                    return dsn
        except StoreUnavailable as error:
            unavailable = error  # It need not be the one that is looked for.
    if unavailable is not None:
        raise unavailable
    raise ForeignDatabase(f"the database {home.hex()} of shard {shard_id} is not among the DSNs")


async def read_slot_map(catalog_dsn: str) -> SlotMap:
    """
    Read where each slot was last seen; raises StoreUnavailable.
    """
    async with _connection_to(catalog_dsn) as catalog:
        return await slots_on(catalog)


async def _placements_on(
    catalog: asyncpg.Connection[Any], databases: Sequence[Database]
) -> list[Placement]:
    numbers = {database.database_id: number for number, database in enumerate(databases)}
    placements = []
    for shard_id, database_id, first_slot, last_slot in await catalog.fetch(_PLACEMENTS):
        number = numbers[database_id]
        placements.append(
            Placement(
                *(shard_id, database_id, number, databases[number].dsn), first_slot, last_slot
            )
        )
    return placements


async def _notify(catalog: asyncpg.Connection[Any]) -> None:
    await catalog.execute(
        "SELECT pg_notify($1, ''), pg_notify($2, '')", SHARDS_CHANNEL, SLOTS_CHANNEL
    )


# --- Connections ----------------------------------------------------------------------------------


@asynccontextmanager
async def _connection_to(dsn: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """
    Connect for the length of a block, which raises StoreUnavailable.
    """
    connection = await connected(dsn, APPLICATION)
    try:
        yield connection
    except (*STORE_ERRORS, SilentRollback) as error:
        raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
    finally:
        connection.terminate()


@asynccontextmanager
async def _catalog_of(dsn: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """
    Be the only one who changes the catalog, in a transaction of the length of a block.
    """
    async with _connection_to(dsn) as connection, committed(connection):
        await connection.execute("SELECT pg_advisory_xact_lock($1)", CATALOG_LOCK)
        yield connection


async def _identity_of(connection: asyncpg.Connection[Any]) -> _Identity:
    row = await connection.fetchrow(_IDENTITY)
    assert row is not None, "every migrated database has the row"
    return _Identity(*row)


async def _registered(catalog: asyncpg.Connection[Any]) -> set[bytes]:
    return {row["database_id"] for row in await catalog.fetch("SELECT database_id FROM database")}
