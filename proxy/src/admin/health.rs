//! `/livez` and `/readyz`: for supervisors and load balancers, without a token.
//!
//! ```text
//! ok         200   everything works
//! degraded   200   clients are served; something needs an operator
//! unready    503   a route refuses its requests, as its policy says, because it cannot record
//! draining   503   a shutdown has begun
//! ```
//! `Accept: application/json` or `?json` gets the reasons as codes; with a token, also in words,
//! which may name files and routes.
//!
//! Invariant: a proxy that serves its clients as its policies say is ready.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use hone_shared::policy::RoutePolicy;
use serde::Serialize;
use serde_json::json;

use super::Operator;
use super::guard::Who;

/// An ingest that is further behind than this is worth a look, milliseconds.
const LAG_MS_MAX: u64 = 30_000;

/// One reason why the proxy is not simply `ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// A fixed word.
    pub code: &'static str,
    /// In words; only for operators.
    pub detail: String,
    /// Whether clients are refused because of it.
    pub unready: bool,
}

/// Everything that is wrong now; empty when nothing is.
pub fn reasons(operator: &Operator) -> Vec<Reason> {
    let mut all = Vec::new();
    let mut add = |code, detail: String| all.push(Reason { code, detail, unready: false });
    let (spool, ingest) = (operator.recorder.spool(), operator.ingest.stats());
    for problem in operator.watches.problems() {
        add("policy_problem", problem);
    }
    if spool.disk_full {
        add("spool_full", format!("the spool holds {} bytes", spool.disk_bytes));
    }
    if spool.degraded {
        add("spool_unwritable", format!("{} writes have failed", spool.write_errors));
    }
    if operator.ingest.has_died() {
        let detail = "nothing is stored until a restart; the spool keeps it, and the log says why";
        add("ingest_dead", detail.to_owned());
    } else if let Some(error) = ingest.last_error {
        add("store_unavailable", error);
    } else if ingest.lag_ms > LAG_MS_MAX {
        add("ingest_behind", format!("{} ms behind the traffic", ingest.lag_ms));
    }
    let shed = shedding(operator);
    if !shed.is_empty() {
        let detail =
            format!("nothing can be recorded, so these routes refuse: {}", shed.join(", "));
        all.insert(0, Reason { code: "shedding", detail, unready: true });
    }
    if operator.draining.load(Ordering::Acquire) {
        let detail = "a shutdown has begun".to_owned();
        all.insert(0, Reason { code: "draining", detail, unready: true });
    }
    all
}

/// The routes that answer 503 now, because they would rather refuse than not record.
fn shedding(operator: &Operator) -> Vec<String> {
    let snapshot = operator.watches.snapshot();
    let sheds =
        |route: &&Arc<RoutePolicy>| route.mode.captures() && operator.recorder.would_shed(route);
    snapshot.policies.routes.iter().filter(sheds).map(|route| route.name.clone()).collect()
}

/// `GET /readyz`
pub async fn ready(
    State(operator): State<Arc<Operator>>,
    who: Option<Extension<Who>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let reasons = reasons(&operator);
    let unready = reasons.iter().any(|reason| reason.unready);
    let status = if unready { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let word = match reasons.first() {
        None => "ok",
        Some(first) if first.code == "draining" => "draining",
        Some(_) if unready => "unready",
        Some(_) => "degraded",
    };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let wants_json = query.as_deref() == Some("json")
        || accept.is_some_and(|kinds| kinds.contains("application/json"));
    if !wants_json {
        return (status, format!("{word}\n")).into_response();
    }
    let shown = reasons.iter().map(|reason| match &who {
        Some(_) => json!({ "code": reason.code, "detail": reason.detail }),
        None => json!({ "code": reason.code }),
    });
    let body = json!({ "status": word, "reasons": shown.collect::<Vec<_>>() });
    (status, Json(body)).into_response()
}
