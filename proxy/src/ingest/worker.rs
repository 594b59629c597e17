//! The ingest thread: gathers batches, commits them, and never gives up on a store that is locked.
//!
//! Invariant: a batch is held until it is committed; reading goes on only after that.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use hone_shared::clock::now_ms;
use hone_shared::spool::{Follower, claim_dead_in};
use hone_shared::store::{IngestFeedback, Inserted, Store, StoreError, TurnReader};
use hone_shared::turn::{DropReason, Gap};

use super::gathered::Gathered;
use super::retention;
use super::source::{Event, Source};
use super::turn_taking::{self, TurnTaking};
use super::{IngestConfig, Shared, lock};

/// How often old waiting children are forgotten and the log is folded into the file, while idle.
const UPKEEP: Duration = Duration::from_secs(60);

/// Events between two looks at whether requests want the processor.
const LOOK_EVERY: u32 = 64;

/// Why the worker stops before everything is stored.
struct OutOfTime;

pub(super) struct Worker {
    cfg: IngestConfig,
    reader: TurnReader,
    shared: Arc<Shared>,
    store: Option<Store>,
    /// Device and inode of the store's file.
    store_file: Option<(u64, u64)>,
    sources: Vec<Source>,
    /// Directories that could not be removed; they stay until the next start.
    stuck: BTreeSet<String>,
    /// Whether a spool could not be read at the last try.
    unreadable: bool,
    adopted_at: Option<Instant>,
    upkeep_at: Instant,
    /// Only one spool is being read, so that waiting for it holds up no other.
    alone: bool,
    /// Made on the ingest's own thread, whose clock it reads.
    turn_taking: Option<TurnTaking>,
}

impl Worker {
    pub(super) fn new(cfg: IngestConfig, shared: Arc<Shared>) -> Self {
        let (sources, stuck) = (Vec::new(), BTreeSet::new());
        let upkeep_at = Instant::now();
        Self {
            reader: TurnReader::new(cfg.secret),
            cfg,
            shared,
            store: None,
            store_file: None,
            sources,
            stuck,
            unreadable: false,
            adopted_at: None,
            upkeep_at,
            alone: false,
            turn_taking: None,
        }
    }

    /// Runs until it is stopped and everything is stored, or stopping takes too long.
    pub(super) fn run(&mut self) {
        // On Linux the calling thread's alone. Without it everything works, only less evenly.
        if let Err(error) = rustix::process::setpriority_process(None, self.cfg.nice) {
            tracing::debug!(%error, "the ingest keeps the priority of the others");
        }
        self.turn_taking = Some(TurnTaking::new(&self.cfg));
        loop {
            self.find_sources();
            // Before the pass, so that what was written before the stop is read after it.
            let stopping = lock(&self.shared.stop).is_some();
            match self.pass() {
                Ok(true) => self.upkeep_if_due(),
                Ok(false) if stopping => return self.stopped(),
                Ok(false) => self.idle(),
                Err(OutOfTime) => {
                    tracing::warn!(
                        "the store was not reachable in time; the rest stays in the spool"
                    );
                    return;
                }
            }
        }
    }

    fn stopped(&mut self) {
        if let Some(store) = &self.store
            && let Err(error) = store.checkpoint()
        {
            tracing::debug!(%error, "the log was not folded into the store");
        }
    }

