//! Erasure on demand: a session, a tenant, a turn or a text, wherever it is.
//!
//! ```text
//! wait for the ingest ─► mark (one transaction) ─► end and empty rounds
//!   ─► taint generations, move aliases off, remove weights ─► erase turns
//!   ─► overwrite the spool ─► rewrite the database ─► audit row
//! ```
//! Every step can be repeated; the marks say what is left to do. An erasure that was killed anywhere
//! is finished by the next one, whatever that one asks for.
//!
//! Invariant: when [`run`] returns a report, no byte of the forgotten turns' text that no other turn
//! holds is in the database, its log, the spool or the rounds, and no alias serves what learned it.

mod report;
mod rounds;
mod subject;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::data_dir::{DataDir, DataDirError};
use crate::feedback::FeedbackId;
use crate::registry::{AliasMove, Registry, RegistryError};
use crate::spool::{self, Position, SpoolError};
use crate::store::{Concerned, ForgetJob, Store, StoreError};
use crate::turn::{Generation, TurnId};

pub use crate::store::Subject;
pub use report::{Plan, Report, describe as describe_result, nothing_matched};
pub use subject::{SubjectError, TEXT_CHARS_MIN, of_key, of_tenant, of_text};

/// Why an erasure is not finished. What was begun goes on with the next call.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry refused.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The spool could not be read or overwritten.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A reserve that a proxy was told to use is not there, so nobody knows what it holds.
    #[error(
        "the reserve {0} is not there: mount its disk; if it is gone for good, delete the file in \
         `reserves` of the data directory that names it"
    )]
    ReserveAway(String),
    /// A round's files could not be removed.
    #[error("round files in {path}: {source}")]
    Rounds {
        /// The file or directory.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Turns wait in the spool: they are not stored, so it is not known whose they are.
    #[error(
        "{0} turns in the spool are not stored yet: let a running proxy catch up, then try again"
    )]
    Behind(u64),
    /// Somebody reads an old state of the database, so its log still holds deleted text.
    #[error("a reader keeps the database's log from being emptied: try again")]
    Busy,
}

/// How to forget.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who asks, for the audit trail: `cli:alice`.
    pub actor: String,
    /// Why, for the audit trail. No name, no text of a turn.
    pub reason: String,
    /// Keep the directories of tainted generations, for an inquiry; they are never served again.
    pub keep_weights: bool,
    /// How long to wait for the ingest, and for readers of the database, milliseconds.
    pub wait_ms_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        let (actor, reason) = ("unknown".to_owned(), String::new());
        Self { actor, reason, keep_weights: false, wait_ms_max: 30_000 }
    }
}

/// How often something that is bound to happen is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Times that aliases are moved off again when somebody else moves them at the same moment.
const MOVES_MAX: usize = 8;

/// Says what [`run`] would do now, and changes nothing.
pub fn plan(data: &DataDir, subject: &Subject) -> Result<Plan, ForgetError> {
    let (store, registry) = open(data)?;
    let concerned = store.concerned(subject, &data.secret()?)?;
    describe(&store, &registry, data, subject.kind(), &concerned)
}

/// Forgets. Returns what was done for this subject; erasures that were interrupted before are
/// finished first. Errors: see [`ForgetError`]; call again.
pub fn run(data: &DataDir, subject: &Subject, options: &Options) -> Result<Report, ForgetError> {
    let (store, registry) = open(data)?;
    wait_for_ingest(&store, data, options)?;
    for job in store.open_forget_jobs()? {
        tracing::info!(job = job.id, kind = job.kind, "finishing an interrupted erasure");
        finish(&store, &registry, data, &job, options)?;
    }
    let concerned = store.concerned(subject, &data.secret()?)?;
    let (actor, reason) = (&options.actor, &options.reason);
    let job = store.begin_forget(subject.kind(), actor, reason, &concerned)?;
    finish(&store, &registry, data, &job, options)
}

fn open(data: &DataDir) -> Result<(Store, Registry), ForgetError> {
    Ok((Store::open(&data.store_path())?, Registry::open(data.registry_dir())?))
}

fn position(store: &Store, boot: &str) -> Option<Position> {
    let pos = store.ingest_pos(boot).ok().flatten()?;
    Some(Position { segment: pos.segment, offset: pos.offset })
}

/// The spool and all reserves.
fn spools(data: &DataDir) -> Result<Vec<PathBuf>, ForgetError> {
    let reserves = data.reserves()?;
    let away = reserves.iter().find(|dir| **dir != data.reserve_dir() && !dir.is_dir());
    match away {
        Some(dir) => Err(ForgetError::ReserveAway(dir.display().to_string())),
        None => Ok(std::iter::once(data.spool_dir()).chain(reserves).collect()),
    }
}

/// What is not stored yet, in the spool and in its reserves.
fn unstored(store: &Store, data: &DataDir) -> Result<spool::Unstored, ForgetError> {
    let mut sum = spool::Unstored::default();
    for dir in spools(data)? {
        let left = spool::unstored(&dir, &mut |boot| position(store, boot))?;
        (sum.ended, sum.open) = (sum.ended + left.ended, sum.open + left.open);
    }
    Ok(sum)
}

