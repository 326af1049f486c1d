-- Payout batches: a merchant's file, paid row by row. The journal holds the truth of each
-- payment; these rows say what is still to be done and what came of the rest.

-- The counters move with the items in one transaction, and the checks keep them adding up: a
-- batch is being processed exactly as long as a row is pending. Amounts are of rows that were
-- payable; a row that failed its validation counts with zero.
CREATE TABLE payout_batches (
    batch_id            uuid PRIMARY KEY,
    merchant_id         text COLLATE "C" NOT NULL,
    reference           text COLLATE "C" NOT NULL,
    content_hash        bytea NOT NULL,
    source              text COLLATE "C" NOT NULL,
    currency            text NOT NULL,
    on_invalid          text NOT NULL CHECK (on_invalid IN ('reject_batch', 'skip_rows')),
    rows_per_second_max integer CHECK (rows_per_second_max > 0),
    state               text NOT NULL,
    total_count         integer NOT NULL CHECK (total_count > 0),
    pending_count       integer NOT NULL CHECK (pending_count >= 0),
    paid_count          integer NOT NULL CHECK (paid_count >= 0),
    failed_count        integer NOT NULL CHECK (failed_count >= invalid_count),
    invalid_count       integer NOT NULL CHECK (invalid_count >= 0),
    total_amount        bigint NOT NULL,
    pending_amount      bigint NOT NULL CHECK (pending_amount >= 0),
    paid_amount         bigint NOT NULL CHECK (paid_amount >= 0),
    failed_amount       bigint NOT NULL CHECK (failed_amount >= 0),
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at         timestamptz,
    CONSTRAINT payout_batches_reference UNIQUE (merchant_id, reference),
    CONSTRAINT payout_batches_counts_add_up
        CHECK (total_count = pending_count + paid_count + failed_count),
    CONSTRAINT payout_batches_amounts_add_up
        CHECK (total_amount = pending_amount + paid_amount + failed_amount),
    CONSTRAINT payout_batches_state_fits CHECK (state = CASE
        WHEN pending_count > 0 THEN 'processing'
        WHEN failed_count = 0 THEN 'completed'
        WHEN paid_count = 0 THEN 'failed'
        ELSE 'completed_with_failures' END),
    CONSTRAINT payout_batches_finished CHECK ((pending_count = 0) = (finished_at IS NOT NULL))
) WITH (fillfactor = 50);

CREATE INDEX payout_batches_by_merchant ON payout_batches (merchant_id, batch_id);

CREATE INDEX payout_batches_unfinished ON payout_batches (batch_id) WHERE state = 'processing';

-- No foreign key: it would cost a look-up for each of a million rows; `verify` checks instead.
-- A failed row without a transfer was refused by validation, and only its sound fields are set.
CREATE TABLE payout_items (
    batch_id       uuid NOT NULL,
    row_number     integer NOT NULL,
    merchant_id    text COLLATE "C" NOT NULL,
    item_reference text COLLATE "C",
    destination    text COLLATE "C",
    amount         bigint,
    note           text,
    state          text NOT NULL,
    code           text,
    transfer_id    uuid,
    sequence       bigint,
    attempts       integer NOT NULL DEFAULT 0,
    PRIMARY KEY (batch_id, row_number),
    CONSTRAINT payout_items_state_fits CHECK (CASE state
        WHEN 'pending' THEN code IS NULL AND transfer_id IS NULL AND sequence IS NULL
        WHEN 'paid' THEN code IS NULL AND transfer_id IS NOT NULL AND sequence IS NOT NULL
        WHEN 'failed' THEN code IS NOT NULL AND (transfer_id IS NULL) = (sequence IS NULL)
        ELSE false END),
    CONSTRAINT payout_items_payable CHECK ((state = 'failed' AND transfer_id IS NULL)
        OR (item_reference IS NOT NULL AND destination IS NOT NULL AND amount IS NOT NULL))
);

-- The belt against paying one item in two batches; a failed one may be sent again.
CREATE UNIQUE INDEX payout_items_by_reference ON payout_items (merchant_id, item_reference)
    WHERE state IN ('pending', 'paid');

-- Few rows, asked for first.
CREATE INDEX payout_items_failed ON payout_items (batch_id, row_number) WHERE state = 'failed';
