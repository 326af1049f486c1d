"""
What tests of shards with peers share.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import cluster_notices, peer_links, shard_memory, wallet_shard


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Look and try again sooner than in production; nothing that uses it depends on how soon.
    """
    monkeypatch.setattr(wallet_shard, "WATERMARK_POLL_S", 0.002)
    monkeypatch.setattr(wallet_shard, "RETRY_S", 0.002)
    monkeypatch.setattr(wallet_shard, "ALARM_LOOK_S_MAX", 0.002)
    monkeypatch.setattr(peer_links, "RECONNECT_S", 0.002)
    monkeypatch.setattr(peer_links, "RECONNECT_S_MAX", 0.02)
    monkeypatch.setattr(cluster_notices, "RETRY_S", 0.002)
    monkeypatch.setattr(shard_memory, "REFILL_S", 0.002)


@pytest.fixture
def folder() -> Iterator[Path]:
    """
    A folder whose path is short enough for sockets.
    """
    folder = Path(tempfile.mkdtemp(prefix="mil-"))
    yield folder
    shutil.rmtree(folder)
