//! The operator's listener: who may ask, and whether the answers are true.

use crate::client::{ask, chat, get, get_admin, post};
use crate::harness::{Proxy, write_policies};
use crate::origin::Origin;

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_endpoints_are_not_on_the_data_listener() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "off").await;
    get(proxy.address, "/livez", "").await;
    assert_eq!(origin.seen()[0].target, "/livez", "passed on like any other path");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_balance_and_name_the_serving_generation() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    for _ in 0..5 {
        ask(proxy.address, &post("/v1/json/chat/completions", "", &chat("a", false))).await;
    }
    proxy.settled(5).await;
    let page = proxy.admin_get("/metrics").await.text();
    let value = |name: &str| -> f64 {
        let line = page.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(value("hone_turns_total"), 5.0);
    let dropped: f64 = page
        .lines()
        .filter(|line| line.starts_with("hone_turns_dropped_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(value("hone_turns_stored_total") + dropped + value("hone_turns_pending"), 5.0);
    assert_eq!(value("hone_requests_total"), 5.0);
    assert_eq!(value("hone_request_seconds_count"), 5.0);
    let route = "hone_route_generation{route=\"test\",mode=\"learn\",generation=\"base\"} 1";
    assert!(page.contains(route), "{page}");
    assert!(page.contains("hone_requests_ended_total{outcome=\"complete\"} 5"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_takes_good_policies_and_refuses_bad_ones_by_name() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "off").await;
    write_policies(&proxy.data, "observe");
    let refreshed = proxy.refresh().await;
    assert_eq!(refreshed["problems"].as_array().unwrap().len(), 0);
    assert_eq!(proxy.status().await["routes"][0]["mode"], "observe");

    let file = proxy.data.policies_dir().join("routes/test.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("surprise = 1\n{text}")).unwrap();
    let problem = proxy.refresh().await["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.contains("routes/test.toml") && problem.contains("surprise"), "{problem}");
    let status = proxy.status().await;
    assert_eq!(status["routes"][0]["mode"], "observe", "the last good policies stay");
    assert_eq!(status["policy_problem"], problem.as_str());
    assert_eq!(ask(proxy.address, &post("/v1/json/chat/completions", "", b"{}")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn learning_is_toggled_for_the_next_request_and_serving_returns_to_the_base() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    let generation = "ab".repeat(32);
    serve(&proxy, &generation).await;
    let served = || async {
        ask(proxy.address, &post("/v1/json/chat/completions", "", &chat("a", false))).await;
        origin.seen().last().unwrap().headers.get("x-hone-generation").cloned()
    };
    assert_eq!(served().await.as_deref(), Some(generation.as_str()));

    let body = "{\"mode\": \"observe\", \"ttl_s\": 3600, \"reason\": \"exam week\"}";
    let set = proxy.admin_ask("PUT", "/v1/routes/test/mode", body).await;
    assert_eq!(set.status, 200, "{}", set.text());
    let set = set.json();
    assert_eq!((set["before"].as_str(), set["after"].as_str()), (Some("learn"), Some("observe")));
    assert_eq!(set["audited"], true);
    assert_eq!(served().await.as_deref(), Some("base"));
    let route = proxy.admin_get("/v1/routes").await.json()["data"][0].clone();
    assert_eq!((&route["mode"], &route["file_mode"]), (&"observe".into(), &"learn".into()));
    assert_eq!(
        (&route["override"]["who"], &route["override"]["reason"]),
        (&"admin".into(), &"exam week".into())
    );

    proxy.admin_ask("PUT", "/v1/routes/test/mode", "{\"mode\": \"off\"}").await;
    assert_eq!(served().await, None, "off: the request passes as it came");
    let reset = proxy.admin_ask("DELETE", "/v1/routes/test/mode", "").await.json();
    assert_eq!((reset["before"].as_str(), reset["after"].as_str()), (Some("off"), Some("learn")));
    assert_eq!(served().await.as_deref(), Some(generation.as_str()));
    proxy.settled(3).await;

    let audit = proxy.admin_get("/v1/audit?limit=2").await.json();
    let actions: Vec<_> =
        audit["data"].as_array().unwrap().iter().map(|row| &row["action"]).collect();
    assert_eq!(actions, ["learning.reset", "learning.set"]);
    let rest = proxy.admin_get(&format!("/v1/audit?before={}", audit["next"])).await.json();
    let store = hone_shared::store::Store::open(&proxy.data.store_path()).unwrap();
    let entry = hone_shared::store::AuditEntry::default();
    (0..1_000).for_each(|_| assert!(store.append_audit(&entry).unwrap() > 0));
    let full = proxy.admin_get("/v1/audit?limit=5000").await.json();
    assert_eq!(full["data"].as_array().unwrap().len(), 1_000);
    assert!(full["next"].is_i64(), "there are more than one listing gives");
    assert_eq!(rest["data"][0]["reason"], "exam week");
    assert_eq!(
        (rest["data"].as_array().unwrap().len(), &rest["next"]),
        (1, &serde_json::Value::Null)
    );
}

/// Makes the alias of the test policy point at a generation.
async fn serve(proxy: &Proxy, generation: &str) {
    let state = serde_json::json!({
        "alias": "main", "generation": generation, "previous": [], "sequence": 1, "moved_ms": 1,
        "reason": "test",
    });
    let dir = proxy.data.registry_dir().join("aliases");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("main.json"), state.to_string()).unwrap();
    proxy.refresh().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_toggle_changes_nothing_and_says_why() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "learn").await;
    let long = format!("{{\"mode\": \"off\", \"reason\": \"{}\"}}", "x".repeat(501));
    for (path, body, status, said) in [
        ("/v1/routes/test/mode", "", 400, "EOF"),
        ("/v1/routes/test/mode", "{\"mode\": \"on\"}", 400, "observe"),
        ("/v1/routes/test/mode", "{\"mode\": \"off\", \"ttl\": 1}", 400, "ttl_s"),
        ("/v1/routes/test/mode", "{\"mode\": \"off\", \"ttl_s\": 0}", 400, "seconds"),
        ("/v1/routes/test/mode", &long, 400, "500"),
        ("/v1/routes/nobody/mode", "{\"mode\": \"off\"}", 404, "there are: test"),
        ("/v1/routes/..%2ftest/mode", "{\"mode\": \"off\"}", 404, "no route"),
    ] {
        let response = proxy.admin_ask("PUT", path, body).await;
        assert_eq!(response.status, status, "{path} {body}: {}", response.text());
        assert!(response.text().contains(said), "{}", response.text());
    }
    assert_eq!(proxy.status().await["routes"][0]["mode"], "learn");
    assert!(!proxy.data.overrides_path().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_what_is_wrong_in_codes_and_to_operators_in_words() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    let ready = |headers: &'static str| get_admin(proxy.admin, "/readyz", headers);
    assert_eq!(ready("").await.text(), "ok\n");
    assert_eq!(
        ready("Accept: application/json\r\n").await.json()["reasons"],
        serde_json::json!([])
    );
    std::fs::write(proxy.data.policies_dir().join("routes/test.toml"), "secret = 1").unwrap();
    proxy.refresh().await;
    let response = ready("").await;
    assert_eq!((response.status, response.text().as_str()), (200, "degraded\n"));
    let open = ready("Accept: application/json\r\n").await.text();
    assert!(open.contains("policy_problem") && !open.contains("secret"), "{open}");
    let told = proxy.admin_get("/readyz?json").await.text();
    assert!(told.contains("routes/test.toml") && told.contains("secret"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_list_turns_page_by_page_and_see_one_and_its_session() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    for at in 0..5 {
        let body = chat(&format!("question {at} end"), false);
        ask(proxy.address, &post("/v1/json/chat/completions", "X-Session-Id: s1\r\n", &body)).await;
    }
    proxy.settled(5).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = proxy.admin_get(&format!("/v1/turns?limit=2&route=test{cursor}")).await.json();
        let rows = page["data"].as_array().unwrap().clone();
        seen.extend(rows.into_iter().map(|row| row["turn_id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen.len(), 5);
    let turn = proxy.admin_get(&format!("/v1/turns/{}", seen[0])).await.json();
    assert_eq!(turn["messages"][0]["content"], "question 4 end");
    let session = turn["session_id"].as_str().unwrap();
    let session = proxy.admin_get(&format!("/v1/sessions/{session}")).await.json();
    assert_eq!(session["data"].as_array().unwrap().len(), 5);
    let none = proxy.admin_get("/v1/turns?outcome=client_abort").await.json();
    assert_eq!(none["data"].as_array().unwrap().len(), 0);
    for (path, status) in [
        ("/v1/turns?outcome=nice", 400),
        ("/v1/turns?cursor=x", 400),
        ("/v1/turns?colour=red", 400),
        ("/v1/turns/nobody", 404),
        ("/v1/turns/01890000-0000-7000-8000-000000000000", 404),
        ("/v1/sessions/nobody", 404),
    ] {
        assert_eq!(proxy.admin_get(path).await.status, status, "{path}");
    }
}
