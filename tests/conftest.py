"""
What every test may ask for: a real Postgres for the session, and a fresh database on it.

A test below `integration`, `cluster` or `acceptance` gets the marker of its folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from processor.storage.embedded_postgres import EmbeddedPostgres
from tests.support.databases import Databases
from tests.support.ledger import Ledger, running_ledger
from tests.support.running_gateway import SETTLED

MARKERS = {
    "integration": "needs a real Postgres (started here)",
    "cluster": "starts shards, gateways or Ray as processes of their own",
    "acceptance": "runs the whole product through its command line and HTTP",
}

# How long properties are searched: HYPOTHESIS_PROFILE chooses dev (the default), ci or night.
# No deadline: a busy machine is not a failure.
_COMMON = settings(deadline=None, print_blob=True)
settings.register_profile("dev", parent=_COMMON, max_examples=150)
settings.register_profile("ci", parent=_COMMON, max_examples=400)
settings.register_profile("night", parent=_COMMON, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_configure(config: pytest.Config) -> None:
    for marker, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{marker}: {meaning}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(tests).parts[0]
        if folder in MARKERS:
            item.add_marker(folder)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """
    One server for the whole session, in a folder of its own that goes with it.
    """
    folder = Path(tempfile.mkdtemp(prefix="miliano-"))
    try:
        with EmbeddedPostgres(folder / "pg") as server:
            yield server
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def databases(postgres_server: EmbeddedPostgres) -> Databases:
    """
    Make databases on the session's server: migrated copies in about 50 ms, or empty ones.
    """
    return Databases(postgres_server.dsn)


@pytest.fixture
def database(databases: Databases) -> Iterator[str]:
    """
    Give the DSN of a fresh, migrated database, dropped after the test.
    """
    with databases.migrated() as dsn:
        yield dsn


@pytest.fixture(scope="module")
def module_database(databases: Databases) -> Iterator[str]:
    """
    Give the DSN of one migrated database for all tests of a module.
    """
    with databases.migrated() as dsn:
        yield dsn


@pytest.fixture
def empty_database(databases: Databases) -> Iterator[str]:
    """
    Give the DSN of a fresh database without a schema.
    """
    with databases.empty() as dsn:
        yield dsn


@pytest.fixture(scope="session")
def ledger() -> Iterator[Ledger]:
    """
    Give one whole ledger with Ray for the session: `url`, `key`, `dsn`, and `run` for commands.

    It waits long for what is between its shards: a busy machine makes no test see 202.
    """
    with running_ledger(environment=SETTLED) as running:
        yield running
