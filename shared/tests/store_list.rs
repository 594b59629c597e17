//! The operator's lists on a real SQLite file: every combination of filters against a plain scan,
//! paging, the tree of a session, and stores that the first schema made.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

mod records;

use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

use hone_shared::store::{
    Cursor, IngestPos, IngestTurn, Judged, Store, TurnFilter, TurnLine, VerdictRow,
};
use hone_shared::turn::{Begin, Done, Outcome, TurnId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use records::{begin, done};
use rusqlite::Connection;
use serde_json::{Value, json};

const SECRET: [u8; 32] = [7; 32];

fn pos(offset: u64) -> IngestPos {
    IngestPos { boot: "boot".into(), segment: 0, offset }
}

fn turn(change: impl FnOnce(&mut Begin, &mut Done), body: Value) -> IngestTurn {
    let answer = json!({"choices": [{"index": 0, "finish_reason": "stop",
        "message": {"role": "assistant", "content": "an answer"}}]});
    let mut begin = begin(body.to_string().into_bytes());
    let headers = vec![("content-type".into(), "application/json".into())];
    let mut done = Done { headers, ..done(begin.turn_id, answer.to_string().into_bytes()) };
    change(&mut begin, &mut done);
    IngestTurn::parse(&SECRET, begin, Some(done))
}

fn said(text: &str) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": text}]})
}

fn judge(store: &Store, turn: TurnId, verdict: i8) {
    let row = VerdictRow {
        turn_id: turn,
        child: Some(turn),
        verdict,
        source: "rule:test".into(),
        reason: String::new(),
        votes: json!([]),
        hints: vec![],
        judge: "j".into(),
        judged_ms: 1,
        kind: None,
        llm: None,
    };
    assert!(store.insert_verdict(&row).unwrap());
}

/// A store of `n` turns with random facets, times with ties, and some verdicts.
fn filled(path: &Path, n: usize, rng: &mut ChaCha8Rng) -> Store {
    let mut store = Store::open(path).unwrap();
    let mut turns = Vec::new();
    for at in 0..n {
        let mut body = said(&format!("question {at}"));
        body["model"] = json!(["a", "b"][rng.random_range(0..2)]);
        if rng.random_ratio(1, 3) {
            let name = ["s1", "s2"][rng.random_range(0..2)];
            body["metadata"] = json!({ "session_id": name });
        }
        turns.push(turn(
            |begin, done| {
                begin.route = ["chat", "other"][rng.random_range(0..2)].into();
                begin.tenant = ["t1", "t2", "t3"][rng.random_range(0..3)].into();
                begin.started_ms = 1_000 + rng.random_range(0..(n as i64) / 2);
                done.outcome = [Outcome::Complete, Outcome::ClientAbort][rng.random_range(0..2)];
            },
            body,
        ));
    }
    let ids: Vec<TurnId> = turns.iter().map(|turn| turn.begin.turn_id).collect();
    store.insert_batch(&turns, &pos(1)).unwrap();
    for id in ids {
        if rng.random_ratio(1, 2) {
            judge(&store, id, rng.random_range(-1..=1));
        }
    }
    store
}

fn all_pages(store: &Store, filter: &TurnFilter, limit: usize) -> Vec<TurnLine> {
    let (mut lines, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = store.list_turns(filter, cursor, limit).unwrap();
        assert!(page.turns.len() <= limit);
        lines.extend(page.turns);
        pages += 1;
        assert!(pages < 10_000, "the list never ends");
        let Some(next) = page.next else { return lines };
        // As an address would carry it.
        cursor = Some(next.to_string().parse::<Cursor>().unwrap());
    }
}

fn wanted(line: &TurnLine, filter: &TurnFilter) -> bool {
    let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
    is(&filter.route, &line.route)
        && is(&filter.tenant, &line.tenant)
        && is(&filter.session, &line.session_id)
        && is(&filter.model, line.model.as_deref().unwrap_or_default())
        && filter.outcome.is_none_or(|outcome| outcome == line.outcome)
        && filter.verdict.is_none_or(|judged| match judged {
            Judged::Not => line.verdict.is_none(),
            Judged::As(verdict) => line.verdict == Some(verdict),
        })
        && filter.since_ms.is_none_or(|since| line.started_ms >= since)
        && filter.until_ms.is_none_or(|until| line.started_ms < until)
}

