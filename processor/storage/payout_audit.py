"""
The audit of payouts: each item against its transfer, each batch against its items.
"""

from __future__ import annotations

from uuid import UUID

import asyncpg

from processor.storage.audit import CHUNK_TRANSFERS, Audit

# The journaled numbers of refusals and their public names.
REASON_CODES = {
    10: "wallets_identical",
    12: "hold_unknown",
    13: "hold_expired",
    14: "hold_voided",
    15: "hold_captured",
    16: "hold_capture_pending",
    20: "source_unknown",
    30: "destination_unknown",
    40: "currency_mismatch",
    50: "source_closed",
    60: "source_locked",
    70: "source_frozen",
    80: "destination_closed",
    90: "destination_locked",
    92: "capture_exceeds_hold",
    93: "refund_total_unknown",
    94: "refund_exceeds_paid",
    96: "version_differs",
    98: "available_below_condition",
    100: "insufficient_funds",
    102: "holds_too_many",
    110: "balance_out_of_range",
    120: "debit_count_hour_exceeded",
    121: "debit_amount_hour_exceeded",
    122: "debit_count_day_exceeded",
    123: "debit_amount_day_exceeded",
    130: "credit_count_hour_exceeded",
    131: "credit_amount_hour_exceeded",
    132: "credit_count_day_exceeded",
    133: "credit_amount_day_exceeded",
    140: "balance_max_exceeded",
    150: "linked_deadline_passed",
}

ITEM_FIELDS = (
    "state",
    "code",
    "sequence",
    "merchant_id",
    "item_reference",
    "destination",
    "amount",
    "merchant_id of the batch",
    "source of the batch",
    "currency of the batch",
    "type",
    "metadata",
)
BATCH_COUNTERS = (
    "total_count",
    "pending_count",
    "paid_count",
    "failed_count",
    "invalid_count",
    "pending_amount",
    "paid_amount",
    "failed_amount",
)

# What a transfer says of an item, field by field as text: in its row at its source, which alone
# has a key. A destination at another shard is the row's counterparty.
_HAPPENED = """
    ARRAY[CASE WHEN transfer.reason IS NULL THEN 'paid' ELSE 'failed' END,
          reasons.code, transfer.sequence::text, transfer.merchant_id,
          transfer.reference, coalesce(transfer.counterparty, transfer.destination),
          transfer.amount::text, transfer.merchant_id, transfer.source, transfer.currency,
          transfer.type::text, transfer.metadata]
"""

# What an item says next to what its transfer says. A missing transfer is one of another database,
# one that the tables have not got yet, or one that never was.
_PAYOUT_ITEMS = f"""
    SELECT batch_id, row_number, transfer_id, is_missing, said, happened
      FROM (
        SELECT item.batch_id, item.row_number, item.transfer_id,
               transfer.transfer_id IS NULL AS is_missing,
               ARRAY[item.state, item.code, item.sequence::text, item.merchant_id,
                     item.item_reference, item.destination, item.amount::text,
                     batch.merchant_id, batch.source, batch.currency, '1',
                     format('{{"payout_batch":"%s"}}', item.batch_id)] AS said,
               {_HAPPENED} AS happened
          FROM payout_items AS item
          LEFT JOIN payout_batches AS batch USING (batch_id)
          LEFT JOIN transfers AS transfer
               ON transfer.transfer_id = item.transfer_id AND transfer.key IS NOT NULL
          LEFT JOIN unnest($1::smallint[], $2::text[]) AS reasons (reason, code)
               ON reasons.reason = transfer.reason
         WHERE item.transfer_id IS NOT NULL
      ) AS compared
     WHERE said IS DISTINCT FROM happened
     ORDER BY batch_id, row_number
"""

_TRANSFERS_ELSEWHERE = f"""
    SELECT transfer.transfer_id, {_HAPPENED} AS happened
      FROM transfers AS transfer
      LEFT JOIN unnest($1::smallint[], $2::text[]) AS reasons (reason, code)
           ON reasons.reason = transfer.reason
     WHERE transfer.transfer_id = ANY($3) AND transfer.key IS NOT NULL
"""

