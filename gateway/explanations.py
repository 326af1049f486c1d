"""
The life of a transfer, told from the journals: what was asked for, where it was judged, what was
said between shards, and when each of it was durable.

Rule 1: it is told to whom the transfer is shown. Who asked for it sees every step; who was paid
        sees those that changed its own wallet, and in them nothing of the hold or of other legs.
Rule 2: the id tells when it was made. A journal is read from shortly before that moment on, because
        the clocks of gateways and shards may differ, and up to where the tables say that it ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.endpoint import Call
from gateway.explained_steps import Subject, sent_entries, steps_of
from gateway.explanation_wire import Check, Explanation
from gateway.identifiers import parse_uuid
from gateway.problems import Refusal
from gateway.reject_rules import RULES, checks_before
from gateway.reply import Reply, json_reply
from gateway.transfers import short_by_told, visible_transfer, with_payee
from gateway.wallets import owns_wallet
from processor.core.commands import TransferType
from processor.core.decisions import LinkedRejected, TransferRejected
from processor.core.leg_ids import is_leg_of, linked_id_in, shared_prefix
from processor.core.reject_reason import RejectReason
from processor.storage import journal_search, linked_search
from processor.storage.history import History
from processor.storage.journal_search import Looked, Mention, Sought
from processor.storage.linked_search import LinkedFound
from processor.storage.transfer_found import TransferFound

CLOCKS_DIFFER_US = 5_000_000


async def explain_transfer(call: Call) -> Reply:
    transfer_id = parse_uuid(call.parameters[0])
    if transfer_id is None:
        raise Refusal("transfer_unknown")
    history, merchant_id = call.gateway.history, call.caller.merchant_id
    search = await history.transfer(transfer_id)
    for found in search.found:
        view = await with_payee(call, found)
        transfer = visible_transfer(view, merchant_id)
        if transfer is not None:
            subject = await _subject_of(call, search.found)
            looked = await _life_of(history, subject, search.found)
            steps = steps_of(looked.mentions, subject)
            if view.merchant_id != merchant_id:
                steps = [step for step in steps if step.wallets]
            check = check_of(view, await _linked_of(history, subject), looked.mentions)
            return json_reply(200, Explanation(transfer, steps, check, looked.is_whole))
    raise search.missing or Refusal("transfer_unknown")


async def _subject_of(call: Call, views: Sequence[TransferFound]) -> Subject:
    """
    Gather what is to be looked for, and which of the wallets are the caller's.
    """
    view = views[0]
    is_leg = is_leg_of(view.transfer_id, view.linked_to)
    kind = view.transfer_type
    return Subject(
        view.transfer_id,
        linked_id_in(view.transfer_id) if is_leg else None,
        view.linked_to if kind == TransferType.CAPTURE else None,
        view.linked_to if kind == TransferType.REFUND and not is_leg else None,
        view.amount,
        "" if view.source is None else view.source.wallet_id,
        frozenset([name for name in _names(views) if await _owns(call, views, name)]),
        is_asker=any(one.merchant_id == call.caller.merchant_id for one in views),
    )


def _names(views: Iterable[TransferFound]) -> list[str]:
    return list(dict.fromkeys(name for view in views for name in view.wallet_ids()))


async def _owns(call: Call, views: Sequence[TransferFound], wallet_id: str) -> bool:
    for view in views:
        for side in (view.source, view.destination):
            if side is not None and side.wallet_id == wallet_id and side.merchant_id is not None:
                return side.merchant_id == call.caller.merchant_id
    return await owns_wallet(call, wallet_id)


# --- Reading the journals -----------------------------------------------------------------------


async def _life_of(history: History, subject: Subject, views: Sequence[TransferFound]) -> Looked:
    """
    Read what the journals say: first where it was decided, then where that was sent.
    """
    linked = await _linked_of(history, subject)
    first = await _looked(history, sought_at_home(subject, views, linked))
    there = sought_at_peers(first.mentions, subject)
    if not there:
        return first
    then = await _looked(history, there)
    return Looked([*first.mentions, *then.mentions], first.is_whole and then.is_whole)


async def _linked_of(history: History, subject: Subject) -> LinkedFound | None:
    linked_id = subject.linked_id
    if linked_id is None:
        return None
    found, _ = await history.each(lambda conn: linked_search.search(conn, linked_id))
    return next((one for one in found if one is not None), None)


async def _looked(history: History, sought: list[Sought]) -> Looked:
    pages, missing = await history.each(lambda conn: journal_search.look(conn, sought))
    mentions = [mention for page in pages for mention in page.mentions]
    return Looked(mentions, missing is None and all(page.is_whole for page in pages))


def sought_at_home(
    subject: Subject, views: Sequence[TransferFound], linked: LinkedFound | None
) -> list[Sought]:
    """
    Say where the id itself is looked for: at the shards that tell of it, up to the record that they
    name, and at the one that decides.
    """
    since_us = made_us(subject.transfer_id) - CLOCKS_DIFFER_US
    pieces = [shared_prefix(subject.transfer_id)]
    lasts = {view.shard_id: view.sequence for view in views}
    for view in views:
        lasts[view.shard_id] = max(lasts[view.shard_id], view.sequence)
    ends: dict[int, int | None] = dict(lasts)
    if linked is not None:
        last = max(linked.sequence, lasts.get(linked.shard_id, 0))
        ends[linked.shard_id] = last if linked.is_done else None
    return [Sought(shard_id, since_us, pieces, last) for shard_id, last in ends.items()]


def sought_at_peers(mentions: Sequence[Mention], subject: Subject) -> list[Sought]:
    """
    Say where the entries that were sent are looked for, by their chains: from when they were sent
    on, up to the last that is known of them where they came from.
    """
    sent = sent_entries(mentions, subject)
    last_us = max((mention.at_us for mention in mentions), default=0)
    is_answered = any(mention.at_us > sender.at_us for sender, _ in sent for mention in mentions)
    found = []
    for peer in sorted({entry.peer for _, entry in sent}):
        there = [(mention, entry) for mention, entry in sent if entry.peer == peer]
        since_us = min(mention.at_us for mention, _ in there) - CLOCKS_DIFFER_US
        until_us = last_us + CLOCKS_DIFFER_US if is_answered else None
        chains = [entry.chain for _, entry in there]
        found.append(Sought(peer, since_us, chains, until_us=until_us))
    return found


def made_us(identifier: bytes) -> int:
    """
    Return when a UUIDv7 was made, in µs; 0 for an id of another kind.
    """
    if identifier[6] >> 4 != 7:
        return 0
    return int.from_bytes(identifier[:6], "big") * 1_000


# --- Why it was refused -------------------------------------------------------------------------


def check_of(
    view: TransferFound, linked: LinkedFound | None, mentions: Iterable[Mention]
) -> Check | None:
    """
    Say which check a rejected transfer failed.
    """
    if view.reason is None:
        return None
    reason = RejectReason(view.reason)
    short_by = short_by_told(view.transfer_type, reason, view.short_by)
    text = measure(amount_judged(view, mentions), reason, short_by)
    if linked is not None and isinstance(linked.decision, LinkedRejected):
        failed = linked.decision.leg
        text = f"Leg {failed} failed it, and all legs with it."
        if linked.decision.legs[failed].transfer_id == view.transfer_id:
            text = f"This leg failed it, and all others with it. {measure(0, reason, short_by)}"
    return Check(reason.code, RULES[reason], text, short_by, checks_before(reason))


def amount_judged(view: TransferFound, mentions: Iterable[Mention]) -> int:
    """
    Return the amount that failed: of what was to move up to an amount, the smallest.
    """
    for mention in mentions:
        for decision in mention.decisions:
            if (
                isinstance(decision, TransferRejected)
                and decision.transfer_id == view.transfer_id
                and decision.terms is not None
                and decision.terms.amount_max is not None
            ):
                return 1
    return view.amount


def measure(amount: int, reason: RejectReason, short_by: int | None) -> str:
    """
    Say in minor units what there was and what was missing, as far as it is known.
    """
    if short_by is None:
        return "There is no measure of it, or it is not of your own wallet."
    there_was = amount - short_by
    if there_was >= 0:
        match reason:
            case RejectReason.INSUFFICIENT_FUNDS:
                return f"{amount} was asked for and {there_was} could be spent: {short_by} missing."
            case RejectReason.CAPTURE_EXCEEDS_HOLD:
                return f"{amount} was asked for and {there_was} was kept: {short_by} missing."
            case RejectReason.REFUND_EXCEEDS_PAID:
                return f"{amount} was asked for and {there_was} was left: {short_by} too much."
    if reason == RejectReason.VERSION_DIFFERS:
        return f"The wallet's version was {short_by} away from the one that was named."
    return f"It failed by {short_by}."
