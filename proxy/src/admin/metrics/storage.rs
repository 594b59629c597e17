//! Metrics of the way to disk, of policies, and of the proxy as a whole.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hone_shared::link::LinkKind;
use hone_shared::spool::Health;

use super::super::{Operator, health};
use super::Page;

pub(super) fn render(page: &mut Page, operator: &Operator) {
    spool(page, operator);
    ingest(page, operator);
    let gauge = "gauge";
    let store = operator.data.store_path();
    let size = |path: &std::path::Path| fs::metadata(path).map_or(0, |meta| meta.len());
    page.one("hone_store_bytes", gauge, "Bytes of the SQLite file.", size(&store));
    let log = size(&store.with_extension("sqlite-wal"));
    page.one("hone_store_wal_bytes", gauge, "Bytes of its write-ahead log.", log);
    page.head("hone_degraded", gauge, "1 for each reason why an operator should look.");
    for reason in health::reasons(operator) {
        page.labelled("hone_degraded", &[("reason", reason.code)], 1);
    }
    let problems = operator.watches.problems().len() as u64;
    let help = "Problems of policy files and overrides; the last good ones are in force.";
    page.one("hone_policy_problems", gauge, help, problems);
    let version = operator.watches.snapshot().policies.version;
    page.one("hone_policy_version", gauge, "Hash of the policies in force.", version);
    page.head("hone_route_overridden", gauge, "1 for a route whose mode was set at run time.");
    for name in operator.watches.snapshot().policies.overridden.keys() {
        page.labelled("hone_route_overridden", &[("route", name)], 1);
    }
    let draining = u64::from(operator.draining.load(Ordering::Acquire));
    page.one("hone_draining", gauge, "1 once a shutdown has begun.", draining);
    let help = "Always 1; the labels say which program this is.";
    page.head("hone_build_info", gauge, help);
    page.labelled("hone_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
}

fn spool(page: &mut Page, operator: &Operator) {
    let (spool, gauge) = (operator.recorder.spool(), "gauge");
    let help = "Records that wait in memory to be written.";
    page.one("hone_spool_queue_records", gauge, help, spool.queued_records as u64);
    let help = "Bytes that wait in memory to be written.";
    page.one("hone_spool_queue_bytes", gauge, help, spool.queued_bytes as u64);
    let help = "Writes and syncs of the spool that failed.";
    page.one("hone_spool_write_errors_total", "counter", help, spool.write_errors);
    let help = "Answers that went out before their requests were safe from a kill.";
    let overtaken = operator.recorder.overtaken_total();
    page.one("hone_spool_overtaken_total", "counter", help, overtaken);
    let tail = u64::from(spool.has_tail);
    let help = "1 while records outlive the proxy before they are written.";
    page.one("hone_spool_tail", gauge, help, tail);
    let full = u64::from(spool.disk_full);
    page.one("hone_spool_full", gauge, "1 while the spool's quota is used up.", full);
    page.one("hone_reserve_bytes", gauge, "Bytes of the reserve on disk.", spool.reserve_bytes);
    let on_reserve = u64::from(spool.on_reserve);
    let help = "1 while turns are written to the reserve instead of the spool.";
    page.one("hone_spool_on_reserve", gauge, help, on_reserve);
    page.head("hone_spool_health", gauge, "1 for the word that says whether turns are recorded.");
    for health in Health::ALL {
        let now = u64::from(spool.health == *health);
        page.labelled("hone_spool_health", &[("health", health.as_str())], now);
    }
}

fn ingest(page: &mut Page, operator: &Operator) {
    let (ingest, counter) = (operator.ingest.stats(), "counter");
    page.one("hone_ingest_commits_total", counter, "Transactions of the ingest.", ingest.commits);
    let help = "Reads and commits that failed and were tried again.";
    page.one("hone_ingest_errors_total", counter, help, ingest.errors);
    let help = "Turns that were stored before and came again.";
    page.one("hone_ingest_duplicates_total", counter, help, ingest.duplicates);
    page.one("hone_turns_linked_total", counter, "Stored turns with a parent.", ingest.linked);
    let name = "hone_turns_linked_by_total";
    page.head(name, counter, "The same by how the parent was found.");
    for (kind, count) in LinkKind::ALL.iter().zip(ingest.linked_by) {
        page.labelled(name, &[("kind", kind.as_str())], count);
    }
    let help = "Turns that found their parent only after they were stored.";
    page.one("hone_turns_relinked_total", counter, help, ingest.relinked);
    let help = "Turns whose end has not been read from the spool.";
    page.one("hone_ingest_open_turns", "gauge", help, ingest.open as u64);
    let seconds = |us: u64| Duration::from_micros(us).as_secs_f64();
    let name = "hone_ingest_commit_seconds_total";
    page.head(name, counter, "Time spent in transactions that succeeded.");
    page.labelled(name, &[], seconds(ingest.commit_us_sum));
    let name = "hone_ingest_commit_seconds_max";
    page.head(name, "gauge", "The longest of them since the start.");
    page.labelled(name, &[], seconds(ingest.commit_us_max));
    let name = "hone_turns_adopted_dropped_total";
    page.head(name, counter, "Turns of dead proxies that were lost, by reason.");
    for (reason, count) in &ingest.adopted_dropped {
        page.labelled(name, &[("reason", reason.as_str())], *count);
    }
}