#[test]
fn every_combination_of_filters_lists_what_a_scan_finds_newest_first() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir.path().join("store.sqlite"), 300, &mut rng);
    let everything = all_pages(&store, &TurnFilter::default(), 1_000);
    assert_eq!(everything.len(), 300);
    let named = everything.iter().find(|line| line.session_id.contains("metadata")).unwrap();
    for mask in 0u32..256 {
        let on = |bit: u32| mask & (1 << bit) != 0;
        let filter = TurnFilter {
            route: on(0).then(|| "chat".into()),
            tenant: on(1).then(|| named.tenant.clone()),
            session: on(2).then(|| named.session_id.clone()),
            outcome: on(3).then_some(Outcome::ClientAbort),
            model: on(4).then(|| "a".into()),
            verdict: on(5).then(|| [Judged::Not, Judged::As(-1)][rng.random_range(0..2)]),
            since_ms: on(6).then_some(1_030),
            until_ms: on(7).then_some(1_100),
        };
        let limit = rng.random_range(1..40);
        let listed = all_pages(&store, &filter, limit);
        let expected = everything.iter().filter(|line| wanted(line, &filter));
        let expected: Vec<_> = expected.map(|line| line.turn_id).collect();
        let found: Vec<_> = listed.iter().map(|line| line.turn_id).collect();
        assert_eq!(found, expected, "{filter:?} by {limit}");
        assert!(listed.is_sorted_by(|a, b| a.started_ms >= b.started_ms));
    }
}

#[test]
fn tenants_without_number_share_facets_and_are_still_listed_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let mut store = Store::open(&path).unwrap();
    // As if 8,192 combinations were there: the cap.
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8192)
             INSERT INTO facets (route, tenant, outcome, model, verdict, others)
             SELECT 'chat', 'crowd' || i, 'complete', 'm', 9, 0 FROM n",
        )
        .unwrap();
    let late = |n: usize| turn(|begin, _| begin.tenant = format!("late{n}"), said("hello"));
    let turns: Vec<_> = (0..40).map(|n| late(n % 4)).collect();
    let one = turns[1].begin.turn_id;
    store.insert_batch(&turns, &pos(1)).unwrap();
    judge(&store, one, -1);
    let of = |tenant: &str| TurnFilter { tenant: Some(tenant.into()), ..TurnFilter::default() };
    assert_eq!(all_pages(&store, &of("late1"), 3).len(), 10);
    assert_eq!(all_pages(&store, &of("nobody"), 3).len(), 0);
    let negative = TurnFilter { verdict: Some(Judged::As(-1)), ..of("late1") };
    assert_eq!(all_pages(&store, &negative, 3)[0].turn_id, one);
    let facets: i64 = Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM facets", [], |row| row.get(0))
        .unwrap();
    assert!(facets <= 8_194, "{facets}");
}

#[test]
fn a_session_is_a_tree_with_parents_before_their_children() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&dir.path().join("store.sqlite")).unwrap();
    let mut at = 0;
    let mut insert = |messages: &[&str]| {
        let speaker = |n: usize| if n.is_multiple_of(2) { "user" } else { "assistant" };
        let each = messages.iter().enumerate();
        let messages: Vec<Value> =
            each.map(|(n, text)| json!({"role": speaker(n), "content": text})).collect();
        at += 1;
        let turn = turn(|begin, _| begin.started_ms = at, json!({"messages": messages}));
        let id = turn.begin.turn_id;
        store.insert_batch(&[turn], &pos(at as u64)).unwrap();
        id
    };
    let root = insert(&["one"]);
    let first = insert(&["one", "an answer", "two"]);
    let edit = insert(&["one", "an answer", "two, but otherwise"]);
    let deep = insert(&["one", "an answer", "two", "an answer", "three"]);
    insert(&["another conversation"]);
    let (tree, more) = store.session(&root.to_string()).unwrap();
    let shape: Vec<_> = tree.iter().map(|node| (node.turn.turn_id, node.depth)).collect();
    assert_eq!(shape, [(root, 0), (first, 1), (deep, 2), (edit, 1)]);
    assert!(!more);
    assert_eq!(store.session("nothing").unwrap(), (vec![], false));
}

/// What the first published schema was; it never changes.
const FIRST: &str = include_str!("../src/store/0001_init.sql");

