//! A thousand exchanges, each once direct and once through the proxy, in every learning mode.

use crate::compare;
use crate::engine::Engine;
use crate::exchange::{Exchange, Framing, Reply, Writes};
use crate::generate;
use crate::harness::{Proxy, number};
use crate::lanes::{Got, ask_all};
use crate::stored;

const EXCHANGES: u64 = 1200;
const LANES: usize = 16;
pub const MODES: &[&str] = &["off", "observe", "shadow", "learn"];

fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    eprintln!("{name}={value}");
    value
}

/// The exchanges of this run.
pub fn drawn() -> Vec<Exchange> {
    let (seed, many) = (setting("HONE_SEED", 20_261_122), setting("HONE_EXCHANGES", EXCHANGES));
    (0..many).map(|at| generate::exchange(at, seed + at)).collect()
}

/// Fails with every difference, or the first few of many.
pub fn none(found: &[String]) {
    let first: Vec<_> = found.iter().take(12).cloned().collect();
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), first.join("\n"));
}

/// Asks through a proxy in `mode` what was asked direct; all differences, on the wire and in the
/// store.
async fn differences(
    engine: &Engine,
    exchanges: &[Exchange],
    direct: &[Got],
    asked: &std::collections::BTreeMap<u64, Vec<crate::wire::Message>>,
    mode: &str,
) -> Vec<String> {
    let proxy = Proxy::start(engine.address, mode).await;
    let through = ask_all(proxy.address, exchanges, LANES).await;
    let seen = engine.take_seen();
    let captures = mode != "off";
    let expected = exchanges.iter().filter(|e| captures && e.target.starts_with("/v1/"));
    let expected = expected.count() as u64;
    let counters = proxy.settled(expected).await;
    let mut found = Vec::new();
    if number(&counters["stored"]) != expected {
        found.push(format!("{mode}: {expected} turns to store, but {counters}"));
    }
    let turns = if captures { stored::turns(&proxy.data) } else { Default::default() };
    let nothing = Vec::new();
    for (at, exchange) in exchanges.iter().enumerate() {
        let mut of_this = compare::answers(&direct[at], &through[at]);
        let asked = [asked, &seen].map(|seen| seen.get(&exchange.number).unwrap_or(&nothing));
        of_this.extend(compare::requests(asked[0], asked[1], captures));
        if captures && exchange.target.starts_with("/v1/") {
            let turns = turns.get(&exchange.number).map_or(&[][..], Vec::as_slice);
            of_this.extend(stored::differences(exchange, turns));
        }
        let about = format!("{mode} {at}: {} {}", exchange.method, exchange.target);
        found.extend(of_this.into_iter().map(|what| format!("{about}: {what}")));
    }
    found
}

async fn compare_all(exchanges: &[Exchange]) {
    let engine = Engine::start(exchanges).await;
    let direct = ask_all(engine.address, exchanges, LANES).await;
    let asked = engine.take_seen();
    for (exchange, got) in exchanges.iter().zip(&direct) {
        assert_eq!(got.last.body, exchange.answer(), "the test's own parts: {exchange:?}");
        assert_eq!(got.last.whole, !exchange.breaks_off(), "{exchange:?}");
    }
    let mut found = Vec::new();
    for mode in MODES {
        found.extend(differences(&engine, exchanges, &direct, &asked, mode).await);
    }
    none(&found);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_generated_exchanges_are_the_same_direct_and_proxied() {
    compare_all(&drawn()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_many_mebibytes_are_the_same_direct_and_proxied() {
    let sizes: [(usize, usize); 4] =
        [(16 << 20, 100), (100, 16 << 20), (3 << 20, 5 << 20), (1 << 20, 0)];
    let body = |size: usize| (0..size).map(|at| (at * 31 % 251) as u8).collect::<Vec<u8>>();
    let pieces = |size: usize| {
        let starts = (0..size.max(1)).step_by(100_000).collect();
        Framing::Chunked { starts, extension: "", trailers: Vec::new() }
    };
    let mut exchanges = Vec::new();
    for (asked, answered) in sizes {
        for chunked in [false, true] {
            let framing = |size| if chunked { pieces(size) } else { Framing::Length };
            let reply = Reply {
                body: body(answered),
                framing: framing(answered),
                writes: Writes::Chunks,
                ..Reply::default()
            };
            let number = exchanges.len() as u64;
            let mut exchange = Exchange::post(number, "/files/upload", body(asked), reply);
            exchange.framing = framing(asked);
            exchanges.push(exchange);
        }
    }
    // Beside the routes, so that the same test holds for what is not captured; below the caps of a
    // route's policy, with it.
    compare_all(&exchanges).await;
    exchanges.retain(|exchange| exchange.body.len().max(exchange.reply.body.len()) < 8 << 20);
    exchanges.iter_mut().for_each(|exchange| exchange.target = "/v1/files".to_owned());
    compare_all(&exchanges).await;
}
