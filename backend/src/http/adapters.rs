//! The adapter API: the one that mistral.rs has had since 0.9.1.
//!
//! Invariant: unknown fields are refused here, because a misspelt `expected_generation` would turn
//! a compare-and-swap into a plain overwrite.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use hone_shared::turn::Generation;
use serde_json::{Map, Value, json};

use super::infer::Shared;
use crate::error::{ApiError, Code};
use crate::request::{Fields, object};
use crate::resident::Resident;

/// Longest alias.
const ALIAS_CHARS_MAX: usize = 64;

/// The body of a request, or why it could not be read.
///
/// # Errors
/// [`Code::BodyTooLarge`] with the limit, or a broken transfer.
pub fn body(app: &super::App, body: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| match rejection.status().as_u16() {
        413 => {
            let most = app.config.body_bytes_max;
            ApiError::new(Code::BodyTooLarge, format!("The body has more than {most} bytes."))
        }
        _ => ApiError::new(Code::InvalidJson, "The request body could not be read."),
    })
}

/// `POST /v1/load_lora_adapter`.
///
/// # Errors
/// 400, 403, 409 or 429, as the contract says.
pub async fn load(
    State(app): State<Shared>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let map = object(&body(&app, bytes)?)?;
    only(&map, &["lora_name", "lora_path", "load_inplace", "expected_generation", "model"])?;
    let fields = Fields(&map);
    let name = alias(&fields)?;
    let path = fields
        .text("lora_path")?
        .ok_or_else(|| ApiError::value("lora_path", "`lora_path` is missing."))?;
    let expected = expected(&fields)?;
    let inplace = fields.flag("load_inplace")?;
    let loaded = app.fleet()?.load(name, path, expected.as_ref(), inplace).await?;
    Ok(Json(json!({
        "id": name,
        "object": "lora_adapter",
        "generation": loaded.generation.as_str(),
        "rank": loaded.rank,
        "bytes": loaded.bytes,
        "source": path,
        "sequence": loaded.sequence,
        "build_ms": loaded.build_ms,
        "flip_ns": loaded.flip_ns,
    })))
}

/// `POST /v1/unload_lora_adapter`.
///
/// # Errors
/// 400, 404 or 409.
pub async fn unload(
    State(app): State<Shared>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let map = object(&body(&app, bytes)?)?;
    only(&map, &["lora_name", "expected_generation", "model"])?;
    let fields = Fields(&map);
    let name = alias(&fields)?;
    let generation = app.fleet()?.unload(name, expected(&fields)?.as_ref())?;
    Ok(Json(json!({
        "id": name,
        "object": "lora_adapter",
        "generation": generation.as_str(),
        "deleted": true,
    })))
}

/// `GET /v1/lora_adapters`.
///
/// # Errors
/// 503 while loading.
pub async fn list(State(app): State<Shared>) -> Result<Json<Value>, ApiError> {
    let fleet = app.fleet()?;
    let snapshot = fleet.snapshot();
    let data: Vec<Value> = snapshot
        .aliases()
        .map(|(name, generation)| {
            let resident = snapshot.resident(generation);
            json!({
                "id": name,
                "object": "lora_adapter",
                "generation": generation.as_str(),
                "rank": resident.map(|resident| resident.rank),
                "bytes": resident.map(|resident| resident.adapter_bytes),
                "base_model": app.config.model_id,
            })
        })
        .collect();
    let entry = |resident: &Resident, aliases: &[&str]| {
        json!({
            "generation": resident.generation.as_str(),
            "aliases": aliases,
            "retired": aliases.is_empty(),
            "active_leases": resident.active_leases(),
            "rank": resident.rank,
            "bytes": resident.adapter_bytes,
            "loaded_ms": resident.loaded_ms,
            "dead": resident.is_dead(),
        })
    };
    let mut generations: Vec<Value> = snapshot
        .residents()
        .filter(|resident| !resident.generation.is_base())
        .map(|resident| entry(resident, &snapshot.aliases_of(&resident.generation)))
        .collect();
    let gone = fleet.retired();
    generations.extend(gone.iter().map(|resident| entry(resident, &[])));
    let retired = generations.iter().filter(|entry| entry["retired"] == true).count();
    let base = snapshot.resident(&Generation::base());
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "resident_generations": generations.len(),
        "retired_generations": retired,
        "generations": generations,
        "base": {"active_leases": base.map_or(0, |base| base.active_leases())},
        "sequence": snapshot.sequence(),
        "limits": {
            "residents_max": app.config.residents_max,
            "resident_bytes_max": app.config.resident_bytes_max,
            "resident_bytes_each": fleet.bytes_each(),
            "sequences_max": app.config.sequences_max,
        },
    })))
}

fn only(map: &Map<String, Value>, known: &[&str]) -> Result<(), ApiError> {
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let message = format!("`{key}` is unknown here; known are {}.", known.join(", "));
            Err(ApiError::value(key.as_str(), message))
        }
    }
}

fn alias<'a>(fields: &Fields<'a>) -> Result<&'a str, ApiError> {
    let rule = "`lora_name` must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit.";
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    fields
        .text("lora_name")?
        .filter(|name| (1..=ALIAS_CHARS_MAX).contains(&name.len()) && name.bytes().all(allowed))
        .filter(|name| name.starts_with(|first: char| first.is_ascii_alphanumeric()))
        .ok_or_else(|| ApiError::value("lora_name", rule))
}

fn expected(fields: &Fields) -> Result<Option<Generation>, ApiError> {
    let text = fields.text("expected_generation")?;
    text.map(Generation::parse)
        .transpose()
        .map_err(|error| ApiError::value("expected_generation", error.to_string()))
}
