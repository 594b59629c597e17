//! One process's spool, read as whole turns.
//!
//! A `Begin` waits here until its `Done` comes. Small ones are kept in memory up to a limit, of
//! others only the position is kept and the frame is read again. Items before the stored position
//! are replayed to rebuild this state, silently.
//!
//! Invariant: a segment is released only when everything before the committed position is stored
//! and no turn that began in it, or has parts in it, is still open.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::PathBuf;

use hone_shared::feedback::Feedback;
use hone_shared::spool::{ClaimedDir, DirReader, Follower, Item, Position, SpoolError};
use hone_shared::store::IngestPos;
use hone_shared::turn::{Begin, Done, DropReason, Gap, Part, Record, TurnId};

use super::IngestConfig;
use super::parts::Parts;

const BEGIN: u8 = 1;
const DONE: u8 = 2;
const FEEDBACK: u8 = 4;
const PART: u8 = 5;

/// What a spool says next.
#[derive(Debug)]
pub(super) enum Event {
    /// A turn that ended, or whose process died (`None`).
    Turn(Box<(Begin, Option<Done>)>),
    /// The end of a turn whose beginning is not here.
    Orphan(TurnId),
    /// Turns that the tap dropped.
    Gap(Gap),
    /// What was said about a turn.
    Feedback(Box<Feedback>),
    /// A piece of it that damage took.
    FeedbackLost,
    /// One turn, at least, that damage took.
    Lost(DropReason),
    /// Nothing that is to be stored.
    Nothing,
}

#[derive(Debug)]
struct OpenTurn {
    at: Position,
    /// Kept in memory if small enough.
    begin: Option<Begin>,
    /// The `Begin` was damaged and is counted already.
    lost: bool,
    parts: Parts,
}

/// One process's spool.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) boot: String,
    pub(super) follower: Option<Follower>,
    claim: Option<ClaimedDir>,
    dirs: Vec<PathBuf>,
    reader: DirReader,
    /// Items before this were stored by an earlier run.
    applied: Position,
    resumed: bool,
    open: BTreeMap<TurnId, OpenTurn>,
    open_bytes: usize,
}

impl Source {
    /// The spool of this process.
    pub(super) fn live(follower: Follower) -> Self {
        let (boot, dirs) = (follower.boot().to_owned(), follower.dirs().to_owned());
        let reader = DirReader::live(follower.clone());
        Self::new(boot, dirs, reader, Some(follower), None)
    }

    /// The spool of a dead process.
    pub(super) fn dead(claim: ClaimedDir) -> Self {
        let (boot, dirs) = (claim.boot.clone(), claim.dirs.clone());
        let reader = DirReader::dead_in(dirs.clone());
        Self::new(boot, dirs, reader, None, Some(claim))
    }

    fn new(
        boot: String,
        dirs: Vec<PathBuf>,
        reader: DirReader,
        follower: Option<Follower>,
        claim: Option<ClaimedDir>,
    ) -> Self {
        let (open, applied) = (BTreeMap::new(), Position::default());
        let (resumed, open_bytes) = (false, 0);
        Self { boot, follower, claim, dirs, reader, applied, resumed, open, open_bytes }
    }

    /// Whether it is this process's own.
    pub(super) fn is_own(&self) -> bool {
        self.follower.is_some()
    }

    /// Whether it is not yet known what an earlier run has stored.
    pub(super) fn is_new(&self) -> bool {
        !self.resumed
    }

    /// Says what an earlier run has stored.
    pub(super) fn resume(&mut self, pos: Option<IngestPos>) {
        self.resumed = true;
        if let Some(IngestPos { segment, offset, .. }) = pos {
            self.applied = Position { segment, offset };
        }
    }

    /// Up to where the spool was read.
    pub(super) fn read_upto(&self) -> Position {
        self.reader.position()
    }

    /// Bytes that can be read; of a dead process's, only whether there may be any.
    pub(super) fn ahead_bytes(&self) -> u64 {
        let at = self.reader.position();
        self.follower.as_ref().map_or(1, |follower| follower.ahead_bytes(at))
    }

