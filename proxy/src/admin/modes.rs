//! Learning modes at run time: what each route does, and changing it.
//!
//! ```text
//! GET    /v1/routes               every route with its mode, its file's mode and who overrode it
//! PUT    /v1/routes/{name}/mode   {"mode": "observe", "ttl_s": 3600, "reason": "exam week"}
//! DELETE /v1/routes/{name}/mode   back to the file's mode
//! ```
//! Invariant: when a change is answered, new requests follow it already.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use hone_shared::clock::now_ms;
use hone_shared::policy::ModeOverride;
use hone_shared::toggle::{self, ToggleError, Toggled};
use hone_shared::turn::Mode;
use serde::Deserialize;
use serde_json::json;

use super::guard::Who;
use super::{Operator, blocking, refuse, status};

/// Body of a `PUT`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    mode: Mode,
    /// Seconds until the route returns to its file's mode; none = until it is reset.
    ttl_s: Option<u64>,
    #[serde(default)]
    reason: String,
}

/// `GET /v1/routes`
pub async fn list(State(operator): State<Arc<Operator>>) -> Response {
    let problems = operator.watches.problems();
    Json(json!({ "data": status::routes(&operator), "problems": problems })).into_response()
}

/// `PUT /v1/routes/{name}/mode`
pub async fn set(
    State(operator): State<Arc<Operator>>,
    Extension(who): Extension<Who>,
    Path(route): Path<String>,
    body: axum::body::Bytes,
) -> Response {
    let wanted: Wanted = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => {
            let message = format!(
                "Send JSON such as {{\"mode\": \"observe\", \"ttl_s\": 3600, \"reason\": \"...\"}}: \
                 {error}."
            );
            return refuse(StatusCode::BAD_REQUEST, "invalid_body", &message);
        }
    };
    let Wanted { mode, ttl_s, reason } = wanted;
    let changed = blocking(move || {
        let held = ModeOverride::new(mode, ttl_s, &reason, &who.0, now_ms());
        let held = held.map_err(ToggleError::Override)?;
        let policies = operator.watches.snapshot().policies;
        let toggled = toggle::set_in(&operator.data, policies.as_ref(), &route, held)?;
        operator.watches.refresh();
        Ok(toggled)
    })
    .await;
    changed.map_or_else(|failed| failed, answer)
}

/// `DELETE /v1/routes/{name}/mode`
pub async fn reset(
    State(operator): State<Arc<Operator>>,
    Extension(who): Extension<Who>,
    Path(route): Path<String>,
) -> Response {
    let changed = blocking(move || {
        let policies = operator.watches.snapshot().policies;
        let toggled = toggle::reset_in(&operator.data, policies.as_ref(), &route, &who.0, "")?;
        operator.watches.refresh();
        Ok(toggled)
    })
    .await;
    changed.map_or_else(|failed| failed, answer)
}

fn answer(changed: Result<Toggled, ToggleError>) -> Response {
    use hone_shared::policy::OverrideError;
    let error = match changed {
        Ok(toggled) => return Json(toggled).into_response(),
        Err(error) => error,
    };
    let (status, code) = match &error {
        ToggleError::NoRoute { .. } => (StatusCode::NOT_FOUND, "route_not_found"),
        ToggleError::Override(OverrideError::Refused(_)) => {
            (StatusCode::BAD_REQUEST, "invalid_override")
        }
        ToggleError::Policy(_) | ToggleError::Override(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "overrides_unavailable")
        }
    };
    refuse(status, code, &error.to_string())
}
