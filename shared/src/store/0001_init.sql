-- The first schema. Times are milliseconds since 1970 UTC. `flags` are the bits of `store::flags`.

-- Content-addressed bodies: messages, parameters, raw bodies. hash = BLAKE3(tenant, bytes)[..16].
-- bytes = one codec byte (0 plain, 1 zstd with a u32 raw length before it), then the content.
CREATE TABLE bodies (
    id    INTEGER PRIMARY KEY,
    hash  BLOB NOT NULL UNIQUE,
    bytes BLOB NOT NULL
) STRICT;

-- Conversations as a tree of messages: a turn that resends its history shares all nodes but its own new ones.
-- hash = BLAKE3(parent's hash, message's hash)[..16].
CREATE TABLE nodes (
    id      INTEGER PRIMARY KEY,
    hash    BLOB NOT NULL UNIQUE,
    parent  INTEGER REFERENCES nodes (id),
    message INTEGER NOT NULL REFERENCES bodies (id)
) STRICT;

CREATE TABLE turns (
    id                INTEGER PRIMARY KEY,
    turn_id           TEXT NOT NULL UNIQUE,
    session_id        TEXT NOT NULL,
    parent            INTEGER REFERENCES turns (id),
    parent_choice     INTEGER NOT NULL,
    answer_at         INTEGER,          -- index in the prompt of the parent's answer; the next state begins after it
    link              TEXT,
    link_confidence   REAL NOT NULL,
    repeat_of         TEXT,             -- the newest earlier turn with the same prompt
    route             TEXT NOT NULL,
    mode              TEXT NOT NULL,
    alias             TEXT NOT NULL,
    tenant            TEXT NOT NULL,
    method            TEXT NOT NULL,
    path              TEXT NOT NULL,
    model             TEXT,
    generation        TEXT NOT NULL,
    policy_version    INTEGER NOT NULL, -- the bits of a u64
    started_ms        INTEGER NOT NULL,
    first_byte_ms     INTEGER,
    duration_ms       INTEGER,
    status            INTEGER NOT NULL,
    outcome           TEXT NOT NULL,
    stream            INTEGER NOT NULL,
    attempts          INTEGER NOT NULL,
    prompt            INTEGER REFERENCES nodes (id),
    prompt_len        INTEGER NOT NULL,
    params            INTEGER REFERENCES bodies (id),
    request_headers   TEXT NOT NULL,
    response_headers  TEXT NOT NULL,
    request_bytes     INTEGER NOT NULL,
    response_bytes    INTEGER NOT NULL,
    raw_request       INTEGER REFERENCES bodies (id),
    raw_response      INTEGER REFERENCES bodies (id),
    prompt_tokens     INTEGER,
    completion_tokens INTEGER,
    flags             INTEGER NOT NULL,
    judgeable         INTEGER NOT NULL, -- 1: complete, whole, read without doubt, and its mode trains
    next_states       INTEGER NOT NULL, -- how many children give it a next state
    judged            INTEGER NOT NULL  -- 1: has a verdict
) STRICT;
CREATE INDEX turns_by_parent ON turns (parent, parent_choice) WHERE parent IS NOT NULL;
CREATE INDEX turns_by_session ON turns (session_id);
CREATE INDEX turns_to_judge ON turns (id) WHERE judgeable = 1 AND judged = 0 AND next_states > 0;

CREATE TABLE choices (
    turn          INTEGER NOT NULL REFERENCES turns (id),
    idx           INTEGER NOT NULL,
    message       INTEGER NOT NULL REFERENCES bodies (id),
    finish_reason TEXT,
    PRIMARY KEY (turn, idx)
) STRICT, WITHOUT ROWID;

-- What a stored turn can be found by. kind = link::HashKind.
CREATE TABLE link_index (
    kind   INTEGER NOT NULL,
    hash   BLOB NOT NULL,
    turn   INTEGER NOT NULL,
    choice INTEGER NOT NULL,
    PRIMARY KEY (kind, hash, turn, choice)
) STRICT, WITHOUT ROWID;

-- Prefixes of a prompt whose turn was not there yet: resolved when it is stored, forgotten after a day.
CREATE TABLE pending_parents (
    hash      BLOB NOT NULL,
    turn      INTEGER NOT NULL,
    answer_at INTEGER NOT NULL,
    made_ms   INTEGER NOT NULL,
    PRIMARY KEY (hash, turn)
) STRICT, WITHOUT ROWID;
CREATE INDEX pending_by_turn ON pending_parents (turn);
CREATE INDEX pending_by_age ON pending_parents (made_ms);

CREATE TABLE verdicts (
    turn      INTEGER PRIMARY KEY REFERENCES turns (id),
    child     TEXT NOT NULL,
    verdict   INTEGER NOT NULL CHECK (verdict IN (-1, 0, 1)),
    source    TEXT NOT NULL,
    reason    TEXT NOT NULL,
    votes     TEXT NOT NULL,
    hints     TEXT NOT NULL,
    judge     TEXT NOT NULL,
    judged_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE rounds (
    round_id    TEXT PRIMARY KEY,
    route       TEXT NOT NULL,
    state       TEXT NOT NULL,
    started_ms  INTEGER NOT NULL,
    finished_ms INTEGER,
    incumbent   TEXT NOT NULL,
    candidate   TEXT,
    reason      TEXT NOT NULL,
    metrics     TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE round_turns (
    round_id TEXT NOT NULL REFERENCES rounds (round_id),
    turn     INTEGER NOT NULL REFERENCES turns (id),
    split    TEXT NOT NULL,
    PRIMARY KEY (round_id, turn)
) STRICT, WITHOUT ROWID;
CREATE INDEX round_turns_by_turn ON round_turns (turn);

CREATE TABLE drops (
    route   TEXT NOT NULL,
    reason  TEXT NOT NULL,
    count   INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    PRIMARY KEY (route, reason)
) STRICT, WITHOUT ROWID;

-- How far each process's spool is stored. Written in the transaction of the turns themselves.
CREATE TABLE ingest_pos (
    boot    TEXT PRIMARY KEY,
    segment INTEGER NOT NULL,
    offset  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
