//! The operator's listener: who may ask, and whether the answers are true.

use crate::client::{ask, chat, get, post};
use crate::harness::{Proxy, write_policies};
use crate::origin::Origin;

#[tokio::test(flavor = "multi_thread")]
async fn everything_but_health_needs_the_token() {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(proxy.admin, path, "Connection: close\r\n").await.status, 200);
    }
    for path in ["/metrics", "/v1/status"] {
        for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic x\r\n"] {
            let response = get(proxy.admin, path, headers).await;
            assert_eq!(response.status, 401, "{path} {headers}");
            assert_eq!(response.json()["error"]["code"], "admin_token_required");
        }
        assert_eq!(proxy.admin_get(path).await.status, 200);
    }
    assert_eq!(ask(proxy.admin, &post("/v1/refresh", "", b"")).await.status, 401);
    assert_eq!(get(proxy.admin, "/nothing", "").await.status, 404);
}

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
