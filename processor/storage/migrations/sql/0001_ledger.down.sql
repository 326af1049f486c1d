DROP TABLE transfers;

DROP TABLE wallets;

DROP TABLE watermark;

DROP TABLE journal;

DROP TABLE shard;

DROP TABLE cluster;
