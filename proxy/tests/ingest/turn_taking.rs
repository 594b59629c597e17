//! Requests go first, but not for ever.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hone_proxy::ingest::{Ingest, IngestConfig};
use hone_shared::spool::{Spool, SpoolConfig};

use crate::{both, config, counts, place, simple, wait_until};

/// A process whose other threads keep a processor busy until this is dropped.
struct Busy(std::sync::Arc<AtomicBool>);

impl Busy {
    fn new() -> Self {
        let over = std::sync::Arc::new(AtomicBool::new(false));
        let seen = std::sync::Arc::clone(&over);
        std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self(over)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn ingest(cfg: IngestConfig) -> (Ingest, Busy) {
    let busy = Busy::new();
    let ingest = Ingest::start(IngestConfig { give_way_above_per_mille: 1, ..cfg }).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    (ingest, busy)
}

fn send(spool: &Spool, turns: std::ops::Range<usize>) {
    let records = both(&turns.map(simple).collect::<Vec<_>>());
    records.into_iter().for_each(|record| spool.try_send(record).unwrap());
}

#[test]
fn turns_wait_while_the_process_is_busy_and_are_stored_in_the_first_quiet_moment() {
    let (_dir, data) = place();
    let spool = Spool::start(SpoolConfig::new(data.spool_dir())).unwrap();
    let (ingest, busy) = ingest(IngestConfig { give_way_ms_max: 60_000, ..config(&data) });
    send(&spool, 0..40);
    wait_until("the wait is shown", || ingest.stats().lag_ms > 300);
    assert_eq!(ingest.stats().stored, 0);
    drop(busy);
    wait_until("all turns", || ingest.stats().stored == 40);
    wait_until("nothing waits", || ingest.stats().lag_ms == 0);
    drop(spool);
    ingest.drain_and_stop();
    assert_eq!(counts(&data).turns, 40);
}

#[test]
fn what_has_waited_long_enough_or_is_too_much_is_stored_however_busy_the_process_is() {
    for (give_way_ms_max, give_way_bytes_max) in [(200, 1 << 30), (60_000, 10_000)] {
        let (_dir, data) = place();
        let spool = Spool::start(SpoolConfig::new(data.spool_dir())).unwrap();
        let limits = IngestConfig { give_way_ms_max, give_way_bytes_max, ..config(&data) };
        let (ingest, busy) = ingest(limits);
        send(&spool, 0..100);
        // All of them by age; by size, those beyond what may wait.
        let stored = || ingest.stats().stored;
        wait_until("turns are stored", || stored() > if give_way_ms_max < 1_000 { 99 } else { 40 });
        send(&spool, 100..103);
        drop(busy);
        // Stopping does not give way.
        drop(spool);
        ingest.drain_and_stop();
        assert_eq!(counts(&data).turns, 103);
    }
}
