//! `POST /v1/feedback` by an operator: the same bodies, about any tenant's turn, with an audit row.
//!
//! Invariant: nothing is taken that the audit trail does not have; the row holds no text of it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use hone_shared::feedback::{ANY_TENANT, FeedbackKind, Given, Part};
use hone_shared::store::{AuditEntry, Store, StoreError};

use super::guard::Who;
use super::{Operator, blocking, refuse};
use crate::feedback::wrong_body;

/// `POST /v1/feedback`
pub async fn give(
    State(operator): State<Arc<Operator>>,
    Extension(who): Extension<Who>,
    body: axum::body::Bytes,
) -> Response {
    let given = match operator.feedback.check(None, &body) {
        Ok(given) => given,
        Err(error) => return (StatusCode::BAD_REQUEST, Json(wrong_body(&error))).into_response(),
    };
    let given_by = blocking(move || {
        if !given.dry_run {
            audit(&operator, &who, &given)?;
        }
        Ok(operator.feedback.take(given, ANY_TENANT, 1.0))
    });
    match given_by.await {
        Err(failed) => failed,
        Ok(Err(error)) => unavailable(&error),
        Ok(Ok(Some(taken))) => (StatusCode::ACCEPTED, Json(taken.body())).into_response(),
        Ok(Ok(None)) => {
            let message = "Feedback cannot be recorded now: see disk space with `hone status`.";
            refuse(StatusCode::SERVICE_UNAVAILABLE, "feedback_unavailable", message)
        }
    }
}

fn audit(operator: &Operator, who: &Who, given: &Given) -> Result<(), StoreError> {
    let kinds: Vec<&str> = given.parts.iter().map(Part::kind).map(FeedbackKind::as_str).collect();
    let entry = AuditEntry {
        actor: who.0.clone(),
        action: "feedback".to_owned(),
        target: given.target.word().to_owned(),
        after: Some(kinds.join(", ")),
        ..AuditEntry::default()
    };
    Store::open(&operator.data.store_path())?.append_audit(&entry)?;
    Ok(())
}

fn unavailable(error: &StoreError) -> Response {
    tracing::warn!(%error, "feedback was refused: it could not be audited");
    let message = "The audit trail cannot be written now, so nothing was taken. Try again.";
    refuse(StatusCode::SERVICE_UNAVAILABLE, "audit_unavailable", message)
}
