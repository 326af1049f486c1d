"""
Goal: whatever the public rules let in goes through shard, journal and tables and comes back
      equal; no text and no number can stop the write-behind.
Method: commands drawn within the rules run through a real shard and a real projection into
        Postgres; rows, remembered outcomes and reloaded wallets are compared with what was asked.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.settings import WriteBehindSettings
from gateway.validation import canonical_metadata
from gateway.wire import WALLET_ID_PATTERN
from processor.core.amounts import AMOUNT_MAX, BALANCE_MAX
from processor.core.commands import Command, MoveMoney, OpenWallet, ReadWallet, TransferType
from processor.core.decisions import TransferPosted, TransferRejected
from processor.core.reject_reason import RejectReason
from processor.flow.frames import Posted, Rejected, Result, WalletFound
from processor.storage.projection import Projection
from tests.support.books import read_balanced_tables
from tests.support.commands import deposit, identifier, open_wallet, read_wallet, transfer
from tests.support.local_shard import LocalShard, owning

REFERENCE_CHARS_MAX = 140
METADATA_BYTES_MAX = 1_024

# Anything Unicode but NUL, which is refused, and lone surrogates, which no JSON reader makes.
characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
# What COPY, arrays, quoting or a careless reader could trip over.
nasty = st.sampled_from(
    [
        *("\\N", "\\.", "\\", "\\\\", "'", '"', "\t", "\n", "\r\n", "\x01", "\x7f", "\x1b[0m", " "),
        *("{}", "{NULL}", "NULL", "%s", "$1", ";--", "😀" * 20, "é", "ـ", "\u2028", "\ufffe"),
        *("\U0010ffff", "a" * 100, "é" * 70),
    ]
)
texts = st.lists(st.one_of(nasty, st.text(characters, max_size=20)), max_size=6).map("".join)
references = st.one_of(
    st.none(), texts.map(lambda text: text[:REFERENCE_CHARS_MAX]), st.text(characters, max_size=140)
)
metadata = (
    st.dictionaries(
        texts.map(lambda text: text[:40]),
        st.one_of(
            texts.map(lambda text: text[:100]),
            st.integers(-AMOUNT_MAX, AMOUNT_MAX),
            st.booleans(),
        ),
        max_size=5,
    )
    .map(canonical_metadata)
    .filter(lambda text: text is None or len(text.encode()) <= METADATA_BYTES_MAX)
)
amounts = st.one_of(st.sampled_from([1, 2**31, 2**32, AMOUNT_MAX]), st.integers(1, AMOUNT_MAX))
minimums = st.one_of(st.sampled_from([0, -AMOUNT_MAX]), st.integers(-AMOUNT_MAX, 0))
wallet_ids = st.from_regex(WALLET_ID_PATTERN, fullmatch=True)
merchants = st.text(characters, min_size=1, max_size=40)
currencies = st.sampled_from(["EUR", "JPY", "KWD"])


@dataclass
class Ledger:
    """
    A shard and its projection, with the loop they live on.
    """

    dsn: str
    runner: asyncio.Runner
    shard: LocalShard
    projection: Projection
    numbers: Iterator[int]

    def ask(self, *commands: Command) -> list[Result]:
        return self.runner.run(self.shard.ask(*commands))

    def project(self) -> None:
        async def project_all() -> None:
            while await self.projection.step():
                pass

        self.runner.run(project_all())


@pytest.fixture(scope="module")
def ledger(module_database: str) -> Iterator[Ledger]:
    with asyncio.Runner() as runner:

        async def start() -> Ledger:
            shard = LocalShard(module_database)
            await shard.start()
            projection = Projection(module_database, 0, WriteBehindSettings())
            await projection.open()
            return Ledger(module_database, runner, shard, projection, itertools.count(1))

        ledger = runner.run(start())
        yield ledger
        ledger.projection.close()
        runner.run(ledger.shard.stop())


@dataclass
class Asked:
    """
    Two wallets and what is moved from the world to the first and on to the second.
    """

    merchant_id: str
    currency: str
    wallet_ids: tuple[str, str]
    minimum: int
    deposited: int
    transferred: int
    reference: str | None
    metadata: str | None


asked = st.builds(
    Asked,
    merchants,
    currencies,
    st.tuples(wallet_ids, wallet_ids),
    minimums,
    amounts,
    amounts,
    references,
    metadata,
)


@settings(max_examples=150, deadline=None)
@example(Asked("m", "EUR", ("a", "a"), 0, AMOUNT_MAX, AMOUNT_MAX, "", "{}"))
@example(Asked("\\N", "EUR", ("A", "a"), 0, 1, 2, "\\N", '{"\\\\N":"\\t"}'))
@example(Asked("m", "EUR", ("a" * 64, "b" * 64), 0, 1, 1, "😀" * 140, '{"":"' + "é" * 500 + '"}'))
@given(asked)
def test_what_the_rules_let_in_comes_back_equal(ledger: Ledger, asked: Asked):
    """
    Wallets, references, metadata and amounts are in the tables as they were asked, and a key
    that was forgotten is remembered from them as it was.
    """
    number = next(ledger.numbers)
    first, second = (f"{number}.{index}.{name}"[:64] for index, name in enumerate(asked.wallet_ids))
    moves = moves_of(asked, number, first, second)
    opened = [
        OpenWallet(asked.merchant_id, name, asked.currency, asked.minimum)
        for name in (first, second)
    ]
    results = ledger.ask(*opened, *moves)
    assert all(isinstance(result, WalletFound) for result in results[:2])
    assert all(isinstance(result, Posted | Rejected) for result in results[2:])
    ledger.project()

    remembered = ledger.runner.run(ledger.shard.store.load_keys([each.key for each in moves]))
    told = {decision.key: decision for decision, _, _ in remembered}
    for each, result in zip(moves, results[2:], strict=True):
        assert_equal_where_asked(told[each.key], each)
        assert isinstance(told[each.key], TransferPosted) == isinstance(result, Posted)
    found = ledger.ask(*(ReadWallet(asked.merchant_id, name) for name in (first, second)))
    loaded = ledger.runner.run(ledger.shard.store.load_wallets([first, second]))
    assert {wallet.facts() for wallet in loaded} == {facts(asked, each) for each in found}


def facts(asked: Asked, found: Result) -> tuple[object, ...]:
    assert isinstance(found, WalletFound)
    return (
        found.wallet_id,
        asked.merchant_id,
        asked.currency,
        found.status,
        asked.minimum,
        found.posted,
        0,  # Nothing is on its way to another shard.
        found.version,
        found.held,
        0,  # No hold is open, ...
        0,  # ... and nothing may come.
        found.limits,
        found.usage,
    )


def moves_of(asked: Asked, number: int, first: str, second: str) -> list[MoveMoney]:
    """
    Ask for the deposit, the transfer, and a withdrawal of the same amount.
    """
    sides = {
        TransferType.DEPOSIT: ("", first, asked.deposited),
        TransferType.TRANSFER: (first, second, asked.transferred),
        TransferType.WITHDRAWAL: (second, "", asked.transferred),
    }
    return [
        MoveMoney(
            kind,
            identifier(f"transfer {number} {kind}"),
            identifier(f"key {number} {kind}"),
            asked.merchant_id,
            source,
            destination,
            asked.currency,
            amount,
            asked.reference,
            asked.metadata,
        )
        for kind, (source, destination, amount) in sides.items()
    ]


def assert_equal_where_asked(told: TransferPosted | TransferRejected, command: MoveMoney) -> None:
    """
    Check every field of the command; the side of the world is the ledger's own choice.
    """
    for field in msgspec.structs.fields(MoveMoney):
        wanted = getattr(command, field.name)
        if wanted or field.name not in ("source", "destination"):
            assert getattr(told, field.name) == wanted


def test_the_tables_balance_with_the_journal(ledger: Ledger):
    """
    After whatever was drawn before, the tables are what the journal says.
    """
    ledger.ask(open_wallet("last"))
    ledger.project()
    ledger.runner.run(read_balanced_tables(ledger.dsn))


async def test_balances_reach_the_edge_of_the_column(database: str):
    """
    A wallet holds 2**63 - 1 and the world owes as much; one unit more is refused, and all of it
    passes through the tables to the next owner.
    """
    count, rest = divmod(BALANCE_MAX, AMOUNT_MAX)
    async with owning(database) as shard:
        await shard.ask(open_wallet("full"), open_wallet("debtor", minimum=-AMOUNT_MAX))
        await shard.ask(*(deposit("full", AMOUNT_MAX, key=f"{n}") for n in range(count)))
        filled, refused, moved = await shard.ask(
            deposit("full", rest, key="rest"),
            transfer("debtor", "full", 1, key="too much"),
            transfer("full", "debtor", AMOUNT_MAX, key="back"),
        )
        assert isinstance(filled, Posted)
        assert filled.balance == BALANCE_MAX
        assert isinstance(refused, Rejected)
        assert refused.reason == RejectReason.BALANCE_OUT_OF_RANGE
        assert isinstance(moved, Posted)
        projection = Projection(database, 0, WriteBehindSettings())
        await projection.open()
        while await projection.step():
            pass
        projection.close()
    journal = await read_balanced_tables(database)
    assert journal.balance("$world:0:EUR") == -BALANCE_MAX
    async with owning(database) as successor:
        (found,) = await successor.ask(read_wallet("full"))
        assert isinstance(found, WalletFound)
        assert found.posted == BALANCE_MAX - AMOUNT_MAX
