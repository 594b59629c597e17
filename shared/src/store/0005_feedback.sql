-- Feedback: what people and programs say about turns and sessions by the API.

-- One row per part. turn: the turn that it is about; of a session, a turn of it. NULL: that turn is not stored
-- yet; `target` says what it waits for ('' once it is found). tenant '*': an operator's, about any tenant's turn.
-- settled: 0 = the judge has not seen it, 1 = it made or changed a verdict, 2 = it came too late or made none.
CREATE TABLE feedback (
    id          INTEGER PRIMARY KEY,
    feedback_id TEXT NOT NULL,
    kind        TEXT NOT NULL,
    shape       TEXT NOT NULL,
    tenant      TEXT NOT NULL,
    turn        INTEGER REFERENCES turns (id),
    of_session  INTEGER NOT NULL,
    target      TEXT NOT NULL,
    value       REAL,
    text        TEXT,           -- a comment, or a demonstration's message as JSON
    weight      REAL NOT NULL,
    made_ms     INTEGER NOT NULL,
    stored_ms   INTEGER NOT NULL,
    settled     INTEGER NOT NULL,
    UNIQUE (feedback_id, kind)
) STRICT;
CREATE INDEX feedback_by_turn ON feedback (turn) WHERE turn IS NOT NULL;
CREATE INDEX feedback_by_tenant ON feedback (tenant);
CREATE INDEX feedback_waiting ON feedback (target, tenant) WHERE turn IS NULL;
CREATE INDEX feedback_waiting_by_tenant ON feedback (tenant, stored_ms) WHERE turn IS NULL;
CREATE INDEX feedback_waiting_by_age ON feedback (stored_ms) WHERE turn IS NULL;
CREATE INDEX feedback_unsettled ON feedback (turn) WHERE settled = 0 AND turn IS NOT NULL AND weight > 0;

-- Feedback that was accepted and is not kept, by reason.
CREATE TABLE feedback_drops (
    reason  TEXT PRIMARY KEY,
    count   INTEGER NOT NULL,
    last_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A turn that nothing follows can be judged by feedback alone: child is NULL then.
CREATE TABLE verdicts_alone (
    turn      INTEGER PRIMARY KEY REFERENCES turns (id),
    child     TEXT,
    verdict   INTEGER NOT NULL CHECK (verdict IN (-1, 0, 1)),
    source    TEXT NOT NULL,
    reason    TEXT NOT NULL,
    votes     TEXT NOT NULL,
    hints     TEXT NOT NULL,
    judge     TEXT NOT NULL,
    judged_ms INTEGER NOT NULL
) STRICT;
INSERT INTO verdicts_alone SELECT turn, child, verdict, source, reason, votes, hints, judge, judged_ms FROM verdicts;
DROP TABLE verdicts;
ALTER TABLE verdicts_alone RENAME TO verdicts;
CREATE INDEX verdicts_by_child ON verdicts (child);
