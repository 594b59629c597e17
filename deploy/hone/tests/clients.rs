//! Real clients, unchanged but for their base URL: what they see through the proxy is what they see
//! without it, and every turn is stored.
//!
//! Their programs are in `clients/`; each prints what it saw. Chat and legacy completions run
//! against the real engine with the real small model. It serves no other protocol and shows no
//! faults, so for those the clients talk to `clients/origin.py`, an origin for transport tests that
//! answers from templates; `llm-comply` finds no fault with its three protocols. Versions are
//! pinned in `clients/requirements.txt` and `clients/package.json`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use hone_shared::data_dir::DataDir;
use hone_shared::store::{Store, StoredTurn};
use hone_shared::turn::Outcome;
use serde_json::Value;
use support::clients::{Front, Origin, run};
use support::{Up, set_policy, wait_for};

/// All turns, and that none was dropped.
fn turns(data: &DataDir, expected: usize) -> Vec<StoredTurn> {
    let store = Store::open_read_only(&data.store_path()).unwrap();
    let counts = || store.counts().unwrap();
    wait_for(Duration::from_secs(20), "the turns in the store", || {
        (counts().turns as usize >= expected).then_some(())
    });
    assert_eq!(counts().dropped.values().sum::<u64>(), 0, "nothing is dropped");
    let raw = rusqlite::Connection::open(data.store_path()).unwrap();
    let mut select = raw.prepare("SELECT turn_id FROM turns ORDER BY id").unwrap();
    let ids = select.query_map([], |row| row.get::<_, String>(0)).unwrap();
    ids.map(|id| store.turn(id.unwrap().parse().unwrap()).unwrap().unwrap()).collect()
}

/// What `llm-comply` says of a protocol.
fn comply(base_url: &str, format: &str, model: &str) -> Value {
    let arguments = ["--format", format, "-u", base_url, "-k", "sk-test", "-m", model, "--json"];
    run("comply.py", &arguments)
}

#[test]
fn chat_clients_see_through_the_proxy_what_they_see_of_the_engine() {
    let up = Up::start(|policies| {
        // Nobody learns in between, so that both see the same model.
        set_policy(&policies.join("routes/chat.toml"), "mode", "\"observe\"");
    });
    let (direct, through) = (format!("{}/v1", up.engine_url()), format!("{}/v1", up.base_url));
    let mut expected = 0;
    let turns_of = [("openai_engine.py", 15), ("langchain_engine.py", 9), ("openai_engine.mjs", 9)];
    for (program, turns) in turns_of {
        let seen = run(program, &[&through]);
        assert_eq!(seen, run(program, &[&direct]), "{program}: through the proxy, then direct");
        expected += turns;
    }
    let model = "smollm2-135m";
    let report = comply(&through, "openai-chat", model);
    assert_eq!(report, comply(&direct, "openai-chat", model));
    eprintln!("llm-comply of the engine: {}", report["summary"]);
    let skipped = report["summary"]["skipped"].as_u64().unwrap() as usize;
    expected += report["summary"]["total"].as_u64().unwrap() as usize - skipped;

    let data = up.data();
    let turns = turns(&data, expected);
    assert_eq!(turns.len(), expected, "a turn for each request through the proxy, and no other");
    let count = |outcome| turns.iter().filter(|turn| turn.outcome == outcome).count();
    assert_eq!(count(Outcome::ClientAbort), 1, "the stream that a client left early");
    let left = turns.iter().find(|turn| turn.outcome == Outcome::ClientAbort).unwrap();
    let said = left.choices[0].message["content"].as_str().unwrap_or_default();
    assert!(left.stream && !said.is_empty(), "{left:?}");
    let refused = turns.iter().filter(|turn| turn.status >= 400);
    assert!(refused.clone().all(|turn| turn.outcome == Outcome::UpstreamError));
    assert!(refused.count() >= 6, "the errors that the clients asked for");
    assert!(up.stop().success());
}

/// What the store should hold of a model name that asks for a fault.
fn check_fault(turn: &StoredTurn) {
    let kind = turn.model.as_deref().unwrap_or_default().split(':').next().unwrap_or_default();
    let said = turn.choices.iter().map(|choice| choice.message["content"].to_string());
    let said: String = said.collect();
    let about = || format!("{turn:?}");
    match (kind, turn.path.as_str()) {
        ("fail", _) => {
            assert!(turn.status >= 400, "{}", about());
            assert_eq!(turn.outcome, Outcome::UpstreamError, "{}", about());
        }
        ("slow", _) => assert_eq!((turn.status, turn.outcome), (0, Outcome::ClientAbort)),
        ("cut", _) => {
            assert_eq!((turn.status, turn.outcome), (200, Outcome::UpstreamError), "{}", about());
            assert!(said.contains("Grüe"), "the partial answer is kept: {}", about());
        }
        ("broken", "/v1/chat/completions" | "/v1/messages" | "/v1/responses") => {
            assert_eq!(turn.outcome, Outcome::ModelError, "{}", about());
            assert!(said.contains("Grüezi"), "{}", about());
        }
        ("flaky", _) => {
            let failed = turn.outcome == Outcome::UpstreamError && turn.status >= 400;
            assert!(failed || turn.outcome == Outcome::Complete, "{}", about());
        }
        _ => {}
    }
}

#[test]
fn clients_of_every_protocol_see_faults_and_answers_through_the_proxy_as_without_it() {
    let origin = Origin::start();
    let mut front = Front::start(&origin.url);
    let (direct, through) = (format!("{}/v1", origin.url), format!("{}/v1", front.url));
    for program in ["openai_origin.py", "anthropic_origin.py", "openai_origin.mjs"] {
        // The key keeps the retries of the two runs apart.
        let seen = run(program, &[&through, &format!("{program} through")]);
        let without = run(program, &[&direct, &format!("{program} direct")]);
        assert_eq!(seen, without, "{program}: through the proxy, then direct");
    }
    let protocols = [
        ("openai-chat", "gpt-5", 9),
        ("anthropic", "claude-sonnet-4", 9),
        ("open-responses", "gpt-5", 13),
    ];
    for (format, model, cases) in protocols {
        let report = comply(&through, format, model);
        assert_eq!(report, comply(&direct, format, model), "{format}");
        assert_eq!(report["summary"]["passed"], cases, "the origin is correct: {report:#}");
    }
    front.stop();
    let turns = turns(&front.data(), 1);
    let mut faults = BTreeMap::<String, usize>::new();
    for turn in &turns {
        check_fault(turn);
        let model = turn.model.as_deref().unwrap_or_default();
        let kind = model.split(':').next().unwrap_or_default().to_owned();
        *faults.entry(kind).or_default() += 1;
    }
    eprintln!("{} turns: {faults:?}", turns.len());
    for kind in ["fail", "flaky", "slow", "cut", "broken"] {
        assert!(faults.contains_key(kind), "no turn of kind {kind}: {faults:?}");
    }
    let crashed = turns.iter().filter(|turn| turn.outcome == Outcome::ProxyCrash);
    assert_eq!(crashed.count(), 0);
}
