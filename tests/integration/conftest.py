"""
What tests of the database share: plain logs, and a server behind a proxy that can fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import structlog

from tests.support.tcp_proxy import TcpProxy, proxied_postgres


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """
    Log what runs in the tests' own process without the values of all variables, which take
    longer to draw than most tests.
    """
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f"),
            renderer,
        ]
    )


@pytest.fixture
def proxied(database: str) -> Iterator[tuple[TcpProxy, str]]:
    # A Unix socket's path is short.
    with (
        TemporaryDirectory(prefix="mil-") as folder,
        proxied_postgres(database, Path(folder)) as both,
    ):
        yield both