fn wait_for_ingest(store: &Store, data: &DataDir, options: &Options) -> Result<(), ForgetError> {
    let since = Instant::now();
    loop {
        let left = unstored(store, data)?;
        if left.ended == 0 {
            return Ok(());
        }
        if since.elapsed() >= Duration::from_millis(options.wait_ms_max) {
            return Err(ForgetError::Behind(left.ended));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn describe(
    store: &Store,
    registry: &Registry,
    data: &DataDir,
    kind: &str,
    concerned: &Concerned,
) -> Result<Plan, ForgetError> {
    let rounds = store.rounds_using(concerned.all())?;
    let tainted = tainted_by(registry, concerned, &rounds)?;
    let left = unstored(store, data)?;
    Ok(Plan {
        kind: kind.to_owned(),
        turns: concerned.turns.iter().copied().collect(),
        hinted: concerned.hinted.iter().copied().collect(),
        feedback: concerned.feedback.iter().copied().collect(),
        rounds: rounds.into_iter().map(|round| round.round_id).collect(),
        aliases: registry.moves_off(&tainted)?,
        tainted: tainted.into_iter().collect(),
        not_stored: left.ended,
        in_flight: left.open,
    })
}

fn tainted_by(
    registry: &Registry,
    concerned: &Concerned,
    rounds: &[crate::store::RoundUse],
) -> Result<BTreeSet<Generation>, ForgetError> {
    let trained = rounds.iter().filter(|round| round.trained);
    let roots = trained.filter_map(|round| round.candidate.clone()).collect();
    let turns: BTreeSet<TurnId> = concerned.all().copied().collect();
    Ok(registry.trained_on(&turns, &roots)?)
}

/// Does all that a job's marks demand, whatever of it is done already.
fn finish(
    store: &Store,
    registry: &Registry,
    data: &DataDir,
    job: &ForgetJob,
    options: &Options,
) -> Result<Report, ForgetError> {
    let concerned = store.forget_marks(job.id)?;
    let plan = describe(store, registry, data, &job.kind, &concerned)?;
    let rounds = store.rounds_using(concerned.all())?;
    for round in &rounds {
        store.stop_round(&round.round_id, "a turn of this round was forgotten")?;
        rounds::empty(&data.rounds_dir(), &round.round_id)?;
    }
    let mut report = Report { plan, ..Report::default() };
    retire(registry, &concerned, &rounds, options, &mut report)?;
    report.erased = store.erase_turns(&concerned.turns)?;
    report.erased.verdicts += store.erase_hints(&concerned.hinted)?;
    let said = store.erase_feedback(&concerned.feedback)?;
    report.erased.feedback += said.feedback;
    report.erased.verdicts += said.verdicts;
    // Without any nothing was deleted now; an earlier, interrupted call may have deleted.
    if !concerned.turns.is_empty() || !concerned.feedback.is_empty() {
        for dir in spools(data)? {
            let goes = |id: TurnId| {
                concerned.turns.contains(&id) || concerned.feedback.contains(&FeedbackId(id.0))
            };
            let scrubbed = spool::scrub(&dir, &goes)?;
            report.spool_records += scrubbed.frames;
            report.quarantined_segments += scrubbed.quarantined;
        }
        rewrite(store, options)?;
    }
    // A round that was past the point of no return may have published meanwhile.
    retire(registry, &concerned, &rounds, options, &mut report)?;
    store.finish_forget(job, &report.counts())?;
    Ok(report)
}

/// Taints what learned from the turns, moves aliases off, and removes the weights.
fn retire(
    registry: &Registry,
    concerned: &Concerned,
    rounds: &[crate::store::RoundUse],
    options: &Options,
    report: &mut Report,
) -> Result<(), ForgetError> {
    let tainted = tainted_by(registry, concerned, rounds)?;
    let reason = "learned from text that was forgotten";
    report.tainted.extend(registry.taint(&tainted, reason)?);
    let mut tries = 1;
    let moved: Vec<AliasMove> = loop {
        match registry.leave_tainted("forget: the generation is tainted") {
            Err(RegistryError::Moved { .. }) if tries < MOVES_MAX => tries += 1,
            moved => break moved?,
        }
    };
    report.moved.extend(moved);
    if !options.keep_weights {
        report.removed.extend(registry.remove_tainted()?);
    }
    Ok(())
}

/// Rewrites the database until nothing deleted is left in its log.
fn rewrite(store: &Store, options: &Options) -> Result<(), ForgetError> {
    let since = Instant::now();
    loop {
        match store.vacuum() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if error.is_passing() => tracing::debug!(%error, "trying again"),
            Err(error) => return Err(error.into()),
        }
        if since.elapsed() >= Duration::from_millis(options.wait_ms_max) {
            return Err(ForgetError::Busy);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
