//! What was recorded: turns by filter and page, one turn in full, a session as a tree.
//!
//! ```text
//! GET /v1/turns?route=&tenant=&session=&outcome=&model=&verdict=&since_ms=&until_ms=&limit=&cursor=
//! GET /v1/turns/{id}
//! GET /v1/sessions/{id}
//! ```
//! Invariant: read with a connection that cannot write, where blocking is allowed, in short
//! statements; the texts of turns are shown to operators only.

use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hone_shared::store::{FeedbackRow, Store, StoreError, StoredTurn, TurnFilter, VerdictRow};
use hone_shared::turn::TurnId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::audit::store_unavailable;
use super::{Operator, blocking, refuse};

/// Turns of one page, unless another number is asked for.
const LIMIT: usize = 50;

/// The query; texts are read after it, so that a wrong one gets an answer in our words.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Asked {
    route: Option<String>,
    tenant: Option<String>,
    session: Option<String>,
    outcome: Option<String>,
    model: Option<String>,
    verdict: Option<String>,
    since_ms: Option<i64>,
    until_ms: Option<i64>,
    limit: Option<usize>,
    cursor: Option<String>,
}

fn read<T: FromStr<Err: std::fmt::Display>>(text: Option<&String>) -> Result<Option<T>, String> {
    text.map(|text| text.parse()).transpose().map_err(|error: T::Err| error.to_string())
}

/// `GET /v1/turns`
pub async fn list(State(operator): State<Arc<Operator>>, Query(asked): Query<Asked>) -> Response {
    let texts = || {
        Ok::<_, String>((
            read(asked.outcome.as_ref())?,
            read(asked.verdict.as_ref())?,
            read(asked.cursor.as_ref())?,
        ))
    };
    let (outcome, verdict, cursor) = match texts() {
        Ok(texts) => texts,
        Err(problem) => return refuse(StatusCode::BAD_REQUEST, "invalid_query", &problem),
    };
    let filter = TurnFilter {
        route: asked.route,
        tenant: asked.tenant,
        session: asked.session,
        outcome,
        model: asked.model,
        verdict,
        since_ms: asked.since_ms,
        until_ms: asked.until_ms,
    };
    let limit = asked.limit.unwrap_or(LIMIT);
    let page = stored(&operator, move |store| store.list_turns(&filter, cursor, limit)).await;
    page.map_or_else(
        |failed| failed,
        |page| {
            let next = page.next.map(|cursor| cursor.to_string());
            Json(json!({ "data": page.turns, "next": next })).into_response()
        },
    )
}

/// `GET /v1/turns/{id}`
pub async fn one(State(operator): State<Arc<Operator>>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<TurnId>() else { return unknown("turn") };
    match stored(&operator, move |store| WholeTurn::of(store, id)).await {
        Err(failed) => failed,
        Ok(None) => unknown("turn"),
        Ok(Some(whole)) => Json(whole).into_response(),
    }
}

/// `GET /v1/sessions/{id}`; an id that a client named holds a slash.
pub async fn session(State(operator): State<Arc<Operator>>, Path(id): Path<String>) -> Response {
    let named = id.clone();
    match stored(&operator, move |store| store.session(&named)).await {
        Err(failed) => failed,
        Ok((turns, _)) if turns.is_empty() => unknown("session"),
        Ok((turns, more)) => {
            Json(json!({ "session_id": id, "data": turns, "more": more })).into_response()
        }
    }
}

/// Asks the store. Error: the answer when it could not be read.
async fn stored<T: Send + 'static>(
    operator: &Arc<Operator>,
    ask: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Response> {
    let path = operator.data.store_path();
    let asked = blocking(move || ask(&Store::open_read_only(&path)?)).await?;
    asked.map_err(|error| store_unavailable(&error))
}

fn unknown(what: &str) -> Response {
    let (code, message) = (format!("{what}_not_found"), format!("There is no such {what}."));
    refuse(StatusCode::NOT_FOUND, &code, &message)
}

/// A turn with its texts, what the judge said, what continues it, and what was said about it.
#[derive(Debug, Serialize)]
pub struct WholeTurn {
    /// The turn.
    #[serde(flatten)]
    pub turn: StoredTurn,
    /// What the judge said.
    pub verdict: Option<VerdictRow>,
    /// What continues it.
    pub children: Vec<TurnId>,
    /// What was said about it.
    pub feedback: Vec<FeedbackRow>,
}

impl WholeTurn {
    /// Reads a turn. `None`: it is not stored.
    pub fn of(store: &Store, id: TurnId) -> Result<Option<Self>, StoreError> {
        let Some(turn) = store.turn(id)? else { return Ok(None) };
        let children = store.children(id)?.into_iter().map(|child| child.turn_id).collect();
        let (verdict, feedback) = (store.verdict(id)?, store.feedback_given(id)?);
        Ok(Some(Self { turn, verdict, children, feedback }))
    }
}
