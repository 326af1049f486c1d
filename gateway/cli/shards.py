"""
`miliano shards`: which shards there are, and moving slots between them.

Growing is `split`: a new shard is placed, and half of the slots of another move to it. All goes
on meanwhile; each slot pauses for the moment of its move.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from configs.secret import read_secret
from configs.settings import SettingsError, load_settings
from gateway.cli.commands import DATABASE, Failure, Outcome, Session, command, database_errors
from gateway.cli.exit_codes import ExitCode
from gateway.cli.progress import Advance, progress
from gateway.cli.tables import table
from processor.core.slots import SLOT_COUNT

if TYPE_CHECKING:
    from gateway.cli.slot_moves import Kept
    from processor.storage.shard_listing import ListedShard

app = typer.Typer(help="Look at shards, and move slots between them.", no_args_is_help=True)

Shard = Annotated[int, typer.Argument(metavar="SHARD", min=0, help="The shard's number.")]


class SlotMove(msgspec.Struct, frozen=True):
    """
    What became of a move: the slots that are at shard `to` now, and those that stayed.
    """

    to: int
    moved: int
    kept: list[Kept]


@command(app, "list", DATABASE)
def show_list(session: Session) -> Outcome:
    """
    List the shards with their slots, wallets, and what is on its way between them.
    """
    with cluster_errors():
        listed = asyncio.run(_listed(session))
    columns = [
        *("shard>", "phase", "slots", "wallets>", "pending>", "lag>", "epoch>", "database>"),
        "halted for",
    ]
    rows = [
        (
            *(shard.shard, shard.phase, _slots_text(shard), shard.wallets, shard.pending),
            *(shard.lag_records, shard.epoch, shard.database, shard.halted_for),
        )
        for shard in listed
    ]
    fields = ("shard", "phase", "slots", "wallets", "pending", "lag_records", "epoch", "database")
    documents = [
        {field: getattr(shard, field) for field in (*fields, "halted_for")} for shard in listed
    ]
    return Outcome({"shards": documents}, table(columns, rows))


@command(app, "move", DATABASE)
def move(
    session: Session,
    slots: Annotated[str, typer.Argument(metavar="SLOTS", help="For example 7, or 0-99,200.")],
    to: Annotated[int, typer.Option("--to", min=0, help="The shard that shall have them.")],
) -> Outcome:
    """
    Move slots to a shard, with all their wallets. Doing it again completes what was stopped.
    """
    chosen = parse_slots(slots)
    with cluster_errors(), progress(session, "moving slots") as advance:
        moved = asyncio.run(_move(session, chosen, to, advance))
    return _outcome(moved)


@command(app, "split", DATABASE)
def split(
    session: Session,
    shard: Shard,
    to: Annotated[
        int | None, typer.Option("--to", min=0, help="A shard that is there (default: a new one).")
    ] = None,
) -> Outcome:
    """
    Move half of a shard's slots to a new shard. With --to, even out the two.
    """
    with cluster_errors():
        target = to if to is not None else asyncio.run(_new_shard(session, shard))
        session.say(f"to shard {target}; if this is stopped: shards split {shard} --to {target}")
        chosen = asyncio.run(_half(session, shard, target))
        with progress(session, "moving slots") as advance:
            moved = asyncio.run(_move(session, chosen, target, advance))
    return _outcome(moved)


def parse_slots(text: str) -> list[int]:
    """
    Read slots and ranges of slots; raises Failure.
    """
    found: set[int] = set()
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            found.update(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        found.clear()
    if not found or not 0 <= min(found) <= max(found) < SLOT_COUNT:
        words = f"SLOTS are numbers from 0 to {SLOT_COUNT - 1}, such as 7 or 0-99,200: {text}"
        raise Failure(ExitCode.USAGE, words)
    return sorted(found)


@contextmanager
def cluster_errors() -> Iterator[None]:
    """
    Say in words that a database or a shard cannot be reached, or is not this cluster's.
    """
    from gateway.cli.slot_moves import NotServed
    from processor.flow.ports import StoreUnavailable
    from processor.storage.catalog import ForeignDatabase

    try:
        with database_errors():
            yield
    except ForeignDatabase as error:
        raise Failure(ExitCode.REFUSED, str(error)) from error
    except NotServed as error:
        words = f"{error}. The same command goes on with it."
        raise Failure(ExitCode.NOT_REACHABLE, words) from error
    except StoreUnavailable as error:
        raise Failure(ExitCode.NOT_REACHABLE, f"A database cannot be used: {error}") from error


async def _listed(session: Session) -> list[ListedShard]:
    # Late: it reads the database's driver.
    from processor.storage.shard_listing import list_shards

    return await list_shards(session.database().split())


async def _new_shard(session: Session, source: int) -> int:
    """
    Take a shard that was placed and never had a slot, or place one.
    """
    from processor.storage.catalog import open_cluster, place_shard

    listed = await _listed(session)
    _require(listed, source)
    for shard in listed:
        if not shard.slots and not shard.wallets and shard.shard != source:
            return shard.shard
    placement = await place_shard(await open_cluster(session.database().split()))
    return placement.shard_id


async def _half(session: Session, source: int, target: int) -> list[int]:
    listed = await _listed(session)
    giver, taker = _require(listed, source), _require(listed, target)
    count = max(0, giver.slot_count - (giver.slot_count + taker.slot_count + 1) // 2)
    slots = [slot for first, last in giver.slots for slot in range(first, last + 1)]
    return slots[len(slots) - count :]


def _require(listed: Sequence[ListedShard], shard_id: int) -> ListedShard:
    for shard in listed:
        if shard.shard == shard_id:
            return shard
    raise Failure(ExitCode.REFUSED, f"There is no shard {shard_id}.")


async def _move(session: Session, slots: list[int], target: int, advance: Advance) -> SlotMove:
    from gateway.cli.slot_moves import Kept, SlotMover, served

    dsns = session.database().split()
    listed = await _listed(session)
    _require(listed, target)
    owners = {
        slot: shard.shard
        for shard in listed
        for first, last in shard.slots
        for slot in range(first, last + 1)
    }
    mover = SlotMover(
        dsns, _secret(session), target, lambda done: advance(done, len(slots), "slots")
    )
    mover.left += [slot for slot in slots if owners.get(slot) == target]
    await served(dsns, target)
    for source in sorted({owners[slot] for slot in slots if slot in owners} - {target}):
        await mover.move(source, [slot for slot in slots if owners.get(slot) == source])
    kept = mover.kept + [Kept(slot, "is nowhere") for slot in slots if slot not in owners]
    if not await mover.arrived():
        words = f"{len(mover.left)} slots left, and not all have arrived: is shard {target} well?"
        raise Failure(ExitCode.NOT_REACHABLE, words)
    return SlotMove(target, len(mover.left), kept)


def _secret(session: Session) -> bytes:
    cluster = load_settings().cluster
    try:
        return read_secret(msgspec.structs.replace(cluster, data_dir=str(session.folder)))
    except SettingsError as error:
        raise Failure(ExitCode.USAGE, str(error)) from error


def _outcome(moved: SlotMove) -> Outcome:
    parts: list[Any] = [f"{moved.moved} slots are at shard {moved.to}."]
    if moved.kept:
        parts.append(f"{len(moved.kept)} stayed; the same command asks again:")
        parts += [f"  slot {kept.slot}: {kept.why}" for kept in moved.kept]
    code = ExitCode.REFUSED if moved.kept else ExitCode.OK
    return Outcome(moved, "\n".join(parts), code)


def _slots_text(shard: ListedShard) -> str:
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in shard.slots[:4]]
    more = len(shard.slots) - len(shown)
    listed = ",".join(shown) + (f" and {more} more" if more else "")
    return f"{shard.slot_count}: {listed}" if shown else "0"
