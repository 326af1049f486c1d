-- Who may call: merchants and their keys. Only hashes of secrets are stored.
CREATE TABLE merchants (
    merchant_id text PRIMARY KEY,
    name        text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    key_id      text PRIMARY KEY,
    merchant_id text NOT NULL REFERENCES merchants,
    secret_hash bytea NOT NULL,
    scopes      text[] NOT NULL,
    label       text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    revoked_at  timestamptz
);

CREATE INDEX api_keys_by_merchant ON api_keys (merchant_id);