_REASONS = [*REASON_CODES.keys()], [*REASON_CODES.values()]

_PAYOUT_BATCHES = """
    SELECT batch_id,
           ARRAY[batch.total_count, batch.pending_count, batch.paid_count, batch.failed_count,
                 batch.invalid_count, batch.pending_amount, batch.paid_amount,
                 batch.failed_amount]::bigint[] AS said,
           ARRAY[coalesce(counted.total_count, 0), coalesce(counted.pending_count, 0),
                 coalesce(counted.paid_count, 0), coalesce(counted.failed_count, 0),
                 coalesce(counted.invalid_count, 0), coalesce(counted.pending_amount, 0),
                 coalesce(counted.paid_amount, 0), coalesce(counted.failed_amount, 0)]::bigint[]
               AS counted
      FROM payout_batches AS batch
      FULL JOIN (
        SELECT batch_id, count(*) AS total_count,
               count(*) FILTER (WHERE state = 'pending') AS pending_count,
               count(*) FILTER (WHERE state = 'paid') AS paid_count,
               count(*) FILTER (WHERE state = 'failed') AS failed_count,
               count(*) FILTER (WHERE state = 'failed' AND transfer_id IS NULL) AS invalid_count,
               sum(amount) FILTER (WHERE state = 'pending') AS pending_amount,
               sum(amount) FILTER (WHERE state = 'paid') AS paid_amount,
               sum(amount) FILTER (WHERE state = 'failed' AND transfer_id IS NOT NULL)
                   AS failed_amount
          FROM payout_items GROUP BY batch_id
      ) AS counted USING (batch_id)
     ORDER BY batch_id
"""


async def check_payout_items(audit: Audit) -> None:
    """
    Compare what became of each payout item with its transfer, in whichever database that is.
    """
    conn = audit.databases[0].conn
    if await conn.fetchval("SELECT to_regclass('payout_items') IS NULL"):
        return
    cursor = await conn.cursor(_PAYOUT_ITEMS, *_REASONS)
    while rows := await cursor.fetch(CHUNK_TRANSFERS):
        happened = await _happened_elsewhere(audit, rows)
        for row in rows:
            said = happened.get(row["transfer_id"]) if row["is_missing"] else row["happened"]
            _name_item(audit, row, said)


async def _happened_elsewhere(
    audit: Audit, rows: list[asyncpg.Record]
) -> dict[bytes, list[str | None]]:
    missing = [row["transfer_id"] for row in rows if row["is_missing"]]
    happened: dict[bytes, list[str | None]] = {}
    for database in audit.databases[1:] if missing else []:
        found = await database.conn.fetch(_TRANSFERS_ELSEWHERE, *_REASONS, missing)
        happened.update((row[0], row[1]) for row in found)
    return happened


def _name_item(audit: Audit, row: asyncpg.Record, happened: list[str | None] | None) -> None:
    key = f"{UUID(bytes=row['batch_id'])}, row {row['row_number']}"
    if happened is not None:
        audit.name_field(
            "payout_items", key, fields=ITEM_FIELDS, journal_says=happened, table_says=row["said"]
        )
    elif row["transfer_id"] not in audit.tail_ids and "journal" not in audit.differences:
        audit.differs("payout_items", key, "transfer_id", None, row["transfer_id"])


async def check_payout_batches(audit: Audit) -> None:
    """
    Compare the counters of each payout batch with its items.
    """
    conn = audit.databases[0].conn
    if await conn.fetchval("SELECT to_regclass('payout_batches') IS NULL"):
        return
    cursor = await conn.cursor(_PAYOUT_BATCHES)
    while rows := await cursor.fetch(CHUNK_TRANSFERS):
        for batch_id, said, counted in rows:
            audit.name_field(
                "payout_batches",
                str(UUID(bytes=batch_id)),
                fields=BATCH_COUNTERS,
                journal_says=counted,
                table_says=said,
            )
