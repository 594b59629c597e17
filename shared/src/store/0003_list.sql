-- What the operator's lists and the ingest's speed need.

-- A facet is one combination of what turns are listed by. A list merges the facets that match, newest first, so that
-- its cost depends on their number and not on the number of turns. verdict 9 = none yet. `others` = 1: more than one
-- combination, because there were too many; its turns are looked at one by one.
CREATE TABLE facets (
    id      INTEGER PRIMARY KEY,
    route   TEXT NOT NULL,
    tenant  TEXT NOT NULL,
    outcome TEXT NOT NULL,
    model   TEXT NOT NULL,
    verdict INTEGER NOT NULL,
    others  INTEGER NOT NULL,
    UNIQUE (route, tenant, outcome, model, verdict, others)
) STRICT;
ALTER TABLE turns ADD COLUMN facet INTEGER REFERENCES facets (id);
INSERT INTO facets (route, tenant, outcome, model, verdict, others)
    SELECT DISTINCT t.route, t.tenant, t.outcome, coalesce(t.model, ''), coalesce(v.verdict, 9), 0
    FROM turns t LEFT JOIN verdicts v ON v.turn = t.id;
UPDATE turns SET facet = (
    SELECT f.id FROM facets f
    WHERE f.route = turns.route AND f.tenant = turns.tenant AND f.outcome = turns.outcome
      AND f.model = coalesce(turns.model, '') AND f.others = 0
      AND f.verdict = coalesce((SELECT v.verdict FROM verdicts v WHERE v.turn = turns.id), 9));
CREATE INDEX turns_by_facet ON turns (facet, started_ms);
CREATE INDEX turns_by_time ON turns (started_ms);
DROP INDEX turns_by_session;
CREATE INDEX turns_by_session ON turns (session_id, started_ms);

-- Bodies and nodes are only ever appended and read by id. Who writes remembers the hashes of recent ones, so that
-- resent history is stored once; an index over all hashes would be written at random places for every message, for
-- ever. Whoever trusts a remembered id checks the hash of its row.
CREATE TABLE bodies_appended (
    id    INTEGER PRIMARY KEY,
    hash  BLOB NOT NULL,
    bytes BLOB NOT NULL
) STRICT;
INSERT INTO bodies_appended SELECT id, hash, bytes FROM bodies;
DROP TABLE bodies;
ALTER TABLE bodies_appended RENAME TO bodies;
CREATE TABLE nodes_appended (
    id      INTEGER PRIMARY KEY,
    hash    BLOB NOT NULL,
    parent  INTEGER REFERENCES nodes (id),
    message INTEGER NOT NULL REFERENCES bodies (id)
) STRICT;
INSERT INTO nodes_appended SELECT id, hash, parent, message FROM nodes;
DROP TABLE nodes;
ALTER TABLE nodes_appended RENAME TO nodes;

-- When turns were not recorded: one row per note of the tap's. `drops` holds the sums.
CREATE TABLE gaps (
    id      INTEGER PRIMARY KEY,
    route   TEXT NOT NULL,
    reason  TEXT NOT NULL,
    count   INTEGER NOT NULL,
    from_ms INTEGER NOT NULL,
    to_ms   INTEGER NOT NULL
) STRICT;
