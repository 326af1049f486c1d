"""
Goal: every command that the documentation shows does what it says.
Method: the console blocks of the README and of docs/, in order, in a shell on the session's ledger;
        only the address and the folder are those of that ledger.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ledger import ROOT, Ledger

PAGES = [
    "README.md",
    "docs/histories.md",
    "docs/limits.md",
    "docs/money.md",
    "docs/payouts.md",
    "docs/operating/clock-jumped.md",
    "docs/operating/growing.md",
    "docs/operating/linked-transfer-open.md",
]
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def commands_of(page: str) -> list[str]:
    """
    List the commands of a page; a line that ends with a backslash goes on in the next.
    """
    blocks = "".join(BLOCK.findall((ROOT / page).read_text())).replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in blocks.splitlines() if line.startswith("$ ")]


def test_every_page_with_commands_is_tried() -> None:
    """
    A page that shows commands stands in the list above.
    """
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {str(page.relative_to(ROOT)) for page in pages if commands_of(str(page))}
    assert shown == set(PAGES)


def test_commands_work(ledger: Ledger) -> None:
    """
    Each command ends with 0; those of `make` at least exist.
    """
    shell = ledger.environment | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MILIANO_CLUSTER_DATA_DIR": str(ledger.data_dir),
    }
    for command in [command for page in PAGES for command in commands_of(page)]:
        here = command.replace("http://127.0.0.1:8080", ledger.url)
        here = here.replace(".miliano/api_key", str(ledger.data_dir / "api_key"))
        here = re.sub(r"^make ", "make --dry-run ", here)
        if here.startswith("source "):
            continue  # The programs are on the path already.
        ran = subprocess.run(
            ["bash", "-c", here],
            capture_output=True,
            text=True,
            env=shell,
            cwd=ROOT,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        if here.startswith("curl"):
            assert '"status":"posted"' in ran.stdout, ran.stdout


@pytest.mark.parametrize("page", PAGES)
def test_no_page_is_without_commands(page: str) -> None:
    """
    The blocks are found at all.
    """
    assert len(commands_of(page)) >= 2
