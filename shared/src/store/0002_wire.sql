-- What the wire parsers and the linking find that must be looked up later.

-- The engine's id of the response: how feedback names a turn.
ALTER TABLE turns ADD COLUMN response_id TEXT;
CREATE INDEX turns_by_response ON turns (response_id) WHERE response_id IS NOT NULL;
-- Keyed hashes that tell apart who shares a credential: the person that the client names, and the client itself.
ALTER TABLE turns ADD COLUMN person TEXT NOT NULL DEFAULT '';
ALTER TABLE turns ADD COLUMN client TEXT NOT NULL DEFAULT '';
-- 1: the request was sent before; `repeat_of` says by which turn, if that is known.
ALTER TABLE turns ADD COLUMN retry INTEGER NOT NULL DEFAULT 0;
