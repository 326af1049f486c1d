"""
Writes payouts.csv: the salaries of a company for one month, 10,000 rows, the same in every run.

The rows pay in EUR from the wallet `payroll` to wallets `emp-000001` to `emp-009945`, once each.
9,938 rows are right. 62 are wrong on purpose, as such files are:

    caught when the file is checked (47)           caught by the ledger when the row is paid (15)
     5  amount with a third decimal                 8  wallet that does not exist (emp-99....)
     4  amount with a decimal comma                 4  closed wallet (emp-008801 to emp-008804)
     3  amount with a thousands separator           3  locked wallet (emp-008901 to emp-008903)
     2  amount of zero
     2  negative amount
     2  amount in words
     2  amount missing
     3  reference missing
     2  reference with a blank in it
     5  reference of an earlier row again
     3  destination missing
     4  destination that is no wallet id
     2  destination that is the source
     4  currency of another batch (USD)
     2  row with a cell too few
     1  row with a cell too many
     1  note that is too long

So the company opens the wallets `emp-000001` to `emp-009945`, closes and locks the seven named
above, and submits the file with on_invalid=skip_rows: 9,938 rows are paid and 62 fail, each with
its reason. (The seven are paid nothing else.) With on_invalid=reject_batch the answer is a report
of the 47.

    python examples/make_payouts.py > examples/payouts.csv
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Callable, Iterator

SEED = 20260531
ROW_COUNT = 10_000
SOURCE = "payroll"
HEADER = ("reference", "destination", "amount", "currency", "note")
TEAMS = ("Sales", "Support", "Logistics", "Kitchen", "Engineering", "Night shift")

CLOSED = [f"emp-{number:06d}" for number in range(8801, 8805)]
LOCKED = [f"emp-{number:06d}" for number in range(8901, 8904)]

Row = list[str]
Mistake = Callable[[Row, random.Random], Row]


def with_cell(column: str, *values: str) -> Mistake:
    """
    Put one of *values* in the place of what is right.
    """

    def change(row: Row, chance: random.Random) -> Row:
        row[HEADER.index(column)] = chance.choice(values)
        return row

    return change


def with_amount(rewrite: Callable[[str], str]) -> Mistake:
    def change(row: Row, _: random.Random) -> Row:
        row[2] = rewrite(row[2])
        return row

    return change


def to_nobody(row: Row, chance: random.Random) -> Row:
    row[1] = f"emp-99{chance.randrange(10_000):04d}"
    return row


MISTAKES: list[tuple[int, Mistake]] = [
    (5, with_amount(lambda amount: f"{amount}5")),
    (4, with_amount(lambda amount: amount.replace(".", ","))),
    (3, with_amount(lambda amount: f"{amount[0]},{amount[1:]}")),
    (2, with_cell("amount", "0", "0.00")),
    (2, with_amount(lambda amount: f"-{amount}")),
    (2, with_cell("amount", "see contract", "tbd")),
    (2, with_cell("amount", "")),
    (3, with_cell("reference", "")),
    (2, lambda row, _: [row[0].replace("-", " "), *row[1:]]),
    (3, with_cell("destination", "")),
    (4, with_cell("destination", "emp 000777", "-emp", "Müller", "emp/000778")),
    (2, with_cell("destination", SOURCE)),
    (4, with_cell("currency", "USD")),
    (2, lambda row, _: row[:4]),
    (1, lambda row, _: [*row, "extra"]),
    (1, with_cell("note", "Paid on account of " + "very " * 30 + "good work")),
    (8, to_nobody),
]
REPEATED_COUNT = 5


def rows() -> Iterator[Row]:
    """
    Yield the rows of the file, the header first.
    """
    chance = random.Random(SEED)
    mistakes = [mistake for count, mistake in MISTAKES for _ in range(count)]
    wrong_count = len(mistakes) + REPEATED_COUNT
    # The first hundred rows stay right, so that a repeated reference has something to repeat.
    places = sorted(chance.sample(range(100, ROW_COUNT), wrong_count))
    chance.shuffle(mistakes)
    repeated = set(chance.sample(places, REPEATED_COUNT))
    wallets = iter(range(1, ROW_COUNT))
    yield list(HEADER)
    for index in range(ROW_COUNT):
        wallet = 777 if index in places else next(wallets)
        row = right_row(index, f"emp-{wallet:06d}", chance)
        if index in repeated:
            row[0] = reference_of(chance.randrange(100))
        elif index in places:
            row = mistakes.pop()(row, chance)
        yield row


def wallets() -> list[str]:
    """
    List the payees' wallets that the company opens: one for each row that is right.
    """
    wrong_count = sum(count for count, _ in MISTAKES) + REPEATED_COUNT
    return [f"emp-{number:06d}" for number in range(1, ROW_COUNT - wrong_count + 1)]


def reference_of(index: int) -> str:
    return f"sal-2026-05-{index + 1:05d}"


def right_row(index: int, destination: str, chance: random.Random) -> Row:
    cents = chance.randrange(120_000, 480_000)
    note = f"Salary May 2026, {chance.choice(TEAMS)}"
    return [reference_of(index), destination, f"{cents // 100}.{cents % 100:02d}", "EUR", note]


def main() -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows())


if __name__ == "__main__":
    main()
