"""
Putting a gateway together from the settings, and taking it apart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from configs.secret import read_secret
from configs.settings import Settings, SettingsError
from gateway.authentication import VerifiedKeys
from gateway.endpoint import Gateway
from gateway.health_watch import HealthWatch
from gateway.payout_opening import open_payouts
from gateway.shard_clients import ShardClients
from gateway.validation import Validation
from gateway.watermarks import Watermarks
from processor.storage.history import History
from processor.storage.key_store import KeyStore


def check_settings(settings: Settings) -> None:
    """
    Raise SettingsError when something is missing that only a gateway by itself needs.
    """
    if not settings.postgres.dsn:
        raise SettingsError("postgres.dsn is empty: a gateway by itself needs a database")
    read_secret(settings.cluster)


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """
    Open the pools and the shard clients; raises SettingsError or what `connect` raises.
    """
    postgres = settings.postgres
    timeout_ms = settings.gateway.request_timeout_ms
    async with AsyncExitStack() as parts:
        history = await History.open(
            postgres.dsns,
            connections_max=settings.gateway.history_connections_max,
            timeout_ms=timeout_ms,
        )
        parts.callback(history.close)
        key_store = await KeyStore.open(postgres.catalog_dsn, timeout_ms=timeout_ms)
        parts.callback(key_store.close)
        shards = ShardClients(
            postgres.dsns, secret=read_secret(settings.cluster), settings=settings.gateway
        )
        await shards.start()
        parts.push_async_callback(shards.stop)
        payouts = await parts.enter_async_context(open_payouts(settings, shards))
        yield Gateway(
            settings=settings,
            validation=Validation(settings),
            shards=shards,
            history=history,
            watermarks=Watermarks(history),
            health=HealthWatch(settings, shards, history),
            key_store=key_store,
            keys=VerifiedKeys(key_store),
            payouts=payouts,
        )
