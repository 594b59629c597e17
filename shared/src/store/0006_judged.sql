-- Judged: how a verdict was made, so that it can be made again and compared.
-- kind = next_state::StateKind; NULL: none was looked at, or judged before there were kinds. llm_*: NULL where no model was asked.
ALTER TABLE verdicts ADD COLUMN kind TEXT;
ALTER TABLE verdicts ADD COLUMN llm_model TEXT;
ALTER TABLE verdicts ADD COLUMN llm_prompt TEXT;              -- hash of the prompt that the policy held
ALTER TABLE verdicts ADD COLUMN llm_prompt_tokens INTEGER;    -- sums over all votes
ALTER TABLE verdicts ADD COLUMN llm_completion_tokens INTEGER;
ALTER TABLE verdicts ADD COLUMN llm_ms INTEGER;               -- from the first question to the last answer
-- Tokens that a judge's model cost, by hour since 1970 (UTC): a restart does not reset the caps.
CREATE TABLE judge_spend (
    judge  TEXT NOT NULL,
    hour   INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    PRIMARY KEY (judge, hour)
) WITHOUT ROWID;
-- Answers of judges' models by a hash of all that was asked. They quote turns and are erased with them.
CREATE TABLE judge_answers (
    key     BLOB PRIMARY KEY,
    turn    TEXT NOT NULL,
    child   TEXT NOT NULL,
    answer  TEXT NOT NULL,
    made_ms INTEGER NOT NULL
);
CREATE INDEX judge_answers_by_turn ON judge_answers (turn);
CREATE INDEX judge_answers_by_child ON judge_answers (child);
CREATE INDEX judge_answers_by_age ON judge_answers (made_ms);
