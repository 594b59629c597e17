-- Privacy: who changed what, what was redacted, what was forgotten, and the way back from content to its users.

-- What people and their tools changed. Never any content of turns.
CREATE TABLE audit (
    id     INTEGER PRIMARY KEY,
    at_ms  INTEGER NOT NULL,
    actor  TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    before TEXT,
    after  TEXT,
    reason TEXT NOT NULL
) STRICT;

-- How often each redaction rule hit in a turn. Never what it hit.
CREATE TABLE turn_redactions (
    turn  INTEGER NOT NULL,
    rule  TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (turn, rule)
) STRICT, WITHOUT ROWID;

-- Erasures. One without finished_ms was interrupted and is finished by the next one.
CREATE TABLE forget_jobs (
    id          INTEGER PRIMARY KEY,
    began_ms    INTEGER NOT NULL,
    actor       TEXT NOT NULL,
    kind        TEXT NOT NULL,  -- session, tenant, turn or text; never the subject itself
    reason      TEXT NOT NULL,
    options     TEXT NOT NULL,
    finished_ms INTEGER
) STRICT;

-- Ids of forgotten turns: a copy that turns up later (spool, round) is recognised and not used.
-- role: 0 = forgotten itself; 1 = stays, but what it taught came from the text of a forgotten turn.
CREATE TABLE forgotten (
    turn_id TEXT NOT NULL,
    role    INTEGER NOT NULL,
    job     INTEGER NOT NULL REFERENCES forget_jobs (id),
    PRIMARY KEY (turn_id, role, job)
) STRICT, WITHOUT ROWID;
CREATE INDEX forgotten_by_job ON forgotten (job);

-- Expiry by route and age.
CREATE INDEX turns_by_age ON turns (route, started_ms);

-- Who uses a body or node: it goes with its last user. Row numbers grow, so entries are appended.
CREATE INDEX nodes_by_parent ON nodes (parent);
CREATE INDEX nodes_by_message ON nodes (message);
CREATE INDEX turns_by_prompt ON turns (prompt);
CREATE INDEX turns_by_params ON turns (params);
CREATE INDEX turns_by_raw_request ON turns (raw_request) WHERE raw_request IS NOT NULL;
CREATE INDEX turns_by_raw_response ON turns (raw_response) WHERE raw_response IS NOT NULL;
CREATE INDEX choices_by_message ON choices (message);
CREATE INDEX verdicts_by_child ON verdicts (child);