#[test]
fn a_store_of_the_first_schema_is_migrated_with_all_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let old = Connection::open(&path).unwrap();
    old.pragma_update(None, "application_id", 0x484F_4E45).unwrap();
    old.execute_batch(FIRST).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    let ids: Vec<TurnId> = (0..3).map(|_| TurnId::now()).collect();
    old.execute_batch(
        r#"INSERT INTO bodies VALUES (1, x'01', CAST(x'00' || '{"role":"user","content":"hi"}' AS BLOB)),
              (2, x'02', CAST(x'00' || '{"role":"assistant","content":"ho"}' AS BLOB)),
              (3, x'03', CAST(x'00' || '{"n":1}' AS BLOB));
           INSERT INTO nodes VALUES (1, x'0a', NULL, 1), (2, x'0b', 1, 2), (3, x'0c', 2, 1);"#,
    )
    .unwrap();
    for (n, id) in ids.iter().enumerate() {
        old.execute(
            "INSERT INTO turns (id, turn_id, session_id, parent, parent_choice, link_confidence,
               route, mode, alias, tenant, method, path, model, generation, policy_version,
               started_ms, status, outcome, stream, attempts, prompt, prompt_len, params,
               request_headers, response_headers, request_bytes, response_bytes, flags, judgeable,
               next_states, judged)
             VALUES (?1, ?2, 's', NULL, 0, 0.0, 'chat', 'learn', 'chat', 't', 'POST', '/v1/x', ?3,
               'base', 1, ?4, 200, 'complete', 0, 1, ?5, ?5, 3, '[]', '[]', 1, 2, 0, 1, 0, ?6)",
            rusqlite::params![
                n as i64 + 1,
                id.to_string(),
                (n < 2).then_some("m"),
                100 + n as i64,
                if n == 0 { 1 } else { 3 },
                n == 1
            ],
        )
        .unwrap();
        old.execute("INSERT INTO choices VALUES (?1, 0, 2, 'stop')", [n as i64 + 1]).unwrap();
    }
    let id = ids[1].to_string();
    old.execute("INSERT INTO verdicts VALUES (2, ?1, -1, 'llm', '', '[]', '[]', 'j', 1)", [id])
        .unwrap();
    drop(old);

    let mut store = Store::open(&path).unwrap();
    assert_eq!(store.integrity_check().unwrap(), ["ok"]);
    let first = store.turn(ids[0]).unwrap().unwrap();
    assert_eq!(first.messages, [json!({"role": "user", "content": "hi"})]);
    assert_eq!(first.choices[0].message["content"], "ho");
    assert_eq!(store.turn(ids[2]).unwrap().unwrap().messages.len(), 3);
    let filter = TurnFilter { verdict: Some(Judged::As(-1)), ..TurnFilter::default() };
    assert_eq!(all_pages(&store, &filter, 5)[0].turn_id, ids[1]);
    let filter = TurnFilter {
        model: Some(String::new()),
        verdict: Some(Judged::Not),
        ..TurnFilter::default()
    };
    assert_eq!(all_pages(&store, &filter, 5)[0].turn_id, ids[2]);
    assert_eq!(store.session("s").unwrap().0.len(), 3);
    store.insert_batch(&[turn(|_, _| {}, said("more"))], &pos(1)).unwrap();
    assert_eq!(store.counts().unwrap().turns, 4);
}

#[test]
fn a_store_of_schema_6_loses_nothing_but_the_names_that_an_erasure_had_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let mut store = Store::open(&path).unwrap();
    let turns = ["kept", "emptied"].map(|text| turn(|_, _| {}, said(text)));
    let [kept, emptied] = turns.each_ref().map(|turn| turn.begin.turn_id);
    store.insert_batch(&turns, &pos(1)).unwrap();
    drop(store);
    let old = Connection::open(&path).unwrap();
    // What a program of before schema 6 left of an erased turn.
    old.execute_batch(
        "CREATE INDEX turns_by_age ON turns (route, started_ms);
         INSERT INTO facets (route, tenant, outcome, model, verdict, others)
             VALUES ('chat', 'who was forgotten', 'complete', 'their text', -1, 0);
         UPDATE turns SET flags = flags | 131072, tenant = 'forgotten', model = NULL,
             facet = last_insert_rowid() WHERE id = 2;
         PRAGMA user_version = 6;",
    )
    .unwrap();
    let rows = |conn: &Connection, sql: &str| -> String {
        conn.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let all = "SELECT group_concat(turn_id || session_id || prompt || params || route) FROM turns";
    let before = rows(&old, all);
    let links = "SELECT group_concat(hex(hash) || turn) FROM link_index";
    let links_before = rows(&old, links);

    let mut store = Store::open(&path).unwrap();
    assert_eq!(store.integrity_check().unwrap(), ["ok"]);
    assert_eq!((rows(&old, all), rows(&old, links)), (before, links_before));
    assert_eq!(store.turn(kept).unwrap().unwrap().messages[0]["content"], "kept");
    let facets =
        rows(&old, "SELECT group_concat(tenant || ':' || model || ':' || verdict) FROM facets");
    assert_eq!(facets, "tenant:m:9,forgotten::9");
    let of = |tenant: &str| {
        let filter = TurnFilter { tenant: Some(tenant.into()), ..TurnFilter::default() };
        all_pages(&store, &filter, 5).iter().map(|line| line.turn_id).collect::<Vec<_>>()
    };
    assert_eq!((of("tenant"), of("forgotten")), (vec![kept], vec![emptied]));
    store.insert_batch(&[turn(|_, _| {}, said("more"))], &pos(2)).unwrap();
    assert_eq!(store.counts().unwrap().turns, 3);
}

