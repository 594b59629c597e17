//! The operator's side: health, metrics, status and refresh, on a listener of its own.
//!
//! `/livez` and `/readyz` say only yes or no and need no token, so that any supervisor can ask;
//! everything else needs `Authorization: Bearer <data>/admin.token`, on whatever address the
//! listener is bound.
//!
//! Invariant: nothing here is reachable from the data listener, and no request here waits for the
//! data path.

pub mod counters;
pub mod metrics;
pub mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hone_shared::secret::same_token;
use serde_json::json;

use self::counters::Counters;
use crate::ingest::Ingest;
use crate::limit::Limiter;
use crate::listen::tls::Tls;
use crate::swap::{Refreshed, Watches};
use crate::tap::Recorder;
use crate::upstream::Engines;
use crate::upstream::tunnel::Tunnels;

/// What the admin side looks at.
pub struct Operator {
    /// The token that everything but health needs.
    pub token: String,
    /// Policies and aliases.
    pub watches: Arc<Watches>,
    /// Turns on their way.
    pub recorder: Arc<Recorder>,
    /// Turns that arrived.
    pub ingest: Arc<Ingest>,
    /// Requests.
    pub counters: Arc<Counters>,
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

/// All endpoints.
pub fn router(operator: Arc<Operator>) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/v1/status", get(status_json))
        .route("/v1/refresh", post(refresh))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&operator), need_token));
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .merge(guarded)
        .fallback(|| async {
            refuse(StatusCode::NOT_FOUND, "not_found", "There is no such admin endpoint.")
        })
        .with_state(operator)
}

async fn need_token(
    State(operator): State<Arc<Operator>>,
    request: Request,
    next: Next,
) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = given.and_then(|value| value.strip_prefix("Bearer "));
    if token.is_some_and(|token| same_token(token.trim(), &operator.token)) {
        return next.run(request).await;
    }
    let message = "Send the token of the data directory's admin.token as `Authorization: Bearer`.";
    refuse(StatusCode::UNAUTHORIZED, "admin_token_required", message)
}

fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    let error = json!({
        "message": message, "type": "permission_error", "param": null, "code": code,
    });
    (status, Json(json!({ "error": error }))).into_response()
}

async fn ready(State(operator): State<Arc<Operator>>) -> Response {
    if operator.draining.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    "ready\n".into_response()
}

async fn metrics_text(State(operator): State<Arc<Operator>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, metrics::render(&operator)).into_response()
}

async fn status_json(State(operator): State<Arc<Operator>>) -> Json<status::Status> {
    Json(status::of(&operator))
}

async fn refresh(State(operator): State<Arc<Operator>>) -> Result<Json<Refreshed>, StatusCode> {
    // Reads files, so it runs where blocking is allowed.
    let refreshed = tokio::task::spawn_blocking(move || operator.watches.refresh()).await;
    refreshed.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
