//! Who goes first: requests, as long as what waits for the ingest is young and little.
//!
//! Storing a turn takes as much of a processor as proxying it, and nobody waits for it. Where the
//! proxy itself keeps the processors busy, the turns are left in the spool for a while; they are
//! stored in the next quiet moment, or when one of them has waited long enough or they have become
//! too many. From then on the ingest takes its share until it has caught up.
//!
//! Not by the priority of the thread: without privileges a thread cannot raise it again, and one
//! without a processor would keep the store locked.
//!
//! Invariant: what waits is bounded in time and in bytes, however long requests keep coming.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::IngestConfig;

/// Between two looks at what the processors do.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// Decides whether the ingest goes on. Lives on the thread of the ingest.
#[derive(Debug)]
pub(super) struct TurnTaking {
    /// Processors that the rest of the process may use before it counts as busy.
    above: f64,
    wait_max: Duration,
    bytes_max: u64,
    looked: Instant,
    /// What all threads, and this one, had used by then.
    used: (Duration, Duration),
    busy: bool,
    /// Since when something waits.
    since: Option<Instant>,
}

impl TurnTaking {
    pub(super) fn new(cfg: &IngestConfig) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        Self {
            above: processors * f64::from(cfg.give_way_above_per_mille) / 1000.0,
            wait_max: Duration::from_millis(cfg.give_way_ms_max),
            bytes_max: cfg.give_way_bytes_max,
            looked: Instant::now(),
            used: used(),
            busy: false,
            since: None,
        }
    }

    /// Nothing waits any more.
    pub(super) fn caught_up(&mut self) {
        self.since = None;
    }

    /// Whether what waits here, so many bytes, is to wait on.
    pub(super) fn gives_way(&mut self, waiting_bytes: u64) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        since.elapsed() < self.wait_max && waiting_bytes <= self.bytes_max && self.is_busy()
    }

    fn is_busy(&mut self) -> bool {
        let passed = self.looked.elapsed();
        if passed >= LOOK {
            let (all, own) = used();
            let others = all.saturating_sub(self.used.0).saturating_sub(own - self.used.1);
            self.busy = others.as_secs_f64() >= passed.as_secs_f64() * self.above;
            (self.looked, self.used) = (Instant::now(), (all, own));
        }
        self.busy
    }
}

/// Processor time of the process and of the calling thread.
fn used() -> (Duration, Duration) {
    let read = |clock| {
        let time = clock_gettime(clock);
        let (seconds, ns) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
        Duration::new(seconds.unwrap_or(0), ns.unwrap_or(0))
    };
    (read(ClockId::ProcessCPUTime), read(ClockId::ThreadCPUTime))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn_taking(wait_ms: u64) -> TurnTaking {
        let data = hone_shared::data_dir::DataDir::new("unused");
        let mut cfg = IngestConfig::new(&data, [0; 32]);
        (cfg.give_way_ms_max, cfg.give_way_bytes_max) = (wait_ms, 1_000);
        TurnTaking { above: 0.01, ..TurnTaking::new(&cfg) }
    }

    /// Other threads of this process use a processor while `work` runs.
    fn under_load<T>(work: impl FnOnce() -> T) -> T {
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let result = work();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            result
        })
    }

    #[test]
    fn requests_go_first_until_what_waits_is_much_or_old() {
        under_load(|| {
            let mut taking = turn_taking(60_000);
            std::thread::sleep(LOOK * 4);
            assert!(taking.gives_way(1_000));
            assert!(!taking.gives_way(1_001), "too much waits");
            taking.wait_max = Duration::ZERO;
            assert!(!taking.gives_way(1), "it has waited long enough");
            taking.wait_max = Duration::from_secs(60);
            taking.caught_up();
            assert!(taking.gives_way(1), "and what comes later may wait again");
        });
    }

    #[test]
    fn nothing_waits_for_a_process_that_does_nothing_else() {
        let mut taking = turn_taking(60_000);
        taking.above = 1_000.0;
        std::thread::sleep(LOOK * 2);
        assert!(!taking.gives_way(1));
    }
}
