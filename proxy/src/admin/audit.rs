//! `GET /v1/audit?limit=&before=`: who changed what, newest first.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hone_shared::store::audit::AUDIT_LIST_MAX;
use hone_shared::store::{Store, StoreError};
use serde::Deserialize;
use serde_json::json;

use super::{Operator, blocking, refuse};

/// Rows of one page, unless another number is asked for.
const LIMIT: usize = 100;

/// The query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    limit: Option<usize>,
    /// Number of the row before which to begin: the `next` of the page before.
    before: Option<i64>,
}

/// `GET /v1/audit`
pub async fn list(State(operator): State<Arc<Operator>>, Query(page): Query<Page>) -> Response {
    let limit = page.limit.unwrap_or(LIMIT).min(AUDIT_LIST_MAX);
    let path = operator.data.store_path();
    let read = move || Store::open_read_only(&path)?.audit(limit, page.before);
    match blocking(read).await {
        Err(failed) => failed,
        Ok(Err(error)) => store_unavailable(&error),
        Ok(Ok(rows)) => {
            let next = rows.last().map(|row| row.id).filter(|_| rows.len() >= limit);
            Json(json!({ "data": rows, "next": next })).into_response()
        }
    }
}

/// The answer when the store cannot be read.
pub(super) fn store_unavailable(error: &StoreError) -> Response {
    tracing::warn!(%error, "an admin request could not read the store");
    let message = "The store cannot be read now; the reason is in the log. Try again.";
    refuse(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", message)
}