    /// Turns that wait for their end.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// Where reading goes on; at least what was stored before.
    pub(super) fn pos(&self) -> IngestPos {
        let Position { segment, offset } = self.reader.position().max(self.applied);
        IngestPos { boot: self.boot.clone(), segment, offset }
    }

    /// The next event; `None` when there is nothing more to read for now.
    pub(super) fn next(&mut self, cfg: &IngestConfig) -> Result<Option<Event>, SpoolError> {
        if let Some(overdue) = self.overdue(cfg) {
            return self.settle(overdue).map(Some);
        }
        let Some((at, item)) = self.reader.read_next()? else { return Ok(None) };
        let fresh = at >= self.applied;
        let event = match item {
            Item::Record(Record::Begin(begin)) => {
                self.begin(at, begin, cfg, fresh);
                Event::Nothing
            }
            Item::Record(Record::Done(done)) => self.done(done, fresh)?,
            Item::Record(Record::Part(part)) => self.part(at, part),
            Item::Record(Record::Gap(gap)) if fresh => Event::Gap(gap),
            Item::Record(Record::Feedback(feedback)) if fresh => Event::Feedback(feedback),
            Item::Damaged { kind: FEEDBACK, .. } if fresh => Event::FeedbackLost,
            Item::Damaged { kind: BEGIN, turn_id } => {
                let turn = OpenTurn { at, begin: None, lost: true, parts: Parts::default() };
                self.open.insert(turn_id, turn);
                if fresh { Event::Lost(DropReason::Undecodable) } else { Event::Nothing }
            }
            Item::Damaged { kind: DONE, turn_id } if self.open.contains_key(&turn_id) => {
                self.settle(turn_id)?
            }
            Item::Damaged { kind: PART, turn_id } => {
                self.open.get_mut(&turn_id).into_iter().for_each(|turn| turn.parts.damaged());
                Event::Nothing
            }
            Item::Lost { .. } if fresh => Event::Lost(DropReason::Undecodable),
            _ => Event::Nothing,
        };
        Ok(Some(event))
    }

    fn begin(&mut self, at: Position, begin: Begin, cfg: &IngestConfig, fresh: bool) {
        let (id, bytes) = (begin.turn_id, weight(&begin));
        let keep = fresh && self.open_bytes + bytes <= cfg.open_bytes_max;
        self.open_bytes += if keep { bytes } else { 0 };
        let (begin, parts) = (keep.then_some(begin), Parts::default());
        let turn = OpenTurn { at, begin, lost: false, parts };
        let replaced = self.open.insert(id, turn);
        self.forget_bytes(replaced.as_ref());
    }

    /// Of a turn that is not open, it was written twice, and its end too.
    fn part(&mut self, at: Position, part: Part) -> Event {
        if let Some(turn) = self.open.get_mut(&part.turn_id) {
            turn.parts.note(at, part);
        }
        Event::Nothing
    }

    fn forget_bytes(&mut self, turn: Option<&OpenTurn>) {
        let bytes =
            turn.map_or(0, |turn| turn.parts.held() + turn.begin.as_ref().map_or(0, weight));
        self.open_bytes = self.open_bytes.saturating_sub(bytes);
    }

    fn done(&mut self, done: Done, fresh: bool) -> Result<Event, SpoolError> {
        let id = done.turn_id;
        let Some(turn) = self.open.get(&id) else {
            return Ok(if fresh { Event::Orphan(id) } else { Event::Nothing });
        };
        if !fresh || turn.lost {
            let turn = self.open.remove(&id);
            self.forget_bytes(turn.as_ref());
            return Ok(Event::Nothing);
        }
        let begin = match &turn.begin {
            Some(_) => None,
            None => self.read_again(turn.at)?,
        };
        let done = turn.parts.join(done, &self.reader)?;
        let mut turn = self.open.remove(&id);
        self.forget_bytes(turn.as_ref());
        let kept = turn.as_mut().and_then(|turn| turn.begin.take());
        Ok(match kept.or(begin) {
            Some(begin) => Event::Turn(Box::new((begin, Some(done)))),
            None => Event::Lost(DropReason::BeginLost),
        })
    }

