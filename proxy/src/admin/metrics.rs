//! The same figures as [`super::status`], as Prometheus text (format 0.0.4).
//!
//! Invariant: labels are bounded: routes come from policy files, everything else from fixed lists.

use std::fmt::{Display, Write};

use super::counters::Histogram;
use super::{Operator, status};

mod feedback;
mod genai;
mod network;
mod storage;

/// All metrics.
pub fn render(operator: &Operator) -> String {
    let status = status::of(operator);
    let mut page = Page::default();
    turns(&mut page, &status.counters);
    requests(&mut page, &status.http, operator);
    network::tls(&mut page, status.tls.as_ref());
    network::engines(&mut page, &status);
    network::traffic(&mut page, &status);
    network::tunnels(&mut page, &status.tunnels);
    let gauge = "gauge";
    let held = operator.recorder.budget().held();
    page.one("hone_capture_bytes", gauge, "Bytes that captures in flight hold.", held);
    storage::render(&mut page, operator);
    feedback::render(&mut page, operator);
    genai::render(&mut page, &operator.genai);
    page.one("hone_spool_bytes", gauge, "Bytes of the spool on disk.", status.spool_bytes);
    let degraded = u64::from(status.spool_degraded);
    let help = "1 while the spool cannot be written or is full.";
    page.one("hone_spool_degraded", gauge, help, degraded);
    let help = "For how long there has been something to store.";
    page.one("hone_ingest_lag_ms", gauge, help, status.ingest_lag_ms);
    page.head("hone_route_generation", gauge, "1 for the generation that a route serves.");
    for route in &status.routes {
        let (name, mode) = (route.name.as_str(), route.mode.as_str());
        let labels = [("route", name), ("mode", mode), ("generation", &route.generation)];
        page.labelled("hone_route_generation", &labels, 1);
    }
    page.0
}

fn turns(page: &mut Page, turns: &status::Turns) {
    let (counter, gauge) = ("counter", "gauge");
    let help = "Requests that a policy wanted recorded.";
    page.one("hone_turns_total", counter, help, turns.requests);
    page.one("hone_turns_stored_total", counter, "Turns in the store.", turns.stored);
    page.head("hone_turns_dropped_total", counter, "Turns that were not recorded, by reason.");
    for (reason, count) in &turns.dropped {
        page.labelled("hone_turns_dropped_total", &[("reason", reason)], *count);
    }
    page.one("hone_turns_pending", gauge, "Turns on their way to the store.", turns.pending);
    let help = "Recorded exchanges that have not ended.";
    page.one("hone_turns_in_flight", gauge, help, turns.in_flight);
    let help = "Turns stored without the body of their answer, for want of room.";
    page.one("hone_turns_responses_cut_total", counter, help, turns.responses_cut);
    let help = "Turns of dead proxies stored here.";
    page.one("hone_turns_adopted_total", counter, help, turns.adopted);
}

fn requests(page: &mut Page, http: &status::Http, operator: &Operator) {
    let (counter, counters) = ("counter", &operator.counters);
    page.one("hone_requests_total", counter, "Requests on the data listener.", http.requests);
    page.one("hone_requests_in_flight", "gauge", "Requests now.", http.in_flight);
    let help = "Requests sent to the engine again.";
    page.one("hone_upstream_retries_total", counter, help, http.retries);
    page.head("hone_requests_ended_total", counter, "Ended requests by outcome.");
    for (outcome, count) in &http.outcomes {
        page.labelled("hone_requests_ended_total", &[("outcome", outcome)], *count);
    }
    page.head("hone_faults_total", counter, "Requests answered by the proxy itself, by code.");
    for (code, count) in counters.faults() {
        page.labelled("hone_faults_total", &[("code", code)], count);
    }
    page.head("hone_refused_total", counter, "Requests refused at the door, by broken rule.");
    for (rule, count) in counters.refusals() {
        page.labelled("hone_refused_total", &[("rule", rule)], count);
    }
    let help = "Clients cut because they did not read their answer.";
    page.one("hone_readers_cut_total", counter, help, counters.readers_cut());
    let help = "From arrival to the engine's response head.";
    page.histogram("hone_response_head_seconds", help, &counters.first_byte);
    page.histogram("hone_request_seconds", "From arrival to the end.", &counters.duration);
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.labelled(name, &[], value);
    }

    fn labelled(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{open}{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        self.series(name, &[], histogram);
    }

    /// One combination of labels of a histogram whose head was written.
    fn series(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let (buckets, count, sum) = histogram.read();
        let bucket = format!("{name}_bucket");
        for (limit_ms, below) in buckets {
            let limit = (limit_ms as f64 / 1000.0).to_string();
            self.labelled(&bucket, &with(labels, &limit), below);
        }
        self.labelled(&bucket, &with(labels, "+Inf"), count);
        self.labelled(&format!("{name}_sum"), labels, sum);
        self.labelled(&format!("{name}_count"), labels, count);
    }
}

/// The labels of a bucket.
fn with<'a>(labels: &[(&'a str, &'a str)], limit: &'a str) -> Vec<(&'a str, &'a str)> {
    labels.iter().copied().chain([("le", limit)]).collect()
}

#[cfg(test)]
mod tests {
    use super::Page;

    #[test]
    fn label_values_are_escaped() {
        let mut page = Page::default();
        page.labelled("m", &[("a", "x\"y\\z\n"), ("b", "c")], 7);
        assert_eq!(page.0, "m{a=\"x\\\"y\\\\z\\n\",b=\"c\"} 7\n");
    }
}
