//! How fast turns go from a dead process's spool into SQLite with synchronous=FULL.
//!
//! `cargo bench -p hone-proxy --bench ingest [-- <turns>]`; turns per second by the wall and by the
//! CPU, the best of three, for single turns of 4 KiB (2 KiB each way, hardly compressible) and for
//! conversations of 20 turns that resend their history.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement")]

use std::time::Instant;

use hone_proxy::ingest::{Ingest, IngestConfig};
use hone_shared::data_dir::DataDir;
use hone_shared::spool::{SpoolConfig, SpoolWriter};
use hone_shared::turn::{Begin, Done, Generation, Mode, Outcome, Record, TurnId};
use serde_json::{Value, json};

fn text(n: u64, words: u64) -> String {
    let word = |i: u64| (n * 7919 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..words).map(|i| format!("{:06x}", word(i))).collect()
}

fn turn(messages: &[Value], answer: &str) -> [Record; 2] {
    let request = json!({"model": "m", "temperature": 0.5, "messages": messages}).to_string();
    let message = json!({"role": "assistant", "content": answer});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    let response = json!({"id": "x", "choices": [choice], "usage":
        {"prompt_tokens": 500, "completion_tokens": 500}})
    .to_string();
    let turn_id = TurnId::now();
    let begin = Begin {
        turn_id,
        started_ms: hone_shared::clock::now_ms(),
        route: "chat".into(),
        mode: Mode::Learn,
        alias: "chat".into(),
        tenant: "0123456789abcdef".into(),
        client: "fedcba9876543210".into(),
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        headers: vec![("content-type".into(), "application/json".into())],
        generation: Generation::base(),
        policy_version: 1,
        body_len: request.len() as u64,
        body: request.into(),
        body_truncated: false,
        body_cut: None,
    };
    let done = Done {
        turn_id,
        status: 200,
        outcome: Outcome::Complete,
        headers: vec![("content-type".into(), "application/json".into())],
        first_byte_ms: Some(1),
        duration_ms: 2,
        generation: None,
        attempts: 1,
        body_len: response.len() as u64,
        body: response.into(),
        body_truncated: false,
        body_cut: None,
    };
    [Record::Begin(begin), Record::Done(done)]
}

fn singles(count: u64, put: &mut dyn FnMut([Record; 2])) {
    for n in 0..count {
        let question = json!({"role": "user", "content": text(n, 330)});
        put(turn(&[question], &text(n + count, 330)));
    }
}

fn conversations(count: u64, put: &mut dyn FnMut([Record; 2])) {
    for n in 0..count / 20 {
        let mut messages =
            vec![json!({"role": "system", "content": "You are a helpful assistant."})];
        for step in 0..20 {
            let seed = n * 100 + step;
            messages.push(json!({"role": "user", "content": text(seed, 40)}));
            let answer = text(seed + 50, 80);
            put(turn(&messages, &answer));
            messages.push(json!({"role": "assistant", "content": answer}));
        }
    }
}

type Fill = fn(u64, &mut dyn FnMut([Record; 2]));

fn measure(count: u64, fill: Fill) -> (f64, f64, f64) {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    data.create().unwrap();
    let mut writer = SpoolWriter::create(&SpoolConfig::new(data.spool_dir())).unwrap();
    let mut written = 0;
    fill(count, &mut |records| {
        records.iter().for_each(|record| writer.append(record).unwrap());
        written += 1;
        if written % 500 == 0 {
            writer.sync().unwrap();
        }
    });
    writer.sync().unwrap();
    drop(writer);
    let (start, before) = (Instant::now(), cpu_seconds());
    let ingest = Ingest::start(IngestConfig::new(&data, [7; 32])).unwrap();
    ingest.drain_and_stop();
    let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - before);
    assert_eq!(ingest.stats().adopted, written);
    let bytes = std::fs::metadata(data.store_path()).unwrap().len() as f64;
    (written as f64 / wall, written as f64 / cpu, bytes / written as f64)
}

/// CPU time of this process so far, by the kernel's clock of 100 ticks a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

fn main() {
    let count = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(20_000);
    let scenarios: [(&str, Fill); 2] =
        [("4 KiB single turns", singles), ("conversations of 20 turns", conversations)];
    for (name, fill) in scenarios {
        let mut best = (0.0f64, 0.0f64, 0.0f64);
        for _ in 0..3 {
            let (wall, cpu, bytes) = measure(count, fill);
            best = (best.0.max(wall), best.1.max(cpu), bytes);
        }
        let (wall, cpu, bytes) = best;
        println!("{name}: {wall:.0} turns/s, {cpu:.0} per CPU second, {bytes:.0} bytes each");
    }
}
