-- The ledger: ownership, journal, watermark, and the projections of wallets and transfers.

-- One row: which cluster this database belongs to, and which database of it this is.
CREATE TABLE cluster (
    cluster_id  uuid NOT NULL,
    database_id uuid NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    single_row  boolean PRIMARY KEY DEFAULT true CHECK (single_row)
);

INSERT INTO cluster (cluster_id, database_id) VALUES (gen_random_uuid(), gen_random_uuid());

-- One row a shard. It changes at takeover only; every append takes it FOR SHARE.
CREATE TABLE shard (
    shard_id   integer PRIMARY KEY CHECK (shard_id >= 0),
    epoch      bigint NOT NULL DEFAULT 0,
    state      text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'halted')),
    halted_for text,
    endpoint   text,
    pid        integer,
    build      text,
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- The truth. Partitioned by sequence, never by time: the primary key must be (shard, sequence).
CREATE TABLE journal (
    shard_id integer  NOT NULL,
    sequence bigint   NOT NULL,
    epoch    bigint   NOT NULL,
    at_us    bigint   NOT NULL,
    count    integer  NOT NULL,
    format   smallint NOT NULL,
    chain    bytea    NOT NULL,
    payload  bytea    NOT NULL,
    PRIMARY KEY (shard_id, sequence)
) PARTITION BY RANGE (sequence);

-- Decisions are dense msgpack: pglz would cost CPU on every append and save little.
ALTER TABLE journal ALTER COLUMN payload SET STORAGE EXTERNAL;

CREATE TABLE journal_0 PARTITION OF journal FOR VALUES FROM (0) TO (1000000);

ALTER TABLE journal_0 ALTER COLUMN payload SET STORAGE EXTERNAL;

-- How far each projection has come; moved in the same transaction as the projection.
CREATE TABLE watermark (
    shard_id   integer NOT NULL,
    projection text    NOT NULL,
    sequence   bigint  NOT NULL,
    chain      bytea   NOT NULL,
    PRIMARY KEY (shard_id, projection)
);

-- Absolute balances as of the watermark. No foreign keys and no checks on projections:
-- what the journal says has happened, and a refusal here would stop the books.
CREATE TABLE wallets (
    wallet_id   text COLLATE "C" PRIMARY KEY,
    shard_id    integer  NOT NULL,
    merchant_id text     NOT NULL,
    currency    text     NOT NULL,
    status      smallint NOT NULL,
    minimum     bigint   NOT NULL,
    posted      bigint   NOT NULL,
    version     bigint   NOT NULL,
    opened_at   timestamptz NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX wallets_by_merchant ON wallets (merchant_id, wallet_id);

-- One wide row a transfer; versions and balances are NULL when it was rejected.
CREATE TABLE transfers (
    transfer_id         uuid     NOT NULL,
    shard_id            integer  NOT NULL,
    sequence            bigint   NOT NULL,
    at                  timestamptz NOT NULL,
    type                smallint NOT NULL,
    reason              smallint,
    merchant_id         text     NOT NULL,
    key                 uuid     NOT NULL,
    source              text COLLATE "C" NOT NULL,
    source_version      bigint,
    source_balance      bigint,
    destination         text COLLATE "C" NOT NULL,
    destination_version bigint,
    destination_balance bigint,
    currency            text     NOT NULL,
    amount              bigint   NOT NULL,
    reference           text,
    metadata            text,
    PRIMARY KEY (transfer_id)
);

-- Unique: a second row under a key would be a second payment.
CREATE UNIQUE INDEX transfers_by_key ON transfers (key);

CREATE INDEX transfers_by_source ON transfers (source, source_version)
    WHERE source_version IS NOT NULL;

CREATE INDEX transfers_by_destination ON transfers (destination, destination_version)
    WHERE destination_version IS NOT NULL;
