//! How fast turns go from a dead process's spool into SQLite with synchronous=FULL.
//!
//! `cargo bench -p hone-proxy --bench ingest [-- <turns> [<scenario>]]`; turns per second by the wall
//! and by the CPU, the best of three, for single turns of 4 KiB (2 KiB each way, hardly
//! compressible), for conversations of 20 turns that resend their history, and for the two kinds of
//! turns of `hone bench proxy` with the built-in redaction: 2 KiB of JSON, 50 SSE chunks.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement")]

use std::sync::Arc;
use std::time::Instant;

use hone_proxy::ingest::{Ingest, IngestConfig, Policies};
use hone_shared::data_dir::DataDir;
use hone_shared::policy::PolicySet;
use hone_shared::spool::{SpoolConfig, SpoolWriter};
use hone_shared::turn::{Begin, Done, Generation, Headers, Mode, Outcome, Record, TurnId};
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
    records(request, response, "application/json")
}

fn records(request: String, response: String, kind: &str) -> [Record; 2] {
    let turn_id = TurnId::now();
    let headers = |pairs: &[(&str, &str)]| -> Headers {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    };
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
        headers: headers(&[
            ("content-type", "application/json"),
            ("user-agent", "OpenAI/Python 2.8.1"),
            ("x-stainless-lang", "python"),
            ("x-stainless-package-version", "2.8.1"),
            ("x-stainless-retry-count", "0"),
        ]),
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
        headers: headers(&[("content-type", kind)]),
        first_byte_ms: Some(1),
        duration_ms: 2,
        generation: None,
        attempts: 1,
        body_len: response.len() as u64,
        body: response.into(),
        body_at: 0,
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

fn asked(n: u64) -> String {
    json!({"model": "bench", "stream": false, "messages": [
        {"role": "system", "content": "You are a helpful assistant. Answer briefly."},
        {"role": "user", "content": format!("Question {n:012} of worker 1: why?")}]})
    .to_string()
}

fn json_turns(count: u64, put: &mut dyn FnMut([Record; 2])) {
    let text = "An answer of about two kibibytes. ".repeat(56);
    let response = json!({"id": "bench", "object": "chat.completion", "created": 0,
        "model": "bench", "choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 400, "total_tokens": 410}})
    .to_string();
    for n in 0..count {
        put(records(asked(n), response.clone(), "application/json"));
    }
}

fn bursts(count: u64, put: &mut dyn FnMut([Record; 2])) {
    let mut response = String::new();
    for index in 0..50 {
        let finish = (index == 49).then_some("stop");
        let chunk = json!({"id": "bench", "object": "chat.completion.chunk", "created": 0,
            "model": "bench",
            "choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": finish}]});
        response += &format!("data: {chunk}\n\n");
    }
    response += "data: [DONE]\n\n";
    for n in 0..count {
        put(records(asked(n), response.clone(), "text/event-stream"));
    }
}

type Fill = fn(u64, &mut dyn FnMut([Record; 2]));

fn measure(count: u64, fill: Fill, redacted: bool) -> (f64, f64, f64) {
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
    let mut config = IngestConfig::new(&data, [7; 32]);
    if redacted {
        hone_shared::policy::install_builtin(&data.policies_dir()).unwrap();
        let set = Arc::new(PolicySet::load(&data.policies_dir()).unwrap());
        config.policies = Policies::of(move || Arc::clone(&set));
    }
    let ingest = Ingest::start(config).unwrap();
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
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let count = args.first().and_then(|arg| arg.parse().ok()).unwrap_or(20_000);
    let wanted = args.get(1).map_or("", String::as_str);
    let scenarios: [(&str, Fill, bool); 4] = [
        ("4 KiB single turns", singles, false),
        ("conversations of 20 turns", conversations, false),
        ("2 KiB of JSON, redacted", json_turns, true),
        ("50 SSE chunks, redacted", bursts, true),
    ];
    for (name, fill, redacted) in scenarios.into_iter().filter(|(name, ..)| name.contains(wanted)) {
        let mut best = (0.0f64, 0.0f64, 0.0f64);
        for _ in 0..3 {
            let (wall, cpu, bytes) = measure(count, fill, redacted);
            best = (best.0.max(wall), best.1.max(cpu), bytes);
        }
        let (wall, cpu, bytes) = best;
        println!("{name}: {wall:.0} turns/s, {cpu:.0} per CPU second, {bytes:.0} bytes each");
    }
}
