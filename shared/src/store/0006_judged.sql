-- Judged: how a verdict was made, so that it can be made again and compared.
-- kind = next_state::StateKind; NULL: none was looked at, or judged before there were kinds. llm_*: NULL where no model was asked.
ALTER TABLE verdicts ADD COLUMN kind TEXT;
ALTER TABLE verdicts ADD COLUMN llm_model TEXT;
ALTER TABLE verdicts ADD COLUMN llm_prompt TEXT;              -- hash of the prompt that the policy held
ALTER TABLE verdicts ADD COLUMN llm_prompt_tokens INTEGER;    -- sums over all votes
ALTER TABLE verdicts ADD COLUMN llm_completion_tokens INTEGER;
ALTER TABLE verdicts ADD COLUMN llm_ms INTEGER;               -- from the first question to the last answer