    /// New spools of this process, at once; those of dead ones, now and then.
    fn find_sources(&mut self) {
        let own = Follower::take_unread(&self.cfg.spool_dir);
        self.sources.extend(own.into_iter().map(Source::live));
        let every = Duration::from_millis(self.cfg.adopt_every_ms);
        if self.adopted_at.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        self.adopted_at = Some(Instant::now());
        let skip = |boot: &str| {
            self.stuck.contains(boot) || self.sources.iter().any(|source| source.boot == boot)
        };
        let mut roots = vec![self.cfg.spool_dir.clone()];
        roots.extend(self.cfg.reserve_dir.clone());
        match claim_dead_in(&roots, &skip) {
            Ok(claimed) => {
                for claim in claimed {
                    tracing::info!(boot = claim.boot, "adopting the spool of a dead process");
                    self.sources.push(Source::dead(claim));
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    /// One batch of each source. Returns whether there was anything to do.
    fn pass(&mut self) -> Result<bool, OutOfTime> {
        let mut busy = false;
        self.alone = self.sources.len() == 1;
        let mut sources = std::mem::take(&mut self.sources).into_iter();
        let mut kept = Vec::new();
        let mut result = Ok(());
        for mut source in sources.by_ref() {
            match self.step(&mut source) {
                Ok((worked, over)) => {
                    busy |= worked || over;
                    match over {
                        true => self.finish(source),
                        false => kept.push(source),
                    }
                }
                Err(out_of_time) => {
                    kept.push(source);
                    result = Err(out_of_time);
                    break;
                }
            }
        }
        kept.extend(sources);
        self.sources = kept;
        let mut figures = lock(&self.shared.figures);
        figures.stats.open = self.sources.iter().map(Source::open).sum();
        if !busy {
            figures.behind_since_ms = None;
        }
        drop(figures);
        result.map(|()| busy)
    }

    /// One batch of one source. Returns whether anything was stored, and whether the source is
    /// over.
    fn step(&mut self, source: &mut Source) -> Result<(bool, bool), OutOfTime> {
        if source.is_new() {
            let stored = self.with_store(|store| store.ingest_pos(&source.boot))?;
            source.resume(stored);
        }
        let mut gathered = self.gather(source);
        self.count_orphans(&mut gathered)?;
        if gathered.is_empty() {
            return Ok((!gathered.dry, gathered.over));
        }
        let oldest = gathered.ended_ms.map_or_else(now_ms, |(oldest, _)| oldest);
        lock(&self.shared.figures).behind_since_ms.get_or_insert(oldest);
        for reason in &gathered.lost {
            let (route, at_ms) = (String::new(), now_ms());
            let gap = Gap { route, reason: *reason, count: 1, from_ms: at_ms, at_ms };
            gathered.batch.gaps.push(gap);
        }
        self.prepare_feedback(&mut gathered)?;
        gathered.batch.pos = Some(source.pos());
        let batch = &gathered.batch;
        let (inserted, took) = self.with_store(|store| {
            let began = Instant::now();
            store.commit_batch(batch).map(|inserted| (inserted, began.elapsed()))
        })?;
        self.count(source.is_own(), &inserted, &gathered);
        self.measure(took);
        if let Err(error) = source.release(&self.cfg) {
            self.failed(&error);
        }
        Ok((true, gathered.over))
    }

    /// Reads events until the batch is full or the source is dry. What cannot be read now is read
    /// later.
    fn gather(&mut self, source: &mut Source) -> Gathered {
        let mut gathered = Gathered::default();
        let mut events = 0u32;
        while gathered.batch.turns.len() + gathered.feedback.len() < self.cfg.batch_turns_max
            && gathered.bytes < self.cfg.batch_bytes_max
        {
            let look = events.is_multiple_of(LOOK_EVERY);
            if look && self.gives_way(source, gathered.is_empty()) {
                break; // What is gathered is committed first, so that it does not wait half done.
            }
            events = events.wrapping_add(1);
            // Asked before reading: what was written before the end is then certain to be read.
            let over = source.is_over();
            let event = match source.next(&self.cfg) {
                Ok(None) if over => source.next_unended(),
                other => other,
            };
            match event {
                Ok(Some(event)) => self.take(event, &mut gathered),
                Ok(None) if !over && self.wait_for_more(source, &gathered) => {}
                Ok(None) => {
                    (gathered.dry, gathered.over) = (true, over);
                    self.caught_up();
                    break;
                }
                Err(error) => {
                    self.failed(&error);
                    (gathered.dry, self.unreadable) = (true, true);
                    break;
                }
            }
        }
        gathered
    }

    /// What comes from now on may wait again.
    fn caught_up(&mut self) {
        if let Some(taking) = &mut self.turn_taking {
            taking.caught_up();
        }
    }

    /// Whether requests keep the processors busy and what is to be read may wait; with `wait`, waits
    /// until that is no longer so.
    fn gives_way(&mut self, source: &Source, wait: bool) -> bool {
        let Some(taking) = &mut self.turn_taking else { return false };
        loop {
            let waiting = source.ahead_bytes();
            let stop = lock(&self.shared.stop);
            if waiting == 0 || stop.is_some() || !taking.gives_way(waiting) {
                return false;
            }
            if !wait {
                return true;
            }
            lock(&self.shared.figures).behind_since_ms.get_or_insert_with(now_ms);
            let goes_on = |stop: &mut Option<Instant>| stop.is_none();
            let wait = turn_taking::LOOK;
            drop(self.shared.stopping.wait_timeout_while(stop, wait, goes_on));
        }
    }

    /// Waits for more of a batch that is neither full nor old. `false`: it is to be committed now.
    fn wait_for_more(&self, source: &Source, gathered: &Gathered) -> bool {
        let Some(follower) = source.follower.as_ref().filter(|_| self.alone) else { return false };
        let stopping = || lock(&self.shared.stop).is_some();
        let Some(since) = gathered.since.filter(|_| !stopping()) else { return false };
        let left = Duration::from_millis(self.cfg.batch_ms_max).saturating_sub(since.elapsed());
        if left.is_zero() {
            return false;
        }
        follower.wait(source.read_upto(), left);
        true
    }

    fn take(&mut self, event: Event, gathered: &mut Gathered) {
        if !matches!(event, Event::Nothing) {
            gathered.since.get_or_insert_with(Instant::now);
        }
        match event {
            Event::Turn(turn) => {
                let (begin, done) = *turn;
                let lasted = done.as_ref().map_or(0, |done| done.duration_ms.cast_signed());
                let end = begin.started_ms.saturating_add(lasted);
                let (oldest, youngest) = gathered.ended_ms.unwrap_or((end, end));
                gathered.ended_ms = Some((oldest.min(end), youngest.max(end)));
                gathered.bytes +=
                    begin.body.len() + done.as_ref().map_or(0, |done| done.body.len());
                gathered.ids.insert(begin.turn_id);
                let redactions = self.cfg.policies.redactions_of(&begin.route);
                gathered.batch.turns.push(self.reader.read(begin, done, &redactions));
            }
            Event::Orphan(turn) => gathered.orphans.push(turn),
            Event::Gap(gap) => gathered.batch.gaps.push(gap),
            Event::Feedback(feedback) => {
                gathered.bytes += feedback.weight_bytes();
                gathered.feedback.push(*feedback);
            }
            Event::FeedbackLost => gathered.batch.feedback_lost += 1,
            Event::Lost(reason) => gathered.lost.push(reason),
            Event::Nothing => {}
        }
    }

    /// The end of a turn that is stored, or is about to be, was only written twice.
    fn count_orphans(&mut self, gathered: &mut Gathered) -> Result<(), OutOfTime> {
        for orphan in std::mem::take(&mut gathered.orphans) {
            let known = gathered.ids.contains(&orphan)
                || self.with_store(|store| store.contains(orphan))?;
            if !known {
                gathered.lost.push(DropReason::BeginLost);
            }
        }
        Ok(())
    }

    /// Redacts what was said as its turn's route demands; where the turn is not stored yet, as any
    /// route does.
    fn prepare_feedback(&mut self, gathered: &mut Gathered) -> Result<(), OutOfTime> {
        for said in std::mem::take(&mut gathered.feedback) {
            let secret = self.cfg.secret;
            let redactions = match self.cfg.policies.any_redactions() {
                all if all.is_empty() => all,
                all => match self.with_store(|store| store.route_of_feedback(&said, &secret))? {
                    Some(route) => self.cfg.policies.redactions_of(&route),
                    None => all,
                },
            };
            gathered.batch.feedback.push(IngestFeedback::prepare(&secret, said, &redactions));
        }
        Ok(())
    }

    fn count(&self, own: bool, inserted: &Inserted, gathered: &Gathered) {
        if own {
            self.cfg.observer.see(&gathered.batch.turns);
        }
        let mut figures = lock(&self.shared.figures);
        figures.behind_since_ms =
            gathered.ended_ms.filter(|_| !gathered.dry).map(|(_, youngest)| youngest);
        let stats = &mut figures.stats;
        *(if own { &mut stats.stored } else { &mut stats.adopted }) += inserted.stored;
        stats.duplicates += inserted.duplicates;
        stats.linked += inserted.linked;
        for (all, new) in stats.linked_by.iter_mut().zip(inserted.linked_by) {
            *all += new;
        }
        stats.relinked += inserted.relinked;
        stats.feedback.add(&inserted.feedback, gathered.batch.feedback_lost);
        stats.commits += 1;
        let dropped = if own { &mut stats.dropped } else { &mut stats.adopted_dropped };
        for reason in &gathered.lost {
            *dropped.entry(*reason).or_default() += 1;
        }
        if inserted.refused > 0 {
            *dropped.entry(DropReason::Undecodable).or_default() += inserted.refused;
        }
    }

    /// Figures of a transaction that took so long.
    fn measure(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut log = self.cfg.store_path.clone().into_os_string();
        log.push("-wal");
        let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
        let (store_bytes, wal_bytes) = (bytes(&self.cfg.store_path), bytes(Path::new(&log)));
        let stats = &mut lock(&self.shared.figures).stats;
        (stats.store_bytes, stats.wal_bytes) = (store_bytes, wal_bytes);
        stats.commit_us_sum += us;
        stats.commit_us_max = stats.commit_us_max.max(us);
    }

    /// Everything of a source is stored: its directory goes, then its position.
    fn finish(&mut self, source: Source) {
        let boot = source.boot.clone();
        if let Err(error) = source.finish() {
            self.failed(&error);
            self.stuck.insert(boot);
            return;
        }
        // An orphaned position does no harm: names are never reused.
        if let Some(Err(error)) = self.store.as_ref().map(|store| store.forget_pos(&boot)) {
            tracing::debug!(%error, boot, "the position of a finished spool stays");
        }
    }

    /// Calls the store until it answers, opening it as often as need be.
    fn with_store<T>(
        &mut self,
        call: impl Fn(&mut Store) -> Result<T, StoreError>,
    ) -> Result<T, OutOfTime> {
        let mut pause = self.cfg.retry_ms;
        loop {
            let result = self.open_store().and_then(&call);
            let error = match result {
                Ok(value) => {
                    lock(&self.shared.figures).stats.last_error = None;
                    return Ok(value);
                }
                Err(error) => error,
            };
            self.failed(&error);
            // The file may have been replaced or its disk remounted: a fresh connection finds out.
            self.store = None;
            self.pause(pause)?;
            pause = (pause * 2).min(self.cfg.retry_ms_max);
        }
    }

    fn open_store(&mut self) -> Result<&mut Store, StoreError> {
        let file = || std::fs::metadata(&self.cfg.store_path).map(|m| (m.dev(), m.ino())).ok();
        let store = match self.store.take() {
            // A file that was moved away would still take every turn, and nobody would find them.
            Some(store) if self.store_file == file() => store,
            _ => {
                let store = Store::open(&self.cfg.store_path)?;
                store.set_busy_timeout(Duration::from_millis(self.cfg.busy_ms_max))?;
                self.store_file = file();
                store
            }
        };
        Ok(self.store.insert(store))
    }

    /// Counts a failure; logs it once, until something succeeds.
    fn failed(&self, error: &dyn std::error::Error) {
        let text = error.to_string();
        let mut figures = lock(&self.shared.figures);
        figures.stats.errors += 1;
        figures.behind_since_ms.get_or_insert_with(now_ms);
        if figures.stats.last_error.as_ref() != Some(&text) {
            tracing::error!(error = text, "ingest waits and tries again");
            figures.stats.last_error = Some(text);
        }
    }

    /// Waits before another try. Errors: it is stopping and its time is over.
    fn pause(&self, ms: u64) -> Result<(), OutOfTime> {
        let limit = Duration::from_millis(self.cfg.drain_ms_max);
        let stop = lock(&self.shared.stop);
        let wait = Duration::from_millis(ms);
        let (stop, _) = self
            .shared
            .stopping
            .wait_timeout_while(stop, wait, |stop| stop.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        let Some(since) = *stop else { return Ok(()) };
        drop(stop);
        if since.elapsed() >= limit {
            return Err(OutOfTime);
        }
        std::thread::sleep(Duration::from_millis(ms.min(20)));
        Ok(())
    }

    /// Waits until the own spool has more, or something else is due.
    fn idle(&mut self) {
        self.upkeep_if_due();
        if std::mem::take(&mut self.unreadable) {
            drop(self.pause(self.cfg.retry_ms_max));
            return;
        }
        let follower = self.sources.iter().find_map(|source| source.follower.clone());
        match follower {
            Some(follower) if !follower.closed() => {
                let seen = self.sources.iter().find(|s| s.is_own()).map(Source::read_upto);
                // Short, so that a stop is noticed soon even when the spool stays open.
                follower.wait(seen.unwrap_or_default(), Duration::from_millis(100));
            }
            _ => drop(self.pause(20)),
        }
    }

    fn upkeep_if_due(&mut self) {
        if self.upkeep_at.elapsed() >= UPKEEP {
            self.upkeep_at = Instant::now();
            self.upkeep();
        }
    }

    fn upkeep(&mut self) {
        let Some(store) = &self.store else { return };
        retention::sweep(store, &self.cfg.policies.routes());
        let swept = store.sweep_feedback(now_ms()).and_then(|given_up| {
            lock(&self.shared.figures).stats.feedback.given_up += given_up;
            store.sweep_pending(now_ms())?;
            store.checkpoint()
        });
        if let Err(error) = swept {
            tracing::debug!(%error, "upkeep of the store failed");
        }
    }
}
