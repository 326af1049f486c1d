-- Many shards: where they live, which slots they have, and what is on its way between them.

-- Which database has the catalog; NULL until the cluster was opened for the first time.
ALTER TABLE cluster ADD COLUMN catalog_id uuid;

-- In that database only: the databases of the cluster, ...
CREATE TABLE database (
    database_id   uuid PRIMARY KEY,
    registered_at timestamptz NOT NULL DEFAULT now()
);

-- ... which of them each shard lives in, for ever, and the slots it begins with (both NULL: none), ...
CREATE TABLE placement (
    shard_id    integer PRIMARY KEY CHECK (shard_id >= 0),
    database_id uuid    NOT NULL REFERENCES database,
    first_slot  integer,
    last_slot   integer,
    placed_at   timestamptz NOT NULL DEFAULT now(),
    CHECK ((first_slot IS NULL) = (last_slot IS NULL))
);

-- ... and where each slot was last seen. A hint for gateways: the journals know. The map's version
-- is the sum of its generations.
CREATE TABLE slot_map (
    slot       integer PRIMARY KEY CHECK (slot BETWEEN 0 AND 4095),
    shard_id   integer NOT NULL,
    generation integer NOT NULL
);

-- In every database: how far the journals of shards that live in others have been seen. A journal
-- that ends before its witness was set back.
CREATE TABLE witness (
    shard_id integer PRIMARY KEY,
    epoch    bigint  NOT NULL,
    sequence bigint  NOT NULL,
    chain    bytea   NOT NULL,
    at       timestamptz NOT NULL DEFAULT now()
);

-- Projection: the slots that a shard has, or had: then given_to says who got it. The generation is
-- that in which it is or was here, taken_from is NULL for a slot that the shard began with.
CREATE TABLE slots (
    shard_id   integer NOT NULL,
    slot       integer NOT NULL,
    generation integer NOT NULL,
    taken_from integer,
    given_to   integer,
    PRIMARY KEY (shard_id, slot)
);

-- Projection: the source's ends of channels; what is between settled and head is in
-- pending_entries.
CREATE TABLE channels_out (
    shard_id      integer NOT NULL,
    peer          integer NOT NULL,
    head          bigint  NOT NULL,
    chain         bytea   NOT NULL,
    settled       bigint  NOT NULL,
    settled_chain bytea   NOT NULL,
    PRIMARY KEY (shard_id, peer)
);

-- Projection: the destination's ends. refused maps numbers to answers other than 0 of entries that
-- the source may still ask for.
CREATE TABLE channels_in (
    shard_id integer NOT NULL,
    peer     integer NOT NULL,
    cursor   bigint  NOT NULL,
    chain    bytea   NOT NULL,
    PRIMARY KEY (shard_id, peer)
);

CREATE TABLE channel_answers (
    shard_id integer NOT NULL,
    peer     integer NOT NULL,
    number   bigint  NOT NULL,
    answer   integer NOT NULL,
    PRIMARY KEY (shard_id, peer, number)
);

-- Projection: what is on its way, as it was decided (msgpack, as in the journal).
CREATE TABLE pending_entries (
    shard_id    integer NOT NULL,
    peer        integer NOT NULL,
    number      bigint  NOT NULL,
    sequence    bigint  NOT NULL,
    at_us       bigint  NOT NULL,
    transfer_id uuid,
    decision    bytea   NOT NULL,
    PRIMARY KEY (shard_id, peer, number)
);

CREATE INDEX pending_entries_by_transfer ON pending_entries (transfer_id);

-- Projection: outcomes that came with a slot, whose rows are in the tables of the shard they come
-- from. The sequence is that of this shard's record that took them last.
CREATE TABLE carried_outcomes (
    shard_id integer NOT NULL,
    key      uuid    NOT NULL,
    sequence bigint  NOT NULL,
    outcome  bytea   NOT NULL,
    PRIMARY KEY (shard_id, key)
);

CREATE INDEX carried_outcomes_by_key ON carried_outcomes (key);

-- A wallet that moves between two shards of one database has a row of each for a moment.
ALTER TABLE wallets DROP CONSTRAINT wallets_pkey;

ALTER TABLE wallets ADD PRIMARY KEY (wallet_id, shard_id);

ALTER TABLE wallets ADD COLUMN slot integer;

CREATE FUNCTION pg_temp.slot_of(wallet_id text) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    bytes bytea := convert_to(wallet_id, 'UTF8');
    crc bigint := 4294967295;
BEGIN
    FOR position IN 0 .. length(bytes) - 1 LOOP
        crc := crc # get_byte(bytes, position);
        FOR bit IN 1 .. 8 LOOP
            crc := (crc >> 1) # ((crc & 1) * 3988292384);
        END LOOP;
    END LOOP;
    RETURN (crc # 4294967295) & 4095;
END $$;

UPDATE wallets SET slot = pg_temp.slot_of(wallet_id);

ALTER TABLE wallets ALTER COLUMN slot SET NOT NULL;

CREATE INDEX wallets_by_slot ON wallets (shard_id, slot);

-- A transfer between two shards has a row at each: at its source the other side is what the peer is
-- due, at its destination what the peer is due from; counterparty is the wallet at the other shard.
-- Its key is known at the source only.
ALTER TABLE transfers DROP CONSTRAINT transfers_pkey;

ALTER TABLE transfers ADD PRIMARY KEY (transfer_id, shard_id);

ALTER TABLE transfers ADD COLUMN counterparty text COLLATE "C";

ALTER TABLE transfers ALTER COLUMN key DROP NOT NULL;
