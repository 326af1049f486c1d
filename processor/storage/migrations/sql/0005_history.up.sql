-- Histories by time: versions are in the order of time within a shard, so a moment is found by
-- bisection over the two indexes of versions that are there anyway.

-- The last version of a wallet above `above` whose entry in this database is not later than an
-- instant; `above` when there is none. Versions that are in other databases are passed over.
CREATE FUNCTION version_at(wallet text, instant timestamptz, above bigint) RETURNS bigint
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
DECLARE
    answer bigint := above;
    low bigint := above;                    -- What is here up to this one is not later.
    high bigint := 9223372036854775807;     -- What is here from this one on is later.
    middle bigint := high - 1;              -- First the last entry: most ask for what is recent.
    found bigint;
    found_at timestamptz;
BEGIN
    WHILE high - low > 1 LOOP
        SELECT version, at INTO found, found_at FROM (
            (SELECT source_version AS version, at FROM transfers
              WHERE source = wallet AND source_version > low AND source_version <= middle
              ORDER BY source_version DESC LIMIT 1)
            UNION ALL
            (SELECT destination_version, at FROM transfers
              WHERE destination = wallet
                AND destination_version > low AND destination_version <= middle
              ORDER BY destination_version DESC LIMIT 1)
        ) AS both_sides ORDER BY version DESC LIMIT 1;
        IF found IS NULL THEN
            low := middle;
        ELSIF found_at <= instant THEN
            answer := found;
            low := middle;
        ELSE
            high := found;
        END IF;
        middle := low + (high - low) / 2;
    END LOOP;
    RETURN answer;
END $$;
