//! `GET /v1/models` and `GET /health`.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};

use super::App;
use super::infer::Shared;
use crate::error::{ApiError, Code};

/// `GET /v1/models`: the base, and the base with each alias.
///
/// # Errors
/// 503 while loading.
pub async fn list(State(app): State<Shared>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"object": "list", "data": models(&app)?})))
}

/// `GET /v1/models/{id}`.
///
/// # Errors
/// 404 for a model that does not exist, 503 while loading.
pub async fn one(
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let found = models(&app)?.into_iter().find(|model| model["id"] == id.as_str());
    found.map(Json).ok_or_else(|| {
        let shown: String = id.chars().take(200).collect();
        let message = format!("The model `{shown}` does not exist; see /v1/models.");
        ApiError::of(Code::ModelNotFound, "model", message)
    })
}

fn models(app: &App) -> Result<Vec<Value>, ApiError> {
    let snapshot = app.fleet()?.snapshot();
    let base = &app.config.model_id;
    let entry = |id: String, generation: Option<&str>| {
        json!({
            "id": id,
            "object": "model",
            "created": app.started_s,
            "owned_by": "hone",
            "adapter_generation": generation,
        })
    };
    let mut models = vec![entry(base.clone(), None)];
    for (alias, generation) in snapshot.aliases() {
        models.push(entry(format!("{base}::{alias}"), Some(generation.as_str())));
    }
    Ok(models)
}

/// `GET /health`: 200 when every engine that should answer can, else 503.
pub async fn health(State(app): State<Shared>) -> Response {
    let (status, word) = match app.fleet() {
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
        Ok(fleet) if !fleet.is_healthy() => (StatusCode::SERVICE_UNAVAILABLE, "restarting"),
        Ok(_) => (StatusCode::OK, "ok"),
    };
    (status, Json(json!({"status": word}))).into_response()
}
