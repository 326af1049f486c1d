-- What is written below holds only while nothing of this has been used.
DROP TABLE linked_prepared, linked_begun, refunds, holds;

ALTER TABLE wallets DROP COLUMN usage, DROP COLUMN limits;

DROP INDEX transfers_by_linked_to;

ALTER TABLE transfers DROP COLUMN short_by, DROP COLUMN linked_to;

ALTER TABLE channel_answers ALTER COLUMN answer TYPE integer;

DROP INDEX outcomes_by_transfer;

ALTER TABLE outcomes DROP COLUMN transfer_id;

ALTER INDEX outcomes_by_key RENAME TO carried_outcomes_by_key;

ALTER TABLE outcomes RENAME TO carried_outcomes;
