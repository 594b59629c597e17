//! The metrics page as Prometheus reads it, and the alerts that are made of it.

use std::collections::BTreeSet;

use crate::client::{ask, chat, post};
use crate::harness::Proxy;
use crate::origin::Origin;

const RULES: &str = include_str!("../../../deploy/prometheus/rules.yml");
const RULES_TEST: &str = include_str!("../../../deploy/prometheus/rules_test.yml");
const RUNBOOK: &str = include_str!("../../../deploy/README.md");

async fn page(requests: usize) -> String {
    let origin = Origin::start().await;
    let proxy = Proxy::start(origin.address, "observe").await;
    for at in 0..requests {
        let model = format!("\"model\":\"m{at}\"");
        let body = String::from_utf8(chat("a", at % 2 == 1)).unwrap();
        let body = body.replace("\"model\":\"test\"", &model);
        let kind = if at % 2 == 1 { "paced" } else { "json" };
        let target = format!("/v1/{kind}/chat/completions");
        ask(proxy.address, &post(&target, "", body.as_bytes())).await;
    }
    proxy.settled(requests as u64).await;
    proxy.admin_get("/metrics").await.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_alerts_is_on_the_page_and_every_alert_has_a_test_and_a_runbook() {
    let page = page(2).await;
    let known: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let used = RULES.lines().filter(|line| !line.contains("summary") && !line.contains("runbook"));
    let used = used.flat_map(|line| line.split(word));
    let used = used.filter(|name| name.starts_with("hone_") || name.starts_with("gen_ai_"));
    let used: BTreeSet<&str> = used.map(|name| name.trim_end_matches("_bucket")).collect();
    assert!(used.len() >= 10, "{used:?}");
    let missing: Vec<_> = used.difference(&known).collect();
    assert!(missing.is_empty(), "not on the page: {missing:?}\n{page}");
    let alerts = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        assert!(RULES_TEST.contains(&format!("alertname: {alert}\n")), "{alert} has no test");
    }
    let anchors = RULES.lines().filter_map(|line| line.split("README.md#").nth(1));
    for anchor in anchors.map(|rest| rest.trim_end_matches('"')) {
        let heading = |line: &str| line.strip_prefix("### ").map(str::to_lowercase);
        let found = RUNBOOK.lines().filter_map(heading).any(|heading| heading == anchor);
        assert!(found, "the runbook has no heading {anchor}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_of_the_page_is_in_the_format_and_no_series_comes_twice() {
    let page = page(2).await;
    let mut seen = BTreeSet::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(seen.insert(series), "twice: {series}");
        let name = series.split('{').next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let typed = |name: &str| page.contains(&format!("# TYPE {name} "));
        assert!(typed(name) || base.is_some_and(typed), "no type: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_told_apart_up_to_a_limit() {
    let page = page(200).await;
    let prefix = "gen_ai_server_request_duration_seconds_count{";
    let series: Vec<_> = page.lines().filter_map(|line| line.strip_prefix(prefix)).collect();
    assert!(series.len() <= hone_proxy::admin::genai::SERIES_MAX + 2, "{}", series.len());
    let counted: f64 =
        series.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
    assert_eq!(counted, 200.0);
    assert!(series.iter().any(|line| line.contains("gen_ai_request_model=\"other\"")));
    assert!(series[0].contains("gen_ai_operation_name=\"chat\""), "{}", series[0]);
}
