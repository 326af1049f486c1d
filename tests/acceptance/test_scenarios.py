"""
Goal: the scenarios that the documentation names can be told, and end in the statements they say.
Method: each file by the runner on the session's ledger with two shards; and one that says something
        untrue. The runner as a command is tried with the documentation.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.run import main
from tests.support.ledger import ROOT, Ledger

SCENARIOS = sorted((ROOT / "examples" / "scenarios").glob("*.toml"))


@pytest.fixture(autouse=True)
def _the_ledger(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Point the runner at the session's ledger.
    """
    monkeypatch.setenv("MILIANO_URL", ledger.url)
    monkeypatch.setenv("MILIANO_KEY", ledger.key)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_it_ends_in_its_statements(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Every answer is as written, and each statement has an opening, its rows and a closing.
    """
    code = main([str(scenario)])
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.count("opening") == said.count("closing") >= 2


def test_there_is_one_for_each_product() -> None:
    """
    A merchant with fees, a marketplace, a gaming wallet, payroll.
    """
    assert len(SCENARIOS) == 4


@pytest.mark.parametrize(
    ("true", "untrue", "words"),
    [
        ("closing = 3500", "closing = 3501", "should be"),
        ('short_by" = 1', 'short_by" = 2', "short_by is 1 and should be 2"),
    ],
)
def test_what_is_not_so_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], true: str, untrue: str, words: str
) -> None:
    """
    A row or an answer that differs from what is written ends it with 1, and says where.
    """
    text = (ROOT / "examples/scenarios/merchant_with_fees.toml").read_text()
    assert true in text
    changed = tmp_path / "untrue.toml"
    changed.write_text(text.replace(true, untrue))
    assert main([str(changed)]) == 1
    said = capsys.readouterr().out
    assert "FAILED" in said
    assert words in said


@pytest.mark.parametrize("text", [None, "steps = ", 'title = "of nothing"'])
def test_what_is_no_scenario_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    """
    A file that is not there, not TOML, or lacks a part ends it with 2 before anything is asked.
    """
    file = tmp_path / "odd.toml"
    if text is not None:
        file.write_text(text)
    assert main([str(file)]) == 2
    assert "is no scenario" in capsys.readouterr().out
