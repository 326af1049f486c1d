"""
One ledger for the session, with a gateway process in front, and two merchants.

Whoever stops or kills a part takes `own_stack` instead.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.databases import Databases
from tests.support.merchant import Merchant
from tests.support.running_gateway import SETTLED, RunningGateway, running_gateway
from tests.support.stack import Stack, running_stack


@pytest.fixture(scope="session")
def gateway(databases: Databases) -> Iterator[RunningGateway]:
    """
    Give a running gateway that nobody stops.
    """
    with (
        databases.migrated() as dsn,
        running_stack(dsn) as stack,
        running_gateway(stack, **SETTLED) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def acme(gateway: RunningGateway) -> Iterator[Merchant]:
    """
    Give a merchant whose key may do everything.
    """
    merchant = Merchant(gateway.url, gateway.key("acme"))
    yield merchant
    merchant.close()


@pytest.fixture(scope="session")
def globex(gateway: RunningGateway) -> Iterator[Merchant]:
    """
    Give another merchant.
    """
    merchant = Merchant(gateway.url, gateway.key("globex"))
    yield merchant
    merchant.close()


@pytest.fixture
def own_stack(database: str) -> Iterator[Stack]:
    """
    Give a ledger of the test's own, to break.
    """
    with running_stack(database) as stack:
        yield stack
