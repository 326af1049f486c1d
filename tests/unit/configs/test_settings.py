"""
Goal: settings come from the file and the environment, and what does not fit is refused by name.
Method: a settings file of each test's own, and environments that are dicts.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from configs.settings import Settings, SettingsError, check_relations, load_settings
from processor.core.amounts import AMOUNT_MAX
from processor.core.commands import MoveMoney, TransferType
from processor.flow.frames import FRAME_BYTES_MAX, FRAME_COMMANDS_MAX, RequestFrame, encode


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "miliano.toml"


def load(file: Path, **environment: str) -> Settings:
    return load_settings({"MILIANO_CONFIG": str(file), **environment})


def test_the_environment_overrides_the_file(file: Path) -> None:
    """
    The nearest word counts: default, file, environment.
    """
    file.write_text("[gateway]\nport = 81\nhost = '::1'\n[currencies]\nXMI = 3\n")
    loaded = load(file, MILIANO_GATEWAY_PORT="82")
    assert (loaded.gateway.port, loaded.gateway.host) == (82, "::1")
    assert loaded.shard == Settings().shard
    assert loaded.currency_exponents["XMI"] == 3
    assert loaded.currency_exponents["EUR"] == 2


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[gateway]\nprot = 81\n", "prot"),
        ("[gateway]\nport = 'many'\n", "gateway.port"),
        ("[postgres]\ndurability = 'none'\n", "postgres.durability"),
        ("[gateway\n", "cannot read the settings file"),
    ],
)
def test_what_is_wrong_is_named(file: Path, text: str, named: str) -> None:
    """
    A slip of the pen stops the start and says where it is.
    """
    file.write_text(text)
    with pytest.raises(SettingsError, match=named):
        load(file)


def test_a_file_that_was_named_must_be_there(file: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read the settings file"):
        load(file)


def test_an_unknown_name_in_the_environment_is_refused(file: Path) -> None:
    file.write_text("")
    with pytest.raises(SettingsError, match="prot"):
        load(file, MILIANO_GATEWAY_PROT="81")


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("gateway", "batch_transfers_max", "20001"),
        ("gateway", "body_bytes_max", "1000000000"),
        ("shard", "batch_commands_max", "9999"),
        ("shard", "intake_commands_max", "9999"),
        ("gateway", "metadata_bytes_max", "3000"),
        ("gateway", "reference_chars_max", "1000"),
        ("payouts", "chunk_rows", "10001"),
        ("payouts", "chunk_rows", "0"),
        ("payouts", "retry_ms", "10001"),
        ("currencies", "XMI", "7"),
        ("cluster", "shards", "-1"),
        ("cluster", "shards", "257"),
        ("postgres", "embedded_databases", "0"),
        ("shard", "entries_in_flight_max", "0"),
        ("shard", "witness_ms", "0"),
    ],
)
def test_settings_have_to_fit_each_other(
    file: Path, section: str, setting: str, value: str
) -> None:
    """
    A bound that breaks another is refused at start, not met under load.
    """
    file.write_text(f"[{section}]\n{setting} = {value}\n")
    with pytest.raises(SettingsError, match=section):
        load(file)


def test_the_largest_frame_fits() -> None:
    """
    As many commands as a frame takes, each as large as the settings allow, are sent.
    """
    check_relations(Settings())
    gateway = Settings().gateway
    command = MoveMoney(
        TransferType.TRANSFER,
        bytes(16),
        bytes(16),
        "m" * 64,
        "s" * 64,
        "d" * 64,
        "EUR",
        AMOUNT_MAX,
        "\N{GRINNING FACE}" * gateway.reference_chars_max,
        "x" * gateway.metadata_bytes_max,
    )
    frame = RequestFrame(2**63, 2**31, 2**63, [command] * FRAME_COMMANDS_MAX)
    assert len(encode(frame)) <= FRAME_BYTES_MAX
    one = len(msgspec.msgpack.encode(command))
    assert one <= gateway.metadata_bytes_max + 4 * gateway.reference_chars_max + 400
