//! Every stream of both providers, cut at every byte.
//!
//! The engine writes `[..i]`, waits, and writes `[i..]`; the client must get the same bytes, and
//! the store must hold the turn of the uncut stream.

use serde_json::{Value, json};

use crate::diff::none;
use crate::engine::Engine;
use crate::exchange::{Exchange, Framing, Reply, Writes};
use crate::harness::Proxy;
use crate::lanes::ask_all;
use crate::stored::{self, Turn};
use crate::transcripts::{self, Transcript};

const LANES: usize = 64;

fn stream(number: u64, of: &Transcript, starts: Vec<usize>, writes: Writes) -> Exchange {
    let reply = Reply {
        fields: vec![("Content-Type".to_owned(), b"text/event-stream".to_vec())],
        body: of.bytes.clone(),
        framing: Framing::Chunked { starts, extension: "", trailers: Vec::new() },
        writes,
        pause_ms: 1,
        ..Reply::default()
    };
    let body = transcripts::request(of.path, &format!("cut {number} of {}", of.name));
    Exchange::post(number, of.path, body, reply)
}

/// What a stream says, as it is stored.
fn meaning(stored: &Turn) -> Value {
    let turn = &stored.turn;
    json!({
        "outcome": turn.outcome.to_string(), "status": turn.status, "stream": turn.stream,
        "choices": turn.choices, "tokens": [turn.prompt_tokens, turn.completion_tokens],
        "flags": stored.flags, "bytes": stored.response_bytes,
    })
}

/// Asks all; what differs from the engine's bytes, or between the turns of one stream. `of` names
/// the stream of each exchange; the first of a stream is the uncut one.
async fn differences(exchanges: &[Exchange], of: &[&'static str]) -> Vec<String> {
    let engine = Engine::start(exchanges).await;
    let proxy = Proxy::start(engine.address, "shadow").await;
    let got = ask_all(proxy.address, exchanges, LANES).await;
    let mut found = Vec::new();
    for (exchange, got) in exchanges.iter().zip(&got) {
        if got.last.body != exchange.reply.body || !got.last.whole {
            found.push(format!("exchange {}: other bytes", exchange.number));
        }
    }
    let counters = proxy.settled(exchanges.len() as u64).await;
    if counters["stored"] != exchanges.len() {
        found.push(format!("not all stored: {counters}"));
    }
    let turns = stored::turns(&proxy.data);
    let mut whole = (of[0], Value::Null);
    for (at, name) in of.iter().enumerate() {
        let meaning = meaning(&turns[&(at as u64)][0]);
        if whole.0 != *name || whole.1.is_null() {
            whole = (name, meaning);
        } else if whole.1 != meaning {
            found.push(format!(
                "{name}, {:?}: {meaning} instead of {}",
                exchanges[at].reply.framing, whole.1
            ));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_cut_at_any_byte_reaches_the_client_and_the_store_as_if_it_were_not() {
    let transcripts = transcripts::all();
    let (mut exchanges, mut of) = (Vec::new(), Vec::new());
    for transcript in &transcripts {
        for cut in 0..transcript.bytes.len() {
            let number = exchanges.len() as u64;
            exchanges.push(stream(number, transcript, vec![0, cut], Writes::Chunks));
            of.push(transcript.name);
        }
    }
    eprintln!("{} cuts of {} streams", exchanges.len(), transcripts.len());
    none(&differences(&exchanges, &of).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_cut_anywhere_in_head_or_framing_is_the_same_response() {
    let plain = &transcripts::all()[0];
    let starts = [0, 40, 41, 200, 333].to_vec();
    let (writes, _) = stream(0, plain, starts.clone(), Writes::Once).reply_writes();
    let (mut exchanges, mut of) = (Vec::new(), Vec::new());
    for cut in 0..writes[0].len() {
        let number = exchanges.len() as u64;
        exchanges.push(stream(number, plain, starts.clone(), Writes::At(vec![cut])));
        of.push(plain.name);
    }
    none(&differences(&exchanges, &of).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_drip_byte_by_byte_are_whole() {
    let (mut exchanges, mut of) = (Vec::new(), Vec::new());
    for transcript in &transcripts::all() {
        for drip in [false, true] {
            let starts = if drip { (0..transcript.bytes.len()).collect() } else { vec![0] };
            let number = exchanges.len() as u64;
            exchanges.push(stream(number, transcript, starts, Writes::Chunks));
            of.push(transcript.name);
        }
    }
    none(&differences(&exchanges, &of).await);
}
