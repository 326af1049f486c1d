DROP TABLE payout_items;

DROP TABLE payout_batches;