#[test]
fn what_another_process_deletes_is_stored_again_and_never_mistaken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let mut store = Store::open(&path).unwrap();
    let secret = turn(|_, _| {}, said("the first text"));
    store.insert_batch(&[secret], &pos(1)).unwrap();
    let other = Connection::open(&path).unwrap();
    other
        .execute_batch(
            "PRAGMA foreign_keys = OFF; DELETE FROM turns; DELETE FROM choices;
             DELETE FROM link_index; DELETE FROM nodes; DELETE FROM bodies;",
        )
        .unwrap();
    // Row numbers are given again, to other texts.
    let mut stranger = Store::open(&path).unwrap();
    stranger.insert_batch(&[turn(|_, _| {}, said("of somebody else"))], &pos(2)).unwrap();
    let again = turn(|_, _| {}, said("the first text"));
    let id = again.begin.turn_id;
    store.insert_batch(&[again], &pos(3)).unwrap();
    let stored = store.turn(id).unwrap().unwrap();
    assert_eq!(stored.messages[0]["content"], "the first text");
    assert_eq!(stored.choices[0].message["content"], "an answer");
}

/// Not a test of anything: prints what pages of a store of a million turns cost.
#[test]
#[ignore = "a measurement: cargo test --release -p hone-shared --test store_list -- --ignored --nocapture"]
fn how_long_pages_of_a_million_turns_take() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    drop(Store::open(&path).unwrap());
    let raw = Connection::open(&path).unwrap();
    let began = Instant::now();
    raw.execute_batch(MILLION).unwrap();
    println!("filled in {:.1} s", began.elapsed().as_secs_f64());
    let store = Store::open_read_only(&path).unwrap();
    let (mut worst, mut sum, mut count) = (0.0f64, 0.0, 0);
    for mask in 0u32..256 {
        let on = |bit: u32| mask & (1 << bit) != 0;
        for rare in [false, true] {
            let pick = |common: &str, seldom: &str| {
                Some(if rare { seldom.to_owned() } else { common.to_owned() })
            };
            let filter = TurnFilter {
                route: pick("r0", "r9").filter(|_| on(0)),
                tenant: pick("t0", "t499").filter(|_| on(1)),
                session: pick("s77", "s77").filter(|_| on(2)),
                outcome: on(3).then_some(if rare {
                    Outcome::ProxyCrash
                } else {
                    Outcome::Complete
                }),
                model: pick("m0", "m4").filter(|_| on(4)),
                verdict: on(5).then_some(if rare { Judged::As(1) } else { Judged::Not }),
                since_ms: on(6).then_some(100_000),
                until_ms: on(7).then_some(900_000),
            };
            let began = Instant::now();
            let page = store.list_turns(&filter, None, 50).unwrap();
            let first = began.elapsed().as_secs_f64() * 1e3;
            let deep = Cursor::from_str("450000-450000").unwrap();
            let began = Instant::now();
            store.list_turns(&filter, Some(deep), 50).unwrap();
            let ms = first.max(began.elapsed().as_secs_f64() * 1e3);
            (sum, count) = (sum + ms, count + 1);
            if ms > worst {
                worst = ms;
                println!("{ms:7.2} ms, {} turns: {filter:?}", page.turns.len());
            }
        }
    }
    println!("{count} filters: mean {:.2} ms, worst {worst:.2} ms", sum / f64::from(count));
}

/// A million turns over ten routes, five hundred tenants, sixteen models, three outcomes and all
/// verdicts, a thousand of them in one session.
const MILLION: &str = "
PRAGMA synchronous = OFF;
PRAGMA cache_size = -2000000;
WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 7999)
INSERT INTO facets (id, route, tenant, outcome, model, verdict, others)
SELECT i + 1, 'r' || (i % 10), 't' || (i % 500),
       CASE i % 7 WHEN 5 THEN 'client_abort' WHEN 6 THEN 'proxy_crash' ELSE 'complete' END,
       'm' || (i / 500), CASE i % 4 WHEN 0 THEN 1 WHEN 1 THEN -1 ELSE 9 END, 0
FROM n;
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)
INSERT INTO turns (id, turn_id, session_id, parent_choice, link_confidence, route, mode, alias,
    tenant, method, path, model, generation, policy_version, started_ms, status, outcome, stream,
    attempts, prompt_len, request_headers, response_headers, request_bytes, response_bytes, flags,
    judgeable, next_states, judged, facet)
SELECT i, printf('00000000-0000-7000-8000-%012x', i), 's' || (i % 1000), 0, 0.0, f.route, 'learn',
    'chat', f.tenant, 'POST', '/v1/chat/completions', f.model, 'base', 1, i, 200, f.outcome, 0, 1, 0,
    '[]', '[]', 1, 1, 0, 0, 0, 0, f.id
FROM n JOIN facets f ON f.id = (i * 7919) % 8000 + 1;";