    fn read_again(&self, at: Position) -> Result<Option<Begin>, SpoolError> {
        match self.reader.read_again(at)? {
            Some(Record::Begin(begin)) => Ok(Some(begin)),
            _ => Ok(None),
        }
    }

    /// The oldest open turn, if it is one too many. Its age says nothing: a process that lives will
    /// say how it ended, and a dead one's may say so further on, however long ago that was.
    fn overdue(&self, cfg: &IngestConfig) -> Option<TurnId> {
        let (id, _) = self.open.first_key_value()?;
        (self.open.len() > cfg.open_turns_max).then_some(*id)
    }

    /// Ends an open turn as its process ended it: with what there is of a response.
    fn settle(&mut self, id: TurnId) -> Result<Event, SpoolError> {
        let Some(turn) = self.open.get(&id) else { return Ok(Event::Nothing) };
        let begin = match (turn.lost, &turn.begin) {
            (true, _) => None,
            (false, Some(begin)) => Some(begin.clone()),
            (false, None) => self.read_again(turn.at)?,
        };
        let (lost, done) = (turn.lost, turn.parts.unended(id, &self.reader)?);
        let turn = self.open.remove(&id);
        self.forget_bytes(turn.as_ref());
        Ok(match begin {
            Some(begin) => Event::Turn(Box::new((begin, done))),
            None if lost => Event::Nothing,
            None => Event::Lost(DropReason::BeginLost),
        })
    }

    /// Once nothing more will be written: the next turn that nobody ended. `None`: all are settled.
    pub(super) fn next_unended(&mut self) -> Result<Option<Event>, SpoolError> {
        let first = self.open.first_key_value().map(|(id, _)| *id);
        first.map(|id| self.settle(id)).transpose()
    }

    /// Whether nothing more will be written to it.
    pub(super) fn is_over(&self) -> bool {
        self.follower.as_ref().is_none_or(Follower::closed)
    }

    /// Deletes the segments that nothing needs any more. Call after a commit.
    pub(super) fn release(&mut self, cfg: &IngestConfig) -> Result<(), SpoolError> {
        let read = self.reader.position().segment;
        let mut keep: BTreeSet<u32> = self.open.values().map(|turn| turn.at.segment).collect();
        let parts = self.open.values().flat_map(|turn| turn.parts.segments());
        let mut pinned: BTreeSet<u32> = parts.copied().filter(|number| *number < read).collect();
        pinned.retain(|number| !keep.contains(number));
        while pinned.len() > cfg.pinned_segments_max
            && let Some(oldest) = pinned.pop_first()
        {
            self.unpin(oldest, cfg)?;
        }
        keep.append(&mut pinned);
        self.reader.delete_before(read, &keep)
    }

    /// Takes the parts that lie in the first segments into memory: streams that never end must not
    /// keep the spool from shrinking.
    fn unpin(&mut self, upto: u32, cfg: &IngestConfig) -> Result<(), SpoolError> {
        for turn in self.open.values_mut() {
            if turn.parts.segments().first().is_none_or(|first| *first > upto) {
                continue;
            }
            let (room, held) =
                (cfg.open_bytes_max.saturating_sub(self.open_bytes), turn.parts.held());
            turn.parts.load(upto, &self.reader, room)?;
            self.open_bytes += turn.parts.held() - held;
        }
        Ok(())
    }

    /// Deletes all that is left and the directory itself. Call when all is committed.
    pub(super) fn finish(mut self) -> Result<(), SpoolError> {
        self.reader.delete_before(u32::MAX, &BTreeSet::new())?;
        match self.claim.take() {
            Some(claim) => claim.remove(),
            None => self.dirs.iter().try_for_each(|dir| match std::fs::remove_dir(dir) {
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    Ok(())
                }
                removed => removed.map_err(|source| SpoolError::Io { path: dir.clone(), source }),
            }),
        }
    }
}

fn weight(begin: &Begin) -> usize {
    begin.body.len() + 1024
}
