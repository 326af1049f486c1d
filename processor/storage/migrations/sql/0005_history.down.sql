DROP FUNCTION version_at(text, timestamptz, bigint);
