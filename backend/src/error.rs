//! Errors: what stops the process ([`BackendError`]), and what a client is told ([`ApiError`]).
//!
//! Invariant: the HTTP status of every error is decided in [`Code::status`] and nowhere else, and
//! every error body is OpenAI-shaped: `{"error":{"message","type","param","code"}}`.

use std::fmt;
use std::path::PathBuf;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

/// What stops the backend, or keeps it from starting.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A setting cannot work.
    #[error("backend settings: {0}")]
    Config(String),
    /// The address cannot be bound, or the listener failed.
    #[error("cannot serve on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The model directory is unusable.
    #[error("model directory {}: {reason}; `hone model get smollm2-135m` makes one", dir.display())]
    Model {
        /// The directory.
        dir: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// mistral.rs could not load the model.
    #[error("the engine could not load: {0}")]
    Load(String),
}

/// Why a request is refused: one word for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The body is not JSON.
    InvalidJson,
    /// A field is missing, of the wrong type, or out of range.
    InvalidValue,
    /// A field is understood but not served.
    Unsupported,
    /// The prompt is longer than the model's context.
    ContextLengthExceeded,
    /// The body is larger than the limit.
    BodyTooLarge,
    /// The chat template or the tokenizer refused the messages.
    PromptRejected,
    /// No such model or alias.
    ModelNotFound,
    /// No such path.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// No such generation in the registry.
    AdapterNotFound,
    /// The generation directory is damaged or does not fit the model.
    AdapterUnusable,
    /// The path is not under the registry.
    AdapterPathForbidden,
    /// The alias points elsewhere than the caller thinks.
    LoraGenerationMismatch,
    /// The alias is taken and `load_inplace` was not given.
    LoraAdapterAlreadyLoaded,
    /// No such alias in this engine.
    LoraAdapterNotFound,
    /// Another generation is being loaded.
    LoraLoadBusy,
    /// No room for another resident generation.
    LoraLimitReached,
    /// The backend runs without a registry.
    LoraRuntimeUnavailable,
    /// Too many requests wait.
    Overloaded,
    /// The wait for a sequence, or for a token, took too long.
    Timeout,
    /// A request of the background gave way.
    Yielded,
    /// The backend still loads.
    EngineLoading,
    /// The engine thread died and is being rebuilt.
    EngineRestarting,
    /// The engine failed on this request.
    EngineFailed,
}

impl Code {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidValue => "invalid_value",
            Self::Unsupported => "unsupported_parameter",
            Self::ContextLengthExceeded => "context_length_exceeded",
            Self::BodyTooLarge => "request_too_large",
            Self::PromptRejected => "prompt_rejected",
            Self::ModelNotFound => "model_not_found",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::AdapterNotFound => "adapter_not_found",
            Self::AdapterUnusable => "adapter_unusable",
            Self::AdapterPathForbidden => "adapter_path_forbidden",
            Self::LoraGenerationMismatch => "lora_generation_mismatch",
            Self::LoraAdapterAlreadyLoaded => "lora_adapter_already_loaded",
            Self::LoraAdapterNotFound => "lora_adapter_not_found",
            Self::LoraLoadBusy => "lora_load_busy",
            Self::LoraLimitReached => "lora_limit_reached",
            Self::LoraRuntimeUnavailable => "lora_runtime_unavailable",
            Self::Overloaded => "engine_overloaded",
            Self::Timeout => "engine_timeout",
            Self::Yielded => "engine_yielded",
            Self::EngineLoading => "engine_loading",
            Self::EngineRestarting => "engine_restarting",
            Self::EngineFailed => "engine_failed",
        }
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidJson
            | Self::InvalidValue
            | Self::Unsupported
            | Self::ContextLengthExceeded
            | Self::PromptRejected
            | Self::AdapterUnusable => StatusCode::BAD_REQUEST,
            Self::AdapterPathForbidden => StatusCode::FORBIDDEN,
            Self::ModelNotFound
            | Self::NotFound
            | Self::AdapterNotFound
            | Self::LoraAdapterNotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::LoraGenerationMismatch
            | Self::LoraAdapterAlreadyLoaded
            | Self::LoraLimitReached
            | Self::LoraRuntimeUnavailable => StatusCode::CONFLICT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::LoraLoadBusy | Self::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Self::Timeout | Self::Yielded | Self::EngineLoading | Self::EngineRestarting => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::EngineFailed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// OpenAI's `type` of the error.
    fn kind(self) -> &'static str {
        match self.status().as_u16() {
            429 => "rate_limit_error",
            status if status >= 500 => "server_error",
            _ => "invalid_request_error",
        }
    }
}

/// An error as a client sees it.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// What went wrong, for machines.
    pub code: Code,
    /// What went wrong and what to do, for people.
    pub message: String,
    /// The request field at fault.
    pub param: Option<String>,
}

impl ApiError {
    /// An error that is not about one field.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None }
    }

    /// An error about the field `param`.
    pub fn of(code: Code, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: Some(param.into()) }
    }

    /// A field with a wrong type or value.
    pub fn value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::of(Code::InvalidValue, param, message)
    }

    /// The JSON body.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.code.kind(),
            "param": self.param,
            "code": self.code.as_str(),
        }})
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let mut response = (status, axum::Json(self.body())).into_response();
        if matches!(status.as_u16(), 429 | 503) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_body_has_the_four_fields_that_the_openai_client_reads() {
        let body = ApiError::value("n", "`n` must be an integer").body();
        assert_eq!(body["error"]["code"], "invalid_value");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["param"], "n");
        assert_eq!(body["error"]["message"], "`n` must be an integer");
    }

    #[test]
    fn a_busy_engine_asks_the_client_to_come_back() {
        let response = ApiError::new(Code::LoraLoadBusy, "busy").into_response();
        assert_eq!(response.status(), 429);
        assert!(response.headers().contains_key("retry-after"));
    }
}
