DROP TABLE carried_outcomes, pending_entries, channel_answers, channels_in, channels_out, slots,
           witness, slot_map, placement, database;

ALTER TABLE cluster DROP COLUMN catalog_id;

-- What is written below holds only while no transfer has gone between shards and no slot has moved.
ALTER TABLE transfers ALTER COLUMN key SET NOT NULL;

ALTER TABLE transfers DROP COLUMN counterparty;

ALTER TABLE transfers DROP CONSTRAINT transfers_pkey;

ALTER TABLE transfers ADD PRIMARY KEY (transfer_id);

DROP INDEX wallets_by_slot;

ALTER TABLE wallets DROP COLUMN slot;

ALTER TABLE wallets DROP CONSTRAINT wallets_pkey;

ALTER TABLE wallets ADD PRIMARY KEY (wallet_id);
