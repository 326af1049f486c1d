"""
Goal: what the pages for operators ask of the tables can be asked.
Method: their SQL blocks, on a new database.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.databases import reading

PAGES = Path(__file__).parents[2] / "docs" / "operating"
BLOCK = re.compile(r"```sql\n(.*?)```", re.DOTALL)


async def test_their_queries_work(database: str) -> None:
    """
    Each statement is one that reads, and names tables and columns that there are.
    """
    blocks = "".join("".join(BLOCK.findall(page.read_text())) for page in PAGES.glob("*.md"))
    statements = [one for one in blocks.split(";") if one.strip()]
    assert len(statements) >= 4
    async with reading(database) as connection:
        for statement in statements:
            assert statement.split()[0] == "SELECT", statement
            await connection.fetch(statement)
