//! The operator's side: health, metrics, status and steering, on a listener of its own.
//!
//! `/livez` and `/readyz` need no token, so that any supervisor can ask; everything else needs one as
//! `Authorization: Bearer`, on whatever address the listener is bound. All endpoints stand in
//! [`ENDPOINTS`]; tests go through that table.
//!
//! Invariant: nothing here is reachable from the data listener, and no request here waits for the
//! data path.

mod audit;
pub mod bounded;
pub mod counters;
mod feedback;
pub mod genai;
pub mod guard;
pub mod health;
pub mod metrics;
mod modes;
pub mod status;
pub mod tokens;
pub mod turns;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use axum::{Json, Router};
use hone_shared::data_dir::DataDir;
use hone_shared::toggle;
use serde_json::json;

use self::counters::Counters;
use self::genai::GenAi;
use self::tokens::Tokens;
use crate::feedback::Desk;
use crate::ingest::Ingest;
use crate::limit::Limiter;
use crate::listen::tls::Tls;
use crate::swap::{Refreshed, Watches};
use crate::tap::Recorder;
use crate::upstream::Engines;
use crate::upstream::tunnel::Tunnels;

/// What the admin side looks at.
pub struct Operator {
    /// The tokens, one of which everything but health needs.
    pub tokens: Tokens,
    /// Names by which the listener may be called, besides addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Largest request body, bytes.
    pub body_bytes_max: usize,
    /// Where overrides, store and audit trail are.
    pub data: DataDir,
    /// Policies and aliases.
    pub watches: Arc<Watches>,
    /// Turns on their way.
    pub recorder: Arc<Recorder>,
    /// Turns that arrived.
    pub ingest: Arc<Ingest>,
    /// Where feedback is taken.
    pub feedback: Arc<Desk>,
    /// Requests.
    pub counters: Arc<Counters>,
    /// Stored turns by model.
    pub genai: Arc<GenAi>,
    /// TLS with clients, where a listener speaks it.
    pub tls: Option<Arc<Tls>>,
    /// Where they go.
    pub engines: Arc<Engines>,
    /// How many of them may.
    pub limiter: Arc<Limiter>,
    /// Those that stopped being HTTP.
    pub tunnels: Arc<Tunnels>,
    /// Set when a shutdown begins: no longer ready.
    pub draining: AtomicBool,
}

/// One endpoint.
pub struct Endpoint {
    /// Its methods, for people and tests.
    pub methods: &'static str,
    /// Its path; `{name}` stands for one segment.
    pub path: &'static str,
    /// Whether it needs no token.
    pub open: bool,
    serve: fn() -> MethodRouter<Arc<Operator>>,
}

const fn open(path: &'static str, serve: fn() -> MethodRouter<Arc<Operator>>) -> Endpoint {
    Endpoint { methods: "GET", path, open: true, serve }
}

const fn guarded(
    methods: &'static str,
    path: &'static str,
    serve: fn() -> MethodRouter<Arc<Operator>>,
) -> Endpoint {
    Endpoint { methods, path, open: false, serve }
}

/// Everything that the admin listener answers.
pub const ENDPOINTS: &[Endpoint] = &[
    open("/livez", || get(|| async { "ok\n" })),
    open("/readyz", || get(health::ready)),
    guarded("GET", "/metrics", || get(metrics_text)),
    guarded("GET", "/v1/status", || get(status_json)),
    guarded("POST", "/v1/refresh", || post(refresh)),
    guarded("GET", "/v1/routes", || get(modes::list)),
    guarded("PUT DELETE", "/v1/routes/{name}/mode", || put(modes::set).delete(modes::reset)),
    guarded("GET", "/v1/audit", || get(audit::list)),
    guarded("POST", "/v1/feedback", || post(feedback::give)),
    guarded("GET", "/v1/turns", || get(turns::list)),
    guarded("GET", "/v1/turns/{id}", || get(turns::one)),
    guarded("GET", "/v1/sessions/{*id}", || get(turns::session)),
];

/// All endpoints behind their guard.
pub fn router(operator: Arc<Operator>) -> Router {
    let routes = ENDPOINTS
        .iter()
        .fold(Router::new(), |router, endpoint| router.route(endpoint.path, (endpoint.serve)()));
    routes
        .fallback(|| async {
            refuse(StatusCode::NOT_FOUND, "not_found", "There is no such admin endpoint.")
        })
        .layer(DefaultBodyLimit::max(operator.body_bytes_max))
        .layer(middleware::from_fn_with_state(Arc::clone(&operator), guard::guard))
        .with_state(operator)
}

fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    let error = json!({
        "message": message, "type": "permission_error", "param": null, "code": code,
    });
    (status, Json(json!({ "error": error }))).into_response()
}

/// Runs what reads files or the database where blocking is allowed. Error: what to answer when it
/// panicked.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Response> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "an admin request failed");
        let message = "The request could not be handled; the reason is in the log.";
        refuse(StatusCode::INTERNAL_SERVER_ERROR, "admin_error", message)
    })
}

async fn metrics_text(State(operator): State<Arc<Operator>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, metrics::render(&operator)).into_response()
}

async fn status_json(State(operator): State<Arc<Operator>>) -> Json<status::Status> {
    Json(status::of(&operator))
}

async fn refresh(State(operator): State<Arc<Operator>>) -> Result<Json<Refreshed>, Response> {
    blocking(move || {
        // What could not be audited before is tried again; a failure is in the log.
        let _ = toggle::audit_pending(&operator.data);
        operator.watches.refresh()
    })
    .await
    .map(Json)
}
