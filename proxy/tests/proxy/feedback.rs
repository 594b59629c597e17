//! Feedback over real sockets into a real database: every shape, every mistake, and nobody else's
//! turns.

use std::time::Duration;

use hone_proxy::config::{Answer, FeedbackConfig};
use hone_shared::feedback::FeedbackKind;
use hone_shared::store::{FeedbackRow, Store};
use hone_shared::turn::TurnId;
use serde_json::{Value, json};

use crate::client::{Client, Response, ask, chat, chunked, get, post};
use crate::harness::{Proxy, eventually, number};
use crate::origin::Origin;

const ALICE: &str = "Authorization: Bearer sk-alice-0123456789\r\n";
const MALLORY: &str = "Authorization: Bearer sk-mallory-0123456789\r\n";

/// Asks the engine something; the turn, whose response has the id `chatcmpl-<n>`.
async fn turn(proxy: &Proxy, n: u64, headers: &str) -> TurnId {
    let request = post(&format!("/v1/ids/chat/completions?n={n}"), headers, &chat("hi", false));
    let response = ask(proxy.address, &request).await;
    assert_eq!(response.json()["id"], format!("chatcmpl-{n}"));
    let mut found = None;
    eventually("the turn is stored", || {
        let Ok(store) = Store::open_read_only(&proxy.data.store_path()) else { return false };
        let filter = hone_shared::store::TurnFilter::default();
        let page = store.list_turns(&filter, None, 100).unwrap();
        let mut all = page.turns.iter().map(|line| line.turn_id);
        found = all.find(|id| {
            store.turn(*id).unwrap().unwrap().response_id == Some(format!("chatcmpl-{n}"))
        });
        found.is_some()
    })
    .await;
    found.unwrap()
}

async fn say(proxy: &Proxy, path: &str, headers: &str, body: &Value) -> Response {
    ask(proxy.address, &post(path, headers, body.to_string().as_bytes())).await
}

async fn status(proxy: &Proxy) -> Value {
    proxy.status().await["feedback"].clone()
}

