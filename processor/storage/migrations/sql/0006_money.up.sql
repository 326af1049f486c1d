-- Holds, refunds, limits, linked transfers.

-- Outcomes under keys that are not, or not only, a row of transfers here: what came with a slot,
-- holds, linked transfers, and whatever has terms. The decision is msgpack, as in the journal.
ALTER TABLE carried_outcomes RENAME TO outcomes;

ALTER INDEX carried_outcomes_by_key RENAME TO outcomes_by_key;

-- What the outcome is of: a transfer, a hold, what was done to one, or a linked transfer.
ALTER TABLE outcomes ADD COLUMN transfer_id uuid;

CREATE INDEX outcomes_by_transfer ON outcomes (transfer_id);

-- An answer also says by how much, and of linked transfers which leg.
ALTER TABLE channel_answers ALTER COLUMN answer TYPE bigint;

-- The hold that was captured, the transfer that was taken back, or the linked transfer of a leg;
-- and by how much a refused one failed its check. A row with terms, and a leg, has no key: its
-- outcome has.
ALTER TABLE transfers ADD COLUMN linked_to uuid, ADD COLUMN short_by bigint;

CREATE INDEX transfers_by_linked_to ON transfers (linked_to) WHERE linked_to IS NOT NULL;

-- Limits of a wallet and what it has used of them; both NULL for a wallet without limits. limits is
-- count and amount an hour, count and amount a day of debits, the same of credits, and the balance
-- maximum; NULL is no bound. usage is hour, count, amount, day, count, amount of debits and the same
-- of credits, and at the end since when it is counted, in microseconds since 1970; hours and days are
-- counted from 1970 in UTC.
ALTER TABLE wallets ADD COLUMN limits bigint[], ADD COLUMN usage bigint[];

-- Projection: holds, open and ended. The id's low 12 bits are its wallet's slot; an open one goes
-- with it. status is 1 open, 2 captured, 3 voided, 4 expired.
CREATE TABLE holds (
    hold_id       uuid     NOT NULL,
    shard_id      integer  NOT NULL,
    merchant_id   text     NOT NULL,
    wallet_id     text COLLATE "C" NOT NULL,
    destination   text COLLATE "C" NOT NULL,
    currency      text     NOT NULL,
    amount        bigint   NOT NULL,
    captured      bigint   NOT NULL,
    pending       bigint   NOT NULL,
    status        smallint NOT NULL,
    is_ending     boolean  NOT NULL,
    placed_at_us  bigint   NOT NULL,
    expires_at_us bigint   NOT NULL,
    reference     text,
    metadata      text,
    changed_at    timestamptz NOT NULL,
    PRIMARY KEY (hold_id, shard_id)
) WITH (fillfactor = 80);

CREATE INDEX holds_by_wallet ON holds (wallet_id, hold_id);

CREATE INDEX holds_unfinished ON holds (shard_id) WHERE status = 1 OR pending > 0;

-- Projection: how much of a transfer has gone back, at the shard of the wallet that pays it back.
-- Of rows of two shards the one with the higher version is the later one.
CREATE TABLE refunds (
    transfer_id uuid    NOT NULL,
    shard_id    integer NOT NULL,
    wallet_id   text COLLATE "C" NOT NULL,
    refunded    bigint  NOT NULL,
    version     bigint  NOT NULL,
    PRIMARY KEY (transfer_id, shard_id)
);

-- Projection: linked transfers over several shards that are not done everywhere, at the shard that
-- decides, ...
CREATE TABLE linked_begun (
    shard_id  integer NOT NULL,
    linked_id uuid    NOT NULL,
    sequence  bigint  NOT NULL,
    at_us     bigint  NOT NULL,
    begun     bytea   NOT NULL,
    posted    bytea,
    PRIMARY KEY (shard_id, linked_id)
);

-- ... and what others have set aside for one until they are told what became of it.
CREATE TABLE linked_prepared (
    shard_id  integer NOT NULL,
    linked_id uuid    NOT NULL,
    peer      integer NOT NULL,
    sequence  bigint  NOT NULL,
    at_us     bigint  NOT NULL,
    prepared  bytea   NOT NULL,
    PRIMARY KEY (shard_id, linked_id)
);
