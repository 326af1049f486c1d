"""
Every setting, its default and its bounds.

A TOML file (named by MILIANO_CONFIG, or ./miliano.toml when there) overrides the defaults, and
the environment overrides the file: MILIANO_GATEWAY_PORT sets [gateway] port. Unknown names are
errors. Relations between bounds are checked once, at start.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from configs.currencies import CURRENCY_EXPONENTS
from processor.flow.frames import FRAME_BYTES_MAX, FRAME_COMMANDS_MAX

ENVIRONMENT_PREFIX = "MILIANO_"
SHARDS_MAX = 256  # At the first start; more can be placed later.


class SettingsError(Exception):
    """
    The settings do not fit; the message names the setting and what it may be.
    """


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """
    One table of the settings file.
    """


class ClusterSettings(Section, frozen=True, kw_only=True):
    data_dir: str = ".miliano"
    socket_dir: str = ""  # Empty: chosen at start; Unix socket paths are short.
    runtime: Literal["ray", "process"] = "ray"
    shards: int = 0  # At the first start; 0: one for every four cores, at least one.
    ray_address: str = ""  # Empty: a one-node Ray of our own.
    secret: str = ""  # Empty: one is made and kept in the data folder.
    shard_host: str = ""  # Empty: Unix sockets; an address: TCP on it.


class PostgresSettings(Section, frozen=True, kw_only=True):
    # Empty: the embedded server in the data folder. Several, with spaces between them: shards are
    # spread over all, and the first has the catalog too.
    dsn: str = ""
    embedded_databases: int = 1  # Of the embedded server; shards are spread over them.
    binary_dir: str = ""
    durability: Literal["local", "quorum"] = "local"

    @property
    def dsns(self) -> list[str]:
        return self.dsn.split()

    @property
    def catalog_dsn(self) -> str:
        return self.dsns[0] if self.dsn else ""


class ShardSettings(Section, frozen=True, kw_only=True):
    intake_commands_max: int = 50_000
    batch_commands_max: int = 20_000
    keys_recent_max: int = 50_000
    wallets_max: int = 2_000_000
    counts_max: int = 50_000  # Holds that have ended, and totals of refunds, that memory keeps.
    lag_records_max: int = 20_000
    lag_commands_max: int = 1_000_000
    append_stuck_ms: int = 5_000
    entries_in_flight_max: int = 8_000  # Sent to one peer and not answered.
    witness_ms: int = 1_000  # How often the other databases are told how far the journal is.


class WriteBehindSettings(Section, frozen=True, kw_only=True):
    records_max: int = 256
    commands_max: int = 20_000
    pause_ms: int = 25  # Between rounds; histories are late by this much.
    pause_ms_max: int = 200


class GatewaySettings(Section, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: int = 8080
    request_timeout_ms: int = 5_000
    body_bytes_max: int = 8 * 1024 * 1024
    arrival_timeout_ms: int = 30_000  # From the first byte of a request to its last.
    held_bodies_bytes_max: int = 256 * 1024 * 1024  # Of all bodies that arrive in parts.
    history_connections_max: int = 8
    batch_transfers_max: int = 10_000
    reference_chars_max: int = 140
    metadata_bytes_max: int = 1_024
    page_size_max: int = 1_000
    frames_in_flight_max: int = 8
    queued_commands_max: int = 50_000
    settlement_wait_ms: int = 250  # For a transfer to another shard, before it is told as pending.


class PayoutSettings(Section, frozen=True, kw_only=True):
    rows_max: int = 1_000_000
    file_bytes_max: int = 128 * 1024 * 1024
    chunk_rows: int = 500
    chunks_in_flight_max: int = 2
    uploads_max: int = 2
    poll_ms: int = 2_000
    retry_ms: int = 100
    retry_ms_max: int = 10_000


class Settings(Section, frozen=True, kw_only=True):
    cluster: ClusterSettings = ClusterSettings()
    postgres: PostgresSettings = PostgresSettings()
    shard: ShardSettings = ShardSettings()
    write_behind: WriteBehindSettings = WriteBehindSettings()
    gateway: GatewaySettings = GatewaySettings()
    payouts: PayoutSettings = PayoutSettings()
    currencies: dict[str, int] = {}  # More than ISO 4217: code to exponent.

    @property
    def currency_exponents(self) -> Mapping[str, int]:
        return {**CURRENCY_EXPONENTS, **self.currencies}


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """
    Read the settings file and the environment; raises SettingsError.
    """
    environment = os.environ if environment is None else environment
    named = environment.get("MILIANO_CONFIG")
    path = Path(named or "miliano.toml")
    tables: dict[str, Any] = {}
    if named or path.exists():
        try:
            tables = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"cannot read the settings file {path}: {error}") from error
    _override(tables, environment)
    try:
        settings = msgspec.convert(tables, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path if named else 'settings'}: {error}") from error
    check_relations(settings)
    return settings


def _override(tables: dict[str, Any], environment: Mapping[str, str]) -> None:
    sections = [
        field.name
        for field in msgspec.structs.fields(Settings)
        if isinstance(field.type, type) and issubclass(field.type, Section)
    ]
    for section in sections:
        prefix = f"{ENVIRONMENT_PREFIX}{section.upper()}_"
        for name, value in environment.items():
            if name.startswith(prefix):
                tables.setdefault(section, {})[name.removeprefix(prefix).lower()] = value


def _command_bytes_max(gateway: GatewaySettings) -> int:
    # A character of a reference is four bytes at most; ids, key and numbers are less than 400.
    return gateway.metadata_bytes_max + 4 * gateway.reference_chars_max + 400


def check_relations(settings: Settings) -> None:
    """
    Raise SettingsError where two settings do not fit each other.
    """
    shard, gateway = settings.shard, settings.gateway
    rules = [
        (
            0 <= settings.cluster.shards <= SHARDS_MAX,
            f"cluster.shards must be at most {SHARDS_MAX}; 0 is by the number of cores",
        ),
        (
            settings.postgres.embedded_databases >= 1,
            "postgres.embedded_databases must be at least 1",
        ),
        (
            min(shard.entries_in_flight_max, shard.witness_ms) >= 1,
            "shard.entries_in_flight_max and shard.witness_ms must be at least 1",
        ),
        (
            gateway.batch_transfers_max <= shard.batch_commands_max,
            "gateway.batch_transfers_max must not exceed shard.batch_commands_max",
        ),
        (
            gateway.body_bytes_max <= gateway.held_bodies_bytes_max,
            "gateway.body_bytes_max must not exceed gateway.held_bodies_bytes_max",
        ),
        (
            gateway.batch_transfers_max <= FRAME_COMMANDS_MAX <= shard.intake_commands_max,
            f"gateway.batch_transfers_max <= {FRAME_COMMANDS_MAX} <= shard.intake_commands_max",
        ),
        (
            FRAME_COMMANDS_MAX * _command_bytes_max(gateway) <= FRAME_BYTES_MAX,
            (
                f"{FRAME_COMMANDS_MAX} commands with gateway.metadata_bytes_max and "
                f"gateway.reference_chars_max must fit into a frame of {FRAME_BYTES_MAX} bytes"
            ),
        ),
        (
            shard.batch_commands_max <= shard.intake_commands_max,
            "shard.batch_commands_max must not exceed shard.intake_commands_max",
        ),
        (
            settings.payouts.chunk_rows <= gateway.batch_transfers_max,
            "payouts.chunk_rows must not exceed gateway.batch_transfers_max",
        ),
        (
            min(msgspec.structs.astuple(settings.payouts)) >= 1,
            "payouts: every setting must be at least 1",
        ),
        (
            settings.payouts.retry_ms <= settings.payouts.retry_ms_max,
            "payouts.retry_ms must not exceed payouts.retry_ms_max",
        ),
        (
            all(0 <= exponent <= 6 for exponent in settings.currencies.values()),
            "currencies: an exponent must be between 0 and 6",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise SettingsError(message)