/// Waits until everything that was accepted is in the store, or counted; the books.
async fn settled(proxy: &Proxy, accepted: u64) -> Value {
    let mut waited = 0;
    loop {
        let books = status(proxy).await;
        let dropped: u64 = books["dropped"].as_object().unwrap().values().map(number).sum();
        let arrived = number(&books["stored"]) + number(&books["duplicates"]) + dropped;
        assert!(arrived <= number(&books["accepted"]), "{books}");
        if number(&books["accepted"]) == accepted && arrived == accepted {
            return books;
        }
        assert!(waited < 1_000, "never settled: {books}");
        waited += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn store(proxy: &Proxy) -> Store {
    Store::open_read_only(&proxy.data.store_path()).unwrap()
}

fn about(proxy: &Proxy, turn: TurnId) -> Vec<FeedbackRow> {
    store(proxy).feedback_given(turn).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_is_answered_by_the_proxy_and_stored_with_its_turn() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    let id = turn(&proxy, 1, ALICE).await;
    let asked = origin.seen().len();
    let native = json!({"response_id": "chatcmpl-1", "thumb": "down", "comment": "shorter",
        "demonstration": "Hi.", "outcome": 0.5});
    let tensorzero =
        json!({"metric_name": "liked", "inference_id": "chatcmpl-1", "value": true, "tags": {}});
    let langfuse = json!({"name": "quality", "traceId": "chatcmpl-1", "value": -0.5,
        "dataType": "NUMERIC", "comment": "dull"});
    let portkey = json!({"trace_id": "chatcmpl-1", "value": 5, "weight": 0.5});
    for (path, body) in [
        ("/v1/feedback", &native),
        ("/feedback", &tensorzero),
        ("/api/public/scores", &langfuse),
        ("/v1/feedback", &portkey),
    ] {
        let response = say(&proxy, path, ALICE, body).await;
        assert_eq!(response.status, 202, "{}", response.text());
        assert!(response.json()["feedback_id"].is_string(), "{}", response.text());
    }
    assert_eq!(origin.seen().len(), asked, "nothing was passed on");
    let books = settled(&proxy, 4).await;
    assert_eq!(number(&books["stored"]), 4);
    let rows = about(&proxy, id);
    let said: Vec<_> = rows.iter().map(|row| (row.kind, row.value, row.weight)).collect();
    use FeedbackKind::{Comment, Demonstration, Outcome, Score, Thumb};
    let wanted = [
        (Thumb, Some(-1.0), 1.0),
        (Comment, None, 1.0),
        (Demonstration, None, 1.0),
        (Outcome, Some(0.5), 1.0),
        (Thumb, Some(1.0), 1.0),
        (Score, Some(-0.5), 1.0),
        (Comment, None, 1.0),
        (Score, Some(0.5), 0.5),
    ];
    assert_eq!(said, wanted);
    let shown = proxy.admin_get(&format!("/v1/turns/{id}")).await.json();
    assert_eq!(shown["feedback"][1]["text"], "shorter");
    let page = proxy.admin_get("/metrics").await.text();
    let line = "hone_feedback_total{shape=\"langfuse\",kind=\"score\",outcome=\"accepted\"} 1";
    assert!(page.contains(line), "{page}");
    assert!(page.contains("hone_feedback_stored_total 4"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_is_said_clearly_and_nothing_of_it_is_stored() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    let id = turn(&proxy, 1, ALICE).await;
    let mut client = Client::connect(proxy.address).await;
    let mut refused = 0;
    for (path, body, status, word) in [
        ("/v1/feedback", "", 400, "not JSON"),
        ("/v1/feedback", "[]", 400, "JSON object"),
        ("/v1/feedback", r#"{"response_id":"chatcmpl-1"}"#, 400, "at least one"),
        ("/v1/feedback", r#"{"response_id":"chatcmpl-1","thumb":"meh"}"#, 400, "\"up\""),
        ("/v1/feedback", r#"{"response_id":"chatcmpl-1","score":3}"#, 400, "from -1 to 1"),
        ("/v1/feedback", r#"{"response_id":"chatcmpl-1","thumbs":"up"}"#, 400, "`thumbs`"),
        ("/v1/feedback", r#"{"trace_id":"chatcmpl-1","value":99}"#, 400, "from -10 to 10"),
        ("/feedback", r#"{"metric_name":"m","value":true}"#, 400, "inference_id"),
        ("/api/public/scores", r#"{"name":"q","value":1}"#, 400, "traceId"),
        ("/api/public/scores", r#"{"thumb":"up","response_id":"r"}"#, 400, "`name`"),
    ] {
        client.send(&post(path, ALICE, body.as_bytes())).await;
        let response = client.response().await;
        assert_eq!(response.status, status, "{body}: {}", response.text());
        let error = &response.json()["error"];
        assert_eq!(error["code"], "invalid_feedback", "{body}");
        assert!(error["message"].as_str().unwrap().contains(word), "{body}: {error}");
        refused += 1;
        client = Client::connect(proxy.address).await;
    }
    let large =
        format!("{{\"response_id\":\"chatcmpl-1\",\"comment\":\"{}\"}}", "x".repeat(65_536));
    let response = ask(proxy.address, &post("/v1/feedback", ALICE, large.as_bytes())).await;
    assert_eq!(
        (response.status, response.json()["error"]["code"].as_str().unwrap()),
        (413, "feedback_too_large")
    );
    let mut slow = Client::connect(proxy.address).await;
    slow.send(&chunked("/v1/feedback")).await;
    slow.send(format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len()).as_bytes()).await;
    assert_eq!(slow.response().await.status, 413, "also where its length is not said");
    let http = &proxy.status().await["http"]["faults"];
    assert_eq!(number(&http["invalid_feedback"]), refused);
    assert_eq!(number(&http["feedback_too_large"]), 2);
    // What comes after all of them is taken.
    let good = json!({"turn_id": id, "thumb": "up"});
    assert_eq!(say(&proxy, "/v1/feedback", ALICE, &good).await.status, 202);
    settled(&proxy, 1).await;
    assert_eq!(about(&proxy, id).len(), 1);
    assert!(origin.seen().len() == 1, "nothing of it reached the engine");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_takes_feedback_and_chats_in_turn() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    let mut client = Client::connect(proxy.address).await;
    for n in 1..4 {
        let target = format!("/v1/ids/chat/completions?n={n}");
        client.send(&post(&target, ALICE, &chat("hi", false))).await;
        assert_eq!(client.response().await.status, 200);
        let body = json!({"response_id": format!("chatcmpl-{n}"), "thumb": "up"}).to_string();
        let head = format!("{ALICE}Expect: 100-continue\r\n");
        client.send(&post("/v1/feedback", &head, body.as_bytes())).await;
        let response = client.response().await;
        assert_eq!((response.status, response.whole), (202, true), "{}", response.text());
    }
    proxy.settled(3).await;
    let books = settled(&proxy, 3).await;
    assert_eq!(number(&books["stored"]), 3);
    let conn = rusqlite::Connection::open(proxy.data.store_path()).unwrap();
    let waits = "SELECT count(*) FROM feedback WHERE turn IS NULL";
    eventually("every one has its turn", || {
        conn.query_row(waits, [], |row| row.get::<_, i64>(0)).unwrap() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn feedback_that_comes_before_its_turn_waits_for_it() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    let body = json!({"response_id": "chatcmpl-7", "thumb": "up"});
    assert_eq!(say(&proxy, "/v1/feedback", ALICE, &body).await.status, 202);
    let books = settled(&proxy, 1).await;
    assert_eq!(number(&books["waiting"]), 1);
    let id = turn(&proxy, 7, ALICE).await;
    assert_eq!(about(&proxy, id).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_twice_under_one_id_is_answered_alike_and_stored_once() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    let id = turn(&proxy, 1, ALICE).await;
    let body = json!({"response_id": "chatcmpl-1", "thumb": "up", "id": "click-1"});
    let first = say(&proxy, "/v1/feedback", ALICE, &body).await.json();
    let again = say(&proxy, "/v1/feedback", ALICE, &body).await.json();
    assert_eq!(first, again);
    let other = say(&proxy, "/v1/feedback", MALLORY, &body).await.json();
    assert_ne!(first, other, "another tenant's id is another one");
    let books = settled(&proxy, 3).await;
    assert_eq!((number(&books["stored"]), number(&books["duplicates"])), (2, 1));
    assert_eq!(about(&proxy, id).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_says_anything_about_another_tenants_turn_and_the_answer_does_not_tell() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    let session = format!("{ALICE}X-Session-Id: visit\r\n");
    let id = turn(&proxy, 1, &session).await;
    let stored = store(&proxy).turn(id).unwrap().unwrap().session_id;
    let guesses = [
        json!({"response_id": "chatcmpl-1", "thumb": "down"}),
        json!({"turn_id": id, "thumb": "down"}),
        json!({"session_id": "visit", "outcome": false}),
        json!({"session_id": stored, "outcome": false}),
        json!({"response_id": "chatcmpl-0", "thumb": "down"}),
    ];
    let mut sent = 0;
    for headers in [MALLORY, "", "x-api-key: sk-mallory-0123456789\r\n"] {
        for body in &guesses {
            let response = say(&proxy, "/v1/feedback", headers, body).await;
            assert_eq!(response.status, 202);
            let keys: Vec<_> = response.json().as_object().unwrap().keys().cloned().collect();
            assert_eq!(keys, ["feedback_id"], "alike whether it exists or not");
            sent += 1;
        }
    }
    let books = settled(&proxy, sent).await;
    assert_eq!(number(&books["waiting"]), sent);
    assert!(about(&proxy, id).is_empty());
    let own = json!({"session_id": "visit", "outcome": true});
    assert_eq!(say(&proxy, "/v1/feedback", ALICE, &own).await.status, 202);
    settled(&proxy, sent + 1).await;
    assert_eq!(about(&proxy, id).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_credential_feedback_weighs_nothing_unless_the_operator_says_so() {
    for (configured, weight) in [(0.0, 0.0), (0.25, 0.25)] {
        let origin = Origin::start().await;
        let proxy = Proxy::with(origin.address, "learn", |cfg| {
            cfg.feedback.anonymous_weight = configured;
        })
        .await;
        let id = turn(&proxy, 1, "").await;
        let body = json!({"response_id": "chatcmpl-1", "thumb": "down"});
        assert_eq!(say(&proxy, "/v1/feedback", "", &body).await.status, 202);
        settled(&proxy, 1).await;
        assert_eq!(about(&proxy, id)[0].weight, weight);
        let counts = store(&proxy).feedback_of_turn(id).unwrap().len();
        assert_eq!(counts, usize::from(weight > 0.0), "offered for learning");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_learns_or_where_it_is_off_the_engines_own_paths_are_reached() {
    let body = json!({"response_id": "chatcmpl-1", "thumb": "up"});
    for (mode, answer, taken) in [
        ("off", Answer::Learning, false),
        ("observe", Answer::Learning, false),
        ("shadow", Answer::Learning, true),
        ("learn", Answer::Never, false),
        ("off", Answer::Always, true),
    ] {
        let origin = Origin::start().await;
        let proxy = Proxy::with(origin.address, mode, |cfg| {
            cfg.feedback = FeedbackConfig { answer, ..FeedbackConfig::default() };
        })
        .await;
        for path in ["/v1/feedback", "/feedback", "/api/public/scores"] {
            let before = origin.seen().len();
            let response = say(&proxy, path, ALICE, &body).await;
            let passed = origin.seen().len() > before;
            assert_eq!(passed, !taken, "{mode} {answer:?} {path}: {}", response.text());
            if passed {
                assert_eq!(origin.seen()[before].body, body.to_string().as_bytes());
            }
        }
        let before = origin.seen().len();
        get(proxy.address, "/v1/feedback", ALICE).await;
        let (other, text) = ("/v1/feedback/x", body.to_string());
        ask(proxy.address, &post(other, ALICE, text.as_bytes())).await;
        assert_eq!(origin.seen().len(), before + 2, "only a POST of the exact path is feedback");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_says_too_much_is_told_when_to_come_back() {
    let origin = Origin::start().await;
    let proxy = Proxy::with(origin.address, "learn", |cfg| {
        cfg.limits.feedback_per_minute_max = 3;
    })
    .await;
    let body = json!({"response_id": "chatcmpl-1", "thumb": "up"});
    for _ in 0..3 {
        assert_eq!(say(&proxy, "/v1/feedback", MALLORY, &body).await.status, 202);
    }
    let refused = say(&proxy, "/v1/feedback", MALLORY, &body).await;
    assert_eq!(refused.status, 429);
    assert!(refused.headers["retry-after"].parse::<u64>().unwrap() >= 1);
    assert_eq!(say(&proxy, "/v1/feedback", ALICE, &body).await.status, 202, "others go on");
    let books = settled(&proxy, 4).await;
    assert_eq!(number(&books["stored"]), 4);
    turn(&proxy, 1, MALLORY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_speaks_about_any_tenants_turn_and_is_on_record() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    let id = turn(&proxy, 1, ALICE).await;
    let body = json!({"response_id": "chatcmpl-1", "thumb": "down", "comment": "wrong unit"});
    let response = proxy.admin_ask("POST", "/v1/feedback", &body.to_string()).await;
    assert_eq!(response.status, 202, "{}", response.text());
    let wrong = proxy.admin_ask("POST", "/v1/feedback", "{\"thumb\": \"up\"}").await;
    assert_eq!(wrong.status, 400);
    assert_eq!(wrong.json()["error"]["param"], "response_id");
    settled(&proxy, 1).await;
    let rows = about(&proxy, id);
    let tenant = store(&proxy).turn(id).unwrap().unwrap().tenant;
    assert!(rows.iter().all(|row| row.tenant == tenant && row.weight == 1.0), "{rows:?}");
    let audit = proxy.admin_get("/v1/audit").await.json();
    let row = &audit["data"][0];
    assert_eq!(
        (row["action"].as_str(), row["target"].as_str()),
        (Some("feedback"), Some("response"))
    );
    assert_eq!(row["after"], "thumb, comment");
    assert!(!audit.to_string().contains("wrong unit"), "{audit}");
    assert_eq!(audit["data"].as_array().unwrap().len(), 1, "what is wrong changes nothing");
    let open = "POST /v1/feedback HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\
                Connection: close\r\n\r\n{}";
    assert_eq!(ask(proxy.admin, open.as_bytes()).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_is_checked_and_not_kept() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    let id = turn(&proxy, 1, ALICE).await;
    let mut body = json!({"metric_name": "liked", "inference_id": "chatcmpl-1", "value": true,
        "dryrun": true});
    assert_eq!(say(&proxy, "/feedback", ALICE, &body).await.status, 202);
    body["value"] = json!("yes");
    assert_eq!(say(&proxy, "/feedback", ALICE, &body).await.status, 400);
    body["dryrun"] = json!(false);
    body["value"] = json!(false);
    assert_eq!(say(&proxy, "/feedback", ALICE, &body).await.status, 202);
    settled(&proxy, 1).await;
    assert_eq!(about(&proxy, id)[0].value, Some(-1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_stalls_is_ended_and_holds_room_only_until_then() {
    let origin = Origin::start().await;
    let proxy = Proxy::with(origin.address, "learn", |cfg| {
        cfg.limits.feedback_upload_ms = 3_000;
        cfg.limits.feedback_upload_bytes_max = 100;
    })
    .await;
    let tcp = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let head = http::Request::post("http://proxy/v1/feedback").header("content-length", 80);
    let (answer, _stalls) = client.send_request(head.body(()).unwrap(), false).unwrap();
    let body = json!({"response_id": "nobody", "thumb": "up"});
    let mut seen = Vec::new();
    let since = std::time::Instant::now();
    while seen.last() != Some(&503) {
        // It may take a while until the other connection's task has sent its head.
        assert!(since.elapsed() < crate::harness::PATIENCE, "there is always room: {seen:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        seen.push(say(&proxy, "/v1/feedback", ALICE, &body).await.status);
    }
    let answer = tokio::time::timeout(crate::harness::PATIENCE, answer).await.unwrap().unwrap();
    assert_eq!(answer.status(), 408);
    assert_eq!(say(&proxy, "/v1/feedback", ALICE, &body).await.status, 202, "there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_redacting_route_what_is_said_is_redacted_before_the_database() {
    let secret = "sk-abcdefghijklmnopqrstuvwxyz012345";
    let origin = Origin::start().await;
    let proxy = Proxy::with(origin.address, "learn", |cfg| {
        let file = cfg.data.policies_dir().join("routes/test.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("redaction = \"secrets\"\n{text}")).unwrap();
    })
    .await;
    let id = turn(&proxy, 1, ALICE).await;
    for response in ["chatcmpl-1", "chatcmpl-2"] {
        let body = json!({"response_id": response, "comment": format!("you leaked {secret}!"),
            "demonstration": format!("I will not say {secret}")});
        assert_eq!(say(&proxy, "/v1/feedback", ALICE, &body).await.status, 202);
    }
    settled(&proxy, 2).await;
    let rows = about(&proxy, id);
    assert!(rows[0].text.as_ref().unwrap().starts_with("you leaked ["), "{rows:?}");
    drop(store(&proxy));
    for name in ["store.sqlite", "store.sqlite-wal"] {
        let path = proxy.data.store_path().with_file_name(name);
        let bytes = std::fs::read(&path).unwrap_or_default();
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{name} holds it");
    }
}
